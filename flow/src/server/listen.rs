//! Accepts connections, as many as allowed, and closes what stands still. Must never let one caller's connections
//! keep another listener's callers out.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::App;

/// For a request's head to arrive once its connection is open, and for the next one to begin.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 100;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// When nothing came from an HTTP/2 connection for so long, it is asked whether it is still there.
const PING_AFTER: Duration = Duration::from_secs(20);
/// What every HTTP/2 client sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a listener speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Speaks {
    /// The API, HTTP/1.1.
    Api,
    /// OTLP, HTTP/1.1.
    OtlpHttp,
    /// OTLP, gRPC.
    OtlpGrpc,
}

/// Counts of one listener.
#[derive(Default)]
pub(crate) struct Connections {
    pub(crate) accepted: AtomicU64,
    pub(crate) open: AtomicU64,
}

/// Accepts until told to stop; ends when all connections have, or `cut` says so.
pub(crate) async fn accept(
    app: Arc<App>,
    speaks: Speaks,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(app.connections_max));
    loop {
        let place = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let Ok(place) = place else { break };
        let accepted = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of file descriptors, or a caller that is gone already: neither is helped by haste.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (app, stop) = (Arc::clone(&app), stop.clone());
        tokio::spawn(async move {
            let counts = app.connections(speaks);
            counts.accepted.fetch_add(1, Ordering::Relaxed);
            counts.open.fetch_add(1, Ordering::Relaxed);
            serve(&app, speaks, stream, peer, stop).await;
            app.connections(speaks).open.fetch_sub(1, Ordering::Relaxed);
            drop(place);
        });
    }
    drop(listener);
    let all = u32::try_from(app.connections_max).unwrap_or(u32::MAX);
    let _every_connection_is_closed = places.acquire_many(all).await;
}

/// Waits until told to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn serve(
    app: &Arc<App>,
    speaks: Speaks,
    stream: TcpStream,
    peer: SocketAddr,
    mut stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let app = Arc::clone(app);
    let service = service_fn(move |request: Request<Incoming>| {
        let app = Arc::clone(&app);
        async move { Ok::<_, std::convert::Infallible>(app.answer(speaks, peer, request).await) }
    });
    match speaks {
        Speaks::Api | Speaks::OtlpHttp => {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => {}
                () = stopped(&mut stop) => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
        }
        Speaks::OtlpGrpc => {
            let Ok(Ok(stream)) = timeout(HEAD_TIMEOUT, with_preface(stream)).await else { return };
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(PING_AFTER)
                .keep_alive_timeout(PING_AFTER)
                .max_concurrent_streams(STREAMS_MAX)
                .max_header_list_size(HEAD_BYTES_MAX as u32)
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20)
                .max_frame_size(256 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => {}
                () = stopped(&mut stop) => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
        }
    }
}

/// Waits for the first bytes of HTTP/2: a connection that never says anything must not be waited for by hyper, which
/// has no timer for it.
async fn with_preface(mut stream: TcpStream) -> io::Result<Preread> {
    let mut came = [0; PREFACE.len()];
    stream.read_exact(&mut came).await?;
    if came != *PREFACE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Preread { left: PREFACE, stream })
}

/// A connection whose preface was read already, and is read once more.
struct Preread {
    left: &'static [u8],
    stream: TcpStream,
}

impl AsyncRead for Preread {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let (now, left) = self.left.split_at(self.left.len().min(buf.remaining()));
        buf.put_slice(now);
        self.left = left;
        Poll::Ready(Ok(()))
    }
}

throughline_rim::writes_to_stream!(Preread);

/// The body of all answers.
pub(crate) type Body = http_body_util::combinators::BoxBody<bytes::Bytes, std::convert::Infallible>;

/// An answer whose body is all there.
pub(crate) fn whole(answer: Response<Full<bytes::Bytes>>) -> Response<Body> {
    use http_body_util::BodyExt as _;
    answer.map(|body| body.boxed())
}
