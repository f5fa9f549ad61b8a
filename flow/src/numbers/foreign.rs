//! Estimates from spans of others, where no sidecar counts: made as spans arrive, by joining children to parents
//! within seconds. A shard sees whole traces, so it needs nobody else. Bounded: what leaves early is counted. Must never
//! count what a sidecar beside it counts.

use crate::span::{Incoming, Kind, Sender, SpanId, Status};

use super::answer::NodeKind;
use super::histogram::code_of_nanos;
use super::keys::{
    About, BROKER, Key, Keys, Map, NONE, Name, NodeId, OTHER_NODE, Scope, Seeded, Told, USER, Use,
};
use super::limits;
use super::read::host_and_port;
use super::slots::{Cell, Minute, minute_of};

/// What one count is of estimates, so that weights have fractions.
pub(super) const ONE: u64 = 256;
/// The most that one span stands for.
const WEIGHT_MAX: u64 = ONE << 24;
/// No further one in a list.
const END: u32 = u32::MAX;

/// What shards ask of what they share. Asked only for what a shard meets for the first time.
pub(super) trait Shared {
    fn keys<T>(&self, ask: impl FnOnce(&mut Keys) -> T) -> T;
    /// Notes a sender; says whether a sidecar of ours stands beside it.
    fn meet(&self, sender: &Sender<'_>, now: u64) -> Met;
    /// Whether a sidecar or filter counts what this one serves and calls, by what is known at this moment.
    fn covers(&self, met: &Met, now: u64) -> bool;
    /// Changes whenever an answer of `meet` may change.
    fn epoch(&self) -> u64;
    /// A host's name turned out to be a service.
    fn alias(&self, environment: u16, namespace: Name, address: NodeId, service: NodeId);
    /// A subscription turned out to be one of a topic.
    fn subscribed(&self, subscription: NodeId, topic: NodeId);
}

/// A sender as numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Met {
    pub(super) environment: u16,
    pub(super) service: NodeId,
    pub(super) namespace: Name,
    /// Its pod, hashed; 0 for unknown.
    pub(super) pod: u64,
    /// A sidecar or a filter counts what it serves and calls.
    pub(super) covered: bool,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    met: Met,
    epoch: u64,
    /// When it was met last, so that its pod is known to live.
    at: u64,
}

/// What is remembered of a span.
#[derive(Clone, Copy, Debug)]
struct Info {
    met: Met,
    kind: Kind,
    ours: bool,
    /// Carried by what a sidecar counts.
    http: bool,
    class: u8,
    minute: Minute,
    operation: Name,
    route: Name,
    error: Name,
    /// Host, topic or database of it.
    target: NodeId,
    /// The subscription of a delivery.
    subscription: NodeId,
    weight: u64,
    nanos: u64,
    start: u64,
    end: u64,
    /// Age of the message; `u64::MAX` for unknown.
    age_nanos: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// None while only a child has named it.
    info: Option<Info>,
    /// A server was seen to be called by it.
    answered: bool,
    /// The first of those that wait for it.
    waiting: u32,
}

#[derive(Clone, Debug)]
struct Generation {
    /// Places of the entries by id. Entries lie in the order in which they came, so that one that comes writes where
    /// the last one did, and the map stays small.
    places: Map<u64, u32>,
    entries: Vec<Entry>,
    waiting: Vec<(Info, u32)>,
    /// Calls that failed, by parent and target, and when.
    failed: Map<u64, u64>,
}

impl Generation {
    fn new(hash: Seeded) -> Self {
        Self {
            places: Map::with_hasher(hash),
            entries: Vec::new(),
            waiting: Vec::new(),
            failed: Map::with_hasher(hash),
        }
    }

    fn add(&mut self, id: u64, entry: Entry) {
        self.places.insert(id, u32::try_from(self.entries.len()).unwrap_or(END));
        self.entries.push(entry);
    }
}

/// What a shard counted, to be handed over.
pub(super) type Counted = Map<(Minute, Key), Cell>;

