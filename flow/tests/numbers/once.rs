//! What one sender says counts once, whatever happens to its pushes.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality::{Cumulative, Delta};
use throughline_flow::numbers::{Filter, Numbers};

use crate::push::{
    BOUNDS, Draw, Durations, MINUTE, SECOND, START, counts, explicit, exponential, exponential_histogram,
    graph, histogram, numbers, pair, request, resource, sum, text, whole, window,
};

const SERVER: &str = "http.server.request.duration";
const CLIENT: &str = "http.client.request.duration";

fn some(count: usize) -> Durations {
    Durations { nanos: vec![30_000_000; count] }
}

/// A push of `orders` that says it served `count` requests of `web` since `start`.
fn served(start: u64, time: u64, count: usize) -> Vec<u8> {
    let labels = vec![text("throughline.peer.service", "web"), text("throughline.peer.namespace", "shop")];
    let point = explicit(labels, start, time, &some(count));
    request(resource("orders", &[]), "throughline", vec![histogram(SERVER, vec![point], Cumulative)])
}

fn told(numbers: &Numbers, after: u64) -> u64 {
    numbers.tick(after + 5 * SECOND);
    counts(&graph(numbers, None), "web", "orders").0
}

#[test]
fn a_push_that_is_repeated_late_or_lost_changes_nothing() {
    let numbers = numbers();
    let pushes: Vec<Vec<u8>> =
        (1..=5).map(|push| served(START, START + push * MINUTE, push as usize * 10)).collect();
    let order = [(0, 10), (0, 10), (2, 30), (1, 30), (2, 30), (4, 50), (3, 50), (0, 50)];
    for (step, (push, expected)) in (1..).zip(order) {
        let now = START + 6 * MINUTE + step * 20 * SECOND;
        numbers.metrics(&pushes[push], now).unwrap();
        assert_eq!(told(&numbers, now), expected, "after push {push}");
    }
    let books = numbers.books();
    assert_eq!((books.points, books.points_repeated, books.points_late), (8, 2, 3));
}

#[test]
fn a_sender_that_begins_anew_counts_from_nothing() {
    let numbers = numbers();
    numbers.metrics(&served(START, START + MINUTE, 10), START + MINUTE).unwrap();
    numbers.metrics(&served(START + MINUTE, START + 2 * MINUTE, 4), START + 2 * MINUTE).unwrap();
    // The last word of the one before it comes afterwards.
    numbers.metrics(&served(START, START + MINUTE + SECOND, 12), START + 2 * MINUTE).unwrap();
    numbers.metrics(&served(START + MINUTE, START + 3 * MINUTE, 14), START + 3 * MINUTE).unwrap();
    assert_eq!(told(&numbers, START + 3 * MINUTE), 12 + 14);
}

#[test]
fn a_value_that_is_smaller_began_anew_without_saying_so() {
    let numbers = numbers();
    for (minute, count) in [(1, 10), (2, 4), (3, 9)] {
        numbers.metrics(&served(START, START + minute * MINUTE, count), START + minute * MINUTE).unwrap();
    }
    assert_eq!(told(&numbers, START + 3 * MINUTE), 10 + 9);
}

#[test]
fn workers_of_one_filter_are_added_up() {
    let numbers = numbers();
    for worker in ["1", "2", "3"] {
        let labels =
            vec![text("throughline.peer.service", "web"), text("throughline.peer.namespace", "shop")];
        let point = explicit(labels, START, START + MINUTE, &some(7));
        let of_worker = resource("orders", &[("service.instance.id", worker)]);
        let body = request(of_worker, "throughline", vec![histogram(SERVER, vec![point], Cumulative)]);
        numbers.metrics(&body, START + MINUTE).unwrap();
    }
    assert_eq!(told(&numbers, START + MINUTE), 21);
}

