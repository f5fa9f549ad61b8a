//! Heads that are illegal, or that two readers could understand differently: 400, and nothing goes on.

use throughline_tests::frames::{END_STREAM, Frame, Frames, Verdict};
use throughline_tests::prelude::*;
use throughline_tests::wire::{exchange, status_of};

const LENGTH: &str = "POST / HTTP/1.1\r\nHost: a\r\n";

/// Requests in HTTP/1.1; `|` stands for the end of a line, and an empty line follows each by itself.
const ILLEGAL: &[(&str, &str)] = &[
    ("an empty coding before chunked", "POST / HTTP/1.1|Host: a|Transfer-Encoding: ,chunked"),
    ("chunked twice", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked, chunked"),
    ("chunked in two lines", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Transfer-Encoding: chunked"),
    ("an unknown coding before chunked", "POST / HTTP/1.1|Host: a|Transfer-Encoding: cow, chunked"),
    ("chunked, but not last", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked, gzip"),
    ("a coding that is not chunked", "POST / HTTP/1.1|Host: a|Transfer-Encoding: gzip"),
    ("identity", "POST / HTTP/1.1|Host: a|Transfer-Encoding: identity"),
    ("an empty coding", "POST / HTTP/1.1|Host: a|Transfer-Encoding:"),
    ("chunked in quotes", "POST / HTTP/1.1|Host: a|Transfer-Encoding: \"chunked\""),
    ("chunked with a parameter", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked;q=1"),
    ("chunked after a vertical tab", "POST / HTTP/1.1|Host: a|Transfer-Encoding: \u{b}chunked"),
    ("coding and length", "POST / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Content-Length: 5"),
    ("length and coding", "POST / HTTP/1.1|Host: a|Content-Length: 5|Transfer-Encoding: chunked"),
    ("coding in HTTP/1.0", "POST / HTTP/1.0|Host: a|Transfer-Encoding: chunked"),
    ("two lengths that differ", "POST / HTTP/1.1|Host: a|Content-Length: 5|Content-Length: 6"),
    ("two lengths in one line", "POST / HTTP/1.1|Host: a|Content-Length: 5, 6"),
    ("a length with a plus", "POST / HTTP/1.1|Host: a|Content-Length: +5"),
    ("a negative length", "POST / HTTP/1.1|Host: a|Content-Length: -5"),
    ("a length in hexadecimal", "POST / HTTP/1.1|Host: a|Content-Length: 0x5"),
    ("a length with a blank inside", "POST / HTTP/1.1|Host: a|Content-Length: 5 5"),
    ("a length that is no number", "POST / HTTP/1.1|Host: a|Content-Length: five"),
    ("an empty length", "POST / HTTP/1.1|Host: a|Content-Length:"),
    ("a length with a fraction", "POST / HTTP/1.1|Host: a|Content-Length: 5.0"),
    ("a length with an underscore", "POST / HTTP/1.1|Host: a|Content-Length: 1_0"),
    ("a length beyond 64 bits", "POST / HTTP/1.1|Host: a|Content-Length: 99999999999999999999999"),
    ("no host", "GET / HTTP/1.1|X: 1"),
    ("two hosts", "GET / HTTP/1.1|Host: a|Host: b"),
    ("the same host twice", "GET / HTTP/1.1|Host: a|Host: a"),
    ("two hosts in one line", "GET / HTTP/1.1|Host: a, b"),
    ("a host with a path", "GET / HTTP/1.1|Host: a/b"),
    ("a host with a blank", "GET / HTTP/1.1|Host: a b"),
    ("a host with user information", "GET / HTTP/1.1|Host: u@a"),
    ("a host with a bad port", "GET / HTTP/1.1|Host: a:b"),
    ("a host with a port too large", "GET / HTTP/1.1|Host: a:65536"),
    ("a host with a query", "GET / HTTP/1.1|Host: a?b"),
    ("a host with bytes that are no text", "GET / HTTP/1.1|Host: a\u{e9}"),
    ("a folded line", "GET / HTTP/1.1|Host: a|X: 1| 2"),
    ("a folded line with a tab", "GET / HTTP/1.1|Host: a|X: 1|\t2"),
    ("a first line that is folded", "GET / HTTP/1.1| Host: a"),
    ("a blank before the colon", "GET / HTTP/1.1|Host: a|X : 1"),
    ("a blank before the colon of a length", "POST / HTTP/1.1|Host: a|Content-Length : 5"),
    ("a tab before the colon", "GET / HTTP/1.1|Host: a|X\t: 1"),
    ("a line without a colon", "GET / HTTP/1.1|Host: a|nonsense"),
    ("a line without a name", "GET / HTTP/1.1|Host: a|: 1"),
    ("a name with a blank", "GET / HTTP/1.1|Host: a|X Y: 1"),
    ("a name with a parenthesis", "GET / HTTP/1.1|Host: a|X(: 1"),
    ("a name with bytes that are no text", "GET / HTTP/1.1|Host: a|X\u{e9}: 1"),
    ("a NUL in a name", "GET / HTTP/1.1|Host: a|X\0: 1"),
    ("a NUL in a value", "GET / HTTP/1.1|Host: a|X: a\0b"),
    ("a lone CR in a value", "GET / HTTP/1.1|Host: a|X: a\rb"),
    ("a control character in a value", "GET / HTTP/1.1|Host: a|X: a\u{1}b"),
    ("DEL in a value", "GET / HTTP/1.1|Host: a|X: a\u{7f}b"),
    ("a blank in the path", "GET /a b HTTP/1.1|Host: a"),
    ("two blanks after the method", "GET  / HTTP/1.1|Host: a"),
    ("a tab after the method", "GET\t/ HTTP/1.1|Host: a"),
    ("a NUL in the path", "GET /a\0b HTTP/1.1|Host: a"),
    ("a control character in the path", "GET /a\u{1}b HTTP/1.1|Host: a"),
    ("a fragment in the path", "GET /a#b HTTP/1.1|Host: a"),
    ("a path without a slash", "GET a HTTP/1.1|Host: a"),
    ("no path", "GET HTTP/1.1|Host: a"),
    ("no version", "GET /|Host: a"),
    ("an unknown version", "GET / HTTP/1.2|Host: a"),
    ("version 3", "GET / HTTP/3.0|Host: a"),
    ("a version in lower case", "GET / http/1.1|Host: a"),
    ("a version with more digits", "GET / HTTP/1.10|Host: a"),
    ("a method with a parenthesis", "G(T / HTTP/1.1|Host: a"),
    ("a method with a NUL", "G\0T / HTTP/1.1|Host: a"),
    ("an asterisk for a GET", "GET * HTTP/1.1|Host: a"),
];

#[tokio::test]
async fn an_illegal_head_gets_400_and_never_reaches_the_application() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "reached")).await;
    let mut wrong = Vec::new();
    for (about, head) in ILLEGAL {
        let before = orders.app().seen().len();
        // Were the head accepted, the five bytes would be its body and the connection would end by itself.
        let mut request = Vec::new();
        for character in head.chars() {
            match character {
                '|' => request.extend(b"\r\n"),
                // Beyond ASCII the table means the byte of that number, not UTF-8.
                other => request.push(u8::try_from(u32::from(other)).expect("a byte")),
            }
        }
        request.extend(b"\r\nConnection: close\r\n\r\n0\r\n\r\n");
        let answer = exchange(orders.sidecar.inbound(), request).await;
        let reached = orders.app().seen().len() != before;
        if status_of(&answer) != 400 || reached || answer.matches("HTTP/1.1 ").count() != 1 {
            wrong.push(format!("{about}: reached={reached} {:?}", answer.lines().next().unwrap_or("closed")));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), ILLEGAL.len(), wrong.join("\n"));
    let refused = orders.books().await.sum("throughline_requests_refused_total", &[]);
    assert!(refused > 0, "refusals are counted");
    mesh.end([orders]).await;
}

#[tokio::test]
async fn bodies_that_are_framed_wrongly_never_end_well() {
    let rows = [
        ("a chunk size that is no number", "Transfer-Encoding: chunked\r\n\r\nx\r\nhello\r\n0\r\n\r\n"),
        ("a chunk size with a plus", "Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n"),
        ("a chunk size in 0x", "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n"),
        (
            "a chunk size beyond 64 bits",
            "Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
        ),
        ("a chunk longer than it says", "Transfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n"),
        ("an empty chunk size", "Transfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n"),
    ];
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .runs(script(|visit| async move {
            let body = http_body_util::BodyExt::collect(visit.request.into_body()).await;
            throughline_tests::service::response(if body.is_ok() { 200 } else { 299 }, "")
        }))
        .await;
    for (about, rest) in rows {
        let mut wire = Wire::to(orders.sidecar.inbound()).await;
        wire.send(format!("{LENGTH}{rest}")).await;
        wire.end().await;
        let answer = wire.rest_text().await;
        assert_ne!(status_of(&answer), 200, "{about}: {answer}");
    }
    mesh.end([orders]).await;
}

#[tokio::test]
async fn odd_but_legal_heads_pass() {
    let rows = [
        ("a path with every sub-delimiter", "GET /a;b=c,d!$&'()*+:@?x=/?y HTTP/1.1\r\nHost: a"),
        ("a path with braces, which browsers send", "GET /{a}|^ HTTP/1.1\r\nHost: a"),
        ("bytes beyond ASCII in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: caf\u{e9}"),
        ("a tab in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: a\tb"),
        ("an empty value", "GET / HTTP/1.1\r\nHost: a\r\nX:"),
        ("an empty host", "GET / HTTP/1.1\r\nHost:"),
        ("an IPv6 host", "GET / HTTP/1.1\r\nHost: [::1]:80"),
        ("no blank after the colon", "GET / HTTP/1.1\r\nHost:a"),
        ("blanks around a length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \t 0 \t"),
        ("the absolute form", "GET http://a/x HTTP/1.1\r\nHost: a"),
        ("OPTIONS of all", "OPTIONS * HTTP/1.1\r\nHost: a"),
        ("a method of ours", "X-FETCH / HTTP/1.1\r\nHost: a"),
        ("an empty line before the request", "\r\nGET / HTTP/1.1\r\nHost: a"),
    ];
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "reached")).await;
    for (about, head) in rows {
        let request = format!("{head}\r\nConnection: close\r\n\r\n");
        let bytes: Vec<u8> = request.chars().map(|c| u8::try_from(u32::from(c)).expect("a byte")).collect();
        let answer = exchange(orders.sidecar.inbound(), bytes).await;
        assert_eq!(status_of(&answer), 200, "{about}: {answer}");
    }
    assert_eq!(mesh.end([orders]).await.len(), rows.len());
}

