//! The life of an exchange: `begin`, `response`, `end`. Everything between headers in and spans out is decided
//! here, for both hosts. Never waits, never reads a clock, never draws a random number: moments and ids are
//! arguments, so every path replays in a test.

mod crossing;
mod edge;
mod extract;
mod head;
mod inject;
mod messages;
mod phases;
mod propagated;
mod record;
mod remember;
mod steer;
mod tracer;
mod work;

pub use crossing::{Asked, Lent};
pub use edge::{Edge, Trust};
pub use extract::Propagators;
pub use head::{Destination, Now, RequestHead, Scheme, Version};
pub use inject::ResponseHeaders;
pub use messages::{EventContext, MessageNames, Wanted, content_length, looks_like_push, unfit};
pub use phases::Mark;
pub use tracer::{Config, Counters, RootUnsampled, Tracer};
pub use work::{Done, Work};

use crate::browser::Decided;
use crate::carrier::Carrier;
use crate::classify::{Direction, ErrorType, Failure, GrpcStatus, Outcome, Verdict, verdict};
use crate::ids::{Flags, SpanId, TraceId};
use crate::in_flight::Place;
use crate::keep::{Keep, KeepReason};
use crate::metrics::{Method, code_text};
use crate::names::{attribute, header};
use crate::operation::Operation;
use crate::otlp::{Attributes, Parent};
use crate::peer::Peer;
use crate::propagation::traceparent;
use crate::sampling::Reason;
use messages::Messaging;
use phases::Phases;
use record::Buffers;
use steer::Steer;

/// One request and its answer, from the first byte of the head to the last of the body. A host must `end` it,
/// exactly once; a host that drops it leaks its place among the exchanges in flight.
#[derive(Debug)]
#[must_use = "an exchange that is not ended leaves no span and keeps its place"]
pub struct Exchange {
    direction: Direction,
    steer: Steer,
    tracing: Tracing,
    started: Now,
    method: Method,
    operation: Option<Operation>,
    peer: Option<Peer>,
    /// Whether the caller is a sidecar, who may be told things that an application must not see.
    caller_is_sidecar: bool,
    /// Whether an outbound request goes to a destination inside the mesh.
    inside: bool,
    /// Whether the request came by TLS.
    https: bool,
    grpc: bool,
    grpc_status: Option<GrpcStatus>,
    http_status: Option<u16>,
    messaging: Option<Box<Messaging>>,
    keeping: Keeping,
    /// Why it is kept, as soon as that is certain.
    kept: Option<KeepReason>,
    /// Whether the bound of spans a second stood against keeping it.
    left_out: bool,
    /// Whether the caller's sidecar was told that it is kept.
    told: bool,
    /// Whether the caller speaks HTTP/2.
    http2: bool,
    /// When the head of the answer was there, by the monotonic clock.
    first_byte: Option<u64>,
    /// In `full` mode, what the children are made of.
    phases: Option<Box<Phases>>,
    buffers: Box<Buffers>,
}

/// What is done for an exchange.
#[derive(Debug)]
enum Tracing {
    /// Counted in metrics only: tracing is off.
    Off,
    /// Not even counted: a kubelet's probe.
    Ignored,
    /// Context carried on, and a span recorded if sampled.
    On(Trace),
}

/// What may become of an exchange that the head did not choose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Keeping {
    /// It leaves no span.
    Never,
    /// It may still be kept, for certain if the head alone gave the reason.
    Open { by_head: Option<KeepReason> },
}

/// The place of an exchange in a trace.
#[derive(Clone, Copy, Debug)]
struct Trace {
    trace_id: TraceId,
    span_id: SpanId,
    flags: Flags,
    parent: Option<Parent>,
    /// Who may be the parent, if it is exported: that is not known when the exchange begins.
    doubt: Option<Doubt>,
    /// Whether a span comes of it.
    recorded: bool,
    reason: Reason,
    in_flight: Option<Place>,
}

