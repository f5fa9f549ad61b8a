//! What the flow server does over loopback, as a process, with the senders on the same cores: spans a second by HTTP
//! and by gRPC, and how long answers take while 100,000 spans a second come in, 100 clients poll and 100 look live.
//! `make bench-flow`; numbers after the name: seconds of each part, spans a second of the last one.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used,
    reason = "a bench"
)]

#[expect(dead_code, unreachable_pub, reason = "shared with tests")]
mod realistic;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    Histogram, HistogramDataPoint, Metric, ResourceMetrics, ScopeMetrics, metric,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

const SERVICES: usize = 1000;
const SENDERS: usize = 2;
const CLIENTS: usize = 100;

/// A server of its own, ended by its own id.
struct Server {
    child: Child,
    api: SocketAddr,
    http: SocketAddr,
    grpc: SocketAddr,
}

impl Server {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("throughline-flow-bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let binary = std::env::var("THROUGHLINE_FLOW_BIN").unwrap_or_else(|_| {
            concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/throughline-flow").to_owned()
        });
        let ports = ["--listen", "--otlp-http", "--otlp-grpc"].map(|flag| format!("{flag}=127.0.0.1:0"));
        let mut child = Command::new(&binary)
            .arg(format!("--data-dir={}", folder.display()))
            .args(ports)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{binary}: {error}"));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready =
            lines.by_ref().map(Result::unwrap).find(|line| line.contains("\"ready\"")).expect("a ready line");
        std::thread::spawn(move || lines.for_each(drop));
        let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
        let at = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        Self { api: at("api"), http: at("otlp_http"), grpc: at("otlp_grpc"), child }
    }

    /// CPU seconds of the process until now.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let folder = std::env::temp_dir().join(format!("throughline-flow-bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// HTTP/1.1 over one connection.
struct Plain {
    stream: BufReader<TcpStream>,
}

impl Plain {
    fn to(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::with_capacity(64 * 1024, stream) }
    }

    /// The status of the answer.
    fn ask(&mut self, head: &str, body: &[u8]) -> u16 {
        self.stream.get_mut().write_all(&[head.as_bytes(), body].concat()).unwrap();
        let (mut line, mut length, mut status) = (String::new(), 0, 0);
        loop {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            if status == 0 {
                status = line.split(' ').nth(1).unwrap().parse().unwrap();
            } else if let Some(told) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = told.trim().parse().unwrap();
            } else if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        status
    }

    fn get(&mut self, path: &str) -> u16 {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"), b"")
    }

    fn post(&mut self, path: &str, body: &[u8]) -> u16 {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-protobuf\r\ncontent-length: {length}\r\n\r\n"
        );
        self.ask(&head, body)
    }
}

struct Sent {
    spans: AtomicU64,
    busy: AtomicU64,
}

/// Sends as fast as it is taken, or so many spans a second, by HTTP.
fn by_http(server: &Server, messages: &[(Bytes, u64)], rate: Option<u64>, stop: &AtomicBool, sent: &Sent) {
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let mine: Vec<_> = messages.iter().skip(sender).step_by(SENDERS).collect();
            scope.spawn(move || {
                let (mut connection, began, mut own) = (Plain::to(server.http), Instant::now(), 0);
                for (body, spans) in mine.into_iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Some(rate) = rate {
                        let due = Duration::from_secs_f64(own as f64 * SENDERS as f64 / rate as f64);
                        std::thread::sleep(due.saturating_sub(began.elapsed()));
                    }
                    while connection.post("/v1/traces", body) != 200 {
                        sent.busy.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    own += spans;
                    sent.spans.fetch_add(*spans, Ordering::Relaxed);
                }
            });
        }
    });
}

