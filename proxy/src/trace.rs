//! One exchange a request: begins it before the request is forwarded, ends it exactly once, at the last byte,
//! the trailers, the error or the hang-up, whichever comes first. Decides nothing; `core` does.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CONTENT_TYPE, EXPECT, HOST, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use throughline_core::classify::{Direction, Failure, Outcome};
use throughline_core::events::grpc_frame::{Reassembler, first_message, reframe};
use throughline_core::exchange::{
    self, Destination, Exchange, Mark, RequestHead, Scheme, Wanted, looks_like_push,
};
use throughline_core::ids::TraceId;
use tower::{Layer, Service};

use crate::access_log;
use crate::browser::Whole;
use crate::conform::Explain;
use crate::forward::{Answer, ERROR_HEADER, Gone, Tunnel};
use crate::host::{Headers, RandomIds, later_than, now};
use crate::messages::{self, Held, Resumed};
use crate::moments::Moments;
use crate::sidecar::Connection;
use crate::stats::Side;

/// How long the beginning of a body that may be a push is waited for: a push comes in one piece.
const GLANCE: Duration = Duration::from_millis(100);
/// The same for the request that opens a stream of messages, which says at once what it wants.
const SUBSCRIPTION: Duration = Duration::from_secs(1);

/// Wraps a service that forwards.
#[derive(Clone, Debug)]
pub(crate) struct TraceLayer(pub(crate) Arc<Connection>);

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;
    fn layer(&self, inner: S) -> Trace<S> {
        Trace { inner, connection: Arc::clone(&self.0) }
    }
}

/// Traces each request, and answers in the place of an upstream that can't.
#[derive(Clone, Debug)]
pub(crate) struct Trace<S> {
    inner: S,
    connection: Arc<Connection>,
}

impl<S, B, D> Service<Request<B>> for Trace<S>
where
    S: Service<Request<Resumed<B>>, Response = Answer<D>, Error = Gone, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
    D: Body<Data = Bytes, Error = Failure> + Send + Unpin + 'static,
{
    type Response = Response<Traced<Resumed<D>>>;
    type Error = Infallible;
    type Future = TraceFuture<S::Future, Resumed<D>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(())) // a pool is always ready to be asked
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let live = Live::begin(&self.connection, &mut request);
        match live.wanted() {
            Wanted::Nothing => TraceFuture::Plain {
                inner: self.inner.call(request.map(Resumed::untouched)),
                live: Some(live),
            },
            wanted => TraceFuture::Held { inner: Box::pin(held(self.inner.clone(), live, request, wanted)) },
        }
    }
}

/// An exchange with messages in its bodies: what `core` wants to see is held and edited on its way.
async fn held<S, B, D>(
    mut inner: S,
    mut live: Box<Live>,
    request: Request<B>,
    wanted: Wanted,
) -> Response<Traced<Resumed<D>>>
where
    S: Service<Request<Resumed<B>>, Response = Answer<D>, Error = Gone>,
    B: Body<Data = Bytes> + Unpin,
    D: Body<Data = Bytes, Error = Failure> + Unpin,
{
    let Ok(request) = edit_request(&mut live, request, wanted).await else {
        return conclude(Err::<Answer<D>, _>(Gone::Caller), live, None);
    };
    let answer = inner.call(request).await;
    match wanted {
        Wanted::Response | Wanted::RequestAndResponse => match answer {
            Ok(answer) if answer.tunnel.is_none() => edit_answer(live, answer).await,
            answer => conclude(answer, live, None),
        },
        Wanted::Stream => {
            let limit = usize::try_from(live.body_bytes_max()).unwrap_or(usize::MAX);
            conclude(answer, live, Some(Box::new(Reassembler::new(limit))))
        }
        Wanted::Nothing | Wanted::MaybePush | Wanted::Request => conclude(answer, live, None),
    }
}

