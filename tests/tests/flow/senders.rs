//! Real senders: the sidecar, PyPI's OpenTelemetry SDK, curl.

use std::process::Command;

use serde_json::json;
use throughline_tests::flow::{FlowPlan, FlowServer, now};
use throughline_tests::judges::{PeerProcess, installed, python};
use throughline_tests::prelude::*;
use throughline_tests::service::Copying;
use throughline_tests::sidecar::Plan;

/// A sidecar of this service before an application, sending by this protocol.
async fn sidecar(
    server: &FlowServer,
    service: &str,
    upstream: std::net::SocketAddr,
    protocol: &str,
) -> Sidecar {
    let endpoint = if protocol == "grpc" { server.grpc() } else { server.http() };
    Plan::before(service, upstream)
        .on(Host::Sidecar)
        .flag("otel-service-name", service)
        .flag("otel-resource-attributes", "service.namespace=shop,deployment.environment.name=production")
        .flag("otel-exporter-otlp-endpoint", format!("http://{endpoint}"))
        .flag("otel-exporter-otlp-protocol", protocol)
        .flag("otel-bsp-schedule-delay", 50)
        .flag("otel-metric-export-interval", 200)
        .start()
        .await
}

#[tokio::test]
async fn two_sidecars_make_one_flow_with_exact_numbers() {
    for protocol in ["grpc", "http/protobuf"] {
        let server = FlowServer::start().await;
        let stock = Service::playing(answer(200, "42")).await;
        let behind = sidecar(&server, "stock", stock.address, protocol).await;
        let target = behind.url("/items/7");
        let web = Service::playing(calling(target, Copying::Everything)).await;
        let front = sidecar(&server, "web", web.address, protocol).await;
        web.outbound.is_at(front.outbound());
        for _ in 0..5 {
            let ask = Ask::get(front.url("/products")).header("x-operation-name", "browse");
            assert_eq!(ask.send().await.status, 200, "{protocol}");
        }
        let traces = server.get_when("traces?operation=browse", |traces| traces["total"] == 5).await;
        let id = traces["traces"][0]["traceId"].as_str().unwrap().to_owned();
        let whole =
            |trace: &serde_json::Value| trace["spans"].as_array().is_some_and(|spans| spans.len() == 3);
        let trace = server.get_when(&format!("traces/{id}"), whole).await;
        let shape: Vec<(&str, &str)> = trace["spans"]
            .as_array()
            .unwrap()
            .iter()
            .map(|span| (span["service"]["name"].as_str().unwrap(), span["kind"].as_str().unwrap()))
            .collect();
        assert_eq!(shape, [("web", "server"), ("web", "client"), ("stock", "server")], "{protocol}");
        assert_eq!(trace["doctor"], json!([]), "{protocol}");
        let counted = |stats: &serde_json::Value| stats["stats"]["totalRequests"] == 5;
        server.get_when("operations/browse/stats", counted).await;
        let drawn = |graph: &serde_json::Value| {
            let edges = graph["graph"]["edges"].as_array();
            edges.is_some_and(|edges| {
                edges
                    .iter()
                    .any(|edge| edge["from"] == "web" && edge["to"] == "stock" && edge["callCount"] == 5)
            })
        };
        server.get_when("operations/browse/graph", drawn).await;
        let _ = (front.end().await, behind.end().await);
    }
}

#[tokio::test]
async fn a_sidecar_before_an_application_that_drops_the_context_gets_the_verdict() {
    let server = FlowServer::start().await;
    let stock = Service::playing(answer(200, "42")).await;
    let behind = sidecar(&server, "stock", stock.address, "grpc").await;
    let web = Service::playing(calling(behind.url("/items/7"), Copying::Nothing)).await;
    let front = sidecar(&server, "web", web.address, "grpc").await;
    web.outbound.is_at(front.outbound());
    assert_eq!(Ask::get(front.url("/products")).send().await.status, 200);
    let dropped = |doctor: &serde_json::Value| {
        let services = doctor["services"].as_array().unwrap();
        let web = services.iter().find(|service| service["name"] == "web");
        web.is_some_and(|web| {
            let verdicts = web["verdicts"].as_array().unwrap();
            verdicts.iter().any(|said| said["verdict"] == "app_dropped" && said["hop"]["to"] == "stock")
        })
    };
    let doctor = server.get_when("doctor", dropped).await;
    let said =
        doctor["services"].as_array().unwrap().iter().find(|service| service["name"] == "web").unwrap();
    assert!(said["verdicts"][0]["fix"].as_str().unwrap().contains("traceparent"), "{said}");
    // The service itself is known by its metrics, which come on their own way.
    let told = |of: &serde_json::Value| of["service"]["doctor"][0]["verdict"] == "app_dropped";
    server.get_when("services/web", told).await;
}

