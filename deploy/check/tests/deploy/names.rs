//! Names that two places must agree on: settings and the tables, ports and their containers, selectors and labels,
//! rights and the calls that the injector makes.

use std::collections::BTreeSet;

use serde_json::Value;
use throughline_core::settings::{Flow, Sources};
use throughline_deploy::{flow, injector, sidecar};
use throughline_injector::{names, settings as injecting};
use throughline_tests::sidecar::workspace;

use crate::render::{everything, list, objects, pod, text, title};

/// Variables of a container that have a value of their own; what the cluster fills in is given some text.
fn variables(container: &Value) -> Vec<(String, String)> {
    let value = |row: &Value| match row.get("valueFrom") {
        Some(_) => "filled-in".to_owned(),
        None => text(row, "/value").to_owned(),
    };
    list(container, "/env").map(|row| (text(row, "/name").to_owned(), value(row))).collect()
}

fn main_container(object: &Value) -> Option<&Value> {
    pod(object)?.pointer("/spec/containers/0")
}

/// Every variable is one that the program knows, and all of them together are settings that it starts with.
#[test]
fn the_programs_start_with_what_the_manifests_tell_them() {
    for (name, rendered) in everything() {
        for object in objects(&rendered) {
            let Some(container) = main_container(&object) else { continue };
            let env = variables(container);
            let known = match text(container, "/name") {
                "injector" => {
                    let read = injecting::Settings::read(&[], env.clone().into_iter());
                    let settings = read.unwrap_or_else(|told| panic!("{name}: {told:#?}"));
                    assert_eq!(settings.identity, "filled-in", "{name}");
                    injector()
                }
                "flow" => {
                    let found = Flow::resolve(&Sources { env: env.clone(), ..Sources::default() });
                    let found = found.unwrap_or_else(|told| panic!("{name}: {told:?}"));
                    assert_eq!(found.warnings, Vec::<String>::new(), "{name}");
                    flow()
                }
                _ => continue,
            };
            let known: BTreeSet<String> = known.into_iter().flat_map(|setting| setting.env).collect();
            for (variable, _) in env {
                assert!(known.contains(&variable), "{name}: {variable} is no setting of {}", title(&object));
            }
        }
    }
}

/// The pages for users name keys that exist.
#[test]
fn the_page_on_deploying_names_settings_that_exist() {
    let page = std::fs::read_to_string(workspace().join("docs/deploy.md")).expect("a page");
    let env: BTreeSet<String> =
        [sidecar(), injector(), flow()].into_iter().flatten().flat_map(|setting| setting.env).collect();
    let words = page.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    for word in words.filter(|word| word.starts_with("THROUGHLINE_")) {
        assert!(env.contains(word), "docs/deploy.md: {word} is no setting");
    }
}

#[test]
fn what_refers_to_another_object_finds_it() {
    for (name, rendered) in everything() {
        // Alone these are for a cluster that has the base.
        are_whole(&name, &objects(&rendered));
    }
}

