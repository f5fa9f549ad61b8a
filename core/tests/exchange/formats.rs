//! `OTEL_PROPAGATORS`: each format read and written, several at once, none at all; and a trace id by itself.

use throughline_core::classify::Outcome;
use throughline_core::exchange::Propagators;
use throughline_core::sampling::{Root, Sampler};

use crate::harness::*;

const NONE: Propagators =
    Propagators { tracecontext: false, baggage: false, b3: false, b3multi: false, jaeger: false };
const B3: Propagators = Propagators { b3: true, ..NONE };
const MULTI: Propagators = Propagators { b3multi: true, ..NONE };
const JAEGER: Propagators = Propagators { jaeger: true, ..NONE };
const EVERY: Propagators =
    Propagators { tracecontext: true, baggage: true, b3: true, b3multi: true, jaeger: true };

/// What an application gets of a caller's context in another format, and the parent of our span (`-` when
/// nothing was sampled).
#[test]
fn a_context_is_read_and_written_in_the_configured_format() {
    let single = |state: &str| format!("{TRACE}-{CALLER}{state}");
    let ours = |state: &str| format!("{TRACE}-0000000000000001-{state}");
    let fresh = |state: &str| format!("eeeeeeeeeeeeeeee0000000000000001-0000000000000001-{state}");
    let deny = Sampler::ParentBased(Root::AlwaysOff);
    let on = Sampler::ParentBased(Root::AlwaysOn);
    for (sampler, sent, got, parent) in [
        (on, single("-1"), ours("1"), CALLER),
        (on, single("-0"), ours("0"), "-"),
        (deny, single("-1"), ours("1"), CALLER),
        // Debug means sampled, and goes on.
        (deny, single("-d"), ours("d"), CALLER),
        // Deferred: the decision is ours.
        (on, single(""), ours("1"), CALLER),
        (deny, single(""), ours("0"), "-"),
        (on, single("-1-00000000000000aa"), ours("1"), CALLER),
        (
            on,
            format!("{}-{CALLER}-1", &TRACE[16..]),
            format!("0000000000000000{}-0000000000000001-1", &TRACE[16..]),
            CALLER,
        ),
        // A decision without a context: a trace of our own that follows it.
        (on, "0".to_owned(), fresh("0"), "-"),
        (deny, "1".to_owned(), fresh("1"), ""),
        (deny, "d".to_owned(), fresh("1"), ""),
        (on, "rubbish".to_owned(), fresh("1"), ""),
    ] {
        let mut world = World::with(|config| (config.propagators, config.sampler) = (B3, sampler));
        let (exchange, application) = world.inbound(&[("b3", &sent)]);
        assert_eq!(written(&application), [("b3", got.as_str())], "{sent}");
        assert_eq!(world.tracer.counters().invalid_b3, u64::from(sent == "rubbish"));
        let span = world.finish(exchange);
        assert_eq!(span.as_ref().map_or("-".to_owned(), parent_of), parent, "{sent}");
    }
}

#[test]
fn the_headers_of_b3_are_read_and_written_and_its_parent_is_never_handed_on() {
    let ids = [("x-b3-traceid", TRACE), ("x-b3-spanid", CALLER), ("x-b3-parentspanid", "00000000000000aa")];
    let ours = [("x-b3-traceid", TRACE), ("x-b3-spanid", "0000000000000001")];
    for (extra, got, parent) in [
        (&[("x-b3-sampled", "1")][..], ("x-b3-sampled", "1"), CALLER),
        (&[("x-b3-sampled", "true")], ("x-b3-sampled", "1"), CALLER),
        (&[("x-b3-sampled", "0")], ("x-b3-sampled", "0"), "-"),
        (&[], ("x-b3-sampled", "1"), CALLER),
        (&[("x-b3-flags", "1")], ("x-b3-flags", "1"), CALLER),
        (&[("x-b3-sampled", "0"), ("x-b3-flags", "1")], ("x-b3-flags", "1"), CALLER),
    ] {
        let mut world = World::with(|config| config.propagators = MULTI);
        let (exchange, application) = world.inbound(&[&ids[..], extra].concat());
        assert_eq!(written(&application), [&ours[..], &[got]].concat(), "{extra:?}");
        assert_eq!(world.finish(exchange).as_ref().map_or("-".to_owned(), parent_of), parent, "{extra:?}");
    }
}

#[test]
fn b3_is_read_single_first_then_multi() {
    let multi = [("x-b3-traceid", "11111111111111111111111111111111"), ("x-b3-spanid", "2222222222222222")];
    for (single, trace, invalid) in [
        (format!("{TRACE}-{CALLER}-1"), TRACE, 0),
        ("rubbish".to_owned(), "11111111111111111111111111111111", 1),
    ] {
        let mut world = World::with(|config| config.propagators = MULTI);
        let (exchange, application) = world.inbound(&[multi[0], multi[1], ("b3", &single)]);
        assert_eq!(value(&application, "x-b3-traceid"), trace);
        assert_eq!(world.tracer.counters().invalid_b3, invalid);
        world.finish(exchange);
    }
}

#[test]
fn jaegers_header_is_read_and_written() {
    for (sent, got, parent) in [
        (format!("{TRACE}:{CALLER}:0:1"), format!("{TRACE}:0000000000000001:0:1"), CALLER),
        (format!("{TRACE}:{CALLER}:0:0"), format!("{TRACE}:0000000000000001:0:0"), "-"),
        (format!("{TRACE}:{CALLER}:0:3"), format!("{TRACE}:0000000000000001:0:3"), CALLER),
        ("rubbish".to_owned(), "eeeeeeeeeeeeeeee0000000000000001:0000000000000001:0:1".to_owned(), ""),
    ] {
        let mut world = World::with(|config| config.propagators = JAEGER);
        let (exchange, application) = world.inbound(&[("uber-trace-id", &sent)]);
        assert_eq!(written(&application), [("uber-trace-id", got.as_str())], "{sent}");
        assert_eq!(world.tracer.counters().invalid_jaeger, u64::from(sent == "rubbish"));
        assert_eq!(world.finish(exchange).as_ref().map_or("-".to_owned(), parent_of), parent, "{sent}");
    }
}

