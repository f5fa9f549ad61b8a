//! The flow of the mission's documents: Sentinel polls, publishes a CloudEvent, the adapter receives it and
//! reports the status back, all in one trace, with the names that the documents ask for.

use serde_json::json;
use throughline_tests::feed::whole;
use throughline_tests::prelude::*;
use throughline_tests::service::{read, response};
use throughline_tests::span::{listing, span_of};

use crate::emulator::{Delivery, Emulator, subscription, topic};
use crate::stage::{Form, Message, call, pull};

const CLUSTERS: &str = "hyperfleet-clusters";

/// On a poll, reads the clusters and publishes that one has changed, with the headers of its caller.
fn sentinel(api: String) -> Script {
    script(move |visit| {
        let context = Copying::Everything.from(visit.request.headers());
        let api = api.clone();
        async move {
            let outbound = visit.outbound.address();
            let list = Ask::get(format!("{api}/clusters")).copied(context.clone());
            assert_eq!(visit.outbound.send(list).await.text(), "[\"c-1\"]");
            let message =
                Message::new(Form::Binary, "c-1-changed").with("ce-type", "hyperfleet.cluster.changed");
            let body = json!({"messages": [message.rest()]}).to_string();
            let publish = Ask::post(format!("http://{outbound}/v1/{}:publish", topic(CLUSTERS)), body);
            let answer = publish.header("content-type", "application/json").copied(context).send().await;
            response(answer.status, answer.body)
        }
    })
}

/// Lists clusters and takes a status.
fn api() -> Script {
    script(|visit| async move {
        match visit.request.method().as_str() {
            "GET" => response(200, "[\"c-1\"]"),
            _ => {
                assert_eq!(read(visit.request).await, r#"{"status":"ready"}"#);
                response(204, "")
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinel_polls_and_publishes_the_adapter_receives_and_patches_in_one_trace() {
    let Some(emulator) = Emulator::start().await else { return };
    let upstream = emulator.url("");
    emulator.topic(CLUSTERS).await;
    emulator.subscribe(CLUSTERS, CLUSTERS, Delivery::Pull).await;
    let mesh = Mesh::new().await;
    let api = mesh.pod("hyperfleet-api").runs(api()).await;
    let sentinel = mesh.pod("sentinel").flag("pubsub-upstream", &upstream).runs(sentinel(api.url(""))).await;
    let adapter = mesh.pod("adapter").flag("pubsub-upstream", &upstream).outbound_only().await;

    let poll = Ask::post(sentinel.url("/poll"), "").header("x-operation-name", "reconcile");
    assert_eq!(poll.send().await.status, 200);
    let endpoint = adapter.sidecar.outbound();
    let got = eventually("the event", || async { pull(endpoint, CLUSTERS, &[]).await.pop() }).await;
    // The adapter goes on with what the event says, as CloudEvents' distributed tracing has it.
    let event = got.extension(Form::Binary, "traceparent").expect("a traceparent");
    let operation = got.extension(Form::Binary, "operationname").expect("an operation");
    let patch = Ask::new("PATCH", api.url("/clusters/c-1/status")).via(endpoint);
    let patch = patch.header("traceparent", event).header("x-operation-name", &operation);
    assert_eq!(patch.body(whole(r#"{"status":"ready"}"#)).send().await.status, 204);
    call(endpoint, &subscription(CLUSTERS), "acknowledge", json!({"ackIds": [got.ack]}), &[]).await;

    let spans = mesh.end([sentinel, adapter, api]).await;
    assert_connected(&spans, &[]);
    let poll = span_of(&spans, "sentinel", Kind::Server);
    let flow: Vec<_> = spans.iter().filter(|span| span.trace == poll.trace).cloned().collect();
    assert_eq!(flow.len(), 7, "{}", listing(&spans));
    assert!(flow.iter().all(|span| span["app.operation.name"] == "reconcile"), "{}", listing(&flow));
    let publish = the_only(&flow, |span| span.name == "hyperfleet-clusters publish");
    let receive = the_only(&flow, |span| span.name == "hyperfleet-clusters receive");
    assert_eq!((publish.service(), publish.kind, &publish.parent), ("sentinel", Kind::Producer, &poll.id));
    assert_eq!((receive.service(), receive.kind, &receive.parent), ("adapter", Kind::Consumer, &publish.id));
    let patch = span_of(&flow, "adapter", Kind::Client);
    assert_eq!((patch["http.request.method"].as_str(), &patch.parent), (Some("PATCH"), &receive.id));
    let served = the_only(&flow, |span| span.parent == patch.id);
    assert_eq!((served.service(), served.kind), ("hyperfleet-api", Kind::Server));
    let list = span_of(&flow, "sentinel", Kind::Client);
    assert_eq!((list["http.request.method"].as_str(), &list.parent), (Some("GET"), &poll.id));
    // The pull that brought it is a trace of its own that links into this one.
    let pulled = the_only(&spans, |span| span.name == "hyperfleet-clusters pull" && !span.links.is_empty());
    assert_eq!(pulled.links, [(receive.trace.clone(), receive.id.clone())]);
}
