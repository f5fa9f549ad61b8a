//! Connections to upstreams, kept for the next request. HTTP/1.1: a stack of idle connections, the newest
//! first, none older than the setting says. HTTP/2: connections shared by their streams. Bounded in upstreams
//! and in idle connections; one more is made when none is free. Each worker has its own: a connection is driven by
//! the thread that made it, so a request never waits for another thread.

use std::collections::HashMap;
use std::error::Error as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use throughline_core::classify::Failure;
use throughline_core::exchange::Mark;
use throughline_core::settings::{Authority, Endpoint, FixedRoute, Settings};
use tokio::io::{AsyncRead, AsyncWrite};

use super::asked::Asked;
use super::body::{FromUpstream, Upload, UploadState};
use super::dial::dial;
use crate::capture::Ends;
use crate::listener::Prefixed;
use crate::sidecar::{OwnPorts, Sidecar};
use crate::tls::{self, Tls};
use crate::worker;

/// Upstreams remembered at once; the rest are dialled for each request.
const UPSTREAMS_MAX: usize = 1024;
/// Idle HTTP/1.1 connections kept for one upstream.
const IDLE_MAX: usize = 256;
/// Streams put on one HTTP/2 connection before another is made: what servers commonly allow.
const STREAMS_PER_CONNECTION: usize = 100;
/// Bytes of one answer that an upstream may send ahead of its reader.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// The same for all streams of a connection together: whoever does not read his answer holds up nobody else's.
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * (STREAMS_PER_CONNECTION as u32 + 1);
/// Fields of an answer's head: what the application says is passed on, within reason.
const ANSWER_FIELDS_MAX: usize = 500;
/// HTTP/2 connections to one upstream.
const HTTP2_CONNECTIONS_MAX: usize = 64;

/// What is spoken with an upstream: what the caller speaks with us.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    Http1,
    Http2,
}

/// All upstreams of the process.
#[derive(Debug)]
pub(crate) struct Upstreams {
    routes: Vec<FixedRoute>,
    idle_max: Duration,
    head_bytes_max: usize,
    /// By worker.
    upstreams: Vec<Mutex<HashMap<Authority, Arc<Upstream>>>>,
    pubsub: Option<Pubsub>,
}

/// Where a client goes that takes the sidecar for its Pub/Sub endpoint.
struct Pubsub {
    to: Authority,
    /// For HTTP/1.1 and for HTTP/2, which TLS tells apart.
    tls: Option<[Tls; 2]>,
}

impl std::fmt::Debug for Pubsub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (tls: {})", self.to, self.tls.is_some())
    }
}

#[derive(Debug)]
pub(crate) struct Upstream {
    /// How long an idle connection is believed to be open.
    idle_max: Duration,
    idle: Mutex<Vec<Idle>>,
    http2: Mutex<Vec<Shared>>,
    /// Held while a connection for HTTP/2 is made, so that a burst of requests makes one and not one each.
    dialling: tokio::sync::Mutex<()>,
}

/// An HTTP/1.1 connection, and whether its upstream asks for a body that is held back.
pub(super) struct Sender {
    send: http1::SendRequest<Upload>,
    asked: Arc<Asked>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "closed: {}", self.send.is_closed())
    }
}

#[derive(Debug)]
struct Idle {
    sender: Sender,
    since: Instant,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<Upload>,
    streams: Arc<AtomicUsize>,
    /// How often `tidy` found it without a stream since the last one.
    idle_ticks: AtomicUsize,
}

/// What an answer holds of its connection until it is read.
#[derive(Debug)]
pub(super) enum Lease {
    Http1 {
        upstream: Arc<Upstream>,
        sender: Option<Sender>,
        upload: UploadState,
    },
    Http2 {
        #[expect(dead_code, reason = "held for its drop, which counts the stream off")]
        stream: StreamCount,
    },
}

