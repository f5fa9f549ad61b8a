//! The MutatingWebhookConfiguration and the roles that belong to this binary, for manifests and charts to be held
//! against. Must never be written by the injector itself: it only keeps the caBundle of the one that is there right.

use serde_json::{Value, json};

use crate::names::{INJECT, SYSTEM_NAMESPACES};
use crate::settings::Settings;

/// The configuration. `failurePolicy: Ignore`: a pod that is not traced is better than none.
pub fn webhook(settings: &Settings) -> Value {
    let mut others: Vec<&str> = SYSTEM_NAMESPACES.to_vec();
    others.push(&settings.namespace);
    let hook = |name: &str, namespaces: Value, objects: Value| {
        json!({
            "name": name,
            "admissionReviewVersions": ["v1"],
            "sideEffects": "NoneOnDryRun",
            "failurePolicy": "Ignore",
            "reinvocationPolicy": "IfNeeded",
            "matchPolicy": "Equivalent",
            "timeoutSeconds": 5,
            "clientConfig": {"service": {
                "name": settings.service, "namespace": settings.namespace, "path": "/mutate", "port": 443
            }},
            "rules": [{
                "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
                "scope": "Namespaced"
            }],
            "namespaceSelector": {"matchExpressions": namespaces},
            "objectSelector": {"matchExpressions": objects}
        })
    };
    let elsewhere = json!({"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": others});
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": settings.webhook},
        "webhooks": [
            hook(
                "namespaces.throughline.dev",
                json!([{"key": INJECT, "operator": "In", "values": ["enabled", "true"]}, elsewhere]),
                json!([{"key": INJECT, "operator": "NotIn", "values": ["disabled", "false"]}]),
            ),
            hook(
                "pods.throughline.dev",
                json!([{"key": INJECT, "operator": "NotIn", "values": ["enabled", "true", "disabled", "false"]}, elsewhere]),
                json!([{"key": INJECT, "operator": "In", "values": ["enabled", "true"]}]),
            )
        ]
    })
}

/// The roles of the injector's service account, with nothing that it does not use: cluster-wide, and in its own
/// namespace. What istio-wasm needs is left out where no module is named.
pub fn roles(settings: &Settings) -> Vec<Value> {
    let rule = |group: &str, resources: &[&str], names: &[&str], verbs: &[&str]| {
        let mut rule = json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
        if let (false, Some(rule)) = (names.is_empty(), rule.as_object_mut()) {
            rule.insert("resourceNames".to_owned(), json!(names));
        }
        rule
    };
    let mut everywhere = vec![
        rule("", &["namespaces"], &[], &["get", "list"]),
        rule("", &["pods", "services", "nodes"], &[], &["list"]),
        rule("", &["events"], &[], &["create"]),
        rule(
            "admissionregistration.k8s.io",
            &["mutatingwebhookconfigurations"],
            &[&settings.webhook],
            &["get", "patch"],
        ),
    ];
    if settings.wasm_url.is_some() {
        let written = ["list", "create", "patch", "delete"];
        everywhere.extend([
            rule("networking.istio.io", &["envoyfilters"], &[], &written),
            rule("extensions.istio.io", &["wasmplugins"], &[], &written),
            rule("telemetry.istio.io", &["telemetries"], &[], &written),
            rule("", &["configmaps"], &[], &written),
        ]);
    }
    // `create` can't be bound to a name: the object has none yet when it is judged.
    let own = vec![
        rule("", &["secrets"], &[], &["create"]),
        rule("", &["secrets"], &[&settings.secret], &["get", "update"]),
        rule("coordination.k8s.io", &["leases"], &[], &["create"]),
        rule("coordination.k8s.io", &["leases"], &[&settings.lease], &["get", "update"]),
    ];
    let api = "rbac.authorization.k8s.io";
    let subjects =
        json!([{"kind": "ServiceAccount", "name": "throughline-injector", "namespace": settings.namespace}]);
    let metadata = |namespaced: bool| match namespaced {
        true => json!({"name": "throughline-injector", "namespace": settings.namespace}),
        false => json!({"name": "throughline-injector"}),
    };
    let all = |kind: &str, namespaced: bool, rules: &[Value]| {
        [
            json!({"apiVersion": format!("{api}/v1"), "kind": kind, "metadata": metadata(namespaced), "rules": rules}),
            json!({
                "apiVersion": format!("{api}/v1"), "kind": format!("{kind}Binding"),
                "metadata": metadata(namespaced),
                "roleRef": {"apiGroup": api, "kind": kind, "name": "throughline-injector"}, "subjects": subjects
            }),
        ]
    };
    [all("ClusterRole", false, &everywhere), all("Role", true, &own)].into_iter().flatten().collect()
}
