//! The access log: one JSON line for each exchange, on standard output. A thread of its own writes, behind a
//! bounded queue, so that a slow reader of our output never slows a request; what it can't keep up with is
//! dropped and counted.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use throughline_core::classify::{Direction, ErrorType, Outcome};
use throughline_core::exchange::Summary;
use throughline_core::settings;

use crate::log::{Timestamp, quote};
use crate::stats::Stats;

/// Lines that wait for the writer.
const QUEUE_LINES: usize = 4096;

/// Where lines go.
#[derive(Debug)]
pub(crate) struct AccessLog(Option<SyncSender<String>>);

/// What a line says of the request itself.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: http::Method,
    pub(crate) uri: http::Uri,
    pub(crate) bytes_in: BytesIn,
}

/// Bytes of a request's body, counted while it goes to the upstream; in the request's extensions.
#[derive(Clone, Debug, Default)]
pub(crate) struct BytesIn(Arc<AtomicU64>);

impl BytesIn {
    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl AccessLog {
    /// A log as the setting says; its thread lives as long as the process.
    pub(crate) fn new(setting: settings::AccessLog) -> Self {
        match setting {
            settings::AccessLog::Off => Self(None),
            settings::AccessLog::Stdout => {
                let (lines, queue) = sync_channel::<String>(QUEUE_LINES);
                let writer = std::thread::Builder::new().name("access-log".into()).spawn(move || {
                    for line in queue {
                        // Nobody is left to tell when standard output is closed.
                        let _ = std::io::stdout().lock().write_all(line.as_bytes());
                    }
                });
                Self(writer.is_ok().then_some(lines))
            }
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// One exchange.
    pub(crate) fn write(
        &self,
        request: &Request,
        summary: &Summary,
        outcome: Outcome,
        bytes_out: u64,
        stats: &Stats,
    ) {
        let Some(lines) = self.0.as_ref().filter(|_| !summary.ignored) else { return };
        if lines.try_send(line(request, summary, outcome, bytes_out)).is_err() {
            stats.access_line_dropped();
        }
    }
}

fn line(request: &Request, summary: &Summary, outcome: Outcome, bytes_out: u64) -> String {
    let mut line = String::with_capacity(320);
    let direction = match summary.direction {
        Direction::Inbound => "inbound",
        Direction::Outbound => "outbound",
    };
    let _ =
        write!(line, "{{\"timestamp\":\"{}\",\"direction\":\"{direction}\",\"method\":", Timestamp::now());
    quote(request.method.as_str(), &mut line);
    // The query is left out: it may hold secrets, and a span records it redacted.
    line.push_str(",\"path\":");
    quote(request.uri.path(), &mut line);
    if let Some(authority) = request.uri.authority().filter(|_| summary.direction == Direction::Outbound) {
        line.push_str(",\"host\":");
        quote(authority.host(), &mut line);
    }
    if let Some(status) = summary.http_status {
        let _ = write!(line, ",\"status\":{status}");
    }
    let millis = summary.duration_nanos as f64 / 1e6;
    let bytes_in = request.bytes_in.0.load(Ordering::Relaxed);
    let _ = write!(line, ",\"duration_ms\":{millis:.3},\"bytes_in\":{bytes_in},\"bytes_out\":{bytes_out}");
    let outcome = match outcome {
        Outcome::Complete => "complete",
        Outcome::CallerGone => "caller_gone",
        Outcome::Drained => "drained",
        Outcome::Failed { .. } => "failed",
    };
    let _ = write!(line, ",\"outcome\":\"{outcome}\"");
    match summary.error {
        Some(ErrorType::Name(name)) => {
            let _ = write!(line, ",\"error\":\"{name}\"");
        }
        Some(ErrorType::Code(code)) => {
            let _ = write!(line, ",\"error\":\"{code}\"");
        }
        None => {}
    }
    if let Some(operation) = &summary.operation {
        line.push_str(",\"operation\":");
        quote(operation.as_str(), &mut line);
    }
    if let Some((trace_id, span_id)) = summary.ids {
        let sampled = summary.recorded;
        let _ = write!(line, ",\"trace_id\":\"{trace_id}\",\"span_id\":\"{span_id}\",\"sampled\":{sampled}");
    }
    line.push_str("}\n");
    line
}
