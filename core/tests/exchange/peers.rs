//! Rules 6, 7 and 12: sidecars that know each other, answers that say the trace, and what leaves no trace.

use throughline_core::classify::Outcome;
use throughline_core::exchange::{RequestHead, ResponseHeaders};

use crate::harness::*;

/// Rule 7, inbound: the caller's name is taken out, put on the span, and answered only to who gave one.
#[test]
fn a_sidecar_that_names_itself_is_named_to_and_an_application_never_sees_it() {
    for (peer, service, namespace, named) in [
        (None, "-", "-", false),
        (Some("service=web;namespace=shop"), "web", "shop", true),
        (Some("service=web"), "web", "-", true),
        (Some("service=;namespace=x"), "-", "-", false),
        (Some("rubbish"), "-", "-", false),
    ] {
        let mut world = World::new();
        let mut fields = vec![("traceparent", SAMPLED)];
        fields.extend(peer.map(|peer| ("throughline-peer", peer)));
        let (mut exchange, application) = world.inbound(&fields);
        assert_eq!(value(&application, "throughline-peer"), "-", "{peer:?}");
        // Whatever the application says of peers, its caller reads only our word.
        let answer =
            world.answer(&mut exchange, 200, &[("throughline-peer", "service=liar"), ("x-own", "1")]);
        assert_eq!(value(&answer, "throughline-peer"), if named { OWN } else { "-" }, "{peer:?}");
        assert_eq!(value(&answer, "x-own"), "1");
        let _ = world.end(exchange, Outcome::Complete);
        let span = world.spans().pop().unwrap();
        assert_eq!(text(&span, "throughline.peer.service"), service, "{peer:?}");
        assert_eq!(text(&span, "throughline.peer.namespace"), namespace, "{peer:?}");
        assert!(!world.counts()[0].contains("liar"), "the peer of an inbound exchange is its caller");
    }
}

/// Rule 7, outbound.
#[test]
fn the_next_sidecars_name_is_taken_from_the_answer() {
    for (host, sent, answered, service) in [
        (INSIDE, OWN, "service=stock;namespace=shop", "stock"),
        (INSIDE, OWN, "rubbish", "-"),
        (OUTSIDE, "-", "service=stock", "-"),
    ] {
        let mut world = World::new();
        let (mut called, hop) = world.outbound(host, &[("throughline-peer", "service=liar")]);
        assert_eq!(value(&hop, "throughline-peer"), sent);
        let answer = world.answer(&mut called, 200, &[("throughline-peer", answered)]);
        assert_eq!(answer, [], "the application never sees it");
        let _ = world.end(called, Outcome::Complete);
        let span = world.spans().pop().unwrap();
        assert_eq!(text(&span, "throughline.peer.service"), service, "{host} {answered}");
    }
}

#[test]
fn two_sidecars_agree_on_the_whole_way() {
    let mut web = World::with(|config| config.peer_header = b"service=web;namespace=shop".to_vec());
    let mut orders = World::new();
    let (mut called, mut hop) = web.outbound("orders", &[("x-operation-name", "checkout")]);
    let mut served = orders.begin(&request(), &mut hop);
    let mut answer = orders.answer(&mut served, 200, &[]);
    called.response(&web.tracer, 200, &mut answer);
    assert_eq!(answer, []);
    let _ = (orders.end(served, Outcome::Complete), web.end(called, Outcome::Complete));
    let (client, server) = (web.spans().pop().unwrap(), orders.spans().pop().unwrap());
    assert_eq!(server.trace_id, client.trace_id);
    assert_eq!(server.parent_span_id, client.span_id);
    assert_eq!(text(&client, "throughline.peer.service"), "orders");
    assert_eq!(text(&server, "throughline.peer.service"), "web");
    assert_eq!(text(&server, "app.operation.name"), "checkout");
}

/// What callers may read of the trace, by option.
#[test]
fn an_answer_says_the_trace_only_when_asked_to() {
    let own = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-0000000000000001-01";
    let timing = &format!("trace;desc={own}");
    let all = ResponseHeaders { server_timing: true, traceresponse: true, trace_id: true };
    let off = ResponseHeaders::default();
    let beside = &format!("db;dur=5, cache;desc=\"a, b\", {timing}");
    for (headers, sent, expected) in [
        (off, &[][..], &[][..]),
        (all, &[], &[("traceresponse", own), ("server-timing", timing), ("x-trace-id", TRACE)][..]),
        (ResponseHeaders { trace_id: true, ..off }, &[("x-trace-id", "old")], &[("x-trace-id", TRACE)]),
        (ResponseHeaders { traceresponse: true, ..off }, &[], &[("traceresponse", own)]),
        (
            ResponseHeaders { server_timing: true, ..off },
            &[("server-timing", "db;dur=5"), ("x-own", "1"), ("server-timing", "cache;desc=\"a, b\"")],
            &[("server-timing", beside), ("x-own", "1")],
        ),
    ] {
        let mut world = World::with(|config| config.response_headers = headers);
        let (mut exchange, _) = world.inbound(&[("traceparent", SAMPLED)]);
        assert_eq!(written(&world.answer(&mut exchange, 200, sent)), expected, "{headers:?}");
        let _ = world.end(exchange, Outcome::Complete);
        // An outbound call's answer is read by our own application: it is told nothing.
        let (mut called, _) = world.outbound(INSIDE, &[]);
        assert_eq!(written(&world.answer(&mut called, 200, sent)), sent, "{headers:?}");
        let _ = world.end(called, Outcome::Complete);
    }
}