/// The part of the numbers that one shard of the engine has for itself.
#[derive(Clone, Debug)]
pub(super) struct Shard {
    hash: Seeded,
    /// Its share of the span ids.
    ids_max: usize,
    senders: Map<u64, Known>,
    last_resource: Vec<u8>,
    last_sender: u64,
    /// Web pages that a sidecar speaks for: nobody counts what they call.
    pages: Map<u64, ()>,
    names: Map<u64, u32>,
    young: Generation,
    old: Generation,
    young_since: u64,
    counted: Counted,
    pub(super) foreign: u64,
    pub(super) estimated: u64,
    pub(super) beside_ours: u64,
    pub(super) pushed_out: u64,
}

fn id_of(id: SpanId) -> u64 {
    u64::from_le_bytes(id)
}

impl Shard {
    pub(super) fn new(seed: u64, shards: usize) -> Self {
        let hash = Seeded(seed);
        Self {
            hash,
            ids_max: limits::SPAN_IDS_MAX / shards.max(1),
            senders: Map::with_hasher(hash),
            last_resource: Vec::new(),
            last_sender: 0,
            pages: Map::with_hasher(hash),
            names: Map::with_hasher(hash),
            young: Generation::new(hash),
            old: Generation::new(hash),
            young_since: 0,
            counted: Map::with_hasher(hash),
            foreign: 0,
            estimated: 0,
            beside_ours: 0,
            pushed_out: 0,
        }
    }

    /// A span came. Ours are looked at too: they tell what is counted already.
    pub(super) fn span(&mut self, sender: &Sender<'_>, span: &Incoming<'_>, now: u64, shared: &impl Shared) {
        if !sender.ours {
            self.foreign += 1;
        }
        if span.kind == Kind::Internal || span.kind == Kind::Unspecified {
            // What a sidecar passes on of a page begins with the gesture, before the requests of it.
            if sender.ours && !span.known.ui_event.is_empty() {
                self.page(sender);
            }
            return;
        }
        let is_page = sender.ours && !self.pages.is_empty() && {
            let id = self.sender_id(sender);
            self.pages.contains_key(&id)
        };
        let sender = &Sender { ours: sender.ours && !is_page, ..*sender };
        let met = self.meet(sender, now, shared);
        let info = self.info(sender, span, met, now, shared);
        if self.young.entries.len() >= self.ids_max {
            let age = now.saturating_sub(self.young_since);
            if age < limits::GENERATION_NANOS {
                self.pushed_out += self.old.entries.len() as u64;
            }
            self.rotate(now, shared);
        } else if now.saturating_sub(self.young_since) >= limits::GENERATION_NANOS {
            self.rotate(now, shared);
        }
        if sender.ours { self.ours(span, info, shared) } else { self.of_others(span, info, shared) }
    }

    fn page(&mut self, sender: &Sender<'_>) {
        let id = self.sender_id(sender);
        if self.pages.len() >= limits::SHARD_KEYS_MAX {
            self.pages.clear();
        }
        self.pages.insert(id, ());
    }

    fn sender_id(&mut self, sender: &Sender<'_>) -> u64 {
        if sender.resource != self.last_resource || sender.resource.is_empty() {
            self.last_resource.clear();
            self.last_resource.extend_from_slice(sender.resource);
            self.last_sender = if sender.resource.is_empty() {
                let texts =
                    [sender.service, sender.namespace, sender.environment, sender.pod, sender.instance];
                texts.iter().fold(1, |sum: u64, text| sum.wrapping_mul(31) ^ self.hash.of(text))
            } else {
                self.hash.of(sender.resource)
            };
        }
        self.last_sender
    }

    fn meet(&mut self, sender: &Sender<'_>, now: u64, shared: &impl Shared) -> Met {
        let id = self.sender_id(sender) ^ u64::from(sender.ours);
        let epoch = shared.epoch();
        if let Some(known) = self.senders.get(&id)
            && known.epoch == epoch
            && now < known.at + limits::GENERATION_NANOS
        {
            return known.met;
        }
        if self.senders.len() >= limits::SHARD_KEYS_MAX {
            self.senders.clear();
        }
        let met = shared.meet(sender, now);
        self.senders.insert(id, Known { met, epoch: shared.epoch(), at: now });
        met
    }

