//! The forms of HTTP: each passes unharmed and leaves one span.

use bytes::Bytes;
use http::{Response, Version, header};
use http_body_util::BodyExt;
use serde_json::json;
use throughline_tests::ask::BOTH;
use throughline_tests::feed::{fed, nothing, whole};
use throughline_tests::prelude::*;
use throughline_tests::service::{read, response};
use throughline_tests::wire::{exchange, status_of};

#[tokio::test]
async fn each_protocol_passes_and_leaves_one_server_span() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(echo()).await;
    for protocol in BOTH {
        let answer = Ask::post(orders.url("/items/42"), "a cup").over(protocol).send().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "a cup"), "{protocol:?}");
        assert_eq!(answer.header("x-method"), Some("POST"));
    }
    let seen = orders.app().seen();
    assert_eq!(seen.len(), 2);
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.len(), 2, "{spans:#?}");
    for version in ["1.1", "2"] {
        let span = the_only(&spans, |span| span["network.protocol.version"] == version);
        assert_eq!((span.kind, span.name.as_str()), (Kind::Server, "POST /items/{id}"));
    }
    assert_connected(&spans, &[]);
}

#[tokio::test]
async fn a_protocol_is_kept_towards_the_application() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    for (protocol, version) in [(Protocol::H1, Version::HTTP_11), (Protocol::H2, Version::HTTP_2)] {
        let answer = Ask::get(orders.url("/")).over(protocol).send().await;
        assert_eq!(answer.version, version);
        assert_eq!(orders.app().seen().last().map(|seen| seen.version), Some(version));
    }
}

#[tokio::test]
async fn http_1_0_is_served_in_its_own_manner() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .runs(script(|_| async {
            let (feeder, body) = fed();
            tokio::spawn(async move {
                feeder.send("one ").await;
                feeder.send("two").await;
            });
            Response::new(body)
        }))
        .await;
    // Without Host, which HTTP/1.0 allows; the body's length is unknown, and chunks would not be understood.
    let answer = exchange(orders.sidecar.inbound(), "GET /old HTTP/1.0\r\n\r\n").await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(answer.ends_with("\r\n\r\none two"), "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
    let spans = mesh.end([orders]).await;
    let span = the_only(&spans, |_| true);
    span.assert_attributes(&[
        ("network.protocol.version", json!("1.0")),
        ("http.response.status_code", json!(200)),
        ("url.path", json!("/old")),
    ]);
}

#[tokio::test]
async fn an_http_1_0_connection_stays_when_the_caller_asks_so() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "kept")).await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    for _ in 0..2 {
        wire.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\nHost: orders\r\n\r\n").await;
        let head = wire.head().await.to_ascii_lowercase();
        assert!(head.contains("content-length: 4"), "{head}");
        assert_eq!(wire.exactly(4).await, b"kept");
    }
    drop(wire);
    assert_eq!(mesh.end([orders]).await.len(), 2);
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .runs(script(|_| async {
            Response::builder().header(header::CONTENT_LENGTH, 5).body(nothing()).expect("a response")
        }))
        .await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    for _ in 0..2 {
        wire.send("HEAD /items HTTP/1.1\r\nHost: orders\r\n\r\n").await;
        let head = wire.head().await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200") && head.contains("content-length: 5"), "{head}");
    }
    drop(wire);
    let answer = Ask::new("HEAD", orders.url("/items")).over(Protocol::H2).send().await;
    assert_eq!((answer.header("content-length"), answer.body.len()), (Some("5"), 0));
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.len(), 3);
    assert!(spans.iter().all(|span| span.name == "HEAD /items"), "{spans:#?}");
}

#[tokio::test]
async fn a_caller_that_expects_100_sends_its_body_only_after_it() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .runs(script(|visit| async move { response(200, read(visit.request).await) }))
        .await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    let head = "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    wire.send(head).await;
    assert_eq!(status_of(&wire.head().await), 100);
    wire.send("hello").await;
    assert_eq!(status_of(&wire.head().await), 200);
    wire.until("hello").await;
    drop(wire);
    let spans = mesh.end([orders]).await;
    assert_eq!(the_only(&spans, |_| true)["http.response.status_code"], 200);
}

