//! Spans of others become estimates where no sidecar counts, and only there.

use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality::Cumulative;
use throughline_flow::numbers::{EdgeKind, Filter, Numbers, ToldBy};
use throughline_flow::span::{Incoming, Kind, Known, Sender, Status};

use crate::push::{
    Draw, Durations, MINUTE, SECOND, START, counts, explicit, graph, histogram, numbers, request, resource,
    text, whole,
};

const MS: u64 = 1_000_000;

fn sender<'a>(service: &'a str, ours: bool) -> Sender<'a> {
    Sender { service: service.as_bytes(), namespace: b"shop", ours, ..Sender::default() }
}

fn id(number: u64) -> [u8; 8] {
    (number + 1).to_be_bytes()
}

fn span<'a>(kind: Kind, number: u64, parent: Option<u64>) -> Incoming<'a> {
    Incoming {
        trace_id: [7; 16],
        span_id: id(number),
        parent: parent.map(id),
        kind,
        start_unix_nanos: START + SECOND,
        end_unix_nanos: START + SECOND + 40 * MS,
        known: Known { method: b"GET", ..Known::default() },
        ..Incoming::default()
    }
}

/// Both generations of span ids go by.
fn settle(numbers: &Numbers) {
    for seconds in [12, 24, 36] {
        numbers.tick(START + seconds * SECOND);
    }
}

fn offer(numbers: &Numbers, service: &str, ours: bool, span: &Incoming<'_>) {
    numbers.foreign(0, &sender(service, ours), span, START + 2 * SECOND);
}

#[test]
fn a_call_between_two_sdks_is_one_estimated_request_in_whatever_order_it_comes() {
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2]] {
        let numbers = numbers();
        let spans = [
            ("web", span(Kind::Server, 1, None)),
            ("web", span(Kind::Client, 2, Some(1))),
            ("orders", span(Kind::Server, 3, Some(2))),
        ];
        for at in order {
            offer(&numbers, spans[at].0, false, &spans[at].1);
        }
        settle(&numbers);
        let graph = graph(&numbers, None);
        assert_eq!(graph.edges.len(), 2, "{order:?}: {:?}", graph.edges);
        assert_eq!((counts(&graph, "user", "web").0, counts(&graph, "web", "orders").0), (1, 1));
        let edge = &graph.edges[1];
        assert!(edge.figures.estimated && edge.told_by == ToldBy::Spans);
        assert!((edge.figures.p50_ms / 40.0 - 1.0).abs() < 0.01, "{}", edge.figures.p50_ms);
    }
}

#[test]
fn a_span_stands_for_as_many_requests_as_its_sampler_says() {
    // 2^56 / (2^56 - threshold): 0xe.. leaves an eighth, 0xfd7 some 1 %, 0 everything.
    for (state, expected) in [
        (&b"ot=th:e"[..], 8.0),
        (b"vendor=1,ot=rv:12;th:c", 4.0),
        (b"ot=th:0", 1.0),
        (b"ot=th:fd70a3d70a3d71", 100.0),
        (b"ot=th:zz", 1.0),
        (b"ot=th:fffffffffffffff", 1.0),
        (b"", 1.0),
    ] {
        let numbers = numbers();
        for number in 0..1000 {
            let span = Incoming { trace_state: state, ..span(Kind::Server, number, None) };
            offer(&numbers, "web", false, &span);
        }
        settle(&numbers);
        let graph = graph(&numbers, None);
        let figures = graph.edges[0].figures;
        assert!((figures.requests as f64 / 1000.0 - expected).abs() < 0.01 * expected, "{figures:?}");
        assert!((figures.weight - expected).abs() < 0.01 * expected && figures.estimated);
        assert!((figures.avg_ms - 40.0).abs() < 0.5);
    }
}

/// `service` has a sidecar, which says that it served `count` requests of `web`.
fn sidecar(numbers: &Numbers, service: &str, count: usize) {
    let labels = vec![text("throughline.peer.service", "web"), text("throughline.peer.namespace", "shop")];
    let counted = Durations { nanos: vec![40 * MS; count] };
    let point = explicit(labels, START, START + SECOND, &counted);
    let metric = histogram("http.server.request.duration", vec![point], Cumulative);
    let body = request(resource(service, &[]), "throughline", vec![metric]);
    numbers.metrics(&body, START + SECOND).unwrap();
}

#[test]
fn what_a_sidecar_counts_is_not_counted_by_the_sdk_beside_it() {
    // client of web's SDK, client of web's sidecar, server of orders' sidecar, server of orders' SDK
    let chain = [
        ("web", false, span(Kind::Client, 1, None)),
        ("web", true, span(Kind::Client, 2, Some(1))),
        ("orders", true, span(Kind::Server, 3, Some(2))),
        ("orders", false, span(Kind::Server, 4, Some(3))),
    ];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [0, 3, 1, 2], [3, 0, 2, 1]] {
        let numbers = numbers();
        for at in order {
            let (service, ours, span) = &chain[at];
            offer(&numbers, service, *ours, span);
        }
        sidecar(&numbers, "orders", 1);
        settle(&numbers);
        let graph = graph(&numbers, None);
        assert_eq!(counts(&graph, "web", "orders"), (1, 0), "{order:?}: {:?}", graph.edges);
        assert!(!graph.edges.iter().any(|edge| edge.figures.estimated), "{order:?}: {:?}", graph.edges);
        assert_eq!(graph.edges.len(), 1);
    }
}

