//! What calls what: messages come in, are dealt out to shards by trace id, and each shard adds up, shows and stores.
//! Must never wait for long with a message in hand, and never lose a span without counting it.

use crate::numbers::{self, Numbers};
use crate::span::{Incoming, Kind, Sender, Span, SpanId, TraceId};
use crate::store::{Keeper, LEVEL, Packer, Sent, Shelf};
use crate::wire::Malformed;
use crate::wire::walk::{self, Check, Rejected};
use crate::wire::whole::{self, Origin};
use bytes::Bytes;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
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
    /// How the numbers are kept. Their shards are the engine's, and they are stored when there is a file.
    pub numbers: numbers::Options,
    /// Takes sentences about what goes wrong, seldom.
    pub log: Log,
}

/// A number that nobody outside can guess.
fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u64)
}

/// Takes sentences.
#[derive(Clone)]
pub struct Log(pub Arc<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for Log {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Log")
    }
}

impl Default for Log {
    /// Writes to standard error.
    fn default() -> Self {
        Self(Arc::new(|sentence| drop(writeln!(std::io::stderr(), "throughline-flow: {sentence}"))))
    }
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
            numbers: numbers::Options { seed: random(), ..numbers::Options::default() },
            log: Log::default(),
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
    /// Spans that were not taken though their message was.
    pub rejected: u64,
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

/// Where a span lies in its message, and who sent it.
#[derive(Clone, Copy, Debug)]
struct Place {
    sender: u32,
    at: u32,
    len: u32,
}

/// Bytes that wait; counted as long as any shard has something of their message.
struct Hold {
    bytes: u64,
    queued: Arc<AtomicU64>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.queued.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// What a shard has to do.
enum Work {
    /// Spans of a message that fall to it.
    Spans { body: Bytes, senders: Arc<[[Range<usize>; 4]]>, places: Vec<Place>, hold: Arc<Hold> },
    /// Seals what is there, and says so.
    Seal(SyncSender<()>),
}

/// Deals out the spans of a message, and reads every byte of it in doing so.
struct Dealing<'a> {
    body: &'a [u8],
    senders: Vec<[Range<usize>; 4]>,
    places: Vec<Vec<Place>>,
    taken: u64,
    rejected: u64,
    why: Option<Rejected>,
}

/// Where a part of a message lies in it.
fn range_of(body: &[u8], part: &[u8]) -> Range<usize> {
    let at = if part.is_empty() { 0 } else { (part.as_ptr() as usize).wrapping_sub(body.as_ptr() as usize) };
    at..at.wrapping_add(part.len())
}

fn shard_of(id: &TraceId, shards: usize) -> usize {
    let mixed = u128::from_le_bytes(*id).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    ((u128::from((mixed >> 64) as u64) * shards as u128) >> 64) as usize
}

impl<'a> walk::Visit<'a> for Dealing<'a> {
    fn sender(&mut self, sender: Sender<'a>) {
        let parts = [sender.resource, sender.resource_schema, sender.scope, sender.scope_schema];
        self.senders.push(parts.map(|part| range_of(self.body, part)));
    }

    fn span(&mut self, raw: &'a [u8]) -> Result<(), Malformed> {
        match walk::span(raw, &mut Check)? {
            Ok(span) => {
                let shard = shard_of(&span.trace_id, self.places.len());
                let at = range_of(self.body, raw).start as u32;
                let sender = (self.senders.len() as u32).saturating_sub(1);
                if let Some(places) = self.places.get_mut(shard) {
                    places.push(Place { sender, at, len: raw.len() as u32 });
                    self.taken += 1;
                }
            }
            Err(why) => {
                self.rejected += 1;
                self.why.get_or_insert(why);
            }
        }
        Ok(())
    }
}

/// A thread with the traces that fall to it.
#[derive(Default)]
struct Shard {
    queue: Mutex<Queue>,
    filled: Condvar,
    shelf: Shelf,
}

#[derive(Default)]
struct Queue {
    works: VecDeque<Work>,
    /// The shard sleeps: who puts something here has to wake it. A wake-up is a call of the kernel, whether anybody
    /// sleeps or not.
    sleeps: bool,
}

impl Shard {
    fn put(&self, work: Work) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.works.push_back(work);
        let sleeps = std::mem::take(&mut queue.sleeps);
        drop(queue);
        if sleeps {
            self.filled.notify_one();
        }
    }

    /// Moves all that is there into `works`, which is empty; waits for it when there is nothing.
    fn take(&self, wait: Duration, works: &mut VecDeque<Work>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.works.is_empty() {
            queue.sleeps = true;
            let empty = |queue: &mut Queue| queue.works.is_empty() && queue.sleeps;
            queue =
                self.filled.wait_timeout_while(queue, wait, empty).unwrap_or_else(PoisonError::into_inner).0;
            queue.sleeps = false;
        }
        std::mem::swap(&mut queue.works, works);
    }
}

