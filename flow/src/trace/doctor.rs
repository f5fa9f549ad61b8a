//! The Context Doctor: where a trace lost its context, why, and what mends it, from what sidecars report. It tells
//! what the spans show and no more: a hop without evidence has no verdict.

use throughline_core::mesh::Mesh;
use throughline_core::names::attribute;

use super::assemble::{Assembled, Note, Relation, relation, text};
use super::findings::destination;
use super::graph::{Id, id_of};
use crate::span::{Kind, Span};

/// Verdicts of one trace, so that a broken one still has an answer of bounded size.
const VERDICTS_MAX: usize = 50;
/// What happened to the context.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verdict {
    /// The application made a call without the context that it got.
    AppDropped,
    /// The application made a call with a context of its own making.
    AppRestarted,
    /// A side of the call has no sidecar.
    NotInjected,
    /// A side of the call was not sampled.
    SampledOut,
    /// A message carried no context.
    AsyncUnlinked,
    /// A span is not here yet.
    Late,
}

impl Verdict {
    /// As answers name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::AppDropped => "app_dropped",
            Verdict::AppRestarted => "app_restarted",
            Verdict::NotInjected => "not_injected",
            Verdict::SampledOut => "sampled_out",
            Verdict::AsyncUnlinked => "async_unlinked",
            Verdict::Late => "late",
        }
    }
}

/// Where it happened. Text that is not known is empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hop {
    /// Who called or sent.
    pub from: Id,
    /// Who was called or received.
    pub to: Id,
    /// The route, or the topic.
    pub route: String,
    /// The place of the span that shows it; none where numbers do.
    pub place: Option<usize>,
}

/// What is said of one hop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// What happened.
    pub verdict: Verdict,
    /// Where.
    pub hop: Hop,
    /// What shows it.
    pub reason: String,
    /// What mends it, in one sentence.
    pub fix: String,
    /// It explains this trace, and says nothing of the service: nobody has to mend anything.
    pub of_trace_only: bool,
}

/// What the Doctor may ask beside the trace.
pub struct Around<'a> {
    /// This moment.
    pub now_unix_nanos: u64,
    /// What is missing of a span younger than this is under way.
    pub late_nanos: u64,
    /// Whether requests to this service are counted: then a trace that begins inside of it should not.
    pub is_called: &'a dyn Fn(&Id) -> bool,
}

/// Looks at a trace.
#[must_use]
pub fn examine(assembled: &Assembled, around: &Around<'_>) -> Vec<Said> {
    let mut said = Vec::new();
    for place in 0..assembled.spans.len() {
        let top = assembled.notes.get(place).and_then(|note| at_top(assembled, place, *note, around));
        said.extend(top);
        said.extend(at_bottom(assembled, place, around));
        if said.len() >= VERDICTS_MAX {
            break;
        }
    }
    said.truncate(VERDICTS_MAX);
    said
}

fn nobody() -> Id {
    Id { name: String::new(), namespace: String::new() }
}

/// Who is at the other end, as the sidecar heard it.
fn peer(span: &Span) -> Option<Id> {
    let name = text(span, attribute::PEER_SERVICE);
    let namespace = text(span, attribute::PEER_NAMESPACE).to_owned();
    (!name.is_empty()).then(|| Id { name: name.to_owned(), namespace })
}

fn route(span: &Span) -> String {
    let known = [
        text(span, attribute::HTTP_ROUTE),
        text(span, attribute::MESSAGING_DESTINATION),
        text(span, attribute::RPC_METHOD),
        span.name.as_str(),
    ];
    known.into_iter().find(|name| !name.is_empty()).unwrap_or("").to_owned()
}

fn young(span: &Span, around: &Around<'_>) -> bool {
    around.now_unix_nanos.saturating_sub(span.end_unix_nanos) < around.late_nanos
}

