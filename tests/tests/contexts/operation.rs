//! The operation: where it comes from, where it goes, and what is no operation.

use serde_json::Value;
use throughline_tests::prelude::*;
use throughline_tests::span::span_of;

use crate::traceparent;

#[tokio::test]
async fn the_operation_comes_from_its_header_or_else_from_baggage() {
    // Header lines; the operation that counts.
    type Lines = &'static [(&'static str, &'static str)];
    let rows: [(Lines, Option<&str>); 9] = [
        (&[("x-operation-name", "checkout")], Some("checkout")),
        (&[("baggage", "app.operation.name=refund")], Some("refund")),
        (&[("baggage", "a=1,app.operation.name=re%66und;p=1,b=2")], Some("refund")),
        (&[("x-operation-name", "checkout"), ("baggage", "app.operation.name=refund")], Some("checkout")),
        (&[("x-operation-name", "two words"), ("baggage", "app.operation.name=refund")], Some("refund")),
        (&[("x-operation-name", "a,b")], None),
        (&[("x-operation-name", "caf\u{e9}")], None),
        (&[("x-operation-name", "")], None),
        (&[], None),
    ];
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    for (number, (lines, _)) in rows.iter().enumerate() {
        let answer =
            Ask::get(orders.url(&format!("/row-{number}"))).headers(lines.iter().copied()).send().await;
        assert_eq!(answer.status, 200, "{lines:?}");
    }
    let ignored = orders.books().await.sum("throughline_operations_ignored_total", &[]);
    assert!((3..=4).contains(&ignored), "{ignored} ignored");
    let spans = mesh.end([orders]).await;
    for (number, (lines, operation)) in rows.iter().enumerate() {
        let span = the_only(&spans, |span| span["url.path"] == format!("/row-{number}"));
        assert_eq!(span["app.operation.name"].as_str(), *operation, "{lines:?}");
    }
}

#[tokio::test]
async fn an_operation_of_128_bytes_is_one_and_of_129_is_none() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    for length in [128, 129] {
        let ask = Ask::get(orders.url(&format!("/{length}")));
        ask.header("x-operation-name", "o".repeat(length)).send().await;
    }
    let spans = mesh.end([orders]).await;
    let span = |path: &str| the_only(&spans, |span| span["url.path"] == path);
    assert_eq!(span("/128")["app.operation.name"], "o".repeat(128));
    assert_eq!(span("/129")["app.operation.name"], Value::Null);
}

#[tokio::test]
async fn the_application_learns_the_operation_in_header_and_baggage() {
    for line in [("x-operation-name", "checkout"), ("baggage", "app.operation.name=checkout")] {
        let mesh = Mesh::new().await;
        let orders = mesh.pod("orders").runs(answer(200, "")).await;
        Ask::get(orders.url("/")).headers([line]).send().await;
        let seen = orders.app().saw_one();
        assert_eq!(seen.header("x-operation-name"), Some("checkout"), "{line:?}");
        let baggage = seen.header("baggage").unwrap_or("");
        assert!(baggage.contains("app.operation.name=checkout"), "{line:?}: {baggage}");
        mesh.end([orders]).await;
    }
}

#[tokio::test]
async fn an_application_may_begin_another_operation() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let url = stock.url("/items");
    let orders = mesh
        .pod("orders")
        .runs(script(move |visit| {
            let ask = Ask::get(&url)
                .copied(Copying::TraceContext.from(visit.request.headers()))
                .header("x-operation-name", "restock");
            async move {
                visit.outbound.send(ask).await;
                throughline_tests::service::response(200, "")
            }
        }))
        .await;
    Ask::get(orders.url("/")).header("x-operation-name", "checkout").send().await;
    assert_eq!(stock.saw_one().header("x-operation-name"), Some("restock"));
    let spans = mesh.end([orders]).await;
    assert_eq!(span_of(&spans, "orders", Kind::Server)["app.operation.name"], "checkout");
    assert_eq!(span_of(&spans, "orders", Kind::Client)["app.operation.name"], "restock");
}

#[tokio::test]
async fn labels_of_metrics_are_capped_and_spans_keep_the_name() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    let mut connection = Connection::to(orders.sidecar.inbound(), Protocol::H1).await.expect("a connection");
    for number in 0..300 {
        connection.ask(Ask::get(orders.url("/")).header("x-operation-name", format!("op-{number}"))).await;
    }
    drop(connection);
    let books = orders.books().await;
    let name = "http_server_request_duration_seconds_count";
    let labels = books.labels(name, "app_operation_name");
    assert!(labels.len() <= 202 && labels.iter().any(|label| label == "_other"), "{} labels", labels.len());
    assert_eq!(books.sum(name, &[]), 300, "capped labels lose no request");
    let spans = mesh.end([orders]).await;
    the_only(&spans, |span| span["app.operation.name"] == "op-299");
}

#[tokio::test]
async fn baggage_of_any_shape_never_fails_a_request_and_is_carried_up_to_its_limits() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let orders = mesh.pod("orders").runs(calling(stock.url("/items"), Copying::TraceparentOnly)).await;
    let members: Vec<_> = (0..64).map(|number| format!("key{number}=value-{number}")).collect();
    let ask = |baggage: &str| {
        Ask::get(orders.url("/"))
            .headers([("traceparent", traceparent("01").as_str()), ("baggage", baggage)])
            .send()
    };
    assert_eq!(ask(&members.join(",")).await.status, 200);
    let arrived = stock.saw(1).await.remove(0).header("baggage").expect("baggage").to_owned();
    for member in &members {
        assert!(arrived.split(',').any(|found| found.trim() == member), "{member} is missing in {arrived}");
    }
    for bad in ["", ",,,", "=", "a", "a==", "%", "a=%zz", "\u{e4}=\u{f6}", &"x".repeat(9000)] {
        assert_eq!(ask(bad).await.status, 200, "{bad:?}");
    }
    mesh.end([orders]).await;
}
