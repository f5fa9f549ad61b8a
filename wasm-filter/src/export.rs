//! Ships spans and metrics to Envoy's cluster of the collector. One batch of spans is under way at a time, while
//! newer ones wait in the bounded queue; what an answer means is `core`'s to say. Calls are made by root contexts
//! only: a stream may be gone before the answer.

use std::time::Duration;

use throughline_core::batch::{Chunk, Dropped};
use throughline_core::exchange::{Now, Work};
use throughline_core::names::attribute;
use throughline_core::otlp::answer::{self, Answer};
use throughline_core::otlp::request::Envelope;
use throughline_core::settings::{Exporter, Filter, Protocol, Settings, Signal};

use crate::host::{self, Buffer, Headers, Level, Map};
use crate::stats::Exported;
use crate::worker::Worker;

/// The first wait before a batch is sent again; doubled each time.
const BACKOFF_FIRST_MS: u64 = 500;
/// The longest wait, also when a collector asks for a longer one.
const BACKOFF_MOST_MS: u64 = 30_000;
/// How long one batch is tried again.
const RETRY_FOR_MS: u64 = 300_000;
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The least time between two lines of log.
const LOG_EVERY_MS: u64 = 10_000;

/// How the sender names itself.
const AGENT: &str = concat!("throughline/", env!("CARGO_PKG_VERSION"));

/// Where one signal goes.
#[derive(Debug)]
struct Target {
    protocol: Protocol,
    cluster: String,
    authority: String,
    path: String,
    headers: Vec<(String, String)>,
    timeout: Duration,
}

/// A batch of spans that is not settled yet.
#[derive(Debug)]
struct Sent {
    chunk: Chunk,
    /// When it was sent last.
    asked: Now,
    give_up_mono_nanos: u64,
    wait_ms: u64,
}

#[derive(Debug)]
enum State {
    Idle,
    /// Under way, by this token and root context.
    Asked(Sent, u32, u32),
    /// To be sent again at this time.
    Later(Sent, u64),
}

/// What is under way.
#[derive(Debug)]
pub(crate) struct Export {
    envelope: Envelope,
    /// Metrics are cumulative for each worker: each is an instance of its own.
    metrics_envelope: Envelope,
    traces: Option<Target>,
    metrics: Option<Target>,
    state: State,
    metrics_asked: Option<(u32, u32)>,
    metrics_at_mono_nanos: u64,
    started: Now,
    logged_mono_nanos: Option<u64>,
}

impl Target {
    fn new(settings: &Settings, filter: &Filter, signal: Signal) -> Self {
        let otlp = settings.otlp(signal);
        let host = if otlp.host.contains(':') { format!("[{}]", otlp.host) } else { otlp.host.clone() };
        Self {
            protocol: otlp.protocol,
            cluster: filter.otlp_cluster.clone(),
            authority: format!("{host}:{}", otlp.port),
            path: otlp.path,
            // Names go on the wire in lower case (RFC 9113 §8.2).
            headers: otlp.headers.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), value)).collect(),
            timeout: Duration::from_millis(otlp.timeout_ms.min(settings.bsp_export_timeout_ms)),
        }
    }

    fn send(&self, body: &[u8]) -> Option<u32> {
        match self.protocol {
            Protocol::Grpc => {
                let service = self.path.trim_start_matches('/').trim_end_matches("/Export");
                let mut metadata = vec![("user-agent", AGENT.as_bytes())];
                metadata.extend(self.headers.iter().map(|(key, value)| (key.as_str(), value.as_bytes())));
                host::call_grpc(&self.cluster, &self.authority, service, metadata, body, self.timeout)
            }
            Protocol::HttpProtobuf => {
                let mut headers = vec![
                    (":method", "POST"),
                    (":path", self.path.as_str()),
                    (":authority", self.authority.as_str()),
                    ("content-type", "application/x-protobuf"),
                    ("user-agent", AGENT),
                ];
                headers.extend(self.headers.iter().map(|(key, value)| (key.as_str(), value.as_str())));
                host::call_http(&self.cluster, headers, Some(body), self.timeout)
            }
        }
    }
}