type Watchers = Arc<[Arc<dyn Watcher>]>;

/// What the threads share.
struct Shared {
    keeper: Arc<Keeper>,
    shards: Vec<Shard>,
    watchers: RwLock<Watchers>,
    clock: Arc<dyn Fn() -> u64 + Send + Sync>,
    commit_after_nanos: u64,
    queue_bytes_max: u64,
    queued: Arc<AtomicU64>,
    closing: AtomicBool,
    received: AtomicU64,
    rejected: AtomicU64,
    refused_busy: AtomicU64,
    refused_malformed: AtomicU64,
    metrics_refused: AtomicU64,
}

/// Takes telemetry and answers about traces. Cheap to clone; ends when the last one is dropped.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Bytes of a small span, for a guess of how many there are in a message.
const SPAN_BYTES: usize = 256;
/// What a message takes in a queue beside its bytes.
const MESSAGE_BYTES: u64 = 512;

impl Engine {
    /// Opens the file, if there is to be one, and starts the threads. `clock` tells nanoseconds since 1970.
    ///
    /// # Errors
    /// When the file can't be used, or a thread can't be started.
    pub fn open(
        mut options: Options,
        clock: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<Self, OpenError> {
        let clock: Arc<dyn Fn() -> u64 + Send + Sync> = Arc::new(clock);
        let shards = options.shards.clamp(1, 64);
        options.numbers.shards = shards;
        options.numbers.keep_for = options.keep_for;
        let keeper = Keeper::open(&options, Arc::clone(&clock))?;
        let shared = Arc::new(Shared {
            keeper,
            shards: (0..shards).map(|_| Shard::default()).collect(),
            watchers: RwLock::new(Arc::new([])),
            clock,
            commit_after_nanos: u64::try_from(options.commit_after.as_nanos()).unwrap_or(u64::MAX),
            queue_bytes_max: options.queue_bytes_max,
            queued: Arc::default(),
            closing: AtomicBool::new(false),
            received: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            refused_busy: AtomicU64::new(0),
            refused_malformed: AtomicU64::new(0),
            metrics_refused: AtomicU64::new(0),
        });
        let engine = Self { inner: Arc::new(Inner { shared, threads: Mutex::default() }) };
        for number in 0..shards {
            let shared = Arc::clone(&engine.inner.shared);
            let thread = std::thread::Builder::new()
                .name(format!("flow-shard-{number}"))
                .spawn(move || shared.run(number))
                .map_err(OpenError::Thread)?;
            engine.inner.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(engine)
    }

    /// Takes an `ExportTraceServiceRequest` in protobuf. Never waits: where there is no room it refuses.
    ///
    /// # Errors
    /// When the queues are full or the message is wrong; then nothing of it was taken.
    pub fn spans(&self, body: Bytes) -> Result<Accepted, Refused> {
        let shared = &self.inner.shared;
        let busy = || {
            shared.refused_busy.fetch_add(1, Ordering::Relaxed);
            Err(Refused::Busy)
        };
        if shared.closing.load(Ordering::Acquire) {
            return busy();
        }
        let bytes = body.len() as u64 + MESSAGE_BYTES;
        // A message that is greater than all queues still comes through an empty one.
        let before = shared.queued.fetch_add(bytes, Ordering::AcqRel);
        let hold = Arc::new(Hold { bytes, queued: Arc::clone(&shared.queued) });
        if before > 0 && before + bytes > shared.queue_bytes_max {
            return busy();
        }
        let malformed = |why: String| {
            shared.refused_malformed.fetch_add(1, Ordering::Relaxed);
            Err(Refused::Malformed(why))
        };
        if u32::try_from(body.len()).is_err() {
            return malformed("request: want less than 4 GiB".into());
        }
        let likely = body.len() / SPAN_BYTES / shared.shards.len().max(1);
        let mut dealing = Dealing {
            body: &body,
            senders: Vec::new(),
            places: shared.shards.iter().map(|_| Vec::with_capacity(likely)).collect(),
            taken: 0,
            rejected: 0,
            why: None,
        };
        if let Err(error) = walk::traces(&body, &mut dealing) {
            return malformed(error.to_string());
        }
        let Dealing { senders, places, taken, rejected, why, .. } = dealing;
        let senders: Arc<[_]> = senders.into();
        shared.received.fetch_add(taken, Ordering::Relaxed);
        shared.rejected.fetch_add(rejected, Ordering::Relaxed);
        for (shard, places) in shared.shards.iter().zip(places) {
            if !places.is_empty() {
                let (body, senders, hold) = (body.clone(), Arc::clone(&senders), Arc::clone(&hold));
                shard.put(Work::Spans { body, senders, places, hold });
            }
        }
        Ok(Accepted { taken, rejected, why: why.map(|why| why.as_str().into()) })
    }

    /// Takes an `ExportMetricsServiceRequest` in protobuf.
    ///
    /// # Errors
    /// When the message is wrong; then nothing of it was counted.
    pub fn metrics(&self, body: &[u8]) -> Result<Accepted, Refused> {
        let shared = &self.inner.shared;
        match shared.keeper.numbers().metrics(body, (shared.clock)()) {
            Ok(taken) => Ok(Accepted {
                taken: taken.points.saturating_sub(taken.rejected),
                rejected: taken.rejected,
                why: (taken.rejected > 0).then(|| "data points that make no sense, or found no place".into()),
            }),
            Err(error) => {
                shared.metrics_refused.fetch_add(1, Ordering::Relaxed);
                Err(Refused::Malformed(error.to_string()))
            }
        }
    }

    /// What was counted: its own lock, its own questions.
    #[must_use]
    pub fn numbers(&self) -> &Numbers {
        self.inner.shared.keeper.numbers()
    }

    /// All spans of a trace that are there, in the order of their beginning; none when there is no such trace.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn trace(&self, id: TraceId) -> Result<Option<Vec<Span>>, StoreError> {
        let shared = &self.inner.shared;
        let mut gathered = Gathered::default();
        // In the order in which spans move on, so that none is missed; one that is met twice is one.
        if let Some(shard) = shared.shards.get(shard_of(&id, shared.shards.len())) {
            shard.shelf.spans(id, &mut |sent, raw| gathered.add(sent, raw));
        }
        shared.keeper.spans(id, &mut |sent, raw| gathered.add(sent, raw))?;
        let mut spans = gathered.spans;
        spans.sort_by_key(|span| (span.start_unix_nanos, span.end_unix_nanos));
        Ok(if spans.is_empty() { None } else { Some(spans) })
    }

    /// Traces, newest first. Knows what was sealed: spans of the last moment are not in it yet.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn find(&self, query: &TraceQuery) -> Result<Found, StoreError> {
        self.inner.shared.keeper.find(query)
    }

