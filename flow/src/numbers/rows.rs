//! What the store keeps of the numbers: rows of a kind, an id, a part and bytes. A row with the same three replaces the
//! one before it. Must never say less than was counted: rows of one [`Changes`] belong into one transaction.

use bytes::Bytes;

use super::slots::Minute;

/// One row: once at most, numbers that are no cells: seed, when listening began, bounds of histograms.
pub(super) const META: u8 = 0;
/// A name: what it is for, and its text.
pub(super) const NAME: u8 = 1;
/// A node.
pub(super) const NODE: u8 = 2;
/// What is counted apart.
pub(super) const KEY: u8 = 3;
/// Counts of a minute, a ten or an hour; parts from 1 on come on top of part 0.
pub(super) const CELLS: u8 = 4;
/// The last words of a sender.
pub(super) const SENDER: u8 = 5;

/// A row to be written, or read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// What it is.
    pub kind: u8,
    /// Which one.
    pub id: u64,
    /// Which part of it.
    pub part: u32,
    /// Bytes that the numbers understand.
    pub body: Bytes,
}

/// A row by its three numbers.
pub type RowId = (u8, u64, u32);

/// What the store has to do, in one transaction: first the deletions, then the rows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Rows to be deleted.
    pub delete: Vec<RowId>,
    /// Rows to be put, in place of those with the same numbers.
    pub put: Vec<Row>,
}

impl Changes {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.put.is_empty()
    }
}

/// Changes on their way to the store; nothing when there is no store.
#[derive(Clone, Debug, Default)]
pub(super) struct Outbox {
    pub(super) on: bool,
    changes: Changes,
}

impl Outbox {
    pub(super) fn new(on: bool) -> Self {
        Self { on, ..Self::default() }
    }

    pub(super) fn put(&mut self, kind: u8, id: u64, part: u32, body: Bytes) {
        if self.on {
            self.changes.put.push(Row { kind, id, part, body });
        }
    }

    /// A row that is put before and deleted here is gone, one that is put afterwards stays.
    pub(super) fn delete(&mut self, kind: u8, id: u64, part: u32) {
        if self.on {
            self.changes.put.retain(|row| (row.kind, row.id, row.part) != (kind, id, part));
            self.changes.delete.push((kind, id, part));
        }
    }

    pub(super) fn take(&mut self) -> Changes {
        let mut changes = std::mem::take(&mut self.changes);
        // The last word on a row holds.
        let mut seen = std::collections::HashSet::new();
        changes.put.reverse();
        changes.put.retain(|row| seen.insert((row.kind, row.id, row.part)));
        changes.put.reverse();
        changes
    }
}

/// The id of a slot's row.
pub(super) fn cells(tier: usize, start: Minute) -> u64 {
    ((tier as u64) << 32) | u64::from(start)
}

/// The slot of a row's id.
pub(super) fn slot(id: u64) -> Option<(usize, Minute)> {
    let tier = usize::try_from(id >> 32).ok().filter(|tier| *tier < 3)?;
    Some((tier, (id & 0xffff_ffff) as Minute))
}
