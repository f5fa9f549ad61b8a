//! Rule 4: keep travels up, so that what waited for a kept exchange is kept too, and no parent is a phantom.

use opentelemetry_proto::tonic::trace::v1::Span;
use throughline_core::classify::{Failure, Outcome};
use throughline_core::exchange::{EventContext, Exchange, Mark, RequestHead, Version};
use throughline_core::keep::Slow;
use throughline_core::sampling::{Root, Sampler};

use crate::harness::*;
use crate::keep::unsampled;

const COMPLETE: Outcome = Outcome::Complete;

/// A process whose spans have ids of their own.
fn pod(number: u64) -> World {
    let mut world = unsampled(|_| {});
    world.ids_after(number * 0x100);
    world
}

fn fields(headers: &Headers) -> Vec<(&str, &str)> {
    written(headers)
}

/// An application that copies the headers about context.
fn copied(headers: &Headers) -> Vec<(&str, &str)> {
    written(headers).into_iter().filter(|(name, _)| ["traceparent", "tracestate"].contains(name)).collect()
}

fn reason(span: &Span) -> String {
    text(span, "throughline.keep.reason")
}

#[test]
fn the_way_from_the_edge_to_a_failure_is_kept_although_those_between_answer_200() {
    let (mut a, mut b, mut c) = (pod(1), pod(2), pod(3));
    let (mut a_in, a_app) = a.inbound(&[]);
    let (mut a_out, a_hop) = a.outbound(INSIDE, &copied(&a_app));
    let (mut b_in, b_app) = b.inbound(&fields(&a_hop));
    let (mut b_out, b_hop) = b.outbound(INSIDE, &copied(&b_app));
    let (mut c_in, _) = c.inbound(&fields(&b_hop));

    let c_says = c.answer(&mut c_in, 503, &[]);
    assert_eq!(value(&c_says, "throughline-keep"), "error");
    c.end(c_in, COMPLETE);
    let b_gets = b.answer(&mut b_out, 503, &fields(&c_says));
    assert_eq!(value(&b_gets, "throughline-keep"), "-", "the application has no use for it");
    b.end(b_out, COMPLETE);
    let b_says = b.answer(&mut b_in, 200, &[]);
    assert_eq!(value(&b_says, "throughline-keep"), "downstream");
    b.end(b_in, COMPLETE);
    let a_gets = a.answer(&mut a_out, 200, &fields(&b_says));
    assert_eq!(value(&a_gets, "throughline-keep"), "-");
    a.end(a_out, COMPLETE);
    let a_says = a.answer(&mut a_in, 200, &[]);
    assert_eq!(value(&a_says, "throughline-keep"), "-", "the caller did not name itself");
    a.end(a_in, COMPLETE);

    let spans: Vec<Span> = [&mut a, &mut b, &mut c].into_iter().flat_map(World::spans).collect();
    let told: Vec<_> = spans.iter().map(|span| (hex(&span.span_id), parent_of(span), reason(span))).collect();
    let row = |id: &str, parent: &str, reason: &str| (id.to_owned(), parent.to_owned(), reason.to_owned());
    assert_eq!(
        told,
        [
            row("0000000000000102", "0000000000000101", "downstream"),
            row("0000000000000101", "", "downstream"),
            row("0000000000000202", "0000000000000201", "downstream"),
            row("0000000000000201", "0000000000000102", "downstream"),
            row("0000000000000301", "0000000000000202", "error"),
        ]
    );
    assert!(spans.iter().all(|span| span.trace_id == spans[0].trace_id));
}

/// An answer that is kept or not, as the caller's sidecar and its application see it.
fn answered(world: &World, exchange: &mut Exchange, status: u16) -> String {
    value(
        &world.answer(exchange, status, &[("throughline-keep", "an application's own")]),
        "throughline-keep",
    )
    .to_owned()
}

#[test]
fn only_a_sidecar_is_told_and_only_of_what_is_kept() {
    for (context, peer, status, expected) in [
        (UNSAMPLED, true, 500, "error"),
        (UNSAMPLED, true, 200, "-"),
        (UNSAMPLED, false, 500, "-"),
        (SAMPLED, true, 500, "-"),
    ] {
        let mut world = unsampled(|_| {});
        let mut sent = vec![("traceparent", context)];
        sent.extend(peer.then_some(WEB));
        let (mut exchange, _) = world.inbound(&sent);
        assert_eq!(answered(&world, &mut exchange, status), expected, "{context} {peer} {status}");
        world.end(exchange, COMPLETE);
    }
}

