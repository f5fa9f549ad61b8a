//! What can't or must not be edited goes on byte for byte, and is counted by reason.

use std::io::Write as _;

use serde_json::{Value, json};
use throughline_tests::feed::{AnyBody, fed, whole};
use throughline_tests::prelude::*;
use throughline_tests::service::Traceparent;

use crate::base64;
use crate::stage::{Form, Message};

pub(crate) const PUBLISH: &str = "/v1/projects/shop-1/topics/orders:publish";
pub(crate) const LIMIT: usize = 4096;
pub(crate) const UNTOUCHED: &str = "throughline_events_untouched_total";

/// `orders` with an upstream for Pub/Sub that answers with the body that it got, and an application that does
/// the same.
pub(crate) async fn echoing() -> (Mesh, Service, Pod) {
    let mesh = Mesh::new().await;
    let broker = Service::playing(echo()).await;
    let pod = mesh.pod("orders").flag("pubsub-upstream", broker.url("")).flag("event-body-limit", LIMIT);
    let orders = pod.runs(echo()).await;
    (mesh, broker, orders)
}

pub(crate) async fn untouched(pod: &Pod, reason: &str) -> u64 {
    pod.books().await.sum(UNTOUCHED, &[("reason", reason)])
}

pub(crate) fn publish_body(message: &Message) -> String {
    json!({"messages": [message.rest()]}).to_string()
}

pub(crate) fn push_body(message: &Message) -> String {
    let mut inner = message.rest();
    inner["messageId"] = json!("7");
    json!({"message": inner, "subscription": "projects/shop-1/subscriptions/shipping"}).to_string()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

/// A body in pieces, so that its length is not told.
pub(crate) fn chunked(bytes: Vec<u8>) -> AnyBody {
    let (feeder, body) = fed();
    tokio::spawn(async move {
        for piece in bytes.chunks(700) {
            feeder.send(piece.to_vec()).await;
        }
    });
    body
}

fn nested(depth: usize) -> Vec<u8> {
    format!(r#"{{"data":{}{}}}"#, "[".repeat(depth), "]".repeat(depth)).into_bytes()
}

/// The reason, where it is sent to, its content type, one header more, and the body.
type Row<'a> = (&'a str, &'a str, &'a str, Option<(&'a str, &'a str)>, Vec<u8>);

#[tokio::test]
async fn a_body_that_must_not_be_edited_goes_on_byte_for_byte_and_is_counted() {
    let (mesh, broker, orders) = echoing().await;
    let publish = format!("http://{}{PUBLISH}", orders.sidecar.outbound());
    let event = orders.url("/events");
    let small = publish_body(&Message::new(Form::Binary, "1")).into_bytes();
    let mut large = Message::new(Form::Binary, "2");
    large.data = vec![b'x'; LIMIT];
    let large = publish_body(&large).into_bytes();
    let structured = Message::new(Form::Structured, "3").data;
    let padded = [structured.clone(), vec![b' '; LIMIT]].concat();
    let (json, cloud) = ("application/json", "application/cloudevents+json");
    let rows: [Row<'_>; 17] = [
        ("over_limit", &publish, json, None, large),
        ("compressed", &publish, json, Some(("content-encoding", "gzip")), gzip(&small)),
        ("signed", &publish, json, Some(("content-digest", "sha-256=:x:")), small.clone()),
        ("signed", &publish, json, Some(("repr-digest", "sha-256=:x:")), small.clone()),
        ("signed", &publish, json, Some(("digest", "sha-256=x")), small.clone()),
        ("signed", &publish, json, Some(("signature", "sig=:x:")), small.clone()),
        ("signed", &publish, json, Some(("signature-input", "sig=()")), small),
        ("not_json", &publish, json, None, b"{\"messages\":[}".to_vec()),
        ("not_utf8", &publish, json, None, b"{\"messages\":[{\"data\":\"\xff\"}]}".to_vec()),
        ("shape", &publish, json, None, b"{\"messages\":7}".to_vec()),
        ("over_limit", &event, cloud, None, padded),
        ("compressed", &event, cloud, Some(("content-encoding", "gzip")), gzip(&structured)),
        ("compressed", &event, cloud, Some(("content-encoding", "br")), structured.clone()),
        ("signed", &event, cloud, Some(("content-digest", "sha-256=:x:")), structured),
        ("not_json", &event, cloud, None, b"{\"specversion\":".to_vec()),
        ("shape", &event, cloud, None, b"[1,2]".to_vec()),
        ("too_deep", &event, cloud, None, nested(1500)),
    ];
    for (number, (reason, url, kind, header, body)) in rows.iter().enumerate() {
        for known in [true, false] {
            let row = format!("row {number}, {reason}, length {known}, {header:?}");
            let before = untouched(&orders, reason).await;
            let ask = Ask::new("POST", url).header("content-type", kind).headers(*header);
            let ask = ask.body(if known { whole(body.clone()) } else { chunked(body.clone()) });
            let answer = ask.send().await;
            assert_eq!((answer.status, answer.broken), (200, None), "{row}");
            assert_eq!(answer.body, body, "{row}");
            let side = if *url == publish { &broker } else { orders.app() };
            let seen = side.seen().pop().expect("a request");
            assert!(seen.traceparent().sampled(), "the headers are still handled: {row}");
            let (length, told) = (body.len().to_string(), seen.header("content-length"));
            assert!(told.map_or(!known, |told| told == length), "{told:?}: {row}");
            assert_eq!(untouched(&orders, reason).await, before + 1, "{row}");
        }
    }
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.len(), 2 * rows.len(), "an exchange is traced whatever its body");
    assert_connected(&spans, &[]);
}

