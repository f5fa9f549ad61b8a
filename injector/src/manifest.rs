//! The MutatingWebhookConfiguration that belongs to this binary, for manifests and charts to be held against. Must
//! never be written by the injector itself: it only keeps the caBundle of the one that is there right.

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
