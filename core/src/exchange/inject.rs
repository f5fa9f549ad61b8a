//! Writes into headers what goes on: contexts in every configured format, the operation, the answer's hints.
//! Touches no header that it has nothing to say about.

use super::Trace;
use super::extract::{Propagators, Seen};
use super::record::Buffers;
use crate::carrier::Carrier;
use crate::names::{TRACESTATE_KEY, attribute, header};
use crate::operation::Operation;
use crate::propagation::{b3, baggage, jaeger, traceparent, tracestate};

/// What callers are told of the trace on the response; nothing by default.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ResponseHeaders {
    /// `Server-Timing: trace;desc=…`.
    pub server_timing: bool,
    /// `traceresponse`.
    pub traceresponse: bool,
    /// `X-Trace-Id`.
    pub trace_id: bool,
}

/// The formats that one request gets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Formats {
    pub(super) traceparent: bool,
    b3: bool,
    b3multi: bool,
    jaeger: bool,
}

impl Formats {
    /// No format: the application is told nothing.
    pub(super) fn withheld() -> Self {
        Self { traceparent: false, b3: false, b3multi: false, jaeger: false }
    }

    /// Inside the mesh: every configured format.
    pub(super) fn everything(propagators: Propagators) -> Self {
        let Propagators { tracecontext, b3, b3multi, jaeger, .. } = propagators;
        Self { traceparent: tracecontext, b3, b3multi, jaeger }
    }

    /// Outside: `traceparent` unless withheld, other formats only where the application itself sent them.
    pub(super) fn outside(propagators: Propagators, seen: &Seen<'_>, traceparent: bool) -> Self {
        let all = Self::everything(propagators);
        Self {
            traceparent: all.traceparent && traceparent,
            b3: all.b3 && traceparent && seen.b3.is_some(),
            b3multi: all.b3multi && traceparent && seen.b3_multi.is_there(),
            jaeger: all.jaeger && traceparent && seen.jaeger.is_some(),
        }
    }
}

/// What becomes of `tracestate`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// The list, with our own member put first: towards the application.
    WithOwn,
    /// The list, from which our own member was taken: away from the application.
    OwnTakenOut,
    /// The list; the header is left alone where no `traceparent` of ours goes with it.
    AsItIs,
    /// Nothing, and no unusable `traceparent` either.
    Withheld,
}

/// What becomes of `throughline-peer`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PeerHeader {
    /// The sidecar names itself.
    Own,
    /// Nobody is named.
    Removed,
}

/// What is written into a request's headers, decided before the first of them is touched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) formats: Formats,
    /// The request itself carried a context.
    pub(super) had_context: bool,
    /// B3's and Jaeger's debug flag goes on.
    pub(super) debug: bool,
    pub(super) state: State,
    /// The operation's header is missing, and set.
    pub(super) operation_header: bool,
    /// The header names an operation that goes no further.
    pub(super) operation_disbelieved: bool,
    /// The operation is missing in the baggage, and added.
    pub(super) operation_baggage: bool,
    /// The whole baggage was restored, or a member was taken out of it.
    pub(super) restored_baggage: bool,
    pub(super) peer: PeerHeader,
    /// Whether the request came with fields that may have to go: a search for what is not there costs as much.
    pub(super) had_peer: bool,
    pub(super) had_tracestate: bool,
}

impl Plan {
    pub(super) fn write(
        &self,
        trace: &Trace,
        operation: Option<&Operation>,
        own_peer: &[u8],
        buffers: &mut Buffers,
        carrier: &mut impl Carrier,
    ) {
        match self.peer {
            PeerHeader::Own => carrier.set(header::PEER, own_peer),
            PeerHeader::Removed if self.had_peer => carrier.remove(header::PEER),
            PeerHeader::Removed => {}
        }
        self.contexts(trace, buffers, carrier);
        if self.operation_disbelieved {
            carrier.remove(header::OPERATION);
        }
        if let Some(operation) = operation.filter(|_| self.operation_header) {
            carrier.set(header::OPERATION, operation.as_str().as_bytes());
        }
        // A list that has no room for the operation goes on without it.
        let added = operation.filter(|_| self.operation_baggage).is_some_and(|operation| {
            baggage::append(&mut buffers.baggage, attribute::OPERATION, operation.as_str().as_bytes())
        });
        if (added || self.restored_baggage) && !buffers.baggage.is_empty() {
            carrier.set(baggage::HEADER, &buffers.baggage);
        } else if self.restored_baggage {
            carrier.remove(baggage::HEADER);
        }
    }

