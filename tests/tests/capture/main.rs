//! Transparent capture with the real rules, in network namespaces: applications that know nothing of a sidecar.

mod http;
mod lease;
mod rules;
mod tunnels;

use std::net::{IpAddr, SocketAddr};

use throughline_tests::cluster::Pod;
use throughline_tests::prelude::*;
use throughline_tests::service::{Seen, response};

/// An application in a pod, at a port of all its addresses.
fn application(pod: &Pod, port: u16, script: Script) -> Service {
    Service::on(pod.listen((std::net::Ipv6Addr::UNSPECIFIED, port)), script)
}

/// Calls the same path there over a connection of its own from this pod, and answers what it was answered.
fn calling_from(pod: &Pod, there: SocketAddr, protocol: Protocol) -> Script {
    let pod = pod.clone();
    script(move |visit| {
        let pod = pod.clone();
        let path = visit.request.uri().path().to_owned();
        let ask = Ask::get(format!("http://{there}{path}"));
        let ask = ask.copied(Copying::Everything.from(visit.request.headers()));
        async move {
            let answer = ask_from(&pod, there, protocol, ask).await;
            response(answer.status, answer.body)
        }
    })
}

/// Asks from a pod over a connection of its own.
async fn ask_from(pod: &Pod, there: SocketAddr, protocol: Protocol, ask: Ask) -> Answer {
    let stream = pod.connect(there).expect("a connection");
    let mut connection = Connection::over(stream, protocol).await.expect("a handshake");
    connection.ask(ask).await
}

/// GET from a pod, and what the service saw of it: whether the sidecar was in between.
async fn seen_from(pod: &Pod, service: &Service, ip: impl Into<IpAddr>) -> Seen {
    let before = service.seen().len();
    let there = SocketAddr::new(ip.into(), service.address.port());
    let answer = ask_from(pod, there, Protocol::H1, Ask::get(format!("http://{there}/"))).await;
    assert_eq!(answer.status, 200);
    service.saw(before + 1).await.pop().expect("it was seen")
}

/// Whether a request passed a sidecar.
fn is_traced(seen: &Seen) -> bool {
    seen.header("traceparent").is_some()
}

/// Says this on a connection of its own, and what comes back until it ends; nothing where it breaks, at whatever moment.
async fn said_to(stream: std::io::Result<tokio::net::TcpStream>, text: &str) -> String {
    let Ok(mut wire) = stream.and_then(|stream| stream.set_nodelay(true).map(|()| Wire::over(stream))) else {
        return String::new();
    };
    wire.send(text).await;
    wire.rest_text().await
}