type Fields = &'static [(&'static [u8], &'static [u8])];

const GET: Fields = &[(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")];

/// Requests in HTTP/2 that RFC 9113 §8 calls malformed: further fields, put after those of a GET or in place
/// of all.
const ILLEGAL_H2: &[(&str, bool, Fields)] = &[
    ("connection", false, &[(b"connection", b"close")]),
    ("keep-alive", false, &[(b"keep-alive", b"1")]),
    ("proxy-connection", false, &[(b"proxy-connection", b"close")]),
    ("transfer-encoding", false, &[(b"transfer-encoding", b"chunked")]),
    ("upgrade", false, &[(b"upgrade", b"x")]),
    ("te other than trailers", false, &[(b"te", b"gzip")]),
    ("a name in capitals", false, &[(b"X-Y", b"1")]),
    ("a name with a colon", false, &[(b"x:y", b"1")]),
    ("a name with a blank", false, &[(b"x y", b"1")]),
    ("an empty name", false, &[(b"", b"1")]),
    ("a CR in a value", false, &[(b"x", b"a\rb")]),
    ("a LF in a value", false, &[(b"x", b"a\nx-smuggled: 1")]),
    ("a NUL in a value", false, &[(b"x", b"a\0b")]),
    ("a LF in a name", false, &[(b"x\ny", b"1")]),
    ("an unknown pseudo-header", false, &[(b":x", b"1")]),
    ("a response's pseudo-header", false, &[(b":status", b"200")]),
    ("a length that is not the body's", false, &[(b"content-length", b"5")]),
    ("a length that is no number", false, &[(b"content-length", b"five")]),
    ("two lengths", false, &[(b"content-length", b"0"), (b"content-length", b"5")]),
    ("host unlike authority", false, &[(b"host", b"b")]),
    ("two paths", false, &[(b":path", b"/b")]),
    (
        "a pseudo-header after a field",
        true,
        &[(b":method", b"GET"), (b":scheme", b"http"), (b"x", b"1"), (b":path", b"/"), (b":authority", b"a")],
    ),
    ("no method", true, &[(b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")]),
    ("no scheme", true, &[(b":method", b"GET"), (b":path", b"/"), (b":authority", b"a")]),
    ("no path", true, &[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a")]),
    (
        "an empty path",
        true,
        &[(b":method", b"GET"), (b":scheme", b"http"), (b":path", b""), (b":authority", b"a")],
    ),
    (
        "a path with a blank",
        true,
        &[(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/a b HTTP/1.1"), (b":authority", b"a")],
    ),
    (
        "a path with line ends",
        true,
        &[
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":path", b"/ HTTP/1.1\r\nx: 1"),
            (b":authority", b"a"),
        ],
    ),
    (
        "a method with line ends",
        true,
        &[
            (b":method", b"GET / HTTP/1.1\r\nx: 1"),
            (b":scheme", b"http"),
            (b":path", b"/"),
            (b":authority", b"a"),
        ],
    ),
    (
        "an authority with a blank",
        true,
        &[(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a b")],
    ),
    (
        "an authority with user information",
        true,
        &[(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"u:p@a")],
    ),
];

#[tokio::test]
async fn an_illegal_head_in_http_2_is_refused_and_never_reaches_the_application() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "reached")).await;
    let mut wrong = Vec::new();
    for (about, alone, fields) in ILLEGAL_H2 {
        let before = orders.app().seen().len();
        let mut frames = Frames::to(orders.sidecar.inbound(), &[]).await;
        let all = if *alone { fields.to_vec() } else { [GET, fields].concat() };
        frames.send(Frame::headers(1, &all, END_STREAM)).await;
        let verdict = frames.verdict(1).await;
        let refused = matches!(verdict, Verdict::Status(400) | Verdict::Reset(1) | Verdict::GoAway(1 | 9));
        let reached = orders.app().seen().len() != before;
        if !refused || reached {
            wrong.push(format!("{about}: reached={reached} {verdict:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), ILLEGAL_H2.len(), wrong.join("\n"));
    mesh.end([orders]).await;
}

#[tokio::test]
async fn legal_requests_by_hand_reach_the_application() {
    let rows: [(&str, Fields); 4] = [
        ("nothing more", &[]),
        ("te: trailers", &[(b"te", b"trailers")]),
        ("host like authority", &[(b"host", b"a")]),
        ("bytes beyond ASCII in a value", &[(b"x", b"caf\xe9")]),
    ];
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "reached")).await;
    for (about, fields) in rows {
        let mut frames = Frames::to(orders.sidecar.inbound(), &[]).await;
        frames.send(Frame::headers(1, &[GET, fields].concat(), END_STREAM)).await;
        assert_eq!(frames.verdict(1).await, Verdict::Status(200), "{about}");
    }
    assert_eq!(mesh.end([orders]).await.len(), 4);
}

#[tokio::test]
async fn the_outbound_side_refuses_the_same_and_what_is_no_proxys() {
    let rows = [
        ("no host", "GET / HTTP/1.1\r\nX: 1", 400),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b", 400),
        (
            "coding and length",
            "POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: 127.0.0.1:1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
            400,
        ),
        ("a scheme that is not ours", "GET ftp://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1", 400),
        // RFC 9110 §4.2.4 deprecates it; what is refused cannot leak either.
        ("user information", "GET http://u:secret@127.0.0.1:1/ HTTP/1.1\r\nHost: 127.0.0.1:1", 400),
        ("CONNECT without a port", "CONNECT 127.0.0.1 HTTP/1.1\r\nHost: 127.0.0.1", 400),
        ("CONNECT to a path", "CONNECT /x HTTP/1.1\r\nHost: a", 400),
        ("CONNECT to port 0", "CONNECT 127.0.0.1:0 HTTP/1.1\r\nHost: 127.0.0.1:0", 400),
    ];
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").outbound_only().await;
    for (about, head, status) in rows {
        let answer =
            exchange(orders.sidecar.outbound(), format!("{head}\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(status_of(&answer), status, "{about}: {answer}");
    }
    mesh.end([orders]).await;
}
