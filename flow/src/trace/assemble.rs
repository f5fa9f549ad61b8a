//! Spans in any order, twice, without parents, from clocks that disagree, or in a circle, as a forest. Every span
//! that is not a repetition is in it exactly once.

use std::collections::HashMap;

use crate::span::{Kind, Span, SpanId, Value};

/// Where a span hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    /// It names no parent.
    Root,
    /// It names a parent that is not here.
    Orphan(SpanId),
    /// Its parents lead back to it: it was made a root.
    Cycle,
    /// It hangs below its parent.
    Child,
}

/// How an edge is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Provenance {
    /// By a pair of spans, caller's and callee's.
    Proven,
    /// By the caller's span alone, which names the other side.
    Inferred,
    /// By a message.
    Async,
    /// By a link between spans.
    Link,
}

impl Provenance {
    /// As answers name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Provenance::Proven => "proven",
            Provenance::Inferred => "inferred",
            Provenance::Async => "async",
            Provenance::Link => "link",
        }
    }
}

/// A trace as a forest. Places are indices into `spans`.
#[derive(Debug, Default)]
pub struct Assembled {
    /// The spans, repetitions left out, by start.
    pub spans: Vec<Span>,
    /// The parent of each.
    pub parents: Vec<Option<usize>>,
    /// The children of each, by start.
    pub children: Vec<Vec<usize>>,
    /// Where each hangs.
    pub notes: Vec<Note>,
    /// What was added to the moments of each so that it lies within its caller, in nanoseconds.
    pub skews: Vec<i64>,
    /// Those without a parent here, by start.
    pub roots: Vec<usize>,
    /// Spans that were left out as repetitions of others.
    pub duplicates: usize,
}

impl Assembled {
    /// Puts spans together.
    #[must_use]
    pub fn new(spans: Vec<Span>) -> Self {
        let (spans, duplicates) = without_repetitions(spans);
        let places: HashMap<SpanId, usize> =
            spans.iter().enumerate().map(|(place, span)| (span.span_id, place)).collect();
        let mut notes = Vec::with_capacity(spans.len());
        let mut parents = Vec::with_capacity(spans.len());
        for span in &spans {
            let parent = span.parent.and_then(|parent| places.get(&parent).copied());
            notes.push(match (span.parent, parent) {
                (None, _) => Note::Root,
                (Some(missing), None) => Note::Orphan(missing),
                (Some(_), Some(_)) => Note::Child,
            });
            parents.push(parent);
        }
        cut_cycles(&mut parents, &mut notes);
        let mut children = vec![Vec::new(); spans.len()];
        let mut roots = Vec::new();
        for (place, parent) in parents.iter().enumerate() {
            match parent.and_then(|parent| children.get_mut(parent)) {
                Some(siblings) => siblings.push(place),
                None => roots.push(place),
            }
        }
        let mut assembled = Self { spans, parents, children, notes, skews: Vec::new(), roots, duplicates };
        assembled.skews = assembled.find_skews();
        assembled
    }

    /// Every place, parents before children, siblings by start.
    #[must_use]
    pub fn preorder(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.spans.len());
        let mut stack: Vec<usize> = self.roots.iter().rev().copied().collect();
        while let Some(place) = stack.pop() {
            order.push(place);
            stack.extend(self.children_of(place).iter().rev());
        }
        order
    }

    /// Children of a place.
    #[must_use]
    pub fn children_of(&self, place: usize) -> &[usize] {
        self.children.get(place).map_or(&[], Vec::as_slice)
    }

    /// The span's parent, if it is here.
    #[must_use]
    pub fn parent_of(&self, place: usize) -> Option<usize> {
        self.parents.get(place).copied().flatten()
    }

    /// Start and end of a span, moved by its skew.
    #[must_use]
    pub fn interval(&self, place: usize) -> (u64, u64) {
        let Some(span) = self.spans.get(place) else { return (0, 0) };
        let skew = self.skews.get(place).copied().unwrap_or(0);
        let start = span.start_unix_nanos.saturating_add_signed(skew);
        (start, start.saturating_add(duration(span)))
    }

    /// From the first start to the last end, by the moved clocks.
    #[must_use]
    pub fn bounds(&self) -> (u64, u64) {
        let all = (0..self.spans.len()).map(|place| self.interval(place));
        let (start, end) = all.fold((u64::MAX, 0), |(start, end), (s, e)| (start.min(s), end.max(e)));
        if start == u64::MAX { (0, 0) } else { (start, end) }
    }

    /// The span that stands for the trace: the first true root, else the first of all.
    #[must_use]
    pub fn root(&self) -> Option<&Span> {
        let is_root = |place: &&usize| self.notes.get(**place) == Some(&Note::Root);
        let place = self.roots.iter().find(is_root).or_else(|| self.roots.first())?;
        self.spans.get(*place)
    }

    /// Clocks of two hosts disagree where a callee's span does not lie within its caller's: then it is moved into
    /// the middle, and with it everything of the same process below.
    fn find_skews(&self) -> Vec<i64> {
        let mut skews = vec![0_i64; self.spans.len()];
        for place in self.preorder() {
            let Some(parent) = self.parent_of(place) else { continue };
            let (Some(span), Some(caller)) = (self.spans.get(place), self.spans.get(parent)) else {
                continue;
            };
            let inherited = skews.get(parent).copied().unwrap_or(0);
            let skew = match relation(caller, span) {
                Relation::SameProcess => inherited,
                Relation::Call => call_skew(caller, span, inherited),
                Relation::Message => message_skew(caller, span, inherited),
            };
            if let Some(own) = skews.get_mut(place) {
                *own = skew;
            }
        }
        skews
    }
}

