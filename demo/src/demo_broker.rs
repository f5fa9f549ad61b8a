//! The demo broker: a stand-in for Pub/Sub where Google's emulator is not installed. Knows four calls,
//! `PUT` of a topic, `PUT` of a push subscription, publish by REST, and the wrapped push with which it
//! delivers; a delivery that is not answered 2xx is tried again. Keeps messages in memory, reads nothing
//! in them, and adds no header of its own to a push: what survives the queue travelled in the message.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use throughline_rim::log::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::call;

/// How long a message lies in the queue: long enough to be seen on a waterfall.
const DELAY: Duration = Duration::from_millis(25);
/// Waits between the tries of one delivery: the first, and what it doubles up to.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Tries of one delivery, after about half a minute of which the message is dropped.
const TRIES_MAX: u32 = 12;
/// Deliveries under way at once, in all: further messages are refused with 429.
const DELIVERIES_MAX: usize = 256;
/// Topics and subscriptions, each: the shop has one of both.
const NAMES_MAX: usize = 16;
/// Messages of one publish.
const BATCH_MAX: usize = 100;

/// Answers Pub/Sub calls on `listener`, for as long as the demo runs.
pub(crate) async fn serve(listener: TcpListener) {
    serve_with(listener, DELAY).await;
}

async fn serve_with(listener: TcpListener, delay: Duration) {
    let broker = Arc::new(DemoBroker {
        delay,
        names: Mutex::default(),
        messages: AtomicU64::new(0),
        deliveries: Arc::new(Semaphore::new(DELIVERIES_MAX)),
    });
    call::serve(listener, move |request| answer(Arc::clone(&broker), request)).await;
}

struct DemoBroker {
    delay: Duration,
    names: Mutex<Names>,
    messages: AtomicU64,
    deliveries: Arc<Semaphore>,
}

#[derive(Default)]
struct Names {
    topics: BTreeSet<String>,
    subscriptions: BTreeMap<String, Subscription>,
}

#[derive(Clone)]
struct Subscription {
    topic: String,
    endpoint: Endpoint,
}

/// Where a subscription pushes to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    address: SocketAddr,
    path: String,
}

impl Endpoint {
    /// Reads a cleartext address by number: the demo has no others.
    fn parse(text: &str) -> Option<Endpoint> {
        let uri: Uri = text.parse().ok().filter(|uri: &Uri| uri.scheme_str() == Some("http"))?;
        let address = uri.authority()?.as_str().parse().ok()?;
        Some(Endpoint { address, path: uri.path_and_query()?.to_string() })
    }
}

