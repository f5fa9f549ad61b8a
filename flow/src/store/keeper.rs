//! Puts blocks into memory and into the file, takes old ones away, makes great ones of small ones. Must never let a
//! file that can't be written stop spans from coming in, nor keep more than it was told to.

use super::block::{Parts, read_all};
use super::bytes::Packer;
use super::catalogue::{Block, Catalogue, Unreadable};
use super::file::{Readers, Row, Writer, is_full};
use super::staging::{Pieces, Sent, Staging};
use crate::engine::{Found, Log, OpenError, Options, StoreError, TraceQuery};
use crate::numbers::{self, Changes, Numbers};
use crate::span::TraceId;
use crate::wire::walk;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Blocks that wait for the file; a shard that comes with one more waits itself.
const BLOCKS_WAITING_MAX: usize = 8;
/// Bytes of indexes that are kept even where little memory is granted: without them each list would read them anew.
const INDEX_BYTES_MIN: usize = 16 << 20;
/// How hard the compressor tries.
pub(crate) const LEVEL: i32 = 1;
/// Blocks of about the same size that become one.
const MERGED: usize = 8;
/// Spans of a block that is not merged any more.
const MERGED_SPANS_MAX: u64 = 64 * 1024;
/// How often what can't be written is tried again, and old blocks are looked for.
const TICK: Duration = Duration::from_millis(500);
/// How often trouble is told in the log.
const TELL_EVERY: Duration = Duration::from_secs(30);
/// How often a question is asked again when blocks are taken away under it.
const TRIES: usize = 8;

/// What became of spans.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) stored: AtomicU64,
    pub(crate) duplicate: AtomicU64,
    pub(crate) unwritten: AtomicU64,
    pub(crate) sealing_failed: AtomicU64,
    pub(crate) expired_age: AtomicU64,
    pub(crate) expired_bytes: AtomicU64,
    pub(crate) expired_full: AtomicU64,
    pub(crate) expired_duplicate: AtomicU64,
    pub(crate) disk_bytes: AtomicU64,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

enum Job {
    /// A block that is in the catalogue.
    Add(Arc<Block>),
    /// A block that is not, and those whose spans it has.
    Merge(Arc<Block>, Vec<Arc<Block>>, u64),
    /// Says when all that came before is done.
    Flush(SyncSender<()>),
    End,
}

/// Keeps blocks.
pub(crate) struct Keeper {
    catalogue: Catalogue,
    pub(crate) counts: Counts,
    jobs: SyncSender<Job>,
    trouble: Mutex<Option<String>>,
    in_file: bool,
    memory_bytes_max: u64,
    disk_bytes_max: u64,
    keep_for_nanos: u64,
    ending: AtomicBool,
    log: Log,
    clock: Arc<dyn Fn() -> u64 + Send + Sync>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    numbers: Arc<Numbers>,
}

