//! What the manifests of `deploy/` tell the filter: every key is a setting, every value can be read, and both
//! directions say the same.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test's own helpers may fail it; clippy knows tests by their attribute only"
)]

use std::path::{Path, PathBuf};

use serde_yaml::Value;
use throughline_core::settings::{Direct, Filter, Mistake, Settings, Sources};
use throughline_settings_file::pairs;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").join("deploy")
}

fn documents(file: &str) -> Vec<Value> {
    let path = deploy().join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.split("\n---\n").map(|one| serde_yaml::from_str(one).expect("YAML")).collect()
}

/// A plugin's configuration and the environment of its VM.
struct Plugin {
    configuration: String,
    env: Vec<(String, String)>,
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// Every plugin in a document, whether Envoy's own message or a `WasmPlugin`.
fn plugins(value: &Value, found: &mut Vec<Plugin>) {
    if let Some(configuration) = value.get("configuration").and_then(|config| config.get("value")) {
        let env = &value["vm_config"]["environment_variables"]["key_values"];
        let env = env.as_mapping().into_iter().flatten().map(|(name, value)| (text(name), text(value)));
        found.push(Plugin { configuration: text(configuration), env: env.collect() });
    }
    if let Some(configuration) = value.get("pluginConfig") {
        let env = value["vmConfig"]["env"].as_sequence().into_iter().flatten();
        let own = env.filter(|row| row.get("value").is_some());
        let env = own.map(|row| (text(&row["name"]), text(&row["value"]))).collect();
        // istiod hands it on as JSON.
        let configuration = serde_json::to_string(configuration).expect("JSON");
        found.push(Plugin { configuration, env });
    }
    match value {
        Value::Mapping(mapping) => mapping.values().for_each(|inner| plugins(inner, found)),
        Value::Sequence(list) => list.iter().for_each(|inner| plugins(inner, found)),
        _ => {}
    }
}

fn resolve(plugin: &Plugin) -> Result<(Settings, Filter), Vec<String>> {
    let file_name = "the plugin configuration".to_owned();
    let file = pairs(&plugin.configuration, &file_name)?;
    let sources = Sources { flags: Vec::new(), env: plugin.env.clone(), file, file_name };
    let told = |mistakes: Vec<Mistake>| mistakes.iter().map(ToString::to_string).collect();
    Filter::resolve(&sources)
        .map(|found| {
            assert_eq!(found.warnings, Vec::<String>::new());
            found.value
        })
        .map_err(told)
}

fn both(file: &str) -> [(Settings, Filter); 2] {
    let mut found = Vec::new();
    documents(file).iter().for_each(|document| plugins(document, &mut found));
    let read = found.iter().map(|plugin| resolve(plugin).unwrap_or_else(|said| panic!("{file}: {said:#?}")));
    read.collect::<Vec<_>>().try_into().expect("two plugins")
}

/// The settings but for the direction.
fn shared((settings, filter): &(Settings, Filter)) -> String {
    format!("{settings:?} {:?}", Filter { direction: Direct::Auto, ..filter.clone() })
}

#[test]
fn every_manifest_says_settings_that_exist_and_the_same_for_both_directions() {
    for (file, hold_headers) in
        [("envoy/envoy.yaml", true), ("istio/filter.yaml", true), ("istio/wasmplugin/wasmplugin.yaml", false)]
    {
        let [inbound, outbound] = both(file);
        assert_eq!(shared(&inbound), shared(&outbound), "{file}");
        assert_eq!(inbound.1.hold_headers, hold_headers, "{file}");
    }
}

#[test]
fn both_ways_in_istio_lead_to_the_same_collector() {
    let collector = "outbound|4317||otel-collector.observability.svc.cluster.local";
    for file in ["istio/filter.yaml", "istio/wasmplugin/wasmplugin.yaml"] {
        let directions = both(file).map(|(settings, filter)| {
            assert_eq!(filter.otlp_cluster, collector, "{file}");
            assert!(settings.service_name.is_empty(), "{file}: a name for every workload of the namespace");
            filter.direction
        });
        assert_ne!(directions[0], directions[1], "{file}");
    }
}

#[test]
fn the_name_of_a_cluster_has_a_bound_and_it_is_told() {
    let plugin = |host: String| Plugin {
        configuration: format!("otlp-cluster: outbound|4317||{host}"),
        env: Vec::new(),
    };
    assert!(resolve(&plugin("h".repeat(104))).is_ok());
    assert!(resolve(&plugin("h".repeat(105))).is_ok(), "120 bytes");
    let said = resolve(&plugin("h".repeat(106))).expect_err("121 bytes");
    assert!(said.concat().contains("120 bytes"), "{said:?}");
}

#[test]
fn what_kustomize_is_told_of_exists() {
    for folder in ["", "wasmplugin", "tracing-off", "beside-envoys-tracer", "collector-outside"] {
        let kustomization = format!("istio/{folder}/kustomization.yaml");
        let [file] = &documents(&kustomization)[..] else { panic!("{kustomization}: one document") };
        for resource in file["resources"].as_sequence().expect("a list") {
            let path = deploy().join("istio").join(folder).join(text(resource));
            let path = if path.is_dir() { path.join("kustomization.yaml") } else { path };
            assert!(path.is_file(), "{kustomization}: {}", path.display());
        }
    }
}
