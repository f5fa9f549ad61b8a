//! Pub/Sub over gRPC, its messages as `prost` reads and writes them.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use throughline_core::classify::Direction;
use throughline_core::exchange::Wanted;

use crate::harness::*;
use crate::json::changes;
use crate::stage::*;

const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[derive(Clone, PartialEq, prost::Message)]
struct PubsubMessage {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(btree_map = "string, string", tag = "2")]
    attributes: BTreeMap<String, String>,
    #[prost(string, tag = "3")]
    message_id: String,
    #[prost(string, tag = "5")]
    ordering_key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PublishRequest {
    #[prost(string, tag = "1")]
    topic: String,
    #[prost(message, repeated, tag = "2")]
    messages: Vec<PubsubMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReceivedMessage {
    #[prost(string, tag = "1")]
    ack_id: String,
    #[prost(message, optional, tag = "2")]
    message: Option<PubsubMessage>,
    #[prost(int32, tag = "3")]
    delivery_attempt: i32,
}

/// Of `Pull` and, by the same numbers, of `StreamingPull`.
#[derive(Clone, PartialEq, prost::Message)]
struct PullResponse {
    #[prost(message, repeated, tag = "1")]
    received_messages: Vec<ReceivedMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullRequest {
    #[prost(string, tag = "1")]
    subscription: String,
}

fn message(attributes: &[(&str, &str)]) -> PubsubMessage {
    let attributes =
        attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    PubsubMessage {
        data: b"hi".to_vec(),
        attributes,
        ordering_key: "k".to_owned(),
        ..PubsubMessage::default()
    }
}

const EVENT_PAIRS: &[(&str, &str)] = &[
    ("ce-specversion", "1.0"),
    ("ce-id", "e1"),
    ("ce-source", "/shop"),
    ("ce-type", "order.placed"),
    ("ce-subject", "o7"),
];

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag], &(message.len() as u32).to_be_bytes()[..], message].concat()
}

fn unframed<M: prost::Message + Default>(frame: &[u8]) -> M {
    assert_eq!(
        (frame[0], frame.len()),
        (0, 5 + u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize)
    );
    M::decode(&frame[5..]).unwrap()
}

fn publish(stage: &mut Stage, fields: Fields<'_>, body: &[u8]) -> Sent {
    let head = post(Direction::Outbound, "/google.pubsub.v1.Publisher/Publish");
    stage.request(&head, &[&[GRPC], fields].concat(), body)
}

fn orders(messages: &[PubsubMessage]) -> Vec<u8> {
    let request =
        PublishRequest { topic: "projects/p/topics/orders".to_owned(), messages: messages.to_vec() };
    framed(0, &request.encode_to_vec())
}

#[test]
fn one_published_message_is_the_producers_span_and_says_so() {
    let foreign = [EVENT_PAIRS, &[("ce-traceparent", FOREIGN)]].concat();
    let at_limit: Vec<(String, &str)> = (0..100).map(|number| (format!("k{number}"), "v")).collect();
    let at_limit: Vec<(&str, &str)> = at_limit.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    for (attributes, added) in [
        (&[("k", "v")][..], &["googclient_traceparent"][..]),
        (EVENT_PAIRS, &["ce-traceparent", "googclient_traceparent"]),
        (&foreign, &["googclient_traceparent"]),
        (&at_limit, &[]),
    ] {
        let mut stage = Stage::new();
        let before = message(attributes);
        let sent = publish(&mut stage, &[("traceparent", SAMPLED)], &orders(std::slice::from_ref(&before)));
        let expected = ("orders publish", SpanKind::Producer, TRACE.to_owned(), CALLER.to_owned());
        assert_eq!((sent.spans.len(), place(sent.own())), (1, expected));
        check_attributes(
            sent.own(),
            &[
                ("messaging.system", "gcp_pubsub"),
                ("messaging.destination.name", "orders"),
                ("messaging.gcp_pubsub.message.ordering_key", "k"),
                ("rpc.system.name", "grpc"),
            ],
        );
        let own = context(sent.own(), "01");
        assert_eq!(value(&sent.headers, "traceparent"), own);
        let mut expected = before;
        expected.attributes.extend(added.iter().map(|name| ((*name).to_owned(), own.clone())));
        assert_eq!(unframed::<PublishRequest>(&sent.body).messages, [expected]);
        let linked: &[_] =
            if attributes.contains(&("ce-traceparent", FOREIGN)) { &[ids(FOREIGN)] } else { &[] };
        assert_eq!(links(sent.own()), linked);
    }
}

