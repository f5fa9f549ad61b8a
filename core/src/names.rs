//! Every name that leaves the process, in one list: headers, span attributes, metrics. Dashboards, documents
//! and tests are held against these lists. Sources: OpenTelemetry semantic conventions 1.44 where a name is
//! theirs; names beginning with `throughline` are ours.

/// Header fields that we read or write, in lower case.
pub mod header {
    /// The user's business operation, carried along the whole way.
    pub const OPERATION: &str = "x-operation-name";
    /// A trace id by itself (32 digits), taken when no propagation header is there.
    pub const TRACE_ID: &str = "x-trace-id";
    /// How sidecars name themselves to each other; never reaches an application.
    pub const PEER: &str = "throughline-peer";
    /// Tells a caller's sidecar, on the answer, that this exchange is kept and why, so that it keeps its own; never
    /// reaches an application.
    pub const KEEP: &str = "throughline-keep";
    /// Why the sidecar itself answered; set on its own answers only.
    pub const ERROR: &str = "throughline-error";
    /// The trace context of the response, as the Trace Context draft words it for browsers.
    pub const SERVER_TIMING: &str = "server-timing";
    /// The trace context of the response (W3C Trace Context Level 3 draft).
    pub const TRACERESPONSE: &str = "traceresponse";
    /// Status of a gRPC call, in the trailers or in the head of a trailers-only answer.
    pub const GRPC_STATUS: &str = "grpc-status";
    /// OpenCensus' context in gRPC, which we neither read nor write.
    pub const GRPC_TRACE: &str = "grpc-trace-bin";
}

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident = $key:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $key;)*
        /// All of the above, in the order of this file.
        pub const ALL: &[&str] = &[$($key),*];
    };
}

/// Attribute keys of spans and resources.
pub mod attribute {
    keys! {
        /// Method, one of the known ones or `_OTHER`.
        HTTP_REQUEST_METHOD = "http.request.method";
        /// The method as it was sent, when it is not a known one.
        HTTP_REQUEST_METHOD_ORIGINAL = "http.request.method_original";
        /// Status code of the response, an integer.
        HTTP_RESPONSE_STATUS_CODE = "http.response.status_code";
        /// Route template such as `/clusters/{id}`.
        HTTP_ROUTE = "http.route";
        /// Path without query.
        URL_PATH = "url.path";
        /// Query without `?`, redacted.
        URL_QUERY = "url.query";
        /// `http` or `https`.
        URL_SCHEME = "url.scheme";
        /// The whole URL of a client's request, redacted.
        URL_FULL = "url.full";
        /// Host that the request names.
        SERVER_ADDRESS = "server.address";
        /// Port that the request names, an integer.
        SERVER_PORT = "server.port";
        /// Address of the caller.
        CLIENT_ADDRESS = "client.address";
        /// `1.0`, `1.1` or `2`.
        NETWORK_PROTOCOL_VERSION = "network.protocol.version";
        /// The caller's `User-Agent`.
        USER_AGENT_ORIGINAL = "user_agent.original";
        /// Why the exchange failed, of low cardinality.
        ERROR_TYPE = "error.type";
        /// `grpc`.
        RPC_SYSTEM_NAME = "rpc.system.name";
        /// Full method, `package.Service/Method`.
        RPC_METHOD = "rpc.method";
        /// Status name of a gRPC call, such as `OK` or `UNAVAILABLE`.
        RPC_STATUS_CODE = "rpc.status_code";
        /// The user's business operation.
        OPERATION = "app.operation.name";
        /// What the user did in a page: `button_click`, `link_click`, `form_submit`, `route_change`, `custom`.
        UI_EVENT = "ui.event";
        /// When, in milliseconds since 1970.
        UI_TIMESTAMP = "ui.timestamp";
        /// What came of it: `ok`, `error`, `abandoned` when the page was left first.
        UI_RESULT = "ui.result";
        /// How requests came to be part of the operation: `explicit`, or `window` by the time in which they began.
        ATTRIBUTION = "app.operation.attribution";
        /// Service of the sidecar at the other end.
        PEER_SERVICE = "throughline.peer.service";
        /// Namespace of the sidecar at the other end.
        PEER_NAMESPACE = "throughline.peer.namespace";
        /// Why a root span was sampled: `always_on`, `ratio`, `full`, `adaptive`, `edge`;
        /// on any span that an operator's rule sampled against its parent: `on_demand`.
        SAMPLED_BY = "throughline.sampled.by";
        /// Why the span is there although the head of its trace said no: `error`, `slow`, `operation`, `route`,
        /// `header`, `downstream`. It was kept by this hop, so no probability is claimed for it.
        KEEP_REASON = "throughline.keep.reason";
        /// How the exchange ended when it did not complete: `caller_gone`, `drained`.
        END = "throughline.end";
        /// Set to `operation` where the sidecar restored what the application did not forward.
        RESTORED = "throughline.restored";
        /// What the sidecar did for itself: `export`, `control`, `drain`, `detection`.
        WORK = "throughline.work";
        /// What happened in doing so, in a sentence.
        WORK_DETAIL = "throughline.work.detail";
        /// `gcp_pubsub`.
        MESSAGING_SYSTEM = "messaging.system";
        /// What was done: `publish`, `receive`, `process`, `pull`, `acknowledge`.
        MESSAGING_OPERATION_NAME = "messaging.operation.name";
        /// The kind of it: `publish` (or `send`), `receive`, `process`, `settle`.
        MESSAGING_OPERATION_TYPE = "messaging.operation.type";
        /// Topic.
        MESSAGING_DESTINATION = "messaging.destination.name";
        /// Subscription.
        MESSAGING_SUBSCRIPTION = "messaging.destination.subscription.name";
        /// The id that the service gave the message.
        MESSAGING_MESSAGE_ID = "messaging.message.id";
        /// Messages of the exchange, when its span is not the message's own.
        MESSAGING_BATCH_COUNT = "messaging.batch.message_count";
        /// The ordering key.
        MESSAGING_ORDERING_KEY = "messaging.gcp_pubsub.message.ordering_key";
        /// The delivery attempt, from 1.
        MESSAGING_DELIVERY_ATTEMPT = "messaging.gcp_pubsub.message.delivery_attempt";
        /// Milliseconds from the publish, by the service's clock, to the delivery, by ours.
        MESSAGE_AGE_MS = "throughline.message.age_ms";
        /// `id` of the event.
        CLOUDEVENTS_ID = "cloudevents.event_id";
        /// `source` of the event.
        CLOUDEVENTS_SOURCE = "cloudevents.event_source";
        /// `type` of the event.
        CLOUDEVENTS_TYPE = "cloudevents.event_type";
        /// `specversion` of the event.
        CLOUDEVENTS_SPEC_VERSION = "cloudevents.event_spec_version";
        /// `subject` of the event.
        CLOUDEVENTS_SUBJECT = "cloudevents.event_subject";
        /// Name of the service.
        SERVICE_NAME = "service.name";
        /// Namespace of the service.
        SERVICE_NAMESPACE = "service.namespace";
        /// Which instance of the service.
        SERVICE_INSTANCE_ID = "service.instance.id";
        /// Name of what produced the telemetry: `throughline`.
        TELEMETRY_DISTRO_NAME = "telemetry.distro.name";
        /// Its version.
        TELEMETRY_DISTRO_VERSION = "telemetry.distro.version";
        /// `true` on the series that takes what is over the limit of series.
        METRIC_OVERFLOW = "otel.metric.overflow";
    }
    /// Prefix of captured request headers, by setting only.
    pub const REQUEST_HEADER_PREFIX: &str = "http.request.header.";
    /// Prefix of captured response headers, by setting only.
    pub const RESPONSE_HEADER_PREFIX: &str = "http.response.header.";
}