/// A parent that was not sampled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doubt {
    /// The caller's span: its sidecar exports it if it is told.
    Caller(SpanId),
    /// Our own inbound exchange: it is exported if it is still in flight when it is told.
    Inbound(Place, SpanId),
    /// The parent came with a message: nobody knows. If the span is exported it gets a link instead.
    Message,
}

/// What an exchange turned out to be, for access logs.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Which way it went.
    pub direction: Direction,
    /// Trace and span, when there was tracing.
    pub ids: Option<(TraceId, SpanId)>,
    /// Whether a span was handed out.
    pub recorded: bool,
    /// How long it took.
    pub duration_nanos: u64,
    /// Status of the answer that the caller got.
    pub http_status: Option<u16>,
    /// What failed.
    pub error: Option<ErrorType>,
    /// The user's operation.
    pub operation: Option<Operation>,
    /// A probe, which leaves no line in an access log.
    pub ignored: bool,
}

/// The fields of an answer's head that matter to us, the first of each.
#[derive(Default)]
struct Answered<'a> {
    content_type: Option<&'a [u8]>,
    grpc_status: Option<&'a [u8]>,
    peer: Option<&'a [u8]>,
    keep: bool,
}

impl<'a> Answered<'a> {
    /// Looks at each field once.
    fn of(carrier: &'a impl Carrier) -> Self {
        let mut answered = Self::default();
        carrier.for_each(&mut |name, value| match name {
            "content-type" => answered.content_type = answered.content_type.or(Some(value)),
            header::GRPC_STATUS => answered.grpc_status = answered.grpc_status.or(Some(value)),
            header::PEER => answered.peer = answered.peer.or(Some(value)),
            header::KEEP => answered.keep = true,
            _ => {}
        });
        answered
    }
}

impl Exchange {
    /// The upstream's answer begins: takes what is ours out of its headers and adds what its reader may see.
    /// Bytes of the body are the host's business.
    pub fn response(&mut self, tracer: &Tracer, status: u16, carrier: &mut impl Carrier) {
        self.http_status = Some(status);
        let answered = Answered::of(carrier);
        if self.grpc || answered.content_type.is_some_and(crate::classify::is_grpc) {
            self.grpc = true;
            self.grpc_status = answered.grpc_status.map(GrpcStatus::parse).or(self.grpc_status);
        }
        if matches!(self.tracing, Tracing::Off | Tracing::Ignored) {
            return;
        }
        let said = answered.keep;
        if let Some(value) = answered.peer {
            if self.direction == Direction::Outbound && self.inside {
                self.peer = Peer::parse(value); // who is outside may call himself what he likes
            }
            carrier.remove(header::PEER);
        }
        if let Tracing::On(trace) = self.tracing {
            if trace.recorded || self.keeping != Keeping::Never {
                let names = &tracer.config.capture_response_headers;
                tracer::capture(
                    names,
                    attribute::RESPONSE_HEADER_PREFIX,
                    carrier,
                    &mut self.buffers.attributes,
                );
            }
            self.keep_so_far(tracer, Outcome::Complete, said, carrier);
            if self.direction == Direction::Inbound {
                if tracer.config.trust != Trust::Mesh {
                    edge::strip_answer(carrier);
                }
                if self.caller_is_sidecar {
                    carrier.set(header::PEER, &tracer.config.peer_header);
                }
                inject::answer(&tracer.config.response_headers, &trace, carrier);
            }
        }
    }

    /// The host answers in the place of an upstream that failed: adds what the caller's sidecar must know.
    pub fn answer_instead(
        &mut self,
        tracer: &Tracer,
        failure: Failure,
        status: u16,
        carrier: &mut impl Carrier,
    ) {
        if matches!(self.tracing, Tracing::On(_)) {
            let outcome = Outcome::Failed { failure, answered: Some(status) };
            self.keep_so_far(tracer, outcome, false, carrier);
            if self.told {
                carrier.set(header::PEER, &tracer.config.peer_header); // or it would not be believed
            }
        }
    }

