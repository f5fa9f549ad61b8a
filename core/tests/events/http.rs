//! Events over HTTP, both ways.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use throughline_core::classify::Direction;
use throughline_core::exchange::MessageNames;

use crate::harness::*;
use crate::json::{changes, leaves};
use crate::stage::*;

const BINARY: Fields<'_> = &[
    ("ce-specversion", "1.0"),
    ("ce-id", "e1"),
    ("ce-source", "/shop"),
    ("ce-type", "order.placed"),
    ("ce-subject", "o7"),
];
const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json; charset=utf-8");
const BATCH: (&str, &str) = ("content-type", "application/cloudevents-batch+json");

#[test]
fn an_event_that_is_sent_carries_its_producer() {
    let event = format!("{{ {EVENT} }}");
    for (form, fields, body) in [("binary", BINARY, ""), ("structured", &[STRUCTURED], event.as_str())] {
        for (names, name) in [
            (MessageNames::DestinationFirst, "order.placed publish"),
            (MessageNames::Semconv, "publish order.placed"),
        ] {
            let mut stage = Stage::with(|config| config.message_names = names);
            let fields = [fields, &[("traceparent", SAMPLED), ("x-operation-name", "checkout")]].concat();
            let sent = stage.request(&post(Direction::Outbound, "/events"), &fields, body.as_bytes());
            assert_eq!(
                place(sent.own()),
                (name, SpanKind::Producer, TRACE.to_owned(), CALLER.to_owned()),
                "{form}"
            );
            check_attributes(sent.own(), EVENT_ATTRIBUTES);
            check_attributes(
                sent.own(),
                &[("messaging.system", "-"), ("messaging.operation.name", "publish")],
            );
            let own = context(sent.own(), "01");
            assert_eq!(value(&sent.headers, "traceparent"), own);
            if form == "binary" {
                assert_eq!(value(&sent.headers, "ce-traceparent"), own);
                assert_eq!(value(&sent.headers, "ce-operationname"), "checkout");
            } else {
                let added = [["operationname", "-", "checkout"], ["traceparent", "-", own.as_str()]];
                assert_eq!(changes(&event, sent.text()), added);
            }
        }
    }
}

#[test]
fn a_forwarded_event_keeps_its_context() {
    let event = format!(r#"{{{EVENT},"traceparent":"{FOREIGN}"}}"#);
    for (fields, body) in
        [([BINARY, &[("ce-traceparent", FOREIGN)]].concat(), ""), (vec![STRUCTURED], event.as_str())]
    {
        let fields = [&fields[..], &[("traceparent", SAMPLED)]].concat();
        let sent = Stage::new().request(&post(Direction::Outbound, "/events"), &fields, body.as_bytes());
        assert_eq!(hex(&sent.own().trace_id), TRACE);
        assert_eq!(links(sent.own()), [ids(FOREIGN)]);
        assert_eq!(sent.text(), body);
        assert!(!body.is_empty() || value(&sent.headers, "ce-traceparent") == FOREIGN);
    }
}

#[test]
fn an_event_that_arrives_is_a_child_of_its_producer() {
    let event = format!(r#"{{{EVENT},"traceparent":"{HOP}"}}"#);
    for (fields, body) in
        [([BINARY, &[("ce-traceparent", HOP)]].concat(), ""), (vec![STRUCTURED], event.as_str())]
    {
        for (transport, linked) in [(HOP, None), (SAMPLED, Some(ids(SAMPLED)))] {
            let fields = [&fields[..], &[("traceparent", transport), ("tracestate", "vendor=1")]].concat();
            let sent = Stage::new().request(&post(Direction::Inbound, "/events"), &fields, body.as_bytes());
            let span = sent.own();
            let expected =
                ("order.placed process", SpanKind::Consumer, PRODUCER_TRACE.to_owned(), PRODUCER.to_owned());
            assert_eq!(place(span), expected);
            assert_eq!(links(span), linked.clone().into_iter().collect::<Vec<_>>(), "{transport}");
            let own = context(span, "03");
            assert_eq!(value(&sent.headers, "traceparent"), own);
            // The list of the producer's own request is the producer's.
            let list = if linked.is_none() { ",vendor=1" } else { "" };
            assert_eq!(value(&sent.headers, "tracestate"), format!("tl={}{list}", hex(&span.span_id)));
            if body.is_empty() {
                assert_eq!(value(&sent.headers, "ce-traceparent"), own);
                assert_eq!(value(&sent.headers, "ce-origintraceparent"), HOP);
            } else {
                let expected = [["origintraceparent", "-", HOP], ["traceparent", HOP, &own]];
                assert_eq!(changes(&event, sent.text()), expected);
            }
        }
    }
}

#[test]
fn each_event_of_a_batch_is_a_span() {
    let batch = format!(r#"[{{{EVENT}}}, {{{EVENT},"traceparent":"{HOP}"}}]"#);
    let mut stage = Stage::new();
    let fields = &[BATCH, ("traceparent", SAMPLED)];
    let sent = stage.request(&post(Direction::Outbound, "/events"), fields, batch.as_bytes());
    let [first, second, call] = &sent.spans[..] else { panic!("{:?}", sent.spans) };
    assert_eq!((call.kind(), text(call, "messaging.batch.message_count").as_str()), (SpanKind::Client, "2"));
    for span in [first, second] {
        let expected = ("order.placed publish", SpanKind::Producer, TRACE.to_owned(), hex(&call.span_id));
        assert_eq!(place(span), expected);
    }
    assert_eq!(links(second), [ids(HOP)], "forwarded");
    assert_eq!(changes(&batch, sent.text()), [["0.traceparent", "-", &context(first, "01")]]);

    let sent = stage.request(&post(Direction::Inbound, "/events"), fields, batch.as_bytes());
    let [first, second, served] = &sent.spans[..] else { panic!("{:?}", sent.spans) };
    assert_eq!((served.kind(), parent_of(served).as_str()), (SpanKind::Server, CALLER));
    let name = "order.placed process";
    assert_eq!(place(first), (name, SpanKind::Consumer, TRACE.to_owned(), hex(&served.span_id)));
    assert_eq!(place(second), (name, SpanKind::Consumer, PRODUCER_TRACE.to_owned(), PRODUCER.to_owned()));
    assert_eq!(links(second), [format!("{TRACE}-{}", hex(&served.span_id))]);
    let all = leaves(sent.text());
    assert_eq!(
        (all["0.traceparent"].as_str(), all["1.traceparent"].as_str()),
        (&*context(first, "01"), &*context(second, "03"))
    );
    assert_eq!(all["1.origintraceparent"], HOP);
    assert_eq!(value(&sent.headers, "traceparent"), context(served, "01"), "the exchange stays where it was");
}

#[test]
fn an_empty_batch_is_an_ordinary_request() {
    let sent = Stage::new().request(&post(Direction::Inbound, "/events"), &[BATCH], b"[]");
    assert_eq!((sent.spans.len(), sent.own().kind(), sent.edited), (1, SpanKind::Server, false));
    assert_eq!(text(sent.own(), "messaging.operation.name"), "-");
}
