//! Starting: what can go wrong, said in one line, and what is ready when it says so.

use serde_json::Value;
use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;
use throughline_tests::wire::Nobody;

#[tokio::test]
async fn a_port_in_use_is_one_line_and_exit_1() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = taken.local_addr().expect("an address");
    for flag in ["inbound-listen", "outbound-listen", "admin-listen"] {
        let plan = Plan::before("late", "127.0.0.1:9".parse().expect("an address")).flag(flag, address);
        let ended = plan.ends().await;
        assert_eq!(ended.code, Some(1), "{flag}: {:#?}", ended.stderr);
        let about: Vec<_> = ended.stderr.iter().filter(|line| line.contains(&address.to_string())).collect();
        assert_eq!(about.len(), 1, "{flag}: {:#?}", ended.stderr);
        assert!(about[0].contains(flag) || about[0].contains("in use"), "{about:?}");
    }
}

#[tokio::test]
async fn a_missing_upstream_is_no_reason_not_to_start() {
    let nobody = Nobody::listens();
    let sidecar =
        Plan::before("early", nobody.address).environment("OTEL_TRACES_EXPORTER", "none").start().await;
    assert_eq!(Ask::get(sidecar.url("/")).send().await.status, 502);
    assert_eq!(Ask::get(sidecar.admin_url("/readyz")).send().await.status, 200);
    sidecar.end().await;
}

#[tokio::test]
async fn an_upstream_may_be_a_name() {
    let app = Service::playing(answer(200, "found")).await;
    let sidecar = Plan::before("orders", app.address)
        .flag("inbound-upstream", format!("localhost:{}", app.address.port()))
        .environment("OTEL_TRACES_EXPORTER", "none")
        .start()
        .await;
    assert_eq!(Ask::get(sidecar.url("/")).send().await.text(), "found");
    sidecar.end().await;
}

#[tokio::test]
async fn a_collector_that_is_not_there_yet_is_found_later() {
    let app = Service::playing(answer(200, "")).await;
    let collector = Collector::start().await;
    collector.always(Reaction::Close);
    let sidecar = Plan::before("orders", app.address)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .start()
        .await;
    Ask::get(sidecar.url("/")).send().await;
    collector.deliveries_when(1).await;
    collector.always(Reaction::Accept);
    collector.spans(1).await;
    sidecar.end().await;
}

#[tokio::test]
async fn its_own_log_is_json_line_by_line() {
    let app = Service::playing(answer(200, "")).await;
    let sidecar = Plan::before("orders", app.address)
        .environment("OTEL_TRACES_EXPORTER", "none")
        .environment("OTEL_LOG_LEVEL", "debug")
        .start()
        .await;
    Ask::get(sidecar.url("/")).send().await;
    let ended = sidecar.end().await;
    assert!(!ended.stderr.is_empty());
    for line in &ended.stderr {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        for key in ["timestamp", "level", "message"] {
            assert!(value[key].is_string(), "{key} is missing in {line}");
        }
    }
    assert!(ended.stdout.is_empty(), "the access log is off: {:?}", ended.stdout);
}

#[tokio::test]
async fn a_side_that_is_not_asked_for_is_not_there() {
    let sidecar = Plan::outbound_only("out").environment("OTEL_TRACES_EXPORTER", "none").start().await;
    assert!(sidecar.has_outbound());
    sidecar.end().await;
    let app = Service::playing(answer(200, "")).await;
    let plan = Plan::before("in", app.address).without("outbound-listen");
    let sidecar = plan.environment("OTEL_TRACES_EXPORTER", "none").start().await;
    assert!(!sidecar.has_outbound());
    sidecar.end().await;
}
