//! The world that scenarios play in: ids that count, a clock moved by hand, headers as a plain list, and a
//! batch whose bytes are read back by `opentelemetry-proto`.

use std::net::IpAddr;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, Span};
use prost::Message as _;
use throughline_core::batch::{Batch, Bounds, Dropped};
use throughline_core::browser::{Pages, cut};
use throughline_core::carrier::Carrier as _;
use throughline_core::classify::{Direction, Outcome};
use throughline_core::exchange::{
    Config, Destination, Exchange, Now, Propagators, RequestHead, ResponseHeaders, RootUnsampled, Scheme,
    Summary, Tracer, Version,
};
use throughline_core::ids::{Ids, SpanId, TraceId};
use throughline_core::mesh::Mesh;
use throughline_core::peer::Peer;
use throughline_core::prometheus::{Form, Text};
use throughline_core::redact::Query;
use throughline_core::sampling::{Root, Sampler};

/// Fields of a message, in order.
pub(crate) type Headers = Vec<(String, Vec<u8>)>;
/// Fields as a test writes them.
pub(crate) type Fields<'a> = &'a [(&'a str, &'a str)];

/// The trace of the callers of these tests.
pub(crate) const TRACE: &str = "4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7";
/// The caller's span.
pub(crate) const CALLER: &str = "a1b2c3d4e5f60718";
/// A span of the application's own SDK.
pub(crate) const SDK: &str = "5dc0ffee5dc0ffee";
/// The caller's context, sampled.
pub(crate) const SAMPLED: &str = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-01";
/// The caller's context, not sampled.
pub(crate) const UNSAMPLED: &str = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-00";
/// How the caller's sidecar names itself.
pub(crate) const WEB: (&str, &str) = ("throughline-peer", "service=web;namespace=shop");
/// How ours does.
pub(crate) const OWN: &str = "service=orders;namespace=shop";
/// A destination inside the mesh.
pub(crate) const INSIDE: &str = "stock";
/// A destination outside.
pub(crate) const OUTSIDE: &str = "api.example.com";

/// Ids that count from one, so that every run has the same.
#[derive(Default)]
pub(crate) struct Counting {
    traces: u64,
    spans: u64,
}

impl Ids for Counting {
    fn trace_id(&mut self) -> TraceId {
        self.traces += 1;
        let mut bytes = [0xee; 16];
        bytes[8..].copy_from_slice(&self.traces.to_be_bytes());
        TraceId::from_bytes(bytes).unwrap()
    }

    fn span_id(&mut self) -> SpanId {
        self.spans += 1;
        SpanId::from_bytes(self.spans.to_be_bytes()).unwrap()
    }
}

/// One process with a sidecar.
pub(crate) struct World {
    pub(crate) tracer: Tracer,
    pub(crate) batch: Batch,
    pub(crate) now: Now,
    ids: Counting,
}

pub(crate) const START_UNIX_NANOS: u64 = 1_763_600_000_000_000_000;
pub(crate) const MS: u64 = 1_000_000;

/// Settings as they are by default, with a service named `orders`.
pub(crate) fn config() -> Config {
    Config {
        enabled: true,
        mode: throughline_core::mode::Mode::Hybrid,
        trust: throughline_core::exchange::Trust::Mesh,
        adaptive: throughline_core::adaptive::Adaptive::default(),
        spans_per_second: 0,
        service: "orders".to_owned(),
        keep: throughline_core::keep::Keep::default(),
        recording: true,
        sampler: Sampler::ParentBased(Root::AlwaysOn),
        propagators: Propagators { tracecontext: true, baggage: true, ..Propagators::default() },
        routes: Vec::new(),
        routes_max: 200,
        query: Query::Redacted(Vec::new()),
        mesh: Mesh::default(),
        peer_header: Peer::header("orders", "shop"),
        egress_traceparent: true,
        response_headers: ResponseHeaders::default(),
        root_unsampled: RootUnsampled::Flag,
        capture_request_headers: Vec::new(),
        capture_response_headers: Vec::new(),
        aggregation: throughline_core::metrics::Aggregation::Explicit,
        attribute_bytes_max: None,
        event_context: throughline_core::exchange::EventContext::Rewrite,
        message_names: throughline_core::exchange::MessageNames::DestinationFirst,
    }
}

/// `GET http://shop:8080/items/42` by a caller.
pub(crate) fn request() -> RequestHead<'static> {
    RequestHead {
        direction: Direction::Inbound,
        method: "GET",
        scheme: Scheme::Http,
        authority: b"shop:8080",
        path: b"/items/42",
        query: None,
        version: Version::Http11,
        caller: None,
        destination: Destination::Named,
    }
}

/// `GET http://{host}/stock` by the application.
pub(crate) fn call(host: &str) -> RequestHead<'_> {
    RequestHead { direction: Direction::Outbound, authority: host.as_bytes(), path: b"/stock", ..request() }
}

