//! The settings of the injector, as one table: flag, environment variable, default, sentence. `--help` and the
//! page in docs/ come from it. All mistakes are told together. Must never read the environment by itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use throughline_core::settings::{BROWSER_ROWS, Browser, ROWS as SIDECAR_ROWS, Sources};

use crate::quantity;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Heading.
    pub section: &'static str,
    /// Flag without dashes.
    pub key: &'static str,
    /// Default, as it would be written; empty for none.
    pub default: &'static str,
    /// What it is for.
    pub help: &'static str,
}

impl Row {
    /// The environment variable of the flag.
    pub fn env(&self) -> String {
        match self.key.strip_prefix("otel-") {
            Some(_) => self.key.to_ascii_uppercase().replace('-', "_"),
            None => format!("THROUGHLINE_INJECTOR_{}", self.key.to_ascii_uppercase().replace('-', "_")),
        }
    }
}

const fn row(section: &'static str, key: &'static str, default: &'static str, help: &'static str) -> Row {
    Row { section, key, default, help }
}

/// The table.
pub const ROWS: &[Row] = &[
    row("Serving", "listen", "0.0.0.0:9443", "Where the webhook is served, by HTTPS."),
    row(
        "Serving",
        "admin-listen",
        "0.0.0.0:15190",
        "Where /livez, /readyz and /metrics are served, by HTTP.",
    ),
    row(
        "Serving",
        "in-flight-bytes",
        "33554432",
        "Bytes of all reviews that are read at once. Reviews beyond that wait for two seconds and are then admitted unread.",
    ),
    row(
        "Cluster",
        "namespace",
        "throughline-system",
        "The injector's own namespace: its Secret and its Lease are there, and its pods are never injected.",
    ),
    row(
        "Cluster",
        "service",
        "throughline-injector",
        "The Service in front of the webhook; the certificate is for its name.",
    ),
    row(
        "Cluster",
        "webhook",
        "throughline-injector",
        "The MutatingWebhookConfiguration whose caBundle is kept right.",
    ),
    row(
        "Cluster",
        "secret",
        "throughline-injector-tls",
        "The Secret with authority and serving certificate.",
    ),
    row("Cluster", "lease", "throughline-injector", "The Lease by which replicas agree on who reconciles."),
    row(
        "Cluster",
        "identity",
        "",
        "The name of this replica in the Lease; the pod's name. Unset: the host's name.",
    ),
    row(
        "Cluster",
        "kubeconfig",
        "",
        "How to reach the API server from outside a cluster. Unset: KUBECONFIG, then the pod's service account.",
    ),
    row(
        "Certificates",
        "certificate-hosts",
        "",
        "Further names and addresses that the serving certificate is for, separated by commas.",
    ),
    row(
        "Certificates",
        "certificate-lifetime",
        "30d",
        "How long a serving certificate is valid. It is renewed when a third is left.",
    ),
    row(
        "Certificates",
        "authority-lifetime",
        "365d",
        "How long the authority is valid. It is replaced when a third is left.",
    ),
    row(
        "Certificates",
        "authority-announce",
        "60s",
        "How long caBundle has a new authority before it signs what is served, so that every API server knows it.",
    ),
    row(
        "Certificates",
        "authority-overlap",
        "10m",
        "How long caBundle keeps the old authority after that, so that every replica serves the new certificate.",
    ),
    row("Certificates", "sync-interval", "5s", "How often Secret and caBundle are looked at."),
    row(
        "Reconciling",
        "reconcile-interval",
        "30s",
        "How often running pods are looked through for missing sidecars, and Istio's objects are applied.",
    ),
    row(
        "Injecting",
        "mode",
        "auto",
        "What a pod gets that says nothing: sidecar, reverse, envoy-wasm, istio-wasm; auto: sidecar, and reverse where Pod Security forbids the redirect.",
    ),
    row(
        "Injecting",
        "native-sidecars",
        "auto",
        "on, off, or auto: on where the API server and every node is 1.29 or newer.",
    ),
    row(
        "Injecting",
        "sidecar-image",
        "throughline-proxy:0.1.0",
        "Image of the sidecar and of the rules; it must hold throughline-proxy, nft and sleep.",
    ),
    row(
        "Injecting",
        "envoy-image",
        "throughline-envoy:0.1.0",
        "Image for envoy-wasm: Envoy with the filter as /etc/throughline/throughline.wasm.",
    ),
    row("Injecting", "image-pull-policy", "IfNotPresent", "Always, IfNotPresent or Never."),
    row(
        "Injecting",
        "otlp-endpoint",
        "http://throughline-flow.throughline-system.svc.cluster.local:4317",
        "The collector, as sidecars reach it: the flow server of deploy/. $(K8S_NODE_IP) is the address of the pod's node.",
    ),
    row("Injecting", "otlp-protocol", "grpc", "grpc or http/protobuf, as sidecars speak it."),
    row(
        "Injecting",
        "sidecar-settings",
        "",
        "Further settings of every sidecar, a YAML or JSON mapping with the keys of docs/settings.md: {keep-slow: 500}.",
    ),
    row("Injecting", "environment", "", "deployment.environment.name on every span, such as production."),
    row(
        "Injecting",
        "skip-inbound-ports",
        "",
        "Ports whose inbound connections are not captured, separated by commas.",
    ),
    row("Injecting", "skip-outbound-ports", "", "Ports to which outbound connections are not captured."),
    row("Injecting", "skip-outbound-cidrs", "", "Networks to which outbound connections are not captured."),
    row("Injecting", "cpu-request", "10m", "CPU that a sidecar asks for."),
    row(
        "Injecting",
        "cpu-limit",
        "2",
        "CPU that it may use. Both are always set, since a quota refuses pods without.",
    ),
    row("Injecting", "memory-request", "32Mi", "Memory that a sidecar asks for."),
    row("Injecting", "memory-limit", "256Mi", "Memory that it may use."),
    row(
        "Injecting",
        "listen-host",
        "0.0.0.0",
        "The address on which injected ports listen; [::] where pods have IPv6 only.",
    ),
    row(
        "Istio",
        "istio-way",
        "envoyfilter",
        "For namespaces of mode istio-wasm: envoyfilter (Istio 1.28 and newer) or wasmplugin.",
    ),
    row(
        "Istio",
        "wasm-url",
        "",
        "Where Istio's agents fetch the module: oci://registry.example.com/throughline-filter:0.1.0. Unset: istio-wasm is refused.",
    ),
    row("Process", "log-level", "info", "error, warn, info or debug: JSON lines on standard error."),
    row(
        "Process",
        "otel-exporter-otlp-endpoint",
        "",
        "The collector of the injector's own spans, by OTLP over HTTP: http://collector:4318. Unset: no spans are made.",
    ),
    row("Process", "otel-service-name", "throughline-injector", "The name of the injector on its own spans."),
    row(
        "Process",
        "otel-traces-sampler-arg",
        "1.0",
        "The ratio of admissions and rounds that are traced, from 0 to 1; a caller's decision is followed.",
    ),
    row("Process", "otel-sdk-disabled", "false", "true: no spans of its own."),
];