    /// The trailers of the answer, where they can be changed: as [`Exchange::trailers`], and a caller's sidecar is
    /// told of what only they said.
    pub fn answer_trailers(&mut self, tracer: &Tracer, carrier: &mut impl Carrier) {
        self.trailers(carrier);
        if matches!(self.tracing, Tracing::On(_)) {
            if self.direction == Direction::Inbound && tracer.config.trust != Trust::Mesh {
                edge::strip_answer(carrier);
                edge::strip(carrier, &[header::PEER]);
            }
            // HTTP/1.1 announces the fields of its trailers in the head, which is gone.
            let late = self.http2 || self.direction == Direction::Outbound;
            if late {
                let said = carrier.get(header::KEEP).is_some();
                self.keep_so_far(tracer, Outcome::Complete, said, carrier);
            }
        }
    }

    /// Rule 4: takes what the next hop's sidecar says of keeping, judges what is known so far, and tells the
    /// caller's sidecar, while there is still a head or a trailer to tell it by.
    fn keep_so_far(&mut self, tracer: &Tracer, outcome: Outcome, said: bool, carrier: &mut impl Carrier) {
        if said {
            carrier.remove(header::KEEP); // an application has no say in it, nor any use for it
        }
        if self.kept.is_none() {
            // Only a sidecar, which names itself, has something to say about it.
            let said = said && self.direction == Direction::Outbound && self.inside && self.peer.is_some();
            self.kept = tracer.keep_now(self, said, outcome);
        }
        // What an operator asked for is worth the whole way to it, as what is kept is.
        let by_rule = matches!(
            self.tracing,
            Tracing::On(Trace {
                recorded: true,
                reason: Reason::OnDemand,
                doubt: Some(Doubt::Caller(_)),
                ..
            })
        );
        let reason = self.kept.map(KeepReason::as_str).or(by_rule.then_some(Reason::OnDemand.as_str()));
        if let (Some(reason), false) = (reason, self.told)
            && self.direction == Direction::Inbound
            && self.caller_is_sidecar
        {
            carrier.set(header::KEEP, reason.as_bytes());
            self.told = true;
        }
    }

    /// A moment that only the host knows.
    pub fn mark(&mut self, mark: Mark, now: Now) {
        if mark == Mark::FirstByte {
            self.first_byte.get_or_insert(now.mono_nanos);
        }
        if let Some(phases) = &mut self.phases {
            phases.mark(mark, now);
        }
    }

    /// Whether the moment of the first byte is of use.
    #[must_use]
    pub fn wants_first_byte(&self) -> bool {
        let open = || matches!(self.tracing, Tracing::On(Trace { recorded: false, .. }));
        self.phases.is_some() || (self.keeping != Keeping::Never && open())
    }

    /// Whether every moment is of use, not only that of the first byte.
    #[must_use]
    pub fn wants_marks(&self) -> bool {
        self.phases.is_some()
    }

    /// The trailers arrived: gRPC's status is in them.
    pub fn trailers(&mut self, carrier: &impl Carrier) {
        if self.grpc {
            self.grpc_status = GrpcStatus::of(carrier).or(self.grpc_status);
        }
    }

    /// The `traceparent` that went on after us: when somebody wrote another one over ours, its ids are taken,
    /// since they are what the next hop takes for its parent (no phantom parents). Says whether that was so.
    pub fn adopt(&mut self, wire: &[u8]) -> bool {
        let (Tracing::On(trace), Ok(wire)) = (&mut self.tracing, traceparent::parse(wire)) else {
            return false;
        };
        if (wire.trace_id, wire.span_id) == (trace.trace_id, trace.span_id) {
            return false;
        }
        if wire.trace_id != trace.trace_id {
            (trace.parent, trace.doubt) = (None, None); // what we continued is not the trace that went on
        }
        (trace.trace_id, trace.span_id) = (wire.trace_id, wire.span_id);
        true
    }