#[test]
fn those_outside_have_no_say_in_what_is_kept() {
    // Nor has an ordinary server inside, which does not name itself.
    for (host, named, expected) in
        [(INSIDE, true, 1), (INSIDE, false, 0), (OUTSIDE, true, 0), (OUTSIDE, false, 0)]
    {
        let mut world = unsampled(|_| {});
        let (mut exchange, _) = world.outbound(host, &[]);
        let mut says = vec![("throughline-keep", "error")];
        says.extend(named.then_some(WEB));
        let gets = world.answer(&mut exchange, 200, &says);
        assert_eq!(value(&gets, "throughline-keep"), "-");
        world.end(exchange, COMPLETE);
        assert_eq!(world.spans().len(), expected, "{host} {named}");
    }
}

/// The caller's sidecar is told in the head, so what turns out later splits the trace rather than name a parent
/// that may not be there.
#[test]
fn a_parent_is_named_only_if_its_sidecar_was_told() {
    let sent = [("traceparent", UNSAMPLED), WEB];
    let broken = Outcome::Failed { failure: Failure::ConnectionReset, answered: None };
    for (status, outcome, expected) in
        [(500, COMPLETE, CALLER), (200, broken, ""), (500, broken, CALLER), (500, Outcome::CallerGone, "")]
    {
        let mut world = unsampled(|_| {});
        let (mut exchange, _) = world.inbound(&sent);
        world.answer(&mut exchange, status, &[]);
        world.end(exchange, outcome);
        assert_eq!(parent_of(&world.spans().pop().unwrap()), expected, "{status} {outcome:?}");
    }
    // The sidecar answers itself.
    let mut world = unsampled(|_| {});
    let (mut exchange, _) = world.inbound(&sent);
    let mut answer = Headers::new();
    exchange.answer_instead(&world.tracer, Failure::ConnectionRefused, 502, &mut answer);
    assert_eq!(written(&answer), [("throughline-keep", "error"), ("throughline-peer", OWN)]);
    world.end(exchange, Outcome::Failed { failure: Failure::ConnectionRefused, answered: Some(502) });
    assert_eq!(parent_of(&world.spans().pop().unwrap()), CALLER);
}

#[test]
fn what_only_trailers_say_is_told_in_the_trailers_where_they_can_hold_it() {
    for (version, expected, parent) in [(Version::Http2, "error", CALLER), (Version::Http11, "-", "")] {
        let mut world = unsampled(|_| {});
        let sent = [("traceparent", UNSAMPLED), ("content-type", "application/grpc"), WEB];
        let mut exchange = world.begin(&RequestHead { version, ..request() }, &mut headers(&sent));
        world.answer(&mut exchange, 200, &[("content-type", "application/grpc")]);
        let mut trailers = headers(&[("grpc-status", "13")]);
        exchange.answer_trailers(&world.tracer, &mut trailers);
        assert_eq!(value(&trailers, "throughline-keep"), expected);
        world.end(exchange, COMPLETE);
        assert_eq!(parent_of(&world.spans().pop().unwrap()), parent, "{version:?}");
    }
    // The caller's side takes it out again.
    let mut world = unsampled(|_| {});
    let (mut exchange, _) = world.outbound(INSIDE, &[]);
    world.answer(&mut exchange, 200, &[WEB]);
    let mut trailers = headers(&[("grpc-status", "0"), ("throughline-keep", "slow")]);
    exchange.answer_trailers(&world.tracer, &mut trailers);
    assert_eq!(written(&trailers), [("grpc-status", "0")]);
    world.end(exchange, COMPLETE);
    assert_eq!(reason(&world.spans().pop().unwrap()), "downstream");
}

#[test]
fn a_slow_answer_is_told_when_its_head_comes() {
    for (slow, learned) in [(Slow::Over(100 * MS), false), (Slow::P99, true)] {
        let mut world = unsampled(|config| config.keep.slow = slow);
        for _ in 0..if learned { 200 } else { 0 } {
            let (exchange, _) = world.inbound(&[]);
            world.finish(exchange);
        }
        for (millis, expected) in [(0, "-"), (150, "slow")] {
            let (mut exchange, _) = world.inbound(&[("traceparent", UNSAMPLED), WEB]);
            assert!(exchange.wants_first_byte());
            world.now.mono_nanos += millis * MS;
            exchange.mark(Mark::FirstByte, world.now);
            let says = world.answer(&mut exchange, 200, &[]);
            assert_eq!(value(&says, "throughline-keep"), expected, "{slow:?}");
            world.end(exchange, COMPLETE);
        }
        let span = world.spans().pop().unwrap();
        assert_eq!((parent_of(&span).as_str(), reason(&span).as_str()), (CALLER, "slow"));
    }
}

/// The inbound exchange may be over when a call that it made fails.
#[test]
fn a_call_that_outlives_its_exchange_hangs_under_nobody() {
    for outlives in [true, false] {
        let mut world = unsampled(|_| {});
        let (served, application) = world.inbound(&[]);
        let (mut called, _) = world.outbound(INSIDE, &copied(&application));
        let ours = span_id(&served);
        let mut served = Some(served);
        if outlives {
            assert_eq!(world.finish(served.take().unwrap()), None);
        }
        world.answer(&mut called, 500, &[]);
        world.end(called, COMPLETE);
        assert_eq!(parent_of(&world.spans().pop().unwrap()), if outlives { String::new() } else { ours });
        if let Some(served) = served {
            assert_eq!(reason(&world.finish(served).unwrap()), "downstream");
        }
    }
}

