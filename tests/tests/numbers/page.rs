//! `/metrics` itself: legal, in the format that was asked for, as the reference page says.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use throughline_tests::judges::installed;
use throughline_tests::prelude::*;

use crate::{listed, metric_of};

/// A sidecar in front of an application that calls another, one request of which fails.
async fn served(mesh: &Mesh) -> [Pod; 2] {
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    let web = mesh.pod("web").runs(calling(orders.url("/items/7"), Copying::Everything)).await;
    for operation in ["checkout", "a'b", "{x}", "a\"b\\c"] {
        Ask::get(web.url("/shop")).header("x-operation-name", operation).send().await;
    }
    mesh.collector.spans(12).await;
    [orders, web]
}

#[tokio::test]
async fn every_series_is_on_the_reference_page_and_every_row_of_it_is_served() {
    let mesh = Mesh::new().await;
    let [orders, web] = served(&mesh).await;
    let listed = listed();
    let mut seen = BTreeSet::new();
    for pod in [&orders, &web] {
        let books = pod.books().await;
        for line in books.text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a kind");
                let row = listed.get(name).unwrap_or_else(|| panic!("{name} is not on the page"));
                let shown = if row.kind == "info" { "gauge" } else { &row.kind };
                assert_eq!(kind, shown, "{name}");
                seen.insert(name.to_owned());
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().expect("a name");
                assert!(metric_of(&listed, name).is_some(), "{line}");
            }
        }
        for (name, label) in books.all_labels() {
            let (_, row) = metric_of(&listed, &name).expect("it was there above");
            let of_buckets = label == "le" && name.ends_with("_bucket");
            assert!(of_buckets || row.labels.contains(&label), "{name} has {label}, which the page lacks");
        }
    }
    let wanted: BTreeSet<String> = listed.keys().cloned().collect();
    assert_eq!(seen, wanted, "what is served, and what the page has");
    mesh.end([web, orders]).await;
}

#[tokio::test]
async fn promtool_has_nothing_to_say_of_it() {
    let Some(promtool) = installed("promtool") else { return };
    let mesh = Mesh::new().await;
    let [orders, web] = served(&mesh).await;
    for pod in [&orders, &web] {
        let text = pod.books().await.text;
        let mut check = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool starts");
        let mut input = check.stdin.take().expect("piped");
        input.write_all(text.as_bytes()).expect("promtool reads");
        drop(input);
        let said = check.wait_with_output().expect("promtool ends");
        let told =
            String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
        assert!(said.status.success() && told.trim().is_empty(), "{told}\n{text}");
    }
    mesh.end([web, orders]).await;
}

#[tokio::test]
async fn a_scraper_that_asks_for_openmetrics_gets_traces_beside_the_buckets() {
    let mesh = Mesh::new().await;
    let [orders, web] = served(&mesh).await;
    let spans = mesh.collector.accepted();
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let page = Ask::get(web.sidecar.admin_url("/metrics")).header("accept", accept).send().await;
    let kind = page.header("content-type").unwrap_or_default().to_owned();
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = page.text();
    assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    assert!(text.contains("# TYPE throughline_spans_created counter\n"), "{text}");
    assert!(text.contains("# TYPE throughline_build info\n"), "{text}");
    for (name, span_kind) in [("http_server", Kind::Server), ("http_client", Kind::Client)] {
        let start = format!("{name}_request_duration_seconds_bucket{{");
        let examples: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with(&start))
            .filter_map(|line| line.split_once(" # {trace_id=\"")?.1.split_once("\",span_id=\""))
            .collect();
        assert_eq!(examples.len(), 4, "one for each operation's series of {name}: {text}");
        for (trace, rest) in examples {
            let (span, rest) = rest.split_once("\"} ").expect("labels end");
            let span = the_only(&spans, |one| one.trace == trace && one.id == span);
            assert_eq!(span.kind, span_kind);
            let numbers: Vec<f64> = rest.split(' ').map(|number| number.parse().expect("a number")).collect();
            assert!(numbers.len() == 2 && numbers[0] > 0.0 && numbers[0] < 60.0, "{rest}");
            assert!((numbers[1] - span.end as f64 / 1e9).abs() < 0.01, "{rest} {span:?}");
        }
    }
    let plain = Ask::get(web.sidecar.admin_url("/metrics")).send().await;
    assert!(plain.header("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")));
    assert!(!plain.text().contains("trace_id=") && !plain.text().contains("# EOF"));
    mesh.end([web, orders]).await;
}