/// `Err` when the caller hung up while its body was read.
async fn edit_request<B>(
    live: &mut Live,
    request: Request<B>,
    wanted: Wanted,
) -> Result<Request<Resumed<B>>, ()>
where
    B: Body<Data = Bytes> + Unpin,
{
    let limit = live.body_bytes_max();
    let (mut head, body) = request.into_parts();
    let unfit = messages::unfit(&mut head.headers, limit);
    if wanted == Wanted::Response {
        return Ok(Request::from_parts(head, Resumed::untouched(body)));
    }
    if wanted == Wanted::Stream {
        let (first, body) =
            messages::beginning(body, limit, SUBSCRIPTION, first_message).await.map_err(|_| ())?;
        if let Some(message) = first {
            live.subscribed(&message);
        }
        return Ok(Request::from_parts(head, body));
    }
    let body = if wanted == Wanted::MaybePush {
        // A push does not wait to be asked for its body, and what is compressed can't be looked at.
        if unfit == Some("compressed") || head.headers.contains_key(EXPECT) {
            return Ok(Request::from_parts(head, Resumed::untouched(body)));
        }
        let (push, body) = messages::beginning(body, limit, GLANCE, looks_like_push).await.map_err(|_| ())?;
        if push != Some(true) {
            return Ok(Request::from_parts(head, body)); // most JSON requests are none
        }
        body
    } else {
        Resumed::untouched(body)
    };
    if let Some(reason) = unfit {
        live.untouched(reason);
        return Ok(Request::from_parts(head, body));
    }
    let sidecar = Arc::clone(&live.connection.sidecar);
    let Ok(_room) = sidecar.holding.try_acquire_many(messages::kib(&head.headers, limit)) else {
        live.untouched("busy");
        return Ok(Request::from_parts(head, body));
    };
    let body = match messages::hold(body, limit).await.map_err(|_| ())? {
        Held::Whole(body, trailers) => match live.request_body(&body, &mut head.headers) {
            Some(edited) => {
                messages::set_length(&mut head.headers, edited.len());
                messages::whole(Bytes::from(edited), trailers)
            }
            None => messages::whole(body, trailers),
        },
        Held::Streaming(body, reason) => {
            reason.into_iter().for_each(|reason| live.untouched(reason));
            body
        }
    };
    Ok(Request::from_parts(head, body))
}

async fn edit_answer<D>(mut live: Box<Live>, answer: Answer<D>) -> Response<Traced<Resumed<D>>>
where
    D: Body<Data = Bytes, Error = Failure> + Unpin,
{
    let (mut head, body) = answer.response.into_parts();
    live.response(head.status, &mut head.headers);
    let limit = live.body_bytes_max();
    let unfit = messages::unfit(&mut head.headers, limit);
    if let Some(reason) = unfit.filter(|_| head.status.is_success()) {
        live.untouched(reason);
    }
    let sidecar = Arc::clone(&live.connection.sidecar);
    let room = sidecar.holding.try_acquire_many(messages::kib(&head.headers, limit)).ok();
    if room.is_none() {
        live.untouched("busy");
    }
    if unfit.is_some() || room.is_none() || !head.status.is_success() {
        return Response::from_parts(head, Traced::upstream(Resumed::untouched(body), live, None));
    }
    let body = match messages::hold(Resumed::untouched(body), limit).await {
        Ok(Held::Whole(body, trailers)) => match live.response_body(&body) {
            Some(edited) => {
                messages::set_length(&mut head.headers, edited.len());
                messages::whole(Bytes::from(edited), trailers)
            }
            None => messages::whole(body, trailers),
        },
        Ok(Held::Streaming(body, reason)) => {
            reason.into_iter().for_each(|reason| live.untouched(reason));
            body
        }
        Err(failure) => {
            // Nothing was sent yet, so the caller can be told.
            return live.answer_instead(failure);
        }
    };
    Response::from_parts(head, Traced::upstream(body, live, None))
}

/// An exchange under way: whatever happens to its owner, it is ended once.
#[derive(Debug)]
struct Live {
    exchange: Option<Exchange>,
    connection: Arc<Connection>,
    request: Option<access_log::Request>,
    bytes_out: u64,
    /// In `full` mode, what forwarding notes.
    moments: Option<Moments>,
    /// The trace of a page that the exchange goes on with.
    page: Option<TraceId>,
}

