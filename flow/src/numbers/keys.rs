//! What is counted apart: names, nodes and keys as small numbers, each with a cap. What is over a cap is `__other__`
//! and counted as such. Must never grow with what senders invent.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use super::answer::NodeKind;
use super::limits;

/// Makes hashers of one seed, which the host draws, so that nobody can choose keys that collide.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seeded(pub(super) u64);

/// Folds words into the state by a 128-bit multiplication.
#[derive(Clone, Copy, Debug)]
pub(super) struct Folding(u64);

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

impl BuildHasher for Seeded {
    type Hasher = Folding;
    fn build_hasher(&self) -> Folding {
        Folding(self.0 | 1)
    }
}

impl Folding {
    #[inline]
    fn fold(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word) * u128::from(ODD);
        self.0 = (wide as u64) ^ ((wide >> 64) as u64).rotate_left(23);
    }
}

impl Hasher for Folding {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.fold(u64::from_le_bytes(*word));
        }
        let last = match (rest.len() as u32, bytes.last_chunk::<8>()) {
            (0, _) => 0,
            // The rest stands in the upper bytes of the last eight.
            (len, Some(last)) => u64::from_le_bytes(*last) >> (64 - 8 * len),
            (_, None) => rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
        };
        self.fold(last ^ ((rest.len() as u64) << 56));
    }
    #[inline]
    fn write_u8(&mut self, value: u8) {
        self.fold(u64::from(value));
    }
    #[inline]
    fn write_u16(&mut self, value: u16) {
        self.fold(u64::from(value));
    }
    #[inline]
    fn write_u32(&mut self, value: u32) {
        self.fold(u64::from(value));
    }
    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.fold(value);
    }
    #[inline]
    fn write_usize(&mut self, value: usize) {
        self.fold(value as u64);
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0.wrapping_mul(ODD) ^ (self.0 >> 29)
    }
}

impl Seeded {
    pub(super) fn of(self, bytes: &[u8]) -> u64 {
        let mut hasher = self.build_hasher();
        hasher.write(bytes);
        hasher.finish()
    }
}

/// A map with seeded hashes.
pub(super) type Map<K, V> = HashMap<K, V, Seeded>;

/// What a name is for: each use has a cap of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Use {
    Environment,
    /// Of an environment, by its number.
    Operation(u16),
    Service,
    Namespace,
    Address,
    Topic,
    Route,
    Error,
}

impl Use {
    fn cap(self) -> usize {
        match self {
            Self::Environment => limits::ENVIRONMENTS_MAX,
            Self::Operation(_) => limits::OPERATIONS_MAX,
            Self::Service | Self::Namespace => limits::SERVICES_MAX,
            Self::Address => limits::ADDRESSES_MAX,
            Self::Topic => limits::TOPICS_MAX,
            Self::Route => limits::ROUTES_MAX,
            Self::Error => limits::ERRORS_MAX,
        }
    }
}

/// A name as a number.
pub(super) type Name = u32;
/// No name.
pub(super) const NONE: Name = 0;
/// A name over a cap.
pub(super) const OTHER: Name = 1;

/// What stands for what is over a cap.
pub const OTHER_NAME: &str = "__other__";

/// A node as a number.
pub(super) type NodeId = u32;
/// Whoever calls without a name.
pub(super) const USER: NodeId = 0;
/// Whatever is over a cap.
pub(super) const OTHER_NODE: NodeId = 1;
/// Who delivers messages without a name.
pub(super) const BROKER: NodeId = 2;

/// A node: what it is, its namespace and its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Place {
    pub(super) kind: NodeKind,
    pub(super) namespace: Name,
    pub(super) name: Name,
}

