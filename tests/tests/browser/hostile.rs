//! What is sent to the path of browsers by whoever likes: refused or capped, counted, and never in a trace.

use throughline_tests::prelude::*;
use throughline_tests::wire::status_of;

use crate::{SAME_ORIGIN, SPAN, SPANS, TRACE, asks, gateway, sends, told};

/// The counters of bodies or spans that are not zero.
fn counted(books: &Books, name: &str) -> Vec<(String, u64)> {
    let name = format!("throughline_browser_{name}_total");
    let all = books.labels(&name, "result").into_iter();
    let all = all.map(|result| {
        let count = books.sum(&name, &[("result", result.as_str())]);
        (result, count)
    });
    all.filter(|(_, count)| *count > 0).collect()
}

fn row(result: &str, count: u64) -> (String, u64) {
    (result.to_owned(), count)
}

#[tokio::test]
async fn what_no_page_of_ours_sent_is_refused_and_counted() {
    let mesh = Mesh::new().await;
    let pod = gateway(&mesh).runs(answer(200, "")).await;
    asks(&pod, TRACE, SPAN, "login").send().await;
    let body = told(TRACE, SPAN, "login");
    let json = ("content-type", "application/json");
    let post = |lines: &[(&'static str, &'static str)]| {
        Ask::post(pod.url(SPANS), body.clone()).headers(lines.iter().copied())
    };
    for (ask, status) in [
        (post(&[json]), 403),
        (post(&[json, ("sec-fetch-site", "cross-site")]), 403),
        (post(&[json, ("origin", "https://evil.example")]), 403),
        (post(&[json, ("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1")]), 403),
        (post(&[SAME_ORIGIN, ("content-type", "text/plain")]), 415),
        (post(&[SAME_ORIGIN, json, ("content-encoding", "gzip")]), 415),
        (sends(&pod, "{\"resourceSpans\":["), 400),
        (sends(&pod, b"\xff\xfe\x00".to_vec()), 400),
        (sends(&pod, "[".repeat(60_000)), 400),
    ] {
        assert_eq!(ask.send().await.status, status);
    }
    // Too long, by what is said of it and by what comes of it; a client that writes on may never read the answer.
    let said = "content-length: 65537\r\n\r\n".to_owned();
    let unsaid = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{}", 65_537, " ".repeat(65_537));
    for rest in [said, unsaid] {
        let mut wire = Wire::to(pod.sidecar.inbound()).await;
        let head = "host: shop\r\nsec-fetch-site: same-origin\r\ncontent-type: application/json\r\n";
        assert!(wire.send(format!("POST {SPANS} HTTP/1.1\r\n{head}{rest}")).await);
        assert_eq!(status_of(&wire.head().await), 413);
    }
    // Spans of others' traces, and of this one from elsewhere than its page.
    let other = TRACE.replace('0', "1");
    for (body, rejected) in [
        (told(&other, SPAN, "login"), "1"),
        (told(TRACE, &SPAN.replace('b', "c"), "login"), "1"),
        (told(TRACE, SPAN, "logout"), "1"),
    ] {
        let answer = sends(&pod, body).send().await;
        let said = format!("{{\"partialSuccess\":{{\"rejectedSpans\":\"{rejected}\"}}}}");
        assert_eq!((answer.status, answer.text()), (200, said));
    }
    // After all that, the page itself is heard.
    let answer = sends(&pod, body.clone()).send().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "{}"));
    let books = pod.books().await;
    let bodies = [row("foreign", 4), row("no_otlp", 3), row("read", 4), row("too_large", 2), row("type", 2)];
    assert_eq!(counted(&books, "bodies"), bodies);
    assert_eq!(counted(&books, "spans"), [row("shape", 2), row("taken", 1), row("unknown_trace", 1)]);
    assert_eq!(pod.app().seen().len(), 1, "the application saw nothing of it");
    let spans = mesh.end([pod]).await;
    assert_eq!(spans.len(), 2, "{spans:?}");
    assert_connected(&spans, &[]);
    assert!(spans.iter().all(|span| span.trace == TRACE));
    let page = the_only(&spans, |span| span.kind == Kind::Internal);
    assert_eq!((page.service(), page.name.as_str()), ("shop-ui", "login"));
}

#[tokio::test]
async fn a_trace_is_the_address_that_began_it() {
    let mesh = Mesh::new().await;
    let pod = gateway(&mesh).runs(answer(200, "")).await;
    asks(&pod, TRACE, SPAN, "login").send().await;
    // Another address of loopback.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("bound");
    let mut stream = socket.connect(pod.sidecar.inbound()).await.expect("connected");
    let body = told(TRACE, SPAN, "login");
    let host = pod.sidecar.inbound();
    let ask = |line: &str, more: &str, body: &str| {
        format!("{line} HTTP/1.1\r\nhost: {host}\r\nsec-fetch-site: same-origin\r\n{more}\r\n{body}")
    };
    let more = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    let last = format!("traceparent: 00-{TRACE}-{SPAN}-01\r\nconnection: close\r\n");
    let text = ask(&format!("POST {SPANS}"), &more, &body) + &ask("GET /mine", &last, "");
    tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await.expect("written");
    let mut said = Vec::new();
    within("both answers", tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut said)).await.expect("read");
    assert!(String::from_utf8_lossy(&said).contains("rejectedSpans"), "{}", String::from_utf8_lossy(&said));
    let books = pod.books().await;
    assert_eq!(counted(&books, "spans"), [row("foreign_trace", 1)]);
    assert_eq!(counted(&books, "traces"), [row("continued", 1), row("foreign_trace", 1)]);
    let spans = mesh.end([pod]).await;
    let stranger = the_only(&spans, |span| span["url.path"] == "/mine");
    assert_ne!(stranger.trace, TRACE);
    assert_eq!(stranger.links, [(TRACE.to_owned(), SPAN.to_owned())]);
}

