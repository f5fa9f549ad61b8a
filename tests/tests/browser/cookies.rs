//! The cookie of a navigation: headers for the mesh, nothing for the application.

use throughline_tests::ask::BOTH;
use throughline_tests::prelude::*;

use crate::{SAME_ORIGIN, SPAN, TRACE, gateway};

#[tokio::test]
async fn a_navigation_s_cookie_becomes_headers_and_the_others_stay() {
    let mesh = Mesh::new().await;
    let pod = gateway(&mesh).runs(answer(200, "")).await;
    let ours = format!("_tl_op=00-{TRACE}-{SPAN}-01~checkout");
    for protocol in BOTH {
        Ask::get(pod.url("/done"))
            .over(protocol)
            .headers([SAME_ORIGIN, ("sec-fetch-mode", "navigate")])
            .header("cookie", format!("a=\"1\";  b = 2; {ours}; c"))
            .send()
            .await;
        // Browsers send each cookie on a line of its own over HTTP/2.
        Ask::get(pod.url("/image"))
            .over(protocol)
            .headers([SAME_ORIGIN, ("sec-fetch-mode", "no-cors"), ("cookie", "a=1")])
            .header("cookie", &ours)
            .header("cookie", b"b=\xe9")
            .send()
            .await;
        Ask::get(pod.url("/alone")).over(protocol).header("cookie", &ours).send().await;
    }
    for seen in pod.app().seen().chunks(3) {
        let [page, image, alone] = seen else { panic!("three requests: {seen:?}") };
        assert_eq!(page.header("cookie"), Some("a=\"1\";  b = 2; c"));
        assert_eq!(page.header("x-operation-name"), Some("checkout"));
        assert_eq!(page.header("baggage"), Some("app.operation.name=checkout"));
        assert_eq!(page.traceparent().trace, TRACE);
        let lines: Vec<_> = image.headers.get_all("cookie").iter().map(|line| line.as_bytes()).collect();
        assert_eq!(lines, [&b"a=1"[..], b"b=\xe9"]);
        for other in [image, alone] {
            assert_eq!(other.header("x-operation-name"), None);
            assert_ne!(other.traceparent().trace, TRACE, "only a navigation is the operation's");
        }
        assert!(!alone.headers.contains_key("cookie"));
    }
    let spans = mesh.end([pod]).await;
    let of_page: Vec<_> = spans.iter().filter(|span| span.trace == TRACE).collect();
    assert!(of_page.len() == 2 && of_page.iter().all(|span| span.parent == SPAN), "{of_page:?}");
}