impl Export {
    pub(crate) fn new(settings: &Settings, filter: &Filter) -> Self {
        let on = settings.enabled();
        let traces = on && settings.traces_exporter == Exporter::Otlp;
        let metrics = settings.metrics_exporter == Exporter::Otlp;
        let instance = format!("{:016x}", host::seed());
        let mut of_worker = settings.metrics_resource(&instance);
        // An id that the user gave is that of the proxy, whose workers are instances by themselves.
        let joined = of_worker.iter_mut().find(|(key, _)| *key == attribute::SERVICE_INSTANCE_ID);
        let id = joined.as_ref().filter(|(_, id)| *id != instance).map(|(_, id)| format!("{id}.{instance}"));
        if let (Some((_, known)), Some(id)) = (joined, &id) {
            *known = id;
        }
        let started = host::now();
        Self {
            envelope: Envelope::new(settings.resource()),
            metrics_envelope: Envelope::new(of_worker),
            traces: traces.then(|| Target::new(settings, filter, Signal::Traces)),
            metrics: metrics.then(|| Target::new(settings, filter, Signal::Metrics)),
            state: State::Idle,
            metrics_asked: None,
            metrics_at_mono_nanos: started.mono_nanos + settings.metric_interval_ms * 1_000_000,
            started,
            logged_mono_nanos: None,
        }
    }

