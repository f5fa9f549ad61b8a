//! Pulls over REST.

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use throughline_core::classify::Direction;
use throughline_core::exchange::{MessageNames, Wanted};

use crate::harness::*;
use crate::json::changes;
use crate::stage::*;

const PULL: &str = "/v1/projects/p/subscriptions/shipping:pull";

/// A pull and its answer: what the application gets, and the spans.
fn pull(stage: &mut Stage, fields: Fields<'_>, answer: &str) -> (Option<String>, Vec<Span>) {
    let (mut exchange, _) = stage.begin(&post(Direction::Outbound, PULL), &[&[JSON], fields].concat());
    assert_eq!(exchange.wanted(), Wanted::Response);
    stage.world.answer(&mut exchange, 200, &[JSON]);
    let World { tracer, now, .. } = &stage.world;
    let edited = tracer.response_body(&mut exchange, answer.as_bytes(), *now, &mut stage.far);
    (edited.map(|body| String::from_utf8(body).unwrap()), stage.end(exchange))
}

fn received(messages: &[String]) -> String {
    let all: Vec<String> =
        messages.iter().map(|message| format!(r#"{{"ackId":"a","message":{message}}}"#)).collect();
    format!(r#"{{"receivedMessages":[{}]}}"#, all.join(","))
}

#[test]
fn a_pulled_message_is_a_child_of_its_producer_and_says_so() {
    let event = format!(r#","ce-traceparent":"{HOP}","googclient_traceparent":"{HOP}""#);
    let with = binary(&event).replace("{\"data\"", "{\"messageId\":\"m1\",\"data\"");
    let answer = received(&[with, with_attributes("")]);
    let mut stage = Stage::new();
    let (edited, spans) = pull(&mut stage, &[("traceparent", SAMPLED)], &answer);
    let [first, second, call] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(place(call), ("shipping pull", SpanKind::Client, TRACE.to_owned(), CALLER.to_owned()));
    let to_call = format!("{TRACE}-{}", hex(&call.span_id));
    let expected = ("shipping receive", SpanKind::Consumer, PRODUCER_TRACE.to_owned(), PRODUCER.to_owned());
    assert_eq!(place(first), expected);
    let root = ("shipping receive", SpanKind::Consumer, "a1".repeat(16), String::new());
    assert_eq!(place(second), root, "a message without context is a root of its own");
    for span in [first, second] {
        assert_eq!(links(span), [to_call.as_str()]);
        check_attributes(
            span,
            &[("messaging.operation.type", "receive"), ("messaging.system", "gcp_pubsub")],
        );
    }
    check_attributes(first, EVENT_ATTRIBUTES);
    check_attributes(first, &[("messaging.message.id", "m1")]);
    let (own, other) = (context(first, "03"), context(second, "03"));
    assert_eq!(links(call), [ids(&own), ids(&other)]);
    check_attributes(call, &[("messaging.operation.name", "pull"), ("messaging.batch.message_count", "2")]);
    let at = |index, name| format!("receivedMessages.{index}.message.attributes.{name}");
    let expected = [
        [at(0, "ce-origintraceparent"), "-".to_owned(), HOP.to_owned()],
        [at(0, "ce-traceparent"), HOP.to_owned(), own.clone()],
        [at(0, "googclient_traceparent"), HOP.to_owned(), own],
        [at(1, "googclient_traceparent"), "-".to_owned(), other],
    ];
    assert_eq!(changes(&answer, &edited.unwrap()), expected);
}

#[test]
fn a_pull_of_one_or_none_is_still_a_pull() {
    for (answer, count, spans_expected) in
        [(received(&[with_attributes("")]), "1", 2), (received(&[]), "-", 1), ("{}".to_owned(), "-", 1)]
    {
        let mut stage = Stage::with(|config| config.message_names = MessageNames::Semconv);
        let (edited, spans) = pull(&mut stage, &[], &answer);
        assert_eq!(spans.len(), spans_expected, "{answer}");
        let call = spans.last().unwrap();
        assert_eq!((call.name.as_str(), call.kind()), ("pull shipping", SpanKind::Client));
        assert_eq!(text(call, "messaging.batch.message_count"), count);
        assert_eq!(edited.is_some(), spans_expected == 2);
    }
}

#[test]
fn a_pull_links_to_a_bounded_number_of_messages_and_gives_each_its_span() {
    let answer = received(&vec![with_attributes(&format!(r#""googclient_traceparent":"{HOP}""#)); 200]);
    let mut stage = Stage::new();
    let (_, spans) = pull(&mut stage, &[], &answer);
    assert_eq!(spans.len(), 201);
    assert_eq!(spans[200].links.len(), 128);
}

#[test]
fn an_answer_that_cannot_be_read_goes_on_as_it_is() {
    for (answer, reason) in [("{\"receivedMessages\":[{", "not_json"), ("[]", "shape"), ("", "not_json")] {
        let mut stage = Stage::new();
        let (edited, spans) = pull(&mut stage, &[], answer);
        assert_eq!((edited, spans.len(), spans[0].name.as_str()), (None, 1, "shipping pull"));
        assert_eq!(stage.untouched(), [(reason, 1)], "{answer}");
    }
}
