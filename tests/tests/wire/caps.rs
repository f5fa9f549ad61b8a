//! Caps: of header fields and bytes, of connections, of streams.

use throughline_tests::ask::BOTH;
use throughline_tests::frames::{END_HEADERS, END_STREAM, Frame, Frames, Verdict, block, kind};
use throughline_tests::prelude::*;
use throughline_tests::wire::status_of;

#[tokio::test]
async fn too_many_fields_are_a_431() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("header-fields-max", 40).runs(answer(200, "")).await;
    for protocol in BOTH {
        for (count, legal) in [(30, true), (60, false)] {
            let ask = (0..count).fold(Ask::get(orders.url("/")).over(protocol), |ask, number| {
                ask.header(format!("x-{number}"), "1")
            });
            let answer = ask.send().await;
            assert_eq!(answer.status, if legal { 200 } else { 431 }, "{protocol:?} {count}");
        }
    }
    assert_eq!(orders.app().seen().len(), 2, "only the legal ones went on");
    mesh.end([orders]).await;
}

#[tokio::test]
async fn too_many_header_bytes_are_a_431() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("header-bytes-max", 16_384).runs(answer(200, "")).await;
    for protocol in BOTH {
        for (bytes, legal) in [(8_000, true), (40_000, false)] {
            let ask = Ask::get(orders.url("/")).over(protocol).header("x-large", "v".repeat(bytes));
            let status = ask.try_send().await.map(|answer| answer.status);
            let wanted = if legal { 200 } else { 431 };
            assert_eq!(status, Ok(wanted), "{protocol:?} {bytes}");
        }
    }
    assert_eq!(orders.app().seen().len(), 2, "only the legal ones went on");
    mesh.end([orders]).await;
}

#[tokio::test]
async fn a_path_beyond_the_cap_is_refused() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("header-bytes-max", 16_384).runs(answer(200, "")).await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    wire.send(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "p".repeat(40_000))).await;
    let status = status_of(&wire.rest_text().await);
    assert!(matches!(status, 414 | 431), "{status}");
    assert!(orders.app().seen().is_empty());
    mesh.end([orders]).await;
}

/// A small block that unfolds to megabytes: one large field in the table, then thousands of references to it.
#[tokio::test]
async fn a_header_bomb_stays_small() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    let before = orders.sidecar.resident_kib();
    let mut frames = Frames::to(orders.sidecar.inbound(), &[]).await;
    let start: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")];
    for number in 0..50_u32 {
        let mut bomb = block(&start);
        if number == 0 {
            // A literal with incremental indexing (RFC 7541 §6.2.1), 4000 bytes of value.
            bomb.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
            bomb.extend([b'v'; 4000]);
        }
        bomb.extend([0xbe; 10_000]);
        if !frames.send(Frame::new(kind::HEADERS, END_STREAM | END_HEADERS, number * 2 + 1, bomb)).await {
            break;
        }
    }
    let verdict = frames.verdict(1).await;
    assert!(!matches!(verdict, Verdict::Status(200)), "{verdict:?}");
    let grown = orders.sidecar.resident_kib().saturating_sub(before);
    assert!(grown < 40_000, "{grown} KiB more");
    assert!(orders.app().seen().is_empty());
    assert_eq!(Ask::get(orders.url("/")).send().await.status, 200, "others are served");
    mesh.end([orders]).await;
}

#[tokio::test]
async fn a_flood_of_continuations_is_cut_off() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    let before = orders.sidecar.resident_kib();
    let mut frames = Frames::to(orders.sidecar.inbound(), &[]).await;
    frames.send(Frame::new(kind::HEADERS, 0, 1, block(&[(b":method", b"GET")]))).await;
    let piece = block(&[(b"x-more", &[b'v'; 8000])]);
    let mut cut_off = false;
    for _ in 0..5_000 {
        if !frames.send(Frame::new(kind::CONTINUATION, 0, 1, piece.clone())).await {
            cut_off = true;
            break;
        }
    }
    assert!(cut_off, "40 MB of header were taken");
    let grown = orders.sidecar.resident_kib().saturating_sub(before);
    assert!(grown < 30_000, "{grown} KiB more");
    assert_eq!(Ask::get(orders.url("/")).send().await.status, 200, "others are served");
    mesh.end([orders]).await;
}

#[tokio::test]
async fn a_flood_of_resets_is_cut_off_or_harmless() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    let before = orders.sidecar.resident_kib();
    let mut frames = Frames::to(orders.sidecar.inbound(), &[]).await;
    let start: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")];
    for number in 0..5_000_u32 {
        let stream = number * 2 + 1;
        let sent = frames.send(Frame::headers(stream, &start, END_STREAM)).await
            && frames.send(Frame::new(kind::RST_STREAM, 0, stream, 8_u32.to_be_bytes())).await;
        if !sent {
            break;
        }
    }
    assert_eq!(Ask::get(orders.url("/")).send().await.status, 200, "others are served");
    let grown = orders.sidecar.resident_kib().saturating_sub(before);
    assert!(grown < 30_000, "{grown} KiB more");
    drop(frames);
    mesh.end([orders]).await;
}

#[tokio::test]
async fn connections_are_capped_and_a_closed_one_makes_room() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("connections-max", 3).runs(answer(200, "ok")).await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut taken = Vec::new();
    for _ in 0..3 {
        let mut wire = Wire::to(orders.sidecar.inbound()).await;
        wire.send(request).await;
        wire.until("ok").await;
        taken.push(wire);
    }
    let mut surplus = Wire::to(orders.sidecar.inbound()).await;
    surplus.send(request).await;
    // The fourth waits in the kernel's queue while those that have a place are served again and again.
    for wire in &mut taken {
        for _ in 0..20 {
            wire.send(request).await;
            wire.until("ok").await;
        }
    }
    assert_eq!(orders.app().seen().len(), 63);
    taken.pop();
    surplus.until("ok").await;
    let books = orders.books().await;
    assert_eq!(books.sum("throughline_connections_total", &[("side", "inbound")]), 4, "{}", books.text);
    drop((taken, surplus));
    assert_eq!(mesh.end([orders]).await.len(), 64);
}

#[tokio::test]
async fn streams_of_a_connection_are_capped_as_its_settings_say() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("streams-max", 7).runs(script(|_| std::future::pending())).await;
    let mut frames = Frames::to(orders.sidecar.inbound(), &[]).await;
    let start: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")];
    for number in 0..7_u32 {
        frames.send(Frame::headers(number * 2 + 1, &start, END_STREAM)).await;
    }
    orders.app().saw(7).await;
    frames.send(Frame::headers(15, &start, END_STREAM)).await;
    let verdict = frames.verdict(15).await;
    // REFUSED_STREAM or PROTOCOL_ERROR (RFC 9113 §5.1.2).
    assert!(matches!(verdict, Verdict::Reset(7 | 1) | Verdict::GoAway(_)), "{verdict:?}");
    assert_eq!(frames.setting(3), Some(7), "SETTINGS_MAX_CONCURRENT_STREAMS");
    assert_eq!(orders.app().seen().len(), 7);
    drop(frames);
    assert_eq!(mesh.end([orders]).await.len(), 7);
}
