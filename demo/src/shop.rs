//! The shop: five ordinary HTTP services. They know nothing of spans; each copies some of the
//! headers it received onto the calls it makes, and calls its neighbours by name through an HTTP
//! proxy, as any application behind a sidecar does.

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
/// The slow hop of `search`.
const SHELVES_WORK: Duration = Duration::from_millis(420);

static ORDERS_TAKEN: AtomicU32 = AtomicU32::new(1000);

/// One service of the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum App {
    Warehouse,
    Payments,
    Stock,
    Orders,
    Web,
}

/// Every service, in the order in which a reader meets them.
pub(crate) const NAMES: [&str; 5] = ["web", "orders", "stock", "payments", "warehouse"];

impl App {
    /// Every service after those that it calls: the order in which they start.
    pub(crate) const STARTING_ORDER: [App; 5] =
        [App::Warehouse, App::Payments, App::Stock, App::Orders, App::Web];

    pub(crate) fn name(self) -> &'static str {
        match self {
            App::Warehouse => "warehouse",
            App::Payments => "payments",
            App::Stock => "stock",
            App::Orders => "orders",
            App::Web => "web",
        }
    }

    /// The services that this one calls.
    pub(crate) fn neighbours(self) -> &'static [App] {
        match self {
            App::Warehouse | App::Payments => &[],
            App::Stock => &[App::Warehouse],
            App::Orders => &[App::Stock, App::Payments],
            App::Web => &[App::Orders, App::Stock],
        }
    }

    /// The headers that this service copies from a request onto the calls made for it.
    fn copies(self) -> &'static [&'static str] {
        match self {
            App::Stock => TRACEPARENT,
            App::Warehouse | App::Payments | App::Orders | App::Web => ALL,
        }
    }

    /// Whether this service loses the operation that it was sent.
    pub(crate) fn forgets_operation(self) -> bool {
        !self.copies().contains(&"x-operation-name")
    }
}

/// Serves `app` on `listener`; its calls go through the HTTP proxy at `outbound`.
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
    // The body carries nothing that the shop needs, but a polite server reads it.
    if call::whole(body).await.is_err() {
        return refusal(StatusCode::BAD_REQUEST, "the request's body did not arrive").into_response();
    }
    let path = head.uri.path();
    let answer = match app {
        App::Web => web(&incoming, &head.method, path).await,
        App::Orders => orders(&incoming, &head.method, path).await,
        App::Stock => stock(&incoming, &head.method, path).await,
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
        ("POST", "/orders") => {
            tokio::time::sleep(ORDERS_WORK).await;
            let reserved = visit.call(Method::POST, App::Stock, "/reservations").await?;
            let paid = visit.call(Method::POST, App::Payments, "/payments").await?;
            let number = ORDERS_TAKEN.fetch_add(1, Ordering::Relaxed);
            let order = json!({ "order": number, "reserved": reserved, "paid": paid });
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
