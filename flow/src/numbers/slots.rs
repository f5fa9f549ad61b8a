//! Counts by time: minutes that are open, and packed minutes, tens and hours behind them. A question reads the fewest
//! packed slots that cover its time. Must never lose a count to packing, nor change a packed slot that a question
//! holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::histogram::Histogram;
use super::keys::{Keys, Map, Scope, Seeded, Series};
use super::limits;
use super::rows::{self, Outbox};
use super::wire::varint;

/// A minute since 1970.
pub(super) type Minute = u32;

/// What was counted of one key.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Cell {
    /// Requests, messages or whatever the key counts; of estimates in 256ths.
    pub(super) count: u64,
    /// Their durations together; of estimates not in 256ths.
    pub(super) sum_nanos: u64,
    /// Spans that an estimate is made of.
    pub(super) spans: u64,
    pub(super) histogram: Histogram,
}

impl Cell {
    pub(super) fn add(&mut self, more: &Self) {
        self.count = self.count.saturating_add(more.count);
        self.sum_nanos = self.sum_nanos.saturating_add(more.sum_nanos);
        self.spans = self.spans.saturating_add(more.spans);
        self.histogram.merge(&more.histogram);
    }
}

/// Cells by key.
pub(super) type Cells = Map<Series, Cell>;

/// Cells packed into bytes, by scope and key. What the store holds too.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Packed {
    pub(super) bytes: Bytes,
    /// Scope, where its cells begin, how many there are; sorted by scope.
    scopes: Box<[(u64, u32, u32)]>,
}

