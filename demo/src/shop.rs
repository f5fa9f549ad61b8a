//! The shop: six ordinary HTTP services. They know nothing of spans; each copies some of the
//! headers it received onto the calls it makes, and calls its neighbours by name through an HTTP
//! proxy, as any application behind a sidecar does. A finished order is published to Pub/Sub, as an
//! event without any context, and reaches shipping as a push.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HOST};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::call;

const PAGE: &str = include_str!("page.html");

/// What an application that takes part in tracing usually copies.
const ALL: &[&str] = &["traceparent", "tracestate", "baggage", "x-operation-name"];
/// What an older library copies: the trace goes on, the operation is lost.
const TRACEPARENT: &[&str] = &["traceparent"];

/// Work that each answer takes, so that the drawing has something to show.
const WEB_WORK: Duration = Duration::from_millis(3);
const ORDERS_WORK: Duration = Duration::from_millis(6);
const STOCK_WORK: Duration = Duration::from_millis(4);
const PAYMENTS_WORK: Duration = Duration::from_millis(18);
const WAREHOUSE_WORK: Duration = Duration::from_millis(8);
const PACKING: Duration = Duration::from_millis(12);
/// The slow hop of `search`.
const SHELVES_WORK: Duration = Duration::from_millis(420);

/// Where finished orders are published, and what such an event is called.
pub(crate) const TOPIC: &str = "projects/shop/topics/order.placed";
const ORDER_PLACED: &str = "order.placed";
/// Where shipping takes pushes.
pub(crate) const DELIVERIES: &str = "/deliveries";

static ORDERS_TAKEN: AtomicU32 = AtomicU32::new(1000);

/// One service of the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum App {
    Warehouse,
    Payments,
    Stock,
    Shipping,
    Orders,
    Web,
}

/// Every service, in the order in which a reader meets them.
pub(crate) const NAMES: [&str; 6] = ["web", "orders", "stock", "payments", "warehouse", "shipping"];

impl App {
    /// Every service after those that it calls: the order in which they start.
    pub(crate) const STARTING_ORDER: [App; 6] =
        [App::Warehouse, App::Payments, App::Stock, App::Shipping, App::Orders, App::Web];

    pub(crate) fn name(self) -> &'static str {
        match self {
            App::Warehouse => "warehouse",
            App::Payments => "payments",
            App::Stock => "stock",
            App::Shipping => "shipping",
            App::Orders => "orders",
            App::Web => "web",
        }
    }

    /// The services that this one calls.
    pub(crate) fn neighbours(self) -> &'static [App] {
        match self {
            App::Warehouse | App::Payments => &[],
            App::Stock | App::Shipping => &[App::Warehouse],
            App::Orders => &[App::Stock, App::Payments],
            App::Web => &[App::Orders, App::Stock],
        }
    }

    /// The headers that this service copies from a request onto the calls made for it.
    fn copies(self) -> &'static [&'static str] {
        match self {
            App::Stock => TRACEPARENT,
            App::Warehouse | App::Payments | App::Shipping | App::Orders | App::Web => ALL,
        }
    }

    /// Whether this service publishes to Pub/Sub.
    pub(crate) fn publishes(self) -> bool {
        match self {
            App::Orders => true,
            App::Warehouse | App::Payments | App::Stock | App::Shipping | App::Web => false,
        }
    }

    /// Whether this service loses the operation that it was sent.
    pub(crate) fn forgets_operation(self) -> bool {
        !self.copies().contains(&"x-operation-name")
    }
}

/// Serves `app` on `listener`; its calls go through the HTTP proxy at `outbound`, which is its Pub/Sub
/// endpoint too.
pub(crate) async fn serve(app: App, listener: TcpListener, outbound: SocketAddr) {
    call::serve(listener, move |request| answer(app, request, outbound)).await;
}

async fn answer(app: App, request: Request<Incoming>, outbound: SocketAddr) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let incoming = Visit {
        app,
        query: head.uri.query().map(str::to_owned),
        copied: copied(&head.headers, app.copies()),
        outbound,
    };
    // Only a push has something in its body, but a polite server reads any.
    let Ok(body) = call::whole(body).await else {
        return refusal(StatusCode::BAD_REQUEST, "the request's body did not arrive").into_response();
    };
    let path = head.uri.path();
    let answer = match app {
        App::Web => web(&incoming, &head.method, path).await,
        App::Orders => orders(&incoming, &head.method, path).await,
        App::Stock => stock(&incoming, &head.method, path).await,
        App::Shipping => shipping(&incoming, &head.method, path, &body).await,
        App::Payments => payments(&incoming, &head.method, path).await,
        App::Warehouse => warehouse(&head.method, path).await,
    };
    answer.unwrap_or_else(|refused| refused).into_response()
}

