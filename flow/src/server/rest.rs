//! The questions of the API and their answers. Numbers come from the numbers, single flows from their spans; nothing
//! here scans. Must never answer with a part of what was asked for without saying so.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::Serialize;

use super::App;
use super::answers::{self, hex, ms, outcome, share};
use super::problem::{Answer, Problem, with_body};
use super::query::{Params, decode_path};
use crate::engine::{Found, Outcome, StoreError, TraceQuery, TraceSummary};
use crate::numbers::{self, Filter, Window};
use crate::span::{Span, TraceId};
use crate::times::rfc3339;
use crate::trace::doctor::{self, Around, Said, Verdict};
use crate::trace::graph::{self, Id};
use crate::trace::{Assembled, Note, critical, findings};

/// Recent traces that the Doctor looks at for all services.
const EXAMINED_MAX: usize = 50;
/// A pod that was heard of within this is running.
const RUNNING_NANOS: u64 = 180_000_000_000;
/// Numbers around a flow: this much before and after its start.
const AROUND_NANOS: u64 = 1_800_000_000_000;

type Replied<T> = Result<T, Problem>;

/// Answers a call under `/api/v1/`.
pub(crate) async fn answer(
    app: &Arc<App>,
    method: &Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Answer {
    if method != Method::GET && method != Method::HEAD {
        let mut answer = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "want GET").answer();
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    let segments: Option<Vec<String>> = path.split('/').map(decode_path).collect();
    let Some(segments) = segments else {
        return Problem::new(StatusCode::BAD_REQUEST, "want a percent-encoded path in UTF-8").answer();
    };
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    // People and frameworks end paths with a slash.
    let segments = segments.strip_suffix(&[""]).unwrap_or(&segments);
    let outcome = match segments {
        ["flows"] => app.aside(query, flows).await,
        ["flows", id] => app.aside_of(id, query, flow).await,
        ["dependencies"] => dependencies(app, query),
        ["traces"] => app.aside(query, traces).await,
        ["traces", id] => app.aside_of(id, query, trace).await,
        ["operations"] => operations(app, query),
        ["operations", name, "stats"] => stats(app, name, query),
        ["operations", name, "graph"] => operation_graph(app, name, query),
        ["services"] => services(app, query),
        ["services", name] => app.aside_of(name, query, service).await,
        ["doctor"] => app.aside(query, all_services).await,
        ["openapi.json"] => Ok(with_body(StatusCode::OK, "application/json", super::OPENAPI)),
        _ => Err(Problem::not_found(format!("no such resource; see {}", "/api/v1/openapi.json"))),
    };
    match outcome {
        Ok(answer) => tagged(answer, headers),
        Err(problem) => problem.answer(),
    }
}

/// Gives the answer a tag by its content, and leaves the body out where the caller has it already.
fn tagged(mut answer: Answer, headers: &HeaderMap) -> Answer {
    use std::hash::{BuildHasher as _, Hasher as _};
    let Some(Written(body)) = answer.extensions().get::<Written>() else { return answer };
    let mut hasher = foldhash::quality::FixedState::with_seed(0).build_hasher();
    hasher.write(body);
    let tag = format!("\"{:016x}\"", hasher.finish());
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).unwrap_or("");
    let same =
        known.split(',').any(|known| known.trim().trim_start_matches("W/") == tag || known.trim() == "*");
    if same {
        let headers = std::mem::take(answer.headers_mut());
        answer = with_body(StatusCode::NOT_MODIFIED, "application/json", "");
        *answer.headers_mut() = headers;
        answer.headers_mut().remove(header::CONTENT_TYPE);
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    answer
}

/// The bytes of an answer, beside its body.
#[derive(Clone)]
struct Written(Bytes);

fn json(body: &impl Serialize) -> Replied<Answer> {
    let body = serde_json::to_vec(body).map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("failed to write JSON: {error}"))
    })?;
    let body = Bytes::from(body);
    let mut answer = with_body(StatusCode::OK, "application/json", body.clone());
    answer.extensions_mut().insert(Written(body));
    Ok(answer)
}

fn of_store(error: StoreError) -> Problem {
    let StoreError::File(why) = error;
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("the store can't be read: {why}"))
}

const OF_FLOWS: &[&str] = &[
    "operation",
    "startTime",
    "endTime",
    "environment",
    "status",
    "service",
    "namespace",
    "minDuration",
    "page",
    "pageSize",
];

/// What lists of flows and traces may be asked for.
fn found(app: &App, query: Option<&str>) -> Replied<(Found, super::query::Page)> {
    let mut params = Params::read(query, OF_FLOWS, app.now());
    let (start_unix_nanos, end_unix_nanos) = params.interval();
    let (page, status, min_duration_nanos) = (params.page(), params.status(), params.min_duration_nanos());
    let wanted = TraceQuery {
        operation: params.text("operation"),
        service: params.text("service"),
        namespace: params.text("namespace"),
        environment: params.text("environment"),
        status,
        start_unix_nanos,
        end_unix_nanos,
        min_duration_nanos,
        limit: page.limit(),
        offset: page.offset(),
    };
    params.finish()?;
    let found = app.engine.find(&wanted).map_err(of_store)?;
    Ok((found, page))
}

