//! What is worth keeping, at base rate 0.

use std::time::Duration;

use serde_json::{Value, json};
use throughline_tests::prelude::*;
use throughline_tests::service::response;

/// Answers as the path says: a status, or late.
fn as_asked() -> Script {
    script(|visit| async move {
        let path = visit.request.uri().path().trim_start_matches('/').to_owned();
        if path == "late" {
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        response(path.parse().unwrap_or(200), "")
    })
}

/// A path, a header of the request, and the reason for which it is kept.
type Row<'a> = (&'a str, Option<(&'a str, &'a str)>, Value);

#[tokio::test]
async fn failures_slowness_and_what_was_chosen_are_kept_and_say_why() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .environment("OTEL_TRACES_SAMPLER_ARG", "0")
        .flag("keep-slow", "50")
        .flag("keep-operations", "checkout")
        .flag("keep-routes", "/chosen")
        .flag("keep-headers", "x-debug,x-tenant=blue")
        .runs(as_asked())
        .await;
    let asks: [Row<'_>; 9] = [
        ("/200", None, Value::Null),
        ("/404", None, Value::Null),
        ("/503", None, json!("error")),
        ("/late", None, json!("slow")),
        ("/a", Some(("x-operation-name", "checkout")), json!("operation")),
        ("/chosen", None, json!("route")),
        ("/b", Some(("x-debug", "")), json!("header")),
        ("/c", Some(("x-tenant", "blue")), json!("header")),
        ("/d", Some(("x-tenant", "red")), Value::Null),
    ];
    for (path, header, _) in &asks {
        let ask = Ask::get(orders.url(path)).header("user-agent", "scenario/1").headers(*header);
        ask.send().await;
    }
    assert!(orders.app().seen().iter().all(|seen| !seen.traceparent().sampled()), "the head says no");
    let kept = |books: &Books| books.sum("throughline_exchanges_kept_total", &[]);
    let books = orders.sidecar.books_when("six kept", |books| kept(books) == 6).await;
    assert_eq!(books.sum("throughline_exchanges_kept_total", &[("reason", "header")]), 2);
    let spans = mesh.end([orders]).await;
    for (path, _, reason) in asks {
        let found = spans.iter().find(|span| span["url.path"] == path);
        assert_eq!(found.map_or(&Value::Null, |span| &span["throughline.keep.reason"]), &reason, "{path}");
        if let Some(span) = found {
            span.assert_attributes(&[
                ("user_agent.original", json!("scenario/1")),
                ("client.address", json!("127.0.0.1")),
                ("throughline.sampled.by", Value::Null),
            ]);
        }
    }
    assert_eq!(spans.len(), 6);
}

#[tokio::test]
async fn keeping_can_be_switched_off() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .environment("OTEL_TRACES_SAMPLER", "always_off")
        .flag("keep-errors", "off")
        .flag("keep-slow", "off")
        .runs(answer(503, ""))
        .await;
    Ask::get(orders.url("/")).send().await;
    assert!(mesh.end([orders]).await.is_empty());
}
