//! What numbers cost: a span, a data point, a question while spans come in, memory. `cargo bench -p throughline-flow
//! --bench numbers [-- seconds]`. Real pushes by `opentelemetry-proto`, real time, threads of this process.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a bench")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{
    ExponentialHistogram, ExponentialHistogramDataPoint, Metric, ResourceMetrics, ScopeMetrics,
    exponential_histogram_data_point::Buckets, metric::Data,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use throughline_flow::numbers::{Filter, Numbers, Options, Window};
use throughline_flow::span::{Incoming, Kind, Known, Sender};

const SERVICES: u64 = 1_000;
const OPERATIONS: u64 = 200;
const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const START: u64 = 1_763_600_400 * SECOND;
const HOURS: u64 = 2;

fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

/// A push of one sidecar: twelve series of three callers, each with some forty buckets, after so many minutes.
fn push(service: u64, minutes: u64, time: u64) -> Vec<u8> {
    let mut points = Vec::new();
    for number in 0..12 {
        let caller = (service * 7 + number % 3 * 131) % SERVICES;
        let operation = (service + number * 17) % OPERATIONS;
        let mut attributes = vec![
            text("http.request.method", "GET"),
            text("http.route", &format!("/r{}", number % 4)),
            text("app.operation.name", &format!("operation-{operation}")),
            text("throughline.peer.service", &format!("service-{caller}")),
            text("throughline.peer.namespace", "shop"),
        ];
        if number % 6 == 5 {
            attributes.push(text("error.type", "503"));
        }
        let bucket_counts: Vec<u64> = (0..40).map(|bucket| minutes * (1 + (bucket + number) % 3)).collect();
        points.push(ExponentialHistogramDataPoint {
            attributes,
            start_time_unix_nano: START,
            time_unix_nano: time,
            count: bucket_counts.iter().sum(),
            sum: Some(minutes as f64 * 3.7),
            scale: 6,
            positive: Some(Buckets { offset: -300, bucket_counts }),
            ..ExponentialHistogramDataPoint::default()
        });
    }
    let histogram = ExponentialHistogram { data_points: points, aggregation_temporality: 2 };
    let metric = Metric {
        name: "http.server.request.duration".to_owned(),
        data: Some(Data::ExponentialHistogram(histogram)),
        ..Metric::default()
    };
    let scope = InstrumentationScope { name: "throughline".to_owned(), ..InstrumentationScope::default() };
    let attributes = vec![
        text("service.name", &format!("service-{service}")),
        text("service.namespace", "shop"),
        text("k8s.pod.name", &format!("service-{service}-0")),
        text("deployment.environment.name", "prod"),
    ];
    let of_resource = ResourceMetrics {
        resource: Some(Resource { attributes, ..Resource::default() }),
        scope_metrics: vec![ScopeMetrics {
            scope: Some(scope),
            metrics: vec![metric],
            ..ScopeMetrics::default()
        }],
        ..ResourceMetrics::default()
    };
    ExportMetricsServiceRequest { resource_metrics: vec![of_resource] }.encode_to_vec()
}

/// CPU seconds of this thread.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn median(mut all: Vec<f64>) -> [f64; 3] {
    all.sort_unstable_by(f64::total_cmp);
    [all[0], all[all.len() / 2], all[all.len() - 1]]
}

/// Spans of 1,000 services, half of them internal: client, internal, server, internal, …
fn spans(ours: bool, from: u64, count: u64, numbers: &Numbers, now: u64) {
    for number in from..from + count {
        let service = number / 4 % SERVICES;
        let name = format!("uncovered-{service}");
        let kind = [Kind::Client, Kind::Internal, Kind::Server, Kind::Internal][(number % 4) as usize];
        let sender = Sender {
            service: name.as_bytes(),
            namespace: b"shop",
            environment: b"prod",
            ours,
            resource: name.as_bytes(),
            ..Sender::default()
        };
        let parent = if kind == Kind::Server { number - 2 } else { number.saturating_sub(1) };
        let span = Incoming {
            trace_id: [3; 16],
            span_id: (number + 1).to_be_bytes(),
            parent: Some((parent + 1).to_be_bytes()),
            kind,
            start_unix_nanos: now - 5_000_000,
            end_unix_nanos: now - number % 1_000_000,
            known: Known {
                method: b"GET",
                operation: b"checkout",
                route: b"/r",
                http_status: 200,
                server_address: b"somewhere",
                ..Known::default()
            },
            ..Incoming::default()
        };
        numbers.foreign((number / 4 % 2) as usize, &sender, &span, now);
    }
}

fn span_cost() {
    for (what, ours) in [("of SDKs (estimates)", false), ("of sidecars", true)] {
        let numbers = Numbers::new(Options { shards: 2, ..Options::default() }, START);
        let mut rates = Vec::new();
        for round in 0..7 {
            let before = cpu();
            spans(ours, round * 1_000_000, 1_000_000, &numbers, START + (round + 1) * 5 * SECOND);
            rates.push(1.0 / (cpu() - before));
        }
        let [least, middle, most] = median(rates);
        println!(
            "spans {what}: {middle:.2} million a core-second ({least:.2} to {most:.2}), the making of them included; {:.0} MB reckoned",
            numbers.books().bytes as f64 / 1e6
        );
    }
}

