//! Exact numbers of every exchange, sampled or not: duration histograms by operation, route, peer and status.
//! Bounded in series and labels; what is over a bound counts as `_other` or in the overflow series, so the
//! sums stay exact. [`graph`] adds them up by edges and span names, [`page`] writes them for Prometheus, and
//! [`crate::otlp::metrics`] as OTLP.

mod exponential;
mod graph;
mod histogram;
mod messages;
mod page;

pub use histogram::{Aggregation, Bounds, DURATIONS, Histogram, LAGS};
pub(crate) use messages::{Deed, Tally};
pub use page::Numbers;

use std::collections::HashMap;

use crate::classify::{Direction, ErrorType};
use crate::hash::Seeded;
use crate::intern::Interner;
use crate::limits;
use crate::names::{attribute, metric};
use crate::otlp::metrics::Metrics;
use crate::prometheus::{Exemplar, table};
use messages::{Count, FAMILIES, Messages};

/// What tells one series from another: small numbers, resolved when the series is shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    /// Direction, scheme, and what it carried: see the bits below.
    kind: u8,
    method: u8,
    status: u16,
    error: u16,
    route: u16,
    operation: u16,
    peer: u16,
    address: u16,
}

const OUTBOUND: u8 = 1;
const HTTPS: u8 = 2;
const GRPC: u8 = 4;
/// Above the bits: what was done with messages, 0 for none.
const MESSAGES_SHIFT: u8 = 4;

/// Types of what is done with messages, as OpenTelemetry's messaging conventions have them
/// (`messaging.operation.type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MessageKind {
    Send = 1,
    Receive,
    Process,
    Settle,
}

impl Key {
    fn direction(&self) -> Direction {
        if self.kind & OUTBOUND == 0 { Direction::Inbound } else { Direction::Outbound }
    }

    fn messages(&self) -> &'static str {
        const TYPES: [&str; 5] = ["", "send", "receive", "process", "settle"];
        TYPES.get(usize::from(self.kind >> MESSAGES_SHIFT)).copied().unwrap_or_default()
    }
}

/// The labels of one exchange.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Labels<'a> {
    pub(crate) direction: Direction,
    /// Whether the request came by TLS; told of inbound ones.
    pub(crate) https: bool,
    /// What it did with messages, if it carried some.
    pub(crate) messages: Option<MessageKind>,
    pub(crate) grpc: bool,
    pub(crate) method: Method,
    pub(crate) status: Option<u16>,
    pub(crate) error: Option<ErrorType>,
    /// A number of the route table, whose names [`Requests::each`] is given.
    pub(crate) route: u16,
    pub(crate) operation: &'a str,
    /// `service` and `namespace` of the peer.
    pub(crate) peer: Option<(&'a str, &'a str)>,
    /// `host:port` that an outbound request names; empty for inbound ones.
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

/// One series.
#[derive(Clone, Debug)]
struct Row {
    key: Key,
    histogram: Histogram,
    /// The newest exchange of the series that became a span.
    exemplar: Option<Exemplar>,
}

/// Where an exchange was counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted(u32);

/// The histograms of all exchanges.
#[derive(Clone, Debug)]
pub(crate) struct Requests {
    /// In the order in which they appeared: whatever is bounded further on keeps its choice.
    rows: Vec<Row>,
    places: HashMap<Key, u32, Seeded>,
    overflow: [Histogram; 2],
    operations: Interner,
    peers: Interner,
    addresses: Interner,
    errors: Interner,
    messages: Messages,
    aggregation: Aggregation,
}

/// The labels of one series as they are shown: attributes in a fixed order, without empty ones.
#[derive(Default, Debug)]
pub(crate) struct Shown<'a> {
    pub(crate) labels: Vec<(&'static str, &'a str)>,
    /// `http.response.status_code`, which is an integer in OTLP.
    pub(crate) status: Option<u16>,
    /// `server.port`, which is one too.
    pub(crate) port: Option<u16>,
    /// Whether this is the series of what is over the bound.
    pub(crate) overflow: bool,
}

impl Requests {
    pub(crate) fn new(aggregation: Aggregation, seed: u64) -> Self {
        Self {
            rows: Vec::new(),
            places: HashMap::with_hasher(Seeded(seed)),
            overflow: [(); 2].map(|()| Histogram::new(aggregation)),
            operations: Interner::new(limits::METRIC_OPERATIONS_MAX, seed),
            peers: Interner::new(limits::METRIC_PEERS_MAX, seed),
            addresses: Interner::new(limits::METRIC_ADDRESSES_MAX, seed),
            errors: Interner::new(limits::METRIC_ERRORS_MAX, seed),
            messages: Messages::new(seed),
            aggregation,
        }
    }

