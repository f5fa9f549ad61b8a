//! A span in two shapes: borrowed from the bytes of an OTLP message while it comes in ([`Incoming`]), and whole
//! when somebody asks for it ([`Span`]). Must never hold a span longer than the message or the answer.

/// Sixteen bytes that are not all zero.
pub type TraceId = [u8; 16];
/// Eight bytes that are not all zero.
pub type SpanId = [u8; 8];

/// A trace id as people write it: 32 hexadecimal digits that are not all 0.
#[must_use]
pub fn trace_id(text: &str) -> Option<TraceId> {
    // A sign before the digits would be read as well.
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
    number.filter(|number| *number != 0).map(u128::to_be_bytes)
}

/// `SpanKind` of OTLP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Kind {
    /// Not told.
    #[default]
    Unspecified,
    /// Work inside of a process.
    Internal,
    /// Serves a request.
    Server,
    /// Makes a request.
    Client,
    /// Hands over a message.
    Producer,
    /// Takes a message.
    Consumer,
}

/// `Status.code` of OTLP.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Status {
    /// Not told.
    #[default]
    Unset,
    /// Told to be good.
    Ok,
    /// Failed.
    Error,
}

/// Who sent spans or metrics: what a resource and a scope say, borrowed. Text that is missing is empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sender<'a> {
    /// `service.name`.
    pub service: &'a [u8],
    /// `service.namespace`, else `k8s.namespace.name`.
    pub namespace: &'a [u8],
    /// `service.version`.
    pub version: &'a [u8],
    /// `service.instance.id`.
    pub instance: &'a [u8],
    /// `k8s.pod.name`.
    pub pod: &'a [u8],
    /// `k8s.node.name`.
    pub node: &'a [u8],
    /// `k8s.deployment.name`.
    pub deployment: &'a [u8],
    /// `deployment.environment.name`, else `deployment.environment`.
    pub environment: &'a [u8],
    /// Whether the scope is ours: a sidecar or a filter of Throughline.
    pub ours: bool,
    /// The `Resource` message as it came.
    pub resource: &'a [u8],
    /// The `InstrumentationScope` message as it came.
    pub scope: &'a [u8],
    /// `schema_url` of the resource's spans.
    pub resource_schema: &'a [u8],
    /// `schema_url` of the scope's spans.
    pub scope_schema: &'a [u8],
}

/// One span of an OTLP message, borrowed: ids, moments, and the attributes that numbers and indexes need.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incoming<'a> {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// The parent; none for a root.
    pub parent: Option<SpanId>,
    /// Kind.
    pub kind: Kind,
    /// Status.
    pub status: Status,
    /// Name.
    pub name: &'a [u8],
    /// `tracestate`.
    pub trace_state: &'a [u8],
    /// Nanoseconds since 1970.
    pub start_unix_nanos: u64,
    /// Nanoseconds since 1970.
    pub end_unix_nanos: u64,
    /// Links that the span carries.
    pub links: u32,
    /// Attributes that are known here; text that is missing is empty.
    pub known: Known<'a>,
    /// The `Span` message as it came.
    pub raw: &'a [u8],
}

/// Attributes that are read while a span comes in. Names are those of `throughline_core::names::attribute`; older
/// names of the conventions (`http.status_code`, `http.method`, `rpc.grpc.status_code`, `peer.service`) count too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// `app.operation.name`.
    pub operation: &'a [u8],
    /// `ui.event`.
    pub ui_event: &'a [u8],
    /// `http.route`.
    pub route: &'a [u8],
    /// `http.request.method`.
    pub method: &'a [u8],
    /// `http.response.status_code`; 0 where there is none.
    pub http_status: u16,
    /// `error.type`.
    pub error_type: &'a [u8],
    /// `http.request.resend_count`.
    pub resends: u32,
    /// `server.address`.
    pub server_address: &'a [u8],
    /// `server.port`; 0 where there is none.
    pub server_port: u16,
    /// `throughline.peer.service`, else `peer.service`.
    pub peer_service: &'a [u8],
    /// `throughline.peer.namespace`.
    pub peer_namespace: &'a [u8],
    /// `rpc.method`.
    pub rpc_method: &'a [u8],
    /// `rpc.status_code`.
    pub rpc_status: &'a [u8],
    /// `messaging.system`.
    pub messaging_system: &'a [u8],
    /// `messaging.destination.name`.
    pub messaging_destination: &'a [u8],
    /// `messaging.destination.subscription.name`.
    pub messaging_subscription: &'a [u8],
    /// `throughline.message.age_ms`.
    pub message_age_ms: Option<u64>,
    /// `throughline.keep.reason`.
    pub keep_reason: &'a [u8],
    /// `db.system.name`, else `db.system`.
    pub db_system: &'a [u8],
}

/// The value of an attribute, whole.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Text; bytes that are no UTF-8 become U+FFFD.
    Text(String),
    /// `true` or `false`.
    Flag(bool),
    /// An integer.
    Int(i64),
    /// A number.
    Double(f64),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Several.
    List(Vec<Value>),
    /// By key.
    Map(Vec<(String, Value)>),
    /// Nothing.
    Empty,
}

/// Who sent a span, whole.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Service {
    /// `service.name`.
    pub name: String,
    /// `service.namespace`, else `k8s.namespace.name`.
    pub namespace: String,
    /// `k8s.pod.name`, else `service.instance.id`.
    pub pod: String,
    /// `service.version`.
    pub version: String,
    /// `k8s.deployment.name`.
    pub deployment: String,
    /// `k8s.node.name`.
    pub node: String,
    /// `deployment.environment.name`.
    pub environment: String,
}

/// An event of a span.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// Name.
    pub name: String,
    /// Nanoseconds since 1970.
    pub at_unix_nanos: u64,
    /// Attributes in their order.
    pub attributes: Vec<(String, Value)>,
}

/// A link of a span.
#[derive(Clone, PartialEq, Debug)]
pub struct Link {
    /// The other trace.
    pub trace_id: TraceId,
    /// The other span.
    pub span_id: SpanId,
    /// Attributes in their order.
    pub attributes: Vec<(String, Value)>,
}

/// A span, whole.
#[derive(Clone, PartialEq, Debug)]
pub struct Span {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// The parent; none for a root.
    pub parent: Option<SpanId>,
    /// Kind.
    pub kind: Kind,
    /// Status.
    pub status: Status,
    /// What goes with the status.
    pub status_message: String,
    /// Name.
    pub name: String,
    /// `tracestate`.
    pub trace_state: String,
    /// Nanoseconds since 1970.
    pub start_unix_nanos: u64,
    /// Nanoseconds since 1970.
    pub end_unix_nanos: u64,
    /// Attributes in their order.
    pub attributes: Vec<(String, Value)>,
    /// Events in their order.
    pub events: Vec<Event>,
    /// Links in their order.
    pub links: Vec<Link>,
    /// Who sent it.
    pub service: std::sync::Arc<Service>,
    /// Name of the scope.
    pub scope: std::sync::Arc<str>,
    /// Whether the scope is ours.
    pub ours: bool,
}

impl Span {
    /// The attribute of this key.
    #[must_use]
    pub fn attribute(&self, key: &str) -> Option<&Value> {
        self.attributes.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }
}