fn traces(app: &App, query: Option<&str>) -> Replied<Answer> {
    let (found, page) = found(app, query)?;
    json(&answers::Traces {
        traces: found.traces.iter().map(answers::TraceInList::of).collect(),
        total: found.total,
        total_is_bound: found.more,
        page: page.number,
        page_size: page.size,
    })
}

/// Graphs of operations that one answer needs, each asked for once.
#[derive(Default)]
struct Graphs(HashMap<(String, String), Arc<numbers::Graph>>);

impl Graphs {
    fn of(&mut self, app: &App, operation: &str, environment: &str, at_unix_nanos: u64) -> &numbers::Graph {
        self.0.entry((operation.to_owned(), environment.to_owned())).or_insert_with(|| {
            let set = |text: &'_ str| !text.is_empty();
            let filter = Filter {
                operation: set(operation).then_some(operation),
                environment: set(environment).then_some(environment),
                ..Filter::default()
            };
            let end_unix_nanos = at_unix_nanos.saturating_add(AROUND_NANOS).min(app.now().saturating_add(1));
            let start_unix_nanos = at_unix_nanos.saturating_sub(AROUND_NANOS).min(end_unix_nanos);
            app.engine.numbers().graph(&filter, Window { start_unix_nanos, end_unix_nanos })
        })
    }
}

fn flows(app: &App, query: Option<&str>) -> Replied<Answer> {
    let (found, page) = found(app, query)?;
    let mut graphs = Graphs::default();
    let mut flows = Vec::with_capacity(found.traces.len());
    for summary in &found.traces {
        let spans = app.engine.trace(summary.trace_id).map_err(of_store)?.unwrap_or_default();
        let assembled = Assembled::new(spans);
        let around = graphs.of(app, &summary.operation, &summary.environment, summary.start_unix_nanos);
        let graph = joined(&graph::draw(&assembled), around);
        let trace_id = hex(&summary.trace_id);
        flows.push(answers::FlowInList {
            flow_id: format!("flow-{trace_id}"),
            operation_name: summary.operation.clone(),
            trace_id,
            start_time: summary.start_unix_nanos,
            end_time: summary.end_unix_nanos,
            start_time_nanos: summary.start_unix_nanos.to_string(),
            duration: summary.end_unix_nanos.saturating_sub(summary.start_unix_nanos),
            nodes: graph.nodes,
            edges: graph.edges,
            status: outcome(summary.status),
            metadata: metadata(summary),
        });
    }
    json(&answers::Flows {
        flows,
        total: found.total,
        total_is_bound: found.more,
        page: page.number,
        page_size: page.size,
    })
}

fn metadata(summary: &TraceSummary) -> answers::FlowMetadata {
    answers::FlowMetadata {
        environment: summary.environment.clone(),
        operation_name: summary.operation.clone(),
        ui_event: (!summary.ui_event.is_empty()).then(|| summary.ui_event.clone()),
        total_duration: summary.end_unix_nanos.saturating_sub(summary.start_unix_nanos),
        total_spans: u64::from(summary.span_count),
        error_count: u64::from(summary.error_count),
    }
}

/// The graph of one flow, with the operation's numbers at each node and edge. What the operation has no numbers of
/// has the flow's own.
fn joined(own: &graph::Graph, around: &numbers::Graph) -> answers::Graph {
    let ids: HashMap<(&str, &str), &numbers::Node> =
        around.nodes.iter().map(|node| ((node.name.as_str(), node.namespace.as_str()), node)).collect();
    let known = |id: &Id| ids.get(&(id.name.as_str(), id.namespace.as_str())).copied();
    let several = |id: &Id| own.nodes.iter().filter(|node| node.id.name == id.name).count() > 1;
    let name = |id: &Id| match known(id) {
        Some(node) => node.id.clone(),
        None if several(id) && !id.namespace.is_empty() => format!("{}.{}", id.name, id.namespace),
        None => id.name.clone(),
    };
    let nodes = own.nodes.iter().map(|node| of_node(node, name(&node.id), known(&node.id))).collect();
    let edges =
        own.edges.iter().map(|edge| of_edge(edge, name(&edge.from), name(&edge.to), around)).collect();
    answers::Graph { nodes, edges }
}

fn mean_ms(nanos: u64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { ms(nanos as f64 / count as f64 / 1e6) }
}

