//! Decodes a span whole. Must never fail: what is there was read once before; what is broken nevertheless is left out.

use super::proto::{Field, Fields};
use super::walk::{self, Check};
use crate::span::{Event, Link, Sender, Service, Span, Value};
use std::sync::Arc;

/// Levels of lists and maps that are decoded; what lies deeper becomes empty.
const DEPTH_MAX: u32 = 33;

/// Who sent spans, whole: shared by the spans that it sent.
#[derive(Clone, PartialEq, Debug)]
pub struct Origin {
    /// The service.
    pub service: Arc<Service>,
    /// Name of the scope.
    pub scope: Arc<str>,
    /// Whether the scope is ours.
    pub ours: bool,
}

fn owned(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

fn fields(raw: &[u8]) -> impl Iterator<Item = (u32, Field<'_>)> {
    Fields(raw).map_while(Result::ok)
}

impl Origin {
    /// Of a sender.
    #[must_use]
    pub fn of(sender: &Sender<'_>) -> Self {
        let pod = if sender.pod.is_empty() { sender.instance } else { sender.pod };
        let scope = fields(sender.scope).find_map(|field| match field {
            (1, Field::Bytes(name)) => Some(name),
            _ => None,
        });
        Self {
            service: Arc::new(Service {
                name: owned(sender.service),
                namespace: owned(sender.namespace),
                pod: owned(pod),
                version: owned(sender.version),
                deployment: owned(sender.deployment),
                node: owned(sender.node),
                environment: owned(sender.environment),
            }),
            scope: owned(scope.unwrap_or_default()).into(),
            ours: sender.ours,
        }
    }
}

/// Decodes a `Span` message; none when it is none that can be taken.
#[must_use]
pub fn span(raw: &[u8], origin: &Origin) -> Option<Span> {
    let incoming = walk::span(raw, &mut Check).ok()?.ok()?;
    let mut span = Span {
        trace_id: incoming.trace_id,
        span_id: incoming.span_id,
        parent: incoming.parent,
        kind: incoming.kind,
        status: incoming.status,
        status_message: String::new(),
        name: owned(incoming.name),
        trace_state: owned(incoming.trace_state),
        start_unix_nanos: incoming.start_unix_nanos,
        end_unix_nanos: incoming.end_unix_nanos,
        attributes: Vec::new(),
        events: Vec::new(),
        links: Vec::new(),
        service: Arc::clone(&origin.service),
        scope: Arc::clone(&origin.scope),
        ours: origin.ours,
    };
    for (number, value) in fields(raw) {
        match (number, value) {
            (9, Field::Bytes(raw)) => span.attributes.push(key_value(raw, 0)),
            (11, Field::Bytes(raw)) => span.events.push(event(raw)),
            (13, Field::Bytes(raw)) => span.links.extend(link(raw)),
            (15, Field::Bytes(raw)) => {
                for (number, value) in fields(raw) {
                    if let (2, Field::Bytes(message)) = (number, value) {
                        span.status_message = owned(message);
                    }
                }
            }
            _ => {}
        }
    }
    Some(span)
}

fn event(raw: &[u8]) -> Event {
    let mut event = Event { name: String::new(), at_unix_nanos: 0, attributes: Vec::new() };
    for (number, value) in fields(raw) {
        match (number, value) {
            (1, Field::Fixed64(at)) => event.at_unix_nanos = at,
            (2, Field::Bytes(name)) => event.name = owned(name),
            (3, Field::Bytes(raw)) => event.attributes.push(key_value(raw, 0)),
            _ => {}
        }
    }
    event
}

/// A link; none when its ids are of the wrong length.
fn link(raw: &[u8]) -> Option<Link> {
    let (mut trace_id, mut span_id, mut attributes) = (None, None, Vec::new());
    for (number, value) in fields(raw) {
        match (number, value) {
            (1, Field::Bytes(id)) => trace_id = id.try_into().ok(),
            (2, Field::Bytes(id)) => span_id = id.try_into().ok(),
            (4, Field::Bytes(raw)) => attributes.push(key_value(raw, 0)),
            _ => {}
        }
    }
    Some(Link { trace_id: trace_id?, span_id: span_id?, attributes })
}

fn key_value(raw: &[u8], depth: u32) -> (String, Value) {
    let (mut key, mut any) = (String::new(), Value::Empty);
    for (number, value) in fields(raw) {
        match (number, value) {
            (1, Field::Bytes(name)) => key = owned(name),
            (2, Field::Bytes(raw)) => any = any_value(raw, depth),
            _ => {}
        }
    }
    (key, any)
}

fn any_value(raw: &[u8], depth: u32) -> Value {
    let mut any = Value::Empty;
    if depth > DEPTH_MAX {
        return any;
    }
    for (number, value) in fields(raw) {
        any = match (number, value) {
            (1, Field::Bytes(text)) => Value::Text(owned(text)),
            (2, Field::Varint(flag)) => Value::Flag(flag != 0),
            (3, Field::Varint(int)) => Value::Int(int.cast_signed()),
            (4, Field::Fixed64(bits)) => Value::Double(f64::from_bits(bits)),
            (5, Field::Bytes(raw)) => Value::List(
                fields(raw)
                    .filter_map(|field| match field {
                        (1, Field::Bytes(raw)) => Some(any_value(raw, depth + 1)),
                        _ => None,
                    })
                    .collect(),
            ),
            (6, Field::Bytes(raw)) => Value::Map(
                fields(raw)
                    .filter_map(|field| match field {
                        (1, Field::Bytes(raw)) => Some(key_value(raw, depth + 1)),
                        _ => None,
                    })
                    .collect(),
            ),
            (7, Field::Bytes(bytes)) => Value::Bytes(bytes.to_vec()),
            _ => any,
        };
    }
    any
}