#[test]
fn deltas_count_once_in_any_order() {
    let numbers = numbers();
    let delta = |minute: u64, count: usize| {
        let labels =
            vec![text("throughline.peer.service", "web"), text("throughline.peer.namespace", "shop")];
        let point = explicit(labels, START + (minute - 1) * MINUTE, START + minute * MINUTE, &some(count));
        request(resource("orders", &[]), "throughline", vec![histogram(SERVER, vec![point], Delta)])
    };
    for (minute, count) in [(1, 5), (3, 7), (2, 11), (3, 7), (1, 5), (4, 13), (2, 11)] {
        numbers.metrics(&delta(minute, count), START + 4 * MINUTE).unwrap();
    }
    assert_eq!(told(&numbers, START + 4 * MINUTE), 5 + 7 + 11 + 13);
    assert_eq!(numbers.books().points_repeated, 3);
}

#[test]
fn the_past_of_a_sender_is_not_ours_but_what_it_does_from_here_on_is() {
    let numbers = numbers();
    let long_ago = START - 3000 * MINUTE;
    numbers.metrics(&served(long_ago, START + MINUTE, 1_000_000), START + MINUTE).unwrap();
    assert_eq!(told(&numbers, START + MINUTE), 0);
    assert_eq!(numbers.books().streams_joined_late, 1);
    numbers.metrics(&served(long_ago, START + 2 * MINUTE, 1_000_005), START + 2 * MINUTE).unwrap();
    assert_eq!(told(&numbers, START + 2 * MINUTE), 5);
    // A series that it had not got before: all of it came since its last push.
    let labels = vec![text("throughline.peer.service", "mail")];
    let point = explicit(labels, long_ago, START + 3 * MINUTE, &some(3));
    let body =
        request(resource("orders", &[]), "throughline", vec![histogram(SERVER, vec![point], Cumulative)]);
    numbers.metrics(&body, START + 3 * MINUTE).unwrap();
    numbers.tick(START + 3 * MINUTE + 9 * SECOND);
    assert_eq!(counts(&graph(&numbers, None), "mail", "orders").0, 3);
}

#[test]
fn what_came_over_a_long_time_is_spread_over_it_and_none_is_lost() {
    let numbers = numbers();
    numbers.metrics(&served(START, START + MINUTE, 1), START + MINUTE).unwrap();
    numbers.metrics(&served(START, START + 31 * MINUTE, 301), START + 31 * MINUTE).unwrap();
    assert_eq!(told(&numbers, START + 31 * MINUTE), 301);
    let half = numbers.graph(&Filter::default(), window(16));
    let (requests, _) = counts(&half, "web", "orders");
    assert!((140..=160).contains(&requests), "{requests} in the first half");
}

#[test]
fn a_scale_that_falls_loses_and_doubles_nothing() {
    let numbers = numbers();
    let mut draw = Draw(3);
    let mut durations = Durations::default();
    for push in 1..=6 {
        for _ in 0..500 {
            durations.nanos.push(1_000_000 + draw.below(900_000_000));
        }
        let scale = [6, 6, 5, 5, 4, 2][push as usize - 1];
        let labels =
            vec![text("throughline.peer.service", "web"), text("throughline.peer.namespace", "shop")];
        let point = exponential(labels, START, START + push * MINUTE, &durations, scale);
        let metric = exponential_histogram(SERVER, vec![point]);
        let body = request(resource("orders", &[]), "throughline", vec![metric]);
        numbers.metrics(&body, START + push * MINUTE).unwrap();
    }
    assert_eq!(told(&numbers, START + 6 * MINUTE), 3000);
    durations.nanos.sort_unstable();
    let figures = crate::push::edge(&graph(&numbers, None), "web", "orders").unwrap();
    let truth = durations.nanos[1499] as f64 / 1e6;
    assert!((figures.p50_ms / truth - 1.0).abs() < 0.05, "{} for {truth}", figures.p50_ms);
}

