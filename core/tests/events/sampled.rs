//! Decisions: whose word counts when a message and its head differ, and what of the head a span still says.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use throughline_core::exchange::RootUnsampled;
use throughline_core::sampling::{Root, Sampler};

use crate::harness::*;
use crate::json::leaves;
use crate::stage::*;

fn with_hop(flags: &str) -> String {
    with_attributes(&format!(r#""googclient_traceparent":"00-{PRODUCER_TRACE}-{PRODUCER}-{flags}""#))
}

#[test]
fn an_unsampled_producer_leaves_no_span_and_its_flags_go_on() {
    for flags in ["00", "02"] {
        let mut stage = Stage::new();
        let sent = stage.push(&[], &with_hop(flags));
        assert_eq!(sent.spans.len(), 0, "though the head alone would have been sampled");
        let told = value(&sent.headers, "traceparent");
        assert!(
            told.starts_with(&format!("00-{PRODUCER_TRACE}-")) && told.ends_with(&format!("-{flags}")),
            "{told}"
        );
        assert_eq!(leaves(sent.text())["message.attributes.googclient_traceparent"], told);
        // Its buffers are used again: nothing of it may be on the next span.
        let sent = stage.inbound(&[], r#"{"an":"order"}"#);
        assert_eq!(
            (sent.own().kind(), text(sent.own(), "messaging.system").as_str()),
            (SpanKind::Server, "-")
        );
        check_attributes(sent.own(), &[("url.path", "/hook"), ("http.request.method", "POST")]);
        let sent = stage.publish(&[], &with_hop(flags));
        assert_eq!(sent.spans.len(), 0);
    }
}

#[test]
fn a_sampled_producer_has_its_span_with_all_that_the_head_said() {
    for (sampler, fields) in [
        (Sampler::ParentBased(Root::AlwaysOff), &[][..]),
        (Sampler::ParentBased(Root::AlwaysOn), &[("traceparent", UNSAMPLED)]),
    ] {
        for silent in [RootUnsampled::Flag, RootUnsampled::Silent] {
            let mut stage = Stage::with(|config| {
                config.sampler = sampler;
                config.root_unsampled = silent;
            });
            let fields = [fields, &[("user-agent", "CloudPubSub-Google")]].concat();
            let sent = stage.push(&fields, &with_hop("03"));
            let span = sent.own();
            assert_eq!((sent.spans.len(), parent_of(span).as_str()), (1, PRODUCER));
            check_attributes(
                span,
                &[
                    ("url.path", "/hook"),
                    ("http.request.method", "POST"),
                    ("user_agent.original", "CloudPubSub-Google"),
                    ("http.response.status_code", "200"),
                    ("throughline.sampled.by", "-"),
                ],
            );
            assert_eq!(value(&sent.headers, "traceparent"), context(span, "03"), "{silent:?}");
            let sent = stage.inbound(&fields, r#"{"an":"order"}"#);
            assert_eq!(sent.spans.len(), 0, "nor does it keep others from being left out");
        }
    }
}

#[test]
fn an_unsampled_call_publishes_unsampled_messages() {
    let mut stage = Stage::with(|config| config.sampler = Sampler::ParentBased(Root::AlwaysOff));
    let both = [with_attributes(""), binary("")].join(",");
    for (messages, count) in [(with_attributes(""), 1), (both, 2)] {
        let sent = stage.publish(&[], &messages);
        assert_eq!(sent.spans.len(), 0);
        for index in 0..count {
            let said = &leaves(sent.text())[&format!("messages.{index}.attributes.googclient_traceparent")];
            assert!(said.ends_with("-02"), "{said}");
        }
    }
}

#[test]
fn without_an_exporter_messages_are_rewritten_and_no_span_is_made() {
    let mut stage = Stage::with(|config| config.recording = false);
    let sent = stage.push(&[], &with_hop("03"));
    assert_eq!((sent.spans.len(), sent.edited), (0, true));
    let mut stage = Stage::with(|config| config.enabled = false);
    let sent = stage.push(&[], &with_hop("03"));
    assert_eq!((sent.spans.len(), sent.edited), (0, false));
    assert_eq!(value(&sent.headers, "traceparent"), "-");
}

#[test]
fn a_probability_that_was_overridden_is_not_claimed() {
    let mut stage = Stage::with(|config| config.sampler = Sampler::Always(Root::AlwaysOn));
    let unsampled = format!("00-{PRODUCER_TRACE}-{PRODUCER}-00");
    let event = format!(r#","ce-traceparent":"{unsampled}","ce-tracestate":"ot=th:8;rv:1,v=1""#);
    for sent in [stage.push(&[], &binary(&event)), stage.publish(&[], &binary(&event))] {
        assert_eq!((sent.spans.len(), sent.own().trace_state.as_str()), (1, "ot=rv:1,v=1"));
        assert_eq!(value(&sent.headers, "traceparent"), context(sent.own(), "01"));
    }
}
