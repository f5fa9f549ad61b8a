//! Google's Pub/Sub emulator as a broker of the scenario's own, and the calls that set it up. It listens on a
//! free port of loopback and is killed by its own id when the scenario is over.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use throughline_tests::judges::{PeerProcess, installed, skipped};
use throughline_tests::prelude::*;

/// The emulator's package.
const PACKAGE: &str = "google-cloud-cli-pubsub-emulator";
/// How long a Java process may take to listen when two cores are shared with a compiler.
const START: Duration = Duration::from_secs(90);
/// The project of every scenario.
pub(crate) const PROJECT: &str = "shop-1";

/// A running emulator.
#[derive(Debug)]
pub(crate) struct Emulator {
    pub(crate) address: SocketAddr,
    _process: PeerProcess,
}

/// How a subscription delivers.
#[derive(Clone, Debug)]
pub(crate) enum Delivery {
    /// On demand.
    Pull,
    /// To this URL, in a JSON envelope.
    Wrapped(String),
    /// To this URL, with the metadata in headers.
    Metadata(String),
    /// To this URL, the data and nothing else.
    Bare(String),
}

/// The full name of a topic.
pub(crate) fn topic(id: &str) -> String {
    format!("projects/{PROJECT}/topics/{id}")
}

/// The full name of a subscription.
pub(crate) fn subscription(id: &str) -> String {
    format!("projects/{PROJECT}/subscriptions/{id}")
}

impl Emulator {
    /// Starts one; `None`, and said so, where Java or the emulator is missing.
    pub(crate) async fn start() -> Option<Emulator> {
        let java = installed("java")?;
        let jar = jar()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let mut command = Command::new(java);
        // Only the quick compiler: the process lives for seconds.
        command.args(["-XX:TieredStopAtLevel=1", "-Xmx256m", "-jar"]).arg(jar);
        command.args(["--host=127.0.0.1".to_owned(), format!("--port={}", address.port())]);
        let emulator = Emulator { address, _process: PeerProcess::start("the emulator", command) };
        let deadline = Instant::now() + START;
        while Ask::get(emulator.url("/")).try_send().await.is_err() {
            assert!(Instant::now() < deadline, "the emulator did not listen within {START:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(emulator)
    }

    /// A URL of the emulator, without a sidecar in between.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Makes a topic.
    pub(crate) async fn topic(&self, id: &str) {
        self.put(&topic(id), json!({})).await;
    }

    /// Makes a subscription to a topic.
    pub(crate) async fn subscribe(&self, to: &str, id: &str, delivery: Delivery) {
        self.subscribe_with(to, id, delivery, json!({})).await;
    }

    /// Makes a subscription to a topic, with further fields.
    pub(crate) async fn subscribe_with(&self, to: &str, id: &str, delivery: Delivery, more: Value) {
        let push = match delivery {
            Delivery::Pull => json!({}),
            Delivery::Wrapped(url) => json!({"pushEndpoint": url}),
            Delivery::Metadata(url) => json!({"pushEndpoint": url, "noWrapper": {"writeMetadata": true}}),
            Delivery::Bare(url) => json!({"pushEndpoint": url, "noWrapper": {"writeMetadata": false}}),
        };
        let mut body = json!({"topic": topic(to), "pushConfig": push});
        let fields = more.as_object().expect("an object").clone();
        body.as_object_mut().expect("an object").extend(fields);
        self.put(&subscription(id), body).await;
    }

    async fn put(&self, name: &str, body: Value) {
        let answer = Ask::new("PUT", self.url(&format!("/v1/{name}")))
            .body(throughline_tests::feed::whole(body.to_string()))
            .header("content-type", "application/json")
            .send()
            .await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    }
}

fn jar() -> Option<PathBuf> {
    let listed = Command::new("dpkg").args(["-L", PACKAGE]).output();
    let text = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let is_jar = |line: &&str| line.contains("/cloud-pubsub-emulator-") && line.ends_with(".jar");
    let found = text.lines().find(is_jar).map(PathBuf::from);
    if found.is_none() {
        skipped(&format!("the Pub/Sub emulator ({PACKAGE}) is not installed"));
    }
    found
}
