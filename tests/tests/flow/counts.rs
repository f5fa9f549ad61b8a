//! Numbers of a mesh that samples one request in a hundred: what the API answers is what the load counted itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use throughline_tests::flow::FlowServer;
use throughline_tests::prelude::*;
use throughline_tests::service::{Copying, response};
use throughline_tests::sidecar::Plan;

/// Requests in flight at once, and how many each of them makes, one after the other.
const CALLERS: u64 = 12;
const EACH: u64 = 200;
/// How long the slow ones take at the service at the end.
const SLOW: Duration = Duration::from_millis(80);

async fn sidecar(server: &FlowServer, service: &str, upstream: SocketAddr) -> Sidecar {
    Plan::before(service, upstream)
        .on(Host::Sidecar)
        .flag("otel-resource-attributes", "service.namespace=shop,deployment.environment.name=production")
        .flag("otel-exporter-otlp-endpoint", format!("http://{}", server.grpc()))
        .flag("otel-traces-sampler-arg", "0.01")
        .flag("otel-metric-export-interval", 500)
        .environment(
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            "base2_exponential_bucket_histogram",
        )
        .start()
        .await
}

/// Asks `target`, where there is one and the path names it, and answers what that one did, else as the path says.
fn shop(name: &'static str, target: Option<SocketAddr>) -> Script {
    script(move |visit| async move {
        let path = visit.request.uri().path().to_owned();
        if let Some(target) = target.filter(|_| !path.starts_with(&format!("/{name}/"))) {
            let copied = Copying::Everything.from(visit.request.headers());
            let answer = visit.outbound.send(Ask::get(format!("http://{target}{path}")).copied(copied)).await;
            return response(answer.status, answer.body);
        }
        match path.rsplit('/').next() {
            Some("slow") => tokio::time::sleep(SLOW).await,
            Some("fails") => return response(503, ""),
            Some("gone") => return response(404, ""),
            _ => {}
        }
        response(200, "")
    })
}

/// What the load counted: requests, failures, and how long each took as its caller saw it.
#[derive(Default)]
struct Naive {
    requests: u64,
    errors: u64,
    millis: Vec<f64>,
}

impl Naive {
    fn add(&mut self, other: &Naive) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.millis.extend(&other.millis);
    }

    fn quantile(&mut self, share: f64) -> f64 {
        self.millis.sort_by(f64::total_cmp);
        self.millis[((self.millis.len() as f64 * share).ceil() as usize).min(self.millis.len()) - 1]
    }
}

/// By operation and path.
type Count = BTreeMap<(&'static str, &'static str), Naive>;

