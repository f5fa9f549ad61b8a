//! The listeners: reviews by HTTPS, health and metrics by HTTP. Bounds what strangers may cost: connections,
//! bytes, time. Must never end a review that came whole without an answer that admits.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

use crate::certs::Kept;
use crate::injector::Injector;
use crate::log::{Level, tell};
use crate::review::PREFIX_BYTES;

/// Bytes of a review. A pod has 1.5 MiB at the most, which is what etcd takes.
pub const REVIEW_BYTES_MAX: usize = 4 << 20;
/// Bytes that are thrown away of a larger one, so that it gets its answer.
const DRAINED_BYTES_MAX: usize = 64 << 20;
/// Connections at once.
const CONNECTIONS_MAX: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a review waits to be read while too many others are.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long requests in flight may take when the process ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// The certificate that is served; changed while connections come.
#[derive(Debug, Default)]
pub struct Certificate {
    current: RwLock<Option<Arc<CertifiedKey>>>,
}

impl Certificate {
    /// Serves this one from here on.
    pub fn serve(&self, kept: &Kept) -> Result<(), String> {
        let (chain, key) = kept.chain()?;
        let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|error| error.to_string())?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(certified));
        Ok(())
    }

    /// Whether there is one.
    pub fn is_there(&self) -> bool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What /readyz says.
#[derive(Debug, Default)]
pub struct Ready {
    /// Nodes and server version were looked at.
    pub cluster: AtomicBool,
    /// SIGTERM came.
    pub ending: AtomicBool,
}

/// Serves reviews until `stop` says so.
pub async fn reviews(
    injector: Arc<Injector>,
    certificate: Arc<Certificate>,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
) -> Result<(), String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let budget = Arc::new(Semaphore::new(injector.settings.in_flight_bytes / 1024));
    let metrics = Arc::clone(&injector.metrics);
    let serve = move |stream, stop| {
        let (acceptor, injector, budget) = (acceptor.clone(), Arc::clone(&injector), Arc::clone(&budget));
        let metrics = Arc::clone(&metrics);
        async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let service = move |request| {
                        let (injector, budget) = (Arc::clone(&injector), Arc::clone(&budget));
                        async move { Ok::<_, Infallible>(review(&injector, &budget, request).await) }
                    };
                    connection(stream, service, stop).await;
                }
                Ok(Err(error)) => {
                    // A client without our authority shows up here: caBundle may be wrong.
                    tell(Level::Debug, "a handshake failed", &[("why", &error.to_string())]);
                    metrics
                        .count("throughline_injector_connections_refused_total", &[("reason", "handshake")]);
                }
                Err(_) => {
                    metrics.count("throughline_injector_connections_refused_total", &[("reason", "slow")])
                }
            }
        }
    };
    accept(listener, stop, serve).await;
    Ok(())
}

/// Serves /livez, /readyz and /metrics until `stop` says so.
pub async fn admin(
    injector: Arc<Injector>,
    certificate: Arc<Certificate>,
    ready: Arc<Ready>,
    listener: TcpListener,
    stop: watch::Receiver<bool>,
) {
    let serve = move |stream, stop| {
        let (injector, certificate, ready) =
            (Arc::clone(&injector), Arc::clone(&certificate), Arc::clone(&ready));
        async move {
            let service = move |request: Request<Incoming>| {
                let answer = match (request.method(), request.uri().path()) {
                    (&Method::GET | &Method::HEAD, "/livez") => plain(StatusCode::OK, "ok\n"),
                    (&Method::GET | &Method::HEAD, "/readyz") => {
                        if ready.ending.load(Ordering::Relaxed) {
                            plain(StatusCode::SERVICE_UNAVAILABLE, "ending\n")
                        } else if !certificate.is_there() {
                            plain(StatusCode::SERVICE_UNAVAILABLE, "no certificate yet\n")
                        } else if !ready.cluster.load(Ordering::Relaxed) {
                            plain(StatusCode::SERVICE_UNAVAILABLE, "the cluster was not looked at yet\n")
                        } else {
                            plain(StatusCode::OK, "ok\n")
                        }
                    }
                    (&Method::GET | &Method::HEAD, "/metrics") => {
                        let mut page = plain(StatusCode::OK, injector.metrics.page());
                        let media =
                            header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                        page.headers_mut().insert(header::CONTENT_TYPE, media);
                        page
                    }
                    _ => plain(StatusCode::NOT_FOUND, "want /livez, /readyz or /metrics\n"),
                };
                async move { Ok::<_, Infallible>(answer) }
            };
            connection(stream, service, stop).await;
        }
    };
    accept(listener, stop, serve).await;
}

