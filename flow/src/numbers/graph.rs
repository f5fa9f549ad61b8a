//! Makes answers of summed cells: which count tells an edge, so that each request is in it once; nodes, entrances,
//! health. Pure: it has copies of all it needs.

use std::collections::{BTreeMap, HashSet};

use super::answer::*;
use super::histogram::{Bounds, Histogram};
use super::keys::{About, BROKER, Key, Map, NONE, Name, NodeId, OTHER, Place, Seeded, Told, USER};
use super::query::{is_timeout, is_unanswered, is_unreached};
use super::slots::Cell;
use super::{State, Thresholds};

/// Cells with their keys, when they were counted last, and the number of the key.
pub(super) type Sums = Vec<(Key, Cell, u64, u32)>;

/// Requests of one kind added up.
#[derive(Clone, Debug, Default)]
struct Sum {
    cell: Cell,
    errors: u64,
    timeouts: u64,
}

impl Sum {
    fn add(&mut self, cell: &Cell, failed: bool, timeout: bool) {
        self.cell.add(cell);
        self.errors += if failed { cell.count } else { 0 };
        self.timeouts += if timeout { cell.count } else { 0 };
    }

    fn merge(&mut self, other: &Self) {
        self.cell.add(&other.cell);
        self.errors += other.errors;
        self.timeouts += other.timeouts;
    }
}

/// Exact and estimated requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Total {
    exact: Sum,
    /// Counts in 256ths.
    spans: Sum,
    /// How much of `spans` was taken from what a sidecar counted: of the sum of all callers it is exact.
    settled: u64,
}

impl Total {
    fn merge(&mut self, other: &Self) {
        self.exact.merge(&other.exact);
        self.spans.merge(&other.spans);
    }

    fn is_empty(&self) -> bool {
        self.exact.cell.count == 0 && self.spans.cell.count == 0
    }
}

/// All that was told of one edge.
#[derive(Clone, Debug, Default)]
struct Tale {
    server: Sum,
    too: Sum,
    client: Sum,
    spans: Sum,
    caller: Sum,
    /// Of `spans`, what was moved here from an unnamed caller.
    named: u64,
    processed: Sum,
    unanswered: u64,
    retried: u64,
    span_retried: u64,
    lag: BTreeMap<NodeId, Cell>,
    last: u64,
}

/// An edge as it is shown, before it has names.
#[derive(Clone, Debug)]
pub(super) struct Edged {
    from: NodeId,
    to: NodeId,
    kind: EdgeKind,
    total: Total,
    /// Where durations are told apart from counts.
    processed: Option<Sum>,
    client: Option<Sum>,
    told_by: ToldBy,
    /// Requests, in 256ths, that a sidecar counted as a stranger's and a span names the caller of.
    named: u64,
    unanswered: u64,
    retries: u64,
    lag: BTreeMap<NodeId, Cell>,
    last: u64,
}

/// Requests by those that are no part of an operation.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) figures: Total,
    sources: HashSet<NodeId>,
}

impl Entered {
    /// Whoever calls without a name enters, and whoever calls and is not called. Where everybody is called, the one
    /// that calls most.
    pub(super) fn of(edges: &[Edged]) -> Self {
        let called: HashSet<NodeId> = edges
            .iter()
            .filter(|edge| edge.kind != EdgeKind::Publish && edge.from != edge.to && !edge.total.is_empty())
            .map(|edge| edge.to)
            .collect();
        let requests =
            || edges.iter().filter(|edge| edge.kind == EdgeKind::Request && !edge.total.is_empty());
        let mut sources: HashSet<NodeId> = requests()
            .map(|edge| edge.from)
            .filter(|from| *from == USER || (*from != BROKER && !called.contains(from)))
            .collect();
        if sources.is_empty() {
            let mut calls: BTreeMap<NodeId, u64> = BTreeMap::new();
            for edge in requests() {
                *calls.entry(edge.from).or_default() +=
                    edge.total.exact.cell.count * 256 + edge.total.spans.cell.count;
            }
            sources.extend(calls.into_iter().max_by_key(|(_, count)| *count).map(|(from, _)| from));
        }
        // Services that nobody calls by their own name: what strangers ask for counts, if any do.
        // So do strangers whose spans tell their names.
        if sources.contains(&USER) {
            let is_stranger = |source: &NodeId| requests().any(|edge| edge.from == *source && edge.named > 0);
            sources.retain(|source| *source == USER || is_stranger(source));
        }
        let mut figures = Total::default();
        for edge in requests().filter(|edge| sources.contains(&edge.from)) {
            figures.merge(&edge.total);
            figures.settled += edge.named;
        }
        Self { figures, sources }
    }
}