    /// A name as a number, asked for once.
    fn name(&mut self, tag: u64, text: &[u8], ask: impl FnOnce() -> u32) -> u32 {
        if text.is_empty() {
            return NONE;
        }
        let id = self.hash.of(text).wrapping_add(tag.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        if let Some(name) = self.names.get(&id) {
            return *name;
        }
        if self.names.len() >= limits::SHARD_KEYS_MAX {
            self.names.clear();
        }
        let name = ask();
        self.names.insert(id, name);
        name
    }

    fn info(
        &mut self,
        sender: &Sender<'_>,
        span: &Incoming<'_>,
        met: Met,
        now: u64,
        shared: &impl Shared,
    ) -> Info {
        let known = &span.known;
        let environment = met.environment;
        let is_message =
            matches!(span.kind, Kind::Producer | Kind::Consumer) || !known.messaging_destination.is_empty();
        let operation = self.name(1 + u64::from(environment), known.operation, || {
            shared.keys(|keys| keys.name(Use::Operation(environment), known.operation))
        });
        let route = if span.kind == Kind::Server {
            self.name(100, known.route, || shared.keys(|keys| keys.name(Use::Route, known.route)))
        } else {
            NONE
        };
        let mut node = |tag: u64, kind: NodeKind, namespace: &[u8], name: &[u8]| match name {
            [] => OTHER_NODE,
            name => self.name(tag, name, || shared.keys(|keys| keys.node(kind, namespace, name))),
        };
        let subscription = if known.messaging_subscription.is_empty() {
            OTHER_NODE
        } else {
            node(104, NodeKind::Subscription, b"", known.messaging_subscription)
        };
        let target = if is_message {
            node(101, NodeKind::Topic, b"", known.messaging_destination)
        } else if span.kind == Kind::Server {
            USER
        } else if !known.db_system.is_empty() {
            let name = if known.server_address.is_empty() { known.db_system } else { known.server_address };
            node(102, NodeKind::Database, b"", name)
        } else if !known.peer_service.is_empty() && !sender.ours {
            node(103, NodeKind::External, b"", known.peer_service)
        } else if !known.peer_service.is_empty() {
            let tag = self.hash.of(known.peer_namespace) | 0x1_0000;
            self.name(tag, known.peer_service, || {
                shared.keys(|keys| keys.node(NodeKind::Service, known.peer_namespace, known.peer_service))
            })
        } else {
            let port = u64::from(known.server_port);
            match known.server_address {
                [] => OTHER_NODE,
                host => self.name(0x1_0000_0000 + port, host, || {
                    let host = host_and_port(host, port);
                    shared.keys(|keys| keys.node(NodeKind::External, b"", &host))
                }),
            }
        };
        let grpc_failed = !known.rpc_status.is_empty() && !matches!(known.rpc_status, b"OK" | b"0");
        let failed = span.status == Status::Error
            || (!known.error_type.is_empty() && span.status != Status::Ok)
            || known.http_status >= 500;
        let error = if failed {
            let status;
            let text: &[u8] = if !known.error_type.is_empty() {
                known.error_type
            } else if known.http_status >= 400 {
                status = known.http_status.to_string();
                status.as_bytes()
            } else if grpc_failed {
                known.rpc_status
            } else {
                b"error"
            };
            self.name(105, text, || shared.keys(|keys| keys.name(Use::Error, text)))
        } else {
            NONE
        };
        let nanos = span.end_unix_nanos.saturating_sub(span.start_unix_nanos);
        let is_of_our_time = limits::is_of_our_time(span.end_unix_nanos, now);
        Info {
            met,
            kind: span.kind,
            ours: sender.ours,
            http: !known.method.is_empty() || !known.rpc_method.is_empty() || known.http_status > 0,
            class: u8::try_from(known.http_status / 100).unwrap_or(0).min(9),
            minute: minute_of(if is_of_our_time { span.end_unix_nanos } else { now }),
            operation,
            route,
            error,
            target,
            subscription,
            weight: weight(span.trace_state),
            nanos,
            start: span.start_unix_nanos,
            end: span.end_unix_nanos,
            age_nanos: known.message_age_ms.map_or(u64::MAX, |age| age.saturating_mul(1_000_000)),
        }
    }

    fn ours(&mut self, span: &Incoming<'_>, info: Info, shared: &impl Shared) {
        match info.kind {
            Kind::Client => {
                self.retried(span, &info);
                self.insert(id_of(span.span_id), info, shared);
            }
            Kind::Producer => self.insert(id_of(span.span_id), info, shared),
            // A peer that a sidecar named has spans that are ours: nobody else waits for them.
            Kind::Server if span.known.peer_service.is_empty() => {
                if let Some(parent) = span.parent {
                    self.join(id_of(parent), info, shared);
                }
            }
            Kind::Consumer => {
                if info.target != OTHER_NODE && info.subscription != OTHER_NODE {
                    shared.subscribed(info.subscription, info.target);
                } else if let Some(parent) = span.parent {
                    self.join(id_of(parent), info, shared);
                }
            }
            Kind::Server | Kind::Internal | Kind::Unspecified => {}
        }
    }

    fn of_others(&mut self, span: &Incoming<'_>, info: Info, shared: &impl Shared) {
        match info.kind {
            Kind::Server => {
                if info.met.covered {
                    self.beside_ours += 1;
                    return;
                }
                match span.parent {
                    Some(parent) => self.join(id_of(parent), info, shared),
                    None => self.settle(info, None, shared),
                }
                self.insert(id_of(span.span_id), info, shared);
            }
            Kind::Client => {
                self.retried(span, &info);
                // What calls a covered service is told of by its sidecar; databases pass it as bytes.
                if info.met.covered && info.http {
                    self.beside_ours += 1;
                }
                self.insert(id_of(span.span_id), info, shared);
            }
            Kind::Producer => {
                if info.met.covered && span.known.messaging_system == b"gcp_pubsub" {
                    self.beside_ours += 1;
                } else {
                    self.count(Told::SpanSent, info.met.service, info.target, &info);
                }
                self.insert(id_of(span.span_id), info, shared);
            }
            Kind::Consumer => {
                if info.met.covered && span.known.messaging_system == b"gcp_pubsub" {
                    self.beside_ours += 1;
                } else if let Some(parent) = span.parent {
                    self.join(id_of(parent), info, shared);
                } else {
                    self.settle(info, None, shared);
                }
            }
            Kind::Internal | Kind::Unspecified => {}
        }
    }

    /// A call that repeats one of the same parent that failed before it began.
    fn retried(&mut self, span: &Incoming<'_>, info: &Info) {
        let parent = span.parent.map_or(0, id_of);
        let mut call = parent ^ self.hash.of(span.known.method).rotate_left(17);
        call = call.wrapping_add(u64::from(info.target)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let before = self.young.failed.get(&call).or_else(|| self.old.failed.get(&call));
        let repeats = parent != 0 && before.is_some_and(|end| info.start >= *end);
        if span.known.resends > 0 || repeats {
            self.count(Told::SpanRetried, info.met.service, info.target, info);
        }
        if info.error != NONE && self.young.failed.len() < limits::SHARD_KEYS_MAX {
            self.young.failed.insert(call, info.end);
        }
    }

    /// The generation of a span, and its place there.
    fn find(&mut self, id: u64) -> Option<(&mut Generation, usize)> {
        if let Some(place) = self.young.places.get(&id).copied() {
            return Some((&mut self.young, place as usize));
        }
        let place = self.old.places.get(&id).copied()?;
        Some((&mut self.old, place as usize))
    }

    /// A span that others may name as their parent.
    fn insert(&mut self, id: u64, info: Info, shared: &impl Shared) {
        let Some((generation, place)) = self.find(id) else {
            self.young.add(id, Entry { info: Some(info), answered: false, waiting: END });
            return;
        };
        let Some(entry) = generation.entries.get_mut(place) else { return };
        if entry.info.is_some() {
            return; // told twice
        }
        entry.info = Some(info);
        entry.answered = true;
        let mut next = std::mem::replace(&mut entry.waiting, END);
        let mut children = Vec::new();
        while let Some((child, after)) = generation.waiting.get(next as usize).copied() {
            children.push(child);
            next = after;
        }
        for child in children {
            self.settle(child, Some(info), shared);
        }
    }

    /// A span whose parent tells who called: now if it is known, else when it comes, else when nobody will.
    fn join(&mut self, parent: u64, child: Info, shared: &impl Shared) {
        let Some((generation, place)) = self.find(parent) else {
            let at = u32::try_from(self.young.waiting.len()).unwrap_or(END);
            self.young.waiting.push((child, END));
            self.young.add(parent, Entry { info: None, answered: true, waiting: at });
            return;
        };
        let Some(entry) = generation.entries.get_mut(place) else { return };
        entry.answered = true;
        match entry.info {
            Some(info) => self.settle(child, Some(info), shared),
            None => {
                let at = u32::try_from(generation.waiting.len()).unwrap_or(END);
                let next = std::mem::replace(&mut entry.waiting, at);
                generation.waiting.push((child, next));
            }
        }
    }

    /// What a server's or a consumer's span tells, with the parent that is known of it.
    fn settle(&mut self, child: Info, parent: Option<Info>, shared: &impl Shared) {
        match (child.kind, child.ours) {
            (Kind::Server, true) => {
                if let Some(parent) = parent.filter(|parent| !parent.ours && parent.kind == Kind::Client) {
                    self.count(Told::SpanCaller, parent.met.service, child.met.service, &child);
                }
            }
            (Kind::Server, false) => match parent {
                None => self.request(USER, &child),
                Some(parent) if parent.ours => {
                    self.beside_ours += 1;
                    if parent.kind == Kind::Client {
                        let Met { environment, namespace, .. } = parent.met;
                        shared.alias(environment, namespace, parent.target, child.met.service);
                    }
                }
                // The caller's sidecar counted it, though it is not in the trace.
                Some(parent) if parent.met.covered => self.beside_ours += 1,
                Some(parent) => {
                    let is_nested = parent.met.service == child.met.service && parent.kind != Kind::Client;
                    if !is_nested {
                        let operation =
                            if child.operation == NONE { parent.operation } else { child.operation };
                        self.request(parent.met.service, &Info { operation, ..child });
                    }
                }
            },
            (Kind::Consumer, ours) => {
                let topic = match parent {
                    Some(parent) if child.target == OTHER_NODE && parent.kind == Kind::Producer => {
                        parent.target
                    }
                    _ => child.target,
                };
                if child.subscription != OTHER_NODE && topic != OTHER_NODE {
                    shared.subscribed(child.subscription, topic);
                }
                if ours {
                    return;
                }
                let from = if topic == OTHER_NODE { BROKER } else { topic };
                self.count(Told::SpanDelivered, from, child.met.service, &child);
                let published = parent.filter(|parent| parent.kind == Kind::Producer);
                let age = published.map_or(child.age_nanos, |parent| child.start.saturating_sub(parent.end));
                if age != u64::MAX {
                    self.count(
                        Told::Lag,
                        from,
                        child.met.service,
                        &Info { nanos: age, error: NONE, ..child },
                    );
                }
            }
            _ => {}
        }
    }

    fn request(&mut self, from: NodeId, info: &Info) {
        if info.met.covered {
            self.beside_ours += 1;
        } else {
            self.count(Told::SpanRequest, from, info.met.service, info);
        }
    }

    fn count(&mut self, told: Told, from: NodeId, to: NodeId, info: &Info) {
        let route = match told {
            Told::SpanDelivered | Told::Lag => NONE,
            _ => info.route,
        };
        // An age is a message's own: as many as there are.
        let (one, weight) = if told == Told::Lag { (1, 1) } else { (ONE, info.weight) };
        let key = Key {
            scope: Scope { environment: info.met.environment, about: About::Operation(info.operation) },
            told,
            from,
            to,
            route,
            class: info.class,
            error: info.error,
        };
        self.estimated += u64::from(told != Told::Lag);
        let cell = self.counted.entry((info.minute, key)).or_default();
        cell.count = cell.count.saturating_add(weight);
        let nanos = u128::from(info.nanos) * u128::from(weight) / u128::from(one);
        cell.sum_nanos = cell.sum_nanos.saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX));
        cell.spans += 1;
        cell.histogram.add(code_of_nanos(info.nanos), weight);
    }

