//! Ten thousand requests by somebody who means harm, drawn from a seed: none fails that Envoy alone would have
//! served, none harms the next, and the module is never loaded again.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header;
use http_body_util::BodyExt;
use throughline_tests::envoy::{self, Bootstrap};
use throughline_tests::frames::{END_STREAM, Frame, Frames, Verdict, kind};
use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;
use throughline_tests::wire::status_of;

const REQUESTS: u64 = 10_000;
/// Requests under way at once.
const TOGETHER: u64 = 8;
/// Every row of this many is sent by HTTP/2.
const HTTP_2_EACH: u64 = 5;
/// Every row of this many has a body around the limit of what is held.
const LARGE_EACH: u64 = 500;

/// Fields of a request at the most.
const FIELDS_MAX: usize = 70;

/// A small generator (xorshift64*), so that a number names a request for ever.
struct Dice(u64);

impl Dice {
    fn of(number: u64) -> Dice {
        let mut dice = Dice(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        dice.roll();
        dice
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() >> 33) as usize % bound
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn of_list<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1);
        (0..length).map(|_| self.roll() as u8).collect()
    }

    /// The bytes with some of them changed, doubled, or left out.
    fn broken(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..self.below(5) {
            if bytes.is_empty() {
                break;
            }
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] = self.roll() as u8,
                1 => bytes.truncate(at),
                2 => bytes.insert(at, self.roll() as u8),
                _ => {
                    let tail = bytes[at..].to_vec();
                    bytes.extend(tail);
                }
            }
        }
        bytes
    }
}

const NAMES: &[&str] = &[
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
    "x-trace-id",
    "x-operation-name",
    "throughline-peer",
    "throughline-keep",
    "throughline-error",
    "ce-id",
    "ce-source",
    "ce-type",
    "ce-specversion",
    "ce-traceparent",
    "ce-tracestate",
    "ce-origintraceparent",
    "x-goog-pubsub-message-id",
    "x-goog-pubsub-subscription-name",
    "googclient_traceparent",
    "grpc-status",
    "grpc-timeout",
    "grpc-encoding",
    "user-agent",
    "cookie",
    "content-encoding",
    "x-forwarded-for",
    "x-captured",
];

const VALUES: &[&str] = &[
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
    "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-holds",
    "tl=b7ad6b7169203331,vendor=1,ot=th:8;rv:0123456789abcd",
    "app.operation.name=checkout,user=%F0%9F%8D%95;p=1",
    "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1-05e3ac9a4f6e3b90",
    "0af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:1",
    "service=web;namespace=shop",
    "b7ad6b7169203331",
    "checkout",
    "1.0",
    "gzip",
    "",
    "=,=;=:-%",
];

const TYPES: &[&str] = &[
    "application/json",
    "application/json; charset=utf-8",
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
    "application/cloudevents+xml",
    "application/grpc",
    "application/grpc+proto",
    "application/x-protobuf",
    "text/plain",
    "",
];

const PATHS: &[&str] = &[
    "/",
    "/items/7?token=secret&b=%zz",
    "/v1/projects/p/topics/orders:publish",
    "/v1/projects/p/subscriptions/s:pull",
    "/v1/projects/p/subscriptions/s:acknowledge",
    "/google.pubsub.v1.Publisher/Publish",
    "/google.pubsub.v1.Subscriber/Pull",
    "/google.pubsub.v1.Subscriber/StreamingPull",
    "/a//b/../c/%2f;p=1?&&=",
    "/orders/0af76519-16cd-43dd-8448-eb211c80319c",
];

const BODIES: &[&str] = &[
    r#"{"subscription":"projects\/p\/subscriptions\/s","message":{"data":"eyJhIjoxfQ==","attributes":{"googclient_traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","ce-specversion":"1.0","ce-id":"1","ce-source":"/s","ce-type":"t"},"messageId":"1","message_id":"1"}}"#,
    r#"{"messages":[{"data":"eyJzcGVjdmVyc2lvbiI6IjEuMCIsImlkIjoiMSJ9","attributes":{"k":"v"}},{"attributes":{}}]}"#,
    r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","data":{"a":[1,2,{"b":null}]}}"#,
    r#"[{"specversion":"1.0","id":"1","source":"/s","type":"t","data":1},{"specversion":"1.0","id":"2","source":"/s","type":"t"}]"#,
    r#"{"receivedMessages":[{"ackId":"a","message":{"data":"","attributes":{"a":"b"},"messageId":"1"},"deliveryAttempt":3}]}"#,
    r#"{"message":{"message":{"message":{"message":{}}}}}"#,
    "{",
    "",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
];

/// A gRPC frame around a publish of one message, by hand.
const GRPC: &[u8] =
    b"\0\0\0\0\x2c\x0a\x14projects/p/topics/or\x12\x14\x0a\x05hello\x12\x0b\x0a\x03key\x12\x04va\xffl";

