//! Any bytes in a propagation header: a valid request stays valid.

use throughline_tests::frames::{END_STREAM, Frame, Frames, Verdict};
use throughline_tests::prelude::*;
use throughline_tests::wire::status_of;

/// A small generator of our own (xorshift), so that every run tries the same rows.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.roll(of.len())]
    }

    /// A value: bytes at random, or a good value with a few bytes changed.
    fn value(&mut self, name: &str) -> Vec<u8> {
        let mut value = match self.roll(3) {
            0 => (0..self.roll(80)).map(|_| self.byte()).collect(),
            _ => good(name).to_vec(),
        };
        for _ in 0..self.roll(4) {
            let at = self.roll(value.len() + 1);
            match self.roll(3) {
                0 => value.insert(at, self.byte()),
                1 if at < value.len() => drop(value.remove(at)),
                _ if at < value.len() => value[at] = self.byte(),
                _ => value.extend_from_within(..),
            }
        }
        value
    }

    /// Any byte that a header's value may hold.
    fn byte(&mut self) -> u8 {
        match self.roll(4) {
            0 => self.pick(&[b"-", b",", b"=", b";", b"%", b":", b" ", b"\t", b"0", b"f"])[0],
            1 => 0x80 + self.roll(0x80) as u8,
            _ => 0x21 + self.roll(0x5e) as u8,
        }
    }
}

fn good(name: &str) -> &'static [u8] {
    match name {
        "traceparent" => b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate" => b"tl=b7ad6b7169203331,vendor=1,ot=th:8;rv:00000000000001",
        "baggage" => b"app.operation.name=check%20out,user=7;p=1",
        "b3" => b"0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-d",
        "uber-trace-id" => b"0af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:1",
        "throughline-peer" => b"service=web;namespace=shop",
        "x-b3-spanid" => b"b7ad6b7169203331",
        "x-b3-sampled" | "x-b3-flags" => b"1",
        "x-operation-name" => b"checkout",
        _ => b"0af7651916cd43dd8448eb211c80319c",
    }
}

const NAMES: [&str; 12] = [
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "uber-trace-id",
    "throughline-peer",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-operation-name",
    "x-trace-id",
];

const ROWS: usize = 400;

fn rows() -> Vec<Vec<(&'static str, Vec<u8>)>> {
    let mut dice = Dice(0x0af7_6519_16cd_43dd);
    (0..ROWS)
        .map(|_| {
            (0..=dice.roll(4))
                .map(|_| {
                    let name = dice.pick(&NAMES);
                    (name, dice.value(name))
                })
                .collect()
        })
        .collect()
}

async fn reading_everything(mesh: &Mesh, stock: &Service) -> Pod {
    mesh.pod("orders")
        .environment("OTEL_PROPAGATORS", "tracecontext,baggage,b3,b3multi,jaeger")
        .runs(calling(stock.url("/"), Copying::Everything))
        .await
}

async fn check_unharmed(mesh: Mesh, orders: Pod, stock: &Service) {
    let books = orders.books().await;
    // The filter shows Envoy no durations: it pushes them.
    let numbers =
        ["http_server_request_duration_seconds_count", "http_client_request_duration_seconds_count"];
    for name in Host::asked().choose(&numbers[..], &[]) {
        assert_eq!(books.sum(name, &[]), ROWS as u64, "{name}");
    }
    let (at_app, at_stock) = (orders.app().seen(), stock.seen());
    assert_eq!((at_app.len(), at_stock.len()), (ROWS, ROWS));
    for seen in at_app.iter().chain(&at_stock) {
        // Legal, and one only.
        seen.traceparent();
    }
    for span in mesh.end([orders]).await {
        assert!(span.trace != "0".repeat(32) && span.id != "0".repeat(16));
    }
}

#[tokio::test]
async fn any_bytes_in_propagation_headers_leave_a_request_valid() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let orders = reading_everything(&mesh, &stock).await;
    let mut wire = Wire::to(orders.sidecar.inbound()).await;
    for row in rows() {
        let mut request = b"GET /row HTTP/1.1\r\nHost: orders\r\n".to_vec();
        for (name, value) in &row {
            request.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        }
        request.extend(b"\r\n");
        wire.send(request).await;
        let head = wire.head().await;
        assert_eq!(status_of(&head), 200, "{row:?}: {head}");
    }
    drop(wire);
    check_unharmed(mesh, orders, &stock).await;
}

#[tokio::test]
async fn any_bytes_in_propagation_headers_leave_an_http_2_request_valid() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let orders = reading_everything(&mesh, &stock).await;
    let mut frames = Frames::to(orders.sidecar.inbound(), &[]).await;
    for (number, row) in rows().iter().enumerate() {
        let start: [(&[u8], &[u8]); 4] =
            [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")];
        // A value of HTTP/2 must not begin or end with white space (RFC 9113 §8.2.1).
        let further = row.iter().map(|(name, value)| (name.as_bytes(), value.trim_ascii()));
        let fields: Vec<_> = start.into_iter().chain(further).collect();
        let stream = u32::try_from(number * 2 + 1).expect("a stream");
        frames.send(Frame::headers(stream, &fields, END_STREAM)).await;
        assert_eq!(frames.verdict(stream).await, Verdict::Status(200), "{row:?}");
    }
    drop(frames);
    check_unharmed(mesh, orders, &stock).await;
}

#[tokio::test]
async fn invalid_contexts_are_counted_by_header() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    for (name, value) in [("traceparent", "nonsense"), ("traceparent", "00-"), ("tracestate", "=")] {
        let ask = Ask::get(orders.url("/")).header(name, value);
        let ask = if name == "tracestate" { ask.header("traceparent", good("traceparent")) } else { ask };
        assert_eq!(ask.send().await.status, 200);
    }
    let books = orders.books().await;
    let count = |header: &str| books.sum("throughline_context_invalid_total", &[("header", header)]);
    assert_eq!((count("traceparent"), count("tracestate")), (2, 1), "{}", books.text);
    mesh.end([orders]).await;
}
