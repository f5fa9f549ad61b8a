//! Bodies are the user's: whatever they hold, and whenever they come, nobody takes them for something else.

use throughline_tests::prelude::*;
use throughline_tests::service::{read, response};
use throughline_tests::wire::{Peer, status_of};

/// Lines that would be illegal as a head.
const HOSTILE: &str =
    "GET /#a HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n# Title\r\n";

/// Answers with what it read.
fn reading() -> Script {
    script(|visit| async move { response(200, read(visit.request).await) })
}

/// A head of exactly this many bytes, for a body of `length`.
fn head_of(bytes: usize, length: usize) -> String {
    let head = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: text/markdown\r\nContent-Length: {length}\r\nX-Pad: "
    );
    let pad = "p".repeat(bytes - head.len() - 4);
    format!("{head}{pad}\r\n\r\n")
}

#[tokio::test]
async fn a_body_is_never_read_as_a_head_wherever_the_bytes_are_cut() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(reading()).await;
    let mut count = 0;
    for size in [200, 1023, 1024, 1025, 4096] {
        let mut wire = Wire::to(orders.sidecar.inbound()).await;
        for _ in 0..3 {
            wire.send(format!("{}{HOSTILE}", head_of(size, HOSTILE.len()))).await;
            assert_eq!(status_of(&wire.head().await), 200, "{size}");
            assert_eq!(wire.exactly(HOSTILE.len()).await, HOSTILE.as_bytes());
            count += 1;
        }
    }
    assert_eq!(mesh.end([orders]).await.len(), count);
}

#[tokio::test]
async fn a_body_that_comes_after_its_answer_is_no_head() {
    let mesh = Mesh::new().await;
    let early = script(|visit| async move {
        let path = visit.request.uri().path().to_owned();
        if path == "/early" {
            tokio::spawn(read(visit.request)); // it goes on reading
        }
        response(200, path)
    });
    let orders = mesh.pod("orders").flag("header-timeout", 300).runs(early).await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    wire.send(format!("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", HOSTILE.len())).await;
    wire.until("/early").await;
    wire.send(HOSTILE).await;
    wire.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(status_of(&wire.head().await), 200);
    wire.until("/next").await;
    drop(wire);
    assert_eq!(mesh.end([orders]).await.len(), 2);
}

#[tokio::test]
async fn a_pipelined_head_is_looked_at_like_the_first() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "ok")).await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    wire.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b#c HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(status_of(&wire.until("ok").await), 200);
    assert_eq!(status_of(&wire.head().await), 400);
    assert_eq!(orders.app().seen().len(), 1);
    drop(wire);
    assert_eq!(mesh.end([orders]).await.len(), 1);
}

#[tokio::test]
async fn a_json_request_gets_an_answer_that_comes_before_its_body() {
    let mesh = Mesh::new().await;
    let early = script(|visit| async move {
        tokio::spawn(read(visit.request));
        response(200, "early")
    });
    let orders = mesh.pod("orders").runs(early).await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n";
    wire.send(head).await;
    wire.until("early").await;
    wire.send("{}").await;
    drop(wire);
    assert_eq!(mesh.end([orders]).await.len(), 1);
}

#[tokio::test]
async fn an_answer_may_have_more_fields_than_a_request() {
    let mesh = Mesh::new().await;
    let many = script(|_| async move {
        let mut answer = response(200, "many");
        for number in 0..300 {
            let name = http::HeaderName::from_bytes(format!("x-{number}").as_bytes()).expect("a name");
            answer.headers_mut().insert(name, "1".parse().expect("a value"));
        }
        answer
    });
    let orders = mesh.pod("orders").runs(many).await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = wire.head().await;
    assert!(status_of(&head) == 200 && head.contains("x-0: 1") && head.contains("x-299: 1"), "{head}");
    wire.until("many").await;
    drop(wire);
    assert_eq!(mesh.end([orders]).await.len(), 1);
}

#[tokio::test]
async fn text_protocols_inside_a_connect_pass() {
    let mesh = Mesh::new().await;
    let server = Peer::playing(|mut wire| async move {
        let line = wire.until("!").await;
        wire.send(format!("you said {line}")).await;
        wire.rest().await;
    })
    .await;
    let web = mesh.pod("web").outbound_only().await;
    for line in ["NICK bob\r\n!", "get key\r\n!", "SSH-2.0-X y\r\n!", "HELLO!", "\u{16}\u{3}\u{1}!"] {
        let mut wire = Wire::to(web.sidecar.outbound()).await;
        wire.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", server.address)).await;
        assert_eq!(status_of(&wire.head().await), 200);
        wire.send(line).await;
        wire.until(&format!("you said {line}")).await;
    }
    assert_eq!(mesh.end([web]).await.len(), 0, "what is no HTTP leaves no span");
}

#[tokio::test]
async fn a_drain_serves_whoever_had_just_connected() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "ok")).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut silent = Wire::to(orders.sidecar.inbound()).await;
    let mut kept = Wire::to(orders.sidecar.inbound()).await;
    kept.send(request).await;
    kept.until("ok").await;
    kept.send(&request[..9]).await;
    orders.app().saw(1).await;
    orders.sidecar.terminate();
    kept.send(&request[9..]).await;
    silent.send(request).await;
    for wire in [&mut kept, &mut silent] {
        let answer = wire.rest_text().await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    }
    let mut sidecar = orders.sidecar;
    assert_eq!(sidecar.exit().await, Some(0));
}
