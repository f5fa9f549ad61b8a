//! Messages of an exchange: which span each gets, whose child it is, and what the message says from here on
//! (the rules of `cloudevents-traceparent`). The bytes are found and replaced by [`crate::events`]. A message
//! that can't be edited goes on as it is, counted by reason; its exchange stays what it was.

mod carried;
mod desk;
mod message_span;
mod unfit;

pub use unfit::{content_length, unfit};

use super::inject::{Formats, Plan, State};
use super::tracer::Tracer;
use super::{Exchange, Now, RequestHead, Tracing};
use crate::batch::SpanSink;
use crate::carrier::Carrier;
use crate::classify::Direction;
use crate::events::cloudevent;
use crate::events::detect::{self, Api, Hop, PushHead, Resource, Wrapping};
use crate::events::grpc_frame::{self, Piece, Reassembler};
use crate::events::pubsub::MessageView;
use crate::events::pubsub_grpc::SubscriptionRequest;
use crate::events::pubsub_json;
use crate::ids::Ids;
use crate::limits::HEADER_LINES_MAX;
use crate::metrics::{MessageKind, Tally};
use crate::names::{attribute, header};
use crate::otlp::{Attributes, Kind, Status};
use crate::propagation::baggage;
use crate::propagation::traceparent::{self, TraceParent};
use carried::{Carried, Form, HOP, Said, borrowed};
use desk::Desk;
use message_span::MessageSpan;
use std::borrow::Cow;

/// What of an exchange's bodies `core` wants to see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Nothing: both stream through.
    Nothing,
    /// The request's body, if its beginning looks like a wrapped push ([`looks_like_push`]).
    MaybePush,
    /// The request's whole body.
    Request,
    /// The request's whole body, and the answer's.
    RequestAndResponse,
    /// The answer's whole body.
    Response,
    /// The first gRPC message of the request, and each one of the answer as it comes.
    Stream,
}

/// How `cloudevents.traceparent` is treated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventContext {
    /// Set to the producer's span on publish and to the consumer's on delivery.
    Rewrite,
    /// Added where it is missing; nothing else is changed.
    Preserve,
}

/// How spans of messages are named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageNames {
    /// `orders publish`.
    DestinationFirst,
    /// `publish orders`, as OpenTelemetry's messaging conventions have it.
    Semconv,
}

/// Whether the beginning of a body is that of a push: of a wrapped one, whose first key is one of the outer
/// object's, or of a bare one whose data is a structured event. `None` while it may still become either.
#[must_use]
pub fn looks_like_push(beginning: &[u8]) -> Option<bool> {
    const KEYS: [&[u8]; 3] = [b"\"message\"", b"\"subscription\"", b"\"deliveryAttempt\""];
    let beginning = beginning.trim_ascii_start();
    if beginning.is_empty() {
        return None;
    }
    let Some(rest) = beginning.strip_prefix(b"{") else { return Some(false) };
    let rest = rest.trim_ascii_start();
    if KEYS.iter().any(|key| key.starts_with(rest) && rest.len() < key.len()) {
        return None;
    }
    Some(KEYS.iter().any(|key| rest.starts_with(key)) || holds_spec_version(rest))
}

/// Every event has this member (CloudEvents 1.0 §3.1); producers write it near the front.
fn holds_spec_version(beginning: &[u8]) -> bool {
    const FRONT_BYTES: usize = 2048;
    const KEY: &[u8] = b"\"specversion\"";
    let front = beginning.get(..FRONT_BYTES).unwrap_or(beginning);
    front.windows(KEY.len()).any(|window| window == KEY)
}

/// What an exchange has to do with messages.
#[derive(Debug)]
pub(super) struct Messaging {
    what: What,
    /// Topic, subscription or event type: what spans are named after.
    destination: String,
    /// What was written into the headers, to be written again when a message moves the exchange.
    pub(super) plan: Option<Plan>,
    /// The exchange's own span is the message's.
    single: bool,
    /// Spans that end with the exchange.
    pending: Vec<MessageSpan>,
    /// Messages of the exchange.
    count: u64,
    /// Links of the exchange to its messages.
    links: usize,
    /// Messages that the metrics have not counted yet.
    tallies: Vec<Tally>,
}

