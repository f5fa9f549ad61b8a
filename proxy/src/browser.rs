//! What browsers get at an edge: the script, and a place to send their spans to. Answers both itself, so that they
//! are no exchanges and the application never sees them; and brings the cookie of a navigation before `core`. Decides
//! nothing about a trace; never holds more bodies than allowed.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, ETAG,
    HOST, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, RETRY_AFTER, USER_AGENT, VARY,
};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use throughline_core::browser::{self, Config, Page, Pages, SCRIPT_PATH, SPANS_PATH, Sent, Taken, Ticket};
use throughline_core::limits::BROWSER_BODY_BYTES_MAX;
use throughline_core::settings;
use tokio::sync::Semaphore;
use tower::{Layer, Service};

use crate::Boxed;
use crate::export::SpanQueue;
use crate::host::{Headers, RandomIds, now, seed};
use crate::sidecar::{Connection, Sidecar};
use crate::stats::Side;

/// The script, as `browser/` builds it.
const SCRIPT: &[u8] = include_bytes!("../../browser/dist/ops.js");
/// How long a browser need not ask again. A new version of the sidecar may bring another script, so not for ever.
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=3600");
/// Bodies that are read at once: no more than 4 MiB of them are held.
const BODIES_MAX: usize = 64;
const BODY_PATIENCE: Duration = Duration::from_secs(5);

/// One sidecar's side of all browsers.
#[derive(Debug)]
pub(crate) struct Browser {
    pages: Pages,
    /// Their spans leave as another service's, and none of ours has to go for them.
    pub(crate) spans: SpanQueue,
    pub(crate) service: String,
    zipped: Bytes,
    tag: HeaderValue,
    tag_of_zipped: HeaderValue,
    places: Semaphore,
}

impl Browser {
    pub(crate) fn new(config: &Config, service: String, settings: &settings::Settings) -> Self {
        let tag = |kind: &str| {
            let text = format!("\"{:016x}{kind}\"", fingerprint(SCRIPT));
            HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("\"script\""))
        };
        Self {
            pages: Pages::new(config, seed()),
            spans: SpanQueue::new(settings),
            service,
            zipped: zipped(SCRIPT),
            tag: tag(""),
            tag_of_zipped: tag("-gzip"),
            places: Semaphore::new(BODIES_MAX),
        }
    }

    /// Whether a request is one of a page, which goes on with the page's trace. Takes the cookie of a navigation out.
    pub(crate) fn arrive(&self, connection: &Connection, headers: &mut HeaderMap) -> Option<Page> {
        if !connection.sidecar.tracer.mode().traces_exchanges() {
            return None; // switched off, a request passes as it came
        }
        let ticket = take_ticket(headers);
        self.pages.arrive(&mut Headers(headers), ticket, connection.caller, now(), &mut RandomIds)
    }

    pub(crate) fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The script, or that the browser has it already.
    fn script<B>(&self, request: &Request<B>) -> Response<Bytes> {
        let accepts = |coding: &str| {
            let lists = request.headers().get_all(ACCEPT_ENCODING).iter();
            let mut codings = lists.filter_map(|list| list.to_str().ok()).flat_map(|list| list.split(','));
            codings.any(|one| one.trim().eq_ignore_ascii_case(coding)) // one with a weight is rare, and may be 0
        };
        let (body, tag, zipped) = match accepts("gzip") {
            true => (self.zipped.clone(), &self.tag_of_zipped, true),
            false => (Bytes::from_static(SCRIPT), &self.tag, false),
        };
        let known = request.headers().get_all(IF_NONE_MATCH).iter();
        let known = known.filter_map(|tags| tags.to_str().ok()).flat_map(|tags| tags.split(','));
        let is_known = |known: &str| {
            let known = known.trim();
            known == "*" || known.strip_prefix("W/").unwrap_or(known).as_bytes() == tag.as_bytes()
        };
        let unchanged = known.into_iter().any(is_known);
        let length = HeaderValue::from(body.len());
        let mut response = match unchanged {
            true => answer(StatusCode::NOT_MODIFIED, Bytes::new()),
            false if request.method() == Method::HEAD => answer(StatusCode::OK, Bytes::new()),
            false => answer(StatusCode::OK, body),
        };
        let headers = response.headers_mut();
        headers.insert(ETAG, tag.clone());
        headers.insert(CACHE_CONTROL, CACHE);
        headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        if !unchanged {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/javascript; charset=utf-8"));
            headers.insert(CONTENT_LENGTH, length);
            if zipped {
                headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
        response
    }
}

/// FNV-1a: the script's bytes as a number, the same in every process.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn zipped(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to memory does not fail.
    let _ = std::io::Write::write_all(&mut encoder, bytes);
    Bytes::from(encoder.finish().unwrap_or_default())
}

