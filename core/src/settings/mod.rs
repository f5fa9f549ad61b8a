//! The settings, as one table: a row has a key, environment variables, a default, a reader and a sentence. The
//! parser, `--help` and the reference page all come from it. Reads no environment and no file itself: a host
//! hands in what it found.

mod browser;
mod filter;
mod flow;
mod otlp;
mod source;
mod value;

pub use browser::{BROWSER_ROWS, Browser};
pub use filter::{Direct, FILTER_ROWS, Filter};
pub use flow::{FLOW_ROWS, Flow};
pub use otlp::{Otlp, Signal};
pub use source::{Found, Mistake, Sources};
pub use value::{
    AccessLog, Authority, Capture, Compression, Endpoint, Exporter, FixedRoute, LogLevel, Probe,
    PropagatorList, Protocol, QueryMode, SamplerName, TrustName,
};

use std::borrow::Cow;
use std::net::{Ipv4Addr, SocketAddr};

use crate::adaptive::Adaptive;
use crate::exchange::{Config, Edge, EventContext, MessageNames, ResponseHeaders, RootUnsampled, Trust};
use crate::keep::{Keep, Slow};
use crate::mesh::{Inside, Mesh};
use crate::metrics::Aggregation;
use crate::mode::Mode;
use crate::names::{VERSION, attribute};
use crate::peer::Peer;
use crate::redact::Query;
use crate::route::Pattern;
use crate::sampling::{Ratio, Root, Sampler};
use value::{list, number, optional};

/// What would be right, in words that follow "want".
pub type Want = Cow<'static, str>;

/// One row of the table, as help and reference pages show it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Under which heading it is shown.
    pub section: &'static str,
    /// Flag without dashes, and key in a file.
    pub key: &'static str,
    /// Environment variables, the first one that is set counts.
    pub env: &'static [&'static str],
    /// Default, as it would be written; empty for none.
    pub default: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// Whether a bad value in the environment only warns and takes the default, as the OpenTelemetry
    /// specification asks for numbers.
    pub lenient: bool,
    /// Whether a text could be its value; `Err` is what would be right. The schema of the chart asks.
    #[cfg(not(target_os = "wasi"))]
    pub check: fn(&str) -> Result<(), Want>,
}

macro_rules! settings {
    ($(#[$doc:meta])* $name:ident, $rows:ident; $( $section:literal { $( $field:ident : $type:ty = $default:literal, $read:expr, $key:literal, [$($env:literal),*] $(, $lenient:ident)?; $help:literal )* } )*) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            $($( #[doc = $help] pub $field: $type, )*)*
        }

        /// The table.
        pub const $rows: &[Row] = &[
            $($( Row {
                section: $section,
                key: $key,
                env: &[$($env),*],
                default: $default,
                help: $crate::settings::shown($help),
                lenient: $crate::settings::settings!(@lenient $($lenient)?),
                #[cfg(not(target_os = "wasi"))]
                check: |text| {
                    let read: &dyn Fn(&str) -> Result<$type, $crate::settings::Want> = &$read;
                    read(text).map(drop)
                },
            }, )*)*
        ];

        impl $name {
            fn read(reader: &mut $crate::settings::source::Reader<'_>) -> Option<Self> {
                let mut rows = $rows.iter();
                Some(Self { $($( $field: reader.value(rows.next()?, &$read), )*)* })
            }
        }
    };
    (@lenient lenient) => { true };
    (@lenient) => { false };
}
use settings;

