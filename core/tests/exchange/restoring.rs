//! Rules 2, 5, 6 and 8: the operation along the whole way, what is restored where an application forwards only
//! part, and what never goes outside.

use throughline_core::classify::Outcome;
use throughline_core::exchange::{Destination, RequestHead};
use throughline_core::sampling::{Root, Sampler};

use crate::harness::*;

const STATE: &str = "rojo=1,congo=t61";
const BAGGAGE: &str = "user=7;p=1,plan=gold";

/// An exchange that brought everything; what the application got of it.
fn full(world: &mut World) -> (throughline_core::exchange::Exchange, Headers) {
    world.inbound(&[
        ("traceparent", SAMPLED),
        ("tracestate", STATE),
        ("baggage", BAGGAGE),
        ("x-operation-name", "checkout"),
    ])
}

#[test]
fn what_an_application_does_not_forward_is_restored_inside_the_mesh_only() {
    struct Row<'a> {
        forwards: Fields<'a>,
        host: &'a str,
        tracestate: &'a str,
        baggage: &'a str,
        operation: &'a str,
        restored: u64,
    }
    let whole = "user=7;p=1,plan=gold,app.operation.name=checkout";
    let copied = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-0000000000000001-01";
    let by_sdk = &format!("00-{TRACE}-{SDK}-01");
    let tl_only = "tl=0000000000000001";
    let tl_first = &format!("tl=0000000000000001,{STATE}");
    for (n, Row { forwards, host, tracestate, baggage, operation, restored }) in [
        // Only `traceparent`, copied or by an SDK's own span: everything comes back.
        Row {
            forwards: &[("traceparent", copied)],
            host: INSIDE,
            tracestate: STATE,
            baggage: whole,
            operation: "checkout",
            restored: 1,
        },
        Row {
            forwards: &[("traceparent", by_sdk)],
            host: INSIDE,
            tracestate: STATE,
            baggage: whole,
            operation: "checkout",
            restored: 1,
        },
        // With our member only, an SDK that keeps nothing of other vendors: they stay away, it was its list.
        Row {
            forwards: &[("traceparent", by_sdk), ("tracestate", tl_only)],
            host: INSIDE,
            tracestate: "-",
            baggage: whole,
            operation: "checkout",
            restored: 1,
        },
        // Everything forwarded: nothing to restore, and nothing is touched.
        Row {
            forwards: &[
                ("traceparent", copied),
                ("tracestate", tl_first),
                ("baggage", whole),
                ("x-operation-name", "checkout"),
            ],
            host: INSIDE,
            tracestate: STATE,
            baggage: whole,
            operation: "checkout",
            restored: 0,
        },
        // Its own baggage stays its own; the operation is added to it.
        Row {
            forwards: &[("traceparent", copied), ("baggage", "own=1")],
            host: INSIDE,
            tracestate: STATE,
            baggage: "own=1,app.operation.name=checkout",
            operation: "checkout",
            restored: 1,
        },
        // Its own operation counts, in header and baggage.
        Row {
            forwards: &[("traceparent", copied), ("x-operation-name", "refund")],
            host: INSIDE,
            tracestate: STATE,
            baggage: "user=7;p=1,plan=gold,app.operation.name=refund",
            operation: "refund",
            restored: 1,
        },
        // An unusable one is its own too: nothing is put in its place.
        Row {
            forwards: &[("traceparent", copied), ("x-operation-name", "two words")],
            host: INSIDE,
            tracestate: STATE,
            baggage: BAGGAGE,
            operation: "two words",
            restored: 1,
        },
        // Another trace: nothing of ours belongs to it.
        Row {
            forwards: &[("traceparent", "00-11111111111111111111111111111111-2222222222222222-01")],
            host: INSIDE,
            tracestate: "-",
            baggage: "-",
            operation: "-",
            restored: 0,
        },
        // Outside: only what the application itself sent, without our member.
        Row {
            forwards: &[("traceparent", copied)],
            host: OUTSIDE,
            tracestate: "-",
            baggage: "-",
            operation: "-",
            restored: 0,
        },
        Row {
            forwards: &[
                ("traceparent", copied),
                ("tracestate", tl_first),
                ("baggage", whole),
                ("x-operation-name", "checkout"),
            ],
            host: OUTSIDE,
            tracestate: STATE,
            baggage: whole,
            operation: "checkout",
            restored: 0,
        },
        Row {
            forwards: &[("traceparent", copied), ("tracestate", tl_only)],
            host: OUTSIDE,
            tracestate: "-",
            baggage: "-",
            operation: "-",
            restored: 0,
        },
    ]
    .into_iter()
    .enumerate()
    {
        let mut world = World::new();
        let (served, application) = full(&mut world);
        assert_eq!(value(&application, "traceparent"), copied);
        assert_eq!(value(&application, "tracestate"), tl_first);
        assert_eq!(value(&application, "baggage"), whole);
        let (called, hop) = world.outbound(host, forwards);
        let got = ["tracestate", "baggage", "x-operation-name"].map(|name| value(&hop, name));
        assert_eq!(got, [tracestate, baggage, operation], "row {n}");
        assert_eq!(value(&hop, "throughline-peer"), if host == INSIDE { OWN } else { "-" }, "row {n}");
        assert!(value(&hop, "traceparent").ends_with("-0000000000000002-01"), "row {n}");
        assert_eq!(world.tracer.counters().restored, restored, "row {n}");
        world.finish(called);
        world.finish(served);
    }
}