fn of_node(node: &graph::Node, id: String, known: Option<&numbers::Node>) -> answers::FlowNode {
    let avg_latency = mean_ms(node.nanos, node.requests);
    let own = answers::NodeSelf {
        span_count: node.spans,
        request_count: node.requests,
        error_count: node.errors,
        avg_latency,
    };
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let service = answers::ServiceInfo {
        name: node.id.name.clone(),
        namespace: node.id.namespace.clone(),
        pod: node.pods.first().cloned().unwrap_or_default(),
        version: some(&node.version),
        deployment: some(&node.deployment),
    };
    let kind = node.kind.as_str();
    match known {
        Some(known) => {
            let node = answers::FlowNode::of(known);
            answers::FlowNode { id, service, kind, own: Some(own), ..node }
        }
        None => {
            let metrics = answers::Metrics {
                request_count: node.requests,
                error_count: node.errors,
                avg_latency,
                p50_latency: avg_latency,
                p95_latency: avg_latency,
                p99_latency: avg_latency,
                estimated: true,
            };
            let status =
                if node.requests > 0 && node.errors == node.requests { "degraded" } else { "healthy" };
            answers::FlowNode {
                id,
                kind,
                service,
                metrics,
                status,
                request_rate: None,
                own: Some(own),
                place: None,
            }
        }
    }
}

fn of_edge(edge: &graph::Edge, from: String, to: String, around: &numbers::Graph) -> answers::FlowEdge {
    let avg_latency = mean_ms(edge.nanos, edge.calls);
    let own = answers::EdgeSelf {
        call_count: edge.calls,
        error_count: edge.errors,
        avg_latency,
        retry_count: edge.retries,
    };
    // Between services a message goes through its topic, which is a node of the operation's graph.
    let through = format!("topic:{}", edge.topic);
    let known = around.edges.iter().find(|known| {
        known.to == to && (known.from == from || (!edge.topic.is_empty() && known.from == through))
    });
    let lag = (edge.lag_nanos > 0 && edge.calls > 0).then(|| answers::EdgeLag {
        subscription: None,
        messages: edge.calls,
        avg: mean_ms(edge.lag_nanos, edge.calls),
        p50: None,
        p95: None,
        p99: None,
    });
    let messages = matches!(edge.provenance, crate::trace::Provenance::Async) || !edge.topic.is_empty();
    let told = known.map(answers::FlowEdge::of);
    let of_flow = answers::FlowEdge {
        from: from.clone(),
        to: to.clone(),
        call_count: edge.calls,
        error_rate: if edge.calls == 0 { 0.0 } else { share(edge.errors as f64 / edge.calls as f64) },
        avg_latency,
        p95_latency: None,
        retry_count: edge.retries,
        kind: if messages { "deliver" } else { "request" },
        provenance: edge.provenance.as_str(),
        estimated: true,
        unanswered: None,
        topic: (!edge.topic.is_empty()).then(|| edge.topic.clone()),
        lag: lag.into_iter().collect(),
        own: Some(own.clone()),
        passes: Vec::new(),
    };
    match told {
        Some(told) => answers::FlowEdge {
            from,
            to,
            provenance: of_flow.provenance,
            topic: of_flow.topic,
            lag: if told.lag.is_empty() { of_flow.lag } else { told.lag.clone() },
            own: Some(own),
            ..told
        },
        None => of_flow,
    }
}

fn trace_id(text: &str) -> Replied<TraceId> {
    let id = crate::span::trace_id(text.strip_prefix("flow-").unwrap_or(text));
    if let Some(id) = id {
        return Ok(id);
    }
    Err(Problem::new(
        StatusCode::BAD_REQUEST,
        "the id in the path: want 32 hexadecimal digits, or flow- and 32 of them",
    ))
}

/// A trace that was asked for by its id.
struct Whole {
    id: TraceId,
    assembled: Assembled,
    summary: TraceSummary,
}

fn whole(app: &App, id: &str, query: Option<&str>) -> Replied<Whole> {
    Params::read(query, &[], app.now()).finish()?;
    let id = trace_id(id)?;
    let spans = app.engine.trace(id).map_err(of_store)?.filter(|spans| !spans.is_empty());
    let spans = spans.ok_or_else(|| {
        Problem::not_found(format!(
            "no spans of trace {} are kept: it never came, was not sampled, or is too old",
            hex(&id)
        ))
    })?;
    let assembled = Assembled::new(spans);
    let summary = summary(id, &assembled);
    Ok(Whole { id, assembled, summary })
}

