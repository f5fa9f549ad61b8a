//! Events on the wire: finds the places where a CloudEvent or a Pub/Sub message carries its context, and
//! replaces them byte for byte. Never decides which context goes where, and never gives out bytes that
//! differ from the input in anything but the members asked for: what cannot be read is left as it was, with
//! a reason to count.

mod base64;
pub mod cloudevent;
pub mod detect;
pub mod grpc_frame;
pub mod json;
pub mod protobuf;
pub mod pubsub;
pub mod pubsub_grpc;
pub mod pubsub_json;
pub mod splice;

#[cfg(test)]
mod judge;
#[cfg(test)]
mod vectors;

/// Bytes of one body or gRPC message that is read at all; offsets are kept in 32 bits. The host's own body
/// limit is far below. Over it: [`Untouched::TooLarge`].
pub const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Nested arrays and objects inside one value: one bit each of a 128-bit stack, so hostile nesting costs no
/// memory. Common parsers stop at 128 or earlier. Over it: [`Untouched::TooDeep`].
pub const NESTING_MAX: u32 = 128;
/// Events of a batch, or messages of one call; Pub/Sub allows 1000. Over it: [`Untouched::TooMany`].
pub const EVENTS_MAX: usize = 4096;
/// Members of one event, or attributes of one message; Pub/Sub allows 100. Over it: [`Untouched::TooMany`].
pub const MEMBERS_MAX: usize = 256;
/// Members of all events of one body, 16 bytes of outline each. Over it: [`Untouched::TooMany`].
pub const MEMBERS_TOTAL_MAX: usize = 65_536;
/// Edits of one event or message. Over it: [`Untouched::TooMany`].
pub const EDITS_MAX: usize = 32;
/// Bytes of a text that has to be unescaped to be read. Longer: seen as absent; unescaped texts are
/// borrowed and have no bound of their own.
pub const UNESCAPED_BYTES_MAX: usize = 8192;

/// One change of an event's extension or a message's attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edit<'a> {
    /// The extension or attribute, spelled as on the wire (`traceparent`, `ce-traceparent`).
    pub name: &'a str,
    /// The value it gets; `None` removes it.
    pub value: Option<&'a str>,
}

impl<'a> Edit<'a> {
    /// Replaces the member by this value, or adds it.
    #[must_use]
    pub fn set(name: &'a str, value: &'a str) -> Self {
        Self { name, value: Some(value) }
    }

    /// Removes the member wherever it stands.
    #[must_use]
    pub fn remove(name: &'a str) -> Self {
        Self { name, value: None }
    }
}

/// The edit that decides about a name: the last one that speaks of it.
fn deciding<'e, 'a>(edits: &'e [Edit<'a>], is: impl Fn(&str) -> bool) -> Option<&'e Edit<'a>> {
    edits.iter().rfind(|edit| is(edit.name))
}

/// The edits that add a member none of the `present` names has, each name once.
fn additions<'e>(
    edits: &'e [Edit<'e>],
    present: impl Fn(&str) -> bool,
) -> impl Iterator<Item = (&'e str, &'e str)> {
    edits.iter().enumerate().filter_map(move |(i, edit)| {
        let again = edits.iter().skip(i + 1).any(|later| later.name == edit.name);
        let value = edit.value.filter(|_| !again && !present(edit.name))?;
        Some((edit.name, value))
    })
}

/// Why a body stays as it was. Each reason is a label of the counter `events_untouched`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Untouched {
    /// Longer than [`BODY_BYTES_MAX`].
    TooLarge,
    /// JSON that is not UTF-8 (RFC 8259 §8.1).
    NotUtf8,
    /// Not JSON (RFC 8259).
    NotJson,
    /// Nested deeper than [`NESTING_MAX`].
    TooDeep,
    /// More events, members or edits than the bounds allow.
    TooMany,
    /// Not the shape of the event or message it should be: another JSON value, or a part that occurs twice.
    Shape,
    /// `data` that is not base64 in either alphabet (RFC 4648).
    NotBase64,
    /// Not a protobuf message: cut short, a varint over ten bytes, field 0, or a group.
    NotProtobuf,
    /// Events edited out of order, twice, or in another body: a mistake of the caller.
    Order,
    /// An extension that has no header name here: a mistake of the caller.
    UnknownName,
}

impl Untouched {
    /// The reason as a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::NotUtf8 => "not_utf8",
            Self::NotJson => "not_json",
            Self::TooDeep => "too_deep",
            Self::TooMany => "too_many",
            Self::Shape => "shape",
            Self::NotBase64 => "not_base64",
            Self::NotProtobuf => "not_protobuf",
            Self::Order => "order",
            Self::UnknownName => "unknown_name",
        }
    }
}

impl std::fmt::Display for Untouched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "body is over the bound for reading events",
            Self::NotUtf8 => "body is not UTF-8",
            Self::NotJson => "body is not JSON",
            Self::TooDeep => "body is nested too deeply",
            Self::TooMany => "body holds more events or members than the bound",
            Self::Shape => "body does not have the shape of its event or message",
            Self::NotBase64 => "message data is not base64",
            Self::NotProtobuf => "message is not protobuf",
            Self::Order => "events were edited out of order or twice",
            Self::UnknownName => "extension has no header name",
        })
    }
}

impl std::error::Error for Untouched {}