    fn rotate(&mut self, now: u64, shared: &impl Shared) {
        let young = std::mem::replace(&mut self.young, Generation::new(self.hash));
        let gone = std::mem::replace(&mut self.old, young);
        self.young_since = now;
        for entry in &gone.entries {
            if let Some(info) = &entry.info {
                let is_open_call = info.kind == Kind::Client && !info.ours && !entry.answered;
                // Its sidecar may have told of itself since.
                if is_open_call && !(info.http && (info.met.covered || shared.covers(&info.met, now))) {
                    self.count(Told::SpanRequest, info.met.service, info.target, info);
                }
            }
            let mut next = entry.waiting;
            while let Some((child, after)) = gone.waiting.get(next as usize).copied() {
                next = after;
                let covered = child.met.covered || shared.covers(&child.met, now);
                let child = Info { met: Met { covered, ..child.met }, ..child };
                self.settle(child, None, shared);
            }
        }
    }

    /// Time goes by without spans, too.
    pub(super) fn tick(&mut self, now: u64, shared: &impl Shared) -> Counted {
        if now.saturating_sub(self.young_since) >= limits::GENERATION_NANOS {
            self.rotate(now, shared);
        }
        std::mem::replace(&mut self.counted, Map::with_hasher(self.hash))
    }

    /// Whether so much was counted that it should be handed over.
    pub(super) fn is_full(&self) -> bool {
        self.counted.len() >= limits::SHARD_KEYS_MAX
    }

