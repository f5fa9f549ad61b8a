//! The sidecar's own counters, and `/metrics` put together: ours, the exchanges' and the spans' books.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use throughline_core::batch::{Books, Dropped};
use throughline_core::exchange::Tracer;
use throughline_core::keep::KeepReason;
use throughline_core::metrics::prometheus_value;
use throughline_core::mode::Mode;
use throughline_core::names::VERSION;

use crate::host::now;

/// Which listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    /// Requests to the application.
    Inbound,
    /// Requests by the application.
    Outbound,
}

impl Side {
    pub(crate) const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $label:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum $name { $($variant),* }
        impl $name {
            const LABELS: &'static [&'static str] = &[$($label),*];
        }
    };
}

labels! {
    /// What a connection turned out to speak.
    Protocol { Http1 = "http/1", Http2 = "http/2", Opaque = "opaque" }
}

labels! {
    /// Why a request was refused before it became an exchange.
    Refusal {
        Host = "host",
        TransferEncoding = "transfer_encoding",
        ContentLength = "content_length",
        Framing = "framing",
        Target = "target",
        TooManyFields = "header_fields",
        OwnPort = "own_port",
        Method = "method",
    }
}

labels! {
    /// Why a connection was closed by us.
    Reaped { SlowHead = "slow_head", Stalled = "stalled", Idle = "idle" }
}

labels! {
    /// How an export went.
    Exported { Ok = "ok", Partial = "partial", Refused = "refused", Failed = "failed", Retried = "retried" }
}

labels! {
    /// How a CONNECT went.
    Connect { Ok = "ok", Refused = "refused", Failed = "failed" }
}

