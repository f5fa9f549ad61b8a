//! CloudEvents over HTTP, made and judged by PyPI's `cloudevents`: one trace, the data as it was, and an event
//! of somebody else's left with the context that it came with.

use std::path::PathBuf;

use serde_json::{Value, json};
use throughline_tests::judges::{PeerProcess, python};
use throughline_tests::prelude::*;
use throughline_tests::service::Traceparent;
use throughline_tests::span::listing;

use crate::base64;
use crate::stage::{Form, Got, Inbox, json_data};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
/// The context of an event that another system made.
const FOREIGN: &str = "00-99999999999999999999999999999999-8888888888888888-01";

async fn does(interpreter: &PathBuf, verb: &str, plan: &Value) -> Value {
    let peer = PeerProcess::python(interpreter, "cloudevents_peer.py", &[verb, &plan.to_string()]);
    let ended = peer.ends().await;
    assert_eq!(ended.code, Some(0), "cloudevents_peer.py {verb}: {:#?}", ended.stderr);
    serde_json::from_str(&ended.stdout[0]).expect("a line of JSON")
}

fn event(id: &str, data: &[u8], is_json: bool, foreign: bool) -> Value {
    let kind = if is_json { "application/json" } else { "application/octet-stream" };
    let mut attributes = json!({
        "id": id,
        "source": "/shop/orders",
        "type": "order.placed",
        "subject": "ein Käse 100 %",
        "datacontenttype": kind,
        "tenant": "blue",
    });
    if foreign {
        attributes["traceparent"] = json!(FOREIGN);
    }
    json!({"attributes": attributes, "data": base64::encode(data), "json": is_json})
}

/// One posted message, and what both sides made of it.
struct Case {
    mode: &'static str,
    foreign: bool,
    events: Vec<Value>,
    got: Got,
    judged: Vec<Value>,
}