fn copied(from: &HeaderMap, names: &[&'static str]) -> HeaderMap {
    let mut to = HeaderMap::new();
    for name in names {
        for value in from.get_all(*name) {
            to.append(*name, value.clone());
        }
    }
    to
}

/// An answer; as an error, one that ends the work early.
struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: Bytes,
}

type Answered = Result<Answer, Answer>;

impl Answer {
    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(self.content_type));
        response.headers_mut().insert(CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
        response
    }
}

fn json(status: StatusCode, value: &Value) -> Answer {
    Answer { status, content_type: "application/json", body: format!("{value}\n").into() }
}

fn refusal(status: StatusCode, reason: &str) -> Answer {
    json(status, &json!({ "error": reason }))
}

fn unknown(method: &Method, path: &str) -> Answered {
    Err(refusal(StatusCode::NOT_FOUND, &format!("no such thing here: {method} {path}")))
}

/// One request at one service, and what its calls take over from it.
struct Visit {
    app: App,
    query: Option<String>,
    copied: HeaderMap,
    outbound: SocketAddr,
}

impl Visit {
    /// Calls a neighbour; an error status of its is an error of ours.
    async fn call(&self, method: Method, neighbour: App, path: &str) -> Result<Value, Answer> {
        let name = neighbour.name();
        let query = self.query.as_ref().map_or_else(String::new, |query| format!("?{query}"));
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{name}{path}{query}"))
            .header(HOST, name)
            .header("user-agent", format!("shop-{}", self.app.name()))
            .body(Bytes::new())
            .map_err(|error| refusal(StatusCode::BAD_REQUEST, &error.to_string()))?;
        request.headers_mut().extend(self.copied.clone());
        self.answered(name, request).await
    }

    /// Publishes an event as Pub/Sub carries it in binary mode: its attributes are the message's.
    /// The endpoint is the sidecar, by its address, as `PUBSUB_EMULATOR_HOST` would have it.
    async fn publish(&self, event: &Event<'_>) -> Result<Value, Answer> {
        let mut request = Request::post(format!("/v1/{TOPIC}:publish"))
            .header(HOST, self.outbound.to_string())
            .header("user-agent", format!("shop-{}", self.app.name()))
            .header(CONTENT_TYPE, "application/json")
            .body(Bytes::from(json!({ "messages": [event.message()] }).to_string()))
            .map_err(|error| refusal(StatusCode::BAD_REQUEST, &error.to_string()))?;
        request.headers_mut().extend(self.copied.clone());
        self.answered("the broker", request).await
    }

    async fn answered(&self, name: &str, request: Request<Bytes>) -> Result<Value, Answer> {
        let response = call::exchange(self.outbound, request)
            .await
            .map_err(|reason| refusal(StatusCode::BAD_GATEWAY, &format!("{name}: {reason}")))?;
        let said = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        if response.status().is_success() {
            return Ok(said);
        }
        let reason = said.get("error").and_then(Value::as_str).unwrap_or("no reason given");
        Err(refusal(
            StatusCode::BAD_GATEWAY,
            &format!("{name} answered {}: {reason}", response.status().as_u16()),
        ))
    }

    fn asks_for(&self, key: &str, value: &str) -> bool {
        let pairs = self.query.iter().flat_map(|query| query.split('&'));
        pairs.filter_map(|pair| pair.split_once('=')).any(|pair| pair == (key, value))
    }
}

/// A CloudEvent of the shop.
struct Event<'a> {
    kind: &'a str,
    source: &'a str,
    subject: String,
    body: &'a Value,
}

impl Event<'_> {
    /// The event as a Pub/Sub message. There is no context in it.
    fn message(&self) -> Value {
        json!({
            "attributes": {
                "ce-specversion": "1.0",
                "ce-id": format!("{}-{}", self.kind, self.subject),
                "ce-source": self.source,
                "ce-type": self.kind,
                "ce-subject": self.subject,
                "content-type": "application/json",
            },
            "data": base64(self.body.to_string().as_bytes()),
        })
    }
}

