//! The Pub/Sub broker between orders and shipping: Google's emulator where it is installed, else the
//! demo's own. Decides which, starts it, and makes the topic and the subscription; holds no messages.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::args::Broker as Wanted;
use crate::call;
use crate::demo_broker;
use crate::process::{Process, Processes};
use crate::shop::{DELIVERIES, TOPIC};

/// The subscription by which shipping gets its pushes.
const SUBSCRIPTION: &str = "projects/shop/subscriptions/shipping";

/// The emulator's share of a Google Cloud SDK, where packages put it.
const WELL_KNOWN: &str = "/usr/lib/google-cloud-sdk/platform/pubsub-emulator/lib";
const PACKAGE: &str = "google-cloud-cli-pubsub-emulator";
/// What a reader waits for the emulator before the demo's own broker takes over.
const PATIENCE: Duration = Duration::from_secs(10);
/// What somebody who asked for the emulator waits: a cold disk and a busy machine included.
const PATIENCE_ASKED: Duration = Duration::from_secs(60);
/// The pause between two tries to make the topic.
const READY_PAUSE: Duration = Duration::from_millis(50);
/// Ports for the broker, and how many are tried.
const PORTS: Range<u16> = 20_000..32_000;
const PORT_TRIES: usize = 20;
/// For a program that runs for a minute: a sixth off its start (1.27 to 1.07 s), and a bound for its memory.
const JAVA_FLAGS: [&str; 3] = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m"];

/// The broker, from the moment its address is known.
pub(crate) struct Broker {
    address: SocketAddr,
    kind: Kind,
    /// Whether the demo's own broker may take the emulator's place.
    replaceable: bool,
}

enum Kind {
    Emulator {
        process: Process,
        started: Instant,
    },
    /// The demo's own, and why not the emulator.
    Own(String),
}

impl Broker {
    /// Chooses a broker and starts it. It takes messages once [`Broker::ready`] is done.
    /// `user_port` is kept free for the shop.
    pub(crate) async fn start(
        wanted: Wanted,
        user_port: u16,
        processes: &mut Processes,
    ) -> Result<Broker, String> {
        let found = match wanted {
            Wanted::Own => Err("--broker own asks for it".to_owned()),
            Wanted::Auto | Wanted::Emulator => tokio::task::spawn_blocking(installed)
                .await
                .unwrap_or_else(|_| Err("looking for the emulator failed".to_owned())),
        };
        let replaceable = wanted == Wanted::Auto;
        let listener = listen(user_port).await.map_err(no_port)?;
        let address = listener.local_addr().map_err(no_port)?;
        match found {
            Ok(jar) => {
                drop(listener);
                let process = processes.start("the Pub/Sub emulator", emulator(&jar, address), |_| {})?;
                Ok(Broker { address, kind: Kind::Emulator { process, started: Instant::now() }, replaceable })
            }
            Err(reason) if wanted == Wanted::Emulator => Err(format!("no Pub/Sub emulator: {reason}")),
            Err(reason) => {
                tokio::spawn(demo_broker::serve(listener));
                Ok(Broker { address, kind: Kind::Own(reason), replaceable })
            }
        }
    }

    /// Where Pub/Sub calls go.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Which broker it is, in a sentence.
    pub(crate) fn introduction(&self) -> String {
        match &self.kind {
            Kind::Emulator { .. } => {
                "Orders reach shipping through Google's Pub/Sub emulator, which is starting meanwhile."
                    .to_owned()
            }
            Kind::Own(reason) => own(reason),
        }
    }

    /// Waits until the broker takes messages for `endpoint`. Returns what is to be told of it.
    pub(crate) async fn ready(
        &mut self,
        endpoint: SocketAddr,
        processes: &mut Processes,
    ) -> Result<Option<String>, String> {
        let Kind::Emulator { process, started } = &mut self.kind else {
            make_queue(self.address, endpoint).await?;
            return Ok(None);
        };
        let patience = if self.replaceable { PATIENCE } else { PATIENCE_ASKED };
        let deadline = (*started + patience).into();
        let reason = tokio::select! {
            reason = process.end() => process.complaint(&reason),
            made = tokio::time::timeout_at(deadline, made_in_time(self.address, endpoint)) => match made {
                Ok(()) => {
                    let after = started.elapsed().as_secs_f64();
                    return Ok(Some(format!("The Pub/Sub emulator is ready, {after:.1} s after its start.")));
                }
                Err(_) => process.complaint(&format!("was not ready within {} s", patience.as_secs())),
            },
        };
        if !self.replaceable {
            return Err(reason);
        }
        processes.kill().await;
        // The sidecar of orders knows this address, so it stays the broker's.
        let listener = TcpListener::bind(self.address).await.map_err(no_port)?;
        tokio::spawn(demo_broker::serve(listener));
        make_queue(self.address, endpoint).await?;
        let said = own(&reason);
        self.kind = Kind::Own(reason);
        Ok(Some(said))
    }
}

