//! Keep travels up: at base rate 0 the way from the edge to a failure is whole, whatever those in between say.

use std::net::SocketAddr;

use serde_json::{Value, json};
use throughline_tests::ask::BOTH;
use throughline_tests::grpc;
use throughline_tests::judges::{PeerProcess, python};
use throughline_tests::mesh::PodPlan;
use throughline_tests::prelude::*;
use throughline_tests::service::{calling_over, response};
use throughline_tests::span::{listing, span_of};

/// A sidecar that chooses nothing by its head.
fn never(mesh: &Mesh, name: &str) -> PodPlan {
    mesh.pod(name).environment("OTEL_TRACES_SAMPLER_ARG", "0")
}

/// Calls, and answers 200 whatever came back, which must say nothing of keeping.
fn swallowing(url: String, copying: Copying) -> Script {
    script(move |visit| {
        let ask = Ask::get(&url).copied(copying.from(visit.request.headers()));
        async move {
            let answer = visit.outbound.send(ask).await;
            let heard = answer.header("throughline-keep").or(answer.header("throughline-peer"));
            response(if heard.is_some() { 299 } else { 200 }, "fine")
        }
    })
}

/// Five spans of one trace, from the edge to C, each with its reason.
fn assert_whole(spans: &[Span], outside: &[&str], row: &str) {
    let whole = listing(spans);
    assert_eq!(spans.len(), 5, "{row}:{whole}");
    assert_connected(spans, outside);
    assert!(spans.iter().all(|span| span.trace == spans[0].trace), "{row}: one trace:{whole}");
    let ids = |service: &str, kind| span_of(spans, service, kind);
    let (a, b, c) = (ids("a", Kind::Server), ids("b", Kind::Server), ids("c", Kind::Server));
    let (a_out, b_out) = (ids("a", Kind::Client), ids("b", Kind::Client));
    for (span, parent, reason) in [
        (&a_out, &a.id, "downstream"),
        (&b, &a_out.id, "downstream"),
        (&b_out, &b.id, ""),
        (&c, &b_out.id, "error"),
    ] {
        assert_eq!(&span.parent, parent, "{row}: {} {:?}:{whole}", span.service(), span.kind);
        let said = span["throughline.keep.reason"].as_str().unwrap_or_default();
        assert!(!said.is_empty() && (reason.is_empty() || said == reason), "{row}: {said}:{whole}");
    }
    assert_eq!(a["throughline.keep.reason"], json!("downstream"), "{row}");
}

#[tokio::test]
async fn from_the_edge_to_a_failure_the_trace_is_whole_although_200_was_answered() {
    for copying in [Copying::Everything, Copying::TraceContext] {
        for outside in [None, Some("b7ad6b7169203331")] {
            let mesh = Mesh::new().await;
            let c = never(&mesh, "c").runs(answer(503, "no")).await;
            let b = never(&mesh, "b").runs(swallowing(c.url("/c"), copying)).await;
            let a = never(&mesh, "a").runs(swallowing(b.url("/b"), copying)).await;
            let parent = outside.map(|span| format!("00-0af7651916cd43dd8448eb211c80319c-{span}-00"));
            let ask = Ask::get(a.url("/a")).headers(parent.as_deref().map(|parent| ("traceparent", parent)));
            let answer = ask.send().await;
            assert_eq!((answer.status, answer.header("throughline-keep")), (200, None));
            let spans = mesh.end([a, b, c]).await;
            assert_whole(&spans, outside.as_slice(), &format!("{copying:?} {outside:?}"));
            assert_eq!(span_of(&spans, "a", Kind::Server).parent, outside.unwrap_or_default());
        }
    }
}

#[tokio::test]
async fn nothing_is_kept_where_nothing_is_worth_it() {
    let mesh = Mesh::new().await;
    let c = never(&mesh, "c").runs(answer(200, "yes")).await;
    let b = never(&mesh, "b").runs(swallowing(c.url("/c"), Copying::Everything)).await;
    Ask::get(b.url("/b")).send().await;
    assert!(mesh.end([b, c]).await.is_empty());
}