fn push(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl Packed {
    pub(super) fn of(cells: &Cells, keys: &Keys) -> Self {
        let mut sorted: Vec<(u64, Series, &Cell)> = cells
            .iter()
            .filter_map(|(series, cell)| Some((keys.key(*series)?.scope.packed(), *series, cell)))
            .collect();
        sorted.sort_unstable_by_key(|(scope, series, _)| (*scope, *series));
        let mut bodies = Vec::with_capacity(sorted.len() * 32);
        let mut scopes: Vec<(u64, u32, u32)> = Vec::new();
        let mut before = 0;
        for (scope, series, cell) in sorted {
            match scopes.last_mut() {
                Some((last, _, count)) if *last == scope => *count += 1,
                _ => {
                    scopes.push((scope, u32::try_from(bodies.len()).unwrap_or(u32::MAX), 1));
                    before = 0;
                }
            }
            push(&mut bodies, u64::from(series - before));
            before = series;
            push(&mut bodies, cell.count);
            push(&mut bodies, cell.sum_nanos);
            push(&mut bodies, cell.spans);
            push(&mut bodies, cell.histogram.0.len() as u64);
            let mut last = 0;
            for (code, count) in &cell.histogram.0 {
                push(&mut bodies, u64::from(*code - last));
                push(&mut bodies, *count);
                last = *code;
            }
        }
        let mut head = Vec::with_capacity(scopes.len() * 8 + 8);
        push(&mut head, scopes.len() as u64);
        for (scope, at, count) in &scopes {
            push(&mut head, *scope);
            push(&mut head, u64::from(*at));
            push(&mut head, u64::from(*count));
        }
        let shift = u32::try_from(head.len()).unwrap_or(u32::MAX);
        for (_, at, _) in &mut scopes {
            *at = at.saturating_add(shift);
        }
        head.extend_from_slice(&bodies);
        Self { bytes: head.into(), scopes: scopes.into() }
    }

    /// Takes bytes back from the store.
    pub(super) fn read(bytes: Bytes) -> Option<Self> {
        let mut rest = &*bytes;
        let count = varint(&mut rest)?;
        let mut scopes = Vec::new();
        for _ in 0..count {
            let scope = varint(&mut rest)?;
            let (at, count) = (varint(&mut rest)?, varint(&mut rest)?);
            scopes.push((scope, u32::try_from(at).ok()?, u32::try_from(count).ok()?));
        }
        let shift = u32::try_from(bytes.len() - rest.len()).ok()?;
        for (_, at, _) in &mut scopes {
            *at = at.checked_add(shift)?;
        }
        let packed = Self { scopes: scopes.into(), bytes };
        let mut whole = true;
        packed.all(|_, _| {}, &mut whole);
        whole.then_some(packed)
    }

    fn one(&self, place: usize, visit: &mut impl FnMut(Series, &Cell)) -> Option<()> {
        let (_, at, count) = self.scopes.get(place)?;
        let mut rest = self.bytes.get(*at as usize..)?;
        let mut series = 0_u32;
        let mut cell = Cell::default();
        for _ in 0..*count {
            series = series.checked_add(u32::try_from(varint(&mut rest)?).ok()?)?;
            cell.count = varint(&mut rest)?;
            cell.sum_nanos = varint(&mut rest)?;
            cell.spans = varint(&mut rest)?;
            let buckets = varint(&mut rest)?;
            cell.histogram.0.clear();
            let mut code = 0_u16;
            for _ in 0..buckets {
                code = code.checked_add(u16::try_from(varint(&mut rest)?).ok()?)?;
                cell.histogram.0.push((code, varint(&mut rest)?));
            }
            visit(series, &cell);
        }
        Some(())
    }

    /// Visits the cells of a scope.
    pub(super) fn each(&self, scope: Scope, mut visit: impl FnMut(Series, &Cell)) {
        let scope = scope.packed();
        if let Ok(place) = self.scopes.binary_search_by_key(&scope, |(scope, _, _)| *scope) {
            self.one(place, &mut visit);
        }
    }

    /// Visits every cell; `whole` becomes false when the bytes are not all readable.
    pub(super) fn all(&self, mut visit: impl FnMut(Series, &Cell), whole: &mut bool) {
        for place in 0..self.scopes.len() {
            if self.one(place, &mut visit).is_none() {
                *whole = false;
            }
        }
    }

    /// Visits the scopes.
    pub(super) fn scopes(&self) -> impl Iterator<Item = u64> {
        self.scopes.iter().map(|(scope, _, _)| *scope)
    }

    fn add_to(&self, cells: &mut Cells) {
        self.all(|series, cell| cells.entry(series).or_default().add(cell), &mut true);
    }

    fn len(&self) -> u64 {
        (self.bytes.len() + self.scopes.len() * 16 + 80) as u64
    }
}

/// A minute that still takes counts.
#[derive(Clone, Debug)]
struct Open {
    cells: Cells,
    /// What the store has not got.
    dirty: Cells,
    /// Parts that the store has, numbered from 1.
    parts: u32,
    /// When the first count came, by our clock.
    since: u64,
    /// As packed last, until when that is new enough, and whether anything came since.
    packed: Option<(Arc<Packed>, u64)>,
    changed: bool,
}

/// Width in minutes: minutes, tens, hours.
const WIDTHS: [Minute; 3] = [1, 10, 60];

/// All counts by time.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    hash: Seeded,
    open: BTreeMap<Minute, Open>,
    tiers: [BTreeMap<Minute, Arc<Packed>>; 3],
    /// Tens and hours that end by then are packed, where there is anything to pack.
    packed_until: [Minute; 3],
    /// Slots that begin before are gone: a wider one stands for them.
    gone_until: [Minute; 3],
    /// Bytes of packed slots.
    packed_bytes: u64,
    /// Changes whenever a packed slot does.
    pub(super) generation: u64,
    pub(super) coarsened_early: u64,
}

