//! OTLP/JSON into OTLP protobuf, and back. One table of the messages serves both ways; what comes in as JSON is
//! protobuf from here on. Ids are hexadecimal, integers of 64 bits are numbers or text, enums numbers or names, as
//! <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding> has it. Fields that are unknown are passed over.
//! Must never give out bytes for a document that is wrong.

use super::proto::{Field, Fields, put_bytes, put_varint};
use serde_json::Value;

/// What is wrong with a document, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wrong {
    /// Where, such as `resourceSpans[0].scopeSpans[0].spans[3].traceId`; empty for the document as a whole.
    pub path: String,
    /// What was expected there.
    pub want: String,
}

impl std::fmt::Display for Wrong {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = if self.path.is_empty() { "document" } else { &self.path };
        write!(out, "{path}: want {}", self.want)
    }
}

impl std::error::Error for Wrong {}

/// The type of a field.
enum Type {
    Text,
    /// Bytes, as hexadecimal digits.
    Id,
    /// Bytes, in base 64.
    Base64,
    Flag,
    Uint32,
    Sint32,
    Int64,
    Uint64,
    Fixed32,
    Fixed64,
    Sfixed64,
    Double,
    Enum(&'static [&'static str]),
    Message(&'static [Entry]),
}

/// How often a field may be there.
#[derive(Clone, Copy, PartialEq)]
enum Times {
    /// Left out when it is zero or empty.
    Once,
    /// Told even when it is zero: one of several, or optional.
    Told,
    Many,
    /// Many numbers in one field.
    Packed,
}

