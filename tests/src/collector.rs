//! An OTLP collector: HTTP and gRPC on one port, with or without TLS. It keeps what it accepted, waits for
//! spans by condition, and reacts badly where the scenario wants it to.

use std::collections::VecDeque;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::ask::Protocol;
use crate::feed::{AnyBody, fed, whole};
use crate::grpc;
use crate::service::{read, spoken};
use crate::span::{Span, listing};
use crate::wait::within;

const GRPC_TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const GRPC_METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// How the collector reacts to one export of spans.
#[derive(Clone, Debug)]
pub enum Reaction {
    /// Accepts.
    Accept,
    /// HTTP: refuses with this status.
    Status(u16),
    /// HTTP: refuses with this status and says in how many seconds to try again.
    RetryAfter(u16, u64),
    /// gRPC: refuses with this status code.
    Code(u32),
    /// gRPC: refuses with this status code and a RetryInfo of so many milliseconds.
    CodeRetryInfo(u32, u64),
    /// Accepts, but says that it rejected so many of the spans.
    Reject(i64),
    /// Takes the request and never answers.
    Silence,
    /// Accepts, and never says so.
    AcceptInSilence,
    /// Starts an answer that never ends.
    Endless,
    /// Closes the connection in place of an answer.
    Close,
}

/// One export request that arrived.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The path it was sent to.
    pub path: String,
    /// HTTP/1.1 or HTTP/2.
    pub version: http::Version,
    /// Its headers or metadata.
    pub headers: HeaderMap,
    /// The export request's bytes, unframed and decompressed.
    pub bytes: Bytes,
    /// The spans in it.
    pub spans: Vec<Span>,
    /// Whether it was accepted.
    pub accepted: bool,
    /// When it came.
    pub at: Instant,
}

#[derive(Debug, Default)]
struct State {
    reactions: VecDeque<Reaction>,
    usual: Option<Reaction>,
    deliveries: Vec<Delivery>,
    metrics: Vec<ExportMetricsServiceRequest>,
    connections: usize,
    gone: watch::Sender<bool>,
}

type Shared = Arc<(Mutex<State>, watch::Sender<u64>)>;

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    /// Where it listens.
    pub address: SocketAddr,
    state: Shared,
    accepting: JoinHandle<()>,
}

impl Collector {
    /// Starts one that accepts everything.
    pub async fn start() -> Collector {
        Collector::listening(None).await
    }

    /// Starts one that speaks TLS.
    pub async fn with_tls(acceptor: TlsAcceptor) -> Collector {
        Collector::listening(Some(acceptor)).await
    }

    /// Starts one at any port of an address.
    pub async fn reachable_at(ip: std::net::IpAddr) -> Collector {
        Collector::at((ip, 0).into()).await
    }

    /// Starts one at an address where none was, or where one is gone.
    pub async fn at(address: SocketAddr) -> Collector {
        Collector::on(TcpListener::bind(address).await.expect("the port is free"), None)
    }

    async fn listening(tls: Option<TlsAcceptor>) -> Collector {
        Collector::on(TcpListener::bind("127.0.0.1:0").await.expect("a free port"), tls)
    }

    fn on(listener: TcpListener, tls: Option<TlsAcceptor>) -> Collector {
        let address = listener.local_addr().expect("an address");
        let state: Shared = Arc::new((Mutex::default(), watch::Sender::new(0)));
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(welcome(stream, tls.clone(), Arc::clone(&shared)));
            }
        });
        Collector { address, state, accepting }
    }

    /// Is gone from here on: its port is closed, and so are its connections. What it accepted stays known.
    pub fn goes(&self) {
        self.accepting.abort();
        self.lock().gone.send_replace(true);
    }

    /// The endpoint as a setting names it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Reacts to the next exports in this order, then as usual.
    pub fn then(&self, reactions: impl IntoIterator<Item = Reaction>) {
        self.lock().reactions.extend(reactions);
    }

    /// Reacts like this from here on.
    pub fn always(&self, reaction: Reaction) {
        self.lock().usual = Some(reaction);
    }

    /// Every export of spans that arrived, accepted or not.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.lock().deliveries.clone()
    }

    /// The spans that were accepted.
    pub fn accepted(&self) -> Vec<Span> {
        let state = self.lock();
        let accepted = state.deliveries.iter().filter(|delivery| delivery.accepted);
        accepted.flat_map(|delivery| delivery.spans.clone()).collect()
    }

    /// How many connections came.
    pub fn connections(&self) -> usize {
        self.lock().connections
    }

    /// Waits until this many spans were accepted.
    pub async fn spans(&self, count: usize) -> Vec<Span> {
        self.spans_when(&format!("{count} spans"), |spans| spans.len() >= count).await
    }

    /// Waits until the accepted spans are as wanted.
    pub async fn spans_when(&self, what: &str, wanted: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let waiting = async {
            self.news(|_| wanted(&self.accepted())).await;
            self.accepted()
        };
        match tokio::time::timeout(crate::wait::PATIENCE, waiting).await {
            Ok(spans) => spans,
            Err(_) => panic!("waited in vain for {what}; accepted are{}", listing(&self.accepted())),
        }
    }

    /// Waits until this many exports of spans arrived, accepted or not.
    pub async fn deliveries_when(&self, count: usize) -> Vec<Delivery> {
        let what = format!("{count} exports at the collector");
        within(&what, self.news(|_| self.lock().deliveries.len() >= count)).await;
        self.deliveries()
    }

    /// Waits until a pushed OTLP metrics request is as wanted.
    pub async fn metrics_when(
        &self,
        what: &str,
        wanted: impl Fn(&ExportMetricsServiceRequest) -> bool,
    ) -> ExportMetricsServiceRequest {
        let found = || self.lock().metrics.iter().rev().find(|request| wanted(request)).cloned();
        within(what, self.news(|_| found().is_some())).await;
        found().expect("it was there")
    }

    async fn news(&self, wanted: impl Fn(u64) -> bool) {
        let mut news = self.state.1.subscribe();
        news.wait_for(|count| wanted(*count)).await.expect("the collector runs");
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.0.lock().expect("the collector's state")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.accepting.abort();
        if !std::thread::panicking() {
            crate::canonical::keep(self.accepted());
        }
    }
}

