//! Walks an `ExportTraceServiceRequest` where it lies: who sent, and each span with the fields that are needed while
//! it comes in. Must never copy a span, and must read every byte that it lets pass, so that nothing that was taken
//! turns out to be broken later.

use super::proto::{Field, Malformed, varint_len};
use crate::span::{Incoming, Kind, Known, Sender, SpanId, Status, TraceId};

/// Levels of lists and maps in a value.
const DEPTH_MAX: u32 = 32;

/// A piece of a span, told in the order of the message, so that the message can be put together again.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Slot<'a> {
    /// `trace_id`, sixteen bytes.
    TraceId,
    /// `span_id`, eight bytes.
    SpanId,
    /// `parent_span_id`, eight bytes.
    Parent,
    /// `start_time_unix_nano`.
    Start,
    /// `end_time_unix_nano`.
    End,
    /// A field as it is, tag included: one that has few values.
    Literal(&'a [u8]),
    /// A field of wire type 2.
    Bytes {
        /// Its number.
        number: u32,
        /// What is in it.
        value: &'a [u8],
    },
    /// An attribute.
    Attribute {
        /// Its key.
        key: &'a [u8],
        /// Its value.
        value: Any<'a>,
    },
}

/// The value of an attribute, borrowed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Any<'a> {
    /// `string_value`.
    Text(&'a [u8]),
    /// `int_value`.
    Int(u64),
    /// `bool_value`.
    Flag(bool),
    /// `double_value`, its bits.
    Double(u64),
    /// The `AnyValue` message of anything else.
    Other(&'a [u8]),
}

/// Takes the pieces of a span.
pub trait Slots<'a> {
    /// Whether anybody looks at [`Incoming::known`]; where nobody does it stays empty.
    const KNOWN: bool = true;
    /// A piece.
    fn slot(&mut self, slot: Slot<'a>);
    /// The span can't be put together from its pieces.
    fn irregular(&mut self);
}

/// Takes nothing.
pub struct NoSlots;

impl Slots<'_> for NoSlots {
    #[inline(always)]
    fn slot(&mut self, _: Slot<'_>) {}
    #[inline(always)]
    fn irregular(&mut self) {}
}

/// Takes nothing, and asks for no attributes: for reading whether a span is one.
pub struct Check;

impl Slots<'_> for Check {
    const KNOWN: bool = false;
    #[inline(always)]
    fn slot(&mut self, _: Slot<'_>) {}
    #[inline(always)]
    fn irregular(&mut self) {}
}

/// Why a span is not taken though its message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rejected {
    /// No trace id of sixteen bytes that are not all zero.
    TraceId,
    /// No span id of eight bytes that are not all zero.
    SpanId,
}

impl Rejected {
    /// What was expected.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TraceId => "trace_id: want 16 bytes that are not all zero",
            Self::SpanId => "span_id: want 8 bytes that are not all zero",
        }
    }
}

/// The head of a field, with a note of varints that are longer than they need be.
#[inline(always)]
fn field<'a>(bytes: &'a [u8], odd: &mut bool) -> Option<(u32, Field<'a>, &'a [u8])> {
    // The usual head: a tag and a length of one byte each.
    if let [tag, len, rest @ ..] = bytes
        && tag & 0x87 == 2
        && *len < 0x80
        && *tag >= 8
    {
        let (value, rest) = rest.split_at_checked(usize::from(*len))?;
        return Some((u32::from(tag >> 3), Field::Bytes(value), rest));
    }
    let (number, value, rest) = super::proto::field(bytes)?;
    let taken = bytes.len() - rest.len();
    let tag = varint_len(u64::from(number) << 3);
    let canonical = tag
        + match value {
            Field::Varint(value) => varint_len(value),
            Field::Fixed64(_) => 8,
            Field::Bytes(value) => varint_len(value.len() as u64) + value.len(),
            Field::Fixed32(_) => 4,
        };
    *odd |= taken != canonical;
    Some((number, value, rest))
}

