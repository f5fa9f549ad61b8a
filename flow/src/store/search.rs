//! Lists of traces, from the indexes of the blocks. A trace may lie in several blocks: what is asked is asked of the
//! trace as a whole. Must never read a span.

use super::catalogue::{Block, Catalogue, Unreadable};
use super::index::{Entry, HAS_ROOT, Index};
use crate::engine::{Found, Outcome, TraceQuery, TraceSummary};
use crate::span::TraceId;
use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;

/// Traces that a list counts; beyond them it says that there are more.
pub(super) const COUNT_MAX: usize = 1_000;
/// How far the spans of one trace may lie apart and still be put together in a list. A trace by id has no such bound.
const APART_NANOS: u64 = 3_600 * 1_000_000_000;

/// A trace, put together from what the blocks know of it.
struct Trace {
    summary: TraceSummary,
    root_start: u64,
    operation_start: u64,
}

impl Trace {
    fn of(index: &Index, entry: &Entry) -> Self {
        let text = |number: u32| index.label(number).to_owned();
        let own = |(name, namespace): (&str, &str)| (name.to_owned(), namespace.to_owned());
        let mut services: Vec<_> = index.services_of(entry).map(own).collect();
        services.sort_unstable();
        Self {
            root_start: entry.root_start,
            operation_start: entry.start,
            summary: TraceSummary {
                trace_id: entry.trace_id,
                operation: text(entry.operation),
                ui_event: text(entry.ui_event),
                environment: text(entry.environment),
                root_service: text(entry.root_service),
                root_name: text(entry.root_name),
                has_root: entry.flags & HAS_ROOT != 0,
                start_unix_nanos: entry.start,
                end_unix_nanos: entry.end,
                status: entry.outcome(),
                span_count: entry.spans,
                error_count: entry.errors,
                services,
            },
        }
    }

    fn add(&mut self, other: Self) {
        let (mine, theirs) = (&mut self.summary, other.summary);
        let root_first = match (mine.has_root, theirs.has_root) {
            (true, false) => false,
            (false, true) => true,
            (true, true) | (false, false) => other.root_start < self.root_start,
        };
        mine.status = match (mine.has_root, theirs.has_root) {
            (true, false) => mine.status,
            (false, true) => theirs.status,
            (true, true) if root_first => theirs.status,
            (true, true) => mine.status,
            (false, false) => worse(mine.status, theirs.status),
        };
        let operation_first = mine.operation.is_empty()
            || !theirs.operation.is_empty()
                && if mine.has_root == theirs.has_root {
                    other.operation_start < self.operation_start
                } else {
                    theirs.has_root
                };
        if operation_first && !theirs.operation.is_empty() {
            mine.operation = theirs.operation;
            self.operation_start = other.operation_start;
        }
        if mine.ui_event.is_empty() || root_first && !theirs.ui_event.is_empty() {
            mine.ui_event = theirs.ui_event;
        }
        if root_first {
            self.root_start = other.root_start;
            mine.environment = theirs.environment;
            mine.root_service = theirs.root_service;
            mine.root_name = theirs.root_name;
        }
        mine.has_root |= theirs.has_root;
        mine.start_unix_nanos = mine.start_unix_nanos.min(theirs.start_unix_nanos);
        mine.end_unix_nanos = mine.end_unix_nanos.max(theirs.end_unix_nanos);
        mine.span_count = mine.span_count.saturating_add(theirs.span_count);
        mine.error_count = mine.error_count.saturating_add(theirs.error_count);
        mine.services.extend(theirs.services);
        mine.services.sort_unstable();
        mine.services.dedup();
    }
}

fn worse(one: Outcome, other: Outcome) -> Outcome {
    match (one, other) {
        (Outcome::Timeout, _) | (_, Outcome::Timeout) => Outcome::Timeout,
        (Outcome::Error, _) | (_, Outcome::Error) => Outcome::Error,
        (Outcome::Success, Outcome::Success) => Outcome::Success,
    }
}

/// Whether a service is the one that is asked for.
fn is_service(query: &TraceQuery, name: &str, namespace: &str) -> bool {
    query.service.as_deref().is_none_or(|wanted| wanted == name)
        && query.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
}

fn matches(query: &TraceQuery, trace: &TraceSummary) -> bool {
    let lasted = trace.end_unix_nanos.saturating_sub(trace.start_unix_nanos);
    (query.start_unix_nanos..query.end_unix_nanos).contains(&trace.start_unix_nanos)
        && query.operation.as_ref().is_none_or(|wanted| *wanted == trace.operation)
        && query.environment.as_ref().is_none_or(|wanted| *wanted == trace.environment)
        && query.status.is_none_or(|wanted| wanted == trace.status)
        && query.min_duration_nanos.is_none_or(|wanted| lasted >= wanted)
        && (query.service.is_none() && query.namespace.is_none()
            || trace.services.iter().any(|(name, namespace)| is_service(query, name, namespace)))
}