#[test]
fn a_sidecar_on_either_side_of_an_edge_is_enough() {
    // orders has no sidecar: its SDK's server span is the child of web's sidecar.
    let first = numbers();
    offer(&first, "web", true, &span(Kind::Client, 2, None));
    offer(&first, "orders", false, &span(Kind::Server, 4, Some(2)));
    settle(&first);
    assert!(graph(&first, None).edges.is_empty(), "{:?}", graph(&first, None).edges);
    // web has no sidecar: its SDK's client span is the parent of orders' sidecar.
    let second = numbers();
    offer(&second, "orders", true, &span(Kind::Server, 4, Some(2)));
    offer(&second, "web", false, &span(Kind::Client, 2, None));
    settle(&second);
    let requests: u64 = graph(&second, None).edges.iter().map(|edge| edge.figures.requests).sum();
    assert_eq!(requests, 0, "{:?}", graph(&second, None).edges);
}

#[test]
fn a_span_names_the_caller_of_what_a_sidecar_counted_and_adds_nothing() {
    let numbers = numbers();
    for number in 0..30 {
        offer(&numbers, "web", false, &span(Kind::Client, 100 + number, None));
        offer(&numbers, "orders", true, &span(Kind::Server, 200 + number, Some(100 + number)));
    }
    let counted = Durations { nanos: vec![40 * MS; 50] };
    let point = explicit(Vec::new(), START, START + SECOND, &counted);
    let metric = histogram("http.server.request.duration", vec![point], Cumulative);
    numbers.metrics(&request(resource("orders", &[]), "throughline", vec![metric]), START + SECOND).unwrap();
    settle(&numbers);
    let graph = graph(&numbers, None);
    assert_eq!((counts(&graph, "user", "orders").0, counts(&graph, "web", "orders").0), (20, 30));
    let orders = graph.nodes.iter().find(|node| node.id == "orders").unwrap();
    assert_eq!(orders.figures.requests, 50);
}

#[test]
fn a_page_that_a_sidecar_speaks_for_is_the_caller_of_what_was_counted() {
    let numbers = numbers();
    for number in 0..30 {
        let mut gesture = span(Kind::Internal, 50 + number, None);
        gesture.known = Known { ui_event: b"button_click", ..gesture.known };
        offer(&numbers, "shop-ui", true, &gesture);
        offer(&numbers, "shop-ui", true, &span(Kind::Client, 100 + number, Some(50 + number)));
        offer(&numbers, "web", true, &span(Kind::Server, 200 + number, Some(100 + number)));
    }
    let point = explicit(Vec::new(), START, START + SECOND, &Durations { nanos: vec![40 * MS; 50] });
    let metric = histogram("http.server.request.duration", vec![point], Cumulative);
    numbers.metrics(&request(resource("web", &[]), "throughline", vec![metric]), START + SECOND).unwrap();
    settle(&numbers);
    let graph = graph(&numbers, None);
    assert_eq!((counts(&graph, "user", "web").0, counts(&graph, "shop-ui", "web").0), (20, 30));
    assert_eq!(graph.edges.len(), 2, "{:?}", graph.edges);
    // Strangers with a name and without are the same strangers, and all of them were counted.
    let entered = numbers.stats(&Filter::default(), whole()).unwrap().figures;
    assert_eq!((entered.requests, entered.estimated), (50, false));
}

#[test]
fn pods_without_a_sidecar_are_estimated_beside_those_that_have_one() {
    let numbers = numbers();
    let pod = |pod: &'static str, ours| Sender { pod: pod.as_bytes(), ..sender("orders", ours) };
    numbers.foreign(0, &pod("orders-1", true), &span(Kind::Server, 1, None), START + SECOND);
    for (number, name) in [(2, "orders-1"), (3, "orders-2"), (4, "orders-2")] {
        numbers.foreign(0, &pod(name, false), &span(Kind::Server, number, None), START + 2 * SECOND);
    }
    settle(&numbers);
    assert_eq!(counts(&graph(&numbers, None), "user", "orders").0, 2);
    assert_eq!(numbers.books().spans_beside_ours, 1);
}

#[test]
fn databases_and_hosts_that_nobody_answers_for_are_told_by_their_clients() {
    let numbers = numbers();
    let mut query = span(Kind::Client, 1, None);
    query.known = Known { db_system: b"postgresql", server_address: b"db.shop", ..Known::default() };
    offer(&numbers, "web", false, &query);
    let mut call = span(Kind::Client, 2, None);
    call.known.server_address = b"api.example.com";
    call.known.server_port = 443;
    call.status = Status::Error;
    offer(&numbers, "web", false, &call);
    settle(&numbers);
    let graph = graph(&numbers, None);
    assert_eq!(counts(&graph, "web", "database:db.shop"), (1, 0));
    assert_eq!(counts(&graph, "web", "api.example.com"), (1, 1));
    assert_eq!(graph.edges.len(), 2);
}

