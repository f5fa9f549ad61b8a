//! One trace as services and the calls between them. An asynchronous hop is an edge with its topic and its lag; what
//! only the caller's span tells of is an edge too, and says so.

use std::collections::{BTreeMap, HashMap};

use super::assemble::{Assembled, Provenance, Relation, duration, number, relation, text};
use super::findings::{destination, failed};
use crate::span::{Kind, Span, SpanId, Status};
use throughline_core::names::attribute;

/// Links out of one trace that are told.
const ELSEWHERE_MAX: usize = 1000;

/// What stands in a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum NodeKind {
    /// A service that sent spans.
    Service,
    /// Somebody who is called and sent none.
    External,
    /// A database.
    Database,
    /// A topic whose messages nobody here received.
    Topic,
}

impl NodeKind {
    /// As answers name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            NodeKind::Service => "service",
            NodeKind::External => "external",
            NodeKind::Database => "database",
            NodeKind::Topic => "topic",
        }
    }
}

/// Who a node is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Id {
    /// Name.
    pub name: String,
    /// Namespace; empty where none is known.
    pub namespace: String,
}

/// A service, as this trace saw it.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// Who.
    pub id: Id,
    /// What.
    pub kind: NodeKind,
    /// Pods, the first one seen first.
    pub pods: Vec<String>,
    /// Version.
    pub version: String,
    /// Deployment.
    pub deployment: String,
    /// Spans.
    pub spans: u64,
    /// Requests that it served and messages that it took.
    pub requests: u64,
    /// Of them, those that failed.
    pub errors: u64,
    /// Time in them.
    pub nanos: u64,
}

/// Calls between two services, as this trace saw them.
#[derive(Clone, PartialEq, Debug)]
pub struct Edge {
    /// From.
    pub from: Id,
    /// To.
    pub to: Id,
    /// How it is known.
    pub provenance: Provenance,
    /// Calls.
    pub calls: u64,
    /// Of them, those that failed.
    pub errors: u64,
    /// Time of all calls, as the caller saw it.
    pub nanos: u64,
    /// Calls that were made again.
    pub retries: u64,
    /// The topic of messages.
    pub topic: String,
    /// From sending to receiving, all messages together.
    pub lag_nanos: u64,
    /// When the first one began.
    pub first_unix_nanos: u64,
}

/// A link to a span of another trace.
#[derive(Clone, PartialEq, Debug)]
pub struct Elsewhere {
    /// The span's place.
    pub place: usize,
    /// The other trace.
    pub trace_id: crate::span::TraceId,
    /// The other span.
    pub span_id: crate::span::SpanId,
}

/// A trace as a graph.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Graph {
    /// Services, in the order of their first span.
    pub nodes: Vec<Node>,
    /// Edges, in the order of their first call.
    pub edges: Vec<Edge>,
    /// Links that lead out of the trace.
    pub elsewhere: Vec<Elsewhere>,
}

/// Draws the graph of a trace.
#[must_use]
pub fn draw(assembled: &Assembled) -> Graph {
    let mut drawing = Drawing::default();
    let by_id = assembled.spans.iter().map(|span| (span.span_id, span)).collect();
    for (place, span) in assembled.spans.iter().enumerate() {
        drawing.service(span);
        if let Some(parent) = assembled.parent_of(place).and_then(|parent| assembled.spans.get(parent)) {
            drawing.pair(assembled, place, parent, span);
        }
        if !has_callee(assembled, place) {
            drawing.one_sided(span);
        }
        drawing.links(assembled, &by_id, place, span);
    }
    let mut edges: Vec<Edge> = drawing.edges.into_values().collect();
    edges.sort_by(|one, other| {
        (one.first_unix_nanos, &one.from, &one.to).cmp(&(other.first_unix_nanos, &other.from, &other.to))
    });
    Graph { nodes: drawing.nodes, edges, elsewhere: drawing.elsewhere }
}

/// Who sent a span.
#[must_use]
pub fn id_of(span: &Span) -> Id {
    let name = if span.service.name.is_empty() { "unknown_service" } else { &span.service.name };
    Id { name: name.to_owned(), namespace: span.service.namespace.clone() }
}

/// Whether the other side of a call has a span here.
fn has_callee(assembled: &Assembled, place: usize) -> bool {
    let Some(span) = assembled.spans.get(place) else { return false };
    assembled.children_of(place).iter().any(|child| {
        assembled.spans.get(*child).is_some_and(|child| match relation(span, child) {
            Relation::Call | Relation::Message => true,
            // An SDK's span between the sidecar's and the callee's: the one below tells.
            Relation::SameProcess => matches!(child.kind, Kind::Client | Kind::Producer),
        })
    })
}

#[derive(Default)]
struct Drawing {
    nodes: Vec<Node>,
    places: BTreeMap<Id, usize>,
    edges: BTreeMap<(Id, Id, Provenance, String), Edge>,
    elsewhere: Vec<Elsewhere>,
}

