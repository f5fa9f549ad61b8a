//! The debug build, whose arithmetic and assertions are checked: many streams at once, every span counted.

use throughline_tests::ask::Open;
use throughline_tests::judges::skipped;
use throughline_tests::prelude::*;
use throughline_tests::service::response;
use throughline_tests::sidecar::Build;

const STREAMS: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debug_build_serves_200_concurrent_streams_and_no_span_is_lost_or_doubled() {
    if Build::Debug.path().is_none() {
        return skipped("no debug build of the sidecar: cargo build -p throughline-proxy");
    }
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "12")).await;
    // No request is answered before all of them are in flight.
    let (url, gate) = (stock.url("/items"), std::sync::Arc::new(tokio::sync::Barrier::new(STREAMS)));
    let orders = mesh
        .pod("orders")
        .build(Build::Debug)
        .runs(script(move |visit| {
            let (url, gate) = (url.clone(), std::sync::Arc::clone(&gate));
            async move {
                gate.wait().await;
                let ask = Ask::get(&url).copied(Copying::TraceparentOnly.from(visit.request.headers()));
                let answer = visit.outbound.send(ask).await;
                response(answer.status, answer.body)
            }
        }))
        .await;
    let connection = Connection::to(orders.sidecar.inbound(), Protocol::H2).await.expect("a connection");
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..STREAMS {
        let sender = connection.share();
        let ask = Ask::get(orders.url(&format!("/place?n={number}"))).header("x-operation-name", "checkout");
        asking.spawn(async move { Open::new(ask.on(sender).await, None).rest().await });
    }
    for answer in within("all answers", asking.join_all()).await {
        assert_eq!((answer.status, answer.text().as_str()), (200, "12"));
    }
    drop(connection);
    let spans = mesh.end([orders]).await;
    assert_connected(&spans, &[]);
    let of = |kind: Kind| spans.iter().filter(|span| span.kind == kind).count();
    assert_eq!((of(Kind::Server), of(Kind::Client)), (STREAMS, STREAMS));
}