#[test]
fn a_call_made_after_another_was_kept_finds_its_parent_kept_already() {
    let mut world = unsampled(|_| {});
    let (served, application) = world.inbound(&[]);
    let ours = span_id(&served);
    for _ in 0..2 {
        let (mut called, _) = world.outbound(INSIDE, &copied(&application));
        world.answer(&mut called, 500, &[]);
        world.end(called, COMPLETE);
        assert_eq!(parent_of(&world.spans().pop().unwrap()), ours);
    }
    assert_eq!(reason(&world.finish(served).unwrap()), "downstream");
}

/// Whatever the application's SDK did with the context, `tl` names the exchange that waits.
#[test]
fn the_exchange_that_waits_is_found_by_our_member_not_by_the_sdks_span() {
    let mut world = unsampled(|_| {});
    let (first, application) = world.inbound(&[("traceparent", UNSAMPLED)]);
    let (second, _) = world.inbound(&[("traceparent", UNSAMPLED)]);
    let ours = span_id(&first);
    let of_sdk = format!("00-{TRACE}-{SDK}-00");
    let state = value(&application, "tracestate");
    let (mut called, _) = world.outbound(INSIDE, &[("traceparent", &of_sdk), ("tracestate", state)]);
    world.answer(&mut called, 500, &[]);
    world.end(called, COMPLETE);
    assert_eq!(parent_of(&world.spans().pop().unwrap()), ours);
    assert_eq!(world.finish(second), None);
    assert_eq!(reason(&world.finish(first).unwrap()), "downstream");
}

#[test]
fn a_sampled_exchange_needs_no_keeping_and_tells_nobody() {
    let mut world = World::with(|config| config.sampler = Sampler::Always(Root::AlwaysOn));
    let (served, application) = world.inbound(&[("traceparent", UNSAMPLED), WEB]);
    let (mut called, _) = world.outbound(INSIDE, &copied(&application));
    world.answer(&mut called, 200, &[("throughline-keep", "error")]);
    world.end(called, COMPLETE);
    world.finish(served);
    assert_eq!(world.tracer.counters().kept, [0; 6]);
}

/// An asynchronous hop has nobody to tell: a link instead of a parent that may not be there.
#[test]
fn a_kept_delivery_links_to_a_producer_that_was_not_sampled() {
    for context in [SAMPLED, UNSAMPLED] {
        let mut world = unsampled(|config| config.event_context = EventContext::Rewrite);
        let sent = [
            ("ce-id", "1"),
            ("ce-source", "/orders"),
            ("ce-type", "made"),
            ("ce-specversion", "1.0"),
            ("ce-traceparent", context),
        ];
        let mut exchange = world.begin(&RequestHead { method: "POST", ..request() }, &mut headers(&sent));
        world.answer(&mut exchange, 500, &[]);
        world.end(exchange, COMPLETE);
        let span = world.spans().pop().unwrap();
        let links: Vec<_> = span.links.iter().map(|link| hex(&link.span_id)).collect();
        let sampled = context == SAMPLED;
        assert_eq!(parent_of(&span), if sampled { CALLER } else { "" });
        assert_eq!(links, if sampled { vec![] } else { vec![CALLER.to_owned()] });
        assert_eq!(text(&span, "cloudevents.event_id"), "1");
        assert_eq!(reason(&span), if sampled { "-" } else { "error" });
    }
    // By a call of a sidecar there is somebody to tell.
    let mut world = unsampled(|_| {});
    let event = [("ce-id", "1"), ("ce-source", "/o"), ("ce-type", "made"), ("ce-specversion", "1.0")];
    let sent = [&event[..], &[("traceparent", UNSAMPLED), WEB]].concat();
    let mut exchange = world.begin(&RequestHead { method: "POST", ..request() }, &mut headers(&sent));
    assert_eq!(value(&world.answer(&mut exchange, 500, &[]), "throughline-keep"), "error");
    world.end(exchange, COMPLETE);
    assert_eq!(parent_of(&world.spans().pop().unwrap()), CALLER);
}

#[test]
fn nobody_gets_the_header_of_answers_on_a_request() {
    let mut world = unsampled(|_| {});
    let (served, application) = world.inbound(&[("throughline-keep", "error"), ("x", "y")]);
    assert_eq!((value(&application, "throughline-keep"), value(&application, "x")), ("-", "y"));
    let (called, sent) = world.outbound(OUTSIDE, &[("throughline-keep", "error")]);
    assert_eq!(value(&sent, "throughline-keep"), "-");
    world.end(called, COMPLETE);
    world.end(served, COMPLETE);
}
