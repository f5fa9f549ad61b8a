//! What is no cleartext HTTP in captured connections: it passes byte for byte, and nobody waits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use throughline_tests::cluster::{Cluster, HUB, Pod};
use throughline_tests::pki::Pki;
use throughline_tests::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Both ways through the capture: a wire from the hub to the pod, and one from the pod to the hub.
async fn wires(pod: &Pod, inbound: SocketAddr, outbound: SocketAddr) -> [Wire; 2] {
    [Wire::to(inbound).await, Wire::over(pod.connect(outbound).expect("a connection"))]
}

/// A peer in the pod and one in the hub, that play the same.
async fn peers<F, Play>(pod: &Pod, port: u16, script: F) -> [Peer; 2]
where
    F: Fn(Wire) -> Play + Clone + Send + Sync + 'static,
    Play: Future<Output = ()> + Send + 'static,
{
    let there = TcpListener::bind((HUB, port)).await.expect("a port");
    [Peer::on(pod.listen((pod.v4, port)), script.clone()), Peer::on(there, script)]
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once() {
    let Some(cluster) = Cluster::make().await else { return };
    let (db, sidecar) = cluster.captured("db", "").await;
    // MySQL's greeting, in short: the client says nothing before it.
    let [near, far] = peers(&db, 3306, |mut wire| async move {
        wire.send(b"\x4a\0\0\0\x0a8.0.36\0").await;
        let login = wire.exactly(5).await;
        wire.send([b"\x07\0\0\x02\0\0\0".as_slice(), &login].concat()).await;
        // Each side in turn, with bytes of every kind.
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        assert_eq!(wire.exactly(bytes.len()).await, bytes);
        wire.send(bytes).await;
    })
    .await;
    for mut wire in wires(&db, near.address, far.address).await {
        wire.until("8.0.36\0").await;
        wire.send(b"login").await;
        wire.until("login").await;
        let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        wire.send(&bytes).await;
        assert_eq!(wire.rest().await, bytes);
    }
    let counted = 2 * (12 + 5 + 12 + 200_000);
    let books =
        sidecar.books_when("the bytes", |books| books.sum("throughline_tunnel_bytes_total", &[]) >= counted);
    let books = books.await;
    assert_eq!(books.sum("throughline_tunnel_bytes_total", &[]), counted);
    assert_eq!(books.sum("throughline_connections_total", &[("protocol", "opaque")]), 2);
    assert_eq!(books.created(), 0);
    sidecar.end().await;
}

#[tokio::test]
async fn a_client_that_speaks_no_http_is_not_kept_waiting() {
    let Some(cluster) = Cluster::make().await else { return };
    let (db, sidecar) = cluster.captured("db", "").await;
    let [near, far] = peers(&db, 6379, |mut wire| async move {
        let said = wire.exactly(4).await;
        wire.send(said).await;
    })
    .await;
    // Binary; a text protocol without a line's end; one with it. At once, and after a silence longer than anybody who has
    // begun to speak is waited for.
    for silence in [0, 500] {
        for said in ["\0\x01\x02\x03", "PING", "*1\r\n"] {
            for mut wire in wires(&db, near.address, far.address).await {
                tokio::time::sleep(Duration::from_millis(silence)).await;
                wire.send(said).await;
                assert_eq!(wire.rest_text().await, said, "after {silence} ms");
            }
        }
    }
    sidecar.end().await;
}

#[tokio::test]
async fn each_end_may_close_its_half() {
    let Some(cluster) = Cluster::make().await else { return };
    let (db, sidecar) = cluster.captured("db", "").await;
    // The server answers once it has heard everything; and one that has said all listens on.
    let [near, far] = peers(&db, 7001, |mut wire| async move {
        let all = wire.rest().await;
        wire.send(format!("heard {}", all.len())).await;
    })
    .await;
    for mut wire in wires(&db, near.address, far.address).await {
        wire.send(vec![0; 70_000]).await;
        wire.end().await;
        assert_eq!(wire.rest_text().await, "heard 70000");
    }
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let [near, far] = peers(&db, 7002, move |mut wire| {
        let heard = heard.clone();
        async move {
            wire.send("all\n").await;
            wire.end().await;
            let _ = heard.send(wire.rest().await.len());
        }
    })
    .await;
    for mut wire in wires(&db, near.address, far.address).await {
        assert_eq!(wire.rest_text().await, "all\n");
        wire.send(vec![1; 50_000]).await;
        drop(wire);
        assert_eq!(within("the rest", hears.recv()).await, Some(50_000));
    }
    sidecar.end().await;
}

#[tokio::test]
async fn a_connection_that_breaks_breaks_for_both() {
    let Some(cluster) = Cluster::make().await else { return };
    let (db, sidecar) = cluster.captured("db", "").await;
    let listener = db.listen((db.v4, 7003));
    let resetting = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a caller");
        let _ = stream.write_all(b"\0hello").await;
        let _ = stream.read_exact(&mut [0; 2]).await;
        stream.set_zero_linger().expect("a socket");
    });
    let mut stream = TcpStream::connect((db.v4, 7003)).await.expect("a connection");
    let mut hello = [0; 6];
    within("hello", stream.read_exact(&mut hello)).await.expect("hello");
    stream.write_all(b"ok").await.expect("open");
    let end = within("the end", stream.read(&mut hello)).await;
    assert_eq!(end.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
    resetting.await.expect("the server");
    sidecar.end().await;
}

