//! What the numbers answer: operations, statistics, services, graphs. Plain values, owned; all latencies are
//! milliseconds, all moments nanoseconds since 1970. Must never hold a lock or a borrow of the numbers.

/// A time, whole minutes of it: the minutes that `start` and `end` (exclusive) lie in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Window {
    /// Nanoseconds since 1970.
    pub start_unix_nanos: u64,
    /// Nanoseconds since 1970, exclusive.
    pub end_unix_nanos: u64,
}

impl Window {
    /// The time of the same length that ended where this one begins: what to compare with.
    #[must_use]
    pub fn previous(self) -> Self {
        let length = self.end_unix_nanos.saturating_sub(self.start_unix_nanos);
        Self {
            start_unix_nanos: self.start_unix_nanos.saturating_sub(length),
            end_unix_nanos: self.start_unix_nanos,
        }
    }

    /// Length in seconds, at least one.
    #[must_use]
    pub fn seconds(self) -> f64 {
        (self.end_unix_nanos.saturating_sub(self.start_unix_nanos).max(1_000_000_000)) as f64 / 1e9
    }
}

/// What a question is about; nothing set asks for everything.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Filter<'a> {
    /// `deployment.environment.name`; all of them when none.
    pub environment: Option<&'a str>,
    /// The operation; all requests when none.
    pub operation: Option<&'a str>,
    /// Nodes of this namespace, and what they speak with directly.
    pub namespace: Option<&'a str>,
    /// The node of this service, and what it speaks with directly.
    pub service: Option<&'a str>,
}

/// Requests, failures and durations of something.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Figures {
    /// Requests. Exact, unless `estimated`.
    pub requests: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// Those of them that ended in a timeout.
    pub timeouts: u64,
    /// Mean duration; 0 without requests.
    pub avg_ms: f64,
    /// Quantiles: within 1 % when the senders' histograms are exponential of scale 6, else within the senders'
    /// buckets; 0 without requests.
    pub p50_ms: f64,
    /// See `p50_ms`.
    pub p95_ms: f64,
    /// See `p50_ms`.
    pub p99_ms: f64,
    /// Whether any of it is an estimate from spans of others.
    pub estimated: bool,
    /// Requests that one span stood for in the mean, where it is an estimate; else 1.
    pub weight: f64,
}

impl Figures {
    /// Share of requests that failed; 0 without requests.
    #[must_use]
    pub fn error_rate(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.errors as f64 / self.requests as f64 }
    }
}

/// How a node does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Below all thresholds.
    Healthy,
    /// Fails or is slow more than it should.
    Degraded,
    /// Fails mostly, or does not answer at all.
    Down,
}

impl Health {
    /// As the API words it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// What a node is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum NodeKind {
    /// A service that reported itself, or that a sidecar named.
    Service,
    /// Callers that did not name themselves.
    User,
    /// A host that nobody named: called by this name.
    External,
    /// A topic.
    Topic,
    /// A subscription whose topic is not known, or a type of events.
    Subscription,
    /// A database.
    Database,
    /// What is over a cap.
    Other,
}

impl NodeKind {
    /// As the API words it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::User => "user",
            Self::External => "external",
            Self::Topic => "topic",
            Self::Subscription => "subscription",
            Self::Database => "database",
            Self::Other => "other",
        }
    }
}

/// A node of a graph.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// Name, with the namespace where several have the name: `orders`, `orders.shop`, `topic:orders`, `user`.
    pub id: String,
    /// What it is.
    pub kind: NodeKind,
    /// Name of the service, host or topic.
    pub name: String,
    /// Namespace; may be empty.
    pub namespace: String,
    /// Environment; may be empty.
    pub environment: String,
    /// Requests to it, each counted once.
    pub figures: Figures,
    /// Requests a second.
    pub request_rate: f64,
    /// How it does.
    pub health: Health,
    /// When it was last told of, within the window.
    pub last_seen_unix_nanos: u64,
}

/// What passes along an edge.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum EdgeKind {
    /// Requests.
    Request,
    /// Messages that are published.
    Publish,
    /// Messages that are delivered.
    Deliver,
}

impl EdgeKind {
    /// As the API words it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Publish => "publish",
            Self::Deliver => "deliver",
        }
    }
}

/// Who counted an edge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ToldBy {
    /// The sidecar of the server.
    Server,
    /// The sidecar of the client.
    Client,
    /// Both, for different requests: a server that is beside a sidecar in some pods only.
    Both,
    /// Spans of others: an estimate.
    Spans,
}

impl ToldBy {
    /// As the API words it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Both => "both",
            Self::Spans => "spans",
        }
    }
}

/// How long messages of a subscription waited.
#[derive(Clone, PartialEq, Debug)]
pub struct Lag {
    /// The subscription; may be empty.
    pub subscription: String,
    /// Messages whose age is known.
    pub messages: u64,
    /// Mean age.
    pub avg_ms: f64,
    /// Quantiles.
    pub p50_ms: f64,
    /// Quantiles.
    pub p95_ms: f64,
    /// Quantiles.
    pub p99_ms: f64,
}

/// An edge of a graph.
#[derive(Clone, PartialEq, Debug)]
pub struct Edge {
    /// Id of the node that calls or publishes.
    pub from: String,
    /// Id of the node that is called or delivered to.
    pub to: String,
    /// What passes.
    pub kind: EdgeKind,
    /// Requests or messages, each counted once; durations as the server saw them, where it tells.
    pub figures: Figures,
    /// Calls that repeated one that had failed.
    pub retries: u64,
    /// Calls that the client gave up on or lost although the server may have counted them: not in `figures`.
    pub unanswered: u64,
    /// Who counted it.
    pub told_by: ToldBy,
    /// The client's view of the same requests: with the network and the waiting in it.
    pub client: Option<Figures>,
    /// Ages of messages by subscription.
    pub lag: Vec<Lag>,
}

