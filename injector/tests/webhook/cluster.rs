//! Against a real API server, with etcd behind it and RBAC on: the injector has the roles of its own manifest and
//! nothing else. The folder is named by `KUBEBUILDER_ASSETS`, else it is the one that `scripts/kube-apiserver`
//! fills; without either the scenarios are skipped, and say so. That server is a 1.20: it knows no native sidecars
//! (ordinary layouts are what it gets), which goldens and schemas hold instead.

#![expect(clippy::print_stdout, reason = "says what was counted")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use throughline_injector::api::{Api, Content, Failure};
use throughline_injector::metrics::Metrics;
use throughline_injector::telemetry::Telemetry;
use throughline_injector::{certs, manifest, settings};
use throughline_tests::judges::skipped;
use throughline_tests::wait::eventually;
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Folder, Injector, Process, free_address};

fn assets() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let folders = [
        std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from),
        cache.map(|cache| cache.join("throughline/kube-apiserver")),
    ];
    let complete = |folder: &PathBuf| folder.join("kube-apiserver").is_file() && folder.join("etcd").exists();
    let found = folders.into_iter().flatten().find(complete);
    if found.is_none() {
        skipped(
            "no API server: `scripts/kube-apiserver` builds one, or KUBEBUILDER_ASSETS names a folder with kube-apiserver and etcd",
        );
    }
    found
}

/// An API server of its own for a scenario.
struct Cluster {
    api: Api,
    telemetry: Telemetry,
    /// For the injector, with the roles of its manifest.
    kubeconfig: String,
    folder: Folder,
    _server: Process,
    _etcd: Process,
}

