//! Spans as the demo sees them, gathered into traces. Decides which trace is whole and which is
//! finished; the time is an argument. Opens nothing and prints nothing.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Spans kept at once, over all traces: some megabytes.
const SPANS_MAX: usize = 10_000;
/// A finished trace has been quiet for this long: sidecars export several times in it.
pub(crate) const QUIET: Duration = Duration::from_millis(500);
/// A trace without a root, or with a message that still lies in a queue, is given up after being
/// quiet for this long.
pub(crate) const PATIENT_QUIET: Duration = Duration::from_secs(5);

/// A trace's id as it stands in `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TraceId(pub(crate) [u8; 16]);

impl TraceId {
    /// Reads 32 hex digits.
    pub(crate) fn parse(text: &str) -> Option<TraceId> {
        let well_formed = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u128::from_str_radix(text, 16).ok().filter(|value| well_formed && *value != 0)?;
        Some(TraceId(value.to_be_bytes()))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A span's id within its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SpanId(pub(crate) [u8; 8]);

/// Which end of a call or of a message's way a span describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Server,
    Client,
    Producer,
    Consumer,
    Other,
}

/// What the waterfall needs of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) trace: TraceId,
    pub(crate) id: SpanId,
    pub(crate) parent: Option<SpanId>,
    pub(crate) service: String,
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) operation: Option<String>,
    /// Where a producer's message went.
    pub(crate) topic: Option<String>,
    pub(crate) status: Option<u16>,
    /// `error.type` of a span that failed.
    pub(crate) error: Option<String>,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
}

/// The spans that a request of the demo must leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) operation: &'static str,
    /// Service and kind of each, in groups.
    pub(crate) spans: &'static [&'static [(&'static str, Kind)]],
}

/// Says what keeps `spans` from being the whole trace, or `None` when it is whole.
pub(crate) fn lacking(spans: &[Span], expected: &Expected) -> Option<String> {
    let mut reasons = Vec::new();
    let mut surplus: Vec<(&str, Kind)> =
        spans.iter().map(|span| (span.service.as_str(), span.kind)).collect();
    for wanted in expected.spans.iter().copied().flatten() {
        match surplus.iter().position(|seen| seen == wanted) {
            Some(place) => drop(surplus.swap_remove(place)),
            None => reasons.push(format!("no {} span of {}", word(wanted.1), wanted.0)),
        }
    }
    for (service, kind) in surplus {
        reasons.push(format!("one {} span of {service} too many", word(kind)));
    }
    for span in spans {
        let what = || format!("the {} span {:?} of {}", word(span.kind), span.name, span.service);
        if span.parent.is_some_and(|parent| !spans.iter().any(|other| other.id == parent)) {
            reasons.push(format!("{} has a parent that is not in the trace", what()));
        }
        if span.operation.as_deref() != Some(expected.operation) {
            let seen = span.operation.as_deref().unwrap_or("none");
            reasons.push(format!("{} has operation {seen}, not {}", what(), expected.operation));
        }
    }
    if reasons.is_empty() { None } else { Some(reasons.join("; ")) }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Server => "server",
        Kind::Client => "client",
        Kind::Producer => "producer",
        Kind::Consumer => "consumer",
        Kind::Other => "other",
    }
}

/// The traces that were received and not yet drawn.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    open: HashMap<TraceId, Open>,
    held: usize,
    dropped: u64,
}

#[derive(Debug)]
struct Open {
    spans: Vec<Span>,
    changed: Instant,
}

impl Traces {
    /// Adds a span that came at `now`. At the limit the trace that was quiet longest goes.
    pub(crate) fn add(&mut self, span: Span, now: Instant) {
        if self.held >= SPANS_MAX {
            let oldest = self.open.iter().min_by_key(|(_, open)| open.changed).map(|(id, _)| *id);
            let gone = oldest.map_or(0, |id| self.take(id).len());
            self.dropped = self.dropped.saturating_add(gone as u64);
        }
        let open = self.open.entry(span.trace).or_insert(Open { spans: Vec::new(), changed: now });
        open.changed = now;
        // A span that was sent again after a lost answer is the same span.
        if !open.spans.iter().any(|known| known.id == span.id) {
            open.spans.push(span);
            self.held += 1;
        }
    }

