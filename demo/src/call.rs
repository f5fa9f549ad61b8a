//! One plain HTTP exchange over a connection of its own, and the loop that serves them.
//! Knows nothing of the shop or of tracing, and waits for nothing without a bound.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// The longest wait for one exchange: above the slowest hop of the shop by far.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest body a call or a server reads, in bytes: an export of some thousand spans.
pub(crate) const BODY_BYTES_MAX: usize = 4 << 20;
/// Connections one server holds at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// The pause after a failed accept, which means that the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Sends `request` to `address` and reads the whole answer.
pub(crate) async fn exchange(
    address: SocketAddr,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, String> {
    tokio::time::timeout(EXCHANGE_TIMEOUT, sent(address, request))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", EXCHANGE_TIMEOUT.as_secs())))
}

async fn sent(address: SocketAddr, request: Request<Bytes>) -> Result<Response<Bytes>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let request = request.map(Full::new);
    let exchange = async {
        let (head, body) = sender.send_request(request).await.map_err(|e| e.to_string())?.into_parts();
        Ok(Response::from_parts(head, whole(body).await?))
    };
    // The connection makes no progress unless it is polled; it ends with the exchange.
    tokio::select! {
        answer = exchange => answer,
        Err(error) = connection => Err(error.to_string()),
    }
}

/// Reads a body to its end, within the limit.
pub(crate) async fn whole(body: Incoming) -> Result<Bytes, String> {
    let read = Limited::new(body, BODY_BYTES_MAX).collect().await;
    read.map(http_body_util::Collected::to_bytes).map_err(|error| error.to_string())
}

/// Answers every request that reaches `listener`, for as long as the demo runs.
pub(crate) async fn serve<F, A>(listener: TcpListener, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed, so this loop ends only with the runtime.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            // A caller that hangs up is no trouble of ours.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(place);
        });
    }
}