/// Which hop, in words that need no borrowed head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Publish(Api),
    Pull(Api),
    StreamingPull,
    MaybePush,
    UnwrappedPush { structured: bool },
    Settle(&'static str),
    EventBinary,
    EventStructured,
    EventBatch,
}

impl Messaging {
    /// What the head says; none for the most of requests.
    pub(super) fn of_head(head: &RequestHead<'_>, carrier: &impl Carrier) -> Option<Box<Self>> {
        let path = std::str::from_utf8(head.path).ok()?;
        let named = |resource: &Option<Resource<'_>>| {
            resource.as_ref().map_or(String::new(), |found| found.id.to_string())
        };
        let inbound = head.direction == Direction::Inbound;
        let (what, destination) = match detect::hop(head.method, path, carrier) {
            Hop::None => return None,
            // What the application serves itself is its own business, whatever it looks like; what it sends
            // is no delivery to it.
            Hop::Publish { .. } | Hop::Pull { .. } | Hop::StreamingPull if inbound => return None,
            Hop::Acknowledge { .. } | Hop::ModifyAckDeadline { .. } if inbound => return None,
            Hop::Push(_) if !inbound => return None,
            Hop::Publish { api, topic } => (What::Publish(api), named(&topic)),
            Hop::Pull { api, subscription } => (What::Pull(api), named(&subscription)),
            Hop::StreamingPull => (What::StreamingPull, String::new()),
            Hop::Push(Wrapping::MaybeWrapped) => (What::MaybePush, String::new()),
            Hop::Push(Wrapping::Unwrapped) => {
                let full = PushHead::read(carrier).map_or("", |push| push.subscription);
                let id = Resource::subscription(full).map_or(full.to_owned(), |found| found.id.into_owned());
                let structured = detect::content_mode(carrier) == Some(detect::ContentMode::Structured);
                (What::UnwrappedPush { structured }, id)
            }
            Hop::Acknowledge { subscription, .. } => (What::Settle("acknowledge"), named(&subscription)),
            Hop::ModifyAckDeadline { subscription, .. } => {
                (What::Settle("modify_ack_deadline"), named(&subscription))
            }
            Hop::CloudEventBinary => (What::EventBinary, String::new()),
            Hop::CloudEventStructured => (What::EventStructured, String::new()),
            Hop::CloudEventBatch => (What::EventBatch, String::new()),
        };
        Some(Box::new(Self {
            what,
            destination,
            plan: None,
            single: false,
            pending: Vec::new(),
            count: 0,
            links: 0,
            tallies: Vec::new(),
        }))
    }

    fn wanted(&self) -> Wanted {
        match self.what {
            What::Publish(_) | What::EventStructured | What::EventBatch => Wanted::Request,
            What::UnwrappedPush { structured: true } => Wanted::Request,
            What::Pull(Api::Rest) => Wanted::Response,
            What::Pull(Api::Grpc) => Wanted::RequestAndResponse,
            What::StreamingPull => Wanted::Stream,
            What::MaybePush => Wanted::MaybePush,
            What::UnwrappedPush { structured: false } | What::Settle(_) | What::EventBinary => {
                Wanted::Nothing
            }
        }
    }

    /// Messages that the metrics have not counted yet.
    pub(super) fn tallies(&self) -> &[Tally] {
        &self.tallies
    }

    /// What metrics of requests say that the exchange did with messages, if it did.
    pub(super) fn metric_kind(&self, inbound: bool) -> Option<MessageKind> {
        let kind = match self.what {
            What::Settle(_) => MessageKind::Settle,
            What::Pull(_) | What::StreamingPull => MessageKind::Receive,
            _ if inbound => MessageKind::Process,
            _ => MessageKind::Send,
        };
        Some(kind).filter(|_| self.is_involved())
    }

    fn is_pubsub(&self) -> bool {
        !matches!(self.what, What::EventBinary | What::EventStructured | What::EventBatch)
    }

    /// The operation's name and type, by the conventions that the user chose.
    fn verb(&self, direction: Direction, names: MessageNames) -> (&'static str, &'static str) {
        match (self.what, direction) {
            (What::Settle(verb), _) => (verb, "settle"),
            (What::Pull(_) | What::StreamingPull, _) => ("receive", "receive"),
            (_, Direction::Inbound) => ("process", "process"),
            (_, Direction::Outbound) => {
                ("publish", if names == MessageNames::Semconv { "send" } else { "publish" })
            }
        }
    }

    fn name(&self, verb: &str, names: MessageNames) -> [String; 2] {
        name_of(&self.destination, verb, names)
    }

    /// Name and kind of the exchange's own span, where messages decide it.
    pub(super) fn span(&self, direction: Direction, names: MessageNames) -> Option<([String; 2], Kind)> {
        let (verb, _) = self.verb(direction, names);
        match self.what {
            What::Settle(_) => Some((self.name(verb, names), Kind::Client)),
            What::Pull(_) | What::StreamingPull => Some((self.name("pull", names), Kind::Client)),
            _ if !self.single => None,
            _ => Some((self.name(verb, names), kind_of(direction))),
        }
    }

    /// Whether the exchange turned out to be about messages.
    pub(super) fn is_involved(&self) -> bool {
        self.single
            || self.count > 0
            || matches!(self.what, What::Settle(_) | What::Pull(_) | What::StreamingPull)
    }

    /// Attributes of the exchange's own span, known at its end.
    pub(super) fn finish(&self, direction: Direction, names: MessageNames, out: &mut Vec<u8>) {
        if !self.is_involved() {
            return;
        }
        let (verb, kind) = self.verb(direction, names);
        let verb = if matches!(self.what, What::Pull(_) | What::StreamingPull) { "pull" } else { verb };
        self.describe_operation(verb, kind, out);
        if !self.single && self.count > 0 {
            Attributes::of_span(out).int(attribute::MESSAGING_BATCH_COUNT, self.count);
        }
    }

    fn describe_operation(&self, verb: &str, kind: &str, out: &mut Vec<u8>) {
        let mut attributes = Attributes::of_span(out);
        if self.is_pubsub() {
            attributes.text(attribute::MESSAGING_SYSTEM, b"gcp_pubsub");
        }
        attributes.text(attribute::MESSAGING_OPERATION_NAME, verb.as_bytes());
        attributes.text(attribute::MESSAGING_OPERATION_TYPE, kind.as_bytes());
        if self.is_pubsub() && !self.destination.is_empty() {
            let key = match self.what {
                What::Publish(_) => attribute::MESSAGING_DESTINATION,
                _ => attribute::MESSAGING_SUBSCRIPTION,
            };
            attributes.text(key, self.destination.as_bytes());
        }
    }
}