/// Selectors find pods, ports find ports, mounts find volumes, and bindings find roles and accounts.
pub(crate) fn are_whole(name: &str, objects: &[Value]) {
    let pods: Vec<&Value> = objects.iter().filter_map(pod).collect();
    let has = |kind: &str, wanted: &str| {
        objects.iter().any(|one| text(one, "/kind") == kind && text(one, "/metadata/name") == wanted)
    };
    let matching = |labels: &Value| -> Vec<&&Value> {
        let labels = labels.as_object().expect("labels");
        let fits = |pod: &&&Value| labels.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value);
        pods.iter().filter(fits).collect()
    };
    let has_port = |pod: &Value, port: &Value| {
        let mut ports = list(pod, "/spec/containers").flat_map(|container| list(container, "/ports"));
        ports.any(|one| one["name"] == *port || one["containerPort"] == *port)
    };
    for object in objects {
        let what = format!("{name}: {}", title(object));
        match text(object, "/kind") {
            "Service" => {
                let found = matching(&object["spec"]["selector"]);
                assert_eq!(found.len(), 1, "{what}: the pods of one workload");
                for port in list(object, "/spec/ports") {
                    assert!(has_port(found[0], &port["targetPort"]), "{what}: {port}");
                }
            }
            "NetworkPolicy" => {
                let found = matching(&object["spec"]["podSelector"]["matchLabels"]);
                assert_eq!(found.len(), 1, "{what}");
                for rule in list(object, "/spec/ingress") {
                    for port in list(rule, "/ports") {
                        assert!(has_port(found[0], &port["port"]), "{what}: {port}");
                    }
                }
            }
            "PodDisruptionBudget" => {
                assert_eq!(matching(&object["spec"]["selector"]["matchLabels"]).len(), 1, "{what}")
            }
            "Deployment" | "StatefulSet" | "DaemonSet" => workload(&what, object, &has),
            "RoleBinding" | "ClusterRoleBinding" => {
                assert!(
                    has(text(object, "/roleRef/kind"), text(object, "/roleRef/name")),
                    "{what}: its role"
                );
                for subject in list(object, "/subjects") {
                    assert!(has("ServiceAccount", text(subject, "/name")), "{what}: {subject}");
                }
            }
            "MutatingWebhookConfiguration" => {
                for webhook in list(object, "/webhooks") {
                    assert!(has("Service", text(webhook, "/clientConfig/service/name")), "{what}");
                    assert!(
                        webhook["clientConfig"].get("caBundle").is_none(),
                        "{what}: caBundle is the injector's"
                    );
                }
            }
            _ => {}
        }
    }
}

fn workload(what: &str, object: &Value, has: &dyn Fn(&str, &str) -> bool) {
    let template = &object["spec"]["template"];
    let labels = &template["metadata"]["labels"];
    for (key, value) in object["spec"]["selector"]["matchLabels"].as_object().expect("a selector") {
        assert_eq!(labels[key], *value, "{what}: its own selector");
    }
    let account = text(template, "/spec/serviceAccountName");
    assert!(account.is_empty() || has("ServiceAccount", account), "{what}: {account}");
    let volumes: Vec<&str> = list(template, "/spec/volumes")
        .map(|one| text(one, "/name"))
        .chain(list(object, "/spec/volumeClaimTemplates").map(|one| text(one, "/metadata/name")))
        .collect();
    for volume in list(template, "/spec/volumes") {
        let map = text(volume, "/configMap/name");
        assert!(map.is_empty() || has("ConfigMap", map), "{what}: {map}");
    }
    for container in list(template, "/spec/containers") {
        let mounts: Vec<&str> = list(container, "/volumeMounts").map(|one| text(one, "/name")).collect();
        assert!(mounts.iter().all(|mount| volumes.contains(mount)), "{what}: {mounts:?}");
        assert!(volumes.iter().all(|volume| mounts.contains(volume)), "{what}: {volumes:?} are all mounted");
        let ports: Vec<&Value> = list(container, "/ports").collect();
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let Some(probe) = container.get(probe) else { continue };
            let port = [&probe["httpGet"]["port"], &probe["tcpSocket"]["port"]];
            let port = port.into_iter().find(|port| !port.is_null()).expect("a port");
            assert!(ports.iter().any(|one| one["name"] == *port), "{what}: {port}");
        }
    }
    // A selector does not change, so what changes stays out of it.
    assert!(object["spec"]["selector"]["matchLabels"].get("app.kubernetes.io/version").is_none(), "{what}");
}

