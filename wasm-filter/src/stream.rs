//! One request and its answer as Envoy tells of them: the exchange begins with the head and ends when Envoy logs
//! the stream, once. Holds a body no longer and no larger than the settings say. Never stops a head unless the
//! settings say that Envoy can go on from there.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;

use throughline_core::carrier::Carrier as _;
use throughline_core::classify::{Direction, Failure};
use throughline_core::events::grpc_frame::{Reassembler, first_message, reframe};
use throughline_core::exchange::{
    Destination, Exchange, Lent, Mark, Now, RequestHead, Scheme, Version, Wanted, content_length,
    looks_like_push, unfit,
};
use throughline_core::propagation::traceparent;
use throughline_core::settings::Direct;

use crate::host::{self, Action, Buffer, Headers, Map};
use crate::outcome::{self, Ending};
use crate::worker::{Pace, Waiting, Worker};

/// How long the beginning of a body that may be a push is waited for: a push comes in one piece.
const GLANCE_NANOS: u64 = 100_000_000;
/// How long the beginning of a body with messages is waited for. Where Envoy was not told that heads may be held,
/// no body ever comes, and the request goes on after this.
const PATIENCE_NANOS: u64 = 1_000_000_000;
/// Bytes by which a push is known.
const GLANCE_BYTES: usize = 4096;
/// Bytes of the request of a stream in which its first message is looked for.
const SUBSCRIPTION_BYTES_MAX: usize = 64 * 1024;

/// A stream.
#[derive(Debug)]
pub(crate) struct Stream {
    id: u32,
    worker: Rc<Worker>,
    direct: Direct,
    pace: Pace,
    exchange: Option<Exchange>,
    /// The inbound exchange of another worker that an outbound call belongs to.
    lent: Option<Lent>,
    wanted: Wanted,
    request: Request,
    response: Response,
    /// Whether the `traceparent` that goes on is ours.
    own_context: bool,
    /// When the request went on, where that is of use.
    connecting_mono_nanos: u64,
    /// The status of an answer that Envoy gave in the upstream's place, and why.
    in_place: Option<(u16, Failure)>,
    /// Whether the answer came to its end.
    whole: bool,
    /// Whether the protocol was switched: from there on every end is a good one.
    switched: bool,
}

/// What is done with the request's body.
#[derive(Debug)]
enum Request {
    Passing,
    /// Read on its way, until the first gRPC message is there.
    Watched(Vec<u8>),
    /// Goes on as it is for this reason, which is counted if its beginning is that of a push.
    Glanced(&'static str),
    /// Waits until its beginning says whether it is a push.
    Looked(Rc<Cell<bool>>),
    /// Waits until it is whole.
    Held {
        room: u64,
        bytes: usize,
        released: Rc<Cell<bool>>,
    },
}

/// What is done with the answer's body.
#[derive(Debug)]
enum Response {
    Passing,
    /// Waits until it is whole.
    Held {
        room: u64,
        bytes: usize,
    },
    /// Goes on message by message.
    Reframed(Box<Reassembler>),
}

impl Stream {
    pub(crate) fn new(id: u32, worker: Rc<Worker>, direct: Direct, pace: Pace) -> Self {
        Self {
            id,
            worker,
            direct,
            pace,
            exchange: None,
            lent: None,
            wanted: Wanted::Nothing,
            request: Request::Passing,
            response: Response::Passing,
            own_context: false,
            connecting_mono_nanos: 0,
            in_place: None,
            whole: false,
            switched: false,
        }
    }

    fn direction(&self) -> Direction {
        let by_listener = || {
            let said = host::number("xds\0listener_direction").or_else(|| host::number("listener_direction"));
            if said == Some(2) { Direction::Outbound } else { Direction::Inbound }
        };
        match self.direct {
            Direct::Fixed(direction) => direction,
            Direct::Auto => by_listener(),
        }
    }

