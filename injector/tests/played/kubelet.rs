//! The part of a kubelet: what it makes of a container's fields, and how it probes.

use std::net::SocketAddr;
use std::process::Output;

use serde_json::Value;
use throughline_tests::cluster::Pod;
use throughline_tests::envoy;
use throughline_tests::grpc;
use throughline_tests::judges::PeerProcess;
use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;
use tokio::net::TcpStream;

/// What it says of itself over HTTP and gRPC.
const AGENT: &str = "kube-probe/1.33";

pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// What the downward API knows of a pod.
fn fact(path: &str, pod: &Pod) -> String {
    match path {
        "metadata.name" => "web-5d7f9c-x2x4z".to_owned(),
        "metadata.uid" => "0b1c5a52-5a52-4c0e-9d5f-0b1c5a525a52".to_owned(),
        "status.podIP" => pod.v4.to_string(),
        "spec.nodeName" => "node-1".to_owned(),
        "status.hostIP" => throughline_tests::cluster::HUB.to_string(),
        other => panic!("no such field: {other}"),
    }
}

/// The variables of a container: `$(NAME)` stands for one before it, `$$` for a dollar.
pub(crate) fn environment(container: &Value, pod: &Pod) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for one in list(container, "/env") {
        let value = match one.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str) {
            Some(path) => fact(path, pod),
            None => expanded(text(one, "/value"), &all),
        };
        all.push((text(one, "/name").to_owned(), value));
    }
    all
}

fn expanded(value: &str, known: &[(String, String)]) -> String {
    let (mut out, mut rest) = (String::new(), value);
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let named = after.strip_prefix('(').and_then(|name| name.split_once(')'));
        let found = named.and_then(|(name, rest)| Some((known.iter().rfind(|(key, _)| key == name)?, rest)));
        match (after.strip_prefix('$'), found) {
            (Some(after), _) => {
                out.push('$');
                rest = after;
            }
            (None, Some(((_, value), after))) => {
                out.push_str(value);
                rest = after;
            }
            (None, None) => {
                out.push('$');
                rest = after;
            }
        }
    }
    out + rest
}

/// The words before a command that give it what a security context leaves it.
fn confined(container: &Value, pod: &Pod) -> Vec<String> {
    let context = &container["securityContext"];
    assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]), "{container}");
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    let added = list(context, "/capabilities/add").filter_map(Value::as_str);
    let set: String = added.map(|name| format!(",+{}", name.to_ascii_lowercase())).collect();
    let id = |key: &str| context[key].as_u64().unwrap_or_else(|| panic!("{key}: {container}")).to_string();
    let (user, group) = (id("runAsUser"), id("runAsGroup"));
    // The namespace of mounts is the command's own: `ip netns exec` makes one.
    let read_only = ["sh", "-c", r#"mount -o remount,bind,ro / && exec "$@""#, "sh"];
    let alone = ["setpriv", "--reuid", &user, "--regid", &group, "--clear-groups", "--no-new-privs"];
    let mut words = pod.words();
    words.extend(read_only.iter().chain(&alone).map(|word| (*word).to_owned()));
    words.extend(["--inh-caps=-all".to_owned(), format!("--bounding-set=-all{set}")]);
    words
}

/// The command of one of our containers, with the image's binary for its own.
fn command(container: &Value, pod: &Pod) -> Vec<String> {
    let mut words = confined(container, pod);
    words.push(pod.binary().display().to_string());
    let command: Vec<&str> = list(container, "/command").filter_map(Value::as_str).collect();
    assert!(command.first().is_none_or(|first| *first == "throughline-proxy"), "{command:?}");
    words.extend(command.iter().skip(1).map(|word| (*word).to_owned()));
    words.extend(list(container, "/args").filter_map(Value::as_str).map(str::to_owned));
    words
}

/// Runs an init container of ours to its end.
pub(crate) fn run(container: &Value, pod: &Pod, and: &[&str]) -> Output {
    let words = command(container, pod);
    let mut command = std::process::Command::new(&words[0]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.args(&words[1..]).args(and).env_clear().env("PATH", path).envs(environment(container, pod));
    command.output().expect("ip runs")
}

/// Starts the sidecar, and waits as its startupProbe does; from then on the containers after it start.
pub(crate) async fn started(container: &Value, pod: &Pod) -> Sidecar {
    let checked = run(container, pod, &["--check"]);
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success() && said.is_empty(), "settings that the sidecar does not take: {said}");
    let plan = Plan::bare("web").through(command(container, pod)).reached_at(pod.v4.into());
    let environment = environment(container, pod);
    let plan = environment.iter().fold(plan, |plan, (name, value)| plan.environment(name, value));
    let sidecar = plan.start().await;
    let probe = container["startupProbe"].clone();
    eventually("the startup probe", || async { passes(&probe, pod).await.then_some(()) }).await;
    sidecar
}

/// The same of Envoy, with the module where it was built.
pub(crate) async fn started_envoy(container: &Value, pod: &Pod) -> PeerProcess {
    let mut words = confined(container, pod);
    words.push(envoy::binary().expect("Envoy").display().to_string());
    let environment = environment(container, pod);
    let module = envoy::module().display().to_string();
    let arguments = list(container, "/args").filter_map(Value::as_str);
    words.extend(
        arguments
            .map(|one| expanded(one, &environment).replace("/etc/throughline/throughline.wasm", &module)),
    );
    let mut command = std::process::Command::new(&words[0]);
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.args(&words[1..]).env_clear().env("PATH", path).envs(environment);
    let process = PeerProcess::start("envoy", command);
    let probe = container["startupProbe"].clone();
    eventually("the startup probe", || async { passes(&probe, pod).await.then_some(()) }).await;
    process
}

/// Whether a probe passes, from the node.
pub(crate) async fn passes(probe: &Value, pod: &Pod) -> bool {
    let at = |handler: &str| {
        let port = probe[handler]["port"].as_u64().unwrap_or_else(|| panic!("a number: {probe}"));
        SocketAddr::from((pod.v4, u16::try_from(port).expect("a port")))
    };
    if probe.get("httpGet").is_some() {
        let url = format!("http://{}{}", at("httpGet"), text(probe, "/httpGet/path"));
        let answer = Ask::get(url).header("user-agent", AGENT).try_send().await;
        return answer.is_ok_and(|answer| (200..400).contains(&answer.status));
    }
    if probe.get("tcpSocket").is_some() {
        return TcpStream::connect(at("tcpSocket")).await.is_ok();
    }
    let url = format!("http://{}/grpc.health.v1.Health/Check", at("grpc"));
    let ask = Ask::post(url, grpc::framed(b"")).header("content-type", "application/grpc");
    let ask = ask.header("te", "trailers").header("user-agent", AGENT).over(Protocol::H2);
    let answer = ask.try_send().await;
    answer.is_ok_and(|answer| grpc::messages(answer.body).first().is_some_and(|one| one[..] == *b"\x08\x01"))
}