#[tokio::test]
async fn pypis_sdk_sends_by_grpc_and_by_http() {
    let Some(interpreter) =
        python(&["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"])
    else {
        return;
    };
    let server = FlowServer::start().await;
    let (grpc, http) = (server.grpc().to_string(), format!("http://{}/v1/traces", server.http()));
    for (protocol, endpoint, compression) in
        [("grpc", &grpc, "none"), ("grpc", &grpc, "gzip"), ("http", &http, "none"), ("http", &http, "gzip")]
    {
        let sender = PeerProcess::python(&interpreter, "sdk_sender.py", &[protocol, endpoint, compression]);
        let id = sender.says("trace").await;
        assert_eq!(sender.ends().await.code, Some(0), "{protocol} {compression}");
        let trace = server.get(&format!("traces/{}", id.as_str().unwrap())).await;
        let spans = trace["spans"].as_array().unwrap();
        assert_eq!(spans.len(), 3, "{protocol} {compression}");
        assert_eq!((&spans[0]["name"], &spans[0]["source"]), (&json!("POST /login"), &json!("sdk-shop")));
        assert_eq!(spans[1]["events"][0]["attributes"]["attempt"], 2);
        assert_eq!(
            (&spans[2]["status"], &trace["metadata"]["environment"]),
            (&json!("ERROR"), &json!("staging"))
        );
    }
}

#[tokio::test]
async fn curl_sends_json() {
    if installed("curl").is_none() {
        return;
    }
    let server = FlowServer::start().await;
    let output = curl(&server, &["-d", &one_span("5b8efff798038103d269b633813fc60c")]).await;
    assert_eq!(output, "{}");
    let trace = server.get("traces/5b8efff798038103d269b633813fc60c").await;
    assert_eq!(trace["spans"][0]["service"]["name"], "shell");
}

/// A span of a shell in OTLP/JSON.
fn one_span(id: &str) -> String {
    let body = json!({ "resourceSpans": [{
        "resource": { "attributes": [{ "key": "service.name", "value": { "stringValue": "shell" } }] },
        "scopeSpans": [{ "spans": [{
            "traceId": id, "spanId": "eee19b7ec3c1b174", "name": "deploy", "kind": 1,
            "startTimeUnixNano": now().to_string(), "endTimeUnixNano": (now() + 1000).to_string(),
        }] }],
    }] });
    body.to_string()
}

/// What curl was answered for JSON sent with these arguments.
async fn curl(server: &FlowServer, arguments: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "-H", "content-type: application/json"]).args(arguments);
    curl.arg(format!("http://{}/v1/traces", server.http()));
    let output = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn curl_sends_what_zstd_and_gzip_compressed() {
    if installed("curl").is_none() {
        return;
    }
    let server = FlowServer::start().await;
    for (number, tool) in [(1, "zstd"), (2, "gzip")] {
        let Some(path) = installed(tool) else { continue };
        let id = format!("{number:032x}");
        let plain = std::env::temp_dir().join(format!("throughline-{tool}-{}.json", std::process::id()));
        std::fs::write(&plain, one_span(&id)).unwrap();
        let packed = Command::new(path).args(["-q", "-c"]).arg(&plain).output().unwrap();
        std::fs::remove_file(&plain).unwrap();
        assert!(
            packed.status.success() && serde_json::from_slice::<serde_json::Value>(&packed.stdout).is_err()
        );
        std::fs::write(&plain, packed.stdout).unwrap();
        let (encoding, body) = (format!("content-encoding: {tool}"), format!("@{}", plain.display()));
        let output = curl(&server, &["-H", &encoding, "--data-binary", &body]).await;
        std::fs::remove_file(&plain).unwrap();
        assert_eq!(output, "{}", "{tool}");
        assert_eq!(server.get(&format!("traces/{id}")).await["spans"][0]["name"], "deploy", "{tool}");
    }
}

#[tokio::test]
async fn exports_go_on_to_another_endpoint_as_they_came() {
    for protocol in ["grpc", "http/protobuf"] {
        let behind = FlowServer::start().await;
        let endpoint = if protocol == "grpc" { behind.grpc() } else { behind.http() };
        let plan =
            FlowPlan::new().flag("fan-out", format!("http://{endpoint}")).flag("fan-out-protocol", protocol);
        let server = plan.start().await;
        let at = now() - 1_000_000_000;
        server.send(&throughline_tests::flow::login(7, at)).await;
        server.send_metrics(&throughline_tests::flow::counted(1000, 10, at, now())).await;
        behind.get_when("traces", |traces| traces["total"] == 1).await;
        behind.get_when("operations", |all| all["operations"][0]["count"] == 1000).await;
        assert_eq!(
            server.counted("throughline_flow_fan_out_exports_total{outcome=\"sent\"}").await,
            2.0,
            "{protocol}"
        );
    }
}

#[tokio::test]
async fn an_endpoint_that_is_away_is_no_trouble_of_the_senders() {
    let server = FlowPlan::new()
        .flag("fan-out", "http://127.0.0.1:9")
        .flag("fan-out-queue-bytes-max", 65_536)
        .flag("drain-timeout", 1000)
        .start()
        .await;
    let mut export = throughline_tests::flow::login(7, now());
    export.resource_spans[0].scope_spans[0].spans[0].name = "x".repeat(20_000);
    for _ in 0..10 {
        assert_eq!(server.send(&export).await.status, 200);
    }
    let full = server.counted("throughline_flow_fan_out_exports_total{outcome=\"queue_full\"}").await;
    assert!(full >= 6.0, "{full}");
    assert_eq!(server.end().await.code, Some(0));
}
