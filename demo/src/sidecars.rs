//! The sidecars: real `throughline-proxy` processes, one per service. Starts them, waits until
//! they are ready, and sees to it that none outlives the demo.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{ChildStderr, Command};
use tokio::sync::{Notify, watch};

use crate::call;

/// A sidecar is ready within this time, or the demo gives up.
const READY_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause between two questions to `/readyz`.
const READY_PAUSE: Duration = Duration::from_millis(10);
/// What sidecars get for draining; those that take longer are killed.
const DRAIN_MS: u64 = 2_000;
const STOP_TIMEOUT: Duration = Duration::from_millis(DRAIN_MS + 1_000);
const KILL_TIMEOUT: Duration = Duration::from_secs(1);
/// A sidecar's last log lines that are shown when it ends by itself.
const TAIL_LINES: usize = 12;
const TAIL_LINE_CHARS: usize = 300;

/// Settings of the user's shell that would change what the demo shows.
const INHERITED_PREFIXES: [&str; 3] = ["OTEL_", "THROUGHLINE_", "TRACING_"];

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
    admin: SocketAddr,
}

/// Every sidecar that was started.
pub(crate) struct Sidecars {
    binary: PathBuf,
    running: Vec<Sidecar>,
    any_end: Arc<Notify>,
    pids: Pids,
}

struct Sidecar {
    service: &'static str,
    ended: watch::Receiver<Option<ExitStatus>>,
    log: Arc<Log>,
}

impl Sidecars {
    pub(crate) fn new(binary: PathBuf, pids: Pids) -> Sidecars {
        Sidecars { binary, running: Vec::new(), any_end: Arc::default(), pids }
    }

    /// Starts a sidecar and waits until it says that it is ready.
    pub(crate) async fn start(&mut self, plan: &Plan<'_>) -> Result<Listeners, String> {
        let command = command(&self.binary, plan);
        self.run(plan.service, command).await
    }

    async fn run(&mut self, service: &'static str, mut command: Command) -> Result<Listeners, String> {
        let mut child = command
            .spawn()
            .map_err(|error| format!("{} could not be started: {error}", self.binary.display()))?;
        let pid = child.id();
        self.pids.add(pid);
        let log = Arc::<Log>::default();
        let (ready, awaited) = watch::channel(None);
        let (report, ended) = watch::channel(None);
        self.running.push(Sidecar { service, ended: ended.clone(), log: Arc::clone(&log) });

        let read = read_log(child.stderr.take(), Arc::clone(&log), ready);
        let (pids, any_end) = (self.pids.clone(), Arc::clone(&self.any_end));
        tokio::spawn(async move {
            let wait = async {
                let status = child.wait().await;
                pids.remove(pid);
                status
            };
            // The last lines are read before the end is told, since they have its reason.
            let (status, ()) = tokio::join!(wait, read);
            report.send_replace(status.ok());
            any_end.notify_waiters();
        });
        let ready = tokio::time::timeout(READY_TIMEOUT, readiness(awaited, ended)).await;
        ready
            .unwrap_or_else(|_| Err(format!("was not ready within {} s", READY_TIMEOUT.as_secs())))
            .map_err(|reason| format!("the sidecar of {service} {reason}{}", log.quoted()))
    }

    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    /// Waits until a sidecar ends by itself, and says which and why.
    pub(crate) async fn first_end(&self) -> String {
        loop {
            let any_end = self.any_end.notified();
            for sidecar in &self.running {
                if let Some(status) = *sidecar.ended.borrow() {
                    let (service, log) = (sidecar.service, sidecar.log.quoted());
                    return format!("the sidecar of {service} ended by itself ({status}){log}");
                }
            }
            any_end.await;
        }
    }

