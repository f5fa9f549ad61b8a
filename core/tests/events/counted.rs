//! Messages as metrics count them, whatever is sampled: sent, received, processed, and how late.

use prost::Message as _;
use throughline_core::classify::Direction;
use throughline_core::metrics::Aggregation;
use throughline_core::mode::Mode;
use throughline_core::sampling::{Root, Sampler};

use crate::pushed::{Numbers, lines, pushed};
use crate::stage::{JSON, PUBLISH, Stage, binary, post, with_attributes};
use crate::{harness, stage};

// What a test needs of `google.pubsub.v1`.

#[derive(Clone, PartialEq, prost::Message)]
struct StreamingPullRequest {
    #[prost(string, tag = "1")]
    subscription: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StreamingPullResponse {
    #[prost(message, repeated, tag = "1")]
    received_messages: Vec<ReceivedMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReceivedMessage {
    #[prost(string, tag = "1")]
    ack_id: String,
    #[prost(message, optional, tag = "2")]
    message: Option<PubsubMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PubsubMessage {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
}

const MESSAGING: &str = "messaging.client.";

/// Two hours after a stage begins, so that what is older is of the same day.
const LATER_NANOS: u64 = 7200 * 1_000_000_000;

/// A message that was published so many seconds ago.
fn message(stage: &Stage, seconds_ago: u64) -> String {
    let of_day = (stage.world.now.unix_nanos / 1_000_000_000 - seconds_ago) % 86_400;
    let time = format!("2025-11-20T{:02}:{:02}:{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!(r#"{{"data":"aGk=","messageId":"1","publishTime":"{time}"}}"#)
}

#[test]
fn messages_count_whatever_is_sampled() {
    let mut told = Vec::new();
    for root in [Root::AlwaysOn, Root::AlwaysOff] {
        let mut stage = Stage::with(|config| config.sampler = Sampler::ParentBased(root));
        for _ in 0..3 {
            stage.publish(&[("x-operation-name", "checkout")], &binary(""));
        }
        let two = format!("{},{}", with_attributes(""), with_attributes(""));
        let body = format!(r#"{{"messages":[{two}]}}"#);
        stage.request_ending(&post(Direction::Outbound, PUBLISH), &[JSON], body.as_bytes(), 503);
        for seconds in [9, 600] {
            let message = message(&stage, seconds);
            stage.push(&[], &message);
        }
        stage.spans();
        let mut shown = lines(&stage.world.tracer, MESSAGING);
        shown.extend(lines(&stage.world.tracer, "messaging.process.duration"));
        shown.extend(lines(&stage.world.tracer, "throughline.message.lag"));
        told.push(shown);
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(
        told[0],
        [
            "messaging.client.sent.messages{system=gcp_pubsub name=publish name=orders name=checkout} 3",
            "messaging.client.sent.messages{system=gcp_pubsub name=publish name=orders type=503} 2",
            "messaging.client.consumed.messages{system=gcp_pubsub name=process name=shipping} 2",
            "messaging.process.duration{system=gcp_pubsub name=process name=shipping} 2",
            "throughline.message.lag{system=gcp_pubsub name=process name=shipping} 2",
        ]
    );
}

#[test]
fn the_lag_is_from_the_publish_to_the_delivery() {
    let mut stage = Stage::with(|config| config.aggregation = Aggregation::Explicit);
    stage.world.now.unix_nanos += LATER_NANOS;
    for seconds in [0, 9, 600, 7200] {
        let message = message(&stage, seconds);
        stage.push(&[], &message);
    }
    stage.push(&[], &with_attributes("")); // says nothing of its publish
    let points = pushed(&stage.world.tracer);
    let lag = points.iter().find(|point| point.name == "throughline.message.lag").unwrap();
    assert_eq!(lag.unit, "s");
    let Numbers::Explicit(point) = &lag.numbers else { panic!("{lag:?}") };
    let bounds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0, 3600.0];
    assert_eq!(point.explicit_bounds, bounds);
    assert_eq!(point.count, 4);
    // Each request takes 7 ms, by which later ones are older.
    assert_eq!(point.bucket_counts, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1]);
    assert!((point.sum.unwrap() - 7809.042).abs() < 1e-6, "{point:?}");
    let sums = lines(&stage.world.tracer, "messaging.client.consumed.messages");
    assert!(sums[0].ends_with(" 5"), "{sums:?}");
    let page = stage.world.page(false);
    let expected = "throughline_message_lag_seconds_bucket{messaging_system=\"gcp_pubsub\",\
                    messaging_operation_name=\"process\",messaging_destination_subscription_name=\"shipping\",\
                    le=\"3600.0\"} 3\n";
    assert!(page.contains(expected), "{page}");
    assert!(page.contains("# TYPE messaging_client_consumed_messages_total counter"), "{page}");
}

#[test]
fn an_event_by_http_is_named_by_its_type() {
    let mut stage = Stage::new();
    let event = format!("{{{}}}", stage::EVENT);
    stage.request(
        &post(Direction::Inbound, "/hook"),
        &[("content-type", "application/cloudevents+json")],
        event.as_bytes(),
    );
    assert_eq!(
        lines(&stage.world.tracer, MESSAGING),
        ["messaging.client.consumed.messages{name=process event_type=order.placed} 1"]
    );
}

#[test]
fn nothing_is_counted_of_bodies_that_nobody_reads() {
    for mode in [Mode::Off, Mode::SystemOnly] {
        let mut stage = Stage::with(|config| config.mode = mode);
        stage.publish(&[], &binary(""));
        assert!(lines(&stage.world.tracer, MESSAGING).is_empty());
        assert_eq!(harness::World::counts(&stage.world).len(), 1);
    }
}

#[test]
fn what_is_pulled_is_received_once_and_a_stream_is_counted_while_it_lasts() {
    let mut stage = Stage::with(|config| config.sampler = Sampler::ParentBased(Root::AlwaysOff));
    let one = message(&stage, 1);
    let answer = format!(
        r#"{{"receivedMessages":[{{"ackId":"a","message":{one}}},{{"ackId":"b","message":{one}}}]}}"#
    );
    let path = "/v1/projects/p/subscriptions/shipping:pull";
    let (mut exchange, _) = stage.begin(&post(Direction::Outbound, path), &[JSON]);
    stage.world.answer(&mut exchange, 200, &[JSON]);
    let harness::World { tracer, now, .. } = &stage.world;
    tracer.response_body(&mut exchange, answer.as_bytes(), *now, &mut stage.far);
    stage.end(exchange);
    let shipping = "messaging.client.consumed.messages{system=gcp_pubsub name=receive name=shipping}";
    assert_eq!(lines(&stage.world.tracer, MESSAGING), [format!("{shipping} 2")]);

    let head = post(Direction::Outbound, "/google.pubsub.v1.Subscriber/StreamingPull");
    let (mut exchange, _) = stage.begin(&head, &[("content-type", "application/grpc")]);
    let subscribe = StreamingPullRequest { subscription: "projects/p/subscriptions/shipping".into() };
    let message = Some(PubsubMessage { data: b"hi".to_vec() });
    let received = ReceivedMessage { ack_id: "a".into(), message };
    let delivered = StreamingPullResponse { received_messages: vec![received] };
    let harness::World { tracer, now, batch, .. } = &mut stage.world;
    tracer.subscribed(&mut exchange, &subscribe.encode_to_vec(), *now, &mut stage.far);
    for count in [3, 4] {
        tracer.streamed(&mut exchange, &delivered.encode_to_vec(), *now, &mut stage.far, batch);
        assert_eq!(lines(tracer, MESSAGING), [format!("{shipping} {count}")]);
    }
    stage.end(exchange);
    assert_eq!(lines(&stage.world.tracer, MESSAGING), [format!("{shipping} 4")], "none twice");
    assert_eq!(lines(&stage.world.tracer, "messaging.process"), [""; 0], "who pulls processes by himself");
}
