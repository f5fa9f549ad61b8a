//! One Deployment in every layout: injected by the command, played in a network namespace, called, and killed.

use std::path::PathBuf;
use std::process::Command;

use opentelemetry_proto::tonic::metrics::v1::metric;
use serde_json::Value;
use throughline_tests::cluster::{ANOTHER_USER, Cluster, HUB, Pod};
use throughline_tests::grpc;
use throughline_tests::judges::{PeerProcess, installed};
use throughline_tests::prelude::{Copying, Kind, Service, Sidecar, answer, eventually, script, the_only};
use throughline_tests::service::response;
use tokio::net::TcpListener;

use crate::kubelet::{environment, list, passes, run, started, started_envoy, text};

const DEPLOYMENT: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, app.kubernetes.io/version: "1.4"}}
    spec:
      initContainers:
      - {name: migrate, image: shop/migrate:1.4}
      containers:
      - name: web
        image: shop/web:1.4
        ports: [{name: http, containerPort: 8080}, {containerPort: 9000}, {containerPort: 5432}]
        readinessProbe: {httpGet: {path: /healthz, port: http}}
        livenessProbe: {tcpSocket: {port: 5432}}
        startupProbe: {grpc: {port: 9000}}
"#;

/// The pod that the command makes of the Deployment.
fn injected(flags: &[&str]) -> Value {
    let file: PathBuf = std::env::temp_dir().join(format!(
        "throughline-played-{}-{:?}.yaml",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&file, DEPLOYMENT).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughline-injector"));
    let output = command.args(["inject", "-f"]).arg(&file).args(flags).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "nothing to be told of: {said}");
    let all = String::from_utf8(output.stdout).unwrap();
    let all = serde_yaml::Deserializer::from_str(&all);
    let mut all = all.map(|one| serde::Deserialize::deserialize(one).unwrap());
    all.find(|one: &Value| one["kind"] == "Deployment").unwrap()["spec"]["template"].clone()
}

/// A real client of the application's: curl, with the variables of its container, as a user of its own.
fn calls(container: &Value, pod: &Pod, url: &str, traceparent: Option<String>) -> Command {
    let mut words = pod.words();
    words.extend(Pod::as_user(ANOTHER_USER));
    words.extend(["curl", "--silent", "--show-error", "--fail", "--max-time", "20"].map(str::to_owned));
    words
        .extend(traceparent.into_iter().flat_map(|value| ["-H".to_owned(), format!("traceparent: {value}")]));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(url).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(environment(container, pod));
    command
}

