//! Numbers: exact ones from the metrics of our sidecars and filters, estimates from spans of others, added up as they
//! arrive by environment, operation, route, source, destination, kind and failure. Bounded in keys and bytes. Must
//! never answer by looking at spans, nor count a request twice.

mod answer;
mod foreign;
mod graph;
mod histogram;
mod keys;
mod limits;
mod pods;
mod query;
mod read;
mod rows;
mod slots;
mod streams;
mod wire;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use answer::*;
pub use keys::OTHER_NAME;
pub use rows::{Changes, Row, RowId};
pub use wire::Malformed;

use crate::span::{Incoming, Sender};
use bytes::Bytes;
use foreign::{Met, Shard, Shared};
use histogram::Bounds;
use keys::{About, Key, Keys, Map, NONE, Name, NodeId, Scope, Seeded, Use};
use pods::Pods;
use rows::Outbox;
use slots::{Cell, Slots};
use streams::Streams;

/// How the numbers are kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A random number of the host's: it keeps senders from choosing keys that collide.
    pub seed: u64,
    /// Shards of the engine: each offers its spans under its number.
    pub shards: usize,
    /// How long counts are kept; the last 48 hours of it in minutes, the rest in tens and hours.
    pub keep_for: Duration,
    /// Bytes of packed counts in memory; beyond them the oldest minutes become tens, then hours, then nothing.
    pub bytes_max: u64,
    /// Whether a store asks for [`Numbers::changes`].
    pub to_store: bool,
    /// When a node is well.
    pub health: Thresholds,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            shards: 1,
            keep_for: Duration::from_hours(7 * 24),
            bytes_max: 256 << 20,
            to_store: false,
            health: Thresholds::default(),
        }
    }
}

/// When a node is `degraded` or `down`. Calls that nobody answered count as failed here.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Thresholds {
    /// Share of requests that failed from which on a node is degraded.
    pub degraded_error_rate: f64,
    /// Share of requests that failed from which on a node is down.
    pub down_error_rate: f64,
    /// 95th percentile from which on a node is degraded; 0 for never.
    pub degraded_p95_ms: f64,
    /// Fewer requests than this in the window say nothing: the node is healthy.
    pub requests_min: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { degraded_error_rate: 0.05, down_error_rate: 0.5, degraded_p95_ms: 2_000.0, requests_min: 5 }
    }
}

/// What became of a message of metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// Data points read, or passed over because nobody asks for them.
    pub points: u64,
    /// Data points that make no sense or found no place: `rejected_data_points` of the answer.
    pub rejected: u64,
}

/// A row that can't be read back: the numbers have to begin anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreadable {
    /// Kind of the row.
    pub kind: u8,
    /// Its id.
    pub id: u64,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "row {} of kind {} of the numbers can't be read", self.id, self.kind)
    }
}

impl std::error::Error for Unreadable {}

/// The numbers. Questions hold its lock only to copy what they need.
#[derive(Debug)]
pub struct Numbers {
    options: Options,
    state: Mutex<State>,
    shards: Vec<Mutex<Shard>>,
    /// Changes when a sender is met that covers others.
    epoch: AtomicU64,
    /// The newest moment that was told.
    now: AtomicU64,
    remembered: query::Remembered,
}

#[derive(Debug)]
struct State {
    seed: Seeded,
    keys: Keys,
    slots: Slots,
    streams: Streams,
    bounds: Bounds,
    bounds_saved: usize,
    meta_saved: bool,
    pods: Pods,
    /// Hosts that turned out to be services, by environment and the caller's namespace; none where they disagree.
    aliases: Map<(u16, Name, NodeId), Option<NodeId>>,
    /// Subscriptions whose topic is known.
    topics: Map<NodeId, NodeId>,
    /// When each series was counted last.
    last: Vec<u64>,
    outbox: Outbox,
    books: NumbersBooks,
}

/// What is to be counted, before it has numbers.
#[derive(Clone, Copy, Debug)]
struct Counting {
    key: Key,
    from: u64,
    to: u64,
    now: u64,
}