#[tokio::test]
async fn what_is_not_sampled_is_no_example() {
    let mesh = Mesh::new().await;
    let plan = mesh.pod("orders").environment("OTEL_TRACES_SAMPLER", "always_off");
    let orders = plan.environment("THROUGHLINE_KEEP_SLOW", "off").runs(answer(200, "")).await;
    Ask::get(orders.url("/")).send().await;
    let ask = Ask::get(orders.sidecar.admin_url("/metrics")).header("accept", "application/openmetrics-text");
    let text = ask.send().await.text();
    assert!(text.contains("http_server_request_duration_seconds_count{") && !text.contains("trace_id="));
    mesh.end([orders]).await;
}

/// Grafana's service graph reads these names; a request between two sidecars is told once.
#[tokio::test]
async fn a_request_between_two_sidecars_is_one_edge_told_once() {
    let mesh = Mesh::new().await;
    let [orders, web] = served(&mesh).await;
    let (at_web, at_orders) = (web.books().await, orders.books().await);
    let edge = [("client", "web"), ("server", "orders")];
    let total = "traces_service_graph_request_total";
    assert_eq!(at_orders.sum(total, &edge), 4, "{}", at_orders.text);
    assert_eq!(at_web.sum(total, &edge), 0, "the server's sidecar tells it: {}", at_web.text);
    assert_eq!(at_orders.sum("traces_service_graph_request_server_seconds_count", &edge), 4);
    assert_eq!(at_web.sum("traces_service_graph_request_client_seconds_count", &edge), 4);
    assert_eq!(at_orders.labels(total, "connection_type"), Vec::<String>::new());
    let from_outside = [("client", "user"), ("server", "web"), ("connection_type", "virtual_node")];
    assert_eq!(at_web.sum(total, &from_outside), 4, "{}", at_web.text);
    let calls = [("service", "web"), ("span_name", "GET /shop"), ("span_kind", "SPAN_KIND_SERVER")];
    assert_eq!(at_web.sum("traces_spanmetrics_calls_total", &calls), 4, "{}", at_web.text);
    assert_eq!(at_web.sum("traces_spanmetrics_latency_count", &calls), 4, "{}", at_web.text);
    let unset = [calls[0], calls[1], ("status_code", "STATUS_CODE_UNSET")];
    assert_eq!(at_web.sum("traces_spanmetrics_calls_total", &unset), 4);
    mesh.end([web, orders]).await;
}

#[tokio::test]
async fn a_destination_without_a_sidecar_is_a_virtual_node_and_its_failures_count() {
    let mesh = Mesh::new().await;
    let database = Service::playing(answer(503, "")).await;
    let web = mesh.pod("web").runs(calling(database.url("/"), Copying::Everything)).await;
    for _ in 0..3 {
        Ask::get(web.url("/shop")).send().await;
    }
    let books = web.books().await;
    let edge = [("client", "web"), ("server", "127.0.0.1"), ("connection_type", "virtual_node")];
    for name in ["total", "failed_total", "client_seconds_count"] {
        assert_eq!(books.sum(&format!("traces_service_graph_request_{name}"), &edge), 3, "{name}");
    }
    let port = database.address.port().to_string();
    let named = [("server_address", "127.0.0.1"), ("server_port", port.as_str())];
    assert_eq!(books.sum("http_client_request_duration_seconds_count", &named), 3, "{}", books.text);
    mesh.end([web]).await;
}

#[tokio::test]
async fn the_graph_can_be_left_out() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("graph-metrics", "off").runs(answer(200, "")).await;
    Ask::get(orders.url("/")).send().await;
    let books = orders.books().await;
    assert!(books.has("http_server_request_duration_seconds_count"));
    let graph = ["traces_service_graph_", "traces_spanmetrics_"];
    assert!(graph.iter().all(|name| !books.text.contains(name)), "{}", books.text);
    mesh.end([orders]).await;
}

#[tokio::test]
async fn forwarding_is_counted_beside_dropping() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    let good = mesh.pod("good").runs(calling(orders.url("/"), Copying::Everything)).await;
    let bad = mesh.pod("bad").runs(calling(orders.url("/"), Copying::Nothing)).await;
    for pod in [&good, &bad] {
        for _ in 0..3 {
            Ask::get(pod.url("/way")).send().await;
        }
    }
    let route = [("route", "/way")];
    for (pod, dropped, forwarded) in [(&good, 0, 3), (&bad, 3, 0)] {
        let books = pod.books().await;
        assert_eq!(books.sum("throughline_context_dropped_total", &route), dropped, "{}", books.text);
        assert_eq!(books.sum("throughline_context_forwarded_total", &route), forwarded, "{}", books.text);
    }
    mesh.end([good, bad, orders]).await;
}
