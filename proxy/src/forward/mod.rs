//! Sends a request on to its upstream and brings the answer back: finds where it goes, takes a connection
//! from the pool or makes one, keeps hop-by-hop fields to their hop. Knows nothing of traces. A request is
//! sent at most once.

mod asked;
mod body;
mod dial;
mod headers;
mod pool;
#[cfg(test)]
mod sizes;
mod tunnel;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, PROXY_AUTHORIZATION};
use http::uri::Scheme;
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use throughline_core::classify::Failure;
use throughline_core::settings::{Authority, Capture};
use tower::Service;

pub(crate) use body::{FromUpstream, Upload};
pub(crate) use dial::{dial, dial_address};
pub(crate) use pool::{Kind, Upstream, Upstreams};
pub(crate) use tunnel::{Tunnel, carry, connect, spoken};

use crate::messages::Resumed;
use crate::sidecar::{Connection, Sidecar};
use crate::stats::Side;

/// Says on the sidecar's own answers what failed.
pub(crate) const ERROR_HEADER: HeaderName = HeaderName::from_static(throughline_core::names::header::ERROR);

/// An answer, with the tunnel behind it where the protocol was switched.
#[derive(Debug)]
pub(crate) struct Answer<D> {
    pub(crate) response: Response<D>,
    pub(crate) tunnel: Option<Tunnel>,
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gone {
    /// The upstream failed.
    Upstream(Failure),
    /// The caller hung up while it was still sending.
    Caller,
}

impl From<Failure> for Gone {
    fn from(failure: Failure) -> Self {
        Self::Upstream(failure)
    }
}

/// Forwards the requests of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Forward(pub(crate) Arc<Connection>);

impl Service<Request<Resumed<Incoming>>> for Forward {
    type Response = Answer<FromUpstream>;
    type Error = Gone;
    type Future = Pin<Box<dyn Future<Output = Result<Answer<FromUpstream>, Gone>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Resumed<Incoming>>) -> Self::Future {
        Box::pin(forward(Arc::clone(&self.0), request))
    }
}

