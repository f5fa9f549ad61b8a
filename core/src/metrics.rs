//! Exact numbers of every exchange, sampled or not: duration histograms by operation, route, peer and status.
//! Bounded in series and labels; what is over a bound counts as `_other` or in the overflow series, so the
//! sums stay exact. Renders Prometheus text; [`crate::otlp::metrics`] renders OTLP from the same numbers.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::classify::{Direction, ErrorType};
use crate::hash::Seeded;
use crate::intern::Interner;
use crate::limits;
use crate::names::{attribute, metric};

/// Upper bounds of the buckets, in seconds: what the HTTP metric conventions advise.
pub const BOUNDS_SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const BOUNDS_NANOS: [u64; 14] = {
    const MS: u64 = 1_000_000;
    [
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        75 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        750 * MS,
        1000 * MS,
        2500 * MS,
        5000 * MS,
        7500 * MS,
        10_000 * MS,
    ]
};

/// What tells one series from another: small numbers, resolved when the series is shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    direction: u8,
    method: u8,
    status: u16,
    error: u16,
    route: u16,
    operation: u16,
    peer: u16,
    address: u16,
}

/// The labels of one exchange.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Labels<'a> {
    pub(crate) direction: Direction,
    pub(crate) method: Method,
    pub(crate) status: Option<u16>,
    pub(crate) error: Option<ErrorType>,
    /// A number of the route table, whose names [`Requests::each`] is given.
    pub(crate) route: u16,
    pub(crate) operation: &'a str,
    /// `service` and `namespace` of the peer.
    pub(crate) peer: Option<(&'a str, &'a str)>,
    /// Host that an outbound request names; empty for inbound ones.
    pub(crate) address: &'a str,
}

/// A known method, or another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Method(u8);

const METHODS: [&str; 10] =
    ["_OTHER", "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE"];

impl Method {
    pub(crate) fn of(text: &str) -> Self {
        let number = METHODS.iter().position(|known| *known == text).unwrap_or(0);
        Self(u8::try_from(number).unwrap_or(0))
    }

    pub(crate) fn as_str(self) -> &'static str {
        METHODS.get(usize::from(self.0)).copied().unwrap_or("_OTHER")
    }

    pub(crate) fn is_known(self) -> bool {
        self.0 != 0
    }
}

/// Numbers of one series.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Exchanges per bucket, the last one above every bound.
    pub buckets: [u64; BOUNDS_SECONDS.len() + 1],
    /// Sum of durations in nanoseconds.
    pub sum_nanos: u64,
}

impl Histogram {
    fn record(&mut self, nanos: u64) {
        let at = BOUNDS_NANOS.partition_point(|bound| *bound < nanos);
        if let Some(bucket) = self.buckets.get_mut(at) {
            *bucket += 1;
        }
        self.sum_nanos = self.sum_nanos.saturating_add(nanos);
    }

    /// Exchanges in all buckets.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Sum of durations in seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_nanos as f64 / 1e9
    }
}

/// The histograms of all exchanges.
#[derive(Clone, Debug)]
pub(crate) struct Requests {
    series: HashMap<Key, Histogram, Seeded>,
    overflow: [Histogram; 2],
    operations: Interner,
    peers: Interner,
    addresses: Interner,
    errors: Interner,
}

/// One series as it is shown: the metric's name, the labels (key, value), the numbers.
#[derive(Debug)]
pub struct Series<'a> {
    /// Which metric.
    pub direction: Direction,
    /// Attributes, in a fixed order, without empty ones.
    pub labels: Vec<(&'static str, &'a str)>,
    /// `http.response.status_code`, which is an integer in OTLP.
    pub status: Option<u16>,
    /// Whether this is the series of what is over the bound.
    pub overflow: bool,
    /// The numbers.
    pub histogram: &'a Histogram,
}

