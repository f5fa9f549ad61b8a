//! StreamingPull by hand: each message leaves as soon as it is whole, however it came, and what can't be edited
//! passes through; the stream's own end is the broker's.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use throughline_tests::ask::Open;
use throughline_tests::feed::{Feeder, fed};
use throughline_tests::grpc::{framed, messages, status, streaming};
use throughline_tests::prelude::*;
use throughline_tests::service::{Traceparent, read};
use throughline_tests::span::listing;
use tokio::sync::mpsc;

use crate::limits::{LIMIT, UNTOUCHED};

const STREAM: &str = "/google.pubsub.v1.Subscriber/StreamingPull";
const PRODUCER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03";

/// `StreamingPullResponse`, of which one field is newer than anybody here knows.
#[derive(Clone, PartialEq, prost::Message)]
struct Deliveries {
    #[prost(message, repeated, tag = "1")]
    received: Vec<Received>,
    #[prost(string, tag = "99")]
    newer: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Received {
    #[prost(string, tag = "1")]
    ack_id: String,
    #[prost(message, optional, tag = "2")]
    message: Option<PubsubMessage>,
    #[prost(int32, tag = "3")]
    delivery_attempt: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PubsubMessage {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(btree_map = "string, string", tag = "2")]
    attributes: BTreeMap<String, String>,
    #[prost(string, tag = "3")]
    message_id: String,
}

fn deliveries(ids: &[&str], bytes: usize) -> Deliveries {
    let received = |id: &&str| Received {
        ack_id: format!("ack-{id}"),
        message: Some(PubsubMessage {
            data: vec![0xff; bytes],
            attributes: [("googclient_traceparent".to_owned(), PRODUCER.to_owned())].into(),
            message_id: (*id).to_owned(),
        }),
        delivery_attempt: 2,
    };
    Deliveries { received: ids.iter().map(received).collect(), newer: "unknown".to_owned() }
}

/// An open stream: its subscriber's side and its broker's.
struct Pulling {
    _broker: Service,
    shipping: Pod,
    requests: Feeder,
    hand: Feeder,
    open: Open,
}

/// Opens a stream whose first request is cut in two after so many bytes.
async fn streaming_pull(mesh: &Mesh, cut: usize) -> Pulling {
    let (sender, mut hands) = mpsc::unbounded_channel();
    let broker = Service::playing(script(move |visit| {
        let sender = sender.clone();
        async move {
            let (hand, answer) = streaming();
            // The request stays open as long as the subscriber wants.
            tokio::spawn(read(visit.request));
            sender.send(hand).expect("the scenario");
            answer
        }
    }))
    .await;
    let pod = mesh.pod("shipping").flag("pubsub-upstream", broker.url("")).flag("event-body-limit", LIMIT);
    let shipping = pod.outbound_only().await;
    let (requests, body) = fed();
    let name = b"projects/shop-1/subscriptions/shipping";
    let mut rest = framed(&[&[0x0a, name.len() as u8], &name[..]].concat());
    let first = rest.split_to(cut.min(rest.len()));
    for piece in [first, rest].into_iter().filter(|piece| !piece.is_empty()) {
        requests.send(piece).await;
    }
    let ask = Ask::new("POST", format!("http://{}{STREAM}", shipping.sidecar.outbound())).over(Protocol::H2);
    let ask = ask.headers([("content-type", "application/grpc"), ("te", "trailers")]).body(body);
    let open = ask.open().await;
    let hand = within("the stream at the broker", hands.recv()).await.expect("a stream");
    Pulling { _broker: broker, shipping, requests, hand, open }
}

fn one_message(piece: &Bytes) -> Deliveries {
    let whole = messages(piece.clone());
    assert_eq!(whole.len(), 1, "one whole message a piece");
    Deliveries::decode(whole[0].clone()).expect("protobuf")
}

#[tokio::test]
async fn each_delivery_of_a_stream_leaves_at_once_with_a_span_of_its_own() {
    let mesh = Mesh::new().await;
    let Pulling { _broker, shipping, requests, hand, mut open } = streaming_pull(&mesh, usize::MAX).await;
    // Whole, and in pieces down to single bytes: each is here before the broker says any more.
    let mut contexts = Vec::new();
    for (number, cut) in [usize::MAX, 3, 9, 1].into_iter().enumerate() {
        let (id, other) = (format!("m{number}"), format!("n{number}"));
        let sent = deliveries(&[&id, &other], 300);
        let frame = framed(&sent.encode_to_vec());
        for piece in frame.chunks(cut.min(frame.len())).map(Bytes::copy_from_slice) {
            hand.send(piece).await;
        }
        let got = one_message(&open.piece().await.expect("a piece").expect("a message"));
        assert_eq!((got.newer.as_str(), got.received.len()), ("unknown", 2));
        for (got, sent) in got.received.iter().zip(&sent.received) {
            let (message, original) =
                (got.message.as_ref().expect("one"), sent.message.as_ref().expect("one"));
            assert_eq!((&got.ack_id, &message.data), (&sent.ack_id, &original.data));
            let context = &message.attributes["googclient_traceparent"];
            contexts.push((message.message_id.clone(), Traceparent::of(context).expect("legal")));
        }
        // The span is handed out while the stream is open.
        let count = contexts.len();
        mesh.collector.spans_when("the deliveries' spans", |spans| spans.len() == count).await;
    }
    hand.trailers(status(14)).await;
    let end = open.rest().await;
    assert_eq!((end.trailer("grpc-status"), &end.broken), (Some("14"), &None));
    drop(requests);
    let spans = mesh.end([shipping]).await;
    assert_connected(&spans, &["b7ad6b7169203331"]);
    assert_eq!(spans.len(), 9);
    for (id, context) in &contexts {
        let span = the_only(&spans, |span| span["messaging.message.id"] == id.as_str());
        assert_eq!((span.kind, span.name.as_str()), (Kind::Consumer, "shipping receive"));
        assert_eq!((&span.trace, &span.id), (&context.trace, &context.span));
        assert_eq!((span.parent.as_str(), context.flags.as_str()), ("b7ad6b7169203331", "03"));
        assert_eq!(span["messaging.gcp_pubsub.message.delivery_attempt"], 2);
    }
    let pull = the_only(&spans, |span| span.kind == Kind::Client);
    assert_eq!((pull.name.as_str(), pull.links.len()), ("shipping pull", 8), "{}", listing(&spans));
    assert_eq!(pull["messaging.batch.message_count"], 8);
}

#[tokio::test]
async fn what_a_stream_cannot_edit_passes_through_and_is_counted() {
    let mesh = Mesh::new().await;
    let Pulling { _broker, shipping, requests, hand, mut open } = streaming_pull(&mesh, usize::MAX).await;
    let mut compressed = framed(&deliveries(&["z"], 10).encode_to_vec()).to_vec();
    compressed[0] = 1;
    let large = framed(&deliveries(&["large"], LIMIT).encode_to_vec()).to_vec();
    let broken = framed(b"\x0a\x7fno protobuf").to_vec();
    let empty = framed(b"").to_vec();
    for frame in [&compressed, &large, &broken, &empty] {
        hand.send(frame.clone()).await;
        let mut got = Vec::new();
        while got.len() < frame.len() {
            got.extend_from_slice(&open.piece().await.expect("a piece").expect("more"));
        }
        assert_eq!(&got, frame);
    }
    hand.send(framed(&deliveries(&["after"], 10).encode_to_vec())).await;
    let after = one_message(&open.piece().await.expect("a piece").expect("a message"));
    let context = &after.received[0].message.as_ref().expect("one").attributes["googclient_traceparent"];
    assert_ne!(context, PRODUCER, "what comes after is edited again");
    let books = shipping.books().await;
    for reason in ["compressed", "over_limit", "not_protobuf"] {
        let counted = books.sum(UNTOUCHED, &[("reason", reason)]);
        assert_eq!(counted, 1, "{reason} of {:?}", books.labels(UNTOUCHED, "reason"));
    }
    hand.trailers(status(0)).await;
    open.rest().await;
    drop(requests);
    mesh.end([shipping]).await;
}

#[tokio::test]
async fn a_subscription_is_known_however_its_first_request_arrives() {
    for cut in [1, 5, 20] {
        let mesh = Mesh::new().await;
        let Pulling { _broker, shipping, requests, hand, mut open } = streaming_pull(&mesh, cut).await;
        hand.trailers(status(0)).await;
        open.rest().await;
        drop(requests);
        let spans = mesh.end([shipping]).await;
        assert_eq!(the_only(&spans, |_| true).name, "shipping pull", "cut after {cut} bytes");
    }
}
