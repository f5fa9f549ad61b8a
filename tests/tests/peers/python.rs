//! Python's gRPC, WebSockets and OpenTelemetry.

use std::net::SocketAddr;

use serde_json::{Value, json};
use throughline_tests::judges::{PeerProcess, python};
use throughline_tests::pki::Folder;
use throughline_tests::prelude::*;
use throughline_tests::span::span_of;

use crate::python::Verdict::{Exported, Silent};

async fn address_of(peer: &PeerProcess) -> SocketAddr {
    let port = peer.says("port").await;
    format!("127.0.0.1:{port}").parse().expect("an address")
}

#[tokio::test]
async fn grpcio_calls_and_serves_through_the_sidecar() {
    let Some(interpreter) = python(&["grpc"]) else { return };
    let server = PeerProcess::python(&interpreter, "grpc_peer.py", &["serve"]);
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").before(address_of(&server).await).await;
    let target = stock.sidecar.inbound().to_string();
    let client = PeerProcess::python(&interpreter, "grpc_peer.py", &["call", &target]);
    let count = client.says("count").await;
    assert_eq!(count["got"], "cups");
    assert_eq!(client.says("late").await, "yes");
    assert_eq!(client.says("refused").await, "UNAVAILABLE");
    assert_eq!(client.says("details").await, "closed for today");
    assert_eq!(client.says("missing").await, "UNIMPLEMENTED");
    assert_eq!(client.says("listed").await, 100);
    assert_eq!(client.says("heard").await, json!(["ONE", "TWO", "THREE"]));
    assert_eq!(client.ends().await.code, Some(0));
    let spans = mesh.end([stock]).await;
    assert_eq!(spans.len(), 5, "{spans:#?}");
    for (name, status, error) in [
        ("shop.Stock/Count", "OK", Value::Null),
        ("shop.Stock/Refuse", "UNAVAILABLE", json!("UNAVAILABLE")),
        ("grpc", "UNIMPLEMENTED", json!("UNIMPLEMENTED")),
        ("shop.Stock/List", "OK", Value::Null),
        ("shop.Stock/Chat", "OK", Value::Null),
    ] {
        let span = the_only(&spans, |span| span.name == name);
        span.assert_attributes(&[
            ("rpc.status_code", json!(status)),
            ("error.type", error),
            ("app.operation.name", json!("checkout")),
        ]);
    }
    let counted = the_only(&spans, |span| span.name.ends_with("Count"));
    assert_eq!(count["traceparent"], format!("00-{}-{}-03", counted.trace, counted.id));
}

#[tokio::test]
async fn websockets_talk_through_the_sidecar() {
    let Some(interpreter) = python(&["websockets"]) else { return };
    let server = PeerProcess::python(&interpreter, "websocket_peer.py", &["serve"]);
    let mesh = Mesh::new().await;
    let chat = mesh.pod("chat").before(address_of(&server).await).await;
    let url = chat.url("/room").replace("http://", "ws://");
    let client = PeerProcess::python(&interpreter, "websocket_peer.py", &["talk", &url]);
    let heard = client.says("heard").await;
    // The capitals of "bytes \0\xff".
    assert_eq!(heard, json!(["FIRST", "SECOND", "XXXXXXXXXX", "42595445532000ff"]));
    assert_eq!(client.says("code").await, 1000);
    assert_eq!(client.ends().await.code, Some(0));
    let spans = mesh.end([chat]).await;
    the_only(&spans, |_| true).assert_attributes(&[
        ("http.response.status_code", json!(101)),
        ("app.operation.name", json!("chat")),
        ("error.type", Value::Null),
    ]);
}