#[tokio::test]
async fn tls_passes_and_is_counted_by_the_name_it_asks_for() {
    let Some(cluster) = Cluster::make().await else { return };
    let Some(pki) = Pki::make() else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let acceptor = pki.acceptor(false);
    for listener in [web.listen((web.v4, 8443)), TcpListener::bind((HUB, 8443)).await.expect("a port")] {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut word = [0; 4];
                    let _ = stream.read_exact(&mut word).await;
                    let _ = stream.write_all(&word).await;
                });
            }
        });
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(pki.file("ca.pem")).expect("a file") {
        roots.add(certificate.expect("a certificate")).expect("a root");
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let streams = [
        TcpStream::connect((web.v4, 8443)).await.expect("a connection"),
        web.connect((HUB, 8443)).expect("a connection"),
    ];
    for stream in streams {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut stream = within("TLS", connector.connect(name, stream)).await.expect("end to end");
        stream.write_all(b"ping").await.expect("open");
        let mut word = [0; 4];
        within("pong", stream.read_exact(&mut word)).await.expect("pong");
    }
    let books = sidecar.books().await;
    for side in ["inbound", "outbound"] {
        let named = [("side", side), ("server_name", "localhost")];
        assert_eq!(books.sum("throughline_tls_connections_total", &named), 1, "{}", books.text);
    }
    assert_eq!(books.created(), 0, "nobody reads what is inside");

    // Names come from strangers: however many, the series stay few. A greeting is enough to be counted.
    for number in 0..150 {
        let mut wire = Wire::to((web.v4, 8443).into()).await;
        wire.send(greeting(&format!("host-{number}.example"))).await;
    }
    let all = [("side", "inbound")];
    let counted = |books: &Books| books.sum("throughline_tls_connections_total", &all) == 151;
    let books = sidecar.books_when("every greeting", counted).await;
    assert!(books.labels("throughline_tls_connections_total", "server_name").len() <= 102);
    assert!(books.sum("throughline_tls_connections_total", &[("server_name", "_other")]) >= 50);
    sidecar.end().await;
}

/// A ClientHello that asks for this name, and has nothing else.
fn greeting(name: &str) -> Vec<u8> {
    fn counted(bytes: usize, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        [&length[4 - bytes..], body].concat()
    }
    let names = counted(2, &[&[0][..], &counted(2, name.as_bytes())].concat());
    let extensions = counted(2, &[&[0, 0][..], &counted(2, &names)].concat());
    let hello = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &extensions].concat();
    let message = [&[1][..], &counted(3, &hello)].concat();
    [&[22, 3, 1][..], &counted(2, &message)].concat()
}

#[tokio::test]
async fn a_connect_is_for_the_proxy_that_it_was_sent_to() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let proxy = Peer::on(TcpListener::bind((HUB, 0)).await.expect("a port"), |mut wire| async move {
        let head = wire.head().await;
        assert!(head.starts_with("CONNECT other.example:443 HTTP/1.1\r\n"), "{head}");
        wire.send("HTTP/1.1 200 OK\r\n\r\ninside").await;
    });
    let mut wire = Wire::over(web.connect(proxy.address).expect("a connection"));
    wire.send("CONNECT other.example:443 HTTP/1.1\r\nHost: other.example:443\r\n\r\n").await;
    wire.until("inside").await;
    drop(wire);
    // Behind a request that was served, it is no new connection: the client makes one.
    let plain = Service::on(TcpListener::bind((HUB, 0)).await.expect("a port"), answer(200, "ok"));
    let mut wire = Wire::over(web.connect(plain.address).expect("a connection"));
    wire.send("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    wire.until("ok").await;
    wire.send("CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n").await;
    assert_eq!(wire.rest_text().await, "");
    sidecar.end().await;
}
