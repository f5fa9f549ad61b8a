//! The sidecar's own HTTP: is it alive, is it ready, what has it counted, and how the application is. Drains only for callers on the same host;
//! who may change tracing is for `control` to say.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use throughline_core::prometheus::Form;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

use crate::control;
use crate::scrape::Scrape;
use crate::sidecar::Sidecar;
use crate::stats::Stats;

/// What is answered: a text, or the metrics in pieces.
type Page = Either<Full<Bytes>, Scrape>;

/// Admin connections at once.
const CONNECTIONS_MAX: usize = 64;
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// Serves until the process ends.
pub(crate) async fn serve(sidecar: Arc<Sidecar>, listener: TcpListener, drain: Arc<Notify>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, caller)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Where a kubelet that asks us would ask the application.
        let reached_at = stream
            .local_addr()
            .map_or(IpAddr::from(Ipv4Addr::LOCALHOST), |address| address.ip().to_canonical());
        let (sidecar, drain) = (Arc::clone(&sidecar), Arc::clone(&drain));
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (sidecar, drain) = (Arc::clone(&sidecar), Arc::clone(&drain));
                async move {
                    if request.uri().path().starts_with("/api/tracing/") {
                        let answer = control::answer(&sidecar, request, caller).await;
                        return Ok::<_, Infallible>(answer.map(Either::Left));
                    }
                    if let Some(number) = request.uri().path().strip_prefix("/probe/") {
                        return Ok(probed(&sidecar, &request, number, reached_at).await);
                    }
                    Ok(answer(&sidecar, &request, caller, &drain))
                }
            });
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_PATIENCE)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(place);
        });
    }
}

fn answer(
    sidecar: &Sidecar,
    request: &Request<Incoming>,
    caller: SocketAddr,
    drain: &Notify,
) -> Response<Page> {
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/livez") => text(StatusCode::OK, "alive\n"),
        (&Method::GET | &Method::HEAD, "/readyz") => match sidecar.readiness.check() {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let accept = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
            let form = Form::asked(&accept.collect::<Vec<_>>().join(","));
            let mut response = Response::new(Either::Right(Stats::scrape(sidecar, form)));
            let kind = HeaderValue::from_static(form.content_type());
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        (&Method::POST, "/drain") if crate::control::by_browser(request.headers()) => {
            text(StatusCode::FORBIDDEN, "want a caller that is no web page\n")
        }
        (&Method::POST, "/drain") if caller.ip().to_canonical().is_loopback() => {
            crate::log::info("asked to drain", &[("caller", &caller)]);
            drain.notify_one();
            text(StatusCode::ACCEPTED, "draining\n")
        }
        (&Method::POST, "/drain") => text(StatusCode::FORBIDDEN, "want a caller on the same host\n"),
        (_, "/livez" | "/readyz" | "/metrics" | "/drain") => text(
            StatusCode::METHOD_NOT_ALLOWED,
            "want GET for /livez, /readyz and /metrics, POST for /drain\n",
        ),
        _ => text(
            StatusCode::NOT_FOUND,
            "want /livez, /readyz, /metrics, /drain, /probe/0 or /api/tracing/status\n",
        ),
    }
}

/// What the application says to the listed probe of this number.
async fn probed(sidecar: &Sidecar, request: &Request<Incoming>, number: &str, ip: IpAddr) -> Response<Page> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "want GET\n");
    }
    let listed = number.parse().ok().and_then(|number: usize| sidecar.settings.probes.get(number));
    let Some(probe) = listed else {
        return text(StatusCode::NOT_FOUND, "want the number of a probe that the setting `probes` lists\n");
    };
    match crate::probe::ask(probe, ip, request.headers()).await {
        Ok(()) => text(StatusCode::OK, "the application is well\n"),
        Err(why) => {
            let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "");
            *response.body_mut() = Either::Left(Full::new(Bytes::from(format!("the application: {why}\n"))));
            response
        }
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Page> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
