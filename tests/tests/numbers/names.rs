//! Callers and applications that make up names: each request another operation, host, path and method. Series,
//! memory and the time of a scrape stay within bounds, and every request counts. `THROUGHLINE_LONG=1` asks a million
//! times; `core/tests/allocations.rs` has a million in every run, without sockets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bounds as `core/src/limits.rs` says them and `docs/metrics.md` tells them.
const METRIC_SERIES_MAX: usize = 2_000;
const METRIC_EDGES_MAX: usize = 300;
const METRIC_SPAN_NAMES_MAX: usize = 500;
/// Series of a histogram: 15 buckets, a sum, a count.
const OF_A_HISTOGRAM: usize = 17;
/// Series of the sidecar itself, and those by route.
const OWN: usize = 600;
const GROWTH_KIB_MAX: u64 = 16 * 1024;
const SCRAPE: Duration = Duration::from_millis(50);
/// Calls that combine few names, before those that make them up: 97 hosts and 149 operations.
const COMBINED: usize = 4_000;
/// Requests that are written before their answers are read.
const AT_ONCE: usize = 50;

fn asked() -> usize {
    if std::env::var_os("THROUGHLINE_LONG").is_some() { 1_000_000 } else { 100_000 }
}

/// A word of letters, so that no part of a path looks like an id.
fn word(mut number: usize) -> String {
    let mut word = String::new();
    for _ in 0..5 {
        word.push(char::from(b'a' + (number % 26) as u8));
        number /= 26;
    }
    word
}

/// Answers every head with 200, on as many connections as come: nothing but the sidecar should take the time.
async fn answering() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = vec![0; 64 * 1024];
                let mut matched = 0;
                while let Ok(count @ 1..) = stream.read(&mut read).await {
                    let mut answers = Vec::new();
                    for byte in &read[..count] {
                        matched = match (matched, byte) {
                            (0 | 2, b'\r') => matched + 1,
                            (1 | 3, b'\n') => matched + 1,
                            _ => 0,
                        };
                        if matched == 4 {
                            answers.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
                            matched = 0;
                        }
                    }
                    if stream.write_all(&answers).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Sends heads one behind the other and reads as many answers.
async fn pipelined(mut stream: TcpStream, numbers: std::ops::Range<usize>, head: impl Fn(usize) -> String) {
    let mut read = vec![0; 64 * 1024];
    let mut numbers = numbers.peekable();
    while numbers.peek().is_some() {
        let batch: Vec<usize> = numbers.by_ref().take(AT_ONCE).collect();
        let heads: String = batch.iter().map(|number| head(*number)).collect();
        stream.write_all(heads.as_bytes()).await.expect("the sidecar reads");
        let (mut answers, mut tail) = (0, Vec::new());
        while answers < batch.len() {
            let count = within("answers", stream.read(&mut read)).await.expect("answers");
            assert!(count > 0, "the sidecar closed the connection after {answers} answers");
            tail.extend_from_slice(&read[..count]);
            while let Some(end) = tail.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&tail[..end]).into_owned();
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                tail.drain(..end + 4);
                answers += 1;
            }
        }
    }
}

async fn connected(to: SocketAddr) -> TcpStream {
    TcpStream::connect(to).await.expect("a connection")
}

/// A way through the outbound side to one place, whatever host a request then names: names are what is tried here,
/// not the resolver.
async fn tunnelled(through: SocketAddr, to: SocketAddr) -> TcpStream {
    let mut stream = connected(through).await;
    let connect = format!("CONNECT {to} HTTP/1.1\r\nhost: {to}\r\n\r\n");
    stream.write_all(connect.as_bytes()).await.expect("the sidecar reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("the way through", stream.read_u8()).await.expect("an answer"));
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_names_come_series_memory_and_scrapes_stay_within_bounds() {
    let app = answering().await;
    let sidecar = Plan::before("orders", app)
        .environment("OTEL_TRACES_EXPORTER", "none")
        .environment("OTEL_METRICS_EXPORTER", "none")
        .start()
        .await;
    let half = asked() / 2;
    let inbound = |number: usize| {
        let (word, method) = (word(number), ["GET", "POST", "BREW"][number % 3]);
        let peer = format!("throughline-peer: service=s{number}\r\n");
        format!("{method} /{word} HTTP/1.1\r\nhost: h\r\nx-operation-name: op-{number}\r\n{peer}\r\n")
    };
    // Few names in many combinations as well: these are what fills the series.
    let outbound = |number: usize| {
        let (host, operation) = match number {
            0..COMBINED => (format!("k{}:80", number % 97), format!("known-{}", number % 149)),
            _ => (format!("h{number}.example:8{:03}", number % 1000), format!("call-{number}")),
        };
        let method = ["GET", "PUT", &word(number).to_uppercase()][number % 3].to_owned();
        format!("{method} /x HTTP/1.1\r\nhost: {host}\r\nx-operation-name: {operation}\r\n\r\n")
    };
    // A while of usual traffic first: buffers and pools are no growth.
    pipelined(connected(sidecar.inbound()).await, 0..2_000, |_| inbound(0)).await;
    for _ in 0..3 {
        sidecar.books().await;
    }
    let before = sidecar.resident_kib();
    let began = Instant::now();
    let (to_application, out) =
        (connected(sidecar.inbound()).await, tunnelled(sidecar.outbound(), app).await);
    tokio::join!(pipelined(to_application, 0..half, inbound), pipelined(out, 0..half, outbound));
    let took = began.elapsed();
    let (mut scrapes, mut bytes, mut series) = (Vec::new(), 0, 0);
    for _ in 0..5 {
        let began = Instant::now();
        let page = Ask::get(sidecar.admin_url("/metrics")).send().await;
        scrapes.push(began.elapsed());
        let books = Books::read(&page.text());
        (bytes, series) = (page.body.len(), books.series());
        let count = |name| books.sum(name, &[]) as usize;
        assert_eq!(count("http_server_request_duration_seconds_count"), half + 2_000, "every request counts");
        assert_eq!(count("http_client_request_duration_seconds_count"), half);
        assert!(books.has("http_server_request_duration_seconds_count"));
        let overflow = [("otel_metric_overflow", "true")];
        assert!(books.sum("http_client_request_duration_seconds_count", &overflow) > 0);
    }
    let growth = sidecar.resident_kib().saturating_sub(before);
    let fastest = scrapes.iter().min().copied().unwrap_or_default();
    println!(
        "{} requests of as many names in {took:.0?}: {series} series, {bytes} bytes, scrapes of {scrapes:.0?}, \
         {growth} KiB more",
        asked(),
    );
    let requests = (METRIC_SERIES_MAX + 2) * OF_A_HISTOGRAM;
    let graph = (METRIC_EDGES_MAX + 1) * (2 + 2 * OF_A_HISTOGRAM);
    let spans = (METRIC_SPAN_NAMES_MAX + 8) * (1 + OF_A_HISTOGRAM);
    assert!(series <= requests + graph + spans + OWN, "{series} series");
    assert!(growth <= GROWTH_KIB_MAX, "{growth} KiB more");
    assert!(fastest < SCRAPE, "scrapes of {scrapes:?}");
    sidecar.end().await;
}
