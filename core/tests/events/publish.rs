//! Publishes over REST.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use throughline_core::classify::Direction;
use throughline_core::exchange::{EventContext, MessageNames};

use crate::harness::*;
use crate::json::{changes, decode64, encode64, leaves};
use crate::stage::*;

const AT: &str = "messages.0.attributes.";

/// Attributes that a message got or that changed, as `name=value`; nothing else may differ.
fn attributes_changed(messages: &str, sent: &Sent) -> Vec<String> {
    let before = format!(r#"{{"messages":[{messages}]}}"#);
    let changed = changes(&before, sent.text());
    changed.iter().map(|[path, _, after]| format!("{}={after}", path.strip_prefix(AT).unwrap())).collect()
}

#[test]
fn one_published_message_is_the_producers_span_in_both_conventions() {
    for (names, name, kind) in [
        (MessageNames::DestinationFirst, "orders publish", "publish"),
        (MessageNames::Semconv, "publish orders", "send"),
    ] {
        let mut stage = Stage::with(|config| config.message_names = names);
        let sent = stage.publish(&[("traceparent", SAMPLED)], r#"{"data":"aGk=","orderingKey":"k"}"#);
        assert_eq!(sent.spans.len(), 1);
        assert_eq!(place(sent.own()), (name, SpanKind::Producer, TRACE.to_owned(), CALLER.to_owned()));
        check_attributes(
            sent.own(),
            &[
                ("messaging.system", "gcp_pubsub"),
                ("messaging.operation.name", "publish"),
                ("messaging.operation.type", kind),
                ("messaging.destination.name", "orders"),
                ("messaging.destination.subscription.name", "-"),
                ("messaging.gcp_pubsub.message.ordering_key", "k"),
                ("messaging.batch.message_count", "-"),
                ("http.request.method", "POST"),
                ("http.response.status_code", "200"),
                ("server.address", "pubsub"),
            ],
        );
        assert!(sent.own().links.is_empty());
    }
}

#[test]
fn a_message_says_its_producer_in_the_form_that_it_has() {
    let event = format!("{{ {EVENT} , \"n\": 1.00 }}");
    let structured = format!(
        r#"{{"attributes":{{"content-type":"application/cloudevents+json"}},"data":"{}"}}"#,
        encode64(&event)
    );
    let operation = &[("traceparent", SAMPLED), ("x-operation-name", "checkout")];
    let mut stage = Stage::new();

    let plain = with_attributes(r#""k":"v""#);
    let sent = stage.publish(operation, &plain);
    let own = context(sent.own(), "01");
    let hop = format!("googclient_traceparent={own}");
    assert_eq!(attributes_changed(&plain, &sent), [hop, "operationname=checkout".to_owned()]);
    assert_eq!(value(&sent.headers, "traceparent"), own);
    assert_eq!(text(sent.own(), "app.operation.name"), "checkout");

    let sent = stage.publish(operation, &binary(""));
    let own = context(sent.own(), "01");
    assert_eq!(
        attributes_changed(&binary(""), &sent),
        [
            "ce-operationname=checkout".to_owned(),
            format!("ce-traceparent={own}"),
            format!("googclient_traceparent={own}")
        ]
    );
    check_attributes(sent.own(), EVENT_ATTRIBUTES);

    let sent = stage.publish(operation, &structured);
    let own = context(sent.own(), "01");
    let all = leaves(sent.text());
    assert_eq!(all[&format!("{AT}googclient_traceparent")], own);
    let inside = decode64(&all["messages.0.data"]);
    let added = [["operationname", "-", "checkout"], ["traceparent", "-", own.as_str()]];
    assert_eq!(changes(&event, &inside), added);
    assert!(inside.contains("\"n\": 1.00"), "numbers stay as they are written: {inside}");
    check_attributes(sent.own(), EVENT_ATTRIBUTES);
}

#[test]
fn a_call_without_context_joins_the_trace_of_its_message() {
    let mut stage = Stage::new();
    let message = with_attributes(&format!(r#""googclient_traceparent":"{HOP}""#));
    let sent = stage.publish(&[], &message);
    let expected = ("orders publish", SpanKind::Producer, PRODUCER_TRACE.to_owned(), PRODUCER.to_owned());
    assert_eq!(place(sent.own()), expected);
    let own = context(sent.own(), "03");
    assert_eq!(value(&sent.headers, "traceparent"), own, "the header follows, with the random flag");
    assert_eq!(attributes_changed(&message, &sent), [format!("googclient_traceparent={own}")]);
    assert!(sent.own().links.is_empty());
}

#[test]
fn a_call_that_joins_its_message_takes_the_events_tracestate_along() {
    let mut stage = Stage::new();
    let event = format!(r#","ce-traceparent":"{HOP}","ce-tracestate":"vendor=1,tl=00000000000000aa""#);
    let sent = stage.publish(&[], &binary(&event));
    assert_eq!(value(&sent.headers, "traceparent"), context(sent.own(), "03"));
    assert_eq!(value(&sent.headers, "tracestate"), "vendor=1", "without another pod's member");
    assert_eq!(sent.own().trace_state, "vendor=1");
}

#[test]
fn a_forwarded_event_is_linked_and_never_overwritten() {
    let foreign = format!(r#","ce-traceparent":"{FOREIGN}""#);
    for rule in [EventContext::Rewrite, EventContext::Preserve] {
        let mut stage = Stage::with(|config| config.event_context = rule);
        let sent = stage.publish(&[("traceparent", SAMPLED)], &binary(&foreign));
        let own = context(sent.own(), "01");
        assert_eq!(attributes_changed(&binary(&foreign), &sent), [format!("googclient_traceparent={own}")]);
        assert_eq!((hex(&sent.own().trace_id).as_str(), parent_of(sent.own()).as_str()), (TRACE, CALLER));
        assert_eq!(links(sent.own()), [ids(FOREIGN)], "{rule:?}");
        assert_eq!(value(&sent.headers, "traceparent"), own);
    }
}

#[test]
fn preserve_adds_only_what_is_missing() {
    let event = format!(r#","ce-traceparent":"00-{TRACE}-{SDK}-01""#);
    let hop = format!(r#","googclient_traceparent":"00-{TRACE}-{SDK}-01""#);
    for (more, added) in [
        (String::new(), &["ce-traceparent", "googclient_traceparent"][..]),
        (event.clone(), &["googclient_traceparent"]),
        (hop.clone(), &["ce-traceparent"]),
        (event + &hop, &[]),
    ] {
        let mut stage = Stage::with(|config| config.event_context = EventContext::Preserve);
        let sent = stage.publish(&[("traceparent", SAMPLED)], &binary(&more));
        let own = context(sent.own(), "01");
        let expected: Vec<String> = added.iter().map(|name| format!("{name}={own}")).collect();
        assert_eq!(attributes_changed(&binary(&more), &sent), expected, "{more}");
        assert_eq!(sent.edited, !added.is_empty());
    }
}

#[test]
fn each_of_three_messages_is_a_producer_under_the_call_and_ends_with_it() {
    for (status, code) in [(200, StatusCode::Unset), (503, StatusCode::Error)] {
        let mut stage = Stage::new();
        let head = post(Direction::Outbound, PUBLISH);
        let messages = [with_attributes(""), binary(""), with_attributes(r#""k":"v""#)].join(",");
        let body = format!(r#"{{"messages":[{messages}]}}"#);
        let sent = stage.request_ending(&head, &[JSON, ("traceparent", SAMPLED)], body.as_bytes(), status);
        let [first, second, third, call] = &sent.spans[..] else { panic!("{:?}", sent.spans) };
        assert_eq!((call.kind(), parent_of(call).as_str()), (SpanKind::Client, CALLER));
        assert_eq!(text(call, "messaging.batch.message_count"), "3");
        let all = leaves(sent.text());
        let times = (START_UNIX_NANOS, START_UNIX_NANOS + 7 * MS);
        for (index, span) in [first, second, third].into_iter().enumerate() {
            assert_eq!(
                place(span),
                ("orders publish", SpanKind::Producer, TRACE.to_owned(), hex(&call.span_id))
            );
            assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), times);
            assert_eq!(span.status.as_ref().map_or(StatusCode::Unset, |status| status.code()), code);
            let own = context(span, "01");
            assert_eq!(all[&format!("messages.{index}.attributes.googclient_traceparent")], own);
        }
        check_attributes(second, EVENT_ATTRIBUTES);
        assert_eq!(value(&sent.headers, "traceparent"), context(call, "01"), "the call's own");
    }
}

#[test]
fn a_message_gets_only_as_many_attributes_as_the_service_takes() {
    for (there, event, added) in [(100, "", 0), (99, "", 1), (98, "", 2), (94, "ce", 1), (95, "ce", 0)] {
        let many: String = (0..there).map(|number| format!(r#","k{number}":"v""#)).collect();
        let message = if event.is_empty() { with_attributes(&many[1..]) } else { binary(&many) };
        let mut stage = Stage::new();
        let sent = stage.publish(&[("x-operation-name", "checkout")], &message);
        let changed = attributes_changed(&message, &sent);
        assert_eq!(changed.len(), added, "{there}: {changed:?}");
        let count = leaves(sent.text()).keys().filter(|path| path.starts_with(AT)).count();
        assert_eq!(count, 100, "{there}");
        assert_eq!(sent.spans.len(), 1);
        if added > 0 {
            assert!(
                changed.iter().any(|change| change.starts_with("googclient_traceparent=")),
                "{changed:?}"
            );
        }
    }
}

#[test]
fn settling_is_a_clients_span_and_its_body_is_nobodys_business() {
    for (verb, name) in [("acknowledge", "acknowledge"), ("modifyAckDeadline", "modify_ack_deadline")] {
        let mut stage = Stage::new();
        let path = format!("/v1/projects/p/subscriptions/shipping:{verb}");
        let body = br#"{"ackIds":["a","b"]}"#;
        let sent = stage.request(&post(Direction::Outbound, &path), &[JSON, ("traceparent", SAMPLED)], body);
        let expected = format!("shipping {name}");
        assert_eq!(
            place(sent.own()),
            (expected.as_str(), SpanKind::Client, TRACE.to_owned(), CALLER.to_owned())
        );
        check_attributes(
            sent.own(),
            &[
                ("messaging.operation.type", "settle"),
                ("messaging.operation.name", name),
                ("messaging.destination.subscription.name", "shipping"),
                ("messaging.destination.name", "-"),
            ],
        );
        assert!(!sent.edited);
    }
}