/// A field: its name in JSON, its number.
struct Entry(&'static str, u32, Times, Type);

use Times::{Many, Once, Packed, Told};
use Type::{
    Base64, Double, Enum, Fixed32, Fixed64, Flag, Id, Int64, Message, Sfixed64, Sint32, Text, Uint32, Uint64,
};

const KIND: Type = Enum(&[
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
]);
const CODE: Type = Enum(&["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"]);
const TEMPORALITY: Type = Enum(&[
    "AGGREGATION_TEMPORALITY_UNSPECIFIED",
    "AGGREGATION_TEMPORALITY_DELTA",
    "AGGREGATION_TEMPORALITY_CUMULATIVE",
]);

static ANY: [Entry; 7] = [
    Entry("stringValue", 1, Told, Text),
    Entry("boolValue", 2, Told, Flag),
    Entry("intValue", 3, Told, Int64),
    Entry("doubleValue", 4, Told, Double),
    Entry("arrayValue", 5, Told, Message(&[Entry("values", 1, Many, Message(&ANY))])),
    Entry("kvlistValue", 6, Told, Message(&[Entry("values", 1, Many, Message(&PAIR))])),
    Entry("bytesValue", 7, Told, Base64),
];
static PAIR: [Entry; 2] = [Entry("key", 1, Once, Text), Entry("value", 2, Told, Message(&ANY))];
static ENTITY: [Entry; 4] = [
    Entry("schemaUrl", 1, Once, Text),
    Entry("type", 2, Once, Text),
    Entry("idKeys", 3, Many, Text),
    Entry("descriptionKeys", 4, Many, Text),
];
static RESOURCE: [Entry; 3] = [
    Entry("attributes", 1, Many, Message(&PAIR)),
    Entry("droppedAttributesCount", 2, Once, Uint32),
    Entry("entityRefs", 3, Many, Message(&ENTITY)),
];
static SCOPE: [Entry; 4] = [
    Entry("name", 1, Once, Text),
    Entry("version", 2, Once, Text),
    Entry("attributes", 3, Many, Message(&PAIR)),
    Entry("droppedAttributesCount", 4, Once, Uint32),
];
static EVENT: [Entry; 4] = [
    Entry("timeUnixNano", 1, Once, Fixed64),
    Entry("name", 2, Once, Text),
    Entry("attributes", 3, Many, Message(&PAIR)),
    Entry("droppedAttributesCount", 4, Once, Uint32),
];
static LINK: [Entry; 6] = [
    Entry("traceId", 1, Once, Id),
    Entry("spanId", 2, Once, Id),
    Entry("traceState", 3, Once, Text),
    Entry("attributes", 4, Many, Message(&PAIR)),
    Entry("droppedAttributesCount", 5, Once, Uint32),
    Entry("flags", 6, Once, Fixed32),
];
static STATUS: [Entry; 2] = [Entry("message", 2, Once, Text), Entry("code", 3, Once, CODE)];
static SPAN: [Entry; 16] = [
    Entry("traceId", 1, Once, Id),
    Entry("spanId", 2, Once, Id),
    Entry("traceState", 3, Once, Text),
    Entry("parentSpanId", 4, Once, Id),
    Entry("name", 5, Once, Text),
    Entry("kind", 6, Once, KIND),
    Entry("startTimeUnixNano", 7, Once, Fixed64),
    Entry("endTimeUnixNano", 8, Once, Fixed64),
    Entry("attributes", 9, Many, Message(&PAIR)),
    Entry("droppedAttributesCount", 10, Once, Uint32),
    Entry("events", 11, Many, Message(&EVENT)),
    Entry("droppedEventsCount", 12, Once, Uint32),
    Entry("links", 13, Many, Message(&LINK)),
    Entry("droppedLinksCount", 14, Once, Uint32),
    Entry("status", 15, Told, Message(&STATUS)),
    Entry("flags", 16, Once, Fixed32),
];
static TRACES: [Entry; 1] = [Entry(
    "resourceSpans",
    1,
    Many,
    Message(&[
        Entry("resource", 1, Told, Message(&RESOURCE)),
        Entry(
            "scopeSpans",
            2,
            Many,
            Message(&[
                Entry("scope", 1, Told, Message(&SCOPE)),
                Entry("spans", 2, Many, Message(&SPAN)),
                Entry("schemaUrl", 3, Once, Text),
            ]),
        ),
        Entry("schemaUrl", 3, Once, Text),
    ]),
)];
static EXEMPLAR: [Entry; 6] = [
    Entry("timeUnixNano", 2, Once, Fixed64),
    Entry("asDouble", 3, Told, Double),
    Entry("spanId", 4, Once, Id),
    Entry("traceId", 5, Once, Id),
    Entry("asInt", 6, Told, Sfixed64),
    Entry("filteredAttributes", 7, Many, Message(&PAIR)),
];
static NUMBER_POINT: [Entry; 7] = [
    Entry("startTimeUnixNano", 2, Once, Fixed64),
    Entry("timeUnixNano", 3, Once, Fixed64),
    Entry("asDouble", 4, Told, Double),
    Entry("exemplars", 5, Many, Message(&EXEMPLAR)),
    Entry("asInt", 6, Told, Sfixed64),
    Entry("attributes", 7, Many, Message(&PAIR)),
    Entry("flags", 8, Once, Uint32),
];
static HISTOGRAM_POINT: [Entry; 11] = [
    Entry("startTimeUnixNano", 2, Once, Fixed64),
    Entry("timeUnixNano", 3, Once, Fixed64),
    Entry("count", 4, Once, Fixed64),
    Entry("sum", 5, Told, Double),
    Entry("bucketCounts", 6, Packed, Fixed64),
    Entry("explicitBounds", 7, Packed, Double),
    Entry("exemplars", 8, Many, Message(&EXEMPLAR)),
    Entry("attributes", 9, Many, Message(&PAIR)),
    Entry("flags", 10, Once, Uint32),
    Entry("min", 11, Told, Double),
    Entry("max", 12, Told, Double),
];
static BUCKETS: [Entry; 2] = [Entry("offset", 1, Once, Sint32), Entry("bucketCounts", 2, Packed, Uint64)];
static EXPONENTIAL_POINT: [Entry; 14] = [
    Entry("attributes", 1, Many, Message(&PAIR)),
    Entry("startTimeUnixNano", 2, Once, Fixed64),
    Entry("timeUnixNano", 3, Once, Fixed64),
    Entry("count", 4, Once, Fixed64),
    Entry("sum", 5, Told, Double),
    Entry("scale", 6, Once, Sint32),
    Entry("zeroCount", 7, Once, Fixed64),
    Entry("positive", 8, Told, Message(&BUCKETS)),
    Entry("negative", 9, Told, Message(&BUCKETS)),
    Entry("flags", 10, Once, Uint32),
    Entry("exemplars", 11, Many, Message(&EXEMPLAR)),
    Entry("min", 12, Told, Double),
    Entry("max", 13, Told, Double),
    Entry("zeroThreshold", 14, Once, Double),
];
static SUMMARY_POINT: [Entry; 7] = [
    Entry("startTimeUnixNano", 2, Once, Fixed64),
    Entry("timeUnixNano", 3, Once, Fixed64),
    Entry("count", 4, Once, Fixed64),
    Entry("sum", 5, Once, Double),
    Entry(
        "quantileValues",
        6,
        Many,
        Message(&[Entry("quantile", 1, Once, Double), Entry("value", 2, Once, Double)]),
    ),
    Entry("attributes", 7, Many, Message(&PAIR)),
    Entry("flags", 8, Once, Uint32),
];
static METRIC: [Entry; 9] = [
    Entry("name", 1, Once, Text),
    Entry("description", 2, Once, Text),
    Entry("unit", 3, Once, Text),
    Entry("gauge", 5, Told, Message(&[Entry("dataPoints", 1, Many, Message(&NUMBER_POINT))])),
    Entry(
        "sum",
        7,
        Told,
        Message(&[
            Entry("dataPoints", 1, Many, Message(&NUMBER_POINT)),
            Entry("aggregationTemporality", 2, Once, TEMPORALITY),
            Entry("isMonotonic", 3, Once, Flag),
        ]),
    ),
    Entry(
        "histogram",
        9,
        Told,
        Message(&[
            Entry("dataPoints", 1, Many, Message(&HISTOGRAM_POINT)),
            Entry("aggregationTemporality", 2, Once, TEMPORALITY),
        ]),
    ),
    Entry(
        "exponentialHistogram",
        10,
        Told,
        Message(&[
            Entry("dataPoints", 1, Many, Message(&EXPONENTIAL_POINT)),
            Entry("aggregationTemporality", 2, Once, TEMPORALITY),
        ]),
    ),
    Entry("summary", 11, Told, Message(&[Entry("dataPoints", 1, Many, Message(&SUMMARY_POINT))])),
    Entry("metadata", 12, Many, Message(&PAIR)),
];
static METRICS: [Entry; 1] = [Entry(
    "resourceMetrics",
    1,
    Many,
    Message(&[
        Entry("resource", 1, Told, Message(&RESOURCE)),
        Entry(
            "scopeMetrics",
            2,
            Many,
            Message(&[
                Entry("scope", 1, Told, Message(&SCOPE)),
                Entry("metrics", 2, Many, Message(&METRIC)),
                Entry("schemaUrl", 3, Once, Text),
            ]),
        ),
        Entry("schemaUrl", 3, Once, Text),
    ]),
)];

/// An `ExportTraceServiceRequest` in JSON, as protobuf.
///
/// # Errors
/// When the document is wrong; says where.
pub fn traces(document: &[u8]) -> Result<Vec<u8>, Wrong> {
    request(document, &TRACES)
}

/// An `ExportMetricsServiceRequest` in JSON, as protobuf.
///
/// # Errors
/// When the document is wrong; says where.
pub fn metrics(document: &[u8]) -> Result<Vec<u8>, Wrong> {
    request(document, &METRICS)
}

fn request(document: &[u8], entries: &[Entry]) -> Result<Vec<u8>, Wrong> {
    let document: Value = serde_json::from_slice(document)
        .map_err(|error| Wrong { path: String::new(), want: format!("JSON: {error}") })?;
    let mut out = Vec::new();
    put_message(&mut out, &document, entries)?;
    Ok(out)
}

fn wrong<T>(want: &str) -> Result<T, Wrong> {
    Err(Wrong { path: String::new(), want: want.into() })
}

/// Puts a name before where it went wrong.
fn within(name: &str) -> impl Fn(Wrong) -> Wrong {
    move |wrong| {
        let dot = if wrong.path.is_empty() || wrong.path.starts_with('[') { "" } else { "." };
        Wrong { path: format!("{name}{dot}{}", wrong.path), want: wrong.want }
    }
}

fn put_message(out: &mut Vec<u8>, value: &Value, entries: &[Entry]) -> Result<(), Wrong> {
    let Value::Object(object) = value else { return wrong("an object") };
    for Entry(name, number, times, kind) in entries {
        let Some(value) = object.get(*name) else { continue };
        if value.is_null() {
            continue;
        }
        let at = within(name);
        if matches!(times, Many | Packed) {
            let Value::Array(values) = value else { return wrong("a list").map_err(at) };
            let mut packed = Vec::new();
            for (i, value) in values.iter().enumerate() {
                let at = |wrong| at(within(&format!("[{i}]"))(wrong));
                if *times == Packed {
                    put_value(&mut packed, value, kind).map_err(at)?;
                } else {
                    put_field(out, *number, Told, value, kind).map_err(at)?;
                }
            }
            if !packed.is_empty() {
                put_bytes(out, *number, &packed);
            }
        } else {
            put_field(out, *number, *times, value, kind).map_err(at)?;
        }
    }
    Ok(())
}

fn wire_type(kind: &Type) -> u64 {
    match kind {
        Text | Id | Base64 | Message(_) => 2,
        Flag | Uint32 | Sint32 | Int64 | Uint64 | Enum(_) => 0,
        Fixed32 => 5,
        Fixed64 | Sfixed64 | Double => 1,
    }
}

fn put_field(out: &mut Vec<u8>, number: u32, times: Times, value: &Value, kind: &Type) -> Result<(), Wrong> {
    let mut body = Vec::new();
    put_value(&mut body, value, kind)?;
    if times == Once && body.iter().all(|byte| *byte == 0) && (wire_type(kind) != 2 || body.is_empty()) {
        return Ok(());
    }
    put_varint(out, u64::from(number) << 3 | wire_type(kind));
    if wire_type(kind) == 2 {
        put_varint(out, body.len() as u64);
    }
    out.extend_from_slice(&body);
    Ok(())
}

/// The value by itself, without tag and length.
fn put_value(out: &mut Vec<u8>, value: &Value, kind: &Type) -> Result<(), Wrong> {
    match kind {
        Text => match value {
            Value::String(text) => out.extend_from_slice(text.as_bytes()),
            _ => return wrong("text"),
        },
        Id => match value.as_str().and_then(of_hex) {
            Some(id) => out.extend_from_slice(&id),
            None => return wrong("hexadecimal digits, two for each byte"),
        },
        Base64 => match value.as_str().and_then(of_base64) {
            Some(bytes) => out.extend_from_slice(&bytes),
            None => return wrong("bytes in base 64"),
        },
        Flag => match value {
            Value::Bool(flag) => out.push(u8::from(*flag)),
            _ => return wrong("true or false"),
        },
        Uint32 => put_varint(out, u64::from(unsigned::<u32>(value, "a number from 0 to 2^32 - 1")?)),
        Fixed32 => {
            out.extend_from_slice(&unsigned::<u32>(value, "a number from 0 to 2^32 - 1")?.to_le_bytes())
        }
        Uint64 => put_varint(out, unsigned::<u64>(value, "a number from 0 to 2^64 - 1, or such a text")?),
        Fixed64 => {
            let value: u64 = unsigned(value, "a number from 0 to 2^64 - 1, or such a text")?;
            out.extend_from_slice(&value.to_le_bytes());
        }
        Int64 => put_varint(out, signed(value)?.cast_unsigned()),
        Sfixed64 => out.extend_from_slice(&signed(value)?.to_le_bytes()),
        Sint32 => {
            let Ok(value) = i32::try_from(signed(value)?) else { return wrong("a number of 32 bits") };
            put_varint(out, u64::from(((value << 1) ^ (value >> 31)).cast_unsigned()));
        }
        Double => out.extend_from_slice(&double(value)?.to_le_bytes()),
        Enum(names) => {
            let number = match value {
                Value::String(name) => names.iter().position(|other| other == name).map(|at| at as u64),
                _ => value.as_u64().filter(|number| *number <= i32::MAX as u64),
            };
            match number {
                Some(number) => put_varint(out, number),
                None => return wrong(&format!("a number, or one of {}", names.join(", "))),
            }
        }
        Message(entries) => put_message(out, value, entries)?,
    }
    Ok(())
}

/// A whole number, as JSON may write one: `7`, `7.0`, `"7"`.
fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), _, _) => Some(i128::from(number)),
            (None, Some(number), _) => Some(i128::from(number)),
            (None, None, Some(number)) if number.fract() == 0.0 && number.abs() < 2e19 => {
                Some(number as i128)
            }
            _ => None,
        },
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