impl Keeper {
    /// Opens the file, if there is to be one, and starts the threads.
    pub(crate) fn open(
        options: &Options,
        clock: Arc<dyn Fn() -> u64 + Send + Sync>,
    ) -> Result<Arc<Self>, OpenError> {
        let numbers = numbers::Options { to_store: options.data_dir.is_some(), ..options.numbers };
        let numbers = Arc::new(Numbers::new(numbers, clock()));
        let (mut writer, mut rows, mut readers) = (None, Vec::new(), None);
        if let Some(folder) = &options.data_dir {
            let opened = open_file(folder, clock(), &options.log)?;
            let fail = |error: rusqlite::Error| OpenError::File(opened.0.path().into(), error.to_string());
            match numbers.restore(opened.2, clock()) {
                Ok(0) => {}
                Ok(some) => {
                    (options.log.0)(&format!(
                        "{some} rows of the numbers can't be read and were passed over"
                    ));
                }
                Err(error) => {
                    (options.log.0)(&format!("{error}: the numbers begin anew"));
                    opened.0.drop_numbers().map_err(fail)?;
                }
            }
            readers = Some(Readers::new(opened.0.path().into()));
            (writer, rows) = (Some(opened.0), opened.1);
        }
        let (jobs, todo) = sync_channel(BLOCKS_WAITING_MAX);
        let index_bytes_max =
            usize::try_from(options.memory_bytes_max / 8).unwrap_or(usize::MAX).max(INDEX_BYTES_MIN);
        let keeper = Arc::new(Self {
            catalogue: Catalogue::new(rows, readers, index_bytes_max, options.log.clone()),
            counts: Counts::default(),
            jobs,
            trouble: Mutex::default(),
            in_file: writer.is_some(),
            memory_bytes_max: options.memory_bytes_max,
            disk_bytes_max: options.disk_bytes_max,
            keep_for_nanos: u64::try_from(options.keep_for.as_nanos()).unwrap_or(u64::MAX),
            ending: AtomicBool::new(false),
            log: options.log.clone(),
            clock,
            threads: Mutex::default(),
            numbers,
        });
        let (one, other) = (Arc::clone(&keeper), Arc::clone(&keeper));
        let writing = move || {
            let changes = Changes::default();
            Writing { keeper: &one, writer, waiting: Vec::new(), changes, told: None }.run(&todo);
        };
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(run).map_err(OpenError::Thread)
        };
        let mut threads = vec![start("flow-file", Box::new(writing))?];
        match start("flow-merge", Box::new(move || other.merge_on())) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                drop(keeper.jobs.send(Job::End));
                return Err(error);
            }
        }
        *keeper.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(keeper)
    }

    /// The numbers.
    pub(crate) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Makes a block and keeps it. Waits when the file is slow.
    pub(super) fn seal(&self, staging: &Staging, packer: &mut Packer, now: u64) {
        let rows = staging.rows() as u64;
        match staging.seal(packer) {
            Ok(sealed) => {
                add(&self.counts.duplicate, sealed.duplicates);
                let block = self.catalogue.new_block(sealed, now);
                self.catalogue.put(&block, &[]);
                if !self.in_file {
                    add(&self.counts.stored, block.row.spans);
                }
                drop(self.jobs.send(Job::Add(block)));
            }
            Err(error) => {
                add(&self.counts.sealing_failed, rows);
                (self.log.0)(&format!("{rows} spans could not be compressed and are lost: {error}"));
            }
        }
    }

    /// Waits until all that was sealed is in the file, or can't be written.
    pub(crate) fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.jobs.send(Job::Flush(done)).is_ok() {
            let _ = wait.recv();
        }
    }

    /// Writes what is there and ends the threads.
    pub(crate) fn close(&self) {
        if !self.ending.swap(true, Ordering::AcqRel) {
            drop(self.jobs.send(Job::End));
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            drop(thread.join());
        }
    }

    pub(crate) fn blocks(&self) -> (u64, u64) {
        (self.catalogue.count() as u64, self.catalogue.damaged.load(Ordering::Relaxed))
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        self.catalogue.memory_bytes()
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Spans of a trace that are in blocks. May tell one twice.
    pub(crate) fn spans(&self, id: TraceId, each: &mut dyn FnMut(Sent<'_>, &[u8])) -> Result<(), StoreError> {
        for _ in 0..TRIES {
            let mut again = false;
            for block in self.catalogue.all() {
                if !block.row.filter.may_have(&id) {
                    continue;
                }
                match self.catalogue.spans(&block, &id, each) {
                    Ok(()) | Err(Unreadable::Damaged) => {}
                    Err(Unreadable::Gone) => again = true,
                    Err(Unreadable::File(error)) => return Err(StoreError::File(error)),
                }
            }
            if !again {
                return Ok(());
            }
        }
        Err(StoreError::File("blocks were taken away while they were read".into()))
    }

    /// Traces, newest first.
    pub(crate) fn find(&self, query: &TraceQuery) -> Result<Found, StoreError> {
        for _ in 0..TRIES {
            match super::search::find(&self.catalogue, query) {
                Ok(found) => return Ok(found),
                Err(Unreadable::Gone | Unreadable::Damaged) => {}
                Err(Unreadable::File(error)) => return Err(StoreError::File(error)),
            }
        }
        Err(StoreError::File("blocks were taken away while they were read".into()))
    }

    /// Takes a block away, and notes why.
    fn expire(&self, block: &Block, why: &AtomicU64) {
        self.catalogue.remove(block);
        add(why, block.row.spans);
    }

    /// Keeps to the bytes of memory.
    fn trim_memory(&self) {
        let mut over = self.catalogue.memory_bytes().saturating_sub(self.memory_bytes_max);
        if over == 0 {
            return;
        }
        let mut blocks = self.catalogue.all();
        blocks.sort_by_key(|block| (block.row.arrived, block.row.id));
        for block in blocks {
            if over == 0 {
                break;
            }
            if !self.in_file {
                over = over.saturating_sub(block.row.bytes + block.row.filter.bytes() as u64);
                self.expire(&block, &self.counts.expired_bytes);
            } else if block.is(&block.written) && block.parts().is_some() {
                over = over.saturating_sub(block.row.bytes);
                self.catalogue.drop_parts(&block);
            }
        }
    }

    /// Makes great blocks of small ones, until the end.
    fn merge_on(&self) {
        let Ok(mut packer) = Packer::new(LEVEL) else { return };
        while !self.ending.load(Ordering::Acquire) {
            match self.mergeable() {
                Some(blocks) => {
                    if !self.merge(&blocks, &mut packer) {
                        std::thread::park_timeout(TICK);
                    }
                }
                None => std::thread::park_timeout(TICK),
            }
        }
    }

    /// Blocks of about the same size, enough of them to be merged.
    fn mergeable(&self) -> Option<Vec<Arc<Block>>> {
        let mut blocks = self.catalogue.all();
        blocks.retain(|block| {
            block.row.spans <= MERGED_SPANS_MAX / 4
                && !block.is(&block.damaged)
                && (!self.in_file || block.is(&block.written))
        });
        blocks.sort_by_key(|block| (block.row.arrived, block.row.id));
        for tier in 0..=5 {
            let here: Vec<_> =
                blocks.iter().filter(|block| tier_of(block.row.spans) == tier).cloned().collect();
            if here.len() < MERGED {
                continue;
            }
            let mut sum = 0;
            let within = |block: &Arc<Block>| {
                sum += block.row.spans;
                sum <= MERGED_SPANS_MAX
            };
            let chosen: Vec<_> = here.into_iter().take(MERGED).take_while_mut(within).collect();
            if chosen.len() > 1 {
                return Some(chosen);
            }
        }
        None
    }

    /// Whether something was merged.
    fn merge(&self, blocks: &[Arc<Block>], packer: &mut Packer) -> bool {
        let mut staging = Staging::default();
        for block in blocks {
            let parts = match self.catalogue.whole(block) {
                Ok(parts) => parts,
                Err(_) => return false,
            };
            let result = read_all(&parts, &mut |sent, raw| staging.take(sent, raw));
            if let Err(why) = result {
                self.catalogue.damaged_by(block, why);
                return false;
            }
        }
        let Ok(sealed) = staging.seal(packer) else { return false };
        let arrived = blocks.iter().map(|block| block.row.arrived).max().unwrap_or_default();
        let duplicates = sealed.duplicates;
        let block = self.catalogue.new_block(sealed, arrived);
        if self.jobs.send(Job::Merge(block, blocks.to_vec(), duplicates)).is_err() {
            return false;
        }
        self.flush();
        true
    }
}

/// The file, its blocks, its numbers. One whose list of blocks can't be read is put aside and named, not deleted; a new
/// one takes its place.
fn open_file(folder: &Path, now: u64, log: &Log) -> Result<(Writer, Vec<Row>, Vec<numbers::Row>), OpenError> {
    let open = || -> Result<_, OpenError> {
        let writer = Writer::open(folder)?;
        let read = writer.blocks().and_then(|rows| Ok((rows, writer.numbers()?)));
        Ok((writer, read))
    };
    let (writer, read) = open()?;
    let error = match read {
        Ok((rows, numbers)) => return Ok((writer, rows, numbers)),
        Err(error) => error,
    };
    let path = writer.path().to_owned();
    let fail = |error: &dyn std::fmt::Display| OpenError::File(path.clone(), error.to_string());
    if error.sqlite_error_code() != Some(rusqlite::ErrorCode::DatabaseCorrupt) {
        return Err(fail(&error));
    }
    // Takes its log in, so that the file is all there is to put aside.
    let _ = writer.checkpoint();
    drop(writer);
    let aside = path.with_extension(format!("damaged-{}", now / 1_000_000_000));
    std::fs::rename(&path, &aside).map_err(|error| fail(&error))?;
    for beside in ["-wal", "-shm"] {
        let mut name = path.clone().into_os_string();
        name.push(beside);
        drop(std::fs::remove_file(name));
    }
    (log.0)(&format!(
        "{} can't be read: {error}; it is kept as {}, and a new one begins",
        path.display(),
        aside.display()
    ));
    let (writer, read) = open()?;
    let (rows, numbers) = read.map_err(|error| fail(&error))?;
    Ok((writer, rows, numbers))
}

fn tier_of(spans: u64) -> u32 {
    // 1 to 7, 8 to 63, ...
    (63 - (spans | 1).leading_zeros()) / 3
}

trait TakeWhileMut: Iterator + Sized {
    /// Those before the first that is not wanted.
    fn take_while_mut(self, mut wanted: impl FnMut(&Self::Item) -> bool) -> impl Iterator<Item = Self::Item> {
        let mut on = true;
        self.filter(move |item| {
            on = on && wanted(item);
            on
        })
    }
}

impl<I: Iterator> TakeWhileMut for I {}

impl Staging {
    /// Takes a span that a block gave back.
    fn take(&mut self, sent: Sent<'_>, raw: &[u8]) {
        let mut pieces = Pieces::default();
        let sender = walk::sender(sent.resource, sent.resource_schema, sent.scope, sent.scope_schema);
        if let (Ok(sender), Ok(Ok(mut span))) = (sender, walk::span(raw, &mut pieces)) {
            let sender = self.sender(&sender);
            self.push(sender, &mut span, &pieces);
        }
    }
}

/// The thread that writes.
struct Writing<'k> {
    keeper: &'k Keeper,
    writer: Option<Writer>,
    /// In the catalogue, not yet in the file; the oldest first.
    waiting: Vec<Arc<Block>>,
    /// Of the numbers, not yet in the file.
    changes: Changes,
    told: Option<Instant>,
}

