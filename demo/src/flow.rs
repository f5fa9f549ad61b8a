//! The flow server of the demo: a real `throughline-flow` that takes what the sidecars send, keeps it in memory, and
//! hands it on to the demo's receiver. So what is drawn has been through it. Decides its ports; knows no span.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::watch;

use crate::process::Processes;

/// Where the API and the page are, unless something else is there.
const PORT: u16 = 8090;
/// It is ready within this time, or the demo gives up.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// A flow server that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// The API and the page for people.
    pub(crate) api: SocketAddr,
    /// Where spans and metrics go, by HTTP.
    pub(crate) otlp: SocketAddr,
}

/// The binary that was given, else the one beside the demo's own.
pub(crate) fn binary(given: Option<&Path>) -> Result<PathBuf, String> {
    let binary = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()
            .map_err(|error| format!("own path unknown, so --flow PATH is needed: {error}"))?
            .with_file_name("throughline-flow"),
    };
    let how = "`make demo` builds it (or: cargo build --profile quick -p throughline-flow); --flow PATH names \
               another one";
    if binary.is_file() { Ok(binary) } else { Err(format!("no flow server at {}: {how}", binary.display())) }
}

/// Starts it, and waits until it is ready. What it takes it sends on to `receiver`.
pub(crate) async fn start(
    binary: &Path,
    receiver: SocketAddr,
    processes: &mut Processes,
) -> Result<Flow, String> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    // The listener closes at once: its port is for the server.
    let port = if TcpListener::bind(wanted).await.is_ok() { PORT } else { 0 };
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("THROUGHLINE_") || name.starts_with("OTEL_")) {
            command.env_remove(name);
        }
    }
    command
        .env("THROUGHLINE_FLOW_LISTEN", format!("127.0.0.1:{port}"))
        .env("THROUGHLINE_FLOW_OTLP_HTTP", "127.0.0.1:0")
        .env("THROUGHLINE_FLOW_OTLP_GRPC", "off")
        .env("THROUGHLINE_FLOW_MEMORY_ONLY", "on")
        .env("THROUGHLINE_FLOW_FAN_OUT", format!("http://{receiver}"))
        .env("THROUGHLINE_FLOW_DRAIN_TIMEOUT", "1000");
    let (ready, mut awaited) = watch::channel(None);
    let heard = move |line: &str| {
        if let Some(told) = told(line) {
            ready.send_replace(Some(told));
        }
    };
    let mut process = processes.start("the flow server", command, heard)?;
    let told = async {
        match awaited.wait_for(Option::is_some).await.map(|told| *told) {
            Ok(Some(told)) => told,
            // The log has ended: then the exit has the reason.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    };
    let ready = tokio::select! {
        reason = process.end() => Err(reason),
        ready = tokio::time::timeout(READY_TIMEOUT, told) => {
            ready.map_err(|_| format!("was not ready within {} s", READY_TIMEOUT.as_secs()))
        }
    };
    ready.map_err(|reason| process.complaint(&reason))
}

/// Reads the log line that says where it listens.
fn told(line: &str) -> Option<Flow> {
    let line: Value = serde_json::from_str(line).ok()?;
    let address = |name: &str| line.get(name)?.as_str()?.parse().ok();
    (line.get("message")?.as_str()? == "ready").then_some(())?;
    Some(Flow { api: address("api")?, otlp: address("otlp_http")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_tells_where_it_listens() {
        let line = r#"{"level":"info","message":"ready","api":"127.0.0.1:1","otlp_http":"127.0.0.1:2"}"#;
        let expected = Flow { api: "127.0.0.1:1".parse().unwrap(), otlp: "127.0.0.1:2".parse().unwrap() };
        assert_eq!(told(line), Some(expected));
        assert_eq!(told(r#"{"message":"draining"}"#), None);
    }

    #[test]
    fn a_missing_flow_server_says_how_it_is_built() {
        let reason = binary(Some(Path::new("/nowhere/throughline-flow"))).unwrap_err();
        assert!(
            reason.starts_with("no flow server at /nowhere/throughline-flow: `make demo` builds it"),
            "{reason}"
        );
    }
}