async fn forward(
    connection: Arc<Connection>,
    mut request: Request<Resumed<Incoming>>,
) -> Result<Answer<FromUpstream>, Gone> {
    let sidecar = &connection.sidecar;
    let to = destination(&connection, &request)?;
    let kind = if request.version() == Version::HTTP_2 { Kind::Http2 } else { Kind::Http1 };
    if sidecar.upstreams.is_pubsub(&to) {
        readdress(&mut request, &to, sidecar.upstreams.pubsub_by_tls());
    }
    let upgrade = headers::wants_upgrade(&request).then(|| hyper::upgrade::on(&mut request));
    let upstream = match &connection.captured {
        None => {
            prepare(&mut request, kind, &to);
            sidecar.upstreams.upstream(&to)
        }
        Some(captured) => {
            if let Some(failure) = captured.failure {
                return Err(failure.into());
            }
            leave_target(&mut request, kind, &to);
            Arc::clone(&captured.upstream)
        }
    };
    let (request, upload) = Upload::wrap(request);
    let patience = sidecar.settings.response_timeout_ms;
    let sending = sidecar.upstreams.send(sidecar, &to, upstream, kind, request, &upload);
    let answered = if patience == 0 {
        sending.await
    } else {
        let limit = Duration::from_millis(patience);
        tokio::time::timeout(limit, sending).await.unwrap_or(Err(Failure::Timeout))
    };
    let mut response = match answered {
        Ok(response) => response,
        Err(_) if upload.caller_failed() => return Err(Gone::Caller),
        Err(failure) => return Err(failure.into()),
    };
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let tunnel = match upgrade {
        Some(caller) if switched => {
            if let Some(captured) = &connection.captured {
                captured.ends.upgrade();
            }
            Some(Tunnel::upgraded(caller, hyper::upgrade::on(&mut response)))
        }
        Some(_) | None => None,
    };
    // 426 names what it wants in `Upgrade` (RFC 9110 §15.5.22).
    let names_protocol = tunnel.is_some() || response.status() == StatusCode::UPGRADE_REQUIRED;
    let closes = connection.captured.is_some() && kind == Kind::Http1 && headers::closes(&response);
    headers::strip(response.headers_mut(), names_protocol);
    if closes {
        // A captured caller learns what the upstream does with the connection that both take for one.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(Answer { response, tunnel })
}

/// Where a request goes: to where a CONNECT or the kernel said; to the application; to where its target or `Host` says.
fn destination<B>(connection: &Connection, request: &Request<B>) -> Result<Authority, Failure> {
    let sidecar = &connection.sidecar;
    match (connection.side, &connection.tunnel_to) {
        (Side::Inbound | Side::Outbound, Some(to)) => Ok(to.clone()),
        (Side::Inbound, None) => sidecar.settings.inbound_upstream.clone().ok_or(Failure::Refused),
        (Side::Outbound, None) => {
            let host = request.headers().get(HOST).map(HeaderValue::as_bytes).unwrap_or_default();
            let authority = request.uri().authority().map_or(host, |authority| authority.as_str().as_bytes());
            if request.uri().scheme_str() == Some("https") {
                // TLS would have to be ours; a caller that wants it end to end asks by CONNECT.
                return Err(Failure::Refused);
            }
            named(sidecar, authority, 80)
        }
    }
}

/// The upstream of an authority by name, through the user's own routes.
pub(crate) fn named(sidecar: &Sidecar, authority: &[u8], default_port: u16) -> Result<Authority, Failure> {
    let text = std::str::from_utf8(authority).map_err(|_| Failure::Refused)?;
    let to = Authority::parse(text)
        .or_else(|| Authority::parse(&format!("{}:{default_port}", text.trim_end_matches(':'))))
        .ok_or(Failure::Refused)?;
    if let Some(pubsub) = sidecar.upstreams.pubsub(&sidecar.own_ports, &to) {
        return Ok(pubsub.clone());
    }
    if sidecar.settings.capture == Capture::Transparent {
        return Err(Failure::Refused); // only the kernel says where else something goes
    }
    Ok(sidecar.upstreams.route(&to).cloned().unwrap_or(to))
}

/// A client that takes the sidecar for its Pub/Sub endpoint names the sidecar; the service wants its own name.
fn readdress<B>(request: &mut Request<B>, to: &Authority, tls: bool) {
    let default_port = if tls { 443 } else { 80 };
    let name = if to.port == default_port { to.host.clone() } else { to.to_string() };
    if let Ok(host) = HeaderValue::from_str(&name)
        && request.headers().contains_key(HOST)
    {
        request.headers_mut().insert(HOST, host);
    }
    if request.uri().authority().is_some() {
        let mut parts = request.uri().clone().into_parts();
        parts.authority = name.parse().ok();
        parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

/// Keeps the head of a captured request as its caller wrote it, but for what belongs to the hop: whoever it names may be
/// a proxy, and the caller knows.
fn leave_target<B>(request: &mut Request<B>, kind: Kind, to: &Authority) {
    let upgrade = headers::wants_upgrade(request);
    let for_proxy = request.headers_mut().remove(PROXY_AUTHORIZATION);
    headers::strip(request.headers_mut(), upgrade);
    if let Some(for_proxy) = for_proxy {
        request.headers_mut().insert(PROXY_AUTHORIZATION, for_proxy);
    }
    if kind == Kind::Http2 {
        return;
    }
    named_host(request, to);
    *request.version_mut() = Version::HTTP_11;
}

/// HTTP/1.0 need not name a host, HTTP/1.1 must.
fn named_host<B>(request: &mut Request<B>, to: &Authority) {
    if !request.headers().contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&to.to_string())
    {
        request.headers_mut().insert(HOST, host);
    }
}

/// Puts the head into the form in which an upstream, rather than a proxy, is asked.
fn prepare<B>(request: &mut Request<B>, kind: Kind, to: &Authority) {
    let upgrade = headers::wants_upgrade(request);
    headers::strip(request.headers_mut(), upgrade);
    if kind == Kind::Http2 {
        return;
    }
    if let Some(authority) = request.uri().authority() {
        // RFC 9112 §3.2.2: the target's authority replaces whatever `Host` said.
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            request.headers_mut().insert(HOST, host);
        }
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    named_host(request, to);
    *request.version_mut() = Version::HTTP_11;
}
