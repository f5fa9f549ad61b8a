//! The script as the sidecar serves it, and what is served where browsers are not.

use throughline_tests::prelude::*;
use throughline_tests::sidecar::{Plan, workspace};

use crate::{SCRIPT, SPANS, gateway};

#[tokio::test]
async fn the_script_is_served_whole_compressed_or_not_at_all() {
    let mesh = Mesh::new().await;
    let pod = gateway(&mesh).runs(answer(200, "the application")).await;
    let built = std::fs::read(workspace().join("browser/dist/ops.js")).expect("browser/dist/ops.js");
    let plain = Ask::get(pod.url(SCRIPT)).send().await;
    assert_eq!((plain.status, &plain.body[..]), (200, &built[..]));
    for (name, value) in [
        ("content-type", "text/javascript; charset=utf-8"),
        ("cache-control", "public, max-age=3600"),
        ("vary", "accept-encoding"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(plain.header(name), Some(value), "{name}");
    }
    let zipped = Ask::get(pod.url(SCRIPT)).header("accept-encoding", "br, gzip").send().await;
    assert_eq!((zipped.status, zipped.header("content-encoding")), (200, Some("gzip")));
    assert!(zipped.body.len() <= 3072, "{} bytes", zipped.body.len());
    let tags = [plain.header("etag").expect("a tag"), zipped.header("etag").expect("a tag")];
    assert_ne!(tags[0], tags[1]);
    for (coding, tag, status) in [
        ("identity", tags[0], 304),
        ("gzip", tags[1], 304),
        ("gzip", tags[0], 200),
        ("gzip", "\"old\"", 200),
        ("gzip", &format!("\"old\", W/{}", tags[1]), 304),
    ] {
        let again = Ask::get(pod.url(SCRIPT)).headers([("accept-encoding", coding), ("if-none-match", tag)]);
        let again = again.send().await;
        assert_eq!((again.status, again.body.is_empty()), (status, status == 304), "{coding} {tag}");
    }
    for protocol in throughline_tests::ask::BOTH {
        let head = Ask::new("HEAD", pod.url(SCRIPT)).over(protocol).send().await;
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), Some(built.len().to_string().as_str()));
    }
    assert_eq!(Ask::post(pod.url(SCRIPT), "x").send().await.status, 405);
    assert_eq!(Ask::get(pod.url(SPANS)).send().await.status, 405);
    // What else begins like it is the application's.
    for path in ["/_throughline/", "/_throughline/ops.jsx", "/_throughline/v1/traces/x"] {
        assert_eq!(Ask::get(pod.url(path)).send().await.text(), "the application", "{path}");
    }
    assert_eq!(pod.app().seen().len(), 3);
    let spans = mesh.end([pod]).await;
    assert_eq!(spans.len(), 3, "the sidecar's own answers are no exchanges");
}

#[tokio::test]
async fn without_browsers_the_paths_are_the_applications() {
    let mesh = Mesh::new().await;
    let pod = mesh.pod("front").environment("THROUGHLINE_TRUST", "edge").runs(answer(200, "mine")).await;
    assert_eq!(Ask::get(pod.url(SCRIPT)).send().await.text(), "mine");
    let cookie = format!("_tl_op=00-{}-{}-01~login; a=1", crate::TRACE, crate::SPAN);
    Ask::post(pod.url(SPANS), "{}").header("cookie", &cookie).send().await;
    assert_eq!(pod.app().seen()[1].header("cookie"), Some(cookie.as_str()));
    mesh.end([pod]).await;
}

#[tokio::test]
async fn browsers_are_a_mistake_where_callers_are_no_strangers() {
    let plan = Plan::before("front", "127.0.0.1:1".parse().expect("an address")).flag("browser", "on");
    let ended = plan.ends().await;
    assert_eq!(ended.code, Some(2));
    let said = ended.stderr.join("\n");
    assert!(said.contains("--browser=\"on\": want off, or trust=edge"), "{said}");
}