impl Cluster {
    async fn start(name: &str) -> Option<Self> {
        let assets = assets()?;
        let folder = Folder::new(name);
        let (etcd_client, etcd_peer, secure) = (free_address(), free_address(), free_address());
        let mut etcd = Command::new(assets.join("etcd"));
        let (client, peer) = (format!("http://{etcd_client}"), format!("http://{etcd_peer}"));
        etcd.args(["--name", "one", "--log-level", "error"])
            .arg("--data-dir")
            .arg(folder.0.join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")]);
        let etcd = Process::start(etcd, folder.0.join("etcd.log"));
        let key = rcgen::KeyPair::generate().unwrap();
        let private = folder.write("accounts.key", &key.serialize_pem());
        let public = folder.write("accounts.pub", &key.public_key_pem());
        let tokens =
            folder.write("tokens.csv", "admin-token,admin,1,\"system:masters\"\ninjector-token,injector,2\n");
        let mut server = Command::new(assets.join("kube-apiserver"));
        server
            .arg("--cert-dir")
            .arg(folder.0.join("certificates"))
            .args(["--etcd-servers", &client, "--bind-address", "127.0.0.1"])
            .args(["--secure-port", &secure.port().to_string(), "--insecure-port", "0"])
            .args(["--service-account-issuer", "https://scenario", "--service-account-key-file", &public])
            .args(["--service-account-signing-key-file", &private, "--token-auth-file", &tokens])
            .args(["--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount"])
            .args(["--service-cluster-ip-range", "10.0.0.0/24", "--allow-privileged=true"]);
        let server = Process::start(server, folder.0.join("server.log"));
        let config = |name: &str, token: &str| {
            let text = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "it",
                "clusters": [{"name": "it", "cluster": {"server": format!("https://{secure}"), "insecure-skip-tls-verify": true}}],
                "users": [{"name": "it", "user": {"token": token}}],
                "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}]
            });
            folder.write(name, &text.to_string())
        };
        let (admin, kubeconfig) =
            (config("admin.json", "admin-token"), config("injector.json", "injector-token"));
        let api = Api::new(Some(&admin), Arc::new(Metrics::default())).await.unwrap();
        let telemetry = Telemetry::new(&settings::defaults().unwrap()).unwrap();
        let cluster = Self { api, telemetry, kubeconfig, folder, _server: server, _etcd: etcd };
        // The server's own start-up hooks make the default roles and namespaces.
        let ready = || async {
            let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin";
            let found = cluster.call(Method::GET, roles, None).await.is_ok();
            (found && cluster.call(Method::GET, "/api/v1/namespaces/default", None).await.is_ok())
                .then_some(())
        };
        for attempt in 0.. {
            if ready().await.is_some() {
                break;
            }
            assert!(attempt < 600, "the API server did not come up: {}", cluster._server.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Some(cluster)
    }

    async fn call(&self, method: Method, path: &str, content: Option<Content<'_>>) -> Result<Value, Failure> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        self.api.call(&self.telemetry.root("scenario"), method, path, &[], query, content).await
    }

    async fn create(&self, path: &str, object: Value) -> Value {
        let created = self.call(Method::POST, path, Some(Content::Json(&object))).await;
        created.unwrap_or_else(|failure| panic!("{path}: {failure}: {object}"))
    }

    async fn patch(&self, path: &str, operations: Value) -> Value {
        self.call(Method::PATCH, path, Some(Content::Patch(&operations))).await.unwrap()
    }

    async fn namespace(&self, name: &str, labels: Value, annotations: Value) {
        let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
        self.create("/api/v1/namespaces", json!({"metadata": metadata})).await;
    }

    /// The roles of the manifest, for the user that the injector is here, and the webhook at an address.
    async fn install(&self, at: SocketAddr, policy: &str, flags: &[(&str, &str)]) {
        let flags: Vec<_> =
            flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let settings = settings::Settings::read(&flags, std::iter::empty()).unwrap();
        self.namespace("throughline-system", json!({}), json!({})).await;
        for mut role in manifest::roles(&settings) {
            if let Some(subjects) = role.get_mut("subjects") {
                *subjects = json!([{"kind": "User", "name": "injector"}]);
            }
            let kind = role["kind"].as_str().unwrap().to_lowercase();
            let path = match role["metadata"].get("namespace") {
                Some(_) => {
                    format!("/apis/rbac.authorization.k8s.io/v1/namespaces/throughline-system/{kind}s")
                }
                None => format!("/apis/rbac.authorization.k8s.io/v1/{kind}s"),
            };
            self.create(&path, role).await;
        }
        let mut webhook = manifest::webhook(&settings);
        for hook in webhook["webhooks"].as_array_mut().unwrap() {
            hook["clientConfig"] = json!({"url": format!("https://{at}/mutate")});
            hook["failurePolicy"] = json!(policy);
        }
        self.create(CONFIGURATIONS, webhook).await;
    }

    async fn dry_run(&self, namespace: &str, pod: &Value) -> Result<Value, Failure> {
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        self.call(Method::POST, &path, Some(Content::Json(pod))).await
    }

    /// Waits until the API server calls the webhook, which it learns by and by.
    async fn injects(&self, namespace: &str) {
        let asked =
            || async { self.dry_run(namespace, &pod("probe")).await.ok().filter(has_sidecar).map(|_| ()) };
        eventually("the API server calls the webhook", asked).await;
    }

    async fn configuration(&self) -> Value {
        self.call(Method::GET, &format!("{CONFIGURATIONS}/throughline-injector"), None).await.unwrap()
    }

    async fn secret(&self) -> certs::Kept {
        let path = "/api/v1/namespaces/throughline-system/secrets/throughline-injector-tls";
        certs::Kept::of_secret(&self.call(Method::GET, path, None).await.unwrap()).unwrap()
    }
}

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 8080}]}
    ]}})
}

fn has_sidecar(pod: &Value) -> bool {
    let lists = ["containers", "initContainers"];
    let mut all = lists.iter().flat_map(|list| pod["spec"][list].as_array().into_iter().flatten());
    all.any(|one| one["name"] == "throughline-proxy")
}