/// What answers need to know beside the sums.
#[derive(Debug)]
pub(super) struct World {
    health: Thresholds,
    window: Window,
    bounds: Bounds,
    places: Vec<Place>,
    /// Names that the sums use.
    texts: Map<Name, String>,
    environments: Vec<String>,
    /// The node that a node stands for: a service without a namespace is the only one of its name.
    canonical: Vec<NodeId>,
    /// Names that several services have.
    ambiguous: HashSet<Name>,
    aliases: Map<(u16, Name, NodeId), Option<NodeId>>,
    topics: Map<NodeId, NodeId>,
    /// Whether all pods of a service are covered, and whether any is.
    coverage: Map<(u16, NodeId), (bool, bool)>,
    /// Services that were heard of in the window.
    heard: Vec<(u16, NodeId, Vec<Pod>, String)>,
}

impl World {
    pub(super) fn of(
        state: &State,
        health: Thresholds,
        window: Window,
        sums: &Sums,
        with_pods: bool,
    ) -> Self {
        let places = state.keys.places.clone();
        let hash = Seeded(1);
        let mut by_name: Map<Name, Vec<NodeId>> = Map::with_hasher(hash);
        for (node, place) in places.iter().enumerate().filter(|(_, place)| place.kind == NodeKind::Service) {
            by_name.entry(place.name).or_default().push(node as NodeId);
        }
        let canonical: Vec<NodeId> = (0..)
            .zip(&places)
            .map(|(node, place)| {
                if place.kind != NodeKind::Service || place.namespace != NONE {
                    return node;
                }
                let same = by_name.get(&place.name).map_or(&[][..], |nodes| nodes);
                let named = |other: &&NodeId| {
                    places.get(**other as usize).is_some_and(|place| place.namespace != NONE)
                };
                let mut with_namespace = same.iter().filter(named);
                match (with_namespace.next(), with_namespace.next()) {
                    (Some(only), None) => *only,
                    _ => node,
                }
            })
            .collect();
        let ambiguous = by_name
            .iter()
            .filter(|(_, nodes)| {
                let different: HashSet<Option<&NodeId>> =
                    nodes.iter().map(|node| canonical.get(*node as usize)).collect();
                different.len() > 1
            })
            .map(|(name, _)| *name)
            .collect();
        let mut heard = Vec::new();
        if with_pods {
            for (environment, node) in state.pods.services() {
                let (pods, deployment) = state.pods.list(environment, node, window.start_unix_nanos);
                if pods.iter().any(|pod| pod.last_seen_unix_nanos >= window.start_unix_nanos) {
                    heard.push((environment, node, pods, deployment));
                }
            }
        }
        let mut nodes: HashSet<(u16, NodeId)> =
            heard.iter().map(|(environment, node, _, _)| (*environment, *node)).collect();
        let mut names: HashSet<Name> = HashSet::new();
        for (key, _, _, _) in sums {
            let environment = key.scope.environment;
            nodes.extend([(environment, key.from), (environment, key.to)]);
            names.extend([key.route, key.error]);
            if let About::Operation(name) = key.scope.about {
                names.insert(name);
            }
        }
        let targets = || state.aliases.values().flatten().chain(state.topics.values());
        for node in nodes.iter().map(|(_, node)| node).chain(targets()) {
            let node = canonical.get(*node as usize).unwrap_or(node);
            let place = state.keys.place(*node);
            names.extend([place.name, place.namespace]);
        }
        let mut texts = Map::with_hasher(hash);
        texts.extend(names.into_iter().map(|name| (name, state.keys.text(name).to_owned())));
        let mut coverage: Map<(u16, NodeId), (bool, bool)> = Map::with_hasher(hash);
        for (environment, node) in state.pods.services() {
            let (all, any) = state.pods.coverage(Some(environment), node, window.start_unix_nanos);
            let node = canonical.get(node as usize).copied().unwrap_or(node);
            let known = coverage.entry((environment, node)).or_insert((true, false));
            *known = (known.0 && all, known.1 || any);
        }
        let environments = 0..state.keys.environments.len() as u16;
        Self {
            health,
            window,
            bounds: state.bounds.clone(),
            places,
            texts,
            environments: environments.map(|number| state.keys.environment_text(number).to_owned()).collect(),
            canonical,
            ambiguous,
            aliases: state.aliases.clone(),
            topics: state.topics.clone(),
            coverage,
            heard,
        }
    }