/// What a trace came to, from its spans.
fn summary(id: TraceId, assembled: &Assembled) -> TraceSummary {
    let root = assembled.root();
    let text = |key: &str| {
        let told = assembled.spans.iter().map(|span| crate::trace::assemble::text(span, key));
        told.into_iter().find(|text| !text.is_empty()).unwrap_or("").to_owned()
    };
    let errors = assembled.spans.iter().filter(|span| graph::is_error(span)).count();
    let has_root = assembled.notes.contains(&Note::Root);
    let failed = if has_root { root.is_some_and(graph::is_error) } else { errors > 0 };
    let timed_out = |span: &Span| findings::timed_out(span);
    let status = match failed {
        false => Outcome::Success,
        true if root.is_some_and(timed_out) => Outcome::Timeout,
        true => Outcome::Error,
    };
    let mut services: Vec<(String, String)> = assembled
        .spans
        .iter()
        .map(|span| (span.service.name.clone(), span.service.namespace.clone()))
        .collect();
    services.sort();
    services.dedup();
    let environment = assembled.spans.iter().map(|span| span.service.environment.as_str());
    let start = assembled.spans.iter().map(|span| span.start_unix_nanos).min().unwrap_or(0);
    let end = assembled.spans.iter().map(|span| span.end_unix_nanos).max().unwrap_or(0);
    TraceSummary {
        trace_id: id,
        operation: text("app.operation.name"),
        ui_event: text("ui.event"),
        environment: root
            .map(|root| root.service.environment.as_str())
            .filter(|text| !text.is_empty())
            .or_else(|| environment.into_iter().find(|text| !text.is_empty()))
            .unwrap_or("")
            .to_owned(),
        root_service: root.map(|root| root.service.name.clone()).unwrap_or_default(),
        root_name: root.map(|root| root.name.clone()).unwrap_or_default(),
        has_root,
        start_unix_nanos: start,
        end_unix_nanos: end.max(start),
        status,
        span_count: u32::try_from(assembled.spans.len()).unwrap_or(u32::MAX),
        error_count: u32::try_from(errors).unwrap_or(u32::MAX),
        services,
    }
}

fn examined(app: &App, assembled: &Assembled) -> Vec<Said> {
    let called = Called::new(app);
    let is_called = |id: &Id| called.is(id);
    doctor::examine(assembled, &around(app, &is_called))
}

fn around<'a>(app: &App, is_called: &'a dyn Fn(&Id) -> bool) -> Around<'a> {
    Around { now_unix_nanos: app.now(), late_nanos: app.late_nanos, is_called }
}

/// Services whose requests are counted, looked up when somebody asks.
struct Called<'a> {
    app: &'a App,
    rows: std::cell::OnceCell<Arc<Vec<numbers::ServiceRow>>>,
}

impl<'a> Called<'a> {
    fn new(app: &'a App) -> Self {
        Self { app, rows: std::cell::OnceCell::new() }
    }

    fn is(&self, id: &Id) -> bool {
        let rows = self.rows.get_or_init(|| {
            let end_unix_nanos = self.app.now().saturating_add(1);
            let start_unix_nanos = end_unix_nanos.saturating_sub(2 * AROUND_NANOS);
            let window = Window { start_unix_nanos, end_unix_nanos };
            self.app.engine.numbers().services(&Filter::default(), window)
        });
        rows.iter()
            .any(|row| row.name == id.name && row.namespace == id.namespace && row.figures.requests > 0)
    }
}

fn of_finding(assembled: &Assembled, finding: findings::Finding) -> answers::Finding {
    let id = |place: usize| assembled.spans.get(place).map(|span| hex(&span.span_id)).unwrap_or_default();
    answers::Finding {
        kind: finding.what.as_str(),
        service: assembled.spans.get(finding.place).map(|span| span.service.name.clone()).unwrap_or_default(),
        span_id: id(finding.place),
        span_ids: finding.calls.iter().map(|place| id(*place)).collect(),
        count: finding.count,
        wasted_ms: ms(finding.wasted_nanos as f64 / 1e6),
        text: finding.text,
    }
}

fn of_said(assembled: Option<&Assembled>, said: Said) -> answers::Verdict {
    let span = said.hop.place.and_then(|place| assembled?.spans.get(place));
    answers::Verdict {
        verdict: said.verdict.as_str(),
        hop: answers::HopInfo {
            from: said.hop.from.name,
            to: said.hop.to.name,
            route: said.hop.route,
            span_id: span.map(|span| hex(&span.span_id)),
        },
        reason: said.reason,
        fix: said.fix,
        count: None,
        trace_id: None,
    }
}

fn flow(app: &App, id: &str, query: Option<&str>) -> Replied<Answer> {
    let Whole { id, assembled, summary } = whole(app, id, query)?;
    let own = graph::draw(&assembled);
    let mut graphs = Graphs::default();
    let around = graphs.of(app, &summary.operation, &summary.environment, summary.start_unix_nanos);
    let trace_id = hex(&id);
    let links = own.elsewhere.iter().filter_map(|link| {
        let from = assembled.spans.get(link.place)?;
        Some(answers::LinkOut {
            from_span_id: hex(&from.span_id),
            trace_id: hex(&link.trace_id),
            span_id: hex(&link.span_id),
        })
    });
    json(&answers::Flow {
        flow_id: format!("flow-{trace_id}"),
        operation_name: summary.operation.clone(),
        trace_id,
        start_time: summary.start_unix_nanos,
        end_time: summary.end_unix_nanos,
        start_time_nanos: summary.start_unix_nanos.to_string(),
        duration: summary.end_unix_nanos - summary.start_unix_nanos,
        status: outcome(summary.status),
        graph: joined(&own, around).placed(),
        metadata: metadata(&summary),
        findings: findings::find(&assembled).into_iter().map(|found| of_finding(&assembled, found)).collect(),
        doctor: examined(app, &assembled).into_iter().map(|said| of_said(Some(&assembled), said)).collect(),
        links: links.collect(),
    })
}

