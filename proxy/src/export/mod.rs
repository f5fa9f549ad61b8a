//! Ships finished spans and metrics. Off the path of every request: a collector that is down, slow or hostile
//! costs spans, which are counted, and nothing else.

mod client;
mod console;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use throughline_core::batch::{Chunk, Dropped};
use throughline_core::exchange::{Now, Work};
use throughline_core::names::attribute;
use throughline_core::otlp::answer::Answer;
use throughline_core::otlp::request::Envelope;
use throughline_core::settings::{Exporter, Settings, Signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

pub(crate) use queue::SpanQueue;

use crate::host::now;
use crate::log::{self, Throttle};
use crate::sidecar::Sidecar;
use crate::stats::Exported;
use client::Client;

/// The first wait before a batch is sent again; doubled each time.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// The longest wait, also when a collector asks for a longer one.
const BACKOFF_MOST: Duration = Duration::from_secs(30);
/// How long one batch is tried again, while the newer ones wait in the bounded queue.
const RETRY_FOR: Duration = Duration::from_secs(300);

/// What of our resource is not true of a page: its process is not ours.
const OF_THE_PROCESS: [&str; 2] = [attribute::SERVICE_NAME, attribute::SERVICE_INSTANCE_ID];

/// A sender for each signal that is exported; `Err` says which setting stands in the way.
pub(crate) struct Exporters {
    envelope: Envelope,
    metrics_envelope: Envelope,
    spans: SpanExport,
    metrics: Option<Client>,
}

enum SpanExport {
    Otlp(Box<Client>),
    Console,
    None,
}

impl Exporters {
    pub(crate) fn new(settings: &Settings) -> Result<Self, String> {
        let on = settings.enabled();
        let spans = match settings.traces_exporter {
            Exporter::Otlp if on => SpanExport::Otlp(Box::new(Client::new(settings, Signal::Traces)?)),
            Exporter::Console if on => SpanExport::Console,
            Exporter::Otlp | Exporter::Console | Exporter::None => SpanExport::None,
        };
        let metrics = match settings.metrics_exporter {
            Exporter::Otlp => Some(Client::new(settings, Signal::Metrics)?),
            Exporter::Console | Exporter::None => None,
        };
        let instance = format!("{:016x}", crate::host::seed());
        let metrics_envelope = Envelope::new(settings.metrics_resource(&instance));
        Ok(Self { envelope: Envelope::new(settings.resource()), metrics_envelope, spans, metrics })
    }

    /// Exports until `stop` says otherwise; what is queued then is sent until `deadline_of` passes.
    pub(crate) async fn run(self, sidecar: Arc<Sidecar>, stop: watch::Receiver<Option<Instant>>) {
        let of_pages = sidecar.browser.as_ref().map(|browser| {
            let resource = sidecar.settings.resource();
            let ours = resource.into_iter().filter(|(key, _)| !OF_THE_PROCESS.contains(key));
            let named = ours.chain([(attribute::SERVICE_NAME, browser.service.as_str())]);
            (&browser.spans, Envelope::new(named))
        });
        let queues = std::iter::once((&sidecar.spans, self.envelope.clone())).chain(of_pages).collect();
        let spans = spans(&sidecar, self.spans, queues, stop.clone());
        let metrics = async {
            if let Some(client) = self.metrics {
                metrics(&sidecar, client, &self.metrics_envelope, stop.clone()).await;
            }
        };
        tokio::join!(spans, metrics);
    }
}

async fn spans(
    sidecar: &Sidecar,
    mut export: SpanExport,
    queues: Vec<(&SpanQueue, Envelope)>,
    mut stop: watch::Receiver<Option<Instant>>,
) {
    let tick = Duration::from_millis((sidecar.settings.bsp_schedule_delay_ms / 4).clamp(10, 250));
    loop {
        let stopping = tokio::select! {
            () = sleep(tick) => false,
            () = sidecar.spans.full() => false, // those of pages wait for the tick
            _ = stop.wait_for(Option::is_some) => true,
        };
        for (queue, envelope) in &queues {
            while let Some(chunk) = queue.poll_flush(stopping) {
                let (exported, reason) = match &mut export {
                    SpanExport::Otlp(client) => ship(sidecar, client, envelope, &chunk, &mut stop).await,
                    SpanExport::Console => (console::print(chunk.bytes()), Dropped::Failed),
                    SpanExport::None => (0, Dropped::Shutdown),
                };
                queue.settle(chunk, exported, reason);
            }
        }
        if stopping {
            return;
        }
    }
}

/// Sends one chunk until it is taken, refused, or its time is over. Says how many spans arrived, and why the
/// others did not.
async fn ship(
    sidecar: &Sidecar,
    client: &mut Client,
    envelope: &Envelope,
    chunk: &Chunk,
    stop: &mut watch::Receiver<Option<Instant>>,
) -> (usize, Dropped) {
    static WARNED: Throttle = Throttle::new();
    let endpoint = client.endpoint();
    let warn = |what: &str, why: &dyn std::fmt::Display| {
        if let Some(held_back) = WARNED.pass() {
            let fields: [(&str, &dyn std::fmt::Display); 4] = [
                ("error", why),
                ("endpoint", &endpoint),
                ("spans", &chunk.spans()),
                ("held_back", &held_back),
            ];
            log::warn(what, &fields);
        }
    };
    let body = client.encode(&envelope.prefix(chunk.bytes().len()), chunk.bytes());
    let stats = &sidecar.stats;
    let give_up = Instant::now() + RETRY_FOR;
    let mut wait = BACKOFF_FIRST;
    loop {
        let began = now();
        let deadline = stop.borrow().map_or(give_up, |deadline| deadline.min(give_up));
        let answer = match tokio::time::timeout_at(deadline, client.send(body.clone())).await {
            Ok(answer) => answer,
            Err(_) => Answer::Again { after_ms: None, why: "no time is left".into() },
        };
        match answer {
            Answer::Taken { rejected: 0 } => {
                stats.exported(Signal::Traces, Exported::Ok);
                return (chunk.spans(), Dropped::Failed);
            }
            Answer::Taken { rejected } => {
                stats.exported(Signal::Traces, Exported::Partial);
                let rejected = usize::try_from(rejected).unwrap_or(usize::MAX).min(chunk.spans());
                warn("the collector rejected spans", &format_args!("{rejected} of them"));
                return (chunk.spans() - rejected, Dropped::PartialSuccess);
            }
            Answer::Refused { why } => {
                stats.exported(Signal::Traces, Exported::Refused);
                tell(sidecar, began, "refused", &why, stop);
                warn("failed to export spans", &why);
                return (0, Dropped::Refused);
            }
            Answer::Again { after_ms, why } => {
                let after = after_ms.map(Duration::from_millis);
                let pause = jittered(after.unwrap_or(wait).min(BACKOFF_MOST), after.is_some());
                wait = (wait * 2).min(BACKOFF_MOST);
                if Instant::now() + pause >= deadline {
                    stats.exported(Signal::Traces, Exported::Failed);
                    tell(sidecar, began, "failed", &why, stop);
                    warn("failed to export spans", &why);
                    let reason = if stop.borrow().is_some() { Dropped::Shutdown } else { Dropped::Failed };
                    return (0, reason);
                }
                stats.exported(Signal::Traces, Exported::Retried);
                tell(sidecar, began, "retried", &why, stop);
                warn("spans wait for the collector", &why);
                // A stop shortens the wait: there may be time for one more try.
                let stopped_before = stop.borrow().is_some();
                tokio::select! {
                    () = sleep(pause) => {}
                    _ = stop.wait_for(Option::is_some), if !stopped_before => {}
                }
                if client.is_in_doubt() {
                    stats.maybe_twice(chunk.spans());
                }
            }
        }
    }
}

/// Tells of an attempt that failed, while there is still somebody to export it.
fn tell(sidecar: &Sidecar, began: Now, how: &str, why: &str, stop: &watch::Receiver<Option<Instant>>) {
    if stop.borrow().is_none() {
        sidecar.work(Work::Export, began, Some(how), why);
    }
}

/// A wait spread over half of its length, so that sidecars do not come back all at once. What a collector
/// asked for is only ever lengthened here.
fn jittered(wait: Duration, asked_for: bool) -> Duration {
    let share = (crate::host::seed() % 1000) as u32;
    let spread = wait / 2 * share / 1000;
    if asked_for { wait + spread.min(Duration::from_secs(1)) } else { wait / 2 + spread }
}

async fn metrics(
    sidecar: &Sidecar,
    mut client: Client,
    envelope: &Envelope,
    mut stop: watch::Receiver<Option<Instant>>,
) {
    static WARNED: Throttle = Throttle::new();
    let started = now().unix_nanos;
    let every = Duration::from_millis(sidecar.settings.metric_interval_ms);
    loop {
        let stopping = timeout(every, stop.wait_for(Option::is_some)).await.is_ok();
        let metrics = sidecar.tracer.otlp_metrics(started, now().unix_nanos);
        if !metrics.is_empty() {
            let body = client.encode(&envelope.prefix(metrics.len()), &metrics);
            let give_up = stop.borrow().unwrap_or_else(|| Instant::now() + every.max(Duration::from_secs(1)));
            // Counts are cumulative: a push that is lost loses nothing, the next one has it all.
            let answer = tokio::time::timeout_at(give_up, client.send(body)).await;
            let how = match answer {
                Ok(Answer::Taken { rejected: 0 }) => Exported::Ok,
                Ok(Answer::Taken { .. }) => Exported::Partial,
                Ok(Answer::Refused { .. }) => Exported::Refused,
                Ok(Answer::Again { .. }) | Err(_) => Exported::Failed,
            };
            sidecar.stats.exported(Signal::Metrics, how);
            if let Ok(Answer::Refused { why } | Answer::Again { why, .. }) = answer
                && let Some(held_back) = WARNED.pass()
            {
                let endpoint = client.endpoint();
                log::warn(
                    "failed to export metrics",
                    &[("error", &why), ("endpoint", &endpoint), ("held_back", &held_back)],
                );
            }
        }
        if stopping {
            return;
        }
    }
}
