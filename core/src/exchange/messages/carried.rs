//! What a message carries, and what it shall say from here on. Never looks at the exchange that it belongs to.

use std::borrow::Cow;

use super::EventContext;
use crate::events::Edit;
use crate::events::cloudevent::EventView;
use crate::events::pubsub::MessageView;
use crate::names::TRACESTATE_KEY;
use crate::operation::Operation;
use crate::propagation::traceparent::{self, TraceParent};
use crate::propagation::tracestate;

/// The contexts that a message carries.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// The hop's: `googclient_traceparent`, written by us or by Google's clients.
    pub(super) hop: Option<TraceParent>,
    /// The event's own.
    pub(super) event: Option<TraceParent>,
    /// The event's own, as it stands.
    pub(super) event_text: Option<String>,
    pub(super) has_origin: bool,
    /// The event's `tracestate`, without our member.
    pub(super) state: Vec<u8>,
    /// Our member was in it.
    pub(super) held_own: bool,
    pub(super) operation: Option<Operation>,
    pub(super) form: Form,
}

/// Where a message keeps its context.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) enum Form {
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
pub(super) struct Edits {
    pub(super) attributes: Vec<Said>,
    pub(super) event: Vec<Said>,
}

/// A member and its value; `None` takes it out.
pub(super) type Said = (&'static str, Option<String>);

pub(super) const HOP: &str = "googclient_traceparent";

impl Carried {
    pub(super) fn of_message(view: &MessageView<'_>, inside: Option<&EventView<'_>>) -> Self {
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

    pub(super) fn of_event(event: &EventView<'_>, form: Form) -> Self {
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
    pub(super) fn producer(&self) -> Option<TraceParent> {
        self.hop.or(self.event)
    }

    /// What a published message shall say (ARCHITECTURE.md, "Messages").
    pub(super) fn published(
        &self,
        own: TraceParent,
        operation: Option<&Operation>,
        rule: EventContext,
    ) -> Edits {
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
    pub(super) fn delivered(&self, own: TraceParent, rule: EventContext) -> Edits {
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

pub(super) fn text_of(context: TraceParent) -> String {
    String::from_utf8_lossy(&traceparent::print(&context)).into_owned()
}

pub(super) fn borrowed(edits: &[Said]) -> Vec<Edit<'_>> {
    edits.iter().map(|(name, value)| Edit { name, value: value.as_deref() }).collect()
}
