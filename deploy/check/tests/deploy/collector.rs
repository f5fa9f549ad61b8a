//! The collector's configuration: keys that its components have, pipelines of what is defined, and masking that masks.
//! No collector runs here: none is in the registries, so its keys are held against a list with sources.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::Value;
use throughline_tests::sidecar::workspace;

use crate::render::{everything, list, objects, text};

fn merged(a: &mut Value, b: Value) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in b {
                merged(a.entry(key).or_insert(Value::Null), value);
            }
        }
        (a, b) => *a = b,
    }
}

/// Every configuration of a collector in what is rendered: its files merged in the order of its arguments.
fn configurations() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (name, rendered) in everything() {
        let objects = objects(&rendered);
        for map in objects.iter().filter(|one| text(one, "/kind") == "ConfigMap") {
            let file = |key: &str| map["data"].get(key).and_then(Value::as_str);
            let parse = |text: &str| {
                serde_yaml::from_str::<Value>(text).unwrap_or_else(|error| panic!("{name}: {error}"))
            };
            if let (Some(first), Some(second)) = (file("collector.yaml"), file("exporters.yaml")) {
                let mut all = parse(first);
                merged(&mut all, parse(second));
                found.push((name.clone(), all));
            } else if let Some(jaeger) = file("jaeger.yaml") {
                found.push((format!("{name}: jaeger"), parse(jaeger)));
            }
        }
    }
    found
}

/// The paths of keys in a configuration; items of a list have none of their own.
fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, inner) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                paths(inner, &path, found);
                found.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| paths(item, path, found)),
        _ => {}
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    let (pattern, path): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), path.split('.').collect());
    pattern.len() == path.len() && pattern.iter().zip(path).all(|(a, b)| *a == "*" || *a == b)
}

#[test]
fn every_key_is_one_of_its_component() {
    let known: Value = toml_of("deploy/check/tests/deploy/keys.toml");
    for (name, all) in configurations() {
        for section in ["extensions", "receivers", "processors", "exporters"] {
            for (component, configuration) in all[section].as_object().into_iter().flatten() {
                let kind = component.split('/').next().unwrap_or("");
                let keys = known[section][kind]["keys"].as_array();
                let keys = keys.unwrap_or_else(|| panic!("{name}: {section}.{kind} is not in keys.toml"));
                let mut used = BTreeSet::new();
                paths(configuration, "", &mut used);
                for path in used {
                    let found = keys.iter().filter_map(Value::as_str).any(|key| fits(key, &path));
                    assert!(found, "{name}: {component} has no key {path}");
                }
            }
        }
    }
}

fn toml_of(path: &str) -> Value {
    let text = std::fs::read_to_string(workspace().join(path)).expect(path);
    let table: toml::Table = toml::from_str(&text).expect("TOML");
    serde_json::to_value(table).expect("JSON")
}

#[test]
fn pipelines_are_of_what_is_defined_and_all_of_it_is_used() {
    for (name, all) in configurations() {
        let service = &all["service"];
        for (section, singular) in
            [("receivers", true), ("processors", true), ("exporters", true), ("extensions", false)]
        {
            let defined: BTreeSet<&str> = all[section]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(component, _)| component.as_str())
                .collect();
            let pipelines = service["pipelines"].as_object().expect("pipelines");
            let used: BTreeSet<&str> = if singular {
                pipelines
                    .values()
                    .flat_map(|pipeline| list(pipeline, &format!("/{section}")))
                    .filter_map(Value::as_str)
                    .collect()
            } else {
                list(service, "/extensions").filter_map(Value::as_str).collect()
            };
            assert_eq!(defined, used, "{name}: {section}");
        }
        for (pipeline, parts) in service["pipelines"].as_object().expect("pipelines") {
            if name.ends_with("jaeger") {
                continue;
            }
            let order: Vec<&str> = list(parts, "/processors").filter_map(Value::as_str).collect();
            assert_eq!(
                order.first(),
                Some(&"memory_limiter"),
                "{name}: {pipeline}: refuse before work is done"
            );
            assert_eq!(order.last(), Some(&"batch"), "{name}: {pipeline}: what was masked is what waits");
            // The flow server's numbers come from metrics: they go to it, and to one alone.
            let to: Vec<&str> = list(parts, "/exporters").filter_map(Value::as_str).collect();
            assert!(pipeline != "metrics" || to.len() == 1, "{name}: {to:?}");
            let masks = order.iter().any(|part| part.ends_with("/masking"));
            let all_masked = name.contains("without masking") || pipeline == "metrics" || masks;
            assert!(all_masked, "{name}: {pipeline} leaves the node unmasked");
        }
    }
}

