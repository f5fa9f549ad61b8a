//! Exchanges by callers and applications that mean harm, drawn from a seed: nothing panics, everything that
//! goes out is well formed, and the books balance.

use throughline_core::batch::{Batch, Bounds, Dropped};
use throughline_core::classify::{Direction, Failure, Outcome};
use throughline_core::exchange::{
    Destination, Edge, Exchange, Mark, Propagators, RequestHead, ResponseHeaders, RootUnsampled, Scheme,
    Trust, Version,
};
use throughline_core::keep::{Keep, Slow};
use throughline_core::propagation::{b3, baggage, jaeger, traceparent, tracestate};
use throughline_core::sampling::{Ratio, Root, Sampler};
use throughline_core::{limits, operation};

use crate::harness::*;

const EXCHANGES: usize = 50_000;

/// A small generator (xorshift64*): the same exchanges on every machine.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most);
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// A valid text, damaged now and then.
    fn damaged(&mut self, mut valid: Vec<u8>) -> Vec<u8> {
        while self.one_in(3) {
            let at = self.below(valid.len() + 1);
            match self.below(4) {
                0 => valid.truncate(at),
                1 => valid.insert(at, self.next() as u8),
                2 if at < valid.len() => valid[at] = self.next() as u8,
                _ => valid.extend_from_within(at..),
            }
            valid.truncate(10_000);
        }
        valid
    }
}

/// The value that somebody sends in this field; `contexts` are such as went by before.
fn hostile(draw: &mut Draw, name: &str, contexts: &[Vec<u8>]) -> Vec<u8> {
    let trace = draw.of(&[TRACE, "11111111111111111111111111111111", "00000000000000000000000000000000"]);
    let flags = draw.of(&["00", "01", "02", "03", "ff"]);
    let member = |draw: &mut Draw| {
        let size = draw.of(&[1, 3, 50, 200, 300]);
        format!(
            "{}={}",
            draw.of(&["a", "b", "tl", "ot", "v@w", "A", ""]),
            draw.of(&["x", "th:8;rv:1", "", "=", " "]).repeat(size)
        )
    };
    let valid = match name {
        "traceparent" if draw.one_in(2) && !contexts.is_empty() => draw.of(contexts),
        "traceparent" => format!("00-{trace}-{CALLER}-{flags}").into_bytes(),
        "tracestate" | "baggage" => {
            let members = draw.of(&[1, 2, 5, 31, 32, 33, 64, 65]);
            (0..members).map(|_| member(draw)).collect::<Vec<_>>().join(",").into_bytes()
        }
        "x-operation-name" => format!("op{}", draw.below(1000)).into_bytes(),
        "throughline-peer" => {
            format!("service=s{};namespace=n{}", draw.below(700), draw.below(2)).into_bytes()
        }
        "x-trace-id" => trace.as_bytes().to_vec(),
        "b3" if draw.one_in(3) => draw.of(&["0", "1", "d"]).as_bytes().to_vec(),
        "b3" => format!("{trace}-{CALLER}-{}", draw.of(&["0", "1", "d", "x"])).into_bytes(),
        "x-b3-traceid" => trace.as_bytes().to_vec(),
        "x-b3-spanid" => CALLER.as_bytes().to_vec(),
        "x-b3-sampled" | "x-b3-flags" => draw.of(&[b"0", b"1"]).to_vec(),
        "uber-trace-id" => format!("{trace}:{CALLER}:0:{}", draw.below(5)).into_bytes(),
        "content-type" => {
            draw.of(&["application/grpc", "text/plain", "application/grpc+x"]).as_bytes().to_vec()
        }
        "grpc-status" => draw.below(20).to_string().into_bytes(),
        _ => draw.bytes(300),
    };
    draw.damaged(valid)
}

const NAMES: [&str; 20] = [
    "traceparent",
    "traceparent",
    "traceparent",
    "tracestate",
    "tracestate",
    "baggage",
    "x-operation-name",
    "throughline-peer",
    "throughline-keep",
    "x-trace-id",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
    "content-type",
    "grpc-status",
    "user-agent",
    "server-timing",
];