    fn begin(&mut self, headers: &mut Headers) {
        let direction = self.direction();
        let own = |name: &str| headers.raw(name).unwrap_or_default().to_vec();
        let (method, target, authority, scheme) =
            (own(":method"), own(":path"), own(":authority"), own(":scheme"));
        let (path, query) = match target.iter().position(|byte| *byte == b'?') {
            Some(at) => (target.get(..at).unwrap_or_default(), target.get(at + 1..)),
            None => (target.as_slice(), None),
        };
        let protocol = host::property("request\0protocol").unwrap_or_default();
        let caller = host::property("source\0address");
        let head = RequestHead {
            direction,
            method: std::str::from_utf8(&method).unwrap_or_default(),
            scheme: if scheme == b"https" { Scheme::Https } else { Scheme::Http },
            authority: &authority,
            path,
            query,
            version: match protocol.as_slice() {
                b"HTTP/1.0" => Version::Http10,
                b"HTTP/2" => Version::Http2,
                _ => Version::Http11,
            },
            caller: caller.and_then(|caller| address(&caller)),
            destination: Destination::Named,
        };
        let Worker { tracer, crossing, .. } = &*self.worker;
        crossing.join();
        let lent = match direction {
            Direction::Outbound => crossing.borrow(tracer, headers),
            Direction::Inbound => None,
        };
        let exchange =
            host::with_ids(|ids| tracer.begin(&head, headers, host::now(), &mut crossing.ids(ids)));
        self.lent = lent;
        if direction == Direction::Inbound {
            crossing.announce(&exchange);
        }
        self.own_context = is_own(&exchange, headers);
        self.wanted = exchange.wanted();
        self.exchange = Some(exchange);
    }

    /// What other workers know is looked at before the exchange is judged, and told afterwards.
    fn judge(&mut self, judge: impl FnOnce(&mut Exchange, &Worker)) {
        let Some(exchange) = &mut self.exchange else { return };
        let Worker { tracer, crossing, .. } = &*self.worker;
        if exchange.direction() == Direction::Inbound {
            crossing.hear(tracer, exchange);
        }
        if let Some(lent) = self.lent.take_if(|lent| !tracer.keeps(lent) && crossing.is_over(lent)) {
            tracer.give_back(lent);
        }
        let before = self.lent.as_ref().is_some_and(|lent| tracer.keeps(lent));
        judge(exchange, &self.worker);
        if let Some(lent) = self.lent.as_ref().filter(|lent| !before && tracer.keeps(lent)) {
            // The other worker takes its announcement back before it listens: one of the two sees the other.
            crossing.tell_kept(lent);
            if crossing.is_over(lent) {
                exchange.forget_parent();
            }
        }
    }

    fn mark(&mut self, mark: Mark) {
        if let Some(exchange) = self.exchange.as_mut().filter(|exchange| exchange.wants_marks()) {
            exchange.mark(mark, host::now());
        }
    }

    fn limit(&self) -> u64 {
        self.worker.settings.event_body_bytes_max
    }

    fn untouched(&self, reason: &'static str) {
        self.worker.tracer.count_untouched(reason);
    }

    /// What is done with the request's body, and whether its head waits for it.
    fn plan_request(&mut self, headers: &Headers) -> Action {
        if headers.get("upgrade").is_some() {
            return Action::Continue; // what follows is no body of this request
        }
        let unfit = unfit(headers, self.limit());
        match self.wanted {
            Wanted::Nothing | Wanted::Response => Action::Continue,
            Wanted::Stream => {
                self.request = Request::Watched(Vec::new());
                Action::Continue
            }
            Wanted::MaybePush => {
                // A push does not wait to be asked for its body, and what is compressed can't be looked at.
                let hidden = unfit == Some("compressed") || headers.get("expect").is_some();
                if hidden || !self.worker.filter.hold_headers {
                    return Action::Continue;
                }
                // Any upload may be a push: none is held that might be more than Envoy buffers, which answers 413.
                let untold = content_length(headers).is_none().then_some("length_unknown");
                if let Some(reason) = unfit.or(untold) {
                    self.request = Request::Glanced(reason);
                    return Action::Continue;
                }
                self.request = Request::Looked(self.wait(GLANCE_NANOS));
                Action::Pause
            }
            Wanted::Request | Wanted::RequestAndResponse => {
                let reason = unfit.or((!self.worker.filter.hold_headers).then_some("head_not_held"));
                if let Some(reason) = reason {
                    self.untouched(reason);
                    return Action::Continue;
                }
                let Some(room) = self.room(headers) else { return Action::Continue };
                let released = self.wait(PATIENCE_NANOS);
                self.request = Request::Held { room, bytes: 0, released };
                Action::Pause
            }
        }
    }

