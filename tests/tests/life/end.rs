//! The end: readiness off, what is in flight finishes, GOAWAY, spans flushed, exit 0.

use std::sync::Arc;

use bytes::Bytes;
use throughline_tests::feed::fed;
use throughline_tests::frames::{END_STREAM, Frame, Frames, kind};
use throughline_tests::prelude::*;
use tokio::sync::Notify;

/// A service whose answer waits in the middle for a word from the scenario.
fn waiting(word: Arc<Notify>) -> Script {
    script(move |_| {
        let word = Arc::clone(&word);
        async move {
            let (feeder, body) = fed();
            tokio::spawn(async move {
                feeder.send("first").await;
                word.notified().await;
                feeder.send("last").await;
            });
            http::Response::new(body)
        }
    })
}

async fn is_draining(sidecar: &Sidecar) {
    eventually("readiness off", || async {
        let answer = Ask::get(sidecar.admin_url("/readyz")).try_send().await.ok()?;
        (answer.status == 503 && answer.text().contains("draining")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_in_flight_finishes_after_sigterm() {
    for protocol in throughline_tests::ask::BOTH {
        let mesh = Mesh::new().await;
        let word = Arc::new(Notify::new());
        let orders = mesh.pod("orders").runs(waiting(Arc::clone(&word))).await;
        let mut open = Ask::get(orders.url("/")).over(protocol).open().await;
        assert_eq!(open.piece().await, Ok(Some(Bytes::from("first"))));
        orders.sidecar.terminate();
        is_draining(&orders.sidecar).await;
        assert_eq!(
            Ask::get(orders.sidecar.admin_url("/livez")).send().await.status,
            200,
            "alive all the same"
        );
        word.notify_one();
        let answer = open.rest().await;
        assert_eq!((answer.text().as_str(), answer.broken), ("last", None), "{protocol:?}");
        let mut sidecar = orders.sidecar;
        assert_eq!(sidecar.exit().await, Some(0));
        assert_eq!(mesh.collector.accepted().len(), 1, "{protocol:?}: its span was flushed");
    }
}

#[tokio::test]
async fn idle_connections_do_not_delay_the_end() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "ok")).await;
    let mut idle = Vec::new();
    for protocol in throughline_tests::ask::BOTH {
        let mut connection = Connection::to(orders.sidecar.inbound(), protocol).await.expect("a connection");
        connection.ask(Ask::get(orders.url("/"))).await;
        idle.push(connection);
    }
    let silent = Wire::to(orders.sidecar.inbound()).await;
    let started = std::time::Instant::now();
    assert_eq!(mesh.end([orders]).await.len(), 2);
    assert!(started.elapsed().as_secs() < 5, "it took {:?}", started.elapsed());
    for mut connection in idle {
        connection.closed().await;
    }
    drop(silent);
}

#[tokio::test]
async fn http_2_callers_are_told_to_go_away() {
    let mesh = Mesh::new().await;
    let word = Arc::new(Notify::new());
    let orders = mesh.pod("orders").runs(waiting(Arc::clone(&word))).await;
    let mut frames = Frames::to(orders.sidecar.inbound(), &[]).await;
    let start: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")];
    frames.send(Frame::headers(1, &start, END_STREAM)).await;
    orders.app().saw(1).await;
    orders.sidecar.terminate();
    // The stream that is open is served to its end after the GOAWAY.
    let mut kinds = Vec::new();
    loop {
        let frame = frames.next().await.expect("a frame");
        kinds.push((frame.kind, frame.flags & END_STREAM));
        if frame.kind == kind::GOAWAY {
            assert_eq!(frame.payload[4..8], [0, 0, 0, 0], "NO_ERROR");
            word.notify_one();
        }
        if frame.stream == 1 && frame.flags & END_STREAM != 0 {
            break;
        }
    }
    assert!(kinds.iter().any(|(found, _)| *found == kind::GOAWAY), "{kinds:?}");
    drop(frames);
    let mut sidecar = orders.sidecar;
    assert_eq!(sidecar.exit().await, Some(0));
}

#[tokio::test]
async fn what_does_not_finish_is_cut_off_at_the_drain_timeout() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("drain-timeout", 500).runs(script(|_| std::future::pending())).await;
    let asking = tokio::spawn(Ask::get(orders.url("/")).try_send());
    orders.app().saw(1).await;
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.len(), 1, "cut off, and accounted for");
    let _ = asking.await;
}

#[tokio::test]
async fn a_websocket_and_a_tunnel_do_not_outlive_the_drain_timeout() {
    let mesh = Mesh::new().await;
    let silent = Peer::playing(|mut wire| async move {
        wire.rest().await;
    })
    .await;
    let upgrading = throughline_tests::service::switching(|mut stream| async move {
        let _ = tokio::io::AsyncReadExt::read_u8(&mut stream).await;
    });
    let chat = mesh.pod("chat").flag("drain-timeout", 500).runs(upgrading).await;
    let mut socket = Wire::to(chat.sidecar.inbound()).await;
    socket.send("GET / HTTP/1.1\r\nHost: c\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    socket.head().await;
    let mut tunnel = Wire::to(chat.sidecar.outbound()).await;
    tunnel.send(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", silent.address)).await;
    tunnel.head().await;
    tunnel.send([0_u8, 1, 2]).await;
    let spans = mesh.end([chat]).await;
    assert_eq!(the_only(&spans, |_| true)["http.response.status_code"], 101);
    assert!(socket.rest().await.is_empty() && tunnel.rest().await.is_empty());
}

#[tokio::test]
async fn a_drain_can_be_asked_for_at_the_admin_port() {
    let mesh = Mesh::new().await;
    let word = Arc::new(Notify::new());
    let orders = mesh.pod("orders").runs(waiting(Arc::clone(&word))).await;
    let mut open = Ask::get(orders.url("/")).open().await;
    assert_eq!(open.piece().await, Ok(Some(Bytes::from("first"))));
    let asked = Ask::post(orders.sidecar.admin_url("/drain"), "").send().await;
    assert!((200..300).contains(&asked.status), "{asked:?}");
    is_draining(&orders.sidecar).await;
    word.notify_one();
    assert_eq!(open.rest().await.text(), "last");
    let mut sidecar = orders.sidecar;
    assert_eq!(sidecar.exit().await, Some(0));
    assert_eq!(mesh.collector.accepted().len(), 1);
}

#[tokio::test]
async fn a_second_sigterm_is_no_crash() {
    let mesh = Mesh::new().await;
    let word = Arc::new(Notify::new());
    let orders = mesh.pod("orders").flag("drain-timeout", 3000).runs(waiting(Arc::clone(&word))).await;
    let mut open = Ask::get(orders.url("/")).open().await;
    open.piece().await.expect("unbroken");
    orders.sidecar.terminate();
    is_draining(&orders.sidecar).await;
    orders.sidecar.terminate();
    word.notify_one();
    let mut sidecar = orders.sidecar;
    assert_eq!(sidecar.exit().await, Some(0));
}

#[tokio::test]
async fn a_collector_that_is_gone_does_not_hold_up_the_end() {
    let mesh = Mesh::new().await;
    mesh.collector.always(Reaction::Silence);
    let orders = mesh.pod("orders").flag("drain-timeout", 1500).runs(answer(200, "")).await;
    Ask::get(orders.url("/")).send().await;
    let started = std::time::Instant::now();
    assert!(mesh.end([orders]).await.is_empty());
    assert!(started.elapsed().as_secs() < 6, "it took {:?}", started.elapsed());
}
