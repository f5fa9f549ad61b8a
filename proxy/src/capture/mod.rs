//! Transparent capture: connections that the kernel redirected to us go on to where they were going, and nowhere else.
//! The upstream is dialled at once, and the first bytes of either side decide: cleartext HTTP is served, everything
//! else passes byte for byte. Must never keep anybody waiting for bytes that do not come, and never believe `Host`.

mod ends;
mod hello;
mod lease;
mod names;
mod original;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use throughline_core::classify::Failure;
use throughline_core::settings::Authority;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

pub(crate) use ends::{End, Ends};
pub(crate) use lease::{LEASE_SECONDS, Lease, RELEASE_PORT, RENEW_PORT};
pub(crate) use names::Names;

use crate::forward::{Kind, Upstream, carry, dial_address, spoken};
use crate::listener::{self, Prefixed, Speaks, detect_inside};
use crate::sidecar::{Connection, Sidecar};
use crate::stall::Progress;
use crate::stats::{Captured as How, Protocol, Refusal, Side};
use hello::Hello;

/// How long the first bytes of a caller are waited for whose upstream can't be reached, so that the request that fails
/// is told of. Most callers have sent it by then; then they see what they would have seen.
const LAST_REQUEST: Duration = Duration::from_millis(50);
/// How long a tunnel stays half open without a byte. The kernel too forgets a connection that was closed and whose other
/// end says nothing after a minute (`tcp_fin_timeout`).
const HALF_OPEN: Duration = Duration::from_secs(60);
/// Bytes of a caller's first ones that are read at once.
const FIRST_BYTES: usize = 2048;

/// What a captured connection has besides: an upstream of its own, since callers spread their connections and close them
/// for reasons of theirs.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) ends: Arc<Ends>,
    /// Why there is no upstream.
    pub(crate) failure: Option<Failure>,
    kind: Kind,
}

impl Captured {
    /// Whether a failure of the upstream shows as one of the connection. Streams of HTTP/2 share theirs, and a client of
    /// gRPC understands the answer.
    pub(crate) fn shows(&self, failure: Failure) -> bool {
        let of_connection = match failure {
            Failure::ConnectionRefused | Failure::ConnectionReset | Failure::Unreachable => true,
            Failure::Timeout
            | Failure::Dns
            | Failure::Tls
            | Failure::Protocol
            | Failure::Refused
            | Failure::Overload => false,
        };
        self.kind == Kind::Http1 && (of_connection || self.failure.is_some())
    }

    /// Whether the connection ends in the place of the next answer.
    pub(crate) fn is_broken(&self) -> bool {
        self.kind == Kind::Http1 && self.ends.is_broken()
    }

    /// An answer broke off. One without a length would look whole if its connection were closed rather than reset.
    pub(crate) fn broke(&self) {
        if self.kind == Kind::Http1 {
            self.ends.resets();
        }
    }
}

/// Whether a connection is for the listener itself: one that names it as the Pub/Sub endpoint.
pub(crate) fn is_for_pubsub(sidecar: &Sidecar, side: Side, stream: &TcpStream) -> bool {
    let asked_for = side == Side::Outbound && sidecar.settings.pubsub_upstream.is_some();
    asked_for && original::destination(stream).is_none()
}

/// One redirected connection, to its end.
pub(crate) async fn serve(
    sidecar: Arc<Sidecar>,
    side: Side,
    stream: TcpStream,
    caller: IpAddr,
    drain: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true); // without it the connection is slower, not wrong
    let to = original::destination(&stream).filter(|to| !is_ours(&sidecar, side, *to));
    let Some(to) = to else {
        // Not redirected: it would lead back here until descriptors run out.
        sidecar.stats.refused(Refusal::OwnPort);
        sidecar.stats.captured(side, How::Refused);
        return ends::reset(&stream);
    };
    let ends = Arc::<Ends>::default();
    let caller_end = End::new(stream, &ends);
    let connection = Draft { sidecar, side, caller, to };
    match dial_address(&connection.sidecar, to).await {
        Ok(upstream) => connection.go_on(caller_end, upstream, ends, drain).await,
        Err(failure) => connection.fail(caller_end, ends, failure, drain).await,
    }
}

