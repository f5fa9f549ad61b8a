//! Bytes that pass untouched: upgraded connections, and CONNECT with whatever is inside. What turns out to be
//! cleartext HTTP inside a CONNECT is served like any other.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use throughline_core::classify::Failure;
use throughline_core::settings::Authority;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Kind, dial, named};
use crate::listener::{Prefixed, Speaks, detect_inside};
use crate::sidecar::{Connection, Sidecar};
use crate::stall::Progress;
use crate::stats::{Connect, Protocol, Stats};

/// Bytes read at once from a caller's end of a tunnel.
const TUNNEL_BUFFER_BYTES: usize = 16 * 1024;
/// How long a caller that has begun a line inside a CONNECT may take to end it.
const SILENCE: Duration = Duration::from_millis(200);
/// How long a tunnel stays half open, without a byte, after its upstream is done.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The head of an HTTP/2 frame of settings but for its length: three bytes of that, type 4, no flags, stream 0.
const SETTINGS_HEAD: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Two ends that switched the protocol.
#[derive(Debug)]
pub(crate) struct Tunnel {
    caller: OnUpgrade,
    upstream: OnUpgrade,
}

impl Tunnel {
    pub(super) fn upgraded(caller: OnUpgrade, upstream: OnUpgrade) -> Self {
        Self { caller, upstream }
    }

    /// Carries bytes both ways until both ends are done, or one has been for a while.
    pub(crate) async fn run(self, sidecar: &Sidecar) -> Result<(), Failure> {
        let (caller, upstream) =
            tokio::try_join!(self.caller, self.upstream).map_err(|_| Failure::ConnectionReset)?;
        let (mut caller, mut upstream) = (TokioIo::new(caller), TokioIo::new(upstream));
        carry(&mut caller, &mut upstream, LAST_WORDS, &sidecar.stats).await.or_else(forgiven)
    }
}

/// Carries bytes both ways, and counts them. A caller that has said all it has to say may wait for the answer as long as
/// it likes; once the upstream is done, a caller that says nothing more has `half_open` to go.
pub(crate) async fn carry<A, B>(caller: A, upstream: B, half_open: Duration, stats: &Stats) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (mut from_caller, mut to_caller) = split(caller);
    let (mut from_upstream, mut to_upstream) = split(upstream);
    let there = AtomicU64::new(0);
    let mut onward = pin!(async {
        let mut buffer = vec![0; TUNNEL_BUFFER_BYTES];
        loop {
            let read = from_caller.read(&mut buffer).await?;
            if read == 0 {
                return to_upstream.shutdown().await;
            }
            to_upstream.write_all(buffer.get(..read).unwrap_or_default()).await?;
            there.fetch_add(read as u64, Ordering::Relaxed);
            stats.tunnelled(read as u64);
        }
    });
    let mut back = pin!(async {
        let mut buffer = vec![0; TUNNEL_BUFFER_BYTES];
        loop {
            let read = from_upstream.read(&mut buffer).await?;
            if read == 0 {
                return to_caller.shutdown().await;
            }
            to_caller.write_all(buffer.get(..read).unwrap_or_default()).await?;
            stats.tunnelled(read as u64);
        }
    });
    tokio::select! {
        onward = onward.as_mut() => {
            onward?;
            return back.await;
        }
        done = back.as_mut() => done?,
    }
    loop {
        let before = there.load(Ordering::Relaxed);
        match timeout(half_open, onward.as_mut()).await {
            Ok(done) => return done,
            Err(_) if there.load(Ordering::Relaxed) > before => {}
            Err(_) => return Ok(()),
        }
    }
}

/// Most protocols end by one side closing while the other still writes: not a failure.
fn forgiven(error: io::Error) -> Result<(), Failure> {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => Ok(()),
        _ => Err(Failure::ConnectionReset),
    }
}

