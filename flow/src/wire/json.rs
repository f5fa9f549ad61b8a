//! OTLP/JSON into the protobuf that it stands for, by one table of fields, so that everything behind it reads one form
//! only. Ids are hexadecimal and 64-bit integers may be strings, as the OTLP specification has it; names that it does
//! not know are passed over. Must never recurse deeper than the parser of JSON lets a text nest.

use serde_json::Value;

use super::proto::{put_bytes, put_varint};

/// How a value is written.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// Base64.
    Bytes,
    /// Hexadecimal.
    Id,
    /// Integers and enums.
    Varint,
    /// Zigzag.
    Signed,
    Flag,
    Fixed32,
    Fixed64,
    /// A signed integer of eight bytes.
    SignedFixed64,
    Double,
    Message(&'static [Field]),
}

#[derive(Clone, Copy)]
struct Field {
    name: &'static str,
    number: u32,
    kind: Kind,
    repeated: bool,
}

const fn one(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, repeated: false }
}

const fn many(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, kind, repeated: true }
}

static TRACES: &[Field] = &[many("resourceSpans", 1, Kind::Message(&RESOURCE_SPANS))];
static METRICS: &[Field] = &[many("resourceMetrics", 1, Kind::Message(&RESOURCE_METRICS))];

static RESOURCE_SPANS: [Field; 3] = [
    one("resource", 1, Kind::Message(&RESOURCE)),
    many("scopeSpans", 2, Kind::Message(&SCOPE_SPANS)),
    one("schemaUrl", 3, Kind::Text),
];
static RESOURCE: [Field; 2] =
    [many("attributes", 1, Kind::Message(&KEY_VALUE)), one("droppedAttributesCount", 2, Kind::Varint)];
static SCOPE_SPANS: [Field; 3] = [
    one("scope", 1, Kind::Message(&SCOPE)),
    many("spans", 2, Kind::Message(&SPAN)),
    one("schemaUrl", 3, Kind::Text),
];
static SCOPE: [Field; 4] = [
    one("name", 1, Kind::Text),
    one("version", 2, Kind::Text),
    many("attributes", 3, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Kind::Varint),
];
static SPAN: [Field; 16] = [
    one("traceId", 1, Kind::Id),
    one("spanId", 2, Kind::Id),
    one("traceState", 3, Kind::Text),
    one("parentSpanId", 4, Kind::Id),
    one("name", 5, Kind::Text),
    one("kind", 6, Kind::Varint),
    one("startTimeUnixNano", 7, Kind::Fixed64),
    one("endTimeUnixNano", 8, Kind::Fixed64),
    many("attributes", 9, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 10, Kind::Varint),
    many("events", 11, Kind::Message(&EVENT)),
    one("droppedEventsCount", 12, Kind::Varint),
    many("links", 13, Kind::Message(&LINK)),
    one("droppedLinksCount", 14, Kind::Varint),
    one("status", 15, Kind::Message(&STATUS)),
    one("flags", 16, Kind::Fixed32),
];
static EVENT: [Field; 4] = [
    one("timeUnixNano", 1, Kind::Fixed64),
    one("name", 2, Kind::Text),
    many("attributes", 3, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Kind::Varint),
];
static LINK: [Field; 6] = [
    one("traceId", 1, Kind::Id),
    one("spanId", 2, Kind::Id),
    one("traceState", 3, Kind::Text),
    many("attributes", 4, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 5, Kind::Varint),
    one("flags", 6, Kind::Fixed32),
];
static STATUS: [Field; 2] = [one("message", 2, Kind::Text), one("code", 3, Kind::Varint)];
static KEY_VALUE: [Field; 2] = [one("key", 1, Kind::Text), one("value", 2, Kind::Message(&ANY))];
static ANY: [Field; 7] = [
    one("stringValue", 1, Kind::Text),
    one("boolValue", 2, Kind::Flag),
    one("intValue", 3, Kind::Varint),
    one("doubleValue", 4, Kind::Double),
    one("arrayValue", 5, Kind::Message(&ARRAY)),
    one("kvlistValue", 6, Kind::Message(&KV_LIST)),
    one("bytesValue", 7, Kind::Bytes),
];
static ARRAY: [Field; 1] = [many("values", 1, Kind::Message(&ANY))];
static KV_LIST: [Field; 1] = [many("values", 1, Kind::Message(&KEY_VALUE))];

