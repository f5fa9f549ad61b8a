//! Accepts connections, finds out what they speak, serves them, and closes those that stand still. Bounded in
//! connections: beyond the bound, callers wait in the kernel's queue, and one for each thread before it.

mod detect;
mod head;
#[cfg(test)]
mod sizes;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use throughline_core::exchange::Work;
use throughline_core::settings::Settings;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tower::Service;

use detect::detect;
pub(crate) use detect::{Prefixed, Speaks, detect_inside};
use head::HeadScan;
pub(crate) use head::Seen;

use crate::forward;
use crate::host::now;
use crate::sidecar::{Connection, Sidecar};
use crate::stack::{Body, stack};
use crate::stall::{Patience, Progress, UnderWay, Watched};
use crate::stats::{Protocol, Reaped, Refusal, Side};
use crate::trace::in_place_of_upstream;

/// Bytes of one request's body that a caller may send ahead of the application, and that an answer may wait
/// ahead of its caller.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
/// Uploads of one connection that may stand unread without holding up the others on it: as many as a sidecar's
/// own pool puts on one. It bounds what a connection can make us hold to 6.4 MiB.
const UNREAD_UPLOADS_MAX: u32 = 100;
/// How long connections that carry no request are kept after a drain began: their callers do not know yet.
const DRAIN_GRACE: Duration = Duration::from_millis(500);
/// Callers that the kernel keeps waiting.
const BACKLOG: u32 = 1024;

/// Binds without accepting yet: up to so many sockets for one address, among which the kernel deals out
/// connections; one where it does not deal.
pub(crate) fn bind(address: SocketAddr, sockets: usize) -> io::Result<Vec<std::net::TcpListener>> {
    if sockets <= 1 {
        return Ok(vec![socket(address, false)?.listen(BACKLOG)?.into_std()?]);
    }
    if address.port() != 0 {
        // Sockets that share a port share it with other processes of the same user as well. Bound alone first, so
        // that a port in use is a mistake as ever.
        drop(socket(address, false)?);
    }
    let first = socket(address, true)?.listen(BACKLOG)?.into_std()?;
    let address = first.local_addr()?;
    let mut all = vec![first];
    while all.len() < sockets {
        match socket(address, true).and_then(|socket| socket.listen(BACKLOG)?.into_std()) {
            Ok(socket) => all.push(socket),
            Err(error) => {
                crate::log::warn(
                    "one thread accepts for all: an address can't be shared",
                    &[("error", &error)],
                );
                break;
            }
        }
    }
    Ok(all)
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?; // a restart need not wait for old connections to be forgotten
    socket.set_reuseport(shared)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Places for the connections of one side, whichever thread serves them.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    most: u32,
}

impl Places {
    pub(crate) fn new(settings: &Settings) -> Self {
        let most = u32::try_from(settings.connections_max).unwrap_or(u32::MAX);
        Self { free: Arc::new(Semaphore::new(most as usize)), most }
    }
}

/// Accepts until drained, and returns when the last connection of its side is closed.
pub(crate) async fn accept(
    sidecar: Arc<Sidecar>,
    side: Side,
    listener: TcpListener,
    places: Places,
    mut drain: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = drain.wait_for(|drain| *drain) => break,
        };
        // Taken only when somebody is there: the place that one thread kept ready would be missed by another.
        let place = tokio::select! {
            place = Arc::clone(&places.free).acquire_owned() => place,
            _ = drain.wait_for(|drain| *drain) => break,
        };
        match (accepted, place) {
            (Ok(accepted), Ok(place)) => spawn(&sidecar, side, accepted, place, &drain),
            // Out of descriptors, or a caller that is gone already: the next one may do better.
            (Err(error), _) => {
                crate::log::debug("failed to accept a connection", &[("error", &error)]);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            (Ok(_), Err(_)) => break,
        }
    }
    // Whoever has connected already is on his way, and may be in the queue of a thread that was idle.
    for _ in 0..BACKLOG {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = tokio::task::yield_now() => break, // the reactor was asked once more: nobody is there
        };
        if let (Ok(accepted), Ok(place)) = (accepted, Arc::clone(&places.free).try_acquire_owned()) {
            spawn(&sidecar, side, accepted, place, &drain);
        }
    }
    drop(listener);
    let _all_closed = places.free.acquire_many(places.most).await;
}