/// Number, value, and the whole field with its tag.
type Whole<'a> = (u32, Field<'a>, &'a [u8]);

struct Each<'a, 'o> {
    rest: &'a [u8],
    odd: &'o mut bool,
    name: &'static str,
}

impl<'a> Each<'a, '_> {
    #[inline(always)]
    fn next(&mut self) -> Result<Option<Whole<'a>>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let Some((number, value, rest)) = field(self.rest, self.odd) else {
            return Err(Malformed { field: self.name, want: "a protobuf message" });
        };
        let all = self.rest.get(..self.rest.len() - rest.len()).unwrap_or_default();
        self.rest = rest;
        Ok(Some((number, value, all)))
    }
}

#[cold]
fn wrong<T>(field: &'static str, want: &'static str) -> Result<T, Malformed> {
    Err(Malformed { field, want })
}

/// Reads a `Span` message. The outer error is a message that is no span; the inner one a span that can't be taken.
///
/// # Errors
/// When the bytes are no span.
#[inline]
pub fn span<'a, S: Slots<'a>>(
    raw: &'a [u8],
    slots: &mut S,
) -> Result<Result<Incoming<'a>, Rejected>, Malformed> {
    let mut odd = false;
    let mut span = Incoming { raw, ..Incoming::default() };
    let (mut ids, mut parents, mut starts, mut ends) = ((0_u32, 0_u32), 0_u32, 0_u32, 0_u32);
    let mut each = Each { rest: raw, odd: &mut odd, name: "spans" };
    while let Some((number, value, all)) = each.next()? {
        match (number, value) {
            (9, Field::Bytes(attribute)) => {
                read_attribute(attribute, &mut span.known, slots)?;
            }
            (1, Field::Bytes(id)) => {
                ids.0 += 1;
                span.trace_id = id.try_into().unwrap_or_default();
                slots.slot(Slot::TraceId);
            }
            (2, Field::Bytes(id)) => {
                ids.1 += 1;
                span.span_id = id.try_into().unwrap_or_default();
                slots.slot(Slot::SpanId);
            }
            (3, Field::Bytes(value)) => {
                span.trace_state = value;
                slots.slot(Slot::Bytes { number: 3, value });
            }
            (4, Field::Bytes(value)) => {
                span.parent = SpanId::try_from(value).ok().filter(|id| *id != [0; 8]);
                parents += 1;
                if span.parent.is_some() {
                    slots.slot(Slot::Parent);
                } else {
                    slots.slot(Slot::Bytes { number: 4, value });
                }
            }
            (5, Field::Bytes(value)) => {
                span.name = value;
                slots.slot(Slot::Bytes { number: 5, value });
            }
            (6, Field::Varint(kind)) => {
                span.kind = read_kind(kind);
                slots.slot(Slot::Literal(all));
            }
            (7, Field::Fixed64(at)) => {
                starts += 1;
                span.start_unix_nanos = at;
                slots.slot(Slot::Start);
            }
            (8, Field::Fixed64(at)) => {
                ends += 1;
                span.end_unix_nanos = at;
                slots.slot(Slot::End);
            }
            (11, Field::Bytes(value)) => {
                read_event(value)?;
                slots.slot(Slot::Bytes { number: 11, value });
            }
            (13, Field::Bytes(value)) => {
                read_link(value)?;
                span.links = span.links.saturating_add(1);
                slots.slot(Slot::Bytes { number: 13, value });
            }
            (15, Field::Bytes(value)) => {
                span.status = read_status(value)?;
                slots.slot(Slot::Bytes { number: 15, value });
            }
            (10 | 12 | 14, Field::Varint(_)) | (16, Field::Fixed32(_)) => slots.slot(Slot::Literal(all)),
            (1..=16, _) => return wrong("spans", "fields of the types that opentelemetry.proto gives them"),
            _ => slots.irregular(),
        }
    }
    if odd || ids != (1, 1) || parents > 1 || starts > 1 || ends > 1 {
        slots.irregular();
    }
    if span.trace_id == TraceId::default() {
        return Ok(Err(Rejected::TraceId));
    }
    if span.span_id == SpanId::default() {
        return Ok(Err(Rejected::SpanId));
    }
    Ok(Ok(span))
}

