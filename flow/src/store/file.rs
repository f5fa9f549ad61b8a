//! The one SQLite file: blocks and their parts, rows of the numbers. Commits are whole or not at all, so a process
//! that is killed leaves a file that opens. Must never be written by two processes.

use super::block::{Parts, Sealed};
use super::index::Filter;
use crate::engine::OpenError;
use crate::numbers::{self, Changes};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Name of the file in the folder.
pub const FILE: &str = "flow.sqlite3";
/// Name of the file whose lock says that somebody writes.
const LOCK: &str = "flow.lock";
/// "TLFL".
const APPLICATION_ID: i32 = 0x544c_464c;
const VERSION: i32 = 1;
/// Parts of a block: its index, its dictionary, its groups.
const PARTS: i64 = 1 << 16;

const SCHEMA: &str = "
CREATE TABLE block (
    id INTEGER PRIMARY KEY,
    arrived INTEGER NOT NULL,    -- unix nanoseconds of its newest span's arrival
    spans INTEGER NOT NULL,
    traces INTEGER NOT NULL,
    start_min INTEGER NOT NULL,  -- unix nanoseconds of the first trace's beginning
    start_max INTEGER NOT NULL,
    end_max INTEGER NOT NULL,
    bytes INTEGER NOT NULL,      -- of its parts
    groups INTEGER NOT NULL,
    filter BLOB NOT NULL         -- which traces may be in it
);
-- id = block * 65536 + part; part 0 is the trace index, 1 the dictionary, from 2 on groups of spans.
CREATE TABLE part (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
-- What the numbers keep: names, keys, counts by minute, the last words of senders.
CREATE TABLE number (
    kind INTEGER NOT NULL, id INTEGER NOT NULL, part INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (kind, id, part)
) WITHOUT ROWID;
";

/// What the file knows of a block.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) id: u64,
    pub(super) arrived: u64,
    pub(super) spans: u64,
    pub(super) traces: u64,
    pub(super) start_min: u64,
    pub(super) start_max: u64,
    pub(super) end_max: u64,
    pub(super) bytes: u64,
    pub(super) groups: u64,
    pub(super) filter: Filter,
}

impl Row {
    pub(super) fn of(id: u64, arrived: u64, sealed: &Sealed) -> Self {
        Self {
            id,
            arrived,
            spans: sealed.spans,
            traces: sealed.traces,
            start_min: sealed.start_min,
            start_max: sealed.start_max,
            end_max: sealed.end_max,
            bytes: sealed.parts.bytes() as u64,
            groups: sealed.parts.groups.len() as u64,
            filter: sealed.filter.clone(),
        }
    }
}

/// Which part of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Index,
    Dictionary,
    Group(usize),
}

impl Part {
    fn number(self) -> i64 {
        match self {
            Self::Index => 0,
            Self::Dictionary => 1,
            Self::Group(group) => 2 + group as i64,
        }
    }
}

fn part_id(block: u64, part: Part) -> i64 {
    block.cast_signed().wrapping_mul(PARTS).wrapping_add(part.number())
}

/// Whether an error says that there is no room.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

/// All blocks.
fn blocks(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare(
        "SELECT id, arrived, spans, traces, start_min, start_max, end_max, bytes, groups, filter
         FROM block ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        let number = |at: usize| row.get::<_, i64>(at).map(i64::cast_unsigned);
        let filter: Vec<u8> = row.get(9)?;
        out.push(Row {
            id: number(0)?,
            arrived: number(1)?,
            spans: number(2)?,
            traces: number(3)?,
            start_min: number(4)?,
            start_max: number(5)?,
            end_max: number(6)?,
            bytes: number(7)?,
            groups: number(8)?,
            filter: Filter::of_bytes(&filter).unwrap_or_else(Filter::all),
        });
    }
    Ok(out)
}

/// The connection that writes.
pub(super) struct Writer {
    connection: Connection,
    path: PathBuf,
    page_bytes: u64,
    /// Held as long as this process writes.
    _lock: std::fs::File,
}

