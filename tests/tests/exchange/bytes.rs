//! What is not ours passes as it was sent: targets, fields, bodies, and no more of them is kept than needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderValue, Response};
use throughline_tests::ask::BOTH;
use throughline_tests::feed::fed;
use throughline_tests::judges::skipped;
use throughline_tests::prelude::*;
use throughline_tests::service::response;
use throughline_tests::sidecar::Plan;
use throughline_tests::wire::{exchange, status_of};

#[tokio::test]
async fn a_target_arrives_as_it_was_sent() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    let targets = [
        "/a%2Fb//c/../d/./e",
        "/x?y=%zz&&=&a=b?c/d",
        "/?",
        "//double",
        "/%00%ff",
        "/a;b=c,d:@!$'()*+",
        "/sp%20ace+plus",
    ];
    for target in targets {
        for (port, form) in [(orders.sidecar.inbound(), ""), (orders.sidecar.outbound(), "http://")] {
            let host = orders.app().address;
            let start = if form.is_empty() { target.to_owned() } else { format!("{form}{host}{target}") };
            let request = format!("GET {start} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            assert_eq!(status_of(&exchange(port, request).await), 200, "{start}");
            let arrived = orders.app().seen().pop().expect("a request");
            assert_eq!(arrived.uri.to_string(), target, "{start}");
        }
    }
    assert_eq!(mesh.end([orders]).await.len(), targets.len() * 2);
}

#[tokio::test]
async fn fields_of_both_directions_arrive_as_they_were_sent() {
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .runs(script(|_| async {
            let mut response = response(200, "");
            for value in [b"a=1; Path=/".as_slice(), b"b=2", b"c=caf\xe9"] {
                let value = HeaderValue::from_bytes(value).expect("a value");
                response.headers_mut().append("set-cookie", value);
            }
            response
        }))
        .await;
    for protocol in BOTH {
        let answer = Ask::get(orders.url("/"))
            .over(protocol)
            .header("x-list", "one")
            .header("x-list", b"tw\xf6")
            .header("x-empty", "")
            .header("authorization", "Bearer secret")
            .send()
            .await;
        let cookies: Vec<_> =
            answer.headers.get_all("set-cookie").iter().map(|value| value.as_bytes()).collect();
        assert_eq!(cookies, [b"a=1; Path=/".as_slice(), b"b=2", b"c=caf\xe9"], "{protocol:?}");
        let seen = orders.app().seen().pop().expect("a request");
        let list: Vec<_> = seen.headers.get_all("x-list").iter().map(|value| value.as_bytes()).collect();
        assert_eq!(list, [b"one".as_slice(), b"tw\xf6"], "{protocol:?}");
        assert_eq!((seen.header("x-empty"), seen.header("authorization")), (Some(""), Some("Bearer secret")));
    }
    let spans = mesh.end([orders]).await;
    assert!(!format!("{spans:?}").contains("secret"), "no header leaves by itself");
}

/// Feeds a body of so many pieces of 64 KiB, and counts those that were taken.
fn pouring(pieces: usize, taken: Arc<AtomicUsize>) -> Script {
    script(move |_| {
        let taken = Arc::clone(&taken);
        async move {
            let (feeder, body) = fed();
            tokio::spawn(async move {
                let piece = bytes::Bytes::from(vec![b'p'; 65_536]);
                for _ in 0..pieces {
                    if !feeder.send(piece.clone()).await {
                        return;
                    }
                    taken.fetch_add(1, Ordering::SeqCst);
                }
            });
            Response::new(body)
        }
    })
}

#[tokio::test]
async fn a_large_body_passes_without_being_kept() {
    let mesh = Mesh::new().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let orders = mesh.pod("orders").runs(pouring(1_500, Arc::clone(&taken))).await;
    let before = orders.sidecar.resident_kib();
    for protocol in BOTH {
        let mut open = Ask::get(orders.url("/")).over(protocol).open().await;
        let mut length = 0;
        while let Some(piece) = open.piece().await.expect("unbroken") {
            length += piece.len();
        }
        assert_eq!(length, 1_500 * 65_536, "{protocol:?}");
    }
    let grown = orders.sidecar.resident_kib().saturating_sub(before);
    assert!(grown < 20_000, "100 MB passed, and {grown} KiB stayed");
    assert_eq!(mesh.end([orders]).await.len(), 2);
}

#[tokio::test]
async fn a_reader_that_pauses_pauses_the_application() {
    for protocol in BOTH {
        let mesh = Mesh::new().await;
        let taken = Arc::new(AtomicUsize::new(0));
        let orders = mesh.pod("orders").runs(pouring(3_000, Arc::clone(&taken))).await;
        let mut open = Ask::get(orders.url("/")).over(protocol).open().await;
        open.piece().await.expect("unbroken");
        orders.stands_still("the application pausing", || taken.load(Ordering::SeqCst)).await;
        let megabytes = taken.load(Ordering::SeqCst) / 16;
        assert!(megabytes < 40, "{protocol:?}: {megabytes} MB were taken for a reader that pauses");
        open.hang_up();
        assert_eq!(mesh.end([orders]).await.len(), 1);
    }
}

#[tokio::test]
async fn ipv6_is_served_like_any_other() {
    let app = Service::playing(answer(200, "six")).await;
    let collector = Collector::start().await;
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        return skipped("this machine has no IPv6 loopback");
    }
    let sidecar = Plan::before("orders", app.address)
        .flag("inbound-listen", "[::1]:0")
        .flag("outbound-listen", "[::1]:0")
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .start()
        .await;
    let answer = Ask::get(sidecar.url("/")).send().await;
    assert_eq!(answer.text(), "six");
    let span = the_only(&collector.spans(1).await, |_| true);
    assert_eq!((&span["client.address"], &span["server.address"]), (&"::1".into(), &"::1".into()));
    assert_eq!(span["server.port"], sidecar.inbound().port());
    sidecar.end().await;
}