settings! {
    /// Every setting of the sidecar, read and checked.
    Settings, ROWS;
    "Capture" {
        capture: Capture = "reverse", value::capture, "capture", ["THROUGHLINE_CAPTURE"];
            "reverse: callers are sent to the sidecar's ports, by a Service or a proxy setting. transparent: the rules of `throughline-proxy init` redirect the application's connections, which go on to where they were going; what is no cleartext HTTP passes untouched."
        inbound_listen: Option<SocketAddr> = "", optional(value::listen), "inbound-listen", ["THROUGHLINE_INBOUND_LISTEN"];
            "Where requests to the application arrive. Unset: no inbound side; in transparent capture port 15106 of all addresses. In transparent capture, 0.0.0.0 and 127.0.0.1 stand for [::] and [::1] as well."
        inbound_upstream: Option<Authority> = "", optional(value::authority), "inbound-upstream", ["THROUGHLINE_INBOUND_UPSTREAM"];
            "The application itself: where inbound requests go. Not for transparent capture."
        outbound_listen: Option<SocketAddr> = "", optional(value::listen), "outbound-listen", ["THROUGHLINE_OUTBOUND_LISTEN"];
            "Where the application's own requests arrive: as an HTTP proxy (absolute form, CONNECT), or routed by Host. Unset: no outbound side; in transparent capture port 15101 of loopback."
        outbound_routes: Vec<FixedRoute> = "", list(value::route), "outbound-routes", ["THROUGHLINE_OUTBOUND_ROUTES"];
            "Where outbound requests for a name go instead of where DNS says: name=host:port, separated by commas. Such destinations are inside the mesh."
        outbound_anywhere: bool = "off", value::switch, "outbound-anywhere", ["THROUGHLINE_OUTBOUND_ANYWHERE"];
            "Let the outbound side listen on an address that is not loopback. Whoever reaches it can use it as a proxy."
        admin_listen: SocketAddr = "127.0.0.1:15190", value::listen, "admin-listen", ["THROUGHLINE_ADMIN_LISTEN"];
            "Where /livez, /readyz, /metrics, /drain, /probe/ and /api/tracing/ are served."
        probes: Vec<Probe> = "", list(value::probe), "probes", ["THROUGHLINE_PROBES"];
            "Questions about the application, asked at the address at which the admin port was reached: tcp:PORT, grpc:PORT[/SERVICE], http:PORT/PATH, https:PORT/PATH, separated by commas. /probe/0 answers the first with 200 or 503, /probe/1 the second, and so on."
        admin_token_file: String = "", value::text, "admin-token-file", ["THROUGHLINE_ADMIN_TOKEN_FILE"];
            "File with the bearer token by which callers on other hosts may change tracing. Unset: only callers on the same host may. Read for each such call."
        mesh_hosts: Vec<Inside> = "", list(value::inside), "mesh-hosts", ["THROUGHLINE_MESH_HOSTS"];
            "Further destinations inside the mesh: hosts, .suffixes, networks. Only destinations inside get the operation, restored headers and the sidecar's name. Private addresses, single labels and cluster names are inside already."
    }
    "Tracing" {
        sdk_disabled: bool = "false", value::otel_bool, "otel-sdk-disabled", ["OTEL_SDK_DISABLED"];
            "true: contexts pass untouched and no spans are made."
        tracing_enabled: bool = "true", value::switch, "tracing-enabled", ["TRACING_ENABLED"];
            "off: the same as otel-sdk-disabled."
        mode: Mode = "hybrid", value::mode, "mode", ["THROUGHLINE_MODE"];
            "off (contexts pass untouched, no spans), system-only (the same, and spans of the sidecar's own work), hybrid (the sampler and what is worth keeping) or full (every exchange, with a child span for each of its phases)."
        control_file: String = "", value::text, "control-file", ["THROUGHLINE_CONTROL_FILE"];
            "File, such as a mounted ConfigMap, that is looked at each second for changes of mode, base_rate and rules (YAML or JSON, as /api/tracing/status shows them). A wrong one is told of, and the last good one holds."
        service_name: String = "", value::text, "otel-service-name", ["OTEL_SERVICE_NAME"];
            "Name of the service. Unset: service.name of the resource attributes, else unknown_service:throughline."
        resource_attributes: Vec<(String, String)> = "", list(value::pair), "otel-resource-attributes", ["OTEL_RESOURCE_ATTRIBUTES"];
            "Attributes of the resource: key=value, percent-encoded, separated by commas."
        propagators: PropagatorList = "tracecontext,baggage", value::propagators, "otel-propagators", ["OTEL_PROPAGATORS"];
            "Formats in which contexts are read and written: tracecontext, baggage, b3, b3multi, jaeger, none."
        sampler: SamplerName = "parentbased_traceidratio", value::sampler, "otel-traces-sampler", ["OTEL_TRACES_SAMPLER", "OTEL_TRACE_SAMPLER"];
            "always_on, always_off, traceidratio, or parentbased_ and one of these."
        sampler_arg: Ratio = "1.0", value::ratio, "otel-traces-sampler-arg", ["OTEL_TRACES_SAMPLER_ARG", "OTEL_TRACE_SAMPLING_RATE"], lenient;
            "The ratio of the traceidratio samplers, from 0 to 1."
        root_unsampled: RootUnsampled = "flag", value::root_unsampled, "root-unsampled", ["THROUGHLINE_ROOT_UNSAMPLED"];
            "What the application gets of a trace that starts here unsampled: flag (a context that says no) or silent (nothing, so that its own SDK decides)."
        trust: TrustName = "mesh", value::trust, "trust", ["THROUGHLINE_TRUST"];
            "mesh, or edge: inbound requests come from anybody. At an edge each trace starts anew with a link to the caller's, the decision is the sidecar's, events in requests are not read, and answers say of the trace only what response-headers names."
        edge_operations: Vec<Box<str>> = "", list(value::operation), "edge-operations", ["THROUGHLINE_EDGE_OPERATIONS"];
            "Operations that are believed at an edge. Unset: the first edge-operations-max different ones."
        edge_operations_max: u64 = "100", number::<1, 200>, "edge-operations-max", ["THROUGHLINE_EDGE_OPERATIONS_MAX"];
            "Different operations that are believed at an edge without a list."
        edge_sampled_per_second: u64 = "1", number::<0, 100_000>, "edge-sampled-per-second", ["THROUGHLINE_EDGE_SAMPLED_PER_SECOND"];
            "Traces a second that callers at an edge may have sampled by their own flag."
        egress_traceparent: bool = "on", value::switch, "egress-traceparent", ["THROUGHLINE_EGRESS_TRACEPARENT"];
            "Whether destinations outside the mesh get our traceparent. off: they get what the application sent."
        response_headers: ResponseHeaders = "", value::response_headers, "response-headers", ["THROUGHLINE_RESPONSE_HEADERS"];
            "What callers are told of the trace on the response: server-timing, traceresponse, x-trace-id."
        routes: Vec<Pattern> = "", list(value::pattern), "routes", ["THROUGHLINE_ROUTES"];
            "Route patterns that name server spans, such as /clusters/{id}. Other paths: ids, UUIDs, numbers and hashes are recognised."
        routes_max: u64 = "200", number::<1, 10_000>, "routes-max", ["THROUGHLINE_ROUTES_MAX"];
            "Distinct routes that name spans. Further ones are named by the method alone."
        query: QueryMode = "redacted", value::query, "query", ["THROUGHLINE_QUERY"];
            "redacted: record queries with credentials redacted. off: record none."
        redact_query: Vec<Box<str>> = "", list(|text| Ok(text.into())), "redact-query", ["THROUGHLINE_REDACT_QUERY"];
            "Further query keys whose values are redacted."
        capture_request_headers: Vec<Box<str>> = "", list(value::header_name), "capture-request-headers", ["THROUGHLINE_CAPTURE_REQUEST_HEADERS"];
            "Request headers recorded on spans. None by default: they may hold secrets."
        capture_response_headers: Vec<Box<str>> = "", list(value::header_name), "capture-response-headers", ["THROUGHLINE_CAPTURE_RESPONSE_HEADERS"];
            "Response headers recorded on spans. None by default: they may hold secrets."
    }
    "Keeping" {
        keep_errors: bool = "on", value::switch, "keep-errors", ["THROUGHLINE_KEEP_ERRORS"];
            "In hybrid mode, keep what failed although the head said no: statuses from 500, gRPC failures, whatever has an error.type."
        keep_slow: Slow = "p99", value::slow, "keep-slow", ["THROUGHLINE_KEEP_SLOW"];
            "Keep what took longer than so many milliseconds; p99: longer than 99 in 100 of the same route did of late (learned from 200 exchanges on); off: nothing for being slow."
        keep_slow_routes: Vec<(Box<str>, u64)> = "", list(value::slow_route), "keep-slow-routes", ["THROUGHLINE_KEEP_SLOW_ROUTES"];
            "Milliseconds for single routes instead: /clusters/{id}=250, separated by commas."
        keep_operations: Vec<Box<str>> = "", list(value::operation), "keep-operations", ["THROUGHLINE_KEEP_OPERATIONS"];
            "Keep every exchange of these operations."
        keep_routes: Vec<Box<str>> = "", list(|text| Ok(text.into())), "keep-routes", ["THROUGHLINE_KEEP_ROUTES"];
            "Keep every exchange of these routes, as spans name them: /clusters/{id}."
        keep_headers: Vec<(Box<str>, Option<Box<str>>)> = "", list(value::kept_header), "keep-headers", ["THROUGHLINE_KEEP_HEADERS"];
            "Keep every exchange whose request carries one of these headers: x-debug, or x-tenant=blue for one value."
    }
    "Adapting" {
        adaptive_rate: Ratio = "0.1", value::ratio, "adaptive-rate", ["THROUGHLINE_ADAPTIVE_RATE"];
            "In hybrid mode, the share of new traces that is sampled while too much is slow or fails, if it is more than the sampler's. 0: never more."
        adaptive_latency_ms: u64 = "1000", number::<0, 3_600_000>, "adaptive-latency", ["THROUGHLINE_ADAPTIVE_LATENCY"];
            "Milliseconds: too much is slow while 1 in 100 exchanges takes longer. 0: slowness does not count."
        adaptive_errors: Ratio = "0.05", value::ratio, "adaptive-errors", ["THROUGHLINE_ADAPTIVE_ERRORS"];
            "The share of exchanges above which too much fails. 0: failures do not count."
        adaptive_window_ms: u64 = "300000", number::<1000, 3_600_000>, "adaptive-window", ["THROUGHLINE_ADAPTIVE_WINDOW"];
            "Milliseconds of the sliding window, which is judged ten times in its length. The rate falls back when the window is below four fifths of both thresholds."
        spans_per_second: u64 = "0", number::<0, 1_000_000>, "spans-per-second", ["THROUGHLINE_SPANS_PER_SECOND"];
            "Spans a second that the sidecar chooses to make, by whatever rule. Spans of traces that a caller chose, of messages in a batch, and of exchanges that a kept one waited for, are made all the same and count: later ones are left out for them. 0: no bound."
    }
    "Messages" {
        event_context: EventContext = "rewrite", value::event_context, "cloudevents-traceparent", ["THROUGHLINE_CLOUDEVENTS_TRACEPARENT"];
            "rewrite: an event's traceparent becomes the producer's span on publish and the consumer's on delivery, where the one that arrived is kept as origintraceparent. preserve: it is added where it is missing, and nothing else is changed."
        message_names: MessageNames = "destination_first", value::message_names, "messaging-span-name", ["THROUGHLINE_MESSAGING_SPAN_NAME"];
            "destination_first (orders publish) or semconv (publish orders, as OpenTelemetry's conventions have it)."
        event_body_bytes_max: u64 = "1048576", number::<1024, 67_108_864>, "event-body-limit", ["THROUGHLINE_EVENT_BODY_LIMIT"];
            "Bytes of a body that is held to edit the messages in it. Larger ones stream through untouched, and are counted."
        pubsub_upstream: Option<Endpoint> = "", optional(value::endpoint), "pubsub-upstream", ["THROUGHLINE_PUBSUB_UPSTREAM"];
            "Where Pub/Sub calls on the outbound side go, such as https://pubsub.googleapis.com: with PUBSUB_EMULATOR_HOST or an API endpoint naming the outbound side, clients speak cleartext to the sidecar, which speaks TLS to the service. Unset: where the request says."
        pubsub_certificate: String = "", value::text, "pubsub-certificate", ["THROUGHLINE_PUBSUB_CERTIFICATE"];
            "PEM file of the authorities that the Pub/Sub upstream's certificate is held against. Unset: the system's."
    }
    "Export" {
        traces_exporter: Exporter = "otlp", value::exporter, "otel-traces-exporter", ["OTEL_TRACES_EXPORTER"];
            "otlp, console (readable lines on standard output) or none."
        metrics_exporter: Exporter = "otlp", value::metrics_exporter, "otel-metrics-exporter", ["OTEL_METRICS_EXPORTER"];
            "otlp (pushed beside the spans) or none. /metrics is served either way."
        metric_interval_ms: u64 = "60000", number::<100, 3_600_000>, "otel-metric-export-interval", ["OTEL_METRIC_EXPORT_INTERVAL"], lenient;
            "Milliseconds between two pushes of metrics."
        aggregation: Aggregation = "explicit_bucket_histogram", value::aggregation, "otel-exporter-otlp-metrics-default-histogram-aggregation", ["OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"], lenient;
            "explicit_bucket_histogram or base2_exponential_bucket_histogram: how histograms are pushed. Exponential ones tell quantiles within 1 %, for up to 2.5 KiB of memory a series. /metrics has explicit bounds either way."
        graph_metrics: bool = "on", value::switch, "graph-metrics", ["THROUGHLINE_GRAPH_METRICS"];
            "Whether /metrics has traces_service_graph_* and traces_spanmetrics_*, which Grafana's service graph reads: some 36 series for each service that is called or calls, and 18 for each name of a span. off where Tempo or another makes them from spans: both together would count twice."
        otlp_endpoint: Option<Endpoint> = "", optional(value::endpoint), "otel-exporter-otlp-endpoint", ["OTEL_EXPORTER_OTLP_ENDPOINT"];
            "The collector. Unset: localhost, port 4317 for grpc, 4318 for http/protobuf. By HTTP, v1/traces and v1/metrics are appended."
        otlp_traces_endpoint: Option<Endpoint> = "", optional(value::endpoint), "otel-exporter-otlp-traces-endpoint", ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
            "The collector of spans; by HTTP its path is used as it is."
        otlp_metrics_endpoint: Option<Endpoint> = "", optional(value::endpoint), "otel-exporter-otlp-metrics-endpoint", ["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"];
            "The collector of metrics; by HTTP its path is used as it is."
        otlp_protocol: Protocol = "grpc", value::protocol, "otel-exporter-otlp-protocol", ["OTEL_EXPORTER_OTLP_PROTOCOL"];
            "grpc or http/protobuf."
        otlp_traces_protocol: Option<Protocol> = "", optional(value::protocol), "otel-exporter-otlp-traces-protocol", ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"];
            "The same, for spans."
        otlp_metrics_protocol: Option<Protocol> = "", optional(value::protocol), "otel-exporter-otlp-metrics-protocol", ["OTEL_EXPORTER_OTLP_METRICS_PROTOCOL"];
            "The same, for metrics."
        otlp_headers: Vec<(String, String)> = "", list(value::pair), "otel-exporter-otlp-headers", ["OTEL_EXPORTER_OTLP_HEADERS"];
            "Headers sent with every export: key=value, percent-encoded, separated by commas."
        otlp_traces_headers: Vec<(String, String)> = "", list(value::pair), "otel-exporter-otlp-traces-headers", ["OTEL_EXPORTER_OTLP_TRACES_HEADERS"];
            "Headers sent with spans instead."
        otlp_metrics_headers: Vec<(String, String)> = "", list(value::pair), "otel-exporter-otlp-metrics-headers", ["OTEL_EXPORTER_OTLP_METRICS_HEADERS"];
            "Headers sent with metrics instead."
        otlp_compression: Compression = "none", value::compression, "otel-exporter-otlp-compression", ["OTEL_EXPORTER_OTLP_COMPRESSION"];
            "none or gzip."
        otlp_traces_compression: Option<Compression> = "", optional(value::compression), "otel-exporter-otlp-traces-compression", ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"];
            "The same, for spans."
        otlp_metrics_compression: Option<Compression> = "", optional(value::compression), "otel-exporter-otlp-metrics-compression", ["OTEL_EXPORTER_OTLP_METRICS_COMPRESSION"];
            "The same, for metrics."
        otlp_timeout_ms: u64 = "10000", number::<1, 600_000>, "otel-exporter-otlp-timeout", ["OTEL_EXPORTER_OTLP_TIMEOUT"], lenient;
            "Milliseconds for one attempt to send a batch. A batch that may still be taken is tried again for five minutes, while newer spans wait in the bounded queue."
        otlp_traces_timeout_ms: Option<u64> = "", optional(number::<1, 600_000>), "otel-exporter-otlp-traces-timeout", ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"], lenient;
            "The same, for spans."
        otlp_metrics_timeout_ms: Option<u64> = "", optional(number::<1, 600_000>), "otel-exporter-otlp-metrics-timeout", ["OTEL_EXPORTER_OTLP_METRICS_TIMEOUT"], lenient;
            "The same, for metrics."
        otlp_certificate: String = "", value::text, "otel-exporter-otlp-certificate", ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];
            "PEM file of the authorities that the collector's certificate is held against. Unset: the system's."
        otlp_client_certificate: String = "", value::text, "otel-exporter-otlp-client-certificate", ["OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"];
            "PEM file of our own certificate, for collectors that ask for one."
        otlp_client_key: String = "", value::text, "otel-exporter-otlp-client-key", ["OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"];
            "PEM file of its key."
        otlp_insecure: Option<bool> = "", optional(value::otel_bool), "otel-exporter-otlp-insecure", ["OTEL_EXPORTER_OTLP_TRACES_INSECURE", "OTEL_EXPORTER_OTLP_INSECURE"];
            "For gRPC endpoints without a scheme: true is cleartext, false is TLS. Unset: cleartext."
        bsp_schedule_delay_ms: u64 = "1000", number::<1, 600_000>, "otel-bsp-schedule-delay", ["OTEL_BSP_SCHEDULE_DELAY"], lenient;
            "Milliseconds that a span waits for others to leave with."
        bsp_export_timeout_ms: u64 = "30000", number::<1, 600_000>, "otel-bsp-export-timeout", ["OTEL_BSP_EXPORT_TIMEOUT"], lenient;
            "The same bound by its other name; the smaller of the two counts."
        bsp_queue_max: u64 = "2048", number::<1, 1_000_000>, "otel-bsp-max-queue-size", ["OTEL_BSP_MAX_QUEUE_SIZE"], lenient;
            "Spans that wait at the most. Beyond that the oldest are dropped, and counted."
        bsp_batch_max: u64 = "512", number::<1, 100_000>, "otel-bsp-max-export-batch-size", ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"], lenient;
            "Spans of one batch."
        attribute_length_max: Option<u64> = "", optional(number::<1, 4096>), "otel-span-attribute-value-length-limit", ["OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"], lenient;
            "Bytes of an attribute's text. Unset: 4096."
    }
    "Limits" {
        connect_timeout_ms: u64 = "5000", number::<1, 600_000>, "connect-timeout", ["THROUGHLINE_CONNECT_TIMEOUT"];
            "Milliseconds to connect to an upstream. Then: 504."
        response_timeout_ms: u64 = "0", number::<0, 86_400_000>, "response-timeout", ["THROUGHLINE_RESPONSE_TIMEOUT"];
            "Milliseconds to wait for the head of an upstream's answer. Then: 504. 0: the caller's patience decides."
        header_timeout_ms: u64 = "10000", number::<1, 600_000>, "header-timeout", ["THROUGHLINE_HEADER_TIMEOUT"];
            "Milliseconds for a request's head to arrive once it has begun."
        idle_timeout_ms: u64 = "3600000", number::<1, 86_400_000>, "idle-timeout", ["THROUGHLINE_IDLE_TIMEOUT"];
            "Milliseconds that a connection without a request stays open."
        stall_timeout_ms: u64 = "60000", number::<1, 86_400_000>, "stall-timeout", ["THROUGHLINE_STALL_TIMEOUT"];
            "Milliseconds that a caller may leave an answer unread before its connection is closed."
        pool_idle_timeout_ms: u64 = "4000", number::<1, 600_000>, "pool-idle-timeout", ["THROUGHLINE_POOL_IDLE_TIMEOUT"];
            "Milliseconds that an upstream connection is kept for the next request. Below what common servers keep theirs."
        connections_max: u64 = "10000", number::<1, 100_000>, "connections-max", ["THROUGHLINE_CONNECTIONS_MAX"];
            "Connections open at once on each side. Further ones wait to be accepted."
        header_bytes_max: u64 = "65536", number::<8192, 1_048_576>, "header-bytes-max", ["THROUGHLINE_HEADER_BYTES_MAX"];
            "Bytes of a request's head. More: 431."
        header_fields_max: u64 = "100", number::<10, 1000>, "header-fields-max", ["THROUGHLINE_HEADER_FIELDS_MAX"];
            "Fields of a request's head. More: 431."
        streams_max: u64 = "250", number::<1, 10_000>, "streams-max", ["THROUGHLINE_STREAMS_MAX"];
            "Streams at once on one HTTP/2 connection."
        drain_timeout_ms: u64 = "25000", number::<0, 3_600_000>, "drain-timeout", ["THROUGHLINE_DRAIN_TIMEOUT"];
            "Milliseconds for requests in flight to finish after SIGTERM, the last export included."
    }
    "Process" {
        access_log: AccessLog = "off", value::access_log, "access-log", ["THROUGHLINE_ACCESS_LOG"];
            "stdout: one JSON line for each exchange. off: none."
        log_level: LogLevel = "info", value::log_level, "otel-log-level", ["OTEL_LOG_LEVEL"];
            "error, warn, info or debug: the sidecar's own log, JSON lines on standard error."
        worker_threads: u64 = "0", number::<0, 256>, "worker-threads", ["THROUGHLINE_WORKER_THREADS"];
            "Threads that serve requests. 0: one for each core, two at the most."
    }
}