impl Writing<'_> {
    fn run(mut self, todo: &Receiver<Job>) {
        let mut last_tick = Instant::now();
        loop {
            let mut ended = false;
            let mut flushed = Vec::new();
            let first = match todo.recv_timeout(TICK.saturating_sub(last_tick.elapsed())) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    ended = true;
                    None
                }
            };
            for job in first.into_iter().chain(todo.try_iter()) {
                match job {
                    Job::Add(block) if self.writer.is_some() => self.waiting.push(block),
                    Job::Add(_) => {}
                    Job::Merge(new, old, duplicates) => self.merge(&new, &old, duplicates),
                    Job::Flush(done) => flushed.push(done),
                    Job::End => ended = true,
                }
            }
            self.write();
            for done in flushed {
                let _ = done.try_send(());
            }
            if ended {
                self.end();
                return;
            }
            self.keeper.trim_memory();
            self.give_up();
            if last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                self.write_numbers();
                self.retain();
            }
        }
    }

    fn end(&mut self) {
        self.write_numbers();
        let left: u64 = self.waiting.iter().map(|block| block.row.spans).sum();
        if left > 0 {
            add(&self.keeper.counts.unwritten, left);
            (self.keeper.log.0)(&format!("{left} spans could not be written and are lost"));
        }
        if let Some(writer) = &self.writer {
            drop(writer.checkpoint());
        }
    }

    /// Notes whether the file can be written.
    fn note(&mut self, result: Result<(), rusqlite::Error>, what: &str) -> bool {
        let keeper = self.keeper;
        let mut trouble = keeper.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                if trouble.take().is_some() {
                    (keeper.log.0)("the file can be written again");
                    self.told = None;
                }
                true
            }
            Err(error) => {
                *trouble = Some(error.to_string());
                if self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                    self.told = Some(Instant::now());
                    (keeper.log.0)(&format!(
                        "{what} can't be written, is tried again, and stays in memory meanwhile: {error}"
                    ));
                }
                false
            }
        }
    }

    fn write(&mut self) {
        let Some(writer) = &mut self.writer else { return };
        if self.waiting.is_empty() {
            return;
        }
        let parts: Vec<Arc<Parts>> =
            self.waiting.iter().map(|block| block.parts().unwrap_or_default()).collect();
        let add: Vec<_> =
            self.waiting.iter().zip(&parts).map(|(block, parts)| (&block.row, &**parts)).collect();
        let result = writer.change(&add, &[]);
        if let Err(error) = &result
            && is_full(error)
        {
            self.make_room();
        }
        if self.note(result, "a block") {
            for block in self.waiting.drain(..) {
                block.written.store(true, Ordering::Release);
                self.keeper.counts.stored.fetch_add(block.row.spans, Ordering::Relaxed);
            }
            self.measure();
        }
    }

    fn measure(&self) {
        if let Some(Ok(bytes)) = self.writer.as_ref().map(Writer::bytes) {
            self.keeper.counts.disk_bytes.store(bytes, Ordering::Relaxed);
        }
    }

    fn merge(&mut self, new: &Arc<Block>, old: &[Arc<Block>], duplicates: u64) {
        let keeper = self.keeper;
        if old.iter().any(|block| block.is(&block.gone)) {
            keeper.catalogue.drop_new(new);
            return;
        }
        if let Some(writer) = &mut self.writer {
            let ids: Vec<u64> = old.iter().map(|block| block.row.id).collect();
            let parts = new.parts().unwrap_or_default();
            let result = writer.change(&[(&new.row, &parts)], &ids);
            if result.is_err() {
                keeper.catalogue.drop_new(new);
                self.note(result, "a merged block");
                return;
            }
        }
        new.written.store(true, Ordering::Release);
        keeper.catalogue.put(new, old);
        add(&keeper.counts.expired_duplicate, duplicates);
    }

    /// Writes what the numbers have to say. What can't be written is tried again before they are asked anew.
    fn write_numbers(&mut self) {
        let now = (self.keeper.clock)();
        self.keeper.numbers.tick(now);
        let Some(writer) = &mut self.writer else { return };
        if self.changes.is_empty() {
            self.changes = self.keeper.numbers.changes(now);
        }
        if self.changes.is_empty() {
            return;
        }
        let result = writer.change_numbers(&self.changes);
        if self.note(result, "what the numbers count") {
            self.changes = Changes::default();
        }
    }

    /// When the disk is full: as much of what is oldest goes as waits to be written.
    fn make_room(&mut self) {
        let wanted: u64 = self.waiting.iter().map(|block| block.row.bytes).sum();
        self.remove_oldest(wanted, |counts| &counts.expired_full);
    }

    fn remove_oldest(&mut self, bytes: u64, why: impl Fn(&Counts) -> &AtomicU64) {
        let mut blocks = self.keeper.catalogue.all();
        blocks.retain(|block| block.is(&block.written));
        blocks.sort_by_key(|block| (block.row.arrived, block.row.id));
        let mut sum = 0;
        let enough = |block: &Arc<Block>| {
            let more = sum < bytes;
            sum += block.row.bytes;
            more
        };
        let chosen: Vec<_> = blocks.into_iter().take_while_mut(enough).collect();
        self.remove(&chosen, why);
    }

    fn remove(&mut self, blocks: &[Arc<Block>], why: impl Fn(&Counts) -> &AtomicU64) {
        if blocks.is_empty() {
            return;
        }
        let Some(writer) = &mut self.writer else { return };
        let ids: Vec<u64> = blocks.iter().map(|block| block.row.id).collect();
        if writer.change(&[], &ids).is_ok() {
            for block in blocks {
                self.keeper.expire(block, why(&self.keeper.counts));
            }
            drop(writer.shrink(4096));
            self.measure();
        }
    }

    /// Takes away what is too old or too much.
    fn retain(&mut self) {
        let keeper = self.keeper;
        let before = (keeper.clock)().saturating_sub(keeper.keep_for_nanos);
        let mut old = keeper.catalogue.all();
        old.retain(|block| block.row.arrived < before);
        if self.writer.is_none() {
            old.iter().for_each(|block| keeper.expire(block, &keeper.counts.expired_age));
            return;
        }
        old.retain(|block| block.is(&block.written));
        self.remove(&old, |counts| &counts.expired_age);
        self.measure();
        let over = keeper.counts.disk_bytes.load(Ordering::Relaxed).saturating_sub(keeper.disk_bytes_max);
        if over > 0 {
            self.remove_oldest(over, |counts| &counts.expired_bytes);
        }
    }

    /// Gives up blocks that can't be written when there is no room in memory for them.
    fn give_up(&mut self) {
        while self.keeper.catalogue.memory_bytes() > self.keeper.memory_bytes_max && self.waiting.len() > 1 {
            let block = self.waiting.remove(0);
            self.keeper.expire(&block, &self.keeper.counts.unwritten);
        }
    }
}
