//! Senders that mean harm, or do not know better: bounded, answered, and nobody else is kept waiting.

use std::io::Write as _;

use http::HeaderMap;
use prost::Message as _;
use throughline_tests::flow::{FlowPlan, FlowServer, login, now};
use throughline_tests::grpc::framed;
use throughline_tests::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PROTOBUF: &str = "application/x-protobuf";
const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

async fn post(server: &FlowServer, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
    Ask::post(format!("http://{}{path}", server.http()), body).headers(headers.iter().copied()).send().await
}

async fn call(server: &FlowServer, path: &str, headers: &[(&str, &str)], message: &[u8]) -> Answer {
    let ask = Ask::post(format!("http://{}{path}", server.grpc()), framed(message)).over(Protocol::H2);
    ask.header("content-type", "application/grpc")
        .header("te", "trailers")
        .headers(headers.iter().copied())
        .send()
        .await
}

fn status_of(answer: &Answer) -> &str {
    answer.trailer("grpc-status").or(answer.header("grpc-status")).unwrap_or("none")
}

#[tokio::test]
async fn what_is_no_export_is_refused_in_otlps_own_words() {
    let server = FlowServer::start().await;
    let (kind, json) = (("content-type", PROTOBUF), ("content-type", "application/json"));
    for (path, headers, body, status) in [
        ("/v1/traces", vec![kind], b"\xff\xff\xff garbage".to_vec(), 400),
        ("/v1/metrics", vec![kind], b"\xff\xff\xff garbage".to_vec(), 400),
        ("/v1/traces", vec![json], b"{\"resourceSpans\":7}".to_vec(), 400),
        ("/v1/traces", vec![("content-type", "text/plain")], Vec::new(), 415),
        ("/v1/traces", vec![kind, ("content-encoding", "br")], Vec::new(), 415),
        ("/v1/traces", vec![kind, ("content-encoding", "gzip")], b"garbage".to_vec(), 400),
        ("/v1/logs", vec![kind], Vec::new(), 404),
        ("/v1/anything", vec![json], Vec::new(), 404),
    ] {
        let answer = post(&server, path, &headers, body).await;
        assert_eq!(answer.status, status, "{path} {headers:?}: {}", answer.text());
        if headers.contains(&json) {
            let said: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
            assert!(said["message"].as_str().is_some_and(|message| !message.is_empty()), "{said}");
        }
    }
    assert_eq!(Ask::get(format!("http://{}/v1/traces", server.http())).send().await.status, 405);
    let garbage = call(&server, TRACES, &[], b"\xff\xff\xff garbage").await;
    assert_eq!(status_of(&garbage), "3");
    let logs = call(&server, "/opentelemetry.proto.collector.logs.v1.LogsService/Export", &[], b"").await;
    assert_eq!(status_of(&logs), "12");
    let brotli = [("grpc-encoding", "br")];
    assert_eq!(status_of(&call(&server, TRACES, &brotli, b"").await), "12");
    assert_eq!(server.counted("throughline_flow_spans_received_total").await, 0.0);
}

#[tokio::test]
async fn spans_without_ids_are_rejected_and_the_others_taken() {
    let server = FlowServer::start().await;
    let mut sent = login(7, now());
    sent.resource_spans[0].scope_spans[0].spans[1].trace_id = vec![0; 16];
    let answer = server.send(&sent).await;
    assert_eq!(answer.status, 200);
    let said = opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse::decode(
        answer.body.clone(),
    )
    .unwrap();
    let partial = said.partial_success.expect("a partial success");
    assert_eq!(partial.rejected_spans, 1);
    assert!(!partial.error_message.is_empty());
    let called = call(&server, TRACES, &[], &sent.encode_to_vec()).await;
    assert_eq!(status_of(&called), "0");
    let message = throughline_tests::grpc::unframed(&called.body, &HeaderMap::new());
    let said = opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse::decode(message)
        .unwrap();
    assert_eq!(said.partial_success.expect("a partial success").rejected_spans, 1);
}