/// Where inbound connections are redirected to, unless settings say otherwise.
pub const CAPTURED_INBOUND_PORT: u16 = 15106;
/// Where outbound connections are redirected to, unless settings say otherwise.
pub const CAPTURED_OUTBOUND_PORT: u16 = 15101;
/// Where the admin port is, unless settings say otherwise.
pub const ADMIN_PORT: u16 = 15190;

/// A sentence of help, left out where nobody can ask for it: in Envoy.
const fn shown(help: &'static str) -> &'static str {
    if cfg!(target_os = "wasi") { "" } else { help }
}

/// Settings that make no sense together.
const CONFLICTS: &[Conflict] = &[
    (
        |settings| settings.capture == Capture::Transparent && settings.inbound_upstream.is_some(),
        "inbound-upstream",
        "nothing here: in transparent capture connections go to where they were going",
    ),
    (
        |settings| settings.capture == Capture::Transparent && !settings.outbound_routes.is_empty(),
        "outbound-routes",
        "nothing here: in transparent capture connections go to where they were going",
    ),
    (
        |settings| {
            let reverse = settings.capture == Capture::Reverse;
            reverse && settings.inbound_listen.is_some() && settings.inbound_upstream.is_none()
        },
        "inbound-upstream",
        "the application's host and port, since inbound-listen is set",
    ),
    (
        |settings| settings.inbound_listen.is_none() && settings.outbound_listen.is_none(),
        "inbound-listen",
        "an address here, in outbound-listen, or in both: without a listener there is nothing to do (see --help)",
    ),
    (
        |settings| {
            !settings.outbound_anywhere && settings.outbound_listen.is_some_and(|a| !a.ip().is_loopback())
        },
        "outbound-listen",
        "a loopback address such as 127.0.0.1:15001, or outbound-anywhere=on: elsewhere it would be an open proxy",
    ),
    (
        |settings| settings.otlp_client_certificate.is_empty() != settings.otlp_client_key.is_empty(),
        "otel-exporter-otlp-client-key",
        "both otel-exporter-otlp-client-certificate and otel-exporter-otlp-client-key, or neither",
    ),
];

type Conflict = (fn(&Settings) -> bool, &'static str, &'static str);

impl Settings {
    /// Reads every row from the sources. All mistakes are reported together; warnings come beside a good
    /// result.
    pub fn resolve(sources: &Sources) -> Result<Found<Self>, Vec<Mistake>> {
        let mut reader = source::Reader::new(sources, ROWS);
        let settings = Self::read(&mut reader);
        let mut found = reader.finish(settings)?;
        found.value.capture_listens();
        let conflicts = found.value.conflicts(sources);
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        found.warnings.extend(found.value.unsupported());
        Ok(found)
    }

    /// Captured connections have ports to arrive at, whether they are said or not.
    fn capture_listens(&mut self) {
        if self.capture == Capture::Transparent {
            self.inbound_listen.get_or_insert((Ipv4Addr::UNSPECIFIED, CAPTURED_INBOUND_PORT).into());
            self.outbound_listen.get_or_insert((Ipv4Addr::LOCALHOST, CAPTURED_OUTBOUND_PORT).into());
        }
    }

    /// Settings that make no sense together.
    fn conflicts(&self, sources: &Sources) -> Vec<Mistake> {
        let found = CONFLICTS.iter().filter(|(conflicts, ..)| conflicts(self));
        found.map(|(_, key, want)| sources.mistake(ROWS, key, want)).collect()
    }

    /// What was asked for and is left out, one sentence each.
    fn unsupported(&self) -> impl Iterator<Item = String> + '_ {
        let names = self.propagators.unsupported.iter();
        names.map(|name| format!("OTEL_PROPAGATORS: {name} is not supported and left out"))
    }

    /// Whether contexts are carried and spans made.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.tracing_enabled && !self.sdk_disabled
    }

    /// Name and namespace of the service.
    #[must_use]
    pub fn service(&self) -> (&str, &str) {
        let of_resource = |key: &str| {
            let found = self.resource_attributes.iter().rev().find(|(name, _)| name == key);
            found.map_or("", |(_, value)| value.as_str())
        };
        let name = [self.service_name.as_str(), of_resource(attribute::SERVICE_NAME)];
        let name = name.into_iter().find(|name| !name.is_empty()).unwrap_or("unknown_service:throughline");
        (name, of_resource(attribute::SERVICE_NAMESPACE))
    }

    /// Attributes of the resource: the user's, with the service's name and ours beside them.
    #[must_use]
    pub fn resource(&self) -> Vec<(&str, &str)> {
        let mut resource = vec![(attribute::SERVICE_NAME, self.service().0)];
        for (key, value) in &self.resource_attributes {
            if key != attribute::SERVICE_NAME {
                resource.retain(|(known, _)| known != key);
                resource.push((key, value));
            }
        }
        resource.push((attribute::TELEMETRY_DISTRO_NAME, crate::names::SCOPE));
        resource.push((attribute::TELEMETRY_DISTRO_VERSION, VERSION));
        resource
    }

    /// The resource that pushed metrics name: counts of two instances must never be taken for one's. `own` is the
    /// instance's id where the user gave none.
    #[must_use]
    pub fn metrics_resource<'a>(&'a self, own: &'a str) -> Vec<(&'a str, &'a str)> {
        let mut resource = self.resource();
        if !resource.iter().any(|(key, _)| *key == attribute::SERVICE_INSTANCE_ID) {
            resource.push((attribute::SERVICE_INSTANCE_ID, own));
        }
        resource
    }

    /// What decides exchanges.
    #[must_use]
    pub fn tracer(&self) -> Config {
        let root = match self.sampler {
            SamplerName::AlwaysOn | SamplerName::ParentBasedAlwaysOn => Root::AlwaysOn,
            SamplerName::AlwaysOff | SamplerName::ParentBasedAlwaysOff => Root::AlwaysOff,
            SamplerName::Ratio | SamplerName::ParentBasedRatio => Root::Ratio(self.sampler_arg),
        };
        let sampler = match self.sampler {
            SamplerName::AlwaysOn | SamplerName::AlwaysOff | SamplerName::Ratio => Sampler::Always(root),
            SamplerName::ParentBasedAlwaysOn
            | SamplerName::ParentBasedAlwaysOff
            | SamplerName::ParentBasedRatio => Sampler::ParentBased(root),
        };
        let (service, namespace) = self.service();
        Config {
            enabled: self.enabled(),
            mode: self.mode,
            service: service.to_owned(),
            recording: self.enabled() && self.traces_exporter != Exporter::None,
            sampler,
            trust: match self.trust {
                TrustName::Mesh => Trust::Mesh,
                TrustName::Edge => Trust::Edge(Edge {
                    operations: self.edge_operations.clone(),
                    operations_max: usize::try_from(self.edge_operations_max).unwrap_or(usize::MAX),
                    sampled_per_second: self.edge_sampled_per_second,
                }),
            },
            adaptive: Adaptive {
                rate: self.adaptive_rate,
                latency_nanos: Some(self.adaptive_latency_ms * 1_000_000).filter(|nanos| *nanos > 0),
                errors: Some(self.adaptive_errors).filter(|errors| errors.probability() > 0.0),
                window_nanos: self.adaptive_window_ms * 1_000_000,
            },
            spans_per_second: self.spans_per_second,
            keep: Keep {
                errors: self.keep_errors,
                slow: self.keep_slow,
                slow_routes: self.keep_slow_routes.clone(),
                operations: self.keep_operations.clone(),
                routes: self.keep_routes.clone(),
                headers: self.keep_headers.clone(),
            },
            propagators: self.propagators.propagators,
            routes: self.routes.clone(),
            routes_max: usize::try_from(self.routes_max).unwrap_or(usize::MAX),
            query: match self.query {
                QueryMode::Redacted => Query::Redacted(self.redact_query.clone()),
                QueryMode::Off => Query::Off,
            },
            mesh: Mesh::new(self.mesh_hosts.clone()),
            peer_header: Peer::header(service, namespace),
            egress_traceparent: self.egress_traceparent,
            response_headers: self.response_headers,
            root_unsampled: self.root_unsampled,
            capture_request_headers: self.capture_request_headers.clone(),
            capture_response_headers: self.capture_response_headers.clone(),
            event_context: self.event_context,
            message_names: self.message_names,
            aggregation: self.aggregation,
            attribute_bytes_max: self
                .attribute_length_max
                .map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
        }
    }
}

