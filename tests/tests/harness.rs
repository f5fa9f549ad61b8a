//! The stage itself, tried without a sidecar: what the other scenarios lean on must stand first.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as otlp;
use prost::Message;
use throughline_tests::ask::BOTH;
use throughline_tests::feed::fed;
use throughline_tests::frames::{END_STREAM, Frame, Frames, Verdict};
use throughline_tests::grpc;
use throughline_tests::prelude::*;
use throughline_tests::service::{Traceparent, response};
use throughline_tests::wire::{Nobody, Unanswering, exchange, status_of};
use tokio::sync::Notify;

#[tokio::test]
async fn a_service_answers_in_both_protocols_and_remembers() {
    let service = Service::playing(answer(201, "made")).await;
    for protocol in BOTH {
        let ask = Ask::get(service.url("/a?b")).header("x-one", "1").over(protocol);
        let answer = ask.send().await;
        assert_eq!((answer.status, answer.text().as_str()), (201, "made"), "{protocol:?}");
    }
    let seen = service.saw(2).await;
    assert!(seen.iter().all(|seen| seen.header("x-one") == Some("1") && seen.uri.path() == "/a"));
}

#[tokio::test]
async fn a_fed_body_is_echoed_piece_by_piece() {
    let service = Service::playing(echo()).await;
    for protocol in BOTH {
        let (feeder, body) = fed();
        let sending = Ask::new("POST", service.url("/")).over(protocol).body(body).open();
        let (mut open, _) = tokio::join!(sending, feeder.send("first"));
        assert_eq!(open.piece().await, Ok(Some(Bytes::from("first"))));
        feeder.send("second").await;
        assert_eq!(open.piece().await, Ok(Some(Bytes::from("second"))));
        drop(feeder);
        assert_eq!(open.piece().await, Ok(None));
    }
}

#[tokio::test]
async fn a_body_that_breaks_is_told_from_one_that_ends() {
    let word = Arc::new(Notify::new());
    let heard = Arc::clone(&word);
    let service = Service::playing(script(move |_| {
        let word = Arc::clone(&heard);
        async move {
            let (feeder, body) = fed();
            tokio::spawn(async move {
                feeder.send("half").await;
                word.notified().await;
                feeder.break_off().await;
            });
            http::Response::new(body)
        }
    }))
    .await;
    for protocol in BOTH {
        let mut open = Ask::get(service.url("/")).over(protocol).open().await;
        assert_eq!(open.piece().await, Ok(Some(Bytes::from("half"))));
        word.notify_one();
        let answer = open.rest().await;
        assert!(answer.broken.is_some(), "{protocol:?}: {answer:?}");
    }
}

#[tokio::test]
async fn the_collector_takes_both_protocols_and_reacts_as_told() {
    let collector = Collector::start().await;
    let span =
        otlp::Span { trace_id: vec![1; 16], span_id: vec![2; 8], name: "one".into(), ..Default::default() };
    let scope_spans = vec![otlp::ScopeSpans { spans: vec![span], ..Default::default() }];
    let resource = Some(Resource::default());
    let group = otlp::ResourceSpans { resource, scope_spans, ..Default::default() };
    let bytes = ExportTraceServiceRequest { resource_spans: vec![group] }.encode_to_vec();
    let by_http = || {
        Ask::post(format!("{}/v1/traces", collector.endpoint()), bytes.clone())
            .header("content-type", "application/x-protobuf")
    };
    let by_grpc = || {
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        Ask::post(format!("{}{path}", collector.endpoint()), grpc::framed(&bytes))
            .header("content-type", "application/grpc")
            .over(Protocol::H2)
    };
    collector.then([Reaction::RetryAfter(429, 3), Reaction::CodeRetryInfo(8, 1500), Reaction::Reject(1)]);
    let refused = by_http().send().await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("3")));
    let refused = by_grpc().send().await;
    // code 8, message "no", one detail: the RetryInfo of 1 s and 500,000,000 ns.
    let wanted = "CAgSAm5vGjYKKHR5cGUuZ29vZ2xlYXBpcy5jb20vZ29vZ2xlLnJwYy5SZXRyeUluZm8SCgoICAEQgMq17gE";
    assert_eq!(refused.header("grpc-status"), Some("8"));
    assert_eq!(refused.header("grpc-status-details-bin"), Some(wanted));
    let partial = by_http().send().await;
    let partial = ExportTraceServiceResponse::decode(partial.body).expect("a response");
    assert_eq!(partial.partial_success.map(|partial| partial.rejected_spans), Some(1));
    let agreed = by_grpc().send().await;
    assert_eq!((agreed.status, agreed.trailer("grpc-status")), (200, Some("0")));
    let spans = collector.spans(2).await;
    assert_eq!(the_only(&spans[..1], |span| span.name == "one").trace, "01".repeat(16));
    assert_eq!(collector.deliveries().len(), 4);
}