#[test]
fn a_database_is_estimated_though_a_sidecar_stands_beside_its_client() {
    let numbers = numbers();
    sidecar(&numbers, "orders", 1);
    let mut query = span(Kind::Client, 1, None);
    query.known = Known { db_system: b"postgresql", ..Known::default() };
    offer(&numbers, "orders", false, &query);
    settle(&numbers);
    assert_eq!(counts(&graph(&numbers, None), "orders", "database:postgresql"), (1, 0));
}

#[test]
fn messages_are_edges_through_their_topic_with_the_time_between() {
    let numbers = numbers();
    let mut sent = span(Kind::Producer, 1, None);
    sent.known = Known { messaging_system: b"kafka", messaging_destination: b"orders", ..Known::default() };
    let mut taken = span(Kind::Consumer, 2, Some(1));
    taken.known = sent.known;
    taken.start_unix_nanos = sent.end_unix_nanos + 250 * MS;
    taken.end_unix_nanos = taken.start_unix_nanos + 5 * MS;
    offer(&numbers, "mail", false, &taken);
    offer(&numbers, "web", false, &sent);
    settle(&numbers);
    let graph = graph(&numbers, None);
    assert_eq!((counts(&graph, "web", "topic:orders").0, counts(&graph, "topic:orders", "mail").0), (1, 1));
    let delivered = graph.edges.iter().find(|edge| edge.kind == EdgeKind::Deliver).unwrap();
    assert!((delivered.lag[0].p50_ms / 250.0 - 1.0).abs() < 0.011, "{:?}", delivered.lag);
}

#[test]
fn a_call_that_repeats_a_failed_one_is_a_retry() {
    let numbers = numbers();
    for (number, failed) in [(1, true), (2, true), (3, false)] {
        let mut call = span(Kind::Client, number, Some(77));
        call.known.server_address = b"stock";
        call.start_unix_nanos += number * 100 * MS;
        call.end_unix_nanos += number * 100 * MS;
        call.status = if failed { Status::Error } else { Status::Unset };
        offer(&numbers, "web", false, &call);
    }
    settle(&numbers);
    let graph = graph(&numbers, None);
    assert_eq!((graph.edges[0].retries, counts(&graph, "web", "stock")), (2, (3, 2)));
}

/// Drawn traces of SDKs, all spans of a trace in any order: every request is one estimate.
#[test]
fn drawn_traces_of_sdks_equal_a_count_of_their_requests() {
    let (numbers, mut draw) = (numbers(), Draw(5));
    let services = ["a", "b", "c", "d", "e", "f"];
    let mut naive = std::collections::BTreeMap::new();
    let mut next = 0;
    for _ in 0..3000 {
        let mut spans: Vec<(usize, Incoming<'_>)> = Vec::new();
        let mut open = vec![(draw.below(6) as usize, None)];
        while let Some((service, parent)) = open.pop() {
            next += 1;
            let server = next;
            spans.push((service, span(Kind::Server, server, parent)));
            let from = spans
                .iter()
                .find(|(_, span)| Some(span.span_id) == parent.map(id))
                .map(|(service, _)| *service);
            *naive.entry((from, service)).or_insert(0_u64) += 1;
            for _ in 0..draw.below(3) {
                if spans.len() > 20 {
                    break;
                }
                next += 1;
                spans.push((service, span(Kind::Client, next, Some(server))));
                open.push((draw.below(6) as usize, Some(next)));
            }
        }
        // Calls that found no place in the trace have no server: they would be calls of hosts.
        while !spans.is_empty() {
            let at = draw.below(spans.len() as u64) as usize;
            let (service, span) = spans.swap_remove(at);
            offer(&numbers, services[service], false, &span);
        }
    }
    settle(&numbers);
    let graph = graph(&numbers, None);
    assert_eq!(graph.edges.len(), naive.len());
    for ((from, to), expected) in naive {
        let from = from.map_or("user", |from| services[from]);
        assert_eq!(counts(&graph, from, services[to]).0, expected, "{from} to {}", services[to]);
    }
    assert_eq!(numbers.books().spans_pushed_out, 0);
}

#[test]
fn span_ids_are_bounded_and_what_leaves_early_is_counted() {
    let numbers = numbers();
    for number in 0..300_000 {
        offer(&numbers, "web", false, &span(Kind::Client, number, None));
    }
    let books = numbers.books();
    assert!(books.spans_pushed_out > 0 && books.bytes < 200 << 20, "{books:?}");
    settle(&numbers);
    let _ = MINUTE;
    let graph = graph(&numbers, None);
    assert_eq!(counts(&graph, "web", "__other__").0, 300_000);
}