/// What a key counts, and by whose word.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(super) enum Told {
    /// Requests, by the server's sidecar.
    Server,
    /// Requests, by the client's sidecar, of a server that did not name itself.
    Client,
    /// Requests, by the client's sidecar, of a server that named itself and counts them too.
    ClientToo,
    /// Messages published.
    Sent,
    /// Messages delivered.
    Delivered,
    /// Ages of delivered messages.
    Lag,
    /// Time in processing delivered messages.
    Processed,
    /// Estimated requests, between services without a sidecar.
    SpanRequest,
    /// Estimated messages published.
    SpanSent,
    /// Estimated messages delivered.
    SpanDelivered,
    /// Retried calls, as a sidecar or an SDK counted them or as spans tell.
    Retried,
    /// Retried calls, estimated.
    SpanRetried,
    /// Propagation: what the route or the label is about.
    Forwarded,
    Dropped,
    Invalid,
    Restored,
    WithoutContext,
    OfOtherTraces,
    OperationsIgnored,
    EventsUntouched,
    /// Requests that a sidecar told of an unnamed client, whom a span of that client names. Moves no sum.
    SpanCaller,
}

impl Told {
    pub(super) const ALL: [Self; 21] = [
        Self::Server,
        Self::Client,
        Self::ClientToo,
        Self::Sent,
        Self::Delivered,
        Self::Lag,
        Self::Processed,
        Self::SpanRequest,
        Self::SpanSent,
        Self::SpanDelivered,
        Self::Retried,
        Self::SpanRetried,
        Self::Forwarded,
        Self::Dropped,
        Self::Invalid,
        Self::Restored,
        Self::WithoutContext,
        Self::OfOtherTraces,
        Self::OperationsIgnored,
        Self::EventsUntouched,
        Self::SpanCaller,
    ];

    /// Whether counts are in 256ths.
    pub(super) fn is_estimate(self) -> bool {
        matches!(
            self,
            Self::SpanRequest | Self::SpanSent | Self::SpanDelivered | Self::SpanRetried | Self::SpanCaller
        )
    }

    pub(super) fn is_propagation(self) -> bool {
        matches!(
            self,
            Self::Forwarded
                | Self::Dropped
                | Self::Invalid
                | Self::Restored
                | Self::WithoutContext
                | Self::OfOtherTraces
                | Self::OperationsIgnored
                | Self::EventsUntouched
        )
    }
}

/// Environment and operation: what a question is about, so cells lie together by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Scope {
    pub(super) environment: u16,
    pub(super) about: About,
}

/// What of an environment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum About {
    /// Every request, without its route.
    Everything,
    /// The context.
    Propagation,
    /// Requests of one operation; [`NONE`] for those without.
    Operation(Name),
}

impl Scope {
    /// As a number that sorts and packs well.
    pub(super) fn packed(self) -> u64 {
        let about = match self.about {
            About::Everything => 0,
            About::Propagation => 1,
            About::Operation(name) => 2 + u64::from(name),
        };
        (u64::from(self.environment) << 40) | about
    }
}

/// What is counted apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    pub(super) scope: Scope,
    pub(super) told: Told,
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    /// The route; of messages the subscription; of propagation what it is about.
    pub(super) route: Name,
    /// Hundreds of the HTTP status; 0 for none.
    pub(super) class: u8,
    /// `error.type`; [`NONE`] for what went well.
    pub(super) error: Name,
}

/// A key as a number.
pub(super) type Series = u32;

/// All names, nodes and keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) names: Vec<Box<str>>,
    uses: Vec<Use>,
    numbers: Map<(Use, Box<str>), Name>,
    taken: Map<Use, usize>,
    /// Environments in the order of their numbers; 0 is the one without a name.
    pub(super) environments: Vec<Name>,
    pub(super) places: Vec<Place>,
    place_numbers: Map<Place, NodeId>,
    pub(super) keys: Vec<Key>,
    series: Map<Key, Series>,
    /// Counted under `__other__`.
    pub(super) over_cap: u64,
    /// How many names, nodes and keys were handed to the store.
    pub(super) saved: [usize; 3],
}

