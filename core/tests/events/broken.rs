//! Bodies that are broken, and those that only look like a message: they go on as they are, and the exchange
//! leaves the span it would have left anyway.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use throughline_core::classify::Direction;
use throughline_core::exchange::looks_like_push;

use crate::harness::*;
use crate::stage::*;

fn deep(levels: usize) -> String {
    format!(r#"{{"messages":[{{"x":{}1{}}}]}}"#, "[".repeat(levels), "]".repeat(levels))
}

#[test]
fn a_publish_that_cannot_be_read_goes_on_and_is_counted_by_reason() {
    let whole = format!(r#"{{"messages":[{}]}}"#, binary(""));
    let cut = whole[..whole.len() - 9].to_owned();
    for (body, reason) in [
        (b"not json".to_vec(), "shape"),
        (b"{not json}".to_vec(), "not_json"),
        (cut.into_bytes(), "not_json"),
        (deep(200).into_bytes(), "too_deep"),
        (deep(100_000).into_bytes(), "too_deep"),
        (b"{\"messages\":[{\"data\":\"\xff\"}]}".to_vec(), "not_utf8"),
        (br#"{"messages":[7]}"#.to_vec(), "shape"),
    ] {
        let mut stage = Stage::new();
        let sent =
            stage.request(&post(Direction::Outbound, PUBLISH), &[JSON, ("traceparent", SAMPLED)], &body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        assert!(!sent.edited, "{shown}");
        assert_eq!(stage.untouched(), [(reason, 1)], "{shown}");
        let expected = ("POST", SpanKind::Client, TRACE.to_owned(), CALLER.to_owned());
        assert_eq!((sent.spans.len(), place(sent.own())), (1, expected), "{shown}");
        assert_eq!(value(&sent.headers, "traceparent"), context(sent.own(), "01"));
    }
}

#[test]
fn an_event_that_cannot_be_read_leaves_its_messages_data_alone() {
    for (data, reason) in [("!!!!", "not_base64"), ("e25vfQ==", "not_json"), ("W10=", "shape")] {
        let message =
            format!(r#"{{"attributes":{{"content-type":"application/cloudevents+json"}},"data":"{data}"}}"#);
        let mut stage = Stage::new();
        let sent = stage.publish(&[], &message);
        assert_eq!(stage.untouched(), [(reason, 1)], "{data}");
        assert_eq!((sent.spans.len(), sent.own().kind()), (1, SpanKind::Producer));
        assert!(sent.text().contains(&format!(r#""data":"{data}""#)), "{}", sent.text());
        assert!(sent.text().contains("googclient_traceparent"), "the hop is told all the same");
        let sent = stage.push(&[], &message);
        assert_eq!(stage.untouched(), [(reason, 2)], "{data}");
        assert_eq!((sent.spans.len(), sent.own().kind()), (1, SpanKind::Consumer));
    }
}

#[test]
fn events_that_cannot_be_read_leave_an_ordinary_span() {
    let structured = ("content-type", "application/cloudevents+json");
    let batch = ("content-type", "application/cloudevents-batch+json");
    for (media, body, reason) in [
        (structured, "{\"id\":", "not_json"),
        (structured, "[]", "shape"),
        (batch, "{}", "shape"),
        (batch, "[{},7]", "shape"),
    ] {
        for (direction, kind) in
            [(Direction::Inbound, SpanKind::Server), (Direction::Outbound, SpanKind::Client)]
        {
            let mut stage = Stage::new();
            let sent = stage.request(&post(direction, "/events"), &[media], body.as_bytes());
            assert_eq!((sent.edited, sent.spans.len(), sent.own().kind()), (false, 1, kind), "{body}");
            assert_eq!(stage.untouched(), [(reason, 1)], "{body}");
        }
    }
}

#[test]
fn a_beginning_is_waited_for_no_longer_than_it_takes_to_tell() {
    for (beginning, expected) in [
        ("", None),
        (" \n", None),
        ("{", None),
        ("{ ", None),
        (r#"{"mess"#, None),
        (r#"{"message""#, Some(true)),
        (r#"{"messages"#, Some(false)),
        (r#"{"m1"#, Some(false)),
        ("[", Some(false)),
        ("x=1", Some(false)),
    ] {
        assert_eq!(looks_like_push(beginning.as_bytes()), expected, "{beginning}");
    }
}

#[test]
fn an_ordinary_request_stays_one_whatever_it_begins_with() {
    let deep_push = format!(r#"{{"message":{}"#, "[".repeat(100_000));
    let cut_push = &pushed(&binary(""))[..60];
    for (body, looked_at) in [
        (r#"{"order":{"message":1}}"#, false),
        (r#"["message"]"#, false),
        ("", false),
        (r#"{"message":"hello"}"#, true),
        (r#"{"message":"hello","subscription":"yearly"}"#, true),
        (r#"{"message":{"text":"hello"},"subscription":"yearly"}"#, true),
        (r#"{"message":{"text":"hello"},"subscription":{"plan":"yearly"}}"#, true),
        (r#"{"message":{"data":"aGk="}}"#, true),
        (r#"{"subscription":"projects/p/subscriptions/s"}"#, true),
        (r#"{"deliveryAttempt":1}"#, true),
        (r#"{"a":1,"specversion":"1.0","id":"only half an event"}"#, true),
        (cut_push, true),
        (&deep_push, true),
    ] {
        let shown = &body[..body.len().min(60)];
        assert_eq!(looks_like_push(body.as_bytes()) == Some(true), looked_at, "{shown}");
        let mut stage = Stage::new();
        let sent = stage.inbound(&[("traceparent", SAMPLED)], body);
        assert!(!sent.edited, "{shown}");
        assert_eq!((sent.spans.len(), sent.own().kind()), (1, SpanKind::Server), "{shown}");
        assert_eq!((parent_of(sent.own()).as_str(), sent.own().links.len()), (CALLER, 0));
        assert_eq!(value(&sent.headers, "traceparent"), context(sent.own(), "01"));
        for key in ["messaging.system", "messaging.operation.name", "cloudevents.event_id"] {
            assert_eq!(text(sent.own(), key), "-", "{key}: {shown}");
        }
        assert_eq!(stage.untouched(), [], "{shown}: nobody's event");
    }
}

#[test]
fn every_cut_of_a_push_leaves_one_span_and_balanced_books() {
    let whole = pushed(&binary(&format!(r#","ce-traceparent":"{HOP}""#)));
    let mut stage = Stage::new();
    for end in 0..whole.len() {
        let sent = stage.inbound(&[], &whole[..end]);
        assert_eq!((sent.edited, sent.spans.len(), sent.own().kind()), (false, 1, SpanKind::Server), "{end}");
    }
}

#[test]
fn every_single_byte_spoiled_leaves_one_span_and_what_goes_on_is_as_long_as_it_should_be() {
    let whole = pushed(&binary(&format!(r#","ce-traceparent":"{HOP}""#)));
    let mut stage = Stage::new();
    for at in 0..whole.len() {
        for spoiled in [b'"', b'{', b'\\', b'0', 0xff, 0] {
            let mut body = whole.clone().into_bytes();
            body[at] = spoiled;
            let head = post(Direction::Inbound, "/hook");
            let sent = stage.request(&head, &[JSON], &body);
            assert!(sent.spans.len() <= 1, "{at}");
            assert!(sent.edited || sent.body == body);
        }
    }
}