/// The same by gRPC, eight calls at once.
fn by_grpc(server: &Server, messages: &[(Bytes, u64)], stop: &Arc<AtomicBool>, sent: &Arc<Sent>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let framed = |body: &Bytes| {
        let mut framed = BytesMut::with_capacity(body.len() + 5);
        framed.put_u8(0);
        framed.put_u32(u32::try_from(body.len()).unwrap());
        framed.extend_from_slice(body);
        framed.freeze()
    };
    let messages: Arc<Vec<(Bytes, u64)>> =
        Arc::new(messages.iter().map(|(body, spans)| (framed(body), *spans)).collect());
    let address = server.grpc;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(
            TokioExecutor::new(),
            TokioIo::new(stream),
        )
        .await
        .unwrap();
        tokio::spawn(connection);
        let mut calls = tokio::task::JoinSet::new();
        for call in 0..8 {
            let (mut sender, messages) = (sender.clone(), Arc::clone(&messages));
            let (stop, sent) = (Arc::clone(stop), Arc::clone(sent));
            calls.spawn(async move {
                for (body, spans) in messages.iter().skip(call).step_by(8).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    loop {
                        let request = http::Request::post(format!(
                            "http://{address}/opentelemetry.proto.collector.trace.v1.TraceService/Export"
                        ))
                        .header("content-type", "application/grpc")
                        .header("te", "trailers")
                        .body(Full::new(body.clone()))
                        .unwrap();
                        let answer = sender.send_request(request).await.unwrap();
                        let refused = answer.headers().contains_key("grpc-status");
                        let _ = answer.into_body().collect().await.unwrap();
                        if !refused {
                            break;
                        }
                        sent.busy.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    sent.spans.fetch_add(*spans, Ordering::Relaxed);
                }
            });
        }
        while calls.join_next().await.is_some() {}
    });
}

/// What sidecars of 1,000 services count: each is called by three others, in three operations.
fn metrics(now: u64) -> Vec<Vec<u8>> {
    let text = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) }),
        ..KeyValue::default()
    };
    let point = |service: usize, call: usize| HistogramDataPoint {
        attributes: vec![
            text("http.request.method", "GET"),
            text("http.route", "/items/{id}"),
            text("url.scheme", "http"),
            text("app.operation.name", &format!("operation_{}", (service + call) % 200)),
            text(
                "throughline.peer.service",
                &format!("service-{}", (service * 7 + call * 31 + 1) % SERVICES),
            ),
            text("throughline.peer.namespace", "bench"),
        ],
        start_time_unix_nano: now - 5_000_000_000,
        time_unix_nano: now,
        count: 1000,
        sum: Some(50.0),
        bucket_counts: vec![500, 490, 10],
        explicit_bounds: vec![0.05, 0.25],
        ..HistogramDataPoint::default()
    };
    let of = |service: usize| {
        let data_points = (0..3).map(|call| point(service, call)).collect();
        let data = Some(metric::Data::Histogram(Histogram { data_points, aggregation_temporality: 2 }));
        let name = "http.server.request.duration".to_owned();
        let metrics = vec![Metric { name, unit: "s".to_owned(), data, ..Metric::default() }];
        let scope = Some(InstrumentationScope { name: "throughline".to_owned(), ..Default::default() });
        let name = format!("service-{service}");
        let attributes = vec![text("service.name", &name), text("service.namespace", "bench")];
        ResourceMetrics {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_metrics: vec![ScopeMetrics { scope, metrics, ..ScopeMetrics::default() }],
            ..ResourceMetrics::default()
        }
    };
    (0..SERVICES)
        .map(|service| ExportMetricsServiceRequest { resource_metrics: vec![of(service)] }.encode_to_vec())
        .collect()
}

fn measured(
    server: &Server,
    name: &str,
    seconds: u64,
    send: impl FnOnce(&Arc<AtomicBool>, &Arc<Sent>) + Send,
) {
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(Sent { spans: AtomicU64::new(0), busy: AtomicU64::new(0) });
    let (began, cpu) = (Instant::now(), server.cpu());
    std::thread::scope(|scope| {
        scope.spawn(|| send(&stop, &sent));
        std::thread::sleep(Duration::from_secs(seconds));
        stop.store(true, Ordering::Relaxed);
    });
    let (wall, cpu) = (began.elapsed().as_secs_f64(), server.cpu() - cpu);
    let (spans, busy) = (sent.spans.load(Ordering::Relaxed), sent.busy.load(Ordering::Relaxed));
    println!(
        "{name}: {:.0} spans/s over {wall:.1} s; the server took {:.2} us of CPU a span; {busy} times busy",
        spans as f64 / wall,
        cpu / spans as f64 * 1e6
    );
}

