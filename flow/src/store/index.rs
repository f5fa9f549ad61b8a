//! The index of a block: one entry for each trace that has spans in it, what a list of traces shows and asks for.
//! Must never need a span to be read.

use super::bytes::{Damaged, Packer, Take, put_text, unpack};
use crate::engine::Outcome;
use crate::span::TraceId;
use crate::wire::proto::put_varint;
use std::collections::HashMap;

/// Texts of an index, each once.
#[derive(Debug, Default)]
pub(super) struct Labels {
    texts: Vec<Box<[u8]>>,
    numbers: HashMap<Box<[u8]>, u32, foldhash::fast::RandomState>,
}

impl Labels {
    /// The text of a number; none for a number that was not given out.
    pub(super) fn text(&self, number: u32) -> &[u8] {
        self.texts.get(number as usize).map_or(&[], |text| text)
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn number(&mut self, text: &[u8]) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.texts.len() as u32;
        self.texts.push(text.into());
        self.numbers.insert(text.into(), number);
        number
    }
}

/// What a block knows of a trace. Texts are numbers of labels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Entry {
    pub(super) trace_id: TraceId,
    pub(super) spans: u32,
    pub(super) errors: u32,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) operation: u32,
    pub(super) ui_event: u32,
    pub(super) environment: u32,
    pub(super) root_service: u32,
    pub(super) root_name: u32,
    /// When the span that stands for the root began.
    pub(super) root_start: u64,
    pub(super) flags: u8,
    /// Its services: from here, so many, in the index's list.
    pub(super) services: (u32, u32),
}

/// A span without a parent is there.
pub(super) const HAS_ROOT: u8 = 1;
/// The root failed; without a root, any span.
pub(super) const FAILED: u8 = 2;
/// And did so because something took too long.
pub(super) const TIMED_OUT: u8 = 4;

impl Entry {
    pub(super) fn outcome(&self) -> Outcome {
        match (self.flags & FAILED != 0, self.flags & TIMED_OUT != 0) {
            (true, true) => Outcome::Timeout,
            (true, false) => Outcome::Error,
            (false, _) => Outcome::Success,
        }
    }
}

/// The index of a block.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By number.
    pub(super) labels: Vec<Box<str>>,
    /// (name, namespace) as labels.
    pub(super) services: Vec<(u32, u32)>,
    /// Sorted by trace id.
    pub(super) entries: Vec<Entry>,
    /// Services of the entries.
    pub(super) taking_part: Vec<u32>,
    /// Rows in each group.
    pub(super) groups: Vec<u32>,
}

/// An index while its block is sealed.
#[derive(Debug, Default)]
pub(super) struct Making {
    pub(super) labels: Labels,
    pub(super) services: Vec<(u32, u32)>,
    pub(super) entries: Vec<Entry>,
    pub(super) taking_part: Vec<u32>,
    pub(super) groups: Vec<u32>,
}

impl Making {
    /// Moments are told relative to the earliest.
    pub(super) fn pack(&self, packer: &mut Packer) -> std::io::Result<Vec<u8>> {
        let base = self.entries.iter().map(|entry| entry.start).min().unwrap_or_default();
        let mut out = Vec::with_capacity(self.entries.len() * 24 + 4096);
        put_varint(&mut out, self.labels.texts.len() as u64);
        for text in &self.labels.texts {
            put_text(&mut out, text);
        }
        put_varint(&mut out, self.services.len() as u64);
        for (name, namespace) in &self.services {
            put_varint(&mut out, u64::from(*name));
            put_varint(&mut out, u64::from(*namespace));
        }
        put_varint(&mut out, self.groups.len() as u64);
        for rows in &self.groups {
            put_varint(&mut out, u64::from(*rows));
        }
        put_varint(&mut out, self.entries.len() as u64);
        put_varint(&mut out, base);
        let mut each = |value: &dyn Fn(&Entry) -> u64| {
            for entry in &self.entries {
                put_varint(&mut out, value(entry));
            }
        };
        each(&|entry| entry.start.wrapping_sub(base));
        each(&|entry| entry.end.wrapping_sub(entry.start));
        each(&|entry| entry.root_start.wrapping_sub(entry.start));
        each(&|entry| u64::from(entry.spans));
        each(&|entry| u64::from(entry.errors));
        each(&|entry| u64::from(entry.operation));
        each(&|entry| u64::from(entry.ui_event));
        each(&|entry| u64::from(entry.environment));
        each(&|entry| u64::from(entry.root_service));
        each(&|entry| u64::from(entry.root_name));
        each(&|entry| u64::from(entry.flags));
        each(&|entry| u64::from(entry.services.1));
        for service in &self.taking_part {
            put_varint(&mut out, u64::from(*service));
        }
        let mut ids = Vec::with_capacity(self.entries.len() * 16);
        for entry in &self.entries {
            ids.extend_from_slice(&entry.trace_id);
        }
        packer.pack(&out, &ids)
    }
}

