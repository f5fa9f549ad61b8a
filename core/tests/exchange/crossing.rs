//! Two tracers of one application, as in a host with one for each worker: the inbound request is served on one,
//! the application's calls on the other. And a host whose own tracer writes over our context.

use throughline_core::classify::Outcome;

use crate::harness::*;

const OF_APPLICATION: &str = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-5dc0ffee5dc0ffee-00";

/// A call on a worker that was told `announcement`; what the next hop gets and the span.
fn told(
    announcement: Option<&[u8]>,
    host: &str,
    fields: Fields<'_>,
) -> (Headers, Option<opentelemetry_proto::tonic::trace::v1::Span>) {
    let mut other = World::new();
    let asked = other.tracer.asks(&headers(fields));
    let lent = asked.zip(announcement).and_then(|(asked, told)| other.tracer.lend(asked, told));
    let (call, sent) = other.outbound(host, fields);
    if let Some(lent) = lent {
        other.tracer.give_back(lent);
    }
    assert_eq!(other.tracer.in_flight(), 0, "what was lent is given back");
    (sent, other.finish(call))
}

#[test]
fn a_call_on_another_worker_gets_back_what_the_application_did_not_forward() {
    let mut world = World::new();
    let (inbound, _) = world.inbound(&[
        ("traceparent", SAMPLED),
        ("tracestate", "rojo=1"),
        ("baggage", "plan=gold"),
        ("x-operation-name", "checkout"),
    ]);
    let (named, announcement) = inbound.announcement().unwrap();
    assert_eq!(named.to_string(), "0000000000000001");
    let forwarded = [("traceparent", "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-0000000000000001-01")];

    let (sent, _) = told(Some(&announcement), INSIDE, &forwarded);
    assert_eq!(value(&sent, "x-operation-name"), "checkout");
    assert_eq!(value(&sent, "baggage"), "plan=gold,app.operation.name=checkout");
    assert_eq!(value(&sent, "tracestate"), "rojo=1");
    let (sent, _) = told(None, INSIDE, &forwarded);
    assert_eq!(value(&sent, "x-operation-name"), "-", "nobody told that worker");
    let (sent, _) = told(Some(&announcement), OUTSIDE, &forwarded);
    assert_eq!(value(&sent, "x-operation-name"), "-", "outside gets what the application sent");
}

#[test]
fn an_sdk_that_does_not_sample_hangs_its_call_under_the_other_workers_span() {
    let mut world = World::new();
    let (inbound, _) = world.inbound(&[("traceparent", SAMPLED)]);
    let (_, announcement) = inbound.announcement().unwrap();
    let own = span_id(&inbound);
    let forwarded = [("traceparent", OF_APPLICATION), ("tracestate", "tl=0000000000000001")];
    let (sent, span) = told(Some(&announcement), INSIDE, &forwarded);
    assert!(value(&sent, "traceparent").ends_with("-01"));
    assert_eq!(parent_of(&span.unwrap()), own);
    assert!(told(None, INSIDE, &forwarded).1.is_none());
    // Another exchange of the same trace: nothing of it may be taken for this one's.
    let of_another = [("traceparent", OF_APPLICATION), ("tracestate", "tl=00000000000000aa")];
    assert!(told(Some(&announcement), INSIDE, &of_another).1.is_none());
}

#[test]
fn an_announcement_counts_for_its_own_trace_and_where_the_exchange_is_unknown() {
    let mut world = World::new();
    let (inbound, application) = world.inbound(&[("traceparent", SAMPLED)]);
    let (_, announcement) = inbound.announcement().unwrap();
    assert!(world.tracer.asks(&application).is_none(), "this worker knows it");
    let other = "00-ffffffffffffffffffffffffffffffff-5dc0ffee5dc0ffee-00";
    let asked = World::new().tracer.asks(&headers(&[("traceparent", other)])).unwrap();
    assert!(world.tracer.lend(asked, &announcement).is_none(), "another trace");
    assert!(world.tracer.asks(&headers(&[("x", "y")])).is_none(), "no context, nothing to ask for");
    for cut in 0..announcement.len() {
        assert!(world.tracer.lend(asked, &announcement[..cut]).is_none());
    }
    world.end(inbound, Outcome::Complete);
}

