//! gRPC: unary and streaming, the status in trailers or in the head.

use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use throughline_tests::feed::fed;
use throughline_tests::grpc::{answered, answering, framed, messages, streaming, trailers_only};
use throughline_tests::prelude::*;
use throughline_tests::service::read;

fn call(url: String, message: &[u8]) -> Ask {
    Ask::post(url, framed(message))
        .over(Protocol::H2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

#[tokio::test]
async fn a_unary_call_passes_with_its_trailers() {
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").runs(answering(&[b"twelve"], 0)).await;
    let answer = call(stock.url("/shop.Stock/Count"), b"cups").send().await;
    assert_eq!(messages(answer.body.clone()), ["twelve"]);
    assert_eq!(
        (answer.trailer("grpc-status"), answer.header("content-type")),
        (Some("0"), Some("application/grpc"))
    );
    assert_eq!(stock.app().saw_one().header("te"), Some("trailers"));
    let spans = mesh.end([stock]).await;
    let span = the_only(&spans, |_| true);
    assert_eq!((span.name.as_str(), span.status), ("shop.Stock/Count", SpanStatus::Unset));
    span.assert_attributes(&[
        ("rpc.system.name", json!("grpc")),
        ("rpc.method", json!("shop.Stock/Count")),
        ("rpc.status_code", json!("OK")),
        ("error.type", Value::Null),
    ]);
}

#[tokio::test]
async fn a_status_is_judged_by_the_side_that_sees_it() {
    let mesh = Mesh::new().await;
    let stock = mesh
        .pod("stock")
        .runs(script(|visit| async move {
            let path = visit.request.uri().path().to_owned();
            let code = path.rsplit("Code").next().and_then(|text| text.parse().ok()).unwrap_or(2);
            read(visit.request).await;
            if path.contains("Trailers") {
                answered(vec![Bytes::from("m")], code)
            } else {
                trailers_only(code)
            }
        }))
        .await;
    // Code; its name; whether a server's span is an error. A client's is one for every code but 0.
    let rows: [(u32, &str, bool); 17] = [
        (0, "OK", false),
        (1, "CANCELLED", false),
        (2, "UNKNOWN", true),
        (3, "INVALID_ARGUMENT", false),
        (4, "DEADLINE_EXCEEDED", true),
        (5, "NOT_FOUND", false),
        (6, "ALREADY_EXISTS", false),
        (7, "PERMISSION_DENIED", false),
        (8, "RESOURCE_EXHAUSTED", false),
        (9, "FAILED_PRECONDITION", false),
        (10, "ABORTED", false),
        (11, "OUT_OF_RANGE", false),
        (12, "UNIMPLEMENTED", true),
        (13, "INTERNAL", true),
        (14, "UNAVAILABLE", true),
        (15, "DATA_LOSS", true),
        (16, "UNAUTHENTICATED", false),
    ];
    for (code, _, _) in rows {
        for form in ["Trailers", "Head"] {
            let path = format!("/t.T/{form}Code{code}");
            let inbound = call(stock.url(&path), b"").send().await;
            let outbound = call(stock.app().url(&path), b"").via(stock.sidecar.outbound()).send().await;
            let wanted = code.to_string();
            for answer in [inbound, outbound] {
                let found = answer.trailer("grpc-status").or(answer.header("grpc-status"));
                assert_eq!(found, Some(wanted.as_str()), "{path}");
            }
        }
    }
    let spans = mesh.end([stock]).await;
    assert_eq!(spans.len(), 68);
    for (code, name, server_error) in rows {
        for form in ["Trailers", "Head"] {
            for (kind, error) in [(Kind::Server, server_error), (Kind::Client, code != 0)] {
                let wanted = format!("t.T/{form}Code{code}");
                let about =
                    |span: &Span| span["url.path"].as_str().or(span["url.full"].as_str()).map(str::to_owned);
                let asked = |span: &Span| about(span).is_some_and(|url| url.ends_with(&wanted));
                let span = the_only(&spans, |span| asked(span) && span.kind == kind);
                // Only methods that exist name spans: anybody can call what is not there.
                assert_eq!(span.name, if code == 12 { "grpc" } else { &wanted }, "{wanted} {kind:?}");
                let status = if error { SpanStatus::Error } else { SpanStatus::Unset };
                assert_eq!(span.status, status, "{wanted} {kind:?}");
                assert_eq!(span["rpc.status_code"], name, "{wanted} {kind:?}");
                assert_eq!(span["error.type"].as_str(), error.then_some(name), "{wanted} {kind:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_stream_of_messages_flows_both_ways_and_ends_with_its_trailers() {
    let mesh = Mesh::new().await;
    let stock = mesh
        .pod("stock")
        .runs(script(|visit| async move {
            let (feeder, response) = streaming();
            let mut body = visit.request.into_body();
            tokio::spawn(async move {
                while let Some(Ok(frame)) = body.frame().await {
                    if let Ok(data) = frame.into_data() {
                        feeder.send(data).await;
                    }
                }
                feeder.trailers(throughline_tests::grpc::status(14)).await;
            });
            response
        }))
        .await;
    let (feeder, body) = fed();
    let asking = Ask::new("POST", stock.url("/shop.Stock/Watch"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .over(Protocol::H2)
        .body(body)
        .open();
    let (mut open, _) = tokio::join!(asking, feeder.send(framed(b"0")));
    for number in 1..=5_u8 {
        let piece = open.piece().await.expect("unbroken").expect("a message");
        assert_eq!(piece, framed(&[b'0' + number - 1]));
        feeder.send(framed(&[b'0' + number])).await;
    }
    assert_eq!(stock.books().await.created(), 0, "a stream that lives has no span yet");
    drop(feeder);
    let answer = open.rest().await;
    assert_eq!(answer.trailer("grpc-status"), Some("14"));
    let spans = mesh.end([stock]).await;
    let span = the_only(&spans, |_| true);
    assert_eq!((span.name.as_str(), span.status), ("shop.Stock/Watch", SpanStatus::Error));
    assert_eq!(span["error.type"], "UNAVAILABLE");
}

#[tokio::test]
async fn a_call_travels_through_two_pods_as_one_trace() {
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").runs(answering(&[b"12"], 0)).await;
    let url = stock.url("/shop.Stock/Count");
    let orders = mesh
        .pod("orders")
        .runs(script(move |visit| {
            let ask = call(url.clone(), b"cups").copied(Copying::Everything.from(visit.request.headers()));
            async move {
                let answer = visit.outbound.send(ask).await;
                assert_eq!(answer.trailer("grpc-status"), Some("0"));
                answered(messages(answer.body), 0)
            }
        }))
        .await;
    let answer =
        call(orders.url("/shop.Orders/Place"), b"").header("x-operation-name", "checkout").send().await;
    assert_eq!(messages(answer.body), ["12"]);
    let spans = mesh.end([orders, stock]).await;
    assert_eq!(spans.len(), 3);
    assert_connected(&spans, &[]);
    assert!(
        spans.iter().all(|span| span["app.operation.name"] == "checkout" && span.trace == spans[0].trace)
    );
}

#[tokio::test]
async fn refused_grpc_calls_get_an_answer_that_grpc_understands_or_a_502() {
    let mesh = Mesh::new().await;
    let nobody = throughline_tests::wire::Nobody::listens();
    let stock = mesh.pod("stock").before(nobody.address).await;
    let answer = call(stock.url("/shop.Stock/Count"), b"").send().await;
    let unavailable = answer.header("grpc-status") == Some("14");
    assert!(answer.status == 502 || unavailable, "{answer:?}");
    let spans = mesh.end([stock]).await;
    let span = the_only(&spans, |_| true);
    assert_eq!((span.status, &span["error.type"]), (SpanStatus::Error, &json!("connection_refused")));
}
