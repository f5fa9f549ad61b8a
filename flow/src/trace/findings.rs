//! What cost a flow time for nothing: calls tried again, calls given up, calls made one by one. Says what it saw and
//! how long it took; must never call something wrong that the spans do not show.

use std::collections::BTreeMap;

use super::assemble::{Assembled, Relation, duration, number, relation, text};
use crate::span::{Kind, Span, Status};
use throughline_core::names::attribute;

/// Calls of one kind below one span, from which on they count as made one by one.
const MANY: usize = 5;
/// Findings of one trace, so that a broken one still has an answer of bounded size.
const FINDINGS_MAX: usize = 100;
/// Spans named by one finding.
const NAMED_MAX: usize = 20;

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum What {
    /// A call was made again after it failed.
    Retries,
    /// A call was given up.
    Timeout,
    /// The same call was made again and again, one after the other.
    NPlusOne,
}

impl What {
    /// As answers name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            What::Retries => "retries",
            What::Timeout => "timeout",
            What::NPlusOne => "n_plus_one",
        }
    }
}

/// A finding.
#[derive(Clone, PartialEq, Debug)]
pub struct Finding {
    /// What.
    pub what: What,
    /// The place of the span below which it happened, or of the call itself.
    pub place: usize,
    /// The calls.
    pub calls: Vec<usize>,
    /// How many calls there were.
    pub count: usize,
    /// What it cost.
    pub wasted_nanos: u64,
    /// In a sentence.
    pub text: String,
}

/// Looks for all of them, those that cost most first.
#[must_use]
pub fn find(assembled: &Assembled) -> Vec<Finding> {
    let mut found = Vec::new();
    for place in 0..assembled.spans.len() {
        if let Some(timeout) = gave_up(assembled, place) {
            found.push(timeout);
        }
        let calls = calls_below(assembled, place);
        for calls in calls.values().filter(|calls| calls.len() > 1) {
            match retries(assembled, place, calls) {
                Some(retries) => found.push(retries),
                None => found.extend(one_by_one(assembled, place, calls)),
            }
        }
    }
    found.sort_by(|one, other| {
        (other.wasted_nanos, one.place, one.what).cmp(&(one.wasted_nanos, other.place, other.what))
    });
    found.truncate(FINDINGS_MAX);
    found
}

/// Client spans below a span, by what they call, in their order.
fn calls_below(assembled: &Assembled, place: usize) -> BTreeMap<(&str, &str, &str), Vec<usize>> {
    let mut calls: BTreeMap<(&str, &str, &str), Vec<usize>> = BTreeMap::new();
    for child in assembled.children_of(place) {
        if let Some(span) = assembled.spans.get(*child).filter(|span| span.kind == Kind::Client) {
            let to = (span.name.as_str(), destination(span), text(span, "db.query.text"));
            calls.entry(to).or_default().push(*child);
        }
    }
    calls
}

/// Who is called, as the caller's span names it.
#[must_use]
pub fn destination(span: &Span) -> &str {
    let named = [
        text(span, attribute::PEER_SERVICE),
        text(span, "peer.service"),
        text(span, attribute::SERVER_ADDRESS),
        text(span, "net.peer.name"),
        text(span, "db.system.name"),
        text(span, "db.system"),
    ];
    named.into_iter().find(|name| !name.is_empty()).unwrap_or("")
}

/// Whether a call went wrong in a way that callers try again: no answer, or an answer from 500 on, or 429.
#[must_use]
pub fn failed(span: &Span) -> bool {
    let status =
        number(span, attribute::HTTP_RESPONSE_STATUS_CODE).or_else(|| number(span, "http.status_code"));
    match status {
        Some(status) => status >= 500 || status == 429,
        None => span.status == Status::Error || !text(span, attribute::ERROR_TYPE).is_empty(),
    }
}