async fn welcome(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Shared) {
    let mut gone = {
        let mut state = shared.0.lock().expect("the state");
        state.connections += 1;
        state.gone.subscribe()
    };
    tokio::select! {
        () = serving(stream, tls, shared) => {}
        _ = gone.wait_for(|gone| *gone) => {}
    }
}

async fn serving(stream: TcpStream, tls: Option<TlsAcceptor>, shared: Shared) {
    match tls {
        None => {
            let Some(protocol) = spoken(&stream).await else { return };
            serve(stream, protocol, shared).await;
        }
        Some(acceptor) => {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            serve(stream, if h2 { Protocol::H2 } else { Protocol::H1 }, shared).await;
        }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send, protocol: Protocol, shared: Shared) {
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move { receive(request, &shared).await }
    });
    let io = TokioIo::new(stream);
    let _ = match protocol {
        Protocol::H1 => http1::Builder::new().serve_connection(io, service).await,
        Protocol::H2 => http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await,
    };
}

async fn receive(request: Request<Incoming>, shared: &Shared) -> Result<Response<AnyBody>, String> {
    let (path, version) = (request.uri().path().to_owned(), request.version());
    let headers = request.headers().clone();
    let grpc = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc");
    let body = read(request).await;
    let bytes = if grpc { grpc::unframed(&body, &headers) } else { inflated(body, &headers) };
    if path == GRPC_METRICS || path.ends_with("/metrics") {
        let metrics = ExportMetricsServiceRequest::decode(bytes).expect("legal OTLP metrics");
        shared.0.lock().expect("the state").metrics.push(metrics);
        shared.1.send_modify(|count| *count += 1);
        return Ok(agreed(grpc, Bytes::new()));
    }
    let decoded = ExportTraceServiceRequest::decode(bytes.clone()).expect("legal OTLP spans");
    assert_eq!(grpc, path == GRPC_TRACES, "gRPC goes to its own path, HTTP to another: {path}");
    let reaction = {
        let mut state = shared.0.lock().expect("the state");
        let next = state.reactions.pop_front().or_else(|| state.usual.clone());
        let reaction = next.unwrap_or(Reaction::Accept);
        state.deliveries.push(Delivery {
            path,
            version,
            headers,
            bytes,
            spans: Span::all(&decoded),
            accepted: matches!(reaction, Reaction::Accept | Reaction::AcceptInSilence | Reaction::Reject(_)),
            at: Instant::now(),
        });
        reaction
    };
    shared.1.send_modify(|count| *count += 1);
    reply(reaction, grpc).await
}

async fn reply(reaction: Reaction, grpc: bool) -> Result<Response<AnyBody>, String> {
    let refused = |status: u16| Response::builder().status(status).body(whole("no")).expect("a response");
    match reaction {
        Reaction::Accept => Ok(agreed(grpc, Bytes::new())),
        Reaction::Reject(rejected_spans) => {
            let partial_success =
                Some(ExportTracePartialSuccess { rejected_spans, error_message: "not these".into() });
            Ok(agreed(grpc, ExportTraceServiceResponse { partial_success }.encode_to_vec().into()))
        }
        Reaction::Status(status) => Ok(refused(status)),
        Reaction::RetryAfter(status, seconds) => {
            let mut response = refused(status);
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            Ok(response)
        }
        Reaction::Code(code) => Ok(grpc::trailers_only(code)),
        Reaction::CodeRetryInfo(code, milliseconds) => Ok(grpc::with_retry_info(code, milliseconds)),
        Reaction::Silence | Reaction::AcceptInSilence => std::future::pending().await,
        Reaction::Close => Err("closed by the script".to_owned()),
        Reaction::Endless => {
            let (feeder, body) = fed();
            tokio::spawn(async move { while feeder.send(vec![b'x'; 16 * 1024]).await {} });
            Ok(Response::builder().header(header::CONTENT_TYPE, kind(grpc)).body(body).expect("a response"))
        }
    }
}

fn kind(grpc: bool) -> &'static str {
    if grpc { "application/grpc" } else { "application/x-protobuf" }
}

fn agreed(grpc: bool, message: Bytes) -> Response<AnyBody> {
    if grpc {
        return grpc::unary(message);
    }
    Response::builder().header(header::CONTENT_TYPE, kind(false)).body(whole(message)).expect("a response")
}

fn inflated(body: Bytes, headers: &HeaderMap) -> Bytes {
    match headers.get(header::CONTENT_ENCODING).map(|coding| coding.as_bytes()) {
        Some(b"gzip") => gunzip(&body),
        _ => body,
    }
}

/// Decompresses gzip.
pub(crate) fn gunzip(bytes: &[u8]) -> Bytes {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).expect("legal gzip");
    plain.into()
}
