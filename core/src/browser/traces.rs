//! The traces that pages began, each with the address that it belongs to, and how much an address may ask for.
//! Bounded in rows: beyond the bound the oldest trace is forgotten. Never decides what is sampled.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use super::Config;
use crate::bucket::Bucket;
use crate::exchange::Now;
use crate::hash::Seeded;
use crate::ids::{SpanId, TraceId};
use crate::limits::{
    BROWSER_ADDRESSES_MAX, BROWSER_BURST_SECONDS, BROWSER_TRACE_SECONDS, BROWSER_TRACES_MAX,
};
use crate::operation::Operation;

const NANOS: u64 = 1_000_000_000;

/// Why the spans of a page go to the collector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chosen {
    /// An exchange of the trace was sampled, for this reason.
    Sampled(&'static str),
    /// One was kept.
    Kept,
}

/// What came of a page's wish to go on with a trace.
pub(super) enum Claim {
    /// It is the page's.
    Holds { drawn: TraceId, chosen: bool },
    /// It is another address's.
    Foreign,
    /// So many began.
    Rate,
}

/// One trace of a page.
#[derive(Debug)]
pub(super) struct Row {
    address: IpAddr,
    /// When its first request came.
    pub(super) since: Now,
    drawn: TraceId,
    /// The parent of its first request: whoever tells of the trace knows it.
    pub(super) first_parent: SpanId,
    pub(super) operation: Option<Operation>,
    pub(super) chosen: Option<Chosen>,
    /// Whether the page has told of the operation.
    pub(super) told: bool,
}

/// What one address may still ask for.
#[derive(Debug)]
struct Allowance {
    begun: Bucket,
    sent: Bucket,
    seen_mono_nanos: u64,
}

impl Allowance {
    fn new(per_second: u64) -> Self {
        let bucket = || Bucket::new(per_second, per_second.saturating_mul(BROWSER_BURST_SECONDS));
        Self { begun: bucket(), sent: bucket(), seen_mono_nanos: 0 }
    }
}

/// What an address or all of them ask for.
#[derive(Clone, Copy)]
enum What {
    Begin,
    Send,
}

#[derive(Debug)]
pub(super) struct Traces {
    rows: HashMap<TraceId, Row, Seeded>,
    /// The oldest first.
    order: VecDeque<TraceId>,
    addresses: HashMap<IpAddr, Allowance, Seeded>,
    all: Allowance,
    /// Addresses beyond the bound share one.
    others: Allowance,
    address_per_second: u64,
    swept_mono_nanos: u64,
}