fn trace(app: &App, id: &str, query: Option<&str>) -> Replied<Answer> {
    let Whole { id, mut assembled, summary } = whole(app, id, query)?;
    let critical_path = critical::path(&assembled).into_iter().filter_map(|piece| {
        let span = assembled.spans.get(piece.place)?;
        Some(answers::PieceInfo {
            span_id: hex(&span.span_id),
            start_time: piece.start_unix_nanos,
            duration: piece.end_unix_nanos - piece.start_unix_nanos,
        })
    });
    let critical_path = critical_path.collect();
    let findings =
        findings::find(&assembled).into_iter().map(|found| of_finding(&assembled, found)).collect();
    let doctor = examined(app, &assembled).into_iter().map(|said| of_said(Some(&assembled), said)).collect();
    let said = |key: &str| {
        let text = assembled.spans.iter().map(|span| crate::trace::assemble::text(span, key));
        text.into_iter().find(|text| !text.is_empty()).map(str::to_owned)
    };
    let metadata = answers::TraceMetadata {
        environment: summary.environment.clone(),
        user: said("user.id").or_else(|| said("enduser.id")),
        session_id: said("session.id"),
    };
    let order = assembled.preorder();
    let mut spans: Vec<Option<Span>> = std::mem::take(&mut assembled.spans).into_iter().map(Some).collect();
    let spans = order.into_iter().filter_map(|place| {
        let span = spans.get_mut(place)?.take()?;
        let note = match assembled.notes.get(place)? {
            Note::Root | Note::Child => None,
            Note::Orphan(_) => Some("orphan"),
            Note::Cycle => Some("cycle"),
        };
        Some(answers::SpanInfo::of(span, assembled.skews.get(place).copied().unwrap_or(0), note))
    });
    json(&answers::Trace {
        trace_id: hex(&id),
        operation_name: summary.operation,
        ui_event: (!summary.ui_event.is_empty()).then_some(summary.ui_event),
        start_time: summary.start_unix_nanos,
        end_time: summary.end_unix_nanos,
        start_time_nanos: summary.start_unix_nanos.to_string(),
        duration: summary.end_unix_nanos - summary.start_unix_nanos,
        status: outcome(summary.status),
        spans: spans.collect(),
        metadata,
        critical_path,
        findings,
        doctor,
        duplicate_spans: assembled.duplicates,
    })
}

fn dependencies(app: &App, query: Option<&str>) -> Replied<Answer> {
    let known = ["namespace", "service", "environment", "operation", "startTime", "endTime"];
    let mut params = Params::read(query, &known, app.now());
    let window = params.window();
    let [namespace, service, environment, operation] =
        ["namespace", "service", "environment", "operation"].map(|name| params.text(name));
    params.finish()?;
    let filter = Filter {
        environment: environment.as_deref(),
        operation: operation.as_deref(),
        namespace: namespace.as_deref(),
        service: service.as_deref(),
    };
    let graph = app.engine.numbers().graph(&filter, window);
    let nodes = graph.nodes.iter().map(answers::FlowNode::of).collect();
    let edges = graph.edges.iter().map(answers::FlowEdge::of).collect();
    let answers::Graph { nodes, edges } = answers::Graph { nodes, edges }.placed();
    json(&answers::Dependencies {
        nodes,
        edges,
        metadata: answers::DependenciesMetadata {
            namespace: namespace.unwrap_or_default(),
            service: service.unwrap_or_default(),
            last_updated: Some(graph.last_updated_unix_nanos).filter(|at| *at > 0).map(rfc3339),
            environment: environment.unwrap_or_default(),
            period: answers::Period::of(window),
        },
    })
}

fn operations(app: &App, query: Option<&str>) -> Replied<Answer> {
    let mut params = Params::read(query, &["environment", "startTime", "endTime"], app.now());
    let (window, environment) = (params.window(), params.text("environment"));
    params.finish()?;
    let rows = app.engine.numbers().operations(environment.as_deref(), window);
    let operations = rows.iter().map(|row| answers::Operation {
        count: row.figures.requests,
        error_rate: share(row.figures.error_rate()),
        avg_latency: ms(row.figures.avg_ms),
        p50_latency: ms(row.figures.p50_ms),
        p95_latency: ms(row.figures.p95_ms),
        p99_latency: ms(row.figures.p99_ms),
        estimated: row.figures.estimated,
        last_seen: rfc3339(row.last_seen_unix_nanos),
        name: row.name.clone(),
        environment: row.environment.clone(),
    });
    json(&answers::Operations { operations: operations.collect() })
}

