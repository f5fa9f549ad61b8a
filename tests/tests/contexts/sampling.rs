//! Sampling: whose decision counts, what the application is told, and that numbers never come from samples.

use throughline_tests::prelude::*;
use throughline_tests::service::response;

use crate::{CALLER, traceparent};

#[tokio::test]
async fn each_sampler_decides_as_its_name_says() {
    // Sampler; its argument; spans of a root, of a sampled parent's child, of an unsampled parent's child.
    let rows: [(&str, &str, [bool; 3]); 9] = [
        ("always_on", "", [true, true, true]),
        ("always_off", "", [false, false, false]),
        ("traceidratio", "1.0", [true, true, true]),
        ("traceidratio", "0", [false, false, false]),
        ("parentbased_always_on", "", [true, true, false]),
        ("parentbased_always_off", "", [false, true, false]),
        ("parentbased_traceidratio", "1", [true, true, false]),
        ("parentbased_traceidratio", "0.0", [false, true, false]),
        ("", "", [true, true, false]),
    ];
    for (sampler, argument, wanted) in rows {
        let mesh = Mesh::new().await;
        let orders = mesh
            .pod("orders")
            .environment("OTEL_TRACES_SAMPLER", sampler)
            .environment("OTEL_TRACES_SAMPLER_ARG", argument)
            .runs(answer(200, ""))
            .await;
        Ask::get(orders.url("/root")).send().await;
        Ask::get(orders.url("/yes")).header("traceparent", traceparent("01")).send().await;
        Ask::get(orders.url("/no")).header("traceparent", traceparent("00")).send().await;
        let told: Vec<_> = orders.app().seen().iter().map(|seen| seen.traceparent().sampled()).collect();
        assert_eq!(told, wanted, "{sampler} {argument}: what the application was told");
        let spans = mesh.end([orders]).await;
        let made = ["/root", "/yes", "/no"].map(|path| spans.iter().any(|span| span["url.path"] == path));
        assert_eq!(made, wanted, "{sampler} {argument}");
    }
}

#[tokio::test]
async fn a_ratio_reads_the_right_end_of_the_trace_id_alike_everywhere() {
    let low = "ffffffffffffffffff00000000000000";
    let high = "000000000000000001ffffffffffffff";
    for (ratio, wanted) in [("0.5", [false, true]), ("0.000001", [false, true]), ("1", [true, true])] {
        let mesh = Mesh::new().await;
        let orders = mesh
            .pod("orders")
            .environment("OTEL_TRACES_SAMPLER", "traceidratio")
            .environment("OTEL_TRACES_SAMPLER_ARG", ratio)
            .runs(answer(200, ""))
            .await;
        for trace in [low, high] {
            let ask = Ask::get(orders.url("/")).header("traceparent", format!("00-{trace}-{CALLER}-01"));
            ask.send().await;
        }
        let spans = mesh.end([orders]).await;
        let made = [low, high].map(|trace| spans.iter().any(|span| span.trace == trace));
        assert_eq!(made, wanted, "{ratio}");
    }
}

#[tokio::test]
async fn a_ratio_keeps_about_its_share_of_roots() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .environment("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        .environment("OTEL_TRACES_SAMPLER_ARG", "0.25")
        .runs(answer(200, ""))
        .await;
    let mut connection = Connection::to(orders.sidecar.inbound(), Protocol::H1).await.expect("a connection");
    for _ in 0..1000 {
        connection.ask(Ask::get(orders.url("/"))).await;
    }
    drop(connection);
    let kept = mesh.end([orders]).await.len();
    // Seven standard deviations around 250.
    assert!((155..=345).contains(&kept), "{kept} of 1000");
}

