//! The API against the examples of its contract: names, units, filters, mistakes.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use throughline_tests::flow::{FlowServer, counted, login, now};
use throughline_tests::judges::python;
use throughline_tests::prelude::*;
use throughline_tests::sidecar::workspace;

const TRACE: &str = "07070707070707070707070707070707";
const SECOND: u64 = 1_000_000_000;

/// A server that was told of 1,000 logins, 10 of which failed, and has the spans of one.
async fn told() -> (FlowServer, u64) {
    let server = FlowServer::start().await;
    let at = now() - 5 * SECOND;
    assert_eq!(server.send(&login(7, at)).await.status, 200);
    assert_eq!(server.send_metrics(&counted(1000, 10, at, now())).await.status, 200);
    server.get_when("traces?operation=login", |traces| traces["total"] == 1).await;
    server.get_when("operations", |all| all["operations"][0]["count"] == 1000).await;
    (server, at)
}

/// The value has the example's keys, at each depth, with values of the same kind.
fn assert_like(example: &Value, value: &Value, at: &str) {
    match (example, value) {
        (Value::Object(example), Value::Object(value)) => {
            for (key, wanted) in example {
                let found = value.get(key).unwrap_or_else(|| panic!("{at} has no {key}: {value:?}"));
                assert_like(wanted, found, &format!("{at}.{key}"));
            }
        }
        (Value::Array(example), Value::Array(value)) => {
            if let Some(wanted) = example.first() {
                assert!(!value.is_empty(), "{at} is empty");
                for (place, found) in value.iter().enumerate() {
                    assert_like(wanted, found, &format!("{at}[{place}]"));
                }
            }
        }
        (example, value) => {
            let kind = std::mem::discriminant::<Value>;
            assert_eq!(kind(example), kind(value), "{at}: {value} is not like {example}");
        }
    }
}

#[tokio::test]
async fn every_answer_has_the_names_of_the_contract() {
    let (server, _) = told().await;
    let node = json!({
        "id": "api-gateway",
        "service": { "name": "api-gateway", "namespace": "gateway", "pod": "api-gateway-abc123" },
        "metrics": { "requestCount": 1000, "errorCount": 5, "avgLatency": 50, "p95Latency": 120 },
    });
    let edge = json!({
        "from": "api-gateway", "to": "auth-service", "callCount": 1000, "errorRate": 0.005, "avgLatency": 30,
    });
    let service = json!({ "name": "auth-service", "namespace": "backend", "pod": "auth-service-xyz" });
    let metrics = json!({ "requestRate": 1000, "errorRate": 0.01, "avgLatency": 50 });
    for (path, example) in [
        (
            "flows?operation=login&startTime=now-1h&endTime=now&environment=production".to_owned(),
            json!({
                "flows": [{
                    "flowId": "flow-123", "operationName": "login", "traceId": "abc123", "startTime": 1_234_567_890,
                    "endTime": 1_234_567_900, "duration": 10_000_000, "nodes": [node], "edges": [edge],
                    "status": "success",
                }],
                "total": 100, "page": 1, "pageSize": 20,
            }),
        ),
        (
            format!("flows/flow-{TRACE}"),
            json!({ "flowId": "flow-123", "graph": { "nodes": [node], "edges": [edge] } }),
        ),
        (
            "dependencies?namespace=shop&service=orders".to_owned(),
            json!({
                "nodes": [node], "edges": [edge],
                "metadata": { "namespace": "production", "service": "auth-service", "lastUpdated": "2024-01-15T10:00:00Z" },
            }),
        ),
        (
            "traces?operation=login&service=orders&status=success&startTime=now-1h&endTime=now".to_owned(),
            json!({
                "traces": [{
                    "traceId": "abc123", "operationName": "login", "startTime": 1_234_567_890, "duration": 10_000_000,
                    "status": "success", "spanCount": 5, "serviceCount": 3,
                }],
                "total": 50,
            }),
        ),
        (
            format!("traces/{TRACE}"),
            json!({
                "traceId": "abc123", "operationName": "login",
                "spans": [{
                    "spanId": "span-1", "name": "auth-service.login", "service": service, "startTime": 1_234_567_890,
                    "duration": 5_000_000, "status": "OK", "attributes": {},
                }],
            }),
        ),
        (
            "operations?environment=production".to_owned(),
            json!({
                "operations": [{
                    "name": "login", "count": 10_000, "errorRate": 0.01, "avgLatency": 150, "lastSeen": "2024-01-15T10:00:00Z",
                }],
            }),
        ),
        (
            "operations/login/stats?startTime=now-1h&endTime=now".to_owned(),
            json!({
                "operationName": "login",
                "period": { "start": "2024-01-15T00:00:00Z", "end": "2024-01-15T23:59:59Z" },
                "stats": {
                    "totalRequests": 100_000, "successCount": 99_000, "errorCount": 1000, "avgLatency": 150,
                    "p50Latency": 120, "p95Latency": 300, "p99Latency": 500,
                    "services": [{ "name": "auth-service", "requestCount": 100_000, "errorCount": 500 }],
                },
            }),
        ),
        (
            "operations/login/graph".to_owned(),
            json!({ "operationName": "login", "graph": { "nodes": [node], "edges": [edge] } }),
        ),
        (
            "services?namespace=shop&environment=production".to_owned(),
            json!({
                "services": [{
                    "name": "auth-service", "namespace": "backend", "environment": "production", "podCount": 5,
                    "version": "v1.2.3", "status": "healthy", "metrics": metrics,
                }],
            }),
        ),
        (
            "services/orders?namespace=shop".to_owned(),
            json!({
                "service": {
                    "name": "auth-service", "namespace": "backend",
                    "pods": [{ "name": "auth-service-abc123", "node": "node-1", "status": "Running" }],
                    "dependencies": { "upstream": ["api-gateway"], "downstream": [] },
                    "metrics": metrics,
                },
            }),
        ),
    ] {
        assert_like(&example, &server.get(&path).await, &path);
    }
}