/// A span with nothing above it.
fn at_top(assembled: &Assembled, place: usize, note: Note, around: &Around<'_>) -> Option<Said> {
    let span = assembled.spans.get(place)?;
    match (note, span.kind) {
        (Note::Child | Note::Cycle, _) => None,
        (_, Kind::Internal | Kind::Unspecified) => None,
        (Note::Root, Kind::Consumer) => unlinked(place, span),
        (Note::Root, Kind::Client | Kind::Producer) => dropped(place, span),
        (Note::Root, Kind::Server) => kept_here(place, span),
        (Note::Orphan(_), Kind::Client | Kind::Producer) => restarted(assembled, place, span, around),
        (Note::Orphan(_), Kind::Server | Kind::Consumer) => missing_caller(place, span, around),
    }
}

/// Rule 8 of the exchange: a call without context starts a trace that links to the requests in flight.
fn dropped(place: usize, span: &Span) -> Option<Said> {
    if !span.ours || span.links.is_empty() {
        return None;
    }
    let service = &span.service.name;
    let what = if span.kind == Kind::Producer { "published" } else { "called" };
    let to =
        peer(span).unwrap_or_else(|| Id { name: destination(span).to_owned(), namespace: String::new() });
    let whom = if to.name.is_empty() { span.name.clone() } else { to.name.clone() };
    Some(Said {
        verdict: Verdict::AppDropped,
        hop: Hop { from: id_of(span), to, route: route(span), place: Some(place) },
        reason: format!(
            "{service} {what} {whom} without a context while it served {} that had one",
            match span.links.len() {
                1 => "a request".to_owned(),
                several => format!("{several} requests"),
            }
        ),
        fix: format!(
            "let {service} copy traceparent (and tracestate, baggage) from the request that it serves to the calls that it makes for it, unless this is a job of its own"
        ),
        of_trace_only: false,
    })
}

/// A call with a parent that nobody exported, of a service that has no request in this trace.
fn restarted(assembled: &Assembled, place: usize, span: &Span, around: &Around<'_>) -> Option<Said> {
    let from = id_of(span);
    let serves_here = assembled
        .spans
        .iter()
        .any(|other| matches!(other.kind, Kind::Server | Kind::Consumer) && id_of(other) == from);
    if !span.ours || serves_here || !(around.is_called)(&from) {
        return None;
    }
    let service = &span.service.name;
    let to =
        peer(span).unwrap_or_else(|| Id { name: destination(span).to_owned(), namespace: String::new() });
    Some(Said {
        verdict: Verdict::AppRestarted,
        reason: format!(
            "{service} made this call with a trace of its own: no request that {service} served belongs to it"
        ),
        fix: format!(
            "let the tracing library of {service} take up the context of incoming requests (propagator tracecontext), unless this is a job of its own"
        ),
        hop: Hop { from, to, route: route(span), place: Some(place) },
        of_trace_only: false,
    })
}

/// A request without a parent that was kept although its trace was not sampled.
fn kept_here(place: usize, span: &Span) -> Option<Said> {
    let kept = text(span, attribute::KEEP_REASON);
    let caller = peer(span)?;
    if !span.ours || kept.is_empty() {
        return None;
    }
    let service = &span.service.name;
    Some(Said {
        verdict: Verdict::SampledOut,
        reason: format!(
            "the trace was not sampled; {service} kept this request ({kept}), and {} before it left no span",
            caller.name
        ),
        fix: format!(
            "raise the base rate where the trace begins, or let {}'s sidecar keep what its callees keep (hybrid mode, same version)",
            caller.name
        ),
        hop: Hop { from: caller, to: id_of(span), route: route(span), place: Some(place) },
        of_trace_only: false,
    })
}

fn unlinked(place: usize, span: &Span) -> Option<Said> {
    if !span.links.is_empty() {
        return None;
    }
    let topic = text(span, attribute::MESSAGING_DESTINATION);
    let through = if topic.is_empty() { text(span, attribute::MESSAGING_SUBSCRIPTION) } else { topic };
    let shown = if through.is_empty() { "a queue" } else { through };
    Some(Said {
        verdict: Verdict::AsyncUnlinked,
        reason: format!("the message that {} took from {shown} carried no context", span.service.name),
        fix: format!(
            "put a sidecar before whoever publishes to {shown}, or let it set the traceparent of each message"
        ),
        hop: Hop { from: nobody(), to: id_of(span), route: through.to_owned(), place: Some(place) },
        of_trace_only: false,
    })
}

