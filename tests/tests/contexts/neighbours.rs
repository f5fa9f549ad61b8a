//! Neighbours: what goes to those outside of the mesh, and how sidecars name themselves to each other.

use serde_json::{Value, json};
use throughline_tests::judges::skipped;
use throughline_tests::pki::Folder;
use throughline_tests::prelude::*;
use throughline_tests::service::Seen;
use throughline_tests::span::span_of;

use crate::{TRACE, traceparent};

/// A name with a dot, which therefore is outside of the mesh, that every resolver of C's finds on loopback.
const OUTSIDE: &str = "127.1";

/// Sends a request with everything through an application that forwards only `traceparent`, to a host.
async fn seen_at(host: &str, flags: &[(&str, &str)], hosts: Option<&std::path::Path>) -> Seen {
    seen_from(Copying::TraceparentOnly, host, flags, hosts).await.1
}

/// What the application received, and what the host received from it.
async fn seen_from(
    copying: Copying,
    host: &str,
    flags: &[(&str, &str)],
    hosts: Option<&std::path::Path>,
) -> (Seen, Seen) {
    let mesh = Mesh::new().await;
    let partner = Service::playing(answer(200, "")).await;
    let url = format!("http://{host}:{}/", partner.address.port());
    let plan = flags.iter().fold(mesh.pod("orders"), |plan, (name, value)| plan.flag(name, value));
    let plan = hosts.into_iter().fold(plan, |plan, file| plan.hosts(file));
    let orders = plan.runs(calling(url, copying)).await;
    let answer = Ask::get(orders.url("/"))
        .headers([
            ("traceparent", traceparent("01").as_str()),
            ("tracestate", "vendor=1"),
            ("baggage", "user=7"),
            ("x-operation-name", "checkout"),
        ])
        .send()
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let at_the_app = orders.app().saw_one();
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.len(), 2);
    (at_the_app, partner.saw_one())
}

fn check_outside(seen: &Seen) {
    for name in ["tracestate", "baggage", "x-operation-name", "throughline-peer", "x-trace-id"] {
        assert_eq!(seen.header(name), None, "{name} left the mesh");
    }
}

fn check_inside(seen: &Seen) {
    assert_eq!(seen.header("x-operation-name"), Some("checkout"));
    assert_eq!(seen.header("throughline-peer"), Some("service=orders;namespace=shop"));
    assert_eq!(seen.tracestate(), ["vendor=1"]);
    assert!(seen.header("baggage").is_some_and(|baggage| baggage.contains("user=7")));
}

#[tokio::test]
async fn those_outside_get_only_what_the_application_sent_and_the_trace() {
    let seen = seen_at(OUTSIDE, &[], None).await;
    check_outside(&seen);
    assert_eq!(seen.traceparent().trace, TRACE);
}

#[tokio::test]
async fn what_the_application_itself_sends_goes_outside_without_our_member() {
    let (at_the_app, seen) = seen_from(Copying::Everything, OUTSIDE, &[], None).await;
    assert!(at_the_app.tracestate()[0].starts_with("tl="));
    assert_eq!(seen.tracestate(), ["vendor=1"]);
    assert_eq!(seen.header("x-operation-name"), Some("checkout"), "the application sent it");
    assert_eq!(seen.header("throughline-peer"), None);
}

#[tokio::test]
async fn those_outside_are_not_believed_when_they_name_themselves() {
    let mesh = Mesh::new().await;
    let partner = Service::playing(script(|_| async {
        let mut response = throughline_tests::service::response(200, "");
        response
            .headers_mut()
            .insert("throughline-peer", "service=evil;namespace=x".parse().expect("a value"));
        response
    }))
    .await;
    let orders = mesh.pod("orders").outbound_only().await;
    let url = format!("http://{OUTSIDE}:{}/", partner.address.port());
    let answer = Ask::get(url).via(orders.sidecar.outbound()).send().await;
    assert_eq!((answer.status, answer.header("throughline-peer")), (200, None));
    let spans = mesh.end([orders]).await;
    assert_eq!(the_only(&spans, |_| true)["throughline.peer.service"], Value::Null);
}

#[tokio::test]
async fn the_trace_can_be_withheld_from_those_outside() {
    let off = [("egress-traceparent", "off")];
    let (_, seen) = seen_from(Copying::Nothing, OUTSIDE, &off, None).await;
    check_outside(&seen);
    assert_eq!(seen.header("traceparent"), None);
    // What the application itself sends is its own affair.
    let (at_the_app, seen) = seen_from(Copying::TraceparentOnly, OUTSIDE, &off, None).await;
    check_outside(&seen);
    assert_eq!(seen.header("traceparent"), at_the_app.header("traceparent"));
    let seen = seen_at("127.0.0.1", &[("egress-traceparent", "off")], None).await;
    check_inside(&seen);
    assert_eq!(seen.traceparent().trace, TRACE);
}

#[tokio::test]
async fn private_addresses_single_labels_and_the_users_list_are_inside() {
    check_inside(&seen_at("127.0.0.1", &[], None).await);
    check_inside(&seen_at("localhost", &[], None).await);
    check_inside(&seen_at(OUTSIDE, &[("mesh-hosts", "partner.example,127.1")], None).await);
}

