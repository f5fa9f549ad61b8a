//! Those who stall: slow heads, windows that never open, connections that say nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use throughline_tests::feed::Feeder;
use throughline_tests::frames::{END_STREAM, Frame, Frames, kind};
use throughline_tests::prelude::*;
use throughline_tests::service::{read, response};
use throughline_tests::wire::status_of;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

#[tokio::test]
async fn a_head_that_does_not_end_is_closed_by_the_header_timeout() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("header-timeout", 300).runs(answer(200, "")).await;
    let mut wires = Vec::new();
    for _ in 0..50 {
        let mut wire = Wire::to(orders.sidecar.inbound()).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").await;
        wires.push(wire);
    }
    for mut wire in wires {
        let answer = wire.rest_text().await;
        assert!(answer.is_empty() || status_of(&answer) == 408, "{answer}");
    }
    orders
        .sidecar
        .books_when("all closed", |books| books.sum("throughline_connections_open", &[]) == 0)
        .await;
    assert!(mesh.end([orders]).await.is_empty());
}

#[tokio::test]
async fn a_trickling_head_is_closed_all_the_same() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("header-timeout", 300).runs(answer(200, "")).await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n").await;
    let started = Instant::now();
    // The stimulus itself is slow: a few bytes each 50 ms, for as long as the sidecar takes them.
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    while wire.send("X: 1\r\n").await {
        pace.tick().await;
        assert!(started.elapsed() < PATIENCE, "the sidecar waits for ever");
    }
    mesh.end([orders]).await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("header-timeout", 300).runs(answer(200, "")).await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    let answer = wire.rest_text().await;
    assert!(answer.is_empty() || status_of(&answer) == 408, "{answer}");
    mesh.end([orders]).await;
}

#[tokio::test]
async fn an_http_2_preface_that_does_not_end_is_closed() {
    let mesh = Mesh::new().await;
    let orders =
        mesh.pod("orders").flag("header-timeout", 300).flag("idle-timeout", 300).runs(answer(200, "")).await;
    for start in ["PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut wire = Wire::to(orders.sidecar.inbound()).await;
        wire.send(start).await;
        wire.rest().await;
    }
    mesh.end([orders]).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_by_the_idle_timeout() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("idle-timeout", 300).runs(answer(200, "ok")).await;
    for protocol in throughline_tests::ask::BOTH {
        let mut connection = Connection::to(orders.sidecar.inbound(), protocol).await.expect("a connection");
        assert_eq!(connection.ask(Ask::get(orders.url("/"))).await.text(), "ok");
        connection.closed().await;
    }
    assert_eq!(mesh.end([orders]).await.len(), 2);
}

#[tokio::test]
async fn an_idle_connection_to_the_application_is_let_go() {
    for protocol in throughline_tests::ask::BOTH {
        let mesh = Mesh::new().await;
        let orders = mesh.pod("orders").flag("pool-idle-timeout", 200).runs(answer(200, "ok")).await;
        assert_eq!(Ask::get(orders.url("/")).over(protocol).send().await.text(), "ok");
        orders.app().has_open(0).await;
        assert_eq!(Ask::get(orders.url("/")).over(protocol).send().await.text(), "ok");
        assert_eq!(mesh.end([orders]).await.len(), 2);
    }
}

#[tokio::test]
async fn a_stalled_reader_is_reaped_and_takes_little_memory() {
    let mesh = Mesh::new().await;
    let large = bytes::Bytes::from(vec![b'x'; 4_000_000]);
    let orders = mesh
        .pod("orders")
        .flag("stall-timeout", 1000)
        .runs(script(move |_| {
            let large = large.clone();
            async move { http::Response::new(throughline_tests::feed::whole(large)) }
        }))
        .await;
    let before = orders.sidecar.resident_kib();
    let start: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")];
    let mut stalled = Vec::new();
    // SETTINGS_INITIAL_WINDOW_SIZE = 0: not one byte of any body may be sent.
    for _ in 0..4 {
        let mut frames = Frames::to(orders.sidecar.inbound(), &[(4, 0)]).await;
        for number in 0..50_u32 {
            frames.send(Frame::headers(number * 2 + 1, &start, END_STREAM)).await;
        }
        stalled.push(frames);
    }
    // Reaped are connections, with whatever of their streams has reached the application by then.
    let is_over = |books: &Books| {
        books.sum("throughline_connections_total", &[("side", "inbound")]) == 4
            && books.sum("throughline_connections_open", &[]) == 0
    };
    orders.sidecar.books_when("the stalled ones being reaped", is_over).await;
    // 64 KiB to be sent and as much received for each, and what the allocator makes of it.
    let grown = orders.sidecar.peak_kib().saturating_sub(before);
    assert!(grown < 60_000, "200 stalled streams took {grown} KiB");
    drop(stalled);
    let reached = orders.app().seen().len();
    let spans = mesh.end([orders]).await.len();
    assert!((reached..=200).contains(&spans) && reached > 50, "{reached} reached it and left {spans} spans");
}

