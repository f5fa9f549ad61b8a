//! Messages of an exchange: which span each gets, whose child it is, and what the message says from here on
//! (the rules of `cloudevents.traceparent`). The bytes are found and replaced by [`crate::events`]. A message
//! that can't be edited goes on as it is, counted by reason; its exchange stays what it was.

use std::borrow::Cow;

use super::inject::{Formats, Plan, State};
use super::record::Buffers;
use super::tracer::Tracer;
use super::{Exchange, Now, RequestHead, Trace, Tracing};
use crate::batch::SpanSink;
use crate::carrier::Carrier;
use crate::classify::Direction;
use crate::events::cloudevent::{self, EventView, Events};
use crate::events::detect::{self, Api, Hop, PushHead, Resource, Wrapping};
use crate::events::grpc_frame::{self, Piece, Reassembler};
use crate::events::pubsub::{InsideScratch, MessageEdit, MessageView};
use crate::events::pubsub_grpc::{self, SubscriptionRequest};
use crate::events::pubsub_json;
use crate::events::splice::Splices;
use crate::events::{Edit, Untouched};
use crate::ids::{Flags, Ids, SpanId, TraceId};
use crate::limits::{HEADER_LINES_MAX, MESSAGE_LINKS_MAX, PUBSUB_ATTRIBUTES_MAX};
use crate::names::{TRACESTATE_KEY, attribute, header};
use crate::operation::Operation;
use crate::otlp::{Attributes, Kind, Parent, Span, Status, link};
use crate::propagation::traceparent::{self, TraceParent};
use crate::propagation::{baggage, tracestate};
use crate::sampling::erase_probability;

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

/// Whether the beginning of a body may be that of a push: of a wrapped one, whose first key is one of the outer
/// object's, or of a bare one whose data is a structured event.
#[must_use]
pub fn looks_like_push(beginning: &[u8]) -> bool {
    let Some(rest) = beginning.trim_ascii_start().strip_prefix(b"{") else { return false };
    let rest = rest.trim_ascii_start();
    [&b"\"message\""[..], b"\"subscription\"", b"\"deliveryAttempt\""].iter().any(|key| rest.starts_with(key))
        || holds_spec_version(rest)
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

/// A message's own span, until its exchange ends.
#[derive(Debug)]
struct MessageSpan {
    trace_id: TraceId,
    span_id: SpanId,
    flags: Flags,
    parent: Option<Parent>,
    kind: Kind,
    name: [String; 2],
    attributes: Vec<u8>,
    links: Vec<u8>,
}

/// The contexts that a message carries.
#[derive(Debug, Default)]
struct Carried {
    /// The hop's: `googclient_traceparent`, written by us or by Google's clients.
    hop: Option<TraceParent>,
    /// The event's own.
    event: Option<TraceParent>,
    /// The event's own, as it stands.
    event_text: Option<String>,
    has_origin: bool,
    /// The event's `tracestate`, without our member.
    state: Vec<u8>,
    /// Our member was in it.
    held_own: bool,
    operation: Option<Operation>,
    form: Form,
}

/// Where a message keeps its context.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum Form {
    /// Plain attributes.
    #[default]
    Plain,
    /// `ce-` attributes or headers.
    Binary,
    /// Members of the event.
    Structured,
}

/// What a message shall say.
#[derive(Debug, Default)]
struct Edits {
    attributes: Vec<Said>,
    event: Vec<Said>,
}