impl State {
    fn new(options: &Options, seed: u64, now: u64) -> Self {
        let hash = Seeded(seed);
        Self {
            seed: hash,
            keys: Keys::new(seed),
            slots: Slots::new(seed),
            streams: Streams::new(seed, now),
            bounds: Bounds::default(),
            bounds_saved: 0,
            meta_saved: false,
            pods: Pods::new(hash),
            aliases: Map::with_hasher(hash),
            topics: Map::with_hasher(hash),
            last: Vec::new(),
            outbox: Outbox::new(options.to_store),
            books: NumbersBooks::default(),
        }
    }

    /// Counts under a key, and of requests under everything of its environment.
    fn count(&mut self, counting: Counting, cell: &Cell) {
        let Counting { key, from, to, now } = counting;
        let whole = Key { scope: Scope { about: About::Everything, ..key.scope }, route: NONE, ..key };
        let both = [Some(key), matches!(key.scope.about, About::Operation(_)).then_some(whole)];
        for key in both.into_iter().flatten() {
            let series = self.keys.series(key);
            let place = series as usize;
            if self.last.len() <= place {
                self.last.resize(place + 1, 0);
            }
            if let Some(last) = self.last.get_mut(place) {
                *last = to.min(now).max(*last);
            }
            let (slots, to_store) = (&mut self.slots, self.outbox.on);
            streams::spread(cell, from, to, now, |minute, piece| {
                slots.add(minute, series, piece, now, to_store)
            });
        }
    }
}

