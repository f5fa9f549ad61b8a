//! nginx as the application: serving files, and as one that forwards what it got.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use throughline_tests::judges::{PeerProcess, installed};
use throughline_tests::pki::Folder;
use throughline_tests::prelude::*;
use throughline_tests::span::span_of;

/// A free port: nginx cannot choose one by itself. It lies below those that the kernel gives to whoever asks for any, so
/// nobody else of the scenario gets it before nginx does.
fn free_port() -> u16 {
    let first = std::process::id() % 10_000;
    (0..10_000)
        .filter_map(|step| u16::try_from(20_000 + (first + step) % 10_000).ok())
        .find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// Starts a private nginx with this server block on a port.
async fn nginx(program: &Path, folder: &Folder, port: u16, server: &str) -> PeerProcess {
    let configuration = folder.write(
        "nginx.conf",
        format!(
            "daemon off; master_process off; worker_processes 1; pid pid; error_log stderr crit;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3;\n\
             uwsgi_temp_path t4; scgi_temp_path t5;\n\
             server {{ listen 127.0.0.1:{port}; {server} }} }}\n"
        ),
    );
    let mut command = Command::new(program);
    command.arg("-p").arg(folder.file("")).arg("-e").arg("stderr").arg("-c").arg(configuration);
    let running = PeerProcess::start("nginx", command);
    let address: SocketAddr = format!("127.0.0.1:{port}").parse().expect("an address");
    eventually("nginx listening", || async { tokio::net::TcpStream::connect(address).await.ok() }).await;
    running
}

#[tokio::test]
async fn nginx_serves_files_behind_the_sidecar() {
    let Some(program) = installed("nginx") else { return };
    let (folder, port) = (Folder::fresh(), free_port());
    folder.write("large.bin", vec![b'n'; 3_000_000]);
    folder.write("small.txt", "hello from nginx");
    let _running = nginx(&program, &folder, port, "root .; location /old { return 301 /small.txt; }").await;
    let mesh = Mesh::new().await;
    let web = mesh.pod("web").before(format!("127.0.0.1:{port}").parse().expect("an address")).await;
    let mut connection = Connection::to(web.sidecar.inbound(), Protocol::H1).await.expect("a connection");
    assert_eq!(connection.ask(Ask::get(web.url("/small.txt"))).await.text(), "hello from nginx");
    assert_eq!(connection.ask(Ask::get(web.url("/large.bin"))).await.body.len(), 3_000_000);
    let part = connection.ask(Ask::get(web.url("/large.bin")).header("range", "bytes=10-19")).await;
    assert_eq!((part.status, part.body.len()), (206, 10));
    assert_eq!(connection.ask(Ask::get(web.url("/missing"))).await.status, 404);
    assert_eq!(connection.ask(Ask::get(web.url("/old"))).await.status, 301);
    let head = connection.ask(Ask::new("HEAD", web.url("/large.bin"))).await;
    assert_eq!((head.header("content-length"), head.body.len()), (Some("3000000"), 0));
    drop(connection);
    let spans = mesh.end([web]).await;
    assert_eq!(spans.len(), 6);
    assert!(spans.iter().all(|span| span.status == SpanStatus::Unset));
}

#[tokio::test]
async fn nginx_forwards_the_thread_to_the_outbound_port_by_host() {
    let Some(program) = installed("nginx") else { return };
    let (folder, port) = (Folder::fresh(), free_port());
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").runs(answer(200, "12")).await;
    let web = mesh
        .pod("web")
        .flag("outbound-routes", format!("stock={}", stock.sidecar.inbound()))
        .before(format!("127.0.0.1:{port}").parse().expect("an address"))
        .await;
    let outbound = web.sidecar.outbound();
    let server = format!("location / {{ proxy_pass http://{outbound}; proxy_set_header Host stock; }}");
    let _running = nginx(&program, &folder, port, &server).await;
    let answer = Ask::get(web.url("/items")).header("x-operation-name", "checkout").send().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "12"));
    let spans = mesh.end([web, stock]).await;
    assert_eq!(spans.len(), 3);
    assert_connected(&spans, &[]);
    let (server, client) = (span_of(&spans, "web", Kind::Server), span_of(&spans, "web", Kind::Client));
    assert_eq!((&client.parent, &client["server.address"]), (&server.id, &"stock".into()));
    assert_eq!(span_of(&spans, "stock", Kind::Server).parent, client.id);
    assert!(spans.iter().all(|span| span["app.operation.name"] == "checkout"));
}