async fn load(front: SocketAddr, number: u64) -> Count {
    const OPERATIONS: [&str; 3] = ["login", "browse", "checkout"];
    const PATHS: [&str; 8] = [
        "/stock/good",
        "/orders/good",
        "/stock/fails",
        "/orders/gone",
        "/stock/good",
        "/web/good",
        "/stock/slow",
        "/orders/fails",
    ];
    let mut count = Count::new();
    for turn in 0..EACH {
        let operation = OPERATIONS[((number + turn) % 3) as usize];
        let path = PATHS[((number * 7 + turn) % 8) as usize];
        let began = Instant::now();
        let ask = Ask::get(format!("http://{front}{path}")).header("x-operation-name", operation);
        let status = ask.send().await.status;
        let naive = count.entry((operation, path)).or_default();
        naive.requests += 1;
        naive.errors += u64::from(status >= 500);
        naive.millis.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    count
}

/// What the load counted of an operation, or of all, at paths that go as far as a service.
fn naive(count: &Count, operation: Option<&str>, starts: &[&str]) -> Naive {
    let mut sum = Naive::default();
    for ((of, path), one) in count {
        if operation.is_none_or(|wanted| wanted == *of) && starts.iter().any(|start| path.starts_with(start))
        {
            sum.add(one);
        }
    }
    sum
}

const WEB: &[&str] = &["/"];
const ORDERS: &[&str] = &["/orders/", "/stock/"];
const STOCK: &[&str] = &["/stock/"];

#[track_caller]
fn edges_are(graph: &Value, count: &Count, operation: Option<&str>) {
    let mut told: Vec<(String, u64, f64)> = Vec::new();
    for edge in graph["edges"].as_array().unwrap() {
        let ends = format!("{} -> {}", edge["from"].as_str().unwrap(), edge["to"].as_str().unwrap());
        told.push((ends, edge["callCount"].as_u64().unwrap(), edge["errorRate"].as_f64().unwrap()));
    }
    let mut wanted: Vec<(String, u64, f64)> = Vec::new();
    for (ends, starts) in [("orders -> stock", STOCK), ("user -> web", WEB), ("web -> orders", ORDERS)] {
        let naive = naive(count, operation, starts);
        wanted.push((ends.to_owned(), naive.requests, naive.errors as f64 / naive.requests as f64));
    }
    told.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(told.len(), wanted.len(), "{operation:?}: {told:?}");
    for (told, wanted) in told.iter().zip(&wanted) {
        assert_eq!((&told.0, told.1), (&wanted.0, wanted.1), "{operation:?}");
        assert!((told.2 - wanted.2).abs() < 1e-4, "{operation:?}: {told:?}, want {wanted:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_one_percent_answers_equal_a_naive_count_of_all_requests() {
    let server = FlowServer::start().await;
    let stock = Service::playing(shop("stock", None)).await;
    let last = sidecar(&server, "stock", stock.address).await;
    let orders = Service::playing(shop("orders", Some(last.inbound()))).await;
    let middle = sidecar(&server, "orders", orders.address).await;
    orders.outbound.is_at(middle.outbound());
    let web = Service::playing(shop("web", Some(middle.inbound()))).await;
    let front = sidecar(&server, "web", web.address).await;
    web.outbound.is_at(front.outbound());

    let mut callers = tokio::task::JoinSet::new();
    for number in 0..CALLERS {
        callers.spawn(load(front.inbound(), number));
    }
    let mut count = Count::new();
    while let Some(one) = callers.join_next().await {
        for (key, naive) in one.unwrap() {
            count.entry(key).or_default().add(&naive);
        }
    }
    // What they counted last is pushed when they end.
    let _ = (front.end().await, middle.end().await, last.end().await);

    let everything = naive(&count, None, WEB);
    assert_eq!(everything.requests, CALLERS * EACH);
    for operation in ["login", "browse", "checkout"] {
        let mut naive = naive(&count, Some(operation), WEB);
        let whole = |stats: &Value| stats["stats"]["totalRequests"] == naive.requests;
        let stats = server.get_when(&format!("operations/{operation}/stats"), whole).await["stats"].clone();
        assert_eq!(stats["errorCount"], naive.errors, "{operation}");
        assert_eq!(stats["successCount"], naive.requests - naive.errors, "{operation}");
        assert_eq!(stats["estimated"], false, "{operation}");
        // A server's time is within its caller's, and no shorter than what its application waited.
        for (name, share) in [("p50Latency", 0.5), ("p95Latency", 0.95), ("p99Latency", 0.99)] {
            let (told, most) = (stats[name].as_f64().unwrap(), naive.quantile(share));
            let least = if share > 0.9 { SLOW.as_secs_f64() * 1000.0 } else { 0.0 };
            assert!(
                (least * 0.97..=most * 1.03).contains(&told),
                "{operation} {name}: {told}, {least} to {most}"
            );
        }
        let graph = server.get(&format!("operations/{operation}/graph")).await;
        edges_are(&graph["graph"], &count, Some(operation));
        let of_services = stats["services"].as_array().unwrap();
        assert_eq!(of_services.len(), 3, "{stats}");
        for (name, starts) in [("web", WEB), ("orders", ORDERS), ("stock", STOCK)] {
            let naive = self::naive(&count, Some(operation), starts);
            let told = of_services.iter().find(|of| of["name"] == name).unwrap();
            assert_eq!(
                (&told["requestCount"], &told["errorCount"]),
                (&naive.requests.into(), &naive.errors.into()),
                "{operation} {name}"
            );
        }
    }
    let operations = server.get("operations").await;
    for row in operations["operations"].as_array().unwrap() {
        let naive = naive(&count, Some(row["name"].as_str().unwrap()), WEB);
        assert_eq!(row["count"], naive.requests, "{row}");
        assert!(
            (row["errorRate"].as_f64().unwrap() - naive.errors as f64 / naive.requests as f64).abs() < 1e-4
        );
    }
    edges_are(&server.get("dependencies").await, &count, None);
    let services = server.get("services").await;
    for (name, starts) in [("web", WEB), ("orders", ORDERS), ("stock", STOCK)] {
        let naive = naive(&count, None, starts);
        let told = services["services"].as_array().unwrap().iter().find(|of| of["name"] == name).unwrap();
        let metrics = (&told["metrics"]["requestCount"], &told["metrics"]["errorCount"]);
        assert_eq!(metrics, (&naive.requests.into(), &naive.errors.into()), "{name}");
    }
    // All failures left a trace, and few of the others did: the numbers are not made of spans.
    let all_failed = |failed: &Value| failed["total"] == everything.errors;
    let failed = server.get_when("traces?status=error", all_failed).await;
    assert_eq!(failed["totalIsBound"], false);
    let traces = server.get("traces").await;
    let kept = traces["total"].as_u64().unwrap();
    assert!(kept < everything.errors + (everything.requests - everything.errors) / 4, "{kept} traces");
}
