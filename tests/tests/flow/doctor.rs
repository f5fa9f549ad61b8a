//! The Context Doctor over real sidecars: each verdict from the trouble that it names, and none where all is well.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use throughline_tests::flow::{FlowPlan, FlowServer};
use throughline_tests::prelude::*;
use throughline_tests::service::{Copying, response};
use throughline_tests::sidecar::Plan;

/// A flow server that waits a second for spans.
async fn hasty() -> FlowServer {
    FlowPlan::new().flag("late-after", 1000).start().await
}

/// A sidecar before an application, with further flags.
async fn sidecar(
    server: &FlowServer,
    service: &str,
    upstream: SocketAddr,
    flags: &[(&str, &str)],
) -> Sidecar {
    let plan = Plan::before(service, upstream)
        .on(Host::Sidecar)
        .flag("otel-resource-attributes", "service.namespace=shop,deployment.environment.name=production")
        .flag("otel-exporter-otlp-endpoint", format!("http://{}", server.grpc()))
        .flag("otel-metric-export-interval", 200);
    flags.iter().fold(plan, |plan, (name, value)| plan.flag(name, value)).start().await
}

/// What an application puts on its calls for a path.
type Says = fn(&str, &http::HeaderMap) -> http::HeaderMap;

/// An application that asks another, at the path at which it was asked, and answers what that one did.
fn asking(target: SocketAddr, says: Says) -> Script {
    script(move |visit| async move {
        let path = visit.request.uri().path().to_owned();
        let headers = says(&path, visit.request.headers());
        let ask = Ask::get(format!("http://{target}{path}")).copied(headers);
        let answer = visit.outbound.send(ask).await;
        response(answer.status, answer.body)
    })
}

fn all(_: &str, headers: &http::HeaderMap) -> http::HeaderMap {
    Copying::Everything.from(headers)
}

/// Verdicts of a service at `/doctor`: verdict, from, to, route.
fn verdicts(doctor: &Value, service: &str) -> Vec<[String; 4]> {
    let services = doctor["services"].as_array().unwrap();
    let said = services.iter().filter(|of| of["name"] == service);
    said.flat_map(|of| of["verdicts"].as_array().unwrap()).map(shape).collect()
}

fn shape(said: &Value) -> [String; 4] {
    let hop = &said["hop"];
    assert!(
        said["reason"].as_str().unwrap().len() > 10 && said["fix"].as_str().unwrap().len() > 10,
        "{said}"
    );
    [&said["verdict"], &hop["from"], &hop["to"], &hop["route"]].map(|text| text.as_str().unwrap().to_owned())
}

/// Waits until a service has these verdicts and no other.
async fn has(server: &FlowServer, service: &str, wanted: &[[&str; 4]]) -> Value {
    server.get_when("doctor", |doctor| verdicts(doctor, service) == wanted).await
}

/// Verdicts of every trace that is kept.
async fn of_traces(server: &FlowServer) -> Vec<(String, Vec<[String; 4]>)> {
    let mut found = Vec::new();
    for page in 1.. {
        let traces = server.get(&format!("traces?pageSize=100&page={page}")).await;
        let traces = traces["traces"].as_array().unwrap();
        if traces.is_empty() {
            return found;
        }
        for trace in traces {
            let id = trace["traceId"].as_str().unwrap();
            let flow = server.get(&format!("flows/flow-{id}")).await;
            let said = flow["doctor"].as_array().unwrap().iter().map(shape).collect();
            found.push((id.to_owned(), said));
        }
    }
    found
}

