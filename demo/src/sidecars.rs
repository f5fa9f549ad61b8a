//! What stands in front of each service: a real `throughline-proxy` process, or a real Envoy with the filter
//! ([`crate::envoy`]). Starts them and waits until they are ready; [`crate::process`] ends them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use serde_json::Value;
use tokio::process::Command;
use tokio::sync::watch;

use crate::call;
use crate::envoy::{self, Envoy};
use crate::process::{Process, Processes, STOP_TIMEOUT};

/// A sidecar is ready within this time, or the demo gives up.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for Envoy: it compiles the filter first, for a second where nothing else is to do.
const ENVOY_READY_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause between two questions whether it is.
pub(crate) const READY_PAUSE: Duration = Duration::from_millis(10);
/// What sidecars get for draining, and with it they are ended before they would be killed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
const _: () = assert!(DRAIN_TIMEOUT.as_millis() < STOP_TIMEOUT.as_millis());

/// Settings of the user's shell that would change what the demo shows.
const INHERITED_PREFIXES: [&str; 3] = ["OTEL_", "THROUGHLINE_", "TRACING_"];
/// Histograms whose quantiles are within 1 %.
pub(crate) const HISTOGRAMS: (&str, &str) =
    ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram");

/// What one sidecar is to do.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) service: &'static str,
    /// Where callers reach it; port 0 for a free one.
    pub(crate) inbound: SocketAddr,
    /// The service itself.
    pub(crate) upstream: SocketAddr,
    /// Names that the service calls, and the inbound listeners behind them.
    pub(crate) routes: &'a [(&'static str, SocketAddr)],
    /// Where its Pub/Sub calls go, for a service that publishes.
    pub(crate) broker: Option<SocketAddr>,
    /// Base address of the OTLP receiver.
    pub(crate) receiver: SocketAddr,
    /// Whether callers are told the trace's id: for the one that the outside reaches.
    pub(crate) tells_trace_id: bool,
}

/// Where a sidecar listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listeners {
    pub(crate) inbound: SocketAddr,
    pub(crate) outbound: SocketAddr,
}

/// What runs in front of each service.
pub(crate) enum Program {
    /// This `throughline-proxy`.
    Proxy(PathBuf),
    /// This Envoy.
    Envoy(Envoy),
}

/// The sidecars' program, and the processes that run it.
pub(crate) struct Sidecars {
    program: Program,
    processes: Processes,
}

impl Sidecars {
    pub(crate) fn new(program: Program, processes: Processes) -> Sidecars {
        Sidecars { program, processes }
    }

    /// Starts a sidecar, which is then waited for, so that several start at once.
    pub(crate) fn start(&mut self, plan: &Plan<'_>) -> Result<Starting, String> {
        match &self.program {
            Program::Proxy(binary) => self.run(plan.service, command(binary, plan)),
            Program::Envoy(envoy) => {
                let (process, admin) = envoy.start(plan, &mut self.processes)?;
                Ok(Starting { process, news: News::Admin(admin) })
            }
        }
    }

    /// What one of them is called.
    pub(crate) fn what(&self) -> &'static str {
        match &self.program {
            Program::Proxy(_) => "throughline-proxy",
            Program::Envoy(_) => "Envoy with Throughline's filter",
        }
    }

    fn run(&mut self, service: &'static str, command: Command) -> Result<Starting, String> {
        let (ready, awaited) = watch::channel(None);
        let heard = move |line: &str| {
            if let Some(told) = told(line) {
                ready.send_replace(Some(told));
            }
        };
        let process = self.processes.start(&format!("the sidecar of {service}"), command, heard)?;
        Ok(Starting { process, news: News::Log(awaited) })
    }

    pub(crate) fn len(&self) -> usize {
        self.processes.len()
    }

    /// Waits until a sidecar ends by itself, and says which and why.
    pub(crate) async fn first_end(&self) -> String {
        self.processes.first_end().await
    }

    /// Ends every sidecar, so that requests finish and spans are flushed unless `hurry` completes.
    pub(crate) async fn stop(&mut self, hurry: impl Future) {
        self.processes.stop(hurry).await;
    }
}

/// A sidecar that was started.
pub(crate) struct Starting {
    process: Process,
    news: News,
}

/// Where it tells that it is ready.
enum News {
    /// In its log.
    Log(watch::Receiver<Option<Told>>),
    /// At its admin port, whose address it writes into this file.
    Admin(PathBuf),
}

impl Starting {
    /// Waits until it is ready.
    pub(crate) async fn ready(self) -> Result<Listeners, String> {
        let Starting { mut process, news } = self;
        let (listening, patience): (Pin<Box<dyn Future<Output = Listeners>>>, _) = match news {
            News::Log(told) => (Box::pin(readiness(told)), READY_TIMEOUT),
            News::Admin(file) => (Box::pin(envoy::readiness(file)), ENVOY_READY_TIMEOUT),
        };
        let ready = tokio::select! {
            reason = process.end() => Err(reason),
            ready = tokio::time::timeout(patience, listening) => {
                ready.map_err(|_| format!("was not ready within {} s", patience.as_secs()))
            }
        };
        ready.map_err(|reason| process.complaint(&reason))
    }
}