/// Metrics, as OTLP names them; Prometheus names are derived in [`crate::metrics`].
pub mod metric {
    /// Duration of inbound exchanges, seconds.
    pub const SERVER_DURATION: &str = "http.server.request.duration";
    /// Duration of outbound exchanges, seconds.
    pub const CLIENT_DURATION: &str = "http.client.request.duration";
    /// Messages that the application published.
    pub const MESSAGES_SENT: &str = "messaging.client.sent.messages";
    /// Messages that were delivered to the application.
    pub const MESSAGES_CONSUMED: &str = "messaging.client.consumed.messages";
    /// Duration of processing what was delivered, seconds.
    pub const PROCESS_DURATION: &str = "messaging.process.duration";
    /// From a message's publish to its delivery, seconds.
    pub const MESSAGE_LAG: &str = "throughline.message.lag";
    /// Inbound exchanges whose calls carried the context.
    pub const CONTEXT_FORWARDED: &str = "throughline.context.forwarded";
    /// Inbound exchanges whose calls carried none.
    pub const CONTEXT_DROPPED: &str = "throughline.context.dropped";
    /// Propagation headers that were unusable.
    pub const CONTEXT_INVALID: &str = "throughline.context.invalid";
    /// Calls on which something was restored.
    pub const CONTEXT_RESTORED: &str = "throughline.context.restored";
    /// Calls without context while exchanges were in flight.
    pub const CALLS_WITHOUT_CONTEXT: &str = "throughline.calls_without_context";
    /// Calls with the context of a trace that none of the exchanges in flight has.
    pub const CALLS_OF_OTHER_TRACES: &str = "throughline.calls_of_other_traces";
    /// Operation names that were left alone.
    pub const OPERATIONS_IGNORED: &str = "throughline.operations_ignored";
    /// Bodies that may hold events and went on as they were.
    pub const EVENTS_UNTOUCHED: &str = "throughline.events_untouched";
}

/// Name of the instrumentation scope of every span and metric.
pub const SCOPE: &str = "throughline";
/// Version of the instrumentation scope.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What stands for a value beyond a cap, in metric labels.
pub const OTHER: &str = "_other";
/// Our member of `tracestate`, seen by the application only: the span id of the inbound exchange.
pub const TRACESTATE_KEY: &[u8] = b"tl";
