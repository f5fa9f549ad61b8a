//! What is rendered, applied to a real API server: kube-apiserver 1.20 of Debian's source, which knows neither
//! policy/v1 nor native sidecars nor Pod Security. It is started here with RBAC, and ended by its own process id.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use throughline_tests::judges::skipped;
use throughline_tests::pki::Folder;
use throughline_tests::sidecar::workspace;

use crate::render::{NAMESPACE, build, helm, kustomize, list, objects, template, text, title};

const TOKEN: &str = "an-administrator-of-this-test-alone";
/// A server on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Processes that are ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Server {
    kubectl: PathBuf,
    address: String,
    folder: Folder,
    _processes: Vec<Process>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port()
}

/// The folder of `KUBEBUILDER_ASSETS`, else the one that `scripts/kube-apiserver` filled.
fn assets() -> Option<PathBuf> {
    let named = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let home = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let folder = named.or_else(|| Some(home?.join("throughline/kube-apiserver")))?;
    for program in ["etcd", "kube-apiserver", "kubectl"] {
        if !folder.join(program).exists() {
            skipped(&format!(
                "{} is missing: scripts/kube-apiserver builds it",
                folder.join(program).display()
            ));
            return None;
        }
    }
    Some(folder)
}

fn start(program: &Path, folder: &Folder, arguments: &[String]) -> Process {
    let name = program.file_name().and_then(|name| name.to_str()).expect("a name");
    let log = std::fs::File::create(folder.file(&format!("{name}.log"))).expect("a log");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Process(command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display())))
}

