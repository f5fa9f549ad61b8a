//! The thread: one trace through all pods, with and without the application's help.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::json;
use throughline_tests::prelude::*;
use throughline_tests::service::response;
use throughline_tests::span::span_of;
use tokio::sync::Barrier;

use crate::{CALLER, TRACE, traceparent};

#[tokio::test]
async fn a_tagged_request_is_one_trace_through_all_pods() {
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").runs(answer(200, "12")).await;
    let orders = mesh.pod("orders").runs(calling(stock.url("/items"), Copying::Everything)).await;
    let web = mesh.pod("web").runs(calling(orders.url("/orders"), Copying::Everything)).await;
    let answer = Ask::get(web.url("/")).header("x-operation-name", "checkout").send().await;
    assert_eq!(answer.text(), "12");
    let spans = mesh.end([web, orders, stock]).await;
    assert_eq!(spans.len(), 5);
    assert_connected(&spans, &[]);
    let mut parent = String::new();
    for (service, kind) in [
        ("web", Kind::Server),
        ("web", Kind::Client),
        ("orders", Kind::Server),
        ("orders", Kind::Client),
        ("stock", Kind::Server),
    ] {
        let span = span_of(&spans, service, kind);
        assert_eq!(span.parent, parent, "{service} {kind:?}");
        assert_eq!(span["app.operation.name"], "checkout");
        parent = span.id;
    }
}

#[tokio::test]
async fn the_callers_context_is_the_parent_and_ours_is_the_applications() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    Ask::get(orders.url("/"))
        .headers([("traceparent", traceparent("01").as_str()), ("tracestate", "vendor=1")])
        .send()
        .await;
    let seen = orders.app().saw_one();
    let spans = mesh.end([orders]).await;
    let span = the_only(&spans, |_| true);
    assert_eq!((span.trace.as_str(), span.parent.as_str()), (TRACE, CALLER));
    assert_eq!((seen.traceparent().trace, seen.traceparent().span), (span.trace.clone(), span.id.clone()));
    assert_eq!(seen.tracestate(), [format!("tl={}", span.id), "vendor=1".to_owned()]);
}

#[tokio::test]
async fn what_the_application_does_not_forward_is_restored_on_its_calls() {
    let rows = [Copying::Everything, Copying::TraceContext, Copying::TraceparentOnly];
    for copying in rows {
        let mesh = Mesh::new().await;
        let stock = Service::playing(answer(200, "")).await;
        let orders = mesh.pod("orders").runs(calling(stock.url("/items"), copying)).await;
        Ask::get(orders.url("/"))
            .headers([
                ("traceparent", traceparent("01").as_str()),
                ("tracestate", "vendor=1,other=2"),
                ("baggage", "user=7"),
                ("x-operation-name", "checkout"),
            ])
            .send()
            .await;
        let seen = stock.saw_one();
        assert_eq!(seen.tracestate(), ["vendor=1", "other=2"], "{copying:?}");
        assert_eq!(seen.header("x-operation-name"), Some("checkout"), "{copying:?}");
        let baggage = seen.header("baggage").unwrap_or("");
        assert!(baggage.split(',').any(|member| member.trim() == "user=7"), "{copying:?}: {baggage}");
        assert!(baggage.contains("app.operation.name=checkout"), "{copying:?}: {baggage}");
        let spans = mesh.end([orders]).await;
        let (server, client) =
            (span_of(&spans, "orders", Kind::Server), span_of(&spans, "orders", Kind::Client));
        assert_eq!((&client.parent, &client["app.operation.name"]), (&server.id, &json!("checkout")));
        assert_eq!(seen.traceparent().span, client.id);
    }
}

/// Two requests of one trace at once, told apart only by `tl`: each call gets back what its own request had.
#[tokio::test]
async fn requests_of_one_trace_in_flight_together_are_not_mixed_up() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let (url, both_here) = (stock.url("/items"), Arc::new(Barrier::new(2)));
    let orders = mesh
        .pod("orders")
        .runs(script(move |visit| {
            let (url, both_here) = (url.clone(), Arc::clone(&both_here));
            async move {
                both_here.wait().await;
                let headers = visit.request.headers();
                let mark = headers["x-mark"].clone();
                let ask = Ask::get(&url).copied(Copying::TraceContext.from(headers)).header("x-mark", mark);
                visit.outbound.send(ask).await;
                // Neither is answered before both have called.
                both_here.wait().await;
                response(200, "")
            }
        }))
        .await;
    let ask = |mark: &str, operation: &str| {
        Ask::get(orders.url("/"))
            .headers([("traceparent", traceparent("01").as_str()), ("x-mark", mark)])
            .header("x-operation-name", operation)
            .header("tracestate", format!("mark={mark}"))
            .send()
    };
    tokio::join!(ask("a", "checkout"), ask("b", "refund"));
    for seen in stock.saw(2).await {
        let (operation, state) = match seen.header("x-mark") {
            Some("a") => ("checkout", "mark=a"),
            _ => ("refund", "mark=b"),
        };
        assert_eq!(seen.header("x-operation-name"), Some(operation));
        assert_eq!(seen.tracestate(), [state]);
    }
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.len(), 4);
    assert_connected(&spans, &[CALLER]);
    for client in spans.iter().filter(|span| span.kind == Kind::Client) {
        let server = the_only(&spans, |span| span.id == client.parent);
        assert_eq!(server["app.operation.name"], client["app.operation.name"]);
    }
}