/// A counter per label.
#[derive(Debug)]
pub(crate) struct Family<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Family<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl<const N: usize> Family<N> {
    fn add(&self, at: usize, count: u64) {
        if let Some(counter) = self.0.get(at) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    fn values(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// Counters of one process.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    connections: [Family<3>; 2],
    connections_open: Family<2>,
    refused: Family<8>,
    reaped: Family<3>,
    exports: [Family<5>; 2],
    connects: Family<3>,
    tunnel_bytes: AtomicU64,
    access_lines_dropped: AtomicU64,
}

impl Stats {
    pub(crate) fn connection(&self, side: Side, protocol: Protocol) {
        if let Some(family) = self.connections.get(side as usize) {
            family.add(protocol as usize, 1);
        }
    }

    pub(crate) fn opened(&self, side: Side) {
        self.connections_open.add(side as usize, 1);
    }

    pub(crate) fn closed(&self, side: Side) {
        self.connections_open.add(side as usize, u64::MAX); // one less, in wrapping arithmetic
    }

    pub(crate) fn refused(&self, refusal: Refusal) {
        self.refused.add(refusal as usize, 1);
    }

    pub(crate) fn reaped(&self, reaped: Reaped) {
        self.reaped.add(reaped as usize, 1);
    }

    pub(crate) fn exported(&self, signal: throughline_core::settings::Signal, how: Exported) {
        if let Some(family) = self.exports.get(signal as usize) {
            family.add(how as usize, 1);
        }
    }

    pub(crate) fn connect(&self, how: Connect) {
        self.connects.add(how as usize, 1);
    }

    pub(crate) fn tunnelled(&self, bytes: u64) {
        self.tunnel_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn access_line_dropped(&self) {
        self.access_lines_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything as Prometheus text.
    pub(crate) fn prometheus(&self, tracer: &Tracer, books: Books) -> String {
        let mut text = Text(String::with_capacity(16 * 1024));
        text.head("throughline_build_info", "gauge", "Version of this sidecar.");
        text.value("throughline_build_info", &[("version", VERSION)], 1);
        spans(&mut text, books);
        sampling(&mut text, tracer);
        exchanges(&mut text, tracer);
        self.connections(&mut text);
        self.exports(&mut text);
        let mut text = text.0;
        tracer.prometheus(&mut text);
        text
    }

    fn connections(&self, text: &mut Text) {
        text.head("throughline_connections_total", "counter", "Connections accepted, by what they speak.");
        for (side, family) in Side::ALL.into_iter().zip(&self.connections) {
            for (protocol, count) in Protocol::LABELS.iter().zip(family.values()) {
                let labels = [("side", side.as_str()), ("protocol", protocol)];
                text.value("throughline_connections_total", &labels, count);
            }
        }
        text.head("throughline_connections_open", "gauge", "Connections open.");
        for (side, count) in Side::ALL.into_iter().zip(self.connections_open.values()) {
            text.value("throughline_connections_open", &[("side", side.as_str())], count);
        }
        let name = "throughline_requests_refused_total";
        text.head(name, "counter", "Requests answered by the sidecar itself: illegal, or not allowed.");
        text.family(name, "reason", Refusal::LABELS, &self.refused);
        let name = "throughline_connections_reaped_total";
        text.head(name, "counter", "Connections closed by the sidecar.");
        text.family(name, "reason", Reaped::LABELS, &self.reaped);
        let name = "throughline_connects_total";
        text.head(name, "counter", "CONNECT requests on the outbound side.");
        text.family(name, "result", Connect::LABELS, &self.connects);
        text.single(
            "throughline_tunnel_bytes_total",
            "counter",
            "Bytes that passed untouched because they are no cleartext HTTP, both ways.",
            self.tunnel_bytes.load(Ordering::Relaxed),
        );
        text.single(
            "throughline_access_log_dropped_total",
            "counter",
            "Lines of the access log that were dropped because standard output was too slow.",
            self.access_lines_dropped.load(Ordering::Relaxed),
        );
    }

    fn exports(&self, text: &mut Text) {
        text.head("throughline_exports_total", "counter", "Exports by signal and how they went.");
        for (signal, family) in ["traces", "metrics"].into_iter().zip(&self.exports) {
            for (result, count) in Exported::LABELS.iter().zip(family.values()) {
                text.value("throughline_exports_total", &[("signal", signal), ("result", result)], count);
            }
        }
    }
}

/// The books: created = exported + held + dropped, in one reading.
fn spans(text: &mut Text, books: Books) {
    text.single("throughline_spans_created_total", "counter", "Spans finished.", books.created);
    text.single(
        "throughline_spans_exported_total",
        "counter",
        "Spans that a collector took.",
        books.exported,
    );
    text.single("throughline_spans_held", "gauge", "Spans waiting or under way.", books.held);
    text.head("throughline_spans_dropped_total", "counter", "Spans lost, by reason.");
    for (reason, count) in Dropped::ALL.into_iter().zip(books.dropped) {
        text.value("throughline_spans_dropped_total", &[("reason", reason.as_str())], count);
    }
}

/// What decides at this moment.
fn sampling(text: &mut Text, tracer: &Tracer) {
    let (name, mode) = ("throughline_tracing_mode", tracer.mode());
    text.head(name, "gauge", "1 for the mode that holds.");
    for known in Mode::ALL {
        text.value(name, &[("mode", known.as_str())], u64::from(known == mode));
    }
    let (name, rate) = ("throughline_sampling_base_rate", tracer.base_rate().probability());
    text.head(name, "gauge", "Share of new traces that the sampler takes.");
    let _ = writeln!(text.0, "{name} {rate}");
    let (rate, raised) = tracer.rate(now());
    let name = "throughline_sampling_rate";
    text.head(name, "gauge", "Share of new traces that is sampled at this moment.");
    let _ = writeln!(text.0, "{name} {}", rate.probability());
    let (name, help) = ("throughline_adaptive_active", "1 while too much is slow or fails.");
    text.single(name, "gauge", help, u64::from(raised));
    let (name, help) =
        ("throughline_over_budget_total", "Exchanges that the bound of spans a second left out.");
    text.single(name, "counter", help, tracer.counters().over_budget);
    let (name, help) = ("throughline_on_demand_rules_active", "On-demand rules that have not ended.");
    text.single(name, "gauge", help, tracer.rules_active(now()) as u64);
    let (name, help) = ("throughline_exchanges_recorded_total", "Exchanges that became spans.");
    text.single(name, "counter", help, tracer.counters().recorded);
}

fn exchanges(text: &mut Text, tracer: &Tracer) {
    let counters = tracer.counters();
    text.head("throughline_context_invalid_total", "counter", "Propagation headers that were unusable.");
    for (header, count) in [
        ("traceparent", counters.invalid_traceparent),
        ("tracestate", counters.invalid_tracestate),
        ("b3", counters.invalid_b3),
        ("uber-trace-id", counters.invalid_jaeger),
        ("x-trace-id", counters.invalid_trace_id),
    ] {
        text.value("throughline_context_invalid_total", &[("header", header)], count);
    }
    for (name, help, count) in [
        (
            "throughline_operations_ignored_total",
            "Operation names that break the rule and were left alone.",
            counters.operations_ignored,
        ),
        (
            "throughline_context_restored_total",
            "Outbound requests on which the sidecar restored what the application did not forward.",
            counters.restored,
        ),
        (
            "throughline_calls_without_context_total",
            "Outbound requests without context made while inbound ones were in flight.",
            counters.calls_without_context,
        ),
        (
            "throughline_in_flight_full_total",
            "Inbound exchanges that found no place among those in flight.",
            counters.in_flight_full,
        ),
        ("throughline_probes_total", "Requests of kubelet's probes, which are not traced.", counters.probes),
    ] {
        text.single(name, "counter", help, count);
    }
    let name = "throughline_exchanges_kept_total";
    text.head(name, "counter", "Exchanges kept although the head said no, by reason.");
    for (reason, count) in KeepReason::ALL.into_iter().zip(counters.kept) {
        text.value(name, &[("reason", reason.as_str())], count);
    }
    text.head(
        "throughline_events_untouched_total",
        "counter",
        "Bodies and messages that went on as they were although they may hold events, by reason.",
    );
    for (reason, count) in tracer.untouched() {
        text.value("throughline_events_untouched_total", &[("reason", reason)], count);
    }
    text.single("throughline_in_flight", "gauge", "Inbound exchanges in flight.", tracer.in_flight() as u64);
    text.head(
        "throughline_context_dropped_total",
        "counter",
        "Inbound exchanges whose outbound requests carried no context, by route.",
    );
    tracer.context_dropped(|route, count| {
        text.value("throughline_context_dropped_total", &[("route", route)], count);
    });
}

/// Prometheus' text format, put together line by line.
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", prometheus_value(value))).collect();
        let _ = writeln!(self.0, "{name}{{{}}} {value}", labels.join(","));
    }

    fn family<const N: usize>(&mut self, name: &str, label: &str, labels: &[&str], counts: &Family<N>) {
        for (value, count) in labels.iter().zip(counts.values()) {
            self.value(name, &[(label, value)], count);
        }
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }
}