/// Waits until so many traces are kept, and have these verdicts between them and no other.
async fn traces_say(server: &FlowServer, count: usize, wanted: &[[&str; 4]]) {
    eventually(&format!("{count} traces that say {wanted:?}"), || async {
        let traces = of_traces(server).await;
        let (found, mut said) =
            (traces.len(), traces.into_iter().flat_map(|(_, said)| said).collect::<Vec<_>>());
        said.sort();
        (found == count && said == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_application_that_drops_the_context_on_one_route_is_told_of_that_route() {
    let server = hasty().await;
    let stock = Service::playing(answer(200, "42")).await;
    let behind = sidecar(&server, "stock", stock.address, &[]).await;
    let says: Says = |path, headers| {
        if path == "/lossy" { http::HeaderMap::new() } else { Copying::Everything.from(headers) }
    };
    let web = Service::playing(asking(behind.inbound(), says)).await;
    let front = sidecar(&server, "web", web.address, &[]).await;
    web.outbound.is_at(front.outbound());
    for path in ["/lossy", "/good", "/lossy", "/good", "/lossy"] {
        assert_eq!(Ask::get(front.url(path)).send().await.status, 200);
    }
    // The counters know the route, the traces know the hop.
    let by_counters = ["app_dropped", "web", "", "/lossy"];
    let by_traces = ["app_dropped", "web", "stock", "GET"];
    let doctor = has(&server, "web", &[by_counters, by_traces]).await;
    assert_eq!(verdicts(&doctor, "stock"), [[""; 4]; 0], "its caller is to blame");
    let web = doctor["services"].as_array().unwrap().iter().find(|of| of["name"] == "web").unwrap();
    assert_eq!(web["score"], 0.4);
    let routes = web["routes"].as_array().unwrap();
    let scores: Vec<_> = routes.iter().map(|of| (&of["route"], &of["forwarded"], &of["dropped"])).collect();
    assert_eq!(
        scores,
        [(&json!("/lossy"), &json!(0), &json!(3)), (&json!("/good"), &json!(2), &json!(0))],
        "{web}"
    );
    assert_eq!((&web["verdicts"][0]["count"], &web["verdicts"][1]["count"]), (&json!(3), &json!(3)));
    assert!(web["verdicts"][0]["fix"].as_str().unwrap().contains("copy traceparent"), "{web}");
    traces_say(&server, 8, &[by_traces; 3]).await;
}

#[tokio::test]
async fn an_application_that_begins_traces_anew_is_named() {
    static CALLS: AtomicU64 = AtomicU64::new(1);
    let server = hasty().await;
    let stock = Service::playing(answer(200, "42")).await;
    let behind = sidecar(&server, "stock", stock.address, &[]).await;
    let says: Says = |_, _| {
        let number = CALLS.fetch_add(1, Ordering::Relaxed);
        let own = format!("00-{number:032x}-00f067aa0ba902b7-01");
        http::HeaderMap::from_iter([(http::HeaderName::from_static("traceparent"), own.parse().unwrap())])
    };
    let web = Service::playing(asking(behind.inbound(), says)).await;
    let front = sidecar(&server, "web", web.address, &[]).await;
    web.outbound.is_at(front.outbound());
    for _ in 0..2 {
        assert_eq!(Ask::get(front.url("/cart")).send().await.status, 200);
    }
    let by_traces = ["app_restarted", "web", "stock", "GET"];
    let doctor = has(&server, "web", &[["app_restarted", "web", "", ""], by_traces]).await;
    assert_eq!(verdicts(&doctor, "stock"), [[""; 4]; 0]);
    traces_say(&server, 4, &[by_traces; 2]).await;
}

#[tokio::test]
async fn hops_without_a_sidecar_are_not_injected() {
    let server = hasty().await;
    let plain = Service::playing(answer(200, "42")).await;
    let web = Service::playing(asking(plain.address, all)).await;
    let front = sidecar(&server, "web", web.address, &[]).await;
    web.outbound.is_at(front.outbound());
    assert_eq!(Ask::get(front.url("/cart")).send().await.status, 200);
    let below = ["not_injected", "web", "127.0.0.1", "GET"];
    traces_say(&server, 1, &[below]).await;
    // A caller with a context whose span nobody has.
    let known = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    assert_eq!(Ask::get(front.url("/cart")).header(known.0, known.1).send().await.status, 200);
    let above = ["not_injected", "", "web", "/cart"];
    traces_say(&server, 2, &[above, below, below]).await;
    has(&server, "web", &[above, below]).await;
}

#[tokio::test]
async fn a_sidecar_that_samples_otherwise_is_named_by_the_hop() {
    let server = hasty().await;
    let stock = Service::playing(answer(200, "42")).await;
    let behind = sidecar(&server, "stock", stock.address, &[("otel-traces-sampler", "always_off")]).await;
    let web = Service::playing(asking(behind.inbound(), all)).await;
    let front = sidecar(&server, "web", web.address, &[]).await;
    web.outbound.is_at(front.outbound());
    assert_eq!(Ask::get(front.url("/cart")).send().await.status, 200);
    let said = ["sampled_out", "web", "stock", "GET"];
    traces_say(&server, 1, &[said]).await;
    let doctor = has(&server, "web", &[said]).await;
    let web = doctor["services"].as_array().unwrap().iter().find(|of| of["name"] == "web").unwrap();
    assert!(web["verdicts"][0]["fix"].as_str().unwrap().contains("sampler"), "{web}");
}

#[tokio::test]
async fn a_failure_that_was_kept_behind_a_caller_that_keeps_nothing_says_who_left_no_span() {
    let server = hasty().await;
    let stock = Service::playing(answer(503, "")).await;
    let behind = sidecar(&server, "stock", stock.address, &[("otel-traces-sampler-arg", "0")]).await;
    // A sidecar that names itself and cannot be told what to keep: the head of a request that one made, sent again.
    let heard = Service::playing(answer(200, "")).await;
    let web = Service::playing(asking(heard.address, all)).await;
    let front = sidecar(&server, "web", web.address, &[("otel-traces-sampler-arg", "0")]).await;
    web.outbound.is_at(front.outbound());
    assert_eq!(Ask::get(front.url("/cart")).send().await.status, 200);
    let head = heard.saw_one();
    let names = ["traceparent", "tracestate", "throughline-peer"];
    let same = names.map(|name| (name, head.header(name).unwrap_or("").to_owned()));
    assert!(same[2].1.contains("web"), "{same:?}");
    let ask = same
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .fold(Ask::get(behind.url("/cart")), |ask, (name, value)| ask.header(*name, value.as_str()));
    assert_eq!(ask.send().await.status, 503);
    let said = ["sampled_out", "web", "stock", "/cart"];
    traces_say(&server, 1, &[said]).await;
    let doctor = has(&server, "stock", &[said]).await;
    let reason =
        &doctor["services"].as_array().unwrap().iter().find(|of| of["name"] == "stock").unwrap()["verdicts"];
    assert!(reason[0]["reason"].as_str().unwrap().contains("(error)"), "{reason}");
}

#[tokio::test]
async fn what_was_kept_on_one_side_by_design_explains_the_trace_and_accuses_nobody() {
    let server = hasty().await;
    let stock = Service::playing(script(|_| async {
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        response(200, "")
    }));
    let stock = stock.await;
    let none = ("otel-traces-sampler-arg", "0");
    let behind = sidecar(&server, "stock", stock.address, &[none, ("keep-slow", "off")]).await;
    let web = Service::playing(asking(behind.inbound(), all)).await;
    let front = sidecar(&server, "web", web.address, &[none, ("keep-slow", "20")]).await;
    web.outbound.is_at(front.outbound());
    assert_eq!(Ask::get(front.url("/cart")).send().await.status, 200);
    traces_say(&server, 1, &[["sampled_out", "web", "stock", "GET"]]).await;
    let doctor = server.get("doctor").await;
    assert_eq!(verdicts(&doctor, "web"), [[""; 4]; 0], "{doctor}");
}

#[tokio::test]
async fn a_message_without_a_context_is_unlinked() {
    let server = hasty().await;
    let mail = Service::playing(answer(204, "")).await;
    let front = sidecar(&server, "mail", mail.address, &[]).await;
    let push = json!({
        "message": { "data": "e30=", "messageId": "1", "publishTime": "2026-11-20T20:00:00Z" },
        "subscription": "projects/shop-1/subscriptions/mails",
    });
    let ask = Ask::post(front.url("/push"), push.to_string()).header("content-type", "application/json");
    assert_eq!(ask.header("user-agent", "CloudPubSub-Google").send().await.status, 204);
    let said = ["async_unlinked", "", "mail", "mails"];
    traces_say(&server, 1, &[said]).await;
    has(&server, "mail", &[said]).await;
}

#[tokio::test]
async fn a_span_under_way_is_late_until_it_is_here() {
    let server = FlowServer::start().await;
    let stock = Service::playing(answer(200, "42")).await;
    let behind = sidecar(&server, "stock", stock.address, &[("otel-bsp-schedule-delay", "600000")]).await;
    let web = Service::playing(asking(behind.inbound(), all)).await;
    let front = sidecar(&server, "web", web.address, &[]).await;
    web.outbound.is_at(front.outbound());
    assert_eq!(Ask::get(front.url("/cart")).send().await.status, 200);
    traces_say(&server, 1, &[["late", "web", "stock", "GET"]]).await;
    let doctor = server.get("doctor").await;
    assert_eq!(verdicts(&doctor, "web"), [[""; 4]; 0], "it says nothing of the service");
    let _ = behind.end().await;
    traces_say(&server, 1, &[]).await;
}

#[tokio::test]
async fn a_job_beside_requests_and_a_call_after_its_answer_are_no_trouble() {
    let server = hasty().await;
    let stock = Service::playing(answer(200, "42")).await;
    let behind = sidecar(&server, "stock", stock.address, &[]).await;
    let target = behind.inbound();
    // Requests wait a moment, and one makes its call when it is answered, with all that it was given but tracestate.
    let web = Service::playing(script(move |visit| async move {
        let headers = Copying::TraceparentOnly.from(visit.request.headers());
        let (path, outbound) = (visit.request.uri().path().to_owned(), visit.outbound.clone());
        if path == "/later" {
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                outbound.send(Ask::get(format!("http://{target}/after")).copied(headers)).await;
            });
        } else {
            let wait = if path == "/slow" { 300 } else { 5 };
            tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
        }
        response(200, "")
    }));
    let web = web.await;
    let front = sidecar(&server, "web", web.address, &[]).await;
    web.outbound.is_at(front.outbound());
    let way_out = front.outbound();
    assert_eq!(Ask::get(front.url("/later")).send().await.status, 200);
    for _ in 0..199 {
        assert_eq!(Ask::get(front.url("/page")).send().await.status, 200);
    }
    // The job makes a call without a context while a request is in flight, now and then.
    let job = async {
        web.saw(201).await;
        Ask::get(format!("http://{target}/poll")).via(way_out).send().await
    };
    let (slow, job) = tokio::join!(Ask::get(front.url("/slow")).send(), job);
    assert_eq!((slow.status, job.status), (200, 200));
    assert_eq!(stock.saw(2).await.len(), 2);
    let books = front.books().await;
    assert!(books.sum("throughline_calls_of_other_traces_total", &[]) >= 1, "the call after its answer");
    let (_, _) = (front.end().await, behind.end().await);
    let counted = |doctor: &Value| {
        let web = doctor["services"].as_array().unwrap().iter().find(|of| of["name"] == "web").cloned();
        web.is_some_and(|web| web["routes"].as_array().unwrap().iter().any(|route| route["dropped"] != 0))
    };
    let doctor = server.get_when("doctor", counted).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(verdicts(&doctor, "web"), [[""; 4]; 0], "{doctor:#}");
    assert_eq!(verdicts(&server.get("doctor").await, "web"), [[""; 4]; 0]);
}

#[tokio::test]
async fn a_mesh_without_trouble_has_no_verdict() {
    for rate in ["1", "0.01"] {
        let server = hasty().await;
        let flags = [("otel-traces-sampler-arg", rate)];
        let stock = Service::playing(script(|visit| async move {
            let late = visit.request.uri().path() == "/late";
            if late {
                tokio::time::sleep(std::time::Duration::from_millis(30)).await;
            }
            response(if visit.request.uri().path() == "/fails" { 503 } else { 200 }, "")
        }));
        let stock = stock.await;
        let behind = sidecar(&server, "stock", stock.address, &flags).await;
        let orders = Service::playing(asking(behind.inbound(), all)).await;
        let between = sidecar(&server, "orders", orders.address, &flags).await;
        orders.outbound.is_at(between.outbound());
        let web = Service::playing(asking(between.inbound(), all)).await;
        let front = sidecar(&server, "web", web.address, &flags).await;
        web.outbound.is_at(front.outbound());
        let mut asked = tokio::task::JoinSet::new();
        for task in 0..8_u64 {
            let url = |path: &str| front.url(path);
            let urls = [url("/good"), url("/fails"), url("/late"), url("/good")];
            asked.spawn(async move {
                for number in 0..25_u64 {
                    let at = usize::try_from((task + number) % 4).unwrap();
                    Ask::get(&urls[at]).header("x-operation-name", "browse").send().await;
                }
            });
        }
        while asked.join_next().await.is_some() {}
        let all_counted = |stats: &Value| stats["stats"]["totalRequests"] == 200;
        server.get_when("operations/browse/stats", all_counted).await;
        // Spans are as old as the server waits for them, and all are here.
        let _ = (front.end().await, between.end().await, behind.end().await);
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        let told = of_traces(&server).await;
        assert!(told.len() >= 50, "{rate}: the failures at the least: {}", told.len());
        let said: Vec<_> = told.iter().filter(|(_, said)| !said.is_empty()).collect();
        assert!(said.is_empty(), "{rate}: {said:#?}");
        let doctor = server.get("doctor").await;
        let services = doctor["services"].as_array().unwrap();
        assert!(services.iter().all(|of| of["verdicts"] == json!([])), "{rate}: {doctor:#}");
        let scores: Vec<&Value> = services.iter().map(|of| &of["score"]).collect();
        assert_eq!(scores, [&json!(1.0), &json!(1.0)], "{rate}: orders and web; stock calls nobody");
    }
}
