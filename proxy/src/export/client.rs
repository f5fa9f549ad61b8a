//! One OTLP client: protobuf by gRPC or by HTTP POST, over one connection that is made again when it breaks.
//! Says of each answer what the specification says: taken, refused, or worth another try. Reads no more of an
//! answer than it has use for.

use std::io::Write as _;
use std::time::Duration;

use crate::tls::{Authorities, Identity, Tls};
use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use http::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, TE, USER_AGENT,
};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use throughline_core::settings::{Authority, Compression, Otlp, Protocol, Settings, Signal};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Bytes of an answer that are read: an `ExportTraceServiceResponse` has some hundred.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What a collector made of a batch.
#[derive(Debug)]
pub(super) enum Answer {
    /// It arrived; so many items were rejected.
    Taken { rejected: u64 },
    /// It will never be taken.
    Refused { why: String },
    /// It may be taken later; the collector may have said when.
    Again { after: Option<Duration>, why: String },
}

/// A client for one signal.
pub(super) struct Client {
    otlp: Otlp,
    attempt: Duration,
    tls: Option<Tls>,
    headers: HeaderMap,
    uri: Uri,
    sender: Option<Sender>,
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
        Ok(Self { otlp, attempt, tls, headers, uri, sender: None })
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

    /// Sends once.
    pub(super) async fn send(&mut self, body: Bytes) -> Answer {
        let again = |why: String| Answer::Again { after: None, why };
        let attempt = self.attempt;
        let answer = match timeout(attempt, self.exchange(body)).await {
            Ok(Ok(answer)) => answer,
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
                sender.send_request(request).await.map_err(|error| told(&error))?
            }
            Sender::Http2(sender) => {
                *request.uri_mut() = self.uri.clone();
                *request.version_mut() = http::Version::HTTP_2;
                sender.ready().await.map_err(|error| told(&error))?;
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

/// An error with its causes.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
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

/// OTLP/HTTP: 2xx is taken; 429, 502, 503, 504 are worth another try; everything else is final. Also says
/// whether the answer was read to its end.
async fn http_answer(response: Response<Incoming>) -> (Answer, bool) {
    let (head, body) = response.into_parts();
    let (text, whole, _) = read(body).await;
    let answer = match head.status {
        status if status.is_success() => Answer::Taken { rejected: rejected(&text) },
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Answer::Again {
            after: retry_after(&head.headers),
            why: format!("the collector answered {}", head.status),
        },
        status => Answer::Refused { why: format!("the collector answered {status}") },
    };
    (answer, whole)
}

/// OTLP/gRPC: which codes are worth another try is listed in the OTLP specification; RESOURCE_EXHAUSTED only
/// when the server says when.
async fn grpc_answer(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        let why = format!("the collector answered {} where gRPC was expected", head.status);
        return match head.status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Answer::Again { after: retry_after(&head.headers), why },
            _ => Answer::Refused { why },
        };
    }
    let (bytes, _, trailers) = read(body).await;
    let fields = trailers.as_ref().unwrap_or(&head.headers);
    let Some(status) = fields.get("grpc-status").and_then(|status| status.to_str().ok()) else {
        return Answer::Again { after: None, why: "the collector's answer has no gRPC status".into() };
    };
    let message = fields.get("grpc-message").and_then(|text| text.to_str().ok()).unwrap_or_default();
    let why = format!("the collector answered gRPC status {status} {message}");
    let delay = retry_info(fields);
    match status {
        "0" => Answer::Taken { rejected: rejected(bytes.get(5..).unwrap_or_default()) },
        "1" | "4" | "10" | "11" | "14" | "15" => Answer::Again { after: delay, why },
        "8" if delay.is_some() => Answer::Again { after: delay, why },
        _ => Answer::Refused { why },
    }
}

/// The first bytes of an answer, whether these are all, and its trailers.
async fn read(mut body: Incoming) -> (Vec<u8>, bool, Option<HeaderMap>) {
    let mut bytes = Vec::new();
    let mut trailers = None;
    while let Some(Ok(frame)) = body.frame().await {
        match frame.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            return (bytes, false, trailers);
        }
    }
    (bytes, true, trailers)
}

/// `Retry-After` in seconds. A date is not read: collectors send seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// `ExportTraceServiceResponse{partial_success=1{rejected_spans=1}}`; metrics have the same numbers.
fn rejected(response: &[u8]) -> u64 {
    let partial = field(response, 1).and_then(|(_, bytes)| bytes);
    partial.and_then(|partial| field(partial, 1)).map_or(0, |(number, _)| number)
}

