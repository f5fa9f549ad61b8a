//! Moments of a request on its way to its upstream, noted where they happen and read by the exchange. Only in
//! `full` mode; otherwise nothing is noted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use throughline_core::exchange::{Exchange, Mark, Now};

use crate::host::now;

/// Travels with the request as one of its extensions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Moments(Arc<[AtomicU64; 3]>);

/// The moments that forwarding knows, in the order of their places.
const MARKS: [Mark; 3] = [Mark::Connecting, Mark::Connected, Mark::RequestSent];

impl Moments {
    /// This moment, the first time.
    pub(crate) fn note(&self, mark: Mark) {
        let place = MARKS.iter().position(|known| *known == mark).and_then(|at| self.0.get(at));
        if let Some(place) = place {
            // Zero is "not yet"; the first nanosecond of the process is no moment of a request.
            let _ = place.compare_exchange(0, now().mono_nanos, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Tells the exchange what was noted.
    pub(crate) fn tell(&self, exchange: &mut Exchange) {
        for (mark, place) in MARKS.into_iter().zip(self.0.iter()) {
            let mono_nanos = place.load(Ordering::Relaxed);
            if mono_nanos != 0 {
                exchange.mark(mark, Now { unix_nanos: 0, mono_nanos });
            }
        }
    }
}