pub(super) fn read_kind(kind: u64) -> Kind {
    match kind {
        1 => Kind::Internal,
        2 => Kind::Server,
        3 => Kind::Client,
        4 => Kind::Producer,
        5 => Kind::Consumer,
        _ => Kind::Unspecified,
    }
}

fn read_status(raw: &[u8]) -> Result<Status, Malformed> {
    let mut status = Status::Unset;
    let mut odd = false;
    let mut each = Each { rest: raw, odd: &mut odd, name: "spans.status" };
    while let Some((number, value, _)) = each.next()? {
        match (number, value) {
            (3, Field::Varint(1)) => status = Status::Ok,
            (3, Field::Varint(2)) => status = Status::Error,
            (3, Field::Varint(_)) => status = Status::Unset,
            (3, _) => return wrong("spans.status.code", "a number"),
            (2, Field::Bytes(_)) => {}
            (2, _) => return wrong("spans.status.message", "text"),
            _ => {}
        }
    }
    Ok(status)
}

fn read_event(raw: &[u8]) -> Result<(), Malformed> {
    let mut odd = false;
    let mut each = Each { rest: raw, odd: &mut odd, name: "spans.events" };
    while let Some((number, value, _)) = each.next()? {
        match (number, value) {
            (3, Field::Bytes(attribute)) => check_attribute(attribute, "spans.events.attributes")?,
            (1, Field::Fixed64(_)) | (2, Field::Bytes(_)) | (4, Field::Varint(_)) => {}
            (1..=4, _) => {
                return wrong("spans.events", "fields of the types that opentelemetry.proto gives them");
            }
            _ => {}
        }
    }
    Ok(())
}