impl Live {
    /// Boxed: it is handed on from future to future, and to the body.
    fn begin<B>(connection: &Arc<Connection>, request: &mut Request<B>) -> Box<Self> {
        let sidecar = &connection.sidecar;
        let browser = sidecar.browser.as_ref().filter(|_| connection.side == Side::Inbound);
        let page = browser.and_then(|browser| browser.arrive(connection, request.headers_mut()));
        let logged = sidecar.access_log.is_on().then(|| {
            let bytes_in = access_log::BytesIn::default();
            request.extensions_mut().insert(bytes_in.clone());
            access_log::Request { method: request.method().clone(), uri: request.uri().clone(), bytes_in }
        });
        // A copy of the handle only: the bytes of both stay where they are.
        let (method, uri, version) = (request.method().clone(), request.uri().clone(), request.version());
        let host = match uri.authority() {
            Some(_) => None,
            None => request.headers().get(HOST).cloned(),
        };
        // HTTP/1.0 need not name anybody; then the kernel's word is the name.
        let unnamed = match (uri.authority(), &host, &connection.tunnel_to) {
            (None, None, Some(to)) => to.to_string(),
            _ => String::new(),
        };
        let authority = match (uri.authority(), &host) {
            (Some(authority), _) => authority.as_str().as_bytes(),
            (None, Some(host)) => host.as_bytes(),
            (None, None) => unnamed.as_bytes(),
        };
        let pubsub = match connection.side {
            Side::Outbound => sidecar.upstreams.pubsub_of(&sidecar.own_ports, authority),
            Side::Inbound => None,
        };
        let (authority, scheme) = match &pubsub {
            Some(name) if sidecar.upstreams.pubsub_by_tls() => (name.as_bytes(), Scheme::Https),
            Some(name) => (name.as_bytes(), Scheme::Http),
            None => (authority, Scheme::Http),
        };
        let direction = match connection.side {
            Side::Inbound => Direction::Inbound,
            Side::Outbound => Direction::Outbound,
        };
        let head = RequestHead {
            direction,
            method: method.as_str(),
            scheme,
            authority,
            path: uri.path().as_bytes(),
            query: uri.query().map(str::as_bytes),
            version: match version {
                Version::HTTP_10 => exchange::Version::Http10,
                Version::HTTP_2 => exchange::Version::Http2,
                _ => exchange::Version::Http11,
            },
            caller: Some(connection.caller),
            destination: if sidecar.upstreams.is_routed(authority) {
                Destination::Routed
            } else {
                Destination::Named
            },
        };
        let mut headers = Headers(request.headers_mut());
        let exchange = match (&page, browser) {
            (Some(page), Some(browser)) => {
                let exchange = sidecar.tracer.begin_of_page(&head, &mut headers, now(), &mut RandomIds, page);
                browser.pages().decided(page, &exchange);
                exchange
            }
            _ => sidecar.tracer.begin(&head, &mut headers, now(), &mut RandomIds),
        };
        let page = page.map(|page| page.trace_id);
        let moments = exchange.wants_marks().then(Moments::default);
        if let Some(moments) = &moments {
            request.extensions_mut().insert(moments.clone());
        }
        let connection = Arc::clone(connection);
        Box::new(Self { exchange: Some(exchange), connection, request: logged, bytes_out: 0, moments, page })
    }

    fn wanted(&self) -> Wanted {
        self.exchange.as_ref().map_or(Wanted::Nothing, Exchange::wanted)
    }

    fn body_bytes_max(&self) -> u64 {
        self.connection.sidecar.settings.event_body_bytes_max
    }

    fn untouched(&self, reason: &'static str) {
        self.connection.sidecar.tracer.count_untouched(reason);
    }

    fn request_body(&mut self, body: &[u8], headers: &mut HeaderMap) -> Option<Vec<u8>> {
        let tracer = &self.connection.sidecar.tracer;
        tracer.request_body(self.exchange.as_mut()?, body, &mut Headers(headers), now(), &mut RandomIds)
    }

    fn response_body(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        let tracer = &self.connection.sidecar.tracer;
        tracer.response_body(self.exchange.as_mut()?, body, now(), &mut RandomIds)
    }

    fn subscribed(&mut self, message: &[u8]) {
        if let Some(exchange) = &mut self.exchange {
            self.connection.sidecar.tracer.subscribed(exchange, message, now(), &mut RandomIds);
        }
    }

    /// One gRPC message of a stream; compressed ones are left as they are.
    fn streamed(&mut self, flag: u8, message: &[u8]) -> Option<Vec<u8>> {
        let sidecar = &self.connection.sidecar;
        if flag != 0 {
            sidecar.tracer.count_untouched("compressed");
            return None;
        }
        let exchange = self.exchange.as_mut()?;
        sidecar.tracer.streamed(exchange, message, now(), &mut RandomIds, &mut &sidecar.spans)
    }

    fn response(&mut self, status: StatusCode, headers: &mut HeaderMap) {
        if let Some(exchange) = &mut self.exchange {
            if exchange.wants_first_byte() {
                exchange.mark(Mark::FirstByte, later_than(exchange.started()));
            }
            exchange.response(&self.connection.sidecar.tracer, status.as_u16(), &mut Headers(headers));
        }
    }

    fn trailers(&mut self, trailers: &mut HeaderMap) {
        if let Some(exchange) = &mut self.exchange {
            exchange.answer_trailers(&self.connection.sidecar.tracer, &mut Headers(trailers));
        }
    }