#[tokio::test]
async fn a_sidecar_that_answers_for_its_application_says_so_too() {
    let mesh = Mesh::new().await;
    let nobody = throughline_tests::wire::Nobody::listens();
    let c = never(&mesh, "c").before(nobody.address).await;
    let b = never(&mesh, "b").runs(swallowing(c.url("/c"), Copying::Everything)).await;
    let a = never(&mesh, "a").runs(swallowing(b.url("/b"), Copying::Everything)).await;
    assert_eq!(Ask::get(a.url("/a")).send().await.status, 200);
    let spans = mesh.end([a, b, c]).await;
    assert_whole(&spans, &[], "502 in place of c");
    assert_eq!(span_of(&spans, "c", Kind::Server)["error.type"], "connection_refused");
}

#[tokio::test]
async fn what_only_one_sidecar_finds_slow_is_kept_by_all_that_waited() {
    let mesh = Mesh::new().await;
    let late = script(|_| async {
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        response(200, "at last")
    });
    let c = never(&mesh, "c").flag("keep-slow", "50").runs(late).await;
    let b = never(&mesh, "b").runs(swallowing(c.url("/c"), Copying::Everything)).await;
    Ask::get(b.url("/b")).send().await;
    let spans = mesh.end([b, c]).await;
    assert_eq!(spans.len(), 3, "{}", listing(&spans));
    assert_connected(&spans, &[]);
    assert_eq!(span_of(&spans, "c", Kind::Server)["throughline.keep.reason"], "slow");
    assert_eq!(span_of(&spans, "b", Kind::Server)["throughline.keep.reason"], "downstream");
}

#[tokio::test]
async fn a_failure_that_only_trailers_tell_is_kept_on_the_whole_way() {
    let mesh = Mesh::new().await;
    let failing = grpc::answering(&[b"x"], 13);
    let c = never(&mesh, "c").runs(failing).await;
    let b = never(&mesh, "b")
        .runs(calling_over(Protocol::H2, c.url("/shop.Stock/Count"), Copying::Everything))
        .await;
    let ask =
        Ask::post(b.url("/shop.Orders/Place"), grpc::framed(b"y")).header("content-type", "application/grpc");
    let answer = ask.over(Protocol::H2).send().await;
    assert_eq!(answer.trailer("throughline-keep"), None);
    let spans = mesh.end([b, c]).await;
    assert_eq!(spans.len(), 3, "{}", listing(&spans));
    assert_connected(&spans, &[]);
    assert_eq!(span_of(&spans, "c", Kind::Server).parent, span_of(&spans, "b", Kind::Client).id);
}

#[tokio::test]
async fn a_caller_that_hung_up_is_no_phantom() {
    for protocol in BOTH {
        let mesh = Mesh::new().await;
        let hung = script(|_| std::future::pending());
        let silent = never(&mesh, "silent").flag("keep-routes", "/c").runs(hung).await;
        let url = silent.url("/c");
        let b = never(&mesh, "b")
            .runs(script(move |visit| {
                let ask = Ask::get(&url).copied(Copying::Everything.from(visit.request.headers()));
                let proxy = visit.outbound.address();
                // Gives up after a while, and says that all is well.
                async move {
                    let waiting = ask.via(proxy).try_send();
                    let _ = tokio::time::timeout(std::time::Duration::from_millis(100), waiting).await;
                    response(200, "")
                }
            }))
            .await;
        Ask::get(b.url("/")).over(protocol).send().await;
        let spans = mesh.end([b, silent]).await;
        assert_connected(&spans, &[]);
        let kept = span_of(&spans, "silent", Kind::Server);
        assert_eq!((kept.parent.as_str(), &kept["throughline.end"]), ("", &json!("caller_gone")));
    }
}

async fn address_of(peer: &PeerProcess) -> SocketAddr {
    format!("127.0.0.1:{}", peer.says("port").await).parse().expect("an address")
}

