//! Every bound of the numbers, with its reason. What is over a bound is `__other__`, coarser or forgotten, as the line
//! says, and counted in [`super::NumbersBooks`].

/// Environments. Further ones are `__other__`.
pub(super) const ENVIRONMENTS_MAX: usize = 50;
/// Operations of an environment. Further ones are `__other__`.
pub(super) const OPERATIONS_MAX: usize = 500;
/// Names of services, and of namespaces. Further services are `__other__`.
pub(super) const SERVICES_MAX: usize = 1_000;
/// Hosts that nobody named. Further ones are `__other__`.
pub(super) const ADDRESSES_MAX: usize = 1_000;
/// Topics, subscriptions and types of events. Further ones are `__other__`.
pub(super) const TOPICS_MAX: usize = 1_000;
/// Route templates of all services. Further ones are `__other__`.
pub(super) const ROUTES_MAX: usize = 20_000;
/// Kinds of failures. Further ones are `__other__`.
pub(super) const ERRORS_MAX: usize = 500;
/// Nodes of all kinds: a service counts once in each namespace.
pub(super) const NODES_MAX: usize = 4_000;
/// Keys before routes and kinds of failures are left out, at some 100 bytes each.
pub(super) const SERIES_MAX: usize = 150_000;
/// Keys after that before operations are left out, and after those before nodes are.
pub(super) const SERIES_SPARE: usize = 25_000;
/// Bytes of a name; longer ones are cut.
pub(super) const NAME_BYTES_MAX: usize = 200;

/// Series of senders whose last word is remembered, at some 120 bytes each. Beyond them the sender that was silent
/// longest is forgotten.
pub(super) const STREAMS_MAX: usize = 500_000;
/// Series of one sender. Further ones are rejected.
pub(super) const STREAMS_OF_SENDER_MAX: usize = 10_000;
/// Senders whose series were forgotten are remembered as such: what they say again was counted.
pub(super) const FORGOTTEN_MAX: usize = 50_000;
/// A silent sender is remembered this long.
pub(super) const SENDER_IDLE_NANOS: u64 = 24 * 3600 * 1_000_000_000;
/// Deltas of one stream that are known to be counted; an older one can't be told from a duplicate and is left out.
pub(super) const DELTAS_REMEMBERED: usize = 64;
/// A sender that began before we listened, but not longer ago than this, is counted from its beginning.
pub(super) const JOIN_NANOS: u64 = 600 * 1_000_000_000;
/// What came over a longer time than this is spread over its minutes.
pub(super) const SPREAD_OVER_NANOS: u64 = 90 * 1_000_000_000;
/// Minutes that one delta is spread over at the most.
pub(super) const SPREAD_MAX: u64 = 360;
/// A sender's clock may be ahead by this much; beyond that ours counts.
pub(super) const AHEAD_NANOS: u64 = 60 * 1_000_000_000;

/// What is said to be older than this counts as if it came when it was told.
pub(super) const OLDEST_NANOS: u64 = MINUTES_KEPT * 60_000_000_000;

/// Whether a moment that somebody names can be one of a minute that is kept.
pub(super) fn is_of_our_time(unix_nanos: u64, now: u64) -> bool {
    unix_nanos <= now.saturating_add(AHEAD_NANOS) && unix_nanos >= now.saturating_sub(OLDEST_NANOS)
}

/// Minutes that stay open for what comes late, before they are packed.
pub(super) const OPEN_MINUTES: u64 = 3;
/// Minutes are kept as such for this long, then as tens.
pub(super) const MINUTES_KEPT: u64 = 48 * 60;
/// Answers' sums that are remembered.
pub(super) const SUMS_REMEMBERED: usize = 256;
/// How long sums that touch an open minute may be answered again.
const SUMS_FRESH_NANOS: u64 = 1_000_000_000;

/// Span ids of all shards in one generation, at some 130 bytes each. A full generation ends early.
pub(super) const SPAN_IDS_MAX: usize = 200_000;
/// A generation of span ids; an id is found for one to two of them.
pub(super) const GENERATION_NANOS: u64 = 10_000_000_000;
/// Keys that a shard adds up before it hands them over.
pub(super) const SHARD_KEYS_MAX: usize = 20_000;
/// Pods of a service that are remembered; the one silent longest goes first.
pub(super) const PODS_MAX: usize = 200;
/// What took long to add up is given again for this many times as long: it takes a twentieth of a core at the most.
const TIMES_ITS_COST: u64 = 20;
/// But not for longer than this: senders push every minute.
const SUMS_OLD_NANOS: u64 = 10_000_000_000;

/// Nanoseconds for which sums may be given again that began to be made then.
pub(super) fn fresh_for(began: std::time::Instant) -> u64 {
    let cost = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    cost.saturating_mul(TIMES_ITS_COST).clamp(SUMS_FRESH_NANOS, SUMS_OLD_NANOS)
}
