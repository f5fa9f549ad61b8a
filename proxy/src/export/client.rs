//! One OTLP client: protobuf by gRPC or by HTTP POST, over one connection that is made again when it breaks.
//! Hands `core` what it needs to judge an answer, and reads no more of one than it has use for.

use std::io::Write as _;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use throughline_core::otlp::answer::Answer;
use throughline_core::settings::{Authority, Compression, Otlp, Protocol, Settings, Signal};
use throughline_rim::collector::{grpc_answer, http_answer, told};
use throughline_rim::tls::{Authorities, Identity, Tls};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A client for one signal.
pub(super) struct Client {
    otlp: Otlp,
    attempt: Duration,
    tls: Option<Tls>,
    headers: HeaderMap,
    uri: Uri,
    sender: Option<Sender>,
    /// Whether the request under way has gone out, so that the collector may have it.
    gone_out: bool,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    /// `Err` names the setting that stands in the way.
    pub(super) fn new(settings: &Settings, signal: Signal) -> Result<Self, String> {
        let otlp = settings.otlp(signal);
        let grpc = otlp.protocol == Protocol::Grpc;
        let tls = if otlp.tls { Some(tls(settings, &otlp.host, grpc)?) } else { None };
        let scheme = if otlp.tls { "https" } else { "http" };
        let authority = Authority { host: otlp.host.clone(), port: otlp.port };
        let uri = format!("{scheme}://{authority}{}", otlp.path);
        let uri = uri.parse().map_err(|_| format!("OTEL_EXPORTER_OTLP_ENDPOINT: \"{uri}\" is no URL"))?;
        let headers = headers(&otlp, grpc, &authority)?;
        let attempt = Duration::from_millis(otlp.timeout_ms.min(settings.bsp_export_timeout_ms));
        Ok(Self { otlp, attempt, tls, headers, uri, sender: None, gone_out: false })
    }

    /// Where it sends to, for messages.
    pub(super) fn endpoint(&self) -> String {
        self.uri.to_string()
    }

    /// The body of a request: the envelope's prefix and the items, compressed and framed as configured.
    pub(super) fn encode(&self, prefix: &[u8], items: &[u8]) -> Bytes {
        let compress = self.otlp.compression == Compression::Gzip;
        let grpc = self.otlp.protocol == Protocol::Grpc;
        let mut body = BytesMut::with_capacity(prefix.len() + items.len() + 5);
        if grpc {
            body.put_bytes(0, 5);
        }
        if compress {
            let mut encoder = GzEncoder::new(body.writer(), Level::fast());
            let written = encoder.write_all(prefix).and_then(|()| encoder.write_all(items));
            // Writing to memory does not fail; if it did, the collector would say that the batch is broken.
            body = match (written, encoder.finish()) {
                (Ok(()), Ok(writer)) => writer.into_inner(),
                (Err(_), _) | (_, Err(_)) => BytesMut::new(),
            };
        } else {
            body.put_slice(prefix);
            body.put_slice(items);
        }
        if grpc {
            let len = u32::try_from(body.len().saturating_sub(5)).unwrap_or(u32::MAX);
            if let Some(frame) = body.get_mut(..5) {
                let [a, b, c, d] = len.to_be_bytes();
                frame.copy_from_slice(&[u8::from(compress), a, b, c, d]);
            }
        }
        body.freeze()
    }

    /// Whether the last attempt went out and got no answer: the collector may have what it held.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.gone_out
    }

    /// Sends once.
    pub(super) async fn send(&mut self, body: Bytes) -> Answer {
        let again = |why: String| Answer::Again { after_ms: None, why };
        let attempt = self.attempt;
        self.gone_out = false;
        let answer = match timeout(attempt, self.exchange(body)).await {
            Ok(Ok(answer)) => {
                self.gone_out = false;
                answer
            }
            Ok(Err(why)) => again(why),
            Err(_) => again(format!("no answer within {} ms", attempt.as_millis())),
        };
        if matches!(answer, Answer::Again { .. }) {
            self.sender = None; // the next try begins with a connection of its own
        }
        answer
    }

    async fn exchange(&mut self, body: Bytes) -> Result<Answer, String> {
        if self.sender.as_ref().is_none_or(Sender::is_closed) {
            self.sender = Some(self.connect().await?);
        }
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.headers_mut() = self.headers.clone();
        let sender = self.sender.as_mut().ok_or("no connection")?;
        let response = match sender {
            Sender::Http1(sender) => {
                let path = self.uri.path_and_query().cloned();
                *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
                sender.ready().await.map_err(|error| told(&error))?;
                self.gone_out = true;
                sender.send_request(request).await.map_err(|error| told(&error))?
            }
            Sender::Http2(sender) => {
                *request.uri_mut() = self.uri.clone();
                *request.version_mut() = http::Version::HTTP_2;
                sender.ready().await.map_err(|error| told(&error))?;
                self.gone_out = true;
                sender.send_request(request).await.map_err(|error| told(&error))?
            }
        };
        match self.otlp.protocol {
            Protocol::Grpc => Ok(grpc_answer(response).await),
            Protocol::HttpProtobuf => {
                let (answer, whole) = http_answer(response).await;
                if !whole {
                    self.sender = None; // an answer without an end would be in the next one's way
                }
                Ok(answer)
            }
        }
    }

    async fn connect(&self) -> Result<Sender, String> {
        let stream = TcpStream::connect((self.otlp.host.as_str(), self.otlp.port))
            .await
            .map_err(|error| format!("failed to connect: {error}"))?;
        let _ = stream.set_nodelay(true); // without it the connection is slower, not wrong
        match &self.tls {
            None => self.handshake(stream).await,
            Some(tls) => {
                let stream = tls.connect(stream).await;
                self.handshake(stream.map_err(|error| format!("failed to set up TLS: {error}"))?).await
            }
        }
    }

    async fn handshake<T>(&self, stream: T) -> Result<Sender, String>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match self.otlp.protocol {
            Protocol::Grpc => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| told(&error))?;
                tokio::spawn(connection);
                Ok(Sender::Http2(sender))
            }
            Protocol::HttpProtobuf => {
                let (sender, connection) =
                    http1::handshake(TokioIo::new(stream)).await.map_err(|error| told(&error))?;
                tokio::spawn(connection);
                Ok(Sender::Http1(sender))
            }
        }
    }
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

fn tls(settings: &Settings, host: &str, http2: bool) -> Result<Tls, String> {
    let authorities =
        Authorities { setting: "OTEL_EXPORTER_OTLP_CERTIFICATE", file: &settings.otlp_certificate };
    let identity = (!settings.otlp_client_certificate.is_empty()).then_some(Identity {
        certificate: ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &settings.otlp_client_certificate),
        key: ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &settings.otlp_client_key),
    });
    Tls::new(host, authorities, identity, http2)
}

fn headers(otlp: &Otlp, grpc: bool, authority: &Authority) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &otlp.headers {
        let wrong = || format!("OTEL_EXPORTER_OTLP_HEADERS: \"{name}\" is no header with a valid value");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let agent = concat!("throughline/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    let gzip = otlp.compression == Compression::Gzip;
    if grpc {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        if gzip {
            headers.insert(HeaderName::from_static("grpc-encoding"), HeaderValue::from_static("gzip"));
        }
    } else {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        if let Ok(host) = HeaderValue::from_str(&authority.to_string()) {
            headers.insert(http::header::HOST, host);
        }
        if gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
    }
    Ok(headers)
}
