//! The sidecar's own counters, and `/metrics` put together: ours, the exchanges' and the spans' books.

use std::sync::atomic::{AtomicU64, Ordering};

use throughline_core::batch::{Books, Dropped};
use throughline_core::browser::{Asked, Body, Counters, Told};
use throughline_core::exchange::Tracer;
use throughline_core::keep::KeepReason;
use throughline_core::mode::Mode;
use throughline_core::names::{VERSION, attribute};
use throughline_core::otlp::Kind;
use throughline_core::prometheus::table::{self, Metric};
use throughline_core::prometheus::{Form, Text};
use throughline_core::settings::Settings;

use crate::capture::Names;
use crate::host::now;
use crate::process;
use crate::scrape::Scrape;
use crate::sidecar::Sidecar;

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

labels! {
    /// What became of a redirected connection.
    Captured { Ok = "ok", Refused = "refused", Failed = "failed" }
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
    captured: [Family<3>; 2],
    /// Names that TLS connections asked for.
    pub(crate) tls_names: Names,
    maybe_twice: AtomicU64,
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

    /// Whether one side has as many connections open as it may have.
    pub(crate) fn is_full(&self, most: u64) -> bool {
        self.connections_open.values().any(|open| open >= most)
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

    /// So many spans are sent again although the collector may have them.
    pub(crate) fn maybe_twice(&self, spans: usize) {
        self.maybe_twice.fetch_add(spans as u64, Ordering::Relaxed);
    }

    pub(crate) fn connect(&self, how: Connect) {
        self.connects.add(how as usize, 1);
    }

    pub(crate) fn captured(&self, side: Side, how: Captured) {
        if let Some(family) = self.captured.get(side as usize) {
            family.add(how as usize, 1);
        }
    }

    pub(crate) fn tunnelled(&self, bytes: u64) {
        self.tunnel_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn access_line_dropped(&self) {
        self.access_lines_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything as Prometheus has it: what fits one piece, and the exchanges' numbers behind it.
    pub(crate) fn scrape(sidecar: &Sidecar, form: Form) -> Scrape {
        let Sidecar { settings, tracer, stats, .. } = sidecar;
        let mut text = Text::new(form);
        text.head(&table::BUILD);
        text.value(&table::BUILD, &[VERSION], 1);
        target(&mut text, settings);
        spans(&mut text, sidecar.books());
        text.single(&table::SPANS_MAYBE_TWICE, stats.maybe_twice.load(Ordering::Relaxed));
        sampling(&mut text, tracer);
        exchanges(&mut text, tracer);
        browsers(&mut text, sidecar.browser.as_ref().map(|browser| browser.pages().counters()));
        stats.connections(&mut text, settings.connections_max);
        text.head(&table::CAPTURE_LEASE);
        for (family, held) in sidecar.lease.held() {
            text.value(&table::CAPTURE_LEASE, &[family], u64::from(held));
        }
        stats.exports(&mut text);
        process::write(&mut text);
        Scrape::new(text, tracer.numbers(settings.graph_metrics))
    }

    fn connections(&self, text: &mut Text, most: u64) {
        text.head(&table::CONNECTIONS);
        for (side, family) in Side::ALL.into_iter().zip(&self.connections) {
            for (protocol, count) in Protocol::LABELS.iter().zip(family.values()) {
                text.value(&table::CONNECTIONS, &[side.as_str(), protocol], count);
            }
        }
        text.head(&table::CONNECTIONS_OPEN);
        for (side, count) in Side::ALL.into_iter().zip(self.connections_open.values()) {
            text.value(&table::CONNECTIONS_OPEN, &[side.as_str()], count);
        }
        text.head(&table::CONNECTIONS_MAX);
        for side in Side::ALL {
            text.value(&table::CONNECTIONS_MAX, &[side.as_str()], most);
        }
        family(text, &table::CONNECTIONS_REAPED, Reaped::LABELS, &self.reaped);
        family(text, &table::REQUESTS_REFUSED, Refusal::LABELS, &self.refused);
        family(text, &table::CONNECTS, Connect::LABELS, &self.connects);
        text.head(&table::CAPTURED);
        for (side, family) in Side::ALL.into_iter().zip(&self.captured) {
            for (result, count) in Captured::LABELS.iter().zip(family.values()) {
                text.value(&table::CAPTURED, &[side.as_str(), result], count);
            }
        }
        text.head(&table::TLS_CONNECTIONS);
        for (side, name, count) in self.tls_names.counts() {
            text.value(&table::TLS_CONNECTIONS, &[side.as_str(), &name], count);
        }
        text.single(&table::TUNNEL_BYTES, self.tunnel_bytes.load(Ordering::Relaxed));
        text.single(&table::ACCESS_LOG_DROPPED, self.access_lines_dropped.load(Ordering::Relaxed));
    }

    fn exports(&self, text: &mut Text) {
        text.head(&table::EXPORTS);
        for (signal, family) in ["traces", "metrics"].into_iter().zip(&self.exports) {
            for (result, count) in Exported::LABELS.iter().zip(family.values()) {
                text.value(&table::EXPORTS, &[signal, result], count);
            }
        }
    }
}

/// A series for each label.
fn family<const N: usize>(text: &mut Text, metric: &Metric, labels: &[&str], counts: &Family<N>) {
    text.head(metric);
    for (label, count) in labels.iter().zip(counts.values()) {
        text.value(metric, &[label], count);
    }
}

/// Who this is, as the spans say it.
fn target(text: &mut Text, settings: &Settings) {
    let resource = settings.resource();
    let of = |key: &str| resource.iter().find(|(name, _)| *name == key).map_or("", |(_, value)| *value);
    text.head(&table::TARGET);
    let keys = [attribute::SERVICE_NAME, attribute::SERVICE_NAMESPACE, attribute::SERVICE_INSTANCE_ID];
    text.value(&table::TARGET, &keys.map(of), 1);
}

/// The books: created = exported + held + dropped, in one reading.
fn spans(text: &mut Text, books: Books) {
    text.head(&table::SPANS_CREATED);
    for (kind, count) in Kind::ALL.into_iter().zip(books.created_by_kind) {
        text.value(&table::SPANS_CREATED, &[kind.as_str()], count);
    }
    text.single(&table::SPANS_EXPORTED, books.exported);
    text.single(&table::SPANS_HELD, books.held);
    text.head(&table::SPANS_DROPPED);
    for (reason, count) in Dropped::ALL.into_iter().zip(books.dropped) {
        text.value(&table::SPANS_DROPPED, &[reason.as_str()], count);
    }
}

/// What browsers sent; without them the page has the names alone.
fn browsers(text: &mut Text, counters: Option<Counters>) {
    let counters = counters.as_ref();
    let mut by_result = |metric: &Metric, labels: Vec<&str>, counts: Option<&[u64]>| {
        text.head(metric);
        for (label, count) in labels.into_iter().zip(counts.unwrap_or_default()) {
            text.value(metric, &[label], *count);
        }
    };
    let asked = Asked::ALL.iter().map(|asked| asked.as_str());
    by_result(&table::PAGES_TRACES, asked.collect(), counters.map(|counters| &counters.asked[..]));
    let bodies = Body::ALL.iter().map(|body| body.as_str());
    by_result(&table::PAGES_BODIES, bodies.collect(), counters.map(|counters| &counters.bodies[..]));
    let told = Told::ALL.iter().map(|told| told.as_str());
    by_result(&table::PAGES_SPANS, told.collect(), counters.map(|counters| &counters.told[..]));
    text.single(&table::PAGES_ATTRIBUTES_DROPPED, counters.map_or(0, |counters| counters.attributes_dropped));
    text.single(&table::PAGES_TRACES_HELD, counters.map_or(0, |counters| counters.traces_held));
}

/// What decides at this moment.
fn sampling(text: &mut Text, tracer: &Tracer) {
    let counters = tracer.counters();
    for (metric, mode) in [(&table::MODE, tracer.mode()), (&table::MODE_CONFIGURED, tracer.mode_configured())]
    {
        text.head(metric);
        for known in Mode::ALL {
            text.value(metric, &[known.as_str()], u64::from(known == mode));
        }
    }
    let (rate, raised) = tracer.rate(now());
    for (metric, rate) in [(&table::BASE_RATE, tracer.base_rate()), (&table::RATE, rate)] {
        text.head(metric);
        text.fraction(metric, &[], rate.probability());
    }
    text.single(&table::ADAPTIVE, u64::from(raised));
    text.single(&table::RULES, tracer.rules_active(now()) as u64);
    text.single(&table::RECORDED, counters.recorded);
    text.head(&table::KEPT);
    for (reason, count) in KeepReason::ALL.into_iter().zip(counters.kept) {
        text.value(&table::KEPT, &[reason.as_str()], count);
    }
    text.single(&table::OVER_BUDGET, counters.over_budget);
    text.single(&table::PROBES, counters.probes);
}

fn exchanges(text: &mut Text, tracer: &Tracer) {
    let counters = tracer.counters();
    let mut contexts = Vec::new();
    // A route has both or none, so that a share can be made of them.
    tracer.contexts(|route, dropped, forwarded| {
        if dropped + forwarded > 0 {
            contexts.push((route.to_owned(), dropped, forwarded));
        }
    });
    text.head(&table::CONTEXT_FORWARDED);
    for (route, _, forwarded) in &contexts {
        text.value(&table::CONTEXT_FORWARDED, &[route], *forwarded);
    }
    text.head(&table::CONTEXT_DROPPED);
    for (route, dropped, _) in &contexts {
        text.value(&table::CONTEXT_DROPPED, &[route], *dropped);
    }
    text.head(&table::CONTEXT_INVALID);
    for (header, count) in counters.invalid() {
        text.value(&table::CONTEXT_INVALID, &[header], count);
    }
    text.single(&table::CONTEXT_RESTORED, counters.restored);
    text.single(&table::CALLS_WITHOUT_CONTEXT, counters.calls_without_context);
    text.single(&table::CALLS_OF_OTHER_TRACES, counters.calls_of_other_traces);
    text.single(&table::OPERATIONS_IGNORED, counters.operations_ignored);
    text.head(&table::EVENTS_UNTOUCHED);
    for (reason, count) in tracer.untouched() {
        text.value(&table::EVENTS_UNTOUCHED, &[reason], count);
    }
    text.single(&table::IN_FLIGHT, tracer.in_flight() as u64);
    text.single(&table::IN_FLIGHT_FULL, counters.in_flight_full);
}
