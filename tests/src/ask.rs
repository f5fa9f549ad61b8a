//! A simple client: asks over HTTP/1.1 or HTTP/2, direct or through a proxy, and says exactly what came back,
//! also when that broke in the middle.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::feed::{AnyBody, nothing, whole};
use crate::wait::within;

/// What the client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    H1,
    /// HTTP/2 cleartext by prior knowledge.
    H2,
}

/// Both protocols, for scenarios that must hold on either.
pub const BOTH: [Protocol; 2] = [Protocol::H1, Protocol::H2];

/// One request to be sent.
#[derive(Debug)]
pub struct Ask {
    method: Method,
    url: Uri,
    headers: HeaderMap,
    body: AnyBody,
    protocol: Protocol,
    via: Option<SocketAddr>,
}

impl Ask {
    /// A request of any method.
    pub fn new(method: &str, url: impl AsRef<str>) -> Ask {
        Ask {
            method: method.parse().expect("a method"),
            url: url.as_ref().parse().expect("a url"),
            headers: HeaderMap::new(),
            body: nothing(),
            protocol: Protocol::H1,
            via: None,
        }
    }

    /// A GET.
    pub fn get(url: impl AsRef<str>) -> Ask {
        Ask::new("GET", url)
    }

    /// A POST with a body of known length.
    pub fn post(url: impl AsRef<str>, body: impl Into<Bytes>) -> Ask {
        Ask::new("POST", url).body(whole(body))
    }

    /// Adds a header line; the value may be any bytes a header value can hold.
    pub fn header(mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) -> Ask {
        let name: HeaderName = name.as_ref().parse().expect("a header name");
        self.headers.append(name, HeaderValue::from_bytes(value.as_ref()).expect("a header value"));
        self
    }

    /// Adds several header lines.
    pub fn headers<'a>(self, lines: impl IntoIterator<Item = (&'a str, &'a str)>) -> Ask {
        lines.into_iter().fold(self, |ask, (name, value)| ask.header(name, value))
    }

    /// Adds header lines as they were taken from another message.
    pub fn copied(mut self, lines: HeaderMap) -> Ask {
        let mut last = None;
        for (name, value) in lines {
            last = name.or(last);
            self.headers.append(last.clone().expect("the first line has a name"), value);
        }
        self
    }

    /// Replaces the body.
    pub fn body(mut self, body: AnyBody) -> Ask {
        self.body = body;
        self
    }

    /// Chooses the protocol.
    pub fn over(mut self, protocol: Protocol) -> Ask {
        self.protocol = protocol;
        self
    }

    /// Sends the request through an HTTP proxy, in absolute form.
    pub fn via(mut self, proxy: SocketAddr) -> Ask {
        self.via = Some(proxy);
        self
    }

    /// Sends on a connection of its own and reads everything that comes back.
    pub async fn send(self) -> Answer {
        self.try_send().await.unwrap_or_else(|trouble| panic!("no answer: {trouble}"))
    }

    /// As `send`, where no answer at all is a possible outcome.
    pub async fn try_send(self) -> Result<Answer, String> {
        let what = format!("an answer to {} {}", self.method, self.url);
        within(&what, async {
            let mut open = self.try_open().await?;
            Ok(open.rest().await)
        })
        .await
    }

    /// Sends and returns as soon as the response's head is here. Dropping the outcome hangs up.
    pub async fn open(self) -> Open {
        let what = format!("the head of an answer to {} {}", self.method, self.url);
        within(&what, self.try_open()).await.unwrap_or_else(|trouble| panic!("no answer: {trouble}"))
    }

    /// Sends as a stream of an HTTP/2 connection that others share. Waits as long as its caller does.
    pub async fn on(self, mut connection: http2::SendRequest<AnyBody>) -> Response<Incoming> {
        let request = self.into_request(Protocol::H2);
        connection.ready().await.expect("a connection");
        connection.send_request(request).await.expect("an answer")
    }

    async fn try_open(self) -> Result<Open, String> {
        let address = self.via.unwrap_or_else(|| address_of(&self.url));
        let mut connection = Connection::to(address, self.protocol).await?;
        let response = connection.try_ask(self).await?;
        Ok(Open::new(response, Some(connection)))
    }

    fn into_request(self, protocol: Protocol) -> Request<AnyBody> {
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.headers_mut() = self.headers;
        match protocol {
            Protocol::H2 => {
                *request.version_mut() = Version::HTTP_2;
                *request.uri_mut() = self.url;
            }
            Protocol::H1 => {
                if !request.headers().contains_key(header::HOST) {
                    let host = self.url.authority().expect("a url with a host").as_str();
                    request.headers_mut().insert(header::HOST, host.parse().expect("a host"));
                }
                let path = self.url.path_and_query().map_or("/", |path| path.as_str());
                *request.uri_mut() = match self.via {
                    Some(_) => self.url,
                    None => path.parse().expect("a path"),
                };
            }
        }
        request
    }
}