#[test]
fn a_span_says_the_operation_wherever_the_call_goes() {
    for (host, forwarded) in [(INSIDE, false), (OUTSIDE, false), (INSIDE, true), (OUTSIDE, true)] {
        let mut world = World::new();
        let (served, application) = full(&mut world);
        let mut fields = vec![("traceparent", value(&application, "traceparent"))];
        fields.extend(forwarded.then_some(("x-operation-name", "checkout")));
        let (called, _) = world.outbound(host, &fields);
        let span = world.finish(called).unwrap();
        assert_eq!(text(&span, "app.operation.name"), "checkout");
        assert_eq!(text(&span, "throughline.restored"), if forwarded { "-" } else { "operation" });
        assert_eq!(text(&world.finish(served).unwrap(), "app.operation.name"), "checkout");
    }
}

/// Rule 2: of two exchanges of one trace, our member names the one that a call belongs to.
#[test]
fn two_exchanges_of_one_trace_are_told_apart_by_our_member() {
    let mut world = World::new();
    let context = ("traceparent", SAMPLED);
    let (first, to_first) = world.inbound(&[context, ("x-operation-name", "first"), ("baggage", "n=1")]);
    let (second, to_second) = world.inbound(&[context, ("x-operation-name", "second")]);
    let sdk = format!("00-{TRACE}-{SDK}-01");
    for (state, parent, operation) in [
        (value(&to_first, "tracestate"), sdk.as_str(), "first"),
        (value(&to_second, "tracestate"), &sdk, "second"),
        // Without it: by the span that was copied, else the newest of the trace.
        ("", value(&to_first, "traceparent"), "first"),
        ("", &sdk, "second"),
        // One that is over: no other exchange of the trace stands in for it.
        ("tl=ffffffffffffffff", &sdk, "-"),
        ("tl=rubbish", &sdk, "second"),
    ] {
        let (called, hop) = world.outbound(INSIDE, &[("traceparent", parent), ("tracestate", state)]);
        assert_eq!(value(&hop, "x-operation-name"), operation, "{state:?} {parent}");
        assert_eq!(value(&hop, "tracestate"), "-");
        world.finish(called);
    }
    world.finish(second);
    let (called, hop) = world.outbound(INSIDE, &[("traceparent", &sdk)]);
    assert_eq!(value(&hop, "x-operation-name"), "first", "the other one is over");
    world.finish(called);
    world.finish(first);
    assert_eq!(world.tracer.in_flight(), 0);
}

/// An application that knows `X-Trace-Id` only: its call belongs to the exchange, whose decision is followed.
#[test]
fn a_trace_id_by_itself_names_the_exchange_that_a_call_belongs_to() {
    for (context, root, sampled) in [(SAMPLED, Root::AlwaysOff, true), (UNSAMPLED, Root::AlwaysOn, false)] {
        let mut world = World::with(|config| config.sampler = Sampler::ParentBased(root));
        let (served, _) = world.inbound(&[("traceparent", context), ("x-operation-name", "checkout")]);
        let (called, hop) = world.outbound(INSIDE, &[("x-trace-id", TRACE)]);
        assert!(value(&hop, "traceparent").starts_with(&SAMPLED[..36]));
        assert_eq!(value(&hop, "x-operation-name"), "checkout");
        let parent = world.finish(called).as_ref().map(parent_of);
        assert_eq!(parent, sampled.then(|| span_id(&served)), "{context}");
        world.finish(served);
    }
}

#[test]
fn our_member_of_another_sidecar_does_not_come_in() {
    let mut world = World::new();
    let (served, application) =
        world.inbound(&[("traceparent", SAMPLED), ("tracestate", "a=1,tl=ffffffffffffffff,b=2")]);
    assert_eq!(value(&application, "tracestate"), "tl=0000000000000001,a=1,b=2");
    assert_eq!(world.finish(served).unwrap().trace_state, "a=1,b=2");
}