#[tokio::test]
async fn a_suffix_of_the_users_list_brings_its_names_inside() {
    let folder = Folder::fresh();
    let hosts = folder.write("hosts", "127.0.0.1 localhost\n127.0.0.1 api.partner.example\n");
    let tried = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", r#"mount --bind "$1" /etc/hosts"#, "sh"])
        .arg(&hosts)
        .output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return skipped("unshare cannot give a process an /etc/hosts of its own here");
    }
    check_outside(&seen_at("api.partner.example", &[], Some(&hosts)).await);
    check_inside(&seen_at("api.partner.example", &[("mesh-hosts", ".partner.example")], Some(&hosts)).await);
    check_inside(&seen_at("api.partner.example", &[("mesh-hosts", "*.partner.example")], Some(&hosts)).await);
}

#[tokio::test]
async fn a_fixed_route_is_inside_whatever_its_name() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let routes = format!("api.partner.example={0},orders:8080={0}", stock.address);
    let orders = mesh.pod("orders").flag("outbound-routes", routes).outbound_only().await;
    // In absolute form by the proxy's rules, and in origin form by Host alone.
    let ask = |host: &str| {
        format!("GET /x HTTP/1.1\r\nHost: {host}\r\nX-Operation-Name: checkout\r\nConnection: close\r\n\r\n")
    };
    for host in ["api.partner.example", "orders:8080"] {
        let answer = throughline_tests::wire::exchange(orders.sidecar.outbound(), ask(host)).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{host}: {answer}");
    }
    let absolute = Ask::get("http://api.partner.example/x").via(orders.sidecar.outbound()).send().await;
    assert_eq!(absolute.status, 200);
    let seen = stock.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|seen| seen.header("throughline-peer").is_some()), "{seen:#?}");
    assert_eq!(seen[0].header("host"), Some("api.partner.example"), "the name stays the caller's");
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.iter().filter(|span| span["server.address"] == "api.partner.example").count(), 2);
}

#[tokio::test]
async fn both_ends_of_an_edge_know_each_other() {
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").runs(answer(200, "")).await;
    let url = stock.url("/items");
    let orders = mesh
        .pod("orders")
        .runs(script(move |visit| {
            let ask = Ask::get(&url).copied(Copying::Everything.from(visit.request.headers()));
            async move {
                let answer = visit.outbound.send(ask).await;
                assert_eq!(answer.header("throughline-peer"), None, "consumed before the application");
                throughline_tests::service::response(answer.status, "")
            }
        }))
        .await;
    let answer = Ask::get(orders.url("/")).send().await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("throughline-peer"), None, "the caller did not name itself");
    for app in [orders.app(), stock.app()] {
        assert_eq!(app.saw_one().header("throughline-peer"), None, "consumed before the application");
    }
    let spans = mesh.end([orders, stock]).await;
    for (service, kind, peer) in
        [("orders", Kind::Client, "stock"), ("stock", Kind::Server, "orders"), ("orders", Kind::Server, "")]
    {
        let span = span_of(&spans, service, kind);
        let wanted = if peer.is_empty() { [Value::Null, Value::Null] } else { [json!(peer), json!("shop")] };
        assert_eq!(
            [&span["throughline.peer.service"], &span["throughline.peer.namespace"]],
            [&wanted[0], &wanted[1]]
        );
    }
}

#[tokio::test]
async fn a_caller_that_names_itself_is_told_who_answered() {
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").runs(answer(200, "")).await;
    let named =
        Ask::get(stock.url("/")).header("throughline-peer", "service=web;namespace=shop").send().await;
    assert_eq!(named.header("throughline-peer"), Some("service=stock;namespace=shop"));
    let unnamed = Ask::get(stock.url("/")).send().await;
    assert_eq!(unnamed.header("throughline-peer"), None);
    mesh.end([stock]).await;
}

#[tokio::test]
async fn an_application_cannot_speak_for_its_sidecar() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(script(|_| async {
        let mut response = throughline_tests::service::response(200, "");
        response.headers_mut().insert("throughline-peer", "service=evil".parse().expect("a value"));
        response
    }))
    .await;
    let orders = mesh.pod("orders").before(stock.address).await;
    let outside = Ask::get(orders.url("/")).send().await;
    assert_eq!(outside.header("throughline-peer"), None, "an answer of the application's");
    let ask =
        Ask::get(stock.url("/")).header("throughline-peer", "service=other").via(orders.sidecar.outbound());
    ask.send().await;
    let sent = stock.seen().remove(1).header("throughline-peer").map(str::to_owned);
    assert_eq!(sent.as_deref(), Some("service=orders;namespace=shop"));
    mesh.end([orders]).await;
}

#[tokio::test]
async fn nonsense_for_a_peer_is_no_peer() {
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").runs(answer(200, "")).await;
    for nonsense in
        ["", ";", "service", "service=", "service=a b", "x=1", &format!("service={}", "n".repeat(500))]
    {
        let answer = Ask::get(stock.url("/")).header("throughline-peer", nonsense).send().await;
        assert_eq!(answer.status, 200, "{nonsense}");
    }
    assert!(stock.app().seen().iter().all(|seen| seen.header("throughline-peer").is_none()));
    let spans = mesh.end([stock]).await;
    assert!(spans.iter().all(|span| !span.has("throughline.peer.service")), "{spans:#?}");
}