    pub(super) fn text(&self, name: Name) -> &str {
        self.texts.get(&name).map_or("", |text| text)
    }

    pub(super) fn environment(&self, environment: u16) -> &str {
        self.environments.get(usize::from(environment)).map_or("", |text| text)
    }

    fn node(&self, node: NodeId) -> NodeId {
        self.canonical.get(node as usize).copied().unwrap_or(node)
    }

    fn place(&self, node: NodeId) -> Place {
        let other = Place { kind: NodeKind::Other, namespace: NONE, name: OTHER };
        self.places.get(node as usize).copied().unwrap_or(other)
    }

    fn id(&self, node: NodeId) -> String {
        let place = self.place(node);
        let name = self.text(place.name);
        match (place.kind, node) {
            (_, USER) => "user".to_owned(),
            (_, BROKER) => "broker".to_owned(),
            (NodeKind::Topic, _) => format!("topic:{name}"),
            (NodeKind::Subscription, _) => format!("subscription:{name}"),
            (NodeKind::Database, _) => format!("database:{name}"),
            (NodeKind::Other, _) => super::OTHER_NAME.to_owned(),
            (NodeKind::Service, _) if self.ambiguous.contains(&place.name) && place.namespace != NONE => {
                format!("{name}.{}", self.text(place.namespace))
            }
            (NodeKind::Service | NodeKind::External | NodeKind::User, _) => name.to_owned(),
        }
    }

    fn name(&self, node: NodeId) -> String {
        match node {
            USER => "user".to_owned(),
            BROKER => "broker".to_owned(),
            _ => self.text(self.place(node).name).to_owned(),
        }
    }

    /// All edges that the sums tell of, each request in one of them.
    pub(super) fn edges(&self, sums: &Sums) -> Vec<Edged> {
        let mut told: BTreeMap<(NodeId, NodeId, EdgeKind), Tale> = BTreeMap::new();
        for (key, cell, last, _) in sums {
            self.told(key, cell, *last, &mut told);
        }
        // A span names the unnamed caller of requests that a sidecar counted: they are moved, never added.
        let callers: Vec<(NodeId, NodeId)> = told
            .iter()
            .filter(|(_, told)| told.caller.cell.count > 0)
            .map(|((from, to, _), _)| (*from, *to))
            .collect();
        for (from, to) in callers {
            let unnamed = told.get(&(USER, to, EdgeKind::Request)).map_or(0, |told| told.server.cell.count);
            let unnamed_errors =
                told.get(&(USER, to, EdgeKind::Request)).map_or(0, |told| told.server.errors);
            let Some(edge) = told.get_mut(&(from, to, EdgeKind::Request)) else { continue };
            let mut named = std::mem::take(&mut edge.caller);
            let moved = (named.cell.count / 256).min(unnamed);
            let moved_errors = (named.errors / 256).min(unnamed_errors).min(moved);
            let nanos = u128::from(named.cell.sum_nanos) * u128::from(moved) * 256;
            named.cell.sum_nanos = u64::try_from(nanos / u128::from(named.cell.count.max(1))).unwrap_or(0);
            (named.cell.count, named.errors, named.timeouts) = (moved * 256, moved_errors * 256, 0);
            let taken = named.cell.sum_nanos;
            edge.spans.merge(&named);
            edge.named = named.cell.count;
            if let Some(user) = told.get_mut(&(USER, to, EdgeKind::Request)) {
                user.server.cell.count -= moved;
                user.server.errors -= moved_errors;
                user.server.cell.sum_nanos = user.server.cell.sum_nanos.saturating_sub(taken);
            }
        }
        told.into_iter()
            .map(|((from, to, kind), told)| edge(from, to, kind, told))
            .filter(Edged::is_there)
            .collect()
    }

