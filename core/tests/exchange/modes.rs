//! Modes: what is traced at all, changed while exchanges run.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use throughline_core::batch::{Batch, Bounds};
use throughline_core::classify::{Failure, Outcome};
use throughline_core::exchange::{Done, Mark, Work};
use throughline_core::mode::Mode;
use throughline_core::sampling::{Root, Sampler};

use crate::harness::*;

#[test]
fn off_and_system_only_leave_headers_as_they_are_and_make_no_span() {
    for mode in [Mode::Off, Mode::SystemOnly] {
        let mut world = World::with(|config| config.mode = mode);
        let sent = [("traceparent", SAMPLED), ("tracestate", "a=1,,b=2"), ("baggage", " x = 1"), WEB];
        for inbound in [true, false] {
            let (exchange, headers) =
                if inbound { world.inbound(&sent) } else { world.outbound(INSIDE, &sent) };
            assert_eq!(written(&headers), sent, "{mode:?}");
            assert_eq!(world.finish(exchange), None);
        }
        assert_eq!(world.counts().len(), 2, "numbers are counted all the same");
    }
}

#[test]
fn full_records_whatever_was_decided_before_and_claims_no_probability() {
    for sampler in [Sampler::Always(Root::AlwaysOff), Sampler::ParentBased(Root::AlwaysOff)] {
        for (context, reason) in [("", "full"), (UNSAMPLED, "-"), (SAMPLED, "-")] {
            let mut world = World::with(|config| {
                config.mode = Mode::Full;
                config.sampler = sampler;
            });
            let mut fields = vec![("tracestate", "ot=th:8;rv:0123456789abcd")];
            fields.extend((!context.is_empty()).then_some(("traceparent", context)));
            let (exchange, application) = world.inbound(&fields);
            assert!(value(&application, "traceparent").ends_with(if context.is_empty() {
                "-03"
            } else {
                "-01"
            }));
            assert_eq!(value(&application, "tracestate").contains("th:"), context == SAMPLED);
            world.end(exchange, Outcome::Complete);
            let span = world.spans().into_iter().find(|span| span.kind() == SpanKind::Server).unwrap();
            assert_eq!(text(&span, "throughline.sampled.by"), reason, "{context}");
        }
    }
}

#[test]
fn full_tells_the_phases_of_an_exchange_as_its_children() {
    let mut world = World::with(|config| config.mode = Mode::Full);
    let (mut exchange, _) = world.outbound(INSIDE, &[]);
    assert!(exchange.wants_marks());
    let own = span_id(&exchange);
    for mark in [Mark::Connecting, Mark::Connected, Mark::RequestSent, Mark::FirstByte] {
        world.now.mono_nanos += MS;
        exchange.mark(mark, world.now);
    }
    world.answer(&mut exchange, 200, &[]);
    world.now.mono_nanos += MS;
    world.end(exchange, Outcome::Complete);
    let spans = world.spans();
    let phases: Vec<_> = spans
        .iter()
        .filter(|span| span.kind() == SpanKind::Internal)
        .map(|span| {
            assert_eq!((parent_of(span), &span.trace_id), (own.clone(), &spans[0].trace_id));
            let since = |at: u64| (at - START_UNIX_NANOS) / MS;
            (span.name.as_str(), since(span.start_time_unix_nano), since(span.end_time_unix_nano))
        })
        .collect();
    let expected =
        [("connect", 1, 2), ("send request", 2, 3), ("wait for answer", 3, 4), ("receive answer", 4, 5)];
    assert_eq!(phases, expected);
    assert_eq!(spans.len(), 5);
}

#[test]
fn a_call_that_finds_nobody_has_the_phase_in_which_it_failed() {
    let mut world = World::with(|config| config.mode = Mode::Full);
    let (exchange, _) = world.outbound(INSIDE, &[]);
    let failure = Outcome::Failed { failure: Failure::ConnectionRefused, answered: Some(502) };
    world.end(exchange, failure);
    let spans = world.spans();
    let names: Vec<_> = spans.iter().map(|span| (span.name.as_str(), span.status.is_some())).collect();
    assert_eq!(names, [("connect", true), ("GET", true)]);
}

#[test]
fn a_change_of_mode_holds_for_what_begins_after_it() {
    let mut world = World::new();
    let (before, application) = world.inbound(&[]);
    assert_eq!(world.tracer.mode(), Mode::Hybrid);
    world.tracer.set_mode(Mode::Off);
    let copied = [("traceparent", value(&application, "traceparent"))];
    let (after, headers) = world.outbound(INSIDE, &copied);
    assert_eq!(written(&headers), copied);
    assert_eq!(world.finish(after), None);
    assert!(world.finish(before).is_some());
    assert_eq!(world.tracer.in_flight(), 0);
    world.tracer.set_mode(Mode::Full);
    let (exchange, _) = world.inbound(&[]);
    assert!(exchange.wants_marks());
    world.finish(exchange);

    let mut disabled = World::with(|config| config.enabled = false);
    disabled.tracer.set_mode(Mode::Full);
    assert_eq!(disabled.tracer.mode(), Mode::Off, "what was disabled stays so");
    let (exchange, _) = disabled.inbound(&[]);
    assert_eq!(disabled.finish(exchange), None);
}

#[test]
fn own_work_is_told_in_system_only_and_full_within_a_bound() {
    for (mode, expected) in [(Mode::Off, 0), (Mode::SystemOnly, 20), (Mode::Hybrid, 0), (Mode::Full, 20)] {
        let world = World::with(|config| config.mode = mode);
        let mut batch =
            Batch::new(Bounds { queue_spans_max: 1000, chunk_spans_max: 512, flush_after_ms: 1000 });
        let mut ids = Counting::default();
        for _ in 0..100 {
            let done = Done { work: Work::Export, started: world.now, error: Some("refused"), detail: "no" };
            world.tracer.work(done, world.now, &mut ids, &mut batch);
        }
        assert_eq!(batch.books().created, expected, "{mode:?}");
    }
    let mut world = World::with(|config| config.mode = Mode::SystemOnly);
    let started = world.now;
    world.now.mono_nanos += 7 * MS;
    let done = Done { work: Work::Export, started, error: Some("refused"), detail: "no room" };
    world.tracer.work(done, world.now, &mut Counting::default(), &mut world.batch);
    let span = world.spans().pop().unwrap();
    assert_eq!((span.name.as_str(), parent_of(&span)), ("throughline export", String::new()));
    assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 7 * MS);
    assert_eq!(text(&span, "throughline.work"), "export");
    assert_eq!(text(&span, "throughline.work.detail"), "no room");
    assert_eq!(text(&span, "error.type"), "refused");
}
