//! Everything at once: good and bad endings mixed, and still one span for each exchange, none twice, and no
//! descriptor left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Response;
use throughline_tests::ask::BOTH;
use throughline_tests::feed::fed;
use throughline_tests::prelude::*;
use throughline_tests::service::{read, response};

/// Does what the path says; those that wait are told apart by the caller hanging up on them.
fn by_path() -> Script {
    script(|visit| async move {
        let path = visit.request.uri().path().to_owned();
        let wait = path.starts_with("/waits");
        if path.starts_with("/never") {
            std::future::pending::<()>().await;
        }
        // Read whole, so that the application keeps the connection: one that it closes while the next request
        // is under way is a 502, as nothing is tried twice.
        let body = read(visit.request).await;
        if path.starts_with("/fails") {
            return response(503, "no");
        }
        if !wait && !path.starts_with("/breaks") {
            return response(200, body);
        }
        let (feeder, body) = fed();
        tokio::spawn(async move {
            feeder.send("first").await;
            if wait {
                feeder.abandoned().await;
            } else {
                feeder.break_off().await;
            }
        });
        Response::new(body)
    })
}

/// One exchange, played to its end by the caller.
async fn play(pod: Arc<Pod>, number: usize) {
    let protocol = BOTH[number % 2];
    let (kind, url) = match number / 2 % 5 {
        0 => ("/works", pod.url("/works")),
        1 => ("/fails", pod.url("/fails")),
        2 => ("/breaks", pod.url("/breaks")),
        3 => ("/waits", pod.url("/waits")),
        _ => ("/never", pod.url("/never")),
    };
    let ask = Ask::post(format!("{url}/{number}"), vec![b'b'; number * 37 % 5_000]).over(protocol);
    match kind {
        "/waits" => {
            let mut open = ask.open().await;
            let _ = open.piece().await;
            open.hang_up();
        }
        "/never" => {
            let asking = tokio::spawn(ask.try_send());
            let path = format!("/never/{number}");
            eventually("the request at the application", || async {
                pod.app().seen().iter().any(|seen| seen.uri.path() == path).then_some(())
            })
            .await;
            asking.abort();
        }
        // The break may overtake the head.
        "/breaks" => drop(ask.try_send().await),
        _ => drop(ask.send().await),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixture_of_all_endings_leaves_one_span_each_and_nothing_open() {
    const ROUND: usize = 250;
    let mesh = Mesh::new().await;
    let orders = Arc::new(mesh.pod("orders").runs(by_path()).await);
    let before = orders.sidecar.descriptors();
    let next = Arc::new(AtomicUsize::new(0));
    let mut players = tokio::task::JoinSet::new();
    for _ in 0..25 {
        let (pod, next) = (Arc::clone(&orders), Arc::clone(&next));
        players.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::SeqCst);
                if number >= ROUND {
                    return;
                }
                play(Arc::clone(&pod), number).await;
            }
        });
    }
    players.join_all().await;
    // The filter shows Envoy no durations: it pushes them.
    let name =
        Host::asked().choose("http_server_request_duration_seconds_count", "throughline_spans_created_total");
    orders.sidecar.books_when("all counted", |books| books.sum(name, &[]) == ROUND as u64).await;
    orders
        .sidecar
        .books_when("nothing open", |books| books.sum("throughline_connections_open", &[]) == 0)
        .await;
    // Idle connections to the application go after pool-idle-timeout (4 s); nothing else may stay.
    eventually("the descriptors of idle connections", || async {
        (orders.sidecar.descriptors() <= before + 25).then_some(())
    })
    .await;
    assert_eq!(orders.app().seen().len(), ROUND, "each reached the application once");
    let orders = Arc::into_inner(orders).expect("all players are gone");
    let spans = mesh.end([orders]).await;
    assert_eq!(spans.len(), ROUND);
    assert_connected(&spans, &[]);
    for span in &spans {
        let (kind, _) = span["url.path"].as_str().and_then(|path| path[1..].split_once('/')).expect("a path");
        let gone = span["throughline.end"] == "caller_gone";
        let wanted = match kind {
            "works" => (SpanStatus::Unset, false),
            "fails" | "breaks" => (SpanStatus::Error, false),
            _ => (SpanStatus::Unset, true),
        };
        assert_eq!((span.status, gone), wanted, "{span:#?}");
    }
}
