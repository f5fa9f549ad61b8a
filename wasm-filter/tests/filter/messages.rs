//! Bodies with messages in them: held, edited, or left alone, and counted when they are.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::host::*;
use crate::scene::*;

const HELD: &str = "hold-headers: on\n";

/// A wrapped push as the service sends it, with a context of the producer's.
fn push() -> String {
    let attributes = format!(r#"{{"googclient_traceparent":"{SAMPLED}","kind":"order"}}"#);
    format!(
        r#"{{"subscription":"projects\/p\/subscriptions\/ship","message":{{"data":"aGk=","attributes":{attributes},"messageId":"7","message_id":"7"}}}}"#
    )
}

fn json(body: &str, more: &[(&str, &str)]) -> Fields {
    let length = body.len().to_string();
    let mut head =
        request("POST", "/push", &[("content-type", "application/json"), ("content-length", &length)]);
    head.extend(fields(more));
    head
}

fn untouched(scene: &Scene, reason: &str) -> i64 {
    scene.vm.envoy.metric(&format!("throughline_events_untouched.reason.{reason}"))
}

/// Sends a body in pieces of so many bytes and ends the stream well.
fn send(scene: &mut Scene, head: Fields, body: &[u8], piece: usize) -> Stream {
    let id = scene.vm.open(scene.root);
    scene.vm.head(id, Side::Request, head, false);
    let pieces: Vec<&[u8]> = body.chunks(piece).collect();
    for (i, part) in pieces.iter().enumerate() {
        scene.vm.body(id, Side::Request, part, i + 1 == pieces.len());
    }
    scene.vm.head(id, Side::Response, answer("200", &[]), true);
    let stream = scene.vm.finish(id);
    assert!(stream.request().ended && stream.request().head.is_some());
    stream
}

#[test]
fn a_push_is_held_and_its_message_names_the_consumers_span() {
    for piece in [1, 7, 100, 10_000] {
        let mut scene = inbound(HELD);
        let body = push();
        let stream = send(&mut scene, json(&body, &[]), body.as_bytes(), piece);
        let span = only(scene.spans());
        assert_eq!(span.kind(), SpanKind::Consumer);
        assert_eq!(span.trace(), TRACE);
        span.says(&[
            ("messaging.system", "gcp_pubsub"),
            ("messaging.destination.subscription.name", "ship"),
            ("messaging.message.id", "7"),
        ]);
        let expected = body.replace(SAMPLED, &format!("00-{TRACE}-{}-01", span.id()));
        let sent = String::from_utf8(stream.request().sent.clone()).unwrap();
        assert!(sent.contains(&span.id()), "{piece}: {sent}");
        assert_eq!(sent.len(), text(stream.upstream_head(), "content-length").parse::<usize>().unwrap());
        assert!(sent.starts_with(&expected[..expected.find("attributes").unwrap()]), "{sent}");
        assert_eq!(context(stream.upstream_head()), (TRACE.to_owned(), span.id()));
    }
}

#[test]
fn other_json_is_let_go_at_its_first_byte_and_stays_as_it_was() {
    for body in ["[1,2,3]", r#"{"order":7}"#, "\"text\"", "7", " \n [", "{}", "{\"messages\":1}"] {
        let mut scene = inbound(HELD);
        let stream = send(&mut scene, json(body, &[]), body.as_bytes(), 1);
        assert_eq!(stream.request().sent, body.as_bytes());
        assert_eq!(only(scene.spans()).kind(), SpanKind::Server, "{body}");
    }
}

/// A publish by REST of one message.
fn publish(more: &str) -> String {
    format!(r#"{{"messages":[{{"data":"aGk=","attributes":{{"kind":"order"}}}}]{more}}}"#)
}

fn publishing(body: &str) -> Fields {
    let length = body.len().to_string();
    request(
        "POST",
        "/v1/projects/p/topics/orders:publish",
        &[("content-type", "application/json"), ("content-length", &length), ("traceparent", SAMPLED)],
    )
}

#[test]
fn a_publish_carries_the_producers_span_and_its_length_is_right() {
    for piece in [1, 30, 10_000] {
        let mut scene = outbound(HELD);
        let body = publish("");
        let stream = send(&mut scene, publishing(&body), body.as_bytes(), piece);
        let span = only(scene.spans());
        assert_eq!((span.kind(), span.span.name.as_str()), (SpanKind::Producer, "orders publish"));
        assert_eq!((span.trace().as_str(), span.parent().as_str()), (TRACE, PARENT));
        let sent = String::from_utf8(stream.request().sent.clone()).unwrap();
        assert!(sent.contains(&format!("00-{TRACE}-{}-01", span.id())), "{sent}");
        assert!(sent.contains(r#""kind":"order""#) && sent.len() > body.len());
        assert_eq!(text(stream.upstream_head(), "content-length"), sent.len().to_string());
    }
}

#[test]
fn a_body_that_ends_by_trailers_is_edited_too() {
    let mut scene = outbound(HELD);
    let body = publish("");
    let id = scene.vm.open(scene.root);
    let mut head = publishing(&body);
    head.retain(|(name, _)| name != b"content-length");
    scene.vm.head(id, Side::Request, head, false);
    scene.vm.body(id, Side::Request, body.as_bytes(), false);
    scene.vm.trailers(id, Side::Request, fields(&[("checksum", "1")]));
    scene.vm.head(id, Side::Response, answer("200", &[]), true);
    let stream = scene.vm.finish(id);
    let sent = String::from_utf8(stream.request().sent.clone()).unwrap();
    assert!(sent.contains(&only(scene.spans()).id()), "{sent}");
    assert_eq!(value(stream.upstream_head(), "content-length"), None);
    assert_eq!(stream.request().sent_trailers, Some(fields(&[("checksum", "1")])));
}

#[test]
fn a_pull_is_told_apart_by_its_messages() {
    let mut scene = outbound(HELD);
    let id = scene.vm.open(scene.root);
    let asked = r#"{"maxMessages":10}"#;
    let length = asked.len().to_string();
    let head = request("POST", "/v1/projects/p/subscriptions/ship:pull", &[("content-length", &length)]);
    scene.vm.head(id, Side::Request, head, false);
    scene.vm.body(id, Side::Request, asked.as_bytes(), true);
    let told = format!(
        r#"{{"receivedMessages":[{{"ackId":"a","message":{{"data":"aGk=","attributes":{{"googclient_traceparent":"{SAMPLED}"}},"messageId":"1"}}}}]}}"#
    );
    let length = told.len().to_string();
    scene.vm.head(id, Side::Response, answer("200", &[("content-length", &length)]), false);
    for part in told.as_bytes().chunks(11) {
        scene.vm.body(id, Side::Response, part, false);
    }
    scene.vm.body(id, Side::Response, b"", true);
    let stream = scene.vm.finish(id);
    assert_eq!(stream.request().sent, asked.as_bytes());
    let spans = scene.spans();
    let message = spans.iter().find(|span| span.kind() == SpanKind::Consumer).expect("a span of the message");
    assert_eq!((message.trace().as_str(), message.parent().as_str()), (TRACE, PARENT));
    let sent = String::from_utf8(stream.response().sent.clone()).unwrap();
    assert!(sent.contains(&message.id()) && sent.contains(r#""ackId":"a""#), "{sent}");
}

#[test]
fn an_answer_that_is_no_success_is_not_held() {
    let mut scene = outbound(HELD);
    let id = scene.vm.open(scene.root);
    scene.vm.head(id, Side::Request, request("POST", "/v1/projects/p/subscriptions/ship:pull", &[]), true);
    scene.vm.head(id, Side::Response, answer("503", &[]), false);
    assert!(!scene.vm.stream(id).response().head_held);
    scene.vm.body(id, Side::Response, b"no", true);
    assert_eq!(scene.vm.finish(id).response().sent, b"no");
}

#[test]
fn a_body_over_the_limit_passes_untouched_and_is_counted_once() {
    const LIMIT: usize = 4096;
    let text = publish(&format!(r#","more":"{}""#, "x".repeat(2 * LIMIT)));
    for (told, expected) in [(true, "by its length"), (false, "by its bytes")] {
        let mut scene = outbound("hold-headers: on\nevent-body-limit: 4096\n");
        let mut head = publishing(&text);
        if !told {
            head.retain(|(name, _)| name != b"content-length");
        }
        let stream = send(&mut scene, head, text.as_bytes(), 100);
        assert_eq!(stream.request().sent, text.as_bytes(), "{expected}");
        scene.vm.pass(1_100);
        assert_eq!(untouched(&scene, "over_limit"), 1, "{expected}");
        assert_eq!(scene.spans().len(), 1);
    }
}

#[test]
fn an_endless_body_never_makes_envoy_answer_413() {
    for direction in [publishing as fn(&str) -> Fields, |_: &str| json("", &[])] {
        let mut scene = outbound(HELD);
        let id = scene.vm.open(scene.root);
        let mut head = direction("");
        head.retain(|(name, _)| name != b"content-length");
        scene.vm.head(id, Side::Request, head, false);
        // The host asserts that it never holds more than Envoy does.
        for _ in 0..64 {
            scene.vm.body(id, Side::Request, &[b' '; 64 * 1024], false);
        }
        assert_eq!(scene.vm.stream(id).request().sent.len(), 64 * 64 * 1024, "all of it went on");
        scene.vm.finish(id);
        scene.get("/next");
        assert_eq!(scene.spans().len(), 2);
    }
}

#[test]
fn an_endless_answer_never_outgrows_envoys_buffer() {
    let mut scene = outbound(HELD);
    let id = scene.vm.open(scene.root);
    scene.vm.head(id, Side::Request, request("POST", "/v1/projects/p/subscriptions/ship:pull", &[]), true);
    scene.vm.head(id, Side::Response, answer("200", &[]), false);
    for _ in 0..64 {
        scene.vm.body(id, Side::Response, &[b' '; 64 * 1024], false);
    }
    assert_eq!(scene.vm.stream(id).response().sent.len(), 64 * 64 * 1024);
    scene.vm.finish(id);
    scene.vm.pass(100);
    assert_eq!(untouched(&scene, "over_limit"), 1);
}

#[test]
fn a_head_whose_body_never_comes_goes_on_after_its_time() {
    for (head, direction, millis) in
        [(publishing("{}"), "outbound", 1_000), (json("{}", &[]), "inbound", 100)]
    {
        let mut vm = Envoy::new().worker();
        let root = vm.plugin(&configuration(direction, HELD));
        let mut scene = Scene { vm, root };
        let id = scene.vm.open(root);
        scene.vm.head(id, Side::Request, head, false);
        scene.vm.pass(millis - 20);
        assert!(scene.vm.stream(id).request().head_held, "{direction}: not yet");
        scene.vm.pass(60);
        let request = scene.vm.stream(id).request().clone();
        assert!(!request.head_held && request.head.is_some(), "{direction}: goes on");
        assert_eq!(scene.vm.envoy.metric("throughline_heads_released"), 1);
        // What comes late goes on as it is.
        scene.vm.body(id, Side::Request, b"{", false);
        scene.vm.body(id, Side::Request, b"}", true);
        scene.vm.head(id, Side::Response, answer("200", &[]), true);
        assert_eq!(scene.vm.finish(id).request().sent, b"{}");
        assert_eq!(scene.spans().len(), 1);
    }
}

#[test]
fn a_push_in_drops_is_let_go_on_after_a_tenth_of_a_second() {
    let mut scene = inbound(HELD);
    let id = scene.vm.open(scene.root);
    scene.vm.head(id, Side::Request, json("", &[]), false);
    scene.vm.body(id, Side::Request, b"{ ", false);
    scene.vm.pass(150);
    assert!(!scene.vm.stream(id).request().head_held);
    scene.vm.body(id, Side::Request, b"\"message\": 1}", true);
    scene.vm.head(id, Side::Response, answer("200", &[]), true);
    assert_eq!(scene.vm.finish(id).request().sent, b"{ \"message\": 1}");
}

#[test]
fn without_leave_to_hold_heads_bodies_pass_and_are_counted() {
    let mut scene = outbound("");
    scene.vm.may_hold_heads = false;
    let body = publish("");
    let stream = send(&mut scene, publishing(&body), body.as_bytes(), 10);
    assert_eq!(stream.request().sent, body.as_bytes());
    scene.vm.pass(100);
    assert_eq!(untouched(&scene, "head_not_held"), 1);
    let span = only(scene.spans());
    assert_eq!((span.kind(), span.span.name.as_str()), (SpanKind::Client, "POST"), "it stays what it was");
}

#[test]
fn signed_compressed_and_hidden_bodies_are_left_alone() {
    for (name, value, reason) in
        [("content-encoding", "gzip", "compressed"), ("content-digest", "sha-256=:x:", "signed")]
    {
        let mut scene = outbound(HELD);
        let body = publish("");
        let mut head = publishing(&body);
        head.extend(fields(&[(name, value)]));
        let stream = send(&mut scene, head, body.as_bytes(), 1_000);
        assert_eq!(stream.request().sent, body.as_bytes());
        scene.vm.pass(100);
        assert_eq!(untouched(&scene, reason), 1);
    }
}

#[test]
fn what_all_bodies_together_may_hold_has_a_bound() {
    let mut scene = outbound(HELD);
    let held: Vec<u32> = (0..60)
        .map(|_| {
            let id = scene.vm.open(scene.root);
            let mut head = publishing("");
            head.retain(|(name, _)| name != b"content-length");
            scene.vm.head(id, Side::Request, head, false);
            id
        })
        .collect();
    let waits = held.iter().filter(|id| scene.vm.stream(**id).request().head_held).count();
    assert_eq!(waits, 42, "32 MiB in bodies of 768 KiB");
    scene.vm.pass(100);
    assert_eq!(untouched(&scene, "busy"), 18);
    for id in held {
        scene.vm.finish(id);
    }
    let body = publish("");
    let stream = send(&mut scene, publishing(&body), body.as_bytes(), 1_000);
    assert_ne!(stream.request().sent, body.as_bytes(), "the room was given back");
}

#[test]
fn a_caller_who_leaves_while_his_body_is_held_gives_the_room_back() {
    let mut scene = outbound(HELD);
    for _ in 0..200 {
        let id = scene.vm.open(scene.root);
        let mut head = publishing("");
        head.retain(|(name, _)| name != b"content-length");
        scene.vm.head(id, Side::Request, head, false);
        scene.vm.body(id, Side::Request, b"{\"messages\":[", false);
        scene.vm.stream(id).properties.insert(b"response\0flags".to_vec(), property_number(0x4000));
        scene.vm.finish(id);
    }
    scene.vm.pass(100);
    assert_eq!(untouched(&scene, "busy"), 0);
    assert!(scene.spans().iter().all(|span| span.get("throughline.end") == "caller_gone"));
}

/// A message in gRPC's frame.
fn frame(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
    out.extend_from_slice(bytes);
    out
}

#[test]
fn a_streaming_pull_goes_on_message_by_message_and_is_never_held() {
    let attribute = field(2, &[field(1, b"googclient_traceparent"), field(2, SAMPLED.as_bytes())].concat());
    let message = field(2, &[field(1, b"hi"), attribute, field(3, b"9")].concat());
    let response = frame(&field(1, &[field(1, b"ack"), message].concat()));
    for piece in [1, 3, 50, 1_000] {
        let mut scene = outbound("");
        let id = scene.vm.open(scene.root);
        let head = request(
            "POST",
            "/google.pubsub.v1.Subscriber/StreamingPull",
            &[("content-type", "application/grpc"), ("te", "trailers")],
        );
        scene.vm.head(id, Side::Request, head, false);
        for part in frame(&field(1, b"projects/p/subscriptions/ship")).chunks(piece) {
            scene.vm.body(id, Side::Request, part, false);
        }
        scene.vm.head(id, Side::Response, answer("200", &[("content-type", "application/grpc")]), false);
        let mut sent = 0;
        for _ in 0..3 {
            for part in response.chunks(piece) {
                scene.vm.body(id, Side::Response, part, false);
            }
            let now = scene.vm.stream(id).response().sent.len();
            assert!(now >= sent + response.len(), "{piece}: a message is not kept back");
            sent = now;
        }
        let spans = scene.spans();
        assert_eq!(spans.len(), 3, "{piece}: spans of a stream that goes on");
        for span in &spans {
            assert_eq!((span.trace().as_str(), span.parent().as_str()), (TRACE, PARENT));
            span.says(&[("messaging.destination.subscription.name", "ship"), ("messaging.message.id", "9")]);
        }
        let bytes = scene.vm.stream(id).response().sent.clone();
        assert!(bytes.windows(16).any(|part| part == spans[0].id().as_bytes()));
        scene.vm.trailers(id, Side::Response, fields(&[("grpc-status", "0")]));
        scene.vm.finish(id);
    }
}

#[test]
fn the_head_of_an_upgrade_waits_for_no_body() {
    let mut scene = inbound(HELD);
    let id = scene.vm.open(scene.root);
    let fields = [("content-type", "application/cloudevents+json"), ("upgrade", "websocket")];
    scene.vm.head(id, Side::Request, request("GET", "/chat", &fields), false);
    assert!(!scene.vm.stream(id).request().head_held);
    scene.vm.finish(id);
}