/// Whether a span says that somebody ran out of patience.
#[must_use]
pub fn timed_out(span: &Span) -> bool {
    let error = text(span, attribute::ERROR_TYPE).to_ascii_lowercase();
    let rpc = text(span, attribute::RPC_STATUS_CODE);
    error.contains("timeout")
        || error.contains("deadline")
        || rpc == "DEADLINE_EXCEEDED"
        || number(span, "rpc.grpc.status_code") == Some(4)
        || number(span, attribute::HTTP_RESPONSE_STATUS_CODE).or_else(|| number(span, "http.status_code"))
            == Some(504)
}

/// The same call made again after it failed. What the failed tries took, and the pauses behind them, was lost.
fn retries(assembled: &Assembled, place: usize, calls: &[usize]) -> Option<Finding> {
    let mut tries: Vec<usize> = Vec::new();
    let (mut best, mut best_wasted): (Vec<usize>, u64) = (Vec::new(), 0);
    let mut wasted = 0;
    for call in calls {
        let (span, (start, _)) = (assembled.spans.get(*call)?, assembled.interval(*call));
        let follows = tries.last().is_some_and(|last| {
            let again = number(span, "http.request.resend_count").is_some_and(|count| count > 0);
            let (_, ended) = assembled.interval(*last);
            (assembled.spans.get(*last).is_some_and(failed) || again) && ended <= start
        });
        if follows {
            let (first, _) = tries.first().map_or((start, 0), |first| assembled.interval(*first));
            wasted = start.saturating_sub(first);
        } else {
            if tries.len() > best.len().max(1) {
                (best, best_wasted) = (std::mem::take(&mut tries), wasted);
            }
            tries.clear();
            wasted = 0;
        }
        tries.push(*call);
    }
    if tries.len() > best.len().max(1) {
        (best, best_wasted) = (tries, wasted);
    }
    let last = assembled.spans.get(*best.last()?)?;
    if failed(last) {
        // No try brought an answer: all of them were for nothing.
        best_wasted = best_wasted.saturating_add(duration(last));
    }
    let outcome = if failed(last) { "none brought an answer" } else { "the last one brought an answer" };
    let (count, ms) = (best.len(), millis(best_wasted));
    let text = format!("{count} attempts of {}, {ms} ms lost: {outcome}", called(last));
    Some(Finding { what: What::Retries, place, calls: named(best), count, wasted_nanos: best_wasted, text })
}

/// Many calls of one kind, one after the other: one call for all of them would have taken as long as the longest.
fn one_by_one(assembled: &Assembled, place: usize, calls: &[usize]) -> Option<Finding> {
    let (mut in_turn, mut last_end, mut total, mut longest) = (Vec::new(), 0, 0_u64, 0_u64);
    for call in calls {
        let (start, end) = assembled.interval(*call);
        if start >= last_end {
            in_turn.push(*call);
            last_end = end;
            total = total.saturating_add(end - start);
            longest = longest.max(end - start);
        }
    }
    if in_turn.len() < MANY {
        return None;
    }
    let (count, wasted_nanos) = (in_turn.len(), total.saturating_sub(longest));
    let call = assembled.spans.get(*in_turn.first()?)?;
    let text = format!(
        "{count} calls of {} one after the other, {} ms more than one call for all would take",
        called(call),
        millis(wasted_nanos)
    );
    Some(Finding { what: What::NPlusOne, place, calls: named(in_turn), count, wasted_nanos, text })
}

/// A call that was given up: it says so, or its service went on after the caller had gone.
fn gave_up(assembled: &Assembled, place: usize) -> Option<Finding> {
    let span = assembled.spans.get(place).filter(|span| span.kind == Kind::Client)?;
    if !timed_out(span) {
        return None;
    }
    let (_, end) = assembled.interval(place);
    let went_on = assembled.children_of(place).iter().filter_map(|child| {
        let callee = assembled.spans.get(*child).filter(|callee| relation(span, callee) == Relation::Call)?;
        let (_, ended) = assembled.interval(*child);
        Some((ended.saturating_sub(end), callee))
    });
    let after = went_on.max_by_key(|(nanos, _)| *nanos).filter(|(nanos, _)| *nanos > 0);
    let mut wasted_nanos = duration(span);
    let mut text = format!("{} was given up after {} ms", called(span), millis(wasted_nanos));
    if let Some((nanos, callee)) = after {
        text.push_str(&format!("; {} worked on for {} ms", callee.service.name, millis(nanos)));
        wasted_nanos = wasted_nanos.saturating_add(nanos);
    }
    Some(Finding { what: What::Timeout, place, calls: vec![place], count: 1, wasted_nanos, text })
}

