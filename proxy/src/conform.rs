//! Refuses requests whose head is illegal or ambiguous, before anything of them is forwarded: what two
//! parsers may read differently is how requests are smuggled (RFC 9112 §11.2). hyper's own parser has done
//! its part; these are the rules that it leaves to its user. Changes nothing of a request that passes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Version};
use tower::{Layer, Service};

use crate::sidecar::Connection;
use crate::stats::Refusal;

/// Wraps a service.
#[derive(Clone, Debug)]
pub(crate) struct ConformLayer(pub(crate) Arc<Connection>);

impl<S> Layer<S> for ConformLayer {
    type Service = Conform<S>;
    fn layer(&self, inner: S) -> Conform<S> {
        Conform { inner, connection: Arc::clone(&self.0) }
    }
}

/// Answers illegal requests with 400, passes the others on.
#[derive(Clone, Debug)]
pub(crate) struct Conform<S> {
    inner: S,
    connection: Arc<Connection>,
}

/// A body that says why a request was refused.
pub(crate) trait Explain {
    fn explain(text: &'static str) -> Self;
}

impl<S, B, D> Service<Request<B>> for Conform<S>
where
    S: Service<Request<B>, Response = Response<D>, Error = Infallible>,
    D: Explain,
{
    type Response = Response<D>;
    type Error = Infallible;
    type Future = ConformFuture<S::Future, D>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match refuse(&self.connection, &request) {
            None => ConformFuture::Passed { inner: self.inner.call(request) },
            Some(response) => ConformFuture::Refused { response: Some(response) },
        }
    }
}

/// The answer to a request that is illegal; none for one that is not.
pub(crate) fn refuse<B, D: Explain>(connection: &Connection, request: &Request<B>) -> Option<Response<D>> {
    let raw = if connection.progress.is_illegal() { Err(Refusal::Framing) } else { Ok(()) };
    let fields_max = connection.sidecar.settings.header_fields_max;
    let judged = raw.and_then(|()| {
        judge(request.method(), request.uri(), request.version(), request.headers(), fields_max)
    });
    let refusal = judged.err()?;
    connection.sidecar.stats.refused(refusal);
    Some(answer(refusal))
}

pin_project_lite::pin_project! {
    /// The answer, ours or the service's.
    #[project = Projected]
    #[derive(Debug)]
    pub(crate) enum ConformFuture<F, D> {
        Passed { #[pin] inner: F },
        Refused { response: Option<Response<D>> },
    }
}

impl<F, D> Future for ConformFuture<F, D>
where
    F: Future<Output = Result<Response<D>, Infallible>>,
{
    type Output = Result<Response<D>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Projected::Passed { inner } => inner.poll(cx),
            Projected::Refused { response } => match response.take() {
                Some(response) => Poll::Ready(Ok(response)),
                None => Poll::Pending, // polled after it was ready: nothing more will come
            },
        }
    }
}