#[tokio::test]
async fn an_unsampled_root_is_told_to_the_application_or_left_to_it() {
    let mesh = Mesh::new().await;
    let off = || mesh.pod("orders").environment("OTEL_TRACES_SAMPLER", "parentbased_always_off");
    let telling = off().runs(answer(200, "")).await;
    let silent = off().flag("root-unsampled", "silent").runs(answer(200, "")).await;
    for pod in [&telling, &silent] {
        Ask::get(pod.url("/")).send().await;
        Ask::get(pod.url("/")).header("traceparent", traceparent("00")).send().await;
    }
    assert!(!telling.app().seen()[0].traceparent().sampled());
    assert_eq!(silent.app().seen()[0].header("traceparent"), None, "its own SDK decides");
    assert!(!silent.app().seen()[1].traceparent().sampled(), "a caller's no is passed on");
    assert!(mesh.end([telling, silent]).await.is_empty());
}

#[tokio::test]
async fn an_unsampled_trace_stays_unsampled_through_all_pods() {
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").runs(answer(200, "")).await;
    let orders = mesh.pod("orders").runs(calling(stock.url("/"), Copying::Everything)).await;
    Ask::get(orders.url("/"))
        .headers([("traceparent", traceparent("00").as_str()), ("x-operation-name", "checkout")])
        .send()
        .await;
    let seen = stock.app().saw_one();
    assert_eq!((seen.traceparent().trace.as_str(), seen.traceparent().sampled()), (crate::TRACE, false));
    assert_eq!(seen.header("x-operation-name"), Some("checkout"), "the operation travels all the same");
    assert!(mesh.end([orders, stock]).await.is_empty());
}

#[tokio::test]
async fn numbers_count_every_request_sampled_or_not() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .environment("OTEL_TRACES_SAMPLER", "always_off")
        .flag("keep-errors", "off")
        .runs(script(|visit| async move {
            let failing = visit.request.uri().path() == "/fails";
            response(if failing { 500 } else { 200 }, "")
        }))
        .await;
    for _ in 0..7 {
        Ask::get(orders.url("/items/1")).header("x-operation-name", "checkout").send().await;
    }
    for _ in 0..3 {
        Ask::get(orders.url("/fails")).header("x-operation-name", "refund").send().await;
    }
    Ask::get(orders.app().url("/out")).via(orders.sidecar.outbound()).send().await;
    let books = orders.books().await;
    let server = |labels: &[(&str, &str)]| books.sum("http_server_request_duration_seconds_count", labels);
    assert_eq!(server(&[]), 10, "{}", books.text);
    assert_eq!(server(&[("http_route", "/items/{id}"), ("app_operation_name", "checkout")]), 7);
    assert_eq!(server(&[("http_response_status_code", "500"), ("error_type", "500")]), 3);
    assert_eq!(books.sum("http_server_request_duration_seconds_bucket", &[("le", "+Inf")]), 10);
    assert_eq!(books.sum("http_client_request_duration_seconds_count", &[]), 1);
    assert_eq!((books.created(), books.exported()), (0, 0));
    assert!(mesh.end([orders]).await.is_empty());
}

#[tokio::test]
async fn probes_of_the_kubelet_leave_no_span_and_no_line() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("access-log", "stdout").runs(answer(200, "fine")).await;
    let probe = Ask::get(orders.url("/healthz")).header("user-agent", "kube-probe/1.31").send().await;
    assert_eq!(probe.text(), "fine", "a probe is answered by the application");
    Ask::get(orders.sidecar.admin_url("/readyz")).send().await;
    Ask::get(orders.url("/work")).send().await;
    mesh.collector.spans(1).await;
    let books = orders.books().await;
    assert_eq!(books.sum("throughline_probes_total", &[]), 1, "{}", books.text);
    // Lines and scraped durations are the sidecar's alone.
    if Host::asked() == Host::Sidecar {
        orders.sidecar.access_line(|line| line["path"] == "/work").await;
        assert_eq!(books.sum("http_server_request_duration_seconds_count", &[]), 1, "{}", books.text);
        assert_eq!(orders.sidecar.stdout().len(), 1, "{:#?}", orders.sidecar.stdout());
    }
    orders.end().await;
    assert_eq!(the_only(&mesh.collector.accepted(), |_| true)["url.path"], "/work");
}
