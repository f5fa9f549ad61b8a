//! Rule 10: what strangers at an edge are believed, and what they are told.

use throughline_core::classify::Outcome;
use throughline_core::exchange::{Config, Edge, Propagators, ResponseHeaders, RootUnsampled, Trust};
use throughline_core::mode::Mode;
use throughline_core::sampling::{Root, Sampler};

use crate::harness::*;

fn edge(change: impl FnOnce(&mut Config, &mut Edge)) -> World {
    World::with(|config| {
        let mut edge = Edge { operations: Vec::new(), operations_max: 2, sampled_per_second: 2 };
        config.sampler = Sampler::ParentBased(Root::AlwaysOff);
        change(config, &mut edge);
        config.trust = Trust::Edge(edge);
    })
}

fn links(span: &opentelemetry_proto::tonic::trace::v1::Span) -> Vec<(String, String)> {
    span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect()
}

#[test]
fn a_strangers_trace_starts_anew_and_is_linked() {
    for (context, decided) in
        [(SAMPLED, Root::AlwaysOn), (UNSAMPLED, Root::AlwaysOn), (UNSAMPLED, Root::AlwaysOff)]
    {
        let mut world = edge(|config, _| config.sampler = Sampler::ParentBased(decided));
        let (exchange, application) = world.inbound(&[
            ("traceparent", context),
            ("tracestate", "rojo=1,ot=th:8"),
            ("baggage", "user=7"),
            WEB,
        ]);
        let told = value(&application, "traceparent");
        assert!(!told.contains(TRACE) && !told.contains(CALLER), "{told}");
        assert_eq!(value(&application, "tracestate"), "tl=0000000000000001");
        assert_eq!(value(&application, "baggage"), "user=7", "that is between them and the application");
        assert_eq!(value(&application, "throughline-peer"), "-");
        let span = world.finish(exchange);
        assert_eq!(span.is_some(), decided == Root::AlwaysOn, "the decision is ours");
        if let Some(span) = span {
            assert_eq!((parent_of(&span).as_str(), span.trace_state.as_str()), ("", ""));
            assert_eq!(links(&span), [(TRACE.to_owned(), CALLER.to_owned())]);
            assert_eq!(text(&span, "throughline.peer.service"), "-", "anybody may call himself web");
            assert_eq!(text(&span, "throughline.sampled.by"), "always_on");
        }
    }
}

#[test]
fn a_strangers_flag_counts_within_so_many_a_second() {
    let mut world = edge(|_, _| {});
    let sampled = |world: &mut World| {
        let (exchange, application) = world.inbound(&[("traceparent", SAMPLED)]);
        let told = value(&application, "traceparent").ends_with("-03");
        let span = world.finish(exchange);
        assert_eq!(span.is_some(), told);
        assert!(span.is_none_or(|span| text(&span, "throughline.sampled.by") == "edge"));
        told
    };
    let made: Vec<bool> = (0..4).map(|_| sampled(&mut world)).collect();
    assert_eq!(made, [true, true, false, false]);
    world.now.mono_nanos += 500 * MS;
    assert!(sampled(&mut world) && !sampled(&mut world), "half a second later one more");
    let (exchange, _) = world.inbound(&[("traceparent", UNSAMPLED)]);
    assert!(world.finish(exchange).is_none());
}

#[test]
fn no_format_of_a_strangers_context_reaches_the_application() {
    let sent = [
        ("b3", "4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-d"),
        ("x-b3-traceid", TRACE),
        ("x-b3-flags", "1"),
        ("uber-trace-id", "4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7:a1b2c3d4e5f60718:0:3"),
        ("x-trace-id", TRACE),
        ("accept", "*/*"),
    ];
    let all = Propagators { tracecontext: true, baggage: true, b3: true, b3multi: true, jaeger: true };
    let few = Propagators { tracecontext: true, ..Propagators::default() };
    for (propagators, root_unsampled) in
        [(all, RootUnsampled::Flag), (few, RootUnsampled::Flag), (few, RootUnsampled::Silent)]
    {
        let mut world = edge(|config, edge| {
            config.propagators = propagators;
            config.root_unsampled = root_unsampled;
            edge.sampled_per_second = 0;
        });
        let (exchange, application) = world.inbound(&sent);
        for (name, text) in written(&application) {
            assert!(
                !text.contains(TRACE) && !text.contains(CALLER) && !text.ends_with("-d"),
                "{name}: {text}"
            );
        }
        assert_eq!(value(&application, "accept"), "*/*");
        world.finish(exchange);
    }
}

