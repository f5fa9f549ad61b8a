//! Mode istio-wasm: the objects of deploy/istio in each namespace that asks for them, and gone from where nobody
//! asks any more. Must never touch an object that does not carry our label.

use std::collections::BTreeSet;

use http::Method;
use serde::Deserialize;
use serde_json::Value;

use super::{each, encoded};
use crate::api::{Content, Failure};
use crate::injector::Injector;
use crate::json::{entry, text};
use crate::log::{Level, tell};
use crate::names::MANAGER;
use crate::settings::{IstioWay, Mode, Settings};
use crate::telemetry::Scope;

const FILTER: &str = include_str!("../../../deploy/istio/filter.yaml");
const PLUGIN: &str = include_str!("../../../deploy/istio/wasmplugin/wasmplugin.yaml");
const TRACING_OFF: &str = include_str!("../../../deploy/istio/tracing-off/telemetry.yaml");
const STATS_TAGS: &str = include_str!("../../../deploy/istio/stats-tags.yaml");

/// What stands in the manifests for people to change.
const SHIPPED_URL: &str = "oci://registry.example.com/throughline-filter:0.1.0";
const SHIPPED_COLLECTOR: &str = "http://otel-collector.observability.svc.cluster.local:4317";
const SHIPPED_CLUSTER: &str = "outbound|4317||otel-collector.observability.svc.cluster.local";

/// Kinds that we apply: kind, group and version, plural.
const KINDS: [(&str, &str, &str); 4] = [
    ("EnvoyFilter", "/apis/networking.istio.io/v1alpha3", "envoyfilters"),
    ("WasmPlugin", "/apis/extensions.istio.io/v1alpha1", "wasmplugins"),
    ("Telemetry", "/apis/telemetry.istio.io/v1", "telemetries"),
    ("ConfigMap", "/api/v1", "configmaps"),
];

/// The objects for a namespace, as settings have them.
pub fn objects(settings: &Settings) -> Result<Vec<Value>, String> {
    let Some(url) = &settings.wasm_url else { return Ok(Vec::new()) };
    let endpoint = &settings.injecting.otlp_endpoint;
    let authority = endpoint.split("://").nth(1).unwrap_or(endpoint).trim_end_matches('/');
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "4317"));
    let texts: &[&str] = match settings.istio_way {
        IstioWay::EnvoyFilter => &[FILTER, TRACING_OFF, STATS_TAGS],
        IstioWay::WasmPlugin => &[PLUGIN, TRACING_OFF],
    };
    let mut all = Vec::new();
    for text in texts {
        let text = text
            .replace(SHIPPED_URL, url)
            .replace(SHIPPED_COLLECTOR, endpoint)
            .replace(SHIPPED_CLUSTER, &format!("outbound|{port}||{host}"));
        for document in serde_yaml::Deserializer::from_str(&text) {
            let mut object = Value::deserialize(document).map_err(|error| error.to_string())?;
            let metadata = object.get_mut("metadata").and_then(Value::as_object_mut).ok_or("no metadata")?;
            metadata
                .insert("labels".to_owned(), serde_json::json!({"app.kubernetes.io/managed-by": MANAGER}));
            all.push(object);
        }
    }
    Ok(all)
}

/// Whether a labelled namespace asks for Istio's way.
fn asks(namespace: &Value, settings: &Settings) -> bool {
    let said = entry(namespace, "/metadata/annotations", "throughline.dev/mode");
    said.map_or(settings.injecting.mode == Some(Mode::IstioWasm), |mode| mode == Mode::IstioWasm.name())
}

/// Applies and removes. Without a module there is nothing to apply, and no right to look for what another setting left.
pub async fn round(injector: &Injector, scope: &Scope, namespaces: &[Value]) {
    let asking: BTreeSet<&str> = namespaces
        .iter()
        .filter(|namespace| asks(namespace, &injector.settings))
        .filter_map(|namespace| text(namespace, "/metadata/name"))
        .collect();
    if injector.settings.wasm_url.is_none() {
        if !asking.is_empty() {
            tell(Level::Warn, "mode istio-wasm wants --wasm-url: where Istio's agents fetch the module", &[]);
        }
        return;
    }
    let scope = scope.child("apply Istio's objects");
    let objects = match objects(&injector.settings) {
        Ok(objects) => objects,
        Err(why) => {
            scope.error("manifest", &why);
            return;
        }
    };
    for namespace in &asking {
        for object in &objects {
            book(injector, &scope, "applied", apply(injector, &scope, namespace, object).await);
        }
    }
    for (kind, group, plural) in KINDS {
        let kept: BTreeSet<&str> = objects
            .iter()
            .filter(|object| text(object, "/kind") == Some(kind))
            .filter_map(|object| text(object, "/metadata/name"))
            .collect();
        let mut gone: Vec<(String, String)> = Vec::new();
        let selector =
            format!("labelSelector={}", encoded(&format!("app.kubernetes.io/managed-by={MANAGER}")));
        let template = format!("{group}/{plural}");
        let listed = each(&injector.api, &scope, &template, &[], &selector, |object| {
            let field = |pointer: &str| text(object, pointer).unwrap_or_default();
            let (namespace, name) = (field("/metadata/namespace"), field("/metadata/name"));
            // Only names of ours: the label alone may be anybody's mistake.
            if name.starts_with("throughline") && !(asking.contains(namespace) && kept.contains(name)) {
                gone.push((namespace.to_owned(), name.to_owned()));
            }
        });
        match listed.await {
            Ok(()) | Err(Failure::NotFound) => {} // without Istio there is nothing to remove
            failed => book(injector, &scope, "removed", failed),
        }
        for (namespace, name) in gone {
            let template = format!("{group}/namespaces/{{namespace}}/{plural}/{{name}}");
            let parameters = [("namespace", namespace.as_str()), ("name", name.as_str())];
            let removed = injector.api.call(&scope, Method::DELETE, &template, &parameters, "", None).await;
            book(injector, &scope, "removed", removed.map(|_| ()));
        }
    }
}

fn book(injector: &Injector, scope: &Scope, done: &'static str, result: Result<(), Failure>) {
    let result = match result {
        Ok(()) => done,
        Err(failure) => {
            let why = failure.to_string();
            scope.error("istio", &why);
            tell(Level::Warn, "an object of Istio's was not written", &[("why", &why)]);
            "failed"
        }
    };
    injector.metrics.count("throughline_injector_istio_objects_total", &[("result", result)]);
}

async fn apply(injector: &Injector, scope: &Scope, namespace: &str, object: &Value) -> Result<(), Failure> {
    let kind = text(object, "/kind").unwrap_or_default();
    let Some((_, group, plural)) = KINDS.iter().find(|(known, ..)| *known == kind) else { return Ok(()) };
    let template = format!("{group}/namespaces/{{namespace}}/{plural}/{{name}}");
    let parameters = [("namespace", namespace), ("name", text(object, "/metadata/name").unwrap_or_default())];
    let query = format!("fieldManager={MANAGER}&force=true");
    let content = Some(Content::Apply(object));
    injector.api.call(scope, Method::PATCH, &template, &parameters, &query, content).await.map(|_| ())
}