fn unsigned<T: TryFrom<i128>>(value: &Value, want: &str) -> Result<T, Wrong> {
    match whole(value).and_then(|number| T::try_from(number).ok()) {
        Some(number) => Ok(number),
        None => wrong(want),
    }
}

fn signed(value: &Value) -> Result<i64, Wrong> {
    unsigned(value, "a number from -2^63 to 2^63 - 1, or such a text")
}

fn double(value: &Value) -> Result<f64, Wrong> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            text => text.parse().ok().filter(|number: &f64| number.is_finite()),
        },
        _ => None,
    };
    match number {
        Some(number) => Ok(number),
        None => wrong("a number, NaN, Infinity or -Infinity"),
    }
}

fn of_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    rest.is_empty()
        .then(|| pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect())
        .flatten()
}

/// Either alphabet, padded or not.
fn of_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let (mut out, mut bits, mut held) = (Vec::with_capacity(text.len() * 3 / 4), 0_u32, 0);
    for byte in text {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    // A single digit is no byte.
    (text.len() % 4 != 1).then_some(out)
}

/// An `ExportTraceServiceRequest` in protobuf, as one line of JSON. What is no such message is left out.
pub fn write_traces(request: &[u8], out: &mut String) {
    write_message(request, &TRACES, out);
}

