//! `/metrics`: what the server counts of itself, as Prometheus reads it. Holds no name of anything that was traced.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use super::App;

pub(crate) const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ =
            writeln!(self.0, "# HELP throughline_flow_{name} {help}\n# TYPE throughline_flow_{name} {kind}");
    }

    fn row(&mut self, name: &str, label: Option<(&str, &str)>, value: u64) {
        let _ = match label {
            Some((key, label)) => {
                writeln!(self.0, "throughline_flow_{name}{{{key}=\"{label}\"}} {value}")
            }
            None => writeln!(self.0, "throughline_flow_{name} {value}"),
        };
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.row(name, None, value);
    }

    fn each(&mut self, name: &str, kind: &str, help: &str, key: &str, rows: &[(&str, u64)]) {
        self.family(name, kind, help);
        for (label, value) in rows {
            self.row(name, Some((key, label)), *value);
        }
    }
}

pub(crate) fn page(app: &App) -> String {
    let mut page = Page(String::with_capacity(8192));
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let books = app.engine.books();
    page.one("spans_received_total", "counter", "Spans of exports that were taken.", books.received);
    page.one("spans_stored_total", "counter", "Spans that were stored.", books.stored);
    page.one("spans_held", "gauge", "Spans that wait to be stored.", books.held);
    page.each("spans_dropped_total", "counter", "Spans that were lost, by reason.", "reason", &books.dropped);
    page.each(
        "spans_expired_total",
        "counter",
        "Spans that were stored and went since, by reason.",
        "reason",
        &books.expired,
    );
    let bodies = "Bytes of exports that are being read, of those that all together may have.";
    page.one("bodies_bytes_held", "gauge", bodies, app.bounds.bytes_held());
    page.each(
        "exports_turned_away_total",
        "counter",
        "Exports that the engine refused, by reason.",
        "reason",
        &books.refused,
    );
    page.one("blocks", "gauge", "Blocks of spans.", books.blocks);
    page.one("blocks_damaged", "gauge", "Blocks that can't be read.", books.blocks_damaged);
    page.one("queued_bytes", "gauge", "Bytes of exports that wait.", books.queued_bytes);
    page.one("memory_bytes", "gauge", "Bytes of spans and their indexes in memory.", books.memory_bytes);
    page.one("disk_bytes", "gauge", "Bytes of the file, without what is free in it.", books.disk_bytes);
    page.one(
        "store_trouble",
        "gauge",
        "1 while the file can't be written.",
        u64::from(books.trouble.is_some()),
    );
    let numbers = app.engine.numbers().books();
    for (name, kind, help, value) in [
        ("points_total", "counter", "Data points taken.", numbers.points),
        (
            "points_unknown_total",
            "counter",
            "Data points of metrics that are not read here.",
            numbers.points_unknown,
        ),
        ("points_malformed_total", "counter", "Data points that make no sense.", numbers.points_malformed),
        ("streams", "gauge", "Series of senders that are remembered.", numbers.streams),
        ("over_cap_total", "counter", "Requests counted as __other__ because of a cap.", numbers.over_cap),
        ("series", "gauge", "Keys of numbers in use.", numbers.series),
        ("numbers_bytes", "gauge", "Bytes of numbers, reckoned.", numbers.bytes),
        (
            "spans_foreign_total",
            "counter",
            "Spans of others that were offered to the numbers.",
            numbers.spans_foreign,
        ),
        (
            "spans_estimated_total",
            "counter",
            "Spans of others that became an estimate.",
            numbers.spans_estimated,
        ),
        (
            "spans_beside_ours_total",
            "counter",
            "Spans of others that stand beside ours.",
            numbers.spans_beside_ours,
        ),
    ] {
        page.one(name, kind, help, value);
    }
    page.one("exports_total", "counter", "Exports that were read.", of(&app.counts.exports));
    page.one(
        "exports_refused_total",
        "counter",
        "Exports that were refused.",
        of(&app.counts.exports_refused),
    );
    page.one("questions_total", "counter", "Calls of the API.", of(&app.counts.questions));
    let names = ["api", "otlp_grpc", "otlp_http"];
    let rows = |value: fn(&super::Connections) -> u64| -> Vec<(&str, u64)> {
        names.iter().zip(&app.counts.connections).map(|(name, counts)| (*name, value(counts))).collect()
    };
    let open = rows(|counts| counts.open.load(Ordering::Relaxed));
    let accepted = rows(|counts| counts.accepted.load(Ordering::Relaxed));
    page.each("connections_open", "gauge", "Connections that are open, by listener.", "listener", &open);
    page.each(
        "connections_total",
        "counter",
        "Connections that were accepted, by listener.",
        "listener",
        &accepted,
    );
    let live = &app.live.counts;
    page.one("live_readers", "gauge", "Readers of the live view.", app.live.looking() as u64);
    page.one("live_messages_total", "counter", "Messages handed to them.", of(&live.messages));
    page.one(
        "live_left_out_total",
        "counter",
        "Changes of flows that a reader was not told of, because too many changed.",
        of(&live.left_out),
    );
    page.one(
        "live_dropped_total",
        "counter",
        "Readers that were let go because they were slow.",
        of(&live.dropped),
    );
    if let Some(fan_out) = &app.fan_out {
        let counts = fan_out.counts();
        let rows: Vec<(&str, u64)> = counts.outcomes().to_vec();
        page.each(
            "fan_out_exports_total",
            "counter",
            "Exports sent on, by what became of them.",
            "outcome",
            &rows,
        );
        page.one("fan_out_queued_bytes", "gauge", "Bytes that wait to be sent on.", fan_out.queued_bytes());
    }
    page.0
}