/// The defaults of the chart: the expressions as the collector has them, after its own `$$`.
fn masking() -> Value {
    let values = std::fs::read_to_string(crate::render::chart().join("values.yaml")).expect("values");
    serde_yaml::from_str::<Value>(&values).expect("YAML")["collector"]["masking"].clone()
}

/// What `replace_all_patterns` and `redaction` make of a value, with the expressions of a rendered configuration.
fn masked(all: &Value, value: &str) -> String {
    let mut value = value.to_owned();
    for group in list(all, "/processors/transform~1masking/trace_statements")
        .filter(|group| group["context"] == "span")
    {
        for statement in list(group, "/statements").filter_map(Value::as_str) {
            let Some(arguments) = statement.strip_prefix("replace_all_patterns(attributes, \"value\", ")
            else {
                continue;
            };
            // The arguments are JSON texts but for the parenthesis; `$$` is the collector's way to write a dollar.
            let list: Vec<String> =
                serde_json::from_str(&format!("[{}]", arguments.trim_end_matches(')'))).expect("two texts");
            let expression = Regex::new(&list[0]).expect("an expression");
            let replacement = list[1].replace("$$", "$").replace("$1", "${1}").replace("$2", "${2}");
            value = expression.replace_all(&value, replacement.as_str()).into_owned();
        }
    }
    for expression in list(all, "/processors/redaction~1masking/blocked_values").filter_map(Value::as_str) {
        value = Regex::new(expression).expect("an expression").replace_all(&value, "****").into_owned();
    }
    value
}

#[test]
fn what_is_personal_is_masked_and_what_is_not_stays() {
    let with_masking =
        configurations().into_iter().find(|(_, all)| all["processors"].get("redaction/masking").is_some());
    let Some((_, all)) = with_masking else { return };
    for (value, expected) in [
        ("user=ann&password=hunter2&next=/", "user=ann&password=***MASKED***&next=/"),
        (r#"{"ssn": "078-05-1120", "id": 7}"#, r#"{"ssn": "***MASKED***", "id": 7}"#),
        ("card_number: 4111111111111111;", "card_number: ***MASKED***;"),
        ("write to ann@example.co.uk today", "write to **** today"),
        ("paid with 4111 1111 1111 1111", "paid with ****"),
        ("paid with 5500-0000-0000-0004", "paid with ****"),
        ("paid with 378282246310005", "paid with ****"),
        ("ssn of 078-05-1120", "ssn of ****"),
        ("Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc_DEF-123", "Bearer ****"),
    ] {
        assert_eq!(masked(&all, value), expected);
    }
    for value in [
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "00f067aa0ba902b7",
        "/orders/{id}",
        "shop.checkout",
        "2026-11-20T19:00:00Z",
        "10.1.2.3:8080",
        "outbound|4317||otel-collector.observability.svc.cluster.local",
        "deployment-5d8c9b7f6d-x2k4p",
        "registry.example.com/shop/orders@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ] {
        assert_eq!(masked(&all, value), value);
    }
    // What is hashed stands as SHA-256 in the statements, what is deleted in the actions.
    let masking = masking();
    let statements: Vec<&str> = list(&all, "/processors/transform~1masking/trace_statements/0/statements")
        .filter_map(Value::as_str)
        .collect();
    for key in list(&masking, "/hash").filter_map(Value::as_str) {
        let wanted = format!(
            r#"set(attributes["{key}"], SHA256(String(attributes["{key}"]))) where attributes["{key}"] != nil"#
        );
        assert!(statements.contains(&wanted.as_str()), "{wanted}");
    }
    let deleted: Vec<&str> = list(&all, "/processors/attributes~1masking/actions")
        .filter(|one| one["action"] == "delete")
        .map(|one| text(one, "/key"))
        .collect();
    assert_eq!(deleted, list(&masking, "/delete").filter_map(Value::as_str).collect::<Vec<_>>());
}

/// A token or a password that our own sidecars were told to record is among what is taken out.
#[test]
fn headers_with_credentials_are_taken_out() {
    let masking = masking();
    for header in ["authorization", "cookie", "proxy-authorization", "x-api-key"] {
        let key = format!("http.request.header.{header}");
        assert!(list(&masking, "/delete").any(|one| *one == key.as_str()), "{key}");
    }
}