    pub(crate) fn record(&mut self, labels: &Labels<'_>, nanos: u64) -> Counted {
        let outbound = labels.direction as u8;
        let key = Key {
            kind: outbound
                | if labels.https && labels.direction == Direction::Inbound { HTTPS } else { 0 }
                | if labels.grpc { GRPC } else { 0 }
                | labels.messages.map_or(0, |kind| (kind as u8) << MESSAGES_SHIFT),
            method: labels.method.0,
            status: labels.status.unwrap_or(0),
            error: self.error(labels.error),
            route: labels.route,
            operation: self.operations.number(labels.operation),
            peer: self.peer(labels.peer),
            address: self.addresses.number(labels.address),
        };
        if let Some(place) = self.places.get(&key) {
            if let Some(row) = self.rows.get_mut(*place as usize) {
                row.histogram.record(&DURATIONS, nanos);
            }
            return Counted(*place);
        }
        if self.rows.len() >= limits::METRIC_SERIES_MAX {
            if let Some(histogram) = self.overflow.get_mut(labels.direction as usize) {
                histogram.record(&DURATIONS, nanos);
            }
            return Counted(u32::MAX);
        }
        let place = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        let mut histogram = Histogram::new(self.aggregation);
        histogram.record(&DURATIONS, nanos);
        self.rows.push(Row { key, histogram, exemplar: None });
        self.places.insert(key, place);
        Counted(place)
    }

    /// The exchange became a span, which stands for its series until the next one does.
    pub(crate) fn exemplify(&mut self, counted: Counted, exemplar: Exemplar) {
        if let Some(row) = self.rows.get_mut(counted.0 as usize) {
            row.exemplar = Some(exemplar);
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

    /// A copy of what `/metrics` shows: exponential buckets are most of the bytes, and it has none.
    pub(crate) fn for_page(&self) -> Self {
        Self {
            rows: self.rows.iter().map(|row| Row { histogram: row.histogram.explicit(), ..*row }).collect(),
            overflow: self.overflow.each_ref().map(Histogram::explicit),
            messages: self.messages.for_page(),
            places: HashMap::with_hasher(Seeded(0)),
            operations: self.operations.clone(),
            peers: self.peers.clone(),
            addresses: self.addresses.clone(),
            errors: self.errors.clone(),
            aggregation: self.aggregation,
        }
    }

    /// The number of a label. That of a code is in the status already: the label is made of it when shown.
    fn error(&mut self, error: Option<ErrorType>) -> u16 {
        match error {
            None => Interner::NONE,
            Some(ErrorType::Name(name)) => self.errors.number(name),
            Some(ErrorType::Code(_)) => Interner::OTHER,
        }
    }

    fn error_of(&self, error: u16, status: u16) -> &str {
        if error == Interner::OTHER { code_text(status) } else { self.errors.name(error) }
    }

    /// Visits every series of a direction. `route` names the numbers of the route table.
    pub(crate) fn each<'a>(
        &'a self,
        direction: Direction,
        route: &dyn Fn(u16) -> &'a str,
        mut visit: impl FnMut(&Shown<'a>, &'a Histogram),
    ) {
        for row in self.rows.iter().filter(|row| row.key.direction() == direction) {
            visit(&self.shown(&row.key, route), &row.histogram);
        }
        if let Some(histogram) = self.overflow(direction) {
            visit(&OVERFLOW, histogram);
        }
    }

    /// All series as OTLP has them.
    pub(crate) fn tell<'a>(&'a self, route: &dyn Fn(u16) -> &'a str, metrics: &mut Metrics) {
        for (direction, name, metric) in [
            (Direction::Inbound, metric::SERVER_DURATION, table::SERVER_DURATION),
            (Direction::Outbound, metric::CLIENT_DURATION, table::CLIENT_DURATION),
        ] {
            self.each(direction, route, |shown, histogram| metrics.histogram(shown, &DURATIONS, histogram));
            metrics.end(name, metric.help, "s");
        }
        for family in &FAMILIES {
            self.each_of_messages(family, 0, |shown, count| {
                match count {
                    Count::Sum(count) => metrics.sum(shown, count),
                    Count::Histogram(bounds, histogram) => metrics.histogram(shown, bounds, histogram),
                }
                true
            });
            metrics.end(
                family.name,
                family.metric.help,
                if family.bounds.is_some() { "s" } else { "{message}" },
            );
        }
    }

