//! The access log: one line of JSON per exchange, with the ids of its span.

use serde_json::json;
use throughline_tests::prelude::*;
use throughline_tests::service::{read, response};
use throughline_tests::span::span_of;

#[tokio::test]
async fn each_exchange_is_a_line_with_the_ids_of_its_span() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(404, "none")).await;
    let url = stock.url("/items/7?sig=secret");
    let orders = mesh
        .pod("orders")
        .flag("access-log", "stdout")
        .runs(script(move |visit| {
            let ask = Ask::get(&url).copied(Copying::Everything.from(visit.request.headers()));
            async move {
                read(visit.request).await;
                let answer = visit.outbound.send(ask).await;
                response(answer.status, answer.body)
            }
        }))
        .await;
    Ask::post(orders.url("/place?a=b"), "12345").header("x-operation-name", "checkout").send().await;
    let inbound = orders.sidecar.access_line(|line| line["direction"] == "inbound").await;
    let outbound = orders.sidecar.access_line(|line| line["direction"] == "outbound").await;
    for line in [&inbound, &outbound] {
        assert!(line["timestamp"].is_string() && line["duration_ms"].is_number(), "{line}");
        assert_eq!((&line["status"], &line["operation"]), (&json!(404), &json!("checkout")), "{line}");
        assert!(!line.to_string().contains("secret"), "{line}");
    }
    assert_eq!((&inbound["method"], &inbound["path"]), (&json!("POST"), &json!("/place")));
    assert_eq!((&inbound["bytes_in"], &inbound["bytes_out"]), (&json!(5), &json!(4)), "{inbound}");
    assert_eq!((&outbound["method"], &outbound["path"]), (&json!("GET"), &json!("/items/7")));
    let spans = mesh.end([orders]).await;
    for (line, kind) in [(inbound, Kind::Server), (outbound, Kind::Client)] {
        let span = span_of(&spans, "orders", kind);
        assert_eq!((&line["trace_id"], &line["span_id"]), (&json!(span.trace), &json!(span.id)));
    }
}

#[tokio::test]
async fn unsampled_exchanges_have_their_line_too() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .flag("access-log", "stdout")
        .environment("OTEL_TRACES_SAMPLER", "always_off")
        .runs(answer(200, ""))
        .await;
    Ask::get(orders.url("/quiet")).send().await;
    let line = orders.sidecar.access_line(|line| line["path"] == "/quiet").await;
    let trace = orders.app().saw_one().traceparent().trace;
    assert_eq!(line["trace_id"], json!(trace));
    assert!(mesh.end([orders]).await.is_empty());
}

#[tokio::test]
async fn hostile_bytes_stay_inside_their_line() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("access-log", "stdout").runs(answer(200, "")).await;
    let request = b"GET /\"}%0a{\"x\":\"y\\ HTTP/1.1\r\nHost: a\"b\r\nUser-Agent: \"\\\xff\xfe\r\nConnection: close\r\n\r\n";
    throughline_tests::wire::exchange(orders.sidecar.inbound(), request).await;
    Ask::get(orders.url("/next")).send().await;
    orders.sidecar.access_line(|line| line["path"] == "/next").await;
    for line in orders.end().await.stdout {
        let value: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(value["direction"] == "inbound" && value["x"].is_null(), "{line}");
    }
}

#[tokio::test]
async fn an_outcome_says_how_it_ended() {
    let mesh = Mesh::new().await;
    let nobody = throughline_tests::wire::Nobody::listens();
    let orders = mesh.pod("orders").flag("access-log", "stdout").before(nobody.address).await;
    Ask::get(orders.url("/")).send().await;
    let line = orders.sidecar.access_line(|_| true).await;
    assert_eq!(line["status"], json!(502));
    assert!(line.to_string().contains("connection_refused"), "{line}");
    mesh.end([orders]).await;
}