#[test]
fn a_client_tells_of_a_server_that_does_not_name_itself_and_of_calls_that_reached_nobody() {
    let numbers = numbers();
    let call = |peer: &str, error: &str, count: usize| {
        let mut labels = vec![text("server.address", "orders"), pair("server.port", Value::IntValue(8080))];
        if !peer.is_empty() {
            labels.push(text("throughline.peer.service", peer));
            labels.push(text("throughline.peer.namespace", "shop"));
        }
        if !error.is_empty() {
            labels.push(text("error.type", error));
        }
        explicit(labels, START, START + MINUTE, &some(count))
    };
    let points = vec![call("orders", "", 90), call("", "connection_refused", 4), call("", "timeout", 6)];
    let body = request(resource("web", &[]), "throughline", vec![histogram(CLIENT, points, Cumulative)]);
    numbers.metrics(&body, START + MINUTE).unwrap();
    numbers.metrics(&served(START, START + MINUTE, 96), START + MINUTE).unwrap();
    numbers.tick(START + 2 * MINUTE);
    let graph = graph(&numbers, None);
    assert_eq!(graph.edges.len(), 1, "{:?}", graph.edges);
    // The server counted 96, those that timed out among them; four never reached it.
    assert_eq!(counts(&graph, "web", "orders"), (100, 4));
    assert_eq!(graph.edges[0].unanswered, 6);
    assert_eq!(graph.edges[0].client.unwrap().requests, 90);
}

#[test]
fn a_server_that_named_itself_and_tells_nobody_is_told_by_its_clients() {
    let numbers = numbers();
    let labels = vec![text("throughline.peer.service", "dark"), text("throughline.peer.namespace", "shop")];
    let point = explicit(labels, START, START + MINUTE, &some(8));
    let body = request(resource("web", &[]), "throughline", vec![histogram(CLIENT, vec![point], Cumulative)]);
    numbers.metrics(&body, START + MINUTE).unwrap();
    numbers.tick(START + 2 * MINUTE);
    assert_eq!(counts(&graph(&numbers, None), "web", "dark"), (8, 0));
}

#[test]
fn what_a_sender_could_not_keep_apart_counts_as_other() {
    let numbers = numbers();
    let overflow =
        explicit(vec![pair("otel.metric.overflow", Value::BoolValue(true))], START, START + MINUTE, &some(9));
    let capped = explicit(vec![text("app.operation.name", "_other")], START, START + MINUTE, &some(2));
    let metric = histogram(SERVER, vec![overflow, capped], Cumulative);
    let body = request(resource("orders", &[]), "throughline", vec![metric]);
    numbers.metrics(&body, START + MINUTE).unwrap();
    numbers.tick(START + 2 * MINUTE);
    let graph = graph(&numbers, Some("__other__"));
    assert_eq!((counts(&graph, "__other__", "orders").0, counts(&graph, "user", "orders").0), (9, 2));
}

#[test]
fn metrics_of_others_are_not_taken_for_ours() {
    let numbers = numbers();
    let point = explicit(Vec::new(), START, START + MINUTE, &some(9));
    let body = request(
        resource("orders", &[]),
        "io.opentelemetry.http",
        vec![histogram(SERVER, vec![point], Cumulative)],
    );
    let taken = numbers.metrics(&body, START + MINUTE).unwrap();
    assert_eq!((taken.points, taken.rejected, numbers.books().points_unknown), (1, 0, 1));
    numbers.tick(START + 2 * MINUTE);
    assert!(graph(&numbers, None).edges.is_empty());
}

#[test]
fn points_that_make_no_sense_are_rejected_and_the_others_count() {
    let numbers = numbers();
    let labels = || vec![text("throughline.peer.service", "web"), text("throughline.peer.namespace", "shop")];
    let mut short = explicit(labels(), START, START + MINUTE, &some(9));
    short.bucket_counts.truncate(3);
    let good = explicit([labels(), vec![text("http.route", "/a")]].concat(), START, START + MINUTE, &some(5));
    let metric = histogram(SERVER, vec![short, good], Cumulative);
    let body = request(resource("orders", &[]), "throughline", vec![metric]);
    let taken = numbers.metrics(&body, START + MINUTE).unwrap();
    assert_eq!((taken.points, taken.rejected), (2, 1));
    assert_eq!(told(&numbers, START + MINUTE), 5);
}

