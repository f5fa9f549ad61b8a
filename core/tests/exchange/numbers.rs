//! Rules 13 and 14: numbers that never come from samples, labels that stay bounded and stay themselves, books
//! that balance.

use std::collections::BTreeMap;

use throughline_core::batch::{Batch, Bounds, Dropped};
use throughline_core::classify::Outcome;
use throughline_core::exchange::{Exchange, RequestHead};
use throughline_core::limits;
use throughline_core::prometheus::Form;
use throughline_core::sampling::{Ratio, Root, Sampler};

use crate::harness::*;

fn complete(world: &mut World, mut exchange: Exchange, status: u16) {
    world.answer(&mut exchange, status, &[]);
    let _ = world.end(exchange, Outcome::Complete);
}

#[test]
fn every_exchange_counts_whatever_is_sampled() {
    let ratio = Root::Ratio(Ratio::new(0.1).unwrap());
    let mut counts = Vec::new();
    for sampler in [Root::AlwaysOn, Root::AlwaysOff, ratio].map(Sampler::ParentBased) {
        let mut world = World::with(|config| config.sampler = sampler);
        for n in 0..1000_u16 {
            let operation = if n % 4 == 0 { "checkout" } else { "browse" };
            let (exchange, _) = world.inbound(&[("x-operation-name", operation), WEB]);
            world.now.mono_nanos += 6 * MS;
            complete(&mut world, exchange, if n % 10 == 0 { 503 } else { 200 });
            let (exchange, _) = world.outbound(INSIDE, &[]);
            complete(&mut world, exchange, 404);
        }
        world.spans();
        counts.push(world.page(false));
        assert_eq!(world.counts().len(), 5);
    }
    assert_eq!((&counts[0], &counts[0]), (&counts[1], &counts[2]));
    let peer = "throughline_peer_service=\"web\",throughline_peer_namespace=\"shop\"";
    for expected in [
        format!("http_server_request_duration_seconds_count{{http_request_method=\"GET\",http_route=\"/items/{{id}}\",url_scheme=\"http\",app_operation_name=\"checkout\",{peer},error_type=\"503\",http_response_status_code=\"503\"}} 50\n"),
        format!("http_server_request_duration_seconds_count{{http_request_method=\"GET\",http_route=\"/items/{{id}}\",url_scheme=\"http\",app_operation_name=\"browse\",{peer},http_response_status_code=\"200\"}} 700\n"),
        "http_client_request_duration_seconds_count{http_request_method=\"GET\",server_address=\"stock\",server_port=\"80\",error_type=\"404\",http_response_status_code=\"404\"} 1000\n".to_owned(),
    ] {
        assert!(counts[0].contains(&expected), "{expected} in\n{}", counts[0]);
    }
}

/// A name is one series, however a caller chose it: two series of equal labels would be refused by Prometheus.
#[test]
fn names_from_the_wire_never_make_two_series_of_equal_labels() {
    let mut world = World::with(|config| config.recording = false);
    for n in 0..limits::METRIC_OPERATIONS_MAX + 5 {
        let name = if n == 3 { "_other".to_owned() } else { format!("op{n}") };
        let (exchange, _) = world.inbound(&[("x-operation-name", &name)]);
        complete(&mut world, exchange, 200);
    }
    for n in 0..limits::METRIC_PEERS_MAX + 5 {
        let name = if n == 3 { "service=_other".to_owned() } else { format!("service=s{n};namespace=n") };
        let (exchange, _) = world.inbound(&[("throughline-peer", &name)]);
        complete(&mut world, exchange, 200);
    }
    for n in 0..limits::METRIC_ADDRESSES_MAX + 5 {
        let name = if n == 3 { "_other".to_owned() } else { format!("host{n}") };
        let (exchange, _) = world.outbound(&name, &[]);
        complete(&mut world, exchange, 200);
    }
    let counts = world.counts();
    let mut labels: Vec<&str> =
        counts.iter().filter_map(|line| line.rsplit_once(' ')).map(|(l, _)| l).collect();
    let total: u64 = counts.iter().filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
    let all = labels.len();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), all, "no two series of equal labels");
    let begun = limits::METRIC_OPERATIONS_MAX + limits::METRIC_PEERS_MAX + limits::METRIC_ADDRESSES_MAX + 15;
    assert_eq!(total, begun as u64);
}

#[test]
fn peers_with_a_slash_in_their_names_stay_apart() {
    let mut world = World::new();
    for peer in ["service=a/b", "service=a;namespace=b", "service=a/b;namespace=c"] {
        let (exchange, _) = world.inbound(&[("throughline-peer", peer)]);
        complete(&mut world, exchange, 200);
    }
    let counts = world.counts();
    for expected in [
        "throughline_peer_service=\"a/b\",http_response",
        "throughline_peer_service=\"a\",throughline_peer_namespace=\"b\",http_response",
        "throughline_peer_service=\"a/b\",throughline_peer_namespace=\"c\",http_response",
    ] {
        assert!(
            counts.iter().any(|line| line.contains(expected) && line.ends_with(" 1")),
            "{expected}: {counts:?}"
        );
    }
}

#[test]
fn series_over_the_bound_are_counted_together() {
    let mut world = World::with(|config| (config.recording, config.routes_max) = (false, 10_000));
    let begun = limits::METRIC_SERIES_MAX + 100;
    for n in 0..begun {
        let path: String = format!("/r/{n}")
            .chars()
            .map(|c| if c.is_ascii_digit() { char::from(c as u8 + 49) } else { c })
            .collect();
        let head = RequestHead { path: path.as_bytes(), ..request() };
        let exchange = world.begin(&head, &mut Headers::new());
        complete(&mut world, exchange, 200);
    }
    let counts = world.counts();
    assert_eq!(counts.len(), limits::METRIC_SERIES_MAX + 1);
    assert!(counts.contains(&"http_server{otel_metric_overflow=\"true\"} 100".to_owned()));
}