/// Rule 12.
#[test]
fn probes_leave_nothing_behind_and_keep_their_headers() {
    let own = ("x-own", "1");
    for (agent, other, probe) in [
        ("kube-probe/1.33", own, true),
        ("Mozilla/5.0 kube-probe/1.33", own, false),
        ("kube", own, false),
        // A caller that is part of a trace, or of the mesh, is no kubelet whatever it calls itself.
        ("kube-probe/1.33", ("traceparent", SAMPLED), false),
        ("kube-probe/1.33", ("throughline-peer", "service=web"), false),
    ] {
        let mut world = World::new();
        let fields = [("user-agent", agent), other];
        let (mut exchange, application) = world.inbound(&fields);
        assert_eq!(written(&application) == fields, probe, "{agent}");
        assert_eq!(world.tracer.in_flight(), usize::from(!probe));
        let answer = world.answer(&mut exchange, 500, &[("x-own", "1")]);
        assert_eq!(written(&answer)[0], own);
        let summary = world.end(exchange, Outcome::Complete);
        assert_eq!((summary.ignored, summary.ids.is_none()), (probe, probe), "{agent}");
        assert_eq!((world.spans().is_empty(), world.counts().is_empty()), (probe, probe), "{agent}");
        assert_eq!(world.tracer.counters().probes, u64::from(probe));
    }
    let mut world = World::new();
    let (called, hop) = world.outbound(INSIDE, &[("user-agent", "kube-probe/1.33")]);
    assert!(hop.len() > 1, "what the application itself calls is no probe of ours");
    assert!(world.finish(called).is_some());
}

#[test]
fn switched_off_every_byte_passes_and_exchanges_still_count() {
    let mut world = World::with(|config| {
        config.enabled = false;
        config.response_headers =
            ResponseHeaders { server_timing: true, traceresponse: true, trace_id: true };
        config.capture_request_headers = vec!["x-own".into()];
    });
    let fields = [
        ("traceparent", SAMPLED),
        ("tracestate", " b=2,, tl=0000000000000001"),
        ("tracestate", "c=3"),
        ("baggage", "a = 1 ,"),
        ("x-operation-name", "checkout"),
        WEB,
        ("x-own", "1"),
    ];
    for head in [request(), call(INSIDE), call(OUTSIDE)] {
        let mut headers = headers(&fields);
        let mut exchange = world.begin(&head, &mut headers);
        assert_eq!(written(&headers), fields);
        let answer = world.answer(&mut exchange, 503, &[WEB, ("server-timing", "a")]);
        assert_eq!(written(&answer), [WEB, ("server-timing", "a")]);
        let summary = world.end(exchange, Outcome::Complete);
        assert_eq!((summary.ids, summary.recorded, summary.http_status), (None, false, Some(503)));
    }
    assert_eq!(world.spans(), []);
    assert_eq!(world.batch.books().created, 0);
    let counts = world.counts();
    assert_eq!(counts.len(), 3, "{counts:?}");
    assert!(
        counts
            .iter()
            .all(|line| line.contains("app_operation_name=\"checkout\"") && line.contains("\"503\""))
    );
}

#[test]
fn switched_off_grpc_calls_fail_in_the_numbers_as_they_do_switched_on() {
    for enabled in [true, false] {
        let mut world = World::with(|config| config.enabled = enabled);
        let grpc = ("content-type", "application/grpc");
        let mut headers = headers(&[grpc]);
        let head = RequestHead { method: "POST", path: b"/shop.Cart/Add", ..request() };
        let mut exchange = world.begin(&head, &mut headers);
        world.answer(&mut exchange, 200, &[grpc, ("grpc-status", "14")]);
        let _ = world.end(exchange, Outcome::Complete);
        let counts = world.counts();
        assert!(counts[0].contains("error_type=\"UNAVAILABLE\""), "{enabled}: {counts:?}");
    }
}

/// Without an exporter contexts still travel, and nothing is recorded.
#[test]
fn without_an_exporter_contexts_travel_and_nothing_is_recorded() {
    let mut world = World::with(|config| config.recording = false);
    let (served, application) = world.inbound(&[("traceparent", SAMPLED)]);
    let copied = value(&application, "traceparent");
    assert!(copied.ends_with("-0000000000000001-01"), "the caller's decision goes on");
    let (called, hop) = world.outbound(INSIDE, &[("traceparent", copied)]);
    assert!(value(&hop, "traceparent").ends_with("-0000000000000002-01"));
    assert!(world.finish(called).is_none() && world.finish(served).is_none());
    assert_eq!(world.counts().len(), 2);
}
