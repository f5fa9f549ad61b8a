//! What each series of each sender said last, so that everything is counted exactly once: pushes that are repeated, out
//! of order or lost, senders that begin anew, temporalities of both kinds. A stream is the series of one sender from
//! one beginning on. Must never take a value back.

use super::histogram::{Histogram, part};
use super::keys::{Map, Seeded};
use super::limits;
use super::slots::{Cell, Minute, minute_of};
use super::wire::{Temporality, varint};

/// What a data point said, understood.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    /// Of one metric and its attributes; no start in it.
    pub(super) series: u64,
    pub(super) start: u64,
    pub(super) time: u64,
    pub(super) count: u64,
    pub(super) sum_nanos: u64,
    pub(super) histogram: Histogram,
    /// Scale of an exponential histogram.
    pub(super) scale: Option<i32>,
}

/// What is there to be counted.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum News {
    /// This much, within a time.
    Delta { cell: Cell, from: u64, to: u64 },
    /// It was counted already.
    Repeated,
    /// It is older than what was counted, and part of it.
    Late,
    /// The past of a sender that ran long before we listened.
    Joined,
    /// There is no place for another series.
    Full,
}

/// The last word of a cumulative stream, or the deltas that were counted.
#[derive(Clone, Debug, Default)]
struct Stream {
    time: u64,
    count: u64,
    sum_nanos: u64,
    /// Codes and counts, packed; of delta streams the ends of those that were counted.
    packed: Box<[u8]>,
}

/// One sender: a resource and a scope.
#[derive(Clone, Debug)]
struct Sender {
    streams: Map<(u64, u64), Stream>,
    /// When it last pushed, by our clock.
    last: u64,
    /// Times of the newest point and of the newest one before this push.
    newest: u64,
    newest_before: u64,
    /// Pushes so far, to know one from the next.
    push: u64,
    /// Its series were let go then, by our clock.
    forgotten: Option<u64>,
    dirty: bool,
}

/// All senders.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    hash: Seeded,
    senders: Map<u64, Sender>,
    pub(super) count: u64,
    pub(super) forgotten: u64,
    /// When we began to listen, ever.
    pub(super) listening_since: u64,
    push: u64,
}

