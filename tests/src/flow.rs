//! The flow server as a real process, and the messages that scenarios send to it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    Histogram, HistogramDataPoint, Metric, ResourceMetrics, ScopeMetrics, metric,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;
use serde_json::Value;

use crate::ask::{Answer, Ask};
use crate::sidecar::{Ended, Running, workspace};
use crate::wait::eventually;

/// The binary: `THROUGHLINE_FLOW_BIN`, else the one of the profile `quick`.
pub fn binary() -> PathBuf {
    let named = std::env::var_os("THROUGHLINE_FLOW_BIN").map(PathBuf::from);
    let path = named.unwrap_or_else(|| workspace().join("target/quick/throughline-flow"));
    assert!(
        path.is_file(),
        "no flow server to test: build it with `cargo build --profile quick -p throughline-flow`, or name one by \
         THROUGHLINE_FLOW_BIN"
    );
    path
}

/// How a flow server is started.
#[derive(Clone, Debug)]
pub struct FlowPlan {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Default for FlowPlan {
    fn default() -> Self {
        Self::new()
    }
}

impl FlowPlan {
    /// In memory, on free ports of loopback.
    pub fn new() -> FlowPlan {
        FlowPlan::on_disk(None)
    }

    /// With this folder.
    pub fn on_disk(folder: Option<&Path>) -> FlowPlan {
        let plan = FlowPlan { arguments: Vec::new(), environment: Vec::new() };
        let plan = match folder {
            Some(folder) => plan.flag("data-dir", folder.display()),
            None => plan.flag("memory-only", "on"),
        };
        plan.flag("listen", "127.0.0.1:0").flag("otlp-grpc", "127.0.0.1:0").flag("otlp-http", "127.0.0.1:0")
    }

    /// With a flag; an earlier one of the same name is replaced.
    pub fn flag(mut self, name: &str, value: impl std::fmt::Display) -> FlowPlan {
        let start = format!("--{name}=");
        self.arguments.retain(|argument| !argument.starts_with(&start));
        self.arguments.push(format!("{start}{value}"));
        self
    }

    /// With a variable.
    pub fn environment(mut self, name: &str, value: impl std::fmt::Display) -> FlowPlan {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    fn spawn(&self, command: Option<&str>) -> Running {
        let mut process = Command::new(binary());
        process.args(command).args(&self.arguments).env_clear().envs(self.environment.iter().cloned());
        Running::spawn("the flow server", process)
    }

    /// Starts it and waits until it says that it is ready.
    pub async fn start(self) -> FlowServer {
        let mut running = self.spawn(None);
        let ready = running.ready().await;
        let address = |name: &str| ready[name].as_str().and_then(|text| text.parse().ok());
        let api = address("api").unwrap_or_else(|| panic!("no address of the API in {ready}"));
        FlowServer { api, grpc: address("otlp_grpc"), http: address("otlp_http"), running }
    }

    /// Starts it with a command and waits until it ends by itself.
    pub async fn ends(self, command: Option<&str>) -> Ended {
        let mut running = self.spawn(command);
        let code = running.exit().await;
        running.ended(code).await
    }
}

/// A ready flow server.
#[derive(Debug)]
pub struct FlowServer {
    /// Where the API is.
    pub api: SocketAddr,
    grpc: Option<SocketAddr>,
    http: Option<SocketAddr>,
    running: Running,
}

impl FlowServer {
    /// In memory.
    pub async fn start() -> FlowServer {
        FlowPlan::new().start().await
    }

    /// Where OTLP by gRPC arrives.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc.expect("a listener for gRPC")
    }

    /// Where OTLP by HTTP arrives.
    pub fn http(&self) -> SocketAddr {
        self.http.expect("a listener for HTTP")
    }

    /// A URL of the API.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    /// Asks the API.
    pub async fn ask(&self, path: &str) -> Answer {
        Ask::get(self.url(&format!("/api/v1/{path}"))).send().await
    }

    /// Asks the API for JSON.
    pub async fn get(&self, path: &str) -> Value {
        let answer = self.ask(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        serde_json::from_str(&answer.text()).expect("JSON")
    }

    /// Asks until the answer is as wanted.
    pub async fn get_when(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("{path} to be as wanted"), || async {
            let answer = self.ask(path).await;
            let value = serde_json::from_str(&answer.text()).ok().filter(|_| answer.status == 200)?;
            wanted(&value).then_some(value)
        })
        .await
    }

    /// Sends spans by HTTP.
    pub async fn send(&self, spans: &ExportTraceServiceRequest) -> Answer {
        self.post("/v1/traces", "application/x-protobuf", spans.encode_to_vec()).await
    }

    /// Sends metrics by HTTP.
    pub async fn send_metrics(&self, metrics: &ExportMetricsServiceRequest) -> Answer {
        self.post("/v1/metrics", "application/x-protobuf", metrics.encode_to_vec()).await
    }

    /// Sends something by HTTP.
    pub async fn post(&self, path: &str, kind: &str, body: impl Into<bytes::Bytes>) -> Answer {
        let url = format!("http://{}{path}", self.http());
        Ask::post(url, body).header("content-type", kind).send().await
    }

    /// A number of `/metrics`.
    pub async fn counted(&self, name: &str) -> f64 {
        let page = Ask::get(self.url("/metrics")).send().await.text();
        let row = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        row.unwrap_or_else(|| panic!("no {name} in\n{page}"))
    }

    /// Its process id.
    pub fn process(&self) -> u32 {
        self.running.process()
    }

    /// Ends it without a chance to write anything.
    pub async fn kill(mut self) {
        self.running.signal("KILL");
        let _ = self.running.exit().await;
    }

