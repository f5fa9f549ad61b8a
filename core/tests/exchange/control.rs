//! Rule 11: what an operator switches on at run time, for whom it holds, and that it ends by itself.

use throughline_core::batch::Books;
use throughline_core::classify::Outcome;
use throughline_core::control::Value;
use throughline_core::mode::Mode;
use throughline_core::sampling::{Root, Sampler};

use crate::harness::*;
use crate::keep::unsampled;

const SECOND: u64 = 1_000_000_000;

fn json(text: &str) -> Value {
    Value::json(text.as_bytes()).unwrap_or_else(|want| panic!("{text}: want {want}"))
}

fn enable(world: &World, wish: &str) {
    world.tracer.enable(&json(wish), world.now).unwrap();
}

/// Why a request with these fields is sampled, `-` if it is not.
fn sampled_by(world: &mut World, fields: Fields<'_>) -> String {
    let (exchange, application) = world.inbound(fields);
    let told = value(&application, "traceparent").ends_with('1')
        || value(&application, "traceparent").ends_with('3');
    let span = world.finish(exchange);
    assert_eq!(told, span.is_some(), "the application is told the decision");
    span.map_or("-".to_owned(), |span| text(&span, "throughline.sampled.by"))
}

#[test]
fn a_rule_is_about_operation_route_service_and_header_together() {
    const CHECKOUT: (&str, &str) = ("x-operation-name", "checkout");
    for (wish, fields, expected) in [
        (r#"{"operation":"checkout"}"#, &[CHECKOUT][..], "on_demand"),
        (r#"{"operation":"checkout"}"#, &[("baggage", "app.operation.name=checkout")], "on_demand"),
        (r#"{"source_id":"checkout"}"#, &[CHECKOUT], "on_demand"),
        (r#"{"operation":"checkout"}"#, &[], "-"),
        (r#"{"route":"/items/{id}"}"#, &[], "on_demand"),
        (r#"{"route":"/items/42"}"#, &[], "-"),
        (r#"{"service":"orders"}"#, &[], "on_demand"),
        (r#"{"service":"stock"}"#, &[], "-"),
        (r#"{"header":"X-Debug"}"#, &[("x-debug", "0")], "on_demand"),
        (r#"{"header":"x-tenant: blue"}"#, &[("x-tenant", "blue")], "on_demand"),
        (r#"{"header":"x-tenant=blue"}"#, &[("x-tenant", "red")], "-"),
        (r#"{"operation":"checkout","header":"x-debug"}"#, &[CHECKOUT], "-"),
        (r#"{"operation":"checkout","header":"x-debug"}"#, &[CHECKOUT, ("x-debug", "")], "on_demand"),
        (r#"{"service":"orders","rate":0}"#, &[], "-"),
    ] {
        let mut world = unsampled(|_| {});
        enable(&world, wish);
        assert_eq!(sampled_by(&mut world, fields), expected, "{wish} {fields:?}");
    }
}

#[test]
fn of_several_rules_the_highest_rate_counts() {
    let mut world = unsampled(|_| {});
    enable(&world, r#"{"source_id":"a","service":"orders","rate":1}"#);
    enable(&world, r#"{"source_id":"b","service":"orders","rate":0}"#);
    assert_eq!(sampled_by(&mut world, &[]), "on_demand");
    world.tracer.disable(&json(r#"{"source_id":"a"}"#), world.now).unwrap();
    assert_eq!(sampled_by(&mut world, &[]), "-");
}

#[test]
fn a_rate_agrees_with_every_other_service_by_the_trace_id() {
    let mut world = unsampled(|_| {});
    enable(&world, r#"{"service":"orders","rate":0.5}"#);
    for (trace, expected) in
        [("000000000000000001ffffffffffffff", "on_demand"), ("ffffffffffffffffff00000000000000", "-")]
    {
        let parent = format!("00-{trace}-{CALLER}-00");
        assert_eq!(sampled_by(&mut world, &[("traceparent", &parent)]), expected);
    }
}

#[test]
fn a_rule_ends_by_itself_to_the_second() {
    let mut world = unsampled(|_| {});
    enable(&world, r#"{"service":"orders","duration":"10m"}"#);
    world.now.unix_nanos += 599 * SECOND;
    assert_eq!(
        (sampled_by(&mut world, &[]).as_str(), world.tracer.rules_active(world.now)),
        ("on_demand", 1)
    );
    world.now.unix_nanos += SECOND;
    assert_eq!((sampled_by(&mut world, &[]).as_str(), world.tracer.rules_active(world.now)), ("-", 0));
}

/// A rule overrides a parent's no; then no probability is claimed, and the caller's sidecar keeps its own.
#[test]
fn a_rule_overrides_a_parents_no_and_the_way_to_it_is_kept() {
    const STATE: &str = "ot=th:8;rv:0123456789abcd";
    for (context, peer, told, parent, state) in [
        (UNSAMPLED, true, "on_demand", CALLER, "ot=rv:0123456789abcd"),
        (UNSAMPLED, false, "-", CALLER, "ot=rv:0123456789abcd"),
        (SAMPLED, true, "-", CALLER, STATE),
    ] {
        let mut world = unsampled(|_| {});
        enable(&world, r#"{"service":"orders"}"#);
        let mut sent = vec![("traceparent", context), ("tracestate", STATE)];
        sent.extend(peer.then_some(WEB));
        let (mut exchange, application) = world.inbound(&sent);
        assert!(value(&application, "tracestate").ends_with(state), "{context}");
        let says = world.answer(&mut exchange, 200, &[]);
        assert_eq!(value(&says, "throughline-keep"), told, "{context} {peer}");
        world.end(exchange, Outcome::Complete);
        let span = world.spans().pop().unwrap();
        assert_eq!(parent_of(&span), parent, "{context} {peer}");
        let by = if context == UNSAMPLED { "on_demand" } else { "-" };
        assert_eq!(text(&span, "throughline.sampled.by"), by);
        assert_eq!(text(&span, "throughline.keep.reason"), "-", "it was sampled, not kept");
    }
}

#[test]
fn a_rule_about_a_call_keeps_the_exchange_that_made_it() {
    let mut world = unsampled(|_| {});
    enable(&world, r#"{"route":"/stock"}"#);
    let (served, application) = world.inbound(&[]);
    let ours = span_id(&served);
    let copied = [
        ("traceparent", value(&application, "traceparent")),
        ("tracestate", value(&application, "tracestate")),
    ];
    let (called, hop) = world.outbound(INSIDE, &copied);
    assert!(value(&hop, "traceparent").ends_with("-03"), "the next hop records too");
    assert_eq!(parent_of(&world.finish(called).unwrap()), ours);
    assert_eq!(text(&world.finish(served).unwrap(), "throughline.keep.reason"), "downstream");
}

#[test]
fn the_operation_that_a_call_did_not_forward_is_known_all_the_same() {
    let mut world = unsampled(|_| {});
    let (served, application) = world.inbound(&[("x-operation-name", "checkout")]);
    enable(&world, r#"{"operation":"checkout"}"#);
    let copied = [("traceparent", value(&application, "traceparent"))];
    let (called, hop) = world.outbound(INSIDE, &copied);
    assert!(value(&hop, "traceparent").ends_with("-03"));
    assert!(world.finish(called).is_some());
    world.finish(served);
}

#[test]
fn a_rule_reaches_a_delivery_by_the_operation_that_its_message_carries() {
    for (wish, expected) in [(r#"{"operation":"checkout"}"#, true), (r#"{"operation":"refund"}"#, false)] {
        let mut world = unsampled(|_| {});
        enable(&world, wish);
        let sent = [
            ("ce-id", "1"),
            ("ce-source", "/orders"),
            ("ce-type", "made"),
            ("ce-specversion", "1.0"),
            ("ce-traceparent", UNSAMPLED),
            ("ce-operationname", "checkout"),
        ];
        let (exchange, application) = world.inbound(&sent);
        assert_eq!(value(&application, "traceparent").ends_with("-01"), expected);
        let span = world.finish(exchange);
        assert_eq!(span.is_some(), expected, "{wish}");
        if let Some(span) = span {
            assert_eq!(
                (parent_of(&span).as_str(), span.links.len()),
                ("", 1),
                "nobody knows of the producer"
            );
            assert_eq!(text(&span, "app.operation.name"), "checkout");
        }
    }
}

#[test]
fn rules_hold_in_hybrid_mode_alone() {
    for (mode, expected) in [(Mode::Off, 0), (Mode::SystemOnly, 0), (Mode::Hybrid, 1)] {
        let mut world = unsampled(|config| config.mode = mode);
        enable(&world, r#"{"service":"orders"}"#);
        let (exchange, _) = world.inbound(&[]);
        world.finish(exchange);
        assert_eq!(world.batch.books().created, expected, "{mode:?}");
    }
}

#[test]
fn the_base_rate_is_changed_for_roots_and_parents_are_followed_all_the_same() {
    for (sampler, by_parent) in
        [(Sampler::ParentBased(Root::AlwaysOff), "-"), (Sampler::Always(Root::AlwaysOff), "ratio")]
    {
        let mut world = World::with(|config| config.sampler = sampler);
        world.tracer.change(&json(r#"{"base_rate":1}"#)).unwrap();
        assert_eq!(sampled_by(&mut world, &[]), "ratio");
        assert_eq!(world.tracer.base_rate().probability(), 1.0);
        let (exchange, application) = world.inbound(&[("traceparent", UNSAMPLED)]);
        assert_eq!(value(&application, "traceparent").ends_with("-01"), by_parent == "ratio", "{sampler:?}");
        world.finish(exchange);
        world.tracer.change(&json(r#"{"base_rate":null}"#)).unwrap();
        assert_eq!(sampled_by(&mut world, &[]), "-");
    }
}

#[test]
fn a_status_is_a_document_that_another_host_applies() {
    let mut one = unsampled(|_| {});
    enable(&one, r#"{"operation":"checkout","duration":"10m","rate":1}"#);
    one.tracer.change(&json(r#"{"base_rate":0.5}"#)).unwrap();
    let (exchange, _) = one.inbound(&[("x-operation-name", "checkout")]);
    one.finish(exchange);
    let books = one.batch.books();
    let status = one.tracer.status(one.now, books);
    for part in [
        r#"{"mode":"hybrid","base_rate":0.5,"rules":[{"source_id":"operation=checkout","operation":"checkout","rate":1,"expires":1763600600}],"status":{"service":"orders","unix_seconds":1763600000,"rate":0.5,"exchanges_recorded":1,"#,
        r#""spans":{"created":1,"exported":1,"held":0}"#,
        r#""in_flight":0"#,
    ] {
        assert!(status.contains(part), "{part} in {status}");
    }
    let mut other = unsampled(|_| {});
    assert_eq!(other.tracer.control(&json(&status), other.now), Ok(true));
    assert_eq!(other.tracer.control(&json(&status), other.now), Ok(false), "polled again, nothing changes");
    assert_eq!(
        sampled_by(&mut other, &[("x-operation-name", "checkout"), ("traceparent", UNSAMPLED)]),
        "on_demand"
    );
    other.now.unix_nanos += 600 * SECOND;
    assert_eq!(
        sampled_by(&mut other, &[("x-operation-name", "checkout"), ("traceparent", UNSAMPLED)]),
        "-",
        "it ends although nobody polls any more"
    );
    let empty = other.tracer.status(other.now, Books::default());
    assert!(empty.contains(r#""rules":[]"#), "{empty}");
}