    /// Room for a body, counted when there is none.
    fn room(&self, headers: &Headers) -> Option<u64> {
        let room = content_length(headers).unwrap_or(self.limit()).min(self.limit());
        let fits = self.worker.hold(room);
        if !fits {
            self.untouched("busy");
        }
        fits.then_some(room)
    }

    /// Has the root let the head go on when nothing of the body has come in time.
    fn wait(&self, nanos: u64) -> Rc<Cell<bool>> {
        let released = Rc::new(Cell::new(false));
        let until_mono_nanos = host::now().mono_nanos + nanos;
        let one = Waiting { stream: self.id, until_mono_nanos, released: Rc::clone(&released) };
        self.worker.waiting.borrow_mut().push(one);
        self.pace.soon();
        released
    }

    fn waits_no_more(&self) {
        self.worker.waiting.borrow_mut().retain(|one| one.stream != self.id);
    }

    /// The request's body is whole.
    fn edit_request(&mut self, bytes: usize) {
        let Some(exchange) = &mut self.exchange else { return };
        let body = host::bytes(Buffer::Request, bytes);
        let mut headers = Headers::of(Map::Request);
        let Worker { tracer, crossing, .. } = &*self.worker;
        if !headers.told || body.len() != bytes {
            return tracer.count_untouched("not_told");
        }
        if exchange.direction() == Direction::Inbound {
            self.worker.crossing.withdraw(exchange); // a message may give it other ids
        }
        let edited = host::with_ids(|ids| {
            tracer.request_body(exchange, &body, &mut headers, host::now(), &mut crossing.ids(ids))
        });
        if edited.is_some_and(|edited| !put_body(Buffer::Request, bytes, &edited, &mut headers)) {
            tracer.count_untouched("not_taken");
        }
        if exchange.direction() == Direction::Inbound {
            self.worker.crossing.announce(exchange);
        }
        self.own_context = is_own(exchange, &headers);
    }

    fn stop_holding_request(&mut self) {
        if let Request::Held { room, .. } = std::mem::replace(&mut self.request, Request::Passing) {
            self.worker.let_go(room);
        }
        self.waits_no_more();
    }

    /// A piece of the request's body that is held: `bytes` of it are there.
    fn held_request(&mut self, bytes: usize, end: bool) -> Action {
        if bytes as u64 > self.limit() {
            self.untouched("over_limit");
        } else if end {
            self.edit_request(bytes);
        } else {
            return Action::Pause;
        }
        self.stop_holding_request();
        Action::Continue
    }

    fn looked_at(&mut self, bytes: usize, end: bool) -> Action {
        match beginning_is_push(bytes) {
            None if !end && bytes < GLANCE_BYTES => return Action::Pause,
            Some(true) => {}
            None | Some(false) => {
                self.stop_holding_request(); // most JSON requests are none
                return Action::Continue;
            }
        }
        self.waits_no_more();
        self.request = Request::Passing;
        let Some(room) = self.room(&Headers::of(Map::Request)) else { return Action::Continue };
        self.request = Request::Held { room, bytes, released: Rc::default() };
        self.held_request(bytes, end)
    }

    fn watched(&mut self, mut seen: Vec<u8>, bytes: usize) {
        seen.extend_from_slice(&host::bytes(Buffer::Request, bytes));
        if let (Some(message), Some(exchange)) = (first_message(&seen), &mut self.exchange) {
            let Worker { tracer, crossing, .. } = &*self.worker;
            host::with_ids(|ids| tracer.subscribed(exchange, &message, host::now(), &mut crossing.ids(ids)));
        } else if seen.len() < SUBSCRIPTION_BYTES_MAX {
            self.request = Request::Watched(seen);
        }
    }

