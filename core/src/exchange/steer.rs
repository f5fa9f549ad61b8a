//! What an exchange is decided by: the state of the process as it was when the exchange began, so that a change
//! at run time never splits one. Decides by trace id and parent alone.

use crate::ids::TraceId;
use crate::mode::Mode;
use crate::sampling::{Decision, Reason, Sampler};

/// The state that decides an exchange.
#[derive(Clone, Debug)]
pub(super) struct Steer {
    pub(super) mode: Mode,
    pub(super) sampler: Sampler,
}

impl Steer {
    /// Whether the trace is recorded from this exchange on, and why.
    pub(super) fn decide(&self, trace_id: TraceId, parent_sampled: Option<bool>) -> Decision {
        match (self.mode, parent_sampled) {
            (Mode::Full, Some(true)) => Decision { sampled: true, reason: Reason::Parent },
            (Mode::Full, Some(false) | None) => Decision { sampled: true, reason: Reason::Full },
            (Mode::Hybrid | Mode::Off | Mode::SystemOnly, _) => self.sampler.decide(trace_id, parent_sampled),
        }
    }
}