#[tokio::test]
async fn an_application_may_refuse_a_body_that_was_not_sent_yet() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(413, "too much")).await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    let head = "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 500000\r\nExpect: 100-continue\r\n\r\n";
    wire.send(head).await;
    assert_eq!(status_of(&wire.head().await), 413);
    drop(wire);
    let spans = mesh.end([orders]).await;
    assert_eq!(the_only(&spans, |_| true)["http.response.status_code"], 413);
}

#[tokio::test]
async fn chunks_arrive_whole_whatever_their_sizes() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .runs(script(|visit| async move { response(200, read(visit.request).await) }))
        .await;
    let request = "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n\
                   1\r\na\r\n0005\r\nbcdef\r\nA;note=\"x\"\r\n0123456789\r\n0\r\nX-Late: 1\r\n\r\n";
    let answer = exchange(orders.sidecar.inbound(), request).await;
    assert!(status_of(&answer) == 200 && answer.ends_with("\r\n\r\nabcdef0123456789"), "{answer}");
    let answer = Ask::new("POST", orders.url("/")).body(sixteen_pieces().await).send().await;
    assert_eq!(answer.text(), "piece".repeat(16));
    assert_eq!(mesh.end([orders]).await.len(), 2);
}

async fn sixteen_pieces() -> throughline_tests::feed::AnyBody {
    let (feeder, body) = fed();
    for _ in 0..16 {
        feeder.send("piece").await;
    }
    body
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection_ends_cleanly() {
    let mesh = Mesh::new().await;
    let old = Peer::saying("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end").await;
    let orders = mesh.pod("orders").before(old.address).await;
    let answer = Ask::get(orders.url("/")).send().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "until the end"));
    assert_eq!(answer.broken, None);
    let spans = mesh.end([orders]).await;
    assert_eq!(the_only(&spans, |_| true).status, SpanStatus::Unset);
}

#[tokio::test]
async fn an_http_1_0_application_is_understood() {
    let mesh = Mesh::new().await;
    let old = Peer::saying("HTTP/1.0 200 OK\r\n\r\nold but well").await;
    let orders = mesh.pod("orders").before(old.address).await;
    let answer = Ask::get(orders.url("/")).send().await;
    assert_eq!((answer.text().as_str(), answer.broken), ("old but well", None));
    assert_eq!(mesh.end([orders]).await.len(), 1);
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(echo()).await;
    let large = Bytes::from((0..4_000_000_u32).map(|number| (number % 251) as u8).collect::<Vec<_>>());
    for protocol in BOTH {
        let answer = Ask::post(orders.url("/"), large.clone()).over(protocol).send().await;
        assert!(answer.body == large, "{protocol:?}: {} bytes came back", answer.body.len());
    }
    assert_eq!(mesh.end([orders]).await.len(), 2);
}

#[tokio::test]
async fn the_first_piece_arrives_before_the_last_is_sent() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(echo()).await;
    for protocol in BOTH {
        let (feeder, body) = fed();
        let asking = Ask::new("POST", orders.url("/")).over(protocol).body(body).open();
        let (mut open, _) = tokio::join!(asking, feeder.send("first"));
        assert_eq!(open.piece().await, Ok(Some(Bytes::from("first"))), "{protocol:?}");
        feeder.send("second").await;
        assert_eq!(open.piece().await, Ok(Some(Bytes::from("second"))), "{protocol:?}");
        drop(feeder);
        assert_eq!(open.piece().await, Ok(None));
    }
    assert_eq!(mesh.end([orders]).await.len(), 2);
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_has_ended() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(403, "not you")).await;
    for protocol in BOTH {
        let (feeder, body) = fed();
        let asking = Ask::new("POST", orders.url("/")).over(protocol).body(body).open();
        let (mut open, _) = tokio::join!(asking, feeder.send("first"));
        assert_eq!(open.head.status, 403);
        assert_eq!(open.piece().await, Ok(Some(Bytes::from("not you"))), "{protocol:?}");
        drop(feeder);
    }
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.iter().filter(|span| span["http.response.status_code"] == 403).count(), 2);
}