    /// Envoy's own answer, where it stands in the place of the upstream's.
    fn own_answer(&self, status: u16, headers: &Headers) -> Option<Failure> {
        // Envoy's own answers to a failed upstream are errors; to gRPC it says so in a head of status 200.
        if status < 400 && headers.get("grpc-status").is_none() {
            return None;
        }
        let flags = host::number("response\0flags").unwrap_or(0);
        // The upstream's own error after tries in vain has a flag too, and is an answer like any other.
        outcome::failure(flags, details).filter(|_| details() != "via_upstream")
    }

    fn plan_response(&mut self, status: u16, headers: &Headers) -> Action {
        match self.wanted {
            Wanted::Nothing | Wanted::MaybePush | Wanted::Request => return Action::Continue,
            Wanted::Stream => {
                let limit = usize::try_from(self.limit()).unwrap_or(usize::MAX);
                self.response = Response::Reframed(Box::new(Reassembler::new(limit)));
                return Action::Continue;
            }
            Wanted::Response | Wanted::RequestAndResponse => {}
        }
        if !(200..300).contains(&status) {
            return Action::Continue;
        }
        let held = self.worker.filter.hold_headers;
        let reason = unfit(headers, self.limit()).or((!held).then_some("head_not_held"));
        if let Some(reason) = reason {
            self.untouched(reason);
            return Action::Continue;
        }
        let Some(room) = self.room(headers) else { return Action::Continue };
        self.response = Response::Held { room, bytes: 0 };
        Action::Pause
    }

    fn held_response(&mut self, bytes: usize, end: bool) -> Action {
        if bytes as u64 > self.limit() {
            self.untouched("over_limit");
        } else if end {
            let body = host::bytes(Buffer::Response, bytes);
            self.edit_response(&body, bytes);
        } else {
            return Action::Pause;
        }
        self.stop_holding_response();
        Action::Continue
    }

    fn edit_response(&mut self, body: &[u8], bytes: usize) {
        let Some(exchange) = &mut self.exchange else { return };
        let mut headers = Headers::of(Map::Response);
        let Worker { tracer, crossing, .. } = &*self.worker;
        if !headers.told || body.len() != bytes {
            return tracer.count_untouched("not_told");
        }
        let edited =
            host::with_ids(|ids| tracer.response_body(exchange, body, host::now(), &mut crossing.ids(ids)));
        if edited.is_some_and(|edited| !put_body(Buffer::Response, bytes, &edited, &mut headers)) {
            tracer.count_untouched("not_taken");
        }
    }

    fn stop_holding_response(&mut self) {
        if let Response::Held { room, .. } = std::mem::replace(&mut self.response, Response::Passing) {
            self.worker.let_go(room);
        }
    }

    fn reframed(&mut self, bytes: usize, end: bool) {
        let (Response::Reframed(frames), Some(exchange)) = (&mut self.response, &mut self.exchange) else {
            return;
        };
        let Worker { tracer, batch, crossing, .. } = &*self.worker;
        let chunk = host::bytes(Buffer::Response, bytes);
        let kept = frames.rest().to_vec();
        if chunk.len() != bytes {
            // What can't be read goes on as it is, behind what was kept of it.
            tracer.count_untouched("not_told");
            host::replace(Buffer::Response, 0, &kept);
            self.response = Response::Passing;
            return;
        }
        let over_before = frames.messages_over_bound();
        let mut out = reframe(frames, &chunk, |flag, message| {
            if flag != 0 {
                tracer.count_untouched("compressed");
                return None;
            }
            let sink = &mut *batch.borrow_mut();
            host::with_ids(|ids| {
                tracer.streamed(exchange, message, host::now(), &mut crossing.ids(ids), sink)
            })
        });
        if frames.messages_over_bound() > over_before {
            tracer.count_untouched("over_limit");
        }
        if end {
            out.extend_from_slice(frames.rest());
        }
        if out != chunk && !host::replace(Buffer::Response, bytes, &out) {
            // The chunk goes on as it is, so nothing of it may come again.
            tracer.count_untouched("not_taken");
            host::replace(Buffer::Response, 0, &kept);
            self.response = Response::Passing;
        }
    }