fn spawn(
    sidecar: &Arc<Sidecar>,
    side: Side,
    (stream, caller): (TcpStream, SocketAddr),
    place: OwnedSemaphorePermit,
    drain: &watch::Receiver<bool>,
) {
    let connection = Arc::new(Connection {
        sidecar: Arc::clone(sidecar),
        side,
        caller: caller.ip(),
        tunnel_to: None,
        progress: Progress::new(),
    });
    let drain = drain.clone();
    tokio::spawn(async move {
        connection.sidecar.stats.opened(side);
        first_bytes(&connection, stream, drain).await;
        connection.sidecar.stats.closed(side);
        drop(place);
    });
}

async fn first_bytes(connection: &Arc<Connection>, mut stream: TcpStream, mut drain: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true); // without it the connection is slower, not wrong
    let patience = patience(&connection.sidecar.settings);
    let drained = async {
        let _ = drain.wait_for(|drain| *drain).await;
        tokio::time::sleep(DRAIN_GRACE).await; // whoever has just connected is about to ask
    };
    let accepted = now();
    let detected = tokio::select! {
        biased;
        detected = wait_for_head(connection, &mut stream, patience) => detected,
        () = drained => None,
    };
    let Some((first, speaks)) = detected else { return };
    if speaks == Speaks::Opaque {
        // Nobody said where it should go: only HTTP says that itself.
        connection.sidecar.stats.connection(connection.side, Protocol::Opaque);
        connection.sidecar.work(Work::Detection, accepted, Some("opaque"), connection.side.as_str());
        refuse_opaque(&mut stream).await;
        return;
    }
    serve_until_drained(Arc::clone(connection), Prefixed::new(first, stream), speaks, Some(drain)).await;
}

async fn wait_for_head(
    connection: &Arc<Connection>,
    stream: &mut TcpStream,
    patience: Patience,
) -> Option<(Vec<u8>, Speaks)> {
    let reaped = |reaped| {
        connection.sidecar.stats.reaped(reaped);
        None
    };
    let accepted = now();
    match timeout(patience.idle, stream.readable()).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return None,
        Err(_) => return reaped(Reaped::Idle),
    }
    match timeout(patience.head, detect(stream)).await {
        Ok(detected) => detected.ok().filter(|(first, _)| !first.is_empty()),
        Err(_) => {
            connection.sidecar.work(Work::Detection, accepted, Some("timeout"), connection.side.as_str());
            reaped(Reaped::SlowHead)
        }
    }
}

async fn refuse_opaque(stream: &mut TcpStream) {
    const ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let _ = tokio::io::AsyncWriteExt::write_all(stream, ANSWER).await;
    let _ = tokio::io::AsyncWriteExt::shutdown(stream).await;
}

fn patience(settings: &Settings) -> Patience {
    Patience {
        head: Duration::from_millis(settings.header_timeout_ms),
        unread: Duration::from_millis(settings.stall_timeout_ms),
        idle: Duration::from_millis(settings.idle_timeout_ms),
    }
}

/// Serves HTTP on a stream that is not the listener's own: what is inside a CONNECT. It ends with its caller.
pub(crate) fn serve<T>(connection: Arc<Connection>, stream: Prefixed<T>, speaks: Speaks) -> crate::Boxed<()>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    // Boxed: what is inside a CONNECT may hold another.
    Box::pin(serve_until_drained(connection, stream, speaks, None))
}

