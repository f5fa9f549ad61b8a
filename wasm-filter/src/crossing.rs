//! Inbound exchanges across workers: Envoy serves the inbound request on one worker and the application's calls
//! on another, each with a VM of its own. Announcements stand in shared data, in a fixed number of places, each named
//! by the last bits of the exchange's span id: a worker draws its ids so that no two of its exchanges in flight, and
//! none of another worker's, stand in one place.

use std::collections::HashSet;

use throughline_core::exchange::{Exchange, Lent, Tracer};
use throughline_core::ids::{Ids, RandomIds, SpanId, TraceId};

use crate::host::{self, Headers};

/// Places for announcements. One holds 2 KiB at the most, and nothing once its exchange is over.
const PLACES: u64 = 65_536;
/// How many workers serve; each adds itself with its first stream.
const WORKERS: &str = "throughline.workers";

/// Workers that have places of their own; further ones share.
const SHARES: u64 = 16;
/// How often an id is drawn anew because its place is taken. Beyond that many in flight, one may go without.
const DRAWS: usize = 64;

fn number(span_id: SpanId) -> u64 {
    u64::from_be_bytes(*span_id.bytes())
}

fn place(span_id: SpanId) -> String {
    format!("throughline.inbound.{}", number(span_id) % PLACES)
}

/// Where a worker says that it kept a call of an inbound exchange of another one.
fn kept_place(span_id: SpanId) -> String {
    format!("throughline.kept.{}", number(span_id) % PLACES)
}

/// Whether there are other workers than this one.
#[derive(Debug, Default)]
pub(crate) struct Crossing {
    joined: std::cell::Cell<bool>,
    alone: std::cell::Cell<bool>,
    /// How often it was looked since this worker joined.
    looks: std::cell::Cell<u32>,
    /// Which of the shares is this worker's.
    share: std::cell::Cell<u64>,
    /// Places of its exchanges in flight.
    taken: std::cell::RefCell<HashSet<u64>>,
}

/// Ids whose place is free.
pub(crate) struct PlacedIds<'a> {
    crossing: &'a Crossing,
    ids: &'a mut RandomIds,
}

impl Ids for PlacedIds<'_> {
    fn trace_id(&mut self) -> TraceId {
        self.ids.trace_id()
    }

    fn span_id(&mut self) -> SpanId {
        let mut drawn = self.ids.span_id();
        for _ in 0..DRAWS {
            let own = number(drawn) / SHARES * SHARES + self.crossing.share.get();
            drawn = SpanId::from_bytes(own.to_be_bytes()).unwrap_or(drawn);
            if !self.crossing.taken.borrow().contains(&(own % PLACES)) {
                break;
            }
            drawn = self.ids.span_id();
        }
        drawn
    }
}

/// Looks until a worker without others takes itself for the only one. The application's first calls may go out on a
/// worker that has not served anything yet.
const LOOKS_BEFORE_ALONE: u32 = 40;

/// How often a worker tries to add itself while others do the same.
const TRIES: usize = 100;

impl Crossing {
    /// Called with each stream: the first one adds this worker.
    pub(crate) fn join(&self) {
        if self.joined.replace(true) {
            return;
        }
        for _ in 0..TRIES {
            let (count, version) = match host::shared(WORKERS) {
                Some((count, version)) => (count, Some(version)),
                None => (Vec::new(), None),
            };
            let workers = count.first().copied().unwrap_or(0).saturating_add(1);
            if host::share_if(WORKERS, &[workers], version) {
                self.share.set(u64::from(workers) % SHARES);
                break;
            }
        }
    }

    /// Looks whether others came since. Called with each tick.
    pub(crate) fn look(&self) {
        if !self.joined.get() || (!self.alone.get() && self.looks.get() > LOOKS_BEFORE_ALONE) {
            return; // nobody leaves again
        }
        self.looks.set(self.looks.get().saturating_add(1));
        let workers = host::shared(WORKERS).and_then(|(count, _)| count.first().copied());
        let only = workers.is_none_or(|count| count <= 1);
        self.alone.set(only && self.looks.get() >= LOOKS_BEFORE_ALONE);
    }

    /// Ids for an exchange.
    pub(crate) fn ids<'a>(&'a self, ids: &'a mut RandomIds) -> PlacedIds<'a> {
        PlacedIds { crossing: self, ids }
    }

    /// Tells the others of an inbound exchange.
    pub(crate) fn announce(&self, exchange: &Exchange) {
        if self.alone.get() {
            return;
        }
        if let Some((span_id, told)) = exchange.announcement() {
            self.taken.borrow_mut().insert(number(span_id) % PLACES);
            host::share(&place(span_id), &told);
        }
    }

    /// Takes it back: a call that comes later belongs to nothing that is in flight.
    pub(crate) fn withdraw(&self, exchange: &Exchange) {
        if self.alone.get() {
            return;
        }
        if let Some((_, span_id)) = exchange.ids() {
            self.taken.borrow_mut().remove(&(number(span_id) % PLACES));
            host::share(&place(span_id), &[]);
        }
    }

    /// The inbound exchange of another worker that an outbound call belongs to.
    pub(crate) fn borrow(&self, tracer: &Tracer, headers: &Headers) -> Option<Lent> {
        if self.alone.get() {
            return None;
        }
        let asked = tracer.asks(headers)?;
        let (told, _) = host::shared(&place(asked.span_id))?;
        tracer.lend(asked, &told)
    }

    /// Before an outbound call is judged: an inbound exchange that is over by now can't be kept any more, and is no
    /// parent.
    pub(crate) fn is_over(&self, lent: &Lent) -> bool {
        let (_, span_id) = lent.ids();
        let told = host::shared(&place(span_id));
        told.is_none_or(|(told, _)| told.get(16..24) != Some(span_id.bytes().as_slice()))
    }

    /// Tells the worker of an inbound exchange that a call of its was kept (rule 4).
    pub(crate) fn tell_kept(&self, lent: &Lent) {
        let (_, span_id) = lent.ids();
        host::share(&kept_place(span_id), span_id.bytes());
    }

    /// Before an inbound exchange is judged: whether another worker kept a call of its.
    pub(crate) fn hear(&self, tracer: &Tracer, exchange: &Exchange) {
        if self.alone.get() || !exchange.asks_whether_kept() {
            return;
        }
        let Some((_, span_id)) = exchange.ids() else { return };
        let told = host::shared(&kept_place(span_id));
        if told.is_some_and(|(told, _)| told == span_id.bytes()) {
            tracer.told_kept(exchange);
        }
    }
}