/// One stream of a connection, counted until it is over.
#[derive(Debug)]
pub(super) struct StreamCount(Arc<AtomicUsize>);

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    /// The answer was read to its end: the connection is free, if the request went out whole too.
    pub(super) fn release(&mut self) {
        if let Self::Http1 { upstream, sender, upload } = self
            && let Some(sender) = sender.take()
            && upload.is_whole()
            && !sender.send.is_closed()
        {
            upstream.keep(sender);
        }
    }
}

impl Upstream {
    fn new(idle_max: Duration) -> Arc<Self> {
        let dialling = tokio::sync::Mutex::default();
        Arc::new(Self { idle_max, idle: Mutex::default(), http2: Mutex::default(), dialling })
    }

    fn keep(&self, sender: Sender) {
        let mut idle = locked(&self.idle);
        if idle.len() >= IDLE_MAX {
            idle.remove(0); // the one that waited longest
        }
        idle.push(Idle { sender, since: Instant::now() });
    }

    /// The newest idle connection that is ready for a request. One that still writes the end of an upload which
    /// nobody reads stays where it is: whoever comes next does not wait for it.
    fn take(&self) -> Option<Sender> {
        let mut idle = locked(&self.idle);
        loop {
            // Those that are closed or too old and are not come across here are left to `tidy`.
            let usable = |idle: &Idle| idle.sender.send.is_ready() || idle.sender.send.is_closed();
            let at = idle.iter().rposition(usable)?;
            let Idle { sender, since } = idle.remove(at);
            if !sender.send.is_closed() && since.elapsed() <= self.idle_max {
                return Some(sender);
            }
        }
    }

    /// An HTTP/2 connection with room for a stream, which is counted on it.
    fn share(&self) -> Option<(http2::SendRequest<Upload>, StreamCount)> {
        let mut connections = locked(&self.http2);
        connections.retain(|connection| !connection.sender.is_closed());
        let with_room =
            connections.iter().find(|one| one.streams.load(Ordering::Relaxed) < STREAMS_PER_CONNECTION);
        let one = match with_room {
            Some(one) => one,
            // Beyond the bound of connections, streams queue on the last one.
            None if connections.len() >= HTTP2_CONNECTIONS_MAX => connections.last()?,
            None => return None,
        };
        Some((one.sender.clone(), one.count()))
    }
}

impl Shared {
    fn new(sender: http2::SendRequest<Upload>) -> Self {
        Self { sender, streams: Arc::default(), idle_ticks: AtomicUsize::new(0) }
    }

    fn is_wanted(&self) -> bool {
        let in_use = self.streams.load(Ordering::Relaxed) > 0;
        let spared = in_use || self.idle_ticks.fetch_add(1, Ordering::Relaxed) == 0;
        spared && !self.sender.is_closed()
    }

    fn count(&self) -> StreamCount {
        self.idle_ticks.store(0, Ordering::Relaxed);
        self.streams.fetch_add(1, Ordering::Relaxed);
        StreamCount(Arc::clone(&self.streams))
    }
}

impl Upstreams {
    /// `Err` names the setting that stands in the way.
    pub(crate) fn new(settings: &Settings, workers: usize) -> Result<Self, String> {
        Ok(Self {
            pubsub: settings.pubsub_upstream.as_ref().map(|to| Pubsub::new(to, settings)).transpose()?,
            routes: settings.outbound_routes.clone(),
            idle_max: Duration::from_millis(settings.pool_idle_timeout_ms),
            head_bytes_max: usize::try_from(settings.header_bytes_max).unwrap_or(usize::MAX),
            upstreams: std::iter::repeat_with(Mutex::default).take(workers).collect(),
        })
    }

    /// The Pub/Sub upstream, when a request names the sidecar itself.
    pub(crate) fn pubsub(&self, own_ports: &OwnPorts, to: &Authority) -> Option<&Authority> {
        let pubsub = self.pubsub.as_ref()?;
        let address = to.address().or_else(|| {
            let local = to.host.eq_ignore_ascii_case("localhost");
            local.then(|| SocketAddr::from((Ipv4Addr::LOCALHOST, to.port)))
        });
        address.filter(|address| own_ports.hold(*address)).map(|_| &pubsub.to)
    }

