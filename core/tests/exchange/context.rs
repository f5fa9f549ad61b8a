//! Rules 1, 3 and 11: which trace an exchange belongs to, which span is its parent, who decides.

use throughline_core::exchange::RootUnsampled;
use throughline_core::sampling::{Ratio, Root, Sampler};

use crate::harness::*;

/// What a request's `traceparent` becomes: continued, or a trace of our own.
#[test]
fn a_callers_context_is_continued_only_when_it_is_valid() {
    const CONTINUED: &str = "continued";
    const RESTARTED: &str = "restarted";
    for (line, flags, expected) in [
        (SAMPLED, "01", CONTINUED),
        (UNSAMPLED, "00", CONTINUED),
        ("00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-03", "03", CONTINUED),
        ("00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-02", "02", CONTINUED),
        ("00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-ff", "03", CONTINUED),
        ("cc-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-01-more", "01", CONTINUED),
        ("  00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-01\t", "01", CONTINUED),
        ("00-4B1D0F7A2C3E5D6F8091A2B3C4D5E6F7-A1B2C3D4E5F60718-01", "03", RESTARTED),
        ("00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-01-more", "03", RESTARTED),
        ("ff-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-01", "03", RESTARTED),
        ("00-00000000000000000000000000000000-a1b2c3d4e5f60718-01", "03", RESTARTED),
        ("00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-0000000000000000-01", "03", RESTARTED),
        ("00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-", "03", RESTARTED),
        ("", "03", RESTARTED),
    ] {
        let mut world = World::new();
        let (exchange, application) =
            world.inbound(&[("traceparent", line), ("tracestate", "rojo=1"), ("x-other", "1")]);
        let continued = expected == CONTINUED;
        let trace = if continued { TRACE } else { "eeeeeeeeeeeeeeee0000000000000001" };
        assert_eq!(value(&application, "traceparent"), format!("00-{trace}-0000000000000001-{flags}"));
        // A restarted trace drops the `tracestate` that came with the unusable context.
        let state = if continued { "tl=0000000000000001,rojo=1" } else { "tl=0000000000000001" };
        assert_eq!(value(&application, "tracestate"), state, "{line}");
        assert_eq!(world.tracer.counters().invalid_traceparent, u64::from(!continued), "{line}");
        let span = world.finish(exchange);
        assert_eq!(span.is_some(), flags != "00" && flags != "02", "{line}");
        if let Some(span) = span {
            assert_eq!(parent_of(&span), if continued { CALLER } else { "" }, "{line}");
            assert_eq!(span.trace_state, if continued { "rojo=1" } else { "" });
        }
    }
}

#[test]
fn two_traceparents_are_none() {
    let mut world = World::new();
    let (exchange, application) =
        world.inbound(&[("traceparent", SAMPLED), ("traceparent", SAMPLED), ("tracestate", "a=1")]);
    assert!(value(&application, "traceparent").starts_with("00-eeee"));
    assert_eq!(value(&application, "tracestate"), format!("tl={}", span_id(&exchange)));
    assert_eq!(world.tracer.counters().invalid_traceparent, 1);
    assert_eq!(parent_of(&world.finish(exchange).unwrap()), "");
}

#[test]
fn a_tracestate_without_traceparent_is_discarded_and_no_context_is_no_fault() {
    let mut world = World::new();
    let (exchange, application) = world.inbound(&[("tracestate", "rojo=1")]);
    assert_eq!(value(&application, "tracestate"), "tl=0000000000000001");
    assert_eq!(world.tracer.counters(), throughline_core::exchange::Counters::default());
    let span = world.finish(exchange).unwrap();
    assert_eq!(text(&span, "throughline.sampled.by"), "always_on");
}

#[test]
fn a_broken_tracestate_does_not_spoil_a_good_traceparent() {
    let many = (0..33).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    for broken in ["rojo", "=1", "A=1", "a=\u{e9}", "a=1=2", &many] {
        let mut world = World::new();
        let (exchange, application) = world.inbound(&[("traceparent", SAMPLED), ("tracestate", broken)]);
        assert!(value(&application, "traceparent").starts_with(&SAMPLED[..36]), "{broken}");
        assert_eq!(value(&application, "tracestate"), "tl=0000000000000001", "{broken}");
        assert_eq!(world.tracer.counters().invalid_tracestate, 1, "{broken}");
        assert_eq!(parent_of(&world.finish(exchange).unwrap()), CALLER);
    }
}

