//! Spans of a host's own work: what failed on the way to the collector, what changed, how it drained. Bounded in
//! number a second, so that trouble never makes more trouble.

use super::{Now, Tracer};
use crate::batch::SpanSink;
use crate::ids::{Flags, Ids};
use crate::names::attribute;
use crate::otlp::{Attributes, Kind, Span, Status};

/// What a host did for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// An attempt to export that failed, or has to be made again.
    Export,
    /// The control state changed, or a change was refused.
    Control,
    /// Requests finished after the host was asked to stop.
    Drain,
    /// A connection on which no HTTP was found.
    Detection,
}

impl Work {
    /// The value of `throughline.work`; the span is called `throughline` and this.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Export => "export",
            Self::Control => "control",
            Self::Drain => "drain",
            Self::Detection => "detection",
        }
    }
}

/// One piece of work.
#[derive(Clone, Copy, Debug)]
pub struct Done<'a> {
    /// What it was.
    pub work: Work,
    /// When it began.
    pub started: Now,
    /// Why it failed, a name of low cardinality.
    pub error: Option<&'a str>,
    /// What happened, in a sentence.
    pub detail: &'a str,
}

impl Tracer {
    /// Hands out a span of the host's own work, in the modes that have such spans and within their bound.
    pub fn work(&self, done: Done<'_>, now: Now, ids: &mut impl Ids, sink: &mut impl SpanSink) {
        if !self.config.recording || !self.may_tell_of_work(now) {
            return;
        }
        let mut encoded = Vec::new();
        let mut attributes = Attributes::of_span(&mut encoded).within(self.config.attribute_bytes_max);
        attributes.text(attribute::WORK, done.work.as_str().as_bytes());
        if !done.detail.is_empty() {
            attributes.text(attribute::WORK_DETAIL, done.detail.as_bytes());
        }
        if let Some(error) = done.error {
            attributes.text(attribute::ERROR_TYPE, error.as_bytes());
        }
        let lasted = now.nanos_since(done.started);
        let span = Span {
            trace_id: ids.trace_id(),
            span_id: ids.span_id(),
            flags: Flags::start(true),
            parent: None,
            trace_state: b"",
            name: &["throughline ", done.work.as_str()],
            kind: Kind::Internal,
            start_unix_nanos: done.started.unix_nanos,
            end_unix_nanos: done.started.unix_nanos.saturating_add(lasted),
            attributes: &encoded,
            links: b"",
            status: if done.error.is_some() { Status::Error } else { Status::Unset },
        };
        sink.span(&span, now);
    }
}