fn kind_of(direction: Direction) -> Kind {
    match direction {
        Direction::Inbound => Kind::Consumer,
        Direction::Outbound => Kind::Producer,
    }
}

fn name_of(destination: &str, verb: &str, names: MessageNames) -> [String; 2] {
    match (destination, names) {
        ("", _) => [verb.to_owned(), String::new()],
        (_, MessageNames::DestinationFirst) => [format!("{destination} "), verb.to_owned()],
        (_, MessageNames::Semconv) => [format!("{verb} "), destination.to_owned()],
    }
}

impl Exchange {
    /// What `core` wants to see of the bodies, asked after `begin`.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        self.messaging.as_ref().map_or(Wanted::Nothing, |messaging| messaging.wanted())
    }

    /// Spans of messages that end with their exchange.
    pub(super) fn end_messages(
        &mut self,
        end_unix_nanos: u64,
        status: Status,
        now: Now,
        sink: &mut impl SpanSink,
    ) {
        let start = self.started.unix_nanos;
        let Some(messaging) = &mut self.messaging else { return };
        for span in std::mem::take(&mut messaging.pending) {
            span.hand_out(start, end_unix_nanos, status, sink, now);
        }
    }
}

impl Tracer {
    /// The body of the request, when it was wanted: places the exchange and its messages in their traces,
    /// writes the headers anew, and gives the body that goes on; `None` when it goes on as it is.
    pub fn request_body(
        &self,
        exchange: &mut Exchange,
        body: &[u8],
        carrier: &mut impl Carrier,
        now: Now,
        ids: &mut impl Ids,
    ) -> Option<Vec<u8>> {
        let edited = {
            let mut desk = Desk::of(self, exchange, now, ids)?;
            match desk.messaging.what {
                What::Publish(Api::Rest) => desk.rest(body, pubsub_json::Form::Publish),
                What::Publish(Api::Grpc) => frames(body, |flag, message| match flag {
                    0 => desk.publish_request(message),
                    _ => desk.compressed(),
                }),
                What::Pull(Api::Grpc) => frames(body, |flag, message| match flag {
                    0 => desk.subscription(message, SubscriptionRequest::Pull),
                    _ => None,
                }),
                What::MaybePush => desk.push(body),
                What::EventStructured | What::EventBatch => desk.events(body, None, &MessageView::default()),
                What::UnwrappedPush { .. } => desk.events(body, hop_of(carrier), &view_of_head(carrier)),
                What::StreamingPull | What::Pull(Api::Rest) | What::Settle(_) | What::EventBinary => None,
            }
        };
        self.write_again(exchange, carrier);
        edited
    }