/// A request whose caller's span is not here.
fn missing_caller(place: usize, span: &Span, around: &Around<'_>) -> Option<Said> {
    let to = id_of(span);
    let service = &span.service.name;
    let caller = peer(span);
    let hop = |from: Id| Hop { from, to: to.clone(), route: route(span), place: Some(place) };
    let kept = text(span, attribute::KEEP_REASON);
    if young(span, around) {
        let from = caller.unwrap_or_else(nobody);
        let who = if from.name.is_empty() { "the caller" } else { &from.name };
        let reason = format!("the span of {who} that made this request has not arrived yet");
        let fix = "look again in half a minute: spans leave in batches".to_owned();
        return Some(Said { verdict: Verdict::Late, reason, fix, hop: hop(from), of_trace_only: true });
    }
    if span.kind == Kind::Consumer {
        return Some(Said {
            verdict: Verdict::SampledOut,
            reason: format!("the message that {service} took names a span that never arrived"),
            fix: "let publishers and consumers send their spans here, and sample alike".to_owned(),
            hop: hop(nobody()),
            of_trace_only: false,
        });
    }
    match caller {
        Some(from) if !kept.is_empty() => {
            let fix = format!(
                "raise the base rate where the trace begins, or let {}'s sidecar keep what its callees keep",
                from.name
            );
            let reason = format!(
                "{service} kept this request ({kept}); {} was not sampled and left no span",
                from.name
            );
            Some(Said { verdict: Verdict::SampledOut, reason, fix, hop: hop(from), of_trace_only: false })
        }
        Some(from) => {
            let reason = format!("{} has a sidecar and its span never arrived", from.name);
            let fix = format!(
                "look at throughline_spans_dropped_total and throughline_exports_total of {}'s sidecar",
                from.name
            );
            Some(Said { verdict: Verdict::Late, reason, fix, hop: hop(from), of_trace_only: true })
        }
        None => Some(Said {
            verdict: Verdict::NotInjected,
            reason: format!(
                "the caller of {service} sent a context, has no sidecar, and its span is not here"
            ),
            fix: "put a sidecar before the caller, or send the spans of its own library here too".to_owned(),
            hop: hop(nobody()),
            of_trace_only: false,
        }),
    }
}

/// A call with nothing below it.
fn at_bottom(assembled: &Assembled, place: usize, around: &Around<'_>) -> Option<Said> {
    let span = assembled.spans.get(place).filter(|span| span.ours && span.kind == Kind::Client)?;
    let answered = assembled.children_of(place).iter().any(|child| {
        assembled.spans.get(*child).is_some_and(|child| relation(span, child) != Relation::SameProcess)
    });
    if answered
        || assembled.children_of(place).iter().any(|child| {
            assembled.spans.get(*child).is_some_and(|child| matches!(child.kind, Kind::Client | Kind::Server))
        })
    {
        return None;
    }
    let service = &span.service.name;
    let hop = |to: Id| Hop { from: id_of(span), to, route: route(span), place: Some(place) };
    if let Some(to) = peer(span) {
        if young(span, around) {
            let reason = format!("{}'s sidecar answered, and its span has not arrived yet", to.name);
            let fix = "look again in half a minute: spans leave in batches".to_owned();
            return Some(Said { verdict: Verdict::Late, reason, fix, hop: hop(to), of_trace_only: true });
        }
        let kept = text(span, attribute::KEEP_REASON);
        if !kept.is_empty() {
            let reason = format!(
                "the trace was not sampled; {service} kept its own side of the call ({kept}), and {} saw nothing to keep",
                to.name
            );
            let fix = "raise the base rate where the trace begins, to see all of more traces".to_owned();
            return Some(Said {
                verdict: Verdict::SampledOut,
                reason,
                fix,
                hop: hop(to),
                of_trace_only: true,
            });
        }
        let reason = format!("{}'s sidecar answered and left no span", to.name);
        let fix = format!(
            "look at the sampler, the mode and throughline_spans_dropped_total of {}'s sidecar",
            to.name
        );
        return Some(Said { verdict: Verdict::SampledOut, reason, fix, hop: hop(to), of_trace_only: false });
    }
    let host = text(span, attribute::SERVER_ADDRESS);
    let reached = text(span, attribute::ERROR_TYPE).is_empty()
        || !text(span, attribute::HTTP_RESPONSE_STATUS_CODE).is_empty()
        || span.attribute(attribute::HTTP_RESPONSE_STATUS_CODE).is_some();
    let inside = Mesh::new(Vec::new()).inside(host.as_bytes()) && !is_link_local(host);
    // The service there may have a library of its own, whose span is under way.
    if host.is_empty() || !reached || !inside || young(span, around) {
        return None;
    }
    let to = Id { name: host.to_owned(), namespace: String::new() };
    Some(Said {
        verdict: Verdict::NotInjected,
        reason: format!("{service} called {host}, and no sidecar answered there"),
        fix: format!(
            "put a sidecar before {host}; where it can have none (a database, an appliance), nothing is wrong"
        ),
        hop: hop(to),
        of_trace_only: false,
    })
}

