//! Cleartext HTTP in captured connections: traced as ever, and sent where the kernel says.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::json;
use throughline_tests::cluster::{Cluster, HUB, Pod};
use throughline_tests::frames::{END_STREAM, Frame, Frames, Verdict};
use throughline_tests::grpc;
use throughline_tests::prelude::*;
use throughline_tests::service::switching;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{application, ask_from, calling_from, is_traced};

/// From the hub to web, which calls orders: both with a sidecar.
async fn one_trace(address_of: impl Fn(&Pod) -> IpAddr, protocol: Protocol) {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, web_sidecar) = cluster.captured("web", "").await;
    let (orders, orders_sidecar) = cluster.captured("orders", "").await;
    let there = SocketAddr::new(address_of(&orders), 8080);
    let orders_app = application(&orders, 8080, answer(200, "12"));
    let web_app = application(&web, 8080, calling_from(&web, there, protocol));
    let url = format!("http://{}/orders", SocketAddr::new(address_of(&web), 8080));
    let answer = Ask::get(url).header("x-operation-name", "checkout").over(protocol).send().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "12"));

    let spans = cluster.collector.spans(3).await;
    assert_connected(&spans, &[]);
    let service = |name: &str, kind| the_only(&spans, |span| span.service() == name && span.kind == kind);
    let client = service("web", Kind::Client);
    assert_eq!(service("orders", Kind::Server).parent, client.id, "the captures are joined");
    assert_eq!(client["server.address"], json!(address_of(&orders).to_string()));
    assert_eq!(client["server.port"], json!(8080));
    assert!(spans.iter().all(|span| span["app.operation.name"] == json!("checkout")));
    assert_eq!(service("orders", Kind::Server)["throughline.peer.service"], json!("web"));

    // One dial each: the connection that was made at once carries the request.
    assert_eq!((orders_app.seen().len(), web_app.seen().len()), (1, 1));
    let seen = orders_app.saw_one();
    assert_eq!(
        seen.from.ip().to_canonical(),
        address_of(&orders),
        "from the sidecar, at the pod's own address"
    );
    for (sidecar, side) in
        [(&web_sidecar, "inbound"), (&web_sidecar, "outbound"), (&orders_sidecar, "inbound")]
    {
        let books = sidecar.books().await;
        let ok = [("side", side), ("result", "ok")];
        assert_eq!(books.sum("throughline_captured_connections_total", &ok), 1, "{side}");
    }
    web_sidecar.end().await;
    orders_sidecar.end().await;
}

#[tokio::test]
async fn a_call_between_pods_is_one_trace_over_http_1() {
    one_trace(|pod| pod.v4.into(), Protocol::H1).await;
}

#[tokio::test]
async fn a_call_between_pods_is_one_trace_over_http_2() {
    one_trace(|pod| pod.v4.into(), Protocol::H2).await;
}

#[tokio::test]
async fn a_call_between_pods_is_one_trace_over_ipv6() {
    one_trace(|pod| pod.v6.into(), Protocol::H1).await;
}

#[tokio::test]
async fn grpc_is_traced_with_its_status() {
    let Some(cluster) = Cluster::make().await else { return };
    let (orders, sidecar) = cluster.captured("orders", "").await;
    let _app = application(&orders, 9000, grpc::answering(&[b"one", b"two"], 5));
    let url = format!("http://{}:9000/shop.Orders/List", orders.v4);
    let ask = Ask::post(url, grpc::framed(b"x")).header("content-type", "application/grpc");
    let answer = ask.header("te", "trailers").over(Protocol::H2).send().await;
    assert_eq!((answer.status, answer.trailer("grpc-status")), (200, Some("5")));
    assert_eq!(grpc::messages(answer.body).len(), 2);
    let spans = cluster.collector.spans(1).await;
    let server = the_only(&spans, |span| span.kind == Kind::Server);
    assert_eq!(server.name, "shop.Orders/List");
    assert_eq!(server["rpc.method"], json!("shop.Orders/List"), "{server:?}");
    sidecar.end().await;
}

