//! Finds running pods that should have a sidecar and have none: those that slipped by while nobody answered, and
//! those that are older than their namespace's label. By the very decision that the webhook makes. Must never
//! restart or change one.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::{each, encoded};
use crate::api::Failure;
use crate::injector::{Event, Injector};
use crate::json::text;
use crate::log::{Level, tell};
use crate::names::INJECT;
use crate::policy::{Around, Decision, Skip, decide};
use crate::telemetry::Scope;

/// Pods whose event was written; beyond that all are forgotten, and told of once more.
const TOLD_MAX: usize = 10_000;

/// A pod that is missing its sidecar.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Missing {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Why that is so, or what to do.
    pub why: String,
}

/// What a round found.
#[derive(Debug, Default)]
pub struct Found {
    /// Pods without a sidecar, by name.
    pub missing: Vec<Missing>,
    /// How many have one, by namespace.
    pub injected: BTreeMap<String, u64>,
}

/// Namespaces that are labelled.
pub async fn namespaces(injector: &Injector, scope: &Scope) -> Result<Vec<Value>, Failure> {
    let selector = format!("labelSelector={}", encoded(&format!("{INJECT} in (enabled,true)")));
    let mut all = Vec::new();
    each(&injector.api, scope, "/api/v1/namespaces", &[], &selector, |namespace| {
        // What a namespace says of its history is long, and of no use here.
        all.push(json!({"metadata": {
            "name": namespace.pointer("/metadata/name"),
            "labels": namespace.pointer("/metadata/labels"),
            "annotations": namespace.pointer("/metadata/annotations")
        }}));
    })
    .await?;
    Ok(all)
}

/// Looks through all running pods of labelled namespaces.
pub async fn find(injector: &Injector, scope: &Scope, namespaces: &[Value]) -> Result<Found, Failure> {
    let mut found = Found::default();
    for object in namespaces {
        let namespace = text(object, "/metadata/name").unwrap_or_default();
        let around = Around {
            namespace,
            namespace_object: object,
            services: None,
            owner: None,
            sidecars: injector.sidecars(),
            own_namespace: &injector.settings.namespace,
        };
        let selector = format!("fieldSelector={}", encoded("status.phase=Running"));
        let template = "/api/v1/namespaces/{namespace}/pods";
        each(&injector.api, scope, template, &[("namespace", namespace)], &selector, |pod| {
            if pod.pointer("/metadata/deletionTimestamp").is_some() {
                return;
            }
            let why = match decide(pod, &around, &injector.settings.injecting) {
                Decision::Inject(_) => {
                    "it began before the label, or while no webhook answered: restart it to have it traced"
                        .to_owned()
                }
                Decision::Baffled(why) => why,
                Decision::Skip(Skip::Already, _) => {
                    *found.injected.entry(namespace.to_owned()).or_insert(0) += 1;
                    return;
                }
                Decision::Skip(..) => return,
            };
            let field = |pointer: &str| text(pod, pointer).unwrap_or_default().to_owned();
            found.missing.push(Missing {
                namespace: namespace.to_owned(),
                name: field("/metadata/name"),
                uid: field("/metadata/uid"),
                why,
            });
        })
        .await?;
    }
    Ok(found)
}

/// A round of the leader: numbers, and an event for each pod that was not told of yet.
pub async fn round(injector: &Injector, told: &mut HashSet<String>) {
    let scope = injector.telemetry.root("reconcile");
    let result = match round_in(injector, &scope, told).await {
        Ok(()) => "ok",
        Err(failure) => {
            scope.error("reconcile", &failure.to_string());
            tell(Level::Warn, "the round through the pods failed", &[("why", &failure.to_string())]);
            "failed"
        }
    };
    injector.metrics.count("throughline_injector_reconciles_total", &[("result", result)]);
}

async fn round_in(injector: &Injector, scope: &Scope, told: &mut HashSet<String>) -> Result<(), Failure> {
    let namespaces = namespaces(injector, scope).await?;
    let found = find(injector, scope, &namespaces).await?;
    super::istio::round(injector, scope, &namespaces).await;
    let mut missing = BTreeMap::new();
    for namespace in namespaces.iter().filter_map(|object| text(object, "/metadata/name")) {
        missing.insert(namespace.to_owned(), 0);
    }
    if told.len() > TOLD_MAX {
        told.clear();
    }
    for pod in &found.missing {
        *missing.entry(pod.namespace.clone()).or_insert(0) += 1;
        if told.insert(pod.uid.clone()) {
            let about = [("namespace", pod.namespace.as_str()), ("pod", &pod.name), ("why", &pod.why)];
            tell(Level::Warn, "a pod is missing its sidecar", &about);
            injector.event(Event {
                about: json!({
                    "kind": "Pod", "apiVersion": "v1", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid
                }),
                reason: "SidecarMissing",
                message: format!("the pod has no sidecar: {}", pod.why),
            });
        }
    }
    scope.set("throughline.pods.missing", i64::try_from(found.missing.len()).unwrap_or(i64::MAX));
    injector.metrics.set_namespaces("throughline_injector_pods_missing_sidecar", &missing);
    injector.metrics.set_namespaces("throughline_injector_pods_injected", &found.injected);
    Ok(())
}
