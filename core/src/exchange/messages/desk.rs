//! Places an exchange and its messages in their traces while a body is read.

use super::carried::{Carried, Edits, Form, borrowed};
use super::message_span::{MessageSpan, describe, describe_event};
use super::{Messaging, What, hop_of, kind_of, short_name, view_of_head};
use crate::carrier::Carrier;
use crate::classify::Direction;
use crate::events::Untouched;
use crate::events::cloudevent::{self, EventView, Events};
use crate::events::detect::Resource;
use crate::events::pubsub::{InsideScratch, MessageEdit, MessageView};
use crate::events::pubsub_grpc::{self, SubscriptionRequest};
use crate::events::pubsub_json;
use crate::events::splice::Splices;
use crate::exchange::record::Buffers;
use crate::exchange::steer::Steer;
use crate::exchange::tracer::Tracer;
use crate::exchange::{Doubt, Exchange, Keeping, Now, Trace, Tracing};
use crate::ids::{Flags, Ids, TraceId};
use crate::limits::{MESSAGE_LINKS_MAX, PUBSUB_ATTRIBUTES_MAX};
use crate::metrics::Deed;
use crate::names::attribute;
use crate::operation::Operation;
use crate::otlp::{Attributes, Kind, Parent, link};
use crate::propagation::traceparent::TraceParent;
use crate::sampling::{Decision, erase_probability};

/// An exchange's messages while its bodies are read: what is needed to decide, in one place.
pub(super) struct Desk<'a, I> {
    tracer: &'a Tracer,
    direction: Direction,
    pub(super) messaging: &'a mut Messaging,
    trace: &'a mut Trace,
    steer: &'a mut Steer,
    operation: &'a mut Option<Operation>,
    buffers: &'a mut Buffers,
    may_be_kept: bool,
    /// The caller is a sidecar: the context in the headers is the producer's hop, and no broker's.
    from_sidecar: bool,
    ids: &'a mut I,
    now: Now,
}

impl<'a, I: Ids> Desk<'a, I> {
    pub(super) fn of(
        tracer: &'a Tracer,
        exchange: &'a mut Exchange,
        now: Now,
        ids: &'a mut I,
    ) -> Option<Self> {
        let Tracing::On(trace) = &mut exchange.tracing else { return None };
        Some(Self {
            tracer,
            direction: exchange.direction,
            messaging: exchange.messaging.as_deref_mut()?,
            trace,
            steer: &mut exchange.steer,
            operation: &mut exchange.operation,
            buffers: &mut exchange.buffers,
            may_be_kept: exchange.keeping != Keeping::Never,
            from_sidecar: exchange.caller_is_sidecar,
            ids,
            now,
        })
    }

    pub(super) fn had_context(&self) -> bool {
        self.messaging.plan.is_some_and(|plan| plan.had_context)
    }

    pub(super) fn untouched(&self, reason: Untouched) {
        self.tracer.count_untouched(reason.label());
    }

    pub(super) fn compressed(&self) -> Option<Vec<u8>> {
        self.tracer.count_untouched("compressed");
        None
    }