fn write_message(message: &[u8], entries: &[Entry], out: &mut String) {
    out.push('{');
    let mut first = true;
    for Entry(name, number, times, kind) in entries {
        let mut fields = Fields(message)
            .map_while(Result::ok)
            .filter_map(|(at, field)| (at == *number).then_some(field))
            .peekable();
        if fields.peek().is_none() {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.push(',');
        }
        out.push('"');
        out.push_str(name);
        out.push_str("\":");
        match times {
            // The last one counts, as in protobuf.
            Once | Told => fields.last().into_iter().for_each(|field| write_value(field, kind, out)),
            Many | Packed => {
                out.push('[');
                for (i, field) in fields.enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    write_value(field, kind, out);
                }
                out.push(']');
            }
        }
    }
    out.push('}');
}

fn write_value(field: Field<'_>, kind: &Type, out: &mut String) {
    let put = |value: &Value, out: &mut String| out.push_str(&value.to_string());
    match (kind, field) {
        (Text, Field::Bytes(text)) => put(&String::from_utf8_lossy(text).into(), out),
        (Id, Field::Bytes(id)) => {
            out.push('"');
            for byte in id {
                for digit in [byte >> 4, byte & 15] {
                    out.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
                }
            }
            out.push('"');
        }
        (Base64, Field::Bytes(bytes)) => put(&to_base64(bytes).into(), out),
        (Flag, Field::Varint(flag)) => out.push_str(if flag == 0 { "false" } else { "true" }),
        (Uint32 | Enum(_), Field::Varint(number)) => out.push_str(&(number as u32).to_string()),
        (Fixed32, Field::Fixed32(number)) => out.push_str(&number.to_string()),
        (Sint32, Field::Varint(number)) => {
            let number = number as u32;
            out.push_str(&((number >> 1).cast_signed() ^ -((number & 1).cast_signed())).to_string());
        }
        (Uint64, Field::Varint(number)) | (Fixed64, Field::Fixed64(number)) => {
            put(&number.to_string().into(), out);
        }
        (Int64, Field::Varint(number)) | (Sfixed64, Field::Fixed64(number)) => {
            put(&number.cast_signed().to_string().into(), out);
        }
        (Double, Field::Fixed64(bits)) => {
            let number = f64::from_bits(bits);
            let text = match number {
                _ if number.is_nan() => "\"NaN\"".into(),
                f64::INFINITY => "\"Infinity\"".into(),
                f64::NEG_INFINITY => "\"-Infinity\"".into(),
                _ => Value::from(number).to_string(),
            };
            out.push_str(&text);
        }
        (Message(entries), Field::Bytes(message)) => write_message(message, entries, out),
        (_, Field::Varint(_) | Field::Fixed64(_) | Field::Fixed32(_) | Field::Bytes(_)) => {
            out.push_str("null")
        }
    }
}

