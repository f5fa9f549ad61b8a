//! A configuration with mistakes: refused when it is loaded, with every mistake named, before any request sees it.

use throughline_tests::envoy::{self, Bootstrap};
use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;

/// One mistake: the key, its value, and words that the message must hold beside both.
const MISTAKES: &[(&str, &str, &[&str])] = &[
    ("otel-traces-sampler", "sometimes", &["parentbased_traceidratio"]),
    ("otel-traces-exporter", "zipkin", &["otlp", "none"]),
    ("otel-propagators", "tracecontext,pigeon", &["b3multi"]),
    ("otel-exporter-otlp-protocol", "http/json", &["grpc", "http/protobuf"]),
    ("otel-exporter-otlp-endpoint", "ftp://x", &["want"]),
    ("routes", "clusters/{id}", &["want"]),
    ("routes-max", "many", &["want"]),
    ("mesh-hosts", "10.0.0.0/99", &["want"]),
    ("response-headers", "x-span", &["x-trace-id"]),
    ("root-unsampled", "loud", &["flag", "silent"]),
    ("direction", "sideways", &["inbound", "outbound", "auto"]),
    ("hold-headers", "perhaps", &["on", "off"]),
    ("control-path", "no slash", &["path"]),
    // What nobody can set has no value to show.
    ("inbound-listen", "", &["Envoy"]),
    ("no-such-setting", "", &["no such setting"]),
];

fn plan() -> Plan {
    Plan::before("mistaken", "127.0.0.1:9".parse().expect("an address")).on(Host::Envoy)
}

fn check_named(stderr: &[String], key: &str, value: &str, words: &[&str]) {
    let named = |line: &&String| line.contains(key) && line.contains(value);
    let line =
        stderr.iter().find(named).unwrap_or_else(|| panic!("no line on {key}={value:?} in {stderr:#?}"));
    for word in words {
        assert!(line.contains(word), "{word:?} is missing in {line:?}");
    }
}

#[tokio::test]
async fn every_mistake_is_named_at_once_and_nothing_starts() {
    if !envoy::is_here() {
        return;
    }
    let good = Bootstrap::of(&plan()).validate("good").await;
    assert_eq!(good.code, Some(0), "{:#?}", good.stderr);
    let bad = MISTAKES.iter().fold(Bootstrap::of(&plan()), |all, (key, value, _)| all.configure(key, *value));
    let ended = bad.validate("mistaken").await;
    assert_eq!(ended.code, Some(1), "{:#?}", ended.stderr);
    for (key, value, words) in MISTAKES {
        check_named(&ended.stderr, key, value, words);
    }
}

#[tokio::test]
async fn a_mistake_in_the_vms_environment_is_named_by_its_variable() {
    if !envoy::is_here() {
        return;
    }
    let rows = [
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("THROUGHLINE_QUERY", "some"),
        ("OTEL_TRACES_EXPORTER", "console"),
    ];
    for (name, value) in rows {
        let ended = Bootstrap::of(&plan().environment(name, value)).validate("mistaken").await;
        assert_eq!(ended.code, Some(1), "{name}: {:#?}", ended.stderr);
        check_named(&ended.stderr, name, value, &[]);
    }
}

#[tokio::test]
async fn a_configuration_may_be_json_yaml_or_empty_and_nothing_else() {
    if !envoy::is_here() {
        return;
    }
    let rows = [
        (r#"{"otel-traces-sampler": "always_on", "routes": ["/a/{b}"], "routes-max": 7}"#, 0),
        ("otel-traces-sampler: always_on\nroutes:\n- /a/{b}\nroutes-max: 7\n", 0),
        ("", 0),
        ("{}", 0),
        ("a: [1", 1),
        ("- 1\n- 2\n", 1),
        (r#"{"routes-max": }"#, 1),
        ("\u{0}", 1),
    ];
    for (text, code) in rows {
        let mut bootstrap = Bootstrap::of(&plan());
        for side in bootstrap.sides() {
            bootstrap.filter(&side)["configuration"]["value"] = text.into();
        }
        let ended = bootstrap.validate("written").await;
        assert_eq!(ended.code, Some(code), "{text:?}: {:#?}", ended.stderr);
    }
}