async fn count_of(injector: &Injector, reason: &str) -> f64 {
    let numbers = injector.numbers().await;
    let part = format!("reason=\"{reason}\"");
    numbers
        .iter()
        .filter(|(name, _)| name.contains("admissions_total") && name.contains(&part))
        .map(|(_, n)| n)
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_injects_what_is_labelled_and_nothing_else() {
    let Some(cluster) = Cluster::start("injects").await else { return };
    let at = free_address();
    let flags = [("reconcile-interval", "1s")];
    cluster.install(at, "Ignore", &flags).await;
    let labelled = json!({"throughline.dev/inject": "enabled"});
    cluster.namespace("shop", labelled.clone(), json!({})).await;
    cluster.namespace("plain", json!({}), json!({})).await;

    // Down, and the policy is Ignore: pods come in without a sidecar.
    let slipped = cluster.create("/api/v1/namespaces/shop/pods", pod("slipped")).await;
    assert!(!has_sidecar(&slipped));
    let running = json!([{"op": "replace", "path": "/status/phase", "value": "Running"}]);
    cluster.patch("/api/v1/namespaces/shop/pods/slipped/status", running.clone()).await;

    let admin = free_address();
    let mut injector =
        Injector::start_at(&cluster.folder, "one", &cluster.kubeconfig, &flags, at, admin).await;
    cluster.injects("shop").await;

    // The one that slipped by is named: number, event, check.
    let series = r#"throughline_injector_pods_missing_sidecar{namespace="shop"}"#;
    eventually("the pod is counted", || async { (injector.number(series).await == 1.0).then_some(()) }).await;
    let events = "/api/v1/namespaces/shop/events";
    let event = eventually("an event names it", || async {
        let list = cluster.call(Method::GET, events, None).await.unwrap();
        list["items"].as_array().unwrap().iter().find(|event| event["reason"] == "SidecarMissing").cloned()
    })
    .await;
    assert_eq!(event["involvedObject"]["name"], "slipped");
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_throughline-injector"));
        command.env_clear().args(["check", "--kubeconfig", &cluster.kubeconfig]);
        let ended = command.output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stdout).unwrap())
    };
    let (code, said) = check();
    assert_eq!(code, Some(1));
    assert!(said.contains("shop/slipped: no sidecar") && said.contains("1 without"), "{said}");

    // Pods of their own, and the template of a Deployment, by dry-run.
    let injected = cluster.create("/api/v1/namespaces/shop/pods", pod("web")).await;
    assert!(has_sidecar(&injected), "{injected}");
    assert_eq!(
        injected["spec"]["initContainers"][0]["name"], "throughline-rules",
        "1.20: the ordinary layout"
    );
    cluster.patch("/api/v1/namespaces/shop/pods/web/status", running).await;
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": pod("x")}
    });
    let path = "/apis/apps/v1/namespaces/shop/deployments?dryRun=All";
    let deployment = cluster.create(path, deployment).await;
    let template = json!({
        "metadata": {"generateName": "web-6f7d9c5b8-", "labels": {"app": "web", "pod-template-hash": "6f7d9c5b8"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6f7d9c5b8", "uid": "1", "controller": true}]},
        "spec": deployment["spec"]["template"]["spec"]
    });
    let from_template = cluster.dry_run("shop", &template).await.unwrap();
    assert!(has_sidecar(&from_template));
    assert!(from_template.to_string().contains("k8s.deployment.name=web,"), "{from_template}");

    // Each mode is taken by the server's own validation.
    for mode in ["reverse", "envoy-wasm"] {
        let mut asked = pod("mode");
        asked["metadata"]["annotations"] = json!({"throughline.dev/mode": mode});
        let taken = cluster.dry_run("shop", &asked).await.unwrap();
        assert!(taken.to_string().contains("throughline-"), "{mode}");
    }

    // Opting out, opting in, and where nobody asked.
    let mut out = pod("out");
    out["metadata"]["labels"]["throughline.dev/inject"] = json!("disabled");
    assert!(!has_sidecar(&cluster.dry_run("shop", &out).await.unwrap()));
    let mut out = pod("out");
    out["metadata"]["annotations"] = json!({"throughline.dev/inject": "disabled"});
    assert!(!has_sidecar(&cluster.dry_run("shop", &out).await.unwrap()));
    assert!(!has_sidecar(&cluster.dry_run("plain", &pod("plain")).await.unwrap()));
    let mut asks = pod("asks");
    asks["metadata"]["labels"]["throughline.dev/inject"] = json!("enabled");
    assert!(has_sidecar(&cluster.dry_run("plain", &asks).await.unwrap()));

    // Another webhook that changes the pod afterwards has ours called again: once injected is injected.
    let again = count_of(&injector, "already-injected").await;
    let once_more = cluster.dry_run("shop", &from_template_again(&injected)).await.unwrap();
    assert_eq!(once_more["spec"]["containers"].as_array().unwrap().len(), 2);
    assert_eq!(count_of(&injector, "already-injected").await, again + 1.0);

    // The pod is gone: nobody is missing, and the one that has its sidecar is counted.
    let gone = "/api/v1/namespaces/shop/pods/slipped?gracePeriodSeconds=0";
    cluster.call(Method::DELETE, gone, None).await.unwrap();
    eventually("nobody is missing", || async { (injector.number(series).await == 0.0).then_some(()) }).await;
    assert_eq!(injector.number(r#"throughline_injector_pods_injected{namespace="shop"}"#).await, 1.0);
    assert_eq!(check().0, Some(0));

    // Somebody spoils caBundle: it is right again within seconds.
    let repairs = injector.number("throughline_injector_ca_bundle_repairs_total").await;
    let spoil = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}, {"op": "remove", "path": "/webhooks/1/clientConfig/caBundle"}]);
    cluster.patch(&format!("{CONFIGURATIONS}/throughline-injector"), spoil).await;
    let wanted = cluster.secret().await.bundle();
    eventually("caBundle is right again", || async {
        certs::bundles(&cluster.configuration().await).iter().all(|bundle| *bundle == wanted).then_some(())
    })
    .await;
    eventually("the repair is counted", || async {
        (injector.number("throughline_injector_ca_bundle_repairs_total").await > repairs).then_some(())
    })
    .await;
    cluster.injects("shop").await;

    // Killed, under both policies, and back with the certificate that the Secret kept.
    injector.process.kill();
    assert!(
        !has_sidecar(&cluster.dry_run("shop", &pod("untraced")).await.unwrap()),
        "Ignore: admitted without"
    );
    let policy = |policy: &str| json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": policy}, {"op": "replace", "path": "/webhooks/1/failurePolicy", "value": policy}]);
    cluster.patch(&format!("{CONFIGURATIONS}/throughline-injector"), policy("Fail")).await;
    eventually("Fail: refused", || async { cluster.dry_run("shop", &pod("refused")).await.err() }).await;
    let before = cluster.secret().await;
    let back = Injector::start_at(&cluster.folder, "two", &cluster.kubeconfig, &flags, at, admin).await;
    cluster.injects("shop").await;
    assert_eq!(cluster.secret().await, before);
    // It leads once the Lease of the dead one is over.
    eventually("it leads", || async {
        (back.number("throughline_injector_leader").await == 1.0).then_some(())
    })
    .await;
}

