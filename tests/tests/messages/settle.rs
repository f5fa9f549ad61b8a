//! Acks, nacks and batches: n deliveries are n consumer spans of one producer, the broker is told what the
//! application said and nothing else, and several messages of one call each have a span of their own.

use serde_json::json;
use throughline_tests::judges::python;
use throughline_tests::prelude::*;
use throughline_tests::span::listing;

use crate::emulator::{Delivery, subscription, topic};
use crate::stage::{FORMS, Form, Google, Got, Message, Stage, call, publish, pull, pull_all};

/// Refuses the first two pushes to each path that is to be tried again.
fn twice_refused(path: &str, number: usize) -> u16 {
    if path.ends_with("/again") && number <= 2 { 503 } else { 204 }
}

const PATHS: [&str; 5] =
    ["/wrapped/again", "/metadata/again", "/wrapped/uncounted/again", "pulled", "streamed"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_delivery_of_a_message_is_a_span_of_its_own_under_one_producer() {
    let Some(stage) = Stage::set_with(twice_refused).await else { return };
    stage.emulator.topic("dead-letters").await;
    let counted = json!({
        "deadLetterPolicy": {"deadLetterTopic": topic("dead-letters"), "maxDeliveryAttempts": 10},
        "retryPolicy": {"minimumBackoff": "0.1s", "maximumBackoff": "0.2s"},
    });
    let url = |path: &str| stage.shipping.url(path);
    for (id, delivery) in [
        ("wrapped", Delivery::Wrapped(url("/wrapped/again"))),
        ("metadata", Delivery::Metadata(url("/metadata/again"))),
        ("pulled", Delivery::Pull),
        ("streamed", Delivery::Pull),
    ] {
        stage.emulator.subscribe_with("orders", id, delivery, counted.clone()).await;
    }
    // What is not counted has no attempt, but its deliveries still have a span each.
    stage.emulator.subscribe("orders", "uncounted", Delivery::Wrapped(url("/wrapped/uncounted/again"))).await;
    publish(stage.orders.sidecar.outbound(), "orders", &[Message::new(Form::Binary, "once")], &[]).await;

    let endpoint = stage.shipping.sidecar.outbound();
    let named = |path: &str, got: Vec<Got>| -> Vec<Got> {
        got.into_iter().map(|one| Got { path: path.to_owned(), ..one }).collect()
    };
    let mut all = named("pulled", given_back_twice(endpoint).await);
    all.extend(stage.inbox.has(9).await);
    if let Some(interpreter) = python(&["google.cloud.pubsub_v1"]) {
        let google = Google { interpreter: &interpreter, endpoint, collector: None };
        all.extend(named("streamed", google.streams("streamed", 3, 2).await));
    }
    let spans = stage.end().await;
    assert_connected(&spans, &[]);
    let producer = the_only(&spans, |span| span.kind == Kind::Producer);
    let deliveries: Vec<_> = spans.iter().filter(|span| span.kind == Kind::Consumer).collect();
    assert_eq!(deliveries.len(), all.len(), "{}", listing(&spans));
    assert!(deliveries.iter().all(|span| span.parent == producer.id), "{}", listing(&spans));
    for path in PATHS {
        let of: Vec<_> = all.iter().filter(|got| got.path == path).collect();
        if of.is_empty() && path == "streamed" {
            continue; // skipped, and said so
        }
        assert_eq!(of.len(), 3, "{path}");
        let mut attempts: Vec<_> = of.iter().map(|got| attempt_of(got, &spans)).collect();
        attempts.sort();
        match path {
            "pulled" | "streamed" => assert_eq!(attempts, [Some(1), Some(2), Some(3)], "{path}"),
            // The emulator does not tell the attempt in what it pushes, as the service does.
            _ => assert_eq!(attempts, [None; 3], "{path}"),
        }
        let refused = of.iter().filter(|got| status_of(got, &spans) == SpanStatus::Error).count();
        assert_eq!(refused, if path.ends_with("/again") { 2 } else { 0 }, "{path}");
    }
    let moved = spans.iter().filter(|span| span.name == "pulled modify_ack_deadline");
    assert_eq!(moved.count(), 2, "{}", listing(&spans));
    the_only(&spans, |span| span.name == "pulled acknowledge").assert_attributes(&[
        ("messaging.operation.type", "settle".into()),
        ("messaging.destination.subscription.name", "pulled".into()),
    ]);
}

/// Pulls over REST, gives two deliveries back and acknowledges the third.
async fn given_back_twice(endpoint: std::net::SocketAddr) -> Vec<Got> {
    let mut pulled = Vec::new();
    while pulled.len() < 3 {
        let got = within("a pulled message", pull(endpoint, "pulled", &[])).await;
        let ids: Vec<_> = got.iter().map(|one| one.ack.clone()).collect();
        let (verb, body) = match pulled.len() {
            2 => ("acknowledge", json!({"ackIds": ids})),
            _ => ("modifyAckDeadline", json!({"ackIds": ids, "ackDeadlineSeconds": 0})),
        };
        if !ids.is_empty() {
            call(endpoint, &subscription("pulled"), verb, body, &[]).await;
        }
        pulled.extend(got);
    }
    pulled
}

fn attempt_of(got: &Got, spans: &[Span]) -> Option<i64> {
    let span = the_only(spans, |span| span.id == got.context().span);
    let attempt = span["messaging.gcp_pubsub.message.delivery_attempt"].as_i64();
    assert_eq!(attempt, got.attempt.map(|attempt| attempt as i64), "{span:#?}");
    attempt
}

fn status_of(got: &Got, spans: &[Span]) -> SpanStatus {
    let span = the_only(spans, |span| span.id == got.context().span);
    let refused = span["http.response.status_code"] == 503;
    assert_eq!(refused, span.status == SpanStatus::Error, "{span:#?}");
    span.status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_of_a_batch_has_a_span_and_a_delivery_of_its_own() {
    let Some(stage) = Stage::set().await else { return };
    for id in ["rest-pulled", "grpc-pulled"] {
        stage.emulator.subscribe("orders", id, Delivery::Pull).await;
    }
    let batch = |by: &str| -> Vec<_> {
        let keyed = |form: &Form| Message {
            key: "blue".to_owned(),
            ..Message::new(*form, &format!("{by}-{form:?}"))
        };
        FORMS.iter().map(keyed).collect()
    };
    let mut sent = batch("rest");
    publish(stage.orders.sidecar.outbound(), "orders", &sent, &[]).await;
    let interpreter = python(&["google.cloud.pubsub_v1"]);
    let endpoint = stage.shipping.sidecar.outbound();
    let mut got = Vec::new();
    if let Some(interpreter) = &interpreter {
        let google = Google { interpreter, endpoint: stage.orders.sidecar.outbound(), collector: None };
        google.publishes("orders", &batch("google"), true).await;
        sent.extend(batch("google"));
        got.extend(Google { endpoint, ..google }.pulls("grpc-pulled", sent.len()).await);
    }
    got.extend(pull_all(endpoint, "rest-pulled", sent.len()).await);
    let spans = stage.end().await;
    assert_connected(&spans, &[]);
    let is_call = |span: &&Span| span.service() == "orders" && span.kind == Kind::Client;
    let calls: Vec<_> = spans.iter().filter(is_call).collect();
    assert_eq!(calls.len(), sent.len() / 3, "one call a batch: {}", listing(&spans));
    assert!(calls.iter().all(|call| call["messaging.batch.message_count"] == 3), "{calls:#?}");
    let producers: Vec<_> = spans.iter().filter(|span| span.kind == Kind::Producer).collect();
    assert_eq!(producers.len(), sent.len());
    for producer in &producers {
        assert!(calls.iter().any(|call| call.id == producer.parent), "{producer:#?}");
        assert_eq!(producer["messaging.gcp_pubsub.message.ordering_key"], "blue", "{producer:#?}");
        let children = spans.iter().filter(|span| span.parent == producer.id);
        assert_eq!(children.count(), got.len() / sent.len(), "one of each pull: {}", listing(&spans));
    }
    for one in &got {
        let consumer = the_only(&spans, |span| span.id == one.context().span);
        assert_eq!(consumer.kind, Kind::Consumer);
        let published = one.data_as_published();
        let same = sent.iter().filter(|message| message.data == published.as_bytes());
        assert_eq!(same.count(), 1, "{published}");
    }
    // The pull's own span links to the spans of what it brought.
    let is_pull = |span: &&Span| span.name.ends_with(" pull") && !span.links.is_empty();
    let pulls: Vec<_> = spans.iter().filter(is_pull).collect();
    let linked: usize = pulls.iter().map(|span| span.links.len()).sum();
    assert_eq!(linked, got.len(), "{}", listing(&spans));
    assert!(pulls.iter().all(|span| span.kind == Kind::Client && span.service() == "shipping"));
}
