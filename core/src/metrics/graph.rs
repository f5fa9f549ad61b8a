//! The request metrics added up as Grafana reads them: by pairs of services, and by the names of spans. Made of the
//! exact numbers when somebody looks, so an exchange pays nothing for them. Bounded on its own; what is over a bound
//! counts as `_other`.

use std::collections::HashMap;

use super::{DURATIONS, GRPC, Histogram, Requests, method_of};
use crate::classify::Direction;
use crate::hash::Seeded;
use crate::intern::Interner;
use crate::limits::{METRIC_EDGES_MAX, METRIC_SPAN_NAMES_MAX};
use crate::names::OTHER;
use crate::prometheus::table::{
    GRAPH_CLIENT, GRAPH_FAILED, GRAPH_REQUESTS, GRAPH_SERVER, Metric, SPAN_CALLS, SPAN_LATENCY,
};
use crate::prometheus::{Text, label};
use crate::route::Routes;

/// Who calls where nobody is known, as Tempo names him.
const USER: &str = "user";
/// Who delivers a message, where nobody is known.
const BROKER: &str = "broker";
/// A service whose sidecar did not name itself, as Tempo has it.
const VIRTUAL_NODE: &str = "virtual_node";
const MESSAGING_SYSTEM: &str = "messaging_system";

#[derive(Default, Debug)]
struct Edge {
    requests: u64,
    failed: u64,
    server: Histogram,
    client: Histogram,
}

/// Groups by their labels as text, in the order in which they appeared.
#[derive(Debug)]
struct Groups<T> {
    places: HashMap<String, usize, Seeded>,
    rows: Vec<(String, T)>,
    most: usize,
}

impl<T: Default> Groups<T> {
    fn new(most: usize) -> Self {
        Self { places: HashMap::with_hasher(Seeded(0)), rows: Vec::new(), most }
    }

    /// The group of these labels, else that of `others`.
    fn of(&mut self, labels: String, others: impl FnOnce() -> String) -> Option<&mut T> {
        let known = self.places.contains_key(&labels) || self.rows.len() < self.most;
        let labels = if known { labels } else { others() };
        let place = *self.places.entry(labels).or_insert_with_key(|labels| {
            self.rows.push((labels.clone(), T::default()));
            self.rows.len() - 1
        });
        self.rows.get_mut(place).map(|(_, group)| group)
    }
}

/// All edges and span names, and how far they are written.
#[derive(Debug)]
pub(super) struct Graph {
    edges: Vec<(String, Edge)>,
    spans: Vec<(String, Histogram)>,
    family: usize,
    row: usize,
}

impl Graph {
    pub(super) fn of(requests: &Requests, routes: &Routes, service: &str) -> Self {
        let mut edges: Groups<Edge> = Groups::new(METRIC_EDGES_MAX);
        let mut spans: Groups<Histogram> = Groups::new(METRIC_SPAN_NAMES_MAX);
        let others = || edge_labels(OTHER, OTHER, VIRTUAL_NODE);
        for row in &requests.rows {
            let (key, histogram) = (&row.key, &row.histogram);
            let (peer, _) = requests.peer_of(key);
            let (address, _) = requests.address_of(key);
            let messages = !key.messages().is_empty();
            let kind = match (messages, peer.is_empty()) {
                (true, _) => MESSAGING_SYSTEM,
                (false, true) => VIRTUAL_NODE,
                (false, false) => "",
            };
            let failed = if key.error == Interner::NONE { 0 } else { histogram.count() };
            let group = match key.direction() {
                Direction::Inbound => {
                    let client = match (peer.is_empty(), messages) {
                        (false, _) => peer,
                        (true, false) => USER,
                        (true, true) => BROKER,
                    };
                    edges.of(edge_labels(client, service, kind), others)
                }
                Direction::Outbound => {
                    let server = if peer.is_empty() { address } else { peer };
                    edges.of(edge_labels(service, server, kind), others)
                }
            };
            if let Some(edge) = group {
                // A named server counts the request itself: told by both, it would be two.
                let is_told_here = key.direction() == Direction::Inbound || peer.is_empty();
                if is_told_here {
                    edge.requests += histogram.count();
                    edge.failed += failed;
                }
                match key.direction() {
                    Direction::Inbound => edge.server.add(histogram),
                    Direction::Outbound => edge.client.add(histogram),
                }
            }
            let name = |name: &str| span_labels(service, name, key.direction(), failed > 0);
            let route = routes.name(key.route);
            let named = !route.is_empty() && route != OTHER;
            let method = match method_of(key) {
                "_OTHER" => "HTTP",
                known => known,
            };
            let full = match (key.kind & GRPC != 0, named, key.direction()) {
                (true, true, _) => name(route.trim_start_matches('/')),
                (true, false, _) => name("grpc"),
                (false, true, Direction::Inbound) => name(&format!("{method} {route}")),
                (false, _, _) => name(method),
            };
            if let Some(group) = spans.of(full, || name(OTHER)) {
                group.add(histogram);
            }
        }
        for direction in [Direction::Inbound, Direction::Outbound] {
            let Some(histogram) = requests.overflow(direction) else { continue };
            if let Some(edge) = edges.of(others(), others) {
                edge.requests += histogram.count();
                match direction {
                    Direction::Inbound => edge.server.add(histogram),
                    Direction::Outbound => edge.client.add(histogram),
                }
            }
            let name = || span_labels(service, OTHER, direction, false);
            if let Some(group) = spans.of(name(), name) {
                group.add(histogram);
            }
        }
        Self { edges: edges.rows, spans: spans.rows, family: 0, row: 0 }
    }

