//! Scripted services: plain HTTP servers on loopback, HTTP/1.1 and HTTP/2 on the same port, that do what the
//! scenario says and remember every request that reached them.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, Uri, Version, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::ask::{Answer, Ask, Protocol};
use crate::feed::{AnyBody, whole};
use crate::wait::within;

/// What a service does with one request.
#[derive(Clone)]
pub struct Script(Arc<dyn Fn(Visit) -> Reply + Send + Sync>);

/// A script's outcome.
pub type Reply = Pin<Box<dyn Future<Output = Response<AnyBody>> + Send>>;

/// One request at a service, and what the service can do about it.
pub struct Visit {
    /// The request.
    pub request: Request<Incoming>,
    /// The way out.
    pub outbound: Outbound,
}

/// The outbound port of the sidecar beside a service, once there is one.
#[derive(Clone, Debug, Default)]
pub struct Outbound(Arc<OnceLock<SocketAddr>>);

impl Outbound {
    /// Says where the sidecar's outbound port is.
    pub fn is_at(&self, address: SocketAddr) {
        self.0.set(address).expect("one sidecar beside one service");
    }

    /// Where the sidecar's outbound port is.
    pub fn address(&self) -> SocketAddr {
        *self.0.get().expect("a sidecar with an outbound side beside this service")
    }

    /// Sends a request out through the sidecar.
    pub async fn send(&self, ask: Ask) -> Answer {
        ask.via(self.address()).send().await
    }
}

/// A script from an asynchronous closure.
pub fn script<F, Done>(play: F) -> Script
where
    F: Fn(Visit) -> Done + Send + Sync + 'static,
    Done: Future<Output = Response<AnyBody>> + Send + 'static,
{
    Script(Arc::new(move |visit| Box::pin(play(visit))))
}

/// Answers with a status and a text.
pub fn answer(status: u16, text: &'static str) -> Script {
    script(move |_| async move { response(status, text) })
}

/// Answers with the request's body, and with its method in `x-method`.
pub fn echo() -> Script {
    script(|visit| async move {
        let method = visit.request.method().to_string();
        let body = visit.request.into_body().map_err(Into::into).boxed_unsync();
        Response::builder().header("x-method", method).body(body).expect("a response")
    })
}

/// A response of known length.
pub fn response(status: u16, body: impl Into<Bytes>) -> Response<AnyBody> {
    Response::builder().status(status).body(whole(body)).expect("a response")
}

/// Which headers of its own caller an application puts on its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copying {
    /// All that are about context.
    Everything,
    /// `traceparent` and `tracestate`.
    TraceContext,
    /// `traceparent` alone.
    TraceparentOnly,
    /// None at all.
    Nothing,
    /// The named ones.
    These(&'static [&'static str]),
}

const CONTEXT_HEADERS: &[&str] = &[
    "traceparent",
    "tracestate",
    "baggage",
    "x-operation-name",
    "x-trace-id",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "uber-trace-id",
];

impl Copying {
    /// The headers that pass from a request to a call.
    pub fn from(self, headers: &HeaderMap) -> HeaderMap {
        let names = match self {
            Copying::Everything => CONTEXT_HEADERS,
            Copying::TraceContext => &["traceparent", "tracestate"],
            Copying::TraceparentOnly => &["traceparent"],
            Copying::Nothing => &[],
            Copying::These(names) => names,
        };
        let copied = |name: &HeaderName| names.contains(&name.as_str());
        headers
            .iter()
            .filter(|(name, _)| copied(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<Vec<_>>()
            .into_iter()
            .fold(HeaderMap::new(), |mut all, (name, value)| {
                all.append(name, value);
                all
            })
    }
}

/// An application that calls another service through its sidecar and answers what that one answered.
pub fn calling(url: impl Into<String>, copying: Copying) -> Script {
    calling_over(Protocol::H1, url, copying)
}

/// As `calling`, in a protocol of choice.
pub fn calling_over(protocol: Protocol, url: impl Into<String>, copying: Copying) -> Script {
    let url = url.into();
    script(move |visit| {
        let ask = Ask::get(&url).over(protocol).copied(copying.from(visit.request.headers()));
        async move {
            let answer = visit.outbound.send(ask).await;
            response(answer.status, answer.body)
        }
    })
}

/// One request as a service saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The method.
    pub method: Method,
    /// The target.
    pub uri: Uri,
    /// The version.
    pub version: Version,
    /// The fields.
    pub headers: HeaderMap,
    /// The other end of the connection it came on.
    pub from: SocketAddr,
}

impl Seen {
    /// A header's only value; fails when there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let first = values.next();
        assert!(values.next().is_none(), "{name} came several times: {:?}", self.headers);
        first.map(|value| std::str::from_utf8(value.as_bytes()).expect("utf-8"))
    }

    /// The fields of the `traceparent` that arrived.
    pub fn traceparent(&self) -> Traceparent {
        let text = self.header("traceparent").unwrap_or_else(|| panic!("no traceparent: {:?}", self.headers));
        Traceparent::of(text).unwrap_or_else(|| panic!("an illegal traceparent was sent: {text:?}"))
    }

    /// All `tracestate` members in order, without empty ones.
    pub fn tracestate(&self) -> Vec<String> {
        let lines = self.headers.get_all("tracestate").iter();
        let text: Vec<_> = lines.map(|line| String::from_utf8_lossy(line.as_bytes()).into_owned()).collect();
        let members = text.iter().flat_map(|line| line.split(','));
        members.map(|member| member.trim().to_owned()).filter(|member| !member.is_empty()).collect()
    }
}