async fn accept<F, S>(listener: TcpListener, mut stop: watch::Receiver<bool>, serve: S)
where
    S: Fn(tokio::net::TcpStream, watch::Receiver<bool>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Further ones wait in the kernel's queue.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stopped| *stopped) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let serving = serve(stream, stop.clone());
                tokio::spawn(async move {
                    serving.await;
                    drop(permit);
                });
            }
            // Out of descriptors, or a connection that was gone at once.
            Err(error) => {
                tell(Level::Warn, "a connection was not accepted", &[("why", &error.to_string())]);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, connections.acquire_many(all)).await;
}

async fn connection<I, S, F>(stream: I, service: S, mut stop: watch::Receiver<bool>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Result<Response<Full<Bytes>>, Infallible>> + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(64 * 1024);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(250)
        .max_header_list_size(64 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let served = builder.serve_connection(TokioIo::new(stream), service_fn(service));
    tokio::pin!(served);
    tokio::select! {
        _ = served.as_mut() => return,
        _ = stop.wait_for(|stopped| *stopped) => served.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, served).await;
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

async fn review(
    injector: &Injector,
    budget: &Semaphore,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    if head.uri.path() != "/mutate" {
        return plain(StatusCode::NOT_FOUND, "want POST /mutate\n");
    }
    if head.method != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "want POST\n");
    }
    let media =
        head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if media.split(';').next().map(str::trim) != Some("application/json") {
        return plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "want an AdmissionReview as application/json\n");
    }
    let told = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok());
    let bytes = told.unwrap_or(REVIEW_BYTES_MAX).min(REVIEW_BYTES_MAX);
    let permits = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
    let turn = tokio::time::timeout(TURN_TIMEOUT, budget.acquire_many(permits)).await;
    let keep = if turn.is_ok() { REVIEW_BYTES_MAX } else { 0 };
    let mut kept = Vec::new();
    let in_time = tokio::time::timeout(BODY_TIMEOUT, read(body, keep, &mut kept)).await;
    let answer = match in_time.unwrap_or(Read::Slow) {
        Read::Whole => injector.admit(&head.headers, &kept).await,
        Read::Cut if turn.is_err() => {
            let why = "too many reviews at once";
            injector.admit_unread(&kept, "busy", why).ok_or_else(|| why.to_owned())
        }
        Read::Slow => {
            let why = "the review did not arrive within 10 seconds";
            match injector.admit_unread(&kept, "slow", why) {
                Some(answer) => Ok(answer),
                None => return plain(StatusCode::REQUEST_TIMEOUT, format!("{why}\n")),
            }
        }
        Read::Cut => {
            let why = format!("the review is larger than {} MiB", REVIEW_BYTES_MAX >> 20);
            match injector.admit_unread(&kept, "too-large", &why) {
                Some(answer) => Ok(answer),
                None => return plain(StatusCode::PAYLOAD_TOO_LARGE, format!("{why}\n")),
            }
        }
        Read::Broken => return plain(StatusCode::BAD_REQUEST, "the review did not arrive whole\n"),
        Read::Endless => return plain(StatusCode::PAYLOAD_TOO_LARGE, "the review is larger than 64 MiB\n"),
    };
    match answer {
        Ok(answer) => {
            let mut response = plain(StatusCode::OK, answer);
            let media = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, media);
            response
        }
        Err(why) => plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

enum Read {
    Whole,
    /// It was longer than allowed; its first bytes were kept.
    Cut,
    /// It was not all there in time.
    Slow,
    Broken,
    Endless,
}

/// Reads up to `keep` bytes; of what is longer only the first bytes are kept, and the rest is thrown away.
async fn read(mut body: Incoming, keep: usize, kept: &mut Vec<u8>) -> Read {
    let mut all = 0usize;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Read::Broken };
        let Ok(data) = frame.into_data() else { continue };
        all += data.len();
        if all > DRAINED_BYTES_MAX {
            return Read::Endless;
        }
        if all <= keep {
            kept.extend_from_slice(&data);
            continue;
        }
        // The capacity of what was kept goes too.
        let room = PREFIX_BYTES.saturating_sub(kept.len()).min(data.len());
        kept.extend_from_slice(data.get(..room).unwrap_or_default());
        kept.truncate(PREFIX_BYTES);
        kept.shrink_to_fit();
    }
    if all <= keep { Read::Whole } else { Read::Cut }
}

/// Binds a listener.
pub async fn listen(address: SocketAddr, setting: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("--{setting}=\"{address}\": want a free address: {error}"))
}