fn address_of(url: &Uri) -> SocketAddr {
    let authority = url.authority().expect("a url with a host").as_str();
    authority.parse().unwrap_or_else(|_| panic!("{authority} is no address: use .via(proxy)"))
}

enum Sender {
    H1(http1::SendRequest<AnyBody>),
    H2(http2::SendRequest<AnyBody>),
}

/// A client connection that can ask several times. Dropping it hangs up.
pub struct Connection {
    sender: Sender,
    driver: JoinHandle<()>,
    protocol: Protocol,
}

impl Connection {
    /// Connects.
    pub async fn to(address: SocketAddr, protocol: Protocol) -> Result<Connection, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
        Connection::over(stream, protocol).await
    }

    /// Around a stream that exists.
    pub async fn over(stream: TcpStream, protocol: Protocol) -> Result<Connection, String> {
        stream.set_nodelay(true).map_err(|error| format!("nodelay: {error}"))?;
        let io = TokioIo::new(stream);
        let trouble = |error: hyper::Error| format!("handshake: {error:?}");
        let (sender, driver) = match protocol {
            Protocol::H1 => {
                let (sender, driver) = http1::handshake(io).await.map_err(trouble)?;
                (Sender::H1(sender), tokio::spawn(async move { drop(driver.with_upgrades().await) }))
            }
            Protocol::H2 => {
                let (sender, driver) = http2::handshake(TokioExecutor::new(), io).await.map_err(trouble)?;
                (Sender::H2(sender), tokio::spawn(async move { drop(driver.await) }))
            }
        };
        Ok(Connection { sender, driver, protocol })
    }

    /// Asks on this connection; the answer is read whole.
    pub async fn ask(&mut self, ask: Ask) -> Answer {
        within("an answer on this connection", async {
            let response = self.try_ask(ask).await.unwrap_or_else(|trouble| panic!("no answer: {trouble}"));
            Open::new(response, None).rest().await
        })
        .await
    }

    /// Asks on this connection and returns the response's head and its body to be read.
    pub async fn try_ask(&mut self, ask: Ask) -> Result<Response<Incoming>, String> {
        let request = ask.into_request(self.protocol);
        let outcome = match &mut self.sender {
            Sender::H1(sender) => {
                sender.ready().await.map_err(|error| format!("{error:?}"))?;
                sender.send_request(request).await
            }
            Sender::H2(sender) => {
                sender.ready().await.map_err(|error| format!("{error:?}"))?;
                sender.send_request(request).await
            }
        };
        outcome.map_err(|error| format!("{error:?}"))
    }

    /// Several answers at once on one HTTP/2 connection: a second handle on it.
    pub fn share(&self) -> http2::SendRequest<AnyBody> {
        match &self.sender {
            Sender::H2(sender) => sender.clone(),
            Sender::H1(_) => panic!("HTTP/1.1 connections cannot be shared"),
        }
    }

    /// Resolves once the peer has closed this connection.
    pub async fn closed(&mut self) {
        within("the peer closing the connection", &mut self.driver).await.expect("the driver ends");
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A response whose head is here and whose body is still coming.
pub struct Open {
    /// The head.
    pub head: http::response::Parts,
    body: Incoming,
    trailers: HeaderMap,
    /// Keeps the connection; dropped with this value, which hangs up.
    pub connection: Option<Connection>,
}

impl Open {
    /// An open answer from a response.
    pub fn new(response: Response<Incoming>, connection: Option<Connection>) -> Open {
        let (head, body) = response.into_parts();
        Open { head, body, trailers: HeaderMap::new(), connection }
    }

    /// The next piece of the body; `None` at its clean end, an error when it broke.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, String> {
        within("the next piece of a body", async {
            loop {
                let Some(frame) = self.body.frame().await else { return Ok(None) };
                match frame.map_err(|error| format!("{error:?}"))?.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Some(data)),
                    Err(other) => self.trailers.extend(other.into_trailers().unwrap_or_default()),
                }
            }
        })
        .await
    }

    /// Reads everything that is still to come.
    pub async fn rest(&mut self) -> Answer {
        let mut body = BytesMut::new();
        let broken = loop {
            match self.piece().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break None,
                Err(trouble) => break Some(trouble),
            }
        };
        Answer {
            status: self.head.status.as_u16(),
            version: self.head.version,
            headers: self.head.headers.clone(),
            body: body.freeze(),
            trailers: std::mem::take(&mut self.trailers),
            broken,
        }
    }

    /// Hangs up without reading the rest.
    pub fn hang_up(self) {}
}

/// Everything that came back.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The version of the response.
    pub version: Version,
    /// The head's fields.
    pub headers: HeaderMap,
    /// The body as far as it came.
    pub body: Bytes,
    /// The trailers.
    pub trailers: HeaderMap,
    /// Why the body did not end cleanly.
    pub broken: Option<String>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's first value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("printable"))
    }

    /// A trailer's first value.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        self.trailers.get(name).map(|value| value.to_str().expect("printable"))
    }
}
