//! Formats other than W3C's: B3, Jaeger, `X-Trace-Id`, several at once, none, and a sidecar that is off.

use throughline_tests::prelude::*;
use throughline_tests::service::Seen;
use throughline_tests::span::span_of;

use crate::{CALLER, TRACE, traceparent};

/// Sends header lines through an application that copies everything, and returns what the application and
/// the next hop received, and the spans.
async fn passed(propagators: &str, lines: &[(&str, &str)]) -> (Seen, Seen, Vec<Span>) {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let orders = mesh
        .pod("orders")
        .environment("OTEL_PROPAGATORS", propagators)
        .runs(calling(stock.url("/"), Copying::Everything))
        .await;
    let answer = Ask::get(orders.url("/")).headers(lines.iter().copied()).send().await;
    assert_eq!(answer.status, 200);
    let (app, next) = (orders.app().saw_one(), stock.saw_one());
    (app, next, mesh.end([orders]).await)
}

/// The spans must continue the caller's trace.
fn check_continued(spans: &[Span]) -> (Span, Span) {
    let (server, client) = (span_of(spans, "orders", Kind::Server), span_of(spans, "orders", Kind::Client));
    assert_eq!((server.trace.as_str(), server.parent.as_str()), (TRACE, CALLER));
    assert_eq!((&client.trace, &client.parent), (&server.trace, &server.id));
    (server, client)
}

#[tokio::test]
async fn b3_in_one_header_is_read_and_written() {
    for sampled in ["1", "d"] {
        let line = format!("{TRACE}-{CALLER}-{sampled}");
        let (app, next, spans) = passed("b3", &[("b3", &line)]).await;
        let (server, client) = check_continued(&spans);
        for (seen, span) in [(app, server), (next, client)] {
            let b3 = seen.header("b3").expect("b3").to_owned();
            assert!(b3.starts_with(&format!("{TRACE}-{}-{sampled}", span.id)), "{b3}");
            assert_eq!(seen.header("traceparent"), None, "only the formats that were asked for");
        }
    }
}

#[tokio::test]
async fn b3_in_several_headers_is_read_and_written() {
    let lines = [("x-b3-traceid", TRACE), ("x-b3-spanid", CALLER), ("x-b3-sampled", "1")];
    let (app, next, spans) = passed("b3multi", &lines).await;
    let (server, client) = check_continued(&spans);
    for (seen, span) in [(app, server), (next, client)] {
        assert_eq!(seen.header("x-b3-traceid"), Some(TRACE));
        assert_eq!(seen.header("x-b3-spanid"), Some(span.id.as_str()));
        assert_eq!(seen.header("x-b3-sampled"), Some("1"));
    }
}

#[tokio::test]
async fn a_b3_trace_id_of_eight_bytes_is_padded() {
    let (_, _, spans) = passed("b3", &[("b3", &format!("{}-{CALLER}-1", &TRACE[16..]))]).await;
    let server = span_of(&spans, "orders", Kind::Server);
    assert_eq!(server.trace, format!("{}{}", "0".repeat(16), &TRACE[16..]));
}

#[tokio::test]
async fn a_b3_no_is_followed() {
    for line in [format!("{TRACE}-{CALLER}-0"), "0".to_owned()] {
        let (app, _, spans) = passed("b3", &[("b3", &line)]).await;
        assert!(spans.is_empty(), "{line}: {spans:#?}");
        assert!(app.header("b3").is_some_and(|b3| b3 == "0" || b3.contains("-0")), "{app:?}");
    }
}

#[tokio::test]
async fn several_formats_are_written_at_once_and_the_first_valid_one_is_read() {
    let b3 = format!("{TRACE}-{CALLER}-1");
    for lines in [vec![("b3", b3.as_str())], vec![("traceparent", "00-bad"), ("b3", b3.as_str())]] {
        let (app, next, spans) = passed("tracecontext,baggage,b3,b3multi", &lines).await;
        let (server, client) = check_continued(&spans);
        for (seen, span) in [(app, server), (next, client)] {
            assert_eq!(
                (seen.traceparent().trace.as_str(), seen.traceparent().span),
                (TRACE, span.id.clone())
            );
            assert!(seen.header("b3").is_some_and(|b3| b3.starts_with(&format!("{TRACE}-{}", span.id))));
            assert_eq!(seen.header("x-b3-spanid"), Some(span.id.as_str()));
        }
    }
}

#[tokio::test]
async fn jaegers_header_is_read_and_written() {
    let line = format!("{TRACE}:{CALLER}:0:1");
    let (_, next, spans) = passed("jaeger", &[("uber-trace-id", &line)]).await;
    let (_, client) = check_continued(&spans);
    let sent = next.header("uber-trace-id").expect("uber-trace-id").to_owned();
    assert!(sent.contains(&client.id) && sent.ends_with(":1"), "{sent}");
}