#[tokio::test]
async fn pypis_opentelemetry_proto_reads_what_we_export() {
    let Some(interpreter) = python(&["opentelemetry.proto.collector.trace.v1.trace_service_pb2"]) else {
        return;
    };
    for protocol in ["grpc", "http/protobuf"] {
        let mesh = Mesh::new().await;
        let stock = mesh
            .pod("stock")
            .environment("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .runs(answer(503, ""))
            .await;
        let orders = mesh
            .pod("orders")
            .environment("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .flag("capture-request-headers", "x-tenant")
            .runs(calling(stock.url("/items/7"), Copying::Nothing))
            .await;
        // Envoy refuses a target beyond ASCII.
        let query = Host::asked().choose("caf\u{e9}=1", "caf%C3%A9=1");
        Ask::get(orders.url(&format!("/place?{query}")))
            .headers([("x-operation-name", "checkout"), ("x-tenant", "blue")])
            .header("user-agent", b"caf\xe9 \xff")
            .send()
            .await;
        let spans = mesh.end([orders, stock]).await;
        let folder = Folder::fresh();
        let files: Vec<_> = mesh
            .collector
            .deliveries()
            .iter()
            .enumerate()
            .map(|(number, delivery)| {
                folder.write(&number.to_string(), &delivery.bytes).display().to_string()
            })
            .collect();
        let files: Vec<_> = files.iter().map(String::as_str).collect();
        let judge = PeerProcess::python(&interpreter, "otlp_judge.py", &files);
        let read = judge.says("spans").await;
        assert_eq!(judge.ends().await.code, Some(0));
        let read = read.as_array().expect("a list");
        assert_eq!((read.len(), spans.len()), (3, 3));
        for span in &spans {
            let twin = read.iter().find(|twin| twin["id"] == span.id.as_str()).expect("the same span");
            assert_eq!((&twin["trace"], &twin["parent"]), (&json!(span.trace), &json!(span.parent)));
            assert_eq!((&twin["name"], &twin["scope"]), (&json!(span.name), &json!("throughline")));
            assert_eq!((&twin["start"], &twin["end"]), (&json!(span.start), &json!(span.end)));
            assert_eq!(twin["links"], span.links.len());
            let attributes = twin["attributes"].as_object().expect("an object");
            for (key, value) in attributes {
                assert_eq!(&span[key.as_str()], value, "{key}");
            }
            assert_eq!(twin["resource"]["service.name"], span.service());
        }
    }
}

/// What becomes of the spans of an SDK.
#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Exported,
    Silent,
}

#[tokio::test]
async fn no_parent_is_a_phantom_whatever_the_applications_sdk_samples() {
    let modules = ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"];
    let Some(interpreter) = python(&modules) else { return };
    for (sampler, verdict) in
        [("parentbased_always_off", Exported), ("always_off", Silent), ("always_on", Exported)]
    {
        // Whether the caller outside already has a trace.
        for outside in [None, Some(("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"))] {
            let mesh = Mesh::new().await;
            let stock = mesh.pod("stock").runs(answer(200, "12")).await;
            let endpoint = format!("{}/v1/traces", mesh.collector.endpoint());
            let app = PeerProcess::python(&interpreter, "sdk_app.py", &[sampler, &endpoint]);
            let orders = mesh.pod("orders").before(address_of(&app).await).await;
            let ask = Ask::get(orders.url("/place"))
                .header("x-operation-name", "checkout")
                .header("x-outbound", format!("http://{}", orders.sidecar.outbound()))
                .header("x-next", stock.url("/items"));
            let ask = match outside {
                None => ask,
                Some((trace, span)) => ask.header("traceparent", format!("00-{trace}-{span}-01")),
            };
            assert_eq!(ask.send().await.text(), "12", "{sampler}");
            let spans = mesh.end([orders, stock]).await;
            let row = format!("{sampler} {outside:?}:{}", throughline_tests::span::listing(&spans));
            let of_sdk = spans.iter().filter(|span| span.service() == "sdk-app").count();
            assert_eq!(of_sdk, if verdict == Exported { 3 } else { 0 }, "{row}");
            assert_eq!(spans.len() - of_sdk, 3, "{row}");
            let parents: Vec<_> = outside.iter().map(|(_, span)| *span).collect();
            assert_connected(&spans, &parents);
            assert!(spans.iter().all(|span| span.trace == spans[0].trace), "one trace: {row}");
            let (server, client) =
                (span_of(&spans, "orders", Kind::Server), span_of(&spans, "orders", Kind::Client));
            assert_eq!(client.parent == server.id, verdict == Silent, "{row}");
            assert_eq!(client["app.operation.name"], "checkout", "{row}");
        }
    }
}
