//! The demo's OTLP receiver: takes HTTP protobuf exports on loopback, and turns them into spans
//! that are safe to print. Keeps them in [`Traces`]; draws nothing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::call;
use crate::trace::{Expected, Kind, Span, SpanId, TraceId, Traces, lacking};

/// Characters of a text that are kept: no row of the drawing shows more.
const TEXT_CHARS_MAX: usize = 128;

/// The running receiver.
#[derive(Clone)]
pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    traces: Mutex<Traces>,
    changed: Notify,
}

impl Receiver {
    /// Listens on a free port of loopback.
    pub(crate) async fn start() -> std::io::Result<Receiver> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { traces: Mutex::default(), changed: Notify::new() });
        let receiver = Receiver { address, shared: Arc::clone(&shared) };
        tokio::spawn(call::serve(listener, move |request| receive(Arc::clone(&shared), request)));
        Ok(receiver)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the trace is whole, or for `patience`, and takes it. The second value says what
    /// it still lacks.
    pub(crate) async fn await_trace(
        &self,
        id: TraceId,
        expected: &Expected,
        patience: Duration,
    ) -> (Vec<Span>, Option<String>) {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let changed = self.shared.changed.notified();
            let lacks = lacking(self.shared.traces().spans(id), expected);
            let late = lacks.is_none() || tokio::time::timeout_at(deadline, changed).await.is_err();
            if late {
                let spans = self.shared.traces().take(id);
                let lacks = lacking(&spans, expected);
                return (spans, lacks);
            }
        }
    }

    /// Waits until traces that entered the shop at `entrance` are finished, and takes them.
    pub(crate) async fn next_finished(&self, entrance: &str) -> Vec<Vec<Span>> {
        loop {
            let changed = self.shared.changed.notified();
            let (finished, due) = {
                let mut traces = self.shared.traces();
                (traces.take_finished(Instant::now(), entrance), traces.next_finished(entrance))
            };
            if !finished.is_empty() {
                return finished;
            }
            match due {
                Some(due) => drop(tokio::time::timeout_at(due.into(), changed).await),
                None => changed.await,
            }
        }
    }

    /// Spans that the receiver's limit cost since the last call.
    pub(crate) fn take_dropped(&self) -> u64 {
        self.shared.traces().take_dropped()
    }
}

