//! Lists of traces, from the indexes of the blocks. A trace may lie in several blocks: what is asked is asked of the
//! trace as a whole. Must never read a span.

use super::catalogue::{Block, Catalogue, Unreadable};
use super::index::{Entry, HAS_ROOT, Index};
use crate::engine::{Found, Outcome, TraceQuery, TraceSummary};
use crate::span::TraceId;
use std::collections::HashSet;
use std::sync::Arc;

/// Traces that a list counts; beyond it says that there are more.
pub(super) const COUNT_MAX: usize = 2_000;
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
    here: &Block,
    index: &Index,
    entry: &Entry,
) -> Result<Trace, Unreadable> {
    let mut trace = Trace::of(index, entry);
    let (from, to) = (entry.start.saturating_sub(APART_NANOS), entry.end.saturating_add(APART_NANOS));
    for block in blocks {
        let near = block.row.start_min <= to && block.row.end_max >= from && block.row.id != here.row.id;
        if !near || !block.row.filter.may_have(&entry.trace_id) {
            continue;
        }
        let index = match catalogue.index(block) {
            Ok(index) => index,
            Err(Unreadable::Damaged) => continue,
            Err(error) => return Err(error),
        };
        if let Some((entry, _)) = index.find(&entry.trace_id) {
            trace.add(Trace::of(&index, entry));
        }
    }
    Ok(trace)
}

/// Finds traces, newest first.
pub(super) fn find(catalogue: &Catalogue, query: &TraceQuery) -> Result<Found, Unreadable> {
    let mut blocks = catalogue.all();
    blocks.retain(|block| !block.is(&block.damaged));
    blocks.sort_by_key(|block| std::cmp::Reverse(block.row.start_max));
    let wanted = query.offset.saturating_add(query.limit);
    let (mut found, mut seen, mut more) =
        (Vec::new(), HashSet::<TraceId, foldhash::fast::RandomState>::default(), false);
    for block in &blocks {
        if block.row.start_max < query.start_unix_nanos
            || block.row.start_min >= query.end_unix_nanos.saturating_add(APART_NANOS)
        {
            continue;
        }
        // Blocks that follow have no trace that began later than this.
        if found.len() >= COUNT_MAX.max(wanted) {
            let newer = |trace: &&TraceSummary| trace.start_unix_nanos > block.row.start_max;
            if found.iter().filter(newer).count() >= wanted {
                more = true;
                break;
            }
        }
        let index = match catalogue.index(block) {
            Ok(index) => index,
            Err(Unreadable::Damaged) => continue,
            Err(error) => return Err(error),
        };
        let candidates = Candidates::new(&index, query);
        if candidates.none() {
            continue;
        }
        for entry in index.entries.iter().filter(|entry| candidates.may_be(entry)) {
            if seen.insert(entry.trace_id) {
                let trace = whole(catalogue, &blocks, block, &index, entry)?.summary;
                if matches(query, &trace) {
                    found.push(trace);
                }
            }
        }
    }
    let total = found.len() as u64;
    found.sort_unstable_by_key(|trace| (std::cmp::Reverse(trace.start_unix_nanos), trace.trace_id));
    let traces = found.into_iter().skip(query.offset).take(query.limit).collect();
    Ok(Found { traces, total, more })
}
