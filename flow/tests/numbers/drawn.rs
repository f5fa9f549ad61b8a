//! Drawn workloads over days against a naive scan of all that was pushed: minutes, tens and hours, whatever window is
//! asked for.

use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality::{Cumulative, Delta};
use std::collections::BTreeMap;
use throughline_flow::numbers::{Filter, Numbers, Window};

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
    for seed in [1, 2] {
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
        if *minute == 179 {
            numbers.tick(time + 2 * SECOND);
            for _ in 0..40 {
                let from = draw.below(170);
                compare(&numbers, &naive, from, from + 1 + draw.below(180 - from));
            }
        }
    }
    let end = START + 4320 * MINUTE;
    numbers.tick(end + 10 * MINUTE);
    numbers.tick(end + 20 * MINUTE);
    // Minutes are gone, tens are there; of the later days only the whole is known, since counts of ten minutes are
    // spread over these.
    for _ in 0..30 {
        let from = draw.below(17);
        compare(&numbers, &naive, from * 10, 10 * (from + 1 + draw.below(18 - from)));
    }
    compare(&numbers, &naive, 0, 4320);
}

/// A window's graphs against a scan of all that was counted.
fn compare(numbers: &Numbers, naive: &[(u64, Counted)], from: u64, to: u64) {
    let window = Window { start_unix_nanos: START + from * MINUTE, end_unix_nanos: START + to * MINUTE };
    let mut expected: BTreeMap<(usize, usize, usize), (u64, u64)> = BTreeMap::new();
    for (_, (a, b, operation, failed)) in naive.iter().filter(|(at, _)| from <= *at && *at < to) {
        let (all, errors) = expected.entry((*a, *b, *operation)).or_default();
        *all += 1;
        *errors += u64::from(*failed);
    }
    for (number, operation) in OPERATIONS.iter().enumerate() {
        let graph = numbers.graph(&Filter { operation: Some(operation), ..Filter::default() }, window);
        let edges = expected.keys().filter(|(_, _, of)| *of == number).count();
        assert_eq!(graph.edges.len(), edges, "{operation}, {from}..{to}");
        for ((a, b, _), expected) in expected.iter().filter(|((_, _, of), _)| *of == number) {
            let found = counts(&graph, SERVICES[*a], SERVICES[*b]);
            assert_eq!(found, *expected, "{} to {}, {operation}, {from}..{to}", SERVICES[*a], SERVICES[*b]);
        }
    }
    let whole = numbers
        .stats(&Filter::default(), window)
        .map_or(0, |stats| stats.errors.iter().map(|one| one.1).sum());
    assert_eq!(whole, expected.values().map(|(_, errors)| errors).sum::<u64>());
}