impl Server {
    fn start() -> Option<Server> {
        let assets = assets()?;
        let folder = Folder::fresh();
        let path = |name: &str| folder.file(name).to_str().expect("UTF-8").to_owned();
        let (clients, peers, secure) = (free_port(), free_port(), free_port());
        let mut processes = Vec::new();
        processes.push(start(
            &assets.join("etcd"),
            &folder,
            &[
                format!("--data-dir={}", path("etcd")),
                format!("--listen-client-urls=http://127.0.0.1:{clients}"),
                format!("--advertise-client-urls=http://127.0.0.1:{clients}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peers}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peers}"),
                format!("--initial-cluster=default=http://127.0.0.1:{peers}"),
                "--unsafe-no-fsync".to_owned(),
            ],
        ));
        folder.write(
            "audit.yaml",
            serde_json::json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
                "rules": [{"level": "Metadata"}]})
            .to_string(),
        );
        folder.write("tokens.csv", format!("{TOKEN},admin,admin,system:masters\n"));
        let key = Command::new("openssl").args(["genrsa", "-out", &path("sa.key"), "2048"]).output();
        assert!(key.is_ok_and(|output| output.status.success()), "openssl makes a key");
        processes.push(start(
            &assets.join("kube-apiserver"),
            &folder,
            &[
                format!("--etcd-servers=http://127.0.0.1:{clients}"),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={secure}"),
                format!("--cert-dir={}", path("certs")),
                format!("--token-auth-file={}", path("tokens.csv")),
                "--authorization-mode=RBAC".to_owned(),
                format!("--audit-policy-file={}", path("audit.yaml")),
                format!("--audit-log-path={}", path("audit.log")),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", path("sa.key")),
                format!("--service-account-signing-key-file={}", path("sa.key")),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                "--disable-admission-plugins=ServiceAccount".to_owned(),
            ],
        ));
        let kubectl = assets.join("kubectl");
        let server =
            Server { kubectl, address: format!("https://127.0.0.1:{secure}"), folder, _processes: processes };
        server.wait(&["get", "--raw", "/readyz"], "the API server is ready");
        server.wait(&["get", "namespace", "default"], "the API server has its namespaces");
        Some(server)
    }

    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.kubectl);
        command.args(["--server", &self.address, "--insecure-skip-tls-verify", "--token", TOKEN]);
        command.args(["--cache-dir", self.folder.file("cache").to_str().expect("UTF-8")]);
        command.env("KUBECONFIG", "/dev/null").args(arguments);
        let output = command.output().expect("kubectl runs");
        let told =
            String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr });
        if output.status.success() { Ok(told.into_owned()) } else { Err(told.into_owned()) }
    }

    fn must(&self, arguments: &[&str]) -> String {
        self.run(arguments).unwrap_or_else(|told| panic!("{arguments:?}: {told}"))
    }

    /// A condition, asked again until it holds: the server says when by nothing else.
    fn wait(&self, arguments: &[&str], what: &str) {
        let began = Instant::now();
        loop {
            let Err(told) = self.run(arguments) else { return };
            let log = std::fs::read_to_string(self.folder.file("kube-apiserver.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(3).collect();
            assert!(began.elapsed() < PATIENCE, "{what}: {told} {last:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn apply(&self, objects: &[Value], name: &str) -> String {
        let items: Vec<&Value> = objects.iter().collect();
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
        let file = self.folder.write(name, list.to_string());
        self.must(&["apply", "--validate=false", "-f", file.to_str().expect("UTF-8")])
    }

    fn webhook(&self) -> Value {
        let json = self.must(&["get", "mutatingwebhookconfiguration", "throughline-injector", "-o", "json"]);
        serde_json::from_str(&json).expect("JSON")
    }

    /// Whether a service account may do it.
    fn can(&self, account: &str, verb: &str, what: &str, namespace: &str) -> bool {
        let account = format!("system:serviceaccount:{NAMESPACE}:throughline-{account}");
        let asked = self.run(&["auth", "can-i", verb, what, "--as", &account, "-n", namespace]);
        asked.is_ok_and(|said| said.trim() == "yes")
    }
}

/// What Kubernetes 1.20 has: policy/v1 came with 1.21.
fn known(objects: Vec<Value>) -> Vec<Value> {
    objects.into_iter().filter(|one| text(one, "/apiVersion") != "policy/v1").collect()
}

#[test]
fn a_real_api_server_takes_everything_and_keeps_the_injectors_ca() {
    let (Some(helm), Some(kustomize)) = (helm(), kustomize()) else { return };
    let Some(server) = Server::start() else { return };
    let base = known(objects(&build(&kustomize, "kubernetes/base")));
    server.apply(&base, "base.json");
    for folder in
        ["kubernetes/with-tempo", "kubernetes/with-jaeger", "kubernetes/production", "kubernetes/dev"]
    {
        let mut all = known(objects(&build(&kustomize, folder)));
        // A StatefulSet's claims can't be changed once it is there: each of these is for a cluster of its own.
        all.retain(|one| {
            text(one, "/kind") != "StatefulSet" || !folder.ends_with("production") && !folder.ends_with("dev")
        });
        server.apply(&all, "overlay.json");
    }
    let chart =
        objects(&template(&helm, &["collector.enabled=true"], None).unwrap_or_else(|told| panic!("{told}")));
    server.apply(&known(chart), "chart.json");

    // What the injector does with its configuration, and an upgrade after it.
    for index in ["0", "1"] {
        let patch =
            format!(r#"[{{"op":"add","path":"/webhooks/{index}/clientConfig/caBundle","value":"Q0E="}}]"#);
        server.must(&[
            "patch",
            "mutatingwebhookconfiguration",
            "throughline-injector",
            "--type=json",
            "-p",
            &patch,
        ]);
    }
    let mut newer = base.clone();
    for object in newer.iter_mut().filter(|one| title(one).starts_with("MutatingWebhookConfiguration/")) {
        object["webhooks"][0]["timeoutSeconds"] = 7.into();
    }
    server.apply(&newer, "newer.json");
    let webhook = server.webhook();
    assert_eq!(webhook["webhooks"][0]["timeoutSeconds"], 7, "the upgrade came");
    for hook in webhook["webhooks"].as_array().expect("webhooks") {
        assert_eq!(hook["clientConfig"]["caBundle"], "Q0E=", "the authority stayed");
    }
    rights(&server);
}

/// What the accounts may do, by the server's own word.
fn rights(server: &Server) {
    for (account, verb, what, namespace, expected) in [
        ("injector", "get", "namespaces", "", true),
        ("injector", "list", "pods", "shop", true),
        ("injector", "list", "services", "shop", true),
        ("injector", "list", "nodes", "", true),
        ("injector", "create", "events", "shop", true),
        ("injector", "get", "secrets/throughline-injector-tls", NAMESPACE, true),
        ("injector", "update", "secrets/throughline-injector-tls", NAMESPACE, true),
        ("injector", "create", "secrets", NAMESPACE, true),
        ("injector", "update", "leases.coordination.k8s.io/throughline-injector", NAMESPACE, true),
        ("injector", "patch", "mutatingwebhookconfigurations/throughline-injector", "", true),
        ("injector", "get", "secrets/throughline-flow-token", NAMESPACE, false),
        ("injector", "list", "secrets", NAMESPACE, false),
        ("injector", "get", "secrets", "shop", false),
        ("injector", "create", "secrets", "shop", false),
        ("injector", "patch", "mutatingwebhookconfigurations/other", "", false),
        ("injector", "delete", "pods", "shop", false),
        ("injector", "create", "pods", "shop", false),
        ("injector", "list", "configmaps", "shop", false),
        ("collector", "watch", "pods", "shop", true),
        ("collector", "watch", "replicasets.apps", "shop", true),
        ("collector", "get", "secrets", NAMESPACE, false),
        ("collector", "create", "pods", NAMESPACE, false),
        ("flow", "get", "pods", NAMESPACE, false),
    ] {
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        let can = server.can(account, verb, what, namespace);
        assert_eq!(can, expected, "{account}: {verb} {what} in {namespace}");
    }
}

/// The injector of this build, if it is built.
fn injector() -> Option<PathBuf> {
    let named = std::env::var_os("THROUGHLINE_INJECTOR_BIN").map(PathBuf::from);
    let built =
        ["quick", "debug"].map(|folder| workspace().join("target").join(folder).join("throughline-injector"));
    let found = named.into_iter().chain(built).find(|path| path.is_file());
    if found.is_none() {
        skipped("no injector is built: cargo build -p throughline-injector, or THROUGHLINE_INJECTOR_BIN");
    }
    found
}

impl Server {
    /// What a pod of this account would have.
    fn kubeconfig(&self, account: &str) -> PathBuf {
        let wish =
            serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let file = self.folder.write("wish.json", wish.to_string());
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token");
        let answer = self.must(&["create", "--raw", &path, "-f", file.to_str().expect("UTF-8")]);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "clusters": [{"name": "it", "cluster": {"server": self.address, "insecure-skip-tls-verify": true}}],
            "users": [{"name": "it", "user": {"token": text(&answer, "/status/token")}}]
        });
        self.folder.write("kubeconfig", config.to_string())
    }

    /// What an account asked for: verb, group, resource, and whether it may.
    fn asked(&self, account: &str) -> Vec<(String, String, String, bool)> {
        let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
        let log = std::fs::read_to_string(self.folder.file("audit.log")).unwrap_or_default();
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let own =
            events.filter(|event| text(event, "/user/username") == user && event.get("objectRef").is_some());
        own.map(|event| {
            let part = |pointer: &str| text(&event, pointer).to_owned();
            let may = text(&event, "/annotations/authorization.k8s.io~1decision") == "allow";
            (part("/verb"), part("/objectRef/apiGroup"), part("/objectRef/resource"), may)
        })
        .collect()
    }
}

#[test]
fn the_injector_runs_with_the_rights_that_it_is_given() {
    let (Some(kustomize), Some(program)) = (kustomize(), injector()) else { return };
    let Some(server) = Server::start() else { return };
    let base = known(objects(&build(&kustomize, "kubernetes/base")));
    server.apply(&base, "base.json");
    server.must(&["create", "namespace", "shop"]);
    server.must(&["label", "namespace", "shop", "throughline.dev/inject=enabled"]);

    let deployment =
        base.iter().find(|one| title(one) == "Deployment/throughline-injector").expect("a Deployment");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let kubeconfig = server.kubeconfig("throughline-injector");
    let log = std::fs::File::create(server.folder.file("injector.log")).expect("a log");
    let mut command = Command::new(program);
    command.args(list(container, "/args").filter_map(Value::as_str)).stdout(Stdio::null()).stderr(log);
    let told = list(container, "/env").filter(|row| row.get("value").is_some());
    command.envs(told.map(|row| (text(row, "/name"), text(row, "/value"))));
    // Its own spans have nowhere to go here, and the ports of the pod may be somebody's.
    command.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT").env("THROUGHLINE_INJECTOR_IDENTITY", "one");
    for (key, value) in [
        ("kubeconfig", kubeconfig.to_str().expect("UTF-8")),
        ("listen", "127.0.0.1:0"),
        ("admin-listen", "127.0.0.1:0"),
        ("sync-interval", "1s"),
        ("reconcile-interval", "1s"),
    ] {
        command.arg(format!("--{key}")).arg(value);
    }
    let _injector = Process(command.spawn().expect("the injector starts"));

    let all = [
        ("get", "secrets"),
        ("create", "secrets"),
        ("get", "leases"),
        ("create", "leases"),
        ("update", "leases"),
        ("get", "mutatingwebhookconfigurations"),
        ("patch", "mutatingwebhookconfigurations"),
        ("list", "namespaces"),
        ("list", "nodes"),
        ("list", "pods"),
    ];
    let began = Instant::now();
    loop {
        let asked = server.asked("throughline-injector");
        let has = |wanted: &(&str, &str)| asked.iter().any(|one| (one.0.as_str(), one.2.as_str()) == *wanted);
        let missing: Vec<_> = all.iter().filter(|wanted| !has(wanted)).collect();
        if missing.is_empty() {
            break;
        }
        let log = std::fs::read_to_string(server.folder.file("injector.log")).unwrap_or_default();
        assert!(began.elapsed() < PATIENCE, "it never asked for {missing:?}: {log}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let refused: Vec<_> = server.asked("throughline-injector").into_iter().filter(|one| !one.3).collect();
    assert_eq!(refused, Vec::new());
    for hook in server.webhook()["webhooks"].as_array().expect("webhooks") {
        assert!(!text(hook, "/clientConfig/caBundle").is_empty(), "{hook}");
    }
}

/// The chart's own way over a real upgrade: what the injector wrote stays, and so does the token that readers have.
#[test]
fn a_helm_upgrade_leaves_the_ca_and_the_token_alone() {
    let Some(helm) = helm() else { return };
    let Some(server) = Server::start() else { return };
    let cluster = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": server.address, "insecure-skip-tls-verify": true}}],
        "users": [{"name": "it", "user": {"token": TOKEN}}]
    });
    let kubeconfig = server.folder.write("admin", cluster.to_string());
    // The chart asks for 1.25; this server is older, calls itself v0.0.0, and has all that is tried here.
    let chart = server.folder.file("throughline");
    let copied = Command::new("cp").arg("-r").arg(crate::render::chart()).arg(&chart).status();
    assert!(copied.is_ok_and(|status| status.success()));
    let about = std::fs::read_to_string(chart.join("Chart.yaml")).expect("a chart");
    std::fs::write(chart.join("Chart.yaml"), about.replace(">=1.25.0-0", ">=0.0.0-0")).expect("a chart");
    let run = |set: &str| {
        let mut command = Command::new(&helm);
        command
            .args(["upgrade", "--install", "throughline"])
            .arg(&chart)
            .arg("--kubeconfig")
            .arg(&kubeconfig);
        command.args(["--namespace", NAMESPACE, "--create-namespace", "--disable-openapi-validation"]);
        command.args(["--set", "injector.replicas=1", "--set", set]).env("HOME", server.folder.file("home"));
        let output = command.output().expect("helm runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let token = || {
        server.must(&[
            "get",
            "secret",
            "throughline-flow-token",
            "-n",
            NAMESPACE,
            "-o",
            "jsonpath={.data.token}",
        ])
    };

    let notes = run("injector.timeoutSeconds=5");
    assert!(notes.contains("kubectl label namespace shop throughline.dev/inject=enabled"), "{notes}");
    let first = token();
    assert!(first.len() >= 64, "{first}");
    for index in ["0", "1"] {
        let patch =
            format!(r#"[{{"op":"add","path":"/webhooks/{index}/clientConfig/caBundle","value":"Q0E="}}]"#);
        server.must(&[
            "patch",
            "mutatingwebhookconfiguration",
            "throughline-injector",
            "--type=json",
            "-p",
            &patch,
        ]);
    }
    run("injector.timeoutSeconds=7");
    let webhook = server.webhook();
    assert_eq!(webhook["webhooks"][1]["timeoutSeconds"], 7, "the upgrade came");
    for hook in webhook["webhooks"].as_array().expect("webhooks") {
        assert_eq!(hook["clientConfig"]["caBundle"], "Q0E=", "the authority stayed");
    }
    assert_eq!(token(), first, "the token stayed");
}

/// What the skips of this file say is missing is what the repository makes.
#[test]
fn the_api_server_is_made_by_a_script_of_the_repository() {
    assert!(workspace().join("scripts/kube-apiserver").is_file());
}