    /// Ends every sidecar: first by SIGTERM, so that requests finish and spans are flushed, then,
    /// when that takes too long or `hurry` completes, by SIGKILL.
    pub(crate) async fn stop(&mut self, hurry: impl Future) {
        signal(&self.pids, "TERM");
        let in_time = tokio::select! {
            () = all_ended(&mut self.running) => true,
            _ = hurry => false,
            () = tokio::time::sleep(STOP_TIMEOUT) => false,
        };
        if !in_time {
            self.pids.kill();
            // Only a process that the kernel cannot end outlasts this; its handle is dropped.
            let _ = tokio::time::timeout(KILL_TIMEOUT, all_ended(&mut self.running)).await;
        }
        self.running.clear();
    }
}

async fn all_ended(running: &mut [Sidecar]) {
    for sidecar in running {
        // An error means that the task which held the child is gone, and the child with it.
        let _ = sidecar.ended.wait_for(Option::is_some).await;
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
        .env("OTEL_METRICS_EXPORTER", "none")
        // Spans leave soon, so that a trace is drawn while its request is still in mind.
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .env("THROUGHLINE_INBOUND_LISTEN", plan.inbound.to_string())
        .env("THROUGHLINE_INBOUND_UPSTREAM", plan.upstream.to_string())
        .env("THROUGHLINE_OUTBOUND_LISTEN", "127.0.0.1:0")
        .env("THROUGHLINE_ADMIN_LISTEN", "127.0.0.1:0")
        .env("THROUGHLINE_WORKER_THREADS", "1")
        .env("THROUGHLINE_DRAIN_TIMEOUT", DRAIN_MS.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Ctrl-C reaches the demo alone, which then ends its sidecars in order.
        .process_group(0)
        .kill_on_drop(true);
    if !routes.is_empty() {
        command.env("THROUGHLINE_OUTBOUND_ROUTES", routes.join(","));
    }
    if plan.tells_trace_id {
        command.env("THROUGHLINE_RESPONSE_HEADERS", "x-trace-id");
    }
    command
}

/// Reads a sidecar's log until it ends, and tells when it is ready.
async fn read_log(stderr: Option<ChildStderr>, log: Arc<Log>, ready: watch::Sender<Option<Listeners>>) {
    let Some(stderr) = stderr else { return };
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(listeners) = listeners(&line) {
            ready.send_replace(Some(listeners));
        }
        log.add(&line);
    }
}

/// Reads the log line that says where the sidecar listens.
fn listeners(line: &str) -> Option<Listeners> {
    let line: Value = serde_json::from_str(line).ok()?;
    if line.get("message")?.as_str()? != "ready" {
        return None;
    }
    let address = |name: &str| line.get(name)?.as_str()?.parse().ok();
    Some(Listeners { inbound: address("inbound")?, outbound: address("outbound")?, admin: address("admin")? })
}

async fn readiness(
    mut ready: watch::Receiver<Option<Listeners>>,
    mut ended: watch::Receiver<Option<ExitStatus>>,
) -> Result<Listeners, String> {
    let exit = async {
        match ended.wait_for(Option::is_some).await.map(|status| *status) {
            Ok(Some(status)) => format!("ended at once ({status})"),
            Ok(None) | Err(_) => "was lost".to_owned(),
        }
    };
    let logged = async {
        // An error means that the log has ended: then the exit has the reason.
        match ready.wait_for(Option::is_some).await.map(|listeners| *listeners) {
            Ok(Some(listeners)) => listeners,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    };
    let listening = async {
        let listeners = logged.await;
        while !says_ready(listeners.admin).await {
            tokio::time::sleep(READY_PAUSE).await;
        }
        listeners
    };
    tokio::select! {
        reason = exit => Err(reason),
        listeners = listening => Ok(listeners),
    }
}

async fn says_ready(admin: SocketAddr) -> bool {
    let request = Request::get("/readyz").header("host", admin.to_string()).body(Bytes::new());
    let Ok(request) = request else { return false };
    call::exchange(admin, request).await.is_ok_and(|answer| answer.status() == StatusCode::OK)
}

/// The last lines of a sidecar's log.
#[derive(Default)]
struct Log {
    tail: Mutex<VecDeque<String>>,
}

impl Log {
    fn add(&self, line: &str) {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line.chars().take(TAIL_LINE_CHARS).collect());
    }

    /// The lines, to be put behind a reason.
    fn quoted(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.is_empty() {
            return "; it logged nothing".to_owned();
        }
        tail.iter().fold("; its last lines:".to_owned(), |text, line| format!("{text}\n    {line}"))
    }
}

/// The processes that are to be ended, for those who may have to do it in a hurry.
#[derive(Clone, Default)]
pub(crate) struct Pids(Arc<Mutex<Vec<u32>>>);

impl Pids {
    fn add(&self, pid: Option<u32>) {
        self.list().extend(pid);
    }

    fn remove(&self, pid: Option<u32>) {
        self.list().retain(|known| Some(*known) != pid);
    }

    /// Ends every process at once; for a panic, which may find the runtime in any state.
    pub(crate) fn kill(&self) {
        signal(self, "KILL");
    }

    fn list(&self) -> MutexGuard<'_, Vec<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a signal to every process of ours that has not been reaped. The shell's own `kill` does
/// it, since the system call would need `unsafe`.
fn signal(pids: &Pids, name: &str) {
    let targets: Vec<String> = pids.list().iter().map(ToString::to_string).collect();
    if targets.is_empty() {
        return;
    }
    // A failure means that they are gone already; what is left dies with its handle.
    let _ = std::process::Command::new("sh")
        .args(["-c", &format!("kill -{name} {}", targets.join(" "))])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell's script in the sidecar's place.
    fn script(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    fn sidecars() -> Sidecars {
        Sidecars::new("/nowhere/throughline-proxy".into(), Pids::default())
    }

    #[test]
    fn the_ready_line_tells_where_it_listens() {
        let line = r#"{"level":"info","message":"ready","inbound":"127.0.0.1:1","outbound":"127.0.0.1:2","admin":"127.0.0.1:3"}"#;
        let read = listeners(line).map(|l| [l.inbound.port(), l.outbound.port(), l.admin.port()]);
        assert_eq!(read, Some([1, 2, 3]));
        assert!(listeners(r#"{"message":"draining"}"#).is_none());
        assert!(listeners("ready").is_none());
    }

    #[tokio::test]
    async fn a_sidecar_that_ends_at_once_is_quoted() {
        let started = sidecars().run("stock", script("echo first >&2; echo 'port in use' >&2; exit 1")).await;
        assert_eq!(
            started.unwrap_err(),
            "the sidecar of stock ended at once (exit status: 1); its last lines:\n    first\n    port in use"
        );
    }

    #[tokio::test]
    async fn a_sidecar_that_ends_later_is_told_of() {
        let mut sidecars = sidecars();
        let _ = sidecars.run("stock", script("exit 3")).await;
        let reason = sidecars.first_end().await;
        assert_eq!(reason, "the sidecar of stock ended by itself (exit status: 3); it logged nothing");
    }

    #[tokio::test]
    async fn a_missing_binary_is_named() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let plan = Plan {
            service: "stock",
            inbound: address,
            upstream: address,
            routes: &[("warehouse", address)],
            receiver: address,
            tells_trace_id: false,
        };
        let reason = sidecars().start(&plan).await.unwrap_err();
        assert!(reason.starts_with("/nowhere/throughline-proxy could not be started: "), "{reason}");
    }

    #[tokio::test]
    async fn stopping_in_a_hurry_leaves_no_process_even_of_a_deaf_sidecar() {
        let mut sidecars = sidecars();
        tokio::select! {
            biased;
            _ = sidecars.run("stock", script("trap '' TERM; while :; do sleep 0.1; done")) => {}
            // The first look at the other branch has started the process.
            () = std::future::ready(()) => {}
        }
        assert_eq!(sidecars.pids.list().len(), 1);
        sidecars.stop(std::future::ready(())).await;
        assert_eq!(*sidecars.pids.list(), Vec::<u32>::new());
    }
}
