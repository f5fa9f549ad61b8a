//! CloudEvents made and judged by the official Rust SDK.

use cloudevents::{AttributesReader, Event, EventBuilder, EventBuilderV10};
use serde_json::{Value, json};
use throughline_tests::prelude::*;
use throughline_tests::service::Traceparent;

use crate::stage::Inbox;

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// As the SDK writes it: its own key order, and a time.
fn event(id: &str, data: Value) -> Event {
    EventBuilderV10::new()
        .id(id)
        .source("/shop/orders")
        .ty("order.placed")
        .time("2026-11-20T12:00:00Z")
        .data("application/json", data)
        .extension("tenant", "blue")
        .build()
        .expect("an event")
}

#[tokio::test]
async fn an_event_of_the_rust_sdk_is_read_by_the_rust_sdk_and_its_data_is_as_it_was() {
    let mesh = Mesh::new().await;
    let inbox = Inbox::default();
    let shipping = mesh.pod("shipping").runs(inbox.accepting(|_, _| 200)).await;
    let orders = mesh.pod("orders").outbound_only().await;
    let data =
        json!({"order": 17, "lines": [{"name": "lamp \"big\"", "price": 12.50}], "note": "größer als €5"});
    let sent = event("r1", data.clone());
    let body = serde_json::to_string(&sent).expect("JSON");
    let answer = Ask::new("POST", shipping.url("/events"))
        .header("content-type", "application/cloudevents+json")
        .header("traceparent", CALLER)
        .header("x-operation-name", "checkout")
        .body(throughline_tests::feed::whole(body.clone()))
        .via(orders.sidecar.outbound())
        .send()
        .await;
    assert_eq!(answer.status, 200);
    let got = inbox.has(1).await.remove(0);
    let read: Event = serde_json::from_slice(&got.data).expect("an event of the SDK");
    assert_eq!((read.id(), read.ty(), read.source().as_str()), (sent.id(), sent.ty(), "/shop/orders"));
    assert_eq!((read.data(), read.time()), (sent.data(), sent.time()));
    let extension = |name: &str| read.extension(name).map(ToString::to_string);
    assert_eq!(extension("tenant").as_deref(), Some("blue"));
    assert_eq!(extension("operationname").as_deref(), Some("checkout"));
    let spans = mesh.end([orders, shipping]).await;
    assert_connected(&spans, &["b7ad6b7169203331"]);
    let consumer = the_only(&spans, |span| span.kind == Kind::Consumer);
    let own = extension("traceparent").as_deref().and_then(Traceparent::of).expect("a context");
    assert_eq!((&own.trace, &own.span), (&consumer.trace, &consumer.id));
    // Every byte of the event that the SDK wrote stands in what arrived, but for what was added at its end.
    let written = body.strip_suffix('}').expect("an object");
    assert!(got.data.starts_with(written.as_bytes()), "{}", String::from_utf8_lossy(&got.data));
}
