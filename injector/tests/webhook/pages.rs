//! What is written for people is what the binary does: help, reference, manifests without a cluster.

use std::io::Write;
use std::process::{Command, Stdio};

use throughline_tests::sidecar::workspace;

fn run(arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughline-injector"));
    command.env_clear().args(arguments);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}

#[test]
fn the_page_has_the_tables_of_the_binary() {
    let (_, reference, _) = run(&["--print-reference"], "");
    let page = std::fs::read_to_string(workspace().join("docs/injector.md")).unwrap();
    for row in reference.lines().filter(|line| line.starts_with('|')) {
        assert!(
            page.contains(row),
            "docs/injector.md lacks: {row}\n(throughline-injector --print-reference has all)"
        );
    }
}

#[test]
fn mistakes_are_told_together_and_end_it() {
    let (code, _, said) = run(&["run", "--listen", "here", "--mode=sidekick", "extra"], "");
    assert_eq!(code, Some(2));
    assert!(said.contains("\"extra\": want a flag"), "{said}");
    let (code, _, said) = run(&["run", "--listen", "here", "--mode=sidekick"], "");
    assert_eq!(code, Some(2));
    assert!(said.contains("--listen=\"here\"") && said.contains("--mode=\"sidekick\""), "{said}");
    let (code, _, said) = run(&["walk"], "");
    assert_eq!((code, said.contains("want run, check, inject, manifest or help")), (Some(2), true));
}

const SHOP: &str = r#"# The shop.
apiVersion: v1
kind: ConfigMap
metadata: {name: settings} # kept to the byte
data: {a: "1"}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
spec:
  # three of them
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: web:1.2
        ports: [{name: http, containerPort: 8080}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec:
  schedule: "0 3 * * *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: report, image: report}]
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: one}, spec: {containers: [{name: a, image: a}]}}
- {apiVersion: v1, kind: Pod, metadata: {name: two}, spec: {hostNetwork: true, containers: [{name: a, image: a}]}}
- apiVersion: apps/v1
  kind: StatefulSet
  metadata: {name: db}
  spec: {serviceName: db, selector: {matchLabels: {app: db}}, template: {metadata: {labels: {app: db}}, spec: {containers: [{name: db, image: "db:5"}]}}}
"#;

#[test]
fn manifests_are_injected_without_a_cluster() {
    let (code, out, said) = run(&["inject", "-f", "-", "-n", "other"], SHOP);
    assert_eq!(code, Some(0), "{said}");
    let documents: Vec<serde_json::Value> = serde_yaml::Deserializer::from_str(&out)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect();
    assert_eq!(documents.len(), 4);
    assert!(out.starts_with(
        "# The shop.\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings} # kept to the byte\n"
    ));
    let name = |pod: &serde_json::Value| pod["spec"]["initContainers"][1]["name"].clone();
    assert_eq!(name(&documents[1]["spec"]["template"]), "throughline-proxy");
    assert_eq!(name(&documents[2]["spec"]["jobTemplate"]["spec"]["template"]), "throughline-proxy");
    assert_eq!(name(&documents[3]["items"][0]), "throughline-proxy");
    assert_eq!(documents[3]["items"][1].pointer("/spec/initContainers"), None);
    assert_eq!(name(&documents[3]["items"][2]["spec"]["template"]), "throughline-proxy");
    let deployment = out.split("---\n").nth(1).unwrap();
    assert!(deployment.contains("service.namespace=shop,") && deployment.contains("k8s.deployment.name=web"));
    assert!(deployment.contains("- name: OTEL_SERVICE_NAME\n          value: web\n"), "{deployment}");
    assert!(deployment.find("replicas: 3") < deployment.find("selector:"), "keys stay in their order");
    assert!(out.contains("k8s.cronjob.name=nightly") && out.contains("k8s.statefulset.name=db"));
    assert!(said.contains("# document 2: its comments are lost"), "{said}");
    assert!(said.contains("# Pod two: not injected: the pod shares the node's network"), "{said}");

    let (_, diff, _) = run(&["inject", "-f", "-", "--diff"], SHOP);
    assert!(
        diff.contains("+++ document 2, injected") && diff.contains("+      - name: throughline-rules"),
        "{diff}"
    );
    assert!(!diff.contains("document 1") && !diff.lines().any(|line| line.starts_with("-  ")), "{diff}");
    // Once more changes nothing.
    let (_, again, _) = run(&["inject", "-f", "-", "-n", "other"], &out);
    assert_eq!(again, out);
}

#[test]
fn what_is_no_yaml_is_told() {
    let (code, _, said) = run(&["inject", "-f", "-"], "a: [\n");
    assert_eq!((code, said.contains("document 1")), (Some(2), true), "{said}");
    for (arguments, want) in [
        (&["inject", "-f", "-", "-f", "-"][..], "-f: want one file"),
        (&["inject", "-f", "-", "-n"], "-n: want a namespace after it"),
    ] {
        let (code, _, said) = run(arguments, "");
        assert_eq!((code, said.contains(want)), (Some(2), true), "{said}");
    }
    let (code, out, said) = run(&["inject", "-f", "-"], "kind: ConfigMap\n");
    assert_eq!((code, out.as_str()), (Some(0), "kind: ConfigMap\n"));
    assert!(said.contains("nothing was changed"), "{said}");
    let (code, _, said) = run(&["inject"], "");
    assert_eq!((code, said.contains("-f: want a file of manifests")), (Some(2), true), "{said}");
}

/// kubectl reads YAML 1.1: what is a string, a mode or a boolean to it must stay one.
#[test]
fn kubectl_reads_what_comes_out_as_it_reads_what_went_in() {
    let pod = "kind: Pod
metadata: {name: web}
spec:
  containers:
  - {name: web, image: web, args: [\"yes\", 'off'], env: [{name: DEBUG, value: \"on\"}]}
  volumes:
  - {name: v, secret: {secretName: s, defaultMode: 0400}}
";
    let (code, out, said) = run(&["inject", "-f", "-"], pod);
    assert_eq!(code, Some(0), "{said}");
    for line in ["- 'yes'", "- 'off'", "value: 'on'", "defaultMode: 256"] {
        assert!(out.lines().any(|one| one.trim() == line), "{line} in\n{out}");
    }
    let (_, _, said) = run(&["inject", "-f", "-"], &pod.replace("spec:\n", "spec:\n  hostNetwork: yes\n"));
    assert!(said.contains("not injected"), "{said}");
}