    fn told(
        &self,
        key: &Key,
        cell: &Cell,
        last: u64,
        edges: &mut BTreeMap<(NodeId, NodeId, EdgeKind), Tale>,
    ) {
        let environment = key.scope.environment;
        let (from, mut to) = (self.node(key.from), self.node(key.to));
        let error = self.text(key.error);
        let (failed, timeout) = (key.error != NONE, is_timeout(error));
        let kind = match key.told {
            Told::Sent | Told::SpanSent => EdgeKind::Publish,
            Told::Delivered | Told::SpanDelivered | Told::Processed | Told::Lag => EdgeKind::Deliver,
            _ => EdgeKind::Request,
        };
        let mut unanswered = false;
        if matches!(key.told, Told::Client | Told::Retried | Told::SpanRetried) {
            let namespace = self.place(key.from).namespace;
            if let Some(Some(service)) = self.aliases.get(&(environment, namespace, to)) {
                if is_unreached(error) || key.told != Told::Client {
                    to = self.node(*service);
                } else if is_unanswered(key, error) {
                    (to, unanswered) = (self.node(*service), true);
                }
            }
        }
        let subscription = key.from;
        let from = match kind {
            EdgeKind::Deliver => self.topics.get(&from).copied().unwrap_or(from),
            EdgeKind::Request | EdgeKind::Publish => from,
        };
        if key.told == Told::SpanRequest {
            // All pods on either side are covered: what was estimated before that was known is counted exactly.
            let all =
                |node: NodeId| self.coverage.get(&(environment, node)).is_some_and(|(all, any)| *all && *any);
            if all(to) || (all(from) && self.place(to).kind != NodeKind::Database) {
                return;
            }
        }
        let edge = edges.entry((from, to, kind)).or_default();
        edge.last = edge.last.max(last);
        let sum = match key.told {
            Told::Server | Told::Sent | Told::Delivered => &mut edge.server,
            Told::ClientToo => &mut edge.too,
            Told::Client if unanswered => {
                edge.unanswered += cell.count;
                return;
            }
            Told::Client => &mut edge.client,
            Told::SpanRequest | Told::SpanSent | Told::SpanDelivered => &mut edge.spans,
            Told::SpanCaller => &mut edge.caller,
            Told::Processed => &mut edge.processed,
            Told::Retried => {
                edge.retried += cell.count;
                return;
            }
            Told::SpanRetried => {
                edge.span_retried += cell.count;
                return;
            }
            Told::Lag => {
                edge.lag.entry(subscription).or_default().add(cell);
                return;
            }
            Told::Forwarded
            | Told::Dropped
            | Told::Invalid
            | Told::Restored
            | Told::WithoutContext
            | Told::OfOtherTraces
            | Told::OperationsIgnored
            | Told::EventsUntouched => return,
        };
        sum.add(cell, failed, timeout);
    }

    /// Figures of a sum, with quantiles.
    pub(super) fn figures(&self, total: &Total) -> Figures {
        self.figures_of(total, &total.exact)
    }

