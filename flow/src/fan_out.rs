//! Sends every export that was taken on to another OTLP endpoint, the bytes as they came. Bounded, tried again as OTLP
//! asks, counted. Its trouble must never reach those who send to us.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use throughline_core::otlp::answer::Answer;
use throughline_core::settings::{Authority, Flow as Settings, Protocol};
use throughline_rim::collector::{grpc_answer, http_answer, told};
use throughline_rim::tls::{Authorities, Tls};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::log;
use crate::server::Signal;

/// For one attempt.
const ATTEMPT: Duration = Duration::from_secs(10);
/// An export that may still be taken is tried again for so long.
const TRIED_FOR: Duration = Duration::from_secs(300);
/// The first pause between two attempts, and the longest.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A queue to the other endpoint.
pub struct FanOut {
    shared: Arc<Shared>,
}

/// What became of exports.
#[derive(Default, Debug)]
pub struct Counts {
    sent: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    queue_full: AtomicU64,
    shutdown: AtomicU64,
}

impl Counts {
    /// Each outcome by name.
    #[must_use]
    pub fn outcomes(&self) -> [(&'static str, u64); 5] {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("sent", of(&self.sent)),
            ("refused", of(&self.refused)),
            ("failed", of(&self.failed)),
            ("queue_full", of(&self.queue_full)),
            ("shutdown", of(&self.shutdown)),
        ]
    }
}

struct Shared {
    queue: Mutex<VecDeque<(Signal, Bytes)>>,
    bytes: AtomicU64,
    bytes_max: u64,
    news: Notify,
    counts: Counts,
    throttle: log::Throttle,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, VecDeque<(Signal, Bytes)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<(Signal, Bytes)> {
        let taken = self.queue().pop_front();
        if let Some((_, bytes)) = &taken {
            self.bytes.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        }
        taken
    }
}

impl FanOut {
    /// A queue, and what empties it until `stop`.
    ///
    /// # Errors
    /// The setting that is wrong.
    pub fn new(settings: &Settings) -> Result<Option<(Self, Sending)>, String> {
        let Some(client) = Client::new(settings)? else { return Ok(None) };
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            bytes: AtomicU64::new(0),
            bytes_max: settings.fan_out_queue_bytes_max,
            news: Notify::new(),
            counts: Counts::default(),
            throttle: log::Throttle::new(),
        });
        let sending = Sending { shared: Arc::clone(&shared), client };
        Ok(Some((Self { shared }, sending)))
    }

    /// Queues an export; one that finds no room is dropped, and counted.
    pub fn send(&self, signal: Signal, bytes: Bytes) {
        let shared = &self.shared;
        let length = bytes.len() as u64;
        let mut queue = shared.queue();
        if shared.bytes.load(Ordering::Relaxed) + length > shared.bytes_max {
            shared.counts.queue_full.fetch_add(1, Ordering::Relaxed);
            return;
        }
        shared.bytes.fetch_add(length, Ordering::Relaxed);
        queue.push_back((signal, bytes));
        drop(queue);
        shared.news.notify_one();
    }

    /// What became of exports.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Bytes that wait.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

/// The other end of the queue.
pub struct Sending {
    shared: Arc<Shared>,
    client: Client,
}

impl Sending {
    /// Sends until the deadline that `stop` names, in order.
    pub async fn run(mut self, mut stop: watch::Receiver<Option<Instant>>) {
        let shared = Arc::clone(&self.shared);
        loop {
            let news = shared.news.notified();
            let Some((signal, bytes)) = shared.take() else {
                tokio::select! {
                    () = news => continue,
                    _ = stop.wait_for(Option::is_some) => {}
                }
                if shared.queue().is_empty() {
                    return;
                }
                continue;
            };
            let mut stopped = stop.clone();
            let cut = async {
                let deadline = stopped.wait_for(Option::is_some).await.ok().and_then(|deadline| *deadline);
                tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)).await;
            };
            let outcome = tokio::select! {
                outcome = deliver(&mut self.client, &shared, signal, &bytes) => outcome,
                () = cut => Outcome::Shutdown,
            };
            let counts = &shared.counts;
            let counter = match outcome {
                Outcome::Sent => &counts.sent,
                Outcome::Refused => &counts.refused,
                Outcome::Failed => &counts.failed,
                Outcome::Shutdown => &counts.shutdown,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What became of one export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Sent,
    Refused,
    Failed,
    Shutdown,
}

/// Tries until it is taken, refused, or too old.
async fn deliver(client: &mut Client, shared: &Shared, signal: Signal, bytes: &Bytes) -> Outcome {
    let until = Instant::now() + TRIED_FOR;
    let mut pause = PAUSE;
    loop {
        let (outcome, why) = match client.send(signal, bytes).await {
            Answer::Taken { .. } => return Outcome::Sent,
            Answer::Refused { why } => (Some(Outcome::Refused), why),
            Answer::Again { after_ms, why } => {
                let wanted = after_ms.map(Duration::from_millis).unwrap_or(pause).min(PAUSE_MAX);
                pause = (pause * 2).min(PAUSE_MAX);
                if Instant::now() + wanted > until {
                    (Some(Outcome::Failed), why)
                } else {
                    warn(shared, client, "an export waits to be sent on", &why);
                    sleep(wanted).await;
                    (None, why)
                }
            }
        };
        if let Some(outcome) = outcome {
            warn(shared, client, "an export was not sent on", &why);
            return outcome;
        }
    }
}

fn warn(shared: &Shared, client: &Client, message: &str, why: &str) {
    if let Some(held_back) = shared.throttle.pass() {
        log::warn(message, &[("endpoint", &client.endpoint), ("error", &why), ("held_back", &held_back)]);
    }
}

/// One connection to the other endpoint, made again when it breaks.
struct Client {
    protocol: Protocol,
    host: String,
    port: u16,
    /// Scheme, host, port and the path that comes before ours.
    endpoint: String,
    headers: HeaderMap,
    tls: Option<Tls>,
    sender: Option<Sender>,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

impl Client {
    fn new(settings: &Settings) -> Result<Option<Self>, String> {
        let Some(endpoint) = &settings.fan_out else { return Ok(None) };
        let protocol = settings.fan_out_protocol;
        let grpc = protocol == Protocol::Grpc;
        let secure = endpoint.tls.unwrap_or(false);
        let port = endpoint.port.unwrap_or(if grpc { 4317 } else { 4318 });
        let authority = Authority { host: endpoint.host.clone(), port };
        let tls = if secure {
            let file = &settings.fan_out_certificate;
            let authorities = Authorities { setting: "THROUGHLINE_FLOW_FAN_OUT_CERTIFICATE", file };
            Some(Tls::new(&endpoint.host, authorities, None, grpc)?)
        } else {
            None
        };
        let mut headers = HeaderMap::new();
        for (name, value) in &settings.fan_out_headers {
            let wrong =
                || format!("THROUGHLINE_FLOW_FAN_OUT_HEADERS: \"{name}\" is no header with a valid value");
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let agent = concat!("throughline-flow/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        if grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            if let Ok(host) = HeaderValue::from_str(&authority.to_string()) {
                headers.insert(HOST, host);
            }
        }
        let scheme = if secure { "https" } else { "http" };
        let endpoint_text = format!("{scheme}://{authority}{}", endpoint.path.trim_end_matches('/'));
        Ok(Some(Self {
            protocol,
            host: authority.host,
            port,
            endpoint: endpoint_text,
            headers,
            tls,
            sender: None,
        }))
    }