#[tokio::test]
async fn a_message_whose_event_cannot_be_read_still_gets_its_attributes() {
    let (mesh, _broker, orders) = echoing().await;
    let url = format!("http://{}{PUBLISH}", orders.sidecar.outbound());
    for (data, reason) in [
        (base64::encode(b"{\"id\":}"), "not_json"),
        ("!!!!".to_owned(), "not_base64"),
        (base64::encode(b"{\"id\":\"\xff\"}"), "not_utf8"),
        (base64::encode(b"[]"), "shape"),
    ] {
        let kind = "application/cloudevents+json";
        let body = json!({"messages": [{"data": data, "attributes": {"content-type": kind}}]}).to_string();
        let answer = Ask::post(&url, body).header("content-type", "application/json").send().await;
        let got: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(got["messages"][0]["data"], data.as_str(), "{reason}");
        let hop = got["messages"][0]["attributes"]["googclient_traceparent"].as_str();
        assert!(hop.and_then(Traceparent::of).is_some(), "{reason}: {got}");
        assert_eq!(untouched(&orders, reason).await, 1, "{reason}");
    }
    assert_eq!(mesh.end([orders]).await.len(), 4);
}

#[tokio::test]
async fn a_large_compressed_or_signed_push_reaches_the_application_as_it_came() {
    let (mesh, _broker, orders) = echoing().await;
    let body = push_body(&Message::new(Form::Binary, "1")).into_bytes();
    let mut large = Message::new(Form::Binary, "2");
    large.data = vec![b'x'; LIMIT];
    for (header, body) in [
        (None, push_body(&large).into_bytes()),
        (Some(("content-encoding", "gzip")), gzip(&body)),
        (Some(("content-digest", "sha-256=:x:")), body.clone()),
        (Some(("signature", "sig=:x:")), body),
    ] {
        for known in [true, false] {
            let ask = Ask::new("POST", orders.url("/push")).header("content-type", "application/json");
            let ask =
                ask.headers(header).body(if known { whole(body.clone()) } else { chunked(body.clone()) });
            let answer = ask.send().await;
            assert_eq!((answer.status, answer.body.to_vec() == body), (200, true), "{header:?} {known}");
        }
    }
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.iter().filter(|span| span.kind == Kind::Server).count(), 8);
}

#[tokio::test]
async fn a_large_or_signed_push_is_counted_however_its_length_is_told() {
    let (mesh, _broker, orders) = echoing().await;
    let mut large = Message::new(Form::Binary, "1");
    large.data = vec![b'x'; LIMIT];
    let small = Message::new(Form::Binary, "2");
    for (reason, header, message) in
        [("over_limit", None, &large), ("signed", Some(("content-digest", "sha-256=:x:")), &small)]
    {
        for known in [true, false] {
            // In Envoy a push whose length is not told is none that could be held.
            let untold = !known && header.is_none() && Host::asked() == Host::Envoy;
            let reason = if untold { "length_unknown" } else { reason };
            let (before, body) = (untouched(&orders, reason).await, push_body(message));
            let ask = Ask::new("POST", orders.url("/push")).header("content-type", "application/json");
            let ask = ask.headers(header);
            ask.body(if known { whole(body) } else { chunked(body.into()) }).send().await;
            assert_eq!(untouched(&orders, reason).await, before + 1, "{reason}, length told {known}");
        }
    }
    mesh.end([orders]).await;
}

#[tokio::test]
async fn a_compressed_grpc_publish_goes_on_as_it_is_and_is_counted() {
    let (mesh, _broker, orders) = echoing().await;
    let url = format!("http://{}/google.pubsub.v1.Publisher/Publish", orders.sidecar.outbound());
    let mut frame = throughline_tests::grpc::framed(&gzip(b"\x12\x04\x0a\x02hi")).to_vec();
    frame[0] = 1;
    let ask = Ask::post(url, frame.clone()).over(Protocol::H2);
    let ask = ask.headers([("content-type", "application/grpc"), ("grpc-encoding", "gzip")]);
    let answer = ask.send().await;
    assert_eq!((answer.status, answer.body.to_vec()), (200, frame));
    assert_eq!(untouched(&orders, "compressed").await, 1);
    assert_eq!(mesh.end([orders]).await.len(), 1);
}

#[tokio::test]
async fn without_tracing_no_message_is_touched() {
    let mesh = Mesh::new().await;
    let broker = Service::playing(echo()).await;
    let pod = mesh.pod("orders").flag("pubsub-upstream", broker.url(""));
    let orders = pod.environment("OTEL_SDK_DISABLED", "true").runs(echo()).await;
    let message = Message::new(Form::Structured, "1");
    let event = String::from_utf8(message.data.clone()).expect("UTF-8");
    for (url, kind, body) in [
        (
            format!("http://{}{PUBLISH}", orders.sidecar.outbound()),
            "application/json",
            publish_body(&message),
        ),
        (orders.url("/push"), "application/json", push_body(&message)),
        (orders.url("/events"), "application/cloudevents+json", event),
    ] {
        let answer = Ask::post(&url, body.clone()).header("content-type", kind).send().await;
        assert_eq!((answer.status, answer.text()), (200, body), "{url}");
    }
    assert_eq!(mesh.end([orders]).await.len(), 0);
}
