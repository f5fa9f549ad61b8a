//! Never an open proxy: its own ports are refused, by whatever way they are asked for, and the outbound side
//! stays on loopback unless it is told otherwise.

use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;
use throughline_tests::wire::{exchange, status_of};

#[tokio::test]
async fn its_own_ports_are_refused_by_every_way() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "reached")).await;
    let sidecar = &orders.sidecar;
    for port in [sidecar.inbound().port(), sidecar.outbound().port(), sidecar.admin.port()] {
        for host in ["127.0.0.1", "localhost", "0.0.0.0", "127.0.0.2", "[::1]", "[::ffff:127.0.0.1]", "127.1"]
        {
            let to = format!("{host}:{port}");
            let requests = [
                format!("GET http://{to}/metrics HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"),
                format!("GET /metrics HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"),
                format!(
                    "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\nGET /metrics HTTP/1.1\r\nHost: {to}\r\n\r\n"
                ),
            ];
            for request in requests {
                let mut wire = Wire::to(sidecar.outbound()).await;
                wire.send(&request).await;
                let status = status_of(&wire.head().await);
                // Refused as its own; or nobody is at that address, where it does not listen on all of them.
                assert!(matches!(status, 403 | 421 | 502), "{status} for {request:?}");
                if host == "127.0.0.1" {
                    assert!(matches!(status, 403 | 421), "{status} for {request:?}");
                }
            }
        }
    }
    assert!(orders.app().seen().is_empty());
    mesh.end([orders]).await;
}

/// Settings that lead a sidecar to itself are a mistake; if it starts all the same, requests must not go round.
#[tokio::test]
async fn a_way_that_leads_back_is_refused() {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let (inbound, outbound) = (free().expect("a port"), free().expect("a port"));
    let rows = [
        ("the upstream is the inbound port", inbound, String::new(), inbound, ""),
        ("the upstream is the outbound port", outbound, String::new(), inbound, ""),
        (
            "a route leads to the outbound port",
            "127.0.0.1:9".parse().expect("an address"),
            format!("loop={outbound}"),
            outbound,
            "loop",
        ),
        (
            "a route leads to the inbound port",
            "127.0.0.1:9".parse().expect("an address"),
            format!("loop={inbound}"),
            outbound,
            "loop",
        ),
    ];
    for (about, upstream, routes, ask, host) in rows {
        let plan = Plan::before("loop", upstream)
            .flag("inbound-listen", inbound)
            .flag("outbound-listen", outbound)
            .flag("outbound-routes", routes)
            .environment("OTEL_TRACES_EXPORTER", "none");
        let checked = plan.clone().argument("--check").ends().await;
        if checked.code == Some(2) {
            continue;
        }
        let sidecar = plan.start().await;
        let host = if host.is_empty() { ask.to_string() } else { host.to_owned() };
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let status = status_of(&exchange(ask, request).await);
        assert!(matches!(status, 403 | 421 | 502 | 508), "{about}: {status}");
        let name = "http_server_request_duration_seconds_count";
        assert!(sidecar.books().await.sum(name, &[]) <= 2, "{about}: it went round");
        sidecar.end().await;
    }
}

#[tokio::test]
async fn the_outbound_side_binds_loopback_unless_told_otherwise() {
    let plan = || Plan::outbound_only("open").environment("OTEL_TRACES_EXPORTER", "none");
    let refused = plan().flag("outbound-listen", "0.0.0.0:0").ends().await;
    assert_eq!(refused.code, Some(2), "{:#?}", refused.stderr);
    assert!(refused.stderr.iter().any(|line| line.contains("outbound-anywhere")), "{:#?}", refused.stderr);
    let told = plan().flag("outbound-listen", "0.0.0.0:0").flag("outbound-anywhere", "on").start().await;
    told.end().await;
}

#[tokio::test]
async fn the_inbound_side_goes_to_its_application_and_nowhere_else() {
    let mesh = Mesh::new().await;
    let elsewhere = Service::playing(answer(200, "elsewhere")).await;
    let orders = mesh.pod("orders").runs(answer(200, "application")).await;
    let to = elsewhere.address;
    let absolute = format!("GET http://{to}/ HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    let by_host = format!("GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    for request in [absolute, by_host] {
        assert!(exchange(orders.sidecar.inbound(), request).await.ends_with("application"));
    }
    let connect = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    let status = status_of(&exchange(orders.sidecar.inbound(), connect).await);
    assert!((400..500).contains(&status), "{status}");
    assert!(elsewhere.seen().is_empty());
    mesh.end([orders]).await;
}

#[tokio::test]
async fn the_admin_port_is_no_proxy() {
    let mesh = Mesh::new().await;
    let elsewhere = Service::playing(answer(200, "elsewhere")).await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    let to = elsewhere.address;
    for request in [
        format!("GET http://{to}/ HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"),
        format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"),
    ] {
        let status = status_of(&exchange(orders.sidecar.admin, request).await);
        assert!((400..500).contains(&status), "{status}");
    }
    assert!(elsewhere.seen().is_empty());
    mesh.end([orders]).await;
}