/// How long a span lasted; ends before starts count as nothing.
#[must_use]
pub fn duration(span: &Span) -> u64 {
    span.end_unix_nanos.saturating_sub(span.start_unix_nanos)
}

/// What a child is to its parent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// Work of the same process.
    SameProcess,
    /// A request and its service.
    Call,
    /// A message and its receipt.
    Message,
}

/// Tells a call, a message and inner work apart.
#[must_use]
pub fn relation(parent: &Span, child: &Span) -> Relation {
    if child.kind == Kind::Consumer || parent.kind == Kind::Producer {
        return Relation::Message;
    }
    let same = same_process(parent, child) && !(parent.kind == Kind::Client && child.kind == Kind::Server);
    if same { Relation::SameProcess } else { Relation::Call }
}

fn same_process(one: &Span, other: &Span) -> bool {
    let (one, other) = (&one.service, &other.service);
    std::sync::Arc::ptr_eq(one, other)
        || ((&one.name, &one.namespace) == (&other.name, &other.namespace)
            && (one.pod.is_empty() || other.pod.is_empty() || one.pod == other.pod))
}

/// What a callee's span may stick out of its caller's without a word: hosts note the last byte at different moments.
const TOLERATED_NANOS: i128 = 1_000_000;

/// By how much the callee's clock must move, with the caller's moved already by `moved`.
fn call_skew(caller: &Span, callee: &Span, moved: i64) -> i64 {
    let start = i128::from(caller.start_unix_nanos) + i128::from(moved);
    let end = start + i128::from(duration(caller));
    let from = i128::from(callee.start_unix_nanos);
    let to = from + i128::from(duration(callee));
    if from >= start - TOLERATED_NANOS && to <= end + TOLERATED_NANOS {
        return 0;
    }
    if duration(callee) > duration(caller) {
        // It outlived its caller, who gave up: only a start before the call's tells of a clock.
        return if from < start { clamped(start - from) } else { 0 };
    }
    let middle = start + i128::from((duration(caller) - duration(callee)) / 2);
    clamped(middle - from)
}

/// A message can't be received before it was sent; otherwise nothing is known of the clocks.
fn message_skew(sent: &Span, received: &Span, moved: i64) -> i64 {
    let sent_at = i128::from(sent.start_unix_nanos) + i128::from(moved);
    clamped((sent_at - i128::from(received.start_unix_nanos)).max(0))
}