#[tokio::test]
async fn statuses_without_a_body_leave_the_connection_in_order() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .runs(script(|visit| async move {
            let status = visit.request.uri().path()[1..].parse().unwrap_or(500);
            response(status, if status == 200 { "body" } else { "" })
        }))
        .await;
    for protocol in BOTH {
        let mut connection = Connection::to(orders.sidecar.inbound(), protocol).await.expect("a connection");
        for status in [204, 304, 200, 204, 200] {
            let answer = connection.ask(Ask::get(orders.url(&format!("/{status}")))).await;
            assert_eq!((answer.status, answer.broken), (status, None), "{protocol:?}");
        }
    }
    assert_eq!(mesh.end([orders]).await.len(), 10);
}

#[tokio::test]
async fn requests_in_one_packet_are_answered_in_their_order() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .runs(script(|visit| async move {
            let path = visit.request.uri().path().to_owned();
            let body = read(visit.request).await;
            Response::new(whole(format!("<{path} {}>", String::from_utf8_lossy(&body))))
        }))
        .await;
    let requests = "POST /a HTTP/1.1\r\nHost: o\r\nContent-Length: 3\r\n\r\none\
                    GET /b HTTP/1.1\r\nHost: o\r\n\r\n\
                    POST /c HTTP/1.1\r\nHost: o\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n\
                    GET /d HTTP/1.1\r\nHost: o\r\nConnection: close\r\n\r\n";
    let answers = exchange(orders.sidecar.inbound(), requests).await;
    let bodies: Vec<_> = answers.split(['<', '>']).skip(1).step_by(2).collect();
    assert_eq!(bodies, ["/a one", "/b ", "/c two", "/d "]);
    assert_eq!(mesh.end([orders]).await.len(), 4);
}

#[tokio::test]
async fn trailers_pass_from_the_application_to_the_caller() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .runs(script(|visit| async move {
            let (feeder, body) = fed();
            let trailers = visit.request.into_body().collect().await.expect("a body").trailers().cloned();
            tokio::spawn(async move {
                feeder.send("body").await;
                feeder.trailers(trailers.unwrap_or_default()).await;
            });
            Response::new(body)
        }))
        .await;
    let (feeder, body) = fed();
    let asking =
        Ask::new("POST", orders.url("/")).header("te", "trailers").over(Protocol::H2).body(body).open();
    let feeding = async {
        feeder.send("body").await;
        feeder
            .trailers(
                [("x-checksum".parse().expect("a name"), "7".parse().expect("a value"))]
                    .into_iter()
                    .collect(),
            )
            .await;
    };
    let (mut open, ()) = tokio::join!(asking, feeding);
    let answer = open.rest().await;
    assert_eq!((answer.text().as_str(), answer.trailer("x-checksum")), ("body", Some("7")));
    assert_eq!(mesh.end([orders]).await.len(), 1);
}

#[tokio::test]
async fn connections_to_the_application_are_used_again() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "ok")).await;
    for _ in 0..20 {
        Ask::get(orders.url("/")).send().await;
    }
    let mut ports: Vec<_> = orders.app().seen().iter().map(|seen| seen.from.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert!(ports.len() < 10, "20 requests in a row took {} connections", ports.len());
    assert_eq!(mesh.end([orders]).await.len(), 20);
}

#[tokio::test]
async fn hop_by_hop_fields_stay_on_their_hop() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    let request = "GET / HTTP/1.1\r\nHost: orders\r\nConnection: close, X-Only-Here\r\nX-Only-Here: 1\r\n\
                   Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nX-Further: 1\r\n\r\n";
    exchange(orders.sidecar.inbound(), request).await;
    let seen = orders.app().saw_one();
    assert_eq!(seen.header("x-further"), Some("1"));
    for gone in ["x-only-here", "keep-alive", "proxy-connection"] {
        assert_eq!(seen.header(gone), None, "{gone}");
    }
    assert_eq!(seen.header("host"), Some("orders"), "the name that the caller used is the application's");
}