/// What a pod gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// The redirect and the sidecar.
    Sidecar,
    /// The sidecar in the place of the application's port, and as its HTTP proxy.
    Reverse,
    /// The redirect and Envoy with the filter.
    EnvoyWasm,
    /// Istio's own sidecars, with the filter.
    IstioWasm,
}

impl Mode {
    /// The words of a choice.
    pub const WANT: &'static str = "sidecar, reverse, envoy-wasm or istio-wasm";

    /// Reads an annotation.
    pub fn read(text: &str) -> Option<Self> {
        [Mode::Sidecar, Mode::Reverse, Mode::EnvoyWasm, Mode::IstioWasm]
            .into_iter()
            .find(|mode| mode.name() == text)
    }

    /// As annotations and metrics say it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Sidecar => "sidecar",
            Mode::Reverse => "reverse",
            Mode::EnvoyWasm => "envoy-wasm",
            Mode::IstioWasm => "istio-wasm",
        }
    }

    /// Whether the kernel brings the traffic.
    pub fn redirects(self) -> bool {
        matches!(self, Mode::Sidecar | Mode::EnvoyWasm)
    }
}

/// Whether sidecars are native ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Native {
    /// What server and nodes are.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// By which of Istio's objects the filter gets into its sidecars.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IstioWay {
    /// `EnvoyFilter`.
    EnvoyFilter,
    /// `WasmPlugin`.
    WasmPlugin,
}

/// Requests and limits of a sidecar.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resources {
    /// CPU asked for.
    pub cpu_request: String,
    /// CPU at the most.
    pub cpu_limit: String,
    /// Memory asked for.
    pub memory_request: String,
    /// Memory at the most.
    pub memory_limit: String,
}

