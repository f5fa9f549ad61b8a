//! A finished span and its one encoding: `ScopeSpans.spans` as protobuf bytes.

use super::wire::{FIXED32, delimited, delimited_len, fixed64, head, uint, wide_tag};
use crate::ids::{Flags, SpanId, TraceId};

/// `Span.kind`, with OTLP's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Work inside one service.
    Internal = 1,
    /// A request that was served.
    Server = 2,
    /// A request that was made.
    Client = 3,
    /// A message that was published.
    Producer = 4,
    /// A message that was received or processed.
    Consumer = 5,
}

impl Kind {
    /// Every kind, in the order of OTLP's numbers.
    pub const ALL: [Self; 5] = [Self::Internal, Self::Server, Self::Client, Self::Producer, Self::Consumer];

    /// Where it stands in [`Kind::ALL`].
    pub(crate) fn place(self) -> usize {
        self as usize - 1
    }

    /// The label of metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Server => "server",
            Self::Client => "client",
            Self::Producer => "producer",
            Self::Consumer => "consumer",
        }
    }
}

/// `Span.status.code`. We never say OK: that is the application's to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Nothing to say.
    Unset,
    /// The exchange failed.
    Error,
}

/// What a span is a child of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parent {
    /// The parent's span id.
    pub span_id: SpanId,
    /// Whether it arrived from another process by a header.
    pub remote: bool,
}

/// A finished span, borrowed from the exchange that it tells of.
#[derive(Debug)]
pub struct Span<'a> {
    /// The trace.
    pub trace_id: TraceId,
    /// This span.
    pub span_id: SpanId,
    /// The flags that went on the wire with it.
    pub flags: Flags,
    /// Its parent, none for a root.
    pub parent: Option<Parent>,
    /// `tracestate` in normal form.
    pub trace_state: &'a [u8],
    /// Name, of low cardinality.
    pub name: &'a [&'a str],
    /// Kind.
    pub kind: Kind,
    /// Nanoseconds since 1970.
    pub start_unix_nanos: u64,
    /// Nanoseconds since 1970, never before the start.
    pub end_unix_nanos: u64,
    /// Encoded by [`super::Attributes::of_span`].
    pub attributes: &'a [u8],
    /// Encoded by [`link`].
    pub links: &'a [u8],
    /// Status.
    pub status: Status,
}

const SPANS: u8 = 2;
const TRACE_ID: u8 = 1;
const SPAN_ID: u8 = 2;
const TRACE_STATE: u8 = 3;
const PARENT_SPAN_ID: u8 = 4;
const NAME: u8 = 5;
const KIND: u8 = 6;
const START: u8 = 7;
const END: u8 = 8;
const LINKS: u8 = 13;
const STATUS: u8 = 15;
const FLAGS: u16 = 16;
/// `Status{code=3: STATUS_CODE_ERROR}`.
const STATUS_ERROR: [u8; 2] = [3 << 3, 2];
/// Bits 8 and 9 of `Span.flags`: whether the parent is remote is known, and is so.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

impl Span<'_> {
    /// Appends the span as one field `ScopeSpans.spans`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let name: usize = self.name.iter().map(|part| part.len()).sum();
        let body = self.body_len(name);
        out.reserve(body + 6);
        head(out, SPANS, body);
        delimited(out, TRACE_ID, self.trace_id.bytes());
        delimited(out, SPAN_ID, self.span_id.bytes());
        if !self.trace_state.is_empty() {
            delimited(out, TRACE_STATE, self.trace_state);
        }
        if let Some(parent) = self.parent {
            delimited(out, PARENT_SPAN_ID, parent.span_id.bytes());
        }
        head(out, NAME, name);
        for part in self.name {
            out.extend_from_slice(part.as_bytes());
        }
        uint(out, KIND, self.kind as u64);
        fixed64(out, START, self.start_unix_nanos);
        fixed64(out, END, self.end_unix_nanos);
        out.extend_from_slice(self.attributes);
        out.extend_from_slice(self.links);
        if self.status == Status::Error {
            delimited(out, STATUS, &STATUS_ERROR);
        }
        let remote = match self.parent {
            Some(Parent { remote: true, .. }) => HAS_IS_REMOTE | IS_REMOTE,
            Some(Parent { remote: false, .. }) | None => HAS_IS_REMOTE,
        };
        wide_tag(out, FLAGS, FIXED32);
        out.extend_from_slice(&(u32::from(self.flags.byte()) | remote).to_le_bytes());
    }

    fn body_len(&self, name: usize) -> usize {
        const IDS: usize = delimited_len(16) + delimited_len(8);
        const TIMES: usize = 9 + 9;
        const KIND: usize = 2;
        const FLAGS: usize = 2 + 4;
        let trace_state = if self.trace_state.is_empty() { 0 } else { delimited_len(self.trace_state.len()) };
        let parent = if self.parent.is_some() { delimited_len(8) } else { 0 };
        let status = if self.status == Status::Error { delimited_len(STATUS_ERROR.len()) } else { 0 };
        IDS + trace_state
            + parent
            + delimited_len(name)
            + KIND
            + TIMES
            + self.attributes.len()
            + self.links.len()
            + status
            + FLAGS
    }
}

/// Appends a link to another span as one field `Span.links`.
pub fn link(out: &mut Vec<u8>, trace_id: TraceId, span_id: SpanId, flags: Flags) {
    const FLAGS: u8 = 6;
    let len = delimited_len(16) + delimited_len(8) + 5;
    head(out, LINKS, len);
    delimited(out, TRACE_ID, trace_id.bytes());
    delimited(out, SPAN_ID, span_id.bytes());
    out.push(super::wire::tag(FLAGS, FIXED32));
    out.extend_from_slice(&u32::from(flags.byte()).to_le_bytes());
}