/// An application with an SDK of its own: its calls carry a span id that the SDK made.
fn with_sdk(url: String, flags: &'static str, forwards_state: bool) -> Script {
    script(move |visit| {
        let mut headers = HeaderMap::new();
        let arrived = visit.request.headers();
        let trace = arrived["traceparent"].to_str().expect("text")[3..35].to_owned();
        let own = format!("00-{trace}-{SDK}-{flags}");
        headers.insert("traceparent", own.parse().expect("a value"));
        if let Some(state) = arrived.get("tracestate").filter(|_| forwards_state) {
            headers.insert("tracestate", state.clone());
        }
        let ask = Ask::get(&url).copied(headers);
        async move {
            visit.outbound.send(ask).await;
            response(200, "")
        }
    })
}

const SDK: &str = "5d5d5d5d5d5d5d5d";

#[tokio::test]
async fn a_span_of_the_applications_own_sdk_is_a_parent_only_when_it_is_exported() {
    // Flags of the SDK's span; whether it forwards tracestate; whether our client span takes it as its parent.
    for (flags, forwards_state, is_parent) in
        [("01", true, true), ("01", false, true), ("00", true, false), ("00", false, false)]
    {
        let mesh = Mesh::new().await;
        let stock = mesh.pod("stock").runs(answer(200, "")).await;
        let orders = mesh.pod("orders").runs(with_sdk(stock.url("/items"), flags, forwards_state)).await;
        Ask::get(orders.url("/")).header("traceparent", traceparent("01")).send().await;
        let spans = mesh.end([orders, stock]).await;
        let row = format!("flags {flags}, tracestate {forwards_state}: {spans:#?}");
        assert_eq!(spans.len(), 3, "{row}");
        let client = span_of(&spans, "orders", Kind::Client);
        let server = span_of(&spans, "orders", Kind::Server);
        assert_eq!(client.parent, if is_parent { SDK } else { &server.id }, "{row}");
        assert_connected(&spans, if is_parent { &[CALLER, SDK] } else { &[CALLER] });
        assert_eq!(span_of(&spans, "stock", Kind::Server).parent, client.id, "{row}");
    }
}

#[tokio::test]
async fn our_member_of_tracestate_never_leaves_the_pod_whoever_sent_it() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let orders = mesh.pod("orders").runs(calling(stock.url("/items"), Copying::Everything)).await;
    // A caller outside that sends a member of that name: it is not ours, and must not be taken for ours.
    Ask::get(orders.url("/"))
        .headers([("traceparent", traceparent("01").as_str()), ("tracestate", "tl=1111111111111111,a=1")])
        .send()
        .await;
    let seen = stock.saw_one();
    assert_eq!(seen.tracestate(), ["a=1"]);
    let at_the_app = orders.app().saw_one().tracestate();
    let spans = mesh.end([orders]).await;
    let server = span_of(&spans, "orders", Kind::Server);
    assert_eq!(at_the_app, [format!("tl={}", server.id), "a=1".to_owned()]);
    assert_connected(&spans, &[CALLER]);
}

#[tokio::test]
async fn a_full_tracestate_comes_back_whole_after_the_application() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let orders = mesh.pod("orders").runs(calling(stock.url("/items"), Copying::Everything)).await;
    let members: Vec<_> = (0..32).map(|number| format!("m{number}=1")).collect();
    let state = members.join(",");
    Ask::get(orders.url("/"))
        .headers([("traceparent", traceparent("01").as_str()), ("tracestate", state.as_str())])
        .send()
        .await;
    assert!(orders.app().saw_one().tracestate().len() <= 32, "no application has to take more than 32");
    assert_eq!(stock.saw_one().tracestate(), members);
    mesh.end([orders]).await;
}

#[tokio::test]
async fn a_member_that_the_application_changed_stays_changed() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let url = stock.url("/items");
    let orders = mesh
        .pod("orders")
        .runs(script(move |visit| {
            let arrived = visit.request.headers()["tracestate"].to_str().expect("text").to_owned();
            let ask = Ask::get(&url)
                .copied(Copying::TraceparentOnly.from(visit.request.headers()))
                .header("tracestate", format!("app=9,{}", arrived.replace("vendor=1", "vendor=2")));
            async move {
                visit.outbound.send(ask).await;
                response(200, "")
            }
        }))
        .await;
    Ask::get(orders.url("/"))
        .headers([("traceparent", traceparent("01").as_str()), ("tracestate", "vendor=1")])
        .send()
        .await;
    assert_eq!(stock.saw_one().tracestate(), ["app=9", "vendor=2"]);
    mesh.end([orders]).await;
}

#[tokio::test]
async fn a_call_after_its_request_has_ended_still_belongs_to_the_trace() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let url = stock.url("/later");
    let (answered, was_answered) = tokio::sync::watch::channel(false);
    let orders = mesh
        .pod("orders")
        .runs(script(move |visit| {
            let ask = Ask::get(&url).copied(Copying::Everything.from(visit.request.headers()));
            let (outbound, mut was_answered) = (visit.outbound.clone(), was_answered.clone());
            tokio::spawn(async move {
                let _ = was_answered.wait_for(|answered| *answered).await;
                outbound.send(ask).await;
            });
            async { response(202, "later") }
        }))
        .await;
    Ask::get(orders.url("/")).header("traceparent", traceparent("01")).send().await;
    mesh.collector.spans(1).await;
    answered.send_replace(true);
    stock.saw(1).await;
    mesh.collector.spans(2).await;
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.len(), 2);
    assert_connected(&spans, &[CALLER]);
    assert_eq!(span_of(&spans, "orders", Kind::Client).parent, span_of(&spans, "orders", Kind::Server).id);
}
