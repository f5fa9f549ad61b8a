//! Pod Security `restricted` for every pod of ours, control by control, and the least that a pod should be given.
//! https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted

use serde_json::{Value, json};

use crate::render::{everything, list, objects, pod, text, title};

/// The controls of `baseline` and `restricted`, each as the standard's table has it.
fn violations(template: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let spec = &template["spec"];
    for shared in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        if spec[shared] == true {
            found.push(shared.to_owned());
        }
    }
    for volume in list(spec, "/volumes") {
        let allowed = [
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        ];
        let kinds =
            volume.as_object().into_iter().flat_map(|volume| volume.keys()).filter(|key| *key != "name");
        found.extend(
            kinds.filter(|kind| !allowed.contains(&kind.as_str())).map(|kind| format!("volume {kind}")),
        );
    }
    let pod = &spec["securityContext"];
    let containers = ["/containers", "/initContainers", "/ephemeralContainers"];
    for container in containers.iter().flat_map(|pointer| list(spec, pointer)) {
        let own = &container["securityContext"];
        let either = |key: &str| if own[key].is_null() { pod[key].clone() } else { own[key].clone() };
        let name = text(container, "/name");
        let mut want = |right: bool, what: &str| {
            if !right {
                found.push(format!("{name}: {what}"));
            }
        };
        want(own["privileged"] != true, "privileged");
        want(own["allowPrivilegeEscalation"] == false, "allowPrivilegeEscalation");
        want(own["capabilities"]["drop"] == json!(["ALL"]), "capabilities.drop");
        let added = list(own, "/capabilities/add").all(|one| one == "NET_BIND_SERVICE");
        want(added, "capabilities.add");
        want(either("runAsNonRoot") == true, "runAsNonRoot");
        want(either("runAsUser").as_u64().is_some_and(|user| user != 0), "runAsUser");
        let seccomp = either("seccompProfile");
        want(["RuntimeDefault", "Localhost"].contains(&text(&seccomp, "/type")), "seccompProfile");
        want(own["procMount"].is_null(), "procMount");
        want(list(container, "/ports").all(|port| port["hostPort"].is_null()), "hostPort");
        want(own["readOnlyRootFilesystem"] == true, "readOnlyRootFilesystem (beyond the standard)");
        let memory = container.pointer("/resources/limits/memory");
        want(memory.is_some(), "limits.memory (beyond the standard)");
    }
    found
}

#[test]
fn every_pod_of_ours_is_accepted_by_pod_security_restricted() {
    let mut pods = 0;
    for (name, rendered) in everything() {
        for object in objects(&rendered) {
            let Some(template) = pod(&object) else { continue };
            assert_eq!(violations(template), Vec::<String>::new(), "{name}: {}", title(&object));
            pods += 1;
        }
    }
    println!("{pods} pods");
}

#[test]
fn the_check_of_pod_security_sees_each_control() {
    let good = json!({"spec": {
        "securityContext": {"runAsNonRoot": true, "runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "a", "emptyDir": {}}],
        "containers": [{"name": "c", "resources": {"limits": {"memory": "1Mi"}}, "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}}}]
    }});
    assert_eq!(violations(&good), Vec::<String>::new());
    for (pointer, value) in [
        ("/spec/hostNetwork", json!(true)),
        ("/spec/hostPID", json!(true)),
        ("/spec/volumes/0", json!({"name": "a", "hostPath": {"path": "/"}})),
        ("/spec/securityContext/runAsNonRoot", json!(false)),
        ("/spec/securityContext/runAsUser", json!(0)),
        ("/spec/securityContext/seccompProfile/type", json!("Unconfined")),
        ("/spec/containers/0/securityContext/privileged", json!(true)),
        ("/spec/containers/0/securityContext/allowPrivilegeEscalation", json!(true)),
        ("/spec/containers/0/securityContext/capabilities/drop", json!([])),
        ("/spec/containers/0/securityContext/capabilities/add", json!(["NET_ADMIN"])),
        ("/spec/containers/0/ports", json!([{"hostPort": 80}])),
    ] {
        let mut bad = good.clone();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        match bad.pointer_mut(parent).expect(parent) {
            Value::Object(object) => drop(object.insert(key.to_owned(), value)),
            Value::Array(list) => list[key.parse::<usize>().expect("an index")] = value,
            other => panic!("{pointer}: {other}"),
        }
        assert_ne!(violations(&bad), Vec::<String>::new(), "{pointer}");
    }
}

/// Only who talks to the API server has a token for it, and nobody may do everything.
#[test]
fn rights_are_the_least() {
    for (name, rendered) in everything() {
        let objects = objects(&rendered);
        for object in &objects {
            if let Some(template) = pod(object) {
                let token = template["spec"]["automountServiceAccountToken"].as_bool().expect("said openly");
                let asks = ["throughline-injector", "throughline-collector"]
                    .contains(&text(object, "/metadata/name"));
                assert_eq!(token, asks, "{name}: {}", title(object));
            }
            for rule in list(object, "/rules") {
                let mut all = ["/apiGroups", "/resources", "/verbs"].iter().flat_map(|part| list(rule, part));
                assert!(all.all(|one| one != "*"), "{name}: {rule}");
                let resources: Vec<&str> = list(rule, "/resources").filter_map(Value::as_str).collect();
                let writes = list(rule, "/verbs")
                    .any(|verb| !["get", "list", "watch", "create"].contains(&verb.as_str().unwrap_or("")));
                let secret = resources.contains(&"secrets");
                let cluster = text(object, "/kind") == "ClusterRole";
                assert!(!(secret && cluster), "{name}: secrets of every namespace: {rule}");
                let named = rule.get("resourceNames").is_some();
                let istio = list(rule, "/apiGroups")
                    .any(|group| group.as_str().is_some_and(|group| group.ends_with("istio.io")));
                assert!(!writes || named || istio, "{name}: changes what has no name: {rule}");
            }
        }
    }
}
