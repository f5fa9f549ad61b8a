//! Caps: what is over one is `__other__`, and nothing is lost.

use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality::Cumulative;
use throughline_flow::numbers::{Filter, Health, Numbers, Options};

use crate::push::{
    Durations, MINUTE, SECOND, START, counts, explicit, graph, histogram, numbers, request, resource, text,
    whole, window,
};

fn serve(numbers: &Numbers, service: &str, rows: &[(&str, &str, &str, usize)], time: u64) {
    let points = rows.iter().map(|(operation, route, error, count)| {
        let mut labels = vec![text("app.operation.name", operation), text("http.route", route)];
        if !error.is_empty() {
            labels.push(text("error.type", error));
        }
        explicit(labels, START, time, &Durations { nanos: vec![3_000_000; *count] })
    });
    let metric = histogram("http.server.request.duration", points.collect(), Cumulative);
    numbers.metrics(&request(resource(service, &[]), "throughline", vec![metric]), time).unwrap();
}

#[test]
fn operations_over_the_cap_are_other_and_sums_stay_exact() {
    let numbers = numbers();
    for number in 0..700 {
        let operation = format!("op{number}");
        serve(&numbers, &format!("s{}", number % 7), &[(&operation, "/a", "", 2)], START + MINUTE);
    }
    numbers.tick(START + 2 * MINUTE);
    let rows = numbers.operations(None, whole());
    assert_eq!(rows.len(), 501);
    assert_eq!((rows[0].name.as_str(), rows[0].figures.requests), ("__other__", 400));
    let all: u64 = rows.iter().map(|row| row.figures.requests).sum();
    assert_eq!((all, numbers.stats(&Filter::default(), whole()).unwrap().figures.requests), (1400, 1400));
    let books = numbers.books();
    assert!(books.over_cap >= 200 && books.operations == 500, "{books:?}");
}

#[test]
fn services_over_the_cap_are_other_and_sums_stay_exact() {
    let numbers = numbers();
    for number in 0..1100 {
        serve(&numbers, &format!("s{number}"), &[("buy", "/a", "", 1)], START + MINUTE);
    }
    numbers.tick(START + 2 * MINUTE);
    let graph = graph(&numbers, Some("buy"));
    assert_eq!((graph.nodes.len(), counts(&graph, "user", "__other__").0), (1002, 100));
    assert_eq!(graph.edges.iter().map(|edge| edge.figures.requests).sum::<u64>(), 1100);
}

#[test]
fn memory_is_bounded_by_letting_old_minutes_become_coarser() {
    let options = Options { bytes_max: 60_000, ..Options::default() };
    let numbers = Numbers::new(options, START);
    let routes: Vec<String> = (0..20).map(|number| format!("/r{number}")).collect();
    for minute in 1..=600 {
        let rows: Vec<_> = routes.iter().map(|route| ("buy", route.as_str(), "", minute as usize)).collect();
        serve(&numbers, "orders", &rows, START + minute * MINUTE);
        numbers.tick(START + minute * MINUTE);
    }
    let books = numbers.books();
    assert!(books.minutes_coarsened_early > 0 && books.bytes < 1_500_000, "{books:?}");
    assert_eq!(counts(&graph(&numbers, None), "user", "orders").0, 600 * 20);
}

#[test]
fn a_node_is_well_until_its_thresholds_say_otherwise() {
    let numbers = numbers();
    for (service, good, bad) in [("a", 96, 4), ("b", 94, 6), ("c", 40, 60), ("d", 0, 4)] {
        serve(&numbers, service, &[("buy", "/a", "", good), ("buy", "/a", "503", bad)], START + MINUTE);
    }
    numbers.tick(START + 2 * MINUTE);
    let rows = numbers.services(&Filter::default(), whole());
    let health: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.health)).collect();
    // Four requests are too few to say anything.
    let expected =
        [("a", Health::Healthy), ("b", Health::Degraded), ("c", Health::Down), ("d", Health::Healthy)];
    assert_eq!(health, expected);
}

#[test]
fn services_have_pods_versions_rates_and_neighbours() {
    let numbers = numbers();
    for pod in ["orders-1", "orders-2"] {
        let of = resource(
            "orders",
            &[
                ("k8s.pod.name", pod),
                ("k8s.node.name", "node-7"),
                ("service.version", "1.4.2"),
                ("k8s.deployment.name", "orders"),
                ("deployment.environment.name", "prod"),
            ],
        );
        let labels =
            vec![text("throughline.peer.service", "web"), text("throughline.peer.namespace", "front")];
        let point = explicit(labels, START, START + MINUTE, &Durations { nanos: vec![3_000_000; 300] });
        let metric = histogram("http.server.request.duration", vec![point], Cumulative);
        numbers.metrics(&request(of, "throughline", vec![metric]), START + MINUTE).unwrap();
    }
    numbers.tick(START + MINUTE + 5 * SECOND);
    let filter = Filter { environment: Some("prod"), service: Some("orders"), ..Filter::default() };
    let rows = numbers.services(&filter, window(2));
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!(
        (row.version.as_str(), row.deployment.as_str(), row.namespace.as_str()),
        ("1.4.2", "orders", "shop")
    );
    assert_eq!(
        (row.pods.len(), row.pods[0].node.as_str(), row.upstream.as_slice()),
        (2, "node-7", &["web".to_owned()][..])
    );
    assert!((row.request_rate - 5.0).abs() < 1e-9 && row.ours);
    assert_eq!(numbers.environments(), ["", "prod"]);
    assert!(
        numbers.services(&Filter { environment: Some("dev"), ..Filter::default() }, window(2)).is_empty()
    );
    let previous = window(2).previous();
    assert!(numbers.graph(&Filter::default(), previous).edges.is_empty());
}

#[test]
fn moments_that_nobody_can_mean_are_taken_for_now() {
    let numbers = numbers();
    for number in 0..5_000_u64 {
        let route = format!("/r{}", number % 5);
        let rows = [("buy", route.as_str(), "", 1)];
        // Thousands of senders, each at a time of its own, from 1970 to the far future.
        serve_by(&numbers, &format!("orders-{number}"), &rows, number * 1_000_000_000_000_000);
    }
    numbers.tick(START + 2 * MINUTE);
    assert_eq!(counts(&graph(&numbers, None), "user", "orders").0, 5_000);
    let books = numbers.books();
    assert!(books.bytes < 20 << 20, "{books:?}");
}

fn serve_by(numbers: &Numbers, instance: &str, rows: &[(&str, &str, &str, usize)], time: u64) {
    let points = rows.iter().map(|(operation, route, _, count)| {
        let labels = vec![text("app.operation.name", operation), text("http.route", route)];
        explicit(labels, START, time, &Durations { nanos: vec![3_000_000; *count] })
    });
    let metric = histogram("http.server.request.duration", points.collect(), Cumulative);
    let of = resource("orders", &[("service.instance.id", instance)]);
    numbers.metrics(&request(of, "throughline", vec![metric]), START + MINUTE).unwrap();
}