impl Numbers {
    /// Numbers of nothing, listening from `now` (nanoseconds since 1970) on.
    #[must_use]
    pub fn new(options: Options, now_unix_nanos: u64) -> Self {
        Self {
            options,
            state: Mutex::new(State::new(&options, options.seed, now_unix_nanos)),
            shards: (0..options.shards.max(1))
                .map(|_| Mutex::new(Shard::new(options.seed, options.shards)))
                .collect(),
            epoch: AtomicU64::new(1),
            now: AtomicU64::new(now_unix_nanos),
            remembered: query::Remembered::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not stop everybody: the numbers are still good enough.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an `ExportMetricsServiceRequest`. Each message counts once, however often it is sent.
    ///
    /// # Errors
    /// Bytes that are no such message: nothing of it was counted.
    pub fn metrics(&self, body: &[u8], now_unix_nanos: u64) -> Result<Taken, Malformed> {
        self.now.fetch_max(now_unix_nanos, Ordering::Relaxed);
        read::check(body)?;
        let (taken, covers_more) = self.state().read(body, now_unix_nanos)?;
        if covers_more {
            self.epoch.fetch_add(1, Ordering::Relaxed);
        }
        Ok(taken)
    }

    /// Offers a span, ours or another's, to the numbers of a shard. All spans of a trace go to the same one.
    pub fn foreign(&self, shard: usize, sender: &Sender<'_>, span: &Incoming<'_>, now_unix_nanos: u64) {
        if let Some(mut offering) = self.offer(shard) {
            offering.span(sender, span, now_unix_nanos);
        }
    }

    /// Offers many spans to the numbers of a shard, under one lock.
    pub(crate) fn offer(&self, shard: usize) -> Option<Offering<'_>> {
        let shard = self.shards.get(shard % self.shards.len())?;
        Some(Offering { numbers: self, shard: shard.lock().unwrap_or_else(PoisonError::into_inner) })
    }

    fn take_over(&self, counted: foreign::Counted, now: u64) {
        let mut state = self.state();
        for ((minute, key), cell) in counted {
            let to = (u64::from(minute) + 1) * 60_000_000_000 - 1;
            state.count(Counting { key, from: to, to, now: now.max(to) }, &cell);
        }
    }

    /// Time went by: call it each second or so.
    pub fn tick(&self, now_unix_nanos: u64) {
        let now = self.now.fetch_max(now_unix_nanos, Ordering::Relaxed).max(now_unix_nanos);
        for shard in &self.shards {
            let counted = shard.lock().unwrap_or_else(PoisonError::into_inner).tick(now, self);
            self.take_over(counted, now);
        }
        let mut state = self.state();
        let kept = (self.options.keep_for.as_secs() / 60).max(60);
        let State { slots, keys, outbox, streams, .. } = &mut *state;
        slots.tick(now, u32::try_from(kept).unwrap_or(u32::MAX), self.options.bytes_max, keys, outbox);
        streams.tick(now, |id| outbox.delete(rows::SENDER, id, 0));
    }

    /// What the store has not got yet. It has to be stored in one transaction, before the next changes; what could
    /// not be stored has to be tried again first.
    #[must_use]
    pub fn changes(&self, now_unix_nanos: u64) -> Changes {
        self.now.fetch_max(now_unix_nanos, Ordering::Relaxed);
        let mut state = self.state();
        if !state.outbox.on {
            return Changes::default();
        }
        let State { seed, keys, slots, streams, bounds, bounds_saved, meta_saved, outbox, .. } = &mut *state;
        slots.unsaved(keys, outbox);
        streams.unsaved(|id, body| outbox.put(rows::SENDER, id, 0, body.into()));
        keys.unsaved(|kind, id, body| outbox.put(kind, id, 0, body.into()));
        for set in *bounds_saved..bounds.len() {
            let bytes = bounds.get(set).unwrap_or_default().iter().flat_map(|bound| bound.to_le_bytes());
            outbox.put(rows::META, 1 + set as u64, 0, bytes.collect());
        }
        *bounds_saved = bounds.len();
        if !std::mem::replace(meta_saved, true) {
            let words = [seed.0, streams.listening_since];
            outbox.put(rows::META, 0, 0, words.iter().flat_map(|word| word.to_le_bytes()).collect());
        }
        outbox.take()
    }

    /// Takes all rows back, in the order of kind, id and part. To be called once, before anything is counted. Says how
    /// many rows of counts or senders could not be read and were passed over.
    ///
    /// # Errors
    /// A row without which the others mean nothing: the numbers begin anew, and the rows have to be deleted.
    pub fn restore(
        &self,
        rows: impl IntoIterator<Item = Row>,
        now_unix_nanos: u64,
    ) -> Result<u64, Unreadable> {
        self.now.fetch_max(now_unix_nanos, Ordering::Relaxed);
        let mut state = self.state();
        let mut passed_over = 0;
        for row in rows {
            let understood = match row.kind {
                rows::META => state.restore_meta(&self.options, row.id, &row.body, now_unix_nanos),
                rows::NAME | rows::NODE | rows::KEY => state.keys.restore(row.kind, row.id, &row.body),
                rows::CELLS => {
                    let State { slots, keys, .. } = &mut *state;
                    passed_over += u64::from(
                        slots.restore(row.id, row.part, row.body.clone(), keys, now_unix_nanos).is_none(),
                    );
                    Some(())
                }
                rows::SENDER => {
                    passed_over += u64::from(state.streams.restore(row.id, &row.body).is_none());
                    Some(())
                }
                _ => None,
            };
            if understood.is_none() {
                *state = State::new(&self.options, self.options.seed, now_unix_nanos);
                return Err(Unreadable { kind: row.kind, id: row.id });
            }
        }
        state.slots.restored();
        let mut last = Vec::new();
        state.slots.last_seen(|series, at| {
            let place = series as usize;
            if last.len() <= place {
                last.resize(place + 1, 0);
            }
            if let Some(seen) = last.get_mut(place) {
                *seen = at.min(now_unix_nanos).max(*seen);
            }
        });
        state.last = last;
        Ok(passed_over)
    }

    /// What it costs and what was left out.
    #[must_use]
    pub fn books(&self) -> NumbersBooks {
        let mut of_shards = [0; 5];
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let of_shard =
                [shard.foreign, shard.estimated, shard.beside_ours, shard.pushed_out, shard.bytes()];
            for (sum, one) in of_shards.iter_mut().zip(of_shard) {
                *sum += one;
            }
        }
        let [spans_foreign, spans_estimated, spans_beside_ours, spans_pushed_out, bytes] = of_shards;
        let state = self.state();
        NumbersBooks {
            streams: state.streams.count,
            streams_forgotten: state.streams.forgotten,
            over_cap: state.keys.over_cap,
            series: state.keys.keys.len() as u64,
            operations: state.keys.operations() as u64,
            services: state.keys.taken(Use::Service) as u64,
            minutes_coarsened_early: state.slots.coarsened_early,
            spans_foreign,
            spans_estimated,
            spans_beside_ours,
            spans_pushed_out,
            bytes: bytes
                + state.keys.bytes()
                + state.slots.bytes()
                + state.streams.bytes()
                + state.pods.bytes()
                + self.remembered.bytes(),
            ..state.books
        }
    }
}

