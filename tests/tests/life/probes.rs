//! Probes that the sidecar asks in the kubelet's place: they tell the truth about the application, whatever stands
//! before it, and leave no trace.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt;
use throughline_tests::grpc;
use throughline_tests::pki::Pki;
use throughline_tests::prelude::*;
use throughline_tests::service::{read, response};
use throughline_tests::wire::Nobody;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The health service of gRPC, and a page, on one port.
fn application() -> Script {
    script(|visit| async move {
        let path = visit.request.uri().path().to_owned();
        match path.as_str() {
            "/grpc.health.v1.Health/Check" => {
                let (head, body) = visit.request.into_parts();
                let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                // HealthCheckRequest { service = 1 }
                match &grpc::unframed(&bytes, &head.headers)[..] {
                    b"" | b"\x0a\x06orders" => grpc::unary(Bytes::from_static(b"\x08\x01")),
                    b"\x0a\x04cart" => grpc::unary(Bytes::from_static(b"\x08\x02")),
                    _ => grpc::trailers_only(5),
                }
            }
            "/named" => {
                let said = |name: &str| {
                    visit.request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
                };
                let right = said("user-agent") == "kube-probe/1.31" && said("x-own") == "1";
                response(if right { 200 } else { 400 }, "")
            }
            path => {
                let status = path.trim_start_matches('/').parse().unwrap_or(404);
                read(visit.request).await;
                response(status, "")
            }
        }
    })
}

async fn asked(sidecar: &Sidecar, number: usize) -> Answer {
    Ask::get(sidecar.admin_url(&format!("/probe/{number}"))).send().await
}

/// An HTTPS server that answers 204 to all.
async fn https(pki: &Pki) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let acceptor = Arc::new(pki.acceptor(false));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = Arc::clone(&acceptor);
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut head = vec![0; 1024];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (address, serving)
}

#[tokio::test]
async fn a_dead_application_is_unready_under_every_probe() {
    let Some(pki) = Pki::make() else { return };
    let mesh = Mesh::new().await;
    let app = Service::playing(application()).await;
    let port = app.address.port();
    let (secure, serving) = https(&pki).await;
    let nobody = Nobody::listens();
    let probes = format!(
        "tcp:{port},grpc:{port},grpc:{port}/orders,grpc:{port}/cart,grpc:{port}/unknown,http:{port}/200,\
         http:{port}/302,http:{port}/503,http:{port}/404,https:{}/,tcp:{},http:{port}/named",
        secure.port(),
        nobody.address.port()
    );
    let orders = mesh.pod("orders").flag("probes", probes).before(app.address).await;
    for (number, status, why) in [
        (0, 200, "well"),
        (1, 200, "well"),
        (2, 200, "well"),
        (3, 503, "not serving"),
        (4, 503, "grpc-status 5"),
        (5, 200, "well"),
        (6, 200, "well"),
        (7, 503, "status 503"),
        (8, 503, "status 404"),
        (9, 200, "well"),
        (10, 503, "no connection"),
    ] {
        let answer = asked(&orders.sidecar, number).await;
        assert_eq!(answer.status, status, "{number}: {}", answer.text());
        assert!(answer.text().contains(why), "{number}: {}", answer.text());
    }
    // What the probe's author wrote, and who asks, reach the application.
    let named = Ask::get(orders.sidecar.admin_url("/probe/11"));
    let named = named.header("user-agent", "kube-probe/1.31").header("x-own", "1").send().await;
    assert_eq!(named.status, 200, "{}", named.text());

    drop(app);
    serving.abort();
    let _ = serving.await;
    for number in [0, 1, 2, 5, 6, 9] {
        eventually("the application gone", || async {
            (asked(&orders.sidecar, number).await.status == 503).then_some(())
        })
        .await;
    }
    assert!(mesh.end([orders]).await.is_empty(), "probes leave no spans");
}

#[tokio::test]
async fn only_listed_probes_are_asked() {
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("probes", "tcp:1").runs(answer(200, "")).await;
    for (method, path, status) in [
        ("GET", "/probe/1", 404),
        ("GET", "/probe/-1", 404),
        ("GET", "/probe/", 404),
        ("GET", "/probe/tcp/5432", 404),
        ("GET", "/probe/0/x", 404),
        ("POST", "/probe/0", 405),
        ("GET", "/probe/0", 503),
    ] {
        let answer = Ask::new(method, orders.sidecar.admin_url(path)).send().await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
    }
    mesh.end([orders]).await;
}