#[test]
fn a_structured_event_is_edited_in_the_data() {
    let mut stage = Stage::new();
    let event = format!("{{{EVENT}}}");
    let before = PubsubMessage {
        data: event.clone().into_bytes(),
        ..message(&[("content-type", "application/cloudevents+json")])
    };
    let sent = publish(&mut stage, &[("traceparent", SAMPLED)], &orders(&[before]));
    let after = unframed::<PublishRequest>(&sent.body).messages.remove(0);
    let own = context(sent.own(), "01");
    let inside = String::from_utf8(after.data).unwrap();
    assert_eq!(changes(&event, &inside), [["traceparent", "-", own.as_str()]]);
    assert_eq!(after.attributes["googclient_traceparent"], own);
    check_attributes(sent.own(), EVENT_ATTRIBUTES);
}

#[test]
fn a_call_without_context_joins_the_trace_of_its_message() {
    let mut stage = Stage::new();
    let sent = publish(&mut stage, &[], &orders(&[message(&[("googclient_traceparent", HOP)])]));
    let expected = ("orders publish", SpanKind::Producer, PRODUCER_TRACE.to_owned(), PRODUCER.to_owned());
    assert_eq!(place(sent.own()), expected);
    let own = context(sent.own(), "03");
    assert_eq!(value(&sent.headers, "traceparent"), own);
    let after = unframed::<PublishRequest>(&sent.body);
    assert_eq!(after.messages[0].attributes["googclient_traceparent"], own);
}

#[test]
fn each_of_three_messages_is_a_producer_under_the_call() {
    let mut stage = Stage::new();
    let sent = publish(
        &mut stage,
        &[("traceparent", SAMPLED)],
        &orders(&[message(&[]), message(&[]), message(&[])]),
    );
    let (call, producers) = sent.spans.split_last().unwrap();
    assert_eq!((producers.len(), call.kind(), parent_of(call).as_str()), (3, SpanKind::Client, CALLER));
    assert_eq!(text(call, "messaging.batch.message_count"), "3");
    for (span, message) in producers.iter().zip(unframed::<PublishRequest>(&sent.body).messages) {
        assert_eq!(place(span), ("orders publish", SpanKind::Producer, TRACE.to_owned(), hex(&call.span_id)));
        assert_eq!(message.attributes["googclient_traceparent"], context(span, "01"));
    }
}

#[test]
fn what_is_compressed_or_broken_goes_on_and_is_counted() {
    let whole = orders(&[message(&[])]);
    let compressed = framed(1, b"\x1f\x8b whatever");
    let broken = framed(0, b"\x12\x7fcut short");
    let cut = whole[..whole.len() - 3].to_vec();
    for (body, reasons) in [
        (compressed, &[("compressed", 1)][..]),
        (broken, &[("not_protobuf", 1)]),
        (cut, &[]),
        (Vec::new(), &[]),
    ] {
        let mut stage = Stage::new();
        let sent = publish(&mut stage, &[], &body);
        assert!(!sent.edited, "{}", body.escape_ascii());
        assert_eq!((sent.spans.len(), sent.own().kind()), (1, SpanKind::Client));
        assert_eq!(stage.untouched(), reasons);
    }
}