/// Which entries of an index may be of a trace that is asked for: of each such trace one at the least, in one of its
/// blocks. Numbers of labels are compared, not texts.
struct Candidates<'i> {
    index: &'i Index,
    operation: Option<Option<u32>>,
    services: Option<HashSet<u32>>,
    failed: bool,
    start_max: u64,
}

impl<'i> Candidates<'i> {
    fn new(index: &'i Index, query: &TraceQuery) -> Self {
        let label =
            |wanted: &String| index.labels.iter().position(|text| **text == **wanted).map(|at| at as u32);
        let services = (query.service.is_some() || query.namespace.is_some()).then(|| {
            let is = |(_, (name, namespace)): &(usize, &(u32, u32))| {
                is_service(query, index.label(*name), index.label(*namespace))
            };
            index.services.iter().enumerate().filter(is).map(|(number, _)| number as u32).collect()
        });
        Self {
            index,
            operation: query.operation.as_ref().map(label),
            // One criterion is enough to find the trace; the rest is asked of the whole.
            services: if query.operation.is_some() { None } else { services },
            failed: matches!(query.status, Some(Outcome::Error | Outcome::Timeout)),
            start_max: query.end_unix_nanos.saturating_add(APART_NANOS),
        }
    }

    fn none(&self) -> bool {
        self.operation == Some(None) || self.services.as_ref().is_some_and(HashSet::is_empty)
    }

    fn may_be(&self, entry: &Entry) -> bool {
        if entry.start >= self.start_max {
            return false;
        }
        if let Some(operation) = self.operation {
            return Some(entry.operation) == operation;
        }
        if let Some(services) = &self.services {
            let (from, count) = (entry.services.0 as usize, entry.services.1 as usize);
            let here = self.index.taking_part.get(from..from + count).unwrap_or_default();
            return here.iter().any(|service| services.contains(service));
        }
        !self.failed || entry.errors > 0
    }
}

/// Puts a trace together from all blocks near the one that knows it.
fn whole(
    catalogue: &Catalogue,
    blocks: &[Arc<Block>],
    near: &[Near],
    place: Place,
) -> Result<Trace, Unreadable> {
    let Some(here) = blocks.get(place.block) else { return Err(Unreadable::Gone) };
    let index = catalogue.index(here)?;
    let Some(entry) = index.entries.get(place.entry) else { return Err(Unreadable::Gone) };
    let mut trace = Trace::of(&index, entry);
    each_other(catalogue, blocks, near, place.block, entry, &mut |index, entry| {
        trace.add(Trace::of(index, entry));
    })?;
    Ok(trace)
}

/// When the spans of a block happened, in one line of the cache for many blocks.
#[derive(Clone, Copy)]
struct Near {
    from: u64,
    to: u64,
}

/// Tells what other blocks know of the trace of an entry.
fn each_other(
    catalogue: &Catalogue,
    blocks: &[Arc<Block>],
    near: &[Near],
    here: usize,
    entry: &Entry,
    each: &mut dyn FnMut(&Index, &Entry),
) -> Result<(), Unreadable> {
    let (from, to) = (entry.start.saturating_sub(APART_NANOS), entry.end.saturating_add(APART_NANOS));
    for (at, (block, span)) in blocks.iter().zip(near).enumerate() {
        if span.from > to || span.to < from || at == here || !block.row.filter.may_have(&entry.trace_id) {
            continue;
        }
        let index = match catalogue.index(block) {
            Ok(index) => index,
            Err(Unreadable::Damaged) => continue,
            Err(error) => return Err(error),
        };
        if let Some((entry, _)) = index.find(&entry.trace_id) {
            each(&index, entry);
        }
    }
    Ok(())
}

/// An entry of a block, by their numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    block: usize,
    entry: usize,
}

/// What comes next, the newest first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    /// A block that was not looked into; no trace in it began later.
    Block(usize),
    /// The candidates of a block, by their beginning, the newest last.
    Entries(usize, Vec<(u64, usize)>),
    /// A trace that is asked for.
    Found(Place),
}

