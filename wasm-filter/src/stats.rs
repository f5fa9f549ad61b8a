//! Counters in Envoy's own statistics. Workers add what is new since they last did, so the sum is that of all of
//! them. A label is written into the name (`throughline_spans_dropped.reason.queue_full`); the bootstrap's
//! `stats_tags` take it out again.

use throughline_core::batch::{Books, Dropped};
use throughline_core::exchange::Tracer;
use throughline_core::keep::KeepReason;

use crate::host::Metric;

/// Counters of the host itself, beside those of `core`.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    /// Exchanges on which somebody wrote another context over ours.
    pub(crate) overwritten: u64,
    /// Exports, by how they went.
    pub(crate) exports: [u64; Exported::LABELS.len()],
    /// Exchanges that were under way when the head of a request could not be held.
    pub(crate) released: u64,
}

/// How an export went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exported {
    /// The collector took all.
    Ok,
    /// The collector took a part.
    Partial,
    /// The collector refused.
    Refused,
    /// Its time was over.
    Failed,
    /// It is tried again.
    Retried,
}

impl Exported {
    const LABELS: [&'static str; 5] = ["ok", "partial", "refused", "failed", "retried"];
}

impl Counts {
    pub(crate) fn exported(&mut self, how: Exported) {
        if let Some(count) = self.exports.get_mut(how as usize) {
            *count += 1;
        }
    }
}

/// What this worker has told so far.
#[derive(Default, Debug)]
pub(crate) struct Told {
    metrics: Vec<(String, Metric, u64)>,
}

impl Told {
    /// Tells what is new. Everything in one go, so that the books balance in whatever is read between.
    pub(crate) fn tell(&mut self, tracer: &Tracer, books: Books, counts: Counts) {
        self.counter("throughline_spans_created", books.created);
        self.counter("throughline_spans_exported", books.exported);
        self.gauge("throughline_spans_held", books.held);
        for (reason, count) in Dropped::ALL.iter().zip(books.dropped) {
            self.labelled("throughline_spans_dropped", "reason", reason.as_str(), count);
        }
        for (result, count) in Exported::LABELS.iter().zip(counts.exports) {
            self.labelled("throughline_exports", "result", result, count);
        }
        self.rare("throughline_context_overwritten", counts.overwritten);
        self.rare("throughline_heads_released", counts.released);
        let core = tracer.counters();
        for (header, count) in core.invalid() {
            self.labelled("throughline_context_invalid", "header", header, count);
        }
        self.rare("throughline_operations_ignored", core.operations_ignored);
        self.rare("throughline_context_restored", core.restored);
        self.rare("throughline_calls_without_context", core.calls_without_context);
        self.rare("throughline_calls_of_other_traces", core.calls_of_other_traces);
        self.rare("throughline_in_flight_full", core.in_flight_full);
        self.rare("throughline_probes", core.probes);
        for (reason, count) in KeepReason::ALL.into_iter().zip(core.kept) {
            self.labelled("throughline_exchanges_kept", "reason", reason.as_str(), count);
        }
        for (reason, count) in tracer.untouched() {
            self.labelled("throughline_events_untouched", "reason", reason, count);
        }
        tracer.contexts(|route, dropped, forwarded| {
            self.labelled("throughline_context_dropped", "route", route, dropped);
            self.labelled("throughline_context_forwarded", "route", route, forwarded);
        });
    }

    /// A counter that is there from the beginning.
    fn counter(&mut self, name: &str, value: u64) {
        self.set(name, value, Metric::counter);
    }

    fn gauge(&mut self, name: &str, value: u64) {
        self.set(name, value, Metric::gauge);
    }

    /// A counter that appears with its first count.
    fn rare(&mut self, name: &str, value: u64) {
        if value > 0 {
            self.counter(name, value);
        }
    }

    fn labelled(&mut self, name: &str, label: &str, text: &str, value: u64) {
        if value > 0 {
            self.counter(&format!("{name}.{label}.{text}"), value);
        }
    }

    fn set(&mut self, name: &str, value: u64, define: impl FnOnce(&str) -> Option<Metric>) {
        if !self.metrics.iter().any(|(known, ..)| known == name) {
            let Some(metric) = define(name) else { return };
            self.metrics.push((name.to_owned(), metric, 0));
        }
        let Some((_, metric, told)) = self.metrics.iter_mut().find(|(known, ..)| known == name) else {
            return;
        };
        if *told != value && metric.add(value.wrapping_sub(*told).cast_signed()) {
            *told = value;
        }
    }
}
