//! The inbound exchanges that the application is working on: what an outbound call is held against, to find
//! the exchange that it belongs to. Bounded; an exchange beyond the bound is served all the same, only
//! nothing is restored from it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::hash::Seeded;
use crate::ids::{Flags, SpanId, TraceId};
use crate::limits::{IN_FLIGHT_MAX, IN_FLIGHT_PER_TRACE_MAX};
use crate::operation::Operation;

/// What an inbound exchange leaves behind for its outbound calls.
#[derive(Clone, Debug)]
pub(crate) struct Inbound {
    pub(crate) trace_id: TraceId,
    pub(crate) span_id: SpanId,
    pub(crate) flags: Flags,
    pub(crate) operation: Option<Operation>,
    /// Whether an exchange that it waits for was kept.
    pub(crate) kept: bool,
    /// Baggage and `tracestate` as they came, when there were any.
    pub(crate) luggage: Option<Arc<Luggage>>,
    /// Outbound calls that carried this exchange's trace.
    pub(crate) calls_with_context: u32,
    /// Outbound calls without any context, made while this exchange was a candidate.
    pub(crate) calls_without_context: u32,
}

/// Lists in normal form, restored on an outbound call that lacks them.
#[derive(Debug, Default)]
pub(crate) struct Luggage {
    pub(crate) baggage: Vec<u8>,
    pub(crate) tracestate: Vec<u8>,
}

const NOWHERE: u32 = u32::MAX;

#[derive(Debug)]
struct Slot {
    inbound: Option<Inbound>,
    newer: u32,
    older: u32,
    newer_of_trace: u32,
    older_of_trace: u32,
}

const EMPTY: Slot =
    Slot { inbound: None, newer: NOWHERE, older: NOWHERE, newer_of_trace: NOWHERE, older_of_trace: NOWHERE };

/// Where an exchange stands in the table; given back when it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place(u32);

/// The table: by trace, and from the newest to the oldest.
#[derive(Debug)]
pub(crate) struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
    newest_of_trace: HashMap<TraceId, u32, Seeded>,
    newest: u32,
}

impl InFlight {
    pub(crate) fn new(seed: u64) -> Self {
        let newest_of_trace = HashMap::with_hasher(Seeded(seed));
        Self { slots: Vec::new(), free: Vec::new(), newest_of_trace, newest: NOWHERE }
    }