fn read_link(raw: &[u8]) -> Result<(), Malformed> {
    let mut odd = false;
    let mut each = Each { rest: raw, odd: &mut odd, name: "spans.links" };
    while let Some((number, value, _)) = each.next()? {
        match (number, value) {
            (4, Field::Bytes(attribute)) => check_attribute(attribute, "spans.links.attributes")?,
            (1..=3, Field::Bytes(_)) | (5, Field::Varint(_)) | (6, Field::Fixed32(_)) => {}
            (1..=6, _) => {
                return wrong("spans.links", "fields of the types that opentelemetry.proto gives them");
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_attribute(raw: &[u8], name: &'static str) -> Result<(), Malformed> {
    let mut odd = false;
    key_value(raw, name, 0, &mut odd).map(drop)
}

/// A `KeyValue`: key, value, and whether both were there once, in this order, and nothing else.
#[inline]
fn key_value<'a>(
    raw: &'a [u8],
    name: &'static str,
    depth: u32,
    odd: &mut bool,
) -> Result<(&'a [u8], Option<Any<'a>>, bool), Malformed> {
    let (mut key, mut any, mut fields, mut in_order) = (&[][..], None, 0_u32, true);
    let mut each = Each { rest: raw, odd, name };
    while let Some((number, value, _)) = each.next()? {
        fields += 1;
        match (number, value) {
            (1, Field::Bytes(value)) => {
                in_order &= fields == 1;
                key = value;
            }
            (2, Field::Bytes(value)) => {
                in_order &= fields == 2;
                any = Some(any_value(value, name, depth, each.odd)?);
            }
            (1 | 2, _) => return wrong(name, "a key and a value"),
            _ => in_order = false,
        }
    }
    Ok((key, any, in_order && fields == 2))
}

/// An `AnyValue`. `Other` for whatever is not one plain value alone.
#[inline]
fn any_value<'a>(
    raw: &'a [u8],
    name: &'static str,
    depth: u32,
    odd: &mut bool,
) -> Result<Any<'a>, Malformed> {
    let mut any = Any::Other(raw);
    let mut fields = 0_u32;
    let mut each = Each { rest: raw, odd, name };
    while let Some((number, value, _)) = each.next()? {
        fields += 1;
        any = match (number, value) {
            (1, Field::Bytes(text)) => Any::Text(text),
            (2, Field::Varint(flag @ 0..=1)) => Any::Flag(flag == 1),
            (3, Field::Varint(int)) => Any::Int(int),
            (4, Field::Fixed64(bits)) => Any::Double(bits),
            (5, Field::Bytes(list)) => {
                check_list(list, name, depth)?;
                Any::Other(raw)
            }
            (6, Field::Bytes(map)) => {
                check_map(map, name, depth)?;
                Any::Other(raw)
            }
            (1..=7, _) if !matches!((number, value), (7, Field::Bytes(_)) | (2, Field::Varint(_))) => {
                return wrong(name, "a value of the types that opentelemetry.proto gives it");
            }
            _ => Any::Other(raw),
        };
    }
    Ok(if fields == 1 { any } else { Any::Other(raw) })
}

fn check_list(raw: &[u8], name: &'static str, depth: u32) -> Result<(), Malformed> {
    if depth >= DEPTH_MAX {
        return wrong(name, "values of 32 levels at the most");
    }
    let mut odd = false;
    let mut each = Each { rest: raw, odd: &mut odd, name };
    while let Some((number, value, _)) = each.next()? {
        match (number, value) {
            (1, Field::Bytes(value)) => drop(any_value(value, name, depth + 1, each.odd)?),
            (1, _) => return wrong(name, "a list of values"),
            _ => {}
        }
    }
    Ok(())
}

fn check_map(raw: &[u8], name: &'static str, depth: u32) -> Result<(), Malformed> {
    if depth >= DEPTH_MAX {
        return wrong(name, "values of 32 levels at the most");
    }
    let mut odd = false;
    let mut each = Each { rest: raw, odd: &mut odd, name };
    while let Some((number, value, _)) = each.next()? {
        match (number, value) {
            (1, Field::Bytes(pair)) => drop(key_value(pair, name, depth + 1, each.odd)?),
            (1, _) => return wrong(name, "pairs of a key and a value"),
            _ => {}
        }
    }
    Ok(())
}

/// The usual attribute: a short key, then one plain value, each length a byte.
#[inline(always)]
fn plain_attribute(raw: &[u8]) -> Option<(&[u8], Any<'_>)> {
    let [0x0a, key_len @ 0..=0x7f, rest @ ..] = raw else { return None };
    let (key, rest) = rest.split_at_checked(usize::from(*key_len))?;
    let [0x12, any_len @ 0..=0x7f, any @ ..] = rest else { return None };
    if any.len() != usize::from(*any_len) {
        return None;
    }
    let any = match any {
        [0x0a, len @ 0..=0x7f, text @ ..] if text.len() == usize::from(*len) => Any::Text(text),
        [0x18, int @ 0..=0x7f] => Any::Int(u64::from(*int)),
        [0x18, low @ 0x80..=0xff, high @ 1..=0x7f] => Any::Int(u64::from(low & 0x7f) | u64::from(*high) << 7),
        [0x10, flag @ 0..=1] => Any::Flag(*flag == 1),
        _ => return None,
    };
    Some((key, any))
}

#[inline(always)]
fn read_attribute<'a, S: Slots<'a>>(
    raw: &'a [u8],
    known: &mut Known<'a>,
    slots: &mut S,
) -> Result<(), Malformed> {
    if let Some((key, value)) = plain_attribute(raw) {
        slots.slot(Slot::Attribute { key, value });
        if S::KNOWN {
            note(key, value, known);
        }
        return Ok(());
    }
    let mut odd = false;
    let (key, any, regular) = key_value(raw, "spans.attributes", 0, &mut odd)?;
    match any {
        // Oddities inside of lists and maps stay in the bytes that are kept as they are.
        Some(value) if regular && !odd => slots.slot(Slot::Attribute { key, value }),
        Some(_) | None => slots.slot(Slot::Bytes { number: 9, value: raw }),
    }
    if let (true, Some(value)) = (S::KNOWN, any) {
        note(key, value, known);
    }
    Ok(())
}

/// Names of gRPC's status codes by number.
const GRPC_STATUS: [&[u8]; 17] = [
    b"OK",
    b"CANCELLED",
    b"UNKNOWN",
    b"INVALID_ARGUMENT",
    b"DEADLINE_EXCEEDED",
    b"NOT_FOUND",
    b"ALREADY_EXISTS",
    b"PERMISSION_DENIED",
    b"RESOURCE_EXHAUSTED",
    b"FAILED_PRECONDITION",
    b"ABORTED",
    b"OUT_OF_RANGE",
    b"UNIMPLEMENTED",
    b"INTERNAL",
    b"UNAVAILABLE",
    b"DATA_LOSS",
    b"UNAUTHENTICATED",
];

fn text(value: Any<'_>) -> &[u8] {
    match value {
        Any::Text(text) => text,
        Any::Int(_) | Any::Flag(_) | Any::Double(_) | Any::Other(_) => &[],
    }
}

fn number(value: Any<'_>) -> Option<u64> {
    match value {
        Any::Int(value) => i64::try_from(value).is_ok().then_some(value),
        Any::Text(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        Any::Flag(_) | Any::Double(_) | Any::Other(_) => None,
    }
}

fn grpc_status(value: Any<'_>) -> &[u8] {
    match (text(value), number(value)) {
        (name @ [b'A'..=b'Z', ..], _) => name,
        (_, Some(code)) => {
            usize::try_from(code).ok().and_then(|code| GRPC_STATUS.get(code)).copied().unwrap_or_default()
        }
        _ => &[],
    }
}

fn narrow<T: TryFrom<u64>>(value: Any<'_>) -> Option<T> {
    number(value).and_then(|value| T::try_from(value).ok())
}

/// What an attribute tells that is known here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Noted {
    Operation,
    UiEvent,
    Route,
    Method,
    OldMethod,
    HttpStatus,
    OldHttpStatus,
    ErrorType,
    Resends,
    ServerAddress,
    ServerPort,
    Peer,
    OldPeer,
    PeerNamespace,
    RpcMethod,
    RpcStatus,
    OldRpcStatus,
    MessagingSystem,
    Destination,
    Subscription,
    MessageAge,
    KeepReason,
    Db,
    OldDb,
}

/// What an attribute of this key tells.
#[inline]
pub(crate) fn noted(key: &[u8]) -> Option<Noted> {
    Some(match key {
        b"app.operation.name" => Noted::Operation,
        b"ui.event" => Noted::UiEvent,
        b"http.route" => Noted::Route,
        b"http.request.method" => Noted::Method,
        b"http.method" => Noted::OldMethod,
        b"http.response.status_code" => Noted::HttpStatus,
        b"http.status_code" => Noted::OldHttpStatus,
        b"error.type" => Noted::ErrorType,
        b"http.request.resend_count" => Noted::Resends,
        b"server.address" => Noted::ServerAddress,
        b"server.port" => Noted::ServerPort,
        b"throughline.peer.service" => Noted::Peer,
        b"peer.service" | b"service.peer.name" => Noted::OldPeer,
        b"throughline.peer.namespace" => Noted::PeerNamespace,
        b"rpc.method" => Noted::RpcMethod,
        b"rpc.status_code" | b"rpc.response.status_code" => Noted::RpcStatus,
        b"rpc.grpc.status_code" => Noted::OldRpcStatus,
        b"messaging.system" => Noted::MessagingSystem,
        b"messaging.destination.name" => Noted::Destination,
        b"messaging.destination.subscription.name" => Noted::Subscription,
        b"throughline.message.age_ms" => Noted::MessageAge,
        b"throughline.keep.reason" => Noted::KeepReason,
        b"db.system.name" => Noted::Db,
        b"db.system" => Noted::OldDb,
        _ => return None,
    })
}

/// Notes what an attribute tells.
#[inline]
pub(crate) fn tell<'a>(noted: Noted, value: Any<'a>, known: &mut Known<'a>) {
    // Older names fill what is empty only, so that the order of attributes does not matter.
    match noted {
        Noted::Operation => known.operation = text(value),
        Noted::UiEvent => known.ui_event = text(value),
        Noted::Route => known.route = text(value),
        Noted::Method => known.method = text(value),
        Noted::OldMethod if known.method.is_empty() => known.method = text(value),
        Noted::HttpStatus => known.http_status = narrow(value).unwrap_or_default(),
        Noted::OldHttpStatus if known.http_status == 0 => {
            known.http_status = narrow(value).unwrap_or_default();
        }
        Noted::ErrorType => known.error_type = text(value),
        Noted::Resends => known.resends = narrow(value).unwrap_or_default(),
        Noted::ServerAddress => known.server_address = text(value),
        Noted::ServerPort => known.server_port = narrow(value).unwrap_or_default(),
        Noted::Peer => known.peer_service = text(value),
        Noted::OldPeer if known.peer_service.is_empty() => known.peer_service = text(value),
        Noted::PeerNamespace => known.peer_namespace = text(value),
        Noted::RpcMethod => known.rpc_method = text(value),
        Noted::RpcStatus => known.rpc_status = grpc_status(value),
        Noted::OldRpcStatus if known.rpc_status.is_empty() => known.rpc_status = grpc_status(value),
        Noted::MessagingSystem => known.messaging_system = text(value),
        Noted::Destination => known.messaging_destination = text(value),
        Noted::Subscription => known.messaging_subscription = text(value),
        Noted::MessageAge => known.message_age_ms = number(value),
        Noted::KeepReason => known.keep_reason = text(value),
        Noted::Db => known.db_system = text(value),
        Noted::OldDb if known.db_system.is_empty() => known.db_system = text(value),
        Noted::OldMethod | Noted::OldHttpStatus | Noted::OldPeer | Noted::OldRpcStatus | Noted::OldDb => {}
    }
}