/// A request that anybody could send.
#[derive(Debug)]
struct Hostile {
    outbound: bool,
    method: &'static str,
    path: Vec<u8>,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    /// Sizes of the pieces in which the body leaves; one if its length is told ahead.
    pieces: Option<usize>,
    trailers: bool,
}

impl Hostile {
    fn number(number: u64) -> Hostile {
        let mut dice = Dice::of(number);
        let mut path = dice.of_list(PATHS).as_bytes().to_vec();
        if dice.one_in(8) {
            path = dice.broken(path);
            // The line must stay a line; everything else is the parser's to judge.
            path.retain(|byte| !matches!(byte, b' ' | b'\r' | b'\n' | 0 | b'#'));
            if path.first() != Some(&b'/') {
                path.insert(0, b'/');
            }
        }
        let mut fields = Vec::new();
        for _ in 0..dice.below(12) {
            let name = dice.of_list(NAMES).to_owned();
            let mut value = match dice.below(4) {
                0 => dice.bytes(64),
                1 => dice.bytes(3_000),
                _ => dice.of_list(VALUES).as_bytes().to_vec(),
            };
            if dice.one_in(2) {
                value = dice.broken(value);
            }
            // Envoy itself refuses control characters: most requests come without, so that they get to the filter.
            let all = dice.one_in(16);
            value.retain(|byte| {
                !matches!(byte, b'\r' | b'\n' | 0) && (all || (*byte >= b' ' && *byte != 0x7f))
            });
            for _ in 0..=if dice.one_in(20) { 30 } else { 0 } {
                fields.push((name.clone(), value.clone()));
            }
        }
        // The application takes a hundred, and ours come on top.
        fields.truncate(FIELDS_MAX);
        let mut body = match dice.below(5) {
            0 => dice.bytes(400),
            1 => dice.broken(GRPC.to_vec()),
            _ => {
                let body = dice.of_list(BODIES).as_bytes().to_vec();
                if dice.one_in(3) { body } else { dice.broken(body) }
            }
        };
        if number.is_multiple_of(LARGE_EACH) {
            let around = 780_000 + dice.below(20_000);
            body.resize(around, b' ');
        }
        let method = dice.of_list(&["GET", "POST", "POST", "POST", "PUT", "PATCH", "DELETE", "BREW"]);
        if matches!(method, "GET" | "DELETE" | "BREW") {
            body.clear();
        }
        let kind = dice.of_list(TYPES);
        if !kind.is_empty() {
            fields.push(("content-type".to_owned(), kind.as_bytes().to_vec()));
        }
        let pieces = (!body.is_empty() && dice.one_in(3))
            .then(|| 1 + dice.below(body.len().min(900)) + body.len() / 50);
        let (outbound, trailers) = (dice.one_in(3), dice.one_in(3));
        Hostile { outbound, method, path, fields, body, pieces, trailers }
    }