/// What is not captured.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Exclusions {
    /// Ports of the pod.
    pub inbound_ports: Vec<u16>,
    /// Ports elsewhere.
    pub outbound_ports: Vec<u16>,
    /// Networks elsewhere.
    pub outbound_cidrs: Vec<String>,
}

/// How certificates live.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lifetimes {
    /// Of a serving certificate.
    pub certificate: Duration,
    /// Of an authority.
    pub authority: Duration,
    /// Between a new authority in caBundle and the first certificate by it.
    pub announce: Duration,
    /// Between that certificate and the end of the old authority in caBundle.
    pub overlap: Duration,
}

/// What is injected where a pod and its namespace say nothing.
#[derive(Clone, Debug)]
pub struct Injecting {
    /// `None`: what the namespace can take.
    pub mode: Option<Mode>,
    /// Whether sidecars are native.
    pub native: Native,
    /// Image of sidecar and rules.
    pub sidecar_image: String,
    /// Image of Envoy with the filter.
    pub envoy_image: String,
    /// `imagePullPolicy`.
    pub pull_policy: String,
    /// The collector.
    pub otlp_endpoint: String,
    /// Its protocol.
    pub otlp_protocol: String,
    /// Further settings of sidecars: key and value.
    pub sidecar_settings: Vec<(String, String)>,
    /// `deployment.environment.name`.
    pub environment: String,
    /// What is not captured.
    pub exclusions: Exclusions,
    /// Requests and limits.
    pub resources: Resources,
    /// Where injected ports listen.
    pub listen_host: String,
    /// Whether `istio-wasm` can be had.
    pub istio: bool,
}

/// Every setting, read and checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the webhook is served.
    pub listen: SocketAddr,
    /// Where health and metrics are served.
    pub admin_listen: SocketAddr,
    /// Bytes of reviews at once.
    pub in_flight_bytes: usize,
    /// Own namespace.
    pub namespace: String,
    /// Own Service.
    pub service: String,
    /// Own webhook configuration.
    pub webhook: String,
    /// Own Secret.
    pub secret: String,
    /// Own Lease.
    pub lease: String,
    /// Own name in the Lease.
    pub identity: String,
    /// Path of a kubeconfig.
    pub kubeconfig: Option<String>,
    /// Further names of the certificate.
    pub certificate_hosts: Vec<String>,
    /// How certificates live.
    pub lifetimes: Lifetimes,
    /// How often certificates are looked at.
    pub sync: Duration,
    /// How often pods are looked through.
    pub reconcile: Duration,
    /// What is injected.
    pub injecting: Injecting,
    /// How Istio is told.
    pub istio_way: IstioWay,
    /// Where the module is.
    pub wasm_url: Option<String>,
    /// Own log.
    pub log_level: crate::log::Level,
    /// The collector of own spans.
    pub own_endpoint: Option<String>,
    /// Own name.
    pub own_service: String,
    /// Share of own traces.
    pub own_ratio: f64,
}

/// Settings of sidecars that are the injector's business alone.
pub const OURS: &[&str] = &[
    "capture",
    "inbound-listen",
    "inbound-upstream",
    "outbound-listen",
    "outbound-anywhere",
    "admin-listen",
    "probes",
    "otel-service-name",
    "otel-resource-attributes",
];

/// Holds settings of the sidecar against `core`'s own table. `Err`: every mistake.
pub fn check_sidecar(pairs: &[(String, String)]) -> Result<(), Vec<String>> {
    let mut mistakes: Vec<String> = Vec::new();
    let (ours, others): (Vec<_>, Vec<_>) =
        pairs.iter().cloned().partition(|(key, _)| OURS.contains(&key.as_str()));
    for (key, _) in ours {
        mistakes.push(format!("{key}: the injector sets it itself"));
    }
    let listener = [("inbound-listen", "127.0.0.1:1"), ("inbound-upstream", "127.0.0.1:2")];
    let mut flags: Vec<(String, String)> =
        listener.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    flags.extend(others);
    if let Err(told) = Browser::resolve(&Sources { flags, ..Sources::default() }) {
        mistakes.extend(told.iter().map(|mistake| mistake.to_string().trim_start_matches("--").to_owned()));
    }
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}

/// The environment variable of a sidecar's setting.
pub fn sidecar_env(key: &str) -> Option<&'static str> {
    SIDECAR_ROWS.iter().chain(BROWSER_ROWS).find(|row| row.key == key)?.env.first().copied()
}

