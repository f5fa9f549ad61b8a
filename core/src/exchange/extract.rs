//! One pass over a request's headers: what of them matters to us, and which context they carry. Changes
//! nothing.

use crate::carrier::Carrier;
use crate::ids::{Flags, SpanId, TraceId};
use crate::limits::HEADER_LINES_MAX;
use crate::names::header;
use crate::operation::Operation;
use crate::propagation::{b3, baggage, jaeger, traceparent, tracestate};

/// The formats that contexts are read from and written in (`OTEL_PROPAGATORS`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Propagators {
    /// W3C `traceparent` and `tracestate`.
    pub tracecontext: bool,
    /// W3C `baggage`.
    pub baggage: bool,
    /// B3 in one header.
    pub b3: bool,
    /// B3 in several headers.
    pub b3multi: bool,
    /// `uber-trace-id`.
    pub jaeger: bool,
}

/// The lines of a list header, in order.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lines<'a> {
    lines: [&'a [u8]; HEADER_LINES_MAX],
    len: usize,
}

impl<'a> Lines<'a> {
    fn push(&mut self, line: &'a [u8]) {
        if let Some(slot) = self.lines.get_mut(self.len) {
            *slot = line;
        }
        self.len += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there were more lines than are kept.
    pub(super) fn over_limit(&self) -> bool {
        self.len > HEADER_LINES_MAX
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.lines.iter().copied().take(self.len)
    }
}

/// The fields of a request that matter to us.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen<'a> {
    traceparent: Option<&'a [u8]>,
    several_traceparents: bool,
    pub(super) tracestate: Lines<'a>,
    pub(super) baggage: Lines<'a>,
    pub(super) operation: Option<&'a [u8]>,
    trace_id: Option<&'a [u8]>,
    pub(super) b3: Option<&'a [u8]>,
    pub(super) b3_multi: B3Multi<'a>,
    pub(super) jaeger: Option<&'a [u8]>,
    pub(super) peer: Option<&'a [u8]>,
    /// `throughline-keep`, which belongs on answers only.
    pub(super) keep: bool,
    pub(super) user_agent: Option<&'a [u8]>,
    pub(super) content_type: Option<&'a [u8]>,
    /// A field that only events and pushes have.
    of_message: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct B3Multi<'a> {
    trace_id: Option<&'a [u8]>,
    span_id: Option<&'a [u8]>,
    sampled: Option<&'a [u8]>,
    flags: Option<&'a [u8]>,
}

impl B3Multi<'_> {
    pub(super) fn is_there(&self) -> bool {
        self.trace_id.or(self.span_id).or(self.sampled).or(self.flags).is_some()
    }
}

/// The context that a request carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Context {
    pub(super) trace_id: TraceId,
    /// None when the caller named a trace but no span (`X-Trace-Id`).
    pub(super) span_id: Option<SpanId>,
    pub(super) flags: Flags,
    /// The caller's decision, none where it left it to us.
    pub(super) sampled: Option<bool>,
    /// B3's debug flag, kept when the context goes on in that format.
    pub(super) debug: bool,
    /// Whether it is `traceparent`, whose `tracestate` then counts.
    pub(super) w3c: bool,
}

/// What reading the context gave, and which headers were unusable.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Reading {
    pub(super) context: Option<Context>,
    /// A decision without a context (B3's lone `0`, `1`, `d`).
    pub(super) hint: Option<bool>,
    pub(super) invalid: Invalids,
}

/// Headers that were there but unusable.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Invalids {
    pub(super) traceparent: bool,
    pub(super) b3: bool,
    pub(super) jaeger: bool,
    pub(super) trace_id: bool,
}

impl<'a> Seen<'a> {
    /// Looks at each field once.
    pub(super) fn of(carrier: &'a impl Carrier) -> Self {
        let mut seen = Self::default();
        carrier.for_each(&mut |name, value| seen.field(name, value));
        seen
    }

    /// Whether the head may be that of a message; most are not, and need no further look.
    pub(super) fn may_carry_messages(&self, method: &str) -> bool {
        method == "POST" || self.content_type.is_some() || self.of_message
    }