#[inline(always)]
fn note<'a>(key: &'a [u8], value: Any<'a>, known: &mut Known<'a>) {
    if let Some(noted) = noted(key) {
        tell(noted, value, known);
    }
}

/// Reads a `Resource` and an `InstrumentationScope`, as they came.
///
/// # Errors
/// When the bytes are neither.
pub fn sender<'a>(
    resource: &'a [u8],
    resource_schema: &'a [u8],
    scope: &'a [u8],
    scope_schema: &'a [u8],
) -> Result<Sender<'a>, Malformed> {
    let mut out = Sender { resource, scope, resource_schema, scope_schema, ..Sender::default() };
    let (mut k8s_namespace, mut environment) = (&[][..], &[][..]);
    let mut odd = false;
    let mut each = Each { rest: resource, odd: &mut odd, name: "resource" };
    while let Some((field, value, _)) = each.next()? {
        let raw = match (field, value) {
            (1, Field::Bytes(raw)) => raw,
            (1, _) => return wrong("resource.attributes", "attributes"),
            (2, Field::Varint(_)) | (3, Field::Bytes(_)) => continue,
            (2 | 3, _) => {
                return wrong("resource", "fields of the types that opentelemetry.proto gives them");
            }
            _ => continue,
        };
        let (key, Some(value), _) = key_value(raw, "resource.attributes", 0, each.odd)? else { continue };
        let to = match key {
            b"service.name" => &mut out.service,
            b"service.namespace" => &mut out.namespace,
            b"service.version" => &mut out.version,
            b"service.instance.id" => &mut out.instance,
            b"k8s.namespace.name" => &mut k8s_namespace,
            b"k8s.pod.name" => &mut out.pod,
            b"k8s.node.name" => &mut out.node,
            b"k8s.deployment.name" => &mut out.deployment,
            b"deployment.environment.name" => &mut out.environment,
            b"deployment.environment" => &mut environment,
            _ => continue,
        };
        *to = text(value);
    }
    if out.namespace.is_empty() {
        out.namespace = k8s_namespace;
    }
    if out.environment.is_empty() {
        out.environment = environment;
    }
    let mut each = Each { rest: scope, odd: &mut odd, name: "scope" };
    while let Some((field, value, _)) = each.next()? {
        match (field, value) {
            (1, Field::Bytes(name)) => out.ours = name == throughline_core::names::SCOPE.as_bytes(),
            (3, Field::Bytes(attribute)) => check_attribute(attribute, "scope.attributes")?,
            (2, Field::Bytes(_)) | (4, Field::Varint(_)) => {}
            (1..=4, _) => return wrong("scope", "fields of the types that opentelemetry.proto gives them"),
            _ => {}
        }
    }
    Ok(out)
}