    /// The sidecar answers itself, and that is the end of the exchange.
    fn answer_instead<D>(&mut self, failure: Failure) -> Response<Traced<D>> {
        let mut response = in_place_of_upstream(failure);
        if let Some(captured) = self.connection.captured.as_ref().filter(|captured| captured.shows(failure)) {
            captured.ends.resets(); // nobody sees the answer
            self.end(Outcome::Failed { failure, answered: None });
            return response;
        }
        let status = response.status().as_u16();
        if let Some(exchange) = &mut self.exchange {
            let tracer = &self.connection.sidecar.tracer;
            exchange.answer_instead(tracer, failure, status, &mut Headers(response.headers_mut()));
        }
        self.end(Outcome::Failed { failure, answered: Some(status) });
        response
    }

    /// Ends the exchange, the first time it is called.
    fn end(&mut self, outcome: Outcome) {
        let Some(mut exchange) = self.exchange.take() else { return };
        if let Some(moments) = &self.moments {
            moments.tell(&mut exchange);
        }
        let sidecar = &self.connection.sidecar;
        let now = later_than(exchange.started());
        let summary = sidecar.tracer.end(exchange, outcome, now, &mut &sidecar.spans);
        if let (Some(page), Some(browser), true) = (self.page, &sidecar.browser, summary.recorded) {
            browser.pages().kept(page); // says nothing new of one that was sampled
        }
        if let Some(request) = &self.request {
            sidecar.access_log.write(request, &summary, outcome, self.bytes_out, &sidecar.stats);
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        // Nobody else ended it: whoever asked went away, or we did.
        let cut = *self.connection.sidecar.cut.borrow();
        self.end(if cut { Outcome::Drained } else { Outcome::CallerGone });
    }
}

pin_project_lite::pin_project! {
    /// Waits for the head of the answer.
    #[project = Waiting]
    pub(crate) enum TraceFuture<F, D> {
        /// Nothing is held: the way of most requests.
        Plain { #[pin] inner: F, live: Option<Box<Live>> },
        /// Bodies are held, or nobody else has to be asked.
        Held { inner: crate::Boxed<Response<Traced<D>>> },
    }
}

/// An answer that needs no upstream.
impl<F, D> From<crate::Boxed<Response<Traced<D>>>> for TraceFuture<F, D> {
    fn from(inner: crate::Boxed<Response<Traced<D>>>) -> Self {
        Self::Held { inner }
    }
}

impl<F, D> Future for TraceFuture<F, Resumed<D>>
where
    F: Future<Output = Result<Answer<D>, Gone>>,
    D: Body<Data = Bytes, Error = Failure> + Unpin,
{
    type Output = Result<Response<Traced<Resumed<D>>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            Waiting::Held { inner } => inner.as_mut().poll(cx).map(Ok),
            Waiting::Plain { inner, live } => {
                let answer = ready!(inner.poll(cx));
                let Some(live) = live.take() else { return Poll::Pending };
                Poll::Ready(Ok(conclude(answer, live, None)))
            }
        }
    }
}

/// The response of an answer, or in the place of one.
fn conclude<D>(
    answer: Result<Answer<D>, Gone>,
    mut live: Box<Live>,
    frames: Option<Box<Reassembler>>,
) -> Response<Traced<Resumed<D>>>
where
    D: Body<Data = Bytes, Error = Failure> + Unpin,
{
    match answer {
        Ok(answer) => {
            let (mut head, body) = answer.response.into_parts();
            live.response(head.status, &mut head.headers);
            match answer.tunnel {
                Some(tunnel) => {
                    carry(tunnel, live);
                    Response::from_parts(head, Traced::empty())
                }
                None => Response::from_parts(head, Traced::upstream(Resumed::untouched(body), live, frames)),
            }
        }
        Err(Gone::Upstream(failure)) => live.answer_instead(failure),
        Err(Gone::Caller) => {
            live.end(Outcome::CallerGone);
            // Nobody reads it, but hyper wants an answer to break off with.
            in_place_of_upstream(Failure::ConnectionReset)
        }
    }
}

/// An upgraded exchange lasts as long as its tunnel.
fn carry(tunnel: Tunnel, mut live: Box<Live>) {
    tokio::spawn(async move {
        let sidecar = Arc::clone(&live.connection.sidecar);
        // Held until the exchange is ended: a drain waits for it.
        let Ok(_place) = sidecar.tunnels.try_acquire() else {
            return live.end(Outcome::Failed { failure: Failure::Overload, answered: None });
        };
        let outcome = match sidecar.until_cut(tunnel.run(&sidecar)).await {
            Some(Ok(())) => Outcome::Complete,
            Some(Err(failure)) => Outcome::Failed { failure, answered: None },
            None => Outcome::Drained,
        };
        live.end(outcome);
    });
}

