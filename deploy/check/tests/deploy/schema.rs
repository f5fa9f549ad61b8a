//! The schema of the chart's values: current, true to the readers, and as wide as values.yaml.

use serde_json::{Value, json};
use throughline_deploy::{Setting, flow, injector, schema, shape, sidecar};

use crate::render::chart;

fn committed() -> Value {
    let text = std::fs::read_to_string(chart().join("values.schema.json")).expect("a schema");
    serde_json::from_str(&text).expect("JSON")
}

fn values() -> Value {
    serde_yaml::from_str(&std::fs::read_to_string(chart().join("values.yaml")).expect("values"))
        .expect("YAML")
}

#[test]
fn the_committed_schema_is_what_the_tables_say() {
    assert!(
        committed() == schema().expect("a schema"),
        "values.schema.json is out of date: run make reference"
    );
}

/// As the chart writes a value.
fn written(key: &str, value: &Value) -> String {
    match value {
        Value::Bool(boolean) if key.starts_with("otel-") => boolean.to_string(),
        Value::Bool(boolean) => if *boolean { "on" } else { "off" }.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Every bound, choice and switch that the schema names is taken by the reader, and what it leaves out is not.
fn is_true_to_its_reader(setting: &Setting) {
    let shape = shape(setting);
    let key = setting.key;
    for choice in shape["enum"].as_array().into_iter().flatten().filter(|choice| !choice.is_null()) {
        assert_eq!(setting.check(&written(key, choice)), Ok(()), "{key}: {choice}");
    }
    for (bound, outside) in [("minimum", -1.0), ("maximum", 1.0)] {
        let Some(number) = shape.get(bound) else { continue };
        assert_eq!(setting.check(&number.to_string()), Ok(()), "{key}: {number}");
        let beyond = number.as_f64().expect("a number") + outside;
        assert!(setting.check(&beyond.to_string()).is_err(), "{key}: {beyond}");
    }
    if !setting.default.is_empty() {
        assert_eq!(setting.check(setting.default), Ok(()), "{key}: its default");
        if let Some(choices) = shape["enum"].as_array() {
            assert!(choices.contains(&json!(setting.default)), "{key}: its default is no choice");
        }
    }
}

#[test]
fn the_schema_says_of_each_setting_what_its_reader_takes() {
    let all = [sidecar(), injector(), flow()].into_iter().flatten();
    assert!(all.map(|setting| is_true_to_its_reader(&setting)).count() > 120);
}

#[test]
fn settings_with_bounds_and_choices_are_not_taken_for_free_text() {
    let of = |settings: Vec<Setting>, key: &str| {
        shape(settings.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("{key}")))
    };
    assert_eq!(of(sidecar(), "routes-max")["maximum"], 10_000);
    assert_eq!(of(sidecar(), "mode")["enum"], json!(["off", "system-only", "hybrid", "full", false, null]));
    assert_eq!(of(sidecar(), "otel-traces-sampler-arg")["maximum"], 1);
    assert_eq!(of(injector(), "mode")["enum"][4], "istio-wasm");
    assert_eq!(of(injector(), "in-flight-bytes")["minimum"], 8 << 20);
    assert_eq!(of(flow(), "memory-only")["enum"], json!(["on", "off", true, false, null]));
    assert_eq!(of(flow(), "retention-hours")["minimum"], 1);
}

/// Names by which the chart and the programs must agree: a rule makes the variable of the key.
#[test]
fn the_variable_of_a_key_is_made_by_the_charts_rule() {
    for (settings, prefix) in [(injector(), "THROUGHLINE_INJECTOR_"), (flow(), "THROUGHLINE_FLOW_")] {
        for setting in settings {
            let name = setting.key.to_uppercase().replace('-', "_");
            let by_rule = if setting.key.starts_with("otel-") { name } else { format!("{prefix}{name}") };
            assert!(setting.env.contains(&by_rule), "{}: {:?}", setting.key, setting.env);
        }
    }
}

fn walk(values: &Value, schema: &Value, path: &str) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let Some(values) = values.as_object() else { return };
    for name in properties.keys().filter(|name| *name != "global") {
        assert!(
            values.contains_key(name) || path.ends_with("settings"),
            "{path}.{name} is not in values.yaml"
        );
    }
    for (name, value) in values {
        assert!(properties.contains_key(name), "{path}.{name} is not in the schema");
        walk(value, &properties[name], &format!("{path}.{name}"));
    }
}

#[test]
fn values_and_schema_name_the_same_keys() {
    walk(&values(), &committed(), "values");
}
