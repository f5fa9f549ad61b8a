//! Inbound exchanges across workers: Envoy serves the inbound request on one worker and the application's calls
//! on another, each with a VM of its own. Announcements stand in shared data, in a fixed number of places; where two
//! exchanges in flight want one place, the newer has it, and the older one is not restored from.

use throughline_core::exchange::{Exchange, Lent, Tracer};
use throughline_core::ids::SpanId;

use crate::host::{self, Headers};

/// Places for announcements. One holds 2 KiB at the most, and nothing once its exchange is over.
const PLACES: u64 = 65_536;
/// How many workers serve; each adds itself with its first stream.
const WORKERS: &str = "throughline.workers";

fn place(span_id: SpanId) -> String {
    format!("throughline.inbound.{}", u64::from_be_bytes(*span_id.bytes()) % PLACES)
}

/// Where a worker says that it kept a call of an inbound exchange of another one.
fn kept_place(span_id: SpanId) -> String {
    format!("throughline.kept.{}", u64::from_be_bytes(*span_id.bytes()) % PLACES)
}

/// Whether there are other workers than this one.
#[derive(Debug, Default)]
pub(crate) struct Crossing {
    joined: std::cell::Cell<bool>,
    alone: std::cell::Cell<bool>,
    /// How often it was looked since this worker joined.
    looks: std::cell::Cell<u32>,
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

    /// Tells the others of an inbound exchange.
    pub(crate) fn announce(&self, exchange: &Exchange) {
        if self.alone.get() {
            return;
        }
        if let Some((span_id, told)) = exchange.announcement() {
            host::share(&place(span_id), &told);
        }
    }

    /// Takes it back: a call that comes later belongs to nothing that is in flight.
    pub(crate) fn withdraw(&self, exchange: &Exchange) {
        if self.alone.get() {
            return;
        }
        if let Some((_, span_id)) = exchange.ids() {
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