impl Requests {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            series: HashMap::with_hasher(Seeded(seed)),
            overflow: Default::default(),
            operations: Interner::new(limits::METRIC_OPERATIONS_MAX, seed),
            peers: Interner::new(limits::METRIC_PEERS_MAX, seed),
            addresses: Interner::new(limits::METRIC_ADDRESSES_MAX, seed),
            errors: Interner::new(limits::METRIC_ERRORS_MAX, seed),
        }
    }

    pub(crate) fn record(&mut self, labels: &Labels<'_>, nanos: u64) {
        let key = Key {
            direction: labels.direction as u8,
            method: labels.method.0,
            status: labels.status.unwrap_or(0),
            error: match labels.error {
                None => Interner::NONE,
                Some(ErrorType::Name(name)) => self.errors.number(name),
                // The code is in `status` already: the label is made of it when shown.
                Some(ErrorType::Code(_)) => Interner::OTHER,
            },
            route: labels.route,
            operation: self.operations.number(labels.operation),
            peer: self.peer(labels.peer),
            address: self.addresses.number(labels.address),
        };
        if let Some(histogram) = self.series.get_mut(&key) {
            return histogram.record(nanos);
        }
        if self.series.len() < limits::METRIC_SERIES_MAX {
            return self.series.entry(key).or_default().record(nanos);
        }
        if let Some(histogram) = self.overflow.get_mut(labels.direction as usize) {
            histogram.record(nanos);
        }
    }

    /// Service and namespace as one name, joined by a character that a peer's names cannot have.
    fn peer(&mut self, peer: Option<(&str, &str)>) -> u16 {
        let Some((service, namespace)) = peer else { return Interner::NONE };
        if namespace.is_empty() {
            return self.peers.number(service);
        }
        let mut joined = [0; 2 * limits::PEER_NAME_BYTES_MAX + 1];
        let parts = service.bytes().chain([b';']).chain(namespace.bytes());
        let len = joined.iter_mut().zip(parts).map(|(to, from)| *to = from).count();
        let joined = joined.get(..len).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
        self.peers.number(joined)
    }

    /// Visits every series. `route` names the numbers of the route table.
    pub(crate) fn each<'a>(&'a self, route: impl Fn(u16) -> &'a str, mut visit: impl FnMut(Series<'a>)) {
        for (key, histogram) in &self.series {
            let (service, namespace) =
                self.peers.name(key.peer).split_once(';').unwrap_or((self.peers.name(key.peer), ""));
            let mut labels = vec![
                (
                    attribute::HTTP_REQUEST_METHOD,
                    METHODS.get(usize::from(key.method)).copied().unwrap_or("_OTHER"),
                ),
                (attribute::HTTP_ROUTE, route(key.route)),
                (attribute::OPERATION, self.operations.name(key.operation)),
                (attribute::PEER_SERVICE, service),
                (attribute::PEER_NAMESPACE, namespace),
                (attribute::SERVER_ADDRESS, self.addresses.name(key.address)),
                (
                    attribute::ERROR_TYPE,
                    if key.error == Interner::OTHER { "" } else { self.errors.name(key.error) },
                ),
            ];
            labels.retain(|(_, value)| !value.is_empty());
            if key.error == Interner::OTHER {
                labels.push((attribute::ERROR_TYPE, code_text(key.status)));
            }
            let direction = if key.direction == 0 { Direction::Inbound } else { Direction::Outbound };
            let status = (key.status != 0).then_some(key.status);
            visit(Series { direction, labels, status, overflow: false, histogram });
        }
        for (direction, histogram) in
            [Direction::Inbound, Direction::Outbound].into_iter().zip(&self.overflow)
        {
            if histogram.count() > 0 {
                visit(Series { direction, labels: Vec::new(), status: None, overflow: true, histogram });
            }
        }
    }
}

/// A status code as text that lives as long as the program: `error.type` of an HTTP failure.
pub(crate) fn code_text(code: u16) -> &'static str {
    const DIGITS: [[u8; 3]; 600] = {
        let mut table = [[b'0'; 3]; 600];
        let mut i = 0;
        #[expect(clippy::indexing_slicing, reason = "evaluated at compile time: a bad index does not build")]
        while i < 600 {
            let code = i + 400;
            table[i] = [b'0' + (code / 100) as u8, b'0' + (code / 10 % 10) as u8, b'0' + (code % 10) as u8];
            i += 1;
        }
        table
    };
    static TABLE: [[u8; 3]; 600] = DIGITS;
    let digits = usize::from(code).checked_sub(400).and_then(|at| TABLE.get(at));
    digits.and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or("_other")
}

/// The Prometheus name of an attribute key: dots become underscores.
#[must_use]
pub fn prometheus_name(name: &str) -> String {
    name.replace(['.', '-'], "_")
}

/// A label value as Prometheus' text format escapes it.
#[must_use]
pub fn prometheus_value(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Prometheus text of both histograms.
pub(crate) fn prometheus<'a>(requests: &'a Requests, route: impl Fn(u16) -> &'a str, out: &mut String) {
    let mut texts: [Vec<String>; 2] = Default::default();
    requests.each(route, |series| {
        if let Some(lines) = texts.get_mut(series.direction as usize) {
            lines.push(series_text(&series));
        }
    });
    let [inbound, outbound] = texts;
    for (name, help, mut lines) in [
        (metric::SERVER_DURATION, "Duration of inbound exchanges.", inbound),
        (metric::CLIENT_DURATION, "Duration of outbound exchanges.", outbound),
    ] {
        let name = prometheus_name(name) + "_seconds";
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        lines.sort_unstable();
        lines.iter().for_each(|line| out.push_str(line));
    }
}