    pub(super) fn rest(&mut self, body: &[u8], form: pubsub_json::Form) -> Option<Vec<u8>> {
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
    pub(super) fn push(&mut self, body: &[u8]) -> Option<Vec<u8>> {
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

    pub(super) fn publish_request(&mut self, message: &[u8]) -> Option<Vec<u8>> {
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

    pub(super) fn pull_response(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let mut scratch = pubsub_grpc::Scratch::default();
        match pubsub_grpc::Messages::read(message, pubsub_grpc::Form::PullResponse, &mut scratch) {
            Ok(messages) => self.all(&messages, message),
            Err(reason) => {
                self.untouched(reason);
                None
            }
        }
    }

    pub(super) fn subscription(&mut self, message: &[u8], request: SubscriptionRequest) -> Option<Vec<u8>> {
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
    pub(super) fn events(
        &mut self,
        body: &[u8],
        hop: Option<TraceParent>,
        view: &MessageView<'_>,
    ) -> Option<Vec<u8>> {
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

    pub(super) fn applied(&self, splices: &Splices, body: &[u8]) -> Option<Vec<u8>> {
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
    pub(super) fn unwrapped(&mut self, carrier: &impl Carrier) -> Edits {
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
    pub(super) fn one(
        &mut self,
        mut carried: Carried,
        view: &MessageView<'_>,
        event: Option<&EventView<'_>>,
    ) -> Edits {
        self.messaging.single = true;
        self.name_after(event);
        if self.from_sidecar && !self.messaging.is_pubsub() && carried.hop.is_none() {
            let Trace { trace_id, flags, parent, doubt, .. } = *self.trace;
            let span_id = match doubt {
                Some(Doubt::Caller(span_id)) => Some(span_id),
                Some(Doubt::Inbound(..) | Doubt::Message) | None => parent.map(|parent| parent.span_id),
            };
            carried.hop = span_id.map(|span_id| TraceParent { trace_id, span_id, flags });
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
        self.tally(*self.operation, view);
        if self.trace.recorded || self.may_be_kept {
            let (max, out) = (self.tracer.config.attribute_bytes_max, &mut self.buffers.attributes);
            describe(view, self.now, max, out);
            if let Some(event) = event {
                describe_event(event, max, out);
            }
        }
        edits
    }

    /// For the metrics, which count whatever is sampled.
    fn tally(&mut self, operation: Option<Operation>, view: &MessageView<'_>) {
        let pulls = matches!(self.messaging.what, What::Pull(_) | What::StreamingPull);
        let deed = match (pulls, self.direction) {
            (true, _) => Deed::Received,
            (false, Direction::Outbound) => Deed::Sent,
            (false, Direction::Inbound) => Deed::Processed,
        };
        let lag = view.publish_time_unix_ns.map(|published| self.now.unix_nanos.saturating_sub(published));
        let pubsub = self.messaging.is_pubsub();
        let Messaging { destination, tallies, .. } = &mut *self.messaging;
        let one = self.tracer.message(deed, pubsub, destination, operation.as_ref(), lag);
        match tallies.iter_mut().find(|known| known.is_like(&one)) {
            Some(known) => known.count += 1,
            None => tallies.push(one),
        }
    }

    /// An event by itself has no destination: its type names the span.
    pub(super) fn name_after(&mut self, event: Option<&EventView<'_>>) {
        if !self.messaging.is_pubsub()
            && let Some(kind) = event.and_then(|event| event.event_type.as_ref())
        {
            self.messaging.destination = kind.chars().take(128).collect();
        }
    }

    pub(super) fn own(&self) -> TraceParent {
        let Trace { trace_id, span_id, flags, .. } = *self.trace;
        TraceParent { trace_id, span_id, flags }
    }

    /// A call without context belongs to its message's trace; one with context takes the client library's
    /// own span of the same trace for its parent.
    pub(super) fn place_publish(&mut self, carried: &Carried) {
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
    pub(super) fn place_delivery(&mut self, carried: &Carried) {
        let said_by_message = self.operation.is_none() && carried.operation.is_some();
        if said_by_message {
            *self.operation = carried.operation;
        }
        self.steer.find_rules(self.operation.as_ref(), &self.buffers.route);
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
        if let (Some(operation), true) = (&carried.operation, said_by_message)
            && (self.trace.recorded || self.may_be_kept)
        {
            let mut attributes = Attributes::of_span(&mut self.buffers.attributes);
            attributes.text(attribute::OPERATION, operation.as_str().as_bytes());
        }
    }

    pub(super) fn link_if_elsewhere(&mut self, event: Option<TraceParent>) {
        if let Some(event) = event.filter(|event| event.trace_id != self.trace.trace_id) {
            link(&mut self.buffers.links, event.trace_id, event.span_id, event.flags);
        }
    }

    fn decide(&self, trace_id: TraceId, parent_sampled: Option<bool>) -> Decision {
        self.tracer.afford(self.steer, self.steer.decide(trace_id, parent_sampled), self.now)
    }

    /// The exchange's span becomes a child of this context.
    pub(super) fn move_to(&mut self, context: TraceParent) {
        let sampled = context.flags.sampled();
        let decision = self.decide(context.trace_id, Some(sampled));
        if decision.sampled != sampled {
            erase_probability(&mut self.buffers.tracestate);
        }
        self.trace.trace_id = context.trace_id;
        self.trace.flags = context.flags.with_sampled(decision.sampled);
        self.trace.reason = decision.reason;
        self.trace.recorded = decision.sampled && self.tracer.config.recording;
        if self.trace.doubt == Some(Doubt::Caller(context.span_id)) {
            return; // it came by a call: the caller's sidecar can be told
        }
        self.trace.parent = Some(Parent { span_id: context.span_id, remote: true });
        self.trace.doubt = (!sampled).then_some(Doubt::Message);
    }

    /// Whether an event of a batch carries another trace than the call of the sidecar that forwards it: its hop
    /// is the call's own then.
    fn is_forwarded_by_sidecar(&self, event: TraceParent) -> bool {
        self.from_sidecar && !self.messaging.is_pubsub() && event.trace_id != self.trace.trace_id
    }

    /// One of several messages: a span of its own.
    pub(super) fn one_of_many(
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
        let producer = carried.producer();
        let (trace_id, parent, sampled, random) = match producer {
            // A publish belongs to the call's own trace where the call has one.
            Some(context)
                if (!publishes || !self.had_context()) && !self.is_forwarded_by_sidecar(context) =>
            {
                let parent = Parent { span_id: context.span_id, remote: true };
                let decision = self.decide(context.trace_id, Some(context.flags.sampled()));
                (context.trace_id, Some(parent), decision.sampled, context.flags)
            }
            Some(_) | None if publishes || self.direction == Direction::Inbound => {
                let parent = Parent { span_id: exchange.span_id, remote: false };
                (exchange.trace_id, Some(parent), exchange.flags.sampled(), exchange.flags)
            }
            Some(_) | None => {
                let trace_id = self.ids.trace_id();
                let decision = self.decide(trace_id, None);
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
        self.tally(operation, view);
        if sampled && self.tracer.config.recording {
            let (verb, kind) = self.messaging.verb(self.direction, names);
            let mut attributes = Vec::new();
            self.messaging.describe_operation(verb, kind, &mut attributes);
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
            self.tracer.owe(1, self.now);
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
