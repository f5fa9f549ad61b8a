//! The plain manifests are the chart's objects. What differs is named here, and only that.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::render::{build, helm, kustomize, objects, template, text, title};

/// An object without what each tool adds by itself: Helm its label and the checksum that rolls pods, kustomize a hash
/// in the name of a generated ConfigMap, which does the same.
fn plain(mut object: Value) -> Value {
    drop_keys(&mut object, &["app.kubernetes.io/managed-by", "checksum/config"]);
    if let Some(data) = object.get_mut("data").and_then(Value::as_object_mut) {
        for value in data.values_mut() {
            if let Some(parsed) = value.as_str().and_then(|text| serde_yaml::from_str(text).ok()) {
                *value = parsed;
            }
        }
    }
    sorted(&mut object);
    without_hashes(&mut object);
    object
}

fn drop_keys(value: &mut Value, keys: &[&str]) {
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !keys.contains(&key.as_str()));
            object.values_mut().for_each(|inner| drop_keys(inner, keys));
            object.retain(|key, inner| {
                !(["annotations", "labels"].contains(&key.as_str()) && inner == &json!({}))
            });
        }
        Value::Array(list) => list.iter_mut().for_each(|inner| drop_keys(inner, keys)),
        _ => {}
    }
}

/// Variables in the order of their names: they refer to no other.
fn sorted(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, inner) in object.iter_mut() {
                sorted(inner);
                if let (true, Some(rows)) = (key == "env", inner.as_array_mut()) {
                    rows.sort_by_key(|row| text(row, "/name").to_owned());
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(sorted),
        _ => {}
    }
}

fn without_hashes(value: &mut Value) {
    match value {
        Value::Object(object) => object.values_mut().for_each(without_hashes),
        Value::Array(list) => list.iter_mut().for_each(without_hashes),
        Value::String(text) => {
            let hash = text.strip_prefix("throughline-collector-").unwrap_or("");
            if hash.len() == 10 && hash.bytes().all(|b| b.is_ascii_alphanumeric()) {
                *text = "throughline-collector".to_owned();
            }
        }
        _ => {}
    }
}

fn by_title(objects: Vec<Value>, without: &[&str]) -> BTreeMap<String, Value> {
    let all = objects.into_iter().map(plain).map(|object| (title(&object), object));
    all.filter(|(title, _)| !without.contains(&title.as_str())).collect()
}

/// The parts of two objects that differ.
fn differences(path: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: Map<String, Value> = a.clone().into_iter().chain(b.clone()).collect();
            for key in keys.keys() {
                let null = Value::Null;
                let (a, b) = (a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null));
                differences(&format!("{path}.{key}"), a, b, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter()
                .zip(b)
                .enumerate()
                .for_each(|(i, (a, b))| differences(&format!("{path}[{i}]"), a, b, found));
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{path}: chart {a}, kustomize {b}")),
    }
}

#[test]
fn chart_and_kustomize_render_to_the_same_objects() {
    let (Some(helm), Some(kustomize)) = (helm(), kustomize()) else { return };
    let tempo = |name: &str| {
        let to = format!("collector.sendTo[0].endpoint={name}.throughline-system.svc.cluster.local:4317");
        [
            "collector.enabled=true".to_owned(),
            format!("collector.sendTo[0].name={name}"),
            to,
            "collector.sendTo[0].insecure=true".to_owned(),
        ]
    };
    let (with_tempo, with_jaeger) = (tempo("tempo"), tempo("jaeger"));
    for (folder, set) in [
        ("kubernetes/base", Vec::new()),
        ("kubernetes/with-collector", vec!["collector.enabled=true"]),
        ("kubernetes/with-tempo", with_tempo.iter().map(String::as_str).collect()),
        ("kubernetes/with-jaeger", with_jaeger.iter().map(String::as_str).collect()),
    ] {
        let chart = objects(&template(&helm, &set, None).unwrap_or_else(|told| panic!("{told}")));
        // Helm makes the token and keeps it; with kustomize the user makes it. The namespace is `--create-namespace`.
        let chart = by_title(chart, &["Secret/throughline-flow-token"]);
        let mut plain = by_title(objects(&build(&kustomize, folder)), &["Namespace/throughline-system"]);
        // Backends are no part of the chart.
        plain.retain(|title, _| {
            !title.ends_with("/tempo") && !title.ends_with("/jaeger") && !is_backends(title)
        });
        let titles = |all: &BTreeMap<String, Value>| all.keys().cloned().collect::<Vec<_>>();
        assert_eq!(titles(&chart), titles(&plain), "{folder}");
        let mut found = Vec::new();
        for (title, object) in &chart {
            differences(title, object, &plain[title], &mut found);
        }
        assert!(found.is_empty(), "{folder}:\n{}", found.join("\n"));
    }
}

/// A generated ConfigMap of Tempo or Jaeger, with its hash.
fn is_backends(title: &str) -> bool {
    ["ConfigMap/tempo-", "ConfigMap/jaeger-"].iter().any(|begin| title.starts_with(begin))
}