impl Keys {
    pub(super) fn new(seed: u64) -> Self {
        let hash = Seeded(seed);
        let mut keys = Self {
            names: vec!["".into(), OTHER_NAME.into()],
            uses: vec![Use::Environment; 2],
            numbers: Map::with_hasher(hash),
            taken: Map::with_hasher(hash),
            environments: vec![NONE],
            places: Vec::new(),
            place_numbers: Map::with_hasher(hash),
            keys: Vec::new(),
            series: Map::with_hasher(hash),
            over_cap: 0,
            saved: [2, 3, 0],
        };
        for (kind, name) in [(NodeKind::User, NONE), (NodeKind::Other, OTHER), (NodeKind::User, OTHER)] {
            keys.push_place(Place { kind, namespace: NONE, name });
        }
        keys
    }

    pub(super) fn text(&self, name: Name) -> &str {
        self.names.get(name as usize).map_or("", |text| text)
    }

    /// The number of a name; [`OTHER`] when it is over the cap, or is what a sender says of what is over its own.
    pub(super) fn name(&mut self, usage: Use, text: &[u8]) -> Name {
        if text.is_empty() {
            return NONE;
        }
        let text = clean(text);
        if text == throughline_core::names::OTHER || text == OTHER_NAME {
            return OTHER;
        }
        let entry = (usage, Box::from(&*text));
        if let Some(number) = self.numbers.get(&entry) {
            return *number;
        }
        let taken = self.taken.entry(usage).or_insert(0);
        if *taken >= usage.cap() {
            self.over_cap += 1;
            return OTHER;
        }
        *taken += 1;
        let number = self.names.len() as Name;
        self.names.push(entry.1.clone());
        self.uses.push(usage);
        self.numbers.insert(entry, number);
        number
    }

    /// The number of a name that is known.
    pub(super) fn known(&self, usage: Use, text: &str) -> Option<Name> {
        if text.is_empty() {
            return Some(NONE);
        }
        if text == OTHER_NAME {
            return Some(OTHER);
        }
        self.numbers.get(&(usage, Box::from(text))).copied()
    }

    /// How many names of this use there are.
    pub(super) fn taken(&self, usage: Use) -> usize {
        self.taken.get(&usage).copied().unwrap_or(0)
    }

    /// All operations of all environments.
    pub(super) fn operations(&self) -> usize {
        self.taken
            .iter()
            .filter(|(usage, _)| matches!(usage, Use::Operation(_)))
            .map(|(_, taken)| taken)
            .sum()
    }

    pub(super) fn environment(&mut self, text: &[u8]) -> u16 {
        let name = self.name(Use::Environment, text);
        match self.environments.iter().position(|known| *known == name) {
            Some(at) => at as u16,
            None => {
                self.environments.push(name);
                (self.environments.len() - 1) as u16
            }
        }
    }

    pub(super) fn environment_text(&self, environment: u16) -> &str {
        self.environments.get(usize::from(environment)).map_or("", |name| self.text(*name))
    }

    pub(super) fn node(&mut self, kind: NodeKind, namespace: &[u8], name: &[u8]) -> NodeId {
        let usage = match kind {
            NodeKind::Service => Use::Service,
            NodeKind::External | NodeKind::Database => Use::Address,
            NodeKind::Topic | NodeKind::Subscription => Use::Topic,
            NodeKind::User => return USER,
            NodeKind::Other => return OTHER_NODE,
        };
        let name = self.name(usage, name);
        if name == OTHER {
            return OTHER_NODE;
        }
        let namespace = self.name(Use::Namespace, namespace);
        let place = Place { kind, namespace, name };
        if let Some(node) = self.place_numbers.get(&place) {
            return *node;
        }
        if self.places.len() >= limits::NODES_MAX {
            self.over_cap += 1;
            return OTHER_NODE;
        }
        self.push_place(place)
    }

    fn push_place(&mut self, place: Place) -> NodeId {
        let node = self.places.len() as NodeId;
        self.places.push(place);
        self.place_numbers.insert(place, node);
        node
    }

