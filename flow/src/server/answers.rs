//! The shapes of the API's answers, field by field as the contract names them. Moments and durations are nanoseconds,
//! latencies milliseconds; what is a name for people is RFC 3339.

use std::collections::HashMap;

use serde::{Serialize, Serializer};

use crate::engine::{Outcome, TraceSummary};
use crate::layout::lay_out;
use crate::numbers::{Edge, Figures, Lag, Node, Window};
use crate::span::{Event, Kind, Link, Service, Span, Status, Value};
use crate::times::rfc3339;

/// Bytes as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Empty text is left out.
fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A latency to a microsecond: more digits are noise.
pub(crate) fn ms(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// A share to six digits.
pub(crate) fn share(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

pub(crate) fn outcome(status: Outcome) -> &'static str {
    match status {
        Outcome::Success => "success",
        Outcome::Error => "error",
        Outcome::Timeout => "timeout",
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceInfo {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deployment: Option<String>,
}

impl ServiceInfo {
    pub(crate) fn of(service: &Service) -> Self {
        Self {
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            pod: service.pod.clone(),
            version: some(&service.version),
            deployment: some(&service.deployment),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metrics {
    pub(crate) request_count: u64,
    pub(crate) error_count: u64,
    pub(crate) avg_latency: f64,
    pub(crate) p50_latency: f64,
    pub(crate) p95_latency: f64,
    pub(crate) p99_latency: f64,
    pub(crate) estimated: bool,
}

impl Metrics {
    pub(crate) fn of(figures: &Figures) -> Self {
        Self {
            request_count: figures.requests,
            error_count: figures.errors,
            avg_latency: ms(figures.avg_ms),
            p50_latency: ms(figures.p50_ms),
            p95_latency: ms(figures.p95_ms),
            p99_latency: ms(figures.p99_ms),
            estimated: figures.estimated,
        }
    }
}

/// What this one flow saw, beside the operation's metrics.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeSelf {
    pub(crate) span_count: u64,
    pub(crate) request_count: u64,
    pub(crate) error_count: u64,
    pub(crate) avg_latency: f64,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FlowNode {
    pub(crate) id: String,
    pub(crate) kind: &'static str,
    pub(crate) service: ServiceInfo,
    pub(crate) metrics: Metrics,
    pub(crate) status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_rate: Option<f64>,
    #[serde(rename = "self", skip_serializing_if = "Option::is_none")]
    pub(crate) own: Option<NodeSelf>,
    /// Where the middle of the node stands when the graph is drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) place: Option<[f64; 2]>,
}

impl FlowNode {
    pub(crate) fn of(node: &Node) -> Self {
        Self {
            id: node.id.clone(),
            kind: node.kind.as_str(),
            service: ServiceInfo {
                name: node.name.clone(),
                namespace: node.namespace.clone(),
                pod: String::new(),
                version: None,
                deployment: None,
            },
            metrics: Metrics::of(&node.figures),
            status: node.health.as_str(),
            request_rate: Some(share(node.request_rate)),
            own: None,
            place: None,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EdgeLag {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subscription: Option<String>,
    pub(crate) messages: u64,
    pub(crate) avg: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p95: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99: Option<f64>,
}

impl EdgeLag {
    pub(crate) fn of(lag: &Lag) -> Self {
        Self {
            subscription: some(&lag.subscription),
            messages: lag.messages,
            avg: ms(lag.avg_ms),
            p50: Some(ms(lag.p50_ms)),
            p95: Some(ms(lag.p95_ms)),
            p99: Some(ms(lag.p99_ms)),
        }
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EdgeSelf {
    pub(crate) call_count: u64,
    pub(crate) error_count: u64,
    pub(crate) avg_latency: f64,
    pub(crate) retry_count: u64,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FlowEdge {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) call_count: u64,
    pub(crate) error_rate: f64,
    pub(crate) avg_latency: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p95_latency: Option<f64>,
    pub(crate) retry_count: u64,
    /// What passes: request, publish or deliver.
    pub(crate) kind: &'static str,
    /// How it is known: proven, inferred, async or link.
    pub(crate) provenance: &'static str,
    pub(crate) estimated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unanswered: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) topic: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) lag: Vec<EdgeLag>,
    #[serde(rename = "self", skip_serializing_if = "Option::is_none")]
    pub(crate) own: Option<EdgeSelf>,
    /// Places that the edge passes when the graph is drawn, so that it does not cross nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) passes: Vec<[f64; 2]>,
}

impl FlowEdge {
    pub(crate) fn of(edge: &Edge) -> Self {
        use crate::numbers::{EdgeKind, ToldBy};
        let provenance = match (edge.kind, edge.told_by) {
            (EdgeKind::Publish | EdgeKind::Deliver, _) => "async",
            (EdgeKind::Request, ToldBy::Server | ToldBy::Both) => "proven",
            (EdgeKind::Request, ToldBy::Client | ToldBy::Spans) => "inferred",
        };
        let topic = match edge.kind {
            EdgeKind::Publish => edge.to.strip_prefix("topic:"),
            EdgeKind::Deliver => edge.from.strip_prefix("topic:"),
            EdgeKind::Request => None,
        };
        Self {
            from: edge.from.clone(),
            to: edge.to.clone(),
            call_count: edge.figures.requests,
            error_rate: share(edge.figures.error_rate()),
            avg_latency: ms(edge.figures.avg_ms),
            p95_latency: Some(ms(edge.figures.p95_ms)),
            retry_count: edge.retries,
            kind: edge.kind.as_str(),
            provenance,
            estimated: edge.figures.estimated,
            unanswered: Some(edge.unanswered),
            topic: topic.map(str::to_owned),
            lag: edge.lag.iter().map(EdgeLag::of).collect(),
            own: None,
            passes: Vec::new(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<FlowNode>,
    pub(crate) edges: Vec<FlowEdge>,
}

/// Gives every node and edge its place in the drawing.
pub(crate) fn place(nodes: &mut [FlowNode], edges: &mut [FlowEdge]) {
    let places: HashMap<&str, usize> =
        nodes.iter().enumerate().map(|(place, node)| (node.id.as_str(), place)).collect();
    let of = |id: &str| places.get(id).copied().unwrap_or(usize::MAX);
    let ends: Vec<(usize, usize)> = edges.iter().map(|edge| (of(&edge.from), of(&edge.to))).collect();
    let layout = lay_out(nodes.len(), &ends);
    for (node, place) in nodes.iter_mut().zip(layout.nodes) {
        node.place = Some([place.x, place.y]);
    }
    for (edge, passes) in edges.iter_mut().zip(layout.edges) {
        edge.passes = passes.into_iter().map(|place| [place.x, place.y]).collect();
    }
}

impl Graph {
    /// With places for all.
    pub(crate) fn placed(mut self) -> Self {
        place(&mut self.nodes, &mut self.edges);
        self
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FlowInList {
    pub(crate) flow_id: String,
    pub(crate) operation_name: String,
    pub(crate) trace_id: String,
    pub(crate) start_time: u64,
    pub(crate) end_time: u64,
    /// For readers whose numbers end at 2^53.
    pub(crate) start_time_nanos: String,
    pub(crate) duration: u64,
    pub(crate) nodes: Vec<FlowNode>,
    pub(crate) edges: Vec<FlowEdge>,
    pub(crate) status: &'static str,
    pub(crate) metadata: FlowMetadata,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FlowMetadata {
    pub(crate) environment: String,
    pub(crate) operation_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ui_event: Option<String>,
    pub(crate) total_duration: u64,
    pub(crate) total_spans: u64,
    pub(crate) error_count: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Flows {
    pub(crate) flows: Vec<FlowInList>,
    pub(crate) total: u64,
    /// Whether there may be more than `total`.
    pub(crate) total_is_bound: bool,
    pub(crate) page: u64,
    pub(crate) page_size: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Flow {
    pub(crate) flow_id: String,
    pub(crate) operation_name: String,
    pub(crate) trace_id: String,
    pub(crate) start_time: u64,
    pub(crate) end_time: u64,
    pub(crate) start_time_nanos: String,
    pub(crate) duration: u64,
    pub(crate) status: &'static str,
    pub(crate) graph: Graph,
    pub(crate) metadata: FlowMetadata,
    pub(crate) findings: Vec<Finding>,
    pub(crate) doctor: Vec<Verdict>,
    pub(crate) links: Vec<LinkOut>,
}

/// A link to another trace.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LinkOut {
    pub(crate) from_span_id: String,
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    pub(crate) kind: &'static str,
    pub(crate) service: String,
    pub(crate) span_id: String,
    pub(crate) span_ids: Vec<String>,
    pub(crate) count: usize,
    pub(crate) wasted_ms: f64,
    pub(crate) text: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verdict {
    pub(crate) verdict: &'static str,
    pub(crate) hop: HopInfo,
    pub(crate) reason: String,
    pub(crate) fix: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trace_id: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HopInfo {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) route: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) span_id: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TraceInList {
    pub(crate) trace_id: String,
    pub(crate) operation_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ui_event: Option<String>,
    pub(crate) environment: String,
    pub(crate) root_service: String,
    pub(crate) root_name: String,
    pub(crate) start_time: u64,
    pub(crate) start_time_nanos: String,
    pub(crate) duration: u64,
    pub(crate) status: &'static str,
    pub(crate) span_count: u32,
    pub(crate) error_count: u32,
    pub(crate) service_count: usize,
    pub(crate) services: Vec<String>,
}

impl TraceInList {
    pub(crate) fn of(summary: &TraceSummary) -> Self {
        Self {
            trace_id: hex(&summary.trace_id),
            operation_name: summary.operation.clone(),
            ui_event: some(&summary.ui_event),
            environment: summary.environment.clone(),
            root_service: summary.root_service.clone(),
            root_name: summary.root_name.clone(),
            start_time: summary.start_unix_nanos,
            start_time_nanos: summary.start_unix_nanos.to_string(),
            duration: summary.end_unix_nanos.saturating_sub(summary.start_unix_nanos),
            status: outcome(summary.status),
            span_count: summary.span_count,
            error_count: summary.error_count,
            service_count: summary.services.len(),
            services: summary.services.iter().map(|(name, _)| name.clone()).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Traces {
    pub(crate) traces: Vec<TraceInList>,
    pub(crate) total: u64,
    pub(crate) total_is_bound: bool,
    pub(crate) page: u64,
    pub(crate) page_size: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Trace {
    pub(crate) trace_id: String,
    pub(crate) operation_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ui_event: Option<String>,
    pub(crate) start_time: u64,
    pub(crate) end_time: u64,
    pub(crate) start_time_nanos: String,
    pub(crate) duration: u64,
    pub(crate) status: &'static str,
    pub(crate) spans: Vec<SpanInfo>,
    pub(crate) metadata: TraceMetadata,
    pub(crate) critical_path: Vec<PieceInfo>,
    pub(crate) findings: Vec<Finding>,
    pub(crate) doctor: Vec<Verdict>,
    /// Spans that came again and were left out.
    pub(crate) duplicate_spans: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TraceMetadata {
    pub(crate) environment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session_id: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PieceInfo {
    pub(crate) span_id: String,
    pub(crate) start_time: u64,
    pub(crate) duration: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SpanInfo {
    pub(crate) span_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parent_span_id: Option<String>,
    pub(crate) trace_id: String,
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) service: ServiceInfo,
    pub(crate) start_time: u64,
    pub(crate) end_time: u64,
    pub(crate) duration: u64,
    pub(crate) status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status_message: Option<String>,
    #[serde(serialize_with = "as_map")]
    pub(crate) attributes: Vec<(String, Value)>,
    pub(crate) events: Vec<EventInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) links: Vec<LinkInfo>,
    /// throughline, or the name of the library that made it.
    pub(crate) source: String,
    /// What is to be added to the moments of this span so that it lies within its caller's.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) skew: i64,
    /// orphan (its parent is not here) or cycle (its parents led back to it).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<&'static str>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

pub(crate) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "unspecified",
        Kind::Internal => "internal",
        Kind::Server => "server",
        Kind::Client => "client",
        Kind::Producer => "producer",
        Kind::Consumer => "consumer",
    }
}

impl SpanInfo {
    pub(crate) fn of(span: Span, skew: i64, note: Option<&'static str>) -> Self {
        Self {
            span_id: hex(&span.span_id),
            parent_span_id: span.parent.map(|parent| hex(&parent)),
            trace_id: hex(&span.trace_id),
            kind: kind(span.kind),
            service: ServiceInfo::of(&span.service),
            start_time: span.start_unix_nanos,
            end_time: span.end_unix_nanos,
            duration: span.end_unix_nanos.saturating_sub(span.start_unix_nanos),
            status: match span.status {
                Status::Unset => "UNSET",
                Status::Ok => "OK",
                Status::Error => "ERROR",
            },
            status_message: some(&span.status_message),
            events: span.events.into_iter().map(EventInfo::of).collect(),
            links: span.links.into_iter().map(LinkInfo::of).collect(),
            source: if span.ours { "throughline".to_owned() } else { span.scope.to_string() },
            name: span.name,
            attributes: span.attributes,
            skew,
            note,
        }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct EventInfo {
    name: String,
    timestamp: u64,
    #[serde(serialize_with = "as_map")]
    attributes: Vec<(String, Value)>,
}

impl EventInfo {
    fn of(event: Event) -> Self {
        Self { name: event.name, timestamp: event.at_unix_nanos, attributes: event.attributes }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LinkInfo {
    trace_id: String,
    span_id: String,
    #[serde(serialize_with = "as_map")]
    attributes: Vec<(String, Value)>,
}

impl LinkInfo {
    fn of(link: Link) -> Self {
        Self { trace_id: hex(&link.trace_id), span_id: hex(&link.span_id), attributes: link.attributes }
    }
}

/// Attributes as an object; of several with one key, the last one counts.
fn as_map<S: Serializer>(attributes: &[(String, Value)], serializer: S) -> Result<S::Ok, S::Error> {
    let map: serde_json::Map<String, serde_json::Value> =
        attributes.iter().map(|(key, value)| (key.clone(), plain(value))).collect();
    map.serialize(serializer)
}

/// How deep lists and maps of an attribute are shown.
const DEPTH_MAX: usize = 16;

/// A value of an attribute in JSON. Integers beyond 2^53 stay numbers, as the contract has them.
fn plain(value: &Value) -> serde_json::Value {
    shown(value, DEPTH_MAX)
}

fn shown(value: &Value, depth: usize) -> serde_json::Value {
    let Some(deeper) = depth.checked_sub(1) else { return serde_json::Value::Null };
    match value {
        Value::Text(text) => text.as_str().into(),
        Value::Flag(flag) => (*flag).into(),
        Value::Int(number) => (*number).into(),
        // JSON has no infinity.
        Value::Double(number) => serde_json::Number::from_f64(*number)
            .map_or_else(|| serde_json::Value::String(number.to_string()), serde_json::Value::Number),
        Value::Bytes(bytes) => hex(bytes).into(),
        Value::List(list) => list.iter().map(|value| shown(value, deeper)).collect(),
        Value::Map(pairs) => serde_json::Value::Object(
            pairs.iter().map(|(key, value)| (key.clone(), shown(value, deeper))).collect(),
        ),
        Value::Empty => serde_json::Value::Null,
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Dependencies {
    pub(crate) nodes: Vec<FlowNode>,
    pub(crate) edges: Vec<FlowEdge>,
    pub(crate) metadata: DependenciesMetadata,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DependenciesMetadata {
    /// As asked; empty for all.
    pub(crate) namespace: String,
    /// As asked; empty for all.
    pub(crate) service: String,
    /// When a number of the graph was told last; none where there is none.
    pub(crate) last_updated: Option<String>,
    pub(crate) environment: String,
    pub(crate) period: Period,
}

#[derive(Debug, Serialize)]
pub(crate) struct Period {
    pub(crate) start: String,
    pub(crate) end: String,
}

impl Period {
    pub(crate) fn of(window: Window) -> Self {
        Self { start: rfc3339(window.start_unix_nanos), end: rfc3339(window.end_unix_nanos) }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Operations {
    pub(crate) operations: Vec<Operation>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Operation {
    pub(crate) name: String,
    pub(crate) environment: String,
    pub(crate) count: u64,
    pub(crate) error_rate: f64,
    pub(crate) avg_latency: f64,
    pub(crate) p50_latency: f64,
    pub(crate) p95_latency: f64,
    pub(crate) p99_latency: f64,
    pub(crate) estimated: bool,
    pub(crate) last_seen: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OperationStats {
    pub(crate) operation_name: String,
    pub(crate) period: Period,
    pub(crate) stats: Stats,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stats {
    pub(crate) total_requests: u64,
    pub(crate) success_count: u64,
    pub(crate) error_count: u64,
    pub(crate) timeout_count: u64,
    pub(crate) retry_count: u64,
    pub(crate) avg_latency: f64,
    pub(crate) p50_latency: f64,
    pub(crate) p95_latency: f64,
    pub(crate) p99_latency: f64,
    pub(crate) estimated: bool,
    pub(crate) services: Vec<ServiceShare>,
    pub(crate) routes: Vec<RouteShare>,
    pub(crate) errors: Vec<ErrorShare>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceShare {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) request_count: u64,
    pub(crate) error_count: u64,
    pub(crate) avg_latency: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteShare {
    pub(crate) service: String,
    pub(crate) namespace: String,
    pub(crate) route: String,
    pub(crate) request_count: u64,
    pub(crate) error_count: u64,
    pub(crate) avg_latency: f64,
    pub(crate) p95_latency: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ErrorShare {
    pub(crate) error_type: String,
    pub(crate) count: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OperationGraph {
    pub(crate) operation_name: String,
    pub(crate) period: Period,
    pub(crate) graph: Graph,
    pub(crate) last_updated: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Services {
    pub(crate) services: Vec<ServiceInList>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceMetrics {
    pub(crate) request_rate: f64,
    pub(crate) error_rate: f64,
    pub(crate) avg_latency: f64,
    pub(crate) p50_latency: f64,
    pub(crate) p95_latency: f64,
    pub(crate) p99_latency: f64,
    pub(crate) request_count: u64,
    pub(crate) error_count: u64,
    pub(crate) estimated: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceInList {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) environment: String,
    pub(crate) pod_count: usize,
    pub(crate) version: String,
    pub(crate) status: &'static str,
    pub(crate) metrics: ServiceMetrics,
    pub(crate) last_seen: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct ServiceAnswer {
    pub(crate) service: ServiceDetails,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceDetails {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) environment: String,
    pub(crate) version: String,
    pub(crate) status: &'static str,
    pub(crate) pods: Vec<PodInfo>,
    pub(crate) dependencies: ServiceDependencies,
    pub(crate) metrics: ServiceMetrics,
    pub(crate) doctor: Vec<Verdict>,
    pub(crate) propagation: Vec<RouteScore>,
    pub(crate) last_seen: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodInfo {
    pub(crate) name: String,
    pub(crate) node: String,
    /// Running while it is heard of, else Unknown: what Kubernetes says of it is not asked.
    pub(crate) status: &'static str,
    pub(crate) version: String,
    pub(crate) last_seen: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct ServiceDependencies {
    pub(crate) upstream: Vec<String>,
    pub(crate) downstream: Vec<String>,
}

/// Of the requests on a route whose calls were seen, those whose calls carried the context.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteScore {
    pub(crate) route: String,
    pub(crate) forwarded: u64,
    pub(crate) dropped: u64,
    pub(crate) score: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Doctor {
    pub(crate) services: Vec<DoctorOfService>,
    /// Recent traces that were looked at for verdicts; counts of them are of this sample.
    pub(crate) traces_examined: usize,
    pub(crate) period: Period,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DoctorOfService {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) environment: String,
    /// 1: every call carried the context. None where no sidecar tells.
    pub(crate) score: Option<f64>,
    pub(crate) routes: Vec<RouteScore>,
    pub(crate) verdicts: Vec<Verdict>,
}