fn rows() -> Vec<(&'static str, bool, Vec<Value>)> {
    let bytes = b"\x00\xff bytes";
    vec![
        ("binary", false, vec![event("b1", json_data("b1").as_bytes(), true, false)]),
        ("binary", false, vec![event("b2", bytes, false, false)]),
        ("binary", true, vec![event("b3", b"", false, true)]),
        ("structured", false, vec![event("s1", json_data("s1").as_bytes(), true, false)]),
        ("structured", false, vec![event("s2", bytes, false, false)]),
        ("structured", true, vec![event("s3", b"\"text\"", true, true)]),
        (
            "batch",
            false,
            vec![event("l1", json_data("l1").as_bytes(), true, false), event("l2", bytes, false, false)],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_over_http_stay_in_one_trace_and_their_data_stays_as_it_was() {
    let Some(interpreter) = python(&["cloudevents.core.bindings.http"]) else { return };
    let (mesh, inbox) = (Mesh::new().await, Inbox::default());
    let shipping = mesh.pod("shipping").runs(inbox.accepting(|_, _| 202)).await;
    let orders = mesh.pod("orders").outbound_only().await;
    let mut cases = Vec::new();
    for (number, (mode, foreign, events)) in rows().into_iter().enumerate() {
        let plan = json!({
            "url": shipping.url("/events"),
            "via": format!("http://{}", orders.sidecar.outbound()),
            "mode": mode,
            "headers": {"traceparent": format!("00-{TRACE}-{CALLER}-01"), "x-operation-name": "checkout"},
            "events": events,
        });
        let sent = does(&interpreter, "send", &plan).await;
        assert_eq!(sent["status"], 202, "{mode}");
        let got = inbox.has(number + 1).await.pop().expect("a request");
        let published = base64::decode(sent["sent"]["body"].as_str().expect("a body"));
        match mode {
            "binary" => assert_eq!(got.data, published, "{mode}"),
            "structured" => {
                // An extension that was there is changed where it stands.
                let context = got.headers["traceparent"].to_str().expect("printable").to_owned();
                let text = got.data_as_published().replace(&context, FOREIGN);
                assert_eq!(text, String::from_utf8(published).expect("UTF-8"), "{mode}");
            }
            _ => {} // the judge decides, event by event
        }
        let plan = json!({"headers": got.attributes, "body": base64::encode(&got.data)});
        let judged = does(&interpreter, "judge", &plan).await;
        let judged = judged["events"].as_array().expect("a list").clone();
        cases.push(Case { mode, foreign, events, got, judged });
    }
    let spans = mesh.end([orders, shipping]).await;
    assert_connected(&spans, &[CALLER, "8888888888888888"]);
    for case in &cases {
        assert_eq!(case.judged.len(), case.events.len(), "{}", case.mode);
        for (sent, arrived) in case.events.iter().zip(&case.judged) {
            check(case, sent, arrived, &spans);
        }
    }
    let of = |service: &str, kind: Kind| {
        spans.iter().filter(|span| span.service() == service && span.kind == kind).count()
    };
    assert_eq!((of("orders", Kind::Producer), of("orders", Kind::Client)), (8, 1), "{}", listing(&spans));
    assert_eq!((of("shipping", Kind::Consumer), of("shipping", Kind::Server)), (8, 1), "{}", listing(&spans));
}

fn check(case: &Case, sent: &Value, arrived: &Value, spans: &[Span]) {
    let id = sent["attributes"]["id"].as_str().expect("an id");
    for (name, value) in sent["attributes"].as_object().expect("attributes") {
        if name != "traceparent" {
            assert_eq!(&arrived["attributes"][name], value, "{id} {name}");
        }
    }
    same_data(sent, arrived);
    assert_eq!(arrived["attributes"]["operationname"], "checkout", "{id}");
    let of = |service: &str| {
        the_only(spans, |span| span.service() == service && span["cloudevents.event_id"] == id)
    };
    let (producer, consumer) = (of("orders"), of("shipping"));
    assert_eq!((producer.kind, producer.name.as_str()), (Kind::Producer, "order.placed publish"));
    assert_eq!((consumer.kind, consumer.name.as_str()), (Kind::Consumer, "order.placed process"));
    assert_eq!(producer.trace, TRACE, "{id}");
    let context = |name: &str| arrived["attributes"][name].as_str().and_then(Traceparent::of).expect(name);
    let (own, origin) = (context("traceparent"), context("origintraceparent"));
    assert_eq!((&own.trace, &own.span), (&consumer.trace, &consumer.id), "{id}");
    if case.foreign {
        // The event keeps where its transmission began, and both spans link to it; the hop, which is the header's
        // between sidecars, is what the consumer hangs under.
        assert_eq!(Some(&origin), Traceparent::of(FOREIGN).as_ref(), "{id}");
        let began = [(origin.trace.clone(), origin.span.clone())];
        assert_eq!((&producer.links[..], &consumer.links[..]), (&began[..], &began[..]), "{id}");
        assert_eq!(consumer.trace, producer.trace, "{id}");
    } else {
        assert_eq!((&consumer.trace, &consumer.parent), (&origin.trace, &origin.span), "{id}");
        assert_eq!((&origin.trace, &origin.span), (&producer.trace, &producer.id), "{id}");
    }
    for span in [&producer, &consumer] {
        span.assert_attributes(&[
            ("cloudevents.event_source", "/shop/orders".into()),
            ("cloudevents.event_type", "order.placed".into()),
            ("cloudevents.event_subject", "ein Käse 100 %".into()),
            ("cloudevents.event_spec_version", "1.0".into()),
            ("messaging.system", Value::Null),
            ("app.operation.name", "checkout".into()),
        ]);
    }
    if case.events.len() == 1 {
        assert_eq!(case.got.context(), own, "the header says the same: {id}");
        assert_eq!(case.got.attribute("x-operation-name"), Some("checkout"), "{id}");
        let form = if case.mode == "binary" { Form::Binary } else { Form::Structured };
        assert_eq!(case.got.extension(form, "tenant").as_deref(), Some("blue"), "{id}");
    }
}

/// Bytes are the same bytes; a JSON object that went through the judge's reader is the same value.
fn same_data(sent: &Value, arrived: &Value) {
    let bytes = |event: &Value| base64::decode(event["data"].as_str().expect("base64"));
    if sent["json"] == false {
        assert_eq!(bytes(sent), bytes(arrived));
    } else if bytes(sent).starts_with(b"{") {
        let value = |event: &Value| serde_json::from_slice::<Value>(&bytes(event)).expect("JSON");
        assert_eq!(value(sent), value(arrived));
    }
}