#[tokio::test]
async fn frames_by_hand_are_understood_and_their_answer_is_read() {
    let service = Service::playing(script(|visit| async move {
        let status = visit.request.uri().path()[1..].parse().unwrap_or(500);
        response(status, "")
    }))
    .await;
    for status in [200, 400, 431, 502, 504, 307, 289] {
        let path = format!("/{status}");
        let mut frames = Frames::to(service.address, &[]).await;
        let authority = service.address.to_string();
        let fields: [(&[u8], &[u8]); 4] = [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":path", path.as_bytes()),
            (b":authority", authority.as_bytes()),
        ];
        frames.send(Frame::headers(1, &fields, END_STREAM)).await;
        assert_eq!(frames.verdict(1).await, Verdict::Status(status));
    }
}

#[tokio::test]
async fn nobody_refuses_and_a_full_queue_stays_silent() {
    let nobody = Nobody::listens();
    let refused = tokio::net::TcpStream::connect(nobody.address).await;
    assert_eq!(refused.map(|_| ()).map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionRefused));
    let _silent = Unanswering::start().await;
}

#[tokio::test]
async fn a_bare_peer_says_what_it_is_told() {
    let peer = Peer::saying("HTTP/1.1 299 odd\r\n\r\n").await;
    let answer = exchange(peer.address, "GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!((status_of(&answer), peer.connections()), (299, 1));
}

#[test]
fn the_books_are_read_and_added_up() {
    let books = Books::read(
        "# HELP x y\nthroughline_spans_created_total 5\nthroughline_spans_exported_total 2\n\
         throughline_spans_held 1\nthroughline_spans_dropped_total{reason=\"queue_full\"} 1\n\
         throughline_spans_dropped_total{reason=\"a \\\"b\\\" }, c\"} 1\n",
    );
    books.assert_balanced();
    assert_eq!(books.dropped_by("queue_full"), 1);
    assert_eq!(books.labels("throughline_spans_dropped_total", "reason"), ["a \"b\" }, c", "queue_full"]);
}

#[test]
fn a_traceparent_is_taken_apart_only_when_it_is_legal() {
    let legal = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert!(Traceparent::of(legal).is_some_and(|parent| parent.sampled()));
    for illegal in ["", &legal.to_uppercase(), &legal[1..], "00-0-0-01", &format!("{legal}-")] {
        assert_eq!(Traceparent::of(illegal), None);
    }
}

#[test]
fn copying_takes_what_it_names_and_keeps_several_lines() {
    let mut headers = HeaderMap::new();
    headers.append("tracestate", "a=1".parse().expect("a value"));
    headers.append("tracestate", "b=2".parse().expect("a value"));
    headers.append("host", "x".parse().expect("a value"));
    let copied = Copying::Everything.from(&headers);
    assert_eq!(copied.get_all("tracestate").iter().count(), 2);
    assert_eq!(copied.len(), 2);
    assert!(Copying::Nothing.from(&headers).is_empty());
}