#[test]
fn several_tracestate_lines_are_one_list_and_a_lists_limits_cut_whole_members() {
    let mut world = World::new();
    let long = format!("long={}", "x".repeat(200));
    let lines: Vec<String> = (0..12).map(|n| format!("k{n}={}", "v".repeat(150))).collect();
    let mut fields = vec![("traceparent", SAMPLED), ("tracestate", "first=1"), ("tracestate", &long)];
    fields.extend(lines.iter().map(|line| ("tracestate", line.as_str())));
    let (exchange, application) = world.inbound(&fields);
    let state = value(&application, "tracestate");
    assert!(state.starts_with("tl=0000000000000001,first=1,long=x"), "{state}");
    assert!(state.len() <= throughline_core::limits::TRACESTATE_BYTES_MAX, "{}", state.len());
    assert!(state.split(',').all(|member| member.split_once('=').is_some_and(|(_, v)| !v.is_empty())));
    assert!(world.finish(exchange).is_some());
}

#[test]
fn a_full_list_makes_room_for_our_member_from_the_right() {
    let bytes: Vec<String> = (10..26).map(|n| format!("k{n}={}", "v".repeat(123))).collect();
    let members: Vec<String> = (10..42).map(|n| format!("k{n}=v")).collect();
    for list in [bytes, members] {
        let mut world = World::new();
        let (exchange, application) =
            world.inbound(&[("traceparent", SAMPLED), ("tracestate", &list.join(","))]);
        let kept = list[..list.len() - 1].join(",");
        assert_eq!(value(&application, "tracestate"), format!("tl=0000000000000001,{kept}"));
        assert_eq!(
            world.finish(exchange).unwrap().trace_state,
            list.join(","),
            "the span has the whole list"
        );
    }
}

#[test]
fn a_list_of_lines_beyond_the_limit_counts_as_broken() {
    let mut world = World::new();
    let mut fields = vec![("traceparent", SAMPLED)];
    fields.extend([("tracestate", "a=1"); 17]);
    let (exchange, application) = world.inbound(&fields);
    assert_eq!(value(&application, "tracestate"), "tl=0000000000000001");
    assert_eq!(world.tracer.counters().invalid_tracestate, 1);
    assert!(world.finish(exchange).is_some());
}

/// Rule 3, inbound: an unsampled mesh peer exported no span; others keep the parent that they named.
#[test]
fn an_inbound_span_never_names_a_parent_that_a_sidecar_did_not_export() {
    let always = Sampler::Always(Root::AlwaysOn);
    let parent = Sampler::ParentBased(Root::AlwaysOn);
    for (sampler, context, peer, expected) in [
        (parent, SAMPLED, true, Some(CALLER)),
        (parent, SAMPLED, false, Some(CALLER)),
        (parent, UNSAMPLED, true, None),
        (always, SAMPLED, true, Some(CALLER)),
        (always, UNSAMPLED, true, Some("")),
        (always, UNSAMPLED, false, Some(CALLER)),
    ] {
        let mut world = World::with(|config| config.sampler = sampler);
        let mut fields = vec![("traceparent", context)];
        fields.extend(peer.then_some(WEB));
        let (exchange, _) = world.inbound(&fields);
        let span = world.finish(exchange);
        assert_eq!(span.as_ref().map(parent_of).as_deref(), expected, "{sampler:?} {context} {peer}");
        if expected == Some("") {
            assert_eq!(text(&span.unwrap(), "throughline.sampled.by"), "always_on");
        }
    }
}

/// Rule 3, outbound: what the client span's parent is, by the flags of the inbound exchange and by what the
/// application sends.
#[test]
fn a_client_span_hangs_under_a_span_that_is_exported() {
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Sends {
        /// Copies our headers.
        Ours,
        /// Copies them with the flag turned off.
        OursOff,
        /// Its SDK's own sampled span.
        SdkSampled,
        /// Its SDK's own unsampled span.
        SdkUnsampled,
    }
    use Sends::{Ours, OursOff, SdkSampled, SdkUnsampled};
    for (caller, sends, expected) in [
        (SAMPLED, Ours, Some("ours")),
        (SAMPLED, OursOff, None),
        (SAMPLED, SdkSampled, Some("sdk")),
        (SAMPLED, SdkUnsampled, Some("ours")),
        (UNSAMPLED, Ours, None),
        (UNSAMPLED, SdkSampled, Some("sdk")),
        (UNSAMPLED, SdkUnsampled, None),
    ] {
        let mut world = World::new();
        let (served, application) = world.inbound(&[("traceparent", caller)]);
        let ours = span_id(&served);
        let parent = match sends {
            Ours => value(&application, "traceparent").to_owned(),
            OursOff => format!("00-{TRACE}-{ours}-00"),
            SdkSampled => format!("00-{TRACE}-{SDK}-01"),
            SdkUnsampled => format!("00-{TRACE}-{SDK}-00"),
        };
        let state = value(&application, "tracestate");
        let (called, hop) = world.outbound(INSIDE, &[("traceparent", &parent), ("tracestate", state)]);
        let next = value(&hop, "traceparent").to_owned();
        assert_eq!(next[..52], format!("00-{TRACE}-{}", span_id(&called)), "the next hop gets our span");
        assert_eq!(value(&hop, "tracestate"), "-", "our member is gone");
        let span = world.finish(called);
        let expected = expected.map(|name| if name == "ours" { ours.as_str() } else { SDK });
        assert_eq!(span.as_ref().map(parent_of).as_deref(), expected, "{caller} {sends:?}");
        assert_eq!(next.ends_with("01"), span.is_some(), "{caller} {sends:?}");
        let _ = world.end(served, throughline_core::classify::Outcome::Complete);
        assert_eq!(world.tracer.in_flight(), 0);
    }
}