static RESOURCE_METRICS: [Field; 3] = [
    one("resource", 1, Kind::Message(&RESOURCE)),
    many("scopeMetrics", 2, Kind::Message(&SCOPE_METRICS)),
    one("schemaUrl", 3, Kind::Text),
];
static SCOPE_METRICS: [Field; 3] = [
    one("scope", 1, Kind::Message(&SCOPE)),
    many("metrics", 2, Kind::Message(&METRIC)),
    one("schemaUrl", 3, Kind::Text),
];
static METRIC: [Field; 9] = [
    one("name", 1, Kind::Text),
    one("description", 2, Kind::Text),
    one("unit", 3, Kind::Text),
    one("gauge", 5, Kind::Message(&GAUGE)),
    one("sum", 7, Kind::Message(&SUM)),
    one("histogram", 9, Kind::Message(&HISTOGRAM)),
    one("exponentialHistogram", 10, Kind::Message(&EXPONENTIAL)),
    one("summary", 11, Kind::Message(&SUMMARY)),
    many("metadata", 12, Kind::Message(&KEY_VALUE)),
];
static GAUGE: [Field; 1] = [many("dataPoints", 1, Kind::Message(&NUMBER_POINT))];
static SUM: [Field; 3] = [
    many("dataPoints", 1, Kind::Message(&NUMBER_POINT)),
    one("aggregationTemporality", 2, Kind::Varint),
    one("isMonotonic", 3, Kind::Flag),
];
static HISTOGRAM: [Field; 2] =
    [many("dataPoints", 1, Kind::Message(&HISTOGRAM_POINT)), one("aggregationTemporality", 2, Kind::Varint)];
static EXPONENTIAL: [Field; 2] = [
    many("dataPoints", 1, Kind::Message(&EXPONENTIAL_POINT)),
    one("aggregationTemporality", 2, Kind::Varint),
];
static SUMMARY: [Field; 1] = [many("dataPoints", 1, Kind::Message(&SUMMARY_POINT))];
static NUMBER_POINT: [Field; 7] = [
    one("startTimeUnixNano", 2, Kind::Fixed64),
    one("timeUnixNano", 3, Kind::Fixed64),
    one("asDouble", 4, Kind::Double),
    many("exemplars", 5, Kind::Message(&EXEMPLAR)),
    one("asInt", 6, Kind::SignedFixed64),
    many("attributes", 7, Kind::Message(&KEY_VALUE)),
    one("flags", 8, Kind::Varint),
];
static HISTOGRAM_POINT: [Field; 11] = [
    one("startTimeUnixNano", 2, Kind::Fixed64),
    one("timeUnixNano", 3, Kind::Fixed64),
    one("count", 4, Kind::Fixed64),
    one("sum", 5, Kind::Double),
    many("bucketCounts", 6, Kind::Fixed64),
    many("explicitBounds", 7, Kind::Double),
    many("exemplars", 8, Kind::Message(&EXEMPLAR)),
    many("attributes", 9, Kind::Message(&KEY_VALUE)),
    one("flags", 10, Kind::Varint),
    one("min", 11, Kind::Double),
    one("max", 12, Kind::Double),
];
static EXPONENTIAL_POINT: [Field; 14] = [
    many("attributes", 1, Kind::Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Kind::Fixed64),
    one("timeUnixNano", 3, Kind::Fixed64),
    one("count", 4, Kind::Fixed64),
    one("sum", 5, Kind::Double),
    one("scale", 6, Kind::Signed),
    one("zeroCount", 7, Kind::Fixed64),
    one("positive", 8, Kind::Message(&BUCKETS)),
    one("negative", 9, Kind::Message(&BUCKETS)),
    one("flags", 10, Kind::Varint),
    many("exemplars", 11, Kind::Message(&EXEMPLAR)),
    one("min", 12, Kind::Double),
    one("max", 13, Kind::Double),
    one("zeroThreshold", 14, Kind::Double),
];
static BUCKETS: [Field; 2] = [one("offset", 1, Kind::Signed), many("bucketCounts", 2, Kind::Varint)];
static SUMMARY_POINT: [Field; 7] = [
    one("startTimeUnixNano", 2, Kind::Fixed64),
    one("timeUnixNano", 3, Kind::Fixed64),
    one("count", 4, Kind::Fixed64),
    one("sum", 5, Kind::Double),
    many("quantileValues", 6, Kind::Message(&QUANTILE)),
    many("attributes", 7, Kind::Message(&KEY_VALUE)),
    one("flags", 8, Kind::Varint),
];
static QUANTILE: [Field; 2] = [one("quantile", 1, Kind::Double), one("value", 2, Kind::Double)];
static EXEMPLAR: [Field; 6] = [
    one("timeUnixNano", 2, Kind::Fixed64),
    one("asDouble", 3, Kind::Double),
    one("spanId", 4, Kind::Id),
    one("traceId", 5, Kind::Id),
    one("asInt", 6, Kind::SignedFixed64),
    many("filteredAttributes", 7, Kind::Message(&KEY_VALUE)),
];