fn fields(draw: &mut Draw, contexts: &[Vec<u8>]) -> Headers {
    let lines = if draw.one_in(50) { 40 } else { draw.below(10) };
    (0..lines)
        .map(|_| {
            let name = draw.of(&NAMES);
            (name.to_owned(), hostile(draw, name, contexts))
        })
        .collect()
}

fn all<'a>(headers: &'a Headers, name: &str) -> Vec<&'a [u8]> {
    headers.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_slice()).collect()
}

/// What went on, by whichever formats are on, is one valid context and valid lists.
fn check(sent: &Headers, got: &Headers, exchange: &Exchange, propagators: Propagators, edge: bool) {
    let told = format!("sent {}\ngot {}", shown(sent), shown(got));
    let one = |name: &str| {
        let values = all(got, name);
        assert_eq!(values.len(), 1, "{name} once: {told}");
        values[0]
    };
    let untouched = |name: &str| all(sent, name) == all(got, name);
    let (trace, span) = exchange.ids().unwrap();
    if edge && exchange.direction() == Direction::Inbound {
        return check_edge(got, &told, exchange);
    }
    let ours = traceparent::parse(all(got, "traceparent").first().unwrap_or(&&b""[..]))
        .is_ok_and(|parent| (parent.trace_id, parent.span_id) == (trace, span));
    assert!(ours || untouched("traceparent") || all(got, "traceparent").is_empty(), "{told}");
    if ours {
        assert_eq!(one("traceparent").len(), traceparent::LEN);
        assert!(all(got, "tracestate").len() <= 1, "{told}");
    }
    if ours && let Some(state) = all(got, "tracestate").first() {
        let mut list = Vec::new();
        assert!(tracestate::join([*state], &mut list).is_ok(), "{told}");
        assert_eq!(list, *state, "in normal form and within the limits: {told}");
        assert_eq!(state.starts_with(b"tl="), exchange.direction() == Direction::Inbound, "{told}");
    }
    if exchange.direction() == Direction::Outbound && propagators.tracecontext {
        let members = || all(got, "tracestate").into_iter().flat_map(tracestate::members);
        assert!(members().all(|(key, _)| key != b"tl"), "{told}");
    }
    if exchange.direction() == Direction::Inbound {
        assert!(all(got, "throughline-peer").is_empty(), "{told}");
    }
    if !untouched("baggage") {
        let mut list = Vec::new();
        assert_eq!(baggage::join([one("baggage")], &mut list), baggage::Cut::default(), "{told}");
        assert!(list == one("baggage") && list.len() <= limits::BAGGAGE_BYTES_MAX, "{told}");
    }
    if !untouched("x-operation-name") {
        assert!(operation::Operation::parse(one("x-operation-name")).is_some(), "{told}");
        assert!(all(sent, "x-operation-name").is_empty(), "what was sent stays: {told}");
    }
    if propagators.b3 && !untouched("b3") {
        assert!(b3::parse_single(one("b3")).is_ok_and(|b3| b3.context == Some((trace, span))), "{told}");
    }
    if propagators.b3multi && !untouched("x-b3-spanid") {
        assert_eq!(one("x-b3-spanid"), span.digits());
        assert_eq!(one("x-b3-traceid"), trace.digits());
    }
    if propagators.jaeger && !untouched("uber-trace-id") {
        assert!(jaeger::parse(one("uber-trace-id")).is_ok_and(|id| id.span_id == span), "{told}");
    }
}

