//! A span as the collector received it, in a shape that is easy to ask.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Index;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use serde_json::{Value, json};

/// A span's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not said, which no span of ours may be.
    Unspecified,
    /// Internal work.
    Internal,
    /// The inbound side.
    Server,
    /// The outbound side.
    Client,
    /// A publish.
    Producer,
    /// A delivery.
    Consumer,
}

/// A span's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanStatus {
    /// Neither good nor bad.
    Unset,
    /// Declared good.
    Ok,
    /// Failed.
    Error,
}

/// One span.
#[derive(Clone, Debug)]
pub struct Span {
    /// The trace id in hexadecimal.
    pub trace: String,
    /// The span id in hexadecimal.
    pub id: String,
    /// The parent's span id in hexadecimal; empty at a root.
    pub parent: String,
    /// The name.
    pub name: String,
    /// The kind.
    pub kind: Kind,
    /// The status.
    pub status: SpanStatus,
    /// Trace id and span id of each link.
    pub links: Vec<(String, String)>,
    /// The `tracestate` kept with the span.
    pub tracestate: String,
    /// Start, in nanoseconds since 1970.
    pub start: u64,
    /// End, in nanoseconds since 1970.
    pub end: u64,
    /// The name of the instrumentation scope.
    pub scope: String,
    /// The resource's attributes.
    pub resource: BTreeMap<String, Value>,
    attributes: BTreeMap<String, Value>,
}

impl Span {
    /// All spans of one export request.
    pub fn all(request: &ExportTraceServiceRequest) -> Vec<Span> {
        let mut spans = Vec::new();
        for group in &request.resource_spans {
            let resource = group.resource.as_ref().map(|resource| attributes(&resource.attributes));
            for scoped in &group.scope_spans {
                let scope = scoped.scope.as_ref().map(|scope| scope.name.clone()).unwrap_or_default();
                let resource = resource.clone().unwrap_or_default();
                spans.extend(scoped.spans.iter().map(|span| Span::of(span, &resource, &scope)));
            }
        }
        spans
    }

    fn of(span: &otlp::Span, resource: &BTreeMap<String, Value>, scope: &str) -> Span {
        Span {
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            name: span.name.clone(),
            kind: match span.kind() {
                otlp::span::SpanKind::Unspecified => Kind::Unspecified,
                otlp::span::SpanKind::Internal => Kind::Internal,
                otlp::span::SpanKind::Server => Kind::Server,
                otlp::span::SpanKind::Client => Kind::Client,
                otlp::span::SpanKind::Producer => Kind::Producer,
                otlp::span::SpanKind::Consumer => Kind::Consumer,
            },
            status: match span.status.as_ref().map(otlp::Status::code).unwrap_or_default() {
                otlp::status::StatusCode::Unset => SpanStatus::Unset,
                otlp::status::StatusCode::Ok => SpanStatus::Ok,
                otlp::status::StatusCode::Error => SpanStatus::Error,
            },
            links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
            tracestate: span.trace_state.clone(),
            start: span.start_time_unix_nano,
            end: span.end_time_unix_nano,
            scope: scope.to_owned(),
            resource: resource.clone(),
            attributes: attributes(&span.attributes),
        }
    }

    /// Whether the span carries an attribute.
    pub fn has(&self, key: &str) -> bool {
        self.attributes.contains_key(key)
    }

    /// All attributes.
    pub fn attributes(&self) -> &BTreeMap<String, Value> {
        &self.attributes
    }

    /// The service that the span's resource names.
    pub fn service(&self) -> &str {
        self.resource.get("service.name").and_then(Value::as_str).unwrap_or("")
    }

    /// The span's duration in seconds.
    pub fn seconds(&self) -> f64 {
        (self.end - self.start) as f64 / 1e9
    }

    /// Checks attributes, one row each. `Value::Null` says that the attribute must not be there.
    pub fn assert_attributes(&self, rows: &[(&str, Value)]) {
        for (key, wanted) in rows {
            assert_eq!(&self[key], wanted, "attribute {key} of {self:#?}");
        }
    }
}

impl Index<&str> for Span {
    type Output = Value;

    fn index(&self, key: &str) -> &Value {
        self.attributes.get(key).unwrap_or(&Value::Null)
    }
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for pair in list {
        let twice = all.insert(pair.key.clone(), value(pair.value.as_ref()));
        assert!(twice.is_none(), "attribute {} is there twice: {list:#?}", pair.key);
    }
    all
}

fn value(any: Option<&AnyValue>) -> Value {
    match any.and_then(|any| any.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::BoolValue(truth)) => json!(truth),
        Some(any_value::Value::IntValue(number)) => json!(number),
        Some(any_value::Value::DoubleValue(number)) => json!(number),
        Some(any_value::Value::ArrayValue(list)) => {
            list.values.iter().map(|item| value(Some(item))).collect()
        }
        Some(other) => json!(format!("{other:?}")),
        None => Value::Null,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// One line per span, for failure messages.
pub fn listing(spans: &[Span]) -> String {
    spans.iter().fold(String::new(), |mut text, span| {
        let Span { trace, id, parent, name, kind, status, .. } = span;
        let _ = write!(text, "\n  {} {kind:?} {name:?} {status:?} trace={trace} id={id}", span.service());
        let _ = write!(text, " parent={parent} {:?}", span.attributes);
        text
    })
}

/// The only span that `wanted` holds for.
pub fn the_only(spans: &[Span], wanted: impl Fn(&Span) -> bool) -> Span {
    let found: Vec<_> = spans.iter().filter(|span| wanted(span)).collect();
    assert_eq!(found.len(), 1, "one such span was expected among{}", listing(spans));
    found[0].clone()
}

/// The span of a kind from a service; there must be exactly one.
pub fn span_of(spans: &[Span], service: &str, kind: Kind) -> Span {
    let found: Vec<_> = spans.iter().filter(|span| span.service() == service && span.kind == kind).collect();
    assert_eq!(found.len(), 1, "one {kind:?} span of {service} was expected among{}", listing(spans));
    found[0].clone()
}

/// Holds the promise of no phantom parents: every parent id is an exported span of the same trace, or one of
/// `outside`; and no span came twice.
pub fn assert_connected(spans: &[Span], outside: &[&str]) {
    let mut known = BTreeSet::new();
    for span in spans {
        let fresh = known.insert((span.trace.as_str(), span.id.as_str()));
        assert!(fresh, "span {} came twice:{}", span.id, listing(spans));
        assert_eq!((span.trace.len(), span.id.len()), (32, 16), "ids of {span:?}");
        assert!(span.end >= span.start, "ends before it starts: {span:?}");
    }
    for span in spans.iter().filter(|span| !span.parent.is_empty()) {
        let exported = known.contains(&(span.trace.as_str(), span.parent.as_str()));
        let allowed = exported || outside.contains(&span.parent.as_str());
        assert!(allowed, "the parent {} is nowhere:{}", span.parent, listing(spans));
    }
}