impl Index {
    pub(super) fn unpack(part: &[u8]) -> Result<Self, Damaged> {
        let (body, ids) = unpack(part)?;
        let mut take = Take(&body);
        let mut index = Self::default();
        for _ in 0..take.count()? {
            index.labels.push(String::from_utf8_lossy(take.text()?).into());
        }
        for _ in 0..take.count()? {
            index.services.push((take.index()?, take.index()?));
        }
        for _ in 0..take.count()? {
            index.groups.push(take.index()?);
        }
        let count = take.count()?;
        let base = take.varint()?;
        let (ids, rest) = ids.as_chunks::<16>();
        if ids.len() != count || !rest.is_empty() {
            return Err(Damaged("trace ids are missing"));
        }
        let new = |id: &TraceId| Entry { trace_id: *id, ..Entry::default() };
        index.entries = ids.iter().map(new).collect();
        let entries = &mut index.entries;
        let mut each = |set: &dyn Fn(&mut Entry, u64)| -> Result<(), Damaged> {
            for entry in entries.iter_mut() {
                set(entry, take.varint()?);
            }
            Ok(())
        };
        each(&|entry, value| entry.start = base.wrapping_add(value))?;
        each(&|entry, value| entry.end = entry.start.wrapping_add(value))?;
        each(&|entry, value| entry.root_start = entry.start.wrapping_add(value))?;
        each(&|entry, value| entry.spans = value as u32)?;
        each(&|entry, value| entry.errors = value as u32)?;
        each(&|entry, value| entry.operation = value as u32)?;
        each(&|entry, value| entry.ui_event = value as u32)?;
        each(&|entry, value| entry.environment = value as u32)?;
        each(&|entry, value| entry.root_service = value as u32)?;
        each(&|entry, value| entry.root_name = value as u32)?;
        each(&|entry, value| entry.flags = value as u8)?;
        each(&|entry, value| entry.services.1 = value as u32)?;
        let mut from = 0_u32;
        for entry in &mut index.entries {
            entry.services.0 = from;
            from = from.checked_add(entry.services.1).ok_or(Damaged("too many services"))?;
        }
        if from as usize > take.0.len() {
            return Err(Damaged("services are missing"));
        }
        for _ in 0..from {
            index.taking_part.push(take.index()?);
        }
        Ok(index)
    }

    pub(super) fn label(&self, number: u32) -> &str {
        self.labels.get(number as usize).map_or("", |text| text)
    }

    /// Services of an entry, (name, namespace).
    pub(super) fn services_of(&self, entry: &Entry) -> impl Iterator<Item = (&str, &str)> {
        let (from, count) = (entry.services.0 as usize, entry.services.1 as usize);
        let numbers = self.taking_part.get(from..from.saturating_add(count)).unwrap_or_default();
        numbers.iter().filter_map(|number| {
            let (name, namespace) = self.services.get(*number as usize)?;
            Some((self.label(*name), self.label(*namespace)))
        })
    }

    /// The entry of a trace, and the number of its first row in the block.
    pub(super) fn find(&self, id: &TraceId) -> Option<(&Entry, u64)> {
        let at = self.entries.binary_search_by(|entry| entry.trace_id.cmp(id)).ok()?;
        let rows = self.entries.get(..at)?.iter().map(|entry| u64::from(entry.spans)).sum();
        Some((self.entries.get(at)?, rows))
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.len() * size_of::<Entry>()
            + self.taking_part.len() * 4
            + self.services.len() * 8
            + self.labels.iter().map(|text| text.len() + 16).sum::<usize>()
    }
}

/// Which traces may be in a block: says yes for all that are, and seldom for one that is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter(Box<[u64]>);

impl Filter {
    /// Sixteen bits a trace, in lines of 512 bits; some 2 in 1,000 answers are wrong.
    pub(super) fn new(traces: usize) -> Self {
        let lines = traces.div_ceil(32).max(1);
        Self(vec![0; lines * 8].into())
    }

    /// Says yes to all.
    pub(super) fn all() -> Self {
        Self(vec![u64::MAX; 8].into())
    }

    pub(super) fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        (rest.is_empty() && !words.is_empty() && words.len().is_multiple_of(8))
            .then(|| Self(words.iter().map(|word| u64::from_le_bytes(*word)).collect()))
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn places(&self, id: &TraceId) -> (usize, [u32; 6]) {
        // Ids are drawn at random, mostly; those that are not are mixed.
        let mixed = u128::from_le_bytes(*id).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let (high, low) = ((mixed >> 64) as u64, mixed as u64);
        let low = low ^ high.rotate_left(32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let line = ((u128::from(high) * (self.0.len() / 8) as u128) >> 64) as usize;
        let mut bits = [0; 6];
        for (i, bit) in bits.iter_mut().enumerate() {
            *bit = (low >> (9 * i)) as u32 & 511;
        }
        (line * 8, bits)
    }

    pub(super) fn add(&mut self, id: &TraceId) {
        let (line, bits) = self.places(id);
        for bit in bits {
            if let Some(word) = self.0.get_mut(line + bit as usize / 64) {
                *word |= 1 << (bit % 64);
            }
        }
    }

    pub(super) fn may_have(&self, id: &TraceId) -> bool {
        let (line, bits) = self.places(id);
        bits.iter()
            .all(|bit| self.0.get(line + *bit as usize / 64).is_some_and(|word| word & 1 << (bit % 64) != 0))
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.len() * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_knows_all_its_traces_and_few_others() {
        let id = |i: u64| -> TraceId {
            let word = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((u128::from(word) << 64) | u128::from(word.rotate_left(17) ^ i)).to_be_bytes()
        };
        let mut filter = Filter::new(10_000);
        (0..10_000).for_each(|i| filter.add(&id(i)));
        assert!((0..10_000).all(|i| filter.may_have(&id(i))));
        let wrong = (10_000..110_000).filter(|i| filter.may_have(&id(*i))).count();
        assert!(wrong < 600, "{wrong} of 100,000");
        assert_eq!(Filter::of_bytes(&filter.to_bytes()), Some(filter));
        let mut counting = Filter::new(10_000);
        (0..10_000_u128).for_each(|i| counting.add(&i.to_be_bytes()));
        let wrong = (10_000..110_000_u128).filter(|i| counting.may_have(&i.to_be_bytes())).count();
        assert!(wrong < 2_000, "{wrong} of 100,000");
    }
}
