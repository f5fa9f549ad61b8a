//! Which blocks there are, which of their parts are in memory, and how a part is read. Must never hold its lock while
//! a part is read.

use super::block::{Dictionary, Parts, group_of, read_group};
use super::bytes::Damaged;
use super::file::{Part, Readers, Row};
use super::index::{Entry, Index};
use super::staging::Sent;
use crate::span::TraceId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Bytes that a block's entry in the catalogue takes, without its filter.
const BLOCK_BYTES: usize = 256;

/// A block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) row: Row,
    /// In memory, where they are.
    parts: RwLock<Option<Arc<Parts>>>,
    /// In the file.
    pub(super) written: AtomicBool,
    /// Not to be read.
    pub(super) damaged: AtomicBool,
    /// Taken away: by age, for room, or because another block has its spans.
    pub(super) gone: AtomicBool,
}

impl Block {
    pub(super) fn parts(&self) -> Option<Arc<Parts>> {
        self.parts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn is(&self, flag: &AtomicBool) -> bool {
        flag.load(Ordering::Acquire)
    }
}

/// Why a block can't be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// It was taken away meanwhile: look again.
    Gone,
    /// It is damaged, and was counted; the others are not.
    Damaged,
    /// The file as a whole can't be read.
    File(String),
}

/// Indexes that were read lately.
#[derive(Debug, Default)]
struct Indexes {
    by_block: HashMap<u64, (Arc<Index>, u64)>,
    bytes: usize,
    clock: u64,
}

/// The blocks.
pub(super) struct Catalogue {
    blocks: RwLock<Vec<Arc<Block>>>,
    readers: Option<Readers>,
    indexes: Mutex<Indexes>,
    index_bytes_max: usize,
    next_id: AtomicU64,
    memory_bytes: AtomicU64,
    pub(super) damaged: AtomicU64,
    log: crate::engine::Log,
}

impl Catalogue {
    pub(super) fn new(
        rows: Vec<Row>,
        readers: Option<Readers>,
        index_bytes_max: usize,
        log: crate::engine::Log,
    ) -> Self {
        let next = rows.iter().map(|row| row.id).max().unwrap_or_default() + 1;
        let memory: usize = rows.iter().map(|row| row.filter.bytes() + BLOCK_BYTES).sum();
        let block = |row| {
            Arc::new(Block {
                row,
                parts: RwLock::default(),
                written: AtomicBool::new(true),
                damaged: AtomicBool::new(false),
                gone: AtomicBool::new(false),
            })
        };
        Self {
            blocks: RwLock::new(rows.into_iter().map(block).collect()),
            readers,
            indexes: Mutex::default(),
            index_bytes_max,
            next_id: AtomicU64::new(next),
            memory_bytes: AtomicU64::new(memory as u64),
            damaged: AtomicU64::new(0),
            log,
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Block>> {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn count(&self) -> usize {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Bytes of parts, filters and indexes in memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        let indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner).bytes;
        self.memory_bytes.load(Ordering::Relaxed) + indexes as u64
    }

    pub(super) fn new_block(&self, sealed: super::block::Sealed, arrived: u64) -> Arc<Block> {
        let row = Row::of(self.next_id.fetch_add(1, Ordering::Relaxed), arrived, &sealed);
        let bytes = sealed.parts.bytes() + sealed.filter.bytes() + BLOCK_BYTES;
        self.memory_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Arc::new(Block {
            row,
            parts: RwLock::new(Some(Arc::new(sealed.parts))),
            written: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        })
    }

    /// Puts a block in, and takes those away whose spans it has.
    pub(super) fn put(&self, block: &Arc<Block>, instead_of: &[Arc<Block>]) {
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        blocks.retain(|other| !instead_of.iter().any(|gone| gone.row.id == other.row.id));
        blocks.push(Arc::clone(block));
        drop(blocks);
        instead_of.iter().for_each(|block| self.forget(block));
    }

    /// Takes a block away.
    pub(super) fn remove(&self, block: &Block) {
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        let before = blocks.len();
        blocks.retain(|other| other.row.id != block.row.id);
        let was_there = blocks.len() < before;
        drop(blocks);
        if was_there {
            self.forget(block);
        }
    }

    /// Gives up a block that was never put in.
    pub(super) fn drop_new(&self, block: &Block) {
        self.forget(block);
    }

    fn forget(&self, block: &Block) {
        block.gone.store(true, Ordering::Release);
        self.drop_parts(block);
        let bytes = block.row.filter.bytes() + BLOCK_BYTES;
        self.memory_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((index, _)) = indexes.by_block.remove(&block.row.id) {
            indexes.bytes -= index.bytes();
        }
    }

    /// Leaves a block to the file alone.
    pub(super) fn drop_parts(&self, block: &Block) {
        let parts = block.parts.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(parts) = parts {
            self.memory_bytes.fetch_sub(parts.bytes() as u64, Ordering::Relaxed);
        }
    }

    /// Counts a damaged block once, and says which it is.
    fn note_damage(&self, block: &Block, part: Part, why: Damaged) -> Unreadable {
        if !block.damaged.swap(true, Ordering::AcqRel) {
            self.damaged.fetch_add(1, Ordering::Relaxed);
            (self.log.0)(&format!(
                "block {} of the file is damaged, its {} spans can't be read: {part:?}: {}",
                block.row.id, block.row.spans, why.0
            ));
        }
        Unreadable::Damaged
    }

    fn part(&self, block: &Block, part: Part) -> Result<Vec<u8>, Unreadable> {
        if let Some(parts) = block.parts() {
            let there = match part {
                Part::Index => Some(&parts.index),
                Part::Dictionary => Some(&parts.dictionary),
                Part::Group(group) => parts.groups.get(group),
            };
            return match there {
                Some(part) => Ok(part.clone()),
                None => Err(self.note_damage(block, part, Damaged("it is missing"))),
            };
        }
        if block.is(&block.gone) {
            return Err(Unreadable::Gone);
        }
        if block.is(&block.damaged) {
            return Err(Unreadable::Damaged);
        }
        let Some(readers) = &self.readers else { return Err(Unreadable::Gone) };
        match readers.part(block.row.id, part) {
            Ok(Some(body)) => Ok(body),
            Ok(None) if block.is(&block.gone) => Err(Unreadable::Gone),
            Ok(None) => Err(self.note_damage(block, part, Damaged("it is missing"))),
            Err(error) => match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DatabaseCorrupt) => {
                    Err(self.note_damage(block, part, Damaged("its page is malformed")))
                }
                _ => Err(Unreadable::File(error.to_string())),
            },
        }
    }