    fn contexts(&self, trace: &Trace, buffers: &mut Buffers, carrier: &mut impl Carrier) {
        let Trace { trace_id, span_id, flags, .. } = *trace;
        let sampled = flags.sampled();
        if self.formats.traceparent {
            let text = traceparent::print(&traceparent::TraceParent { trace_id, span_id, flags });
            carrier.set(traceparent::HEADER, &text);
        }
        self.tracestate(trace, buffers, carrier);
        if self.formats.b3 {
            carrier.set(b3::SINGLE, &b3::print_single(trace_id, span_id, sampled, self.debug));
        }
        if self.formats.b3multi {
            carrier.set(b3::TRACE_ID, &trace_id.digits());
            carrier.set(b3::SPAN_ID, &span_id.digits());
            // The caller's parent is no parent of ours: span ids are never shared.
            carrier.remove(b3::PARENT_SPAN_ID);
            if self.debug {
                carrier.set(b3::FLAGS, b"1");
                carrier.remove(b3::SAMPLED);
            } else {
                carrier.set(b3::SAMPLED, if sampled { b"1" } else { b"0" });
                carrier.remove(b3::FLAGS);
            }
        }
        if self.formats.jaeger {
            let id = jaeger::UberTraceId { trace_id, span_id, sampled, debug: self.debug };
            carrier.set(jaeger::HEADER, &jaeger::print(&id));
        }
    }

    fn tracestate(&self, trace: &Trace, buffers: &mut Buffers, carrier: &mut impl Carrier) {
        if self.state == State::WithOwn && self.formats.traceparent && buffers.tracestate.is_empty() {
            // The most common list: our member alone.
            return carrier.set(tracestate::HEADER, &own_member(trace));
        }
        let list = &mut buffers.scratch;
        list.clear();
        list.extend_from_slice(&buffers.tracestate);
        match (self.state, self.formats.traceparent) {
            (State::WithOwn, true) => tracestate::put_first(list, TRACESTATE_KEY, &trace.span_id.digits()),
            (State::AsItIs, true) | (State::OwnTakenOut, _) => {}
            (State::WithOwn | State::AsItIs, false) => return,
            (State::Withheld, _) => {
                list.clear();
                carrier.remove(traceparent::HEADER);
            }
        }
        if !list.is_empty() {
            carrier.set(tracestate::HEADER, list);
        } else if self.had_tracestate {
            carrier.remove(tracestate::HEADER);
        }
    }
}

/// Our member of `tracestate`: `tl=` and the span id.
fn own_member(trace: &Trace) -> [u8; OWN_MEMBER.len()] {
    let mut member = OWN_MEMBER;
    if let Some((_, digits)) = member.split_first_chunk_mut::<3>() {
        digits.copy_from_slice(&trace.span_id.digits());
    }
    member
}

const OWN_MEMBER: [u8; 19] = *b"tl=0000000000000000";

/// What the caller may read of the trace.
pub(super) fn answer(headers: &ResponseHeaders, trace: &Trace, carrier: &mut impl Carrier) {
    let Trace { trace_id, span_id, flags, .. } = *trace;
    if headers.server_timing || headers.traceresponse {
        let context = traceparent::print(&traceparent::TraceParent { trace_id, span_id, flags });
        if headers.traceresponse {
            carrier.set(header::TRACERESPONSE, &context);
        }
        if headers.server_timing {
            // The application's own timings stay: the header is a list.
            let own = [b"trace;desc=".as_slice(), &context].concat();
            let mut all: Vec<&[u8]> = Vec::new();
            carrier.for_each(&mut |name, value| {
                if name == header::SERVER_TIMING {
                    all.push(value);
                }
            });
            all.push(&own);
            let joined = all.join(b", ".as_slice());
            carrier.set(header::SERVER_TIMING, &joined);
        }
    }
    if headers.trace_id {
        carrier.set(header::TRACE_ID, &trace_id.digits());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_member_alone_is_the_list_that_it_would_be_put_first_in() {
        let mut list = Vec::new();
        tracestate::put_first(&mut list, TRACESTATE_KEY, &[b'0'; 16]);
        assert_eq!(list, OWN_MEMBER);
    }
}
