//! What became of messages: how many were sent, received and processed, how long their processing took, and how old
//! they were when they were delivered. Bounded in series; what is over the bound counts in the overflow series, so
//! the sums stay exact.

use super::histogram::{Aggregation, Bounds, DURATIONS, Histogram, LAGS};
use super::{OVERFLOW, Requests, Shown};
use crate::classify::ErrorType;
use crate::intern::Interner;
use crate::limits;
use crate::names::{attribute, metric};
use crate::prometheus::table;

/// What was done with a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Deed {
    /// Published by the application.
    Sent,
    /// Pulled by the application.
    Received,
    /// Pushed to the application.
    Processed,
}

/// Messages of one exchange that are alike, counted when it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tally {
    kind: Kind,
    pub(crate) count: u64,
}

/// All that is known of a message before its exchange ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Kind {
    deed: Deed,
    /// Whether Pub/Sub carried it; else it was an event by HTTP.
    pubsub: bool,
    /// Topic, subscription, or type of event.
    destination: u16,
    operation: u16,
}

impl Tally {
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

/// Which of the metrics, in the order in which they are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Of {
    Sent,
    Consumed,
    Durations,
    Lags,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    of: Of,
    kind: Kind,
    error: u16,
    status: u16,
    overflow: bool,
}

/// One series.
#[derive(Clone, Debug)]
struct Row {
    key: Key,
    count: u64,
    histogram: Option<Box<Histogram>>,
}

/// The series of all messages.
#[derive(Clone, Debug)]
pub(crate) struct Messages {
    rows: Vec<Row>,
    destinations: Interner,
}

/// One metric of messages.
pub(crate) struct Family {
    of: Of,
    pub(crate) metric: table::Metric,
    pub(crate) name: &'static str,
    /// Where it is a histogram.
    pub(crate) bounds: Option<&'static Bounds>,
}

pub(crate) const FAMILIES: [Family; 4] = [
    Family { of: Of::Sent, metric: table::MESSAGES_SENT, name: metric::MESSAGES_SENT, bounds: None },
    Family {
        of: Of::Consumed,
        metric: table::MESSAGES_CONSUMED,
        name: metric::MESSAGES_CONSUMED,
        bounds: None,
    },
    Family {
        of: Of::Durations,
        metric: table::PROCESS_DURATION,
        name: metric::PROCESS_DURATION,
        bounds: Some(&DURATIONS),
    },
    Family { of: Of::Lags, metric: table::MESSAGE_LAG, name: metric::MESSAGE_LAG, bounds: Some(&LAGS) },
];

/// The numbers of one series.
pub(crate) enum Count<'a> {
    Sum(u64),
    Histogram(&'a Bounds, &'a Histogram),
}

impl Messages {
    pub(super) fn new(seed: u64) -> Self {
        Self { rows: Vec::new(), destinations: Interner::new(limits::METRIC_DESTINATIONS_MAX, seed) }
    }

    /// A copy without exponential buckets.
    pub(super) fn for_page(&self) -> Self {
        let explicit = |row: &Row| {
            let histogram = row.histogram.as_ref().map(|histogram| Box::new(histogram.explicit()));
            Row { histogram, ..*row }
        };
        Self { rows: self.rows.iter().map(explicit).collect(), destinations: self.destinations.clone() }
    }

    /// The row of a key, or that of what is over the bound. There are few, so they are looked through.
    fn row(&mut self, key: Key) -> Option<&mut Row> {
        let place = |rows: &[Row], key: Key| rows.iter().position(|row| row.key == key);
        let (key, found) = match place(&self.rows, key) {
            None if self.rows.len() >= limits::METRIC_MESSAGE_SERIES_MAX => {
                let none = Interner::NONE;
                let kind = Kind { pubsub: false, destination: none, operation: none, ..key.kind };
                let deed = if key.of == Of::Sent { Deed::Sent } else { Deed::Received };
                let key = Key { kind: Kind { deed, ..kind }, error: none, status: 0, overflow: true, ..key };
                (key, place(&self.rows, key))
            }
            found => (key, found),
        };
        let at = found.unwrap_or_else(|| {
            self.rows.push(Row { key, count: 0, histogram: None });
            self.rows.len() - 1
        });
        self.rows.get_mut(at)
    }

    fn record(&mut self, key: Key, aggregation: Aggregation, bounds: &Bounds, nanos: u64) {
        if let Some(row) = self.row(key) {
            let histogram = row.histogram.get_or_insert_with(|| Box::new(Histogram::new(aggregation)));
            histogram.record(bounds, nanos);
        }
    }
}

impl Requests {
    /// A message on its way; how long after its publish it was delivered is counted at once.
    pub(crate) fn message(
        &mut self,
        deed: Deed,
        pubsub: bool,
        destination: &str,
        operation: &str,
        lag_nanos: Option<u64>,
    ) -> Tally {
        let destination = self.messages.destinations.number(destination);
        let kind = Kind { deed, pubsub, destination, operation: self.operations.number(operation) };
        if let Some(nanos) = lag_nanos.filter(|_| deed != Deed::Sent) {
            let key = Key { of: Of::Lags, kind, error: Interner::NONE, status: 0, overflow: false };
            self.messages.record(key, self.aggregation, &LAGS, nanos);
        }
        Tally { kind, count: 1 }
    }