/// Answers a CONNECT: dials at once, and leaves what follows to a task.
pub(crate) async fn connect(
    connection: Arc<Connection>,
    mut request: Request<Incoming>,
) -> Result<Response<()>, Failure> {
    let stats = &connection.sidecar.stats;
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes().to_vec());
    let to = named(&connection.sidecar, &authority.unwrap_or_default(), 443);
    let dialled = match to {
        Ok(to) => dial(&connection.sidecar, &to).await.map(|stream| (to, stream)),
        Err(failure) => Err(failure),
    };
    let (to, upstream) = match dialled {
        Ok(dialled) => dialled,
        Err(failure) => {
            stats.connect(if failure == Failure::Refused { Connect::Refused } else { Connect::Failed });
            return Err(failure);
        }
    };
    if connection.sidecar.tunnels.available_permits() == 0 {
        stats.connect(Connect::Failed);
        return Err(Failure::Overload);
    }
    stats.connect(Connect::Ok);
    let caller = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let sidecar = Arc::clone(&connection.sidecar);
        let Ok(_place) = sidecar.tunnels.try_acquire() else { return };
        if let Ok(caller) = caller.await {
            let _ = sidecar.until_cut(inside(connection, TokioIo::new(caller), upstream, to)).await;
        }
    });
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    Ok(response)
}

/// What the first bytes of either side say; until they come, nobody is kept waiting. `None` when there is nobody left.
/// What the caller said stays in `first`.
pub(crate) async fn spoken<A>(caller: &mut A, upstream: &TcpStream, first: &mut Vec<u8>) -> Option<Speaks>
where
    A: AsyncRead + Unpin,
{
    // Whoever is silent may still become anything.
    tokio::select! {
        read = caller.read_buf(first) => if read.ok()? == 0 {
            return Some(Speaks::Opaque);
        },
        spoke = server_spoke(upstream) => return spoke,
    }
    // Whoever has begun to speak and said nothing that is HTTP is not kept waiting for the rest.
    tokio::select! {
        detected = timeout(SILENCE, detect_inside(caller, first)) => match detected {
            Ok(speaks) => speaks.ok(),
            Err(_) => Some(Speaks::Opaque),
        },
        spoke = server_spoke(upstream) => spoke,
    }
}

/// Waits until the server speaks first, which makes it no HTTP; or closes. A server of HTTP/2 may send its settings
/// before it hears anything (RFC 9113 §3.4), and still waits for the caller.
async fn server_spoke(upstream: &TcpStream) -> Option<Speaks> {
    let mut head = [0; SETTINGS_HEAD.len()];
    let count = upstream.peek(&mut head).await.ok()?;
    // Behind the length come the type, no flags, and no stream.
    let settings =
        count == head.len() && head.iter().zip(SETTINGS_HEAD).skip(3).all(|(is, wanted)| *is == wanted);
    if settings {
        return std::future::pending().await; // the caller's own end decides; a dead server shows when he speaks
    }
    Some(Speaks::Opaque)
}

async fn inside(
    connection: Arc<Connection>,
    mut caller: TokioIo<hyper::upgrade::Upgraded>,
    mut upstream: TcpStream,
    to: Authority,
) {
    let sidecar = &connection.sidecar;
    let mut first = Vec::new();
    let Some(speaks) = spoken(&mut caller, &upstream, &mut first).await else { return };
    let kind = match speaks {
        Speaks::Http1 => Kind::Http1,
        Speaks::Http2 => Kind::Http2,
        Speaks::Opaque => {
            sidecar.stats.connection(connection.side, Protocol::Opaque);
            let mut caller = Prefixed::new(first, caller);
            let _ = carry(&mut caller, &mut upstream, LAST_WORDS, &sidecar.stats).await;
            return;
        }
    };
    if sidecar.upstreams.adopt(&to, kind, upstream).await.is_err() {
        let _ = caller.shutdown().await;
        return;
    }
    let within = Connection {
        sidecar: Arc::clone(sidecar),
        side: connection.side,
        caller: connection.caller,
        tunnel_to: Some(to),
        captured: None,
        progress: Progress::new(),
    };
    crate::listener::serve(Arc::new(within), first, Box::new(caller), speaks, None).await;
}
