//! Drawn workloads over days against a naive scan of all that was pushed: minutes, tens and hours, whatever window is
//! asked for.

use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality::{Cumulative, Delta};
use std::collections::BTreeMap;
use throughline_flow::numbers::{Filter, Window};

use crate::push::{
    Draw, Durations, MINUTE, SECOND, START, counts, explicit, exponential, exponential_histogram, histogram,
    numbers, request, resource, sum, text,
};

/// What was counted in a minute: caller, callee, operation, failed.
type Counted = (usize, usize, usize, bool);

const SERVICES: [&str; 5] = ["a", "b", "c", "d", "e"];
const OPERATIONS: [&str; 3] = ["buy", "look", "leave"];

struct Sender {
    service: usize,
    start: u64,
    instance: u64,
    kind: u64,
    counted: BTreeMap<Counted, Durations>,
}

#[test]
fn any_window_of_days_has_what_was_counted_in_it() {
    for seed in [1, 2, 3] {
        drawn(seed);
    }
}

fn drawn(seed: u64) {
    let (numbers, mut draw) = (numbers(), Draw(seed));
    let mut senders: Vec<Sender> = (0..SERVICES.len() as u64)
        .map(|service| Sender {
            service: service as usize,
            start: START,
            instance: service,
            kind: service % 3,
            counted: BTreeMap::new(),
        })
        .collect();
    let mut naive: Vec<(u64, Counted)> = Vec::new();
    // Every minute for three hours, then one in ten for three days.
    let minutes = (1..180).chain((180..4320).step_by(10)).collect::<Vec<u64>>();
    for minute in &minutes {
        // Pushed within the minute that it came in, so that the minute is known.
        let time = START + minute * MINUTE + 30 * SECOND;
        for sender in &mut senders {
            if sender.kind == 2 {
                sender.counted.clear(); // deltas
            }
            for _ in 0..draw.below(4) {
                let from = draw.below(SERVICES.len() as u64) as usize;
                let operation = draw.below(OPERATIONS.len() as u64) as usize;
                let key = (from, sender.service, operation, draw.below(5) == 0);
                let nanos = 1_000_000 + draw.below(2_000_000_000);
                sender.counted.entry(key).or_default().nanos.push(nanos);
                naive.push((*minute, key));
            }
            let labels = |(from, _, operation, failed): &Counted| {
                let mut labels = vec![
                    text("throughline.peer.service", SERVICES[*from]),
                    text("throughline.peer.namespace", "shop"),
                    text("app.operation.name", OPERATIONS[*operation]),
                ];
                if *failed {
                    labels.push(text("error.type", "503"));
                }
                labels
            };
            let before = time - 20 * SECOND;
            let rows = sender.counted.iter();
            let metric = match sender.kind {
                0 => {
                    let points =
                        rows.map(|(key, all)| explicit(labels(key), sender.start, time, all)).collect();
                    histogram("http.server.request.duration", points, Cumulative)
                }
                1 => {
                    let points =
                        rows.map(|(key, all)| exponential(labels(key), sender.start, time, all, 5)).collect();
                    exponential_histogram("http.server.request.duration", points)
                }
                _ => {
                    let points = rows.map(|(key, all)| explicit(labels(key), before, time, all)).collect();
                    histogram("http.server.request.duration", points, Delta)
                }
            };
            let instance = sender.instance.to_string();
            let of = resource(SERVICES[sender.service], &[("service.instance.id", &instance)]);
            // Something that never changes: so it is known of each minute that the sender spoke.
            let beat = sum("throughline.operations_ignored", Vec::new(), sender.start, time, 0);
            let body = request(of, "throughline", vec![beat, metric]);
            for _ in 0..=draw.below(2) {
                numbers.metrics(&body, time).unwrap();
            }
            // Sometimes it begins anew.
            if draw.below(50) == 0 {
                sender.start = time + SECOND;
                sender.instance += 100;
                sender.counted.clear();
            }
        }
        numbers.tick(time);
    }
    let end = START + 4320 * MINUTE;
    numbers.tick(end + 10 * MINUTE);
    numbers.tick(end + 20 * MINUTE);
    // Cumulative senders that were asked every ten minutes have their counts spread over these: whole windows of hours
    // hold them. Within the first three hours every minute is known.
    for round in 0..60 {
        let (from, to) = if round % 2 == 0 {
            let from = draw.below(170);
            (from, from + 1 + draw.below(179 - from))
        } else {
            (0, 180 + 60 * draw.below(70))
        };
        let window = Window { start_unix_nanos: START + from * MINUTE, end_unix_nanos: START + to * MINUTE };
        for (number, operation) in OPERATIONS.iter().enumerate() {
            let filter = Filter { operation: Some(operation), ..Filter::default() };
            let graph = numbers.graph(&filter, window);
            for (a, from_name) in SERVICES.iter().enumerate() {
                for (b, to_name) in SERVICES.iter().enumerate() {
                    let all = || naive.iter().filter(|(at, _)| from <= *at && *at < to);
                    let of =
                        |failed: bool| all().filter(|(_, key)| *key == (a, b, number, failed)).count() as u64;
                    let (good, bad) = (of(false), of(true));
                    let found = counts(&graph, from_name, to_name);
                    if from == 0 && to == 4320 || to <= 180 {
                        assert_eq!(
                            found,
                            (good + bad, bad),
                            "{from_name} to {to_name}, {operation}, {from}..{to}"
                        );
                    } else {
                        // What came within the ten minutes about the end may lie on either side of it.
                        assert!(found.0 <= all_of(&naive, (a, b, number), to + 10));
                    }
                }
            }
        }
    }
}

fn all_of(naive: &[(u64, Counted)], (a, b, operation): (usize, usize, usize), to: u64) -> u64 {
    let of = naive
        .iter()
        .filter(|(at, (from, at_service, of, _))| *at < to && (*from, *at_service, *of) == (a, b, operation));
    of.count() as u64
}
