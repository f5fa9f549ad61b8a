//! The work whose instructions are counted, each case so many times over.

use std::hint::black_box;

use throughline_core::carrier::Carrier as _;
use throughline_core::classify::{Direction, Outcome};
use throughline_core::events::Edit;
use throughline_core::events::cloudevent::{Events, Scratch};
use throughline_core::events::splice::Splices;
use throughline_core::exchange::Tracer;

use crate::stage::{CONTEXT, Clock, Counter, Fields, USUAL, batch, head, ship, tracer};

/// Name, and what runs it.
pub type Case = (&'static str, fn(u64));

/// Every case.
pub const CASES: [Case; 5] = [
    ("exchange_off", off),
    ("exchange_unsampled", unsampled),
    ("exchange_sampled_inbound", inbound),
    ("exchange_sampled_outbound_restoring", outbound),
    ("event_1_kib_edited", event),
];

/// Contexts pass untouched, requests are counted.
fn off(times: u64) {
    exchanges(&tracer(&[("tracing-enabled", "off")]), Direction::Inbound, &Fields::of(&USUAL), times, 0);
}

fn unsampled(times: u64) {
    let tracer = tracer(&[("otel-traces-sampler", "always_off")]);
    exchanges(&tracer, Direction::Inbound, &Fields::of(&USUAL), times, 0);
}

fn inbound(times: u64) {
    let tracer = tracer(&[("otel-traces-sampler", "always_on")]);
    exchanges(&tracer, Direction::Inbound, &Fields::of(&USUAL), times, times);
}

/// The application forwards the trace, and neither operation nor baggage nor `tracestate`: all are restored.
fn outbound(times: u64) {
    let tracer = tracer(&[("otel-traces-sampler", "always_on")]);
    let mut arrived = Fields::of(&USUAL);
    arrived.set("baggage", b"user=17,tier=gold");
    arrived.set("tracestate", b"vendor=opaque");
    let now = Clock::default().tick();
    let serving = tracer.begin(&head(Direction::Inbound), &mut arrived, now, &mut Counter(1_000_000));
    let context = std::str::from_utf8(arrived.get("traceparent").expect("ours")).expect("ASCII").to_owned();
    let call =
        [("host", "orders.shop.svc:8080"), ("accept", "application/json"), ("traceparent", context.as_str())];
    exchanges(&tracer, Direction::Outbound, &Fields::of(&call), times, times);
    assert_eq!(tracer.counters().restored, times, "what is counted is restoring");
    drop(serving);
}

/// Begin, response, end, and what the exporter asks for.
fn exchanges(tracer: &Tracer, direction: Direction, request: &Fields, times: u64, spans: u64) {
    let (mut ids, mut batch, mut clock) = (Counter(1), batch(), Clock::default());
    let (mut fields, mut answer) = (Fields::of(&[]), Fields::of(&[]));
    for _ in 0..times {
        let now = clock.tick();
        fields.reset(request);
        answer.clear();
        let mut exchange = tracer.begin(&head(direction), &mut fields, now, &mut ids);
        exchange.response(tracer, 200, &mut answer);
        black_box(tracer.end(exchange, Outcome::Complete, now, &mut batch));
        ship(&mut batch, now);
    }
    assert_eq!(batch.books().created, spans, "what is counted is what leaves that many spans");
}

fn event(times: u64) {
    let head = format!(
        r#"{{"specversion":"1.0","id":"A234-1234","source":"/orders","type":"order.placed","traceparent":"{CONTEXT}","data":["#
    );
    let unit = r#"{"id":1234,"name":"Widget","price":12.50,"tags":["a","b"],"ok":true},"#;
    let body = format!("{head}{}0]}}", unit.repeat((1024 - head.len()) / unit.len()));
    let (mut scratch, mut splices, mut out) = (Scratch::default(), Splices::new(), Vec::with_capacity(2048));
    for _ in 0..times {
        out.clear();
        splices.clear();
        let events = Events::structured(body.as_bytes(), &mut scratch).expect("an event");
        let edits = [
            Edit::set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"),
            Edit::set("operationname", "checkout"),
        ];
        events.edit(0, &edits, &mut splices).expect("an edit");
        splices.apply(body.as_bytes(), &mut out).expect("a body");
        assert!(black_box(&out).len() > body.len(), "what is counted is an edit");
    }
}