    /// Asks it to end, and waits.
    pub async fn end(mut self) -> Ended {
        self.running.signal("TERM");
        let code = self.running.exit().await;
        self.running.ended(code).await
    }
}

/// Nanoseconds since 1970.
pub fn now() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(unix.as_nanos()).expect("before 2554")
}

/// An attribute of text.
pub fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value.to_owned()))
}

/// An integer attribute.
pub fn int(key: &str, value: i64) -> KeyValue {
    attribute(key, any_value::Value::IntValue(value))
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// A resource of the shop in production.
pub fn resource(service: &str) -> Resource {
    let attributes = vec![
        text("service.name", service),
        text("service.namespace", "shop"),
        text("service.version", "v1.2.3"),
        text("k8s.pod.name", &format!("{service}-abc123")),
        text("k8s.node.name", "node-1"),
        text("deployment.environment.name", "production"),
    ];
    Resource { attributes, ..Resource::default() }
}

fn scope(name: &str) -> InstrumentationScope {
    InstrumentationScope { name: name.to_owned(), ..InstrumentationScope::default() }
}

/// A span of a test: kind, ids, start and end in milliseconds after `at`.
pub fn span(trace: u8, id: u8, parent: u8, kind: i32, at: u64, from_ms: u64, to_ms: u64) -> Span {
    Span {
        trace_id: vec![trace; 16],
        span_id: vec![id; 8],
        parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
        kind,
        name: format!("span {id}"),
        start_time_unix_nano: at + from_ms * 1_000_000,
        end_time_unix_nano: at + to_ms * 1_000_000,
        attributes: vec![text("app.operation.name", "login")],
        status: Some(Status::default()),
        ..Span::default()
    }
}

/// Spans of one service, in the scope of a sidecar.
pub fn spans(service: &str, spans: Vec<Span>) -> ResourceSpans {
    spans_of(service, "throughline", spans)
}

/// Spans of one service, in this scope.
pub fn spans_of(service: &str, by: &str, spans: Vec<Span>) -> ResourceSpans {
    let scope_spans = vec![ScopeSpans { scope: Some(scope(by)), spans, ..ScopeSpans::default() }];
    ResourceSpans { resource: Some(resource(service)), scope_spans, ..ResourceSpans::default() }
}

/// An export of spans.
pub fn export(resource_spans: Vec<ResourceSpans>) -> ExportTraceServiceRequest {
    ExportTraceServiceRequest { resource_spans }
}

/// Server and client of the contract's trace: web calls orders, 150 ms and 80 ms.
pub fn login(trace: u8, at: u64) -> ExportTraceServiceRequest {
    let mut entrance = span(trace, 1, 0, 2, at, 0, 150);
    entrance.attributes.extend([text("http.request.method", "POST"), int("http.response.status_code", 200)]);
    entrance.attributes.push(text("ui.event", "button_click"));
    let mut call = span(trace, 2, 1, 3, at, 10, 100);
    call.attributes.push(text("throughline.peer.service", "orders"));
    call.attributes.push(text("throughline.peer.namespace", "shop"));
    let mut served = span(trace, 3, 2, 2, at, 15, 95);
    served.attributes.push(text("throughline.peer.service", "web"));
    served.attributes.push(text("throughline.peer.namespace", "shop"));
    export(vec![spans("web", vec![entrance, call]), spans("orders", vec![served])])
}

/// What sidecars of web and orders count of `requests` logins, of which `errors` failed at orders.
pub fn counted(requests: u64, errors: u64, began: u64, at: u64) -> ExportMetricsServiceRequest {
    let of = |service: &str, name: &str, points: Vec<HistogramDataPoint>| {
        let histogram = Histogram { data_points: points, aggregation_temporality: 2 };
        let metric = Metric {
            name: name.to_owned(),
            unit: "s".to_owned(),
            data: Some(metric::Data::Histogram(histogram)),
            ..Metric::default()
        };
        let scope_metrics = vec![ScopeMetrics {
            scope: Some(scope("throughline")),
            metrics: vec![metric],
            ..Default::default()
        }];
        ResourceMetrics { resource: Some(resource(service)), scope_metrics, ..ResourceMetrics::default() }
    };
    let point = |count: u64, seconds: f64, more: Vec<KeyValue>| {
        let mut attributes = vec![
            text("http.request.method", "POST"),
            text("http.route", "/login"),
            text("url.scheme", "http"),
            text("app.operation.name", "login"),
        ];
        attributes.extend(more);
        HistogramDataPoint {
            attributes,
            start_time_unix_nano: began,
            time_unix_nano: at,
            count,
            sum: Some(seconds * count as f64),
            bucket_counts: vec![0, count, 0],
            explicit_bounds: vec![0.1, 0.25],
            ..HistogramDataPoint::default()
        }
    };
    let peer =
        |name: &str| vec![text("throughline.peer.service", name), text("throughline.peer.namespace", "shop")];
    let status = |code: i64, mut more: Vec<KeyValue>| {
        more.push(int("http.response.status_code", code));
        if code >= 500 {
            more.push(text("error.type", &code.to_string()));
        }
        more
    };
    let (server, client) = ("http.server.request.duration", "http.client.request.duration");
    let both = |who: &str| {
        vec![
            point(requests - errors, 0.15, status(200, peer(who))),
            point(errors, 0.15, status(503, peer(who))),
        ]
    };
    let entrance = vec![
        point(requests - errors, 0.15, status(200, Vec::new())),
        point(errors, 0.15, status(503, Vec::new())),
    ];
    ExportMetricsServiceRequest {
        resource_metrics: vec![
            of("web", server, entrance),
            of("web", client, both("orders")),
            of("orders", server, both("web")),
        ],
    }
}