impl Drawing {
    fn node(&mut self, id: &Id, kind: NodeKind) -> Option<&mut Node> {
        let place = match self.places.get(id) {
            Some(place) => *place,
            None => {
                self.nodes.push(Node {
                    id: id.clone(),
                    kind,
                    pods: Vec::new(),
                    version: String::new(),
                    deployment: String::new(),
                    spans: 0,
                    requests: 0,
                    errors: 0,
                    nanos: 0,
                });
                self.places.insert(id.clone(), self.nodes.len() - 1);
                self.nodes.len() - 1
            }
        };
        self.nodes.get_mut(place)
    }

    fn service(&mut self, span: &Span) {
        let Some(node) = self.node(&id_of(span), NodeKind::Service) else { return };
        node.kind = NodeKind::Service; // it may have been met as somebody who is called
        node.spans += 1;
        let service = &span.service;
        if !service.pod.is_empty() && !node.pods.contains(&service.pod) {
            node.pods.push(service.pod.clone());
        }
        for (known, told) in
            [(&mut node.version, &service.version), (&mut node.deployment, &service.deployment)]
        {
            if known.is_empty() {
                known.clone_from(told);
            }
        }
        if matches!(span.kind, Kind::Server | Kind::Consumer) {
            node.requests += 1;
            node.errors += u64::from(is_error(span));
            node.nanos = node.nanos.saturating_add(duration(span));
        }
    }

    fn edge(&mut self, key: (Id, Id, Provenance, &str), at: u64) -> &mut Edge {
        let (from, to, provenance, topic) = key;
        let edge = self.edges.entry((from.clone(), to.clone(), provenance, topic.to_owned()));
        edge.or_insert_with(|| Edge {
            from,
            to,
            provenance,
            calls: 0,
            errors: 0,
            nanos: 0,
            retries: 0,
            topic: topic.to_owned(),
            lag_nanos: 0,
            first_unix_nanos: at,
        })
    }

    /// Parent and child of two services, or of one that calls itself.
    fn pair(&mut self, assembled: &Assembled, place: usize, parent: &Span, span: &Span) {
        let (from, to, at) = (id_of(parent), id_of(span), assembled.interval(place).0);
        match relation(parent, span) {
            Relation::SameProcess => {}
            Relation::Call => {
                let caller = if parent.kind == Kind::Client { parent } else { span };
                let edge = self.edge((from, to, Provenance::Proven, ""), at);
                edge.calls += 1;
                edge.errors += u64::from(is_error(caller) || is_error(span));
                edge.nanos = edge.nanos.saturating_add(duration(caller));
                edge.retries += u64::from(is_retry(caller));
            }
            Relation::Message => {
                let age = number(span, attribute::MESSAGE_AGE_MS).and_then(|ms| u64::try_from(ms).ok());
                let apart = span.start_unix_nanos.saturating_sub(parent.start_unix_nanos);
                let lag = age.map_or(apart, |ms| ms.saturating_mul(1_000_000));
                let edge = self.edge((from, to, Provenance::Async, topic(parent, span)), at);
                edge.calls += 1;
                edge.errors += u64::from(is_error(span));
                edge.nanos = edge.nanos.saturating_add(duration(span));
                edge.lag_nanos = edge.lag_nanos.saturating_add(lag);
            }
        }
    }

    /// A call or a message whose other side has no span here.
    fn one_sided(&mut self, span: &Span) {
        let (id, kind) = match span.kind {
            Kind::Client => {
                let name = destination(span);
                let database = text(span, "db.system.name").to_owned() + text(span, "db.system");
                if name.is_empty() {
                    return;
                }
                let kind = if database.is_empty() { NodeKind::External } else { NodeKind::Database };
                let namespace = text(span, attribute::PEER_NAMESPACE).to_owned();
                (Id { name: name.to_owned(), namespace }, kind)
            }
            Kind::Producer => {
                let name = text(span, attribute::MESSAGING_DESTINATION);
                if name.is_empty() {
                    return;
                }
                (Id { name: name.to_owned(), namespace: String::new() }, NodeKind::Topic)
            }
            Kind::Unspecified | Kind::Internal | Kind::Server | Kind::Consumer => return,
        };
        let provenance = if kind == NodeKind::Topic { Provenance::Async } else { Provenance::Inferred };
        let _ = self.node(&id, kind);
        let topic = if kind == NodeKind::Topic { id.name.clone() } else { String::new() };
        let edge = self.edge((id_of(span), id, provenance, &topic), span.start_unix_nanos);
        edge.calls += 1;
        edge.errors += u64::from(is_error(span));
        edge.nanos = edge.nanos.saturating_add(duration(span));
        edge.retries += u64::from(is_retry(span));
    }