/// `google.rpc.Status{details=3: Any{value=2: RetryInfo{retry_delay=1: Duration{seconds=1}}}}` in the binary
/// trailer.
fn retry_info(fields: &HeaderMap) -> Option<Duration> {
    let status = base64(fields.get("grpc-status-details-bin")?.as_bytes())?;
    let mut rest = status.as_slice();
    while let Some((number, _, bytes, after)) = next_field(rest) {
        rest = after;
        let Some(any) = bytes.filter(|_| number == 3) else { continue };
        let kind = field(any, 1).and_then(|(_, bytes)| bytes).unwrap_or_default();
        if kind.ends_with(b"google.rpc.RetryInfo") {
            let delay = field(any, 2)?.1.and_then(|info| field(info, 1))?.1?;
            // Both are signed on the wire; a negative delay asks for nothing that can be done.
            let positive =
                |number| field(delay, number).map_or(Some(0), |(value, _)| i64::try_from(value).ok());
            let (seconds, nanos) = (positive(1)?.unsigned_abs(), positive(2)?.unsigned_abs());
            return Some(Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos)));
        }
    }
    None
}

/// The first field of that number: its value, and its bytes where it has some.
fn field(message: &[u8], wanted: u64) -> Option<(u64, Option<&[u8]>)> {
    let mut rest = message;
    while let Some((number, value, bytes, after)) = next_field(rest) {
        if number == wanted {
            return Some((value, bytes));
        }
        rest = after;
    }
    None
}

type Field<'a> = (u64, u64, Option<&'a [u8]>, &'a [u8]);

/// Number, value, bytes and rest of a protobuf message; `None` at its end or where it is broken.
pub(super) fn next_field(message: &[u8]) -> Option<Field<'_>> {
    let (tag, rest) = varint(message)?;
    let number = tag >> 3;
    match tag & 7 {
        0 => varint(rest).map(|(value, rest)| (number, value, None, rest)),
        1 => rest.split_at_checked(8).map(|(bytes, rest)| (number, le(bytes), Some(bytes), rest)),
        2 => {
            let (len, rest) = varint(rest)?;
            let (bytes, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            Some((number, len, Some(bytes), rest))
        }
        5 => rest.split_at_checked(4).map(|(bytes, rest)| (number, le(bytes), Some(bytes), rest)),
        _ => None,
    }
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(i + 1..).unwrap_or_default()));
        }
    }
    None
}

/// Base64 of a binary header, padded or not.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for byte in text.iter().filter(|byte| **byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_spans_are_read_from_a_partial_success() {
        assert_eq!(rejected(&[0x0a, 2, 0x08, 7]), 7);
        assert_eq!(rejected(&[0x0a, 0]), 0);
        assert_eq!(rejected(&[]), 0);
        assert_eq!(rejected(&[0x0a, 200, 1]), 0, "broken off");
        assert_eq!(rejected(&[0xff; 40]), 0);
    }

    #[test]
    fn a_retry_delay_is_read_from_the_details_of_a_status() {
        let kind = b"type.googleapis.com/google.rpc.RetryInfo";
        let mut any = vec![0x0a, kind.len() as u8];
        any.extend_from_slice(kind);
        any.extend_from_slice(&[0x12, 4, 0x0a, 2, 0x08, 3]);
        let mut status = vec![0x08, 8, 0x1a, any.len() as u8];
        status.extend_from_slice(&any);
        let mut headers = HeaderMap::new();
        let text = encode_base64(&status);
        headers.insert("grpc-status-details-bin", HeaderValue::from_str(&text).unwrap());
        assert_eq!(retry_info(&headers), Some(Duration::from_secs(3)));
        let negative = [0xff; 9].iter().chain(&[0x01]).copied();
        let delay: Vec<u8> =
            [0x08].into_iter().chain(negative.clone()).chain([0x10]).chain(negative).collect();
        let mut any = vec![0x0a, kind.len() as u8];
        any.extend_from_slice(kind);
        any.extend_from_slice(&[0x12, delay.len() as u8 + 2, 0x0a, delay.len() as u8]);
        any.extend_from_slice(&delay);
        let mut status = vec![0x08, 14, 0x1a, any.len() as u8];
        status.extend_from_slice(&any);
        let text = encode_base64(&status);
        headers.insert("grpc-status-details-bin", HeaderValue::from_str(&text).unwrap());
        assert_eq!(retry_info(&headers), None, "a negative delay");
        headers.insert("grpc-status-details-bin", HeaderValue::from_static("!!"));
        assert_eq!(retry_info(&headers), None);
    }

    fn encode_base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut out = String::new();
        for three in bytes.chunks(3) {
            let bits = three.iter().fold(0u32, |bits, byte| (bits << 8) | u32::from(*byte))
                << (8 * (3 - three.len()));
            for digit in 0..=three.len() {
                out.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
            }
        }
        out
    }
}