/// Takes a port for the broker. The emulator cannot be handed one that is open, so for a second it is
/// nobody's: it lies below those that the kernel gives to the sidecars, and where the demo's own process
/// id says, so that two demos try different ones.
async fn listen(user_port: u16) -> io::Result<TcpListener> {
    let first =
        PORTS.start + u16::try_from(std::process::id() % u32::from(PORTS.end - PORTS.start)).unwrap_or(0);
    for port in (first..PORTS.end).take(PORT_TRIES).filter(|port| *port != user_port) {
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            return Ok(listener);
        }
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await
}

fn own(reason: &str) -> String {
    format!("Orders reach shipping through the demo's own small push broker: {reason}")
}

fn no_port(error: io::Error) -> String {
    format!("the broker has no port: {error}")
}

/// Finds the emulator, or says what is missing for it.
fn installed() -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join("java").is_file()) {
        return Err("no java in PATH for Google's emulator".to_owned());
    }
    let listed = std::fs::read_dir(WELL_KNOWN).into_iter().flatten().flatten().map(|entry| entry.path());
    listed
        .chain(std::iter::once_with(packaged).flatten())
        .find(|path| is_emulator(path) && path.is_file())
        .ok_or_else(|| format!("Google's emulator is not installed: package {PACKAGE}"))
}

/// The files of the package, on a machine that has it.
fn packaged() -> Vec<PathBuf> {
    let asked = std::process::Command::new("dpkg").args(["-L", PACKAGE]).stderr(Stdio::null()).output();
    let answer = asked.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&answer).lines().map(PathBuf::from).collect()
}

fn is_emulator(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("cloud-pubsub-emulator") && name.ends_with(".jar")
}

fn emulator(jar: &Path, address: SocketAddr) -> Command {
    let mut command = Command::new("java");
    command
        .args(JAVA_FLAGS)
        .arg("-jar")
        .arg(jar)
        .arg(format!("--host={}", address.ip()))
        .arg(format!("--port={}", address.port()));
    command
}

async fn made_in_time(broker: SocketAddr, endpoint: SocketAddr) {
    while make_queue(broker, endpoint).await.is_err() {
        tokio::time::sleep(READY_PAUSE).await;
    }
}

/// Makes the topic, and the subscription that pushes to `endpoint`; what is there already is as good.
async fn make_queue(broker: SocketAddr, endpoint: SocketAddr) -> Result<(), String> {
    put(broker, TOPIC, &json!({})).await?;
    let subscription = json!({
        "topic": TOPIC,
        "pushConfig": { "pushEndpoint": format!("http://{endpoint}{DELIVERIES}") },
        "ackDeadlineSeconds": 10,
    });
    put(broker, SUBSCRIPTION, &subscription).await
}

async fn put(broker: SocketAddr, name: &str, what: &serde_json::Value) -> Result<(), String> {
    let request = Request::builder()
        .method(Method::PUT)
        .uri(format!("/v1/{name}"))
        .header(HOST, broker.to_string())
        .header(CONTENT_TYPE, "application/json")
        .body(Bytes::from(what.to_string()))
        .map_err(|error| error.to_string())?;
    let answer = call::exchange(broker, request).await.map_err(|reason| format!("the broker: {reason}"))?;
    match answer.status() {
        StatusCode::OK | StatusCode::CONFLICT => Ok(()),
        status => Err(format!("the broker answered {status} to the making of {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emulator_is_known_by_the_name_of_its_jar() {
        assert!(is_emulator(Path::new("/x/lib/cloud-pubsub-emulator-0.8.20-all.jar")));
        for other in ["/x/lib/guava.jar", "/x/bin/cloud-pubsub-emulator", "/x/lib", "/"] {
            assert!(!is_emulator(Path::new(other)), "{other}");
        }
    }
}
