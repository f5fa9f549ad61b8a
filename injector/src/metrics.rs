//! The injector's own numbers, in Prometheus' text format. One table names them all. Must never have a label that
//! a pod's author can fill at will: namespaces are capped, reasons are ours.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Name, kind and help of every metric.
pub const TABLE: &[(&str, &str, &str)] = &[
    (
        "throughline_injector_admissions_total",
        "counter",
        "Reviews answered, by decision (injected, skipped, baffled), reason and mode.",
    ),
    ("throughline_injector_admission_seconds", "histogram", "Time from the head of a review to its answer."),
    ("throughline_injector_reviews_in_flight", "gauge", "Reviews that are being answered."),
    (
        "throughline_injector_connections_refused_total",
        "counter",
        "Connections that were closed before a request, by reason.",
    ),
    (
        "throughline_injector_kubernetes_requests_total",
        "counter",
        "Calls of the Kubernetes API, by method and status (0: none came).",
    ),
    (
        "throughline_injector_pods_missing_sidecar",
        "gauge",
        "Running pods that should have a sidecar and have none, by namespace. Of the leader alone.",
    ),
    (
        "throughline_injector_pods_injected",
        "gauge",
        "Running pods with a sidecar of ours, by namespace. Of the leader alone.",
    ),
    ("throughline_injector_reconciles_total", "counter", "Rounds through the pods, by result."),
    ("throughline_injector_leader", "gauge", "1 where this replica reconciles."),
    (
        "throughline_injector_certificate_steps_total",
        "counter",
        "Steps in the life of the certificates, by step.",
    ),
    ("throughline_injector_certificate_errors_total", "counter", "Looks at the certificates that failed."),
    (
        "throughline_injector_certificate_expiry_timestamp_seconds",
        "gauge",
        "When the certificate that is served ends.",
    ),
    ("throughline_injector_authority_expiry_timestamp_seconds", "gauge", "When the newest authority ends."),
    (
        "throughline_injector_ca_bundle_repairs_total",
        "counter",
        "Times that caBundle was not what it must be, and was written.",
    ),
    (
        "throughline_injector_events_total",
        "counter",
        "Events written to Kubernetes, by result (written, failed, dropped).",
    ),
    (
        "throughline_injector_istio_objects_total",
        "counter",
        "Istio's objects applied and removed, by result.",
    ),
];

/// Bounds of the histogram, in seconds.
const BOUNDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0];
/// Series of one metric. Beyond that the label `_other` takes all.
const SERIES_MAX: usize = 1000;

#[derive(Debug, Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<(&'static str, String), f64>,
    admission: Histogram,
}

/// All numbers of a process.
#[derive(Debug, Default)]
pub struct Metrics {
    state: Mutex<State>,
}

fn labelled(labels: &[(&str, &str)]) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let all: Vec<String> =
        labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

impl Metrics {
    fn with(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Counts one.
    pub fn count(&self, name: &'static str, labels: &[(&str, &str)]) {
        self.with(|state| *state.values.entry((name, labelled(labels))).or_insert(0.0) += 1.0);
    }

    /// Adds to a gauge.
    pub fn add(&self, name: &'static str, by: f64) {
        self.with(|state| *state.values.entry((name, String::new())).or_insert(0.0) += by);
    }

    /// Sets a gauge.
    pub fn set(&self, name: &'static str, value: f64) {
        self.with(|state| {
            state.values.insert((name, String::new()), value);
        });
    }

    /// Sets a gauge for each namespace, and forgets those that are not named any more.
    pub fn set_namespaces(&self, name: &'static str, values: &BTreeMap<String, u64>) {
        self.with(|state| {
            state.values.retain(|(known, _), _| *known != name);
            for (index, (namespace, value)) in values.iter().enumerate() {
                let namespace = if index < SERIES_MAX { namespace.as_str() } else { "_other" };
                let cell = state.values.entry((name, labelled(&[("namespace", namespace)]))).or_insert(0.0);
                #[expect(clippy::cast_precision_loss, reason = "pods of a cluster")]
                let value = *value as f64;
                *cell += value;
            }
        });
    }

    /// Counts an admission's time.
    pub fn admitted_in(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        self.with(|state| {
            let histogram = &mut state.admission;
            for (bucket, bound) in histogram.buckets.iter_mut().zip(BOUNDS) {
                *bucket += u64::from(seconds <= bound);
            }
            histogram.count += 1;
            histogram.sum += seconds;
        });
    }

    /// The page.
    pub fn page(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut page = String::new();
        for (name, kind, help) in TABLE {
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
            if *kind == "histogram" {
                let histogram = &state.admission;
                for (bucket, bound) in histogram.buckets.iter().zip(BOUNDS) {
                    let _ = writeln!(page, "{name}_bucket{{le=\"{bound}\"}} {bucket}");
                }
                let _ = writeln!(page, "{name}_bucket{{le=\"+Inf\"}} {}", histogram.count);
                let _ = writeln!(page, "{name}_sum {}\n{name}_count {}", histogram.sum, histogram.count);
            }
            for ((_, labels), value) in state.values.iter().filter(|((known, _), _)| known == name) {
                let _ = writeln!(page, "{name}{labels} {value}");
            }
        }
        page
    }
}

/// The table as Markdown, for docs/injector.md.
pub fn reference() -> String {
    let mut page = String::from("| name | kind | what it counts |\n|---|---|---|\n");
    for (name, kind, help) in TABLE {
        let _ = writeln!(page, "| `{name}` | {kind} | {help} |");
    }
    page
}
