//! What was counted of contexts and events, as OTLP sums.

use super::tracer::Counters;
use crate::names::{attribute, metric};
use crate::otlp::metrics::Metrics;
use crate::prometheus::table;
use crate::route::Routes;

/// A copy of one moment.
#[derive(Debug)]
pub(super) struct Propagation {
    pub(super) counters: Counters,
    /// By route: exchanges with calls that lost the context, and that handed it on.
    pub(super) contexts: Vec<[u64; 2]>,
    pub(super) untouched: Vec<(&'static str, u64)>,
}

impl Propagation {
    pub(super) fn tell(&self, routes: &Routes, metrics: &mut Metrics) {
        for (which, name, metric) in [
            (1, metric::CONTEXT_FORWARDED, table::CONTEXT_FORWARDED),
            (0, metric::CONTEXT_DROPPED, table::CONTEXT_DROPPED),
        ] {
            for (number, counts) in (0_u16..).zip(&self.contexts) {
                let count = counts.get(which).copied().unwrap_or(0);
                metrics.labelled(attribute::HTTP_ROUTE, routes.name(number), count);
            }
            metrics.end(name, metric.help, "{exchange}");
        }
        for (header, count) in self.counters.invalid() {
            metrics.labelled("header", header, count);
        }
        metrics.end(metric::CONTEXT_INVALID, table::CONTEXT_INVALID.help, "{header}");
        for (reason, count) in &self.untouched {
            metrics.labelled("reason", reason, *count);
        }
        metrics.end(metric::EVENTS_UNTOUCHED, table::EVENTS_UNTOUCHED.help, "{body}");
        let Counters { restored, calls_without_context, calls_of_other_traces, operations_ignored, .. } =
            self.counters;
        for (count, name, metric, unit) in [
            (restored, metric::CONTEXT_RESTORED, table::CONTEXT_RESTORED, "{call}"),
            (calls_without_context, metric::CALLS_WITHOUT_CONTEXT, table::CALLS_WITHOUT_CONTEXT, "{call}"),
            (calls_of_other_traces, metric::CALLS_OF_OTHER_TRACES, table::CALLS_OF_OTHER_TRACES, "{call}"),
            (operations_ignored, metric::OPERATIONS_IGNORED, table::OPERATIONS_IGNORED, "{name}"),
        ] {
            metrics.labelled("", "", count);
            metrics.end(name, metric.help, unit);
        }
    }
}