impl Shared {
    fn traces(&self) -> MutexGuard<'_, Traces> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn receive(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let spans = match (head.method, head.uri.path()) {
        (Method::POST, "/v1/traces") if !plain(head.headers.get(CONTENT_ENCODING)) => {
            return empty(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
        (Method::POST, "/v1/traces") => match call::whole(body).await {
            Ok(bytes) => decode(bytes),
            Err(_) => return empty(StatusCode::PAYLOAD_TOO_LARGE),
        },
        // Metrics are taken and left aside: the demo shows traces.
        (Method::POST, "/v1/metrics") => Some(Vec::new()),
        _ => return empty(StatusCode::NOT_FOUND),
    };
    let Some(spans) = spans else { return empty(StatusCode::BAD_REQUEST) };
    let now = Instant::now();
    {
        let mut traces = shared.traces();
        spans.into_iter().for_each(|span| traces.add(span, now));
    }
    shared.changed.notify_waiters();
    // An empty body is a response message in which everything was accepted.
    empty(StatusCode::OK)
}

fn plain(encoding: Option<&HeaderValue>) -> bool {
    encoding.is_none_or(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    response
}

/// Reads an export; spans without a trace or an id are skipped, as the OTLP data model has none.
fn decode(body: Bytes) -> Option<Vec<Span>> {
    let export = ExportTraceServiceRequest::decode(body).ok()?;
    let mut spans = Vec::new();
    for resource_spans in export.resource_spans {
        let resource = resource_spans.resource.unwrap_or_default();
        let service = text(&resource.attributes, "service.name").unwrap_or_else(|| "unknown".to_owned());
        let sent = resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(sent.filter_map(|span| read(&service, &span)));
    }
    Some(spans)
}

fn read(service: &str, span: &otlp::Span) -> Option<Span> {
    let failed = span.status.as_ref().is_some_and(|status| status.code() == otlp::status::StatusCode::Error);
    let error = text(&span.attributes, "error.type");
    Some(Span {
        trace: TraceId(span.trace_id.as_slice().try_into().ok()?),
        id: SpanId(span.span_id.as_slice().try_into().ok()?),
        parent: span.parent_span_id.as_slice().try_into().ok().map(SpanId),
        service: service.to_owned(),
        kind: match span.kind() {
            otlp::span::SpanKind::Server => Kind::Server,
            otlp::span::SpanKind::Client => Kind::Client,
            otlp::span::SpanKind::Producer => Kind::Producer,
            otlp::span::SpanKind::Consumer => Kind::Consumer,
            otlp::span::SpanKind::Unspecified | otlp::span::SpanKind::Internal => Kind::Other,
        },
        name: printable(&span.name),
        operation: text(&span.attributes, "app.operation.name"),
        topic: text(&span.attributes, "messaging.destination.name"),
        status: number(&span.attributes, "http.response.status_code"),
        error: error.or_else(|| failed.then(|| "error".to_owned())),
        start_ns: span.start_time_unix_nano,
        end_ns: span.end_time_unix_nano.max(span.start_time_unix_nano),
    })
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a any_value::Value> {
    attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?.value.as_ref()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    match value(attributes, key)? {
        any_value::Value::StringValue(text) => Some(printable(text)),
        _ => None,
    }
}

fn number(attributes: &[KeyValue], key: &str) -> Option<u16> {
    match value(attributes, key)? {
        any_value::Value::IntValue(number) => u16::try_from(*number).ok(),
        _ => None,
    }
}

/// A text that cannot steer the terminal: spans carry what callers sent.
fn printable(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).map(|c| if c.is_control() { '·' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::AnyValue;
    use opentelemetry_proto::tonic::resource::v1::Resource;

    use super::*;

    fn attribute(key: &str, value: any_value::Value) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    }

    fn word(key: &str, value: &str) -> KeyValue {
        attribute(key, any_value::Value::StringValue(value.to_owned()))
    }

    fn export(span: otlp::Span) -> Bytes {
        let resource = Resource { attributes: vec![word("service.name", "orders")], ..Resource::default() };
        let scope_spans = vec![otlp::ScopeSpans { spans: vec![span], ..otlp::ScopeSpans::default() }];
        let resource_spans = vec![otlp::ResourceSpans {
            resource: Some(resource),
            scope_spans,
            ..otlp::ResourceSpans::default()
        }];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
    }

    fn sent() -> otlp::Span {
        otlp::Span {
            trace_id: vec![7; 16],
            span_id: vec![2; 8],
            name: "POST /orders".to_owned(),
            kind: otlp::span::SpanKind::Server.into(),
            start_time_unix_nano: 10,
            end_time_unix_nano: 30,
            attributes: vec![
                word("app.operation.name", "checkout"),
                word("error.type", "502"),
                attribute("http.response.status_code", any_value::Value::IntValue(502)),
            ],
            ..otlp::Span::default()
        }
    }

    #[test]
    fn an_export_becomes_spans() {
        let expected = Span {
            trace: TraceId([7; 16]),
            id: SpanId([2; 8]),
            parent: None,
            service: "orders".to_owned(),
            kind: Kind::Server,
            name: "POST /orders".to_owned(),
            operation: Some("checkout".to_owned()),
            topic: None,
            status: Some(502),
            error: Some("502".to_owned()),
            start_ns: 10,
            end_ns: 30,
        };
        assert_eq!(decode(export(sent())), Some(vec![expected]));
    }

    #[test]
    fn a_publish_is_a_producer_with_its_topic() {
        let publish = otlp::Span {
            kind: otlp::span::SpanKind::Producer.into(),
            attributes: vec![word("messaging.destination.name", "order.placed")],
            ..sent()
        };
        let span = decode(export(publish)).unwrap().remove(0);
        assert_eq!((span.kind, span.topic.as_deref()), (Kind::Producer, Some("order.placed")));
    }

    #[test]
    fn what_a_caller_sent_cannot_steer_the_terminal() {
        let hostile = otlp::Span { name: "GET \u{1b}[2J\r\n".to_owned(), ..sent() };
        let names: Vec<String> = decode(export(hostile)).unwrap().into_iter().map(|span| span.name).collect();
        assert_eq!(names, ["GET ·[2J··"]);
    }

    #[test]
    fn what_is_no_export_is_refused_and_spans_without_ids_are_skipped() {
        assert_eq!(decode(Bytes::from_static(b"{\"resourceSpans\":[]}")), None);
        assert_eq!(decode(export(otlp::Span { span_id: vec![1, 2], ..sent() })), Some(Vec::new()));
    }
}