fn main() {
    let seconds = std::env::args().filter_map(|text| text.parse().ok()).next().unwrap_or(20);
    span_cost();

    let options = Options { shards: 2, to_store: true, ..Options::default() };
    let numbers = Numbers::new(options, START);
    let before = resident();
    let (mut in_metrics, mut points, mut stored, mut in_changes) = (0.0, 0, 0, Vec::new());
    for minute in 1..=HOURS * 60 {
        let time = START + minute * MINUTE;
        for service in 0..SERVICES {
            let body = push(service, minute, time);
            let began = cpu();
            points += numbers.metrics(&body, time).unwrap().points;
            in_metrics += cpu() - began;
        }
        numbers.tick(time);
        let began = cpu();
        stored += numbers.changes(time).put.iter().map(|row| row.body.len() as u64).sum::<u64>();
        in_changes.push((cpu() - began) * 1e3);
    }
    let books = numbers.books();
    println!(
        "metrics: {:.2} million exponential points a core-second ({points} points); {} keys; {HOURS} h of minutes: {:.0} MB reckoned, {:.0} MB resident; changes for the store after a whole minute: {:.0} ms (median), {:.2} MB a minute",
        points as f64 / in_metrics / 1e6,
        books.series,
        books.bytes as f64 / 1e6,
        (resident() - before) as f64 / 1e6,
        median(in_changes)[1],
        stored as f64 / 1e6 / (HOURS * 60) as f64,
    );

    // Nobody asked before: what a question costs that nothing remembers.
    let end = START + HOURS * 60 * MINUTE;
    for (what, filter) in [
        ("graph of everything", Filter::default()),
        ("graph of an operation", Filter { operation: Some("operation-3"), ..Filter::default() }),
    ] {
        for hours in [1, HOURS] {
            let mut all = Vec::new();
            for round in 0..5 {
                let window = Window {
                    start_unix_nanos: end - hours * 60 * MINUTE + (round + 1) * MINUTE,
                    end_unix_nanos: end - round * MINUTE,
                };
                let began = cpu();
                let graph = numbers.graph(&filter, window);
                all.push((cpu() - began) * 1e3);
                assert!(!graph.edges.is_empty());
            }
            let [least, middle, most] = median(all);
            println!("{what}, {hours} h, not remembered: {middle:.2} ms of CPU ({least:.2} to {most:.2})");
        }
    }
    under_load(&numbers, end, seconds);
}

fn under_load(numbers: &Numbers, end: u64, seconds: u64) {
    const CLIENTS: u64 = 100;
    const SPANS: u64 = 100_000;
    const WARM: Duration = Duration::from_secs(4);
    let (stop, sent, ticked) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let now = || end + u64::try_from(began.elapsed().as_nanos()).unwrap();
    let mut latencies: [Vec<f64>; 2] = Default::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 1_000_000_000;
            while !stop.load(Ordering::Relaxed) {
                let due = began.elapsed().as_micros() as u64 * SPANS / 1_000_000;
                let owed = due.saturating_sub(sent.load(Ordering::Relaxed)).min(5_000);
                spans(false, number, owed, numbers, now());
                number += owed;
                sent.fetch_add(owed, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        scope.spawn(|| {
            let mut service = 0;
            while !stop.load(Ordering::Relaxed) {
                // A thousand senders a minute.
                let time = now();
                numbers
                    .metrics(&push(service % SERVICES, HOURS * 60 + 1 + service / SERVICES, time), time)
                    .unwrap();
                service += 1;
                if service % 16 == 0 {
                    numbers.tick(time);
                    let _ = numbers.changes(time);
                    ticked.fetch_add(1, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(60));
            }
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (stop, now, began) = (&stop, &now, &began);
                scope.spawn(move || {
                    let mut random = client.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                    let mut mine: [Vec<f64>; 2] = Default::default();
                    while !stop.load(Ordering::Relaxed) {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let operation = format!("operation-{}", random % OPERATIONS);
                        let minutes = [15, 60, 120][(random >> 20) as usize % 3];
                        let window =
                            Window { start_unix_nanos: now() - minutes * MINUTE, end_unix_nanos: now() };
                        let operation = (!(random >> 30).is_multiple_of(4)).then_some(operation.as_str());
                        let filter = Filter { operation, environment: Some("prod"), ..Filter::default() };
                        let asked = Instant::now();
                        let which = (random >> 40) as usize % 2;
                        if which == 0 {
                            assert!(!numbers.graph(&filter, window).nodes.is_empty());
                        } else {
                            assert!(numbers.stats(&filter, window).is_some());
                        }
                        // Before that nobody has asked for anything yet.
                        if began.elapsed() > WARM {
                            mine[which].push(asked.elapsed().as_secs_f64() * 1e3);
                        }
                        std::thread::sleep(Duration::from_millis(500));
                    }
                    mine
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs(seconds));
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            for (all, mine) in latencies.iter_mut().zip(client.join().unwrap()) {
                all.extend(mine);
            }
        }
    });
    let wall = began.elapsed().as_secs_f64();
    for (what, mut all) in ["graph", "stats"].into_iter().zip(latencies) {
        all.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
        println!(
            "{what}, {CLIENTS} clients, {:.0} a second, {:.0} spans a second beside: p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms, most {:.2} ms",
            all.len() as f64 / (wall - WARM.as_secs_f64()),
            sent.load(Ordering::Relaxed) as f64 / wall,
            at(0.5),
            at(0.95),
            at(0.99),
            at(1.0)
        );
    }
    println!("{:?}", numbers.books());
}