/// Help for a terminal: every row under its heading.
#[must_use]
pub fn help() -> String {
    help_of(ROWS.iter().chain(BROWSER_ROWS))
}

fn help_of<'a>(rows: impl IntoIterator<Item = &'a Row>) -> String {
    let mut out = String::new();
    let mut section = "";
    for row in rows {
        if row.section != section {
            section = row.section;
            out.push_str(&format!("\n{section}:\n"));
        }
        out.push_str(&format!("  --{} <value>\n", row.key));
        wrapped(row.help, 92, "      ", &mut out);
        let default = if row.default.is_empty() { "unset" } else { row.default };
        out.push_str(&format!("      [{}] [default: {default}]\n", row.env.join(", ")));
    }
    out
}

/// The reference page, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut out = String::from(
        "# Settings\n\nGenerated from the tables in `core/src/settings` by `throughline-proxy --print-reference`.\n\
         A flag wins over the environment, the environment over the file named by `--config` (YAML, the same \
         keys).\nEmpty means unset. Times are milliseconds.\n\nThe filter in Envoy takes the same keys in its \
         plugin configuration, but for those marked ¹, which are Envoy's\nown business there, and has the keys of \
         the last table beside them.\n",
    );
    table(ROWS, |row| if filter::OF_THE_SIDECAR.contains(&row.key) { "¹" } else { "" }, &mut out);
    table(BROWSER_ROWS, |_| "¹", &mut out);
    table(FILTER_ROWS, |_| "", &mut out);
    out
}

fn table(rows: &[Row], mark: impl Fn(&Row) -> &'static str, out: &mut String) {
    let mut section = "";
    for row in rows {
        if row.section != section {
            section = row.section;
            out.push_str(&format!(
                "\n## {section}\n\n| flag and key | environment | default | what it is for |\n|---|---|---|---|\n"
            ));
        }
        let env: Vec<String> = row.env.iter().map(|name| format!("`{name}`")).collect();
        let default = if row.default.is_empty() { String::new() } else { format!("`{}`", row.default) };
        let env = env.join(", ");
        out.push_str(&format!("| `{}`{} | {env} | {default} | {} |\n", row.key, mark(row), row.help));
    }
}

fn wrapped(text: &str, width: usize, indent: &str, out: &mut String) {
    let mut column = 0;
    for word in text.split(' ') {
        if column == 0 {
            out.push_str(indent);
        } else if column + 1 + word.len() > width {
            out.push('\n');
            out.push_str(indent);
            column = 0;
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
    }
    out.push('\n');
}