#[tokio::test]
async fn numbers_are_those_of_all_requests_and_a_flow_stands_beside_them() {
    let (server, at) = told().await;
    let stats = &server.get("operations/login/stats").await["stats"];
    assert_eq!((&stats["totalRequests"], &stats["successCount"]), (&json!(1000), &json!(990)));
    assert_eq!((&stats["errorCount"], &stats["estimated"]), (&json!(10), &json!(false)));
    let flow = server.get(&format!("flows/flow-{TRACE}")).await;
    assert_eq!((&flow["startTime"], &flow["duration"]), (&json!(at), &json!(150_000_000)), "nanoseconds");
    assert_eq!(flow["startTimeNanos"], json!(at.to_string()));
    assert_eq!(flow["metadata"]["uiEvent"], "button_click");
    let nodes = flow["graph"]["nodes"].as_array().unwrap();
    let orders = nodes.iter().find(|node| node["id"] == "orders").expect("orders");
    assert_eq!(
        (&orders["metrics"]["requestCount"], &orders["self"]["requestCount"]),
        (&json!(1000), &json!(1))
    );
    assert_eq!((&orders["metrics"]["errorCount"], &orders["self"]["avgLatency"]), (&json!(10), &json!(80.0)));
    let edge = &flow["graph"]["edges"][0];
    assert_eq!((&edge["from"], &edge["to"]), (&json!("web"), &json!("orders")));
    assert_eq!((&edge["callCount"], &edge["self"]["callCount"]), (&json!(1000), &json!(1)));
    assert_eq!((&edge["errorRate"], &edge["provenance"]), (&json!(0.01), &json!("proven")));
    assert_eq!((&flow["findings"], &flow["doctor"]), (&json!([]), &json!([])), "nothing is wrong with it");
}

#[tokio::test]
async fn filters_times_and_pages_choose_traces() {
    let server = FlowServer::start().await;
    let at = now() - 100 * SECOND;
    for trace in 1..=5 {
        server.send(&login(trace, at + u64::from(trace) * SECOND)).await;
    }
    server.get_when("traces", |traces| traces["total"] == 5).await;
    let (seconds, nanos) = ((at / SECOND + 3).to_string(), (at + 3 * SECOND).to_string());
    for (query, expected) in [
        ("operation=login".to_owned(), 5),
        ("operation=browse".to_owned(), 0),
        ("service=orders&namespace=shop".to_owned(), 5),
        ("service=stock".to_owned(), 0),
        ("environment=dev".to_owned(), 0),
        ("status=error".to_owned(), 0),
        ("minDuration=100".to_owned(), 5),
        ("minDuration=1000".to_owned(), 0),
        (format!("startTime={nanos}"), 3),
        (format!("endTime={nanos}"), 2),
        (format!("startTime={}&endTime=now", seconds.parse::<u64>().unwrap() + 1), 2),
        ("startTime=now-1m".to_owned(), 0),
    ] {
        assert_eq!(server.get(&format!("traces?{query}")).await["total"], expected, "{query}");
    }
    let page = server.get("flows?page=2&pageSize=2").await;
    let ids: Vec<&str> =
        page["flows"].as_array().unwrap().iter().map(|flow| flow["traceId"].as_str().unwrap()).collect();
    assert_eq!(ids, ["03".repeat(16), "02".repeat(16)], "newest first");
    assert_eq!((&page["total"], &page["page"], &page["pageSize"]), (&json!(5), &json!(2), &json!(2)));
}