fn stats(app: &App, name: &str, query: Option<&str>) -> Replied<Answer> {
    let mut params = Params::read(query, &["environment", "startTime", "endTime"], app.now());
    let (window, environment) = (params.window(), params.text("environment"));
    params.finish()?;
    let filter = Filter { environment: environment.as_deref(), operation: Some(name), ..Filter::default() };
    let stats = app.engine.numbers().stats(&filter, window).ok_or_else(|| unknown_operation(name))?;
    let figures = &stats.figures;
    json(&answers::OperationStats {
        operation_name: name.to_owned(),
        period: answers::Period::of(window),
        stats: answers::Stats {
            total_requests: figures.requests,
            success_count: figures.requests.saturating_sub(figures.errors),
            error_count: figures.errors,
            timeout_count: figures.timeouts,
            retry_count: stats.retries,
            avg_latency: ms(figures.avg_ms),
            p50_latency: ms(figures.p50_ms),
            p95_latency: ms(figures.p95_ms),
            p99_latency: ms(figures.p99_ms),
            estimated: figures.estimated,
            services: stats
                .services
                .iter()
                .map(|share| answers::ServiceShare {
                    name: share.name.clone(),
                    namespace: share.namespace.clone(),
                    request_count: share.figures.requests,
                    error_count: share.figures.errors,
                    avg_latency: ms(share.figures.avg_ms),
                })
                .collect(),
            routes: stats
                .routes
                .iter()
                .map(|share| answers::RouteShare {
                    service: share.service.clone(),
                    namespace: share.namespace.clone(),
                    route: share.route.clone(),
                    request_count: share.figures.requests,
                    error_count: share.figures.errors,
                    avg_latency: ms(share.figures.avg_ms),
                    p95_latency: ms(share.figures.p95_ms),
                })
                .collect(),
            errors: stats
                .errors
                .iter()
                .map(|(error_type, count)| answers::ErrorShare {
                    error_type: error_type.clone(),
                    count: *count,
                })
                .collect(),
        },
    })
}

fn unknown_operation(name: &str) -> Problem {
    let name: String = name.chars().take(128).collect();
    Problem::not_found(format!("no request of operation {name} was counted in this time"))
}

fn operation_graph(app: &App, name: &str, query: Option<&str>) -> Replied<Answer> {
    let known = ["environment", "namespace", "service", "startTime", "endTime"];
    let mut params = Params::read(query, &known, app.now());
    let window = params.window();
    let [environment, namespace, service] =
        ["environment", "namespace", "service"].map(|name| params.text(name));
    params.finish()?;
    let filter = Filter {
        environment: environment.as_deref(),
        operation: Some(name),
        namespace: namespace.as_deref(),
        service: service.as_deref(),
    };
    let graph = app.engine.numbers().graph(&filter, window);
    if graph.nodes.is_empty() {
        return Err(unknown_operation(name));
    }
    json(&answers::OperationGraph {
        operation_name: name.to_owned(),
        period: answers::Period::of(window),
        graph: answers::Graph {
            nodes: graph.nodes.iter().map(answers::FlowNode::of).collect(),
            edges: graph.edges.iter().map(answers::FlowEdge::of).collect(),
        }
        .placed(),
        last_updated: rfc3339(graph.last_updated_unix_nanos),
    })
}

fn metrics_of(row: &numbers::ServiceRow) -> answers::ServiceMetrics {
    answers::ServiceMetrics {
        request_rate: share(row.request_rate),
        error_rate: share(row.figures.error_rate()),
        avg_latency: ms(row.figures.avg_ms),
        p50_latency: ms(row.figures.p50_ms),
        p95_latency: ms(row.figures.p95_ms),
        p99_latency: ms(row.figures.p99_ms),
        request_count: row.figures.requests,
        error_count: row.figures.errors,
        estimated: row.figures.estimated,
    }
}

fn services(app: &App, query: Option<&str>) -> Replied<Answer> {
    let known = ["namespace", "environment", "startTime", "endTime"];
    let mut params = Params::read(query, &known, app.now());
    let window = params.window();
    let [namespace, environment] = ["namespace", "environment"].map(|name| params.text(name));
    params.finish()?;
    let filter = Filter { environment: environment.as_deref(), ..Filter::default() };
    let rows = app.engine.numbers().services(&filter, window);
    let wanted =
        |row: &&numbers::ServiceRow| namespace.as_deref().is_none_or(|wanted| row.namespace == wanted);
    let services = rows.iter().filter(wanted).map(|row| answers::ServiceInList {
        name: row.name.clone(),
        namespace: row.namespace.clone(),
        environment: row.environment.clone(),
        pod_count: row.pods.len(),
        version: row.version.clone(),
        status: row.health.as_str(),
        metrics: metrics_of(row),
        last_seen: rfc3339(row.last_seen_unix_nanos),
    });
    json(&answers::Services { services: services.collect() })
}

