//! Tunnels: upgrades, WebSocket-like streams and CONNECT.

use serde_json::{Value, json};
use throughline_tests::prelude::*;
use throughline_tests::service::switching;
use throughline_tests::wire::{Nobody, status_of};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Switches protocols and echoes what comes in capitals.
fn shouting() -> Script {
    switching(|mut stream| async move {
        let mut chunk = [0_u8; 1024];
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            if stream.write_all(&chunk[..count].to_ascii_uppercase()).await.is_err() {
                break;
            }
        }
    })
}

#[tokio::test]
async fn an_upgraded_stream_flows_both_ways_and_is_one_span() {
    let mesh = Mesh::new().await;
    let chat = mesh.pod("chat").runs(shouting()).await;
    let mut wire = Wire::to(chat.sidecar.inbound()).await;
    let head = "GET /room HTTP/1.1\r\nHost: chat\r\nConnection: Upgrade\r\nUpgrade: shouting/1\r\n\r\n";
    // Bytes of the new protocol may follow the head at once.
    wire.send(format!("{head}early ")).await;
    let answer = wire.head().await.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101") && answer.contains("upgrade: shouting/1"), "{answer}");
    wire.until("EARLY ").await;
    for word in ["first", "second", "\0\u{1}binary"] {
        wire.send(word).await;
        wire.until(&word.to_ascii_uppercase()).await;
    }
    let seen = chat.app().saw_one();
    assert_eq!(seen.header("upgrade"), Some("shouting/1"));
    assert!(seen.traceparent().sampled());
    assert_eq!(chat.books().await.created(), 0, "a stream that lives has no span yet");
    drop(wire);
    let spans = mesh.collector.spans(1).await;
    the_only(&spans, |_| true).assert_attributes(&[
        ("http.response.status_code", json!(101)),
        ("url.path", json!("/room")),
        ("error.type", Value::Null),
    ]);
    assert_eq!(mesh.end([chat]).await.len(), 1);
}

#[tokio::test]
async fn an_upgrade_through_the_outbound_side_is_traced() {
    let mesh = Mesh::new().await;
    let chat = Service::playing(shouting()).await;
    let web = mesh.pod("web").outbound_only().await;
    let mut wire = Wire::to(web.sidecar.outbound()).await;
    let head = "Connection: Upgrade\r\nUpgrade: shouting/1";
    wire.send(format!("GET {} HTTP/1.1\r\nHost: {}\r\n{head}\r\n\r\n", chat.url("/room"), chat.address))
        .await;
    assert_eq!(status_of(&wire.head().await), 101);
    wire.send("hello").await;
    wire.until("HELLO").await;
    let sent = chat.saw_one().traceparent();
    drop(wire);
    let spans = mesh.collector.spans(1).await;
    let span = the_only(&spans, |_| true);
    assert_eq!((span.kind, span.trace, span.id), (Kind::Client, sent.trace, sent.span));
    assert_eq!(mesh.end([web]).await.len(), 1);
}