    /// Shows every span from here on.
    pub fn watch(&self, watcher: Arc<dyn Watcher>) {
        let mut watchers = self.inner.shared.watchers.write().unwrap_or_else(PoisonError::into_inner);
        *watchers = watchers.iter().cloned().chain([watcher]).collect();
    }

    /// What became of all spans.
    #[must_use]
    pub fn books(&self) -> Books {
        let shared = &self.inner.shared;
        let counts = &shared.keeper.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // What left is read before what came, so that nothing seems to have left before it came.
        let dropped = vec![
            ("duplicate", read(&counts.duplicate)),
            ("not_written", read(&counts.unwritten)),
            ("not_compressed", read(&counts.sealing_failed)),
        ];
        let stored = read(&counts.stored);
        let gone: u64 = stored + dropped.iter().map(|(_, count)| count).sum::<u64>();
        let received = read(&shared.received).max(gone);
        let (blocks, blocks_damaged) = shared.keeper.blocks();
        let shelves: u64 = shared.shards.iter().map(|shard| shard.shelf.bytes()).sum();
        Books {
            received,
            stored,
            held: received - gone,
            dropped,
            rejected: read(&shared.rejected),
            refused: vec![
                ("busy", read(&shared.refused_busy)),
                ("malformed", read(&shared.refused_malformed)),
                ("malformed_metrics", read(&shared.metrics_refused)),
            ],
            expired: vec![
                ("age", read(&counts.expired_age)),
                ("bytes", read(&counts.expired_bytes)),
                ("disk_full", read(&counts.expired_full)),
                ("duplicate", read(&counts.expired_duplicate)),
            ],
            blocks,
            blocks_damaged,
            queued_bytes: read(&shared.queued),
            memory_bytes: shared.keeper.memory_bytes() + shelves,
            disk_bytes: read(&counts.disk_bytes),
            trouble: shared.keeper.trouble(),
        }
    }