    fn shown<'a>(&'a self, key: &'a Key, route: &dyn Fn(u16) -> &'a str) -> Shown<'a> {
        let (service, namespace) = self.peer_of(key);
        let (address, port) = self.address_of(key);
        let inbound = key.direction() == Direction::Inbound;
        let mut labels = vec![
            (attribute::HTTP_REQUEST_METHOD, method_of(key)),
            (attribute::HTTP_ROUTE, route(key.route)),
            // HTTP metric conventions: required of servers, left to clients, whose port says as much.
            (attribute::URL_SCHEME, if inbound { scheme_of(key) } else { "" }),
            (attribute::OPERATION, self.operations.name(key.operation)),
            (attribute::PEER_SERVICE, service),
            (attribute::PEER_NAMESPACE, namespace),
            (attribute::SERVER_ADDRESS, address),
            (attribute::ERROR_TYPE, self.error_of(key.error, key.status)),
            (attribute::RPC_SYSTEM_NAME, if key.kind & GRPC == 0 { "" } else { "grpc" }),
            (attribute::MESSAGING_OPERATION_TYPE, key.messages()),
        ];
        labels.retain(|(_, value)| !value.is_empty());
        let status = (key.status != 0).then_some(key.status);
        Shown { labels, status, port, overflow: false }
    }

    /// What is over the bound, if there is something.
    fn overflow(&self, direction: Direction) -> Option<&Histogram> {
        self.overflow.get(direction as usize).filter(|histogram| histogram.count() > 0)
    }

    fn peer_of(&self, key: &Key) -> (&str, &str) {
        let name = self.peers.name(key.peer);
        name.split_once(';').unwrap_or((name, ""))
    }

    /// Host and port that a request named.
    fn address_of(&self, key: &Key) -> (&str, Option<u16>) {
        let name = self.addresses.name(key.address);
        let split = name.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        split.map_or((name, None), |(host, port)| (host, Some(port)))
    }
}

const OVERFLOW: Shown<'static> = Shown { labels: Vec::new(), status: None, port: None, overflow: true };

fn method_of(key: &Key) -> &'static str {
    METHODS.get(usize::from(key.method)).copied().unwrap_or("_OTHER")
}

fn scheme_of(key: &Key) -> &'static str {
    if key.kind & HTTPS == 0 { "http" } else { "https" }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prometheus::{Form, Text};
    use crate::route::Routes;

    fn labels(operation: &str) -> Labels<'_> {
        Labels {
            direction: Direction::Inbound,
            https: false,
            messages: None,
            grpc: false,
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
        let mut routes = Routes::new(10, 7);
        for name in ["/a", "/b", "/c", "/items/{id}"] {
            routes.admit(name.as_bytes(), true);
        }
        let mut numbers = Numbers::new(requests.clone(), routes, "orders", false);
        let mut text = Text::new(Form::Text);
        while numbers.write(&mut text, usize::MAX) {}
        text.take()
    }

    #[test]
    fn an_exchange_is_counted_in_its_bucket_and_series() {
        let mut requests = Requests::new(Aggregation::Explicit, 7);
        requests.record(&labels("checkout"), 5_000_000);
        requests.record(&labels("checkout"), 5_000_001);
        requests.record(&labels("checkout"), 11_000_000_000);
        let text = text(&requests);
        let series = "http_request_method=\"GET\",http_route=\"/items/{id}\",url_scheme=\"http\",app_operation_name=\"checkout\",\
            throughline_peer_service=\"web\",throughline_peer_namespace=\"shop\",error_type=\"503\",\
            http_response_status_code=\"503\"";
        for expected in [
            format!("http_server_request_duration_seconds_bucket{{{series},le=\"0.005\"}} 1\n"),
            format!("http_server_request_duration_seconds_bucket{{{series},le=\"0.01\"}} 2\n"),
            format!("http_server_request_duration_seconds_bucket{{{series},le=\"10.0\"}} 2\n"),
            format!("http_server_request_duration_seconds_bucket{{{series},le=\"+Inf\"}} 3\n"),
            format!("http_server_request_duration_seconds_sum{{{series}}} 11.010000001\n"),
            format!("http_server_request_duration_seconds_count{{{series}}} 3\n"),
        ] {
            assert!(text.contains(&expected), "{expected} in\n{text}");
        }
    }

    #[test]
    fn a_million_operations_stay_within_the_cap_and_none_is_lost() {
        let mut requests = Requests::new(Aggregation::Explicit, 7);
        let many = 1_000_000;
        for number in 0..many {
            requests.record(&labels(&format!("op{number}")), 1);
        }
        let (mut series, mut total) = (0, 0);
        requests.each(Direction::Inbound, &|_| "", |_, histogram| {
            series += 1;
            total += histogram.count();
        });
        assert_eq!((series, total), (limits::METRIC_OPERATIONS_MAX + 1, many));
        assert!(text(&requests).contains("app_operation_name=\"_other\""));
    }

    #[test]
    fn series_over_the_bound_go_to_the_overflow_and_sums_stay_exact() {
        let mut requests = Requests::new(Aggregation::Explicit, 7);
        let many = limits::METRIC_SERIES_MAX as u16 + 50;
        for route in 0..many {
            requests.record(&Labels { route, ..labels("a") }, 1);
        }
        let mut total = 0;
        requests.each(Direction::Inbound, &|_| "x", |_, histogram| total += histogram.count());
        assert_eq!(total, u64::from(many));
        assert!(text(&requests).contains("otel_metric_overflow=\"true\""));
    }
}
