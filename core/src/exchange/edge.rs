//! What is believed of strangers at an edge (rule 10): their context becomes a link, their operation counts only if
//! it is on the list or there is room for it, and the answer tells them of the trace only what the user chose.

use super::extract::Context;
use crate::carrier::Carrier;
use crate::limits;
use crate::names::{attribute, header};
use crate::operation::Operation;
use crate::otlp::link;
use crate::propagation::{b3, baggage, jaeger, traceparent, tracestate};

/// Whom inbound requests come from.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Trust {
    /// From the mesh, or from whoever may speak for it.
    #[default]
    Mesh,
    /// From anybody.
    Edge(Edge),
}

/// What strangers may ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edge {
    /// Operations that are believed; empty for the first `operations_max` different ones.
    pub operations: Vec<Box<str>>,
    /// Different operations, when none are listed.
    pub operations_max: usize,
    /// Traces a second that strangers may have sampled by their own flag.
    pub sampled_per_second: u64,
}

impl Edge {
    /// Whether a stranger's operation is one of the listed ones; none when there is no list.
    pub(super) fn lists(&self, operation: &Operation) -> Option<bool> {
        let listed = || self.operations.iter().any(|known| **known == *operation.as_str());
        (!self.operations.is_empty()).then(listed)
    }
}

/// Headers that carry a context, in whatever format.
const CONTEXT: [&str; 11] = [
    traceparent::HEADER,
    tracestate::HEADER,
    b3::SINGLE,
    b3::TRACE_ID,
    b3::SPAN_ID,
    b3::PARENT_SPAN_ID,
    b3::SAMPLED,
    b3::FLAGS,
    jaeger::HEADER,
    header::TRACE_ID,
    header::GRPC_TRACE,
];

/// Takes a stranger's context out of a request. Ours is written afterwards.
pub(super) fn strip_request(carrier: &mut impl Carrier) {
    strip(carrier, &CONTEXT);
}

/// Takes out of an answer, or its trailers, what an application says of the trace.
pub(super) fn strip_answer(carrier: &mut impl Carrier) {
    strip(carrier, &CONTEXT);
    strip(carrier, &[header::TRACERESPONSE, header::OPERATION, baggage::HEADER]);
    strip_timings(carrier);
}

pub(super) fn strip(carrier: &mut impl Carrier, names: &[&'static str]) {
    for name in names {
        if carrier.get(name).is_some() {
            carrier.remove(name);
        }
    }
}

/// `Server-Timing` is the application's, but for the entries by which libraries tell browsers of the trace.
fn strip_timings(carrier: &mut impl Carrier) {
    let (mut kept, mut found): (Vec<Vec<u8>>, bool) = (Vec::new(), false);
    carrier.for_each(&mut |name, value| {
        if name == header::SERVER_TIMING {
            for entry in entries(value) {
                let metric = entry.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                let tells =
                    [&b"traceparent"[..], b"trace"].iter().any(|known| metric.eq_ignore_ascii_case(known));
                found |= tells;
                if !tells {
                    kept.push(entry.trim_ascii().to_vec());
                }
            }
        }
    });
    if found && kept.is_empty() {
        carrier.remove(header::SERVER_TIMING);
    } else if found {
        carrier.set(header::SERVER_TIMING, &kept.join(&b", "[..]));
    }
}

/// The entries of a list, commas within quotes left alone.
fn entries(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    value.split(move |byte| {
        let was_escaped = std::mem::take(&mut escaped);
        match byte {
            b'"' if !was_escaped => quoted = !quoted,
            b'\\' if quoted && !was_escaped => escaped = true,
            _ => {}
        }
        *byte == b',' && !quoted
    })
}

/// The stranger's context as a link of our root.
pub(super) fn link_to(context: Option<Context>, out: &mut Vec<u8>) {
    if let Some(Context { trace_id, span_id: Some(span_id), flags, .. }) = context {
        link(out, trace_id, span_id, flags);
    }
}

/// Takes an operation that is not believed out of the baggage; says whether the list has changed. Of several, whose
/// readers may take any, only the believed one is left where all say the same.
pub(super) fn strip_baggage(list: &mut Vec<u8>, believed: Option<&Operation>) -> bool {
    let said = baggage::find(list, attribute::OPERATION).map(|said| said.into_owned());
    let several =
        baggage::members(list).filter(|(name, _)| *name == attribute::OPERATION.as_bytes()).count() > 1;
    match said {
        Some(said) if several || believed.is_none_or(|believed| believed.as_str() != said) => {
            baggage::remove(list, attribute::OPERATION)
        }
        Some(_) | None => false,
    }
}

/// The bound of different operations, where none are listed.
pub(super) fn operations_max(trust: &Trust) -> usize {
    match trust {
        Trust::Edge(edge) => edge.operations_max.min(limits::METRIC_OPERATIONS_MAX),
        Trust::Mesh => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_entries_about_the_trace_leave_the_timings() {
        for (before, after) in [
            ("db;dur=5", Some("db;dur=5")),
            ("traceparent;desc=\"00-a,b-01\"", None),
            ("db;desc=\"a, trace\";dur=5, trace;desc=x,cache", Some("db;desc=\"a, trace\";dur=5, cache")),
            ("a;desc=\"\\\",trace;x\", b", Some("a;desc=\"\\\",trace;x\", b")),
        ] {
            let mut headers = vec![("server-timing".to_owned(), before.as_bytes().to_vec())];
            strip_timings(&mut headers);
            let left = headers.first().map(|(_, value)| std::str::from_utf8(value).unwrap());
            assert_eq!(left, after, "{before}");
        }
    }
}