/// Inbound, every destination is on this host.
fn is_ours(sidecar: &Sidecar, side: Side, to: SocketAddr) -> bool {
    let own = &sidecar.own_ports;
    own.hold(to) || (side == Side::Inbound && own.0.iter().any(|own| own.port() == to.port()))
}

/// A connection whose protocol is not known yet.
struct Draft {
    sidecar: Arc<Sidecar>,
    side: Side,
    caller: IpAddr,
    to: SocketAddr,
}

impl Draft {
    async fn go_on(
        self,
        mut caller: End,
        upstream: TcpStream,
        ends: Arc<Ends>,
        drain: watch::Receiver<bool>,
    ) {
        self.sidecar.stats.captured(self.side, How::Ok);
        let mut first = Vec::new();
        let speaking = async {
            // No memory for first bytes before there are some.
            tokio::select! {
                readable = caller.readable() => readable.ok()?,
                readable = upstream.readable() => readable.ok()?,
            }
            first.reserve(FIRST_BYTES);
            spoken(&mut caller, &upstream, &mut first).await
        };
        let Some(Some(speaks)) = self.sidecar.until_cut(speaking).await else { return };
        let kind = match speaks {
            // The caller takes the destination for a proxy, which is to open the tunnel.
            Speaks::Http1 if first.starts_with(b"CONNECT ") => {
                return self.tunnel(caller, upstream, first, ends).await;
            }
            Speaks::Http1 => Kind::Http1,
            Speaks::Http2 => Kind::Http2,
            Speaks::Opaque => return self.tunnel(caller, upstream, first, ends).await,
        };
        let adopted = self.sidecar.upstreams.adopt_alone(kind, upstream, Arc::clone(&ends)).await;
        let Ok(upstream) = adopted else { return ends.resets() };
        let captured = Captured { upstream, ends, failure: None, kind };
        self.http(caller, first, speaks, captured, drain).await;
    }

    /// There is no upstream. A request that is there is told of; the caller sees the connection break.
    async fn fail(self, mut caller: End, ends: Arc<Ends>, failure: Failure, drain: watch::Receiver<bool>) {
        let refused = failure == Failure::Refused;
        self.sidecar.stats.captured(self.side, if refused { How::Refused } else { How::Failed });
        ends.resets();
        let last_request = async {
            let mut first = Vec::new();
            let (speaks, kind) = match detect_inside(&mut caller, &mut first).await {
                Ok(Speaks::Http1) if !first.starts_with(b"CONNECT ") => (Speaks::Http1, Kind::Http1),
                Ok(Speaks::Http2) => (Speaks::Http2, Kind::Http2),
                Ok(Speaks::Http1 | Speaks::Opaque) | Err(_) => return,
            };
            let upstream = self.sidecar.upstreams.alone();
            let captured = Captured { upstream, ends, failure: Some(failure), kind };
            self.http(caller, first, speaks, captured, drain).await;
        };
        let _ = timeout(LAST_REQUEST, last_request).await;
    }

    async fn http(
        self,
        caller: End,
        first: Vec<u8>,
        speaks: Speaks,
        captured: Captured,
        drain: watch::Receiver<bool>,
    ) {
        let Self { sidecar, side, caller: address, to } = self;
        let connection = Connection {
            sidecar,
            side,
            caller: address,
            tunnel_to: Some(Authority { host: to.ip().to_string(), port: to.port() }),
            captured: Some(captured),
            progress: Progress::new(),
        };
        listener::serve(Arc::new(connection), first, Box::new(caller), speaks, Some(drain)).await;
    }

    /// Bytes that are no cleartext HTTP.
    async fn tunnel(self, caller: End, upstream: TcpStream, first: Vec<u8>, ends: Arc<Ends>) {
        let Self { sidecar, side, .. } = self;
        sidecar.stats.connection(side, Protocol::Opaque);
        let (mut hello, noted) = (Hello::new(), Arc::clone(&sidecar));
        let mut caller = Prefixed::new(first, caller).noting(move |bytes| {
            if let Some(greeting) = hello.feed(bytes) {
                noted.stats.tls_names.count(side, &greeting);
            }
        });
        let mut upstream = End::new(upstream, &ends);
        let carried = sidecar.until_cut(carry(&mut caller, &mut upstream, HALF_OPEN, &sidecar.stats)).await;
        if !matches!(carried, Some(Ok(()))) {
            ends.resets(); // who is left sees that it broke
        }
    }
}