    pub(super) fn place(&self, node: NodeId) -> Place {
        let other = Place { kind: NodeKind::Other, namespace: NONE, name: OTHER };
        self.places.get(node as usize).copied().unwrap_or(other)
    }

    pub(super) fn key(&self, series: Series) -> Option<&Key> {
        self.keys.get(series as usize)
    }

    /// The number of a key. Over the cap its route goes first, then its operation, then its nodes.
    pub(super) fn series(&mut self, key: Key) -> Series {
        if let Some(series) = self.series.get(&key) {
            return *series;
        }
        let used = self.keys.len();
        let key = if used < limits::SERIES_MAX {
            key
        } else {
            self.over_cap += 1;
            let route = if key.route == NONE { NONE } else { OTHER };
            let error = if key.error == NONE { NONE } else { OTHER };
            let about = match key.scope.about {
                About::Operation(NONE) => About::Operation(NONE),
                About::Operation(_) if used >= limits::SERIES_MAX + limits::SERIES_SPARE => {
                    About::Operation(OTHER)
                }
                about => about,
            };
            let scope = Scope { about, ..key.scope };
            let coarse = Key { route, error, scope, ..key };
            if used < limits::SERIES_MAX + 2 * limits::SERIES_SPARE {
                coarse
            } else {
                Key { from: OTHER_NODE, to: OTHER_NODE, class: 0, ..coarse }
            }
        };
        *self.series.entry(key).or_insert_with(|| {
            self.keys.push(key);
            (self.keys.len() - 1) as Series
        })
    }

    /// Names, nodes and keys that the store has not got, as rows.
    pub(super) fn unsaved(&mut self, mut put: impl FnMut(u8, u64, Vec<u8>)) {
        let [names, places, keys] = self.saved;
        for (number, (text, usage)) in self.names.iter().zip(&self.uses).enumerate().skip(names) {
            let (kind, environment) = match usage {
                Use::Environment => (0, 0),
                Use::Operation(environment) => (1, *environment),
                Use::Service => (2, 0),
                Use::Namespace => (3, 0),
                Use::Address => (4, 0),
                Use::Topic => (5, 0),
                Use::Route => (6, 0),
                Use::Error => (7, 0),
            };
            let mut body = vec![kind];
            body.extend_from_slice(&environment.to_le_bytes());
            body.extend_from_slice(text.as_bytes());
            put(super::rows::NAME, number as u64, body);
        }
        for (number, place) in self.places.iter().enumerate().skip(places) {
            let mut body = vec![place.kind as u8];
            body.extend_from_slice(&place.namespace.to_le_bytes());
            body.extend_from_slice(&place.name.to_le_bytes());
            put(super::rows::NODE, number as u64, body);
        }
        for (number, key) in self.keys.iter().enumerate().skip(keys) {
            let mut body = key.scope.packed().to_le_bytes().to_vec();
            body.push(key.told as u8);
            body.push(key.class);
            for word in [key.from, key.to, key.route, key.error] {
                body.extend_from_slice(&word.to_le_bytes());
            }
            put(super::rows::KEY, number as u64, body);
        }
        self.saved = [self.names.len(), self.places.len(), self.keys.len()];
    }

