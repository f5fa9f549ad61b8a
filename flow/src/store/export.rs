//! Traces of a file as OTLP/JSON, a request a line: what another receiver, or this one, takes back equal. Reads beside a
//! process that writes. Must never change the file.

use super::block::{Dictionary, read_group};
use super::catalogue::{Catalogue, Unreadable};
use super::file::{self, Readers};
use super::index::Entry;
use super::search;
use super::staging::Sent;
use crate::engine::{Log, TraceQuery};
use crate::span::{SpanId, TraceId};
use crate::wire::json;
use crate::wire::proto::put_bytes;
use crate::wire::walk::{self, Check};
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

/// Spans of a line.
const LINE_SPANS: usize = 256;

/// What was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Exported {
    /// Traces.
    pub traces: u64,
    /// Spans.
    pub spans: u64,
    /// Blocks that can't be read; each was told to the log.
    pub blocks_damaged: u64,
}

/// Why nothing more was written.
#[derive(Debug)]
pub enum ExportError {
    /// The file can't be read: its path and the reason.
    File(std::path::PathBuf, String),
    /// What is written to says no.
    Write(std::io::Error),
}

impl std::fmt::Display for ExportError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path, reason) => write!(out, "{}: {reason}", path.display()),
            Self::Write(error) => error.fmt(out),
        }
    }
}

impl std::error::Error for ExportError {}

/// Which traces are wanted.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// Those that a question finds. Its `limit` and `offset` do not count.
    Query(TraceQuery),
    /// One.
    Trace(TraceId),
}

/// Lines on their way out.
struct Lines<'w> {
    out: &'w mut dyn Write,
    request: Vec<u8>,
    /// `ResourceSpans` under way: who sent them, and the spans as fields.
    sender: Option<[Vec<u8>; 4]>,
    spans: Vec<u8>,
    count: usize,
    line: String,
    result: std::io::Result<()>,
}

impl Lines<'_> {
    fn span(&mut self, sent: Sent<'_>, raw: &[u8]) {
        let here = [sent.resource, sent.resource_schema, sent.scope, sent.scope_schema];
        if self.sender.as_ref().is_none_or(|sender| sender.each_ref().map(Vec::as_slice) != here) {
            self.end_sender();
            self.sender = Some(here.map(<[u8]>::to_vec));
        }
        put_bytes(&mut self.spans, 2, raw);
        self.count += 1;
        if self.count >= LINE_SPANS {
            self.end_line();
        }
    }

    fn end_sender(&mut self) {
        let Some([resource, resource_schema, scope, scope_schema]) = self.sender.take() else { return };
        let mut scope_spans = Vec::with_capacity(self.spans.len() + scope.len() + 16);
        put_bytes(&mut scope_spans, 1, &scope);
        scope_spans.append(&mut self.spans);
        if !scope_schema.is_empty() {
            put_bytes(&mut scope_spans, 3, &scope_schema);
        }
        let mut resource_spans = Vec::with_capacity(scope_spans.len() + resource.len() + 16);
        put_bytes(&mut resource_spans, 1, &resource);
        put_bytes(&mut resource_spans, 2, &scope_spans);
        if !resource_schema.is_empty() {
            put_bytes(&mut resource_spans, 3, &resource_schema);
        }
        put_bytes(&mut self.request, 1, &resource_spans);
    }

    fn end_line(&mut self) {
        self.end_sender();
        if self.count > 0 && self.result.is_ok() {
            self.line.clear();
            json::write_traces(&self.request, &mut self.line);
            self.line.push('\n');
            self.result = self.out.write_all(self.line.as_bytes());
        }
        self.request.clear();
        self.count = 0;
    }
}

/// Writes the traces that are wanted, each span once.
///
/// # Errors
/// When the file can't be read, or `out` says no.
pub fn export(
    folder: &Path,
    wanted: &Wanted,
    log: &Log,
    out: &mut dyn Write,
) -> Result<Exported, ExportError> {
    let path = folder.join(file::FILE);
    let fail = |reason: String| ExportError::File(path.clone(), reason);
    let readers = Readers::new(path.clone());
    let rows = readers.blocks().map_err(|error| fail(error.to_string()))?;
    let catalogue = Catalogue::new(rows, Some(readers), 64 << 20, log.clone());
    let unreadable = |error: Unreadable| match error {
        Unreadable::File(reason) => fail(reason),
        Unreadable::Gone | Unreadable::Damaged => fail("it changes faster than it can be read".into()),
    };
    let ids = match wanted {
        Wanted::Trace(id) => HashSet::from([*id]),
        Wanted::Query(query) => search::ids(&catalogue, query).map_err(unreadable)?,
    };
    let mut lines = Lines {
        out,
        request: Vec::new(),
        sender: None,
        spans: Vec::new(),
        count: 0,
        line: String::new(),
        result: Ok(()),
    };
    let mut exported = Exported::default();
    let (mut told, mut traces) = (HashSet::<(TraceId, SpanId, u8)>::new(), HashSet::new());
    let mut blocks = catalogue.all();
    blocks.sort_by_key(|block| (block.row.start_min, block.row.id));
    for block in &blocks {
        if !ids.is_empty() && ids.len() < 1000 && !ids.iter().any(|id| block.row.filter.may_have(id)) {
            continue;
        }
        let read = || -> Result<_, Unreadable> { Ok((catalogue.index(block)?, catalogue.whole(block)?)) };
        let (index, parts) = match read() {
            Ok(both) => both,
            Err(Unreadable::File(reason)) => return Err(fail(reason)),
            // A block that a writer took away while this one reads: its spans are elsewhere or expired.
            Err(Unreadable::Gone | Unreadable::Damaged) => continue,
        };
        let wants = |entry: &Entry| ids.contains(&entry.trace_id);
        if !index.entries.iter().any(wants) {
            continue;
        }
        let mut each = |sent: Sent<'_>, raw: &[u8]| {
            let Ok(Ok(span)) = walk::span(raw, &mut Check) else { return };
            // Only a trace that lies in several blocks may have a span twice.
            let others = |other: &&std::sync::Arc<super::catalogue::Block>| {
                other.row.id != block.row.id && other.row.filter.may_have(&span.trace_id)
            };
            if blocks.iter().any(|other| others(&other))
                && !told.insert((span.trace_id, span.span_id, span.kind as u8))
            {
                return;
            }
            traces.insert(span.trace_id);
            exported.spans += 1;
            lines.span(sent, raw);
        };
        let mut groups = || -> Result<(), super::Damaged> {
            let dictionary = Dictionary::unpack(&parts.dictionary)?;
            let mut first = 0;
            for (group, rows) in parts.groups.iter().zip(&index.groups) {
                read_group(&index, &dictionary, group, first, &wants, &mut each)?;
                first += u64::from(*rows);
            }
            Ok(())
        };
        if let Err(why) = groups() {
            drop(catalogue.damaged_by(block, why));
        }
        lines.end_line();
        if lines.result.is_err() {
            break;
        }
    }
    lines.end_line();
    lines.result.map_err(ExportError::Write)?;
    exported.traces = traces.len() as u64;
    exported.blocks_damaged = catalogue.damaged.load(std::sync::atomic::Ordering::Relaxed);
    Ok(exported)
}