impl State {
    fn restore_meta(&mut self, options: &Options, id: u64, body: &Bytes, now: u64) -> Option<()> {
        let (words, _) = body.as_chunks::<8>();
        if id == 0 {
            let [seed, since] = words else { return None };
            *self = Self::new(options, u64::from_le_bytes(*seed), now);
            self.streams.listening_since = u64::from_le_bytes(*since);
            self.meta_saved = true;
            return Some(());
        }
        let bounds: Vec<f64> = words.iter().map(|word| f64::from_le_bytes(*word)).collect();
        if self.bounds.len() as u64 + 1 != id {
            return None;
        }
        self.bounds.first_code(&bounds)?;
        self.bounds_saved = self.bounds.len();
        Some(())
    }

    fn meet(&mut self, sender: &Sender<'_>, now: u64) -> (Met, bool) {
        let environment = self.keys.environment(sender.environment);
        let service = self.keys.node(NodeKind::Service, sender.namespace, sender.service);
        let place = self.keys.place(service);
        let pod = if sender.pod.is_empty() { 0 } else { self.seed.of(sender.pod) };
        let mut met = Met { environment, service, namespace: place.namespace, pod, covered: false };
        let name = if sender.pod.is_empty() { sender.instance } else { sender.pod };
        let said = pods::Said {
            id: self.seed.of(name),
            pod: sender.pod,
            instance: sender.instance,
            node: sender.node,
            version: sender.version,
            deployment: sender.deployment,
            ours: sender.ours,
        };
        let covers_more = self.pods.meet(&met, place.name, &said, now);
        met.covered = self.pods.covers(&met, place.name, now);
        (met, covers_more)
    }

    fn alias(&mut self, environment: u16, namespace: Name, address: NodeId, service: NodeId) {
        if self.keys.place(address).kind != NodeKind::External {
            return;
        }
        let known = self.aliases.entry((environment, namespace, address)).or_insert(Some(service));
        if *known != Some(service) {
            *known = None;
        }
    }
}

/// The numbers of a shard, held for the spans of one message.
pub(crate) struct Offering<'n> {
    numbers: &'n Numbers,
    shard: MutexGuard<'n, Shard>,
}

impl Offering<'_> {
    pub(crate) fn span(&mut self, sender: &Sender<'_>, span: &Incoming<'_>, now_unix_nanos: u64) {
        self.shard.span(sender, span, now_unix_nanos, self.numbers);
        if self.shard.is_full() {
            let counted = self.shard.tick(now_unix_nanos, self.numbers);
            self.numbers.take_over(counted, now_unix_nanos);
        }
    }
}

impl Shared for Numbers {
    fn keys<T>(&self, ask: impl FnOnce(&mut Keys) -> T) -> T {
        ask(&mut self.state().keys)
    }

    fn meet(&self, sender: &Sender<'_>, now: u64) -> Met {
        let (met, covers_more) = self.state().meet(sender, now);
        if covers_more {
            self.epoch.fetch_add(1, Ordering::Relaxed);
        }
        met
    }

    fn covers(&self, met: &Met, now: u64) -> bool {
        let state = self.state();
        state.pods.covers(met, state.keys.place(met.service).name, now)
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    fn alias(&self, environment: u16, namespace: Name, address: NodeId, service: NodeId) {
        self.state().alias(environment, namespace, address, service);
    }

    fn subscribed(&self, subscription: NodeId, topic: NodeId) {
        self.state().topics.insert(subscription, topic);
    }
}
