//! Our OTLP bytes held against `opentelemetry-proto`: they decode to exactly the expected message, and what
//! prost encodes of it decodes to the same.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, HistogramDataPoint, metric::Data};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span};
use prost::Message;
use throughline_core::classify::Outcome;
use throughline_core::exchange::RequestHead;
use throughline_core::ids::{Flags, SpanId, TraceId};
use throughline_core::metrics::DURATIONS;
use throughline_core::otlp::request::Envelope;
use throughline_core::otlp::{self, Attributes, Kind, Parent};
use throughline_core::{limits, names};

use crate::harness::*;

/// Decodes, and checks that prost's own bytes of it say the same.
fn read<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> M {
    let message = M::decode(bytes).unwrap();
    assert_eq!(M::decode(message.encode_to_vec().as_slice()).unwrap(), message);
    message
}

fn any(value: Value) -> Option<AnyValue> {
    Some(AnyValue { value: Some(value) })
}

fn string(text: &str) -> Option<AnyValue> {
    any(Value::StringValue(text.to_owned()))
}

fn pair(key: &str, value: Option<AnyValue>) -> KeyValue {
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

fn trace_id(byte: u8) -> TraceId {
    TraceId::from_bytes([byte; 16]).unwrap()
}

fn id(byte: u8) -> SpanId {
    SpanId::from_bytes([byte; 8]).unwrap()
}

#[test]
fn a_request_with_every_field_decodes_to_what_was_meant() {
    let long = "v".repeat(300);
    let mut attributes = Vec::new();
    let mut list = Attributes::of_span(&mut attributes);
    list.text("text", long.as_bytes());
    list.text_parts("parts", &[b"a", b"", "\u{e9}".as_bytes()]);
    list.text("empty", b"");
    list.int("zero", 0);
    list.int("large", i64::MAX as u64);
    list.flag("yes", true);
    list.flag("no", false);
    list.texts("http.request.header.", "x-a", &[b"1", b"", b"\xff"]);
    list.texts("http.request.header.", "x-none", &[]);
    let mut links = Vec::new();
    otlp::link(&mut links, trace_id(3), id(3), Flags::from_byte(3));
    otlp::link(&mut links, trace_id(4), id(4), Flags::from_byte(0));
    let whole = otlp::Span {
        trace_id: trace_id(1),
        span_id: id(1),
        flags: Flags::from_byte(3),
        parent: Some(Parent { span_id: id(9), remote: true }),
        trace_state: b"a=1,b=2",
        name: &["GET", " ", "/items/{id}"],
        kind: Kind::Server,
        start_unix_nanos: START_UNIX_NANOS,
        end_unix_nanos: u64::MAX,
        attributes: &attributes,
        links: &links,
        status: otlp::Status::Error,
    };
    let bare = otlp::Span {
        parent: None,
        trace_state: b"",
        name: &[],
        kind: Kind::Client,
        flags: Flags::default(),
        attributes: b"",
        links: b"",
        status: otlp::Status::Unset,
        ..whole
    };
    let local =
        otlp::Span { parent: Some(Parent { span_id: id(9), remote: false }), kind: Kind::Consumer, ..bare };
    let mut spans = Vec::new();
    for span in [&whole, &bare, &local] {
        span.encode(&mut spans);
    }
    let resource = [("service.name", "orders"), ("service.namespace", ""), ("long", long.as_str())];
    let mut bytes = Envelope::new(resource).prefix(spans.len());
    bytes.extend_from_slice(&spans);

    let array =
        ["1", "", "\u{fffd}"].map(|text| AnyValue { value: Some(Value::StringValue(text.to_owned())) });
    let link = |byte: u8, flags: u32| span::Link {
        trace_id: vec![byte; 16],
        span_id: vec![byte; 8],
        flags,
        ..span::Link::default()
    };
    let expected_bare = Span {
        trace_id: vec![1; 16],
        span_id: vec![1; 8],
        flags: 0x100,
        kind: span::SpanKind::Client as i32,
        start_time_unix_nano: START_UNIX_NANOS,
        end_time_unix_nano: u64::MAX,
        ..Span::default()
    };
    let expected_local =
        Span { parent_span_id: vec![9; 8], kind: span::SpanKind::Consumer as i32, ..expected_bare.clone() };
    let expected = Span {
        trace_state: "a=1,b=2".to_owned(),
        parent_span_id: vec![9; 8],
        flags: 0x303,
        name: "GET /items/{id}".to_owned(),
        kind: span::SpanKind::Server as i32,
        attributes: vec![
            pair("text", string(&long)),
            pair("parts", string("a\u{e9}")),
            pair("empty", string("")),
            pair("zero", any(Value::IntValue(0))),
            pair("large", any(Value::IntValue(i64::MAX))),
            pair("yes", any(Value::BoolValue(true))),
            pair("no", any(Value::BoolValue(false))),
            pair("http.request.header.x-a", any(Value::ArrayValue(ArrayValue { values: array.into() }))),
            pair("http.request.header.x-none", any(Value::ArrayValue(ArrayValue { values: vec![] }))),
        ],
        links: vec![link(3, 3), link(4, 0)],
        status: Some(Status { message: String::new(), code: 2 }),
        ..expected_bare.clone()
    };
    let scope = InstrumentationScope {
        name: names::SCOPE.to_owned(),
        version: names::VERSION.to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_spans = ScopeSpans {
        scope: Some(scope),
        spans: vec![expected, expected_bare, expected_local],
        ..ScopeSpans::default()
    };
    let resource = resource.map(|(key, value)| pair(key, string(value)));
    let resource = Resource { attributes: resource.into(), ..Resource::default() };
    let resource_spans = ResourceSpans {
        resource: Some(resource),
        scope_spans: vec![scope_spans],
        ..ResourceSpans::default()
    };
    assert_eq!(
        read::<ExportTraceServiceRequest>(&bytes),
        ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
    );
}

/// Every length around the steps of a varint, in each place where a length is computed before it is written.
#[test]
fn lengths_are_right_at_every_step() {
    for len in [0, 1, 100, 117, 118, 119, 120, 121, 126, 127, 128, 129, 4000, 4090, 4095, 4096] {
        let value = "x".repeat(len);
        let mut attributes = Vec::new();
        Attributes::of_span(&mut attributes).text("key", value.as_bytes());
        Attributes::of_span(&mut attributes).texts("p.", "name", &[value.as_bytes(), b"y", value.as_bytes()]);
        let span = otlp::Span {
            trace_id: trace_id(1),
            span_id: id(1),
            flags: Flags::start(true),
            parent: None,
            trace_state: value.as_bytes(),
            name: &[&value, &value],
            kind: Kind::Internal,
            start_unix_nanos: 0,
            end_unix_nanos: 0,
            attributes: &attributes,
            links: b"",
            status: otlp::Status::Unset,
        };
        let mut bytes = Vec::new();
        span.encode(&mut bytes);
        let decoded = read::<ScopeSpans>(&bytes).spans.remove(0);
        assert_eq!((decoded.name.len(), &decoded.trace_state), (2 * len, &value));
        assert_eq!(text(&decoded, "key"), value);
        assert_eq!(decoded.attributes.len(), 2);
    }
}

#[test]
fn captured_headers_are_arrays_of_all_their_values() {
    let mut world = World::with(|config| {
        config.capture_request_headers = vec!["x-tenant".into(), "x-missing".into()];
        config.capture_response_headers = vec!["x-cache".into()];
    });
    let (mut exchange, _) = world.inbound(&[("x-tenant", "a"), ("x-other", "secret"), ("x-tenant", "b, c")]);
    world.answer(&mut exchange, 200, &[("x-cache", "hit"), ("set-cookie", "secret")]);
    let _ = world.end(exchange, Outcome::Complete);
    let span = world.spans().pop().unwrap();
    let values = |key: &str| -> Vec<String> {
        let attribute = span.attributes.iter().find(|attribute| attribute.key == key).unwrap();
        let Some(AnyValue { value: Some(Value::ArrayValue(array)) }) = &attribute.value else {
            panic!("{attribute:?}")
        };
        let text = |value: &AnyValue| match &value.value {
            Some(Value::StringValue(text)) => text.clone(),
            other => panic!("{other:?}"),
        };
        array.values.iter().map(text).collect()
    };
    assert_eq!(values("http.request.header.x-tenant"), ["a", "b, c"]);
    assert_eq!(values("http.response.header.x-cache"), ["hit"]);
    let all = format!("{span:?}");
    assert!(!all.contains("secret") && !all.contains("x-missing"));
}

/// Bytes that are no text, and texts without end, are mended and cut; the message stays valid.
#[test]
fn odd_and_huge_values_still_make_a_valid_message() {
    let odd: Vec<u8> = (0..=255).collect();
    let huge = vec![b'x'; 1 << 20];
    let split = "\u{20ac}".repeat(limits::ATTRIBUTE_VALUE_BYTES_MAX);
    for (bytes, most) in [
        (odd.as_slice(), None),
        (&huge, None),
        (split.as_bytes(), None),
        (split.as_bytes(), Some(10)),
        (&odd, Some(1)),
    ] {
        let mut world = World::with(|config| {
            config.attribute_bytes_max = most;
            config.capture_request_headers = vec!["x-odd".into()];
        });
        for direction in [request(), call(INSIDE)] {
            let path = [b"/", bytes].concat();
            let head = RequestHead { authority: bytes, path: &path, query: Some(bytes), ..direction };
            let mut fields: Headers =
                vec![("user-agent".to_owned(), bytes.to_vec()), ("x-odd".to_owned(), bytes.to_vec())];
            let exchange = world.begin(&head, &mut fields);
            let span = world.finish(exchange).unwrap();
            let bound = most.unwrap_or(limits::ATTRIBUTE_VALUE_BYTES_MAX);
            for KeyValue { key, value, .. } in &span.attributes {
                if let Some(AnyValue { value: Some(Value::StringValue(text)) }) = value {
                    let fixed = key.starts_with("http.") || key.starts_with("throughline.");
                    assert!(text.len() <= bound || fixed, "{key} {}", text.len());
                }
            }
            assert!(span.name.starts_with("GET"));
        }
    }
}

#[test]
fn metrics_decode_to_the_same_numbers_as_prometheus_shows() {
    let mut world = World::with(|config| config.recording = false);
    for (operation, status, millis) in [("checkout", 200, 5), ("checkout", 200, 6), ("browse", 503, 20_000)] {
        let (mut exchange, _) = world.inbound(&[("x-operation-name", operation), WEB]);
        world.now.mono_nanos += millis * MS;
        world.answer(&mut exchange, status, &[]);
        let _ = world.end(exchange, Outcome::Complete);
    }
    let (exchange, _) = world.outbound(INSIDE, &[]);
    let _ = world.end(exchange, Outcome::CallerGone);
    let metrics = world.tracer.otlp_metrics(3, 9);
    let mut bytes = Envelope::new([("service.name", "orders")]).prefix(metrics.len());
    bytes.extend_from_slice(&metrics);
    let request = read::<ExportMetricsServiceRequest>(&bytes);
    let scope_metrics = &request.resource_metrics[0].scope_metrics[0];
    assert_eq!(scope_metrics.scope.as_ref().unwrap().name, "throughline");
    let shown: Vec<_> =
        scope_metrics.metrics.iter().map(|metric| (metric.name.as_str(), metric.unit.as_str())).collect();
    assert_eq!(shown, [("http.server.request.duration", "s"), ("http.client.request.duration", "s")]);
    let points: Vec<&HistogramDataPoint> = scope_metrics
        .metrics
        .iter()
        .flat_map(|metric| match &metric.data {
            Some(Data::Histogram(histogram)) => {
                assert_eq!(histogram.aggregation_temporality, AggregationTemporality::Cumulative as i32);
                &histogram.data_points
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(points.len(), 3);
    for point in &points {
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (3, 9));
        assert_eq!(point.explicit_bounds, DURATIONS.seconds);
        assert_eq!(point.bucket_counts.len(), DURATIONS.seconds.len() + 1);
        assert_eq!(point.count, point.bucket_counts.iter().sum::<u64>());
    }
    let of = |operation: &str| {
        *points.iter().find(|point| text_in(&point.attributes, "app.operation.name") == operation).unwrap()
    };
    let checkout = of("checkout");
    assert_eq!(
        (checkout.count, checkout.sum, &checkout.bucket_counts[..3]),
        (2, Some(0.011), &[1, 1, 0][..])
    );
    assert_eq!(text_in(&checkout.attributes, "http.response.status_code"), "200");
    assert_eq!(text_in(&checkout.attributes, "http.route"), "/items/{id}");
    assert_eq!(text_in(&checkout.attributes, "throughline.peer.service"), "web");
    let browse = of("browse");
    assert_eq!((browse.bucket_counts[14], text_in(&browse.attributes, "error.type").as_str()), (1, "503"));
    let client = of("-");
    assert_eq!(text_in(&client.attributes, "server.address"), "stock");
    assert_eq!(text_in(&client.attributes, "http.response.status_code"), "-");
}