    /// Its name, when an authority as a request spells it is the sidecar's own.
    pub(crate) fn pubsub_of(&self, own_ports: &OwnPorts, authority: &[u8]) -> Option<String> {
        self.pubsub.as_ref()?;
        let to = Authority::parse(std::str::from_utf8(authority).ok()?)?;
        self.pubsub(own_ports, &to).map(ToString::to_string)
    }

    pub(super) fn is_pubsub(&self, to: &Authority) -> bool {
        self.pubsub.as_ref().is_some_and(|pubsub| pubsub.to == *to)
    }

    pub(crate) fn pubsub_by_tls(&self) -> bool {
        self.pubsub.as_ref().is_some_and(|pubsub| pubsub.tls.is_some())
    }

    fn tls(&self, to: &Authority, kind: Kind) -> Option<&Tls> {
        let pubsub = self.pubsub.as_ref().filter(|pubsub| pubsub.to == *to)?;
        pubsub.tls.as_ref()?.get(usize::from(kind == Kind::Http2))
    }

    /// Where the user's own routes send this authority.
    pub(super) fn route(&self, to: &Authority) -> Option<&Authority> {
        let route = self.routes.iter().find(|route| {
            route.host.eq_ignore_ascii_case(&to.host) && route.port.is_none_or(|port| port == to.port)
        });
        route.map(|route| &route.to)
    }

    /// Whether the user's own routes know an authority as a request spells it.
    pub(crate) fn is_routed(&self, authority: &[u8]) -> bool {
        if self.routes.is_empty() {
            return false;
        }
        let Ok(text) = std::str::from_utf8(authority) else { return false };
        let to = Authority::parse(text).or_else(|| Authority::parse(&format!("{text}:80")));
        to.is_some_and(|to| self.route(&to).is_some())
    }

    /// Sends the request once, by a kept connection or a new one.
    pub(super) async fn send(
        &self,
        sidecar: &Sidecar,
        to: &Authority,
        upstream: Arc<Upstream>,
        kind: Kind,
        request: Request<Upload>,
        upload: &UploadState,
    ) -> Result<Response<FromUpstream>, Failure> {
        request.body().note(Mark::Connecting);
        match kind {
            Kind::Http1 => self.send_http1(sidecar, to, upstream, request, upload).await,
            Kind::Http2 => self.send_http2(sidecar, to, &upstream, request).await,
        }
    }

    async fn send_http1(
        &self,
        sidecar: &Sidecar,
        to: &Authority,
        upstream: Arc<Upstream>,
        mut request: Request<Upload>,
        upload: &UploadState,
    ) -> Result<Response<FromUpstream>, Failure> {
        let waits = super::headers::waits_to_be_asked(&request);
        loop {
            let (mut sender, kept) = match upstream.take() {
                Some(sender) => (sender, true),
                // Boxed, as is all that is rare: each request's future has the size of its largest part.
                None => (Box::pin(self.connect_http1(sidecar, to)).await?, false),
            };
            if sender.send.ready().await.is_err() {
                if kept {
                    continue; // it closed while it was idle: not a byte was sent on it
                }
                return Err(Failure::ConnectionReset);
            }
            request.body().note(Mark::Connected);
            if waits {
                request.body_mut().wait_for(sender.asked.wait());
            }
            match sender.send.try_send_request(request).await {
                Ok(response) => {
                    let lease =
                        |sender| Lease::Http1 { upstream, sender: Some(sender), upload: upload.clone() };
                    return Ok(response.map(|body| FromUpstream::new(body, lease(sender))));
                }
                Err(mut error) => match error.take_message() {
                    // hyper hands a request back only when nothing of it was written.
                    Some(unsent) if kept => request = unsent,
                    Some(_) | None => return Err(failure(error.error())),
                },
            }
        }
    }

