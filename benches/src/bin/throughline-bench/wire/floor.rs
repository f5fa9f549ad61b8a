//! The floor: a bare reverse proxy on hyper and tokio. HTTP/1.1 and HTTP/2 by connection, and
//! a pool of kept connections. It checks, bounds and traces nothing, and drops the hop-by-hop fields that any proxy
//! has to drop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::{is_http2, listen};

const HOP: [HeaderName; 4] = [CONNECTION, TRANSFER_ENCODING, UPGRADE, HeaderName::from_static("keep-alive")];

struct Upstream {
    address: SocketAddr,
    kept: Mutex<Vec<http1::SendRequest<Incoming>>>,
    shared: Mutex<Option<http2::SendRequest<Incoming>>>,
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Forwards for ever.
pub(crate) async fn run(address: SocketAddr, upstream: SocketAddr) -> std::io::Result<()> {
    let listener = listen(address).await?;
    let upstream = Arc::new(Upstream { address: upstream, kept: Mutex::default(), shared: Mutex::default() });
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        let upstream = Arc::clone(&upstream);
        tokio::spawn(async move {
            let speaks_http2 = is_http2(&stream).await;
            let service = service_fn(move |request| forward(Arc::clone(&upstream), request));
            if speaks_http2 {
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = serving.serve_connection(TokioIo::new(stream), service).await;
            } else {
                let serving = hyper::server::conn::http1::Builder::new();
                let _ = serving.serve_connection(TokioIo::new(stream), service).await;
            }
        });
    }
}

async fn forward(
    upstream: Arc<Upstream>,
    mut request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    strip(request.headers_mut());
    let answered = match request.version() {
        Version::HTTP_2 => by_http2(&upstream, request).await,
        _ => by_http1(upstream, request).await,
    };
    let mut response = answered.unwrap_or_else(|_| {
        let mut response = Response::new(Answer { body: None, kept: None });
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        response
    });
    strip(response.headers_mut());
    Ok(response)
}

fn strip(headers: &mut HeaderMap) {
    for name in HOP {
        headers.remove(name);
    }
}

async fn by_http1(upstream: Arc<Upstream>, request: Request<Incoming>) -> Result<Response<Answer>, Failed> {
    let kept = upstream.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut sender = match kept.filter(|sender| !sender.is_closed()) {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(upstream.address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender
        }
    };
    sender.ready().await?;
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| Answer { body: Some(body), kept: Some((upstream, sender)) }))
}

async fn by_http2(upstream: &Upstream, request: Request<Incoming>) -> Result<Response<Answer>, Failed> {
    let shared = || upstream.shared.lock().unwrap_or_else(PoisonError::into_inner);
    let known = shared().clone().filter(|sender| !sender.is_closed());
    let mut sender = match known {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(upstream.address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            *shared() = Some(sender.clone());
            sender
        }
    };
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| Answer { body: Some(body), kept: None }))
}

/// An answer on its way; its connection is kept once it was read to the end.
struct Answer {
    body: Option<Incoming>,
    kept: Option<(Arc<Upstream>, http1::SendRequest<Incoming>)>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.is_end_stream()
            && let Some((upstream, sender)) = self.kept.take()
        {
            upstream.kept.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        }
    }
}