/// Rules 2 and 6: our member stays in the pod, whatever else is wrong with the headers beside it.
#[test]
fn our_member_never_leaves_the_pod() {
    let sdk = &format!("00-{TRACE}-{SDK}-01");
    let seventeen = [("tracestate", "tl=0000000000000001,a=1"); 17];
    let mut over = vec![("traceparent", sdk.as_str())];
    over.extend(seventeen);
    for host in [INSIDE, OUTSIDE] {
        for egress in [true, false] {
            for fields in [
                &[("traceparent", sdk.as_str()), ("tracestate", "tl=0000000000000001,a=1")][..],
                &[("traceparent", sdk), ("tracestate", "tl=0000000000000001"), ("tracestate", "a=1")],
                &[("traceparent", sdk), ("tracestate", "tl=0000000000000001,broken")],
                &[("traceparent", "rubbish"), ("tracestate", "tl=0000000000000001,a=1")],
                &[("tracestate", "a=1, tl=0000000000000001")],
                &over,
            ] {
                let mut world = World::with(|config| config.egress_traceparent = egress);
                let (called, hop) = world.outbound(host, fields);
                let ours = hop.iter().find(|(name, value)| {
                    name == "tracestate" && value.windows(3).any(|part| part == b"tl=")
                });
                assert_eq!(ours, None, "{host} {egress} {fields:?}");
                world.finish(called);
            }
        }
    }
}

/// Rule 6: a setting withholds our context from destinations outside; what the application sent is its own.
#[test]
fn egress_can_be_told_nothing_of_ours() {
    let mut world = World::with(|config| config.egress_traceparent = false);
    for (fields, expected) in [
        (&[("x-mine", "1")][..], &[("x-mine", "1")][..]),
        (
            &[("traceparent", SAMPLED), ("tracestate", "a=1")],
            &[("traceparent", SAMPLED), ("tracestate", "a=1")],
        ),
        (
            &[("traceparent", SAMPLED), ("tracestate", "tl=0000000000000009,a=1")],
            &[("traceparent", SAMPLED), ("tracestate", "a=1")],
        ),
        (&[("throughline-peer", "service=x")], &[]),
    ] {
        let (called, hop) = world.outbound(OUTSIDE, fields);
        assert_eq!(written(&hop), expected);
        assert!(world.finish(called).is_some());
    }
    let (called, hop) = world.outbound(INSIDE, &[]);
    assert!(value(&hop, "traceparent").starts_with("00-"));
    world.finish(called);
}

#[test]
fn a_users_own_route_is_inside_whatever_its_name() {
    let mut world = World::new();
    let mut headers = Headers::new();
    let head = RequestHead { destination: Destination::Routed, ..call(OUTSIDE) };
    let called = world.begin(&head, &mut headers);
    assert_eq!(value(&headers, "throughline-peer"), OWN);
    world.finish(called);
}

/// Rule 5: where the operation comes from, and what of it goes on.
#[test]
fn the_operation_comes_by_header_else_by_baggage() {
    let longest = "x".repeat(128);
    let too_long = "x".repeat(129);
    let full = &format!("a={}", "x".repeat(8180));
    let sixty_four = &(0..64).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    for (header, baggage, operation, header_out, baggage_out, ignored) in [
        ("checkout", "-", "checkout", "checkout", "app.operation.name=checkout", 0),
        (&longest, "a=1", &longest, &longest, &format!("a=1,app.operation.name={longest}"), 0),
        (
            "-",
            "app.operation.name=checkout,a=1",
            "checkout",
            "checkout",
            "app.operation.name=checkout,a=1",
            0,
        ),
        (
            "-",
            "app.operation.name=check%6Fut;p",
            "checkout",
            "checkout",
            "app.operation.name=check%6Fut;p",
            0,
        ),
        ("-", "a = 1 , b=2", "-", "-", "a = 1 , b=2", 0),
        // The header wins; the baggage is the application's own and stays.
        ("a", "app.operation.name=b", "a", "a", "app.operation.name=b", 0),
        // Unusable ones are left alone and counted; the other of the two counts.
        ("two words", "-", "-", "two words", "-", 1),
        (&too_long, "app.operation.name=b", "b", &too_long, "app.operation.name=b", 1),
        ("", "-", "-", "", "-", 1),
        ("-", "app.operation.name=a%20b", "-", "-", "app.operation.name=a%20b", 1),
        ("a;b", "app.operation.name=%ff", "-", "a;b", "app.operation.name=%ff", 2),
        // Where the baggage has no room, or holds what would be lost by rewriting it, the header does alone.
        ("checkout", full, "checkout", "checkout", full, 0),
        ("checkout", sixty_four, "checkout", "checkout", sixty_four, 0),
        ("checkout", "a=1,bad member,b=2", "checkout", "checkout", "a=1,bad member,b=2", 0),
    ] {
        let mut world = World::new();
        let mut fields = vec![("traceparent", SAMPLED)];
        fields
            .extend([("x-operation-name", header), ("baggage", baggage)].into_iter().filter(|f| f.1 != "-"));
        let (served, application) = world.inbound(&fields);
        assert_eq!(value(&application, "x-operation-name"), header_out, "{header} {baggage}");
        assert_eq!(value(&application, "baggage"), baggage_out, "{header} {baggage}");
        assert_eq!(world.tracer.counters().operations_ignored, ignored, "{header} {baggage}");
        assert_eq!(text(&world.finish(served).unwrap(), "app.operation.name"), operation);
    }
}