/// Those who stall share the connection to the application with others, and its window of flow control.
#[tokio::test]
async fn a_stalled_reader_does_not_hold_up_others_on_the_connection_to_the_application() {
    let mesh = Mesh::new().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let orders = mesh
        .pod("orders")
        .runs(script(move |visit| {
            let count = Arc::clone(&count);
            async move {
                if visit.request.uri().path() == "/small" {
                    return response(200, vec![b'x'; 100_000]);
                }
                let (feeder, body) = throughline_tests::feed::fed();
                tokio::spawn(pour(feeder, count));
                http::Response::new(body)
            }
        }))
        .await;
    let start: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/large"), (b":authority", b"a")];
    // One connection to the application is there before, so that all of them share it.
    assert_eq!(Ask::get(orders.url("/small")).over(Protocol::H2).send().await.body.len(), 100_000);
    let mut frames = Frames::to(orders.sidecar.inbound(), &[(4, 0)]).await;
    for number in 0..40_u32 {
        frames.send(Frame::headers(number * 2 + 1, &start, END_STREAM)).await;
    }
    orders.app().saw(41).await;
    orders.stands_still("the application pausing", || taken.load(Ordering::SeqCst)).await;
    for _ in 0..20 {
        let answer = Ask::get(orders.url("/small")).over(Protocol::H2).send().await;
        assert_eq!((answer.body.len(), answer.broken), (100_000, None));
    }
    drop(frames);
    assert_eq!(mesh.end([orders]).await.len(), 61);
}

/// Feeds a body for as long as somebody takes it, and counts the pieces.
async fn pour(feeder: Feeder, count: Arc<AtomicUsize>) {
    while feeder.send(vec![b'x'; 16_384]).await {
        count.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn an_upload_that_nobody_reads_does_not_hold_up_its_neighbours() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .runs(script(|visit| async move {
            if visit.request.uri().path() == "/stuck" {
                std::future::pending::<()>().await;
            }
            response(200, read(visit.request).await)
        }))
        .await;
    let connection = Connection::to(orders.sidecar.inbound(), Protocol::H2).await.expect("a connection");
    let given = Arc::new(AtomicUsize::new(0));
    let mut stuck = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (feeder, body) = throughline_tests::feed::fed();
        stuck.spawn(Ask::new("POST", orders.url("/stuck")).body(body).on(connection.share()));
        tokio::spawn(pour(feeder, Arc::clone(&given)));
    }
    orders.app().saw(20).await;
    orders.stands_still("the uploads pausing", || given.load(Ordering::SeqCst)).await;
    for _ in 0..5 {
        let ask = Ask::post(orders.url("/echo"), vec![b'e'; 100_000]).on(connection.share());
        let answer = within("an answer beside the stuck ones", ask).await;
        let mut answer = throughline_tests::ask::Open::new(answer, None);
        assert_eq!(answer.rest().await.body.len(), 100_000);
    }
    stuck.abort_all();
    drop((stuck, connection));
    assert_eq!(mesh.end([orders]).await.len(), 25);
}

#[tokio::test]
async fn a_stalled_http_1_reader_is_reaped() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .flag("stall-timeout", 500)
        .runs(script(|_| async {
            http::Response::new(throughline_tests::feed::whole(vec![b'x'; 50_000_000]))
        }))
        .await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    wire.head().await;
    // Reads no further; the socket stays open until the sidecar has given up.
    let spans = mesh.collector.spans(1).await;
    assert_eq!(spans.len(), 1);
    drop(wire);
    assert_eq!(mesh.end([orders]).await.len(), 1);
}