/// The answer to a request that is refused.
pub(crate) fn answer<D: Explain>(refusal: Refusal) -> Response<D> {
    let (status, text) = match refusal {
        Refusal::Host => (StatusCode::BAD_REQUEST, "throughline: want exactly one valid Host\n"),
        Refusal::TransferEncoding => {
            (StatusCode::BAD_REQUEST, "throughline: want Transfer-Encoding: chunked by itself, in HTTP/1.1\n")
        }
        Refusal::Framing => (
            StatusCode::BAD_REQUEST,
            "throughline: want Content-Length or Transfer-Encoding, not both, and no fragment in the target
",
        ),
        Refusal::ContentLength => {
            (StatusCode::BAD_REQUEST, "throughline: want one Content-Length, in digits\n")
        }
        Refusal::Target => (StatusCode::BAD_REQUEST, "throughline: want a valid request target\n"),
        Refusal::TooManyFields => {
            (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "throughline: the head has too many fields\n")
        }
        Refusal::OwnPort => (StatusCode::FORBIDDEN, "throughline: the sidecar forwards nothing to itself\n"),
        Refusal::Method => {
            (StatusCode::METHOD_NOT_ALLOWED, "throughline: CONNECT is for the outbound side\n")
        }
    };
    let mut response = Response::new(D::explain(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(crate::forward::ERROR_HEADER, HeaderValue::from_static("request_refused"));
    // Whoever sends an illegal head may be out of step with us on where the next one begins.
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn judge(
    method: &Method,
    uri: &http::Uri,
    version: Version,
    headers: &HeaderMap,
    fields_max: u64,
) -> Result<(), Refusal> {
    if headers.len() as u64 > fields_max {
        return Err(Refusal::TooManyFields);
    }
    judge_target(method, uri)?;
    judge_host(uri, version, headers)?;
    judge_framing(version, headers)
}

/// RFC 9112 §3.2: origin form, absolute form, authority form for CONNECT, `*` for OPTIONS.
fn judge_target(method: &Method, uri: &http::Uri) -> Result<(), Refusal> {
    let legal = match (method, uri.scheme_str()) {
        (&Method::CONNECT, None) => {
            uri.authority().is_some_and(|authority| authority.port_u16().is_some_and(|port| port > 0))
        }
        (&Method::CONNECT, Some(_)) => false,
        (_, Some(scheme)) => {
            ["http", "https"].contains(&scheme) && uri.host().is_some_and(|host| !host.is_empty())
        }
        (&Method::OPTIONS, None) if uri.path() == "*" => true,
        (_, None) => uri.authority().is_none() && uri.path().starts_with('/'),
    };
    let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    if legal && !has_user { Ok(()) } else { Err(Refusal::Target) }
}

/// RFC 9112 §3.2: one `Host`, valid, in every HTTP/1.1 request; RFC 9113 §8.3.1: none that differs from
/// `:authority`.
fn judge_host(uri: &http::Uri, version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::Host);
    }
    match (host, version, uri.authority()) {
        (None, Version::HTTP_11, _) | (None, Version::HTTP_2, None) => Err(Refusal::Host),
        (None, _, _) => Ok(()),
        (Some(host), Version::HTTP_2, Some(authority)) => {
            let same = host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
            if same { Ok(()) } else { Err(Refusal::Host) }
        }
        (Some(host), _, _) => {
            if is_host(host.as_bytes()) {
                Ok(())
            } else {
                Err(Refusal::Host)
            }
        }
    }
}

/// `uri-host [ ":" port ]` (RFC 9110 §7.2). Empty is legal: it says that the target has no authority.
fn is_host(host: &[u8]) -> bool {
    if host.is_empty() {
        return true;
    }
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%:[]".contains(byte);
    if !host.iter().all(allowed) {
        return false;
    }
    let (name, port) = match host.strip_prefix(b"[") {
        Some(rest) => match rest.iter().position(|byte| *byte == b']') {
            Some(end) => rest.split_at(end),
            None => return false,
        },
        None => match host.iter().position(|byte| *byte == b':') {
            Some(colon) => host.split_at(colon),
            None => (host, &b""[..]),
        },
    };
    let port = port.strip_prefix(b"]").unwrap_or(port);
    let digits = port.strip_prefix(b":").unwrap_or(port);
    let port_fits =
        digits.is_empty() || std::str::from_utf8(digits).is_ok_and(|text| text.parse::<u16>().is_ok());
    let plain = host.starts_with(b"[") || !name.iter().any(|byte| b"[]".contains(byte));
    !name.is_empty() && plain && port_fits && digits.iter().all(u8::is_ascii_digit)
}

/// RFC 9112 §6: how long the body is must be said once, and in one way.
fn judge_framing(version: Version, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        let chunked = encoding.as_bytes().eq_ignore_ascii_case(b"chunked");
        let alone = encodings.next().is_none() && !headers.contains_key(CONTENT_LENGTH);
        if !(chunked && alone && version == Version::HTTP_11) {
            return Err(Refusal::TransferEncoding);
        }
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = length.as_bytes();
        let number = !digits.is_empty() && digits.len() <= 19 && digits.iter().all(u8::is_ascii_digit);
        if !number || lengths.next().is_some() {
            return Err(Refusal::ContentLength);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(method: &str, target: &str, version: Version, fields: &[(&str, &str)]) -> Result<(), Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        judge(&method, &target.parse().unwrap(), version, &headers, 10)
    }

    #[test]
    fn one_host_in_one_spelling() {
        const ONE: Version = Version::HTTP_11;
        for host in ["a", "a.b:80", "[::1]", "[::1]:8080", "a:", "", "a_b", "1.2.3.4:5"] {
            assert_eq!(judged("GET", "/", ONE, &[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "a b", "a/b", "a,b", "a@b", "a:x", "a:99999", "a:1:2", "[::1", "::1]", ":80", "a?b", "a#b",
            "a\\b",
        ] {
            assert_eq!(judged("GET", "/", ONE, &[("host", host)]), Err(Refusal::Host), "{host}");
        }
        assert_eq!(judged("GET", "/", ONE, &[]), Err(Refusal::Host));
        assert_eq!(judged("GET", "/", ONE, &[("host", "a"), ("host", "a")]), Err(Refusal::Host));
        assert_eq!(judged("GET", "/", Version::HTTP_10, &[]), Ok(()));
        assert_eq!(judged("GET", "http://a/", Version::HTTP_2, &[("host", "b")]), Err(Refusal::Host));
        assert_eq!(judged("GET", "http://a/", Version::HTTP_2, &[("host", "A")]), Ok(()));
    }

    #[test]
    fn the_length_of_a_body_is_said_once_and_in_one_way() {
        let framed = |fields: &[(&str, &str)]| {
            let all = [&[("host", "a")], fields].concat();
            judged("POST", "/", Version::HTTP_11, &all)
        };
        for fields in [
            &[("transfer-encoding", "chunked")][..],
            &[("transfer-encoding", "Chunked")],
            &[("content-length", "0")],
        ] {
            assert_eq!(framed(fields), Ok(()), "{fields:?}");
        }
        for encoding in [
            ",chunked",
            "chunked, chunked",
            "cow, chunked",
            "chunked,",
            "gzip",
            "identity",
            "",
            "\"chunked\"",
        ] {
            assert_eq!(
                framed(&[("transfer-encoding", encoding)]),
                Err(Refusal::TransferEncoding),
                "{encoding}"
            );
        }
        let both = [("transfer-encoding", "chunked"), ("content-length", "3")];
        assert_eq!(framed(&both), Err(Refusal::TransferEncoding));
        let twice = [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(framed(&twice), Err(Refusal::TransferEncoding));
        for length in ["+5", "-1", "5, 5", "0x5", "5 5", "", "99999999999999999999"] {
            assert_eq!(framed(&[("content-length", length)]), Err(Refusal::ContentLength), "{length}");
        }
        assert_eq!(framed(&[("content-length", "5"), ("content-length", "5")]), Err(Refusal::ContentLength));
        let old = judged("POST", "/", Version::HTTP_10, &[("transfer-encoding", "chunked")]);
        assert_eq!(old, Err(Refusal::TransferEncoding));
    }

    #[test]
    fn targets_have_one_of_the_four_forms() {
        for (method, target, legal) in [
            ("GET", "/a?b", true),
            ("GET", "http://a/b", true),
            ("OPTIONS", "*", true),
            ("GET", "*", false),
            ("CONNECT", "a:443", true),
            ("CONNECT", "a:0", false),
            ("CONNECT", "http://a:443/", false),
            ("GET", "ftp://a/", false),
            ("GET", "http://user:pass@a/", false),
            ("GET", "a:443", false),
        ] {
            let judged = judged(method, target, Version::HTTP_11, &[("host", "a")]);
            assert_eq!(judged.is_ok(), legal, "{method} {target}");
        }
    }
}