    /// The spans of a trace so far.
    pub(crate) fn spans(&self, id: TraceId) -> &[Span] {
        self.open.get(&id).map_or(&[], |open| &open.spans)
    }

    /// Removes a trace and returns its spans.
    pub(crate) fn take(&mut self, id: TraceId) -> Vec<Span> {
        let spans = self.open.remove(&id).map_or_else(Vec::new, |open| open.spans);
        self.held = self.held.saturating_sub(spans.len());
        spans
    }

    /// Removes the traces that are finished at `now`, in the order in which they began.
    pub(crate) fn take_finished(&mut self, now: Instant, entrance: &str) -> Vec<Vec<Span>> {
        let due = |open: &Open| finished_at(open, entrance) <= now;
        let ids: Vec<TraceId> = self.open.iter().filter(|(_, o)| due(o)).map(|(id, _)| *id).collect();
        let mut traces: Vec<Vec<Span>> = ids.into_iter().map(|id| self.take(id)).collect();
        traces.sort_by_key(|spans| spans.iter().map(|span| span.start_ns).min());
        traces
    }

    /// When the next trace will be finished if no further span comes.
    pub(crate) fn next_finished(&self, entrance: &str) -> Option<Instant> {
        self.open.values().map(|open| finished_at(open, entrance)).min()
    }

