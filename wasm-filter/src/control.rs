//! What an operator changes at run time: one of the workers asks the control endpoint for all of them, and puts
//! what it said into shared data, where the others find it. A document that is wrong, or an endpoint that is gone,
//! changes nothing.

use std::time::Duration;

use throughline_core::control::Value;
use throughline_core::exchange::{Now, Work};
use throughline_core::limits::CONTROL_BYTES_MAX;

use crate::host::{self, Buffer, Headers, Level, Map};
use crate::worker::Worker;

/// Patience for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One worker's view of the control endpoint.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// Our call that is under way, and the root context that made it.
    asked: Option<(u32, u32)>,
    /// What was read last, and what its version in shared data was.
    read: Option<u32>,
    document: Vec<u8>,
    /// When shared data was looked at last.
    looked_mono_nanos: Option<u64>,
    /// The trouble that was told of last, so that it is told once.
    trouble: String,
}

impl Control {
    /// Takes over what was said, and asks when it is this worker's turn.
    pub(crate) fn look(&mut self, worker: &Worker, root: u32, now: Now) {
        let cluster = worker.filter.control_cluster.as_str();
        if cluster.is_empty() {
            return;
        }
        // A quarter of the interval later is soon enough for what another worker heard.
        let every_nanos = worker.filter.control_interval_ms * 1_000_000;
        let since = self.looked_mono_nanos.map(|at| now.mono_nanos.saturating_sub(at));
        if since.is_some_and(|since| since < every_nanos / 4) {
            return;
        }
        self.looked_mono_nanos = Some(now.mono_nanos);
        if let Some((document, version)) = host::shared(&key("said", worker))
            && self.read != Some(version)
        {
            self.read = Some(version);
            self.take_over(worker, document, now);
        }
        if self.asked.is_none() && its_turn(worker, every_nanos, now) {
            self.ask(worker, root);
        }
    }

    fn ask(&mut self, worker: &Worker, root: u32) {
        let filter = &worker.filter;
        let headers = vec![
            (":method", "GET"),
            (":path", filter.control_path.as_str()),
            (":authority", filter.control_cluster.as_str()),
            ("accept", "application/json"),
        ];
        match host::call_http(&filter.control_cluster, headers, None, TIMEOUT) {
            Some(token) => self.asked = Some((token, root)),
            None => self.trouble(&format!("there is no cluster \"{}\"", filter.control_cluster)),
        }
    }

    /// Whether this root context waits for an answer.
    pub(crate) fn awaits(&self, root: u32) -> bool {
        self.asked.is_some_and(|(_, by)| by == root)
    }

    /// An answer arrived; false when it is not to a question of ours.
    pub(crate) fn answered(&mut self, worker: &Worker, token: u32, bytes: usize, now: Now) -> bool {
        if self.asked.is_none_or(|(asked, _)| asked != token) {
            return false;
        }
        self.asked = None;
        let headers = Headers::of(Map::CallResponse);
        let status = headers.raw(":status").unwrap_or_default();
        if status != b"200" {
            let status = if status.is_empty() { "nothing".into() } else { String::from_utf8_lossy(status) };
            self.trouble(&format!("the control endpoint answered {status}"));
        } else if bytes > CONTROL_BYTES_MAX {
            self.trouble("the control endpoint's document is over 256 KiB");
        } else {
            let document = host::bytes(Buffer::CallResponse, bytes);
            if document != self.document {
                host::share(&key("said", worker), &document);
                self.take_over(worker, document, now);
            }
        }
        true
    }

    fn take_over(&mut self, worker: &Worker, document: Vec<u8>, now: Now) {
        let told = match Value::json(&document) {
            Err(want) => Err(format!("want {want}")),
            // An empty file is an operator's word, an endpoint that says nothing is not.
            Ok(Value::Null) => Err("want a document".to_owned()),
            Ok(value) => worker
                .tracer
                .control(&value, now)
                .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
        };
        self.document = document;
        match told {
            Ok(changed) => {
                self.trouble.clear();
                if changed {
                    worker.work(Work::Control, now, None, "the control endpoint's document changed");
                }
            }
            Err(mistakes) => {
                self.trouble(&format!("the control document is wrong, the last good one holds: {mistakes}"));
                worker.work(Work::Control, now, Some("refused"), &mistakes);
            }
        }
    }

    fn trouble(&mut self, what: &str) {
        if self.trouble != what {
            what.clone_into(&mut self.trouble);
            host::log(Level::Warn, &format!("throughline: {what}"));
        }
    }
}

/// Workers that ask the same share what they hear.
fn key(what: &str, worker: &Worker) -> String {
    let filter = &worker.filter;
    format!("throughline.control.{what}.{}{}", filter.control_cluster, filter.control_path)
}

/// Whether nobody has asked for so long. Who writes the time down first asks.
fn its_turn(worker: &Worker, every_nanos: u64, now: Now) -> bool {
    let key = key("asked", worker);
    let (asked, version) = match host::shared(&key) {
        Some((asked, version)) => (asked.first_chunk::<8>().map(|at| u64::from_le_bytes(*at)), Some(version)),
        None => (None, None),
    };
    // A clock that was set back must not end the asking.
    let due = asked.is_none_or(|at| now.unix_nanos < at || now.unix_nanos - at >= every_nanos);
    due && host::share_if(&key, &now.unix_nanos.to_le_bytes(), version)
}