fn series_text(series: &Series<'_>) -> String {
    let name = match series.direction {
        Direction::Inbound => metric::SERVER_DURATION,
        Direction::Outbound => metric::CLIENT_DURATION,
    };
    let name = prometheus_name(name) + "_seconds";
    let mut labels = String::new();
    for (key, value) in &series.labels {
        let _ = write!(labels, "{}=\"{}\",", prometheus_name(key), prometheus_value(value));
    }
    if let Some(status) = series.status {
        let _ = write!(labels, "{}=\"{status}\",", prometheus_name(attribute::HTTP_RESPONSE_STATUS_CODE));
    }
    if series.overflow {
        let _ = write!(labels, "{}=\"true\",", prometheus_name(attribute::METRIC_OVERFLOW));
    }
    let mut text = String::new();
    let mut below = 0;
    for (bucket, bound) in series.histogram.buckets.iter().zip(BOUNDS_SECONDS) {
        below += bucket;
        let _ = writeln!(text, "{name}_bucket{{{labels}le=\"{bound}\"}} {below}");
    }
    let count = series.histogram.count();
    let _ = writeln!(text, "{name}_bucket{{{labels}le=\"+Inf\"}} {count}");
    let plain = labels.trim_end_matches(',');
    let _ = writeln!(text, "{name}_sum{{{plain}}} {}", series.histogram.sum_seconds());
    let _ = writeln!(text, "{name}_count{{{plain}}} {count}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(operation: &str) -> Labels<'_> {
        Labels {
            direction: Direction::Inbound,
            method: Method::of("GET"),
            status: Some(503),
            error: Some(ErrorType::Code(503)),
            route: 5,
            operation,
            peer: Some(("web", "shop")),
            address: "",
        }
    }

    fn text(requests: &Requests) -> String {
        let mut out = String::new();
        prometheus(requests, |number| if number == 5 { "/items/{id}" } else { "" }, &mut out);
        out
    }

    #[test]
    fn an_exchange_is_counted_in_its_bucket_and_series() {
        let mut requests = Requests::new(7);
        requests.record(&labels("checkout"), 5_000_000);
        requests.record(&labels("checkout"), 5_000_001);
        requests.record(&labels("checkout"), 11_000_000_000);
        let text = text(&requests);
        let series = "http_request_method=\"GET\",http_route=\"/items/{id}\",app_operation_name=\"checkout\",\
            throughline_peer_service=\"web\",throughline_peer_namespace=\"shop\",error_type=\"503\",\
            http_response_status_code=\"503\"";
        for expected in [
            format!("http_server_request_duration_seconds_bucket{{{series},le=\"0.005\"}} 1\n"),
            format!("http_server_request_duration_seconds_bucket{{{series},le=\"0.01\"}} 2\n"),
            format!("http_server_request_duration_seconds_bucket{{{series},le=\"10\"}} 2\n"),
            format!("http_server_request_duration_seconds_bucket{{{series},le=\"+Inf\"}} 3\n"),
            format!("http_server_request_duration_seconds_sum{{{series}}} 11.010000001\n"),
            format!("http_server_request_duration_seconds_count{{{series}}} 3\n"),
        ] {
            assert!(text.contains(&expected), "{expected} in\n{text}");
        }
    }

    #[test]
    fn a_million_operations_stay_within_the_cap_and_none_is_lost() {
        let mut requests = Requests::new(7);
        let many = 100_000;
        for number in 0..many {
            requests.record(&labels(&format!("op{number}")), 1);
        }
        let (mut series, mut total) = (0, 0);
        requests.each(
            |_| "",
            |one| {
                series += 1;
                total += one.histogram.count();
            },
        );
        assert_eq!((series, total), (limits::METRIC_OPERATIONS_MAX + 1, many));
        assert!(text(&requests).contains("app_operation_name=\"_other\""));
    }

    #[test]
    fn series_over_the_bound_go_to_the_overflow_and_sums_stay_exact() {
        let mut requests = Requests::new(7);
        let many = limits::METRIC_SERIES_MAX as u16 + 50;
        for route in 0..many {
            requests.record(&Labels { route, ..labels("a") }, 1);
        }
        let mut total = 0;
        requests.each(|_| "x", |one| total += one.histogram.count());
        assert_eq!(total, u64::from(many));
        assert!(text(&requests).contains("otel_metric_overflow=\"true\""));
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(prometheus_value("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
