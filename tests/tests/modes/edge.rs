//! An edge: a trace of its own for every stranger, and behind it the mesh as ever.

use serde_json::{Value, json};
use throughline_tests::prelude::*;
use throughline_tests::service::response;
use throughline_tests::span::span_of;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

#[tokio::test]
async fn strangers_get_a_trace_of_their_own_that_is_whole_behind_the_edge() {
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").runs(answer(200, "")).await;
    let url = stock.url("/items");
    let front = mesh
        .pod("front")
        .environment("THROUGHLINE_TRUST", "edge")
        .flag("edge-operations", "checkout")
        .runs(script(move |visit| {
            let ask = Ask::get(&url).copied(Copying::Everything.from(visit.request.headers()));
            async move {
                visit.outbound.send(ask).await;
                let mut answer = response(200, "");
                answer
                    .headers_mut()
                    .insert("traceresponse", "00-told-by-the-application".parse().expect("a value"));
                answer
            }
        }))
        .await;
    for operation in ["checkout", "evil"] {
        let answer = Ask::get(front.url("/"))
            .header("traceparent", format!("00-{TRACE}-{SPAN}-00"))
            .headers([("tracestate", "rojo=1"), ("x-operation-name", operation)])
            .header("throughline-peer", "service=evil;namespace=x")
            .send()
            .await;
        for name in ["traceresponse", "throughline-peer", "throughline-keep", "traceparent"] {
            assert_eq!(answer.header(name), None, "{name}");
        }
    }
    for app in [front.app(), stock.app()] {
        let seen = app.seen();
        assert!(seen.iter().all(|seen| seen.traceparent().trace != TRACE && seen.traceparent().sampled()));
        let operations: Vec<_> = seen.iter().map(|seen| seen.header("x-operation-name")).collect();
        assert_eq!(operations, [Some("checkout"), None]);
    }
    let spans = mesh.end([front, stock]).await;
    assert_eq!(spans.len(), 6);
    assert_connected(&spans, &[]);
    let first: Vec<_> =
        spans.iter().filter(|span| span["app.operation.name"] == "checkout").cloned().collect();
    let edge = span_of(&first, "front", Kind::Server);
    assert_eq!(edge.links, [(TRACE.to_owned(), SPAN.to_owned())]);
    edge.assert_attributes(&[("throughline.peer.service", Value::Null)]);
    let behind = span_of(&first, "stock", Kind::Server);
    assert_eq!((&behind.trace, &behind["throughline.peer.service"]), (&edge.trace, &json!("front")));
}

#[tokio::test]
async fn a_strangers_flag_is_worth_no_more_than_the_bound() {
    let mesh = Mesh::new().await;
    let front = mesh
        .pod("front")
        .environment("THROUGHLINE_TRUST", "edge")
        .environment("OTEL_TRACES_SAMPLER_ARG", "0")
        .flag("edge-sampled-per-second", "3")
        .runs(answer(200, ""))
        .await;
    let mut connection = Connection::to(front.sidecar.inbound(), Protocol::H1).await.expect("a connection");
    let began = std::time::Instant::now();
    for _ in 0..200 {
        let ask = Ask::get(front.url("/")).header("traceparent", format!("00-{TRACE}-{SPAN}-01"));
        connection.ask(ask).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    drop(connection);
    let spans = mesh.end([front]).await;
    let made = spans.len();
    assert!(made >= 3 && made as f64 <= 3.0 + 3.0 * seconds + 1.0, "{made} in {seconds} s");
    assert!(spans.iter().all(|span| span["throughline.sampled.by"] == "edge"));
}