    /// The first gRPC message of a stream's request, which says what is subscribed to.
    pub fn subscribed(&self, exchange: &mut Exchange, message: &[u8], now: Now, ids: &mut impl Ids) {
        if let Some(mut desk) = Desk::of(self, exchange, now, ids) {
            desk.subscription(message, SubscriptionRequest::StreamingPull);
        }
    }

    /// The whole body of the answer, when it was wanted.
    pub fn response_body(
        &self,
        exchange: &mut Exchange,
        body: &[u8],
        now: Now,
        ids: &mut impl Ids,
    ) -> Option<Vec<u8>> {
        let mut desk = Desk::of(self, exchange, now, ids)?;
        match desk.messaging.what {
            What::Pull(Api::Rest) => desk.rest(body, pubsub_json::Form::Pull),
            What::Pull(Api::Grpc) => frames(body, |flag, message| match flag {
                0 => desk.pull_response(message),
                _ => desk.compressed(),
            }),
            _ => None,
        }
    }

    /// One gRPC message of a stream's answer: its deliveries get their spans at once, since the stream may
    /// never end.
    pub fn streamed(
        &self,
        exchange: &mut Exchange,
        message: &[u8],
        now: Now,
        ids: &mut impl Ids,
        sink: &mut impl SpanSink,
    ) -> Option<Vec<u8>> {
        let mut desk = Desk::of(self, exchange, now, ids)?;
        let edited = desk.pull_response(message);
        let tallies = std::mem::take(&mut desk.messaging.tallies);
        for span in std::mem::take(&mut desk.messaging.pending) {
            span.hand_out(now.unix_nanos, now.unix_nanos, Status::Unset, sink, now);
        }
        if !tallies.is_empty() {
            self.messages_handed_on(&tallies);
        }
        edited
    }

    /// A binary event, or an unwrapped push: everything is in the head.
    pub(super) fn messages_of_head(
        &self,
        exchange: &mut Exchange,
        carrier: &mut impl Carrier,
        now: Now,
        ids: &mut impl Ids,
    ) {
        let Some(mut desk) = Desk::of(self, exchange, now, ids) else { return };
        let edits = match desk.messaging.what {
            What::EventBinary => {
                let event = cloudevent::binary_view(carrier);
                let carried = Carried::of_event(&event, Form::Binary);
                desk.one(carried, &MessageView::default(), Some(&event))
            }
            What::UnwrappedPush { structured: false } => desk.unwrapped(carrier),
            _ => return,
        };
        // As headers, an event's attributes are its extensions; an unwrapped push has the hop's beside them.
        let is_push = desk.messaging.is_pubsub();
        let mut event: Vec<Said> = Vec::new();
        for (name, value) in edits.attributes {
            match (name.strip_prefix("ce-"), value) {
                (Some(extension), value) => event.push((extension, value)),
                (None, Some(value)) if is_push && name == HOP => carrier.set(HOP, value.as_bytes()),
                (None, _) => {}
            }
        }
        if let Err(reason) = cloudevent::edit_binary(carrier, &borrowed(&event)) {
            self.count_untouched(reason.label());
        }
        self.write_again(exchange, carrier);
    }

