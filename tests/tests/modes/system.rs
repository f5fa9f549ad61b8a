//! `system-only` and `off`: requests pass as if nobody were there.

use serde_json::json;
use throughline_tests::prelude::*;

const CONTEXT: [(&str, &str); 4] = [
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("tracestate", "a=1, b=2"),
    ("baggage", "x = 1"),
    ("x-operation-name", "checkout"),
];

#[tokio::test]
async fn contexts_pass_untouched_and_only_own_work_becomes_spans() {
    for (mode, wanted) in [("off", &[][..]), ("system-only", &["throughline detection", "throughline drain"])]
    {
        let mesh = Mesh::new().await;
        let stock = mesh.pod("stock").environment("THROUGHLINE_MODE", mode).runs(answer(503, "")).await;
        let url = stock.url("/items");
        let orders = mesh
            .pod("orders")
            .environment("THROUGHLINE_MODE", mode)
            .runs(calling(url, Copying::Everything))
            .await;
        Ask::get(orders.url("/")).headers(CONTEXT).send().await;
        for app in [orders.app(), stock.app()] {
            let seen = app.saw_one();
            for (name, value) in CONTEXT {
                assert_eq!(seen.header(name), Some(value), "{mode}");
            }
            assert_eq!(seen.header("throughline-peer"), None);
        }
        // Something that is no HTTP is own work: it is found out and refused.
        let refused =
            throughline_tests::wire::exchange(orders.sidecar.inbound(), "\x16\x03\x01\x02\x00rest").await;
        assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
        let books = orders.books().await;
        assert_eq!(books.sum("http_server_request_duration_seconds_count", &[]), 1, "{mode}");
        let spans = mesh.end([orders]).await;
        stock.end().await;
        let mut names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, wanted, "{mode}");
        assert!(spans.iter().all(|span| span.kind == Kind::Internal && span.parent.is_empty()));
    }
}

#[tokio::test]
async fn an_export_that_fails_is_told_once_it_works_again() {
    let mesh = Mesh::new().await;
    mesh.collector.then([Reaction::RetryAfter(429, 0), Reaction::Status(400)]);
    let orders = mesh
        .pod("orders")
        .environment("THROUGHLINE_MODE", "system-only")
        .environment("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .runs(answer(200, ""))
        .await;
    // The first thing to be exported is that a connection spoke no HTTP.
    throughline_tests::wire::exchange(orders.sidecar.inbound(), "\x16\x03\x01\x02\x00rest").await;
    mesh.collector.deliveries_when(3).await;
    let spans = mesh.end([orders]).await;
    let of_export: Vec<_> = spans.iter().filter(|span| span.name == "throughline export").collect();
    let errors: Vec<_> = of_export.iter().map(|span| span["error.type"].clone()).collect();
    assert_eq!(errors, [json!("retried"), json!("refused")], "{spans:#?}");
    assert_eq!(of_export[1].status, SpanStatus::Error);
}

#[tokio::test]
async fn hybrid_tells_nothing_of_its_own_work() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").environment("THROUGHLINE_MODE", "hybrid").runs(answer(200, "")).await;
    throughline_tests::wire::exchange(orders.sidecar.inbound(), "\x16\x03\x01\x02\x00rest").await;
    Ask::get(orders.url("/")).send().await;
    let spans = mesh.end([orders]).await;
    assert_eq!(the_only(&spans, |_| true).kind, Kind::Server);
}

#[tokio::test]
async fn a_mode_that_is_none_is_a_mistake() {
    let ended = throughline_tests::sidecar::Plan::outbound_only("orders").flag("mode", "some").ends().await;
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr[0].contains("--mode=\"some\": want one of off, system-only, hybrid, full"),
        "{ended:?}"
    );
}