    pub(crate) fn end(&mut self) {
        self.stop_holding_request();
        self.stop_holding_response();
        if let Some(exchange) = self.exchange.as_ref().filter(|one| one.direction() == Direction::Inbound) {
            self.worker.crossing.withdraw(exchange);
        }
        self.judge(|_, _| {});
        let Some(mut exchange) = self.exchange.take() else { return };
        let Worker { tracer, batch, crossing, counts, .. } = &*self.worker;
        if exchange.wants_marks() && outcome::connected(host::number("response\0flags").unwrap_or(0)) {
            mark_connection(&mut exchange, self.connecting_mono_nanos);
        }
        if self.own_context
            && let Some(wire) = host::header(Map::Request, traceparent::HEADER)
            && exchange.adopt(&wire)
        {
            counts.borrow_mut().overwritten += 1;
            tracer.told_overwritten();
        }
        let ending = match self.in_place {
            Some((status, failure)) => {
                Ending { flags: 0, failure: Some(failure), answered: Some(status), whole: true }
            }
            None if self.whole || self.switched => {
                Ending { flags: 0, failure: None, answered: None, whole: true }
            }
            None => {
                let flags = host::number("response\0flags").unwrap_or(0);
                Ending { flags, failure: outcome::failure(flags, details), answered: None, whole: false }
            }
        };
        let ready = {
            let mut sink = batch.borrow_mut();
            tracer.end(exchange, outcome::outcome(ending), host::now(), &mut *sink);
            sink.ready()
        };
        if let Some(lent) = self.lent.take() {
            if tracer.keeps(&lent) {
                crossing.tell_kept(&lent);
            }
            tracer.give_back(lent);
        }
        // Calls and numbers are a root's business.
        if ready { self.pace.now() } else { self.pace.soon() }
    }
}

impl Stream {
    pub(crate) fn request_head(&mut self, end: bool) -> Action {
        let mut headers = Headers::of(Map::Request);
        if headers.raw(":method") == Some(b"CONNECT") {
            return Action::Continue; // a tunnel is no exchange: what is inside of it may be some
        }
        if !headers.told {
            return Action::Continue; // who can't read a context must not write one
        }
        self.begin(&mut headers);
        if self.exchange.as_ref().is_some_and(Exchange::wants_marks) {
            self.mark(Mark::Connecting);
            self.connecting_mono_nanos = host::now().mono_nanos;
        }
        if end { Action::Continue } else { self.plan_request(&headers) }
    }

    pub(crate) fn request_body(&mut self, bytes: usize, end: bool) -> Action {
        if end {
            self.mark(Mark::RequestSent);
        }
        match std::mem::replace(&mut self.request, Request::Passing) {
            Request::Passing => Action::Continue,
            Request::Watched(seen) => {
                self.watched(seen, bytes);
                Action::Continue
            }
            Request::Glanced(reason) => {
                // A piece that says nothing goes on too, and the next one is no beginning any more.
                if beginning_is_push(bytes) == Some(true) {
                    self.untouched(reason);
                }
                Action::Continue
            }
            Request::Looked(released) => {
                if released.get() {
                    return Action::Continue;
                }
                self.request = Request::Looked(released);
                self.looked_at(bytes, end)
            }
            Request::Held { room, released, .. } => {
                if released.get() {
                    self.worker.let_go(room);
                    self.untouched("slow");
                    return Action::Continue;
                }
                self.waits_no_more();
                self.request = Request::Held { room, bytes, released };
                self.held_request(bytes, end)
            }
        }
    }

    pub(crate) fn request_trailers(&mut self) -> Action {
        self.mark(Mark::RequestSent);
        if let Request::Held { bytes, released, .. } = &self.request {
            if !released.get() {
                let bytes = *bytes;
                return self.held_request(bytes, true);
            }
            self.untouched("slow");
        }
        self.stop_holding_request();
        Action::Continue
    }

