//! A collector's cluster that is not there, or leads nowhere: requests go unharmed, and the books say what was lost.

use std::time::Duration;

use throughline_tests::envoy::{self, Bootstrap};
use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;
use throughline_tests::wire::Nobody;

const REQUESTS: usize = 200;
/// Spans that wait at the most: as many again may be under way.
const QUEUE: u64 = 32;

async fn check_unharmed(row: &str, change: impl FnOnce(Bootstrap) -> Bootstrap) {
    let app = Service::playing(answer(200, "fine")).await;
    let nobody = Nobody::listens();
    let plan = Plan::before("orders", app.address)
        .on(Host::Envoy)
        .flag("otel-bsp-max-queue-size", QUEUE)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", nobody.address))
        .environment("OTEL_METRICS_EXPORTER", "none");
    let sidecar = change(Bootstrap::of(&plan)).start("orders").await;
    let mut connection = Connection::to(sidecar.inbound(), Protocol::H1).await.expect("a connection");
    for _ in 0..REQUESTS {
        let answer = connection.ask(Ask::get(sidecar.url("/"))).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "fine"), "{row}");
    }
    let all_booked = |books: &Books| books.created() == REQUESTS as u64 && books.held() <= 2 * QUEUE;
    let books = sidecar.books_when(row, all_booked).await;
    assert_eq!(books.exported(), 0, "{row}: {}", books.text);
    assert!(books.dropped() >= REQUESTS as u64 - 2 * QUEUE, "{row}: {}", books.text);
    sidecar.waiting_at_most(Duration::from_millis(100)).end().await;
}

#[tokio::test]
async fn a_dead_collector_costs_spans_and_no_requests() {
    if envoy::is_here() {
        check_unharmed("a dead collector", |bootstrap| bootstrap).await;
    }
}

#[tokio::test]
async fn a_cluster_that_is_missing_costs_spans_and_no_requests() {
    if envoy::is_here() {
        check_unharmed("no such cluster", |bootstrap| bootstrap.configure("otlp-cluster", "no-such-cluster"))
            .await;
    }
}

#[tokio::test]
async fn a_collector_that_comes_late_gets_what_is_still_held() {
    if !envoy::is_here() {
        return;
    }
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    collector.always(Reaction::Close);
    let plan = Plan::before("orders", app.address).on(Host::Envoy);
    let plan = plan.environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
    let sidecar = plan.start().await;
    for _ in 0..10 {
        Ask::get(sidecar.url("/")).send().await;
    }
    collector.deliveries_when(1).await;
    collector.always(Reaction::Accept);
    collector.spans(10).await;
    sidecar.books_when("all exported", |books| books.exported() == 10).await;
    sidecar.end().await;
    assert_eq!(collector.accepted().len(), 10, "none came twice");
}
