//! Delivery: protocols, endpoints, headers, compression, resource, batches.

use serde_json::json;
use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;

/// A sidecar that reports to a collector in a protocol.
fn reporting(app: &Service, collector: &Collector, protocol: &str) -> Plan {
    Plan::before("orders", app.address)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .environment("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
}

const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

#[tokio::test]
async fn spans_arrive_by_both_protocols_plain_and_compressed() {
    for (protocol, path, kind) in
        [("grpc", GRPC_PATH, "application/grpc"), ("http/protobuf", "/v1/traces", "application/x-protobuf")]
    {
        // The filter compresses nothing, and says so when asked to.
        for compression in Host::asked().choose(&["", "none", "gzip"][..], &["", "none"]).iter().copied() {
            let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
            let sidecar = reporting(&app, &collector, protocol)
                .environment("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
                .environment("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue%20one,authorization=Bearer%20t0ken")
                .start()
                .await;
            Ask::get(sidecar.url("/a")).send().await;
            collector.spans(1).await;
            sidecar.end().await;
            let delivery = collector.deliveries().remove(0);
            let row = format!("{protocol} {compression:?}: {:?}", delivery.headers);
            assert_eq!(delivery.path, path, "{row}");
            let header = |name: &str| delivery.headers.get(name).and_then(|value| value.to_str().ok());
            assert_eq!(header("content-type"), Some(kind), "{row}");
            assert_eq!(header("x-tenant"), Some("blue one"), "{row}");
            assert_eq!(header("authorization"), Some("Bearer t0ken"), "{row}");
            let coding = if protocol == "grpc" { "grpc-encoding" } else { "content-encoding" };
            let coded = header(coding).filter(|coding| *coding != "identity");
            assert_eq!(coded, (compression == "gzip").then_some("gzip"), "{row}");
            assert!(header("user-agent").is_some_and(|agent| agent.contains("hroughline")), "{row}");
            assert_eq!(header("traceparent"), None, "exports are not traced: {row}");
        }
    }
}

#[tokio::test]
async fn grpc_is_the_default_and_a_scheme_may_be_missing() {
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let sidecar = Plan::before("orders", app.address)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        .start()
        .await;
    Ask::get(sidecar.url("/")).send().await;
    collector.spans(1).await;
    assert_eq!(collector.deliveries()[0].path, GRPC_PATH);
    sidecar.end().await;
}

#[tokio::test]
async fn a_path_is_appended_to_the_base_and_never_to_an_endpoint_of_traces() {
    // Path of the base endpoint; path of the endpoint for traces, if one is set; where spans must arrive.
    let rows = [
        ("", None, "/v1/traces"),
        ("/", None, "/v1/traces"),
        ("/otlp", None, "/otlp/v1/traces"),
        ("/otlp/", None, "/otlp/v1/traces"),
        ("", Some("/custom"), "/custom"),
        ("/otlp", Some("/v1/traces/"), "/v1/traces/"),
        ("", Some(""), "/"),
    ];
    for (base, traces, wanted) in rows {
        let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
        let endpoint = |path: &str| format!("{}{path}", collector.endpoint());
        let plan = reporting(&app, &collector, "http/protobuf");
        let plan = plan.environment("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint(base));
        let plan = match traces {
            None => plan,
            Some(path) => plan.environment("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint(path)),
        };
        let sidecar = plan.start().await;
        Ask::get(sidecar.url("/")).send().await;
        collector.spans(1).await;
        assert_eq!(collector.deliveries()[0].path, wanted, "{base:?} {traces:?}");
        sidecar.end().await;
    }
}

#[tokio::test]
async fn settings_of_traces_win_over_the_general_ones() {
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let nobody = throughline_tests::wire::Nobody::listens();
    let sidecar = Plan::before("orders", app.address)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", nobody.address))
        .environment("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .environment("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        .environment("OTEL_EXPORTER_OTLP_HEADERS", "x-from=general")
        .environment("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("{}/t", collector.endpoint()))
        .environment("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
        .environment("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip")
        .environment("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-from=traces")
        .start()
        .await;
    Ask::get(sidecar.url("/")).send().await;
    collector.spans(1).await;
    let delivery = collector.deliveries().remove(0);
    assert_eq!(
        (delivery.path.as_str(), &delivery.headers["x-from"]),
        ("/t", &"traces".parse().expect("a value"))
    );
    assert_eq!(delivery.headers["content-encoding"], "gzip");
    sidecar.end().await;
}

#[tokio::test]
async fn the_resource_says_who_speaks() {
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let sidecar = reporting(&app, &collector, "grpc")
        .environment("OTEL_SERVICE_NAME", "orders")
        .environment(
            "OTEL_RESOURCE_ATTRIBUTES",
            "service.name=loses,service.namespace=shop,team=caf%C3%A9%2C%20north,k8s.pod.name=orders-1",
        )
        .start()
        .await;
    Ask::get(sidecar.url("/")).send().await;
    let span = collector.spans(1).await.remove(0);
    for (key, value) in [
        ("service.name", "orders"),
        ("service.namespace", "shop"),
        ("team", "caf\u{e9}, north"),
        ("k8s.pod.name", "orders-1"),
    ] {
        assert_eq!(span.resource[key], json!(value), "{key}");
    }
    sidecar.end().await;
}

#[tokio::test]
async fn spans_travel_in_batches_no_larger_than_asked() {
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let sidecar = reporting(&app, &collector, "grpc")
        .environment("OTEL_BSP_SCHEDULE_DELAY", 300)
        .environment("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 16)
        .start()
        .await;
    let mut connection = Connection::to(sidecar.inbound(), Protocol::H1).await.expect("a connection");
    for _ in 0..100 {
        connection.ask(Ask::get(sidecar.url("/"))).await;
    }
    drop(connection);
    let spans = collector.spans(100).await;
    sidecar.books_when("all exported", |books| books.exported() == 100).await;
    sidecar.end().await;
    let sizes: Vec<_> = collector.deliveries().iter().map(|delivery| delivery.spans.len()).collect();
    assert_eq!(spans.len(), 100);
    assert!(sizes.iter().all(|size| *size <= 16) && sizes.iter().any(|size| *size > 1), "{sizes:?}");
}

#[tokio::test]
async fn the_exporters_own_calls_are_not_traced_even_through_the_sidecar() {
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let sidecar = reporting(&app, &collector, "http/protobuf")
        // What an application beside it would be told; the exporter must not listen.
        .environment("HTTP_PROXY", "http://127.0.0.1:9")
        .environment("http_proxy", "http://127.0.0.1:9")
        .start()
        .await;
    for _ in 0..5 {
        Ask::get(sidecar.url("/")).send().await;
    }
    collector.spans(5).await;
    assert_eq!(sidecar.books().await.created(), 5);
    sidecar.end().await;
    assert_eq!(collector.accepted().len(), 5);
}

#[tokio::test]
async fn connections_to_the_collector_are_used_again() {
    for protocol in ["grpc", "http/protobuf"] {
        let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
        let plan = reporting(&app, &collector, protocol).environment("OTEL_METRICS_EXPORTER", "none");
        let sidecar = plan.start().await;
        for number in 1..=5 {
            Ask::get(sidecar.url("/")).send().await;
            collector.spans(number).await;
        }
        sidecar.end().await;
        assert!(collector.deliveries().len() >= 5);
        assert!(collector.connections() <= 2, "{protocol}: {} connections", collector.connections());
    }
}

#[tokio::test]
async fn a_long_value_is_cut_and_not_lost() {
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let sidecar = reporting(&app, &collector, "grpc").start().await;
    let agent = format!("{}\u{e4}", "a".repeat(10_000));
    let answer =
        Ask::get(sidecar.url(&format!("/{}", "p".repeat(9_000)))).header("user-agent", agent).send().await;
    assert_eq!(answer.status, 200);
    let span = collector.spans(1).await.remove(0);
    let length = |key: &str| span[key].as_str().expect("text").len();
    assert!(
        (100..=4_096).contains(&length("user_agent.original")) && (100..=4_096).contains(&length("url.path"))
    );
    sidecar.end().await;
}