fn clamped(nanos: i128) -> i64 {
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

/// A span that came twice (a retried export) counts once: the one that lasted longer.
fn without_repetitions(mut spans: Vec<Span>) -> (Vec<Span>, usize) {
    let came = spans.len();
    spans.sort_by(|one, other| {
        one.span_id.cmp(&other.span_id).then_with(|| duration(other).cmp(&duration(one)))
    });
    spans.dedup_by_key(|span| span.span_id);
    spans.sort_by(|one, other| {
        (one.start_unix_nanos, std::cmp::Reverse(one.end_unix_nanos), one.span_id).cmp(&(
            other.start_unix_nanos,
            std::cmp::Reverse(other.end_unix_nanos),
            other.span_id,
        ))
    });
    let duplicates = came - spans.len();
    (spans, duplicates)
}

/// Walks up from every span; whoever is met again on the same walk lost its parent.
fn cut_cycles(parents: &mut [Option<usize>], notes: &mut [Note]) {
    const UNSEEN: usize = usize::MAX;
    let mut walks = vec![UNSEEN; parents.len()];
    for first in 0..parents.len() {
        let mut place = first;
        loop {
            match walks.get(place).copied() {
                Some(UNSEEN) => {}
                Some(walk) if walk == first => {
                    // The earliest of the circle becomes a root: places are ordered by start.
                    let mut earliest = place;
                    let mut at = place;
                    while let Some(next) = parents.get(at).copied().flatten() {
                        earliest = earliest.min(next);
                        at = next;
                        if at == place {
                            break;
                        }
                    }
                    if let (Some(parent), Some(note)) = (parents.get_mut(earliest), notes.get_mut(earliest)) {
                        (*parent, *note) = (None, Note::Cycle);
                    }
                    break;
                }
                Some(_) | None => break,
            }
            if let Some(walk) = walks.get_mut(place) {
                *walk = first;
            }
            match parents.get(place).copied().flatten() {
                Some(parent) => place = parent,
                None => break,
            }
        }
    }
}

/// The text of an attribute; empty where there is none.
#[must_use]
pub fn text<'a>(span: &'a Span, key: &str) -> &'a str {
    match span.attribute(key) {
        Some(Value::Text(text)) => text,
        Some(
            Value::Flag(_)
            | Value::Int(_)
            | Value::Double(_)
            | Value::Bytes(_)
            | Value::List(_)
            | Value::Map(_)
            | Value::Empty,
        )
        | None => "",
    }
}

