//! What a span says about its exchange.

use serde_json::{Value, json};
use throughline_tests::prelude::*;
use throughline_tests::service::response;

fn status_by_path() -> Script {
    script(|visit| async move {
        let last = visit.request.uri().path().rsplit('/').next().and_then(|text| text.parse().ok());
        response(last.unwrap_or(200), "")
    })
}

#[tokio::test]
async fn a_server_span_names_everything_that_is_known() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "ok")).await;
    Ask::get(orders.url("/clusters/42?size=2&sig=secret"))
        .header("x-operation-name", "create-vm")
        .header("user-agent", "scenario/1")
        .send()
        .await;
    let port = orders.sidecar.inbound().port();
    let spans = mesh.end([orders]).await;
    let span = the_only(&spans, |_| true);
    assert_eq!((span.name.as_str(), span.kind), ("GET /clusters/{id}", Kind::Server));
    assert_eq!((span.status, span.parent.as_str()), (SpanStatus::Unset, ""));
    assert_eq!((span.scope.as_str(), span.service()), ("throughline", "orders"));
    assert_eq!(span.resource["service.namespace"], "shop");
    span.assert_attributes(&[
        ("http.request.method", json!("GET")),
        ("http.request.method_original", Value::Null),
        ("http.response.status_code", json!(200)),
        ("http.route", json!("/clusters/{id}")),
        ("url.path", json!("/clusters/42")),
        ("url.query", json!("size=2&sig=REDACTED")),
        ("url.scheme", json!("http")),
        ("server.address", json!("127.0.0.1")),
        ("server.port", json!(port)),
        ("client.address", json!("127.0.0.1")),
        ("network.protocol.version", json!("1.1")),
        ("user_agent.original", json!("scenario/1")),
        ("app.operation.name", json!("create-vm")),
        ("error.type", Value::Null),
        ("throughline.end", Value::Null),
    ]);
    assert!(span["throughline.sampled.by"].is_string(), "a root says why it was sampled: {span:#?}");
}

#[tokio::test]
async fn a_client_span_names_the_server_and_the_whole_url() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "ok")).await;
    let orders = mesh.pod("orders").outbound_only().await;
    let url = stock.url("/items/7?token=1&Signature=secret");
    Ask::get(&url).via(orders.sidecar.outbound()).send().await;
    let spans = mesh.end([orders]).await;
    let span = the_only(&spans, |_| true);
    assert_eq!((span.name.as_str(), span.kind), ("GET", Kind::Client));
    span.assert_attributes(&[
        ("http.request.method", json!("GET")),
        ("http.response.status_code", json!(200)),
        ("server.address", json!("127.0.0.1")),
        ("server.port", json!(stock.address.port())),
        ("url.full", json!(url.replace("secret", "REDACTED"))),
        ("error.type", Value::Null),
    ]);
    assert_eq!(stock.saw_one().uri.path(), "/items/7");
}

#[tokio::test]
async fn a_status_means_different_things_on_the_two_sides() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(status_by_path()).await;
    // Status code; error.type on the server's span; error.type on the client's span.
    let rows: [(u16, Option<&str>, Option<&str>); 7] = [
        (200, None, None),
        (204, None, None),
        (302, None, None),
        (404, None, Some("404")),
        (429, None, Some("429")),
        (500, Some("500"), Some("500")),
        (503, Some("503"), Some("503")),
    ];
    for (code, _, _) in rows {
        let inbound = Ask::get(orders.url(&format!("/x/{code}"))).send().await;
        let outbound =
            Ask::get(orders.app().url(&format!("/x/{code}"))).via(orders.sidecar.outbound()).send().await;
        assert_eq!((inbound.status, outbound.status), (code, code));
    }
    let spans = mesh.end([orders]).await;
    for (code, server, client) in rows {
        for (kind, error) in [(Kind::Server, server), (Kind::Client, client)] {
            let span = the_only(&spans, |span| {
                span.kind == kind && span["http.response.status_code"] == i64::from(code)
            });
            let status = if error.is_some() { SpanStatus::Error } else { SpanStatus::Unset };
            assert_eq!(span.status, status, "{code} {kind:?}");
            assert_eq!(span["error.type"].as_str(), error, "{code} {kind:?}");
        }
    }
    assert_eq!(spans.len(), 14);
}

