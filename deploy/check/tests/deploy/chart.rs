//! The chart: it lints, renders to valid objects, refuses what is wrong, and writes settings as the programs read them.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;
use throughline_tests::judges::python;

use crate::render::{VARIANTS, everything, helm, lint, list, objects, template, text};

#[test]
fn the_chart_lints_with_every_choice_of_values() {
    let Some(helm) = helm() else { return };
    for (name, set) in VARIANTS {
        lint(&helm, set).unwrap_or_else(|told| panic!("{name}: {told}"));
    }
}

#[test]
fn every_manifest_is_valid_for_old_and_new_clusters() {
    let Some(python) = python(&["kubernetes_validate"]) else { return };
    let all: Vec<(String, Vec<Value>)> =
        everything().iter().map(|(name, text)| (name.clone(), objects(text))).collect();
    let script = r#"
import json, sys, kubernetes_validate
wrong = 0
for name, objects in json.load(sys.stdin):
    for one in objects:
        for version in ("1.25", "1.29", "1.33"):
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                wrong += 1
                print(f"{name}: {one['kind']}/{one['metadata']['name']} ({version}): {error}")
sys.exit(1 if wrong else 0)
"#;
    let mut judge = Command::new(python);
    let judge = judge.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut judge = judge.expect("python runs");
    let mut input = judge.stdin.take().expect("a pipe");
    input.write_all(serde_json::to_string(&all).expect("JSON").as_bytes()).expect("the judge reads");
    drop(input);
    let output = judge.wait_with_output().expect("the judge ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_wrong_value_is_refused_with_its_name_and_what_would_be_right() {
    let Some(helm) = helm() else { return };
    for (set, expected) in [
        (
            "flow.settings.retention-hours=0",
            "flow.settings.retention-hours: Must be greater than or equal to 1",
        ),
        ("sidecar.settings.mode=sometimes", r#"sidecar.settings.mode must be one of the following: "off""#),
        (
            "sidecar.settings.otel-traces-sampler-arg=2",
            "otel-traces-sampler-arg: Must be less than or equal to 1",
        ),
        (
            "flow.settings.retention-hour=5",
            "flow.settings: Additional property retention-hour is not allowed",
        ),
        ("sidecar.settings.capture=reverse", "sidecar.settings: Additional property capture is not allowed"),
        ("injector.settings.mode=sidekick", r#"must be one of the following: "auto", "sidecar""#),
        ("injector.failurePolicy=Maybe", r#"must be one of the following: "Ignore", "Fail""#),
        ("injector.replicas=0", "injector.replicas: Must be greater than or equal to 1"),
        ("flow.replicas=3", "flow: Additional property replicas is not allowed"),
        ("flow.storage.size=lots", "flow.storage.size: Does not match pattern"),
        ("sidecar.otlpEndpoint=collector:4317", "sidecar.otlpEndpoint: Does not match pattern"),
        ("collector.sendTo[0].name=tempo", "collector.sendTo.0: endpoint is required"),
        ("collectr.enabled=true", "Additional property collectr is not allowed"),
    ] {
        let told = template(&helm, &[set], None).expect_err(set);
        assert!(told.contains(expected), "{set}: {told}");
    }
    let nowhere = ["collector.enabled=true", "flow.enabled=false"];
    let told = template(&helm, &nowhere, None).expect_err("a collector that sends nowhere");
    assert!(told.contains("want flow.enabled, or an endpoint in collector.sendTo"), "{told}");
}

/// The variables of a workload's first container.
fn variables(objects: &[Value], kind: &str) -> Vec<(String, String)> {
    let workload = objects.iter().find(|one| text(one, "/kind") == kind).expect(kind);
    let rows = list(workload, "/spec/template/spec/containers/0/env");
    rows.map(|row| (text(row, "/name").to_owned(), text(row, "/value").to_owned())).collect()
}

/// YAML makes a boolean of `off`, and Helm floats of numbers: the programs must read what the user wrote all the same.
#[test]
fn settings_arrive_as_they_were_written() {
    let Some(helm) = helm() else { return };
    let file = std::env::temp_dir().join(format!("throughline-values-{}.yaml", std::process::id()));
    let written = "
sidecar:
  settings: {mode: off, keep-slow: off, keep-errors: yes, otel-sdk-disabled: true, otel-traces-sampler-arg: 0.001,
    routes: ['/a/{id}', /b], event-body-limit: 67108864, otel-log-level: debug}
flow:
  settings: {disk-bytes-max: 17592186044416, memory-only: off, otlp-open: null, retention-hours: 1}
";
    std::fs::write(&file, written).expect("a file");
    let rendered = template(&helm, &[], file.to_str());
    std::fs::remove_file(&file).expect("a file");
    let objects = objects(&rendered.unwrap_or_else(|told| panic!("{told}")));
    let injector = variables(&objects, "Deployment");
    let sidecar =
        injector.iter().find(|(name, _)| name == "THROUGHLINE_INJECTOR_SIDECAR_SETTINGS").expect("settings");
    let sidecar: Value = serde_json::from_str(&sidecar.1).expect("JSON");
    for (key, value) in [
        ("mode", "off"),
        ("keep-slow", "off"),
        ("keep-errors", "on"),
        ("otel-sdk-disabled", "true"),
        ("otel-traces-sampler-arg", "0.001"),
        ("routes", "/a/{id},/b"),
        ("event-body-limit", "67108864"),
    ] {
        assert_eq!(sidecar[key], value, "{key}");
    }
    let flow = variables(&objects, "StatefulSet");
    let has =
        |name: &str, value: &str| flow.iter().any(|row| (row.0.as_str(), row.1.as_str()) == (name, value));
    assert!(has("THROUGHLINE_FLOW_DISK_BYTES_MAX", "17592186044416"), "{flow:?}");
    assert!(has("THROUGHLINE_FLOW_MEMORY_ONLY", "off"), "{flow:?}");
    assert!(
        !flow.iter().any(|(name, _)| name == "THROUGHLINE_FLOW_OTLP_OPEN"),
        "taken away by null: {flow:?}"
    );
}

/// The names of objects follow the release, and what refers to them goes along.
#[test]
fn a_release_by_another_name_is_whole() {
    let Some(helm) = helm() else { return };
    let output = Command::new(&helm)
        .args(["template", "shop", crate::render::chart().to_str().expect("a path")])
        .args(["--namespace", "tracing", "--kube-version", "1.31.0", "--set", "collector.enabled=true"])
        .output()
        .expect("helm runs");
    let rendered = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(!rendered.contains("throughline-system"), "another namespace");
    let objects = objects(&rendered);
    assert!(objects.iter().all(|one| text(one, "/metadata/name").starts_with("shop-throughline-")));
    crate::names::are_whole("release shop", &objects);
}