#[test]
fn a_pull_links_to_its_messages_and_rewrites_them() {
    let mut stage = Stage::new();
    let head = post(Direction::Outbound, "/google.pubsub.v1.Subscriber/Pull");
    let (mut exchange, mut headers) = stage.begin(&head, &[GRPC, ("traceparent", SAMPLED)]);
    assert_eq!(exchange.wanted(), Wanted::RequestAndResponse);
    let request = PullRequest { subscription: "projects/p/subscriptions/shipping".to_owned() };
    assert_eq!(stage.body(&mut exchange, &mut headers, &framed(0, &request.encode_to_vec())), None);
    let attributes = [EVENT_PAIRS, &[("ce-traceparent", HOP), ("googclient_traceparent", HOP)]].concat();
    let received = |attributes: &[(&str, &str)], attempt| ReceivedMessage {
        ack_id: "a".to_owned(),
        message: Some(PubsubMessage { message_id: "m1".to_owned(), ..message(attributes) }),
        delivery_attempt: attempt,
    };
    let before = PullResponse { received_messages: vec![received(&attributes, 2), received(&[], 0)] };
    stage.world.answer(&mut exchange, 200, &[GRPC]);
    let World { tracer, now, .. } = &stage.world;
    let body = framed(0, &before.encode_to_vec());
    let after = tracer.response_body(&mut exchange, &body, *now, &mut stage.far).unwrap();
    let spans = stage.end(exchange);
    let [first, second, call] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(place(call), ("shipping pull", SpanKind::Client, TRACE.to_owned(), CALLER.to_owned()));
    let (own, other) = (context(first, "03"), context(second, "03"));
    assert_eq!(links(call), [ids(&own), ids(&other)]);
    let child = ("shipping receive", SpanKind::Consumer, PRODUCER_TRACE.to_owned(), PRODUCER.to_owned());
    assert_eq!(place(first), child);
    assert_eq!(parent_of(second), "", "a root of its own");
    for (span, attempt) in [(first, "2"), (second, "-")] {
        assert_eq!(links(span), [format!("{TRACE}-{}", hex(&call.span_id))]);
        check_attributes(
            span,
            &[
                ("messaging.gcp_pubsub.message.delivery_attempt", attempt),
                ("messaging.message.id", "m1"),
                ("messaging.destination.subscription.name", "shipping"),
            ],
        );
    }
    check_attributes(first, EVENT_ATTRIBUTES);
    let mut expected = before;
    let mut set = |index: usize, name: &str, value: &str| {
        let message = expected.received_messages[index].message.as_mut().unwrap();
        message.attributes.insert(name.to_owned(), value.to_owned());
    };
    set(0, "ce-traceparent", &own);
    set(0, "ce-origintraceparent", HOP);
    set(0, "googclient_traceparent", &own);
    set(1, "googclient_traceparent", &other);
    assert_eq!(unframed::<PullResponse>(&after), expected);
}

#[test]
fn a_stream_hands_out_the_span_of_each_delivery_at_once() {
    let mut stage = Stage::new();
    let head = post(Direction::Outbound, "/google.pubsub.v1.Subscriber/StreamingPull");
    let (mut exchange, _) = stage.begin(&head, &[GRPC]);
    assert_eq!(exchange.wanted(), Wanted::Stream);
    let request = PullRequest { subscription: "projects/p/subscriptions/shipping".to_owned() };
    stage.world.tracer.subscribed(&mut exchange, &request.encode_to_vec(), stage.world.now, &mut stage.far);
    let received =
        ReceivedMessage { message: Some(message(&[("googclient_traceparent", HOP)])), ..Default::default() };
    let response = PullResponse { received_messages: vec![received] }.encode_to_vec();
    for delivery in 1..=2 {
        stage.world.now.unix_nanos += 1000 * MS;
        stage.world.now.mono_nanos += 1000 * MS;
        let World { tracer, now, batch, .. } = &mut stage.world;
        let edited = tracer.streamed(&mut exchange, &response, *now, &mut stage.far, batch).unwrap();
        let spans = stage.spans();
        let [span] = &spans[..] else { panic!("{spans:?}") };
        let child = ("shipping receive", SpanKind::Consumer, PRODUCER_TRACE.to_owned(), PRODUCER.to_owned());
        assert_eq!(place(span), child);
        assert_eq!(span.start_time_unix_nano, START_UNIX_NANOS + delivery * 1000 * MS);
        let after = PullResponse::decode(&edited[..]).unwrap();
        let message = after.received_messages[0].message.clone().unwrap();
        assert_eq!(message.attributes["googclient_traceparent"], context(span, "03"));
    }
    let World { tracer, now, batch, .. } = &mut stage.world;
    assert_eq!(tracer.streamed(&mut exchange, b"\x0a\x7f", *now, &mut stage.far, batch), None);
    assert_eq!(stage.untouched(), [("not_protobuf", 1)]);
    let spans = stage.end(exchange);
    let [call] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((call.name.as_str(), call.kind(), call.links.len()), ("shipping pull", SpanKind::Client, 2));
    assert_eq!(text(call, "messaging.batch.message_count"), "2");
}

#[test]
fn settling_is_a_clients_span() {
    for (method, name) in [("Acknowledge", "acknowledge"), ("ModifyAckDeadline", "modify_ack_deadline")] {
        let path = format!("/google.pubsub.v1.Subscriber/{method}");
        let sent = Stage::new().request(&post(Direction::Outbound, &path), &[GRPC], &framed(0, b""));
        assert_eq!(
            (sent.own().name.as_str(), sent.own().kind(), sent.edited),
            (name, SpanKind::Client, false)
        );
        check_attributes(sent.own(), &[("messaging.operation.type", "settle")]);
    }
}