    /// Spans dropped at the limit since the last call.
    pub(crate) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

fn finished_at(open: &Open, entrance: &str) -> Instant {
    let rooted = open.spans.iter().any(|span| is_root(span, &open.spans, entrance));
    let queued = open.spans.iter().any(|span| is_queued(span, &open.spans));
    open.changed + if rooted && !queued { QUIET } else { PATIENT_QUIET }
}

/// Whether nobody has taken the message of this producer so far.
fn is_queued(span: &Span, spans: &[Span]) -> bool {
    span.kind == Kind::Producer && !spans.iter().any(|other| other.parent == Some(span.id))
}

/// A root has no parent, or is where a caller with a trace of its own (curl with a `traceparent`)
/// came in.
fn is_root(span: &Span, spans: &[Span], entrance: &str) -> bool {
    let Some(parent) = span.parent else { return true };
    let came_in = span.service == entrance && span.kind == Kind::Server;
    came_in && !spans.iter().any(|other| other.id == parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(trace: u8, id: u8, parent: u8, service: &str, kind: Kind) -> Span {
        Span {
            trace: TraceId([trace; 16]),
            id: SpanId([id; 8]),
            parent: (parent != 0).then_some(SpanId([parent; 8])),
            service: service.to_owned(),
            kind,
            name: "GET".to_owned(),
            operation: Some("browse".to_owned()),
            topic: None,
            status: Some(200),
            error: None,
            start_ns: u64::from(id),
            end_ns: 100,
        }
    }

    const EXPECTED: Expected = Expected {
        operation: "browse",
        spans: &[&[("web", Kind::Server), ("web", Kind::Client)], &[("stock", Kind::Server)]],
    };

    fn browse() -> Vec<Span> {
        vec![
            span(1, 1, 0, "web", Kind::Server),
            span(1, 2, 1, "web", Kind::Client),
            span(1, 3, 2, "stock", Kind::Server),
        ]
    }

    #[test]
    fn a_trace_with_every_span_parent_and_operation_is_whole() {
        assert_eq!(lacking(&browse(), &EXPECTED), None);
    }

    #[test]
    fn what_is_lacking_is_named() {
        let without_middle = vec![browse().remove(0), browse().remove(2)];
        assert_eq!(
            lacking(&without_middle, &EXPECTED).as_deref(),
            Some(
                "no client span of web; the server span \"GET\" of stock has a parent that is not in the trace"
            )
        );
        let mut untagged = browse();
        untagged[2].operation = None;
        assert_eq!(
            lacking(&untagged, &EXPECTED).as_deref(),
            Some("the server span \"GET\" of stock has operation none, not browse")
        );
        let mut twice = browse();
        twice.push(span(1, 4, 1, "web", Kind::Client));
        assert_eq!(lacking(&twice, &EXPECTED).as_deref(), Some("one client span of web too many"));
    }

    #[test]
    fn a_rooted_trace_is_finished_after_the_quiet_time() {
        let begin = Instant::now();
        let mut traces = Traces::default();
        traces.add(span(1, 3, 2, "stock", Kind::Server), begin);
        assert_eq!(traces.next_finished("web"), Some(begin + PATIENT_QUIET));
        traces.add(span(1, 1, 0, "web", Kind::Server), begin);
        assert_eq!(traces.next_finished("web"), Some(begin + QUIET));
        assert_eq!(traces.take_finished(begin + QUIET / 2, "web"), Vec::<Vec<Span>>::new());
        assert_eq!(traces.take_finished(begin + QUIET, "web").len(), 1);
        assert_eq!(traces.next_finished("web"), None);
    }

    #[test]
    fn a_callers_own_trace_has_its_root_at_the_entrance() {
        let begin = Instant::now();
        let mut traces = Traces::default();
        traces.add(span(1, 1, 9, "web", Kind::Server), begin);
        assert_eq!(traces.next_finished("web"), Some(begin + QUIET));
    }

    #[test]
    fn a_trace_is_not_finished_while_its_message_lies_in_the_queue() {
        let begin = Instant::now();
        let mut traces = Traces::default();
        traces.add(span(1, 1, 0, "web", Kind::Server), begin);
        traces.add(span(1, 2, 1, "web", Kind::Producer), begin);
        assert_eq!(traces.next_finished("web"), Some(begin + PATIENT_QUIET));
        traces.add(span(1, 3, 2, "shipping", Kind::Consumer), begin);
        assert_eq!(traces.next_finished("web"), Some(begin + QUIET));
    }

    #[test]
    fn a_span_sent_twice_counts_once() {
        let begin = Instant::now();
        let mut traces = Traces::default();
        traces.add(span(1, 1, 0, "web", Kind::Server), begin);
        traces.add(span(1, 1, 0, "web", Kind::Server), begin);
        assert_eq!(traces.spans(TraceId([1; 16])).len(), 1);
    }

    #[test]
    fn at_the_limit_the_trace_that_was_quiet_longest_goes_and_is_counted() {
        let begin = Instant::now();
        let mut traces = Traces::default();
        let mut old = span(1, 1, 0, "web", Kind::Server);
        traces.add(old.clone(), begin);
        for id in 1..SPANS_MAX as u64 {
            old.trace = TraceId([2; 16]);
            old.id = SpanId(id.to_be_bytes());
            traces.add(old.clone(), begin + QUIET);
        }
        traces.add(span(3, 1, 0, "web", Kind::Server), begin + QUIET);
        assert_eq!(traces.spans(TraceId([1; 16])).len(), 0);
        assert_eq!(traces.spans(TraceId([3; 16])).len(), 1);
        assert_eq!(traces.take_dropped(), 1);
    }

    #[test]
    fn a_trace_id_is_32_hex_digits_and_not_zero() {
        let text = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(TraceId::parse(text).map(|id| id.to_string()).as_deref(), Some(text));
        for wrong in ["", "4bf92f35", "00000000000000000000000000000000", "+bf92f3577b34da6a3ce929d0e0e4736"]
        {
            assert_eq!(TraceId::parse(wrong), None, "{wrong}");
        }
    }
}
