//! Inbound exchanges that are told to the other tracers of the same application: a host with a tracer for each
//! worker (Envoy) serves the inbound request on one of them and the application's calls on another. What is
//! told has a bound, and what was told is believed only for its own trace.

use std::sync::Arc;

use super::extract::Seen;
use super::tracer::Tracer;
use super::{Exchange, Tracing};
use crate::carrier::Carrier;
use crate::ids::{Flags, SpanId, TraceId};
use crate::in_flight::{Inbound, Luggage, Place};
use crate::limits::CROSSING_BYTES_MAX;
use crate::names::TRACESTATE_KEY;
use crate::operation::Operation;
use crate::propagation::{traceparent, tracestate};

/// An inbound exchange of another worker that stands among this tracer's own until it is given back, when the call
/// that it was lent to is over.
#[derive(Debug)]
#[must_use = "what is lent is given back when the call is over"]
pub struct Lent {
    place: Place,
    trace_id: TraceId,
    span_id: SpanId,
}

impl Lent {
    /// The exchange.
    #[must_use]
    pub fn ids(&self) -> (TraceId, SpanId) {
        (self.trace_id, self.span_id)
    }
}

/// The inbound exchange that an outbound call names: by our own member of `tracestate`, or because the application
/// copied the `traceparent` that it got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asked {
    trace_id: TraceId,
    /// The exchange.
    pub span_id: SpanId,
}

impl Exchange {
    /// An inbound exchange that the application may carry on, and what the other workers should know of it.
    #[must_use]
    pub fn announcement(&self) -> Option<(SpanId, Vec<u8>)> {
        let Tracing::On(trace) = self.tracing else { return None };
        trace.in_flight?;
        let luggage = &self.buffers;
        let operation = self.operation.as_ref().map_or("", Operation::as_str).as_bytes();
        let parts = [operation, &luggage.baggage, &luggage.tracestate];
        let mut told = Vec::with_capacity(64);
        told.extend_from_slice(trace.trace_id.bytes());
        told.extend_from_slice(trace.span_id.bytes());
        told.push(trace.flags.byte());
        for part in parts {
            let part = if told.len() + part.len() > CROSSING_BYTES_MAX { &[] } else { part };
            told.extend_from_slice(&u16::try_from(part.len()).ok()?.to_be_bytes());
            told.extend_from_slice(part);
        }
        Some((trace.span_id, told))
    }

    /// Whether it matters to this exchange that a call of its application's on another worker was kept.
    #[must_use]
    pub fn asks_whether_kept(&self) -> bool {
        let Tracing::On(trace) = self.tracing else { return false };
        trace.in_flight.is_some() && self.may_be_kept(&trace)
    }
}

impl Tracer {
    /// The inbound exchange that an outbound call belongs to, when this tracer does not know it.
    #[must_use]
    pub fn asks(&self, carrier: &impl Carrier) -> Option<Asked> {
        let seen = Seen::of(carrier);
        let context = traceparent::parse(seen.traceparent()?).ok()?;
        let named = seen.tracestate.iter().find_map(|line| tracestate::find(line, TRACESTATE_KEY));
        let span_id = named.and_then(SpanId::parse).unwrap_or(context.span_id);
        let known = self.knows(context.trace_id, span_id);
        (!known).then_some(Asked { trace_id: context.trace_id, span_id })
    }

    /// Puts an exchange of another worker among those in flight, for the call that asked for it.
    pub fn lend(&self, asked: Asked, told: &[u8]) -> Option<Lent> {
        let inbound = read(told)?;
        let Inbound { trace_id, span_id, .. } = inbound;
        if (trace_id, span_id) != (asked.trace_id, asked.span_id) {
            return None; // another one stands in its place
        }
        self.insert_lent(inbound).map(|place| Lent { place, trace_id, span_id })
    }

    /// Whether the call that it was lent to was kept, so that the other worker should know (rule 4).
    #[must_use]
    pub fn keeps(&self, lent: &Lent) -> bool {
        self.is_kept(lent.place)
    }

    /// Takes it away again.
    pub fn give_back(&self, lent: Lent) {
        self.remove_lent(lent.place);
    }

    /// A call of this inbound exchange's application was kept on another worker.
    pub fn told_kept(&self, exchange: &Exchange) {
        if let Tracing::On(trace) = exchange.tracing
            && let Some(place) = trace.in_flight
        {
            self.mark_kept(place, trace.span_id);
        }
    }
}

fn read(told: &[u8]) -> Option<Inbound> {
    let (trace_id, rest) = told.split_first_chunk::<16>()?;
    let (span_id, rest) = rest.split_first_chunk::<8>()?;
    let (flags, rest) = rest.split_first()?;
    let (operation, rest) = part(rest)?;
    let (baggage, rest) = part(rest)?;
    let (tracestate, rest) = part(rest)?;
    let luggage = Luggage { baggage: baggage.to_vec(), tracestate: tracestate.to_vec() };
    rest.is_empty().then_some(())?;
    Some(Inbound {
        trace_id: TraceId::from_bytes(*trace_id)?,
        span_id: SpanId::from_bytes(*span_id)?,
        flags: Flags::from_byte(*flags),
        operation: Operation::parse(operation),
        luggage: (!luggage.baggage.is_empty() || !luggage.tracestate.is_empty()).then(|| Arc::new(luggage)),
        calls_with_context: 0,
        calls_without_context: 0,
        kept: false,
    })
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anything_that_is_no_announcement_is_no_exchange() {
        assert!(read(b"").is_none());
        assert!(read(&[0; 31]).is_none(), "ids of zero");
        assert!(read(&[1; 31]).is_none(), "lengths beyond the end");
        let mut told = vec![1; 25];
        told.extend_from_slice(&[0; 6]);
        assert!(read(&told).is_some());
        told.push(0);
        assert!(read(&told).is_none(), "a byte too many");
    }
}
