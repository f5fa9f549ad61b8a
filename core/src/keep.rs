//! What is worth keeping although the head said no, judged when an exchange ends. Knows nothing of traces.

use crate::latency::Latencies;
use crate::limits::LEARNED_ROUTES_MAX;

/// The rules by which an unsampled exchange is kept.
#[derive(Clone, PartialEq, Debug)]
pub struct Keep {
    /// Statuses from 500, gRPC failures, whatever has an `error.type`.
    pub errors: bool,
    /// What takes too long.
    pub slow: Slow,
    /// The same for single routes, as templates: nanoseconds.
    pub slow_routes: Vec<(Box<str>, u64)>,
    /// Operations.
    pub operations: Vec<Box<str>>,
    /// Routes, as templates.
    pub routes: Vec<Box<str>>,
    /// Request headers, in lower case, with the value that counts; none for any value.
    pub headers: Vec<(Box<str>, Option<Box<str>>)>,
}

/// What takes too long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slow {
    /// Nothing does.
    Never,
    /// More than so many nanoseconds.
    Over(u64),
    /// More than 99 in 100 of the same route did of late.
    P99,
}

impl Default for Keep {
    fn default() -> Self {
        let (slow_routes, operations, routes, headers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { errors: true, slow: Slow::P99, slow_routes, operations, routes, headers }
    }
}

/// Why an exchange was kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeepReason {
    /// It failed.
    Error,
    /// It took too long.
    Slow,
    /// Its operation is one of the chosen ones.
    Operation,
    /// Its route is one of the chosen ones.
    Route,
    /// It carried a chosen header.
    Header,
    /// An exchange that it waited for was kept.
    Downstream,
}

impl KeepReason {
    /// Every reason, in the order of its counter.
    pub const ALL: [Self; 6] =
        [Self::Error, Self::Slow, Self::Operation, Self::Route, Self::Header, Self::Downstream];

    /// The value of `throughline.keep.reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Slow => "slow",
            Self::Operation => "operation",
            Self::Route => "route",
            Self::Header => "header",
            Self::Downstream => "downstream",
        }
    }
}

impl Keep {
    /// What the head of a request says by itself.
    pub(crate) fn by_head<'a>(
        &self,
        operation: Option<&str>,
        route: &[u8],
        header: impl Fn(&str) -> Option<&'a [u8]>,
    ) -> Option<KeepReason> {
        let named = |names: &[Box<str>], name: &[u8]| names.iter().any(|known| known.as_bytes() == name);
        if operation.is_some_and(|operation| named(&self.operations, operation.as_bytes())) {
            return Some(KeepReason::Operation);
        }
        if named(&self.routes, route) {
            return Some(KeepReason::Route);
        }
        let carries = |(name, wanted): &(Box<str>, Option<Box<str>>)| {
            header(name).is_some_and(|value| {
                wanted.as_ref().is_none_or(|wanted| wanted.as_bytes() == value.trim_ascii())
            })
        };
        self.headers.iter().any(carries).then_some(KeepReason::Header)
    }

    /// Nanoseconds above which an exchange of the route is slow, where the settings say it themselves.
    pub(crate) fn slow_over(&self, route: &[u8]) -> Option<u64> {
        let of_route = self.slow_routes.iter().find(|(known, _)| known.as_bytes() == route);
        match (of_route, self.slow) {
            (Some((_, nanos)), _) => Some(*nanos),
            (None, Slow::Over(nanos)) => Some(nanos),
            (None, Slow::Never | Slow::P99) => None,
        }
    }
}

/// The slowest hundredth of each route, learned from all exchanges.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    routes: Vec<Option<Box<Route>>>,
    known: usize,
}

#[derive(Debug, Default)]
struct Route {
    latencies: Latencies,
    slow_over: Option<u64>,
}

impl Learned {
    /// Exchanges of a route before its slowest hundredth means anything.
    const ENOUGH: u32 = 200;
    /// Exchanges after which the old ones count half.
    const MANY: u32 = 4096;
    /// The slowest hundredth is looked for again after so many.
    const EVERY: u32 = 8;

    /// Nanoseconds above which an exchange of the route is slow; none while too few were seen.
    pub(crate) fn slow_over(&self, route: u16) -> Option<u64> {
        self.routes.get(usize::from(route))?.as_ref()?.slow_over
    }

    /// Learns from an exchange.
    pub(crate) fn record(&mut self, route: u16, nanos: u64) {
        let at = usize::from(route);
        if self.routes.len() <= at {
            self.routes.resize_with(at + 1, || None);
        }
        let Some(slot) = self.routes.get_mut(at) else { return };
        if slot.is_none() {
            if self.known >= LEARNED_ROUTES_MAX {
                return;
            }
            self.known += 1;
        }
        let Route { latencies, slow_over } = &mut **slot.get_or_insert_default();
        latencies.record(nanos);
        if latencies.count() >= Self::ENOUGH && latencies.count().is_multiple_of(Self::EVERY) {
            *slow_over = Some(latencies.p99_nanos());
        }
        if latencies.count() >= Self::MANY {
            latencies.halve();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_head_is_kept_by_operation_route_or_header() {
        let keep = Keep {
            operations: vec!["checkout".into()],
            routes: vec!["/pay/{id}".into()],
            headers: vec![("x-debug".into(), None), ("x-tenant".into(), Some("blue".into()))],
            ..Keep::default()
        };
        for (operation, route, header, expected) in [
            (None, "/", None, None),
            (Some("checkout"), "/", None, Some(KeepReason::Operation)),
            (Some("check"), "/pay/{id}", None, Some(KeepReason::Route)),
            (None, "/", Some(("x-debug", "")), Some(KeepReason::Header)),
            (None, "/", Some(("x-tenant", " blue ")), Some(KeepReason::Header)),
            (None, "/", Some(("x-tenant", "red")), None),
        ] {
            let found =
                |name: &str| header.filter(|(known, _)| *known == name).map(|(_, v): (_, &str)| v.as_bytes());
            assert_eq!(
                keep.by_head(operation, route.as_bytes(), found),
                expected,
                "{operation:?} {header:?}"
            );
        }
    }

    #[test]
    fn a_route_has_its_own_threshold_before_the_common_one() {
        let slow_routes = vec![("/slow".into(), 500 * MS)];
        let keep = Keep { slow: Slow::Over(100 * MS), slow_routes, ..Keep::default() };
        assert_eq!((keep.slow_over(b"/slow"), keep.slow_over(b"/")), (Some(500 * MS), Some(100 * MS)));
        assert_eq!(Keep::default().slow_over(b"/"), None, "it has to be learned");
    }

    #[test]
    fn a_routes_own_slowness_is_learned_and_forgotten_within_a_bound() {
        let mut learned = Learned::default();
        (0..199).for_each(|_| learned.record(5, 10 * MS));
        assert_eq!((learned.slow_over(5), learned.slow_over(4)), (None, None), "too few");
        learned.record(5, 10 * MS);
        let before = learned.slow_over(5).unwrap();
        assert!(before > 10 * MS && before < 13 * MS, "{before}");
        (0..50_000).for_each(|_| learned.record(5, 80 * MS));
        assert!(learned.slow_over(5).unwrap() > 80 * MS, "a route that became slower is not slow for ever");
        (0..60_000).for_each(|route| learned.record(route, MS));
        assert_eq!(learned.known, LEARNED_ROUTES_MAX);
    }
}