/// Takes the cookie out of its line; the other lines, and the other cookies of its own, stay as they are.
fn take_ticket(headers: &mut HeaderMap) -> Option<Ticket> {
    let is_there = headers.get_all(COOKIE).iter().any(|line| browser::cut(line.as_bytes()).is_some());
    if !is_there {
        return None;
    }
    let lines: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    headers.remove(COOKIE);
    let mut found = None;
    for line in lines {
        let Some((rest, ticket)) = browser::cut(line.as_bytes()) else {
            headers.append(COOKIE, line);
            continue;
        };
        found = found.or(ticket);
        if let Ok(rest) = HeaderValue::from_bytes(&rest)
            && !rest.is_empty()
        {
            headers.append(COOKIE, rest);
        }
    }
    found
}

/// Wraps what is behind the two paths of browsers.
#[derive(Clone, Debug)]
pub(crate) struct BrowserLayer(pub(crate) Arc<Connection>);

impl<S> Layer<S> for BrowserLayer {
    type Service = ForBrowsers<S>;
    fn layer(&self, inner: S) -> ForBrowsers<S> {
        let serves = self.0.side == Side::Inbound && self.0.sidecar.browser.is_some();
        ForBrowsers { inner, connection: serves.then(|| Arc::clone(&self.0)) }
    }
}

/// Answers the two paths of browsers, passes everything else on.
#[derive(Clone, Debug)]
pub(crate) struct ForBrowsers<S> {
    inner: S,
    /// None where browsers get nothing: a stack is cloned for each request, and this then costs it nothing.
    connection: Option<Arc<Connection>>,
}

/// A body that is said whole.
pub(crate) trait Whole {
    fn whole(text: Bytes) -> Self;
}

impl<S, B, D> Service<Request<B>> for ForBrowsers<S>
where
    // Not a future of its own around the service's: every request would be larger for what few of them ask.
    S: Service<Request<B>, Response = Response<D>, Future: From<Boxed<Response<D>>>>,
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    D: Whole + 'static,
{
    type Response = Response<D>;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let is_ours = || matches!(request.uri().path(), SCRIPT_PATH | SPANS_PATH);
        let Some(connection) = self.connection.clone().filter(|_| is_ours()) else {
            return self.inner.call(request);
        };
        let answer: Boxed<Response<D>> = Box::pin(async move {
            let Some(browser) = &connection.sidecar.browser else {
                return answer(StatusCode::NOT_FOUND, Bytes::new()).map(D::whole);
            };
            own_path(browser, &connection, request).await.map(D::whole)
        });
        answer.into()
    }
}

async fn own_path<B>(browser: &Browser, connection: &Connection, request: Request<B>) -> Response<Bytes>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let only = |methods: &'static str| {
        let mut refused = told(StatusCode::METHOD_NOT_ALLOWED, "want another method: see Allow");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
        refused
    };
    match (request.uri().path(), request.method()) {
        (SCRIPT_PATH, &Method::GET | &Method::HEAD) => browser.script(&request),
        (SCRIPT_PATH, _) => only("GET, HEAD"),
        (_, &Method::POST) => match take(browser, connection, request).await {
            Ok(Taken { rejected: 0, .. }) => json("{}".to_owned()),
            Ok(Taken { rejected, .. }) => {
                json(format!("{{\"partialSuccess\":{{\"rejectedSpans\":\"{rejected}\"}}}}"))
            }
            Err(refusal) => refused(refusal),
        },
        (_, _) => only("POST"),
    }
}

