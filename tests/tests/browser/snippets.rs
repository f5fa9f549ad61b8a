//! The examples of `docs/browser.md`, run as they stand there.

use std::process::Command;

use throughline_tests::judges::{PeerProcess, installed};
use throughline_tests::prelude::*;
use throughline_tests::sidecar::workspace;

use crate::gateway;

/// The one block of a language.
fn block(language: &str, holding: &str) -> String {
    let page = std::fs::read_to_string(workspace().join("docs/browser.md")).expect("docs/browser.md");
    let fence = format!("```{language}\n");
    let blocks = page.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let found: Vec<_> = blocks.filter(|block| block.contains(holding)).collect();
    assert_eq!(found.len(), 1, "one block of {language} with {holding}");
    found[0].to_owned()
}

/// What the application before which both kinds of sidecar stand sees of a client.
async fn runs(program: &str, language: &str, holding: &str, requests: usize) {
    let Some(program) = installed(program) else { return };
    let code = block(language, holding);
    let mesh = Mesh::new().await;
    let edge = gateway(&mesh).runs(answer(200, "")).await;
    let inside = mesh.pod("inside").runs(answer(200, "")).await;
    for pod in [&edge, &inside] {
        let mut command = Command::new(&program);
        command.args(["-c", &code]).env("URL", pod.url("/report")).env("no_proxy", "*");
        assert_eq!(PeerProcess::start(language, command).ends().await.code, Some(0));
        let seen = pod.app().seen();
        assert_eq!(seen.len(), requests);
        for seen in &seen {
            assert_eq!(seen.header("x-operation-name"), Some("nightly-report"));
            assert_eq!(seen.header("baggage"), Some("app.operation.name=nightly-report"));
            assert!(seen.traceparent().sampled());
        }
    }
    let spans = mesh.end([edge, inside]).await;
    let of = |service: &str| spans.iter().filter(|span| span.service() == service).collect::<Vec<_>>();
    let (at_edge, inside) = (of("gateway"), of("inside"));
    assert_eq!((at_edge.len(), inside.len()), (requests, requests));
    assert!(at_edge.iter().all(|span| span.links.len() == 1 && span.parent.is_empty()), "{at_edge:?}");
    assert!(inside.iter().all(|span| span.trace == inside[0].trace && !span.parent.is_empty()), "{inside:?}");
    assert!(spans.iter().all(|span| span["app.operation.name"] == "nightly-report"), "{spans:?}");
}

#[tokio::test]
async fn the_example_for_curl_names_its_operation() {
    if installed("curl").is_none() {
        return;
    }
    runs("sh", "sh", "curl", 1).await;
}

#[tokio::test]
async fn the_example_in_python_names_its_operation() {
    runs("python3", "python", "urllib", 2).await;
}