/// Connects with a window that never opens, asks for something, and waits to be reaped: by then the stall
/// timeout has passed for everybody.
async fn a_stall_timeout_later(orders: &Pod) {
    let mut frames = Frames::to(orders.sidecar.inbound(), &[(4, 0)]).await;
    let start: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/stalled"), (b":authority", b"a")];
    frames.send(Frame::headers(1, &start, END_STREAM)).await;
    loop {
        match frames.next().await {
            Some(frame) if frame.kind != kind::RST_STREAM && frame.kind != kind::GOAWAY => {}
            _ => return,
        }
    }
}

#[tokio::test]
async fn an_application_that_is_silent_for_long_is_no_stall() {
    let mesh = Mesh::new().await;
    let word = Arc::new(Notify::new());
    let wait_for = Arc::clone(&word);
    let orders = mesh
        .pod("orders")
        .flag("stall-timeout", 300)
        .flag("header-timeout", 300)
        .flag("response-timeout", 300)
        .runs(script(move |_| {
            let word = Arc::clone(&wait_for);
            async move {
                let (feeder, body) = throughline_tests::feed::fed();
                tokio::spawn(async move {
                    feeder.send("first").await;
                    word.notified().await;
                    feeder.send("last").await;
                });
                http::Response::new(body)
            }
        }))
        .await;
    for protocol in throughline_tests::ask::BOTH {
        let mut open = Ask::get(orders.url("/events")).over(protocol).open().await;
        assert_eq!(open.piece().await, Ok(Some("first".into())));
        a_stall_timeout_later(&orders).await;
        // Once for the stalled one's script, which may still wait, and once for ours.
        word.notify_one();
        word.notify_waiters();
        let answer = open.rest().await;
        assert_eq!((answer.text().as_str(), answer.broken), ("last", None), "{protocol:?}");
    }
    mesh.end([orders]).await;
}

#[tokio::test]
async fn a_silent_websocket_is_no_stall() {
    let mesh = Mesh::new().await;
    let upgrading = throughline_tests::service::switching(|mut stream| async move {
        let mut chunk = [0_u8; 64];
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            let _ = stream.write_all(&chunk[..count]).await;
        }
    });
    let chat = mesh.pod("chat").flag("stall-timeout", 300).flag("header-timeout", 300).runs(upgrading).await;
    let mut wire = Wire::to(chat.sidecar.inbound()).await;
    wire.send("GET / HTTP/1.1\r\nHost: c\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await;
    wire.head().await;
    // A head that does not end is closed after the same time: by then the silence was as long.
    let mut slow = Wire::to(chat.sidecar.inbound()).await;
    slow.send("GET / HTTP/1.1\r\n").await;
    slow.rest().await;
    wire.send("still there?").await;
    wire.until("still there?").await;
    drop(wire);
    mesh.end([chat]).await;
}

#[tokio::test]
async fn a_connection_between_requests_is_not_held_to_the_header_timeout() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("header-timeout", 300).runs(answer(200, "ok")).await;
    let mut kept = Connection::to(orders.sidecar.inbound(), Protocol::H1).await.expect("a connection");
    assert_eq!(kept.ask(Ask::get(orders.url("/"))).await.text(), "ok");
    let mut slow = Wire::to(orders.sidecar.inbound()).await;
    slow.send("GET / HTTP/1.1\r\n").await;
    slow.rest().await;
    assert_eq!(kept.ask(Ask::get(orders.url("/"))).await.text(), "ok");
    drop(kept);
    assert_eq!(mesh.end([orders]).await.len(), 2);
}

#[tokio::test]
async fn bystanders_do_not_notice_those_who_stall() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "ok")).await;
    let start: [(&[u8], &[u8]); 5] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"a"),
        (b"content-length", b"10"),
    ];
    let mut unfinished = Vec::new();
    for _ in 0..5 {
        let mut frames = Frames::to(orders.sidecar.inbound(), &[]).await;
        for number in 0..100_u32 {
            frames.send(Frame::headers(number * 2 + 1, &start, 0)).await;
        }
        unfinished.push(frames);
    }
    for _ in 0..20 {
        assert_eq!(Ask::get(orders.url("/")).send().await.text(), "ok");
    }
    drop(unfinished);
    mesh.end([orders]).await;
}
