//! The span of one message, kept until its exchange ends, and the attributes that describe a message.

use crate::batch::SpanSink;
use crate::events::cloudevent::EventView;
use crate::events::pubsub::MessageView;
use crate::exchange::Now;
use crate::ids::{Flags, SpanId, TraceId};
use crate::names::attribute;
use crate::otlp::{Attributes, Kind, Parent, Span, Status};

/// A message's own span, until its exchange ends.
#[derive(Debug)]
pub(super) struct MessageSpan {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    pub(super) flags: Flags,
    pub(super) parent: Option<Parent>,
    pub(super) kind: Kind,
    pub(super) name: [String; 2],
    pub(super) attributes: Vec<u8>,
    pub(super) links: Vec<u8>,
}

impl MessageSpan {
    pub(super) fn hand_out(&self, start: u64, end: u64, status: Status, sink: &mut impl SpanSink, now: Now) {
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

/// Attributes of one message.
pub(super) fn describe(view: &MessageView<'_>, now: Now, text_bytes_max: Option<usize>, out: &mut Vec<u8>) {
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

pub(super) fn describe_event(event: &EventView<'_>, text_bytes_max: Option<usize>, out: &mut Vec<u8>) {
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