#[test]
fn a_strangers_operation_is_believed_from_a_list_or_up_to_a_cap() {
    let believed = |world: &mut World, fields: Fields<'_>| {
        let (exchange, application) = world.inbound(fields);
        let (header, baggage) = (value(&application, "x-operation-name"), value(&application, "baggage"));
        let seen = (header.to_owned(), baggage.to_owned());
        world.finish(exchange);
        seen
    };
    let expected = |header: &str, baggage: &str| (header.to_owned(), baggage.to_owned());
    let mut world = edge(|_, edge| edge.operations = vec!["checkout".into()]);
    for (fields, header, baggage) in [
        (&[("x-operation-name", "checkout")][..], "checkout", "app.operation.name=checkout"),
        (&[("x-operation-name", "evil")], "-", "-"),
        (&[("x-operation-name", "evil"), ("baggage", "app.operation.name=evil,user=7")], "-", "user=7"),
        (&[("baggage", "app.operation.name=evil")], "-", "-"),
        (
            &[("baggage", "user=7,app.operation.name=checkout")],
            "checkout",
            "user=7,app.operation.name=checkout",
        ),
        (
            &[("x-operation-name", "checkout"), ("baggage", "app.operation.name=evil")],
            "checkout",
            "app.operation.name=checkout",
        ),
    ] {
        assert_eq!(believed(&mut world, fields), expected(header, baggage), "{fields:?}");
    }
    assert_eq!(world.tracer.counters().operations_ignored, 3);
    assert!(world.counts().iter().all(|line| !line.contains("evil")), "{:?}", world.counts());
    let mut world = edge(|_, _| {});
    for (name, header) in [("a", "a"), ("b", "b"), ("c", "-"), ("a", "a")] {
        assert_eq!(believed(&mut world, &[("x-operation-name", name)]).0, header);
    }
}

#[test]
fn an_answer_tells_strangers_only_what_the_user_chose() {
    let says = [
        ("traceparent", SAMPLED),
        ("traceresponse", SAMPLED),
        ("x-trace-id", TRACE),
        ("b3", "0"),
        ("baggage", "user=7"),
        ("x-operation-name", "checkout"),
        ("throughline-peer", "service=x"),
        ("throughline-keep", "error"),
        ("server-timing", "db;dur=5, traceparent;desc=\"00-a-b-01\""),
        ("content-type", "text/plain"),
    ];
    let mut world = edge(|_, _| {});
    let (mut exchange, _) = world.inbound(&[WEB]);
    let answer = world.answer(&mut exchange, 500, &says);
    assert_eq!(written(&answer), [("server-timing", "db;dur=5"), ("content-type", "text/plain")]);
    world.end(exchange, Outcome::Complete);
    let span = world.spans().pop().unwrap();
    assert_eq!(text(&span, "throughline.keep.reason"), "error", "kept, and nobody is told");

    let mut world = edge(|config, _| {
        config.response_headers = ResponseHeaders { trace_id: true, ..ResponseHeaders::default() };
    });
    let (mut exchange, _) = world.inbound(&[]);
    let ours = exchange.ids().unwrap().0.to_string();
    assert_eq!(value(&world.answer(&mut exchange, 200, &says), "x-trace-id"), ours);
    world.finish(exchange);
}

#[test]
fn a_stranger_moves_no_exchange_by_an_event() {
    let mut world = edge(|config, _| config.sampler = Sampler::Always(Root::AlwaysOn));
    let sent = [
        ("ce-id", "1"),
        ("ce-source", "/x"),
        ("ce-type", "made"),
        ("ce-specversion", "1.0"),
        ("ce-traceparent", SAMPLED),
    ];
    let (exchange, application) = world.inbound(&sent);
    assert_eq!(value(&application, "ce-traceparent"), SAMPLED, "it passes as it came");
    let span = world.finish(exchange).unwrap();
    assert_ne!(hex(&span.trace_id), TRACE);
}

#[test]
fn what_the_application_calls_is_no_matter_of_strangers() {
    let mut world = edge(|config, _| config.mode = Mode::Full);
    let (served, application) = world.inbound(&[("traceparent", SAMPLED)]);
    let ours = span_id(&served);
    let copied = [
        ("traceparent", value(&application, "traceparent")),
        ("tracestate", value(&application, "tracestate")),
    ];
    let (mut called, hop) = world.outbound(INSIDE, &copied);
    assert_eq!(value(&hop, "throughline-peer"), OWN);
    world.answer(&mut called, 200, &[WEB]);
    world.end(called, Outcome::Complete);
    let span = world.spans().pop().unwrap();
    assert_eq!((parent_of(&span), text(&span, "throughline.peer.service")), (ours, "web".to_owned()));
    world.finish(served);
}

#[test]
fn trailers_tell_strangers_no_more_than_heads_do() {
    let mut world = edge(|_, _| {});
    let (mut exchange, application) = world.inbound(&[("grpc-trace-bin", "AAAA"), ("x", "y")]);
    assert_eq!((value(&application, "grpc-trace-bin"), value(&application, "x")), ("-", "y"));
    world.answer(&mut exchange, 200, &[]);
    let told = [
        ("grpc-status", "0"),
        ("traceparent", SAMPLED),
        ("baggage", "user=7"),
        ("grpc-trace-bin", "AAAA"),
        ("throughline-peer", OWN),
    ];
    let mut trailers = headers(&told);
    exchange.answer_trailers(&world.tracer, &mut trailers);
    assert_eq!(written(&trailers), [("grpc-status", "0")]);
    world.end(exchange, Outcome::Complete);
}

#[test]
fn an_operation_that_is_not_believed_does_not_hide_behind_another_one_in_baggage() {
    for (said, left) in [
        ("app.operation.name=evil,app.operation.name=good", false),
        ("app.operation.name=good,app.operation.name=evil", false),
        ("app.operation.name=evil", false),
        ("app.operation.name=good", true),
    ] {
        let mut world = edge(|_, edge| edge.operations = vec!["good".into()]);
        let (exchange, application) = world.inbound(&[("baggage", said)]);
        let baggage = value(&application, "baggage");
        assert!(!baggage.contains("evil"), "{said}: {baggage}");
        assert!(!left || baggage.contains("app.operation.name=good"), "{said}: {baggage}");
        world.end(exchange, Outcome::Complete);
    }
}