    pub(crate) fn response_head(&mut self, end: bool) -> Action {
        let mut headers = Headers::of(Map::Response);
        let status = headers.raw(":status").and_then(|status| std::str::from_utf8(status).ok()?.parse().ok());
        self.whole = end;
        let Some(status) = status else { return Action::Continue };
        self.switched = status == 101;
        if let Some(failure) = self.own_answer(status, &headers) {
            self.in_place = Some((status, failure));
            self.judge(|exchange, worker| {
                exchange.answer_instead(&worker.tracer, failure, status, &mut headers);
            });
            return Action::Continue;
        }
        self.judge(|exchange, worker| {
            if exchange.wants_first_byte() {
                exchange.mark(Mark::FirstByte, host::now());
            }
            exchange.response(&worker.tracer, status, &mut headers);
        });
        if end { Action::Continue } else { self.plan_response(status, &headers) }
    }

    pub(crate) fn response_body(&mut self, bytes: usize, end: bool) -> Action {
        self.whole = end;
        match &mut self.response {
            Response::Passing => Action::Continue,
            Response::Held { bytes: seen, .. } => {
                *seen = bytes;
                self.held_response(bytes, end)
            }
            Response::Reframed(_) => {
                self.reframed(bytes, end);
                Action::Continue
            }
        }
    }

    pub(crate) fn response_trailers(&mut self) -> Action {
        self.whole = true;
        self.judge(|exchange, worker| {
            exchange.answer_trailers(&worker.tracer, &mut Headers::of(Map::ResponseTrailers));
        });
        if let Response::Held { bytes, .. } = &self.response {
            let bytes = *bytes;
            return self.held_response(bytes, true);
        }
        Action::Continue
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end(); // where Envoy did not log the stream
    }
}

/// Whether the body that has begun to come is a push.
fn beginning_is_push(bytes: usize) -> Option<bool> {
    looks_like_push(&host::bytes(Buffer::Request, bytes.min(GLANCE_BYTES)))
}

/// When the upstream's connection was at hand, as Envoy says; known only at the end.
fn mark_connection(exchange: &mut Exchange, connecting_mono_nanos: u64) {
    let waited = host::number("upstream\0cx_pool_ready_duration");
    if let Some(waited) = waited.and_then(|nanos| u64::try_from(nanos).ok()) {
        let mono_nanos = connecting_mono_nanos.saturating_add(waited);
        exchange.mark(Mark::Connected, Now { unix_nanos: 0, mono_nanos });
    }
}

/// What Envoy says of how an answer came to be.
fn details() -> String {
    let details = host::property("response\0code_details").unwrap_or_default();
    String::from_utf8_lossy(&details).into_owned()
}

/// Whether the context in these headers is the one that the exchange has written.
fn is_own(exchange: &Exchange, headers: &Headers) -> bool {
    let (Some((trace_id, span_id)), Some(value)) = (exchange.ids(), headers.get(traceparent::HEADER)) else {
        return false;
    };
    value.get(3..35) == Some(trace_id.digits().as_slice())
        && value.get(36..52) == Some(span_id.digits().as_slice())
}

/// Puts an edited body in the place of the one that is held. The length that the head tells goes first: a stale
/// one would be request smuggling, so what can't have both is left as it is.
fn put_body(buffer: Buffer, bytes: usize, edited: &[u8], headers: &mut Headers) -> bool {
    const LENGTH: &str = "content-length";
    let told = headers.get(LENGTH).map(<[u8]>::to_vec);
    if told.is_some() && !headers.put(LENGTH, edited.len().to_string().as_bytes()) {
        return false;
    }
    let put = host::replace(buffer, bytes, edited);
    if let Some(told) = told.filter(|_| !put) {
        headers.put(LENGTH, &told);
    }
    put
}

/// `127.0.0.1:1234` or `[::1]:1234`.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let (host, _) = text.rsplit_once(':')?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}