#[test]
fn long_lists_stay_behind() {
    let mut world = World::new();
    let long = format!("a={}", "x".repeat(3000));
    let (inbound, _) =
        world.inbound(&[("traceparent", SAMPLED), ("baggage", &long), ("tracestate", "rojo=1")]);
    let (_, announcement) = inbound.announcement().unwrap();
    assert!(announcement.len() < 2100);
    let copied = [("traceparent", "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-0000000000000001-01")];
    let (sent, _) = told(Some(&announcement), INSIDE, &copied);
    assert_eq!((value(&sent, "baggage"), value(&sent, "tracestate")), ("-", "rojo=1"));
}

#[test]
fn ids_that_somebody_wrote_over_ours_are_taken() {
    let wire = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-e0e0e0e0e0e0e0e0-01";
    let elsewhere = "00-eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-e0e0e0e0e0e0e0e0-01";
    for (wire, adopted, trace, parent) in [
        (wire, true, TRACE, CALLER),
        (elsewhere, true, "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee", ""),
        ("", false, TRACE, CALLER),
        ("garbage", false, TRACE, CALLER),
    ] {
        let mut world = World::new();
        let (mut inbound, application) = world.inbound(&[("traceparent", SAMPLED)]);
        assert!(!inbound.adopt(value(&application, "traceparent").as_bytes()), "our own is no conflict");
        assert_eq!(inbound.adopt(wire.as_bytes()), adopted, "{wire}");
        let own = span_id(&inbound);
        let span = world.finish(inbound).unwrap();
        assert_eq!(own == "e0e0e0e0e0e0e0e0", adopted, "{wire}");
        assert_eq!(
            (hex(&span.span_id), hex(&span.trace_id), parent_of(&span)),
            (own, trace.into(), parent.into())
        );
    }
}

#[test]
fn a_call_that_is_kept_on_another_worker_keeps_its_inbound_exchange() {
    for told in [true, false] {
        let off = |config: &mut throughline_core::exchange::Config| {
            config.sampler =
                throughline_core::sampling::Sampler::ParentBased(throughline_core::sampling::Root::AlwaysOff);
        };
        let (mut world, mut other) = (World::with(off), World::with(off));
        let (inbound, application) = world.inbound(&[]);
        let (_, announcement) = inbound.announcement().unwrap();
        let own = span_id(&inbound);
        let asked = other.tracer.asks(&application).unwrap();
        let lent = other.tracer.lend(asked, &announcement).unwrap();
        let mut sent = application.clone();
        let mut call = other.begin(&call(INSIDE), &mut sent);
        assert!(!other.tracer.keeps(&lent));
        other.answer(&mut call, 503, &[]);
        assert!(other.tracer.keeps(&lent));
        assert_eq!(lent.ids().1.to_string(), own);
        other.end(call, Outcome::Complete);
        let kept = other.spans().pop().unwrap();
        assert_eq!(parent_of(&kept), own);
        other.tracer.give_back(lent);
        assert!(inbound.asks_whether_kept());
        if told {
            world.tracer.told_kept(&inbound);
        }
        assert_eq!(world.finish(inbound).is_some(), told);
    }
}

#[test]
fn a_copied_context_that_somebody_wrote_over_ours_is_the_parent_once_that_is_known() {
    for known in [true, false] {
        let mut world = World::new();
        if known {
            world.tracer.told_overwritten();
        }
        let (inbound, _) = world.inbound(&[("traceparent", SAMPLED)]);
        let own = span_id(&inbound);
        let copied = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-e0e0e0e0e0e0e0e0-00";
        let (call, _) = world.outbound(INSIDE, &[("traceparent", copied)]);
        let span = world.finish(call).unwrap();
        assert_eq!(parent_of(&span), if known { "e0e0e0e0e0e0e0e0".to_owned() } else { own });
        world.end(inbound, Outcome::Complete);
    }
}

#[test]
fn an_inbound_exchange_that_was_over_too_soon_is_no_parent() {
    let mut world = World::new();
    let (mut call, _) = world.outbound(INSIDE, &[("traceparent", SAMPLED)]);
    call.forget_parent();
    assert_eq!(parent_of(&world.finish(call).unwrap()), "");
}
