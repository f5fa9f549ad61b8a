//! Everything that listens: OTLP by gRPC and HTTP, the API, the live view, the page for people, and what operators
//! ask. Must never let a question stop the taking of spans, and never answer with less than what it says.

mod answers;
mod auth;
mod body;
mod dashboard;
mod grpc;
mod listen;
mod live;
mod otlp;
mod own;
mod problem;
mod query;
mod rest;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use throughline_core::settings::Flow as Settings;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, watch};

use crate::engine::{Accepted, Engine, Refused};
use crate::fan_out::FanOut;
use crate::live::Live;
use crate::log;
use auth::{Auth, Wish};
use listen::{Body, Connections, Speaks, whole};
use problem::{Answer, Problem};

/// The description of the API, served and held against its answers by a test.
const OPENAPI: &[u8] = include_bytes!("openapi.json");
/// Questions that read the store at once; further ones wait.
const STORE_QUESTIONS_MAX: usize = 4;
/// What a question waits for its turn. Then: 503.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// What an export holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Data points.
    Metrics,
}

/// What all connections share.
pub struct App {
    engine: Engine,
    live: Arc<Live>,
    fan_out: Option<FanOut>,
    auth: Auth,
    bounds: body::Bounds,
    connections_max: usize,
    live_max: usize,
    late_nanos: u64,
    questions: Semaphore,
    draining: AtomicBool,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    connections: [Connections; 3],
    exports: AtomicU64,
    exports_refused: AtomicU64,
    questions: AtomicU64,
}

/// Whether the files that the settings name can be read.
///
/// # Errors
/// The setting that is wrong.
pub fn check(settings: &Settings) -> Result<(), String> {
    Auth::new(&settings.token_file, settings.otlp_open).map(|_| ())
}

/// Listeners that are bound.
pub struct Bound {
    api: TcpListener,
    grpc: Option<TcpListener>,
    http: Option<TcpListener>,
}

/// Connections that the kernel holds until there is room for them.
const BACKLOG: u32 = 1024;
/// Bytes that the kernel holds for a caller who does not read; Linux doubles it.
const SEND_BUFFER_BYTES: u32 = 128 * 1024;

impl Bound {
    /// Binds all of them; within a runtime.
    ///
    /// # Errors
    /// The setting whose address can't be had.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let bind = |name: &str, address: SocketAddr| -> Result<TcpListener, String> {
            let listen = || {
                let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                // A restart must not wait for connections of the process before it.
                socket.set_reuseaddr(true)?;
                // Connections take this over: a reader that does not read is noticed soon, and costs the kernel little.
                socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
                socket.bind(address)?;
                socket.listen(BACKLOG)
            };
            listen().map_err(|error| format!("{name}=\"{address}\": want an address that is free: {error}"))
        };
        Ok(Self {
            api: bind("THROUGHLINE_FLOW_LISTEN", settings.listen)?,
            grpc: settings
                .otlp_grpc
                .map(|address| bind("THROUGHLINE_FLOW_OTLP_GRPC", address))
                .transpose()?,
            http: settings
                .otlp_http
                .map(|address| bind("THROUGHLINE_FLOW_OTLP_HTTP", address))
                .transpose()?,
        })
    }

    /// Where they listen, by name.
    #[must_use]
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let all =
            [("api", Some(&self.api)), ("otlp_grpc", self.grpc.as_ref()), ("otlp_http", self.http.as_ref())];
        all.into_iter().filter_map(|(name, listener)| Some((name, listener?.local_addr().ok()?))).collect()
    }
}

impl App {
    /// What connections share, from the settings.
    ///
    /// # Errors
    /// The setting that is wrong.
    pub fn new(settings: &Settings, engine: Engine, fan_out: Option<FanOut>) -> Result<Arc<Self>, String> {
        let live = Arc::new(Live::new(log::unix_nanos));
        engine.watch(Arc::clone(&live) as Arc<dyn crate::engine::Watcher>);
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(Arc::new(Self {
            engine,
            live,
            fan_out,
            auth: Auth::new(&settings.token_file, settings.otlp_open)?,
            bounds: body::Bounds::new(
                settings.body_bytes_max,
                settings.bodies_bytes_max,
                Duration::from_millis(settings.body_timeout_ms),
            ),
            connections_max: size(settings.connections_max),
            late_nanos: settings.late_after_ms * 1_000_000,
            live_max: size(settings.live_max),
            questions: Semaphore::new(STORE_QUESTIONS_MAX),
            draining: AtomicBool::new(false),
            counts: Counts::default(),
        }))
    }

