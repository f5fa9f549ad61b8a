//! `full`: every exchange, with its phases.

use serde_json::json;
use throughline_tests::ask::BOTH;
use throughline_tests::feed::fed;
use throughline_tests::prelude::*;
use throughline_tests::span::span_of;

fn phases<'a>(spans: &'a [Span], of: &Span) -> Vec<&'a str> {
    spans
        .iter()
        .filter(|span| span.parent == of.id && span.kind == Kind::Internal)
        .map(|s| s.name.as_str())
        .collect()
}

#[tokio::test]
async fn every_exchange_is_there_with_three_to_five_children_whatever_the_sampler_says() {
    for protocol in BOTH {
        let mesh = Mesh::new().await;
        let full = |name: &str| {
            mesh.pod(name)
                .environment("THROUGHLINE_MODE", "full")
                .environment("OTEL_TRACES_SAMPLER", "always_off")
        };
        let stock = full("stock").runs(echo()).await;
        let url = stock.url("/items");
        let orders =
            full("orders")
                .runs(script(move |visit| {
                    let ask =
                        Ask::post(&url, "cups").copied(Copying::Everything.from(visit.request.headers()));
                    async move {
                        throughline_tests::service::response(visit.outbound.send(ask).await.status, "made")
                    }
                }))
                .await;
        let answer = Ask::get(orders.url("/place")).over(protocol).send().await;
        assert_eq!(answer.text(), "made");
        let spans = mesh.end([orders, stock]).await;
        assert_connected(&spans, &[]);
        let with_body = ["connect", "send request", "wait for answer", "receive answer"];
        let without = ["connect", "wait for answer", "receive answer"];
        for (service, kind, wanted) in [
            ("orders", Kind::Server, &without[..]),
            ("orders", Kind::Client, &with_body),
            ("stock", Kind::Server, &with_body),
        ] {
            let span = span_of(&spans, service, kind);
            assert_eq!(phases(&spans, &span), wanted, "{protocol:?} {service}");
            for phase in spans.iter().filter(|phase| phase.parent == span.id && phase.kind == Kind::Internal)
            {
                assert!(phase.start >= span.start && phase.end <= span.end, "{phase:#?} in {span:#?}");
            }
        }
        assert_eq!(span_of(&spans, "orders", Kind::Server)["throughline.sampled.by"], json!("full"));
    }
}

#[tokio::test]
async fn a_slow_upload_is_seen_where_it_was_slow() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").environment("THROUGHLINE_MODE", "full").runs(echo()).await;
    let (feeder, body) = fed();
    let sending = Ask::new("POST", orders.url("/")).body(body).open();
    let (mut open, _) = tokio::join!(sending, feeder.send("first"));
    open.piece().await.expect("a piece");
    feeder.send("second").await;
    open.piece().await.expect("a piece");
    drop(feeder);
    open.rest().await;
    let spans = mesh.end([orders]).await;
    let (sent, waited) =
        (the_only(&spans, |s| s.name == "send request"), the_only(&spans, |s| s.name == "wait for answer"));
    assert!(sent.end >= waited.end, "the answer came first: {spans:#?}");
}

#[tokio::test]
async fn a_call_that_finds_nobody_ends_in_the_phase_that_failed() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").environment("THROUGHLINE_MODE", "full").outbound_only().await;
    let nobody = throughline_tests::wire::Nobody::listens();
    let answer = Ask::get(format!("http://{}/", nobody.address)).via(orders.sidecar.outbound()).send().await;
    assert_eq!(answer.status, Host::asked().choose(502, 503));
    let spans = mesh.end([orders]).await;
    let client = span_of(&spans, "orders", Kind::Client);
    assert_eq!(phases(&spans, &client), ["connect"]);
    assert_eq!(the_only(&spans, |span| span.name == "connect").status, SpanStatus::Error);
}