/// A member and its value; `None` takes it out.
type Said = (&'static str, Option<String>);

const HOP: &str = "googclient_traceparent";

impl Carried {
    fn of_message(view: &MessageView<'_>, inside: Option<&EventView<'_>>) -> Self {
        let hop = view.attributes.get(HOP).or_else(|| view.attributes.get("traceparent"));
        let binary = view.attributes.binary_event();
        let mut carried = match (inside, &binary) {
            (Some(event), _) => Self::of_event(event, Form::Structured),
            (None, Some(event)) => Self::of_event(event, Form::Binary),
            (None, None) => Self::default(),
        };
        carried.hop = hop.and_then(|text| traceparent::parse(text.as_bytes()).ok());
        if carried.operation.is_none() {
            let plain = view.attributes.get("operationname");
            carried.operation = plain.and_then(|text| Operation::parse(text.as_bytes()));
        }
        carried
    }

    fn of_event(event: &EventView<'_>, form: Form) -> Self {
        let parse = |text: &Cow<'_, str>| traceparent::parse(text.as_bytes()).ok();
        let (mut state, mut held_own) = (Vec::new(), false);
        if let Some(list) = &event.tracestate {
            let _ = tracestate::join([list.as_bytes()], &mut state); // a broken list is left empty
            held_own = tracestate::remove(&mut state, TRACESTATE_KEY); // an application copied it
        }
        Self {
            held_own,
            hop: None,
            // Dapr's own extension counts where the standard one is missing.
            event: event.traceparent.as_ref().or(event.dapr_trace_id.as_ref()).and_then(parse),
            event_text: event.traceparent.as_ref().map(ToString::to_string),
            has_origin: event.origin_traceparent.is_some(),
            state,
            operation: event.operation_name.as_ref().and_then(|text| Operation::parse(text.as_bytes())),
            form,
        }
    }

    /// The producer's context: the hop's, else the event's.
    fn producer(&self) -> Option<TraceParent> {
        self.hop.or(self.event)
    }

    /// What a published message shall say (ARCHITECTURE.md, "Messages").
    fn published(&self, own: TraceParent, operation: Option<&Operation>, rule: EventContext) -> Edits {
        let mut edits = Edits::default();
        let forwarded = self.event.is_some_and(|event| event.trace_id != own.trace_id);
        let may_set_event = match rule {
            EventContext::Rewrite => !forwarded,
            EventContext::Preserve => self.event_text.is_none(),
        };
        let may_set_hop = rule == EventContext::Rewrite || self.hop.is_none();
        if may_set_hop {
            edits.attributes.push((HOP, Some(text_of(own))));
        }
        let operation = operation.filter(|_| self.operation.is_none());
        let operation = operation.map(|operation| Some(operation.as_str().to_owned()));
        // Our member of `tracestate` is for the application's eyes; one that it copied goes no further.
        let state =
            self.held_own.then(|| String::from_utf8(self.state.clone()).ok().filter(|list| !list.is_empty()));
        match self.form {
            Form::Plain => edits.attributes.extend(operation.map(|name| ("operationname", name))),
            Form::Binary => {
                edits.attributes.extend(may_set_event.then(|| ("ce-traceparent", Some(text_of(own)))));
                edits.attributes.extend(state.map(|list| ("ce-tracestate", list)));
                edits.attributes.extend(operation.map(|name| ("ce-operationname", name)));
            }
            Form::Structured => {
                edits.event.extend(may_set_event.then(|| ("traceparent", Some(text_of(own)))));
                edits.event.extend(state.map(|list| ("tracestate", list)));
                edits.event.extend(operation.map(|name| ("operationname", name)));
            }
        }
        edits
    }

    /// What a delivered message shall say (ARCHITECTURE.md, "Messages").
    fn delivered(&self, own: TraceParent, rule: EventContext) -> Edits {
        let mut edits = Edits::default();
        let preserve = rule == EventContext::Preserve;
        if !preserve || self.hop.is_none() {
            edits.attributes.push((HOP, Some(text_of(own))));
        }
        if preserve && self.event_text.is_some() {
            return edits;
        }
        let origin = self.event_text.clone().filter(|_| !self.has_origin);
        match self.form {
            Form::Plain => {}
            Form::Binary => {
                edits.attributes.push(("ce-traceparent", Some(text_of(own))));
                edits.attributes.extend(origin.map(|text| ("ce-origintraceparent", Some(text))));
            }
            Form::Structured => {
                edits.event.push(("traceparent", Some(text_of(own))));
                edits.event.extend(origin.map(|text| ("origintraceparent", Some(text))));
            }
        }
        edits
    }
}

fn text_of(context: TraceParent) -> String {
    String::from_utf8_lossy(&traceparent::print(&context)).into_owned()
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

    /// Attributes of the exchange's own span, known at its end.
    pub(super) fn finish(&self, direction: Direction, names: MessageNames, out: &mut Vec<u8>) {
        let involved = self.single
            || self.count > 0
            || matches!(self.what, What::Settle(_) | What::Pull(_) | What::StreamingPull);
        if !involved {
            return;
        }
        let (verb, kind) = self.verb(direction, names);
        let verb = if matches!(self.what, What::Pull(_) | What::StreamingPull) { "pull" } else { verb };
        self.common(verb, kind, out);
        if !self.single && self.count > 0 {
            Attributes::of_span(out).int(attribute::MESSAGING_BATCH_COUNT, self.count);
        }
    }

    fn common(&self, verb: &str, kind: &str, out: &mut Vec<u8>) {
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

/// Attributes of one message.
fn describe(view: &MessageView<'_>, now: Now, text_bytes_max: Option<usize>, out: &mut Vec<u8>) {
    let mut attributes = Attributes::of_span(out).within(text_bytes_max);
    if let Some(id) = &view.message_id {
        attributes.text(attribute::MESSAGING_MESSAGE_ID, id.as_bytes());
    }
    if let Some(key) = &view.ordering_key {
        attributes.text(attribute::MESSAGING_ORDERING_KEY, key.as_bytes());
    }
    if let Some(attempt) = view.delivery_attempt {
        attributes.int(attribute::MESSAGING_DELIVERY_ATTEMPT, u64::from(attempt));
    }
    if let Some(published) = view.publish_time_unix_ns {
        let age_ms = now.unix_nanos.saturating_sub(published) / 1_000_000;
        attributes.int(attribute::MESSAGE_AGE_MS, age_ms);
    }
}

fn describe_event(event: &EventView<'_>, text_bytes_max: Option<usize>, out: &mut Vec<u8>) {
    let mut attributes = Attributes::of_span(out).within(text_bytes_max);
    for (key, value) in [
        (attribute::CLOUDEVENTS_ID, &event.id),
        (attribute::CLOUDEVENTS_SOURCE, &event.source),
        (attribute::CLOUDEVENTS_TYPE, &event.event_type),
        (attribute::CLOUDEVENTS_SPEC_VERSION, &event.spec_version),
        (attribute::CLOUDEVENTS_SUBJECT, &event.subject),
    ] {
        if let Some(value) = value {
            attributes.text(key, value.as_bytes());
        }
    }
}

/// The two forms of a Pub/Sub body, read alike.
trait PubsubBody {
    fn count(&self) -> usize;
    fn message(&self, index: usize) -> MessageView<'_>;
    fn rewrite(
        &self,
        index: usize,
        scratch: &mut InsideScratch,
        splices: &mut Splices,
        decide: &mut dyn FnMut(&MessageView<'_>, Option<&EventView<'_>>) -> Edits,
    ) -> Result<(), Untouched>;
}

macro_rules! pubsub_body {
    ($messages:ty) => {
        impl PubsubBody for $messages {
            fn count(&self) -> usize {
                self.len()
            }

            fn message(&self, index: usize) -> MessageView<'_> {
                self.view(index)
            }

            fn rewrite(
                &self,
                index: usize,
                scratch: &mut InsideScratch,
                splices: &mut Splices,
                decide: &mut dyn FnMut(&MessageView<'_>, Option<&EventView<'_>>) -> Edits,
            ) -> Result<(), Untouched> {
                let (inside, unreadable) = match self.inside(index, scratch) {
                    Ok(inside) => (inside, None),
                    Err(reason) => (None, Some(reason)),
                };
                let event = inside.as_ref().map(|inside| inside.view());
                let edits = decide(&self.view(index), event.as_ref());
                drop(event);
                let attributes = borrowed(&edits.attributes);
                let event = borrowed(&edits.event);
                let edit =
                    MessageEdit { attributes: &attributes, event: inside.map(|inside| (inside, &event[..])) };
                self.edit(index, edit, splices)?;
                unreadable.map_or(Ok(()), Err)
            }
        }
    };
}

pubsub_body!(pubsub_json::Messages<'_, '_>);
pubsub_body!(pubsub_grpc::Messages<'_, '_>);

fn borrowed(edits: &[Said]) -> Vec<Edit<'_>> {
    edits.iter().map(|(name, value)| Edit { name, value: value.as_deref() }).collect()
}

/// An exchange's messages while its bodies are read: what is needed to decide, in one place.
struct Desk<'a, I> {
    tracer: &'a Tracer,
    direction: Direction,
    messaging: &'a mut Messaging,
    trace: &'a mut Trace,
    operation: &'a mut Option<Operation>,
    buffers: &'a mut Buffers,
    /// The caller is a sidecar: the context in the headers is the producer's hop, and no broker's.
    from_sidecar: bool,
    ids: &'a mut I,
    now: Now,
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
        for span in std::mem::take(&mut desk.messaging.pending) {
            span.hand_out(now.unix_nanos, now.unix_nanos, Status::Unset, sink, now);
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
            plan.operation_header = exchange.operation.filter(|_| carrier.get(header::OPERATION).is_none());
        }
        let lacks_it = baggage::find(&exchange.buffers.baggage, attribute::OPERATION).is_none();
        let inbound = exchange.direction == Direction::Inbound;
        let may_add = inbound && lacks_it && self.config.propagators.baggage && baggage_is_whole(carrier);
        plan.operation_baggage = exchange.operation.filter(|_| may_add);
        plan.restored_baggage = false;
        // An application is told nothing of a trace that we start; a producer's is none of these.
        if plan.state == State::Withheld && trace.parent.is_some() {
            plan.formats = Formats::everything(self.config.propagators);
            plan.state = State::WithOwn;
        }
        plan.write(trace, &self.config.peer_header, &mut exchange.buffers, carrier);
    }
}