    /// The exchange may have moved to another trace: its place among those in flight and its headers follow.
    fn write_again(&self, exchange: &mut Exchange, carrier: &mut impl Carrier) {
        let plan = exchange.messaging.as_ref().and_then(|messaging| messaging.plan);
        let (Tracing::On(trace), Some(mut plan)) = (&mut exchange.tracing, plan) else { return };
        if exchange.direction == Direction::Inbound {
            self.move_in_flight(trace, exchange.operation, &mut exchange.buffers);
            plan.operation_header = exchange.operation.is_some() && carrier.get(header::OPERATION).is_none();
        }
        let lacks_it = baggage::find(&exchange.buffers.baggage, attribute::OPERATION).is_none();
        let inbound = exchange.direction == Direction::Inbound;
        let may_add = inbound && lacks_it && self.config.propagators.baggage && baggage_is_whole(carrier);
        plan.operation_baggage = exchange.operation.is_some() && may_add;
        plan.restored_baggage = false;
        // An application is told nothing of a trace that we start; a producer's is none of these.
        if plan.state == State::Withheld && trace.parent.is_some() {
            plan.formats = Formats::everything(self.config.propagators);
            plan.state = State::WithOwn;
        }
        plan.had_tracestate = true; // the head has been written to
        let operation = exchange.operation.as_ref();
        plan.write(trace, operation, &self.config.peer_header, &mut exchange.buffers, carrier);
    }
}

/// Each gRPC message of a whole body, replaced where `edit`, which is given its flag too, says so; `None` when
/// nothing changes. What is cut short stays as it is.
fn frames(body: &[u8], mut edit: impl FnMut(u8, &[u8]) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let mut reassembler = Reassembler::new(body.len());
    let (mut rest, mut out, mut changed) = (body, Vec::with_capacity(body.len() + 256), false);
    while let Some(piece) = reassembler.next_piece(&mut rest) {
        match piece {
            Piece::Message { flag, message, framed } => match edit(flag, message) {
                Some(edited) => changed |= grpc_frame::write(flag, &edited, &mut out),
                None => out.extend_from_slice(framed),
            },
            Piece::Passing(bytes) => out.extend_from_slice(bytes),
        }
    }
    out.extend_from_slice(reassembler.rest());
    changed.then_some(out)
}

/// Whether the baggage can be read to the end. If not, it goes on as it came: rewriting it would lose what is
/// the user's.
fn baggage_is_whole(carrier: &impl Carrier) -> bool {
    let mut lines: Vec<&[u8]> = Vec::new();
    carrier.for_each(&mut |name, value| {
        if name == baggage::HEADER {
            lines.push(value);
        }
    });
    lines.len() <= HEADER_LINES_MAX && baggage::join(lines, &mut Vec::new()) == baggage::Cut::default()
}

/// The hop's context of an unwrapped push.
fn hop_of(carrier: &impl Carrier) -> Option<TraceParent> {
    carrier.get(HOP).and_then(|value| traceparent::parse(value).ok())
}

/// What the head of an unwrapped push says of its message.
fn view_of_head(carrier: &impl Carrier) -> MessageView<'_> {
    let push = PushHead::read(carrier);
    MessageView {
        message_id: push.and_then(|push| push.message_id).map(Cow::Borrowed),
        ordering_key: push.and_then(|push| push.ordering_key).map(Cow::Borrowed),
        publish_time_unix_ns: push.and_then(|push| push.publish_time_unix_ns),
        delivery_attempt: push.and_then(|push| push.delivery_attempt),
        ..MessageView::default()
    }
}

fn short_name(full: &str, resource: Option<Resource<'_>>) -> String {
    resource.map_or_else(|| full.chars().take(256).collect(), |found| found.id.into_owned())
}