    /// Serves until `stop`, and then what is under way.
    ///
    /// # Errors
    /// A listener that can't be used.
    pub async fn serve(self: &Arc<Self>, bound: Bound, stop: watch::Receiver<bool>) -> std::io::Result<()> {
        let telling = tokio::spawn(tell(Arc::clone(self)));
        let mut accepting = tokio::task::JoinSet::new();
        let listeners =
            [(Speaks::Api, Some(bound.api)), (Speaks::OtlpGrpc, bound.grpc), (Speaks::OtlpHttp, bound.http)];
        for (speaks, listener) in listeners {
            let Some(listener) = listener else { continue };
            accepting.spawn(listen::accept(Arc::clone(self), speaks, listener, stop.clone()));
        }
        let mut ended = stop;
        let _ = ended.wait_for(|stop| *stop).await;
        self.draining.store(true, Ordering::Relaxed);
        while accepting.join_next().await.is_some() {}
        telling.abort();
        Ok(())
    }

    fn connections(&self, speaks: Speaks) -> &Connections {
        let [api, grpc, http] = &self.counts.connections;
        match speaks {
            Speaks::Api => api,
            Speaks::OtlpGrpc => grpc,
            Speaks::OtlpHttp => http,
        }
    }

    fn now(&self) -> u64 {
        log::unix_nanos()
    }

    /// Hands an export to the engine, and to the fan-out when it was taken.
    fn take(&self, signal: Signal, bytes: Bytes) -> Result<Accepted, Refused> {
        self.counts.exports.fetch_add(1, Ordering::Relaxed);
        let taken = match signal {
            Signal::Traces => self.engine.spans(bytes.clone()),
            Signal::Metrics => self.engine.metrics(&bytes),
        }?;
        if let Some(fan_out) = &self.fan_out {
            fan_out.send(signal, bytes);
        }
        Ok(taken)
    }

    async fn answer(
        self: &Arc<Self>,
        speaks: Speaks,
        peer: SocketAddr,
        request: Request<Incoming>,
    ) -> Response<Body> {
        match speaks {
            Speaks::OtlpGrpc => {
                let allowed = self.auth.check(peer, request.headers(), Wish::Send);
                grpc::answer(self, request, allowed).await
            }
            Speaks::OtlpHttp => whole(match self.auth.check(peer, request.headers(), Wish::Send) {
                Ok(()) => otlp::answer(self, request).await,
                Err(refusal) => refusal.problem().answer(),
            }),
            Speaks::Api => {
                let head = request.method() == Method::HEAD;
                let mut answer = self.api(peer, request).await;
                if head {
                    *answer.body_mut() = Full::default();
                }
                whole(answer)
            }
        }
    }

    async fn api(self: &Arc<Self>, peer: SocketAddr, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        match path {
            "/livez" => return plain(StatusCode::OK, "ok\n"),
            "/readyz" if self.draining.load(Ordering::Relaxed) => {
                return plain(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
            }
            "/readyz" => return plain(StatusCode::OK, "ready\n"),
            "/metrics" => return problem::with_body(StatusCode::OK, own::TYPE, own::page(self)),
            _ => {}
        }
        if let Err(refusal) = self.auth.check(peer, request.headers(), Wish::Read) {
            return refusal.problem().answer();
        }
        self.counts.questions.fetch_add(1, Ordering::Relaxed);
        match path.strip_prefix("/api/v1/") {
            Some("live") => live::answer(self, request),
            Some(rest) => {
                rest::answer(self, request.method(), rest, request.uri().query(), request.headers()).await
            }
            None if !matches!(*request.method(), Method::GET | Method::HEAD) => {
                Problem::new(StatusCode::METHOD_NOT_ALLOWED, "want GET").answer()
            }
            None => dashboard::answer(path, request.headers()).unwrap_or_else(|| {
                Problem::not_found("no such page; see / and /api/v1/openapi.json").answer()
            }),
        }
    }

    /// Asks the store on a thread where waiting harms nobody; not more than a few at once.
    async fn aside<F>(self: &Arc<Self>, query: Option<&str>, question: F) -> Result<Answer, Problem>
    where
        F: FnOnce(&App, Option<&str>) -> Result<Answer, Problem> + Send + 'static,
    {
        let busy = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many questions at once; ask again");
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.questions.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(busy()) };
        let (app, query) = (Arc::clone(self), query.map(str::to_owned));
        let answered = tokio::task::spawn_blocking(move || question(&app, query.as_deref())).await;
        answered.unwrap_or_else(|_| {
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the question could not be answered"))
        })
    }

    /// The same, about one thing.
    async fn aside_of(
        self: &Arc<Self>,
        name: &str,
        query: Option<&str>,
        question: fn(&App, &str, Option<&str>) -> Result<Answer, Problem>,
    ) -> Result<Answer, Problem> {
        let name = name.to_owned();
        self.aside(query, move |app, query| question(app, &name, query)).await
    }
}

/// Tells readers of the live view what changed.
async fn tell(app: Arc<App>) {
    let mut every = tokio::time::interval(crate::live::EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        app.live.tell();
    }
}

fn plain(status: StatusCode, text: &'static str) -> Answer {
    problem::with_body(status, "text/plain; charset=utf-8", text)
}