/// Ports stand in the tables' defaults, in what the manifests set, and as ports of containers.
#[test]
fn containers_have_the_ports_that_the_programs_listen_on() {
    let port_of = |address: &str| address.rsplit(':').next().and_then(|port| port.parse::<u64>().ok());
    for (name, rendered) in everything() {
        for object in objects(&rendered) {
            let Some(container) = main_container(&object) else { continue };
            let env = variables(container);
            let said = |variable: &str| env.iter().find(|row| row.0 == variable).map(|row| row.1.clone());
            let listens: Vec<u64> = match text(container, "/name") {
                "injector" => {
                    let defaults = injecting::defaults().expect("defaults");
                    vec![defaults.listen.port().into(), defaults.admin_listen.port().into()]
                }
                "flow" => ["LISTEN", "OTLP_GRPC", "OTLP_HTTP"]
                    .iter()
                    .map(|which| said(&format!("THROUGHLINE_FLOW_{which}")).expect("said openly"))
                    .map(|address| port_of(&address).expect("a port"))
                    .collect(),
                _ => continue,
            };
            let ports: Vec<u64> =
                list(container, "/ports").filter_map(|port| port["containerPort"].as_u64()).collect();
            assert_eq!(ports, listens, "{name}: {}", title(&object));
        }
    }
}

#[test]
fn names_of_the_injectors_objects_are_the_ones_it_is_told() {
    for (name, rendered) in everything() {
        let objects = objects(&rendered);
        let deployment = objects
            .iter()
            .find(|one| title(one).starts_with("Deployment/") && title(one).ends_with("injector"));
        let Some(deployment) = deployment else { continue };
        let env = variables(main_container(deployment).expect("a container"));
        let settings = injecting::Settings::read(&[], env.into_iter()).expect("settings");
        let all: Vec<String> = objects.iter().map(title).collect();
        assert!(all.contains(&format!("Service/{}", settings.service)), "{name}");
        assert!(all.contains(&format!("MutatingWebhookConfiguration/{}", settings.webhook)), "{name}");
        assert_eq!(text(deployment, "/metadata/namespace"), settings.namespace, "{name}");
        // Where spans go is there, where it is in this namespace at all.
        for endpoint in
            [settings.injecting.otlp_endpoint.as_str(), settings.own_endpoint.as_deref().unwrap_or("")]
        {
            let host = endpoint.trim_start_matches("http://").split([':', '/']).next().unwrap_or("");
            if let Some(service) = host.strip_suffix(".throughline-system.svc.cluster.local") {
                assert!(all.contains(&format!("Service/{service}")), "{name}: {endpoint}");
            }
        }
        let granted = |resource: &str, verb: &str, named: &str| {
            objects.iter().flat_map(|one| list(one, "/rules")).any(|rule| {
                let has = |part: &str, wanted: &str| list(rule, part).any(|one| one == wanted);
                has("/resources", resource) && has("/verbs", verb) && has("/resourceNames", named)
            })
        };
        assert!(granted("secrets", "update", &settings.secret), "{name}");
        assert!(granted("leases", "update", &settings.lease), "{name}");
        assert!(granted("mutatingwebhookconfigurations", "patch", &settings.webhook), "{name}");
    }
}

/// The webhook is the one that belongs to the injector, by its own word. Who fails closed has said so.
#[test]
fn the_webhook_is_the_injectors_own() {
    for (name, rendered) in everything() {
        let objects = objects(&rendered);
        let deployment = objects
            .iter()
            .find(|one| title(one).starts_with("Deployment/") && title(one).ends_with("injector"));
        let Some(deployment) = deployment else { continue };
        let env = variables(main_container(deployment).expect("a container"));
        let settings = injecting::Settings::read(&[], env.into_iter()).expect("settings");
        let mut wanted = throughline_injector::manifest::webhook(&settings);
        let found = objects
            .iter()
            .find(|one| text(one, "/kind") == "MutatingWebhookConfiguration")
            .expect("a webhook");
        for (wanted, found) in
            wanted["webhooks"].as_array_mut().expect("webhooks").iter_mut().zip(list(found, "/webhooks"))
        {
            if name == "chart: everything" {
                wanted["failurePolicy"] = "Fail".into();
            }
            assert_eq!(wanted, found, "{name}");
        }
        assert_eq!(wanted["metadata"]["name"], found["metadata"]["name"], "{name}");
        assert_eq!(
            wanted["webhooks"].as_array().map(Vec::len),
            found["webhooks"].as_array().map(Vec::len),
            "{name}"
        );
    }
}