/// At an edge every context that goes on is ours, and what is rewritten is whole.
fn check_edge(got: &Headers, told: &str, exchange: &Exchange) {
    let (trace, span) = exchange.ids().unwrap();
    for value in all(got, "traceparent") {
        let parent = traceparent::parse(value).unwrap();
        assert_eq!((parent.trace_id, parent.span_id), (trace, span), "{told}");
    }
    for value in all(got, "b3") {
        assert_eq!(b3::parse_single(value).unwrap().context, Some((trace, span)), "{told}");
    }
    for value in all(got, "uber-trace-id") {
        assert_eq!(jaeger::parse(value).unwrap().span_id, span, "{told}");
    }
    for (name, digits) in [("x-b3-traceid", &trace.digits()[..]), ("x-b3-spanid", &span.digits())] {
        assert!(all(got, name).iter().all(|value| *value == digits), "{told}");
    }
    for name in ["throughline-peer", "x-trace-id", "x-b3-parentspanid"] {
        assert!(all(got, name).is_empty(), "{name}: {told}");
    }
    assert!(all(got, "tracestate").iter().all(|state| state.starts_with(b"tl=")), "{told}");
}

fn shown(headers: &Headers) -> String {
    let line = |(name, value): &(String, Vec<u8>)| format!("\n  {name}: {}", value.escape_ascii());
    headers.iter().map(line).collect()
}

fn outcome(draw: &mut Draw) -> Outcome {
    let failure = draw.of(&[Failure::ConnectionRefused, Failure::Timeout, Failure::ConnectionReset]);
    match draw.below(6) {
        0 => Outcome::CallerGone,
        1 => Outcome::Failed { failure, answered: Some(failure.answer()) },
        2 => Outcome::Failed { failure, answered: None },
        _ => Outcome::Complete,
    }
}