    fn links(&mut self, assembled: &Assembled, by_id: &HashMap<SpanId, &Span>, place: usize, span: &Span) {
        for link in &span.links {
            if link.trace_id != span.trace_id {
                if self.elsewhere.len() >= ELSEWHERE_MAX {
                    continue;
                }
                self.elsewhere.push(Elsewhere { place, trace_id: link.trace_id, span_id: link.span_id });
                continue;
            }
            let linked = by_id.get(&link.span_id).copied();
            let parent = assembled.parent_of(place).and_then(|parent| assembled.spans.get(parent));
            let Some(linked) =
                linked.filter(|linked| parent.map(|parent| parent.span_id) != Some(linked.span_id))
            else {
                continue;
            };
            let (from, to) = (id_of(linked), id_of(span));
            if from != to {
                let edge =
                    self.edge((from, to, Provenance::Link, topic(linked, span)), span.start_unix_nanos);
                edge.calls += 1;
                edge.errors += u64::from(is_error(span));
            }
        }
    }
}

fn topic<'a>(sent: &'a Span, received: &'a Span) -> &'a str {
    let topics =
        [text(sent, attribute::MESSAGING_DESTINATION), text(received, attribute::MESSAGING_DESTINATION)];
    topics.into_iter().find(|topic| !topic.is_empty()).unwrap_or("")
}

/// Whether a span failed.
#[must_use]
pub fn is_error(span: &Span) -> bool {
    span.status == Status::Error || (span.status == Status::Unset && failed(span))
}

fn is_retry(span: &Span) -> bool {
    number(span, "http.request.resend_count").is_some_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::super::assemble::tests::span;
    use super::*;
    use crate::span::{Link, Value};

    fn with(mut span: Span, key: &str, value: Value) -> Span {
        span.attributes.push((key.to_owned(), value));
        span
    }

    fn edges(spans: Vec<Span>) -> Vec<String> {
        let graph = draw(&Assembled::new(spans));
        let of = |edge: &Edge| {
            let Edge { from, to, provenance, calls, errors, topic, lag_nanos, .. } = edge;
            let lag = lag_nanos / 1_000_000;
            format!("{} {} {} {calls} {errors} {topic} {lag}", from.name, provenance.as_str(), to.name)
        };
        graph.edges.iter().map(of).collect()
    }

    #[test]
    fn a_pair_of_spans_proves_an_edge() {
        let mut failing = span("orders", 5, 4, Kind::Server, 62, 80);
        failing.status = Status::Error;
        let spans = vec![
            span("web", 1, 0, Kind::Server, 0, 100),
            span("web", 2, 1, Kind::Client, 10, 50),
            span("orders", 3, 2, Kind::Server, 12, 48),
            span("web", 4, 1, Kind::Client, 60, 90),
            failing,
        ];
        assert_eq!(edges(spans), ["web proven orders 2 1  0"]);
    }

    #[test]
    fn a_message_is_an_edge_with_its_topic_and_lag() {
        let sent = with(
            span("orders", 1, 0, Kind::Producer, 0, 3),
            attribute::MESSAGING_DESTINATION,
            Value::Text("order.placed".to_owned()),
        );
        let taken = with(
            span("shipping", 2, 1, Kind::Consumer, 250, 300),
            attribute::MESSAGE_AGE_MS,
            Value::Int(247),
        );
        assert_eq!(edges(vec![sent.clone(), taken]), ["orders async shipping 1 0 order.placed 247"]);
        assert_eq!(edges(vec![sent]), ["orders async order.placed 1 0 order.placed 0"]);
    }

    #[test]
    fn what_only_the_caller_tells_is_inferred() {
        let call = with(
            span("web", 2, 0, Kind::Client, 10, 50),
            attribute::SERVER_ADDRESS,
            Value::Text("api.example.com".to_owned()),
        );
        assert_eq!(edges(vec![call.clone()]), ["web inferred api.example.com 1 0  0"]);
        // The application's own SDK between two of ours: one edge.
        let outer =
            with(span("web", 1, 0, Kind::Client, 5, 60), attribute::SERVER_ADDRESS, Value::Text("x".into()));
        let inner = Span { parent: Some(outer.span_id), ..call };
        assert_eq!(edges(vec![outer, inner]), ["web inferred api.example.com 1 0  0"]);
    }

    #[test]
    fn links_are_edges_within_the_trace_and_told_where_they_lead_out() {
        let one = span("a", 1, 0, Kind::Producer, 0, 3);
        let mut two = span("b", 2, 0, Kind::Consumer, 5, 9);
        let here = Link { trace_id: [7; 16], span_id: one.span_id, attributes: Vec::new() };
        two.links = vec![here.clone(), Link { trace_id: [8; 16], ..here }];
        let graph = draw(&Assembled::new(vec![one, two]));
        assert_eq!(graph.edges.len(), 1);
        assert_eq!((graph.edges[0].provenance, graph.elsewhere.len()), (Provenance::Link, 1));
    }
}