/// Ports, separated by commas.
pub fn ports(text: &str) -> Result<Vec<u16>, String> {
    let one = |part: &str| part.parse::<u16>().ok().filter(|port| *port != 0);
    listed(text)
        .map(|part| one(part).ok_or_else(|| "want ports from 1 to 65535, separated by commas".to_owned()))
        .collect()
}

/// Networks, separated by commas.
pub fn cidrs(text: &str) -> Result<Vec<String>, String> {
    let fits = |part: &str| {
        let (address, bits) = part.split_once('/')?;
        let most = match address.parse::<std::net::IpAddr>().ok()? {
            std::net::IpAddr::V4(_) => 32,
            std::net::IpAddr::V6(_) => 128,
        };
        (bits.parse::<u8>().ok()? <= most).then(|| part.to_owned())
    };
    let want = || "want networks such as 10.0.0.0/8 or fd00::/8, separated by commas".to_owned();
    listed(text).map(|part| fits(part).ok_or_else(want)).collect()
}

fn listed(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// A time such as `30d`.
pub fn time(text: &str) -> Result<Duration, String> {
    let want = || "want a number with s, m, h or d behind it, such as 30d".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(want)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| want())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(want()),
    };
    match number.checked_mul(seconds) {
        Some(all) if (1..=86_400 * 36_500).contains(&all) => Ok(Duration::from_secs(all)),
        _ => Err("want a time from 1s to 36500d".to_owned()),
    }
}

/// Whether this is a host and port with a scheme, as exporters take it.
pub fn endpoint(text: &str) -> Result<String, String> {
    let want =
        || "want a URL such as http://throughline-flow.throughline-system.svc.cluster.local:4317".to_owned();
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).ok_or_else(want)?;
    let host = rest.split('/').next().unwrap_or_default();
    if host.is_empty() || text.contains(char::is_whitespace) { Err(want()) } else { Ok(text.to_owned()) }
}

struct Reader<'a> {
    given: &'a BTreeMap<String, (String, String)>,
    mistakes: Vec<String>,
}

impl Reader<'_> {
    fn raw(&self, key: &str) -> (String, String) {
        let default = ROWS.iter().find(|row| row.key == key).map_or("", |row| row.default);
        self.given.get(key).cloned().unwrap_or_else(|| (key.to_owned(), default.to_owned()))
    }

    fn value<T>(&mut self, key: &str, or: T, read: impl Fn(&str) -> Result<T, String>) -> T {
        let (name, value) = self.raw(key);
        read(&value).unwrap_or_else(|want| {
            self.mistakes.push(format!("{name}=\"{}\": {want}", value.escape_debug()));
            or
        })
    }

    fn text(&mut self, key: &str) -> String {
        let (name, value) = self.raw(key);
        if value.is_empty() {
            self.mistakes.push(format!("{name}: want a name"));
        }
        value
    }

    fn optional(&mut self, key: &str) -> Option<String> {
        Some(self.raw(key).1).filter(|value| !value.is_empty())
    }

    fn quantity(&mut self, key: &str) -> String {
        self.value(key, String::new(), |text| match quantity::thousandths(text) {
            Some(_) => Ok(text.to_owned()),
            None => Err("want a quantity such as 100m or 64Mi".to_owned()),
        })
    }
}

fn choice<T: Copy>(text: &str, all: &[(&str, T)]) -> Result<T, String> {
    let found = all.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    found
        .ok_or_else(|| format!("want {}", all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" or ")))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "want an address and port such as 0.0.0.0:9443".to_owned())
}