fn to_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS.get((word >> (18 - 6 * i) & 63) as usize).copied().unwrap_or_default();
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message as _;

    /// The example of the specification, with what it allows beside.
    const EXAMPLE: &str = r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"my.service"}}]},
        "scopeSpans":[{"scope":{"name":"my.library","version":"1.0.0","attributes":[{"key":"k","value":{"stringValue":"v"}}]},
        "spans":[{"traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"eee19b7ec3c1b174","parentSpanId":"eee19b7ec3c1b173",
        "name":"I'm a server span","startTimeUnixNano":"1544712660000000000","endTimeUnixNano":1544712661000000000,
        "kind":"SPAN_KIND_SERVER","flags":257,"unknown":{"a":[1]},"droppedLinksCount":0,"status":{"code":2,"message":"oh"},
        "attributes":[{"key":"i","value":{"intValue":"-7"}},{"key":"j","value":{"intValue":7}},{"key":"d","value":{"doubleValue":0}},
        {"key":"n","value":{"doubleValue":"NaN"}},{"key":"b","value":{"boolValue":false}},{"key":"e","value":{"stringValue":""}},
        {"key":"l","value":{"arrayValue":{"values":[{"intValue":1},{"kvlistValue":{"values":[{"key":"x","value":{}}]}}]}}},
        {"key":"y","value":{"bytesValue":"aGVsbG8="}}],
        "events":[{"timeUnixNano":"1","name":"e","attributes":[]}],
        "links":[{"traceId":"5b8efff798038103d269b633813fc60c","spanId":"eee19b7ec3c1b174","flags":1}]}]}]}]}"#;

    #[test]
    fn the_specifications_example_is_read_as_the_reference_decoder_has_it() {
        let request = ExportTraceServiceRequest::decode(&*traces(EXAMPLE.as_bytes()).unwrap()).unwrap();
        let span = &request.resource_spans[0].scope_spans[0].spans[0];
        assert_eq!(span.trace_id[..2], [0x5b, 0x8e]);
        assert_eq!((span.kind, span.flags, span.dropped_links_count), (2, 257, 0));
        assert_eq!(
            (span.start_time_unix_nano, span.end_time_unix_nano),
            (1_544_712_660_000_000_000, 1_544_712_661_000_000_000)
        );
        assert_eq!(
            span.status.as_ref().map(|status| (status.code, status.message.as_str())),
            Some((2, "oh"))
        );
        let values: Vec<String> =
            span.attributes.iter().map(|pair| format!("{:?}", pair.value.as_ref().unwrap().value)).collect();
        assert_eq!(
            values[..4],
            ["Some(IntValue(-7))", "Some(IntValue(7))", "Some(DoubleValue(0.0))", "Some(DoubleValue(NaN))"]
        );
        assert_eq!(values[4..6], ["Some(BoolValue(false))", "Some(StringValue(\"\"))"]);
        assert_eq!(values[7], "Some(BytesValue([104, 101, 108, 108, 111]))");
    }

    #[test]
    fn what_goes_out_as_json_comes_back_in_the_same_bytes() {
        let request = traces(EXAMPLE.as_bytes()).unwrap();
        let mut line = String::new();
        write_traces(&request, &mut line);
        assert!(
            !line.contains('\n') && line.contains("\"kind\":2") && line.contains("\"intValue\":\"-7\""),
            "{line}"
        );
        assert_eq!(traces(line.as_bytes()).unwrap(), request);
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let told = |spans: &str| {
            traces(format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":{spans}}}]}}]}}"#).as_bytes())
                .unwrap_err()
                .to_string()
        };
        let at = "resourceSpans[0].scopeSpans[0].spans";
        assert_eq!(
            told(r#"[{},{"traceId":"xy"}]"#),
            format!("{at}[1].traceId: want hexadecimal digits, two for each byte")
        );
        assert_eq!(told("{}"), format!("{at}: want a list"));
        assert_eq!(told("[7]"), format!("{at}[0]: want an object"));
        assert_eq!(
            told(r#"[{"startTimeUnixNano":-1}]"#),
            format!("{at}[0].startTimeUnixNano: want a number from 0 to 2^64 - 1, or such a text")
        );
        assert_eq!(
            told(r#"[{"attributes":[{"key":"k","value":{"arrayValue":{"values":[{"boolValue":1}]}}}]}]"#),
            format!("{at}[0].attributes[0].value.arrayValue.values[0].boolValue: want true or false")
        );
        assert!(traces(b"{").unwrap_err().to_string().starts_with("document: want JSON: "));
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(traces(deep.as_bytes()).is_err());
    }

    #[test]
    fn metrics_come_in_as_the_reference_decoder_has_them() {
        use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
        use opentelemetry_proto::tonic::metrics::v1::metric::Data;
        let document = r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"h","exponentialHistogram":{
            "aggregationTemporality":"AGGREGATION_TEMPORALITY_DELTA","dataPoints":[{"count":"3","sum":0,"scale":-2,
            "positive":{"offset":-5,"bucketCounts":["1",300]},"min":1.5,"attributes":[{"key":"k","value":{"stringValue":"v"}}]}]}},
            {"name":"g","gauge":{"dataPoints":[{"asInt":"-3","timeUnixNano":"9"}]}},
            {"name":"x","histogram":{"dataPoints":[{"bucketCounts":["1","2"],"explicitBounds":[0.5]}]}}]}]}]}"#;
        let request = ExportMetricsServiceRequest::decode(&*metrics(document.as_bytes()).unwrap()).unwrap();
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let Some(Data::ExponentialHistogram(histogram)) = &metrics[0].data else { panic!() };
        let point = &histogram.data_points[0];
        assert_eq!(
            (histogram.aggregation_temporality, point.count, point.sum, point.scale),
            (1, 3, Some(0.0), -2)
        );
        let positive = point.positive.as_ref().unwrap();
        assert_eq!((positive.offset, &positive.bucket_counts[..]), (-5, &[1, 300][..]));
        let Some(Data::Histogram(histogram)) = &metrics[2].data else { panic!() };
        assert_eq!(histogram.data_points[0].bucket_counts, [1, 2]);
        assert_eq!(histogram.data_points[0].explicit_bounds, [0.5]);
    }
}