    /// Remembers an exchange; `None` when the table is full.
    pub(crate) fn insert(&mut self, inbound: Inbound) -> Option<Place> {
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.slots.len() < IN_FLIGHT_MAX => {
                self.slots.push(EMPTY);
                u32::try_from(self.slots.len() - 1).ok()?
            }
            None => return None,
        };
        let older_of_trace = self.newest_of_trace.insert(inbound.trace_id, at).unwrap_or(NOWHERE);
        if let Some(slot) = self.slot(older_of_trace) {
            slot.newer_of_trace = at;
        }
        let older = std::mem::replace(&mut self.newest, at);
        if let Some(slot) = self.slot(older) {
            slot.newer = at;
        }
        *self.slot(at)? = Slot { inbound: Some(inbound), older, older_of_trace, ..EMPTY };
        Some(Place(at))
    }

    /// Forgets an exchange and hands back what was remembered of it.
    pub(crate) fn remove(&mut self, place: Place) -> Option<Inbound> {
        let Place(at) = place;
        let slot = self.slot(at)?;
        let inbound = slot.inbound.take()?;
        let Slot { newer, older, newer_of_trace, older_of_trace, .. } = *slot;
        match self.slot(newer) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
        if let Some(slot) = self.slot(older) {
            slot.newer = newer;
        }
        match self.slot(newer_of_trace) {
            Some(slot) => slot.older_of_trace = older_of_trace,
            None if older_of_trace == NOWHERE => drop(self.newest_of_trace.remove(&inbound.trace_id)),
            None => drop(self.newest_of_trace.insert(inbound.trace_id, older_of_trace)),
        }
        if let Some(slot) = self.slot(older_of_trace) {
            slot.newer_of_trace = newer_of_trace;
        }
        self.free.push(at);
        Some(inbound)
    }

    /// The exchange of this trace that an outbound call belongs to: the one that `span` names, else the
    /// newest.
    pub(crate) fn find(&mut self, trace_id: TraceId, span: Option<SpanId>) -> Option<(Place, &mut Inbound)> {
        let newest = *self.newest_of_trace.get(&trace_id)?;
        let mut at = newest;
        for _ in 0..IN_FLIGHT_PER_TRACE_MAX {
            let Some(slot) = self.slots.get(at as usize) else { break };
            if span.is_some() && slot.inbound.as_ref().map(|inbound| inbound.span_id) == span {
                return Some((Place(at), self.slot(at)?.inbound.as_mut()?));
            }
            at = slot.older_of_trace;
        }
        Some((Place(newest), self.slot(newest)?.inbound.as_mut()?))
    }

    /// Says that an exchange which this one waits for is kept; false when it is over already.
    pub(crate) fn keep(&mut self, place: Place, span_id: SpanId) -> bool {
        let Place(at) = place;
        let inbound = self.slot(at).and_then(|slot| slot.inbound.as_mut());
        // The place may have been given to another one meanwhile.
        let Some(inbound) = inbound.filter(|inbound| inbound.span_id == span_id) else { return false };
        inbound.kept = true;
        true
    }

    /// Whether an exchange that this one waits for was kept so far.
    pub(crate) fn is_kept(&self, place: Place) -> bool {
        let Place(at) = place;
        let slot = self.slots.get(at as usize);
        slot.and_then(|slot| slot.inbound.as_ref()).is_some_and(|inbound| inbound.kept)
    }

    /// Visits the newest exchanges, `most` of them.
    pub(crate) fn newest(&mut self, most: usize, mut visit: impl FnMut(&mut Inbound)) {
        let mut at = self.newest;
        for _ in 0..most {
            let Some(slot) = self.slot(at) else { return };
            let older = slot.older;
            if let Some(inbound) = slot.inbound.as_mut() {
                visit(inbound);
            }
            at = older;
        }
    }

    /// How many exchanges are in flight.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn slot(&mut self, at: u32) -> Option<&mut Slot> {
        self.slots.get_mut(at as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbound(trace: u8, span: u8) -> Inbound {
        Inbound {
            trace_id: TraceId::from_bytes([trace; 16]).unwrap(),
            span_id: SpanId::from_bytes([span; 8]).unwrap(),
            flags: Flags::start(true),
            operation: None,
            kept: false,
            luggage: None,
            calls_with_context: 0,
            calls_without_context: 0,
        }
    }

    fn found(table: &mut InFlight, trace: u8, span: Option<u8>) -> Option<u8> {
        let span = span.and_then(|span| SpanId::from_bytes([span; 8]));
        table
            .find(TraceId::from_bytes([trace; 16]).unwrap(), span)
            .map(|(_, inbound)| inbound.span_id.bytes()[0])
    }

    fn newest(table: &mut InFlight, most: usize) -> Vec<u8> {
        let mut seen = Vec::new();
        table.newest(most, |inbound| seen.push(inbound.span_id.bytes()[0]));
        seen
    }

    #[test]
    fn a_call_is_matched_by_the_span_it_names_else_by_the_newest_of_its_trace() {
        let mut table = InFlight::new(7);
        let places = [(1, 11), (2, 21), (1, 12), (1, 13)].map(|(t, s)| table.insert(inbound(t, s)).unwrap());
        assert_eq!(found(&mut table, 1, Some(11)), Some(11));
        assert_eq!(found(&mut table, 1, Some(99)), Some(13));
        assert_eq!(found(&mut table, 1, None), Some(13));
        assert_eq!(found(&mut table, 3, None), None);
        assert_eq!(newest(&mut table, 3), [13, 12, 21]);
        table.remove(places[2]).unwrap();
        assert_eq!(found(&mut table, 1, Some(11)), Some(11));
        assert_eq!(newest(&mut table, 9), [13, 21, 11]);
        table.remove(places[3]).unwrap();
        assert_eq!(found(&mut table, 1, None), Some(11));
        table.remove(places[0]).unwrap();
        assert_eq!((found(&mut table, 1, None), table.len()), (None, 1));
        assert!(table.remove(places[0]).is_none(), "a place is given back once");
        assert_eq!(newest(&mut table, 9), [21]);
    }

    #[test]
    fn whatever_the_order_of_endings_the_table_knows_what_a_plain_list_knows() {
        let mut table = InFlight::new(7);
        let mut list: Vec<(u8, u8, Place)> = Vec::new();
        let mut draw = 1_u32;
        for span in (1..=200).cycle().take(5000) {
            draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let drawn = (draw >> 16) as usize;
            if list.len() > 30 || (drawn.is_multiple_of(2) && !list.is_empty()) {
                let (_, span, place) = list.remove(drawn / 2 % list.len());
                assert_eq!(table.remove(place).unwrap().span_id.bytes()[0], span);
            } else {
                let trace = (drawn / 2 % 3) as u8 + 1;
                list.push((trace, span, table.insert(inbound(trace, span)).unwrap()));
            }
            let of = |trace| list.iter().rev().filter(move |(of, ..)| *of == trace).map(|(_, span, _)| *span);
            for trace in 1..=3 {
                assert_eq!(found(&mut table, trace, None), of(trace).next());
                assert!(of(trace).all(|span| found(&mut table, trace, Some(span)) == Some(span)));
            }
            assert_eq!(
                newest(&mut table, 99),
                list.iter().rev().map(|(_, span, _)| *span).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn only_the_exchange_itself_is_kept_and_not_the_next_one_in_its_place() {
        let mut table = InFlight::new(7);
        let place = table.insert(inbound(1, 11)).unwrap();
        let (span, other) = (SpanId::from_bytes([11; 8]).unwrap(), SpanId::from_bytes([12; 8]).unwrap());
        assert!(!table.keep(place, other) && !table.is_kept(place));
        assert!(table.keep(place, span) && table.is_kept(place));
        assert!(table.remove(place).unwrap().kept);
        assert!(!table.keep(place, span), "it is over");
        assert_eq!(table.insert(inbound(1, 12)), Some(place));
        assert!(!table.keep(place, span) && !table.is_kept(place));
    }

    #[test]
    fn the_table_has_a_bound_and_places_are_used_again() {
        let mut table = InFlight::new(7);
        let mut places: Vec<_> = (0..IN_FLIGHT_MAX).filter_map(|_| table.insert(inbound(1, 1))).collect();
        assert_eq!(places.len(), IN_FLIGHT_MAX);
        assert!(table.insert(inbound(2, 2)).is_none());
        for place in places.drain(..).rev() {
            table.remove(place).unwrap();
        }
        assert_eq!(table.len(), 0);
        assert!(table.insert(inbound(2, 2)).is_some());
    }
}