#[tokio::test]
async fn the_destination_is_the_kernels_whatever_host_says() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let meant = Service::on(TcpListener::bind((HUB, 0)).await.expect("a port"), answer(200, "meant"));
    let named = Service::on(TcpListener::bind((HUB, 0)).await.expect("a port"), answer(200, "named"));
    let ask = |host: String| Ask::get(meant.url("/x")).header("host", host);
    for host in [named.address.to_string(), "127.0.0.1:15190".into(), format!("{}:15106", web.v4)] {
        let answer = ask_from(&web, meant.address, Protocol::H1, ask(host)).await;
        assert_eq!(answer.text(), "meant");
    }
    // The same in HTTP/2, and by a target that names somebody else: it may be meant for a proxy, and stays as it is.
    let elsewhere = Ask::get(format!("http://{}/x", named.address));
    let answer = ask_from(&web, meant.address, Protocol::H2, elsewhere).await;
    assert_eq!(answer.text(), "meant");
    let stream = web.connect(meant.address).expect("a connection");
    let mut wire = Wire::over(stream);
    let target = format!("http://{}/absolute", named.address);
    wire.send(format!("GET {target} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic eA==\r\n\r\n")).await;
    wire.until("meant").await;
    let seen = meant.saw(5).await;
    let last = seen.last().expect("five");
    assert_eq!((last.uri.to_string(), last.header("proxy-authorization")), (target, Some("Basic eA==")));
    assert!(seen.iter().all(|seen| seen.header("traceparent").is_some()));
    assert!(named.seen().is_empty(), "Host decides nothing");

    // The names on the span are those of the request.
    let spans = cluster.collector.spans(5).await;
    assert!(spans.iter().any(|span| span["server.port"] == json!(named.address.port())), "{spans:#?}");
    sidecar.end().await;
}

#[tokio::test]
async fn silence_does_not_make_a_connection_opaque() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let app = application(&web, 8080, answer(200, "late"));
    let mut wire = Wire::to((web.v4, 8080).into()).await;
    app.has_open(1).await; // the application sees the connection at once, as without a sidecar
    // Longer than anybody who has begun to speak is waited for. There is no timer to wait for: that is the point.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    wire.send("GET /late HTTP/1.1\r\nHost: web\r\n\r\n").await;
    wire.until("late").await;
    assert!(app.saw_one().header("traceparent").is_some());
    the_only(&cluster.collector.spans(1).await, |span| span["url.path"] == json!("/late"));
    assert_eq!(sidecar.books().await.sum("throughline_connections_total", &[("protocol", "opaque")]), 0);
    sidecar.end().await;
}

#[tokio::test]
async fn a_server_of_http_2_that_speaks_first_is_no_other_protocol() {
    let Some(cluster) = Cluster::make().await else { return };
    let (orders, sidecar) = cluster.captured("orders", "").await;
    // hyper sends its settings before it hears anything, as grpc-java does.
    let listener = orders.listen((orders.v4, 9000));
    let app = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a caller");
        let service =
            hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                let traced = request.headers().contains_key("traceparent");
                let response = http::Response::builder().status(if traced { 200 } else { 500 });
                response.body(http_body_util::Empty::<bytes::Bytes>::new())
            });
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let _ = hyper::server::conn::http2::Builder::new(executor).serve_connection(io, service).await;
    });
    let stream = tokio::net::TcpStream::connect((orders.v4, 9000)).await.expect("a connection");
    // Settings come before the caller begins to speak.
    eventually("the sidecar's connection", || async {
        let books = sidecar.books().await;
        (books.sum("throughline_captured_connections_total", &[("result", "ok")]) == 1).then_some(())
    })
    .await;
    let mut connection = Connection::over(stream, Protocol::H2).await.expect("a handshake");
    let answer = connection.ask(Ask::get(format!("http://{}:9000/", orders.v4))).await;
    assert_eq!(answer.status, 200);
    drop(connection);
    app.abort();
    sidecar.end().await;
}

