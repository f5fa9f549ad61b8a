//! What an exchange is decided by: the state of the process as it was when the exchange began, so that a change
//! at run time never splits one. Decides by trace id, parent and rules alone.

use super::Now;
use crate::control::Rules;
use crate::ids::TraceId;
use crate::mode::Mode;
use crate::operation::Operation;
use crate::sampling::{Decision, Ratio, Reason, Sampler};

/// The state that decides an exchange.
#[derive(Clone, Debug)]
pub(super) struct Steer {
    pub(super) mode: Mode,
    pub(super) sampler: Sampler,
    /// On-demand rules, when there are any.
    rules: Option<Rules>,
    /// One bit for each rule: whether the request carries the header that it is about.
    carried: u128,
    unix_seconds: u64,
    /// The raised rate, while it is raised.
    adaptive: Option<Ratio>,
    /// The highest rate of the rules that are about this exchange.
    on_demand: Option<Ratio>,
}

impl Steer {
    pub(super) fn new(
        mode: Mode,
        sampler: Sampler,
        rules: Option<Rules>,
        adaptive: Option<Ratio>,
        now: Now,
    ) -> Self {
        let unix_seconds = now.unix_nanos / 1_000_000_000;
        Self { mode, sampler, rules, carried: 0, unix_seconds, adaptive, on_demand: None }
    }

    /// Remembers which of the headers that rules are about a request carries.
    pub(super) fn look_at<'a>(&mut self, header: impl Fn(&str) -> Option<&'a [u8]>) {
        let Some(rules) = &self.rules else { return };
        for (bit, rule) in rules.iter().enumerate() {
            self.carried |= u128::from(rule.finds(&header)) << bit;
        }
    }

    /// Finds the rules that are about an exchange of this operation and route.
    pub(super) fn find_rules(&mut self, operation: Option<&Operation>, route: &[u8]) {
        let Some(rules) = &self.rules else { return };
        let operation = operation.map(Operation::as_str);
        let about = rules.iter().enumerate().filter(|(bit, rule)| {
            let carried = self.carried >> bit & 1 == 1;
            carried && self.unix_seconds < rule.expires_unix_seconds && rule.is_about(operation, route)
        });
        let rates = about.map(|(_, rule)| rule.rate);
        self.on_demand = rates.max_by(|a, b| a.probability().total_cmp(&b.probability()));
    }

    /// Whether the trace is recorded from this exchange on, and why. A rule overrides a parent's no; what adapts
    /// decides roots alone (rule 11).
    pub(super) fn decide(&self, trace_id: TraceId, parent_sampled: Option<bool>) -> Decision {
        match (self.mode, parent_sampled) {
            (Mode::Full, Some(true)) => Decision { sampled: true, reason: Reason::Parent },
            (Mode::Full, Some(false) | None) => Decision { sampled: true, reason: Reason::Full },
            (Mode::Hybrid | Mode::Off | Mode::SystemOnly, _) => {
                let decision = self.sampler.decide(trace_id, parent_sampled);
                let by_rule = || self.on_demand.is_some_and(|rate| rate.samples(trace_id));
                let by_state =
                    || parent_sampled.is_none() && self.adaptive.is_some_and(|rate| rate.samples(trace_id));
                if decision.sampled {
                    decision
                } else if by_rule() {
                    Decision { sampled: true, reason: Reason::OnDemand }
                } else if by_state() {
                    Decision { sampled: true, reason: Reason::Adaptive }
                } else {
                    decision
                }
            }
        }
    }
}