    /// Sends what is due; everything that waits when `all` is asked for.
    pub(crate) fn flush(&mut self, worker: &Worker, root: u32, now: Now, all: bool) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => {
                let chunk = worker.batch.borrow_mut().poll_flush(now, all);
                let Some(chunk) = chunk else { return };
                let give_up_mono_nanos = now.mono_nanos + RETRY_FOR_MS * 1_000_000;
                self.send(
                    worker,
                    root,
                    Sent { chunk, asked: now, give_up_mono_nanos, wait_ms: BACKOFF_FIRST_MS },
                    now,
                );
            }
            State::Later(sent, at) if all || now.mono_nanos >= at => self.send(worker, root, sent, now),
            state @ (State::Later(..) | State::Asked(..)) => self.state = state,
        }
    }

    fn send(&mut self, worker: &Worker, root: u32, mut sent: Sent, now: Now) {
        sent.asked = now;
        let Some(target) = &self.traces else {
            return worker.batch.borrow_mut().settle(sent.chunk, 0, Dropped::Shutdown);
        };
        let mut body = self.envelope.prefix(sent.chunk.bytes().len());
        body.extend_from_slice(sent.chunk.bytes());
        match target.send(&body) {
            Some(token) => self.state = State::Asked(sent, token, root),
            None => {
                let why = format!("there is no cluster \"{}\", or it takes no call", target.cluster);
                self.settle(worker, sent, Answer::Again { after_ms: None, why }, now);
            }
        }
    }

    /// Pushes the numbers when their time has come.
    pub(crate) fn push_metrics(&mut self, worker: &Worker, root: u32, now: Now) {
        let Some(target) = &self.metrics else { return };
        if now.mono_nanos < self.metrics_at_mono_nanos || self.metrics_asked.is_some() {
            return;
        }
        self.metrics_at_mono_nanos = now.mono_nanos + worker.settings.metric_interval_ms * 1_000_000;
        let metrics = worker.tracer.otlp_metrics(self.started.unix_nanos, now.unix_nanos);
        if metrics.is_empty() {
            return;
        }
        let mut body = self.metrics_envelope.prefix(metrics.len());
        body.extend_from_slice(&metrics);
        // Counts are cumulative: a push that is lost loses nothing, the next one has it all.
        self.metrics_asked = target.send(&body).map(|token| (token, root));
    }

    /// Whether this root context waits for an answer.
    pub(crate) fn awaits(&self, root: u32) -> bool {
        let spans = matches!(self.state, State::Asked(_, _, by) if by == root);
        spans || self.metrics_asked.is_some_and(|(_, by)| by == root)
    }

    /// Whether the last try failed, and the batch waits for the next one.
    pub(crate) fn failed(&self) -> bool {
        matches!(self.state, State::Later(..))
    }

    /// An answer by HTTP arrived; false when nobody here asked for it.
    pub(crate) fn answered_http(&mut self, worker: &Worker, token: u32, body_bytes: usize, now: Now) -> bool {
        self.answered(worker, token, now, || {
            let headers = Headers::of(Map::CallResponse);
            let status =
                headers.raw(":status").and_then(|status| std::str::from_utf8(status).ok()?.parse().ok());
            // Envoy tells of a call that failed, or took too long, by an answer without headers.
            let Some(status) = status else {
                return Answer::Again { after_ms: None, why: "no answer from the collector".into() };
            };
            let body = host::bytes(Buffer::CallResponse, body_bytes.min(ANSWER_BYTES_MAX));
            answer::by_http(status, headers.raw("retry-after"), &body)
        })
    }

    /// An answer by gRPC arrived; false when nobody here asked for it.
    pub(crate) fn answered_grpc(
        &mut self,
        worker: &Worker,
        token: u32,
        status: u32,
        bytes: usize,
        now: Now,
    ) -> bool {
        self.answered(worker, token, now, || {
            let body = match status {
                0 => host::bytes(Buffer::GrpcResponse, bytes.min(ANSWER_BYTES_MAX)),
                _ => Vec::new(),
            };
            let message = if status == 0 { String::new() } else { host::grpc_status().1 };
            answer::by_grpc(Some(status.to_string().as_bytes()), Some(message.as_bytes()), None, &body)
        })
    }

    fn answered(&mut self, worker: &Worker, token: u32, now: Now, answer: impl FnOnce() -> Answer) -> bool {
        if self.metrics_asked.is_some_and(|(asked, _)| asked == token) {
            self.metrics_asked = None;
            if let Answer::Refused { why } | Answer::Again { why, .. } = answer() {
                self.warn("failed to export metrics", &why, now);
            }
            return true;
        }
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Asked(sent, asked, _) if asked == token => {
                self.settle(worker, sent, answer(), now);
                true
            }
            state => {
                self.state = state;
                false
            }
        }
    }

    fn settle(&mut self, worker: &Worker, mut sent: Sent, answer: Answer, now: Now) {
        let spans = sent.chunk.spans();
        let (how, exported, reason) = match answer {
            Answer::Taken { rejected: 0 } => (Exported::Ok, spans, Dropped::Failed),
            Answer::Taken { rejected } => {
                let rejected = usize::try_from(rejected).unwrap_or(usize::MAX).min(spans);
                let why = format!("{rejected} of {spans}");
                self.warn("the collector rejected spans", &why, now);
                (Exported::Partial, spans - rejected, Dropped::PartialSuccess)
            }
            Answer::Refused { why } => {
                self.warn("failed to export spans", &why, now);
                worker.work(Work::Export, sent.asked, Some("refused"), &why);
                (Exported::Refused, 0, Dropped::Refused)
            }
            Answer::Again { after_ms, why } => {
                let wait_ms = after_ms.unwrap_or_else(|| spread(sent.wait_ms)).min(BACKOFF_MOST_MS);
                let at = now.mono_nanos + wait_ms * 1_000_000;
                if at < sent.give_up_mono_nanos {
                    self.warn("spans wait for the collector", &why, now);
                    worker.work(Work::Export, sent.asked, Some("retried"), &why);
                    worker.counts.borrow_mut().exported(Exported::Retried);
                    sent.wait_ms = (sent.wait_ms * 2).min(BACKOFF_MOST_MS);
                    self.state = State::Later(sent, at);
                    return;
                }
                self.warn("failed to export spans", &why, now);
                worker.work(Work::Export, sent.asked, Some("failed"), &why);
                (Exported::Failed, 0, Dropped::Failed)
            }
        };
        worker.counts.borrow_mut().exported(how);
        worker.batch.borrow_mut().settle(sent.chunk, exported, reason);
    }

    /// Everything that is left is given up: there will be no other chance.
    pub(crate) fn give_up(&mut self, worker: &Worker) {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Asked(sent, ..) | State::Later(sent, _) => {
                worker.batch.borrow_mut().settle(sent.chunk, 0, Dropped::Shutdown);
            }
            State::Idle => {}
        }
        worker.batch.borrow_mut().drop_all(Dropped::Shutdown);
    }

    fn warn(&mut self, what: &str, why: &str, now: Now) {
        let since = self.logged_mono_nanos.map(|at| now.mono_nanos.saturating_sub(at) / 1_000_000);
        if since.is_none_or(|since| since >= LOG_EVERY_MS) {
            self.logged_mono_nanos = Some(now.mono_nanos);
            host::log(Level::Warn, &format!("throughline: {what}: {why}"));
        }
    }
}

/// A wait spread over half of its length, so that workers do not come back all at once.
fn spread(wait_ms: u64) -> u64 {
    wait_ms / 2 + host::seed() % (wait_ms / 2 + 1)
}