    /// The exchange of these messages is over, or has handed them on.
    pub(crate) fn messages(&mut self, tallies: &[Tally], error: Option<ErrorType>, nanos: u64) {
        let status = match error {
            Some(ErrorType::Code(code)) => code,
            Some(ErrorType::Name(_)) | None => 0,
        };
        let error = self.error(error);
        for Tally { kind, count } in tallies {
            let of = if kind.deed == Deed::Sent { Of::Sent } else { Of::Consumed };
            if let Some(row) = self.messages.row(Key { of, kind: *kind, error, status, overflow: false }) {
                row.count += count;
            }
        }
        // Delivered together, they are processed once.
        if let Some(Tally { kind, .. }) = tallies.first().filter(|first| first.kind.deed == Deed::Processed) {
            let key = Key { of: Of::Durations, kind: *kind, error, status, overflow: false };
            self.messages.record(key, self.aggregation, &DURATIONS, nanos);
        }
    }

    /// Visits the series of a metric, from a row on, until `visit` says no: which row that was.
    pub(crate) fn each_of_messages<'a>(
        &'a self,
        family: &Family,
        from: usize,
        mut visit: impl FnMut(&Shown<'a>, Count<'a>) -> bool,
    ) -> Option<usize> {
        for (place, row) in self.messages.rows.iter().enumerate().skip(from) {
            let Row { key, count, histogram } = row;
            if key.of != family.of {
                continue;
            }
            let numbers = match (family.bounds, histogram) {
                (Some(bounds), Some(histogram)) => Count::Histogram(bounds, histogram),
                (Some(_), None) => continue,
                (None, _) => Count::Sum(*count),
            };
            let goes_on = if key.overflow {
                visit(&OVERFLOW, numbers)
            } else {
                visit(&self.shown_message(key), numbers)
            };
            if !goes_on {
                return Some(place);
            }
        }
        None
    }

    fn shown_message(&self, key: &Key) -> Shown<'_> {
        let Kind { deed, pubsub, destination, operation } = key.kind;
        let place = match (pubsub, deed) {
            (false, _) => attribute::CLOUDEVENTS_TYPE,
            (true, Deed::Sent) => attribute::MESSAGING_DESTINATION,
            (true, Deed::Received | Deed::Processed) => attribute::MESSAGING_SUBSCRIPTION,
        };
        let verb = match deed {
            Deed::Sent => "publish",
            Deed::Received => "receive",
            Deed::Processed => "process",
        };
        let mut labels = vec![
            (attribute::MESSAGING_SYSTEM, if pubsub { "gcp_pubsub" } else { "" }),
            (attribute::MESSAGING_OPERATION_NAME, verb),
            (place, self.messages.destinations.name(destination)),
            (attribute::OPERATION, self.operations.name(operation)),
            (attribute::ERROR_TYPE, self.error_of(key.error, key.status)),
        ];
        labels.retain(|(_, value)| !value.is_empty());
        Shown { labels, ..Shown::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(requests: &Requests, family: usize) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        requests.each_of_messages(&FAMILIES[family], 0, |shown, count| {
            let labels: Vec<_> = shown.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let labels = if shown.overflow { "overflow".to_owned() } else { labels.join(" ") };
            let count = match count {
                Count::Sum(count) => count,
                Count::Histogram(_, histogram) => histogram.count(),
            };
            found.push((labels, count));
            true
        });
        found
    }

    #[test]
    fn messages_are_counted_by_what_was_done_with_them() {
        let mut requests = Requests::new(Aggregation::Explicit, 7);
        let sent = requests.message(Deed::Sent, true, "orders", "checkout", None);
        requests.messages(&[Tally { count: 3, ..sent }], Some(ErrorType::Code(503)), 5);
        let pushed = requests.message(Deed::Processed, true, "to-mail", "", Some(9_000_000_000));
        requests.messages(&[Tally { count: 2, ..pushed }], None, 5);
        let pulled = requests.message(Deed::Received, true, "to-mail", "", Some(1));
        requests.messages(&[pulled], None, 0);
        let event = requests.message(Deed::Processed, false, "shop.paid", "", None);
        requests.messages(&[event], Some(ErrorType::Name("timeout")), 5);
        let pubsub = "messaging.system=gcp_pubsub messaging.operation.name=";
        let to_mail = "messaging.destination.subscription.name=to-mail";
        let paid =
            "messaging.operation.name=process cloudevents.event_type=shop.paid error.type=timeout".to_owned();
        assert_eq!(
            shown(&requests, 0),
            [(
                format!(
                    "{pubsub}publish messaging.destination.name=orders app.operation.name=checkout error.type=503"
                ),
                3
            )]
        );
        assert_eq!(
            shown(&requests, 1),
            [
                (format!("{pubsub}process {to_mail}"), 2),
                (format!("{pubsub}receive {to_mail}"), 1),
                (paid.clone(), 1)
            ]
        );
        assert_eq!(shown(&requests, 2), [(format!("{pubsub}process {to_mail}"), 1), (paid, 1)]);
        assert_eq!(
            shown(&requests, 3),
            [(format!("{pubsub}process {to_mail}"), 1), (format!("{pubsub}receive {to_mail}"), 1)]
        );
    }

    #[test]
    fn whatever_names_come_series_are_bounded_and_sums_stay_exact() {
        let mut requests = Requests::new(Aggregation::Exponential, 7);
        for number in 0..20_000_u64 {
            let (topic, operation) = (format!("t{}", number % 301), format!("o{}", number / 7));
            let sent = requests.message(Deed::Sent, true, &topic, &operation, None);
            requests.messages(&[sent], None, 0);
            let pushed = requests.message(Deed::Processed, true, &topic, &operation, Some(number));
            requests.messages(&[pushed], None, number);
        }
        assert!(requests.messages.rows.len() <= limits::METRIC_MESSAGE_SERIES_MAX + FAMILIES.len());
        for family in 0..FAMILIES.len() {
            let shown = shown(&requests, family);
            assert_eq!(shown.iter().map(|(_, count)| count).sum::<u64>(), 20_000, "{family}");
            assert_eq!(shown.iter().filter(|(labels, _)| labels == "overflow").count(), 1, "{family}");
        }
    }
}