#[tokio::test]
async fn the_server_ending_an_upgraded_stream_ends_the_callers() {
    let mesh = Mesh::new().await;
    let chat = mesh
        .pod("chat")
        .runs(switching(|mut stream| async move {
            let _ = stream.write_all(b"goodbye").await;
            let _ = stream.shutdown().await;
        }))
        .await;
    let mut wire = Wire::to(chat.sidecar.inbound()).await;
    wire.send("GET / HTTP/1.1\r\nHost: c\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    wire.head().await;
    assert_eq!(wire.rest_text().await, "goodbye");
    assert_eq!(mesh.end([chat]).await.len(), 1);
}

#[tokio::test]
async fn a_declined_upgrade_is_an_ordinary_answer() {
    let mesh = Mesh::new().await;
    let chat = mesh.pod("chat").runs(answer(200, "no")).await;
    let mut wire = Wire::to(chat.sidecar.inbound()).await;
    for _ in 0..2 {
        wire.send("GET / HTTP/1.1\r\nHost: c\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
        assert_eq!(status_of(&wire.head().await), 200);
        wire.until("no").await;
    }
    drop(wire);
    assert_eq!(mesh.end([chat]).await.len(), 2);
}

/// A TCP echo that greets first, as mail and database servers do.
async fn greeting_echo() -> Peer {
    Peer::playing(|mut wire| async move {
        wire.send("220 ready\r\n").await;
        loop {
            let bytes = wire.exactly(1).await;
            if bytes.is_empty() || !wire.send(&bytes).await {
                return;
            }
        }
    })
    .await
}

async fn connected(pod: &Pod, to: std::net::SocketAddr) -> Wire {
    let mut wire = Wire::to(pod.sidecar.outbound()).await;
    wire.send(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n")).await;
    let head = wire.head().await;
    assert_eq!(status_of(&head), 200, "{head}");
    assert!(!head.to_ascii_lowercase().contains("content-length"), "{head}");
    wire
}

#[tokio::test]
async fn opaque_bytes_pass_a_tunnel_untouched_and_untraced() {
    let mesh = Mesh::new().await;
    let database = greeting_echo().await;
    let web = mesh.pod("web").outbound_only().await;
    let mut wire = connected(&web, database.address).await;
    // The server speaks first; the client's first byte is no HTTP's.
    assert_eq!(wire.exactly(11).await, b"220 ready\r\n");
    let bytes: Vec<u8> = (0..=255).collect();
    wire.send([&[0x16, 0x03, 0x01], bytes.as_slice()].concat()).await;
    assert_eq!(wire.exactly(259).await[3..], bytes);
    drop(wire);
    let spans = mesh.end([web]).await;
    assert!(spans.is_empty(), "{spans:#?}");
}

#[tokio::test]
async fn a_tunnel_keeps_one_direction_open_when_the_other_ends() {
    let mesh = Mesh::new().await;
    let counter = Peer::playing(|mut wire| async move {
        let bytes = wire.rest().await;
        wire.send(format!("{} bytes", bytes.len())).await;
    })
    .await;
    let web = mesh.pod("web").outbound_only().await;
    let mut wire = connected(&web, counter.address).await;
    wire.send([0xff, 1, 2, 3]).await;
    wire.end().await;
    assert_eq!(wire.rest_text().await, "4 bytes");
    mesh.end([web]).await;
}

#[tokio::test]
async fn cleartext_http_in_a_tunnel_is_traced_like_any_other() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "12")).await;
    let web = mesh.pod("web").outbound_only().await;
    let mut wire = connected(&web, stock.address).await;
    for path in ["/one", "/two"] {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\nX-Operation-Name: count\r\n\r\n", stock.address);
        wire.send(request).await;
        assert_eq!(status_of(&wire.head().await), 200);
        wire.until("12").await;
    }
    drop(wire);
    let seen = stock.seen();
    let spans = mesh.end([web]).await;
    assert_eq!(spans.len(), 2, "{spans:#?}");
    for seen in seen {
        let sent = seen.traceparent();
        let span = the_only(&spans, |span| span.id == sent.span && span.trace == sent.trace);
        assert_eq!(span.kind, Kind::Client);
        span.assert_attributes(&[
            ("url.full", json!(stock.url(seen.uri.path()))),
            ("app.operation.name", json!("count")),
        ]);
    }
}

#[tokio::test]
async fn http_2_in_a_tunnel_is_traced_like_any_other() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "12")).await;
    let web = mesh.pod("web").outbound_only().await;
    let mut wire = connected(&web, stock.address).await;
    // The preface, empty settings, and one request by hand.
    let authority = stock.address.to_string();
    let fields: [(&[u8], &[u8]); 4] = [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/h2"),
        (b":authority", authority.as_bytes()),
    ];
    use throughline_tests::frames::{END_STREAM, Frame, kind};
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(Frame::new(kind::SETTINGS, 0, 0, []).bytes());
    bytes.extend(Frame::headers(1, &fields, END_STREAM).bytes());
    wire.send(bytes).await;
    let sent = stock.saw(1).await.remove(0).traceparent();
    wire.until("12").await;
    drop(wire);
    let spans = mesh.end([web]).await;
    assert_eq!(the_only(&spans, |span| span.kind == Kind::Client).id, sent.span);
}

#[tokio::test]
async fn a_tunnel_to_nowhere_is_a_502() {
    let mesh = Mesh::new().await;
    let nobody = Nobody::listens();
    let web = mesh.pod("web").outbound_only().await;
    let mut wire = Wire::to(web.sidecar.outbound()).await;
    wire.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", nobody.address)).await;
    let head = wire.head().await;
    assert_eq!(status_of(&head), 502, "{head}");
    assert!(head.to_ascii_lowercase().contains("throughline-error: connection_refused"), "{head}");
    drop(wire);
    mesh.end([web]).await;
}
