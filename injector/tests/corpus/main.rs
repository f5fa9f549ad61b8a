//! Pods as the field's injectors meet them, each in every layout: golden patches, injecting twice is injecting
//! once, nothing of the user's is lost, and what comes out is valid by Kubernetes' own schemas. The goldens are
//! written anew by `BLESS=1 cargo test -p throughline-injector --test corpus`.

#[cfg(test)]
mod envoy;

#[cfg(test)]
mod corpus {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use serde_json::{Value, json};
    use throughline_injector::patch::{self, apply};
    use throughline_injector::policy::{Around, Decision, Sidecars, decide};
    use throughline_injector::settings::{Injecting, Mode, Settings};
    use throughline_tests::judges::python;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
    }

    fn settings() -> Injecting {
        let flags = [("wasm-url", "oci://registry.example.com/throughline-filter:0.1.0")];
        let flags: Vec<_> =
            flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Settings::read(&flags, std::iter::empty()).unwrap().injecting
    }

    fn cases() -> Vec<(String, Value)> {
        let mut all = Vec::new();
        for file in std::fs::read_dir(folder().join("cases")).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            all.push((name, serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"))));
        }
        all.sort_by(|a: &(String, Value), b| a.0.cmp(&b.0));
        assert!(all.len() >= 20, "the corpus is there");
        all
    }

    /// The Services of the namespace: by name, by number, and two names.
    fn services() -> Vec<Value> {
        let service = |app: &str, targets: Value| json!({"metadata": {"name": format!("{app}-svc")}, "spec": {"selector": {"app": app}, "ports": targets}});
        vec![
            service("web", json!([{"port": 80, "targetPort": "http"}])),
            service("api", json!([{"port": 9000}])),
            service(
                "pair",
                json!([{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": "http-back"}]),
            ),
            service("future", json!([{"port": 80, "targetPort": 8080}])),
        ]
    }

    const LAYOUTS: [(&str, Option<Mode>, Sidecars); 7] = [
        ("auto, native", None, Sidecars::NativeWithPorts),
        ("auto, ordinary", None, Sidecars::Ordinary),
        ("sidecar, native", Some(Mode::Sidecar), Sidecars::NativeWithPorts),
        ("reverse, native", Some(Mode::Reverse), Sidecars::NativeWithPorts),
        ("reverse, native before 1.33", Some(Mode::Reverse), Sidecars::Native),
        ("reverse, ordinary", Some(Mode::Reverse), Sidecars::Ordinary),
        ("envoy-wasm, native", Some(Mode::EnvoyWasm), Sidecars::NativeWithPorts),
    ];

    /// What came of one pod in one layout.
    struct Result {
        told: Value,
        injected: Option<Value>,
    }

    fn inject(name: &str, pod: &Value, mode: Option<Mode>, sidecars: Sidecars) -> Result {
        let mut settings = settings();
        settings.mode = mode;
        let mut labels = json!({"throughline.dev/inject": "enabled"});
        if name == "pod-security" {
            labels["pod-security.kubernetes.io/enforce"] = json!("restricted");
        }
        let namespace = json!({"metadata": {"name": "shop", "labels": labels}});
        let services = services();
        let around = Around {
            namespace: "shop",
            namespace_object: &namespace,
            services: Some(&services),
            owner: None,
            sidecars,
            own_namespace: "throughline-system",
        };
        match decide(pod, &around, &settings) {
            Decision::Inject(plan) => {
                let built = patch::build(pod, &plan, &around, &settings).unwrap();
                let mut injected = pod.clone();
                apply(&mut injected, &built.operations).unwrap();
                Result {
                    told: json!({
                        "decision": "injected", "mode": plan.mode.name(), "native": built.native,
                        "warnings": built.warnings, "patch": built.operations
                    }),
                    injected: Some(injected),
                }
            }
            Decision::Skip(reason, warnings) => Result {
                told: json!({"decision": "skipped", "reason": reason.name(), "warnings": warnings}),
                injected: None,
            },
            Decision::Baffled(why) => {
                Result { told: json!({"decision": "baffled", "why": why}), injected: None }
            }
        }
    }

    /// One line for each operation and warning.
    fn lines(told: &Value) -> String {
        let mut head = told.clone();
        let (patch, warnings) = (head["patch"].take(), head["warnings"].take());
        head.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let mut text = format!("{head}\n");
        for (word, all) in [("warning", warnings), ("patch", patch)] {
            for one in all.as_array().into_iter().flatten() {
                text.push_str(&format!("{word} {one}\n"));
            }
        }
        text
    }

    /// Envoy's bootstrap is held by a real Envoy, not by eye.
    fn without_bootstrap(value: &mut Value) {
        match value {
            Value::String(text) if text.starts_with("{\"admin\":") => *text = "<bootstrap>".to_owned(),
            Value::Array(all) => all.iter_mut().for_each(without_bootstrap),
            Value::Object(all) => all.values_mut().for_each(without_bootstrap),
            _ => {}
        }
    }

    #[test]
    fn every_pod_of_the_corpus_gets_the_patch_that_is_written_down() {
        let bless = std::env::var_os("BLESS").is_some();
        let mut wrong = Vec::new();
        for (name, pod) in cases() {
            let mut text = String::new();
            let mut known: Vec<(&str, Value)> = Vec::new();
            for (layout, mode, sidecars) in LAYOUTS {
                let mut told = inject(&name, &pod, mode, sidecars).told;
                without_bootstrap(&mut told);
                text.push_str(&format!("== {layout}\n"));
                match known.iter().find(|(_, other)| *other == told) {
                    Some((same, _)) => text.push_str(&format!("as {same}\n")),
                    None => text.push_str(&lines(&told)),
                }
                known.push((layout, told));
            }
            let path = folder().join("golden").join(format!("{name}.txt"));
            if bless {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &text).unwrap();
            } else if std::fs::read_to_string(&path).unwrap_or_default() != text {
                wrong.push(name);
            }
        }
        assert!(wrong.is_empty(), "other patches than written down (BLESS=1 writes them anew): {wrong:?}");
    }

    #[test]
    fn injecting_twice_is_injecting_once() {
        let mut injected_once = 0;
        for (name, pod) in cases() {
            for (layout, mode, sidecars) in LAYOUTS {
                let Some(once) = inject(&name, &pod, mode, sidecars).injected else { continue };
                injected_once += 1;
                let twice = inject(&name, &once, mode, sidecars);
                assert_eq!(twice.told["reason"], "already-injected", "{name}, {layout}");
            }
        }
        assert!(injected_once > 60, "{injected_once}");
    }

    /// Whatever was in the pod is in it afterwards, but for what a mode is about.
    #[test]
    fn nothing_of_the_users_is_lost() {
        for (name, pod) in cases() {
            for (layout, mode, sidecars) in LAYOUTS {
                let Some(mut injected) = inject(&name, &pod, mode, sidecars).injected else { continue };
                let ours = ["throughline-proxy", "throughline-rules", "throughline-envoy"];
                for list in ["containers", "initContainers"] {
                    if let Some(all) = injected["spec"].get_mut(list).and_then(Value::as_array_mut) {
                        all.retain(|one| !ours.contains(&one["name"].as_str().unwrap()));
                    }
                }
                kept(&pod, &injected, &format!("{name}, {layout}: "));
            }
        }
    }

    /// `after` has all that `before` has; probes' handlers, ports' names and added variables aside.
    fn kept(before: &Value, after: &Value, place: &str) {
        match (before, after) {
            (Value::Object(before), Value::Object(after)) => {
                for (key, value) in before {
                    let moved =
                        ["tcpSocket", "grpc"].contains(&key.as_str()) && after.contains_key("httpGet");
                    let released =
                        key == "name" && before.contains_key("containerPort") && !after.contains_key("name");
                    if !moved && !released {
                        let there = after.get(key).unwrap_or_else(|| panic!("{place}{key} is gone"));
                        kept(value, there, &format!("{place}{key}."));
                    }
                }
            }
            (Value::Array(before), Value::Array(after)) => {
                assert!(after.len() >= before.len(), "{place}: {before:?} became {after:?}");
                for (index, (one, other)) in before.iter().zip(after).enumerate() {
                    kept(one, other, &format!("{place}{index}."));
                }
            }
            // Named ports of probes become numbers.
            (Value::String(_), Value::Number(_)) if place.ends_with(".port.") => {}
            _ => assert_eq!(before, after, "{place}"),
        }
    }

    #[test]
    fn what_is_injected_is_valid_by_the_schemas_of_kubernetes() {
        let Some(python) = python(&["kubernetes_validate"]) else { return };
        let folder = std::env::temp_dir().join(format!("throughline-corpus-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut files = 0;
        for (name, mut pod) in cases() {
            if ["unknown-fields", "not-understood"].contains(&name.as_str()) {
                continue; // not valid before either
            }
            pod["metadata"].as_object_mut().unwrap().entry("name").or_insert(json!("named-by-the-server"));
            for (layout, mode, sidecars) in LAYOUTS {
                let Some(injected) = inject(&name, &pod, mode, sidecars).injected else { continue };
                std::fs::write(folder.join(format!("{name}-{layout}.json")), injected.to_string()).unwrap();
                files += 1;
            }
        }
        assert!(files > 60);
        let script = "import sys,glob,json,kubernetes_validate as k\n\
                      for f in sorted(glob.glob(sys.argv[1]+'/*.json')):\n\
                      \x20   for version in ('1.33','1.37'):\n\
                      \x20       try: k.validate(json.load(open(f)), version, strict=True)\n\
                      \x20       except Exception as e: print(f, version, str(e)[:600])\n";
        let judged = std::process::Command::new(python).args(["-c", script]).arg(&folder).output().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let said = String::from_utf8_lossy(&judged.stdout).into_owned();
        assert!(
            judged.status.success() && said.is_empty(),
            "{said}{}",
            String::from_utf8_lossy(&judged.stderr)
        );
    }

    /// What Pod Security `restricted` asks of a container (kubernetes.io/docs/concepts/security/pod-security-standards).
    #[test]
    fn reverse_mode_is_clean_by_pod_security_restricted() {
        for (name, pod) in cases() {
            for (layout, mode, sidecars) in LAYOUTS {
                let result = inject(&name, &pod, mode, sidecars);
                if result.told["mode"] != "reverse" {
                    continue;
                }
                let injected = result.injected.unwrap();
                let all = ["containers", "initContainers"]
                    .iter()
                    .flat_map(|list| injected["spec"][list].as_array().cloned().unwrap_or_default());
                let ours: Vec<Value> =
                    all.filter(|one| one["name"].as_str().unwrap().starts_with("throughline-")).collect();
                assert_eq!(ours.len(), 1, "{name}, {layout}: the sidecar alone, no rules");
                let context = &ours[0]["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false);
                assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}));
                assert_eq!(context["runAsNonRoot"], true);
                assert_eq!(context["seccompProfile"], json!({"type": "RuntimeDefault"}));
                assert!(
                    ours[0]["ports"].as_array().unwrap().iter().all(|port| port.get("hostPort").is_none())
                );
            }
        }
    }

    /// The variables of the sidecar are held against the sidecar's own table, strictly.
    #[test]
    fn the_sidecar_takes_every_setting_that_it_is_given_in_reverse_mode() {
        use throughline_core::settings::{Settings as Sidecar, Sources};
        let mut read = 0;
        for (name, pod) in cases() {
            for (layout, mode, sidecars) in LAYOUTS {
                let result = inject(&name, &pod, mode, sidecars);
                let (Some(injected), "reverse") =
                    (result.injected, result.told["mode"].as_str().unwrap_or(""))
                else {
                    continue;
                };
                let lists = ["containers", "initContainers"];
                let all = lists
                    .iter()
                    .flat_map(|list| injected["spec"][list].as_array().cloned().unwrap_or_default());
                let sidecar = all.into_iter().find(|one| one["name"] == "throughline-proxy").unwrap();
                let env = sidecar["env"].as_array().unwrap().iter().filter_map(|one| {
                    let value = one["value"].as_str()?.replace("$(K8S_NODE_IP)", "10.0.0.1");
                    Some((one["name"].as_str()?.to_owned(), value))
                });
                let found = Sidecar::resolve(&Sources { env: env.collect(), ..Sources::default() });
                let found = found.unwrap_or_else(|told| panic!("{name}, {layout}: {told:?}"));
                assert_eq!(found.warnings, Vec::<String>::new(), "{name}, {layout}");
                read += 1;
            }
        }
        assert!(read > 30, "{read}");
    }

    #[test]
    fn the_order_of_containers_is_that_of_the_layout() {
        let pods: BTreeMap<String, Value> = cases().into_iter().collect();
        let names = |pod: &Value, list: &str| -> Vec<String> {
            let all = pod["spec"][list].as_array().cloned().unwrap_or_default();
            all.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
        };
        let pod = &pods["init-containers"];
        let native = inject("", pod, Some(Mode::Sidecar), Sidecars::Native).injected.unwrap();
        assert_eq!(
            names(&native, "initContainers"),
            ["throughline-rules", "throughline-proxy", "migrate", "cache"]
        );
        assert_eq!(names(&native, "containers"), ["app"]);
        let sidecar = &native["spec"]["initContainers"][1];
        assert_eq!(sidecar["restartPolicy"], "Always");
        assert_eq!(sidecar["startupProbe"]["httpGet"]["path"], "/readyz");
        let ordinary = inject("", pod, Some(Mode::Sidecar), Sidecars::Ordinary).injected.unwrap();
        assert_eq!(names(&ordinary, "initContainers"), ["migrate", "cache", "throughline-rules"]);
        assert_eq!(names(&ordinary, "containers"), ["app", "throughline-proxy"]);
        assert_eq!(ordinary["spec"]["containers"][1].get("restartPolicy"), None);
    }

    #[test]
    fn the_bootstrap_of_envoy_is_taken_by_a_real_envoy() {
        let Some(envoy) = throughline_tests::envoy::binary() else {
            return throughline_tests::judges::skipped(
                "no Envoy in target/judges: `scripts/setup test` installs it",
            );
        };
        let folder = std::env::temp_dir().join(format!("throughline-bootstrap-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let probes = ["tcp:5432".to_owned(), "grpc:9000/shop.Orders".to_owned(), "grpc:9001".to_owned()];
        for (endpoint, protocol) in
            [("http://collector:4317", "grpc"), ("https://collector.example.com", "http/protobuf")]
        {
            let bootstrap =
                patch::bootstrap(&["OTEL_SERVICE_NAME"], endpoint, protocol, "0.0.0.0", &probes).unwrap();
            // The module is not built here: whether Envoy takes it is the business of tests/tests/envoy.
            let mut bootstrap = bootstrap;
            crate::envoy::without_filter(&mut bootstrap);
            let text = bootstrap.to_string().replace("$(K8S_POD_IP)", "10.1.2.3");
            let judged = std::process::Command::new(&envoy)
                .args(["--mode", "validate", "--log-level", "error", "--config-yaml", &text])
                .output()
                .unwrap();
            assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stderr));
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