impl Settings {
    /// Reads flags and environment; flags win. `Err` is every mistake, with what would be right.
    pub fn read(
        flags: &[(String, String)],
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Vec<String>> {
        let mut given = BTreeMap::new();
        let mut mistakes = Vec::new();
        let known: BTreeMap<String, &str> = ROWS.iter().map(|row| (row.env(), row.key)).collect();
        for (name, value) in environment {
            match known.get(&name) {
                Some(key) if !value.trim().is_empty() => {
                    given.insert((*key).to_owned(), (name, value.trim().to_owned()));
                }
                _ => {}
            }
        }
        for (key, value) in flags {
            if ROWS.iter().any(|row| row.key == key) {
                given.insert(key.clone(), (format!("--{key}"), value.trim().to_owned()));
            } else {
                mistakes.push(format!("--{key}: no such setting; see --help"));
            }
        }
        let mut reader = Reader { given: &given, mistakes };
        let settings = reader.settings();
        if reader.mistakes.is_empty() { Ok(settings) } else { Err(reader.mistakes) }
    }
}

impl Reader<'_> {
    fn settings(&mut self) -> Settings {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let second = Duration::from_secs(1);
        let wasm_url = self.optional("wasm-url");
        let disabled =
            self.value("otel-sdk-disabled", false, |text| choice(text, &[("true", true), ("false", false)]));
        Settings {
            listen: self.value("listen", nowhere, address),
            admin_listen: self.value("admin-listen", nowhere, address),
            in_flight_bytes: self.value("in-flight-bytes", 0, |text| match text.parse::<usize>() {
                Ok(bytes) if (8 << 20..=1 << 30).contains(&bytes) => Ok(bytes),
                _ => Err("want bytes from 8388608 to 1073741824".to_owned()),
            }),
            namespace: self.text("namespace"),
            service: self.text("service"),
            webhook: self.text("webhook"),
            secret: self.text("secret"),
            lease: self.text("lease"),
            identity: self.optional("identity").unwrap_or_default(),
            kubeconfig: self.optional("kubeconfig"),
            certificate_hosts: listed(&self.raw("certificate-hosts").1).map(str::to_owned).collect(),
            lifetimes: Lifetimes {
                certificate: self.value("certificate-lifetime", second, time),
                authority: self.value("authority-lifetime", second, time),
                announce: self.value("authority-announce", second, time),
                overlap: self.value("authority-overlap", second, time),
            },
            sync: self.value("sync-interval", second, time),
            reconcile: self.value("reconcile-interval", second, time),
            injecting: self.injecting(wasm_url.is_some()),
            istio_way: self.value("istio-way", IstioWay::EnvoyFilter, |text| {
                choice(text, &[("envoyfilter", IstioWay::EnvoyFilter), ("wasmplugin", IstioWay::WasmPlugin)])
            }),
            wasm_url,
            log_level: self.value("log-level", crate::log::Level::Info, |text| {
                use crate::log::Level;
                choice(
                    text,
                    &[
                        ("error", Level::Error),
                        ("warn", Level::Warn),
                        ("info", Level::Info),
                        ("debug", Level::Debug),
                    ],
                )
            }),
            own_endpoint: self.optional("otel-exporter-otlp-endpoint").filter(|_| !disabled),
            own_service: self.text("otel-service-name"),
            own_ratio: self.value("otel-traces-sampler-arg", 1.0, |text| match text.parse::<f64>() {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
                _ => Err("want a ratio from 0 to 1".to_owned()),
            }),
        }
    }

    fn injecting(&mut self, istio: bool) -> Injecting {
        let resources = Resources {
            cpu_request: self.quantity("cpu-request"),
            cpu_limit: self.quantity("cpu-limit"),
            memory_request: self.quantity("memory-request"),
            memory_limit: self.quantity("memory-limit"),
        };
        for (what, request, limit) in [
            ("cpu", &resources.cpu_request, &resources.cpu_limit),
            ("memory", &resources.memory_request, &resources.memory_limit),
        ] {
            if quantity::thousandths(request) > quantity::thousandths(limit) {
                self.mistakes
                    .push(format!("{what}-limit=\"{limit}\": want at least {what}-request, {request}"));
            }
        }
        let sidecar_settings = self.value("sidecar-settings", Vec::new(), |text| {
            throughline_settings_file::pairs(text, "it")
                .map_err(|told| format!("want a mapping of settings: {}", told.join("; ")))
        });
        if let Err(told) = check_sidecar(&sidecar_settings) {
            self.mistakes.extend(told.iter().map(|mistake| format!("sidecar-settings: {mistake}")));
        }
        Injecting {
            mode: self.value("mode", None, |text| match (text, Mode::read(text)) {
                ("auto", _) => Ok(None),
                (_, Some(Mode::IstioWasm)) if !istio => Err("want wasm-url set beside it".to_owned()),
                (_, Some(mode)) => Ok(Some(mode)),
                (_, None) => Err(format!("want auto, {}", Mode::WANT)),
            }),
            native: self.value("native-sidecars", Native::Auto, |text| {
                choice(text, &[("auto", Native::Auto), ("on", Native::On), ("off", Native::Off)])
            }),
            sidecar_image: self.text("sidecar-image"),
            envoy_image: self.text("envoy-image"),
            pull_policy: self.value("image-pull-policy", String::new(), |text| {
                choice(text, &[("Always", ()), ("IfNotPresent", ()), ("Never", ())]).map(|()| text.to_owned())
            }),
            otlp_endpoint: self.value("otlp-endpoint", String::new(), endpoint),
            otlp_protocol: self.value("otlp-protocol", String::new(), protocol),
            sidecar_settings,
            environment: self.raw("environment").1,
            exclusions: Exclusions {
                inbound_ports: self.value("skip-inbound-ports", Vec::new(), ports),
                outbound_ports: self.value("skip-outbound-ports", Vec::new(), ports),
                outbound_cidrs: self.value("skip-outbound-cidrs", Vec::new(), cidrs),
            },
            resources,
            listen_host: self.value("listen-host", String::new(), |text| {
                let fits = format!("{text}:1").parse::<SocketAddr>().is_ok();
                if fits {
                    Ok(text.to_owned())
                } else {
                    Err("want an address such as 0.0.0.0 or [::]".to_owned())
                }
            }),
            istio,
        }
    }
}