/// A `traceparent` of version 00, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace id, 32 hexadecimal digits.
    pub trace: String,
    /// The parent id, 16 hexadecimal digits.
    pub span: String,
    /// The flags, two hexadecimal digits.
    pub flags: String,
}

impl Traceparent {
    /// Takes a legal `traceparent` of version 00 apart.
    pub fn of(text: &str) -> Option<Traceparent> {
        let parts: Vec<_> = text.split('-').collect();
        let [version, trace, span, flags] = parts.as_slice() else { return None };
        let hex = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
        let legal = *version == "00" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
        (legal && !zero(trace) && !zero(span)).then(|| Traceparent {
            trace: (*trace).to_owned(),
            span: (*span).to_owned(),
            flags: (*flags).to_owned(),
        })
    }

    /// Whether the sampled flag is set.
    pub fn sampled(&self) -> bool {
        u8::from_str_radix(&self.flags, 16).is_ok_and(|flags| flags & 1 == 1)
    }
}

#[derive(Debug, Default)]
struct Memory {
    seen: Mutex<Vec<Seen>>,
    count: watch::Sender<usize>,
    open: watch::Sender<usize>,
}

/// A running scripted service.
#[derive(Debug)]
pub struct Service {
    /// Where it listens.
    pub address: SocketAddr,
    /// The way out that its script uses.
    pub outbound: Outbound,
    memory: Arc<Memory>,
    accepting: JoinHandle<()>,
}

impl Service {
    /// Starts a service.
    pub async fn playing(script: Script) -> Service {
        Service::on(TcpListener::bind("127.0.0.1:0").await.expect("a free port"), script)
    }

    /// Starts a service on a socket that exists.
    pub fn on(listener: TcpListener, script: Script) -> Service {
        let address = listener.local_addr().expect("an address");
        let memory = Arc::new(Memory::default());
        let outbound = Outbound::default();
        let stage = (script, outbound.clone(), Arc::clone(&memory));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let (script, outbound, memory) = stage.clone();
                memory.open.send_modify(|open| *open += 1);
                tokio::spawn(async move {
                    serve(stream, from, script, outbound, &memory).await;
                    memory.open.send_modify(|open| *open -= 1);
                });
            }
        });
        Service { address, outbound, memory, accepting }
    }

    /// A URL of this service, without a sidecar in between.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Every request that came so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.memory.seen.lock().expect("the memory").clone()
    }

    /// Waits until `count` requests came.
    pub async fn saw(&self, count: usize) -> Vec<Seen> {
        let what = format!("{count} requests at a service");
        let mut news = self.memory.count.subscribe();
        within(&what, news.wait_for(|now| *now >= count)).await.expect("the service runs");
        self.seen()
    }

    /// Waits until this many connections are open.
    pub async fn has_open(&self, count: usize) {
        let what = format!("{count} open connections at a service");
        let mut news = self.memory.open.subscribe();
        within(&what, news.wait_for(|now| *now == count)).await.expect("the service runs");
    }

    /// The only request that came.
    pub fn saw_one(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "one request was expected: {seen:#?}");
        seen.into_iter().next().expect("one")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(stream: TcpStream, from: SocketAddr, script: Script, outbound: Outbound, memory: &Memory) {
    let _ = stream.set_nodelay(true);
    let Some(protocol) = spoken(&stream).await else { return };
    let service = service_fn(|request: Request<Incoming>| {
        memory.remember(&request, from);
        let reply = (script.0)(Visit { request, outbound: outbound.clone() });
        async move { Ok::<_, std::convert::Infallible>(reply.await) }
    });
    let io = TokioIo::new(stream);
    let _ = match protocol {
        Protocol::H1 => http1::Builder::new().serve_connection(io, service).with_upgrades().await,
        Protocol::H2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            // A stream that the script does not read must not hold up the others of its connection.
            builder.initial_stream_window_size(65_535).initial_connection_window_size(64 << 20);
            builder.max_concurrent_streams(1_000).serve_connection(io, service).await
        }
    };
}

/// Which protocol the other end speaks, by its first three bytes; `None` when it closes before.
pub(crate) async fn spoken(stream: &TcpStream) -> Option<Protocol> {
    loop {
        let mut first = [0_u8; 3];
        match stream.peek(&mut first).await {
            Ok(0) | Err(_) => return None,
            Ok(3) => {
                return Some(if &first == b"PRI" { Protocol::H2 } else { Protocol::H1 });
            }
            Ok(_) => tokio::task::yield_now().await,
        }
    }
}

impl Memory {
    fn remember(&self, request: &Request<Incoming>, from: SocketAddr) {
        self.seen.lock().expect("the memory").push(Seen {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
            from,
        });
        self.count.send_modify(|count| *count += 1);
    }
}

/// A request's body, read whole.
pub async fn read(request: Request<Incoming>) -> Bytes {
    request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default()
}

/// Switches protocols as the request asked and gives the raw stream to `play`.
pub fn switching<F, Done>(play: F) -> Script
where
    F: Fn(TokioIo<hyper::upgrade::Upgraded>) -> Done + Send + Sync + 'static,
    Done: Future<Output = ()> + Send + 'static,
{
    let play = Arc::new(play);
    script(move |mut visit| {
        let play = Arc::clone(&play);
        let wanted = visit.request.headers().get(header::UPGRADE).cloned();
        let upgrade = hyper::upgrade::on(&mut visit.request);
        tokio::spawn(async move {
            if let Ok(stream) = upgrade.await {
                play(TokioIo::new(stream)).await;
            }
        });
        async move {
            let mut response = response(101, "");
            response.headers_mut().insert(header::CONNECTION, "upgrade".parse().expect("a value"));
            if let Some(wanted) = wanted {
                response.headers_mut().insert(header::UPGRADE, wanted);
            }
            response
        }
    })
}