/// Takes what a walk finds: first who sent, then the spans of that sender.
pub trait Visit<'a> {
    /// Spans of this sender follow.
    fn sender(&mut self, sender: Sender<'a>);
    /// The `Span` message of a span, not yet read.
    ///
    /// # Errors
    /// When it is none; ends the walk.
    fn span(&mut self, raw: &'a [u8]) -> Result<(), Malformed>;
}

/// Walks an `ExportTraceServiceRequest`. Senders are told before their spans, wherever they stand in the message.
///
/// # Errors
/// When the message is wrong; what was told until then does not count.
pub fn traces<'a>(body: &'a [u8], visit: &mut impl Visit<'a>) -> Result<(), Malformed> {
    let mut odd = false;
    let mut each = Each { rest: body, odd: &mut odd, name: "request" };
    while let Some((number, value, _)) = each.next()? {
        match (number, value) {
            (1, Field::Bytes(raw)) => resource_spans(raw, visit)?,
            (1, _) => return wrong("resource_spans", "messages"),
            _ => {}
        }
    }
    Ok(())
}

fn resource_spans<'a>(raw: &'a [u8], visit: &mut impl Visit<'a>) -> Result<(), Malformed> {
    let (mut resource, mut schema) = (&[][..], &[][..]);
    let mut odd = false;
    let mut each = Each { rest: raw, odd: &mut odd, name: "resource_spans" };
    while let Some((number, value, _)) = each.next()? {
        match (number, value) {
            (1, Field::Bytes(raw)) => resource = raw,
            (3, Field::Bytes(raw)) => schema = raw,
            (2, Field::Bytes(_)) => {}
            (1..=3, _) => return wrong("resource_spans", "resource, scope_spans and schema_url"),
            _ => {}
        }
    }
    let mut each = Each { rest: raw, odd: &mut odd, name: "resource_spans" };
    while let Some((number, value, _)) = each.next()? {
        if let (2, Field::Bytes(raw)) = (number, value) {
            scope_spans(raw, resource, schema, visit)?;
        }
    }
    Ok(())
}

fn scope_spans<'a>(
    raw: &'a [u8],
    resource: &'a [u8],
    resource_schema: &'a [u8],
    visit: &mut impl Visit<'a>,
) -> Result<(), Malformed> {
    let (mut scope, mut schema) = (&[][..], &[][..]);
    let mut odd = false;
    let mut each = Each { rest: raw, odd: &mut odd, name: "scope_spans" };
    while let Some((number, value, _)) = each.next()? {
        match (number, value) {
            (1, Field::Bytes(raw)) => scope = raw,
            (3, Field::Bytes(raw)) => schema = raw,
            (2, Field::Bytes(_)) => {}
            (1..=3, _) => return wrong("scope_spans", "scope, spans and schema_url"),
            _ => {}
        }
    }
    visit.sender(sender(resource, resource_schema, scope, schema)?);
    let mut each = Each { rest: raw, odd: &mut odd, name: "scope_spans" };
    while let Some((number, value, _)) = each.next()? {
        if let (2, Field::Bytes(raw)) = (number, value) {
            visit.span(raw)?;
        }
    }
    Ok(())
}
