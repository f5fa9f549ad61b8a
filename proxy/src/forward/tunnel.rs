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
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Kind, dial, named};
use crate::listener::{Prefixed, Speaks, detect_inside};
use crate::sidecar::{Connection, Sidecar};
use crate::stall::Progress;
use crate::stats::{Connect, Protocol};

/// Bytes read at once from a caller's end of a tunnel.
const TUNNEL_BUFFER_BYTES: usize = 16 * 1024;
/// How long a caller that has begun a line inside a CONNECT may take to end it.
const SILENCE: Duration = Duration::from_millis(200);
/// How long a tunnel stays half open, without a byte, after its upstream is done.
const LAST_WORDS: Duration = Duration::from_secs(5);

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
        settle(carry(TokioIo::new(caller), TokioIo::new(upstream)).await, sidecar)
    }
}

/// Carries bytes both ways. A caller that has said all it has to say may wait for the answer as long as it
/// likes; once the upstream is done, a caller that says nothing more has [`LAST_WORDS`] to go.
async fn carry<A, B>(caller: A, upstream: B) -> io::Result<(u64, u64)>
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
        }
    });
    let mut back = pin!(async {
        let copied = copy(&mut from_upstream, &mut to_caller).await?;
        to_caller.shutdown().await?;
        Ok::<u64, io::Error>(copied)
    });
    let copied = tokio::select! {
        onward = onward.as_mut() => {
            onward?;
            return Ok((there.load(Ordering::Relaxed), back.await?));
        }
        copied = back.as_mut() => copied?,
    };
    loop {
        let before = there.load(Ordering::Relaxed);
        match timeout(LAST_WORDS, onward.as_mut()).await {
            Ok(done) => done?,
            Err(_) if there.load(Ordering::Relaxed) > before => continue,
            Err(_) => {}
        }
        return Ok((there.load(Ordering::Relaxed), copied));
    }
}

/// Most protocols end by one side closing while the other still writes: not a failure.
fn settle(carried: io::Result<(u64, u64)>, sidecar: &Sidecar) -> Result<(), Failure> {
    match carried {
        Ok((there, back)) => sidecar.stats.tunnelled(there + back),
        Err(error) => match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => {}
            _ => return Err(Failure::ConnectionReset),
        },
    }
    Ok(())
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

/// The first bytes of either side decide what is spoken; until they come, nobody is kept waiting.
async fn inside(
    connection: Arc<Connection>,
    mut caller: TokioIo<hyper::upgrade::Upgraded>,
    mut upstream: TcpStream,
    to: Authority,
) {
    let sidecar = &connection.sidecar;
    let mut first = Vec::new();
    let speaks = tokio::select! {
        detected = timeout(SILENCE, detect_inside(&mut caller, &mut first)) => match detected {
            Ok(Ok(speaks)) => speaks,
            Ok(Err(_)) => return,
            Err(_) => Speaks::Undecided,
        },
        readable = upstream.readable() => match readable {
            Ok(()) => Speaks::Opaque, // a server that speaks first speaks no HTTP
            Err(_) => return,
        },
    };
    // Whoever has begun to speak and said nothing that is HTTP is not kept waiting for the rest; whoever is
    // silent may still become anything.
    let speaks = match speaks {
        Speaks::Undecided if first.is_empty() => tokio::select! {
            detected = detect_inside(&mut caller, &mut first) => match detected {
                Ok(speaks) => speaks,
                Err(_) => return,
            },
            _ = upstream.readable() => Speaks::Opaque,
        },
        Speaks::Undecided => Speaks::Opaque,
        known => known,
    };
    let kind = match speaks {
        Speaks::Http1 => Kind::Http1,
        Speaks::Http2 => Kind::Http2,
        Speaks::Opaque | Speaks::Undecided => {
            sidecar.stats.connection(connection.side, Protocol::Opaque);
            if upstream.write_all(&first).await.is_ok() {
                let carried = carry(caller, upstream).await;
                let _ = settle(carried.map(|(there, back)| (there + first.len() as u64, back)), sidecar);
            }
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
        progress: Progress::new(),
    };
    crate::listener::serve(Arc::new(within), Prefixed::new(first, caller), speaks).await;
}