    /// Trace, span and flags as they went on; none without tracing.
    #[must_use]
    pub fn ids(&self) -> Option<(TraceId, SpanId)> {
        match self.tracing {
            Tracing::On(Trace { trace_id, span_id, .. }) => Some((trace_id, span_id)),
            Tracing::Off | Tracing::Ignored => None,
        }
    }

    /// What it was decided to be, for those who tell of its caller; none without tracing.
    #[must_use]
    pub fn decided(&self) -> Option<Decided> {
        match self.tracing {
            Tracing::On(Trace { recorded, reason, .. }) => {
                Some(Decided { recorded, by: reason.as_str(), operation: self.operation })
            }
            Tracing::Off | Tracing::Ignored => None,
        }
    }

    /// Which way it goes.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Now {
        self.started
    }

    /// What the exchange amounts to.
    fn verdict(&self, outcome: Outcome) -> (Option<u16>, Verdict) {
        // What the sidecar answered in the upstream's place is what an inbound caller got; on an outbound
        // exchange no status came from the server, so none is claimed.
        let status = match (self.direction, outcome) {
            (Direction::Inbound, Outcome::Failed { answered: Some(code), .. }) => Some(code),
            (Direction::Outbound, Outcome::Failed { answered: Some(_), .. }) => None,
            (Direction::Inbound | Direction::Outbound, _) => self.http_status,
        };
        (status, verdict(self.direction, outcome, status, self.grpc_status))
    }

    /// Whether the head's no may still be overruled.
    fn may_be_kept(&self, trace: &Trace) -> bool {
        !trace.recorded && self.keeping != Keeping::Never
    }

    /// Why the exchange is kept although the head said no, if it is.
    fn worth_keeping(
        &self,
        keep: &Keep,
        (status, verdict): (Option<u16>, Verdict),
        nanos: u64,
        slow_over: Option<u64>,
    ) -> Option<KeepReason> {
        let Keeping::Open { by_head } = self.keeping else { return None };
        let failed = keep.errors && (verdict.error.is_some() || status.is_some_and(|status| status >= 500));
        let slow = slow_over.is_some_and(|limit| nanos > limit);
        let found = [(failed, KeepReason::Error), (slow, KeepReason::Slow)];
        found.into_iter().find_map(|(holds, reason)| holds.then_some(reason)).or(by_head)
    }

    /// Attributes that are known only at the end.
    fn finish_attributes(&mut self, status: Option<u16>, verdict: Verdict, outcome: Outcome) {
        let mut attributes = Attributes::of_span(&mut self.buffers.attributes);
        if let Some(status) = status {
            attributes.int(attribute::HTTP_RESPONSE_STATUS_CODE, u64::from(status));
        }
        if let Some(grpc) = self.grpc_status {
            attributes.text(attribute::RPC_STATUS_CODE, grpc.as_str().as_bytes());
        }
        match verdict.error {
            Some(ErrorType::Name(name)) => attributes.text(attribute::ERROR_TYPE, name.as_bytes()),
            Some(ErrorType::Code(code)) => attributes.text(attribute::ERROR_TYPE, code_text(code).as_bytes()),
            None => {}
        }
        match outcome {
            Outcome::CallerGone => attributes.text(attribute::END, b"caller_gone"),
            Outcome::Drained => attributes.text(attribute::END, b"drained"),
            Outcome::Complete | Outcome::Failed { .. } => {}
        }
        if let (Direction::Outbound, Some(peer)) = (self.direction, &self.peer) {
            attributes.text(attribute::PEER_SERVICE, peer.service.as_bytes());
            if !peer.namespace.is_empty() {
                attributes.text(attribute::PEER_NAMESPACE, peer.namespace.as_bytes());
            }
        }
    }
}
