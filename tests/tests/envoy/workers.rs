//! Several workers: an inbound request may be served by one and the application's calls by another.

use serde_json::json;
use throughline_tests::envoy;
use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;
use throughline_tests::span::span_of;

const REQUESTS: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_restore_and_count_like_one() {
    if !envoy::is_here() {
        return;
    }
    let collector = Collector::start().await;
    let stock = Service::playing(answer(200, "12")).await;
    // Only traceparent is forwarded: the operation must be restored, on whichever worker the call goes out.
    let orders = Service::playing(calling(stock.url("/items"), Copying::TraceparentOnly)).await;
    let sidecar = Plan::before("orders", orders.address)
        .on(Host::Envoy)
        .workers(2)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .start()
        .await;
    orders.outbound.is_at(sidecar.outbound());
    let asks = (0..REQUESTS).map(|number| {
        let ask = Ask::get(sidecar.url("/orders")).header("x-operation-name", format!("checkout-{number}"));
        tokio::spawn(ask.send())
    });
    for ask in asks.collect::<Vec<_>>() {
        assert_eq!(ask.await.expect("an answer").text(), "12");
    }
    let books = sidecar.books_when("all exported", |books| books.exported() == 2 * REQUESTS as u64).await;
    assert_eq!(books.dropped(), 0, "{}", books.text);
    sidecar.end().await;
    let spans = collector.accepted();
    assert_eq!(spans.len(), 2 * REQUESTS);
    assert_connected(&spans, &[]);
    for number in 0..REQUESTS {
        let operation = json!(format!("checkout-{number}"));
        let of_it: Vec<_> =
            spans.iter().filter(|span| span["app.operation.name"] == operation).cloned().collect();
        let (server, client) =
            (span_of(&of_it, "orders", Kind::Server), span_of(&of_it, "orders", Kind::Client));
        assert_eq!((client.trace, client.parent), (server.trace, server.id), "{operation}");
    }
    let operations = stock.seen();
    assert!(operations.iter().all(|seen| seen.header("x-operation-name").is_some()), "{operations:#?}");
}
