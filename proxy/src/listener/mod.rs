//! Accepts connections, finds out what they speak, serves them, and closes those that stand still. Bounded in
//! connections: beyond the bound, callers wait in the kernel's queue, and one for each thread before it.

mod detect;
mod head;
#[cfg(test)]
mod sizes;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::SockRef;
use throughline_core::exchange::Work;
use throughline_core::settings::{Capture, Settings};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tower::Service;

use detect::detect;
pub(crate) use detect::{Prefixed, Speaks, detect_inside};
use head::HeadScan;
pub(crate) use head::Seen;

use crate::capture::{self, Captured};
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
/// How often a captured connection whose upstream is gone is looked at, until its last answer is over.
const LAST_ANSWER: Duration = Duration::from_millis(20);
/// Callers that the kernel keeps waiting.
const BACKLOG: u32 = 1024;

/// Binds without accepting yet: up to so many sockets for one address, among which the kernel deals out
/// connections; one where it does not deal.
pub(crate) fn bind(address: SocketAddr, sockets: usize) -> io::Result<Vec<std::net::TcpListener>> {
    bind_as(address, sockets, false)
}

/// The same for 0.0.0.0 and [::] together, or for 127.0.0.1 and [::1], on one port: what the kernel redirects arrives on
/// either. By address; without the second where there is no IPv6.
pub(crate) fn bind_both(address: SocketAddr, sockets: usize) -> io::Result<Vec<Vec<std::net::TcpListener>>> {
    let ip = address.ip();
    let both: [IpAddr; 2] = if ip.is_unspecified() {
        [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
    } else if ip.is_loopback() && ip.is_ipv4() {
        [ip, Ipv6Addr::LOCALHOST.into()]
    } else {
        return Ok(vec![bind(address, sockets)?]);
    };
    let first = bind((both[0], address.port()).into(), sockets)?;
    let port = first.first().map_or(Ok(address), std::net::TcpListener::local_addr)?.port();
    match bind_as((both[1], port).into(), sockets, true) {
        Ok(second) => Ok(vec![first, second]),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        Err(error) => {
            crate::log::info("no IPv6 here", &[("address", &both[1]), ("error", &error)]);
            Ok(vec![first])
        }
    }
}

fn bind_as(address: SocketAddr, sockets: usize, only_v6: bool) -> io::Result<Vec<std::net::TcpListener>> {
    if sockets <= 1 {
        return Ok(vec![socket(address, false, only_v6)?.listen(BACKLOG)?.into_std()?]);
    }
    if address.port() != 0 {
        // Sockets that share a port share it with other processes of the same user as well. Bound alone first, so
        // that a port in use is a mistake as ever.
        drop(socket(address, false, only_v6)?);
    }
    let first = socket(address, true, only_v6)?.listen(BACKLOG)?.into_std()?;
    let address = first.local_addr()?;
    let mut all = vec![first];
    while all.len() < sockets {
        match socket(address, true, only_v6).and_then(|socket| socket.listen(BACKLOG)?.into_std()) {
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

fn socket(address: SocketAddr, shared: bool, only_v6: bool) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if only_v6 {
        SockRef::from(&socket).set_only_v6(true)?;
    }
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
    let (sidecar, drain) = (Arc::clone(sidecar), drain.clone());
    tokio::spawn(async move {
        sidecar.stats.opened(side);
        if sidecar.settings.capture == Capture::Transparent
            && !capture::is_for_pubsub(&sidecar, side, &stream)
        {
            // Boxed: a connection that is not captured has no room for it.
            Box::pin(capture::serve(Arc::clone(&sidecar), side, stream, caller.ip(), drain)).await;
        } else {
            let connection = Arc::new(Connection {
                sidecar: Arc::clone(&sidecar),
                side,
                caller: caller.ip(),
                tunnel_to: None,
                captured: None,
                progress: Progress::new(),
            });
            first_bytes(&connection, stream, drain).await;
        }
        sidecar.stats.closed(side);
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

/// A stream of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Serves HTTP on a stream that is not the listener's own: what is inside a CONNECT, or captured. It ends with its
/// caller, and where it is told of a drain, when that has begun and no request is left.
pub(crate) fn serve(
    connection: Arc<Connection>,
    first: Vec<u8>,
    stream: Box<dyn Stream>,
    speaks: Speaks,
    drain: Option<watch::Receiver<bool>>,
) -> crate::Boxed<()> {
    // Boxed: what is inside a CONNECT may hold another. One kind of stream, or each had a server of its own in the binary.
    Box::pin(serve_until_drained(connection, Prefixed::new(first, stream), speaks, drain))
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
        match (&connection.captured, drain) {
            (Some(captured), Some(drain)) => {
                if Box::pin(drained_or_gone(connection, captured, drain)).await {
                    return;
                }
            }
            (None, Some(mut drain)) => drop(drain.wait_for(|drain| *drain).await),
            (_, None) => std::future::pending().await,
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

/// Whether a captured connection's upstream is gone, before the sidecar drains. Requests that are under way then are
/// served first: the last of them may be what ended it.
async fn drained_or_gone(
    connection: &Connection,
    captured: &Captured,
    mut drain: watch::Receiver<bool>,
) -> bool {
    tokio::select! {
        _ = drain.wait_for(|drain| *drain) => return false,
        () = captured.ends.gone() => {}
    }
    while !connection.progress.is_idle() {
        tokio::time::sleep(LAST_ANSWER).await;
    }
    if captured.ends.is_upgraded() {
        std::future::pending::<()>().await;
    }
    true
}

/// A captured connection ends in the place of an answer.
#[derive(Debug)]
struct BrokenOff;

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the upstream broke off")
    }
}

impl std::error::Error for BrokenOff {}

/// One request: CONNECT is a tunnel, everything else goes through the stack.
async fn answer<S>(
    connection: Arc<Connection>,
    mut stack: S,
    request: Request<Incoming>,
    under_way: UnderWay,
) -> Result<Response<Watched<Body>>, BrokenOff>
where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible>,
{
    let closes = request.version() != Version::HTTP_2 && connection.sidecar.readiness.is_draining();
    let mut response = match (request.method() == Method::CONNECT, connection.side) {
        (false, _) => match stack.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
        (true, _) if let Some(captured) = &connection.captured => {
            // It is for the proxy at the other end, behind requests that were served: a new connection is tunnelled.
            captured.ends.resets();
            return Err(BrokenOff);
        }
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
    if connection.captured.as_ref().is_some_and(|captured| captured.is_broken()) {
        return Err(BrokenOff);
    }
    if closes && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Watched::new(body, under_way)))
}