/// Base64 with padding (RFC 4648 §4), as JSON carries the bytes of a message.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let octet = |place: usize| three.get(place).copied().map_or(0, u32::from);
        let bits = octet(0) << 16 | octet(1) << 8 | octet(2);
        for place in 0..4 {
            let digit = ALPHABET.get((bits >> (18 - 6 * place) & 63) as usize).copied();
            let padding = place > three.len();
            text.push(digit.filter(|_| !padding).map_or('=', char::from));
        }
    }
    text
}

async fn web(visit: &Visit, method: &Method, path: &str) -> Answered {
    match (method.as_str(), path) {
        ("GET" | "HEAD", "/") => Ok(Answer {
            status: StatusCode::OK,
            content_type: "text/html; charset=utf-8",
            body: Bytes::from_static(PAGE.as_bytes()),
        }),
        ("GET", "/products") => {
            tokio::time::sleep(WEB_WORK).await;
            let products = visit.call(Method::GET, App::Stock, "/items").await?;
            Ok(json(StatusCode::OK, &json!({ "products": products })))
        }
        ("GET", "/search") => {
            tokio::time::sleep(WEB_WORK).await;
            let found = visit.call(Method::GET, App::Stock, "/shelves").await?;
            Ok(json(StatusCode::OK, &json!({ "found": found })))
        }
        ("POST", "/login") => {
            tokio::time::sleep(WEB_WORK).await;
            let customer = visit.call(Method::GET, App::Orders, "/customers").await?;
            Ok(json(StatusCode::OK, &customer))
        }
        ("GET", "/recommendations") => {
            tokio::time::sleep(WEB_WORK).await;
            let picks = visit.call(Method::GET, App::Stock, "/recommendations").await?;
            Ok(json(StatusCode::OK, &picks))
        }
        ("POST", "/checkout") => {
            tokio::time::sleep(WEB_WORK).await;
            let order = visit.call(Method::POST, App::Orders, "/orders").await?;
            Ok(json(StatusCode::CREATED, &order))
        }
        _ => unknown(method, path),
    }
}

async fn orders(visit: &Visit, method: &Method, path: &str) -> Answered {
    match (method.as_str(), path) {
        ("GET", "/customers") => {
            tokio::time::sleep(ORDERS_WORK).await;
            Ok(json(StatusCode::OK, &json!({ "customer": "Ada" })))
        }
        ("POST", "/orders") => {
            tokio::time::sleep(ORDERS_WORK).await;
            let reserved = visit.call(Method::POST, App::Stock, "/reservations").await?;
            let paid = visit.call(Method::POST, App::Payments, "/payments").await?;
            let number = ORDERS_TAKEN.fetch_add(1, Ordering::Relaxed);
            let order = json!({ "order": number, "reserved": reserved, "paid": paid });
            let placed = Event {
                kind: ORDER_PLACED,
                source: "/shop/orders",
                subject: number.to_string(),
                body: &order,
            };
            visit.publish(&placed).await?;
            Ok(json(StatusCode::CREATED, &order))
        }
        _ => unknown(method, path),
    }
}

async fn stock(visit: &Visit, method: &Method, path: &str) -> Answered {
    tokio::time::sleep(STOCK_WORK).await;
    match (method.as_str(), path) {
        ("GET", "/items") => {
            let prices = visit.call(Method::GET, App::Warehouse, "/prices").await?;
            let pieces = BTreeMap::from([("chair", 4), ("kettle", 31), ("lamp", 12)]);
            let items: Vec<Value> = pieces
                .iter()
                .map(|(name, left)| json!({ "name": name, "left": left, "price": prices.get(name) }))
                .collect();
            Ok(json(StatusCode::OK, &Value::Array(items)))
        }
        ("GET", "/recommendations") => {
            // Code that was written without tracing in mind: the call carries nothing of the request.
            let bare = Visit { copied: HeaderMap::new(), query: None, ..*visit };
            let prices = bare.call(Method::GET, App::Warehouse, "/prices").await?;
            Ok(json(StatusCode::OK, &prices))
        }
        ("GET", "/shelves") => {
            let shelves = visit.call(Method::GET, App::Warehouse, "/shelves").await?;
            Ok(json(StatusCode::OK, &shelves))
        }
        ("POST", "/reservations") => {
            let picked = visit.call(Method::POST, App::Warehouse, "/picks").await?;
            Ok(json(StatusCode::CREATED, &picked))
        }
        _ => unknown(method, path),
    }
}

