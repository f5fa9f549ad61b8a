//! The stage of the scenarios with a broker: `orders` publishes through its outbound side, `shipping` gets what
//! is pushed through its inbound side and pulls through its outbound side. Both outbound sides stand for the
//! Pub/Sub endpoint.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};
use throughline_tests::judges::PeerProcess;
use throughline_tests::prelude::*;
use throughline_tests::service::{Traceparent, read, response};
use tokio::sync::watch;

use crate::base64;
use crate::emulator::{Emulator, subscription, topic};

/// How a message carries its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A CloudEvent in the attributes.
    Binary,
    /// A CloudEvent in the data.
    Structured,
    /// No CloudEvent.
    Plain,
}

pub(crate) const FORMS: [Form; 3] = [Form::Binary, Form::Structured, Form::Plain];

/// A message as an application publishes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) data: Vec<u8>,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) key: String,
    /// The context of the application's call.
    pub(crate) caller: Option<String>,
}

/// JSON that a reader who writes it anew would change: white space, escapes, numbers, keys that come twice.
pub(crate) fn json_data(id: &str) -> String {
    format!(r#"{{ "n":1.0e2,"big":12345678901234567890, "a":1,"a":2,"text":"caf\u00e9 \/ é", "id":"{id}"}}"#)
}

impl Message {
    /// A message of one of the forms. Its data names `id`, so that it is known again whatever is lost.
    pub(crate) fn new(form: Form, id: &str) -> Message {
        let data = json_data(id);
        let (data, attributes): (String, &[(&str, &str)]) = match form {
            Form::Binary => (
                data,
                &[
                    ("ce-specversion", "1.0"),
                    ("ce-id", id),
                    ("ce-source", "/shop/orders"),
                    ("ce-type", "order.placed"),
                    ("ce-subject", "42"),
                    ("content-type", "application/json"),
                ],
            ),
            Form::Structured => {
                let head = format!(r#"{{ "specversion" : "1.0","id":"{id}", "source":"\/shop\/orders","#);
                let rest = format!(r#""type":"order.placed",  "subject":"42","data" : {data} }}"#);
                (head + &rest, &[("content-type", "application/cloudevents+json; charset=utf-8")])
            }
            Form::Plain => (data, &[("kind", "plain")]),
        };
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Message { data: data.into(), attributes: attributes.collect(), ..Message::default() }
    }

    /// Sets an attribute.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Message {
        self.attributes.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Gives the application's call a context.
    pub(crate) fn called_by(mut self, traceparent: impl Into<String>) -> Message {
        self.caller = Some(traceparent.into());
        self
    }

    pub(crate) fn rest(&self) -> Value {
        let mut message = json!({"data": base64::encode(&self.data), "attributes": self.attributes});
        if !self.key.is_empty() {
            message["orderingKey"] = json!(self.key);
        }
        message
    }

    pub(crate) fn planned(&self) -> Value {
        json!({
            "data": base64::encode(&self.data),
            "attributes": self.attributes,
            "key": self.key,
            "traceparent": self.caller,
        })
    }
}

/// A message as an application got it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Got {
    /// Where it was posted to, if it was pushed.
    pub(crate) path: String,
    /// The request's own headers, if it was pushed.
    pub(crate) headers: HeaderMap,
    pub(crate) data: Vec<u8>,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) id: String,
    pub(crate) attempt: Option<u64>,
    pub(crate) ack: String,
}

impl Got {
    /// From the JSON of a pull, a wrapped push or our Python peer.
    pub(crate) fn of(received: &Value) -> Got {
        let message = received.get("message").unwrap_or(received);
        let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
        let attributes = message["attributes"].as_object().cloned().unwrap_or_default();
        let attempt =
            [&received["deliveryAttempt"], &received["attempt"]].into_iter().find_map(Value::as_u64);
        let text_of = |value: Value| value.as_str().expect("a text").to_owned();
        Got {
            data: base64::decode(&text("data")),
            attributes: attributes.into_iter().map(|(name, value)| (name, text_of(value))).collect(),
            id: text("messageId") + &text("id"),
            ack: received["ackId"].as_str().unwrap_or_default().to_owned(),
            attempt,
            ..Got::default()
        }
    }

    fn posted(path: &str, headers: HeaderMap, body: &Bytes) -> Got {
        if path.starts_with("/wrapped") {
            let push: Value = serde_json::from_slice(body).expect("a push in JSON");
            return Got { path: path.to_owned(), headers, ..Got::of(&push) };
        }
        let attributes = headers.iter().map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        let attributes: BTreeMap<_, _> = attributes.collect();
        let id = attributes.get("x-goog-pubsub-message-id").cloned().unwrap_or_default();
        let data = body.to_vec();
        Got { path: path.to_owned(), headers, data, attributes, id, ..Got::default() }
    }

    /// The value of an attribute.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    /// The value of an extension of the event.
    pub(crate) fn extension(&self, form: Form, name: &str) -> Option<String> {
        match form {
            Form::Plain => None,
            Form::Binary => self.attribute(&format!("ce-{name}")).map(str::to_owned),
            Form::Structured => {
                let event: Value = serde_json::from_slice(&self.data).expect("an event in JSON");
                event[name].as_str().map(str::to_owned)
            }
        }
    }

    /// The context that the application goes on with: of the request if it was pushed, else of the message.
    pub(crate) fn context(&self) -> Traceparent {
        let header = self.headers.get("traceparent").and_then(|value| value.to_str().ok());
        let text = header.or_else(|| self.attribute("googclient_traceparent"));
        let text = text.unwrap_or_else(|| panic!("no context came: {self:#?}"));
        Traceparent::of(text).unwrap_or_else(|| panic!("an illegal traceparent came: {text:?}"))
    }

    /// The data without the extensions that we add to structured events, byte for byte.
    pub(crate) fn data_as_published(&self) -> String {
        let mut text = String::from_utf8(self.data.clone()).expect("UTF-8");
        for name in ["traceparent", "origintraceparent", "operationname"] {
            let Some(from) = text.find(&format!(r#","{name}":""#)) else { continue };
            let value = from + name.len() + 5;
            let to = value + text[value..].find('"').expect("the end of the value") + 1;
            text.replace_range(from..to, "");
        }
        text
    }
}

/// What an application has got so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inbox {
    got: Arc<Mutex<Vec<Got>>>,
    count: Arc<watch::Sender<usize>>,
}

impl Inbox {
    /// An application that accepts what is pushed to it, with a status by path and number of the delivery.
    pub(crate) fn accepting(&self, status: fn(&str, usize) -> u16) -> Script {
        let inbox = self.clone();
        script(move |visit| {
            let inbox = inbox.clone();
            async move {
                let path = visit.request.uri().path().to_owned();
                let headers = visit.request.headers().clone();
                let body = read(visit.request).await;
                let number = {
                    let mut got = inbox.got.lock().expect("the inbox");
                    got.push(Got::posted(&path, headers, &body));
                    got.iter().filter(|one| one.path == path).count()
                };
                inbox.count.send_modify(|count| *count += 1);
                response(status(&path, number), "")
            }
        })
    }

    /// Waits until so many deliveries came.
    pub(crate) async fn has(&self, count: usize) -> Vec<Got> {
        let mut news = self.count.subscribe();
        let what = format!("{count} pushed messages");
        within(&what, news.wait_for(|now| *now >= count)).await.expect("the inbox");
        self.got.lock().expect("the inbox").clone()
    }
}

/// Everybody.
pub(crate) struct Stage {
    pub(crate) emulator: Emulator,
    pub(crate) mesh: Mesh,
    pub(crate) orders: Pod,
    pub(crate) shipping: Pod,
    pub(crate) inbox: Inbox,
}

impl Stage {
    /// The emulator with a topic `orders`, and both pods.
    pub(crate) async fn set() -> Option<Stage> {
        Stage::set_with(|_, _| 204).await
    }

    /// As `set`, with a status for each push by its path and number.
    pub(crate) async fn set_with(status: fn(&str, usize) -> u16) -> Option<Stage> {
        let emulator = Emulator::start().await?;
        let mesh = Mesh::new().await;
        let upstream = format!("http://{}", emulator.address);
        let inbox = Inbox::default();
        let orders = mesh.pod("orders").flag("pubsub-upstream", &upstream).outbound_only().await;
        let shipping = mesh.pod("shipping").flag("pubsub-upstream", &upstream);
        let shipping = shipping.runs(inbox.accepting(status)).await;
        emulator.topic("orders").await;
        Some(Stage { emulator, mesh, orders, shipping, inbox })
    }

    /// Ends both pods; the spans of the whole story.
    pub(crate) async fn end(self) -> Vec<Span> {
        self.mesh.end([self.orders, self.shipping]).await
    }
}

/// Asks a Pub/Sub endpoint.
pub(crate) async fn call(
    endpoint: SocketAddr,
    name: &str,
    verb: &str,
    body: Value,
    headers: Headers<'_>,
) -> Value {
    let answer = Ask::post(format!("http://{endpoint}/v1/{name}:{verb}"), body.to_string())
        .header("content-type", "application/json")
        .headers(headers.iter().copied())
        .send()
        .await;
    assert_eq!(answer.status, 200, "{name}:{verb}: {}", answer.text());
    serde_json::from_slice(&answer.body).expect("an answer in JSON")
}

type Headers<'a> = &'a [(&'a str, &'a str)];

/// Publishes messages in one REST call, whose context is that of the first one.
pub(crate) async fn publish(endpoint: SocketAddr, to: &str, messages: &[Message], headers: Headers<'_>) {
    let context = messages.first().and_then(|message| message.caller.as_deref());
    let headers: Vec<_> = headers.iter().copied().chain(context.map(|text| ("traceparent", text))).collect();
    let body = json!({"messages": messages.iter().map(Message::rest).collect::<Vec<_>>()});
    let answer = call(endpoint, &topic(to), "publish", body, &headers).await;
    assert_eq!(answer["messageIds"].as_array().map(Vec::len), Some(messages.len()), "{answer}");
}

/// Pulls over REST, once; nothing is acknowledged.
pub(crate) async fn pull(endpoint: SocketAddr, from: &str, headers: Headers<'_>) -> Vec<Got> {
    let answer = call(endpoint, &subscription(from), "pull", json!({"maxMessages": 100}), headers).await;
    answer["receivedMessages"].as_array().into_iter().flatten().map(Got::of).collect()
}

/// Pulls over REST and acknowledges until `count` messages came.
pub(crate) async fn pull_all(endpoint: SocketAddr, from: &str, count: usize) -> Vec<Got> {
    let mut all = Vec::new();
    while all.len() < count {
        let got = within("pulled messages", pull(endpoint, from, &[])).await;
        let ids: Vec<_> = got.iter().map(|one| one.ack.clone()).collect();
        if !ids.is_empty() {
            call(endpoint, &subscription(from), "acknowledge", json!({"ackIds": ids}), &[]).await;
        }
        all.extend(got);
    }
    all
}

/// Our script with Google's client, with tracing of its own where a collector is named.
pub(crate) struct Google<'a> {
    pub(crate) interpreter: &'a PathBuf,
    pub(crate) endpoint: SocketAddr,
    pub(crate) collector: Option<&'a Collector>,
}

impl Google<'_> {
    /// Publishes messages, each by itself or all in one call.
    pub(crate) async fn publishes(&self, to: &str, messages: &[Message], batch: bool) {
        let messages: Vec<_> = messages.iter().map(Message::planned).collect();
        let count = messages.len();
        let plan = json!({"name": topic(to), "messages": messages, "batch": batch});
        let ids = self.does("publish", plan, "ids").await;
        assert_eq!(ids.as_array().map(Vec::len), Some(count), "{ids}");
    }

    /// Pulls and acknowledges until `count` messages came.
    pub(crate) async fn pulls(&self, from: &str, count: usize) -> Vec<Got> {
        let plan = json!({"name": subscription(from), "count": count});
        Google::got(&self.does("pull", plan, "messages").await)
    }

    /// Streams until `count` messages came, of which the first `nacks` are given back.
    pub(crate) async fn streams(&self, from: &str, count: usize, nacks: usize) -> Vec<Got> {
        let plan = json!({"name": subscription(from), "count": count, "nacks": nacks});
        Google::got(&self.does("stream", plan, "messages").await)
    }

    fn got(messages: &Value) -> Vec<Got> {
        messages.as_array().expect("a list").iter().map(Got::of).collect()
    }

    async fn does(&self, verb: &str, mut plan: Value, said: &str) -> Value {
        plan["endpoint"] = json!(self.endpoint.to_string());
        if let Some(collector) = self.collector {
            plan["collector"] = json!(format!("{}/v1/traces", collector.endpoint()));
        }
        let script = PeerProcess::python(self.interpreter, "pubsub_peer.py", &[verb, &plan.to_string()]);
        let ended = script.ends().await;
        assert_eq!(ended.code, Some(0), "pubsub_peer.py {verb}: {:#?}", ended.stderr);
        let lines = ended.stdout.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found = lines.filter_map(|line| line.get(said).cloned()).next();
        found.unwrap_or_else(|| panic!("pubsub_peer.py {verb} said no {said}: {:?}", ended.stdout))
    }
}