    fn figures_of(&self, total: &Total, timed: &Sum) -> Figures {
        let (exact, spans) = (&total.exact, &total.spans);
        let weighed = |count: u64| count as f64 / 256.0;
        let timed_count = timed.cell.count as f64 + weighed(spans.cell.count);
        let nanos = timed.cell.sum_nanos as f64 + spans.cell.sum_nanos as f64;
        let histograms: [(&Histogram, f64); 2] =
            [(&timed.cell.histogram, 1.0), (&spans.cell.histogram, 1.0 / 256.0)];
        let [p50, p95, p99] = self.bounds.quantiles(&histograms, [0.5, 0.95, 0.99]);
        let estimated = spans.cell.count > total.settled;
        Figures {
            requests: exact.cell.count + weighed(spans.cell.count).round() as u64,
            errors: exact.errors + weighed(spans.errors).round() as u64,
            timeouts: exact.timeouts + weighed(spans.timeouts).round() as u64,
            avg_ms: if timed_count > 0.0 { nanos / timed_count / 1e6 } else { 0.0 },
            p50_ms: p50 * 1e3,
            p95_ms: p95 * 1e3,
            p99_ms: p99 * 1e3,
            estimated,
            weight: if estimated { weighed(spans.cell.count) / spans.cell.spans.max(1) as f64 } else { 1.0 },
        }
    }

    fn health_of(&self, figures: &Figures, unanswered: u64) -> Health {
        let limits = &self.health;
        let asked = figures.requests + unanswered;
        if asked < limits.requests_min.max(1) {
            return Health::Healthy;
        }
        let failed = (figures.errors + unanswered) as f64 / asked as f64;
        let is_slow = limits.degraded_p95_ms > 0.0 && figures.p95_ms >= limits.degraded_p95_ms;
        if failed >= limits.down_error_rate {
            Health::Down
        } else if failed >= limits.degraded_error_rate || is_slow {
            Health::Degraded
        } else {
            Health::Healthy
        }
    }