#[test]
fn of_several_operations_the_first_counts() {
    let mut world = World::new();
    let both = [("x-operation-name", "first"), ("x-operation-name", "second")];
    let (served, application) = world.inbound(&both);
    assert_eq!(written(&application)[..2], both);
    assert_eq!(value(&application, "baggage"), "app.operation.name=first");
    world.finish(served);
}

#[test]
fn no_member_of_a_users_baggage_is_lost_to_make_room_for_ours() {
    let many_lines: Vec<String> = (0..20).map(|n| format!("k{n}=v")).collect();
    let large = [format!("a={}", "x".repeat(8000)), format!("b={}", "y".repeat(300))];
    for lines in [&many_lines[..], &large] {
        let mut world = World::new();
        let mut fields = vec![("traceparent", SAMPLED), ("x-operation-name", "checkout")];
        fields.extend(lines.iter().map(|line| ("baggage", line.as_str())));
        let (served, application) = world.inbound(&fields);
        let kept: Vec<_> = written(&application).into_iter().filter(|field| field.0 == "baggage").collect();
        assert_eq!(kept.iter().map(|field| field.1).collect::<Vec<_>>(), lines, "bytes as they came");
        world.finish(served);
    }
}

/// Rule 8: an application that forwards nothing is told of, by route and by links, and nothing is guessed.
#[test]
fn calls_without_context_link_to_the_newest_candidates_and_are_counted_by_route() {
    let mut world = World::new();
    let mut served: Vec<_> = (0..6).map(|_| world.inbound(&[("traceparent", SAMPLED)]).0).collect();
    let newest: Vec<_> = served.iter().rev().take(4).map(span_id).collect();
    let (called, hop) = world.outbound(INSIDE, &[("x-request-id", "1")]);
    assert!(value(&hop, "traceparent").starts_with("00-eeee"), "a trace of its own");
    assert_eq!(value(&hop, "x-operation-name"), "-");
    let span = world.finish(called).unwrap();
    assert_eq!(parent_of(&span), "");
    assert_eq!(span.links.iter().map(|link| hex(&link.span_id)).collect::<Vec<_>>(), newest);
    assert!(span.links.iter().all(|link| hex(&link.trace_id) == TRACE && link.flags == 1));
    assert_eq!(world.tracer.counters().calls_without_context, 1);
    // One of the candidates forwards its context on another call: that application can.
    let last = served.pop().unwrap();
    let (called, _) =
        world.outbound(INSIDE, &[("traceparent", &format!("00-{TRACE}-{}-01", span_id(&last)))]);
    assert_eq!(world.finish(called).unwrap().links, []);
    world.finish(last);
    assert_eq!(world.context_dropped(), []);
    for exchange in served.into_iter().rev() {
        world.finish(exchange);
    }
    assert_eq!(world.context_dropped(), [("/items/{id}".to_owned(), 3)]);
    world.tracer.context_dropped(|_, _| assert_eq!(world.tracer.in_flight(), 0, "no lock is held meanwhile"));
    let (called, _) = world.outbound(INSIDE, &[]);
    assert_eq!(world.finish(called).unwrap().links, [], "nobody is in flight");
    assert_eq!(world.tracer.counters().calls_without_context, 1);
}

#[test]
fn an_exchange_beyond_the_table_is_served_and_counted() {
    let mut world = World::with(|config| config.recording = false);
    let most = throughline_core::limits::IN_FLIGHT_MAX;
    let mut served: Vec<_> = (0..most + 2).map(|_| world.inbound(&[("traceparent", SAMPLED)]).0).collect();
    assert_eq!((world.tracer.in_flight(), world.tracer.counters().in_flight_full), (most, 2));
    for exchange in served.drain(..) {
        let _ = world.end(exchange, Outcome::Complete);
    }
    assert_eq!(world.tracer.in_flight(), 0);
}