/// The number of an attribute.
#[must_use]
pub fn number(span: &Span, key: &str) -> Option<i64> {
    match span.attribute(key) {
        Some(Value::Int(number)) => Some(*number),
        Some(Value::Text(text)) => text.parse().ok(),
        Some(
            Value::Flag(_)
            | Value::Double(_)
            | Value::Bytes(_)
            | Value::List(_)
            | Value::Map(_)
            | Value::Empty,
        )
        | None => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::span::{Service, Status};

    /// A span of a test: service, id, parent, kind, milliseconds of start and end.
    pub(crate) fn span(service: &str, id: u64, parent: u64, kind: Kind, from_ms: u64, to_ms: u64) -> Span {
        Span {
            trace_id: [7; 16],
            span_id: id.to_be_bytes(),
            parent: (parent != 0).then(|| parent.to_be_bytes()),
            kind,
            status: Status::Unset,
            status_message: String::new(),
            name: format!("{service}-{id}"),
            trace_state: String::new(),
            start_unix_nanos: 1_000_000_000 + from_ms * 1_000_000,
            end_unix_nanos: 1_000_000_000 + to_ms * 1_000_000,
            attributes: Vec::new(),
            events: Vec::new(),
            links: Vec::new(),
            service: Arc::new(Service { name: service.to_owned(), ..Service::default() }),
            scope: "throughline".into(),
            ours: true,
        }
    }

    fn ids(assembled: &Assembled, places: &[usize]) -> Vec<u64> {
        places.iter().map(|place| u64::from_be_bytes(assembled.spans[*place].span_id)).collect()
    }

    #[test]
    fn spans_in_any_order_and_twice_are_one_tree() {
        let whole = [
            span("web", 1, 0, Kind::Server, 0, 100),
            span("web", 2, 1, Kind::Client, 10, 90),
            span("orders", 3, 2, Kind::Server, 20, 80),
        ];
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut spans: Vec<Span> = order.iter().map(|at| whole[*at].clone()).collect();
            spans.push(whole[1].clone());
            let assembled = Assembled::new(spans);
            assert_eq!((assembled.duplicates, assembled.skews.clone()), (1, vec![0, 0, 0]));
            assert_eq!(ids(&assembled, &assembled.preorder()), [1, 2, 3]);
        }
    }

    #[test]
    fn a_missing_parent_is_noted_and_its_child_is_a_root() {
        let assembled = Assembled::new(vec![span("web", 2, 1, Kind::Client, 10, 90)]);
        assert_eq!(assembled.notes, [Note::Orphan(1_u64.to_be_bytes())]);
        assert_eq!(assembled.roots, [0]);
    }

    #[test]
    fn a_circle_is_cut_once_at_its_earliest() {
        let assembled = Assembled::new(vec![
            span("a", 1, 3, Kind::Internal, 5, 6),
            span("a", 2, 1, Kind::Internal, 2, 3),
            span("a", 3, 2, Kind::Internal, 9, 10),
            span("a", 4, 4, Kind::Internal, 0, 1),
            span("a", 5, 3, Kind::Internal, 9, 10),
        ]);
        assert_eq!(ids(&assembled, &assembled.roots), [4, 2]);
        assert_eq!(ids(&assembled, &assembled.preorder()), [4, 2, 3, 1, 5]);
        assert_eq!(assembled.notes.iter().filter(|note| **note == Note::Cycle).count(), 2);
    }

    #[test]
    fn a_clock_that_is_off_is_mended_for_all_of_its_process_and_told() {
        let mut early = span("orders", 3, 2, Kind::Server, 0, 60);
        early.start_unix_nanos -= 500_000_000;
        early.end_unix_nanos -= 500_000_000;
        let mut inner = span("orders", 4, 3, Kind::Client, 10, 20);
        inner.start_unix_nanos -= 500_000_000;
        inner.end_unix_nanos -= 500_000_000;
        let assembled = Assembled::new(vec![
            span("web", 1, 0, Kind::Server, 0, 100),
            span("web", 2, 1, Kind::Client, 10, 90),
            early,
            inner,
        ]);
        let skew = |id: u64| {
            let place = assembled.spans.iter().position(|span| span.span_id == id.to_be_bytes()).unwrap();
            assembled.skews[place]
        };
        // 500 ms off, and then into the middle of the call: (80 - 60) / 2 + 10.
        assert_eq!((skew(1), skew(2), skew(3), skew(4)), (0, 0, 520_000_000, 520_000_000));
    }

    #[test]
    fn a_callee_that_outlived_its_caller_stays_where_it_was() {
        let assembled = Assembled::new(vec![
            span("web", 2, 0, Kind::Client, 0, 50),
            span("orders", 3, 2, Kind::Server, 5, 200),
        ]);
        assert_eq!(assembled.skews, [0, 0]);
    }

    /// Small numbers that look random, always the same.
    struct Draw(u64);
    impl Draw {
        fn below(&mut self, most: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % most
        }
    }

    #[test]
    fn any_set_of_spans_becomes_a_forest_that_has_each_once() {
        let kinds = [Kind::Server, Kind::Client, Kind::Producer, Kind::Consumer, Kind::Internal];
        let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
        for _ in 0..2000 {
            let count = draw.below(30);
            let spans: Vec<Span> = (0..count)
                .map(|_| {
                    let (from, to) = (draw.below(50), draw.below(60));
                    let service = ["a", "b", "c"][draw.below(3) as usize];
                    let kind = kinds[draw.below(5) as usize];
                    span(service, 1 + draw.below(20), draw.below(24), kind, from, to)
                })
                .collect();
            let distinct: std::collections::BTreeSet<SpanId> =
                spans.iter().map(|span| span.span_id).collect();
            let assembled = Assembled::new(spans.clone());
            assert_eq!(assembled.spans.len(), distinct.len());
            assert_eq!(assembled.duplicates + distinct.len(), spans.len());
            let mut order = assembled.preorder();
            for (at, place) in order.iter().enumerate() {
                let parent = assembled.parent_of(*place);
                assert!(
                    parent.is_none_or(|parent| order[..at].contains(&parent)),
                    "a parent before its child"
                );
            }
            order.sort_unstable();
            assert_eq!(order, (0..distinct.len()).collect::<Vec<_>>());
            let _ = assembled.bounds();
        }
    }

    #[test]
    fn the_order_in_which_spans_arrive_changes_nothing() {
        let mut draw = Draw(42);
        for _ in 0..200 {
            let mut spans: Vec<Span> = (1..=15)
                .map(|id| span("a", id, draw.below(17), Kind::Internal, draw.below(50), draw.below(50)))
                .collect();
            let one = Assembled::new(spans.clone());
            for at in (1..spans.len()).rev() {
                spans.swap(at, draw.below(at as u64 + 1) as usize);
            }
            let other = Assembled::new(spans);
            assert_eq!((one.spans, one.parents, one.skews), (other.spans, other.parents, other.skews));
        }
    }

    #[test]
    fn a_chain_of_100_000_spans_takes_no_stack() {
        let chain: Vec<Span> =
            (1..=100_000).map(|id| span("a", id, id - 1, Kind::Internal, id, 200_000 - id)).collect();
        let assembled = Assembled::new(chain);
        assert_eq!((assembled.roots.len(), assembled.preorder().len()), (1, 100_000));
        let path = crate::trace::critical::path(&assembled);
        assert!(!path.is_empty());
    }
}