/// What the API answers with a status and a reason.
type Refused = (StatusCode, &'static str);

async fn answer(broker: Arc<DemoBroker>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let answered = match call::whole(body).await {
        Ok(body) => broker.call(&head.method, head.uri.path(), &body),
        Err(_) => Err((StatusCode::BAD_REQUEST, "the body did not arrive")),
    };
    let (status, said) = match answered {
        Ok(said) => (StatusCode::OK, said),
        Err((status, reason)) => (status, json!({ "error": { "code": status.as_u16(), "message": reason } })),
    };
    let mut response = Response::new(Full::new(Bytes::from(format!("{said}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl DemoBroker {
    fn call(&self, method: &Method, path: &str, body: &[u8]) -> Result<Value, Refused> {
        let unknown = (StatusCode::NOT_FOUND, "the demo broker does not know this call");
        let name = path.strip_prefix("/v1/").ok_or(unknown)?;
        let said = || {
            let read: Option<Map<String, Value>> = serde_json::from_slice(body).ok();
            read.ok_or((StatusCode::BAD_REQUEST, "want a JSON object"))
        };
        match (method.as_str(), name.strip_suffix(":publish")) {
            ("POST", Some(topic)) => self.publish(topic, &said()?),
            ("PUT", None) if names_a(name, "topics") => self.names().put_topic(name),
            ("PUT", None) if names_a(name, "subscriptions") => self.names().put_subscription(name, &said()?),
            _ => Err(unknown),
        }
    }

    /// Takes every message, or none of them.
    fn publish(&self, topic: &str, said: &Map<String, Value>) -> Result<Value, Refused> {
        let subscribers = self.names().subscribers(topic)?;
        let messages = said.get("messages").and_then(Value::as_array);
        let messages = messages
            .filter(|messages| (1..=BATCH_MAX).contains(&messages.len()))
            .ok_or((StatusCode::BAD_REQUEST, "want from 1 to 100 messages"))?;
        let messages: Vec<_> = messages.iter().map(message).collect::<Result<_, Refused>>()?;

        let count = u32::try_from(messages.len() * subscribers.len()).unwrap_or(u32::MAX);
        let mut places = Arc::clone(&self.deliveries)
            .try_acquire_many_owned(count)
            .map_err(|_| (StatusCode::TOO_MANY_REQUESTS, "too many messages under way"))?;
        let mut ids = Vec::new();
        for mut message in messages {
            let id = (self.messages.fetch_add(1, Ordering::Relaxed) + 1).to_string();
            message.insert("messageId".to_owned(), json!(id));
            message.insert("message_id".to_owned(), json!(id));
            let published = Timestamp::now().to_string();
            message.insert("publishTime".to_owned(), json!(published));
            message.insert("publish_time".to_owned(), json!(published));
            ids.push(id);
            for (name, endpoint) in &subscribers {
                let body = json!({ "message": message, "subscription": name }).to_string();
                let (endpoint, place, delay) = (endpoint.clone(), places.split(1), self.delay);
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    deliver(&endpoint, body.into()).await;
                    drop(place);
                });
            }
        }
        Ok(json!({ "messageIds": ids }))
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    fn put_topic(&mut self, name: &str) -> Result<Value, Refused> {
        if self.topics.contains(name) {
            return Err((StatusCode::CONFLICT, "the topic is there already"));
        }
        if self.topics.len() >= NAMES_MAX {
            return Err((StatusCode::TOO_MANY_REQUESTS, "too many topics"));
        }
        self.topics.insert(name.to_owned());
        Ok(json!({ "name": name }))
    }

    fn put_subscription(&mut self, name: &str, said: &Map<String, Value>) -> Result<Value, Refused> {
        if self.subscriptions.contains_key(name) {
            return Err((StatusCode::CONFLICT, "the subscription is there already"));
        }
        if self.subscriptions.len() >= NAMES_MAX {
            return Err((StatusCode::TOO_MANY_REQUESTS, "too many subscriptions"));
        }
        let topic = said.get("topic").and_then(Value::as_str).filter(|topic| self.topics.contains(*topic));
        let topic = topic.ok_or((StatusCode::NOT_FOUND, "no such topic"))?.to_owned();
        let endpoint = said.get("pushConfig").and_then(|push| push.get("pushEndpoint"));
        let endpoint = endpoint
            .and_then(|endpoint| Endpoint::parse(endpoint.as_str()?))
            .ok_or((StatusCode::BAD_REQUEST, "want a pushEndpoint such as http://127.0.0.1:8080/push"))?;
        self.subscriptions.insert(name.to_owned(), Subscription { topic: topic.clone(), endpoint });
        Ok(json!({ "name": name, "topic": topic, "pushConfig": said.get("pushConfig") }))
    }

    fn subscribers(&self, topic: &str) -> Result<Vec<(String, Endpoint)>, Refused> {
        if !self.topics.contains(topic) {
            return Err((StatusCode::NOT_FOUND, "no such topic"));
        }
        let of_topic = self.subscriptions.iter().filter(|(_, subscription)| subscription.topic == topic);
        Ok(of_topic.map(|(name, subscription)| (name.clone(), subscription.endpoint.clone())).collect())
    }
}

/// Whether this is `projects/P/{collection}/ID` with an id as long as Pub/Sub wants it.
fn names_a(name: &str, collection: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    matches!(*parts, ["projects", project, of, id] if of == collection && !project.is_empty() && id.len() >= 3)
}

/// A message's data and attributes; one of them is there.
fn message(said: &Value) -> Result<Map<String, Value>, Refused> {
    let taken: Map<String, Value> = ["data", "attributes"]
        .into_iter()
        .filter_map(|key| said.get(key).map(|value| (key.to_owned(), value.clone())))
        .collect();
    let texts = |value: &Value| value.as_object().is_some_and(|all| all.values().all(Value::is_string));
    let sound = taken.get("data").is_none_or(Value::is_string) && taken.get("attributes").is_none_or(texts);
    if taken.is_empty() || !sound {
        return Err((StatusCode::BAD_REQUEST, "want data as a string, or attributes that are strings"));
    }
    Ok(taken)
}

/// Pushes until the endpoint answers 2xx or the tries are used up.
async fn deliver(endpoint: &Endpoint, body: Bytes) {
    let mut pause = RETRY_FIRST;
    for _ in 0..TRIES_MAX {
        if pushed(endpoint, body.clone()).await {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

async fn pushed(endpoint: &Endpoint, body: Bytes) -> bool {
    let request = Request::post(&endpoint.path)
        .header(HOST, endpoint.address.to_string())
        .header(CONTENT_TYPE, "application/json")
        .header("user-agent", "throughline-demo-broker")
        .body(body);
    let Ok(request) = request else { return false };
    call::exchange(endpoint.address, request).await.is_ok_and(|answer| answer.status().is_success())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: &str = "/v1/projects/shop/topics/order.placed";
    const SUBSCRIPTION: &str = "/v1/projects/shop/subscriptions/shipping";

    async fn broker() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_with(listener, Duration::ZERO));
        address
    }

    async fn said(broker: SocketAddr, method: &str, path: &str, body: &str) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).header(HOST, broker.to_string());
        let answer = call::exchange(broker, request.body(body.to_owned().into()).unwrap()).await.unwrap();
        (answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap())
    }

    /// An endpoint that answers with `statuses` in their order, and hands over what it was sent.
    async fn endpoint(
        statuses: &'static [u16],
    ) -> (SocketAddr, tokio::sync::mpsc::Receiver<(String, Value)>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let tries = Arc::new(AtomicU64::new(0));
        tokio::spawn(call::serve(listener, move |request: Request<Incoming>| {
            let (sender, tries) = (sender.clone(), Arc::clone(&tries));
            async move {
                let path = request.uri().to_string();
                let body = call::whole(request.into_body()).await.unwrap();
                sender.send((path, serde_json::from_slice(&body).unwrap())).await.unwrap();
                let number = usize::try_from(tries.fetch_add(1, Ordering::Relaxed)).unwrap();
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::from_u16(statuses[number]).unwrap();
                response
            }
        }));
        (address, receiver)
    }

    #[tokio::test]
    async fn a_message_is_pushed_until_it_is_taken() {
        let broker = broker().await;
        let (shipping, mut pushes) = endpoint(&[503, 204]).await;
        assert_eq!(said(broker, "PUT", TOPIC, "").await.0, 200);
        let subscription = json!({
            "topic": "projects/shop/topics/order.placed",
            "pushConfig": { "pushEndpoint": format!("http://{shipping}/deliveries") },
        });
        assert_eq!(said(broker, "PUT", SUBSCRIPTION, &subscription.to_string()).await.0, 200);

        let publish = r#"{"messages":[{"data":"e30=","attributes":{"ce-type":"order.placed"}}]}"#;
        let published = said(broker, "POST", &format!("{TOPIC}:publish"), publish).await;
        assert_eq!(published, (200, json!({ "messageIds": ["1"] })));

        let message = json!({
            "attributes": { "ce-type": "order.placed" }, "data": "e30=", "messageId": "1", "message_id": "1",
        });
        let pushed = json!({ "message": message, "subscription": "projects/shop/subscriptions/shipping" });
        let mut published = Vec::new();
        for _ in 0..2 {
            let (path, mut body) = pushes.recv().await.unwrap();
            let message = body["message"].as_object_mut().unwrap();
            let (moment, again) = (message.remove("publishTime"), message.remove("publish_time"));
            assert!(
                moment.as_ref().is_some_and(|moment| moment.as_str().unwrap().ends_with('Z')),
                "{moment:?}"
            );
            assert_eq!(moment, again);
            published.push(moment);
            assert_eq!((path.as_str(), &body), ("/deliveries", &pushed));
        }
        assert_eq!(published[0], published[1], "the moment is that of the publish");
    }

    #[tokio::test]
    async fn what_the_demo_broker_cannot_do_is_refused() {
        let broker = broker().await;
        let publish = format!("{TOPIC}:publish");
        let status = async |method, path: &str, body| said(broker, method, path, body).await.0;
        assert_eq!(status("POST", &publish, r#"{"messages":[{"data":""}]}"#).await, 404, "no topic yet");
        assert_eq!(status("PUT", TOPIC, "{}").await, 200);
        assert_eq!(status("PUT", TOPIC, "{}").await, 409, "the topic is there");
        assert_eq!(status("PUT", "/v1/projects/shop/topics/ab", "{}").await, 404, "an id of two characters");
        assert_eq!(
            status("PUT", SUBSCRIPTION, r#"{"topic":"projects/shop/topics/order.placed"}"#).await,
            400
        );
        assert_eq!(status("PUT", SUBSCRIPTION, r#"{"topic":"projects/shop/topics/other"}"#).await, 404);
        assert_eq!(status("POST", &publish, "{").await, 400);
        assert_eq!(status("POST", &publish, r#"{"messages":[]}"#).await, 400);
        assert_eq!(status("POST", &publish, r#"{"messages":[{"data":1}]}"#).await, 400);
        assert_eq!(status("POST", &publish, r#"{"messages":[{"attributes":{"a":1}}]}"#).await, 400);
        assert_eq!(status("POST", "/v1/projects/shop/subscriptions/shipping:pull", "{}").await, 404);
    }

    #[test]
    fn an_endpoint_is_a_cleartext_address() {
        let endpoint = Endpoint::parse("http://127.0.0.1:81/a?b=c").unwrap();
        assert_eq!(endpoint, Endpoint { address: ([127, 0, 0, 1], 81).into(), path: "/a?b=c".to_owned() });
        for other in ["https://127.0.0.1:81/", "http://shipping/", "/a", ""] {
            assert_eq!(Endpoint::parse(other), None, "{other}");
        }
    }
}