fn service(app: &App, name: &str, query: Option<&str>) -> Replied<Answer> {
    let known = ["namespace", "environment", "startTime", "endTime"];
    let mut params = Params::read(query, &known, app.now());
    let window = params.window();
    let [namespace, environment] = ["namespace", "environment"].map(|name| params.text(name));
    params.finish()?;
    let filter = Filter { environment: environment.as_deref(), ..Filter::default() };
    let rows = app.engine.numbers().services(&filter, window);
    let row = rows
        .iter()
        .find(|row| row.name == name && namespace.as_deref().is_none_or(|wanted| row.namespace == wanted));
    let row = row.ok_or_else(|| {
        let name: String = name.chars().take(128).collect();
        Problem::not_found(format!("no service {name} was heard of in this time"))
    })?;
    let doctor = prescriptions(app, window, &Filter { service: Some(name), ..filter })?;
    let mine = doctor.services.into_iter().find(|of| of.name == row.name && of.namespace == row.namespace);
    let (verdicts, routes) = mine.map(|of| (of.verdicts, of.routes)).unwrap_or_default();
    let now = app.now();
    json(&answers::ServiceAnswer {
        service: answers::ServiceDetails {
            pods: row
                .pods
                .iter()
                .map(|pod| answers::PodInfo {
                    name: pod.name.clone(),
                    node: pod.node.clone(),
                    status: if now.saturating_sub(pod.last_seen_unix_nanos) < RUNNING_NANOS {
                        "Running"
                    } else {
                        "Unknown"
                    },
                    version: pod.version.clone(),
                    last_seen: rfc3339(pod.last_seen_unix_nanos),
                })
                .collect(),
            dependencies: answers::ServiceDependencies {
                upstream: row.upstream.clone(),
                downstream: row.downstream.clone(),
            },
            metrics: metrics_of(row),
            status: row.health.as_str(),
            last_seen: rfc3339(row.last_seen_unix_nanos),
            name: row.name.clone(),
            namespace: row.namespace.clone(),
            environment: row.environment.clone(),
            version: row.version.clone(),
            doctor: verdicts,
            propagation: routes,
        },
    })
}

fn all_services(app: &App, query: Option<&str>) -> Replied<Answer> {
    let known = ["namespace", "service", "environment", "startTime", "endTime"];
    let mut params = Params::read(query, &known, app.now());
    let window = params.window();
    let [namespace, service, environment] =
        ["namespace", "service", "environment"].map(|name| params.text(name));
    params.finish()?;
    let filter = Filter {
        environment: environment.as_deref(),
        namespace: namespace.as_deref(),
        service: service.as_deref(),
        operation: None,
    };
    json(&prescriptions(app, window, &filter)?)
}

/// What sidecars count of the context by service and route, and verdicts of recent traces.
fn prescriptions(app: &App, window: Window, filter: &Filter<'_>) -> Replied<answers::Doctor> {
    let mut services: Vec<answers::DoctorOfService> = Vec::new();
    let told = app.engine.numbers().propagation(filter, window);
    let of_all = Filter { environment: filter.environment, ..Filter::default() };
    let rows = app.engine.numbers().services(&of_all, window);
    services.extend(told.iter().map(|told| {
        let is = |row: &&numbers::ServiceRow| {
            (&row.name, &row.namespace, &row.environment)
                == (&told.service, &told.namespace, &told.environment)
        };
        of_propagation(told, rows.iter().find(is).map_or(0, |row| row.figures.requests))
    }));
    let query = TraceQuery {
        service: filter.service.map(str::to_owned),
        namespace: filter.namespace.map(str::to_owned),
        environment: filter.environment.map(str::to_owned),
        start_unix_nanos: window.start_unix_nanos,
        end_unix_nanos: window.end_unix_nanos,
        limit: EXAMINED_MAX,
        ..TraceQuery::default()
    };
    let found = app.engine.find(&query).map_err(of_store)?;
    let called = Called::new(app);
    let is_called = |id: &Id| called.is(id);
    let around = around(app, &is_called);
    for summary in &found.traces {
        let Some(spans) = app.engine.trace(summary.trace_id).map_err(of_store)? else { continue };
        let assembled = Assembled::new(spans);
        for said in doctor::examine(&assembled, &around) {
            add(&mut services, &assembled, said, summary);
        }
    }
    let wanted = |of: &answers::DoctorOfService| {
        filter.service.is_none_or(|name| of.name == name)
            && filter.namespace.is_none_or(|namespace| of.namespace == namespace)
    };
    services.retain(wanted);
    services.iter_mut().for_each(leave_out_what_one_side_alone_says);
    services.sort_by(|one, other| (&one.name, &one.namespace).cmp(&(&other.name, &other.namespace)));
    Ok(answers::Doctor { services, traces_examined: found.traces.len(), period: answers::Period::of(window) })
}