    async fn send_http2(
        &self,
        sidecar: &Sidecar,
        to: &Authority,
        upstream: &Upstream,
        mut request: Request<Upload>,
    ) -> Result<Response<FromUpstream>, Failure> {
        loop {
            let (mut sender, stream, kept) = match upstream.share() {
                Some((sender, stream)) => (sender, stream, true),
                None => Box::pin(self.new_http2(sidecar, to, upstream)).await?,
            };
            if sender.ready().await.is_err() && kept {
                continue; // it closed meanwhile: not a byte was sent on it
            }
            request.body().note(Mark::Connected);
            match sender.try_send_request(request).await {
                Ok(response) => {
                    return Ok(response.map(|body| FromUpstream::new(body, Lease::Http2 { stream })));
                }
                Err(mut error) => match error.take_message() {
                    // hyper hands a request back only when nothing of it was written.
                    Some(unsent) if kept => request = unsent,
                    Some(_) | None => return Err(failure(error.error())),
                },
            }
        }
    }

    /// A new connection, or one that another request made meanwhile; whether it was there before.
    async fn new_http2(
        &self,
        sidecar: &Sidecar,
        to: &Authority,
        upstream: &Upstream,
    ) -> Result<(http2::SendRequest<Upload>, StreamCount, bool), Failure> {
        let _one_at_a_time = upstream.dialling.lock().await;
        if let Some((sender, stream)) = upstream.share() {
            return Ok((sender, stream, true));
        }
        let sender = self.connect_http2(sidecar, to).await?;
        let shared = Shared::new(sender.clone());
        let stream = shared.count();
        locked(&upstream.http2).push(shared);
        Ok((sender, stream, false))
    }