/// Where clouds answer questions about the machine itself: nobody puts a sidecar there.
fn is_link_local(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(address)) => address.is_link_local(),
        Ok(std::net::IpAddr::V6(address)) => address.is_unicast_link_local(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::assemble::tests::span;
    use super::*;
    use crate::span::{Link, Value};

    const LATER: u64 = 1_000_000_000 + 600_000_000_000;

    fn with(mut span: Span, attributes: &[(&str, &str)]) -> Span {
        let owned =
            attributes.iter().map(|(key, value)| ((*key).to_owned(), Value::Text((*value).to_owned())));
        span.attributes.extend(owned);
        span
    }

    fn said_at(spans: Vec<Span>, now_unix_nanos: u64, called: &[&str]) -> Vec<(Verdict, String, String)> {
        let is_called = |id: &Id| called.contains(&id.name.as_str());
        let around = Around { now_unix_nanos, late_nanos: 30_000_000_000, is_called: &is_called };
        let said = examine(&Assembled::new(spans), &around);
        assert!(said.iter().all(|said| !said.reason.is_empty() && !said.fix.is_empty()));
        said.into_iter().map(|said| (said.verdict, said.hop.from.name, said.hop.to.name)).collect()
    }

    fn said(spans: Vec<Span>) -> Vec<(Verdict, String, String)> {
        said_at(spans, LATER, &[])
    }

    fn one(verdict: Verdict, from: &str, to: &str) -> Vec<(Verdict, String, String)> {
        vec![(verdict, from.to_owned(), to.to_owned())]
    }

    #[test]
    fn a_whole_trace_has_no_verdict() {
        let spans = vec![
            span("web", 1, 0, Kind::Server, 0, 100),
            with(span("web", 2, 1, Kind::Client, 10, 90), &[(attribute::PEER_SERVICE, "orders")]),
            with(span("orders", 3, 2, Kind::Server, 20, 80), &[(attribute::PEER_SERVICE, "web")]),
            with(
                span("orders", 4, 3, Kind::Client, 30, 40),
                &[(attribute::SERVER_ADDRESS, "api.example.com")],
            ),
        ];
        assert_eq!(said(spans), []);
    }

    #[test]
    fn a_call_that_begins_a_trace_and_links_to_requests_in_flight_was_dropped_by_the_application() {
        let mut call = with(span("orders", 1, 0, Kind::Client, 0, 9), &[(attribute::PEER_SERVICE, "stock")]);
        call.links = vec![Link { trace_id: [9; 16], span_id: [9; 8], attributes: Vec::new() }];
        let server = with(span("stock", 2, 1, Kind::Server, 1, 8), &[(attribute::PEER_SERVICE, "orders")]);
        assert_eq!(said(vec![call.clone(), server.clone()]), one(Verdict::AppDropped, "orders", "stock"));
        // Without requests in flight it is a job of its own.
        call.links.clear();
        assert_eq!(said(vec![call, server]), []);
    }

    #[test]
    fn a_call_under_a_span_that_is_nowhere_was_restarted_where_the_service_is_called() {
        let call = || with(span("orders", 2, 77, Kind::Client, 0, 9), &[(attribute::PEER_SERVICE, "stock")]);
        let server = || with(span("stock", 3, 2, Kind::Server, 1, 8), &[(attribute::PEER_SERVICE, "orders")]);
        let spans = vec![call(), server()];
        assert_eq!(said_at(spans, LATER, &["orders"]), one(Verdict::AppRestarted, "orders", "stock"));
        assert_eq!(said(vec![call(), server()]), [], "a job of its own");
        // The application's own SDK between the two, exported elsewhere.
        let served = span("orders", 1, 0, Kind::Server, 0, 10);
        assert_eq!(said_at(vec![served, call(), server()], LATER, &["orders"]), []);
    }

    #[test]
    fn an_address_inside_where_no_sidecar_answers_is_not_injected() {
        let call =
            |host: &str| with(span("web", 1, 0, Kind::Client, 0, 9), &[(attribute::SERVER_ADDRESS, host)]);
        for inside in ["orders", "orders.shop.svc.cluster.local", "10.1.2.3"] {
            assert_eq!(said(vec![call(inside)]), one(Verdict::NotInjected, "web", inside));
        }
        for outside in ["api.example.com", "169.254.169.254", "[fe80::1]"] {
            assert_eq!(said(vec![call(outside)]), [], "{outside}");
        }
        assert_eq!(said_at(vec![call("orders")], 1_000_000_000 + 5_000_000_000, &[]), [], "it may come yet");
        // Nobody was reached: that says nothing of sidecars.
        let lost = with(call("orders"), &[(attribute::ERROR_TYPE, "connection_refused")]);
        assert_eq!(said(vec![lost]), []);
    }

    #[test]
    fn a_caller_without_sidecar_whose_span_is_elsewhere_is_not_injected() {
        let server = span("orders", 2, 77, Kind::Server, 0, 9);
        assert_eq!(said(vec![server]), one(Verdict::NotInjected, "", "orders"));
    }

    #[test]
    fn a_kept_request_of_an_unsampled_trace_is_sampled_out_before_it() {
        let kept = [(attribute::PEER_SERVICE, "web"), (attribute::KEEP_REASON, "error")];
        for parent in [0, 77] {
            let server = with(span("orders", 2, parent, Kind::Server, 0, 9), &kept);
            assert_eq!(said(vec![server]), one(Verdict::SampledOut, "web", "orders"));
        }
        // Kept at the edge, where nobody was before it.
        let first = with(span("web", 2, 0, Kind::Server, 0, 9), &[(attribute::KEEP_REASON, "error")]);
        assert_eq!(said(vec![first]), []);
    }

    #[test]
    fn a_message_without_context_is_unlinked() {
        let taken =
            with(span("mail", 2, 0, Kind::Consumer, 0, 9), &[(attribute::MESSAGING_DESTINATION, "orders")]);
        assert_eq!(said(vec![taken.clone()]), one(Verdict::AsyncUnlinked, "", "mail"));
        let mut linked = taken;
        linked.links = vec![Link { trace_id: [9; 16], span_id: [9; 8], attributes: Vec::new() }];
        assert_eq!(said(vec![linked]), []);
    }

    #[test]
    fn what_is_young_is_late_and_what_is_old_is_not() {
        let server = || with(span("orders", 2, 77, Kind::Server, 0, 9), &[(attribute::PEER_SERVICE, "web")]);
        let soon = 1_000_000_000 + 5_000_000_000;
        assert_eq!(said_at(vec![server()], soon, &[]), one(Verdict::Late, "web", "orders"));
        let call = || with(span("web", 2, 0, Kind::Client, 0, 9), &[(attribute::PEER_SERVICE, "orders")]);
        assert_eq!(said_at(vec![call()], soon, &[]), one(Verdict::Late, "web", "orders"));
        assert_eq!(said(vec![call()]), one(Verdict::SampledOut, "web", "orders"));
    }
}