/// Tells of each trace that is asked for, the newest first, until `each` has enough.
fn walk(
    catalogue: &Catalogue,
    blocks: &[Arc<Block>],
    near: &[Near],
    query: &TraceQuery,
    each: &mut dyn FnMut(TraceId, Place) -> bool,
) -> Result<(), Unreadable> {
    let mut heap = BinaryHeap::new();
    for (at, block) in blocks.iter().enumerate() {
        let row = &block.row;
        if row.start_max >= query.start_unix_nanos
            && row.start_min < query.end_unix_nanos.saturating_add(APART_NANOS)
        {
            heap.push((row.start_max, Next::Block(at)));
        }
    }
    let mut seen = HashSet::<TraceId, foldhash::fast::RandomState>::default();
    while let Some((_, next)) = heap.pop() {
        match next {
            Next::Block(at) => {
                let Some(block) = blocks.get(at) else { continue };
                let index = match catalogue.index(block) {
                    Ok(index) => index,
                    Err(Unreadable::Damaged) => continue,
                    Err(error) => return Err(error),
                };
                let candidates = Candidates::new(&index, query);
                if candidates.none() {
                    continue;
                }
                let mut entries: Vec<_> = (index.entries.iter().enumerate())
                    .filter(|(_, entry)| candidates.may_be(entry))
                    .map(|(number, entry)| (entry.start, number))
                    .collect();
                entries.sort_unstable();
                if let Some((start, _)) = entries.last() {
                    heap.push((*start, Next::Entries(at, entries)));
                }
            }
            Next::Entries(at, mut entries) => {
                let (Some((start, entry)), Some(block)) = (entries.pop(), blocks.get(at)) else { continue };
                if let Some((next, _)) = entries.last() {
                    heap.push((*next, Next::Entries(at, entries)));
                }
                let index = catalogue.index(block)?;
                let place = Place { block: at, entry };
                let Some(entry) = index.entries.get(entry) else { continue };
                if !seen.insert(entry.trace_id) {
                    continue;
                }
                let mut others = false;
                let mut first = start;
                each_other(catalogue, blocks, near, at, entry, &mut |_, entry| {
                    others = true;
                    first = first.min(entry.start);
                })?;
                let matching = if others {
                    matches(query, &whole(catalogue, blocks, near, place)?.summary)
                } else {
                    matches_alone(query, &index, entry)
                };
                if matching {
                    // Its turn comes when nothing newer is left.
                    heap.push((first, Next::Found(place)));
                }
            }
            Next::Found(place) => {
                let Some(block) = blocks.get(place.block) else { continue };
                let index = catalogue.index(block)?;
                let Some(entry) = index.entries.get(place.entry) else { continue };
                if !each(entry.trace_id, place) {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Like [`matches`], for a trace that lies in one block: without a copy of its texts.
fn matches_alone(query: &TraceQuery, index: &Index, entry: &Entry) -> bool {
    let is = |wanted: &Option<String>, number: u32| {
        wanted.as_deref().is_none_or(|wanted| wanted == index.label(number))
    };
    (query.start_unix_nanos..query.end_unix_nanos).contains(&entry.start)
        && is(&query.operation, entry.operation)
        && is(&query.environment, entry.environment)
        && query.status.is_none_or(|wanted| wanted == entry.outcome())
        && query.min_duration_nanos.is_none_or(|wanted| entry.end.saturating_sub(entry.start) >= wanted)
        && (query.service.is_none() && query.namespace.is_none()
            || index.services_of(entry).any(|(name, namespace)| is_service(query, name, namespace)))
}

/// Blocks that can be looked into, and when their spans happened.
fn readable(catalogue: &Catalogue) -> (Vec<Arc<Block>>, Vec<Near>) {
    let mut blocks = catalogue.all();
    blocks.retain(|block| !block.is(&block.damaged));
    let near = blocks.iter().map(|block| Near { from: block.row.start_min, to: block.row.end_max }).collect();
    (blocks, near)
}

/// Finds traces, newest first.
pub(super) fn find(catalogue: &Catalogue, query: &TraceQuery) -> Result<Found, Unreadable> {
    let (blocks, near) = readable(catalogue);
    let wanted = query.offset.saturating_add(query.limit);
    let (mut page, mut total, mut more) = (Vec::new(), 0_usize, false);
    walk(catalogue, &blocks, &near, query, &mut |_, place| {
        if total >= COUNT_MAX.max(wanted) {
            more = true;
            return false;
        }
        if (query.offset..wanted).contains(&total) {
            page.push(place);
        }
        total += 1;
        true
    })?;
    let whole = |place: Place| Ok(whole(catalogue, &blocks, &near, place)?.summary);
    let traces = page.into_iter().map(whole).collect::<Result<_, _>>()?;
    Ok(Found { traces, total: total as u64, more })
}

/// The ids of all traces that are asked for.
pub(super) fn ids(catalogue: &Catalogue, query: &TraceQuery) -> Result<HashSet<TraceId>, Unreadable> {
    let (blocks, near) = readable(catalogue);
    let mut ids = HashSet::new();
    walk(catalogue, &blocks, &near, query, &mut |id, _| ids.insert(id))?;
    Ok(ids)
}