    /// The one `traceparent`; several are none (W3C Trace Context §3.2).
    pub(super) fn traceparent(&self) -> Option<&'a [u8]> {
        self.traceparent.filter(|_| !self.several_traceparents)
    }

    pub(super) fn has_traceparent(&self) -> bool {
        self.traceparent.is_some()
    }

    fn field(&mut self, name: &str, value: &'a [u8]) {
        match name {
            traceparent::HEADER => {
                self.several_traceparents = self.traceparent.replace(value).is_some();
            }
            tracestate::HEADER => self.tracestate.push(value),
            baggage::HEADER => self.baggage.push(value),
            header::OPERATION => self.operation = self.operation.or(Some(value)),
            header::TRACE_ID => self.trace_id = Some(value),
            header::PEER => self.peer = Some(value),
            header::KEEP => self.keep = true,
            "user-agent" => self.user_agent = Some(value),
            "content-type" => self.content_type = Some(value),
            b3::SINGLE => self.b3 = Some(value),
            b3::TRACE_ID => self.b3_multi.trace_id = Some(value),
            b3::SPAN_ID => self.b3_multi.span_id = Some(value),
            b3::SAMPLED => self.b3_multi.sampled = Some(value),
            b3::FLAGS => self.b3_multi.flags = Some(value),
            jaeger::HEADER => self.jaeger = Some(value),
            "ce-specversion" | "x-goog-pubsub-subscription-name" => self.of_message = true,
            _ => {}
        }
    }

    /// The operation by its own header: `Err` when the header is there but unusable.
    pub(super) fn operation(&self) -> Result<Option<Operation>, ()> {
        match self.operation {
            None => Ok(None),
            Some(value) => Operation::parse(value).map(Some).ok_or(()),
        }
    }

    /// The context by the configured formats, W3C's first; the first valid one counts.
    pub(super) fn context(&self, propagators: Propagators) -> Reading {
        let mut reading = Reading::default();
        if propagators.tracecontext {
            reading.context = self.w3c(&mut reading.invalid);
        }
        if reading.context.is_none() && (propagators.b3 || propagators.b3multi) {
            self.b3(&mut reading);
        }
        if reading.context.is_none() && propagators.jaeger {
            reading.context = self.jaeger(&mut reading.invalid);
        }
        // By itself the trace id is the poorest of contexts: only where nothing else was sent, not even
        // something unusable.
        if reading.context.is_none() && self.traceparent.is_none() {
            reading.context = self.by_trace_id(&mut reading.invalid);
        }
        reading
    }

    fn w3c(&self, invalid: &mut Invalids) -> Option<Context> {
        let parsed = traceparent::parse(self.traceparent?).ok().filter(|_| !self.several_traceparents);
        invalid.traceparent = parsed.is_none();
        let parsed = parsed?;
        Some(Context {
            trace_id: parsed.trace_id,
            span_id: Some(parsed.span_id),
            flags: parsed.flags,
            sampled: Some(parsed.flags.sampled()),
            debug: false,
            w3c: true,
        })
    }

    fn b3(&self, reading: &mut Reading) {
        let B3Multi { trace_id, span_id, sampled, flags } = self.b3_multi;
        let single = self.b3.map(b3::parse_single);
        reading.invalid.b3 = matches!(single, Some(Err(_)));
        let parsed = match single {
            Some(Ok(single)) => Some(single),
            Some(Err(_)) | None => b3::parse_multi(trace_id, span_id, sampled, flags).unwrap_or_else(|_| {
                reading.invalid.b3 = true;
                None
            }),
        };
        let Some(b3::B3 { context, sampling }) = parsed else { return };
        let (sampled, debug) = match sampling {
            b3::Sampling::Deferred => (None, false),
            b3::Sampling::Deny => (Some(false), false),
            b3::Sampling::Accept => (Some(true), false),
            b3::Sampling::Debug => (Some(true), true),
        };
        reading.hint = sampled;
        reading.context = context.map(|(trace_id, span_id)| Context {
            trace_id,
            span_id: Some(span_id),
            flags: Flags::default().with_sampled(sampled == Some(true)),
            sampled,
            debug,
            w3c: false,
        });
    }

    fn jaeger(&self, invalid: &mut Invalids) -> Option<Context> {
        let parsed = jaeger::parse(self.jaeger?).ok();
        invalid.jaeger = parsed.is_none();
        let parsed = parsed?;
        Some(Context {
            trace_id: parsed.trace_id,
            span_id: Some(parsed.span_id),
            flags: Flags::default().with_sampled(parsed.sampled),
            sampled: Some(parsed.sampled),
            debug: parsed.debug,
            w3c: false,
        })
    }

    fn by_trace_id(&self, invalid: &mut Invalids) -> Option<Context> {
        let trace_id = TraceId::parse(self.trace_id?.trim_ascii());
        invalid.trace_id = trace_id.is_none();
        Some(Context {
            trace_id: trace_id?,
            span_id: None,
            flags: Flags::default(),
            sampled: None,
            debug: false,
            w3c: false,
        })
    }
}