#[tokio::test]
async fn a_flood_is_capped_and_serves_nobody_worse() {
    let mesh = Mesh::new().await;
    let pod = gateway(&mesh).flag("browser-address-per-second", "2").runs(answer(200, "")).await;
    let began = std::time::Instant::now();
    let mut connection = Connection::to(pod.sidecar.inbound(), Protocol::H1).await.expect("a connection");
    let (mut taken, mut refused) = (0, 0);
    for number in 0..300_u32 {
        let trace = format!("{:032x}", u128::from(number) + (7 << 100));
        let operation = format!("operation-{number}");
        assert_eq!(connection.ask(asks(&pod, &trace, SPAN, &operation)).await.status, 200);
        match connection.ask(sends(&pod, told(&trace, SPAN, &operation))).await {
            answer if answer.status == 200 => taken += 1,
            answer => {
                assert_eq!((answer.status, answer.header("retry-after")), (429, Some("1")));
                refused += 1;
                // An answer before the body was read may end the connection.
                connection = Connection::to(pod.sidecar.inbound(), Protocol::H1).await.expect("a connection");
            }
        }
    }
    let allowed = 10 + 2 * (began.elapsed().as_secs() + 1);
    assert!(taken <= allowed && refused >= 300 - allowed, "{taken} of {allowed}");
    let books = pod.books().await;
    let continued = books.sum("throughline_browser_traces_total", &[("result", "continued")]);
    assert!(continued >= 10 && continued <= allowed, "{continued} of {allowed}");
    let seen = books.sum("throughline_browser_traces_total", &[("result", "rate")]);
    assert_eq!((seen + continued, pod.app().seen().len()), (300, 300), "every request was served");
    let spans = mesh.end([pod]).await;
    let names: std::collections::BTreeSet<_> = spans.iter().map(|span| span.name.clone()).collect();
    assert!(names.len() as u64 <= 2 + continued, "{names:?}");
}

#[tokio::test]
async fn many_names_of_operations_cost_a_bounded_memory() {
    let long = std::env::var_os("THROUGHLINE_LONG").is_some();
    let names = if long { 1_000_000 } else { 20_000_u32 };
    let mesh = Mesh::new().await;
    let plan = gateway(&mesh).flag("browser-address-per-second", "100000");
    let plan = plan.flag("browser-per-second", "1000000").environment("OTEL_TRACES_SAMPLER_ARG", "0");
    let plan = plan.environment("THROUGHLINE_KEEP_SLOW", "off");
    let pod = plan.runs(answer(200, "")).await;
    let mut connection = Connection::to(pod.sidecar.inbound(), Protocol::H1).await.expect("a connection");
    let mut before = 0;
    for number in 0..names {
        if number == 10_000 {
            before = pod.sidecar.resident_kib(); // every table is full by then
        }
        let trace = format!("{:032x}", u128::from(number) + (7 << 100));
        connection.ask(asks(&pod, &trace, SPAN, &format!("operation-{number}"))).await;
    }
    let grown = pod.sidecar.resident_kib().saturating_sub(before);
    assert!(grown < 8192, "{grown} KiB");
    let books = pod.books().await;
    assert_eq!(books.sum("throughline_browser_traces_held", &[]), 8192);
    let operations = books.labels("http_server_request_duration_seconds_count", "app_operation_name");
    assert!(operations.len() <= 100, "{}", operations.len());
    assert_eq!(mesh.end([pod]).await.len(), 0);
}

#[tokio::test]
async fn switched_off_the_script_is_there_and_nothing_is_taken() {
    let mesh = Mesh::new().await;
    let pod = gateway(&mesh).environment("THROUGHLINE_MODE", "off").runs(answer(200, "")).await;
    assert_eq!(Ask::get(pod.url(crate::SCRIPT)).send().await.status, 200);
    let cookie = format!("_tl_op=00-{TRACE}-{SPAN}-01~login");
    asks(&pod, TRACE, SPAN, "login").header("cookie", &cookie).send().await;
    assert_eq!(sends(&pod, told(TRACE, SPAN, "login")).send().await.status, 200);
    assert_eq!(counted(&pod.books().await, "bodies"), [row("off", 1)]);
    let seen = pod.app().saw_one();
    assert_eq!((seen.header("cookie"), seen.traceparent().span.as_str()), (Some(cookie.as_str()), SPAN));
    assert_eq!(mesh.end([pod]).await.len(), 0);
}