    /// Takes over a connection that was made elsewhere (for a CONNECT) and that speaks HTTP after all.
    pub(crate) async fn adopt<T>(&self, to: &Authority, kind: Kind, stream: T) -> Result<(), Failure>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let upstream = self.upstream(to);
        match kind {
            Kind::Http1 => upstream.keep(ready(self.handshake_http1(stream, None).await?).await?),
            Kind::Http2 => {
                let sender = self.handshake_http2(stream, None).await?;
                locked(&upstream.http2).push(Shared::new(sender));
            }
        }
        Ok(())
    }

    /// The same for the upstream of one captured connection, which nobody shares: when it closes, so does its caller's.
    pub(crate) async fn adopt_alone<T>(
        &self,
        kind: Kind,
        stream: T,
        ends: Arc<Ends>,
    ) -> Result<Arc<Upstream>, Failure>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let upstream = self.alone();
        match kind {
            Kind::Http1 => upstream.keep(ready(self.handshake_http1(stream, Some(ends)).await?).await?),
            Kind::Http2 => {
                let sender = self.handshake_http2(stream, Some(ends)).await?;
                locked(&upstream.http2).push(Shared::new(sender));
            }
        }
        Ok(upstream)
    }

    /// An upstream without a connection, shared with nobody. Its connections are closed by whoever is at either end.
    pub(crate) fn alone(&self) -> Arc<Upstream> {
        Upstream::new(Duration::MAX)
    }

    pub(super) fn upstream(&self, to: &Authority) -> Arc<Upstream> {
        let Some(upstreams) = self.upstreams.get(worker::number()) else {
            return Upstream::new(self.idle_max);
        };
        let mut upstreams = locked(upstreams);
        if let Some(upstream) = upstreams.get(to) {
            return Arc::clone(upstream);
        }
        if upstreams.len() >= UPSTREAMS_MAX {
            upstreams.retain(|_, upstream| Arc::strong_count(upstream) > 1);
        }
        let upstream = Upstream::new(self.idle_max);
        if upstreams.len() < UPSTREAMS_MAX {
            upstreams.insert(to.clone(), Arc::clone(&upstream));
        }
        upstream
    }

    /// Lets go of connections that nobody asked for in time; called now and then.
    pub(crate) fn tidy(&self) {
        for upstreams in &self.upstreams {
            for upstream in locked(upstreams).values() {
                locked(&upstream.idle)
                    .retain(|idle| idle.since.elapsed() <= self.idle_max && !idle.sender.send.is_closed());
                locked(&upstream.http2).retain(Shared::is_wanted);
            }
        }
    }

    async fn connect_http1(&self, sidecar: &Sidecar, to: &Authority) -> Result<Sender, Failure> {
        let stream = dial(sidecar, to).await?;
        match self.tls(to, Kind::Http1) {
            None => self.handshake_http1(stream, None).await,
            Some(tls) => {
                let stream = tls.connect(stream).await.map_err(|_| Failure::Tls)?;
                self.handshake_http1(stream, None).await
            }
        }
    }

    async fn connect_http2(
        &self,
        sidecar: &Sidecar,
        to: &Authority,
    ) -> Result<http2::SendRequest<Upload>, Failure> {
        let stream = dial(sidecar, to).await?;
        match self.tls(to, Kind::Http2) {
            None => self.handshake_http2(stream, None).await,
            Some(tls) => {
                let stream = tls.connect(stream).await.map_err(|_| Failure::Tls)?;
                self.handshake_http2(stream, None).await
            }
        }
    }

    async fn handshake_http1<T>(&self, stream: T, ends: Option<Arc<Ends>>) -> Result<Sender, Failure>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let asked = Arc::<Asked>::default();
        let listening = Arc::clone(&asked);
        let stream = Prefixed::new(Vec::new(), stream).noting(move |bytes| listening.saw(bytes));
        let (send, connection) = http1::Builder::new()
            .max_buf_size(self.head_bytes_max.max(64 * 1024))
            .max_headers(ANSWER_FIELDS_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failure(&error))?;
        match ends {
            None => drop(tokio::spawn(connection.with_upgrades())),
            Some(ends) => drop(tokio::spawn(async move {
                let _ = connection.with_upgrades().await;
                ends.upstream_closed();
            })),
        }
        Ok(Sender { send, asked })
    }

    async fn handshake_http2<T>(
        &self,
        stream: T,
        ends: Option<Arc<Ends>>,
    ) -> Result<http2::SendRequest<Upload>, Failure>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(u32::try_from(self.head_bytes_max).unwrap_or(u32::MAX))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failure(&error))?;
        match ends {
            None => drop(tokio::spawn(connection)),
            Some(ends) => drop(tokio::spawn(async move {
                let _ = connection.await;
                ends.upstream_closed();
            })),
        }
        Ok(sender)
    }
}

impl Pubsub {
    fn new(to: &Endpoint, settings: &Settings) -> Result<Self, String> {
        let by_tls = to.tls.unwrap_or(true);
        let port = to.port.unwrap_or(if by_tls { 443 } else { 80 });
        let tls = |http2| {
            let authorities = tls::Authorities {
                setting: "THROUGHLINE_PUBSUB_CERTIFICATE",
                file: &settings.pubsub_certificate,
            };
            Tls::new(&to.host, authorities, None, http2)
        };
        let tls = if by_tls { Some([tls(false)?, tls(true)?]) } else { None };
        Ok(Self { to: Authority { host: to.host.clone(), port }, tls })
    }
}

/// A connection that takes a request: one that was just made does not before its driver has run.
async fn ready(mut sender: Sender) -> Result<Sender, Failure> {
    sender.send.ready().await.map_err(|error| failure(&error))?;
    Ok(sender)
}

/// What an error of hyper means.
pub(super) fn failure(error: &hyper::Error) -> Failure {
    if error.is_parse() || error.is_parse_status() || error.is_parse_too_large() {
        return Failure::Protocol;
    }
    if error.is_timeout() {
        return Failure::Timeout;
    }
    let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    io.map_or(Failure::ConnectionReset, super::dial::of_io)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
