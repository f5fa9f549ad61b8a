//! Envoy with our filter as the other host: a real process, started from the shipped bootstrap as a user would, ready
//! when its admin port says so, ended by its own process id.

mod bootstrap;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

pub use bootstrap::{Bootstrap, is_built, module, shipped};

use crate::ask::Ask;
use crate::books::Books;
use crate::judges::skipped;
use crate::pki::Folder;
use crate::sidecar::{Ended, Running, Sidecar, workspace};
use crate::wait::{eventually, within};

/// The binary: `THROUGHLINE_ENVOY`, else one that `scripts/setup` brought.
pub fn binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("THROUGHLINE_ENVOY") {
        return Some(PathBuf::from(named));
    }
    let inside = "site-packages/envoy/_bin/envoy";
    let environments = ["target/judges/lib", "target/envoy/lib"].map(|folder| workspace().join(folder));
    let folders = environments.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    folders.map(|folder| folder.path().join(inside)).find(|file| file.is_file())
}

/// Whether Envoy and the module are here; says what is missing otherwise.
pub fn is_here() -> bool {
    match (binary(), is_built()) {
        (Some(_), true) => true,
        (None, _) => {
            skipped(
                "no Envoy in target/judges: `scripts/setup test` installs it, or name one by THROUGHLINE_ENVOY",
            );
            false
        }
        (_, false) => {
            skipped(&format!("no module at {}: `make wasm` builds it", module().display()));
            false
        }
    }
}

impl Bootstrap {
    /// Starts Envoy and waits until it serves.
    pub async fn start(self, name: &str) -> Sidecar {
        self.start_with(name, Launch::default()).await
    }

    /// As `start`, in an environment of choice.
    pub async fn start_with(self, name: &str, launch: Launch) -> Sidecar {
        let folder = Folder::fresh();
        let admin_file = folder.file("admin");
        let mut command = launch.command(&folder.write("envoy.json", self.root.to_string()));
        command.arg("--admin-address-path").arg(&admin_file);
        let mut running = Running::spawn(name, command);
        let admin: SocketAddr = running
            .unless_it_ends(eventually("the address of Envoy's admin port", || async {
                std::fs::read_to_string(&admin_file).ok()?.trim().parse().ok()
            }))
            .await;
        running.unless_it_ends(ready(admin)).await;
        let ports = listening(admin, &self.sides()).await;
        Sidecar::envoy(running, folder, admin, |side| {
            ports.iter().find(|(name, _)| name == side).map(|at| at.1)
        })
    }

    /// Lets Envoy load everything, the module with its configuration included, and say whether it would start.
    pub async fn validate(&self, name: &str) -> Ended {
        let folder = Folder::fresh();
        let mut command = Launch::default().command(&folder.write("envoy.json", self.root.to_string()));
        command.args(["--mode", "validate"]);
        let mut running = Running::spawn(name, command);
        let code = running.exit().await;
        running.ended(code).await
    }
}

/// How Envoy is started.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Worker threads.
    pub workers: u32,
    /// The command before Envoy's own: another namespace, another user.
    pub through: Vec<String>,
}

impl Default for Launch {
    fn default() -> Launch {
        Launch { workers: 1, through: Vec::new() }
    }
}

impl Launch {
    fn command(&self, file: &std::path::Path) -> Command {
        let envoy = binary().unwrap_or_else(|| {
            panic!("no Envoy to test: `scripts/setup test` installs one, or name one by THROUGHLINE_ENVOY")
        });
        let mut words = self.through.iter().map(PathBuf::from).chain([envoy]);
        let mut command = Command::new(words.next().expect("a command"));
        command.args(words).arg("-c").arg(file);
        // Without hot restart no two Envoys of a machine meet in shared memory.
        command.args(["--disable-hot-restart", "--concurrency", &self.workers.to_string()]);
        command.args(["-l", "warning", "--component-log-level", "wasm:info"]);
        command.args(["--log-format", r#"{"timestamp":"%Y-%m-%dT%T.%eZ","level":"%l","message":"%j"}"#]);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }
}

async fn ready(admin: SocketAddr) {
    eventually("a ready Envoy", || async {
        let answer = Ask::get(format!("http://{admin}/ready")).try_send().await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

async fn listening(admin: SocketAddr, sides: &[String]) -> Vec<(String, SocketAddr)> {
    eventually("listeners with their ports", || async {
        let answer = Ask::get(format!("http://{admin}/listeners?format=json")).send().await;
        let listeners: Value = serde_json::from_slice(&answer.body).ok()?;
        let found: Vec<_> = listeners["listener_statuses"].as_array()?.iter().filter_map(port_of).collect();
        (found.len() == sides.len()).then_some(found)
    })
    .await
}

fn port_of(listener: &Value) -> Option<(String, SocketAddr)> {
    let socket = &listener["local_address"]["socket_address"];
    let port = u16::try_from(socket["port_value"].as_u64().filter(|port| *port > 0)?).ok()?;
    let host = socket["address"].as_str()?.parse().ok()?;
    Some((listener["name"].as_str()?.to_owned(), SocketAddr::new(host, port)))
}

/// The filter's numbers. Envoy names counters without `_total`; here they have the names of the sidecar's `/metrics`.
pub async fn books(admin: SocketAddr) -> Books {
    let url = format!("http://{admin}/stats/prometheus?filter=throughline|vm_reload|downstream_rq_active");
    let answer = Ask::get(url).send().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let counters: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .filter(|name| name.starts_with("throughline_") && !name.ends_with("_total"))
        .collect();
    let renamed = |line: &str| {
        let name = line.split(['{', ' ']).next().unwrap_or(line);
        match counters.contains(&name) {
            true => format!("{name}_total{}\n", &line[name.len()..]),
            false => format!("{line}\n"),
        }
    };
    Books::read(&text.lines().map(renamed).collect::<String>())
}

/// Numbers that balance and say what happened until now. The filter tells Envoy its numbers at each tick, and Envoy
/// reads its counters one after the other while requests go on: of some looks one must balance.
pub(crate) async fn balanced(admin: SocketAddr) -> Books {
    tokio::time::sleep(TOLD_AFTER).await;
    for _ in 0..100 {
        let books = books(admin).await;
        if books.is_balanced() {
            return books;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let books = books(admin).await;
    books.assert_balanced();
    books
}

/// Two ticks of a filter whose `otel-bsp-schedule-delay` is 50 ms, as it is in the scenarios.
const TOLD_AFTER: Duration = Duration::from_millis(45);

/// Waits until no request is in flight and every span has left, as the end of the process takes the rest with it. At
/// most `patience`: a collector that is dead never takes them.
pub(crate) async fn settled(admin: SocketAddr, patience: Duration) {
    let settling = async {
        let mut before = None;
        loop {
            let books = books(admin).await;
            let active = |side| {
                books.sum("envoy_http_downstream_rq_active", &[("envoy_http_conn_manager_prefix", side)])
            };
            let idle = books.held() == 0 && active("inbound") + active("outbound") == 0;
            if idle && before == Some(books.created()) {
                return;
            }
            before = idle.then(|| books.created());
            tokio::time::sleep(TOLD_AFTER).await;
        }
    };
    let _ = tokio::time::timeout(patience, settling).await;
    let reloads = within("numbers of the VM", books(admin)).await.reloads();
    assert_eq!(reloads, 0, "the module failed and was loaded again");
}

/// What a failing module writes.
pub(crate) const FAILURES: &[&str] =
    &["Wasm VM failed", "Uncaught RuntimeError", "panicked at", "Failed to load Wasm", "wasm trap"];