/// Plays exchanges of one world, up to 64 of them at once.
fn play(seed: u64, exchanges: usize) {
    let mut draw = Draw(seed);
    let on = |draw: &mut Draw| draw.one_in(2);
    let propagators = Propagators {
        tracecontext: !draw.one_in(4),
        baggage: !draw.one_in(4),
        b3: on(&mut draw),
        b3multi: on(&mut draw),
        jaeger: on(&mut draw),
    };
    let root = draw.of(&[Root::AlwaysOn, Root::AlwaysOff, Root::Ratio(Ratio::new(0.5).unwrap())]);
    let edge = draw.one_in(3);
    let mut world = World::with(|config| {
        if edge {
            let operations = draw.of(&[vec![], vec!["checkout".into()]]);
            config.trust = Trust::Edge(Edge { operations, operations_max: 2, sampled_per_second: 5 });
        }
        config.spans_per_second = draw.of(&[0, 0, 20]);
        config.keep = Keep {
            errors: on(&mut draw),
            slow: draw.of(&[Slow::Never, Slow::P99, Slow::Over(50 * MS)]),
            operations: vec!["checkout".into()],
            headers: vec![("baggage".into(), None)],
            ..Keep::default()
        };
        config.propagators = propagators;
        config.sampler = draw.of(&[Sampler::ParentBased(root), Sampler::Always(root)]);
        config.root_unsampled = draw.of(&[RootUnsampled::Flag, RootUnsampled::Silent]);
        config.egress_traceparent = !draw.one_in(3);
        config.response_headers = ResponseHeaders {
            server_timing: on(&mut draw),
            traceresponse: on(&mut draw),
            trace_id: on(&mut draw),
        };
        config.capture_request_headers = vec!["baggage".into(), "user-agent".into()];
        config.capture_response_headers = vec!["server-timing".into()];
        config.attribute_bytes_max = draw.of(&[None, Some(1), Some(100)]);
        config.routes_max = 20;
    });
    let chunk_spans_max = draw.of(&[1, 7, 512]);
    world.batch =
        Batch::new(Bounds { queue_spans_max: draw.of(&[1, 10, 1000]), chunk_spans_max, flush_after_ms: 5 });
    let mut running: Vec<Exchange> = Vec::new();
    let mut contexts: Vec<Vec<u8>> = Vec::new();
    let (mut begun, mut probes, mut recorded) = (0_u64, 0_u64, 0_u64);
    for _ in 0..exchanges {
        world.now.mono_nanos += draw.next() % (20 * MS);
        let (path, query, authority) = (draw.bytes(40), draw.bytes(60), draw.bytes(20));
        let head = RequestHead {
            direction: draw.of(&[Direction::Inbound, Direction::Outbound]),
            method: draw.of(&["GET", "POST", "PURGE", "", "_OTHER"]),
            scheme: draw.of(&[Scheme::Http, Scheme::Https]),
            authority: draw.of(&[&authority[..], b"stock", b"api.example.com:443", b"[::1]:80"]),
            path: draw.of(&[&path[..], b"/items/1", b"*", b"/pkg.S/M"]),
            query: draw.of(&[None, Some(&query[..])]),
            version: Version::Http2,
            caller: draw.of(&[None, Some([10, 0, 0, 1].into())]),
            destination: draw.of(&[Destination::Named, Destination::Routed]),
        };
        let sent = fields(&mut draw, &contexts);
        let mut got = sent.clone();
        let exchange = world.begin(&head, &mut got);
        begun += 1;
        if exchange.ids().is_some() {
            check(&sent, &got, &exchange, propagators, edge);
        } else {
            assert_eq!(got, sent, "a probe");
        }
        contexts.extend(all(&got, "traceparent").first().map(|value| value.to_vec()));
        if contexts.len() > 32 {
            contexts.remove(0);
        }
        running.push(exchange);
        while running.len() > 64 || (!running.is_empty() && draw.one_in(2)) {
            let at = draw.below(running.len());
            let mut exchange = running.swap_remove(at);
            if !draw.one_in(5) {
                let mut answer = fields(&mut draw, &contexts);
                let status = draw.of(&[101, 200, 204, 404, 405, 500, 999, 0, u16::MAX]);
                exchange.mark(Mark::FirstByte, world.now);
                exchange.response(&world.tracer, status, &mut answer);
                let kept = all(&answer, "throughline-keep");
                let own = kept.iter().all(|value| value.is_ascii() && value.len() < 12);
                let told = exchange.direction() == Direction::Inbound && kept.len() <= 1 && own;
                assert!(kept.is_empty() || told || exchange.ids().is_none(), "{kept:?}");
                assert!(
                    all(&answer, "throughline-peer").iter().all(|value| *value == OWN.as_bytes())
                        || exchange.ids().is_none()
                );
                let mut trailers = fields(&mut draw, &contexts);
                if draw.one_in(2) {
                    exchange.trailers(&trailers);
                } else {
                    exchange.answer_trailers(&world.tracer, &mut trailers);
                }
            }
            let ending = outcome(&mut draw);
            let summary = world.end(exchange, ending);
            probes += u64::from(summary.ignored);
            recorded += u64::from(summary.recorded);
        }
        if let Some(chunk) = world.batch.poll_flush(world.now, draw.one_in(100)) {
            let spans =
                <opentelemetry_proto::tonic::trace::v1::ScopeSpans as prost::Message>::decode(chunk.bytes())
                    .unwrap()
                    .spans;
            assert!(spans.iter().all(|span| span.end_time_unix_nano >= span.start_time_unix_nano && !span.name.is_empty()));
            assert_eq!(spans.len(), chunk.spans());
            let exported = draw.below(spans.len() + 1);
            let reason = draw.of(&Dropped::ALL);
            world.batch.settle(chunk, exported, reason);
        }
        let books = world.batch.books();
        assert_eq!(books.created, books.exported + books.held + books.dropped.iter().sum::<u64>());
    }
    for exchange in running {
        let summary = world.end(exchange, Outcome::Complete);
        probes += u64::from(summary.ignored);
        recorded += u64::from(summary.recorded);
    }
    world.spans();
    assert_eq!(world.tracer.in_flight(), 0);
    assert_eq!((world.batch.books().created, world.batch.books().held), (recorded, 0));
    let counted: u64 =
        world.counts().iter().filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
    assert_eq!(
        (counted, world.tracer.counters().probes),
        (begun - probes, probes),
        "every exchange counts once"
    );
}

#[test]
fn nothing_that_anybody_sends_breaks_an_exchange() {
    for seed in 1..=50 {
        play(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed), EXCHANGES / 50);
    }
}