/// The answer that the sidecar gives itself: one line that says whose fault it is.
pub(crate) fn in_place_of_upstream<D>(failure: Failure) -> Response<Traced<D>> {
    let text = match failure {
        Failure::ConnectionRefused => "throughline: the upstream refused the connection\n",
        Failure::Timeout => "throughline: the upstream took too long\n",
        Failure::Dns => "throughline: the upstream's name has no address\n",
        Failure::Unreachable => "throughline: the upstream can't be reached\n",
        Failure::ConnectionReset => "throughline: the upstream broke the connection off\n",
        Failure::Tls => "throughline: the upstream and the sidecar did not agree on TLS\n",
        Failure::Protocol => "throughline: the upstream's answer is no valid HTTP\n",
        Failure::Refused => "throughline: the sidecar forwards nothing there\n",
        Failure::Overload => "throughline: the sidecar is full\n",
    };
    let mut response = Response::new(Traced::Own { text: Some(Bytes::from_static(text.as_bytes())) });
    *response.status_mut() = StatusCode::from_u16(failure.answer()).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(ERROR_HEADER, HeaderValue::from_static(failure.as_str()));
    response
}

pin_project_lite::pin_project! {
    /// The body of an answer, which ends its exchange with itself.
    #[project = Projected]
    #[derive(Debug)]
    pub(crate) enum Traced<D> {
        /// What the upstream sends.
        Upstream {
            #[pin]
            body: D,
            live: Box<Live>,
            // gRPC messages are put together, edited and framed anew.
            frames: Option<Box<Reassembler>>,
        },
        /// What the sidecar says itself.
        Own { text: Option<Bytes> },
    }
}

impl<D> Whole for Traced<D> {
    fn whole(text: Bytes) -> Self {
        Self::Own { text: Some(text).filter(|text| !text.is_empty()) }
    }
}

impl<D> Explain for Traced<D> {
    fn explain(text: &'static str) -> Self {
        Self::Own { text: Some(Bytes::from_static(text.as_bytes())) }
    }
}

impl<D> Traced<D> {
    /// A body without a byte.
    pub(crate) fn empty() -> Self {
        Self::Own { text: None }
    }
}

impl<D: Body> Traced<D> {
    fn upstream(body: D, mut live: Box<Live>, frames: Option<Box<Reassembler>>) -> Self {
        if body.is_end_stream() {
            live.end(Outcome::Complete);
        }
        Self::Upstream { body, live, frames }
    }
}

impl<D: Body<Data = Bytes, Error = Failure>> Body for Traced<D> {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.project() {
            Projected::Own { text } => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Projected::Upstream { mut body, live, frames } => loop {
                let mut frame = ready!(body.as_mut().poll_frame(cx));
                match &mut frame {
                    None => live.end(Outcome::Complete),
                    Some(Err(failure)) => {
                        if let Some(captured) = &live.connection.captured {
                            captured.broke();
                        }
                        live.end(Outcome::Failed { failure: *failure, answered: None });
                    }
                    Some(Ok(frame)) => {
                        if let (Some(frames), Some(data)) = (frames.as_mut(), frame.data_ref()) {
                            let over_before = frames.messages_over_bound();
                            let edited = reframe(frames, data, |flag, message| live.streamed(flag, message));
                            if frames.messages_over_bound() > over_before {
                                live.untouched("over_limit");
                            }
                            if edited.is_empty() && !body.is_end_stream() {
                                continue; // the rest of the message is still to come
                            }
                            *frame = Frame::data(Bytes::from(edited));
                        }
                        if let Some(data) = frame.data_ref() {
                            live.bytes_out += data.remaining() as u64;
                        }
                        if let Some(trailers) = frame.trailers_mut() {
                            live.trailers(trailers);
                        }
                        // A reader that knows the length does not ask for what comes after the last byte.
                        if frame.is_trailers() || body.is_end_stream() {
                            live.end(Outcome::Complete);
                        }
                    }
                }
                return Poll::Ready(frame);
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream { body, .. } => body.is_end_stream(),
            Self::Own { text } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // Edited messages are longer than what came.
            Self::Upstream { frames: Some(_), .. } => SizeHint::default(),
            Self::Upstream { body, .. } => body.size_hint(),
            Self::Own { text } => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}