/// The push endpoint: an answer other than 2xx brings the delivery again.
async fn shipping(visit: &Visit, method: &Method, path: &str, body: &[u8]) -> Answered {
    match (method.as_str(), path) {
        ("POST", DELIVERIES) => {
            let push: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
            let attribute = |name| push.get("message")?.get("attributes")?.get(name)?.as_str();
            if attribute("ce-type") != Some(ORDER_PLACED) {
                return Err(refusal(StatusCode::BAD_REQUEST, "want a push of an order.placed event"));
            }
            tokio::time::sleep(PACKING).await;
            let parcel = visit.call(Method::POST, App::Warehouse, "/parcels").await?;
            Ok(json(StatusCode::OK, &json!({ "order": attribute("ce-subject"), "parcel": parcel })))
        }
        _ => unknown(method, path),
    }
}

async fn payments(visit: &Visit, method: &Method, path: &str) -> Answered {
    match (method.as_str(), path) {
        ("POST", "/payments") => {
            tokio::time::sleep(PAYMENTS_WORK).await;
            if visit.asks_for("payment", "fail") {
                return Err(refusal(StatusCode::SERVICE_UNAVAILABLE, "the bank does not answer"));
            }
            Ok(json(StatusCode::CREATED, &json!({ "amount": 39, "currency": "EUR" })))
        }
        _ => unknown(method, path),
    }
}

async fn warehouse(method: &Method, path: &str) -> Answered {
    match (method.as_str(), path) {
        ("GET", "/prices") => {
            tokio::time::sleep(WAREHOUSE_WORK).await;
            Ok(json(StatusCode::OK, &json!({ "chair": 89, "kettle": 24, "lamp": 39 })))
        }
        ("GET", "/shelves") => {
            tokio::time::sleep(SHELVES_WORK).await;
            Ok(json(StatusCode::OK, &json!([{ "name": "lamp", "shelf": "C7" }])))
        }
        ("POST", "/picks") => {
            tokio::time::sleep(WAREHOUSE_WORK).await;
            Ok(json(StatusCode::CREATED, &json!({ "name": "lamp", "shelf": "C7" })))
        }
        ("POST", "/parcels") => {
            tokio::time::sleep(WAREHOUSE_WORK).await;
            Ok(json(StatusCode::CREATED, &json!({ "dock": 2 })))
        }
        _ => unknown(method, path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_starts_after_those_it_calls() {
        for (place, app) in App::STARTING_ORDER.iter().enumerate() {
            for neighbour in app.neighbours() {
                assert!(App::STARTING_ORDER[..place].contains(neighbour), "{app:?} calls {neighbour:?}");
            }
        }
    }

    #[test]
    fn every_service_has_its_name_in_the_list() {
        for app in App::STARTING_ORDER {
            assert!(NAMES.contains(&app.name()), "{app:?}");
        }
    }

    #[test]
    fn an_order_is_published_as_an_event_without_context() {
        let body = json!({ "order": 7 });
        let event =
            Event { kind: ORDER_PLACED, source: "/shop/orders", subject: "7".to_owned(), body: &body };
        let expected = json!({
            "attributes": {
                "ce-specversion": "1.0",
                "ce-id": "order.placed-7",
                "ce-source": "/shop/orders",
                "ce-type": "order.placed",
                "ce-subject": "7",
                "content-type": "application/json",
            },
            "data": "eyJvcmRlciI6N30=",
        });
        assert_eq!(event.message(), expected);
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648 §10.
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn only_stock_forgets_the_operation_and_it_still_copies_traceparent() {
        let forgetful: Vec<App> =
            App::STARTING_ORDER.into_iter().filter(|app| app.forgets_operation()).collect();
        assert_eq!(forgetful, [App::Stock]);
        let mut incoming = HeaderMap::new();
        for name in ALL {
            incoming.insert(*name, http::HeaderValue::from_static("x"));
        }
        let sent: Vec<String> =
            copied(&incoming, App::Stock.copies()).keys().map(ToString::to_string).collect();
        assert_eq!(sent, ["traceparent"]);
    }
}
