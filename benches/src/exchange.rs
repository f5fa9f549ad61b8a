//! One exchange: begin, response, end and the encoding of its span, as a sidecar does them.

use throughline_benches::stage::{CONTEXT, Clock, Counter, Fields, USUAL, batch, head, ship, tracer};
use throughline_core::classify::{Direction, Outcome};
use throughline_core::propagation::traceparent;

use crate::measure;

pub(crate) fn run() {
    measure("parse and print a traceparent", None, || {
        traceparent::parse(CONTEXT.as_bytes()).map(|context| traceparent::print(&context))
    });
    let usual = Fields::of(&USUAL);
    for (name, sampler, direction) in [
        ("exchange inbound, sampled", "always_on", Direction::Inbound),
        ("exchange inbound, not sampled", "always_off", Direction::Inbound),
        ("exchange outbound, sampled", "always_on", Direction::Outbound),
    ] {
        let (tracer, mut ids) = (tracer(&[("otel-traces-sampler", sampler)]), Counter(1));
        let (mut batch, mut clock) = (batch(), Clock::default());
        let (mut fields, mut answer) = (Fields::of(&[]), Fields::of(&[]));
        measure(name, None, || {
            let now = clock.tick();
            fields.reset(&usual);
            answer.clear();
            let mut exchange = tracer.begin(&head(direction), &mut fields, now, &mut ids);
            exchange.response(&tracer, 200, &mut answer);
            let summary = tracer.end(exchange, Outcome::Complete, now, &mut batch);
            ship(&mut batch, now);
            summary.duration_nanos
        });
    }
}
