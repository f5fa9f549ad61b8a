//! Control at run time: the filter follows the state of a sidecar, whose status is the document that it asks for.
//! Every worker follows, and what is wrong changes nothing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use throughline_tests::envoy::{self, Bootstrap};
use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;

/// A caller's context that says no.
const NO: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
/// Connections, which Envoy spreads over its workers.
const CONNECTIONS: usize = 12;

/// A filter on two workers that asks whoever is at `control` each second.
async fn following(app: &Service, collector: &Collector, control: SocketAddr) -> Sidecar {
    let plan = Plan::before("orders", app.address)
        .on(Host::Envoy)
        .workers(2)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .environment("OTEL_TRACES_SAMPLER_ARG", "0");
    let mut bootstrap =
        Bootstrap::of(&plan).configure("control-cluster", "control").configure("control-interval", 1000);
    let address = json!({"socket_address": {"address": control.ip(), "port_value": control.port()}});
    let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address}}]}]);
    let clusters = bootstrap.root["static_resources"]["clusters"].as_array_mut().expect("a list");
    clusters.push(json!({
        "name": "control",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "control", "endpoints": endpoints},
    }));
    bootstrap.start("orders").await
}

/// How many of some requests on connections of their own, whose callers said no, are sampled.
async fn sampled(sidecar: &Sidecar, app: &Service, operation: &str) -> usize {
    let before = app.seen().len();
    for _ in 0..CONNECTIONS {
        let mut connection = Connection::to(sidecar.inbound(), Protocol::H1).await.expect("a connection");
        let ask = Ask::get(sidecar.url("/")).headers([("traceparent", NO), ("x-operation-name", operation)]);
        assert_eq!(connection.ask(ask).await.status, 200);
    }
    app.seen()[before..].iter().filter(|seen| seen.traceparent().sampled()).count()
}

async fn sampled_when(sidecar: &Sidecar, app: &Service, operation: &str, wanted: usize) {
    eventually(&format!("{wanted} of {CONNECTIONS} sampled for {operation}"), || async {
        (sampled(sidecar, app, operation).await == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_rule_that_is_enabled_at_a_sidecar_holds_on_every_worker_until_it_is_disabled() {
    if !envoy::is_here() {
        return;
    }
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let hub = Plan::before("hub", app.address).on(Host::Sidecar).environment("OTEL_TRACES_SAMPLER_ARG", "0");
    let hub = hub.environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()).start().await;
    let sidecar = following(&app, &collector, hub.admin).await;
    assert_eq!(sampled(&sidecar, &app, "checkout").await, 0);

    let rule = json!({"operation": "checkout", "rate": 1.0, "duration": "1m"});
    let enable = Ask::post(hub.admin_url("/api/tracing/enable"), rule.to_string());
    assert_eq!(enable.send().await.status, 200);
    sampled_when(&sidecar, &app, "checkout", CONNECTIONS).await;
    assert_eq!(sampled(&sidecar, &app, "refund").await, 0, "the rule is about one operation");

    let all = json!({"all": true});
    let disable = Ask::post(hub.admin_url("/api/tracing/disable"), all.to_string());
    assert_eq!(disable.send().await.status, 200);
    sampled_when(&sidecar, &app, "checkout", 0).await;
    sidecar.end().await;
    hub.end().await;
}

#[tokio::test]
async fn a_document_that_is_wrong_or_gone_leaves_the_last_good_one() {
    if !envoy::is_here() {
        return;
    }
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let said = Arc::new(Mutex::new((200, json!({"base_rate": 1.0}).to_string())));
    let saying = Arc::clone(&said);
    let control = Service::playing(script(move |_| {
        let (status, text) = saying.lock().expect("a lock").clone();
        async move { throughline_tests::service::response(status, text) }
    }))
    .await;
    let sidecar = following(&app, &collector, control.address).await;
    sampled_when(&sidecar, &app, "checkout", 0).await; // a parent's no is followed
    let root = || async {
        let answer = Ask::get(sidecar.url("/")).send().await;
        assert_eq!(answer.status, 200);
        app.seen().last().expect("a request").traceparent().sampled().then_some(())
    };
    eventually("a root sampled by the document's rate", root).await;
    for wrong in [
        (200, "{".to_owned()),
        (200, json!({"base_rate": 7}).to_string()),
        (200, format!("\"{}\"", "x".repeat(300 * 1024))),
        (503, String::new()),
    ] {
        let asked = control.seen().len();
        *said.lock().expect("a lock") = wrong.clone();
        eventually("two more questions", || async { (control.seen().len() >= asked + 2).then_some(()) })
            .await;
        assert!(root().await.is_some(), "{wrong:?} has changed something");
    }
    *said.lock().expect("a lock") = (200, json!({"base_rate": 0}).to_string());
    eventually("no root sampled", || async { root().await.is_none().then_some(()) }).await;
    sidecar.end().await;
}
