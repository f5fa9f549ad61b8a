//! Closed loop by HTTP/2: streams side by side on a few connections, plain requests or unary gRPC calls. Each
//! stream's answer is read to its end, trailers included, before the next one is opened.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderValue, Method, Request, Uri};
use tokio::net::TcpStream;

use super::load::{Contexts, HEADERS, HOST, Seen};
use super::{GRPC_MESSAGE, GRPC_PATH, SMALL, SMALL_PATH};

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// A GET and 100 bytes of answer.
    Small,
    /// A unary call.
    Grpc,
}

/// Asks on so many connections, with so many streams each, for so long.
pub(crate) async fn run(
    to: SocketAddr,
    ask: Ask,
    with_context: bool,
    (connections, streams): (u64, u64),
    time: Duration,
) {
    let began = Instant::now();
    let until = began + time;
    let mut all = Seen::default();
    let mut tasks = Vec::new();
    for connection in 0..connections {
        let sender = match connect(to).await {
            Ok(sender) => sender,
            Err(why) => {
                all.failed(why);
                continue;
            }
        };
        for stream in 0..streams {
            let contexts = with_context.then(|| Contexts::seeded((connection * streams + stream) << 40));
            tasks.push(tokio::spawn(one(sender.clone(), request(ask), ask, contexts, until)));
        }
    }
    for task in tasks {
        all.add(task.await.expect("no panic in a generator"));
    }
    all.tell(&[("seconds", began.elapsed().as_secs_f64())]);
}

async fn connect(to: SocketAddr) -> Result<SendRequest<Bytes>, String> {
    let stream = TcpStream::connect(to).await.map_err(|error| error.to_string())?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) = h2::client::handshake(stream).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(sender)
}

fn request(ask: Ask) -> Request<()> {
    let path = match ask {
        Ask::Small => SMALL_PATH,
        Ask::Grpc => GRPC_PATH,
    };
    let mut request = Request::new(());
    *request.uri_mut() = format!("http://{HOST}{path}").parse::<Uri>().expect("an address");
    for (name, value) in HEADERS {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if ask == Ask::Grpc {
        *request.method_mut() = Method::POST;
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    }
    request
}

async fn one(
    mut sender: SendRequest<Bytes>,
    request: Request<()>,
    ask: Ask,
    mut contexts: Option<Contexts>,
    until: Instant,
) -> Seen {
    let mut seen = Seen::default();
    while Instant::now() < until {
        let mut request = request.clone();
        if let Some(contexts) = &mut contexts {
            let context = HeaderValue::from_bytes(contexts.next()).expect("digits");
            request.headers_mut().insert("traceparent", context);
        }
        match exchange(sender, request, ask).await {
            Ok(again) => {
                sender = again;
                seen.answers += 1;
            }
            Err(why) => {
                seen.failed(why);
                return seen;
            }
        }
    }
    seen
}

async fn exchange(
    sender: SendRequest<Bytes>,
    request: Request<()>,
    ask: Ask,
) -> Result<SendRequest<Bytes>, String> {
    let lost = |error: h2::Error| format!("stream lost: {error}");
    let mut sender = sender.ready().await.map_err(lost)?;
    let (response, mut upload) = sender.send_request(request, ask == Ask::Small).map_err(lost)?;
    if ask == Ask::Grpc {
        upload.send_data(Bytes::from_static(GRPC_MESSAGE), true).map_err(lost)?;
    }
    let response = response.await.map_err(lost)?;
    if response.status() != 200 {
        return Err(format!("status {}", response.status()));
    }
    let mut body = response.into_body();
    let mut bytes = 0;
    while let Some(data) = body.data().await {
        let data = data.map_err(lost)?;
        bytes += data.len();
        body.flow_control().release_capacity(data.len()).map_err(lost)?;
    }
    let expected = match ask {
        Ask::Small => SMALL.len(),
        Ask::Grpc => GRPC_MESSAGE.len(),
    };
    if bytes != expected {
        return Err(format!("{bytes} bytes of answer, want {expected}"));
    }
    if ask == Ask::Grpc {
        let trailers = body.trailers().await.map_err(lost)?;
        let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
        if status.is_none_or(|status| status != "0") {
            return Err(format!("grpc-status {status:?}"));
        }
    }
    Ok(sender)
}