#[tokio::test]
async fn a_failing_upstream_shows_as_it_would_without_us() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    // A port where nobody listens: the connection breaks, and the request that it hit is told of.
    for there in [SocketAddr::from((HUB, 9)), SocketAddr::from((web.v4, 9))] {
        let inbound = there.ip() == IpAddr::V4(web.v4);
        let stream = match inbound {
            true => tokio::net::TcpStream::connect(there).await,
            false => web.connect(there),
        };
        let ask = Ask::get(format!("http://{there}/gone"));
        let broken = match Connection::over(stream.expect("the sidecar's"), Protocol::H1).await {
            Ok(mut connection) => connection.try_ask(ask).await.err(),
            Err(broken) => Some(broken),
        };
        let broken = broken.unwrap_or_else(|| panic!("{there}: no answer of ours"));
        assert!(!broken.contains("timed out"), "{broken}");
    }
    // A client of gRPC is answered what it understands, or sees the connection break; it is not left with one that leads
    // nowhere.
    let mut connection = Connection::over(web.connect((HUB, 9)).expect("the sidecar's"), Protocol::H2)
        .await
        .expect("a handshake");
    if let Ok(answer) = connection.try_ask(Ask::get("http://10.9.0.1:9/gone")).await {
        assert_eq!(answer.status(), 502);
    }
    connection.closed().await;
    // Who says nothing is not kept waiting either.
    let silent = web.connect((HUB, 9)).expect("the sidecar's");
    assert!(Wire::over(silent).rest().await.is_empty());

    let spans = cluster.collector.spans(2).await;
    for kind in [Kind::Client, Kind::Server] {
        let over_http_1 = |span: &Span| span["network.protocol.version"] == json!("1.1");
        let span = the_only(&spans, |span| span.kind == kind && over_http_1(span));
        assert_eq!(span["error.type"], json!("connection_refused"), "{span:?}");
        assert!(!span.has("http.response.status_code"), "nobody saw a status: {span:?}");
    }
    let books = sidecar.books().await;
    assert_eq!(books.sum("throughline_captured_connections_total", &[("result", "failed")]), 4);
    sidecar.end().await;
}

#[tokio::test]
async fn an_upstream_that_hangs_up_is_seen_by_its_caller() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let first = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
    let whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    // Idle connections end together: the next request goes on a new one, as the client expects.
    let closing = Peer::on(web.listen((web.v4, 8081)), move |mut wire| async move {
        wire.head().await;
        wire.send(whole).await;
    });
    let mut wire = Wire::to(closing.address).await;
    wire.send(first).await;
    wire.until("ok").await;
    assert!(wire.rest().await.is_empty());
    // One that says so beforehand is heard.
    let saying = Peer::on(web.listen((web.v4, 8082)), move |mut wire| async move {
        wire.head().await;
        wire.send(whole.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
    });
    let mut wire = Wire::to(saying.address).await;
    wire.send(first).await;
    let head = wire.head().await;
    assert!(head.to_ascii_lowercase().contains("connection: close"), "{head}");
    // One that breaks off without an answer leaves none, nor one of ours.
    let breaking = Peer::on(web.listen((web.v4, 8083)), |mut wire| async move {
        wire.head().await;
    });
    let mut wire = Wire::to(breaking.address).await;
    wire.send(first).await;
    assert_eq!(wire.rest_text().await, "");
    sidecar.end().await;
}

#[tokio::test]
async fn requests_on_one_connection_go_on_one_connection() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let app = application(&web, 8080, answer(200, ""));
    let url = format!("http://{}:8080/", web.v4);
    for protocol in throughline_tests::ask::BOTH {
        let before = app.seen().len();
        let mut connections = Vec::new();
        for _ in 0..3 {
            connections.push(Connection::to((web.v4, 8080).into(), protocol).await.expect("a connection"));
        }
        for _ in 0..3 {
            for connection in &mut connections {
                assert_eq!(connection.ask(Ask::get(&url)).await.status, 200);
            }
        }
        let seen = app.saw(before + 9).await.split_off(before);
        let mut ports: Vec<u16> = seen.iter().map(|seen| seen.from.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 3, "{protocol:?}: a connection each, shared with nobody");
    }
    sidecar.end().await;
}