    /// All parts of a block.
    pub(super) fn whole(&self, block: &Block) -> Result<Arc<Parts>, Unreadable> {
        if let Some(parts) = block.parts() {
            return Ok(parts);
        }
        let groups = 0..usize::try_from(block.row.groups).unwrap_or_default();
        Ok(Arc::new(Parts {
            index: self.part(block, Part::Index)?,
            dictionary: self.part(block, Part::Dictionary)?,
            groups: groups.map(|group| self.part(block, Part::Group(group))).collect::<Result<_, _>>()?,
        }))
    }

    pub(super) fn damaged_by(&self, block: &Block, why: Damaged) -> Unreadable {
        self.note_damage(block, Part::Index, why)
    }

    /// The index of a block.
    pub(super) fn index(&self, block: &Block) -> Result<Arc<Index>, Unreadable> {
        {
            let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
            indexes.clock += 1;
            let clock = indexes.clock;
            if let Some((index, used)) = indexes.by_block.get_mut(&block.row.id) {
                *used = clock;
                return Ok(Arc::clone(index));
            }
        }
        let part = self.part(block, Part::Index)?;
        let index = Index::unpack(&part).map_err(|why| self.note_damage(block, Part::Index, why))?;
        let index = Arc::new(index);
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        let clock = indexes.clock;
        if !block.is(&block.gone)
            && indexes.by_block.insert(block.row.id, (Arc::clone(&index), clock)).is_none()
        {
            indexes.bytes += index.bytes();
        }
        while indexes.bytes > self.index_bytes_max && indexes.by_block.len() > 1 {
            let oldest = indexes.by_block.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            let Some((index, _)) = oldest.and_then(|id| indexes.by_block.remove(&id)) else { break };
            indexes.bytes -= index.bytes();
        }
        Ok(index)
    }

    /// The spans of a trace in a block, if it has any.
    pub(super) fn spans(
        &self,
        block: &Block,
        id: &TraceId,
        each: &mut dyn FnMut(Sent<'_>, &[u8]),
    ) -> Result<(), Unreadable> {
        let index = self.index(block)?;
        let Some((_, row)) = index.find(id) else { return Ok(()) };
        let Some((group, first)) = group_of(&index, row) else {
            return Err(self.note_damage(block, Part::Index, Damaged("a trace lies in no group")));
        };
        let dictionary = self.part(block, Part::Dictionary)?;
        let dictionary =
            Dictionary::unpack(&dictionary).map_err(|why| self.note_damage(block, Part::Dictionary, why))?;
        let part = self.part(block, Part::Group(group))?;
        let wants = |entry: &Entry| entry.trace_id == *id;
        read_group(&index, &dictionary, &part, first, &wants, each)
            .map_err(|why| self.note_damage(block, Part::Group(group), why))
    }
}
