//! Exporters other than OTLP: lines to read, and none.

use throughline_tests::prelude::*;

#[tokio::test]
async fn the_console_exporter_prints_lines_that_one_can_read() {
    let mesh = Mesh::new().await;
    let orders =
        mesh.pod("orders").environment("OTEL_TRACES_EXPORTER", "console").runs(answer(503, "")).await;
    Ask::get(orders.url("/items/7")).header("x-operation-name", "checkout").send().await;
    let trace = orders.app().saw_one().traceparent().trace;
    let line = orders.sidecar.printed(|line| line.contains(&trace)).await;
    for word in ["GET /items/{id}", "checkout", "503"] {
        assert!(line.contains(word), "{word:?} is missing in {line:?}");
    }
    orders.sidecar.books_when("the span counted", |books| books.exported() == 1).await;
    assert!(mesh.end([orders]).await.is_empty());
    assert!(mesh.collector.deliveries().is_empty());
}

#[tokio::test]
async fn without_an_exporter_contexts_travel_and_nothing_is_sent() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .environment("OTEL_TRACES_EXPORTER", "none")
        .environment("OTEL_METRICS_EXPORTER", "none")
        .runs(answer(200, ""))
        .await;
    for _ in 0..50 {
        Ask::get(orders.url("/")).send().await;
    }
    orders.app().seen()[0].traceparent();
    let books = orders.books().await;
    // The filter shows Envoy no durations: it pushes them.
    let counted = books.sum("http_server_request_duration_seconds_count", &[]);
    assert_eq!(counted, Host::asked().choose(50, 0));
    assert_eq!(books.held(), 0, "{}", books.text);
    assert!(mesh.end([orders]).await.is_empty());
    assert_eq!(mesh.collector.connections(), 0);
}