    /// As HTTP/1.1 in bytes. The last request of its connection.
    fn bytes(&self, to: SocketAddr) -> Vec<u8> {
        let mut bytes = Vec::new();
        let target = if self.outbound { format!("http://{to}") } else { String::new() };
        bytes.extend([self.method.as_bytes(), b" ", target.as_bytes(), &self.path].concat());
        bytes.extend(format!(" HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n").as_bytes());
        for (name, value) in &self.fields {
            bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        match self.pieces {
            None => {
                bytes.extend(format!("Content-Length: {}\r\n\r\n", self.body.len()).as_bytes());
                bytes.extend(&self.body);
            }
            Some(size) => {
                bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                for piece in self.body.chunks(size) {
                    bytes.extend(format!("{:x}\r\n", piece.len()).as_bytes());
                    bytes.extend([piece, b"\r\n"].concat());
                }
                let trailers: &[u8] =
                    if self.trailers { b"0\r\ntraceparent: \xff\xfe\r\n\r\n" } else { b"0\r\n\r\n" };
                bytes.extend(trailers);
            }
        }
        bytes
    }

    async fn by_http_1(&self, at: SocketAddr, to: SocketAddr) -> u16 {
        let mut wire = Wire::to(at).await;
        wire.send(self.bytes(to)).await;
        let answer = wire.exactly("HTTP/1.1 200".len()).await;
        status_of(&String::from_utf8_lossy(&answer))
    }

    async fn by_http_2(&self, at: SocketAddr, to: SocketAddr) -> Verdict {
        let authority = to.to_string();
        let mut fields: Vec<(&[u8], &[u8])> = vec![
            (b":method", self.method.as_bytes()),
            (b":scheme", b"http"),
            (b":path", &self.path),
            (b":authority", authority.as_bytes()),
            (b"te", b"trailers"),
        ];
        // One frame holds 16 KiB.
        let mut room = 15_000_usize;
        for (name, value) in &self.fields {
            room = room.saturating_sub(name.len() + value.len() + 16);
            if room > 0 {
                fields.push((name.as_bytes(), value));
            }
        }
        let mut frames = Frames::to(at, &[]).await;
        let (body, trailers) = (&self.body[..self.body.len().min(60_000)], self.trailers);
        let end = |last: bool| if last { END_STREAM } else { 0 };
        frames.send(Frame::headers(1, &fields, end(body.is_empty() && !trailers))).await;
        let size = self.pieces.unwrap_or(16_000).min(16_000);
        let count = body.len().div_ceil(size);
        for (at, piece) in body.chunks(size).enumerate() {
            frames.send(Frame::new(kind::DATA, end(at + 1 == count && !trailers), 1, piece)).await;
        }
        if trailers {
            frames.send(Frame::headers(1, &[(b"traceparent", b"\xff\xfe"), (b"x", b"y")], END_STREAM)).await;
        }
        frames.verdict(1).await
    }

    /// How Envoy ends this request, in words.
    async fn outcome(&self, number: u64, envoy: &Sidecar, app: SocketAddr) -> String {
        let at = if self.outbound { envoy.outbound() } else { envoy.inbound() };
        if number.is_multiple_of(HTTP_2_EACH) {
            format!("{:?}", self.by_http_2(at, app).await)
        } else {
            self.by_http_1(at, app).await.to_string()
        }
    }
}

/// Answers with what it got, so that answers are as hostile as requests.
fn mirror() -> Script {
    script(|visit| async move {
        let kind = visit.request.headers().get(header::CONTENT_TYPE).cloned();
        let body = visit.request.into_body().map_err(Into::into).boxed_unsync();
        let mut response = http::Response::new(body);
        if let Some(kind) = kind {
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        response
    })
}

fn plan(app: &Service, collector: &Collector) -> Plan {
    Plan::before("orders", app.address)
        .on(Host::Envoy)
        .flag("capture-request-headers", "x-captured,cookie,traceparent")
        .flag("response-headers", "server-timing,traceresponse,x-trace-id")
        .environment("OTEL_PROPAGATORS", "tracecontext,baggage,b3,b3multi,jaeger")
        .environment("OTEL_TRACES_SAMPLER", "always_on")
        .environment("OTEL_BSP_MAX_QUEUE_SIZE", "100000")
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_hostile_requests_harm_nobody() {
    if !envoy::is_here() {
        return;
    }
    let (collector, app) = (Collector::start().await, Service::playing(mirror()).await);
    let plan = plan(&app, &collector);
    // Envoy keeps a connection that it closes for a second, which would be hours of this scenario.
    let mut bootstrap = Bootstrap::of(&plan);
    bootstrap.sides().iter().for_each(|side| bootstrap.http(side)["delayed_close_timeout"] = "0s".into());
    let alone = Arc::new(bootstrap.clone().without_filter().start("alone").await);
    let ours = Arc::new(bootstrap.start("ours").await);
    let address = app.address;
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..TOGETHER {
        let (alone, ours) = (Arc::clone(&alone), Arc::clone(&ours));
        lanes.spawn(async move {
            let (mut otherwise, mut served) = (Vec::new(), 0_u64);
            for number in (lane..REQUESTS).step_by(TOGETHER as usize) {
                let request = Hostile::number(number);
                let wanted = request.outcome(number, &alone, address).await;
                let found = request.outcome(number, &ours, address).await;
                served += u64::from(found == "200" || found == "Status(200)");
                if wanted != found {
                    otherwise.push(number);
                }
            }
            (served, otherwise)
        });
    }
    let all = lanes.join_all().await;
    // A request may break the connection to the application that others share, with Envoy alone as well. By itself,
    // each one must end as it ends there.
    let mut worse = Vec::new();
    for number in all.iter().flat_map(|(_, otherwise)| otherwise) {
        let request = Hostile::number(*number);
        let wanted = request.outcome(*number, &alone, address).await;
        let found = request.outcome(*number, &ours, address).await;
        if wanted != found {
            worse.push(format!(
                "request {number}: Envoy alone {wanted}, with our filter {found}: {request:?}"
            ));
        }
    }
    let shown: Vec<_> =
        worse.iter().take(5).map(|text| text.chars().take(1_500).collect::<String>()).collect();
    assert!(worse.is_empty(), "{} requests ended otherwise: {shown:#?}", worse.len());
    let served: u64 = all.iter().map(|(served, _)| served).sum();
    assert!(served > REQUESTS / 2, "only {served} requests were let through: the generator is too hostile");
    let plain = Ask::get(ours.url("/plain")).header("x-operation-name", "after").send().await;
    assert_eq!(plain.status, 200);
    let ours = Arc::into_inner(ours).expect("nobody else uses it");
    let books = ours.books_when("everything exported", |books| books.held() == 0).await;
    assert!(books.created() > served, "{}", books.text);
    assert_eq!((books.reloads(), books.dropped()), (0, 0), "{}", books.text);
    ours.end().await;
    let spans = collector.accepted();
    let after = the_only(&spans, |span| span["app.operation.name"] == "after");
    assert_eq!(after["url.path"], "/plain");
    let ids: std::collections::BTreeSet<_> = spans.iter().map(|span| (&span.trace, &span.id)).collect();
    assert_eq!(ids.len(), spans.len(), "no span came twice");
}