#[tokio::test]
async fn b3_is_not_looked_at_unless_asked_for() {
    let (app, next, spans) = passed("tracecontext", &[("b3", &format!("{TRACE}-{CALLER}-1"))]).await;
    assert_ne!(span_of(&spans, "orders", Kind::Server).trace, TRACE);
    let wanted = format!("{TRACE}-{CALLER}-1");
    assert_eq!(app.header("b3"), Some(wanted.as_str()), "a header that is not ours passes as it came");
    assert_eq!(next.header("b3"), Some(wanted.as_str()));
}

#[tokio::test]
async fn a_lone_trace_id_is_accepted_where_no_traceparent_came() {
    // Header lines; whether the trace id counts.
    let other = format!("00-{}-{CALLER}-01", "1".repeat(32));
    let rows: [(&[(&str, &str)], bool); 6] = [
        (&[("x-trace-id", TRACE)], true),
        (&[("x-trace-id", TRACE), ("traceparent", &other)], false),
        (&[("x-trace-id", &TRACE[1..])], false),
        (&[("x-trace-id", "0AF7651916CD43DD8448EB211C80319C!")], false),
        (&[("x-trace-id", "00000000000000000000000000000000")], false),
        (&[("x-trace-id", "")], false),
    ];
    for (lines, counts) in rows {
        let (_, next, spans) = passed("tracecontext,baggage", lines).await;
        let server = span_of(&spans, "orders", Kind::Server);
        assert_eq!(server.trace == TRACE, counts, "{lines:?}");
        assert_eq!(next.traceparent().trace, server.trace, "{lines:?}");
        if counts {
            assert_eq!(server.parent, "", "a trace id alone names no parent");
        }
    }
}

#[tokio::test]
async fn without_propagators_nothing_is_read_and_nothing_is_written() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").environment("OTEL_PROPAGATORS", "none").runs(answer(200, "")).await;
    Ask::get(orders.url("/")).header("traceparent", traceparent("01")).send().await;
    assert_eq!(orders.app().saw_one().header("traceparent"), Some(traceparent("01").as_str()));
    let spans = mesh.end([orders]).await;
    assert!(spans.iter().all(|span| span.trace != TRACE), "{spans:#?}");
}

/// Reads the head of a request byte for byte.
async fn head_as_it_arrives() -> (Peer, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let (sender, heads) = tokio::sync::mpsc::unbounded_channel();
    let peer = Peer::playing(move |mut wire| {
        let sender = sender.clone();
        async move {
            let _ = sender.send(wire.head().await);
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        }
    })
    .await;
    (peer, heads)
}

#[tokio::test]
async fn a_sidecar_that_is_off_passes_context_headers_byte_for_byte() {
    let lines = [
        "traceparent: 00-0AF7-nonsense",
        "traceparent: second",
        "tracestate: tl=0000000000000001,,B=2",
        "baggage: a=1,  b = %zz",
        "x-operation-name: two words, and more",
        "x-trace-id: zz",
        "b3: 0-0-0-0",
        "throughline-peer: service=evil",
    ];
    for (variable, value) in [("OTEL_SDK_DISABLED", "true"), ("TRACING_ENABLED", "false")] {
        let mesh = Mesh::new().await;
        let (app, mut heads) = head_as_it_arrives().await;
        let orders = mesh.pod("orders").environment(variable, value).before(app.address).await;
        let request =
            format!("GET /x HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n{}\r\n\r\n", lines.join("\r\n"));
        throughline_tests::wire::exchange(orders.sidecar.inbound(), request).await;
        let head = within("a head", heads.recv()).await.expect("a head");
        let context =
            |line: &&str| lines.iter().any(|ours| line.to_ascii_lowercase().starts_with(&ours[..3]));
        let mut arrived: Vec<_> = head.split("\r\n").filter(context).map(str::to_owned).collect();
        // The order of different fields means nothing (RFC 9110 §5.3); that of one field's lines does.
        arrived.sort_by_key(|line| lines.iter().position(|ours| ours[..8] == line[..8]));
        assert_eq!(arrived, lines, "{variable}");
        assert!(mesh.end([orders]).await.is_empty(), "{variable}");
    }
}

#[tokio::test]
async fn the_answer_names_the_trace_only_when_asked_to() {
    let mesh = Mesh::new().await;
    let silent = mesh.pod("silent").runs(answer(200, "")).await;
    let telling = mesh
        .pod("telling")
        .flag("response-headers", "server-timing,traceresponse,x-trace-id")
        .runs(answer(200, ""))
        .await;
    let quiet = Ask::get(silent.url("/")).header("traceparent", traceparent("01")).send().await;
    let told = Ask::get(telling.url("/")).header("traceparent", traceparent("01")).send().await;
    for name in ["server-timing", "traceresponse", "x-trace-id"] {
        assert_eq!(quiet.header(name), None);
    }
    let spans = mesh.end([silent, telling]).await;
    let span = span_of(&spans, "telling", Kind::Server);
    let context = format!("00-{TRACE}-{}-01", span.id);
    assert_eq!(told.header("server-timing"), Some(format!("trace;desc={context}").as_str()));
    assert_eq!(told.header("traceresponse"), Some(context.as_str()));
    assert_eq!(told.header("x-trace-id"), Some(TRACE));
}