#[test]
fn an_unsampled_sdk_span_of_a_trace_that_nobody_knows_is_nobodys_parent() {
    let mut world = World::with(|config| config.sampler = Sampler::Always(Root::AlwaysOn));
    let (called, hop) = world.outbound(INSIDE, &[("traceparent", UNSAMPLED)]);
    assert!(value(&hop, "traceparent").ends_with("-01"));
    assert_eq!(parent_of(&world.finish(called).unwrap()), "");
}

/// Rule 11: the flags of a trace that starts here, and what the application is told.
#[test]
fn a_trace_that_starts_here_is_random_and_says_the_decision() {
    for (root, silent, expected, state) in [
        (Root::AlwaysOn, RootUnsampled::Flag, "03", "tl=0000000000000001"),
        (Root::AlwaysOn, RootUnsampled::Silent, "03", "tl=0000000000000001"),
        (Root::AlwaysOff, RootUnsampled::Flag, "02", "tl=0000000000000001"),
        (Root::AlwaysOff, RootUnsampled::Silent, "-", "-"),
        (Root::Ratio(Ratio::new(0.0).unwrap()), RootUnsampled::Silent, "-", "-"),
    ] {
        for unusable in ["", "rubbish"] {
            let mut world = World::with(|config| {
                config.sampler = Sampler::ParentBased(root);
                config.root_unsampled = silent;
            });
            let mut fields = vec![("x-operation-name", "checkout")];
            if !unusable.is_empty() {
                fields.extend([("traceparent", unusable), ("tracestate", "a=1")]);
            }
            let (exchange, application) = world.inbound(&fields);
            let told = value(&application, "traceparent").rsplit('-').next().unwrap();
            assert_eq!(if told.is_empty() { "-" } else { told }, expected, "{root:?} {silent:?}");
            assert_eq!(value(&application, "tracestate"), state, "{root:?} {silent:?}");
            assert_eq!(value(&application, "x-operation-name"), "checkout");
            assert_eq!(world.finish(exchange).is_some(), expected == "03");
        }
    }
}

#[test]
fn silence_is_for_roots_only_and_an_application_told_nothing_drops_nothing() {
    let mut world = World::with(|config| {
        config.sampler = Sampler::ParentBased(Root::AlwaysOff);
        config.root_unsampled = RootUnsampled::Silent;
    });
    let (exchange, application) = world.inbound(&[("traceparent", UNSAMPLED)]);
    assert!(value(&application, "traceparent").ends_with("-00"));
    world.finish(exchange);

    let (served, application) = world.inbound(&[]);
    assert!(application.is_empty());
    let (called, _) = world.outbound(INSIDE, &[]);
    world.finish(called);
    world.finish(served);
    assert_eq!(world.context_dropped(), [], "it was given no context that it could have dropped");
    assert_eq!(world.tracer.counters().calls_without_context, 0);
}

/// Rule 11: OpenTelemetry's probability is carried on while the decision is followed, and erased when it is
/// overridden.
#[test]
fn an_override_erases_the_probability_and_nothing_else() {
    const STATE: &str = "rojo=1,ot=th:8;rv:0123456789abcd,b=2";
    for (sampler, context, expected) in [
        (Sampler::ParentBased(Root::AlwaysOff), SAMPLED, STATE),
        (Sampler::Always(Root::AlwaysOn), SAMPLED, STATE),
        (Sampler::Always(Root::AlwaysOff), SAMPLED, "rojo=1,ot=rv:0123456789abcd,b=2"),
        (Sampler::Always(Root::AlwaysOn), UNSAMPLED, "rojo=1,ot=rv:0123456789abcd,b=2"),
    ] {
        let mut world = World::with(|config| config.sampler = sampler);
        let (served, application) = world.inbound(&[("traceparent", context), ("tracestate", STATE)]);
        assert_eq!(value(&application, "tracestate"), format!("tl=0000000000000001,{expected}"));
        world.finish(served);
        let (called, hop) = world.outbound(INSIDE, &[("traceparent", context), ("tracestate", STATE)]);
        assert_eq!(value(&hop, "tracestate"), expected, "{sampler:?} {context}");
        world.finish(called);
    }
}