/// A graph of services.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Graph {
    /// Sorted by id.
    pub nodes: Vec<Node>,
    /// Sorted by `from`, `to`, `kind`.
    pub edges: Vec<Edge>,
    /// When the newest number in it came.
    pub last_updated_unix_nanos: u64,
}

/// An operation in a list.
#[derive(Clone, PartialEq, Debug)]
pub struct OperationRow {
    /// Name; `__other__` for those over the cap.
    pub name: String,
    /// Environment; may be empty.
    pub environment: String,
    /// How often it was asked for: requests by callers that are no part of it.
    pub figures: Figures,
    /// When it was last told of, within the window.
    pub last_seen_unix_nanos: u64,
}

/// A service within an operation.
#[derive(Clone, PartialEq, Debug)]
pub struct ServiceShare {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Requests to it.
    pub figures: Figures,
}

/// Numbers of one operation, or of everything.
#[derive(Clone, PartialEq, Debug)]
pub struct OperationStats {
    /// How often it was asked for.
    pub figures: Figures,
    /// Services that served it, most requests first.
    pub services: Vec<ServiceShare>,
    /// Requests by route at the services that they enter at, most first.
    pub routes: Vec<RouteShare>,
    /// Failures by `error.type`, most first, at all services.
    pub errors: Vec<(String, u64)>,
    /// Retried calls.
    pub retries: u64,
    /// When it was last told of, within the window.
    pub last_seen_unix_nanos: u64,
}

/// A route of a service.
#[derive(Clone, PartialEq, Debug)]
pub struct RouteShare {
    /// The service.
    pub service: String,
    /// Its namespace.
    pub namespace: String,
    /// The template; empty where none is known.
    pub route: String,
    /// Requests to it.
    pub figures: Figures,
}

/// A pod, or an instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// `k8s.pod.name`, else `service.instance.id`.
    pub name: String,
    /// `k8s.node.name`; may be empty.
    pub node: String,
    /// `service.version`; may be empty.
    pub version: String,
    /// When it last sent anything.
    pub last_seen_unix_nanos: u64,
}

/// A service in a list, and by itself.
#[derive(Clone, PartialEq, Debug)]
pub struct ServiceRow {
    /// Name.
    pub name: String,
    /// Namespace; may be empty.
    pub namespace: String,
    /// Environment; may be empty.
    pub environment: String,
    /// The version that the newest of its pods told; may be empty.
    pub version: String,
    /// `k8s.deployment.name`; may be empty.
    pub deployment: String,
    /// Pods heard of in the window.
    pub pods: Vec<Pod>,
    /// Requests to it.
    pub figures: Figures,
    /// Requests a second.
    pub request_rate: f64,
    /// How it does.
    pub health: Health,
    /// Ids of nodes that call it.
    pub upstream: Vec<String>,
    /// Ids of nodes that it calls.
    pub downstream: Vec<String>,
    /// Whether a sidecar or filter of ours tells of it.
    pub ours: bool,
    /// When it was last told of.
    pub last_seen_unix_nanos: u64,
}

/// What sidecars of one service report of the context, by route where they know it: for the Context Doctor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Propagation {
    /// Service.
    pub service: String,
    /// Namespace.
    pub namespace: String,
    /// Environment.
    pub environment: String,
    /// Routes, most dropped first.
    pub routes: Vec<RoutePropagation>,
    /// Unusable headers by name.
    pub invalid: Vec<(String, u64)>,
    /// Outbound requests on which the sidecar restored what the application did not forward.
    pub restored: u64,
    /// Outbound requests without context while inbound ones were in flight.
    pub calls_without_context: u64,
    /// Outbound requests with a valid context of a trace that no inbound request in flight has.
    pub calls_of_other_traces: u64,
    /// Operation names that break the rule.
    pub operations_ignored: u64,
    /// Bodies that went on as they were although they may hold events, by reason.
    pub events_untouched: Vec<(String, u64)>,
}

/// What became of the context on one route.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RoutePropagation {
    /// The template; empty where none is known.
    pub route: String,
    /// Inbound exchanges whose outbound requests carried the context.
    pub forwarded: u64,
    /// Inbound exchanges whose outbound requests carried none.
    pub dropped: u64,
}

/// What the numbers cost and what they left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NumbersBooks {
    /// Data points taken.
    pub points: u64,
    /// Data points that told nothing that was not counted already.
    pub points_repeated: u64,
    /// Data points older than what was counted of their stream.
    pub points_late: u64,
    /// Data points of metrics that are not read here.
    pub points_unknown: u64,
    /// Data points that make no sense: fewer buckets than bounds, a delta without a time.
    pub points_malformed: u64,
    /// Series of senders that ran long before we listened: their past is not counted.
    pub streams_joined_late: u64,
    /// Senders' series remembered.
    pub streams: u64,
    /// Senders' series forgotten at the bound.
    pub streams_forgotten: u64,
    /// Requests counted under `__other__` because of a cap.
    pub over_cap: u64,
    /// Keys in use.
    pub series: u64,
    /// Operations in use.
    pub operations: u64,
    /// Services in use.
    pub services: u64,
    /// Foreign spans offered.
    pub spans_foreign: u64,
    /// Foreign spans that became an estimate.
    pub spans_estimated: u64,
    /// Foreign spans that stand beside ours, so they are not counted.
    pub spans_beside_ours: u64,
    /// Span ids that left the map before their time because it was full.
    pub spans_pushed_out: u64,
    /// Bytes of memory in use, reckoned.
    pub bytes: u64,
    /// Minutes that became coarser before their time because of the bound of memory.
    pub minutes_coarsened_early: u64,
}