    /// Waits until all spans that were taken are written, or can't be.
    pub fn flush(&self) {
        let shared = &self.inner.shared;
        if shared.closing.load(Ordering::Acquire) {
            return;
        }
        let waits: Vec<_> = shared
            .shards
            .iter()
            .map(|shard| {
                let (done, wait) = sync_channel(1);
                shard.put(Work::Seal(done));
                wait
            })
            .collect();
        for wait in waits {
            let _ = wait.recv();
        }
        shared.keeper.flush();
    }

    /// Takes no more, writes what is held, ends the threads.
    pub fn close(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for shard in &self.shared.shards {
            shard.queue.lock().unwrap_or_else(PoisonError::into_inner).sleeps = false;
            shard.filled.notify_all();
        }
        for thread in threads {
            drop(thread.join());
        }
        self.shared.keeper.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Spans of a trace, each once.
#[derive(Default)]
struct Gathered {
    spans: Vec<Span>,
    there: HashSet<(SpanId, Kind)>,
    origins: HashMap<[Vec<u8>; 4], Origin>,
}

impl Gathered {
    fn add(&mut self, sent: Sent<'_>, raw: &[u8]) {
        let key = [sent.resource, sent.resource_schema, sent.scope, sent.scope_schema].map(<[u8]>::to_vec);
        let origin = self.origins.entry(key).or_insert_with(|| {
            let sender = walk::sender(sent.resource, sent.resource_schema, sent.scope, sent.scope_schema);
            Origin::of(&sender.unwrap_or_default())
        });
        if let Some(span) = whole::span(raw, origin)
            && self.there.insert((span.span_id, span.kind))
        {
            self.spans.push(span);
        }
    }
}

impl Shared {
    /// The life of a shard.
    fn run(&self, number: usize) {
        let Some(shard) = self.shards.get(number) else { return };
        let mut packer = match Packer::new(LEVEL) {
            Ok(packer) => packer,
            Err(_) => return,
        };
        let tick = Duration::from_nanos(self.commit_after_nanos / 8)
            .clamp(Duration::from_millis(5), Duration::from_millis(100));
        let mut works = VecDeque::new();
        loop {
            shard.take(tick, &mut works);
            let idle = works.is_empty();
            let mut now = (self.clock)();
            for work in works.drain(..) {
                match work {
                    Work::Spans { body, senders, places, hold } => {
                        self.take(number, shard, &body, &senders, &places, now);
                        drop((body, hold));
                    }
                    Work::Seal(done) => {
                        shard.shelf.seal_if_due(&self.keeper, &mut packer, u64::MAX, now);
                        let _ = done.try_send(());
                    }
                }
                now = (self.clock)();
                let before = now.saturating_sub(self.commit_after_nanos);
                shard.shelf.seal_if_due(&self.keeper, &mut packer, before, now);
            }
            if idle {
                let ending = self.closing.load(Ordering::Acquire);
                let before = now.saturating_sub(self.commit_after_nanos);
                let before = if ending { u64::MAX } else { before };
                shard.shelf.seal_if_due(&self.keeper, &mut packer, before, now);
                if ending {
                    return;
                }
            }
        }
    }

    fn take(
        &self,
        number: usize,
        shard: &Shard,
        body: &[u8],
        senders: &[[Range<usize>; 4]],
        places: &[Place],
        now: u64,
    ) {
        let watchers = Arc::clone(&self.watchers.read().unwrap_or_else(PoisonError::into_inner));
        let mut filling = shard.shelf.fill(now);
        let mut offering = self.keeper.numbers().offer(number);
        let (mut last, mut sender) = (None, Sender::default());
        for place in places {
            let (at, len) = (place.at as usize, place.len as usize);
            let Some(raw) = body.get(at..at + len) else { continue };
            if last != Some(place.sender) {
                last = Some(place.sender);
                let part = |range: &Range<usize>| body.get(range.clone()).unwrap_or_default();
                let Some([resource, resource_schema, scope, scope_schema]) =
                    senders.get(place.sender as usize)
                else {
                    continue;
                };
                sender = walk::sender(part(resource), part(resource_schema), part(scope), part(scope_schema))
                    .unwrap_or_default();
                filling.sender(&sender);
            }
            // Read once before, so there is nothing left to be wrong.
            if let Ok(Ok(mut span)) = walk::span(raw, filling.pieces()) {
                filling.push(&mut span);
                if let Some(offering) = &mut offering {
                    offering.span(&sender, &span, now);
                }
                for watcher in watchers.iter() {
                    watcher.span(number, &sender, &span);
                }
            }
        }
    }
}