#[tokio::test]
async fn bombs_are_left_at_the_bound() {
    let server = FlowPlan::new().flag("body-bytes-max", 1_048_576).start().await;
    let zeros = vec![0; 50 << 20];
    let bomb = gzip(&zeros);
    let before = resident_kib(&server);
    for _ in 0..10 {
        let answer = post(
            &server,
            "/v1/traces",
            &[("content-type", PROTOBUF), ("content-encoding", "gzip")],
            bomb.clone(),
        )
        .await;
        assert_eq!(answer.status, 413);
    }
    let large =
        post(&server, "/v1/traces", &[("content-type", PROTOBUF)], zeros[..(1 << 20) + 100_000].to_vec())
            .await;
    assert_eq!(large.status, 413);
    let grown = resident_kib(&server).saturating_sub(before);
    assert!(grown < 40 * 1024, "{grown} KiB more");
    assert_eq!(server.send(&login(7, now())).await.status, 200, "others are served");
}

fn resident_kib(server: &FlowServer) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process())).unwrap();
    let row = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    row.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_body_that_comes_too_slowly_is_given_up() {
    let server = FlowPlan::new().flag("body-timeout", 300).start().await;
    let mut slow = TcpStream::connect(server.http()).await.unwrap();
    let head = "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 1000\r\n\r\n";
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(b"\x0a").await.unwrap();
    let mut answer = vec![0; 64];
    let read = within("an answer to a slow sender", slow.read(&mut answer)).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer[..read]));
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_and_are_served_when_there_is_room() {
    let server = FlowPlan::new().flag("connections-max", 16).start().await;
    let address = server.http();
    // 10,000 callers: the kernel holds some for the server, and has the others try again.
    let callers: Vec<_> = (0..10_000)
        .map(|_| {
            tokio::spawn(
                async move { (TcpStream::connect(address).await, std::future::pending::<()>().await) },
            )
        })
        .collect();
    let open = "throughline_flow_connections_open{listener=\"otlp_http\"}";
    eventually("as many connections as allowed", || async {
        (server.counted(open).await == 16.0).then_some(())
    })
    .await;
    // The other listeners have places of their own.
    assert_eq!(status_of(&call(&server, TRACES, &[], &login(7, now()).encode_to_vec()).await), "0");
    let most = server.counted(open).await;
    assert!(most <= 16.0, "{most}");
    callers.iter().for_each(tokio::task::JoinHandle::abort);
    for caller in callers {
        let _ = caller.await;
    }
    assert_eq!(server.send(&login(8, now())).await.status, 200);
    let silent = TcpStream::connect(server.grpc()).await.unwrap();
    assert_eq!(status_of(&call(&server, TRACES, &[], &login(9, now()).encode_to_vec()).await), "0");
    drop(silent);
}

#[tokio::test]
async fn a_full_queue_is_told_and_nothing_of_it_is_lost_in_silence() {
    let server =
        FlowPlan::new().flag("bodies-bytes-max", 1_048_576).flag("body-bytes-max", 524_288).start().await;
    // Bodies that are announced and never end take the room that all share. These two fit: a third would meet them at
    // the bound, and whoever is refused there gives back what it has.
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.http()).await.unwrap();
        let head = "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 500000\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![0; 400_000]).await.unwrap();
        held.push(stream);
    }
    let both = 2.0 * 400_000.0;
    eventually("both bodies to be held", || async {
        (server.counted("throughline_flow_bodies_bytes_held").await >= both).then_some(())
    })
    .await;
    let mut export = login(7, now());
    export.resource_spans[0].scope_spans[0].spans[0].name = "x".repeat(400_000);
    let busy = server.send(&export).await;
    assert_eq!(busy.status, 429);
    assert_eq!(busy.header("retry-after"), Some("1"));
    let busy = call(&server, TRACES, &[], &export.encode_to_vec()).await;
    assert_eq!(status_of(&busy), "8");
    assert!(busy.header("grpc-status-details-bin").is_some(), "RetryInfo");
    drop(held);
    eventually("room again", || async { (server.send(&export).await.status == 200).then_some(()) }).await;
}
