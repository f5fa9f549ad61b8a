//! Who a pod is on its spans: the service's name and the attributes of the resource, by the rules that
//! OpenTelemetry has for Kubernetes. Must never look anything up: what is known later (pod, node) is left to the
//! downward API.

use serde_json::{Value, json};

use super::{literal, variable};
use crate::json::{items, pairs, text};
use crate::pod::{Container, Pod};
use crate::policy::{Around, Owner, Plan};
use crate::settings::Injecting;

/// Annotations `resource.opentelemetry.io/<attribute>` become attributes.
const RESOURCE: &str = "resource.opentelemetry.io/";

#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) service: String,
    /// Attribute and value; values may hold `$(K8S_POD_NAME)` and the like.
    attributes: Vec<(String, String)>,
}

impl Identity {
    pub(super) fn of(pod: &Pod<'_>, plan: &Plan, around: &Around<'_>, settings: &Injecting) -> Self {
        let workload = workload(pod, around);
        let main = main_container(pod);
        let label = |key: &str| pod.label(key).filter(|value| !value.is_empty());
        let stated =
            |key: &str| pod.annotation(&format!("{RESOURCE}{key}")).filter(|value| !value.is_empty());
        let service = (plan.options.service_name.as_deref())
            .or_else(|| stated("service.name"))
            .or_else(|| label("app.kubernetes.io/instance"))
            .or_else(|| label("app.kubernetes.io/name"))
            .or(workload.as_ref().map(|owner| owner.name.as_str()))
            .or_else(|| pod.name())
            .unwrap_or("unknown_service:throughline")
            .to_owned();

        let mut attributes: Vec<(String, String)> = Vec::new();
        let mut say = |key: &str, value: String| attributes.push((key.to_owned(), value));
        say("service.namespace", encoded(around.namespace));
        let container = main.map_or("", |container| container.name());
        say(
            "service.instance.id",
            format!("{}.$(K8S_POD_NAME).{}", encoded(around.namespace), encoded(container)),
        );
        let version = label("app.kubernetes.io/version")
            .or_else(|| main.and_then(|container| text(container.raw, "/image")).and_then(tag));
        if let Some(version) = version {
            say("service.version", encoded(version));
        }
        say("k8s.namespace.name", encoded(around.namespace));
        for (key, variable) in [
            ("k8s.pod.name", "$(K8S_POD_NAME)"),
            ("k8s.pod.uid", "$(K8S_POD_UID)"),
            ("k8s.node.name", "$(K8S_NODE_NAME)"),
        ] {
            say(key, variable.to_owned());
        }
        if let Some(owner) = &workload {
            say(&format!("k8s.{}.name", owner.kind.to_ascii_lowercase()), encoded(&owner.name));
        }
        say("k8s.container.name", encoded(container));
        let environment = stated("deployment.environment.name")
            .or_else(|| stated("deployment.environment"))
            .or(Some(settings.environment.as_str()).filter(|value| !value.is_empty()));
        if let Some(environment) = environment {
            say("deployment.environment.name", encoded(environment));
        }
        for (key, value) in pairs(pod.raw(), "/metadata/annotations") {
            let Some(key) = key.strip_prefix(RESOURCE).filter(|key| !key.is_empty()) else { continue };
            if ["service.name", "deployment.environment", "deployment.environment.name"].contains(&key) {
                continue;
            }
            attributes.retain(|(known, _)| known != key);
            attributes.push((encoded(key), encoded(value)));
        }
        Self { service, attributes }
    }

    /// The variables that say it; the downward API's come first, as later ones refer to them.
    pub(super) fn variables(&self) -> Vec<Value> {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
        let attributes: Vec<String> =
            self.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        vec![
            field("K8S_POD_NAME", "metadata.name"),
            field("K8S_POD_UID", "metadata.uid"),
            field("K8S_POD_IP", "status.podIP"),
            field("K8S_NODE_NAME", "spec.nodeName"),
            field("K8S_NODE_IP", "status.hostIP"),
            variable("OTEL_SERVICE_NAME", literal(&self.service)),
            variable("OTEL_RESOURCE_ATTRIBUTES", attributes.join(",")),
        ]
    }
}

/// The container that the pod is about.
fn main_container<'a>(pod: &Pod<'a>) -> Option<Container<'a>> {
    let named = pod.annotation("kubectl.kubernetes.io/default-container");
    pod.containers().find(|container| Some(container.name()) == named).or_else(|| pod.containers().next())
}

/// The workload behind a pod. A ReplicaSet of a Deployment is named after it and the hash of the template, a Job
/// of a CronJob after it and the minute: so neither has to be looked up.
fn workload(pod: &Pod<'_>, around: &Around<'_>) -> Option<Owner> {
    if let Some(owner) = &around.owner {
        return Some(owner.clone());
    }
    let owners = items(pod.raw(), "/metadata/ownerReferences");
    let owner = owners.iter().find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true))?;
    let (kind, name) = (text(owner, "/kind")?, text(owner, "/name")?);
    let of = |kind: &str, name: &str| Some(Owner { kind: kind.to_owned(), name: name.to_owned() });
    match kind {
        "ReplicaSet" => {
            let hash = pod.label("pod-template-hash").map(|hash| format!("-{hash}"));
            match hash.and_then(|hash| name.strip_suffix(hash.as_str())) {
                Some(deployment) => of("Deployment", deployment),
                None => of("ReplicaSet", name),
            }
        }
        "Job" => match name.rsplit_once('-') {
            // Minutes since 1970 have eight digits until 2160; the CronJob controller of before 1.21 wrote seconds.
            Some((cron, minute))
                if matches!(minute.len(), 8 | 10) && minute.bytes().all(|b| b.is_ascii_digit()) =>
            {
                of("CronJob", cron)
            }
            _ => of("Job", name),
        },
        "StatefulSet" | "DaemonSet" | "CronJob" | "Deployment" | "ReplicationController" => of(kind, name),
        // A kind of somebody's operator: its name is the best there is, and no attribute is made of the kind.
        _ => None,
    }
}

/// The tag of an image, if it says something.
fn tag(image: &str) -> Option<&str> {
    let image = image.split('@').next().unwrap_or_default();
    let (_, tag) = image.rsplit_once('/').unwrap_or(("", image)).1.split_once(':')?;
    (tag != "latest" && !tag.is_empty()).then_some(tag)
}

/// Percent-encoded, as `OTEL_RESOURCE_ATTRIBUTES` wants it (and so that `$(` means nothing).
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_of_an_image_is_found_behind_registries_and_ports() {
        for (image, found) in [
            ("shop:1.4", Some("1.4")),
            ("registry:5000/shop/web:1.4", Some("1.4")),
            ("registry:5000/shop/web", None),
            ("web:latest", None),
            ("web:2@sha256:abc", Some("2")),
            ("web@sha256:abc", None),
        ] {
            assert_eq!(tag(image), found, "{image}");
        }
    }

    #[test]
    fn what_would_break_the_list_is_encoded() {
        assert_eq!(encoded("a,b=c $(X) é"), "a%2Cb%3Dc%20%24%28X%29%20%C3%A9");
    }
}
