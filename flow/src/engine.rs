//! What calls what: messages come in, are dealt out to shards by trace id, and each shard adds up, shows and stores.
//! Must never wait for long with a message in hand, and never lose a span without counting it.

use crate::span::{Incoming, Sender, Span, TraceId};
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How the engine is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads that take spans, each with the traces that fall to it.
    pub shards: usize,
    /// Bytes of messages that wait for the shards, all together; beyond them messages are refused.
    pub queue_bytes_max: u64,
    /// Bytes of compressed blocks kept in memory.
    pub memory_bytes_max: u64,
    /// Where the file lies; none for memory only.
    pub data_dir: Option<PathBuf>,
    /// Bytes of the file; beyond them the oldest blocks go.
    pub disk_bytes_max: u64,
    /// Blocks whose newest span is older than this go.
    pub keep_for: Duration,
    /// The longest a span is held before it is written.
    pub commit_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            shards: std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(16),
            queue_bytes_max: 64 << 20,
            memory_bytes_max: 256 << 20,
            data_dir: None,
            disk_bytes_max: 10 << 30,
            keep_for: Duration::from_hours(7 * 24),
            commit_after: Duration::from_millis(800),
        }
    }
}

/// Why the engine can't start.
#[derive(Debug)]
pub enum OpenError {
    /// The folder or the file can't be used: path and reason.
    File(PathBuf, String),
    /// A thread can't be started.
    Thread(std::io::Error),
}

/// What became of a message that was taken.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Accepted {
    /// Spans, or data points, that were taken.
    pub taken: u64,
    /// Those that were not, though their message was.
    pub rejected: u64,
    /// Why not, when there are any.
    pub why: Option<String>,
}

/// Why a message was not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Queues are full: the sender may try again later.
    Busy,
    /// The message is wrong: trying again is of no use. Names the field.
    Malformed(String),
}

/// Why a question can't be answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// The file can't be read.
    File(String),
}

/// What a trace came to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Nothing at its root failed.
    Success,
    /// Its root failed; where the root is not there, any span.
    Error,
    /// Its root failed because something took too long.
    Timeout,
}

/// Which traces are wanted. Text that is none is not asked for.
#[derive(Clone, Debug)]
pub struct TraceQuery {
    /// Name of the operation.
    pub operation: Option<String>,
    /// A service that took part.
    pub service: Option<String>,
    /// Namespace of a service that took part; with `service`, of that one.
    pub namespace: Option<String>,
    /// Environment.
    pub environment: Option<String>,
    /// What it came to.
    pub status: Option<Outcome>,
    /// Traces that began here or later.
    pub start_unix_nanos: u64,
    /// Traces that began before this.
    pub end_unix_nanos: u64,
    /// Traces that took as long as this or longer.
    pub min_duration_nanos: Option<u64>,
    /// How many, newest first.
    pub limit: usize,
    /// How many of the newest are left out.
    pub offset: usize,
}

impl Default for TraceQuery {
    fn default() -> Self {
        Self {
            operation: None,
            service: None,
            namespace: None,
            environment: None,
            status: None,
            start_unix_nanos: 0,
            end_unix_nanos: u64::MAX,
            min_duration_nanos: None,
            limit: 100,
            offset: 0,
        }
    }
}

/// A trace in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceSummary {
    /// The trace.
    pub trace_id: TraceId,
    /// The operation; empty when no span tells one.
    pub operation: String,
    /// `ui.event`; empty when no span tells one.
    pub ui_event: String,
    /// Environment of the root.
    pub environment: String,
    /// Service of the root, or of the span that began first while there is none.
    pub root_service: String,
    /// Name of that span.
    pub root_name: String,
    /// Whether a span without a parent is there.
    pub has_root: bool,
    /// When the first span began.
    pub start_unix_nanos: u64,
    /// When the last span ended.
    pub end_unix_nanos: u64,
    /// What it came to.
    pub status: Outcome,
    /// Spans. A span that was sent twice may count twice here while its copies lie in different blocks.
    pub span_count: u32,
    /// Spans that failed.
    pub error_count: u32,
    /// (service, namespace) of all that took part, sorted.
    pub services: Vec<(String, String)>,
}

/// Traces that were asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// One page of them, newest first.
    pub traces: Vec<TraceSummary>,
    /// How many there are on all pages, counted up to a bound.
    pub total: u64,
    /// Whether there may be more than `total`.
    pub more: bool,
}

/// Sees every span as it comes in, on the thread of a shard: must be quick, and must not call the engine.
pub trait Watcher: Send + Sync {
    /// A span came in.
    fn span(&self, shard: usize, sender: &Sender<'_>, span: &Incoming<'_>);
}

/// What became of all spans: `received = stored + held + dropped`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Books {
    /// Spans of messages that were taken.
    pub received: u64,
    /// Spans that were written, or put into memory when there is no file; also those that went by age since.
    pub stored: u64,
    /// Spans that wait: in queues, in blocks that are being filled, in blocks that are not yet written.
    pub held: u64,
    /// Spans that were lost, by reason.
    pub dropped: Vec<(&'static str, u64)>,
    /// Messages that were refused, by reason.
    pub refused: Vec<(&'static str, u64)>,
    /// Spans that were stored and went since, by reason.
    pub expired: Vec<(&'static str, u64)>,
    /// Blocks that are there.
    pub blocks: u64,
    /// Blocks that can't be read.
    pub blocks_damaged: u64,
    /// Bytes of messages in queues.
    pub queued_bytes: u64,
    /// Bytes of compressed blocks and their indexes in memory.
    pub memory_bytes: u64,
    /// Bytes of the file, without what is free in it.
    pub disk_bytes: u64,
    /// Why the file can't be written at the moment.
    pub trouble: Option<String>,
}

/// Takes telemetry and answers about traces. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<()>,
}

impl Engine {
    /// Opens the file, if there is to be one, and starts the threads.
    ///
    /// # Errors
    /// When the file can't be used, or a thread can't be started.
    pub fn open(
        options: Options,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, OpenError> {
        let _ = (options, clock);
        Ok(Self { inner: Arc::new(()) })
    }

    /// Takes an `ExportTraceServiceRequest` in protobuf.
    ///
    /// # Errors
    /// When the queues are full or the message is wrong; then nothing of it was taken.
    pub fn spans(&self, body: Bytes) -> Result<Accepted, Refused> {
        let _ = body;
        Err(Refused::Busy)
    }

    /// All spans of a trace that are there, in the order of their beginning; none when there is no such trace.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn trace(&self, id: TraceId) -> Result<Option<Vec<Span>>, StoreError> {
        let _ = id;
        Ok(None)
    }

    /// Traces, newest first.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn find(&self, query: &TraceQuery) -> Result<Found, StoreError> {
        let _ = query;
        Ok(Found::default())
    }

    /// Shows every span from here on.
    pub fn watch(&self, watcher: Arc<dyn Watcher>) {
        let _ = (&self.inner, watcher);
    }

    /// What became of all spans.
    #[must_use]
    pub fn books(&self) -> Books {
        Books::default()
    }

    /// Takes no more, writes what is held, ends the threads.
    pub fn close(&self) {}
}