#[tokio::test]
async fn a_method_that_nobody_knows_is_other() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    let answer = Ask::new("BREW", orders.url("/pots")).send().await;
    assert_eq!(answer.status, 200);
    assert_eq!(orders.app().saw_one().method, "BREW");
    let spans = mesh.end([orders]).await;
    let span = the_only(&spans, |_| true);
    assert!(span.name.starts_with("HTTP"), "{}", span.name);
    span.assert_attributes(&[
        ("http.request.method", json!("_OTHER")),
        ("http.request.method_original", json!("BREW")),
    ]);
}

#[tokio::test]
async fn routes_come_from_patterns_first_and_from_the_look_of_segments_next() {
    let mesh = Mesh::new().await;
    let orders =
        mesh.pod("orders").flag("routes", "/users/{name}/cart,/static/*").runs(answer(200, "")).await;
    let rows = [
        ("/users/ada/cart", "/users/{name}/cart"),
        ("/static/css/site.css", "/static/*"),
        ("/orders/12345", "/orders/{id}"),
        ("/orders/0af76519-16cd-43dd-8448-eb211c80319c/lines", "/orders/{id}/lines"),
        ("/plain/words", "/plain/words"),
        ("/", "/"),
    ];
    for (path, _) in rows {
        Ask::get(orders.url(path)).send().await;
    }
    let spans = mesh.end([orders]).await;
    for (path, route) in rows {
        let span = the_only(&spans, |span| span["url.path"] == path);
        assert_eq!((&span["http.route"], &span.name), (&json!(route), &format!("GET {route}")));
    }
}

#[tokio::test]
async fn distinct_routes_are_capped() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("routes-max", 5).runs(answer(200, "")).await;
    for letter in 'a'..='z' {
        Ask::get(orders.url(&format!("/only-{letter}{letter}"))).send().await;
    }
    let spans = mesh.end([orders]).await;
    let mut names: Vec<_> = spans.iter().map(|span| span.name.clone()).collect();
    names.sort();
    names.dedup();
    assert!(spans.len() == 26 && names.len() <= 7, "{names:?}");
}

#[tokio::test]
async fn headers_are_captured_only_when_asked_for() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .flag("capture-request-headers", "x-tenant")
        .flag("capture-response-headers", "content-length")
        .flag("redact-query", "token")
        .runs(answer(200, "ok"))
        .await;
    Ask::get(orders.url("/?token=1&b=2")).header("x-tenant", "blue").header("x-secret", "s").send().await;
    let spans = mesh.end([orders]).await;
    let span = the_only(&spans, |_| true);
    span.assert_attributes(&[
        ("http.request.header.x-tenant", json!(["blue"])),
        ("http.response.header.content-length", json!(["2"])),
        ("http.request.header.x-secret", Value::Null),
        ("url.query", json!("token=REDACTED&b=2")),
    ]);
}

#[tokio::test]
async fn a_query_can_be_left_out_of_spans_altogether() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("query", "off").runs(answer(200, "")).await;
    Ask::get(orders.url("/a?b=c")).send().await;
    Ask::get(orders.app().url("/a?b=c")).via(orders.sidecar.outbound()).send().await;
    let seen = orders.app().seen();
    assert!(seen.iter().all(|seen| seen.uri.query() == Some("b=c")), "the application gets its query");
    let spans = mesh.end([orders]).await;
    assert!(!format!("{spans:?}").contains("b=c"), "{spans:#?}");
}

#[tokio::test]
async fn a_span_lasts_from_the_first_byte_to_the_last() {
    let mesh = Mesh::new().await;
    let (go, gone) = tokio::sync::watch::channel(false);
    let orders = mesh
        .pod("orders")
        .runs(script(move |_| {
            let mut gone = gone.clone();
            async move {
                let (feeder, body) = throughline_tests::feed::fed();
                tokio::spawn(async move {
                    feeder.send("first").await;
                    let _ = gone.wait_for(|go| *go).await;
                    feeder.send("last").await;
                });
                http::Response::new(body)
            }
        }))
        .await;
    let mut open = Ask::get(orders.url("/")).open().await;
    assert!(open.piece().await.is_ok_and(|piece| piece.is_some()));
    let head_was_here = std::time::SystemTime::now();
    // While the answer is still coming there is no span of it, and the books say so.
    let books = orders.books().await;
    assert_eq!(books.created(), 0, "{}", books.text);
    go.send_replace(true);
    assert_eq!(open.rest().await.text(), "last");
    let spans = mesh.end([orders]).await;
    let head = head_was_here.duration_since(std::time::UNIX_EPOCH).expect("a clock").as_nanos();
    assert!(u128::from(the_only(&spans, |_| true).end) >= head, "ended before its last byte");
}
