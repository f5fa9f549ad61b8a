//! What the store gets is enough to go on, at whatever moment the server dies: nothing counts twice, and what was said
//! after the last commit is said again.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality::Cumulative;
use throughline_flow::numbers::{Changes, Filter, Numbers, Options, Row, RowId};

use crate::push::{
    Draw, Durations, MINUTE, SECOND, START, counts, explicit, exponential, exponential_histogram, graph,
    histogram, request, resource, text, whole,
};

const OPTIONS: Options = Options {
    seed: 5,
    shards: 1,
    keep_for: std::time::Duration::from_secs(7 * 24 * 3600),
    bytes_max: 64 << 20,
    to_store: true,
    health: throughline_flow::numbers::Thresholds {
        degraded_error_rate: 0.05,
        down_error_rate: 0.5,
        degraded_p95_ms: 0.0,
        requests_min: 5,
    },
};

/// A store as the numbers see it.
#[derive(Default, Clone)]
struct Store(BTreeMap<RowId, Row>);

impl Store {
    fn commit(&mut self, changes: Changes) {
        for id in changes.delete {
            self.0.remove(&id);
        }
        for row in changes.put {
            self.0.insert((row.kind, row.id, row.part), row);
        }
    }

    fn open(&self, seed: u64, now: u64) -> Numbers {
        let numbers = Numbers::new(Options { seed, ..OPTIONS }, now);
        assert_eq!(numbers.restore(self.0.values().cloned(), now), Ok(0));
        numbers
    }
}

fn push(service: &str, time: u64, counted: &Durations, scale: Option<i32>) -> Vec<u8> {
    let labels = vec![text("throughline.peer.service", "web"), text("app.operation.name", "buy")];
    let name = "http.server.request.duration";
    let metric = match scale {
        Some(scale) => exponential_histogram(name, vec![exponential(labels, START, time, counted, scale)]),
        None => histogram(name, vec![explicit(labels, START, time, counted)], Cumulative),
    };
    request(resource(service, &[]), "throughline", vec![metric])
}

#[test]
fn a_server_that_dies_at_any_moment_goes_on_exactly() {
    for seed in 1..6 {
        let (mut draw, mut store) = (Draw(seed), Store::default());
        let mut numbers = Numbers::new(OPTIONS, START);
        let mut counted = [Durations::default(), Durations::default()];
        let services = ["orders", "stock"];
        let mut now = START;
        for _ in 0..150 {
            now += 20 * SECOND + draw.below(60) * SECOND;
            for (service, counted) in services.iter().zip(&mut counted) {
                for _ in 0..draw.below(9) {
                    counted.nanos.push(1_000_000 + draw.below(900_000_000));
                }
                let scale = (*service == "stock").then_some(6);
                numbers.metrics(&push(service, now, counted, scale), now).unwrap();
                if draw.below(3) == 0 {
                    store.commit(numbers.changes(now));
                }
            }
            numbers.tick(now);
            match draw.below(12) {
                // Dies: what was not committed is gone.
                0 => numbers = store.open(seed + 100, now),
                // Stops in order.
                1 => {
                    store.commit(numbers.changes(now));
                    numbers = store.open(seed + 100, now);
                }
                _ => {}
            }
        }
        now += MINUTE;
        for (service, counted) in services.iter().zip(&counted) {
            numbers.metrics(&push(service, now, counted, (*service == "stock").then_some(6)), now).unwrap();
        }
        numbers.tick(now + 20 * MINUTE);
        numbers.tick(now + 90 * MINUTE);
        for numbers in [&numbers, &{
            store.commit(numbers.changes(now));
            store.open(1, now + 91 * MINUTE)
        }] {
            let graph = graph(numbers, Some("buy"));
            for (service, counted) in services.iter().zip(&counted) {
                assert_eq!(counts(&graph, "web", service).0, counted.nanos.len() as u64, "{service}, {seed}");
            }
            let stats =
                numbers.stats(&Filter { operation: Some("buy"), ..Filter::default() }, whole()).unwrap();
            let all = counted.iter().flat_map(|counted| &counted.nanos);
            let mean = all.clone().sum::<u64>() as f64 / all.count() as f64 / 1e6;
            assert!((stats.figures.avg_ms / mean - 1.0).abs() < 1e-6);
        }
        // Packed minutes replace their parts: rows do not pile up.
        let cells = store.0.keys().filter(|(kind, _, _)| *kind == 4).count();
        assert!(cells < 400, "{cells} rows of counts");
    }
}

#[test]
fn broken_rows_are_named_or_passed_over() {
    let mut store = Store::default();
    let numbers = Numbers::new(OPTIONS, START);
    let counted = Durations { nanos: vec![5_000_000; 10] };
    numbers.metrics(&push("orders", START + MINUTE, &counted, None), START + MINUTE).unwrap();
    store.commit(numbers.changes(START + MINUTE));
    let mut draw = Draw(9);
    for _ in 0..3000 {
        let mut rows: Vec<Row> = store.0.values().cloned().collect();
        let at = draw.below(rows.len() as u64) as usize;
        let mut body = rows[at].body.to_vec();
        match draw.below(3) {
            0 => body.truncate(draw.below(body.len() as u64 + 1) as usize),
            1 if !body.is_empty() => {
                let place = draw.below(body.len() as u64) as usize;
                body[place] = draw.next() as u8;
            }
            _ => body.push(draw.next() as u8),
        }
        rows[at].body = body.into();
        let numbers = Numbers::new(OPTIONS, START);
        let _ = numbers.restore(rows, START + MINUTE);
        // Whatever was understood, it goes on.
        numbers.metrics(&push("orders", START + 2 * MINUTE, &counted, None), START + 2 * MINUTE).unwrap();
        numbers.tick(START + 2 * MINUTE);
        let _ = graph(&numbers, None);
    }
}