    /// Writes on until `text` holds about `most` bytes. Says whether there is more.
    pub(super) fn write(&mut self, text: &mut Text, most: usize) -> bool {
        type Write<T> = fn(&mut Text, &str, &T);
        const EDGES: [(Metric, Write<Edge>); 4] = [
            (GRAPH_REQUESTS, |text, labels, edge| text.line(GRAPH_REQUESTS.name, "", labels, edge.requests)),
            (GRAPH_FAILED, |text, labels, edge| text.line(GRAPH_FAILED.name, "", labels, edge.failed)),
            (GRAPH_SERVER, |text, labels, edge| {
                if edge.server.count() > 0 {
                    text.histogram(GRAPH_SERVER.name, labels, &DURATIONS, &edge.server, None);
                }
            }),
            (GRAPH_CLIENT, |text, labels, edge| {
                if edge.client.count() > 0 {
                    text.histogram(GRAPH_CLIENT.name, labels, &DURATIONS, &edge.client, None);
                }
            }),
        ];
        const SPANS: [(Metric, Write<Histogram>); 2] = [
            (SPAN_CALLS, |text, labels, calls| text.line(SPAN_CALLS.name, "", labels, calls.count())),
            (SPAN_LATENCY, |text, labels, calls| {
                text.histogram(SPAN_LATENCY.name, labels, &DURATIONS, calls, None)
            }),
        ];
        while text.len() < most {
            let more = if let Some((metric, write)) = EDGES.get(self.family) {
                one(text, metric, &self.edges, self.row, *write)
            } else if let Some((metric, write)) = SPANS.get(self.family - EDGES.len()) {
                one(text, metric, &self.spans, self.row, *write)
            } else {
                return false;
            };
            (self.family, self.row) = if more { (self.family, self.row + 1) } else { (self.family + 1, 0) };
        }
        true
    }
}

/// Writes one row of a family. Says whether it has another.
fn one<T>(
    text: &mut Text,
    metric: &Metric,
    rows: &[(String, T)],
    row: usize,
    write: fn(&mut Text, &str, &T),
) -> bool {
    if row == 0 {
        text.head(metric);
    }
    if let Some((labels, value)) = rows.get(row) {
        write(text, labels, value);
    }
    row + 1 < rows.len()
}

fn labels<const N: usize>(metric: &Metric, values: [&str; N]) -> String {
    let mut text = String::new();
    for (key, value) in metric.labels.iter().zip(values) {
        label(&mut text, key, value);
    }
    text
}

fn edge_labels(client: &str, server: &str, kind: &str) -> String {
    labels(&GRAPH_REQUESTS, [client, server, kind])
}

fn span_labels(service: &str, name: &str, direction: Direction, failed: bool) -> String {
    let kind = match direction {
        Direction::Inbound => "SPAN_KIND_SERVER",
        Direction::Outbound => "SPAN_KIND_CLIENT",
    };
    let status = if failed { "STATUS_CODE_ERROR" } else { "STATUS_CODE_UNSET" };
    labels(&SPAN_CALLS, [service, name, kind, status])
}