    pub(super) fn last_seen<'a>(&self, sums: impl Iterator<Item = &'a (Key, Cell, u64, u32)>) -> u64 {
        sums.map(|(_, _, last, _)| *last).max().unwrap_or(0).min(self.window.end_unix_nanos)
    }

    fn lag(&self, subscription: NodeId, cell: &Cell) -> Lag {
        let [p50, p95, p99] = self.bounds.quantiles(&[(&cell.histogram, 1.0)], [0.5, 0.95, 0.99]);
        let is_named = self.place(subscription).kind == NodeKind::Subscription;
        Lag {
            subscription: if is_named { self.name(subscription) } else { String::new() },
            messages: cell.count,
            avg_ms: cell.sum_nanos as f64 / cell.count.max(1) as f64 / 1e6,
            p50_ms: p50 * 1e3,
            p95_ms: p95 * 1e3,
            p99_ms: p99 * 1e3,
        }
    }

    fn wanted(&self, node: NodeId, filter: &Filter<'_>) -> bool {
        let place = self.place(node);
        let is_service = matches!(place.kind, NodeKind::Service);
        filter.namespace.is_none_or(|text| is_service && self.text(place.namespace) == text)
            && filter.service.is_none_or(|text| self.name(node) == text || self.id(node) == text)
    }

    /// What each node was asked for, and what it did not answer.
    fn nodes(edges: &[Edged]) -> BTreeMap<NodeId, (Total, u64, u64)> {
        let mut nodes: BTreeMap<NodeId, (Total, u64, u64)> = BTreeMap::new();
        for edge in edges {
            let (_, _, last) = nodes.entry(edge.from).or_default();
            *last = edge.last.max(*last);
            let (total, unanswered, last) = nodes.entry(edge.to).or_default();
            *last = edge.last.max(*last);
            *unanswered += edge.unanswered;
            // Deliveries by push are requests too; those that are pulled are no requests to the service.
            if edge.kind != EdgeKind::Deliver {
                total.merge(&edge.total);
            }
        }
        nodes
    }

    pub(super) fn graph(&self, sums: &Sums, filter: &Filter<'_>) -> Graph {
        let mut edges = self.edges(sums);
        let mut nodes = Self::nodes(&edges);
        if filter.namespace.is_some() || filter.service.is_some() {
            edges.retain(|edge| self.wanted(edge.from, filter) || self.wanted(edge.to, filter));
            let touched: HashSet<NodeId> = edges.iter().flat_map(|edge| [edge.from, edge.to]).collect();
            nodes.retain(|node, _| touched.contains(node) || self.wanted(*node, filter));
        }
        let environment = filter.environment.unwrap_or_default();
        let one_environment = || {
            let mut known = sums.iter().map(|(key, _, _, _)| key.scope.environment);
            let first = known.next();
            first
                .filter(|first| known.all(|other| other == *first))
                .map_or("", |first| self.environment(first))
        };
        let environment = if environment.is_empty() { one_environment() } else { environment };
        let mut shown: Vec<Node> = nodes
            .iter()
            .map(|(node, (total, unanswered, last))| {
                let figures = self.figures(total);
                let place = self.place(*node);
                Node {
                    id: self.id(*node),
                    kind: place.kind,
                    name: self.name(*node),
                    namespace: self.text(place.namespace).to_owned(),
                    environment: environment.to_owned(),
                    request_rate: figures.requests as f64 / self.window.seconds(),
                    health: self.health_of(&figures, *unanswered),
                    figures,
                    last_seen_unix_nanos: (*last).min(self.window.end_unix_nanos),
                }
            })
            .collect();
        shown.sort_unstable_by(|one, other| one.id.cmp(&other.id));
        let mut lines: Vec<Edge> = edges
            .iter()
            .map(|edge| {
                let figures =
                    self.figures_of(&edge.total, edge.processed.as_ref().unwrap_or(&edge.total.exact));
                let lag: Vec<Lag> =
                    edge.lag.iter().map(|(subscription, cell)| self.lag(*subscription, cell)).collect();
                let client =
                    edge.client.clone().map(|exact| self.figures(&Total { exact, ..Total::default() }));
                Edge {
                    from: self.id(edge.from),
                    to: self.id(edge.to),
                    kind: edge.kind,
                    figures,
                    retries: edge.retries,
                    unanswered: edge.unanswered,
                    told_by: edge.told_by,
                    client,
                    lag,
                }
            })
            .collect();
        lines.sort_unstable_by(|one, other| {
            (&one.from, &one.to, one.kind).cmp(&(&other.from, &other.to, other.kind))
        });
        Graph { nodes: shown, edges: lines, last_updated_unix_nanos: self.last_seen(sums.iter()) }
    }

    pub(super) fn stats(&self, sums: &Sums) -> OperationStats {
        let edges = self.edges(sums);
        let entered = Entered::of(&edges);
        let nodes = Self::nodes(&edges);
        let is_service = |node: &NodeId| self.place(*node).kind == NodeKind::Service;
        let mut services: Vec<ServiceShare> = nodes
            .iter()
            .filter(|(node, (total, _, _))| is_service(node) && !total.is_empty())
            .map(|(node, (total, _, _))| ServiceShare {
                name: self.name(*node),
                namespace: self.text(self.place(*node).namespace).to_owned(),
                figures: self.figures(total),
            })
            .collect();
        services.sort_unstable_by(|one, other| {
            let by_count = other.figures.requests.cmp(&one.figures.requests);
            by_count.then_with(|| (&one.name, &one.namespace).cmp(&(&other.name, &other.namespace)))
        });
        let mut routes: BTreeMap<(NodeId, Name), Total> = BTreeMap::new();
        let mut errors: BTreeMap<Name, u64> = BTreeMap::new();
        for (key, cell, _, _) in sums {
            let (failed, timeout) = (key.error != NONE, is_timeout(self.text(key.error)));
            let is_entrance = entered.sources.contains(&self.node(key.from));
            let total = match key.told {
                Told::Server if is_entrance => {
                    Some(&mut routes.entry((self.node(key.to), key.route)).or_default().exact)
                }
                Told::SpanRequest if is_entrance && is_service(&self.node(key.to)) => {
                    Some(&mut routes.entry((self.node(key.to), key.route)).or_default().spans)
                }
                _ => None,
            };
            if let Some(sum) = total {
                sum.add(cell, failed, timeout);
            }
            if failed && matches!(key.told, Told::Server | Told::Client | Told::SpanRequest) {
                let count = if key.told.is_estimate() { cell.count / 256 } else { cell.count };
                *errors.entry(key.error).or_default() += count;
            }
        }
        let mut routes: Vec<RouteShare> = routes
            .iter()
            .map(|((node, route), total)| RouteShare {
                service: self.name(*node),
                namespace: self.text(self.place(*node).namespace).to_owned(),
                route: self.text(*route).to_owned(),
                figures: self.figures(total),
            })
            .collect();
        routes.sort_unstable_by(|one, other| {
            let by_count = other.figures.requests.cmp(&one.figures.requests);
            by_count.then_with(|| (&one.service, &one.route).cmp(&(&other.service, &other.route)))
        });
        let errors = errors.into_iter().filter(|(_, count)| *count > 0);
        let mut errors: Vec<(String, u64)> =
            errors.map(|(name, count)| (self.text(name).to_owned(), count)).collect();
        errors.sort_unstable_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        OperationStats {
            figures: self.figures(&entered.figures),
            services,
            routes,
            errors,
            retries: edges.iter().map(|edge| edge.retries).sum(),
            last_seen_unix_nanos: self.last_seen(sums.iter()),
        }
    }

    pub(super) fn services(&self, sums: &Sums, filter: &Filter<'_>) -> Vec<ServiceRow> {
        let mut rows = Vec::new();
        for environment in 0..self.environments.len() as u16 {
            if filter.environment.is_some_and(|text| text != self.environment(environment)) {
                continue;
            }
            let here: Sums =
                sums.iter().filter(|(key, _, _, _)| key.scope.environment == environment).cloned().collect();
            let edges = self.edges(&here);
            let mut nodes = Self::nodes(&edges);
            if filter.operation.is_none() {
                for (_, node, _, _) in self.heard.iter().filter(|(of, _, _, _)| *of == environment) {
                    nodes.entry(self.node(*node)).or_default();
                }
            }
            let (mut callers, mut called): (BTreeMap<NodeId, Vec<String>>, BTreeMap<NodeId, Vec<String>>) =
                Default::default();
            for edge in &edges {
                callers.entry(edge.to).or_default().push(self.id(edge.from));
                called.entry(edge.from).or_default().push(self.id(edge.to));
            }
            for (node, (total, unanswered, last)) in &nodes {
                let place = self.place(*node);
                if place.kind != NodeKind::Service || !self.wanted(*node, filter) {
                    continue;
                }
                let mut pods = Vec::new();
                let mut deployment = String::new();
                for (of, other, of_node, name) in &self.heard {
                    if *of == environment && self.node(*other) == *node {
                        pods.extend(of_node.iter().cloned());
                        deployment.clone_from(name);
                    }
                }
                let figures = self.figures(total);
                let distinct = |list: &BTreeMap<NodeId, Vec<String>>| {
                    let mut ids = list.get(node).cloned().unwrap_or_default();
                    ids.sort_unstable();
                    ids.dedup();
                    ids
                };
                let newest =
                    pods.iter().max_by_key(|pod: &&Pod| (!pod.version.is_empty(), pod.last_seen_unix_nanos));
                let heard = pods.iter().map(|pod| pod.last_seen_unix_nanos).max().unwrap_or(0);
                rows.push(ServiceRow {
                    name: self.name(*node),
                    namespace: self.text(place.namespace).to_owned(),
                    environment: self.environment(environment).to_owned(),
                    version: newest.map(|pod| pod.version.clone()).unwrap_or_default(),
                    deployment,
                    request_rate: figures.requests as f64 / self.window.seconds(),
                    health: self.health_of(&figures, *unanswered),
                    figures,
                    upstream: distinct(&callers),
                    downstream: distinct(&called),
                    ours: self.coverage.get(&(environment, *node)).is_some_and(|(_, any)| *any),
                    last_seen_unix_nanos: heard.max(*last),
                    pods,
                });
            }
        }
        rows.sort_unstable_by(|one, other| {
            (&one.name, &one.namespace, &one.environment).cmp(&(
                &other.name,
                &other.namespace,
                &other.environment,
            ))
        });
        rows
    }

    pub(super) fn propagation(&self, sums: &Sums, filter: &Filter<'_>) -> Vec<Propagation> {
        let mut rows: BTreeMap<(u16, NodeId), (Propagation, BTreeMap<Name, RoutePropagation>)> =
            BTreeMap::new();
        for (key, cell, _, _) in sums.iter().filter(|(key, _, _, _)| key.told.is_propagation()) {
            let node = self.node(key.to);
            if !self.wanted(node, filter) {
                continue;
            }
            let (row, routes) = rows.entry((key.scope.environment, node)).or_default();
            let label = self.text(key.route).to_owned();
            match key.told {
                Told::Forwarded => routes.entry(key.route).or_default().forwarded += cell.count,
                Told::Dropped => routes.entry(key.route).or_default().dropped += cell.count,
                Told::Invalid => row.invalid.push((label, cell.count)),
                Told::Restored => row.restored += cell.count,
                Told::WithoutContext => row.calls_without_context += cell.count,
                Told::OfOtherTraces => row.calls_of_other_traces += cell.count,
                Told::OperationsIgnored => row.operations_ignored += cell.count,
                Told::EventsUntouched => row.events_untouched.push((label, cell.count)),
                _ => {}
            }
        }
        rows.into_iter()
            .map(|((environment, node), (mut row, routes))| {
                row.service = self.name(node);
                row.namespace = self.text(self.place(node).namespace).to_owned();
                row.environment = self.environment(environment).to_owned();
                row.routes = routes
                    .into_iter()
                    .map(|(route, counts)| RoutePropagation { route: self.text(route).to_owned(), ..counts })
                    .collect();
                row.routes.sort_unstable_by(|one, other| {
                    other.dropped.cmp(&one.dropped).then_with(|| one.route.cmp(&other.route))
                });
                row.invalid.sort_unstable();
                row.events_untouched.sort_unstable();
                row
            })
            .collect()
    }
}