fn from_template_again(injected: &Value) -> Value {
    json!({"metadata": {"name": "again", "labels": injected["metadata"]["labels"]}, "spec": {
        "containers": injected["spec"]["containers"], "initContainers": injected["spec"]["initContainers"]
    }})
}

/// Hands connections to whichever replica takes them, as a Service does.
async fn service(replicas: Vec<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut turn = 0usize;
        while let Ok((mut stream, _)) = listener.accept().await {
            turn += 1;
            let order: Vec<SocketAddr> =
                replicas.iter().cycle().skip(turn).take(replicas.len()).copied().collect();
            tokio::spawn(async move {
                for replica in order {
                    if let Ok(mut upstream) = TcpStream::connect(replica).await {
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_come_and_go_under_load_and_no_admission_fails() {
    let Some(cluster) = Cluster::start("rotates").await else { return };
    let (one, two) = (free_address(), free_address());
    let at = service(vec![one, two]).await;
    // So short that authority and certificate are replaced again and again while pods come.
    let flags = [
        ("certificate-lifetime", "12s"),
        ("authority-lifetime", "21s"),
        ("authority-announce", "2s"),
        ("authority-overlap", "3s"),
    ];
    cluster.install(at, "Fail", &flags).await;
    cluster.namespace("shop", json!({"throughline.dev/inject": "enabled"}), json!({})).await;
    let first =
        Injector::start_at(&cluster.folder, "one", &cluster.kubeconfig, &flags, one, free_address()).await;
    let second =
        Injector::start_at(&cluster.folder, "two", &cluster.kubeconfig, &flags, two, free_address()).await;
    cluster.injects("shop").await;

    let (over, admitted) = (AtomicBool::new(false), AtomicUsize::new(0));
    let load = async {
        let mut failed = Vec::new();
        while !over.load(Ordering::Relaxed) {
            // A new pod each: the API server keeps its connections, and makes new ones with each new caBundle.
            match cluster.dry_run("shop", &pod("load")).await {
                Ok(pod) if has_sidecar(&pod) => {
                    admitted.fetch_add(1, Ordering::Relaxed);
                }
                Ok(_) => failed.push("admitted without a sidecar".to_owned()),
                Err(failure) => failed.push(failure.to_string()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        failed
    };
    let steps = async |step: &str| {
        let series = format!("throughline_injector_certificate_steps_total{{step=\"{step}\"}}");
        first.number(&series).await + second.number(&series).await
    };
    let rotated = async {
        let began = cluster.secret().await;
        for _ in 0..600 {
            if steps("retire").await >= 2.0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        over.store(true, Ordering::Relaxed);
        began
    };
    let (failed, began) = tokio::join!(load, rotated);
    let count = admitted.load(Ordering::Relaxed);
    println!(
        "{count} admissions, {} failed, while authorities were announced {} times and retired {} times, and {} certificates made",
        failed.len(),
        steps("announce").await,
        steps("retire").await,
        steps("issue").await
    );
    assert_eq!(failed, Vec::<String>::new());
    assert!(count > 100, "{count}");
    assert!(steps("retire").await >= 2.0, "two authorities have come and gone");
    let now = cluster.secret().await;
    assert!(now.authorities.iter().all(|authority| !began.authorities.contains(authority)));
    // Both replicas are of one mind: who takes a step is one of them, and the Secret began once.
    assert_eq!(steps("begin").await, 1.0);
    let leaders = first.number("throughline_injector_leader").await
        + second.number("throughline_injector_leader").await;
    assert_eq!(leaders, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_for_istio_come_and_go_with_the_label() {
    let Some(cluster) = Cluster::start("istio").await else { return };
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    for (group, version, kind, plural) in [
        ("networking.istio.io", "v1alpha3", "EnvoyFilter", "envoyfilters"),
        ("extensions.istio.io", "v1alpha1", "WasmPlugin", "wasmplugins"),
        ("telemetry.istio.io", "v1", "Telemetry", "telemetries"),
    ] {
        let schema =
            json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        let definition = json!({
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {"group": group, "scope": "Namespaced", "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{"name": version, "served": true, "storage": true, "schema": schema}]}
        });
        cluster.create(definitions, definition).await;
    }
    let flags = [
        ("reconcile-interval", "1s"),
        ("wasm-url", "oci://registry.example.com/mine:1"),
        ("otlp-endpoint", "http://collector.obs:4317"),
    ];
    let at = free_address();
    cluster.install(at, "Ignore", &flags).await;
    let labels = json!({"throughline.dev/inject": "enabled"});
    cluster.namespace("meshed", labels.clone(), json!({"throughline.dev/mode": "istio-wasm"})).await;
    cluster.namespace("other", labels, json!({})).await;
    // Somebody's own, with another name's label: never touched.
    let own = json!({"metadata": {"name": "theirs", "labels": {"app.kubernetes.io/managed-by": "throughline-injector"}}, "data": {}});
    cluster.create("/api/v1/namespaces/other/configmaps", own).await;
    let injector =
        Injector::start_at(&cluster.folder, "one", &cluster.kubeconfig, &flags, at, free_address()).await;

    let filters = "/apis/networking.istio.io/v1alpha3/envoyfilters";
    let listed = |path: &'static str| {
        let cluster = &cluster;
        async move {
            cluster
                .call(Method::GET, path, None)
                .await
                .map_or(Vec::new(), |list| list["items"].as_array().unwrap().clone())
        }
    };
    let found =
        eventually("the filter is applied", || async { listed(filters).await.first().cloned() }).await;
    assert_eq!(found["metadata"]["namespace"], "meshed");
    let text = found.to_string();
    assert!(
        text.contains("oci://registry.example.com/mine:1") && text.contains("outbound|4317||collector.obs"),
        "{text}"
    );
    assert!(!text.contains("throughline-filter:0.1.0") && !text.contains("otel-collector"));
    let telemetries = "/apis/telemetry.istio.io/v1/telemetries";
    eventually("Envoy's own tracer is off", || async { listed(telemetries).await.first().cloned() }).await;
    assert!(listed("/apis/extensions.istio.io/v1alpha1/wasmplugins").await.is_empty());

    cluster
        .patch(
            "/api/v1/namespaces/meshed",
            json!([{"op": "remove", "path": "/metadata/labels/throughline.dev~1inject"}]),
        )
        .await;
    eventually("they go with the label", || async { listed(filters).await.is_empty().then_some(()) }).await;
    eventually("all of them", || async { listed(telemetries).await.is_empty().then_some(()) }).await;
    cluster.call(Method::GET, "/api/v1/namespaces/other/configmaps/theirs", None).await.unwrap();
    assert_eq!(injector.number(r#"throughline_injector_istio_objects_total{result="failed"}"#).await, 0.0);
}