/// The sidecars that the webhook brings about may send: the label that it asks for is the one of the policies.
#[test]
fn whoever_gets_a_sidecar_may_send() {
    for (name, rendered) in everything() {
        for object in objects(&rendered).iter().filter(|one| text(one, "/kind") == "NetworkPolicy") {
            let takes_spans = list(object, "/spec/ingress")
                .find(|rule| list(rule, "/ports").any(|port| port["port"] == "otlp-grpc"));
            let Some(rule) = takes_spans else { continue };
            let asks =
                serde_json::json!([{"key": names::INJECT, "operator": "In", "values": ["enabled", "true"]}]);
            let namespaces =
                list(rule, "/from").any(|from| from["namespaceSelector"]["matchExpressions"] == asks);
            let pods = list(rule, "/from").any(|from| from["podSelector"]["matchExpressions"] == asks);
            assert!(namespaces && pods, "{name}: {}", title(object));
        }
    }
}

/// Group, resource, names and verb.
type Right = (String, String, Vec<String>, String);

fn rights<'a>(rules: impl Iterator<Item = &'a Value>) -> BTreeSet<Right> {
    let texts = |rule: &Value, part: &str| -> Vec<String> {
        list(rule, part).filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut all = BTreeSet::new();
    for rule in rules {
        for (group, resource) in texts(rule, "/apiGroups")
            .iter()
            .flat_map(|group| texts(rule, "/resources").into_iter().map(move |one| (group.clone(), one)))
        {
            for verb in texts(rule, "/verbs") {
                all.insert((group.clone(), resource.clone(), texts(rule, "/resourceNames"), verb));
            }
        }
    }
    all
}

/// What is granted is what the injector's own list says, in the namespace and in the cluster.
#[test]
fn rights_are_those_that_the_injector_asks_for() {
    let mut roles = 0;
    for (name, rendered) in everything() {
        let objects = objects(&rendered);
        let deployment = objects.iter().find(|one| title(one) == "Deployment/throughline-injector");
        let Some(deployment) = deployment else { continue };
        let env = variables(main_container(deployment).expect("a container"));
        let settings = injecting::Settings::read(&[], env.into_iter()).expect("settings");
        for asked in throughline_injector::manifest::roles(&settings) {
            let found = objects.iter().find(|one| {
                title(one) == title(&asked) && one["metadata"]["namespace"] == asked["metadata"]["namespace"]
            });
            let found = found.unwrap_or_else(|| panic!("{name}: {}", title(&asked)));
            if asked.get("rules").is_none() {
                assert_eq!(
                    (&found["roleRef"], &found["subjects"]),
                    (&asked["roleRef"], &asked["subjects"]),
                    "{name}"
                );
                continue;
            }
            // Of all ConfigMaps one name is changed, so the manifests grant no more.
            let narrowed = |(group, resource, names, verb): Right| match (resource.as_str(), verb.as_str()) {
                ("configmaps", "patch" | "delete") => {
                    (group, resource, vec!["throughline-stats-tags".to_owned()], verb)
                }
                _ => (group, resource, names, verb),
            };
            let wanted: BTreeSet<Right> = rights(list(&asked, "/rules")).into_iter().map(narrowed).collect();
            assert_eq!(rights(list(found, "/rules")), wanted, "{name}: {}", title(&asked));
            roles += 1;
        }
    }
    println!("{roles} roles");
}

/// The one ConfigMap that the mode istio-wasm brings along is called so.
#[test]
fn the_configmap_for_istio_has_the_name_that_is_granted() {
    let text = std::fs::read_to_string(workspace().join("deploy/istio/stats-tags.yaml")).expect("a manifest");
    assert!(text.contains("kind: ConfigMap") && text.contains("  name: throughline-stats-tags\n"));
}