impl Traces {
    pub(super) fn new(config: &Config, seed: u64) -> Self {
        Self {
            rows: HashMap::with_hasher(Seeded(seed)),
            order: VecDeque::new(),
            addresses: HashMap::with_hasher(Seeded(seed)),
            all: Allowance::new(config.per_second),
            others: Allowance::new(config.address_per_second),
            address_per_second: config.address_per_second,
            swept_mono_nanos: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn claim(
        &mut self,
        trace_id: TraceId,
        parent: SpanId,
        address: IpAddr,
        now: Now,
        draw: impl FnOnce() -> TraceId,
    ) -> Claim {
        self.forget(now);
        let address = network(address);
        if let Some(row) = self.rows.get(&trace_id) {
            if row.address != address {
                return Claim::Foreign;
            }
            return Claim::Holds { drawn: row.drawn, chosen: row.chosen.is_some() };
        }
        if !self.allows(address, What::Begin, now) {
            return Claim::Rate;
        }
        if self.rows.len() >= BROWSER_TRACES_MAX {
            self.forget_oldest();
        }
        let drawn = draw();
        let row = Row {
            address,
            since: now,
            drawn,
            first_parent: parent,
            operation: None,
            chosen: None,
            told: false,
        };
        self.rows.insert(trace_id, row);
        self.order.push_back(trace_id);
        Claim::Holds { drawn, chosen: false }
    }

    /// What an exchange of the trace found out; the first operation and the first reason stay.
    pub(super) fn note(&mut self, trace_id: TraceId, operation: Option<Operation>, chosen: Option<Chosen>) {
        if let Some(row) = self.rows.get_mut(&trace_id) {
            row.operation = row.operation.or(operation);
            row.chosen = row.chosen.or(chosen);
        }
    }

    pub(super) fn may_send(&mut self, address: IpAddr, now: Now) -> bool {
        self.allows(network(address), What::Send, now)
    }

    /// The row of a trace, and whether it is this address's.
    pub(super) fn row(&mut self, trace_id: TraceId, address: IpAddr, now: Now) -> Option<(&mut Row, bool)> {
        self.forget(now);
        let row = self.rows.get_mut(&trace_id)?;
        let own = row.address == network(address);
        Some((row, own))
    }

    fn allows(&mut self, address: IpAddr, what: What, now: Now) -> bool {
        if self.addresses.len() >= BROWSER_ADDRESSES_MAX && !self.addresses.contains_key(&address) {
            self.sweep(now);
        }
        let known = self.addresses.len() < BROWSER_ADDRESSES_MAX || self.addresses.contains_key(&address);
        let per_second = self.address_per_second;
        let own = match known {
            true => self.addresses.entry(address).or_insert_with(|| Allowance::new(per_second)),
            false => &mut self.others,
        };
        own.seen_mono_nanos = now.mono_nanos;
        match what {
            What::Begin => own.begun.take(1, now) && self.all.begun.take(1, now),
            What::Send => own.sent.take(1, now) && self.all.sent.take(1, now),
        }
    }

    /// Forgets addresses whose buckets are full again: a new one would be no different. Once a second, so that a
    /// flood of addresses does not cost a look at all of them each.
    fn sweep(&mut self, now: Now) {
        if now.mono_nanos.saturating_sub(self.swept_mono_nanos) < NANOS {
            return;
        }
        self.swept_mono_nanos = now.mono_nanos;
        let full_after = BROWSER_BURST_SECONDS * NANOS;
        self.addresses.retain(|_, own| now.mono_nanos.saturating_sub(own.seen_mono_nanos) < full_after);
    }

    fn forget(&mut self, now: Now) {
        while let Some(oldest) = self.order.front() {
            let row = self.rows.get(oldest);
            if row.is_some_and(|row| now.nanos_since(row.since) < BROWSER_TRACE_SECONDS * NANOS) {
                return;
            }
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.order.pop_front() {
            self.rows.remove(&oldest);
        }
    }
}

/// Who shares a bucket: an address of IPv4; the /64 of one of IPv6, which is one customer's.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(address_per_second: u64, per_second: u64) -> Traces {
        Traces::new(&Config { address_per_second, per_second, attribute_bytes_max: None }, 7)
    }

    fn at(millis: u64) -> Now {
        Now { unix_nanos: 0, mono_nanos: millis * 1_000_000 }
    }

    fn trace(number: u32) -> TraceId {
        let mut bytes = [1; 16];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        TraceId::from_bytes(bytes).unwrap()
    }

    fn claims(traces: &mut Traces, number: u32, address: IpAddr, now: Now) -> bool {
        let parent = SpanId::from_bytes([1; 8]).unwrap();
        matches!(traces.claim(trace(number), parent, address, now, || trace(0)), Claim::Holds { .. })
    }

    #[test]
    fn rows_and_addresses_are_bounded_whatever_comes() {
        let mut traces = traces(1_000_000, 1_000_000);
        for number in 0..200_000u32 {
            let address = IpAddr::from(number.to_be_bytes());
            claims(&mut traces, number, address, at(u64::from(number) / 100));
            assert!(traces.may_send(address, at(u64::from(number) / 100)));
        }
        assert!(traces.rows.len() <= BROWSER_TRACES_MAX && traces.order.len() == traces.rows.len());
        assert!(traces.addresses.len() <= BROWSER_ADDRESSES_MAX);
        let later = at(BROWSER_TRACE_SECONDS * 1000 + 10_000);
        assert!(traces.row(trace(199_999), IpAddr::from([0, 0, 0, 1]), later).is_none());
        assert_eq!((traces.rows.len(), traces.order.len()), (0, 0));
    }

    #[test]
    fn an_address_has_its_own_share_and_all_have_one_together() {
        let mut traces = traces(10, 30);
        let mut begun = |address: [u8; 4], first: u32| {
            (first..first + 1000).filter(|n| claims(&mut traces, *n, address.into(), at(0))).count() as u64
        };
        let burst = 10 * BROWSER_BURST_SECONDS;
        assert_eq!(begun([10, 0, 0, 1], 1), burst);
        assert_eq!(begun([10, 0, 0, 2], 2000), burst);
        assert_eq!(begun([10, 0, 0, 3], 4000), burst);
        assert_eq!(begun([10, 0, 0, 4], 6000), 0, "the share of all is used up");
    }

    #[test]
    fn a_trace_is_the_address_that_began_it_and_ipv6_counts_by_network() {
        let mut traces = traces(10, 10);
        let [own, same, other] =
            ["2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1"].map(|text| text.parse().unwrap());
        assert!(claims(&mut traces, 1, own, at(0)));
        assert!(claims(&mut traces, 1, same, at(0)));
        assert!(!claims(&mut traces, 1, other, at(0)));
        assert!(matches!(traces.row(trace(1), other, at(0)), Some((_, false))));
    }
}
