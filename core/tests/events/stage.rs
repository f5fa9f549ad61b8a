//! One process with a sidecar, and what it does with a request whose body may be edited.

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use throughline_core::classify::{Direction, Outcome};
use throughline_core::exchange::{Config, Exchange, RequestHead, Wanted, looks_like_push};
use throughline_core::ids::{Ids, SpanId, TraceId};

use crate::harness::*;

pub(crate) const PUBLISH: &str = "/v1/projects/p/topics/orders:publish";
pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");
/// A producer's trace, which is not that of the callers of these tests.
pub(crate) const PRODUCER_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
/// The producer's span.
pub(crate) const PRODUCER: &str = "b7ad6b7169203331";
/// The producer's context: sampled, and its trace id is random.
pub(crate) const HOP: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03";
/// The context of an event that somebody forwards.
pub(crate) const FOREIGN: &str = "00-99999999999999999999999999999999-8888888888888888-01";
/// What a message or a span says of an event, in JSON's members.
pub(crate) const EVENT: &str =
    r#""specversion":"1.0","id":"e1","source":"/shop","type":"order.placed","subject":"o7""#;

/// Ids of messages, far from those of exchanges.
pub(crate) struct Far {
    spans: u64,
    traces: u8,
}

impl Ids for Far {
    fn trace_id(&mut self) -> TraceId {
        self.traces += 1;
        TraceId::from_bytes([self.traces; 16]).unwrap()
    }

    fn span_id(&mut self) -> SpanId {
        self.spans += 1;
        SpanId::from_bytes(self.spans.to_be_bytes()).unwrap()
    }
}

/// The process; its books are looked at when it is taken down.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) far: Far,
    handed_out: u64,
}

/// What went on.
pub(crate) struct Sent {
    pub(crate) headers: Headers,
    /// As it went on, edited or not.
    pub(crate) body: Vec<u8>,
    pub(crate) edited: bool,
    pub(crate) spans: Vec<Span>,
}

impl Sent {
    /// The exchange's own span, which is handed out last.
    #[track_caller]
    pub(crate) fn own(&self) -> &Span {
        self.spans.last().expect("a span")
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub(crate) fn post(direction: Direction, path: &str) -> RequestHead<'_> {
    RequestHead { direction, method: "POST", authority: b"pubsub:8080", path: path.as_bytes(), ..request() }
}

impl Stage {
    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self { world: World::with(change), far: Far { spans: 0xf000, traces: 0xa0 }, handed_out: 0 }
    }

    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn begin(&mut self, head: &RequestHead<'_>, fields: Fields<'_>) -> (Exchange, Headers) {
        let mut headers = headers(fields);
        let exchange = self.world.begin(head, &mut headers);
        (exchange, headers)
    }

    /// The request's body as a host gives it to `core`: only where it was wanted.
    pub(crate) fn body(
        &mut self,
        exchange: &mut Exchange,
        headers: &mut Headers,
        body: &[u8],
    ) -> Option<Vec<u8>> {
        let read = match exchange.wanted() {
            Wanted::Request | Wanted::RequestAndResponse => true,
            Wanted::MaybePush => looks_like_push(body) == Some(true),
            Wanted::Nothing | Wanted::Response | Wanted::Stream => false,
        };
        let World { tracer, now, .. } = &self.world;
        if read { tracer.request_body(exchange, body, headers, *now, &mut self.far) } else { None }
    }

    /// A whole request, answered 200.
    pub(crate) fn request(&mut self, head: &RequestHead<'_>, fields: Fields<'_>, body: &[u8]) -> Sent {
        self.request_ending(head, fields, body, 200)
    }

    pub(crate) fn request_ending(
        &mut self,
        head: &RequestHead<'_>,
        fields: Fields<'_>,
        body: &[u8],
        status: u16,
    ) -> Sent {
        let (mut exchange, mut headers) = self.begin(head, fields);
        let edited = self.body(&mut exchange, &mut headers, body);
        self.world.now.unix_nanos += 7 * MS;
        self.world.now.mono_nanos += 7 * MS;
        self.world.answer(&mut exchange, status, &[]);
        let spans = self.end(exchange);
        Sent { headers, edited: edited.is_some(), body: edited.unwrap_or(body.to_vec()), spans }
    }