/// `grpc` or `http/protobuf`.
pub fn protocol(text: &str) -> Result<String, String> {
    choice(text, &[("grpc", ()), ("http/protobuf", ())]).map(|()| text.to_owned())
}

/// The table as Markdown, for docs/injector.md.
pub fn reference() -> String {
    let mut page = String::from("| flag | environment | default | what it is for |\n|---|---|---|---|\n");
    for row in ROWS {
        let default = if row.default.is_empty() { String::new() } else { format!("`{}`", row.default) };
        page.push_str(&format!("| `{}` | `{}` | {default} | {} |\n", row.key, row.env(), row.help));
    }
    page
}

/// The table for `--help`.
pub fn help() -> String {
    let mut page = String::new();
    let mut section = "";
    for row in ROWS {
        if row.section != section {
            section = row.section;
            page.push_str(&format!("\n{section}:\n"));
        }
        let default = if row.default.is_empty() { String::new() } else { format!(" [{}]", row.default) };
        page.push_str(&format!("  --{}  {}\n      {}{default}\n", row.key, row.env(), row.help));
    }
    page
}

/// Settings as they are when nobody says anything, for commands without a cluster and for tests.
pub fn defaults() -> Result<Settings, Vec<String>> {
    Settings::read(&[], std::iter::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;

    fn read(flags: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let flags: Vec<_> =
            flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Settings::read(&flags, std::iter::empty())
    }

    #[test]
    fn the_defaults_of_the_table_are_right() {
        let settings = defaults().unwrap();
        assert_eq!(settings.namespace, "throughline-system");
        assert!(settings.injecting.sidecar_image.ends_with(names::VERSION));
    }

    #[test]
    fn every_mistake_is_told_with_what_would_be_right() {
        let told = read(&[
            ("listen", "here"),
            ("certificate-lifetime", "a year"),
            ("mode", "sidekick"),
            ("cpu-request", "lots"),
            ("memory-limit", "1Mi"),
            ("sidecar-settings", "{keep-slwo: 5}"),
            ("speed", "fast"),
        ])
        .unwrap_err();
        let text = told.join("\n");
        for part in [
            "--listen=\"here\": want an address and port",
            "--certificate-lifetime=\"a year\": want a number with s, m, h or d",
            "--mode=\"sidekick\": want auto, sidecar, reverse",
            "--cpu-request=\"lots\": want a quantity",
            "memory-limit=\"1Mi\": want at least memory-request, 32Mi",
            "keep-slwo",
            "--speed: no such setting",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_environment() {
        let environment = [("THROUGHLINE_INJECTOR_SECRET", "a"), ("THROUGHLINE_INJECTOR_LEASE", "b")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings =
            Settings::read(&[("secret".to_owned(), "c".to_owned())], environment.into_iter()).unwrap();
        assert_eq!((settings.secret.as_str(), settings.lease.as_str()), ("c", "b"));
    }

    #[test]
    fn what_the_injector_sets_itself_cannot_be_given() {
        assert!(check_sidecar(&[("inbound-listen".to_owned(), "0.0.0.0:1".to_owned())]).is_err());
        assert!(check_sidecar(&[("keep-slow".to_owned(), "500".to_owned())]).is_ok());
    }

    #[test]
    fn settings_of_browsers_are_settings_of_the_sidecar() {
        let pairs = |all: &[(&str, &str)]| -> Vec<(String, String)> {
            all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert!(check_sidecar(&pairs(&[("browser", "on"), ("trust", "edge")])).is_ok());
        assert!(check_sidecar(&pairs(&[("browser", "on")])).is_err(), "at an edge alone");
        assert_eq!(sidecar_env("browser-per-second"), Some("THROUGHLINE_BROWSER_PER_SECOND"));
    }
}