/// A verdict of a trace, at the service that it is about.
fn add(
    services: &mut Vec<answers::DoctorOfService>,
    assembled: &Assembled,
    said: Said,
    summary: &TraceSummary,
) {
    let about = match said.verdict {
        Verdict::AppDropped | Verdict::AppRestarted => said.hop.from.clone(),
        Verdict::NotInjected | Verdict::SampledOut | Verdict::AsyncUnlinked | Verdict::Late => {
            let place = said.hop.place.and_then(|place| assembled.spans.get(place));
            place.map_or_else(|| said.hop.to.clone(), graph::id_of)
        }
    };
    if said.of_trace_only || about.name.is_empty() {
        return;
    }
    let known = services.iter().position(|of| of.name == about.name && of.namespace == about.namespace);
    let place = known.unwrap_or_else(|| {
        services.push(answers::DoctorOfService {
            name: about.name,
            namespace: about.namespace,
            environment: summary.environment.clone(),
            score: None,
            routes: Vec::new(),
            verdicts: Vec::new(),
        });
        services.len() - 1
    });
    let Some(service) = services.get_mut(place) else { return };
    let said = of_said(Some(assembled), said);
    let same = service.verdicts.iter_mut().find(|known| {
        known.verdict == said.verdict
            && (&known.hop.from, &known.hop.to, &known.hop.route)
                == (&said.hop.from, &said.hop.to, &said.hop.route)
    });
    match same {
        Some(known) => known.count = Some(known.count.unwrap_or(1) + 1),
        None => service.verdicts.push(answers::Verdict {
            count: Some(1),
            trace_id: Some(hex(&summary.trace_id)),
            ..said
        }),
    }
}

/// Of a hundred requests of a service, how many have to lose the context on a route for it to be named. A job in the
/// background whose calls fall into requests seldom does so more often.
const DROPPED_PERCENT_MIN: u64 = 1;

/// Counters and traces can each be wrong alone. Calls of a trace that was over, or of a message that was pulled, count
/// as calls of other traces, and their traces show whose they are. A call of a job falls into a request now and then,
/// and the counters show that the routes hand the context on.
fn leave_out_what_one_side_alone_says(of: &mut answers::DoctorOfService) {
    let said = |verdict: Verdict, by_trace: bool| {
        of.verdicts.iter().any(|said| said.verdict == verdict.as_str() && said.trace_id.is_some() == by_trace)
    };
    let restarted = said(Verdict::AppRestarted, true);
    let dropped = said(Verdict::AppDropped, false) || of.score.is_none();
    of.verdicts.retain(|said| match said.trace_id {
        None => restarted || said.verdict != Verdict::AppRestarted.as_str(),
        Some(_) => dropped || said.verdict != Verdict::AppDropped.as_str(),
    });
}

/// `requests` is how many the service was asked.
fn of_propagation(told: &numbers::Propagation, requests: u64) -> answers::DoctorOfService {
    let score = |forwarded: u64, dropped: u64| match forwarded + dropped {
        0 => None,
        all => Some(share(forwarded as f64 / all as f64)),
    };
    let routes: Vec<answers::RouteScore> = told
        .routes
        .iter()
        .map(|route| answers::RouteScore {
            route: route.route.clone(),
            forwarded: route.forwarded,
            dropped: route.dropped,
            score: score(route.forwarded, route.dropped).unwrap_or(1.0),
        })
        .collect();
    let sum = |of: fn(&numbers::RoutePropagation) -> u64| told.routes.iter().map(of).sum::<u64>();
    let service = &told.service;
    let mut verdicts: Vec<answers::Verdict> = told
        .routes
        .iter()
        .filter(|route| {
            route.dropped > 0 && route.dropped * 100 >= requests * DROPPED_PERCENT_MIN
        })
        .map(|route| answers::Verdict {
            verdict: Verdict::AppDropped.as_str(),
            hop: answers::HopInfo { from: service.clone(), to: String::new(), route: route.route.clone(), span_id: None },
            reason: format!(
                "on {} of {} requests to this route all calls of {service} left without the context",
                route.dropped,
                route.dropped + route.forwarded
            ),
            fix: format!(
                "let {service} copy traceparent (and tracestate, baggage) from the request that it serves to the calls that it makes for it, unless these are jobs of its own"
            ),
            count: Some(route.dropped),
            trace_id: None,
        })
        .collect();
    if told.calls_of_other_traces > 0 {
        verdicts.push(answers::Verdict {
            verdict: Verdict::AppRestarted.as_str(),
            hop: answers::HopInfo { from: service.clone(), to: String::new(), route: String::new(), span_id: None },
            reason: format!(
                "{} calls of {service} carried a context that belongs to no request in flight",
                told.calls_of_other_traces
            ),
            fix: format!(
                "let the tracing library of {service} take up the context of incoming requests (propagator tracecontext), unless these are jobs of its own"
            ),
            count: Some(told.calls_of_other_traces),
            trace_id: None,
        });
    }
    answers::DoctorOfService {
        name: told.service.clone(),
        namespace: told.namespace.clone(),
        environment: told.environment.clone(),
        score: score(sum(|route| route.forwarded), sum(|route| route.dropped)),
        routes,
        verdicts,
    }
}