    pub(crate) fn end(&mut self, exchange: Exchange) -> Vec<Span> {
        self.world.end(exchange, Outcome::Complete);
        self.spans()
    }

    pub(crate) fn spans(&mut self) -> Vec<Span> {
        let spans = self.world.spans();
        self.handed_out += spans.len() as u64;
        spans
    }

    /// A publish to the topic `orders`.
    pub(crate) fn publish(&mut self, fields: Fields<'_>, messages: &str) -> Sent {
        let body = format!(r#"{{"messages":[{messages}]}}"#);
        self.request(&post(Direction::Outbound, PUBLISH), &[&[JSON], fields].concat(), body.as_bytes())
    }

    /// A wrapped push from the subscription `shipping`.
    pub(crate) fn push(&mut self, fields: Fields<'_>, message: &str) -> Sent {
        let body = pushed(message);
        self.inbound(fields, &body)
    }

    /// Any JSON POST to the application.
    pub(crate) fn inbound(&mut self, fields: Fields<'_>, body: &str) -> Sent {
        self.request(&post(Direction::Inbound, "/hook"), &[&[JSON], fields].concat(), body.as_bytes())
    }

    /// What the next hop gets when the application calls while `context` is all it forwards.
    pub(crate) fn call_with(&mut self, context: &str) -> Headers {
        let (exchange, headers) = self.world.outbound(INSIDE, &[("traceparent", context)]);
        self.world.end(exchange, Outcome::Complete);
        headers
    }

    /// Reasons for which bodies stayed as they were.
    pub(crate) fn untouched(&self) -> Vec<(&'static str, u64)> {
        self.world.tracer.untouched()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.spans();
        let books = self.world.batch.books();
        let settled = books.exported + books.dropped.iter().sum::<u64>();
        assert_eq!((books.created, books.held, settled), (self.handed_out, 0, self.handed_out), "the books");
        assert_eq!(self.world.tracer.in_flight(), 0, "nothing is left in flight");
    }
}

/// A wrapped push; the service escapes no slash, but may.
pub(crate) fn pushed(message: &str) -> String {
    format!(r#"{{"message":{message},"subscription":"projects\/p\/subscriptions\/shipping"}}"#)
}

/// A message whose attributes are these members.
pub(crate) fn with_attributes(members: &str) -> String {
    format!(r#"{{"data":"aGk=","attributes":{{{members}}}}}"#)
}

/// The attributes of a binary event, and more.
pub(crate) fn binary(more: &str) -> String {
    let members = EVENT.replace("\"specversion\"", "\"ce-specversion\"").replace("\"id\"", "\"ce-id\"");
    let members = members.replace("\"source\"", "\"ce-source\"").replace("\"type\"", "\"ce-type\"");
    with_attributes(&format!("{}{more}", members.replace("\"subject\"", "\"ce-subject\"")))
}

/// `traceparent` of a span, with these flags.
pub(crate) fn context(span: &Span, flags: &str) -> String {
    format!("00-{}-{}-{flags}", hex(&span.trace_id), hex(&span.span_id))
}

/// Trace and span of each link.
pub(crate) fn links(span: &Span) -> Vec<String> {
    span.links.iter().map(|link| format!("{}-{}", hex(&link.trace_id), hex(&link.span_id))).collect()
}

/// Trace and span of a context, as [`links`] has them.
pub(crate) fn ids(context: &str) -> String {
    context[3..52].to_owned()
}

/// Name, kind, trace and parent.
pub(crate) fn place(span: &Span) -> (&str, SpanKind, String, String) {
    (span.name.as_str(), span.kind(), hex(&span.trace_id), parent_of(span))
}

#[track_caller]
pub(crate) fn check_attributes(span: &Span, expected: &[(&str, &str)]) {
    for (key, expected) in expected {
        assert_eq!(text(span, key), *expected, "{key} of {}", span.name);
    }
}

/// Attributes of [`EVENT`].
pub(crate) const EVENT_ATTRIBUTES: &[(&str, &str)] = &[
    ("cloudevents.event_spec_version", "1.0"),
    ("cloudevents.event_id", "e1"),
    ("cloudevents.event_source", "/shop"),
    ("cloudevents.event_type", "order.placed"),
    ("cloudevents.event_subject", "o7"),
];