impl MessageSpan {
    fn hand_out(&self, start: u64, end: u64, status: Status, sink: &mut impl SpanSink, now: Now) {
        let name = self.name.each_ref().map(String::as_str);
        let span = Span {
            trace_id: self.trace_id,
            span_id: self.span_id,
            flags: self.flags,
            parent: self.parent,
            trace_state: b"",
            name: &name,
            kind: self.kind,
            start_unix_nanos: start,
            end_unix_nanos: end,
            attributes: &self.attributes,
            links: &self.links,
            status,
        };
        sink.span(&span, now);
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

impl<'a, I: Ids> Desk<'a, I> {
    fn of(tracer: &'a Tracer, exchange: &'a mut Exchange, now: Now, ids: &'a mut I) -> Option<Self> {
        let Tracing::On(trace) = &mut exchange.tracing else { return None };
        Some(Self {
            tracer,
            direction: exchange.direction,
            messaging: exchange.messaging.as_deref_mut()?,
            trace,
            operation: &mut exchange.operation,
            buffers: &mut exchange.buffers,
            from_sidecar: exchange.caller_is_sidecar,
            ids,
            now,
        })
    }

    fn had_context(&self) -> bool {
        self.messaging.plan.is_some_and(|plan| plan.had_context)
    }

    fn untouched(&self, reason: Untouched) {
        self.tracer.count_untouched(reason.label());
    }

    fn compressed(&self) -> Option<Vec<u8>> {
        self.tracer.count_untouched("compressed");
        None
    }

    fn rest(&mut self, body: &[u8], form: pubsub_json::Form) -> Option<Vec<u8>> {
        let mut scratch = pubsub_json::Scratch::default();
        match pubsub_json::Messages::read(body, form, &mut scratch) {
            Ok(messages) => {
                if form == pubsub_json::Form::Push {
                    let full = messages.subscription().unwrap_or_default();
                    // Others may call members so; the service always tells the full name.
                    let Resource { id, .. } = Resource::subscription(&full)?;
                    self.messaging.destination = id.into_owned();
                }
                self.all(&messages, body)
            }
            // Any other JSON request may begin like a push: that is no event left untouched.
            Err(_) if form == pubsub_json::Form::Push => None,
            Err(reason) => {
                self.untouched(reason);
                None
            }
        }
    }

    /// A wrapped push; else the data of a bare one, when that is an event. Anything else that began like
    /// either is an ordinary request.
    fn push(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        let edited = self.rest(body, pubsub_json::Form::Push);
        if edited.is_some() || self.messaging.count > 0 {
            return edited;
        }
        let mut scratch = cloudevent::Scratch::default();
        if !Events::structured(body, &mut scratch).is_ok_and(|events| events.view(0).is_event()) {
            return None;
        }
        self.messaging.what = What::EventStructured;
        self.events(body, None, &MessageView::default())
    }

    fn publish_request(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let mut scratch = pubsub_grpc::Scratch::default();
        match pubsub_grpc::Messages::read(message, pubsub_grpc::Form::PublishRequest, &mut scratch) {
            Ok(messages) => {
                let full = messages.topic().unwrap_or_default();
                self.messaging.destination = short_name(full, Resource::topic(full));
                self.all(&messages, message)
            }
            Err(reason) => {
                self.untouched(reason);
                None
            }
        }
    }

    fn pull_response(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let mut scratch = pubsub_grpc::Scratch::default();
        match pubsub_grpc::Messages::read(message, pubsub_grpc::Form::PullResponse, &mut scratch) {
            Ok(messages) => self.all(&messages, message),
            Err(reason) => {
                self.untouched(reason);
                None
            }
        }
    }

    fn subscription(&mut self, message: &[u8], request: SubscriptionRequest) -> Option<Vec<u8>> {
        if let Ok(view) = pubsub_grpc::subscription_view(message, request)
            && let Some(full) = view.subscription
        {
            self.messaging.destination = short_name(full, Resource::subscription(full));
        }
        None
    }

    /// Every message of a Pub/Sub body.
    fn all(&mut self, messages: &impl PubsubBody, body: &[u8]) -> Option<Vec<u8>> {
        let count = messages.count();
        self.messaging.count += count as u64;
        let pulls = matches!(self.messaging.what, What::Pull(_) | What::StreamingPull);
        self.messaging.single = count == 1 && !pulls;
        let mut scratch = InsideScratch::default();
        let mut splices = Splices::new();
        for index in 0..count {
            let mut room = PUBSUB_ATTRIBUTES_MAX.saturating_sub(messages.message(index).attributes.len());
            let mut decide = |view: &MessageView<'_>, event: Option<&EventView<'_>>| {
                let carried = Carried::of_message(view, event);
                let binary = view.attributes.binary_event();
                let event = event.or(binary.as_ref());
                let mut edits = if self.messaging.single {
                    self.one(carried, view, event)
                } else {
                    self.one_of_many(carried, view, event)
                };
                // The service refuses messages with more attributes: ours are the first to go.
                edits.attributes.retain(|(name, _)| {
                    let replaces = view.attributes.iter().any(|attribute| attribute.name() == *name);
                    let fits = replaces || room > 0;
                    room = room.saturating_sub(usize::from(!replaces));
                    fits
                });
                edits
            };
            let done = messages.rewrite(index, &mut scratch, &mut splices, &mut decide);
            if let Err(reason) = done {
                self.untouched(reason);
            }
        }
        self.applied(&splices, body)
    }

    /// Every event of a structured body or a batch, and what the head says of its message.
    fn events(&mut self, body: &[u8], hop: Option<TraceParent>, view: &MessageView<'_>) -> Option<Vec<u8>> {
        let mut scratch = cloudevent::Scratch::default();
        let read = match self.messaging.what {
            What::EventBatch => Events::batch(body, &mut scratch),
            _ => Events::structured(body, &mut scratch),
        };
        let events = match read {
            Ok(events) => events,
            Err(reason) => {
                self.untouched(reason);
                return None;
            }
        };
        self.messaging.count += events.len() as u64;
        self.messaging.single = events.len() == 1;
        let mut splices = Splices::new();
        for index in 0..events.len() {
            let event = events.view(index);
            let carried = Carried { hop, ..Carried::of_event(&event, Form::Structured) };
            let edits = if self.messaging.single {
                self.one(carried, view, Some(&event))
            } else {
                self.one_of_many(carried, view, Some(&event))
            };
            if let Err(reason) = events.edit(index, &borrowed(&edits.event), &mut splices) {
                self.untouched(reason);
            }
        }
        self.applied(&splices, body)
    }

    fn applied(&self, splices: &Splices, body: &[u8]) -> Option<Vec<u8>> {
        if splices.is_empty() {
            return None;
        }
        let mut out = Vec::with_capacity(body.len() + 512);
        match splices.apply(body, &mut out) {
            Ok(()) => Some(out),
            Err(reason) => {
                self.untouched(reason);
                None
            }
        }
    }

    /// The message of an unwrapped push, whose attributes are headers.
    fn unwrapped(&mut self, carrier: &impl Carrier) -> Edits {
        self.messaging.count = 1;
        let event = cloudevent::binary_view(carrier);
        let is_event = event.is_event();
        let form = if is_event { Form::Binary } else { Form::Plain };
        let mut carried = Carried::of_event(&event, form);
        carried.hop = hop_of(carrier);
        if carried.operation.is_none() {
            carried.operation = carrier.get("operationname").and_then(Operation::parse);
        }
        self.one(carried, &view_of_head(carrier), is_event.then_some(&event))
    }

    /// The only message: the exchange's own span is its span.
    fn one(&mut self, mut carried: Carried, view: &MessageView<'_>, event: Option<&EventView<'_>>) -> Edits {
        self.messaging.single = true;
        self.name_after(event);
        if self.from_sidecar && !self.messaging.is_pubsub() && carried.hop.is_none() {
            let Trace { trace_id, flags, parent, .. } = *self.trace;
            carried.hop = parent.map(|parent| TraceParent { trace_id, span_id: parent.span_id, flags });
        }
        let rule = self.tracer.config.event_context;
        let edits = match self.direction {
            Direction::Outbound => {
                self.place_publish(&carried);
                carried.published(self.own(), self.operation.as_ref(), rule)
            }
            Direction::Inbound => {
                self.place_delivery(&carried);
                carried.delivered(self.own(), rule)
            }
        };
        if self.trace.recorded {
            let (max, out) = (self.tracer.config.attribute_bytes_max, &mut self.buffers.attributes);
            describe(view, self.now, max, out);
            if let Some(event) = event {
                describe_event(event, max, out);
            }
        }
        edits
    }

    /// An event by itself has no destination: its type names the span.
    fn name_after(&mut self, event: Option<&EventView<'_>>) {
        if !self.messaging.is_pubsub()
            && let Some(kind) = event.and_then(|event| event.event_type.as_ref())
        {
            self.messaging.destination = kind.chars().take(128).collect();
        }
    }

    fn own(&self) -> TraceParent {
        let Trace { trace_id, span_id, flags, .. } = *self.trace;
        TraceParent { trace_id, span_id, flags }
    }

    /// A call without context belongs to its message's trace; one with context takes the client library's
    /// own span of the same trace for its parent.
    fn place_publish(&mut self, carried: &Carried) {
        match carried.producer() {
            Some(context) if !self.had_context() => {
                self.buffers.tracestate.clone_from(&carried.state);
                self.move_to(context);
                self.buffers.links.clear();
            }
            Some(context) if context.trace_id == self.trace.trace_id && context.flags.sampled() => {
                if carried.hop.is_some() {
                    self.trace.parent = Some(Parent { span_id: context.span_id, remote: true });
                }
            }
            Some(_) | None => {}
        }
        self.link_if_elsewhere(carried.event);
    }

    /// The consumer's span is a child of the producer's, linked to the transport's.
    fn place_delivery(&mut self, carried: &Carried) {
        if let Some(context) = carried.producer() {
            let transport = self.trace.parent.filter(|parent| parent.span_id != context.span_id);
            if let Some(transport) = transport {
                link(&mut self.buffers.links, self.trace.trace_id, transport.span_id, self.trace.flags);
            }
            // Of the same trace, the transport's list is as good, unless the event has one.
            if context.trace_id != self.trace.trace_id || !carried.state.is_empty() {
                self.buffers.tracestate.clone_from(&carried.state);
            }
            self.move_to(context);
        }
        self.link_if_elsewhere(carried.event);
        if self.operation.is_none() {
            *self.operation = carried.operation;
            if let (Some(operation), true) = (&carried.operation, self.trace.recorded) {
                let mut attributes = Attributes::of_span(&mut self.buffers.attributes);
                attributes.text(attribute::OPERATION, operation.as_str().as_bytes());
            }
        }
    }

    fn link_if_elsewhere(&mut self, event: Option<TraceParent>) {
        if let Some(event) = event.filter(|event| event.trace_id != self.trace.trace_id) {
            link(&mut self.buffers.links, event.trace_id, event.span_id, event.flags);
        }
    }

    /// The exchange's span becomes a child of this context.
    fn move_to(&mut self, context: TraceParent) {
        let sampled = context.flags.sampled();
        let decision = self.tracer.config.sampler.decide(context.trace_id, Some(sampled));
        if decision.sampled != sampled {
            erase_probability(&mut self.buffers.tracestate);
        }
        self.trace.trace_id = context.trace_id;
        self.trace.flags = context.flags.with_sampled(decision.sampled);
        self.trace.reason = decision.reason;
        self.trace.recorded = decision.sampled && self.tracer.config.recording;
        self.trace.parent = Some(Parent { span_id: context.span_id, remote: true });
    }

    /// One of several messages: a span of its own.
    fn one_of_many(
        &mut self,
        carried: Carried,
        view: &MessageView<'_>,
        event: Option<&EventView<'_>>,
    ) -> Edits {
        self.name_after(event);
        let names = self.tracer.config.message_names;
        let pulls = matches!(self.messaging.what, What::Pull(_) | What::StreamingPull);
        let publishes = self.direction == Direction::Outbound && !pulls;
        let exchange = self.own();
        let mut links = Vec::new();
        let sampler = self.tracer.config.sampler;
        let producer = carried.producer();
        let (trace_id, parent, sampled, random) = match producer {
            // A publish belongs to the call's own trace where the call has one.
            Some(context) if !publishes || !self.had_context() => {
                let parent = Parent { span_id: context.span_id, remote: true };
                let decision = sampler.decide(context.trace_id, Some(context.flags.sampled()));
                (context.trace_id, Some(parent), decision.sampled, context.flags)
            }
            Some(_) | None if publishes || self.direction == Direction::Inbound => {
                let parent = Parent { span_id: exchange.span_id, remote: false };
                (exchange.trace_id, Some(parent), exchange.flags.sampled(), exchange.flags)
            }
            Some(_) | None => {
                let trace_id = self.ids.trace_id();
                let decision = sampler.decide(trace_id, None);
                (trace_id, None, decision.sampled, Flags::start(decision.sampled))
            }
        };
        let own = TraceParent { trace_id, span_id: self.ids.span_id(), flags: random.with_sampled(sampled) };
        if trace_id != exchange.trace_id && self.trace.recorded {
            link(&mut links, exchange.trace_id, exchange.span_id, exchange.flags);
        }
        if let Some(event) = carried.event.filter(|event| event.trace_id != trace_id) {
            link(&mut links, event.trace_id, event.span_id, event.flags);
        }
        if pulls && sampled && self.messaging.links < MESSAGE_LINKS_MAX {
            self.messaging.links += 1;
            link(&mut self.buffers.links, own.trace_id, own.span_id, own.flags);
        }
        let operation = self.operation.or(carried.operation);
        if sampled && self.tracer.config.recording {
            let (verb, kind) = self.messaging.verb(self.direction, names);
            let mut attributes = Vec::new();
            self.messaging.common(verb, kind, &mut attributes);
            let max = self.tracer.config.attribute_bytes_max;
            describe(view, self.now, max, &mut attributes);
            if let Some(event) = event {
                describe_event(event, max, &mut attributes);
            }
            if let Some(operation) = &operation {
                Attributes::of_span(&mut attributes)
                    .text(attribute::OPERATION, operation.as_str().as_bytes());
            }
            let kind = if pulls { Kind::Consumer } else { kind_of(self.direction) };
            let name = self.messaging.name(verb, names);
            let flags = own.flags;
            let span_id = own.span_id;
            self.messaging.pending.push(MessageSpan {
                trace_id,
                span_id,
                flags,
                parent,
                kind,
                name,
                attributes,
                links,
            });
        }
        let rule = self.tracer.config.event_context;
        if publishes {
            carried.published(own, operation.as_ref(), rule)
        } else {
            carried.delivered(own, rule)
        }
    }
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