/// An `ExportTraceServiceRequest`.
///
/// # Errors
/// Which field is wrong, and what would be right.
pub fn traces(text: &[u8]) -> Result<Vec<u8>, String> {
    request(text, TRACES)
}

/// An `ExportMetricsServiceRequest`.
///
/// # Errors
/// Which field is wrong, and what would be right.
pub fn metrics(text: &[u8]) -> Result<Vec<u8>, String> {
    request(text, METRICS)
}

fn request(text: &[u8], fields: &[Field]) -> Result<Vec<u8>, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| format!("want JSON: {error}"))?;
    let mut out = Vec::with_capacity(text.len() / 2);
    message(&value, fields, &mut out).map_err(|Wrong { path, want }| {
        let path: Vec<&str> = path.into_iter().rev().collect();
        format!("{}: want {want}", if path.is_empty() { "the body".to_owned() } else { path.join(".") })
    })?;
    Ok(out)
}

/// What is wrong, and the names that lead there, the innermost first.
struct Wrong {
    path: Vec<&'static str>,
    want: &'static str,
}

fn wrong(want: &'static str) -> Wrong {
    Wrong { path: Vec::new(), want }
}

fn message(value: &Value, fields: &[Field], out: &mut Vec<u8>) -> Result<(), Wrong> {
    let object = value.as_object().ok_or_else(|| wrong("an object"))?;
    for field in fields {
        let Some(value) = object.get(field.name).filter(|value| !value.is_null()) else { continue };
        let written = if field.repeated {
            let list = value.as_array().ok_or_else(|| wrong("an array"));
            list.and_then(|list| list.iter().try_for_each(|one| put(one, field, out)))
        } else {
            put(value, field, out)
        };
        written.map_err(|mut wrong| {
            wrong.path.push(field.name);
            wrong
        })?;
    }
    Ok(())
}