async fn serve_until_drained<T>(
    connection: Arc<Connection>,
    stream: Prefixed<T>,
    speaks: Speaks,
    drain: Option<watch::Receiver<bool>>,
) where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let settings = &connection.sidecar.settings;
    let head_bytes = usize::try_from(settings.header_bytes_max).unwrap_or(usize::MAX);
    let stack = stack(&connection);
    let of_connection = Arc::clone(&connection);
    let service = service_fn(move |request| {
        // Noted at once, not when the future is first polled: bytes may come in between.
        let under_way = UnderWay::begin(&of_connection);
        answer(Arc::clone(&of_connection), stack.clone(), request, under_way)
    });
    if speaks == Speaks::Http2 {
        connection.sidecar.stats.connection(connection.side, Protocol::Http2);
        let streams_max = u32::try_from(settings.streams_max).unwrap_or(10_000);
        let served = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_concurrent_streams(streams_max)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            // For many streams together, so that an upload which nobody reads holds up no other.
            .initial_connection_window_size(STREAM_WINDOW_BYTES * (streams_max.min(UNREAD_UPLOADS_MAX) + 1))
            .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
            .max_send_buf_size(STREAM_WINDOW_BYTES as usize)
            .serve_connection(TokioIo::new(stream), service);
        watch_over(&connection, served, drain, |served| served.graceful_shutdown()).await;
    } else {
        connection.sidecar.stats.connection(connection.side, Protocol::Http1);
        let noted = Arc::clone(&connection);
        let mut scan = HeadScan::new();
        let stream = stream.noting(move |bytes| noted.progress.received(scan.feed(bytes)));
        let mut builder = http1::Builder::new();
        builder.auto_date_header(false).header_read_timeout(None).max_buf_size(head_bytes.max(8192));
        if settings.header_fields_max > 100 {
            builder.max_headers(usize::try_from(settings.header_fields_max).unwrap_or(1000));
        }
        let served = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        watch_over(&connection, served, drain, |served| served.graceful_shutdown()).await;
    }
}

/// Drives a connection; asks it to finish when the sidecar drains, drops it when it stands still.
async fn watch_over<S, E>(
    connection: &Connection,
    served: S,
    drain: Option<watch::Receiver<bool>>,
    finish: impl Fn(std::pin::Pin<&mut S>),
) where
    S: Future<Output = Result<(), E>>,
{
    let patience = patience(&connection.sidecar.settings);
    let mut tick = interval_at(Instant::now() + patience.tick(), patience.tick());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut served = std::pin::pin!(served);
    let drained = async move {
        match drain {
            Some(mut drain) => drop(drain.wait_for(|drain| *drain).await),
            None => std::future::pending().await,
        }
        // Until here answers say that the connection closes. A request that is on its way meanwhile is served.
        tokio::time::sleep(DRAIN_GRACE).await;
        while connection.progress.is_inside_head() {
            tokio::time::sleep(DRAIN_GRACE / 10).await; // no longer than the patience for heads
        }
    };
    let mut drained = std::pin::pin!(drained);
    let mut finishing = false;
    let mut cut = connection.sidecar.cut.subscribe();
    loop {
        tokio::select! {
            biased; // what serves is polled first, and lets the others have their turn whenever it waits
            _ = served.as_mut() => return,
            _ = cut.wait_for(|cut| *cut) => return,
            () = drained.as_mut(), if !finishing => {
                finish(served.as_mut());
                finishing = true;
            }
            _ = tick.tick() => {
                if let Some(reaped) = connection.progress.judge(patience) {
                    connection.sidecar.stats.reaped(reaped);
                    return;
                }
            }
        }
    }
}

/// One request: CONNECT is a tunnel, everything else goes through the stack.
async fn answer<S>(
    connection: Arc<Connection>,
    mut stack: S,
    request: Request<Incoming>,
    under_way: UnderWay,
) -> Result<Response<Watched<Body>>, std::convert::Infallible>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible>,
{
    let closes = request.version() != Version::HTTP_2 && connection.sidecar.readiness.is_draining();
    let mut response = match (request.method() == Method::CONNECT, connection.side) {
        (false, _) => stack.call(request).await?,
        (true, Side::Outbound) => match crate::conform::refuse(&connection, &request) {
            Some(refused) => refused,
            None => match forward::connect(Arc::clone(&connection), request).await {
                Ok(response) => response.map(|()| Body::empty()),
                Err(failure) => in_place_of_upstream(failure),
            },
        },
        (true, Side::Inbound) => {
            connection.sidecar.stats.refused(Refusal::Method);
            crate::conform::answer(Refusal::Method)
        }
    };
    if closes && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Watched::new(body, under_way)))
}