async fn take<B>(
    browser: &Browser,
    connection: &Connection,
    mut request: Request<B>,
) -> Result<Taken, browser::Body>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let (sidecar, address): (&Sidecar, _) = (&connection.sidecar, connection.caller);
    let counted = |body: browser::Body| {
        browser.pages.count(body);
        body
    };
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let host = request.headers().get(HOST).cloned();
    let authority = match (&authority, &host) {
        (Some(authority), _) => authority.as_bytes(),
        (None, Some(host)) => host.as_bytes(),
        (None, None) => b"",
    };
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    browser.pages.may_send(&Headers(request.headers_mut()), length, authority, address, now())?;
    let Ok(_place) = browser.places.try_acquire() else { return Err(counted(browser::Body::Rate)) };
    let agent = request.headers().get(USER_AGENT).cloned();
    let body = Limited::new(request.into_body(), BROWSER_BODY_BYTES_MAX).collect();
    let body = match tokio::time::timeout(BODY_PATIENCE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(counted(browser::Body::TooLarge)),
        Ok(Err(_)) | Err(_) => return Err(counted(browser::Body::Broken)),
    };
    if !sidecar.tracer.mode().traces_exchanges() {
        counted(browser::Body::Off);
        return Ok(Taken::default());
    }
    let now = now();
    let sent = Sent { body: &body, address, agent: agent.as_ref().map(HeaderValue::as_bytes), now };
    let taken = browser.pages.take(&sent, &mut &browser.spans)?;
    sidecar.tracer.owe_for_page(taken.taken, now);
    Ok(taken)
}

fn refused(refusal: browser::Body) -> Response<Bytes> {
    use browser::Body;
    match refusal {
        Body::Foreign => told(StatusCode::FORBIDDEN, "want a page of the same origin"),
        Body::Type => {
            told(StatusCode::UNSUPPORTED_MEDIA_TYPE, "want application/json, without a content-encoding")
        }
        Body::TooLarge => told(StatusCode::PAYLOAD_TOO_LARGE, "want 64 KiB at the most"),
        Body::Rate => {
            let mut response = told(StatusCode::TOO_MANY_REQUESTS, "want fewer: come back in a second");
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            response
        }
        Body::Broken => told(StatusCode::REQUEST_TIMEOUT, "want a whole body within 5 seconds"),
        Body::NoOtlp | Body::Off | Body::Read => told(StatusCode::BAD_REQUEST, "want spans as OTLP in JSON"),
    }
}

fn told(status: StatusCode, want: &'static str) -> Response<Bytes> {
    let mut response = answer(status, Bytes::from(format!("throughline: {want}\n")));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(text: String) -> Response<Bytes> {
    let mut response = answer(StatusCode::OK, Bytes::from(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn answer(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cookies_without_ours_stay_as_they_are() {
        let parent = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-01";
        let lines = |headers: &HeaderMap| {
            let all = headers.get_all(COOKIE).iter();
            all.map(|line| line.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let mut headers = HeaderMap::new();
        for line in ["a=1", &format!("_tl_op={parent}~login"), "b= 2 ;c"] {
            headers.append(COOKIE, line.parse().unwrap());
        }
        assert_eq!(take_ticket(&mut headers).unwrap().operation.as_str(), "login");
        assert_eq!(lines(&headers), ["a=1", "b= 2 ;c"]);
        assert_eq!(take_ticket(&mut headers), None);
        assert_eq!(lines(&headers), ["a=1", "b= 2 ;c"]);
    }

    #[test]
    fn the_script_is_as_small_as_it_was_promised() {
        let bytes = zipped(SCRIPT).len();
        assert!(bytes <= 3072, "{bytes} bytes, want 3,072");
    }
}