impl Writer {
    /// Opens the file, or makes it.
    pub(super) fn open(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join(FILE);
        let fail = |error: &dyn std::fmt::Display| OpenError::File(path.clone(), error.to_string());
        std::fs::create_dir_all(folder).map_err(|error| OpenError::File(folder.into(), error.to_string()))?;
        let lock = std::fs::File::create(folder.join(LOCK)).map_err(|error| fail(&error))?;
        if lock.try_lock().is_err() {
            return Err(fail(&"another process writes it"));
        }
        let connection = Connection::open(&path).map_err(|error| fail(&error))?;
        let prepare = || -> rusqlite::Result<i32> {
            connection.busy_timeout(Duration::from_secs(5))?;
            // Has an effect on an empty file only.
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            // A process that is killed loses nothing that was committed; a machine without power loses what was
            // committed since the last checkpoint, and never the file.
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.pragma_update(None, "wal_autocheckpoint", 2000)?;
            connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
            connection.pragma_update(None, "cache_size", -4096)?;
            connection.pragma_query_value(None, "user_version", |row| row.get(0))
        };
        match prepare().map_err(|error| fail(&error))? {
            0 => {
                let make = || -> rusqlite::Result<()> {
                    connection.execute_batch(&format!("BEGIN;{SCHEMA}"))?;
                    connection.pragma_update(None, "application_id", APPLICATION_ID)?;
                    connection.pragma_update(None, "user_version", VERSION)?;
                    connection.execute_batch("COMMIT")
                };
                make().map_err(|error| fail(&error))?;
            }
            VERSION => {}
            other => return Err(fail(&format!("its layout is {other}, this version knows {VERSION}"))),
        }
        let page_bytes: i64 = connection
            .pragma_query_value(None, "page_size", |row| row.get(0))
            .map_err(|error| fail(&error))?;
        Ok(Self { connection, page_bytes: page_bytes.cast_unsigned(), _lock: lock, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All blocks.
    pub(super) fn blocks(&self) -> rusqlite::Result<Vec<Row>> {
        blocks(&self.connection)
    }

    /// Writes blocks and takes others away, all or nothing.
    pub(super) fn change(&mut self, add: &[(&Row, &Parts)], remove: &[u64]) -> rusqlite::Result<()> {
        let change = self.connection.transaction()?;
        {
            let mut block =
                change.prepare_cached("INSERT INTO block VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?;
            let mut part = change.prepare_cached("INSERT INTO part VALUES (?, ?)")?;
            for (row, parts) in add {
                block.execute(params![
                    row.id.cast_signed(),
                    row.arrived.cast_signed(),
                    row.spans.cast_signed(),
                    row.traces.cast_signed(),
                    row.start_min.cast_signed(),
                    row.start_max.cast_signed(),
                    row.end_max.cast_signed(),
                    row.bytes.cast_signed(),
                    row.groups.cast_signed(),
                    row.filter.to_bytes(),
                ])?;
                part.execute(params![part_id(row.id, Part::Index), parts.index])?;
                part.execute(params![part_id(row.id, Part::Dictionary), parts.dictionary])?;
                for (number, group) in parts.groups.iter().enumerate() {
                    part.execute(params![part_id(row.id, Part::Group(number)), group])?;
                }
            }
            let mut block = change.prepare_cached("DELETE FROM block WHERE id = ?")?;
            let mut part = change.prepare_cached("DELETE FROM part WHERE id >= ? AND id < ?")?;
            for id in remove {
                block.execute([id.cast_signed()])?;
                part.execute([part_id(*id, Part::Index), part_id(id + 1, Part::Index)])?;
            }
        }
        change.commit()
    }

    /// Writes what the numbers have to say, all or nothing: first what goes, then what comes.
    pub(super) fn change_numbers(&mut self, changes: &Changes) -> rusqlite::Result<()> {
        let change = self.connection.transaction()?;
        {
            let mut gone =
                change.prepare_cached("DELETE FROM number WHERE kind = ? AND id = ? AND part = ?")?;
            for (kind, id, part) in &changes.delete {
                gone.execute(params![kind, id.cast_signed(), part])?;
            }
            let mut put = change.prepare_cached("INSERT OR REPLACE INTO number VALUES (?, ?, ?, ?)")?;
            for row in &changes.put {
                put.execute(params![row.kind, row.id.cast_signed(), row.part, &*row.body])?;
            }
        }
        change.commit()
    }

    /// Takes away all rows of the numbers.
    pub(super) fn drop_numbers(&self) -> rusqlite::Result<usize> {
        self.connection.execute("DELETE FROM number", [])
    }

    /// All rows of the numbers, in the order of kind, id and part.
    pub(super) fn numbers(&self) -> rusqlite::Result<Vec<numbers::Row>> {
        let mut statement = self.connection.prepare("SELECT kind, id, part, body FROM number")?;
        let rows = statement.query_map([], |row| {
            Ok(numbers::Row {
                kind: row.get(0)?,
                id: row.get::<_, i64>(1)?.cast_unsigned(),
                part: row.get(2)?,
                body: row.get::<_, Vec<u8>>(3)?.into(),
            })
        })?;
        let mut rows: Vec<_> = rows.collect::<Result<_, _>>()?;
        rows.sort_by_key(|row| (row.kind, row.id, row.part));
        Ok(rows)
    }

    /// Bytes of the file that are in use.
    pub(super) fn bytes(&self) -> rusqlite::Result<u64> {
        let pages: i64 = self.connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
        let free: i64 = self.connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        Ok((pages - free).max(0).cast_unsigned() * self.page_bytes)
    }

    /// Gives pages that are free back to the file system, so many at the most.
    pub(super) fn shrink(&self, pages: u32) -> rusqlite::Result<()> {
        self.connection.execute_batch(&format!("PRAGMA incremental_vacuum({pages})"))
    }

    /// Moves what was committed into the file itself, and empties the log beside it.
    pub(super) fn checkpoint(&self) -> rusqlite::Result<()> {
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }
}

/// Connections that read.
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

/// Connections that are kept when nobody reads.
const IDLE_MAX: usize = 8;

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::default() }
    }

    fn take(&self) -> rusqlite::Result<Connection> {
        if let Some(connection) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(connection);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(Duration::from_secs(2))?;
        connection.pragma_update(None, "cache_size", -512)?;
        Ok(connection)
    }

    /// All blocks.
    pub(super) fn blocks(&self) -> rusqlite::Result<Vec<Row>> {
        blocks(&self.take()?)
    }

    /// A part of a block; none when it is gone.
    pub(super) fn part(&self, block: u64, part: Part) -> rusqlite::Result<Option<Vec<u8>>> {
        let connection = self.take()?;
        let body = connection
            .prepare_cached("SELECT body FROM part WHERE id = ?")?
            .query_row([part_id(block, part)], |row| row.get(0))
            .optional()?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        Ok(body)
    }
}
