//! What is edited keeps its framing right; nobody waits for bytes that are not there yet; what belongs to the
//! application and the broker, such as authorization, passes through.

use serde_json::json;
use throughline_tests::feed::{fed, whole};
use throughline_tests::prelude::*;
use throughline_tests::service::response;

use crate::limits::{LIMIT, PUBLISH, UNTOUCHED, chunked, echoing, gzip, publish_body, push_body, untouched};
use crate::stage::{Form, Message};

#[tokio::test]
async fn an_edited_body_has_the_length_that_its_head_says() {
    let (mesh, broker, orders) = echoing().await;
    let publish = format!("http://{}{PUBLISH}", orders.sidecar.outbound());
    let (push, event) = (orders.url("/push"), orders.url("/events"));
    let message = Message::new(Form::Structured, "1");
    let rows = [
        (publish.as_str(), "application/json", publish_body(&message)),
        (&push, "application/json", push_body(&message)),
        (&event, "application/cloudevents+json", String::from_utf8(message.data.clone()).expect("UTF-8")),
    ];
    for (url, kind, body) in &rows {
        for protocol in [Protocol::H1, Protocol::H2] {
            for known in [true, false] {
                let row = format!("{url} {protocol:?} {known}");
                let ask = Ask::new("POST", url).over(protocol).header("content-type", kind);
                let ask = ask.body(if known { whole(body.clone()) } else { chunked(body.clone().into()) });
                let answer = ask.send().await;
                assert_eq!((answer.status, answer.broken), (200, None), "{row}");
                // A filter can't hold what may be more than Envoy buffers, and any upload may be a push.
                let held = known || *url != push || Host::asked() == Host::Sidecar;
                let longer = answer.body.len() > body.len() + 60;
                assert_eq!(longer, held, "whether it was edited: {row}: {:?}", answer.body);
                let side = if *url == publish { &broker } else { orders.app() };
                let seen = side.seen().pop().expect("a request");
                let (length, told) = (answer.body.len().to_string(), seen.header("content-length"));
                // A held body is known whole, so its length may be told; a wrong one may not.
                assert!(told.map_or(!known, |told| told == length), "{told:?}: {row}");
                let both = told.is_some() && seen.header("transfer-encoding").is_some();
                assert!(!both, "one framing: {row}");
            }
        }
    }
    assert_eq!(mesh.end([orders]).await.len(), 12);
}

