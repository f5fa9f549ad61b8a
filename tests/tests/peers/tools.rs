//! curl and h2load as callers.

use std::path::Path;
use std::process::Command;

use throughline_tests::judges::{PeerProcess, installed};
use throughline_tests::pki::Folder;
use throughline_tests::prelude::*;
use throughline_tests::service::{read, response};

/// Runs curl and returns what it printed.
async fn curl(program: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(["--silent", "--show-error", "--max-time", "15", "--noproxy", ""]).args(arguments);
    let ended = PeerProcess::start("curl", command).ends().await;
    assert_eq!(ended.code, Some(0), "curl {arguments:?}: {:#?}", ended.stderr);
    ended.stdout.join("\n")
}

#[tokio::test]
async fn curl_speaks_to_both_sides_in_every_way_it_knows() {
    let Some(program) = installed("curl") else { return };
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .runs(script(|visit| async move {
            let length = read(visit.request).await.len();
            response(200, format!("{length} bytes"))
        }))
        .await;
    let folder = Folder::fresh();
    let upload = folder.write("upload", vec![b'u'; 2_000_000]);
    let upload = upload.to_str().expect("a path");
    let (inbound, direct) = (orders.url("/in"), orders.app().url("/out"));
    let proxy = format!("http://{}", orders.sidecar.outbound());
    let rows: [(&[&str], &str); 9] = [
        (&[&inbound], "0 bytes"),
        (&["--http1.0", &inbound], "0 bytes"),
        (&["--http2-prior-knowledge", &inbound], "0 bytes"),
        (&["--http2", &inbound], "0 bytes"),
        (
            &["-H", "Expect: 100-continue", "--expect100-timeout", "10", "-T", upload, &inbound],
            "2000000 bytes",
        ),
        (&["-H", "Transfer-Encoding: chunked", "-T", upload, &inbound], "2000000 bytes"),
        (&["--http2-prior-knowledge", "-T", upload, &inbound], "2000000 bytes"),
        (&["--proxy", &proxy, "-d", "abc", &direct], "3 bytes"),
        (&["--proxy", &proxy, "--proxytunnel", "-d", "abcd", &direct], "4 bytes"),
    ];
    for (arguments, wanted) in rows {
        assert_eq!(curl(&program, arguments).await, wanted, "{arguments:?}");
    }
    let spans = mesh.end([orders]).await;
    let of = |kind: Kind| spans.iter().filter(|span| span.kind == kind).count();
    // What is inside a CONNECT is bytes to Envoy.
    assert_eq!((of(Kind::Server), of(Kind::Client)), (7, Host::asked().choose(2, 1)));
}

#[tokio::test]
async fn curl_sees_a_broken_answer_as_broken() {
    let Some(program) = installed("curl") else { return };
    let mesh = Mesh::new().await;
    let dying = Peer::saying("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    let orders = mesh.pod("orders").before(dying.address).await;
    let mut command = Command::new(program);
    command.args(["--silent", "--max-time", "15", "--noproxy", "*"]).arg(orders.url("/"));
    let ended = PeerProcess::start("curl", command).ends().await;
    // 18: transfer closed with outstanding data; 56: failure in receiving; 52: not even the head came.
    assert!(matches!(ended.code, Some(18 | 52 | 56)), "{ended:?}");
    assert_eq!(mesh.end([orders]).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_gets_every_answer_and_leaves_as_many_spans() {
    let Some(program) = installed("h2load") else { return };
    const REQUESTS: usize = 3_000;
    for protocol in [&["-m", "25"] as &[&str], &["--h1"]] {
        let mesh = Mesh::new().await;
        let orders =
            mesh.pod("orders").environment("OTEL_BSP_MAX_QUEUE_SIZE", 10_000).runs(answer(200, "ok")).await;
        let mut command = Command::new(&program);
        command.args(["-n", &REQUESTS.to_string(), "-c", "8"]).args(protocol).arg(orders.url("/load"));
        let ended = PeerProcess::start("h2load", command).ends().await;
        let said = ended.stdout.join("\n");
        assert!(said.contains("3000 succeeded, 0 failed, 0 errored"), "{protocol:?}: {said}");
        let spans = mesh.end([orders]).await;
        assert_eq!(spans.len(), REQUESTS, "{protocol:?}");
        assert_connected(&spans, &[]);
    }
}