#[tokio::test]
async fn what_a_listener_refuses_it_refuses_when_captured() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let app = application(&web, 8080, answer(200, ""));
    let mut wire = Wire::to((web.v4, 8080).into()).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
    assert!(wire.head().await.starts_with("HTTP/1.1 400"));
    let mut frames = Frames::to((web.v4, 8080).into(), &[]).await;
    let fields: [(&[u8], &[u8]); 4] =
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"web")];
    frames.send(Frame::headers(1, &fields, END_STREAM)).await;
    assert_eq!(frames.verdict(1).await, Verdict::Status(200));
    assert!(is_traced(&app.saw_one()));
    drop(frames); // a client that answers no ping would hold up the end
    sidecar.end().await;
}

#[tokio::test]
async fn a_switched_protocol_passes_both_ways() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let echoing = switching(|mut stream| async move {
        let mut word = [0; 5];
        // Several words, with time for whatever might close the connection in between.
        while stream.read_exact(&mut word).await.is_ok() {
            let _ = stream.write_all(&word).await;
            let _ = stream.flush().await;
        }
    });
    let _app = application(&web, 8080, echoing);
    let mut wire = Wire::to((web.v4, 8080).into()).await;
    wire.send("GET /chat HTTP/1.1\r\nHost: web\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert!(wire.head().await.starts_with("HTTP/1.1 101"));
    for word in ["hello", "again", "later"] {
        wire.send(word).await;
        wire.until(word).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(wire);
    let span = the_only(&cluster.collector.spans(1).await, |span| span.kind == Kind::Server);
    assert_eq!(span["http.response.status_code"], json!(101));
    sidecar.end().await;
}

#[tokio::test]
async fn who_names_nobody_is_named_by_the_kernel() {
    let Some(cluster) = Cluster::make().await else { return };
    let (web, sidecar) = cluster.captured("web", "").await;
    let old = Service::on(TcpListener::bind((HUB, 0)).await.expect("a port"), answer(200, "old"));
    let mut wire = Wire::over(web.connect(old.address).expect("a connection"));
    wire.send("GET /old HTTP/1.0\r\n\r\n").await;
    assert!(wire.rest_text().await.ends_with("old"));
    assert_eq!(old.saw_one().header("host"), Some(old.address.to_string().as_str()));
    let span = the_only(&cluster.collector.spans(1).await, |span| span.kind == Kind::Client);
    span.assert_attributes(&[
        ("server.address", json!(HUB.to_string())),
        ("server.port", json!(old.address.port())),
        ("url.full", json!(format!("http://{}/old", old.address))),
    ]);
    sidecar.end().await;
}

#[tokio::test]
async fn the_sidecar_may_still_be_named_as_the_pubsub_endpoint() {
    let Some(cluster) = Cluster::make().await else { return };
    let web = cluster.pod("web");
    web.init("");
    let pubsub = Service::on(TcpListener::bind((HUB, 0)).await.expect("a port"), answer(200, "{}"));
    let plan = web.plan().flag("pubsub-upstream", format!("http://{}", pubsub.address));
    let sidecar = web.redirected(plan.start().await).await;
    let endpoint = SocketAddr::from(([127, 0, 0, 1], 15101));
    let publish = Ask::post(format!("http://{endpoint}/v1/projects/p/topics/orders:publish"), "{}");
    assert_eq!(ask_from(&web, endpoint, Protocol::H1, publish).await.status, 200);
    assert_eq!(pubsub.saw_one().header("host"), Some(pubsub.address.to_string().as_str()));
    // Nothing else goes anywhere from there: the kernel has not said where to.
    let elsewhere = Ask::get(format!("http://{endpoint}/")).header("host", "10.9.0.1:9");
    assert_eq!(ask_from(&web, endpoint, Protocol::H1, elsewhere).await.status, 403);
    let mut wire = Wire::over(web.connect(endpoint).expect("the sidecar"));
    wire.send("CONNECT 10.9.0.1:22 HTTP/1.1\r\nHost: 10.9.0.1:22\r\n\r\n").await;
    assert!(wire.head().await.starts_with("HTTP/1.1 403"));
    assert_eq!(pubsub.seen().len(), 1);
    drop(wire);
    sidecar.end().await;
}