impl Slots {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            hash: Seeded(seed),
            open: BTreeMap::new(),
            tiers: Default::default(),
            packed_until: [0; 3],
            gone_until: [0; 3],
            packed_bytes: 0,
            generation: 0,
            coarsened_early: 0,
        }
    }

    fn open(&mut self, minute: Minute, now: u64) -> &mut Open {
        let hash = self.hash;
        self.open.entry(minute).or_insert_with(|| Open {
            cells: Map::with_hasher(hash),
            dirty: Map::with_hasher(hash),
            parts: 0,
            since: now,
            packed: None,
            changed: false,
        })
    }

    /// Counts in a minute. `saved` says whether the store must get it.
    pub(super) fn add(&mut self, minute: Minute, series: Series, cell: &Cell, now: u64, to_store: bool) {
        let open = self.open(minute, now);
        open.cells.entry(series).or_default().add(cell);
        open.changed = true;
        if to_store {
            open.dirty.entry(series).or_default().add(cell);
        }
    }

    /// Hands what came since the last time to the store.
    pub(super) fn unsaved(&mut self, keys: &Keys, outbox: &mut Outbox) {
        for (minute, open) in &mut self.open {
            if !open.dirty.is_empty() {
                open.parts += 1;
                outbox.put(
                    rows::CELLS,
                    rows::cells(0, *minute),
                    open.parts,
                    Packed::of(&open.dirty, keys).bytes,
                );
                open.dirty.clear();
            }
        }
    }

    /// Packs what is over, and lets go what is too old.
    pub(super) fn tick(&mut self, now: u64, kept: Minute, bytes_max: u64, keys: &Keys, outbox: &mut Outbox) {
        let minute = minute_of(now);
        let open_for = limits::OPEN_MINUTES * 60_000_000_000;
        let over: Vec<Minute> = self
            .open
            .iter()
            .filter(|(at, open)| {
                u64::from(**at) + limits::OPEN_MINUTES <= u64::from(minute) && now >= open.since + open_for
            })
            .map(|(at, _)| *at)
            .collect();
        for at in over {
            if let Some(open) = self.open.remove(&at) {
                self.close(at, open, keys, outbox);
            }
        }
        let closed = minute.saturating_sub(limits::OPEN_MINUTES as Minute);
        self.roll(1, closed, keys, outbox);
        self.roll(2, closed, keys, outbox);
        let oldest = minute.saturating_sub(kept);
        let minutes_from = minute.saturating_sub((limits::MINUTES_KEPT as Minute).min(kept));
        self.forget(0, minutes_from, outbox);
        self.forget(1, oldest.saturating_sub(9), outbox);
        self.forget(2, oldest.saturating_sub(59), outbox);
        while self.packed_bytes > bytes_max && self.drop_oldest(outbox) {
            self.coarsened_early += 1;
        }
    }

    fn close(&mut self, at: Minute, open: Open, keys: &Keys, outbox: &mut Outbox) {
        for part in 1..=open.parts {
            outbox.delete(rows::CELLS, rows::cells(0, at), part);
        }
        for (tier, width) in WIDTHS.iter().enumerate() {
            let start = at - at % width;
            let is_packed =
                tier == 0 || self.packed_until.get(tier).is_some_and(|until| start + width <= *until);
            if is_packed {
                self.merge(tier, start, &open.cells, keys, outbox);
            }
        }
    }

    fn merge(&mut self, tier: usize, start: Minute, cells: &Cells, keys: &Keys, outbox: &mut Outbox) {
        let before = self.tiers.get(tier).and_then(|slots| slots.get(&start));
        let packed = match before {
            None => Packed::of(cells, keys),
            Some(before) => {
                let mut all = cells.clone();
                before.add_to(&mut all);
                Packed::of(&all, keys)
            }
        };
        self.set(tier, start, packed, outbox);
    }

    fn set(&mut self, tier: usize, start: Minute, packed: Packed, outbox: &mut Outbox) {
        outbox.put(rows::CELLS, rows::cells(tier, start), 0, packed.bytes.clone());
        self.place(tier, start, packed);
    }

    fn place(&mut self, tier: usize, start: Minute, packed: Packed) {
        self.packed_bytes += packed.len();
        self.generation += 1;
        if let Some(slots) = self.tiers.get_mut(tier)
            && let Some(before) = slots.insert(start, Arc::new(packed))
        {
            self.packed_bytes = self.packed_bytes.saturating_sub(before.len());
        }
    }

    /// Packs the slots of the tier below that are over into wider ones.
    fn roll(&mut self, tier: usize, closed: Minute, keys: &Keys, outbox: &mut Outbox) {
        let Some(width) = WIDTHS.get(tier).copied() else { return };
        let until = closed - closed % width;
        let Some(from) = self.packed_until.get(tier).copied() else { return };
        if until <= from {
            return;
        }
        let Some([below, wide]) = self.tiers.get_mut(tier - 1..=tier) else { return };
        let mut groups: BTreeMap<Minute, Cells> = BTreeMap::new();
        for (at, packed) in below.range(..until) {
            let start = at - at % width;
            if !wide.contains_key(&start) {
                let group = groups.entry(start).or_insert_with(|| Map::with_hasher(self.hash));
                packed.add_to(group);
            }
        }
        for (start, cells) in groups {
            self.set(tier, start, Packed::of(&cells, keys), outbox);
        }
        if let Some(packed_until) = self.packed_until.get_mut(tier) {
            *packed_until = until;
        }
    }

    fn forget(&mut self, tier: usize, before: Minute, outbox: &mut Outbox) {
        let (Some(slots), Some(gone)) = (self.tiers.get_mut(tier), self.gone_until.get_mut(tier)) else {
            return;
        };
        *gone = before.max(*gone);
        let kept = slots.split_off(&before);
        let gone = std::mem::replace(slots, kept);
        for (start, packed) in gone {
            self.packed_bytes = self.packed_bytes.saturating_sub(packed.len());
            self.generation += 1;
            outbox.delete(rows::CELLS, rows::cells(tier, start), 0);
        }
    }

    /// The oldest minute whose ten is packed goes first, then the oldest ten whose hour is, then the oldest hour.
    fn drop_oldest(&mut self, outbox: &mut Outbox) -> bool {
        let [minutes, tens, hours] = &self.tiers;
        let packed =
            |tier: usize, end: Minute| self.packed_until.get(tier).is_some_and(|until| end <= *until);
        let minute = minutes.first_key_value().map(|(at, _)| *at).filter(|at| packed(1, at - at % 10 + 10));
        let ten = tens.first_key_value().map(|(at, _)| *at).filter(|at| packed(2, at - at % 60 + 60));
        let hour = hours.first_key_value().map(|(at, _)| *at);
        let Some((tier, at)) =
            minute.map(|at| (0, at)).or_else(|| ten.map(|at| (1, at))).or_else(|| hour.map(|at| (2, at)))
        else {
            return false;
        };
        self.forget(tier, at + 1, outbox);
        true
    }

    /// The packed slots that cover the minutes `from` to `to` (exclusive), and the open minutes among them. An open
    /// minute is packed for this, the more seldom the more there is in it.
    pub(super) fn cover(
        &mut self,
        from: Minute,
        to: Minute,
        keys: &Keys,
        now: u64,
    ) -> (Vec<Arc<Packed>>, Vec<Arc<Packed>>) {
        let [minutes, tens, hours] = &self.tiers;
        let [_, tens_until, hours_until] = self.packed_until;
        let oldest = [minutes, tens, hours].into_iter().filter_map(|slots| slots.first_key_value());
        let oldest = oldest.map(|(at, _)| *at).min().unwrap_or(to);
        let [minutes_gone, tens_gone, _] = self.gone_until;
        let mut packed = Vec::new();
        let mut at = from.max(oldest);
        while at < to {
            let (hour, ten) = (at - at % 60, at - at % 10);
            let (hour_is_packed, ten_is_packed) = (hour + 60 <= hours_until, ten + 10 <= tens_until);
            // Where tens are gone the whole hour stands for them, where minutes are the whole ten.
            if hour_is_packed && ((at == hour && at + 60 <= to) || ten < tens_gone) {
                packed.extend(hours.get(&hour).cloned());
                at = hour + 60;
            } else if ten_is_packed && ((at == ten && at + 10 <= to) || at < minutes_gone) {
                packed.extend(tens.get(&ten).cloned());
                at = ten + 10;
            } else {
                packed.extend(minutes.get(&at).cloned());
                at += 1;
            }
        }
        let mut open = Vec::new();
        for (_, minute) in self.open.range_mut(from..to.max(from)) {
            let fresh = minute.packed.as_ref().is_some_and(|(_, until)| now < *until);
            if minute.packed.is_none() || (minute.changed && !fresh) {
                let began = Instant::now();
                let packed = Arc::new(Packed::of(&minute.cells, keys));
                let until = now.saturating_add(limits::fresh_for(began));
                minute.packed = Some((packed, until));
                minute.changed = false;
            }
            open.extend(minute.packed.as_ref().map(|(packed, _)| packed.clone()));
        }
        (packed, open)
    }

    /// Takes a row back from the store.
    pub(super) fn restore(&mut self, id: u64, part: u32, body: Bytes, keys: &Keys, now: u64) -> Option<()> {
        let (tier, start) = rows::slot(id)?;
        let packed = Packed::read(body)?;
        let mut known = true;
        packed.all(|series, _| known &= keys.key(series).is_some(), &mut true);
        if !known {
            return None;
        }
        if part == 0 {
            self.place(tier, start, packed);
            return Some(());
        }
        if tier != 0 {
            return None;
        }
        let open = self.open(start, now);
        open.parts = open.parts.max(part);
        open.changed = true;
        packed.add_to(&mut open.cells);
        Some(())
    }

    /// After the last row: what is packed already needs not be packed again.
    pub(super) fn restored(&mut self) {
        for (tier, width) in WIDTHS.iter().enumerate().skip(1) {
            let until = self.tiers.get(tier).and_then(|slots| slots.last_key_value());
            let until = until.map_or(0, |(at, _)| at + width);
            if let Some(packed_until) = self.packed_until.get_mut(tier) {
                *packed_until = until;
            }
        }
        // A ten without its minutes, or an hour without its tens, outlived them.
        let [minutes, tens, _] = &self.tiers;
        let first = |slots: &BTreeMap<Minute, Arc<Packed>>, until: Minute, width: Minute| {
            slots.first_key_value().map_or(until, |(at, _)| (at - at % width).min(until))
        };
        let [_, tens_until, hours_until] = self.packed_until;
        self.gone_until = [first(minutes, tens_until, 10), first(tens, hours_until, 60), 0];
    }

    /// When the series was last counted in any slot that is there: its end.
    pub(super) fn last_seen(&self, mut visit: impl FnMut(Series, u64)) {
        for (slots, width) in self.tiers.iter().zip(WIDTHS).rev() {
            for (at, packed) in slots {
                packed.all(|series, _| visit(series, u64::from(at + width) * 60_000_000_000), &mut true);
            }
        }
        for (at, open) in &self.open {
            for series in open.cells.keys() {
                visit(*series, u64::from(at + 1) * 60_000_000_000);
            }
        }
    }

    /// Bytes in use, reckoned.
    pub(super) fn bytes(&self) -> u64 {
        let open: u64 = self
            .open
            .values()
            .map(|open| {
                let cells = (open.cells.len() + open.dirty.len()) as u64 * 250;
                cells + open.packed.as_ref().map_or(0, |(packed, _)| packed.len())
            })
            .sum();
        open + self.packed_bytes
    }
}

pub(super) fn minute_of(unix_nanos: u64) -> Minute {
    Minute::try_from(unix_nanos / 60_000_000_000).unwrap_or(Minute::MAX)
}

/// Adds the cells of `scopes` in `slots` up by key.
pub(super) fn sum(slots: &[Arc<Packed>], scopes: &[Scope], into: &mut Cells) {
    for packed in slots {
        for scope in scopes {
            packed.each(*scope, |series, cell| into.entry(series).or_default().add(cell));
        }
    }
}
