//! What `core` asks of a host: headers behind its four verbs, moments, random ids. Decides nothing.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use throughline_core::carrier::Carrier;
use throughline_core::exchange::Now;
use throughline_core::ids::{self, Ids, SpanId, TraceId};
use throughline_core::names::header;
use throughline_core::propagation::{baggage, traceparent, tracestate};

/// A header map as `core` sees it.
#[derive(Debug)]
pub(crate) struct Headers<'a>(pub(crate) &'a mut HeaderMap);

macro_rules! parsed {
    ($($name:expr),* $(,)?) => {
        /// The names that every request is asked for, parsed once: parsing one costs more than finding it.
        // Within its callers the name is mostly a constant, and nothing is left of the comparisons.
        #[inline(always)]
        fn parsed(name: &str) -> Option<&'static HeaderName> {
            $({
                static NAME: HeaderName = HeaderName::from_static($name);
                // The names of `core` are constants: mostly the same text at the same place.
                if name == $name {
                    return Some(&NAME);
                }
            })*
            None
        }
    };
}

parsed![
    "content-type",
    "ce-specversion",
    "x-goog-pubsub-subscription-name",
    traceparent::HEADER,
    tracestate::HEADER,
    baggage::HEADER,
    header::OPERATION,
    header::PEER,
    header::KEEP,
    header::GRPC_STATUS,
];

impl Carrier for Headers<'_> {
    #[inline]
    fn get(&self, name: &str) -> Option<&[u8]> {
        let value = match parsed(name) {
            Some(name) => self.0.get(name),
            None => self.0.get(name),
        };
        value.map(HeaderValue::as_bytes)
    }

    #[inline]
    fn set(&mut self, name: &'static str, value: &[u8]) {
        // `core` hands out only values that a header may hold; one that is not is left out, as a broken
        // header would spoil the user's request.
        if let Ok(value) = HeaderValue::from_bytes(value) {
            let name = parsed(name).cloned().unwrap_or_else(|| HeaderName::from_static(name));
            self.0.insert(name, value);
        }
    }

    #[inline]
    fn remove(&mut self, name: &'static str) {
        match parsed(name) {
            Some(name) => self.0.remove(name),
            None => self.0.remove(name),
        };
    }

    fn for_each<'a>(&'a self, visit: &mut dyn FnMut(&'a str, &'a [u8])) {
        for (name, value) in self.0.iter() {
            visit(name.as_str(), value.as_bytes());
        }
    }
}

fn mono_nanos() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// This moment, which is so long after another one: asks one clock where [`now`] asks two.
pub(crate) fn later_than(earlier: Now) -> Now {
    let mono_nanos = mono_nanos();
    let passed = mono_nanos.saturating_sub(earlier.mono_nanos);
    Now { unix_nanos: earlier.unix_nanos.saturating_add(passed), mono_nanos }
}

/// This moment.
pub(crate) fn now() -> Now {
    let mono_nanos = mono_nanos();
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { unix_nanos: unix.as_nanos() as u64, mono_nanos }
}

/// A random number from the operating system, by way of the standard library's own hash keys.
pub(crate) fn seed() -> u64 {
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Random ids of this thread, seeded once from the operating system.
#[derive(Debug)]
pub(crate) struct RandomIds;

thread_local! {
    static IDS: RefCell<ids::RandomIds> =
        RefCell::new(ids::RandomIds::seeded([seed(), seed(), seed(), seed()]));
}

impl Ids for RandomIds {
    fn trace_id(&mut self) -> TraceId {
        IDS.with_borrow_mut(Ids::trace_id)
    }

    fn span_id(&mut self) -> SpanId {
        IDS.with_borrow_mut(Ids::span_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_between_calls_and_threads() {
        let one = std::thread::spawn(|| (0..1000).map(|_| RandomIds.trace_id()).collect::<Vec<_>>());
        let mut all: Vec<_> = (0..1000).map(|_| RandomIds.trace_id()).collect();
        all.extend(one.join().unwrap());
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 2000);
    }

    #[test]
    fn a_name_that_was_parsed_before_finds_what_any_other_does() {
        let mut map = HeaderMap::new();
        for (name, text) in [("traceparent", "a"), ("content-type", "b"), ("x-other", "c")] {
            Headers(&mut map).set(name, text.as_bytes());
            assert_eq!(Headers(&mut map).get(name), Some(text.as_bytes()));
            assert_eq!(map.get(name).unwrap(), text);
            Headers(&mut map).remove(name);
            assert!(!map.contains_key(name), "{name}");
        }
    }

    #[test]
    fn a_value_that_no_header_may_hold_is_left_out() {
        let mut map = HeaderMap::new();
        Headers(&mut map).set("x-operation-name", b"a\nb");
        assert!(map.is_empty());
    }
}