#[test]
fn bytes_of_any_kind_are_read_or_refused_and_never_counted_in_part() {
    let numbers = numbers();
    let body = served(START, START + MINUTE, 10);
    let mut draw = Draw(11);
    for _ in 0..20_000 {
        let mut bytes = body.clone();
        for _ in 0..=draw.below(4) {
            let at = draw.below(bytes.len() as u64) as usize;
            bytes[at] = draw.next() as u8;
        }
        bytes.truncate(1 + draw.below(bytes.len() as u64) as usize);
        let before = numbers.books().points;
        if numbers.metrics(&bytes, START + MINUTE).is_err() {
            assert_eq!(numbers.books().points, before);
        }
    }
    numbers.tick(START + 2 * MINUTE);
    let _ = graph(&numbers, None);
}

#[test]
fn topics_and_subscriptions_are_edges_with_their_lag() {
    let numbers = numbers();
    let time = START + MINUTE;
    let topic = vec![text("messaging.system", "gcp_pubsub"), text("messaging.destination.name", "orders")];
    let sent = sum("messaging.client.sent.messages", topic, START, time, 40);
    numbers.metrics(&request(resource("web", &[]), "throughline", vec![sent]), time).unwrap();
    let by = || {
        vec![
            text("messaging.system", "gcp_pubsub"),
            text("messaging.destination.subscription.name", "mailer"),
        ]
    };
    let failed = [by(), vec![text("error.type", "500")]].concat();
    let lag = explicit(by(), START, time, &Durations { nanos: vec![80_000_000; 40] });
    let metrics = vec![
        sum("messaging.client.consumed.messages", by(), START, time, 38),
        sum("messaging.client.consumed.messages", failed, START, time, 2),
        histogram("throughline.message.lag", vec![lag], Cumulative),
    ];
    numbers.metrics(&request(resource("mail", &[]), "throughline", metrics), time).unwrap();
    numbers.tick(time + 5 * SECOND);
    let graph = graph(&numbers, None);
    assert_eq!(counts(&graph, "web", "topic:orders"), (40, 0));
    assert_eq!(counts(&graph, "subscription:mailer", "mail"), (40, 2));
    let lag = &graph.edges.iter().find(|edge| edge.to == "mail").unwrap().lag;
    assert_eq!((lag.len(), lag[0].messages, lag[0].subscription.as_str()), (1, 40, "mailer"));
    assert!((lag[0].avg_ms - 80.0).abs() < 1e-6 && lag[0].p95_ms > 75.0 && lag[0].p95_ms <= 100.0);
    assert!(BOUNDS.contains(&0.1));
}

#[test]
fn what_sidecars_say_of_the_context_is_kept_by_service_and_route() {
    let numbers = numbers();
    let time = START + MINUTE;
    let route =
        |name: &str, route: &str, count| sum(name, vec![text("http.route", route)], START, time, count);
    let metrics = vec![
        route("throughline.context.forwarded", "/a", 90),
        route("throughline.context.dropped", "/a", 1),
        route("throughline.context.dropped", "/b", 7),
        sum("throughline.context.invalid", vec![text("header", "traceparent")], START, time, 3),
        sum("throughline.calls_without_context", Vec::new(), START, time, 9),
        sum("throughline.calls_of_other_traces", Vec::new(), START, time, 4),
        sum("throughline.events_untouched", vec![text("reason", "too_large")], START, time, 2),
    ];
    numbers.metrics(&request(resource("orders", &[]), "throughline", metrics), time).unwrap();
    numbers.tick(time + 5 * SECOND);
    let rows = numbers.propagation(&Filter { service: Some("orders"), ..Filter::default() }, whole());
    assert_eq!(rows.len(), 1);
    let routes: Vec<_> =
        rows[0].routes.iter().map(|row| (row.route.as_str(), row.forwarded, row.dropped)).collect();
    assert_eq!(routes, [("/b", 0, 7), ("/a", 90, 1)]);
    assert_eq!(rows[0].invalid, [("traceparent".to_owned(), 3)]);
    assert_eq!((rows[0].calls_without_context, rows[0].calls_of_other_traces), (9, 4));
    assert_eq!(rows[0].events_untouched, [("too_large".to_owned(), 2)]);
    assert!(graph(&numbers, None).edges.is_empty());
}