impl World {
    /// A process with settings that differ from the default by `change`.
    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config();
        change(&mut config);
        let bounds = Bounds { queue_spans_max: 100_000, chunk_spans_max: 512, flush_after_ms: 1000 };
        Self {
            tracer: Tracer::new(config, 7),
            batch: Batch::new(bounds),
            now: Now { unix_nanos: START_UNIX_NANOS, mono_nanos: 1 },
            ids: Counting::default(),
        }
    }

    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// Span ids from here on, so that those of two processes differ.
    pub(crate) fn ids_after(&mut self, number: u64) {
        self.ids.spans = number;
    }

    pub(crate) fn begin(&mut self, head: &RequestHead<'_>, headers: &mut Headers) -> Exchange {
        self.tracer.begin(head, headers, self.now, &mut self.ids)
    }

    /// A request comes in; what the application gets.
    pub(crate) fn inbound(&mut self, fields: Fields<'_>) -> (Exchange, Headers) {
        let mut headers = headers(fields);
        let exchange = self.begin(&request(), &mut headers);
        (exchange, headers)
    }

    /// A request by a browser comes in, as a sidecar that serves browsers begins it; what the application gets.
    pub(crate) fn of_browser(
        &mut self,
        pages: &Pages,
        fields: Fields<'_>,
        cookie: &str,
        address: IpAddr,
    ) -> (Exchange, Headers) {
        let mut headers = headers(fields);
        let ticket = cut(cookie.as_bytes()).and_then(|(_, ticket)| ticket);
        let Some(page) = pages.arrive(&mut headers, ticket, address, self.now, &mut self.ids) else {
            return (self.begin(&request(), &mut headers), headers);
        };
        let begun = self.tracer.begin_of_page(&request(), &mut headers, self.now, &mut self.ids, &page);
        pages.decided(&page, &begun);
        (begun, headers)
    }

    /// The application calls `host`; what the next hop gets.
    pub(crate) fn outbound(&mut self, host: &str, fields: Fields<'_>) -> (Exchange, Headers) {
        let mut headers = headers(fields);
        let exchange = self.begin(&call(host), &mut headers);
        (exchange, headers)
    }

    /// The answer begins; what its reader gets.
    pub(crate) fn answer(&self, exchange: &mut Exchange, status: u16, fields: Fields<'_>) -> Headers {
        let mut headers = headers(fields);
        exchange.response(&self.tracer, status, &mut headers);
        headers
    }

    pub(crate) fn end(&mut self, exchange: Exchange, outcome: Outcome) -> Summary {
        self.tracer.end(exchange, outcome, self.now, &mut self.batch)
    }

    /// Answers 200, completes, and reads the span back; none when it was not sampled.
    pub(crate) fn finish(&mut self, mut exchange: Exchange) -> Option<Span> {
        self.answer(&mut exchange, 200, &[]);
        self.end(exchange, Outcome::Complete);
        self.spans().pop()
    }

    /// The spans handed out since the last time.
    pub(crate) fn spans(&mut self) -> Vec<Span> {
        let mut spans = Vec::new();
        while let Some(chunk) = self.batch.poll_flush(self.now, true) {
            let read = ScopeSpans::decode(chunk.bytes()).unwrap().spans;
            assert_eq!(read.len(), chunk.spans());
            spans.extend(read);
            let all = chunk.spans();
            self.batch.settle(chunk, all, Dropped::Failed);
        }
        spans
    }

    /// Exact counts by series as Prometheus shows them, without the histogram's buckets.
    pub(crate) fn counts(&self) -> Vec<String> {
        let text = self.page(false);
        let lines = text.lines().filter(|line| line.contains("_count{"));
        lines.map(|line| line.replace("_request_duration_seconds_count", "")).collect()
    }

    /// The request metrics as Prometheus gets them.
    pub(crate) fn page(&self, with_graph: bool) -> String {
        self.page_in(Form::Text, with_graph)
    }

    pub(crate) fn page_in(&self, form: Form, with_graph: bool) -> String {
        let (mut numbers, mut text) = (self.tracer.numbers(with_graph), Text::new(form));
        while numbers.write(&mut text, usize::MAX) {}
        text.take()
    }

    pub(crate) fn context_dropped(&self) -> Vec<(String, u64)> {
        let mut seen = Vec::new();
        self.tracer.context_dropped(|route, count| seen.push((route.to_owned(), count)));
        seen
    }
}

pub(crate) fn headers(fields: Fields<'_>) -> Headers {
    fields.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
}

/// The one value of a field, `-` when it is missing.
pub(crate) fn value<'a>(headers: &'a Headers, name: &str) -> &'a str {
    assert!(headers.iter().filter(|(field, _)| field == name).count() <= 1, "{name} once in {headers:?}");
    headers.get(name).map_or("-", |value| std::str::from_utf8(value).unwrap())
}

/// Fields as text, to be compared with what a test wrote.
pub(crate) fn written(headers: &Headers) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), std::str::from_utf8(value).unwrap())).collect()
}

pub(crate) fn span_id(exchange: &Exchange) -> String {
    exchange.ids().unwrap().1.to_string()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn parent_of(span: &Span) -> String {
    hex(&span.parent_span_id)
}

/// The text of an attribute, integers in digits; `-` when it is missing.
pub(crate) fn text(span: &Span, key: &str) -> String {
    text_in(&span.attributes, key)
}

pub(crate) fn text_in(attributes: &[KeyValue], key: &str) -> String {
    let mut found = attributes.iter().filter(|attribute| attribute.key == key);
    let value = found.next().and_then(|attribute| attribute.value.as_ref());
    assert!(found.next().is_none(), "{key} twice in {attributes:?}");
    match value {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => text.clone(),
        Some(AnyValue { value: Some(Value::IntValue(number)) }) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => "-".to_owned(),
    }
}
