//! Sampling more while things go badly, and a bound for all of it.

use serde_json::json;
use throughline_tests::prelude::*;
use throughline_tests::service::response;

fn as_asked() -> Script {
    script(|visit| async move {
        response(visit.request.uri().path().trim_start_matches('/').parse().unwrap_or(200), "")
    })
}

#[tokio::test]
async fn failures_raise_the_rate_of_roots_until_they_are_over() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .environment("OTEL_TRACES_SAMPLER_ARG", "0")
        .flag("keep-errors", "off")
        .flag("adaptive-rate", "1")
        .flag("adaptive-window", "1000")
        .runs(as_asked())
        .await;
    let sampled = |pod: &Pod| pod.app().seen().last().expect("a request").traceparent().sampled();
    let rate = |books: &Books| {
        (books.sum("throughline_sampling_rate", &[]), books.sum("throughline_adaptive_active", &[]))
    };
    assert_eq!(rate(&orders.books().await), (0, 0));
    eventually("the rate to rise", || async {
        Ask::get(orders.url("/500")).send().await;
        sampled(&orders).then_some(())
    })
    .await;
    assert_eq!(rate(&orders.books().await), (1, 1));
    let no = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    Ask::get(orders.url("/500")).header("traceparent", no).send().await;
    assert!(!sampled(&orders), "a parent's no is followed");
    orders.sidecar.books_when("the rate to fall", |books| rate(books) == (0, 0)).await;
    Ask::get(orders.url("/200")).send().await;
    assert!(!sampled(&orders));
    let spans = mesh.end([orders]).await;
    assert!(!spans.is_empty() && spans.iter().all(|span| span["throughline.sampled.by"] == "adaptive"));
}

#[tokio::test]
async fn a_bound_of_spans_a_second_holds_for_rules_and_failures() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .environment("OTEL_TRACES_SAMPLER_ARG", "0")
        .flag("spans-per-second", "5")
        .runs(as_asked())
        .await;
    let wish = json!({"operation": "checkout"}).to_string();
    let enabled = Ask::post(orders.sidecar.admin_url("/api/tracing/enable"), wish).send().await;
    assert_eq!(enabled.status, 200);
    let mut connection = Connection::to(orders.sidecar.inbound(), Protocol::H1).await.expect("a connection");
    let began = std::time::Instant::now();
    for _ in 0..100 {
        connection.ask(Ask::get(orders.url("/200")).header("x-operation-name", "checkout")).await;
        connection.ask(Ask::get(orders.url("/500"))).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    drop(connection);
    let books = orders.books().await;
    let made = books.created();
    assert!(made >= 5 && made as f64 <= 5.0 + 5.0 * seconds + 1.0, "{made} in {seconds} s");
    assert_eq!(books.sum("throughline_over_budget_total", &[]), 200 - made, "{}", books.text);
    mesh.end([orders]).await;
}