fn command(binary: &Path, plan: &Plan<'_>) -> Command {
    let routes: Vec<String> = plan.routes.iter().map(|(name, to)| format!("{name}={to}")).collect();
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| INHERITED_PREFIXES.iter().any(|p| name.starts_with(p))) {
            command.env_remove(name);
        }
    }
    command
        .env("OTEL_SERVICE_NAME", plan.service)
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", plan.receiver))
        .env("OTEL_METRIC_EXPORT_INTERVAL", "1000")
        .env(HISTOGRAMS.0, HISTOGRAMS.1)
        // Spans leave soon, so that a trace is drawn while its request is still in mind.
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .env("THROUGHLINE_INBOUND_LISTEN", plan.inbound.to_string())
        .env("THROUGHLINE_INBOUND_UPSTREAM", plan.upstream.to_string())
        .env("THROUGHLINE_OUTBOUND_LISTEN", "127.0.0.1:0")
        .env("THROUGHLINE_ADMIN_LISTEN", "127.0.0.1:0")
        .env("THROUGHLINE_WORKER_THREADS", "1")
        .env("THROUGHLINE_DRAIN_TIMEOUT", DRAIN_TIMEOUT.as_millis().to_string());
    if !routes.is_empty() {
        command.env("THROUGHLINE_OUTBOUND_ROUTES", routes.join(","));
    }
    if let Some(broker) = plan.broker {
        command.env("THROUGHLINE_PUBSUB_UPSTREAM", format!("http://{broker}"));
    }
    if plan.tells_trace_id {
        command.env("THROUGHLINE_RESPONSE_HEADERS", "x-trace-id");
        // The shop's page is a browser's: its traces begin with the click.
        command
            .env("THROUGHLINE_TRUST", "edge")
            .env("THROUGHLINE_BROWSER", "on")
            .env("THROUGHLINE_BROWSER_SERVICE", "shop-ui");
    }
    command
}

/// Where a `throughline-proxy` listens.
#[derive(Clone, Copy, Debug)]
struct Told {
    listeners: Listeners,
    admin: SocketAddr,
}

/// Reads the log line that says where it listens.
fn told(line: &str) -> Option<Told> {
    let line: Value = serde_json::from_str(line).ok()?;
    if line.get("message")?.as_str()? != "ready" {
        return None;
    }
    let address = |name: &str| line.get(name)?.as_str()?.parse().ok();
    let listeners = Listeners { inbound: address("inbound")?, outbound: address("outbound")? };
    Some(Told { listeners, admin: address("admin")? })
}

async fn readiness(mut ready: watch::Receiver<Option<Told>>) -> Listeners {
    // An error means that the log has ended: then the exit has the reason.
    let told = match ready.wait_for(Option::is_some).await.map(|told| *told) {
        Ok(Some(told)) => told,
        Ok(None) | Err(_) => std::future::pending().await,
    };
    while !says_ready(told.admin, "/readyz").await {
        tokio::time::sleep(READY_PAUSE).await;
    }
    told.listeners
}

/// Whether an admin port answers 200.
pub(crate) async fn says_ready(admin: SocketAddr, path: &str) -> bool {
    let request = Request::get(path).header("host", admin.to_string()).body(Bytes::new());
    let Ok(request) = request else { return false };
    call::exchange(admin, request).await.is_ok_and(|answer| answer.status() == StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Pids;

    /// A shell's script in the sidecar's place.
    fn script(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    }

    fn sidecars() -> Sidecars {
        Sidecars::new(Program::Proxy("/nowhere/throughline-proxy".into()), Processes::new(Pids::default()))
    }

    #[test]
    fn the_ready_line_tells_where_it_listens() {
        let line = r#"{"level":"info","message":"ready","inbound":"127.0.0.1:1","outbound":"127.0.0.1:2","admin":"127.0.0.1:3"}"#;
        let read =
            told(line).map(|t| [t.listeners.inbound, t.listeners.outbound, t.admin].map(|at| at.port()));
        assert_eq!(read, Some([1, 2, 3]));
        assert!(told(r#"{"message":"draining"}"#).is_none());
        assert!(told("ready").is_none());
    }

    #[tokio::test]
    async fn a_sidecar_that_ends_at_once_is_quoted() {
        let started =
            sidecars().run("stock", script("echo first >&2; echo 'port in use' >&2; exit 1")).unwrap();
        assert_eq!(
            started.ready().await.unwrap_err(),
            "the sidecar of stock ended at once (exit status: 1); its last lines:\n    first\n    port in use"
        );
    }

    #[tokio::test]
    async fn a_missing_binary_is_named() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let plan = Plan {
            service: "stock",
            inbound: address,
            upstream: address,
            routes: &[("warehouse", address)],
            broker: None,
            receiver: address,
            tells_trace_id: false,
        };
        let reason = sidecars().start(&plan).map(drop).unwrap_err();
        assert!(reason.starts_with("/nowhere/throughline-proxy could not be started: "), "{reason}");
    }
}
