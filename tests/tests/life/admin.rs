//! The admin port.

use throughline_tests::prelude::*;

#[tokio::test]
async fn probes_and_metrics_are_answered_and_nothing_else() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    // Method, path, status, and a word of the answer.
    let rows = [
        ("GET", "/livez", 200, ""),
        ("GET", "/readyz", 200, "ready"),
        ("HEAD", "/livez", 200, ""),
        ("GET", "/metrics", 200, "throughline_spans_created_total"),
        ("GET", "/metrics", 200, "throughline_build_info"),
        ("GET", "/nothing", 404, ""),
        ("POST", "/livez", 405, ""),
        ("GET", "/drain", 405, ""),
    ];
    for (method, path, status, word) in rows {
        let answer = Ask::new(method, orders.sidecar.admin_url(path)).send().await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert!(answer.text().contains(word), "{method} {path}: {}", answer.text());
    }
    let metrics = Ask::get(orders.sidecar.admin_url("/metrics")).send().await;
    let kind = metrics.header("content-type").unwrap_or("").to_owned();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    assert!(mesh.end([orders]).await.is_empty(), "admin traffic leaves no spans");
}

#[tokio::test]
async fn metrics_are_legal_in_prometheus_format() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    for operation in ["checkout", "a'b", "{x}"] {
        Ask::get(orders.url("/x")).header("x-operation-name", operation).send().await;
    }
    let books = orders.books().await;
    let mut described = std::collections::BTreeSet::new();
    for line in books.text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a kind");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(described.insert(name.to_owned()), "{name} is described twice");
        } else if !line.starts_with('#') && !line.is_empty() {
            let name = line.split(['{', ' ']).next().expect("a name");
            let base =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(described.contains(name) || described.contains(base), "{name} comes without its TYPE");
            assert!(line.len() < 2_000, "{line}");
        }
    }
    for name in ["throughline_connections_total", "throughline_connections_open", "throughline_exports_total"]
    {
        assert!(described.contains(name), "{name} is missing in {}", books.text);
    }
    assert_eq!(books.labels("http_server_request_duration_seconds_count", "app_operation_name").len(), 3);
    mesh.end([orders]).await;
}

#[tokio::test]
async fn connections_are_counted_by_side_and_protocol() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "ok")).await;
    let mut first = Connection::to(orders.sidecar.inbound(), Protocol::H1).await.expect("a connection");
    let mut second = Connection::to(orders.sidecar.inbound(), Protocol::H2).await.expect("a connection");
    first.ask(Ask::get(orders.url("/"))).await;
    second.ask(Ask::get(orders.url("/"))).await;
    let books = orders.books().await;
    assert_eq!(books.sum("throughline_connections_open", &[("side", "inbound")]), 2, "{}", books.text);
    assert_eq!(books.sum("throughline_connections_total", &[("side", "inbound")]), 2);
    for protocol in ["http/1", "http/2"] {
        let count =
            books.sum("throughline_connections_total", &[("side", "inbound"), ("protocol", protocol)]);
        assert_eq!(count, 1, "{protocol}: {}", books.text);
    }
    drop((first, second));
    orders.sidecar.books_when("both gone", |books| books.sum("throughline_connections_open", &[]) == 0).await;
    mesh.end([orders]).await;
}

#[tokio::test]
async fn exports_are_counted_by_result() {
    let mesh = Mesh::new().await;
    mesh.collector.then([Reaction::Code(3)]);
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    Ask::get(orders.url("/")).send().await;
    orders.sidecar.books_when("a refusal", |books| books.dropped() == 1).await;
    Ask::get(orders.url("/")).send().await;
    let books = orders.sidecar.books_when("an export", |books| books.exported() == 1).await;
    let results = books.labels("throughline_exports_total", "result");
    assert!(results.len() >= 2, "{results:?}");
    mesh.end([orders]).await;
}

#[tokio::test]
async fn a_web_page_cannot_end_the_sidecar() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    for (name, value) in [("origin", "http://evil.example"), ("sec-fetch-site", "cross-site")] {
        let ask = Ask::new("POST", orders.sidecar.admin_url("/drain")).headers([(name, value)]);
        let answer = ask.send().await;
        assert_eq!(answer.status, 403, "{name}: {}", answer.text());
    }
    assert_eq!(Ask::get(orders.url("/")).send().await.status, 200);
    assert_eq!(mesh.end([orders]).await.len(), 1);
}