fn put(value: &Value, field: &Field, out: &mut Vec<u8>) -> Result<(), Wrong> {
    let tag = |out: &mut Vec<u8>, wire: u64| put_varint(out, u64::from(field.number) << 3 | wire);
    match field.kind {
        Kind::Text => put_bytes(out, field.number, text(value)?.as_bytes()),
        Kind::Bytes => put_bytes(out, field.number, &base64(text(value)?).ok_or_else(|| wrong("base64"))?),
        Kind::Id => {
            // An empty parent is none.
            let digits = text(value)?;
            if !digits.is_empty() {
                put_bytes(out, field.number, &hex(digits).ok_or_else(|| wrong("hexadecimal digits"))?);
            }
        }
        Kind::Varint => {
            let number = integer(value)?;
            tag(out, 0);
            put_varint(out, number.cast_unsigned());
        }
        Kind::Signed => {
            let number = integer(value)?;
            tag(out, 0);
            put_varint(out, ((number << 1) ^ (number >> 63)).cast_unsigned());
        }
        Kind::Flag => {
            let flag = value.as_bool().ok_or_else(|| wrong("true or false"))?;
            tag(out, 0);
            out.push(u8::from(flag));
        }
        Kind::Fixed32 => {
            let number = u32::try_from(integer(value)?).map_err(|_| wrong("an integer of 32 bits"))?;
            tag(out, 5);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Kind::Fixed64 => {
            let number = unsigned(value)?;
            tag(out, 1);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Kind::SignedFixed64 => {
            let number = integer(value)?;
            tag(out, 1);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Kind::Double => {
            let number = double(value)?;
            tag(out, 1);
            out.extend_from_slice(&number.to_le_bytes());
        }
        Kind::Message(fields) => {
            let mut inner = Vec::new();
            message(value, fields, &mut inner)?;
            put_bytes(out, field.number, &inner);
        }
    }
    Ok(())
}

fn text(value: &Value) -> Result<&str, Wrong> {
    value.as_str().ok_or_else(|| wrong("a string"))
}

fn integer(value: &Value) -> Result<i64, Wrong> {
    let number = match value {
        Value::String(text) => text.parse().ok().or_else(|| text.parse::<u64>().ok().map(u64::cast_signed)),
        Value::Number(number) => number.as_i64().or_else(|| number.as_u64().map(u64::cast_signed)),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    number.ok_or_else(|| wrong("an integer, or one as a string"))
}

fn unsigned(value: &Value) -> Result<u64, Wrong> {
    let number = match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.as_u64(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    number.ok_or_else(|| wrong("an integer from 0, or one as a string"))
}

fn double(value: &Value) -> Result<f64, Wrong> {
    let number = match value {
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            other => other.parse().ok(),
        },
        Value::Number(number) => number.as_f64(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    number.ok_or_else(|| wrong("a number"))
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            let [high, low] = pair else { return None };
            let digit = |byte: &u8| char::from(*byte).to_digit(16);
            u8::try_from(digit(high)? * 16 + digit(low)?).ok()
        })
        .collect()
}

/// Either alphabet, padded or not.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut word, mut bits) = (0_u32, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        (word, bits) = (word << 6 | u32::from(digit), bits + 6);
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits & 0xff) as u8);
        }
    }
    (bits < 6).then_some(out)
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value;
    use opentelemetry_proto::tonic::metrics::v1::metric::Data;
    use prost::Message as _;

    use super::*;

    #[test]
    fn spans_as_the_specification_writes_them_are_what_protobuf_says() {
        let text = br#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"my.service"}}]},
            "scopeSpans":[{"scope":{"name":"my.library","version":"1.0.0"},"spans":[{
            "traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"EEE19B7EC3C1B174","parentSpanId":"","name":"I'm a server span",
            "startTimeUnixNano":"1544712660000000000","endTimeUnixNano":1544712661000000000,"kind":2,"unknown":{"a":1},
            "attributes":[{"key":"n","value":{"intValue":"-7"}},{"key":"d","value":{"doubleValue":0.5}},{"key":"b","value":{"boolValue":true}},
              {"key":"l","value":{"arrayValue":{"values":[{"stringValue":"x"},{"bytesValue":"aGk="}]}}}],
            "links":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174"}],
            "events":[{"timeUnixNano":"1544712660500000000","name":"e"}],"status":{"code":2,"message":"bad"},"flags":257}]}]}]}"#;
        let message = ExportTraceServiceRequest::decode(&traces(text).unwrap()[..]).unwrap();
        let span = &message.resource_spans[0].scope_spans[0].spans[0];
        assert_eq!(message.resource_spans[0].scope_spans[0].scope.as_ref().unwrap().name, "my.library");
        assert_eq!((span.trace_id[0], span.span_id[7], span.parent_span_id.len()), (0x5b, 0x74, 0));
        assert_eq!(
            (span.start_time_unix_nano, span.end_time_unix_nano),
            (1_544_712_660_000_000_000, 1_544_712_661_000_000_000)
        );
        assert_eq!((span.kind, span.flags, span.links.len(), span.events[0].name.as_str()), (2, 257, 1, "e"));
        assert_eq!(span.status.as_ref().unwrap().message, "bad");
        let value = |at: usize| span.attributes[at].value.as_ref().unwrap().value.clone().unwrap();
        assert_eq!(value(0), any_value::Value::IntValue(-7));
        assert_eq!(value(1), any_value::Value::DoubleValue(0.5));
        let any_value::Value::ArrayValue(list) = value(3) else { panic!("want a list") };
        assert_eq!(list.values[1].value, Some(any_value::Value::BytesValue(b"hi".to_vec())));
    }

    #[test]
    fn metrics_keep_their_buckets_and_signs() {
        let text = br#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[
            {"name":"h","unit":"s","histogram":{"aggregationTemporality":2,"dataPoints":[{"timeUnixNano":"5","count":"3","sum":1.5,
             "bucketCounts":["1","2"],"explicitBounds":[0.1]}]}},
            {"name":"e","exponentialHistogram":{"dataPoints":[{"count":3,"scale":-1,"positive":{"offset":-2,"bucketCounts":["300",1]}}]}},
            {"name":"s","sum":{"isMonotonic":true,"dataPoints":[{"asInt":"-4"}]}}]}]}]}"#;
        let message = ExportMetricsServiceRequest::decode(&metrics(text).unwrap()[..]).unwrap();
        let all = &message.resource_metrics[0].scope_metrics[0].metrics;
        let Some(Data::Histogram(histogram)) = &all[0].data else { panic!("want a histogram") };
        assert_eq!(histogram.data_points[0].bucket_counts, [1, 2]);
        assert_eq!((histogram.data_points[0].explicit_bounds[0], histogram.data_points[0].count), (0.1, 3));
        let Some(Data::ExponentialHistogram(exponential)) = &all[1].data else {
            panic!("want an exponential one")
        };
        let point = &exponential.data_points[0];
        let positive = point.positive.as_ref().unwrap();
        assert_eq!((point.scale, positive.offset, &positive.bucket_counts[..]), (-1, -2, &[300, 1][..]));
        let Some(Data::Sum(sum)) = &all[2].data else { panic!("want a sum") };
        assert!(sum.is_monotonic);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, expected) in [
            ("[]", "the body: want an object"),
            ("{\"resourceSpans\":{}}", "resourceSpans: want an array"),
            (
                "{\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[{\"traceId\":\"xyz\"}]}]}]}",
                "resourceSpans.scopeSpans.spans.traceId: want hexadecimal digits",
            ),
            (
                "{\"resourceSpans\":[{\"scopeSpans\":[{\"spans\":[{\"startTimeUnixNano\":-1}]}]}]}",
                "resourceSpans.scopeSpans.spans.startTimeUnixNano: want an integer from 0, or one as a string",
            ),
        ] {
            assert_eq!(traces(text.as_bytes()), Err(expected.to_owned()));
        }
        assert!(traces(b"{\"resourceSpans\":").unwrap_err().starts_with("want JSON: "));
        let deep = format!("{}1{}", "{\"resourceSpans\":[".repeat(200), "]}".repeat(200));
        assert!(traces(deep.as_bytes()).is_err());
    }
}