/// Counts of a metric's series, by their labels.
fn series(page: &str, name: &str) -> BTreeMap<String, u64> {
    let rows = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} "));
    rows.map(|(labels, count)| (labels.to_owned(), count.parse().unwrap())).collect()
}

#[test]
fn the_service_graph_is_bounded_and_never_counts_back() {
    let mut world = World::with(|config| config.recording = false);
    let mut before: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
    let mut asked = 0;
    for _ in 0..3 {
        for n in 0..limits::METRIC_EDGES_MAX + 50 {
            let (exchange, _) = world.inbound(&[("throughline-peer", &format!("service=s{n}"))]);
            complete(&mut world, exchange, if n % 5 == 0 { 503 } else { 200 });
            let (exchange, _) = world.outbound("stock", &[]);
            complete(&mut world, exchange, 200);
            asked += 2;
        }
        let page = world.page(true);
        for (name, bound, total) in [
            ("traces_service_graph_request_total", limits::METRIC_EDGES_MAX + 1, asked),
            ("traces_service_graph_request_failed_total", limits::METRIC_EDGES_MAX + 1, asked / 10),
            ("traces_service_graph_request_server_seconds_count", limits::METRIC_EDGES_MAX + 1, asked / 2),
            ("traces_service_graph_request_client_seconds_count", 1, asked / 2),
            ("traces_spanmetrics_calls_total", 3, asked),
            ("traces_spanmetrics_latency_count", 3, asked),
        ] {
            let rows = series(&page, name);
            assert!((1..=bound).contains(&rows.len()), "{name}: {} series", rows.len());
            assert_eq!(rows.values().sum::<u64>(), total, "{name}");
            for (labels, count) in before.insert(name, rows.clone()).unwrap_or_default() {
                assert!(rows[&labels] >= count, "{name}{{{labels}}}");
            }
        }
    }
    let names = series(&world.page(true), "traces_spanmetrics_calls_total");
    let stock = "service=\"orders\",span_name=\"GET\",span_kind=\"SPAN_KIND_CLIENT\",status_code=\"STATUS_CODE_UNSET\"";
    assert_eq!(names[stock], asked / 2, "{names:?}");
}

/// An example is of an exchange that left a span, in the bucket that it fell into.
#[test]
fn the_newest_exchange_with_a_span_is_the_example_of_its_series() {
    let mut world = World::with(|config| config.sampler = Sampler::ParentBased(Root::AlwaysOff));
    for (millis, status) in [(6, 503), (60, 503), (6, 200)] {
        let (exchange, _) = world.inbound(&[]);
        world.now.mono_nanos += millis * MS;
        complete(&mut world, exchange, status);
    }
    let kept = world.spans().pop().unwrap();
    let page = world.page_in(Form::OpenMetrics, false);
    let examples: Vec<&str> = page.lines().filter(|line| line.contains(" # {")).collect();
    let [example] = examples[..] else { panic!("{examples:?}") };
    assert!(example.contains("http_response_status_code=\"503\",le=\"0.075\"} 2 # {trace_id="), "{example}");
    let ids = format!("{{trace_id=\"{}\",span_id=\"{}\"}} 0.06 ", hex(&kept.trace_id), hex(&kept.span_id));
    assert!(example.contains(&ids), "{example} {ids}");
    assert!(!world.page(false).contains(" # {"), "the plain text has none");
}

/// Rule 14 for a queue that is shorter than a batch, which a user may ask for.
#[test]
fn a_queue_shorter_than_a_batch_keeps_its_books_and_its_bound() {
    let mut world = World::new();
    world.batch = Batch::new(Bounds { queue_spans_max: 3, chunk_spans_max: 512, flush_after_ms: 1000 });
    for _ in 0..30_000 {
        let (exchange, _) = world.inbound(&[]);
        complete(&mut world, exchange, 200);
        let books = world.batch.books();
        assert_eq!(books.created, books.exported + books.held + books.dropped.iter().sum::<u64>());
        assert!(books.held <= 3);
    }
    let spans = world.spans();
    let last: Vec<_> =
        spans.iter().map(|span| u64::from_str_radix(&hex(&span.span_id), 16).unwrap()).collect();
    assert_eq!(last, [29_998, 29_999, 30_000], "the newest are kept");
    assert_eq!(world.batch.books().dropped[Dropped::QueueFull as usize], 29_997);
}

#[test]
fn a_span_larger_than_a_batch_is_dropped_by_reason_and_its_exchange_still_counts() {
    let mut world = World::with(|config| config.capture_request_headers = vec!["x-large".into()]);
    let line = "x".repeat(limits::ATTRIBUTE_VALUE_BYTES_MAX);
    let fields =
        vec![("x-large", line.as_str()); 1 + limits::SPAN_BYTES_MAX / limits::ATTRIBUTE_VALUE_BYTES_MAX];
    let (exchange, _) = world.inbound(&fields);
    complete(&mut world, exchange, 200);
    let (exchange, _) = world.inbound(&[]);
    complete(&mut world, exchange, 200);
    let books = world.batch.books();
    assert_eq!((books.created, books.held, books.dropped[Dropped::TooLarge as usize]), (2, 1, 1));
    assert_eq!(world.spans().len(), 1);
    assert!(world.counts()[0].ends_with(" 2"));
}
