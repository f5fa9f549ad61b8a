//! An application that forwards nothing: no parent is guessed, the candidates are linked, and it is counted.

use std::sync::Arc;

use throughline_tests::prelude::*;
use throughline_tests::service::response;
use throughline_tests::span::span_of;
use tokio::sync::Barrier;

use crate::CALLER;

/// An application whose requests all wait for each other before and after their calls, without forwarding.
fn together(url: String, count: usize) -> Script {
    let gate = Arc::new(Barrier::new(count));
    script(move |visit| {
        let (url, gate) = (url.clone(), Arc::clone(&gate));
        async move {
            gate.wait().await;
            visit.outbound.send(Ask::get(&url)).await;
            gate.wait().await;
            response(200, "")
        }
    })
}

#[tokio::test]
async fn a_call_without_context_starts_a_trace_that_links_to_the_candidates() {
    // Requests in flight; links to be expected on each call's span.
    for (in_flight, links) in [(1, 1), (3, 3), (7, 4)] {
        let mesh = Mesh::new().await;
        let stock = Service::playing(answer(200, "")).await;
        let orders = mesh.pod("orders").runs(together(stock.url("/items"), in_flight)).await;
        let mut asking = tokio::task::JoinSet::new();
        for number in 0..in_flight {
            let parent = format!("00-{:032x}-{CALLER}-01", number + 1);
            asking.spawn(Ask::get(orders.url("/place")).header("traceparent", parent).send());
        }
        asking.join_all().await;
        let books = orders.books().await;
        let dropped = books.sum("throughline_context_dropped_total", &[]);
        assert!((1..=in_flight as u64).contains(&dropped), "{dropped} of {in_flight}:\n{}", books.text);
        let spans = mesh.end([orders]).await;
        let servers: Vec<_> = spans.iter().filter(|span| span.kind == Kind::Server).collect();
        let clients: Vec<_> = spans.iter().filter(|span| span.kind == Kind::Client).collect();
        assert_eq!((servers.len(), clients.len()), (in_flight, in_flight));
        for client in clients {
            assert_eq!((client.parent.as_str(), client.links.len()), ("", links), "{client:#?}");
            let all_known = client
                .links
                .iter()
                .all(|(trace, id)| servers.iter().any(|server| server.trace == *trace && server.id == *id));
            assert!(all_known, "a link to nowhere: {client:#?}");
            assert!(servers.iter().all(|server| server.trace != client.trace), "a guessed trace");
        }
    }
}

#[tokio::test]
async fn the_route_that_dropped_the_context_is_named() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let orders = mesh.pod("orders").runs(together(stock.url("/items"), 1)).await;
    Ask::get(orders.url("/place/7")).header("traceparent", crate::traceparent("01")).send().await;
    let books = orders.books().await;
    assert_eq!(
        books.sum("throughline_context_dropped_total", &[("route", "/place/{id}")]),
        1,
        "{}",
        books.text
    );
    mesh.end([orders]).await;
}

#[tokio::test]
async fn an_application_that_forwards_is_not_blamed() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let orders = mesh.pod("orders").runs(calling(stock.url("/items"), Copying::TraceparentOnly)).await;
    Ask::get(orders.url("/place")).header("traceparent", crate::traceparent("01")).send().await;
    assert_eq!(orders.books().await.sum("throughline_context_dropped_total", &[]), 0);
    mesh.end([orders]).await;
}

#[tokio::test]
async fn background_work_starts_traces_of_its_own_without_links() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "")).await;
    let orders = mesh.pod("orders").runs(answer(200, "")).await;
    Ask::get(stock.url("/items")).via(orders.sidecar.outbound()).send().await;
    let sent = stock.saw_one().traceparent();
    let spans = mesh.end([orders]).await;
    let client = span_of(&spans, "orders", Kind::Client);
    assert_eq!((client.parent.as_str(), client.links.len()), ("", 0));
    assert_eq!((client.trace, client.id), (sent.trace, sent.span));
}