fn pack(histogram: &Histogram) -> Box<[u8]> {
    let mut out = Vec::with_capacity(histogram.0.len() * 4);
    for (code, count) in &histogram.0 {
        push_varint(&mut out, u64::from(*code));
        push_varint(&mut out, *count);
    }
    out.into()
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn unpack(mut bytes: &[u8]) -> Histogram {
    let mut histogram = Histogram::default();
    while let (Some(code), Some(count)) = (varint(&mut bytes), varint(&mut bytes)) {
        histogram.add(code as u16, count);
    }
    histogram
}

impl Streams {
    pub(super) fn new(seed: u64, now: u64) -> Self {
        let hash = Seeded(seed);
        Self { hash, senders: Map::with_hasher(hash), count: 0, forgotten: 0, listening_since: now, push: 0 }
    }

    /// A message begins: what a sender says within it belongs together.
    pub(super) fn begin(&mut self) {
        self.push += 1;
    }

    /// What is new in what a sender said.
    pub(super) fn take(&mut self, sender: u64, temporality: Temporality, said: Said, now: u64) -> News {
        if self.count >= limits::STREAMS_MAX as u64 {
            self.make_room(now);
        }
        let full = self.count >= limits::STREAMS_MAX as u64;
        let (hash, push) = (self.hash, self.push);
        let entry = self.senders.entry(sender).or_insert_with(|| Sender {
            streams: Map::with_hasher(hash),
            last: now,
            newest: 0,
            newest_before: 0,
            push: 0,
            forgotten: None,
            dirty: true,
        });
        if entry.push != push {
            entry.push = push;
            entry.newest_before = entry.newest;
        }
        entry.last = now;
        entry.newest = entry.newest.max(said.time);
        entry.dirty = true;
        let is_delta = temporality == Temporality::Delta;
        let place = (said.series, if is_delta { 0 } else { said.start });
        let is_full = full || entry.streams.len() >= limits::STREAMS_OF_SENDER_MAX;
        let known = entry.streams.get_mut(&place);
        if known.is_none() && is_full {
            return News::Full;
        }
        let cell = Cell { count: said.count, sum_nanos: said.sum_nanos, spans: 0, histogram: said.histogram };
        if is_delta {
            let is_new = known.is_none();
            let stream = entry.streams.entry(place).or_default();
            self.count += u64::from(is_new);
            return stream.delta(cell, said.start, said.time);
        }
        if let Some(stream) = known {
            return stream.cumulative(cell, said.start, said.time, said.scale);
        }
        self.count += 1;
        let stream = Stream {
            time: said.time,
            count: cell.count,
            sum_nanos: cell.sum_nanos,
            packed: pack(&cell.histogram),
        };
        entry.streams.insert(place, stream);
        // A series of a sender that spoke before: what it says came since then. One that began while we listened, or
        // not long before: all of it is news. Else its past is not ours to tell.
        let began_with_us = said.start.saturating_add(limits::JOIN_NANOS) >= self.listening_since;
        let was_forgotten = entry.forgotten.is_some_and(|at| said.start <= at);
        let spoke_before = entry.newest_before > said.start && entry.newest_before < said.time;
        if spoke_before && !was_forgotten {
            News::Delta { cell, from: entry.newest_before, to: said.time }
        } else if began_with_us && said.start > 0 && !was_forgotten {
            News::Delta { cell, from: said.start, to: said.time }
        } else {
            News::Joined
        }
    }

    /// Forgets the senders that were silent longest, a sixteenth of all series.
    fn make_room(&mut self, now: u64) {
        let mut by_age: Vec<(u64, u64)> = self
            .senders
            .iter()
            .filter(|(_, sender)| !sender.streams.is_empty() && sender.push != self.push)
            .map(|(id, sender)| (sender.last, *id))
            .collect();
        by_age.sort_unstable();
        let enough = limits::STREAMS_MAX as u64 / 16;
        let mut gone = 0;
        for (_, id) in by_age {
            if gone >= enough {
                break;
            }
            gone += self.forget(id, now);
        }
    }

    fn forget(&mut self, id: u64, now: u64) -> u64 {
        let Some(sender) = self.senders.get_mut(&id) else { return 0 };
        let gone = sender.streams.len() as u64;
        sender.streams = Map::with_hasher(self.hash);
        sender.forgotten = Some(now);
        sender.dirty = true;
        self.count = self.count.saturating_sub(gone);
        self.forgotten += gone;
        gone
    }

    /// Forgets senders that were silent for long.
    pub(super) fn tick(&mut self, now: u64, mut delete: impl FnMut(u64)) {
        let idle: Vec<u64> = self
            .senders
            .iter()
            .filter(|(_, sender)| sender.last + limits::SENDER_IDLE_NANOS < now && sender.forgotten.is_none())
            .map(|(id, _)| *id)
            .collect();
        for id in idle {
            self.forget(id, now);
        }
        let over = self.senders.len().saturating_sub(limits::FORGOTTEN_MAX);
        if over > 0 {
            let mut empty: Vec<(u64, u64)> = self
                .senders
                .iter()
                .filter_map(|(id, sender)| {
                    Some((sender.forgotten.filter(|_| sender.streams.is_empty())?, *id))
                })
                .collect();
            empty.sort_unstable();
            for (_, id) in empty.into_iter().take(over) {
                self.senders.remove(&id);
                delete(id);
            }
        }
    }

    /// Senders that said something since the last time, as rows.
    pub(super) fn unsaved(&mut self, mut put: impl FnMut(u64, Vec<u8>)) {
        for (id, sender) in &mut self.senders {
            if !std::mem::take(&mut sender.dirty) {
                continue;
            }
            let mut body = Vec::with_capacity(64 + sender.streams.len() * 64);
            for word in [sender.last, sender.newest, sender.forgotten.map_or(0, |at| at.max(1))] {
                push_varint(&mut body, word);
            }
            for ((series, start), stream) in &sender.streams {
                body.extend_from_slice(&series.to_le_bytes());
                let length = stream.packed.len() as u64;
                for word in [*start, stream.time, stream.count, stream.sum_nanos, length] {
                    push_varint(&mut body, word);
                }
                body.extend_from_slice(&stream.packed);
            }
            put(*id, body);
        }
    }

    pub(super) fn restore(&mut self, id: u64, mut body: &[u8]) -> Option<()> {
        let body = &mut body;
        let (last, newest, forgotten) = (varint(body)?, varint(body)?, varint(body)?);
        let mut streams = Map::with_hasher(self.hash);
        while !body.is_empty() {
            let (series, rest) = body.split_first_chunk::<8>()?;
            *body = rest;
            let (start, time, count, sum_nanos) =
                (varint(body)?, varint(body)?, varint(body)?, varint(body)?);
            let length = usize::try_from(varint(body)?).ok()?;
            let (packed, rest) = body.split_at_checked(length)?;
            *body = rest;
            streams.insert(
                (u64::from_le_bytes(*series), start),
                Stream { time, count, sum_nanos, packed: packed.into() },
            );
        }
        self.count += streams.len() as u64;
        let forgotten = (forgotten > 0).then_some(forgotten);
        let sender =
            Sender { streams, last, newest, newest_before: newest, push: 0, forgotten, dirty: false };
        self.senders.insert(id, sender);
        Some(())
    }

    /// Bytes in use, reckoned.
    pub(super) fn bytes(&self) -> u64 {
        self.senders.len() as u64 * 150 + self.count * 120
    }
}

impl Stream {
    fn cumulative(&mut self, cell: Cell, start: u64, time: u64, scale: Option<i32>) -> News {
        if time < self.time {
            return News::Late;
        }
        let mut before = unpack(&self.packed);
        if let Some(scale) = scale {
            before = before.coarsened(scale.max(0));
        }
        let same = cell.count == self.count && cell.histogram == before;
        if time == self.time {
            // Two points of one moment that differ: the greater one is the later one.
            if same || cell.count < self.count {
                return News::Repeated;
            }
        }
        // A scale falls and never rises; where one does, the coarser one decides.
        let floor = scale.and_then(|scale| before.coarsest().filter(|floor| *floor < scale));
        let since = match floor {
            Some(floor) => cell.histogram.coarsened(floor).since(&before.coarsened(floor)),
            None => cell.histogram.since(&before),
        };
        let news = match (cell.count.checked_sub(self.count), since) {
            (Some(0), _) if same => News::Repeated,
            (Some(count), Some(histogram)) => {
                let sum_nanos = cell.sum_nanos.saturating_sub(self.sum_nanos);
                News::Delta {
                    cell: Cell { count, sum_nanos, spans: 0, histogram },
                    from: self.time,
                    to: time,
                }
            }
            // Less than before: it began anew and did not say so.
            _ => News::Delta { cell: cell.clone(), from: self.time.max(start), to: time },
        };
        self.time = time;
        self.count = cell.count;
        self.sum_nanos = cell.sum_nanos;
        self.packed = pack(&cell.histogram);
        news
    }

    /// Deltas may come in any order; the newest ones are known by their ends.
    fn delta(&mut self, cell: Cell, start: u64, time: u64) -> News {
        let (ends, _) = self.packed.as_chunks::<8>();
        let mut ends: Vec<u64> = ends.iter().map(|end| u64::from_le_bytes(*end)).collect();
        if ends.contains(&time) {
            return News::Repeated;
        }
        if ends.len() >= limits::DELTAS_REMEMBERED {
            let oldest = ends.iter().copied().min().unwrap_or(0);
            if time < oldest {
                return News::Late;
            }
            ends.retain(|end| *end != oldest);
        }
        ends.push(time);
        self.packed = ends.iter().flat_map(|end| end.to_le_bytes()).collect();
        self.time = self.time.max(time);
        self.count = self.count.saturating_add(cell.count);
        let from = if start == 0 { time } else { start };
        News::Delta { cell, from, to: time }
    }
}

/// Deals a delta out to the minutes in which it came.
pub(super) fn spread(cell: &Cell, from: u64, to: u64, now: u64, mut visit: impl FnMut(Minute, &Cell)) {
    // What is older than any minute came when it was told: else senders could open as many minutes as they like.
    let (to, from) = if limits::is_of_our_time(to, now) { (to, from) } else { (now, now) };
    let from = from.max(now.saturating_sub(limits::OLDEST_NANOS));
    let last = minute_of(to.saturating_sub(1));
    let first = minute_of(from.min(to));
    if to.saturating_sub(from) <= limits::SPREAD_OVER_NANOS || first >= last {
        visit(last, cell);
        return;
    }
    let minutes = u64::from(last - first) + 1;
    let pieces = minutes.min(limits::SPREAD_MAX);
    for number in 0..pieces {
        let piece = Cell {
            count: part(cell.count, number, pieces),
            sum_nanos: part(cell.sum_nanos, number, pieces),
            spans: part(cell.spans, number, pieces),
            histogram: cell.histogram.part(number, pieces),
        };
        if piece != Cell::default() {
            visit(first + (minutes * number / pieces) as Minute, &piece);
        }
    }
}