#[tokio::test]
async fn mistakes_are_told_with_the_parameter_and_what_would_be_right() {
    let server = FlowServer::start().await;
    let answer = server.ask("traces?status=bad&page=0&operatoin=login&startTime=soon").await;
    assert_eq!((answer.status, answer.header("content-type")), (400, Some("application/problem+json")));
    let problem: Value = serde_json::from_str(&answer.text()).unwrap();
    let named: Vec<&str> = problem["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|wrong| wrong["parameter"].as_str().unwrap())
        .collect();
    assert_eq!(named, ["operatoin", "startTime", "page", "status"]);
    for (path, status) in [
        ("traces/xyz", 400),
        (&format!("traces/{TRACE}"), 404),
        (&format!("flows/flow-{TRACE}"), 404),
        ("operations/none/stats", 404),
        ("operations/none/graph", 404),
        ("services/none", 404),
        ("nothing", 404),
        ("services/%zz", 400),
        ("live", 426),
    ] {
        let answer = server.ask(path).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (status, Some("application/problem+json")),
            "{path}"
        );
    }
    assert_eq!(Ask::post(server.url("/api/v1/flows"), "").send().await.status, 405);
}

#[tokio::test]
async fn an_empty_server_has_no_last_update_and_a_slash_at_the_end_means_nothing() {
    let server = FlowServer::start().await;
    let graph = server.get("dependencies").await;
    assert_eq!((&graph["nodes"], &graph["metadata"]["lastUpdated"]), (&json!([]), &Value::Null));
    for path in ["traces", "flows", "operations", "services", "dependencies", "doctor"] {
        assert_eq!(server.ask(&format!("{path}/")).await.status, 200, "{path}");
    }
    assert_eq!(server.ask(&format!("traces/{TRACE}/")).await.status, 404);
    for sign in ["+", "-"] {
        assert_eq!(
            server.ask(&format!("traces/{sign}{}", &TRACE[1..])).await.status,
            400,
            "no digit: {sign}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_known_is_not_sent_again_and_no_other_site_may_read_one() {
    let (server, _) = told().await;
    let path = server.url(&format!("/api/v1/traces/{TRACE}"));
    let first = Ask::get(&path).send().await;
    let tag = first.header("etag").expect("a tag").to_owned();
    let again = Ask::get(&path).header("if-none-match", &tag).send().await;
    assert_eq!((again.status, again.text().as_str()), (304, ""));
    let foreign = Ask::get(&path).header("origin", "http://evil.example.com").send().await;
    assert_eq!(foreign.header("access-control-allow-origin"), None);
    assert_eq!(foreign.header("x-content-type-options"), Some("nosniff"));
    let rebound = Ask::get(&path).header("host", "evil.example.com").send().await;
    assert_eq!(rebound.status, 403, "a name that somebody else decides about");
    let page = Ask::get(server.url("/")).send().await;
    assert!(page.text().contains("<script src=\"/app.js\" defer>"), "{}", page.text());
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'self'; "));
    for path in ["/app.js", "/app.css", "/icon.svg", "/operations/login", "/traces/1", "/services", "/doctor"]
    {
        let file = Ask::get(server.url(path)).header("accept-encoding", "gzip").send().await;
        assert_eq!((file.status, file.header("content-encoding")), (200, Some("gzip")), "{path}");
        let tag = file.header("etag").expect("a tag").to_owned();
        let again = Ask::get(server.url(path)).header("if-none-match", &tag).send().await;
        assert_eq!((again.status, again.text().as_str()), (304, ""), "{path}");
    }
}

#[tokio::test]
async fn the_description_is_openapi_and_every_answer_is_as_it_says() {
    let Some(interpreter) = python(&["jsonschema", "openapi_spec_validator"]) else { return };
    let (server, _) = told().await;
    let (flow, trace) = (format!("flows/flow-{TRACE}"), format!("traces/{TRACE}"));
    let paths = [
        "flows",
        "flows?operation=login",
        "flows?page=0",
        &flow,
        "flows/x",
        "flows/00000000000000000000000000000001",
        "dependencies",
        "dependencies?namespace=shop",
        "dependencies?x=1",
        "traces",
        "traces?status=bad",
        &trace,
        "traces/x",
        "traces/00000000000000000000000000000001",
        "operations",
        "operations?environment=none",
        "operations?startTime=x",
        "operations/login/stats",
        "operations/none/stats",
        "operations/login/graph",
        "operations/none/graph",
        "services",
        "services?namespace=none",
        "services/orders",
        "services/none",
        "doctor",
        "doctor?service=orders",
        "live",
    ];
    let mut command = Command::new(interpreter);
    command.arg(workspace().join("tests/judges/openapi_judge.py")).arg(server.url("")).args(paths);
    let mut judge =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let live = super::live::messages_of_a_login(&server).await;
    judge.stdin.take().unwrap().write_all(live.join("\n").as_bytes()).unwrap();
    let output = tokio::task::spawn_blocking(move || judge.wait_with_output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let judged: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(judged["judged"], json!(paths.len() + live.len()));
}