#[tokio::test]
async fn an_edited_answer_has_the_length_that_its_head_says_and_other_answers_stay() {
    let mesh = Mesh::new().await;
    let message = Message::new(Form::Binary, "1").rest();
    let text = json!({"receivedMessages": [{"ackId": "a", "message": message}]}).to_string();
    let refused = r#"{"receivedMessages":[{"message":{"data":"aGk="}}]}"#;
    let says = text.clone();
    let broker = Service::playing(script(move |visit| {
        let text = says.clone();
        async move {
            match visit.request.headers().get("x-case").map(|value| value.as_bytes()) {
                Some(b"known") => response(200, text),
                Some(b"chunked") => http::Response::new(chunked(text.into())),
                Some(b"gzip") => {
                    let mut answer = response(200, gzip(text.as_bytes()));
                    answer.headers_mut().insert("content-encoding", "gzip".parse().expect("a value"));
                    answer
                }
                Some(b"large") => response(200, text + &" ".repeat(LIMIT)),
                Some(b"empty") => response(200, "{}"),
                _ => response(429, refused),
            }
        }
    }))
    .await;
    let pod = mesh.pod("shipping").flag("pubsub-upstream", broker.url("")).flag("event-body-limit", LIMIT);
    let shipping = pod.outbound_only().await;
    let url =
        format!("http://{}/v1/projects/shop-1/subscriptions/shipping:pull", shipping.sidecar.outbound());
    for (case, status, edited, reason) in [
        ("known", 200, true, None),
        ("chunked", 200, true, None),
        ("gzip", 200, false, Some("compressed")),
        ("large", 200, false, Some("over_limit")),
        ("refused", 429, false, None),
        ("empty", 200, false, None),
    ] {
        let ask = Ask::post(&url, r#"{"maxMessages":1}"#).header("content-type", "application/json");
        let answer = ask.header("x-case", case).send().await;
        assert_eq!((answer.status, &answer.broken), (status, &None), "{case}");
        let length = answer.body.len().to_string();
        assert!(answer.header("content-length").is_none_or(|told| told == length), "{case}");
        assert_eq!(answer.text().contains("googclient_traceparent"), edited, "{case}: {}", answer.text());
        match case {
            "gzip" => assert_eq!(answer.body, gzip(text.as_bytes())),
            "large" => assert_eq!(answer.text(), text.clone() + &" ".repeat(LIMIT)),
            "refused" => assert_eq!(answer.text(), refused),
            "empty" => assert_eq!(answer.text(), "{}"),
            _ => {}
        }
        if let Some(reason) = reason {
            assert_eq!(untouched(&shipping, reason).await, 1, "{case}");
        }
    }
    let all = shipping.books().await.sum(UNTOUCHED, &[]);
    assert_eq!(all, 2, "a refusal and an empty answer hold no event");
    let spans = mesh.end([shipping]).await;
    assert_eq!(spans.iter().filter(|span| span.kind == Kind::Consumer).count(), 2);
    assert_eq!(spans.iter().filter(|span| span.name == "shipping pull").count(), 6);
}

#[tokio::test]
async fn a_slow_request_that_is_no_push_is_not_held_back() {
    let (mesh, _broker, orders) = echoing().await;
    // A beginning that could still become a push, such as a lone brace, may wait for its next byte.
    for first in ["{\"items\": [1,", "{\"i", "[", "7", "x"] {
        let (feeder, body) = fed();
        let ask = Ask::new("POST", orders.url("/slow")).header("content-type", "application/json").body(body);
        feeder.send(first).await;
        let mut open = ask.open().await;
        // The application has it, and answered with it, before there is any more.
        assert_eq!(open.piece().await.expect("a piece").as_deref(), Some(first.as_bytes()), "{first:?}");
        feeder.send("the rest").await;
        drop(feeder);
        assert_eq!(open.rest().await.text(), "the rest");
    }
    assert_eq!(mesh.end([orders]).await.len(), 5);
}

#[tokio::test]
async fn a_push_is_known_however_its_bytes_arrive() {
    let (mesh, broker, orders) = echoing().await;
    drop(broker);
    let body = push_body(&Message::new(Form::Binary, "1"));
    for cut in [1, 2, 5, 12, 200] {
        let mut wire = Wire::to(orders.sidecar.inbound()).await;
        let head = format!(
            "POST /push HTTP/1.1\r\nHost: orders\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        wire.send(head).await;
        wire.send(&body[..cut]).await;
        // Two packets, not one: the sidecar has read the first when the second comes.
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        wire.send(&body[cut..]).await;
        let answer = wire.rest_text().await;
        assert!(answer.contains("googclient_traceparent"), "after {cut} bytes: {answer}");
    }
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.iter().filter(|span| span.name == "shipping process").count(), 5);
}

#[tokio::test]
async fn a_bare_push_of_an_event_is_joined_where_its_content_type_allows_json() {
    let (trace, producer) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    for kind in [Some("application/json"), None] {
        let (mesh, _broker, orders) = echoing().await;
        let event = String::from_utf8(Message::new(Form::Structured, "1").data).expect("UTF-8");
        let context = format!(r#","traceparent":"00-{trace}-{producer}-01"}}"#);
        let event = event.trim_end_matches(['}', ' ']).to_owned() + "}" + &context;
        let ask = Ask::post(orders.url("/bare"), event).headers(kind.map(|kind| ("content-type", kind)));
        assert_eq!(ask.send().await.status, 200);
        let seen = orders.app().saw_one().traceparent();
        let spans = mesh.end([orders]).await;
        let span = the_only(&spans, |_| true);
        assert_eq!((span.name.as_str(), span.kind), ("order.placed process", Kind::Consumer), "{kind:?}");
        assert_eq!((span.trace.as_str(), span.parent.as_str()), (trace, producer), "{kind:?}");
        assert_eq!((seen.trace, seen.span), (span.trace, span.id), "{kind:?}");
    }
}

#[tokio::test]
async fn authorization_passes_through_to_the_pubsub_upstream() {
    let (mesh, broker, orders) = echoing().await;
    let url = format!("http://{}{PUBLISH}", orders.sidecar.outbound());
    let ask = Ask::post(url, publish_body(&Message::new(Form::Plain, "1")));
    let ask = ask.headers([("authorization", "Bearer abc.def"), ("content-type", "application/json")]);
    ask.header("x-goog-user-project", "billing").send().await;
    let seen = broker.saw_one();
    assert_eq!(seen.header("authorization"), Some("Bearer abc.def"));
    assert_eq!(seen.header("x-goog-user-project"), Some("billing"));
    assert_eq!(seen.header("host"), Some(broker.address.to_string().as_str()));
    assert_eq!(mesh.end([orders]).await.len(), 1);
}

#[tokio::test]
async fn what_the_application_calls_on_a_push_belongs_to_the_producers_trace_and_operation() {
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").runs(answer(200, "12")).await;
    let shipping = mesh.pod("shipping").runs(calling(stock.url("/items"), Copying::TraceparentOnly)).await;
    let (trace, producer) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let message = Message::new(Form::Binary, "1").with("ce-operationname", "checkout");
    let message = message.with("googclient_traceparent", &format!("00-{trace}-{producer}-03"));
    let ask =
        Ask::post(shipping.url("/push"), push_body(&message)).header("content-type", "application/json");
    assert_eq!(ask.send().await.text(), "12");
    let seen = stock.app().saw_one();
    assert_eq!(seen.header("x-operation-name"), Some("checkout"));
    assert_eq!(seen.header("baggage"), Some("app.operation.name=checkout"));
    let spans = mesh.end([shipping, stock]).await;
    assert_connected(&spans, &[producer]);
    assert!(
        spans.iter().all(|span| span.trace == trace && span["app.operation.name"] == "checkout"),
        "{spans:#?}"
    );
    assert_eq!(spans.len(), 3);
}