impl Edged {
    fn is_there(&self) -> bool {
        !self.total.is_empty() || self.unanswered > 0 || self.retries > 0 || !self.lag.is_empty()
    }
}

/// Who tells an edge: a server that names itself counts the request itself; told by both, it would be two. Where the
/// server named itself and tells nobody, the client's word is all there is.
fn edge(from: NodeId, to: NodeId, kind: EdgeKind, told: Tale) -> Edged {
    let Tale {
        server,
        too,
        client,
        spans,
        named,
        processed,
        unanswered,
        retried,
        span_retried,
        lag,
        last,
        ..
    } = told;
    let by_server = server.cell.count > 0;
    let mut exact = if by_server { server } else { too.clone() };
    let by_client = client.cell.count > 0 || (!by_server && too.cell.count > 0);
    exact.merge(&client);
    let told_by = match (by_server, by_client) {
        (true, true) => ToldBy::Both,
        (true, false) => ToldBy::Server,
        (false, true) => ToldBy::Client,
        (false, false) if spans.cell.count > 0 || span_retried > 0 => ToldBy::Spans,
        (false, false) => ToldBy::Client,
    };
    let retries = if retried > 0 { retried } else { span_retried.div_ceil(256) };
    Edged {
        from,
        to,
        kind,
        total: Total { exact, spans, settled: 0 },
        named,
        processed: (processed.cell.count > 0).then_some(processed),
        client: (by_server && too.cell.count > 0).then_some(too),
        told_by,
        unanswered,
        retries,
        lag,
        last,
    }
}