#[tokio::test]
async fn the_trace_is_whole_although_pypis_sdk_samples_nothing() {
    let modules = ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"];
    let Some(interpreter) = python(&modules) else { return };
    for sampler in ["parentbased_always_off", "always_off"] {
        let mesh = Mesh::new().await;
        let endpoint = format!("{}/v1/traces", mesh.collector.endpoint());
        let apps = [(); 2].map(|()| PeerProcess::python(&interpreter, "sdk_app.py", &[sampler, &endpoint]));
        let c = never(&mesh, "c").runs(answer(500, "no")).await;
        let b = never(&mesh, "b").before(address_of(&apps[0]).await).await;
        let a = never(&mesh, "a").before(address_of(&apps[1]).await).await;
        let answer = Ask::get(a.url("/a"))
            .header("x-next", b.url("/b"))
            .header("x-outbound", format!("http://{}", a.sidecar.outbound()))
            .header("x-then-next", c.url("/c"))
            .header("x-then-outbound", format!("http://{}", b.sidecar.outbound()))
            .header("x-swallow", "yes")
            .send()
            .await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "never mind"), "{sampler}");
        let spans = mesh.end([a, b, c]).await;
        assert!(spans.iter().all(|span| span["throughline.sampled.by"] == Value::Null));
        assert_whole(&spans, &[], sampler);
    }
}

/// What a request of this number does on its way is told by the number: fails, dawdles, is given up, goes on in
/// the background after its caller was answered.
#[tokio::test]
async fn whatever_fails_dawdles_or_is_given_up_no_parent_is_a_phantom() {
    async fn dawdle(number: u64) {
        if number.is_multiple_of(11) {
            tokio::time::sleep(std::time::Duration::from_millis(15)).await;
        }
    }
    fn number_of(visit: &Visit) -> u64 {
        visit.request.uri().path().trim_start_matches("/n").parse().expect("a number")
    }
    fn passing_on(url: String) -> Script {
        script(move |visit| {
            let number = number_of(&visit);
            let ask = Ask::get(format!("{url}/n{number}"))
                .copied(Copying::Everything.from(visit.request.headers()));
            let ask = ask.via(visit.outbound.address());
            async move {
                if number.is_multiple_of(5) {
                    tokio::spawn(async move { drop(ask.try_send().await) });
                } else {
                    drop(ask.try_send().await);
                }
                response(200, "fine")
            }
        })
    }
    let mesh = Mesh::new().await;
    let plan =
        |name: &str| mesh.pod(name).environment("OTEL_TRACES_SAMPLER_ARG", "0.2").flag("keep-slow", "10");
    let c = plan("c")
        .runs(script(|visit| {
            let number = number_of(&visit);
            async move {
                dawdle(number).await;
                response(if number.is_multiple_of(3) { 500 } else { 200 }, "")
            }
        }))
        .await;
    let b = plan("b").runs(passing_on(c.url(""))).await;
    let a = plan("a").runs(passing_on(b.url(""))).await;
    let asking: Vec<_> = (0..300)
        .map(|number: u64| {
            let ask = Ask::get(a.url(&format!("/n{number}")));
            tokio::spawn(async move {
                let patience = if number.is_multiple_of(7) { 3 } else { 20_000 };
                let _ =
                    tokio::time::timeout(std::time::Duration::from_millis(patience), ask.try_send()).await;
            })
        })
        .collect();
    for asked in asking {
        asked.await.expect("asked");
    }
    let idle = |books: &Books| books.sum("throughline_in_flight", &[]) == 0;
    for pod in [&a, &b, &c] {
        pod.sidecar.books_when("nothing in flight", idle).await;
    }
    let spans = mesh.end([a, b, c]).await;
    assert_connected(&spans, &[]);
    let kept = spans.iter().filter(|span| span.has("throughline.keep.reason")).count();
    assert!(kept > 100, "{kept} of {}", spans.len());
}