    /// Takes a row back, in the order of numbers within a kind, names first.
    pub(super) fn restore(&mut self, kind: u8, number: u64, body: &[u8]) -> Option<()> {
        match kind {
            super::rows::NAME => {
                let ([usage, low, high], text) = body.split_first_chunk()?;
                let usage = match usage {
                    0 => Use::Environment,
                    1 => Use::Operation(u16::from_le_bytes([*low, *high])),
                    2 => Use::Service,
                    3 => Use::Namespace,
                    4 => Use::Address,
                    5 => Use::Topic,
                    6 => Use::Route,
                    7 => Use::Error,
                    _ => return None,
                };
                if number != self.names.len() as u64 {
                    return None;
                }
                let text: Box<str> = std::str::from_utf8(text).ok()?.into();
                *self.taken.entry(usage).or_insert(0) += 1;
                self.numbers.insert((usage, text.clone()), number as Name);
                if usage == Use::Environment {
                    self.environments.push(number as Name);
                }
                self.names.push(text);
                self.uses.push(usage);
                self.saved = [self.names.len(), self.saved[1], self.saved[2]];
            }
            super::rows::NODE => {
                let (kind, rest) = body.split_first()?;
                let (namespace, rest) = rest.split_first_chunk::<4>()?;
                let (name, _) = rest.split_first_chunk::<4>()?;
                let kinds = [
                    NodeKind::Service,
                    NodeKind::User,
                    NodeKind::External,
                    NodeKind::Topic,
                    NodeKind::Subscription,
                    NodeKind::Database,
                    NodeKind::Other,
                ];
                let kind = *kinds.iter().find(|known| **known as u8 == *kind)?;
                if number != self.places.len() as u64 {
                    return None;
                }
                let (namespace, name) = (u32::from_le_bytes(*namespace), u32::from_le_bytes(*name));
                self.push_place(Place { kind, namespace, name });
                self.saved = [self.saved[0], self.places.len(), self.saved[2]];
            }
            super::rows::KEY => {
                let (scope, rest) = body.split_first_chunk::<8>()?;
                let ([told, class], rest) = rest.split_first_chunk::<2>()?;
                let (words, _) = rest.as_chunks::<4>();
                let [from, to, route, error] = words else { return None };
                let scope = u64::from_le_bytes(*scope);
                let about = match scope & 0xff_ffff_ffff {
                    0 => About::Everything,
                    1 => About::Propagation,
                    name => About::Operation(u32::try_from(name - 2).ok()?),
                };
                let key = Key {
                    scope: Scope { environment: (scope >> 40) as u16, about },
                    told: *Told::ALL.get(usize::from(*told))?,
                    from: u32::from_le_bytes(*from),
                    to: u32::from_le_bytes(*to),
                    route: u32::from_le_bytes(*route),
                    class: *class,
                    error: u32::from_le_bytes(*error),
                };
                if number != self.keys.len() as u64 {
                    return None;
                }
                self.keys.push(key);
                self.series.insert(key, number as Series);
                self.saved = [self.saved[0], self.saved[1], self.keys.len()];
            }
            _ => return None,
        }
        Some(())
    }

    /// Bytes in use, reckoned.
    pub(super) fn bytes(&self) -> u64 {
        let text: usize = self.names.iter().map(|name| name.len()).sum();
        let fixed = self.names.len() * 110 + self.places.len() * 40 + self.keys.len() * 100;
        (2 * text + fixed) as u64
    }
}

/// A name as text of at most [`limits::NAME_BYTES_MAX`] bytes.
fn clean(text: &[u8]) -> std::borrow::Cow<'_, str> {
    let mut cut = text.get(..limits::NAME_BYTES_MAX).unwrap_or(text);
    while cut.len() < text.len() && std::str::from_utf8(cut).is_err_and(|error| error.error_len().is_none()) {
        cut = cut.split_last().map_or(&[], |(_, rest)| rest);
    }
    String::from_utf8_lossy(cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes are stored, as ids of senders: they must stay what they are.
    #[test]
    fn a_text_has_the_hash_of_its_words_and_of_what_is_left() {
        for len in 0..40_u8 {
            let text: Vec<u8> = (0..len).map(|i| i.wrapping_mul(37) ^ 0xa5).collect();
            let (words, rest) = text.as_chunks::<8>();
            let mut left = [0; 8];
            left[..rest.len()].copy_from_slice(rest);
            let mut hasher = Seeded(7).build_hasher();
            words.iter().for_each(|word| hasher.fold(u64::from_le_bytes(*word)));
            hasher.fold(u64::from_le_bytes(left) ^ ((rest.len() as u64) << 56));
            assert_eq!(Seeded(7).of(&text), hasher.finish(), "{len}");
        }
    }
}