    fn path(&self, signal: Signal) -> &'static str {
        match (self.protocol, signal) {
            (Protocol::Grpc, Signal::Traces) => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            (Protocol::Grpc, Signal::Metrics) => {
                "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
            }
            (Protocol::HttpProtobuf, Signal::Traces) => "/v1/traces",
            (Protocol::HttpProtobuf, Signal::Metrics) => "/v1/metrics",
        }
    }

    /// Sends once.
    async fn send(&mut self, signal: Signal, bytes: &Bytes) -> Answer {
        let again = |why: String| Answer::Again { after_ms: None, why };
        let answer = match timeout(ATTEMPT, self.exchange(signal, bytes)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => again(why),
            Err(_) => again(format!("no answer within {} s", ATTEMPT.as_secs())),
        };
        if matches!(answer, Answer::Again { .. }) {
            self.sender = None; // the next try begins with a connection of its own
        }
        answer
    }

    async fn exchange(&mut self, signal: Signal, bytes: &Bytes) -> Result<Answer, String> {
        if self.sender.as_ref().is_none_or(Sender::is_closed) {
            self.sender = Some(self.connect().await?);
        }
        let uri: Uri = format!("{}{}", self.endpoint, self.path(signal))
            .parse()
            .map_err(|_| format!("{} is no URL", self.endpoint))?;
        let mut request = Request::new(Full::new(bytes.clone()));
        *request.method_mut() = Method::POST;
        *request.headers_mut() = self.headers.clone();
        let sender = self.sender.as_mut().ok_or("no connection")?;
        match sender {
            Sender::Http1(sender) => {
                let path = uri.path_and_query().cloned();
                *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
                sender.ready().await.map_err(|error| told(&error))?;
                let response = sender.send_request(request).await.map_err(|error| told(&error))?;
                let (answer, whole) = http_answer(response).await;
                if !whole {
                    self.sender = None; // an answer without an end would be in the next one's way
                }
                Ok(answer)
            }
            Sender::Http2(sender) => {
                let mut framed = BytesMut::with_capacity(bytes.len() + 5);
                framed.put_u8(0);
                framed.put_u32(u32::try_from(bytes.len()).map_err(|_| "a message is too large")?);
                framed.extend_from_slice(bytes);
                *request.body_mut() = Full::new(framed.freeze());
                *request.uri_mut() = uri;
                *request.version_mut() = http::Version::HTTP_2;
                sender.ready().await.map_err(|error| told(&error))?;
                let response = sender.send_request(request).await.map_err(|error| told(&error))?;
                Ok(grpc_answer(response).await)
            }
        }
    }

    async fn connect(&self) -> Result<Sender, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| format!("failed to connect: {error}"))?;
        let _ = stream.set_nodelay(true); // without it the connection is slower, not wrong
        match &self.tls {
            None => self.handshake(stream).await,
            Some(tls) => {
                let stream = tls.connect(stream).await;
                self.handshake(stream.map_err(|error| format!("failed to set up TLS: {error}"))?).await
            }
        }
    }

    async fn handshake<T>(&self, stream: T) -> Result<Sender, String>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match self.protocol {
            Protocol::Grpc => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| told(&error))?;
                tokio::spawn(connection);
                Ok(Sender::Http2(sender))
            }
            Protocol::HttpProtobuf => {
                let (sender, connection) =
                    http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
                tokio::spawn(connection);
                Ok(Sender::Http1(sender))
            }
        }
    }
}