fn called(span: &Span) -> String {
    let to = destination(span);
    if to.is_empty() { span.name.clone() } else { format!("{} to {to}", span.name) }
}

fn named(mut calls: Vec<usize>) -> Vec<usize> {
    calls.truncate(NAMED_MAX);
    calls
}

/// Milliseconds with as many digits as mean something.
fn millis(nanos: u64) -> String {
    let ms = nanos as f64 / 1e6;
    if ms >= 10.0 { format!("{ms:.0}") } else { format!("{ms:.1}") }
}

#[cfg(test)]
mod tests {
    use super::super::assemble::tests::span;
    use super::*;
    use crate::span::Value;

    fn call(id: u64, from: u64, to: u64, status: i64) -> Span {
        let mut call = span("web", id, 1, Kind::Client, from, to);
        call.name = "GET /items/{id}".to_owned();
        call.attributes = vec![
            (attribute::SERVER_ADDRESS.to_owned(), Value::Text("stock".to_owned())),
            (attribute::HTTP_RESPONSE_STATUS_CODE.to_owned(), Value::Int(status)),
        ];
        call
    }

    fn found(mut spans: Vec<Span>) -> Vec<(What, usize, u64, String)> {
        spans.push(span("web", 1, 0, Kind::Server, 0, 1000));
        let of =
            |finding: Finding| (finding.what, finding.count, finding.wasted_nanos / 1_000_000, finding.text);
        find(&Assembled::new(spans)).into_iter().map(of).collect()
    }

    #[test]
    fn tries_after_failures_are_retries_and_their_pauses_were_lost() {
        let spans = vec![call(2, 0, 100, 503), call(3, 150, 250, 503), call(4, 400, 430, 200)];
        let text = "3 attempts of GET /items/{id} to stock, 400 ms lost: the last one brought an answer";
        assert_eq!(found(spans), [(What::Retries, 3, 400, text.to_owned())]);
    }

    #[test]
    fn tries_that_all_fail_are_lost_whole() {
        let spans = vec![call(2, 0, 100, 503), call(3, 150, 250, 503)];
        let text = "2 attempts of GET /items/{id} to stock, 250 ms lost: none brought an answer";
        assert_eq!(found(spans), [(What::Retries, 2, 250, text.to_owned())]);
    }

    #[test]
    fn two_good_calls_are_no_finding_and_six_in_turn_are() {
        assert_eq!(found(vec![call(2, 0, 100, 200), call(3, 150, 250, 200)]), []);
        let spans = (0..6).map(|id| call(2 + id, id * 20, id * 20 + 10, 200)).collect();
        let told = found(spans);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].0, told[0].1, told[0].2), (What::NPlusOne, 6, 50));
    }

    #[test]
    fn calls_at_once_are_not_made_one_by_one() {
        assert_eq!(found((0..6).map(|id| call(2 + id, 10, 100, 200)).collect()), []);
    }

    #[test]
    fn a_service_that_worked_on_after_its_caller_had_gone_is_told() {
        let mut client = call(2, 0, 100, 504);
        client.attributes.push((attribute::ERROR_TYPE.to_owned(), Value::Text("timeout".to_owned())));
        let server = span("stock", 3, 2, Kind::Server, 5, 400);
        let text = "GET /items/{id} to stock was given up after 100 ms; stock worked on for 300 ms";
        assert_eq!(found(vec![client, server]), [(What::Timeout, 1, 400, text.to_owned())]);
    }
}