    /// Bytes in use, reckoned.
    pub(super) fn bytes(&self) -> u64 {
        let generations = [&self.young, &self.old];
        let place = size_of::<(u64, u32)>() + 1;
        let of =
            |one: &&Generation| one.places.capacity() * place + one.entries.capacity() * size_of::<Entry>();
        let spans: u64 = generations.iter().map(|one| of(one) as u64).sum();
        let waiting: u64 =
            generations.iter().map(|one| (one.waiting.capacity() * size_of::<(Info, u32)>()) as u64).sum();
        let small = self.senders.len() + self.names.len() + self.counted.len() * 5;
        spans + waiting + small as u64 * 60
    }
}

/// What a span stands for, in 256ths: by `ot=th` of its `tracestate`, the rejection threshold of W3C's consistent
/// probability sampling, 2^56 / (2^56 - threshold); else one.
pub(super) fn weight(trace_state: &[u8]) -> u64 {
    const WHOLE: u64 = 1 << 56;
    let threshold = || {
        let member = trace_state
            .split(|byte| *byte == b',')
            .find_map(|member| member.trim_ascii().strip_prefix(b"ot="))?;
        let digits = member.split(|byte| *byte == b';').find_map(|part| part.strip_prefix(b"th:"))?;
        if digits.is_empty() || digits.len() > 14 {
            return None;
        }
        let value = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        Some(value << (4 * (14 - digits.len())))
    };
    match threshold() {
        Some(threshold) if threshold < WHOLE => {
            let weight = u128::from(WHOLE) * u128::from(ONE) / u128::from(WHOLE - threshold);
            u64::try_from(weight).unwrap_or(WEIGHT_MAX).min(WEIGHT_MAX)
        }
        _ => ONE,
    }
}