#[test]
fn several_formats_are_read_w3c_first_and_written_all() {
    let b3 = ("b3", "11111111111111111111111111111111-2222222222222222-1");
    let jaeger = ("uber-trace-id", "33333333333333333333333333333333:4444444444444444:0:1");
    let x_trace_id = ("x-trace-id", "55555555555555555555555555555555");
    let traceparent = ("traceparent", SAMPLED);
    for (fields, trace, parent) in [
        (&[jaeger, b3, traceparent, x_trace_id][..], TRACE, CALLER),
        (&[jaeger, b3, x_trace_id], "11111111111111111111111111111111", "2222222222222222"),
        (&[("traceparent", "rubbish"), jaeger], "33333333333333333333333333333333", "4444444444444444"),
        (&[x_trace_id], "55555555555555555555555555555555", ""),
        (&[("traceparent", "rubbish"), x_trace_id], "eeeeeeeeeeeeeeee0000000000000001", ""),
        (&[("x-trace-id", "5555")], "eeeeeeeeeeeeeeee0000000000000001", ""),
    ] {
        let mut world = World::with(|config| config.propagators = EVERY);
        let (exchange, application) = world.inbound(fields);
        let ours = span_id(&exchange);
        assert_eq!(value(&application, "traceparent")[..52], format!("00-{trace}-{ours}"), "{fields:?}");
        assert_eq!(value(&application, "b3"), format!("{trace}-{ours}-1"));
        assert_eq!(value(&application, "x-b3-traceid"), trace);
        assert_eq!(value(&application, "x-b3-spanid"), ours);
        assert_eq!(value(&application, "uber-trace-id"), format!("{trace}:{ours}:0:1"));
        assert_eq!(value(&application, "tracestate"), format!("tl={ours}"));
        assert_eq!(parent_of(&world.finish(exchange).unwrap()), parent, "{fields:?}");
    }
}

#[test]
fn a_trace_id_by_itself_is_continued_without_a_parent_and_an_unusable_one_is_counted() {
    for (sent, continued) in [
        (TRACE, true),
        (" 4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7 ", true),
        ("4B1D0F7A2C3E5D6F8091A2B3C4D5E6F7", false),
        ("", false),
        ("00000000000000000000000000000000", false),
    ] {
        let mut world = World::new();
        let (exchange, application) = world.inbound(&[("x-trace-id", sent)]);
        assert_eq!(value(&application, "traceparent").contains(TRACE), continued, "{sent}");
        // The caller said nothing of randomness: only ids that we draw ourselves are known to be random.
        assert_eq!(value(&application, "traceparent").ends_with("-01"), continued);
        assert_eq!(world.tracer.counters().invalid_trace_id, u64::from(!continued), "{sent}");
        assert_eq!(parent_of(&world.finish(exchange).unwrap()), "");
    }
}

/// Rule 6: to destinations outside, formats beside `traceparent` go only where the application spoke them.
#[test]
fn outside_other_formats_go_only_where_the_application_sent_them() {
    for (egress, fields, expected) in [
        (true, &[][..], &["traceparent"][..]),
        (true, &[("b3", "0")], &["b3", "traceparent"]),
        (true, &[("uber-trace-id", "rubbish")], &["uber-trace-id", "traceparent"]),
        (false, &[], &[]),
    ] {
        let mut world = World::with(|config| {
            (config.propagators, config.egress_traceparent) = (EVERY, egress);
        });
        let (called, hop) = world.outbound(OUTSIDE, fields);
        assert_eq!(hop.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), expected, "{fields:?}");
        world.finish(called);
    }
}

#[test]
fn without_propagators_headers_pass_and_spans_are_made() {
    let mut world = World::with(|config| config.propagators = NONE);
    let fields = [
        ("traceparent", SAMPLED),
        ("tracestate", "tl=0000000000000001, a=1"),
        ("baggage", " x = 1"),
        ("b3", "0"),
        ("uber-trace-id", "x"),
    ];
    for head in [request(), call(OUTSIDE)] {
        let mut headers = headers(&fields);
        let exchange = world.begin(&head, &mut headers);
        assert_eq!(written(&headers), fields);
        let span = world.finish(exchange).unwrap();
        assert_eq!((parent_of(&span), hex(&span.trace_id) == TRACE), (String::new(), false));
    }
}

#[test]
fn restoring_works_across_formats() {
    let mut world = World::with(|config| config.propagators = Propagators { baggage: true, ..B3 });
    let b3 = format!("{TRACE}-{CALLER}-1");
    let (served, application) =
        world.inbound(&[("b3", &b3), ("x-operation-name", "checkout"), ("baggage", "a=1")]);
    assert_eq!(
        value(&application, "tracestate"),
        "-",
        "without W3C's format there is no list for our member"
    );
    let (called, hop) = world.outbound(INSIDE, &[("b3", value(&application, "b3"))]);
    assert_eq!(value(&hop, "x-operation-name"), "checkout");
    assert_eq!(value(&hop, "baggage"), "a=1,app.operation.name=checkout");
    assert_eq!(parent_of(&world.finish(called).unwrap()), span_id(&served));
    let _ = world.end(served, Outcome::Complete);
}