/// Looks live until the connection ends.
fn look(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.api).unwrap();
    let head = "GET /api/v1/live HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 101");
    let text = b"{\"type\":\"subscribe\"}";
    stream.write_all(&[&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], &text[..]].concat()).unwrap();
    stream
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let (seconds, rate) = (numbers.next().unwrap_or(10), numbers.next().unwrap_or(100_000));
    let mut traffic = realistic::Traffic::new(7, SERVICES, rate);
    let messages: Vec<(Bytes, u64)> = traffic
        .messages(1_000_000)
        .into_iter()
        .map(|message| (Bytes::from(message.body), message.spans))
        .collect();
    let spans: u64 = messages.iter().map(|(_, spans)| spans).sum();
    let bytes: usize = messages.iter().map(|(body, _)| body.len()).sum();
    println!("{spans} spans in {} messages, {} bytes a span", messages.len(), bytes as u64 / spans);
    {
        let server = Server::start();
        measured(&server, "OTLP/HTTP", seconds, |stop, sent| by_http(&server, &messages, None, stop, sent));
    }
    {
        let server = Server::start();
        measured(&server, "OTLP/gRPC", seconds, |stop, sent| by_grpc(&server, &messages, stop, sent));
    }
    let server = Server::start();
    let mut connection = Plain::to(server.http);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    for body in metrics(now) {
        assert_eq!(connection.post("/v1/metrics", &body), 200);
    }
    let ids: Vec<String> = messages
        .iter()
        .take(500)
        .flat_map(|(body, _)| ExportTraceServiceRequest::decode(&body[..]).unwrap().resource_spans)
        .flat_map(|resource| resource.scope_spans)
        .filter_map(|scope| scope.spans.into_iter().next())
        .map(|span| span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect();
    for (body, _) in messages.iter().take(500) {
        connection.post("/v1/traces", body);
    }
    std::thread::sleep(Duration::from_secs(2));
    let lookers: Vec<TcpStream> = (0..CLIENTS).map(|_| look(&server)).collect();
    let read = Arc::new(AtomicU64::new(0));
    let took: Mutex<Vec<(usize, f64)>> = Mutex::default();
    let asked =
        ["operation graph", "operation stats", "whole graph", "trace by id", "flow", "list of traces"];
    measured(&server, "steady", seconds * 2, |done, sent| {
        std::thread::scope(|scope| {
            for mut looker in lookers {
                let (read, done) = (Arc::clone(&read), Arc::clone(done));
                looker.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
                scope.spawn(move || {
                    let mut buffer = vec![0; 64 * 1024];
                    while !done.load(Ordering::Relaxed) {
                        if let Ok(count) = looker.read(&mut buffer) {
                            read.fetch_add(count as u64, Ordering::Relaxed);
                        }
                    }
                });
            }
            for client in 0..CLIENTS {
                let (server, ids, took, done) = (&server, &ids, &took, Arc::clone(done));
                scope.spawn(move || {
                    let (mut connection, mut mine, mut turn) = (Plain::to(server.api), Vec::new(), client);
                    std::thread::sleep(Duration::from_millis(client as u64 * 10));
                    while !done.load(Ordering::Relaxed) {
                        let id = &ids[turn * 31 % ids.len()];
                        let path = match turn % asked.len() {
                            0 => format!("/api/v1/operations/operation_{}/graph", turn % 200),
                            1 => format!("/api/v1/operations/operation_{}/stats", turn % 200),
                            2 => "/api/v1/dependencies".to_owned(),
                            3 => format!("/api/v1/traces/{id}"),
                            4 => format!("/api/v1/flows/flow-{id}"),
                            _ => "/api/v1/traces?pageSize=20".to_owned(),
                        };
                        let began = Instant::now();
                        let status = connection.get(&path);
                        mine.push((turn % asked.len(), began.elapsed().as_secs_f64() * 1e3));
                        assert_eq!(status, 200, "{path}");
                        turn += 1;
                        std::thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
                    }
                    took.lock().unwrap().extend(mine);
                });
            }
            by_http(&server, &messages, Some(rate), done, sent);
        });
    });
    println!("{CLIENTS} live views read {:.1} MB", read.load(Ordering::Relaxed) as f64 / 1e6);
    let took = took.into_inner().unwrap();
    for (which, name) in asked.iter().enumerate() {
        let mut of: Vec<f64> = took.iter().filter(|(asked, _)| *asked == which).map(|(_, ms)| *ms).collect();
        of.sort_by(f64::total_cmp);
        let at = |share: f64| of[((of.len() - 1) as f64 * share) as usize];
        println!(
            "{name}: {} answers, median {:.1} ms, p99 {:.1} ms, most {:.1} ms",
            of.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}