/// What it is answered.
async fn called(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{command}", command = String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The application as a process of its own would be: when it dies, so do its connections.
struct Application {
    runtime: tokio::runtime::Runtime,
    _services: Vec<Service>,
}

impl Application {
    fn start(container: &Value, pod: &Pod, peer: &str) -> Application {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let services = {
            let _inside = runtime.enter();
            application(container, pod, peer)
        };
        Application { runtime, _services: services }
    }

    fn dies(self) {
        self.runtime.shutdown_background();
    }
}

/// The application: HTTP that calls `peer` and hands its context on, gRPC's health, and a port of another protocol.
fn application(container: &Value, pod: &Pod, peer: &str) -> Vec<Service> {
    let (container, pod_of, peer) = (container.clone(), pod.clone(), peer.to_owned());
    let web = script(move |visit| {
        let context = Copying::TraceparentOnly.from(visit.request.headers());
        let context = context.get("traceparent").map(|value| value.to_str().unwrap().to_owned());
        let is_probe = visit.request.uri().path() == "/healthz";
        let command = calls(&container, &pod_of, &peer, context);
        async move { response(200, if is_probe { "well".to_owned() } else { called(command).await }) }
    });
    let on = |port: u16, script| Service::on(pod.listen((std::net::Ipv6Addr::UNSPECIFIED, port)), script);
    vec![on(8080, web), on(9000, grpc::answering(&[b"\x08\x01"], 0)), on(5432, answer(200, ""))]
}

/// The port at which callers of the Service arrive.
fn target(pod: &Value) -> u16 {
    let containers = list(pod, "/spec/initContainers").chain(list(pod, "/spec/containers"));
    let mut found = containers.flat_map(|one| list(one, "/ports")).filter(|port| port["name"] == "http");
    let port = found.next().expect("a port of that name")["containerPort"].as_u64().unwrap();
    assert!(found.next().is_none(), "one port of that name");
    u16::try_from(port).unwrap()
}

/// Plays the pod with these flags. `order`: the names of its containers, the first ones up to `|` run before the
/// application's own.
async fn is_traced_and_tells_the_truth(flags: &[&str], order: &str) {
    if installed("curl").is_none() {
        return;
    }
    let Some(cluster) = Cluster::make().await else { return };
    let endpoint = cluster.collector.endpoint();
    let quick = "{otel-bsp-schedule-delay: 50, otel-metric-export-interval: 200}";
    let with = ["--otlp-endpoint", &endpoint, "--sidecar-settings", quick];
    let manifest = injected(&[flags, &with].concat());
    let names =
        |pointer: &str| list(&manifest, pointer).map(|one| text(one, "/name")).collect::<Vec<_>>().join(" ");
    assert_eq!(format!("{} | {}", names("/spec/initContainers"), names("/spec/containers")), order);

    let pod = cluster.pod("web");
    let peer = Service::on(TcpListener::bind((HUB, 0)).await.unwrap(), answer(200, "twelve"));
    let web = list(&manifest, "/spec/containers").find(|one| one["name"] == "web").unwrap();
    let (mut sidecar, mut envoy): (Option<Sidecar>, Option<PeerProcess>) = (None, None);
    let mut app = None;
    let mut expected = 2;
    for one in list(&manifest, "/spec/initContainers").chain(list(&manifest, "/spec/containers")) {
        match text(one, "/name") {
            // A kubelet that was restarted may run them once more.
            "throughline-rules" => {
                for _ in 0..2 {
                    let output = run(one, &pod, &[]);
                    let said = String::from_utf8_lossy(&output.stderr);
                    assert!(output.status.success(), "{said}");
                }
            }
            "throughline-proxy" => sidecar = Some(started(one, &pod).await),
            "throughline-envoy" => envoy = Some(started_envoy(one, &pod).await),
            "migrate" => {
                expected += usize::from(sidecar.is_some() || envoy.is_some());
                assert_eq!(called(calls(one, &pod, &peer.url("/migrate"), None)).await, "twelve");
            }
            "web" => {
                if sidecar.is_some() || envoy.is_some() {
                    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                        assert!(!passes(&web[probe], &pod).await, "{probe} of nobody");
                    }
                }
                app = Some(Application::start(web, &pod, &peer.url("/stock")));
            }
            other => panic!("{other}"),
        }
    }
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        eventually(probe, || async { passes(&web[probe], &pod).await.then_some(()) }).await;
    }
    let mut all = list(&manifest, "/spec/initContainers").chain(list(&manifest, "/spec/containers"));
    let ours =
        all.find(|one| ["throughline-proxy", "throughline-envoy"].contains(&text(one, "/name"))).unwrap();
    for probe in ["livenessProbe", "readinessProbe"].iter().filter_map(|probe| ours.get(probe)) {
        assert!(passes(probe, &pod).await, "{probe}");
    }

    let url = format!("http://{}:{}/orders", pod.v4, target(&manifest));
    let answer = throughline_tests::prelude::Ask::get(url).send().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "twelve"));
    let spans = cluster.collector.spans(expected).await;
    let server = the_only(&spans, |span| span.kind == Kind::Server);
    let client = the_only(&spans, |span| span["url.full"] == peer.url("/stock").as_str());
    assert_eq!((client.trace.as_str(), client.parent.as_str()), (server.trace.as_str(), server.id.as_str()));
    for (key, value) in [
        ("service.name", "web"),
        ("service.namespace", "shop"),
        ("service.version", "1.4"),
        ("service.instance.id", "shop.web-5d7f9c-x2x4z.web"),
        ("k8s.namespace.name", "shop"),
        ("k8s.deployment.name", "web"),
        ("k8s.pod.name", "web-5d7f9c-x2x4z"),
        ("k8s.node.name", "node-1"),
        ("k8s.container.name", "web"),
    ] {
        assert_eq!(server.resource.get(key), Some(&Value::from(value)), "{key}");
    }
    cluster
        .collector
        .metrics_when("exponential histograms of requests", |request| {
            let metrics = request.resource_metrics.iter().flat_map(|one| &one.scope_metrics);
            metrics.flat_map(|one| &one.metrics).any(|one| {
                let exponential = matches!(&one.data, Some(metric::Data::ExponentialHistogram(_)));
                one.name == "http.server.request.duration" && exponential
            })
        })
        .await;

    // The sidecar answers for nobody.
    app.expect("an application").dies();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let what = format!("{probe} of a dead application to fail");
        eventually(&what, || async { (!passes(&web[probe], &pod).await).then_some(()) }).await;
    }
    match (sidecar, envoy) {
        (Some(sidecar), None) => drop(sidecar.end().await),
        (None, Some(envoy)) => drop(envoy),
        other => panic!("one of them: {other:?}"),
    }
    let spans = cluster.collector.accepted();
    assert_eq!(spans.len(), expected, "probes leave no spans: {spans:#?}");
}

#[tokio::test]
async fn a_pod_with_a_native_sidecar_is_traced_from_its_first_init_container_on() {
    let order = "throughline-rules throughline-proxy migrate | web";
    is_traced_and_tells_the_truth(&["--native-sidecars", "on"], order).await;
}

#[tokio::test]
async fn a_pod_with_an_ordinary_sidecar_is_traced() {
    let order = "migrate throughline-rules | web throughline-proxy";
    is_traced_and_tells_the_truth(&["--native-sidecars", "off"], order).await;
}

#[tokio::test]
async fn a_pod_in_reverse_mode_is_traced_by_a_native_sidecar() {
    let order = "throughline-proxy migrate | web";
    is_traced_and_tells_the_truth(&["--mode", "reverse", "--native-sidecars", "on"], order).await;
}

#[tokio::test]
async fn a_pod_in_reverse_mode_is_traced_by_an_ordinary_sidecar() {
    let order = "migrate | throughline-proxy web";
    is_traced_and_tells_the_truth(&["--mode", "reverse", "--native-sidecars", "off"], order).await;
}

#[tokio::test]
async fn a_pod_with_envoy_and_the_filter_is_traced() {
    if throughline_tests::envoy::is_here() {
        let order = "throughline-rules throughline-envoy migrate | web";
        is_traced_and_tells_the_truth(&["--mode", "envoy-wasm", "--native-sidecars", "on"], order).await;
    }
}
