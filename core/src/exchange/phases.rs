//! The phases of an exchange in `full` mode: one child span each, made of the moments that the host marked.
//! Never guesses a moment: a phase whose beginning nobody marked is left out.

use super::{Now, Trace};
use crate::batch::SpanSink;
use crate::ids::{Ids, SpanId};
use crate::otlp::{Kind, Parent, Span, Status};

/// A moment of an exchange that only its host knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// A connection to the upstream is looked for.
    Connecting,
    /// A connection is at hand, an old one or a new one.
    Connected,
    /// The last byte of the request's body has left.
    RequestSent,
    /// The head of the answer is here.
    FirstByte,
}

const MARKS: usize = 4;
const PHASES: usize = 4;
/// Names of the child spans.
const NAMES: [&str; PHASES] = ["connect", "send request", "wait for answer", "receive answer"];

/// Marks of one exchange, and the ids of the spans that they become.
#[derive(Debug)]
pub(super) struct Phases {
    marks: [Option<u64>; MARKS],
    ids: [SpanId; PHASES],
}

impl Phases {
    pub(super) fn new(ids: &mut impl Ids) -> Box<Self> {
        Box::new(Self { marks: [None; MARKS], ids: std::array::from_fn(|_| ids.span_id()) })
    }

    /// The first mark of a kind counts.
    pub(super) fn mark(&mut self, mark: Mark, now: Now) {
        if let Some(slot) = self.marks.get_mut(mark as usize) {
            slot.get_or_insert(now.mono_nanos);
        }
    }

    fn at(&self, mark: Mark) -> Option<u64> {
        self.marks.get(mark as usize).copied().flatten()
    }

    /// Beginning and end of each phase, by the monotonic clock. What broke off lasts until the end.
    fn spans(&self, started: u64, end: u64) -> [Option<(u64, u64)>; PHASES] {
        let connecting = self.at(Mark::Connecting).unwrap_or(started);
        let connected = self.at(Mark::Connected);
        let sent = self.at(Mark::RequestSent);
        let first_byte = self.at(Mark::FirstByte);
        // An answer may come before the request was read to its end.
        let waiting = sent.filter(|sent| first_byte.is_none_or(|first| *sent <= first)).or(connected);
        [
            Some((connecting, connected.unwrap_or(end))),
            connected.zip(sent),
            waiting.map(|from| (from, first_byte.unwrap_or(end))),
            first_byte.map(|from| (from, end)),
        ]
    }

    /// One child for each phase; `failed` says that the exchange broke off in the last of them.
    pub(super) fn hand_out(
        &self,
        trace: &Trace,
        started: Now,
        duration_nanos: u64,
        failed: bool,
        now: Now,
        sink: &mut impl SpanSink,
    ) {
        let end = started.mono_nanos.saturating_add(duration_nanos);
        let phases = self.spans(started.mono_nanos, end);
        let last = phases.iter().rposition(Option::is_some);
        let unix = |mono: u64| {
            let since = mono.clamp(started.mono_nanos, end) - started.mono_nanos;
            started.unix_nanos.saturating_add(since)
        };
        for (at, ((phase, name), span_id)) in phases.into_iter().zip(&NAMES).zip(self.ids).enumerate() {
            let Some((from, to)) = phase else { continue };
            let span = Span {
                trace_id: trace.trace_id,
                span_id,
                flags: trace.flags,
                parent: Some(Parent { span_id: trace.span_id, remote: false }),
                trace_state: b"",
                name: &[name],
                kind: Kind::Internal,
                start_unix_nanos: unix(from),
                end_unix_nanos: unix(to.max(from)),
                attributes: b"",
                links: b"",
                status: if failed && Some(at) == last { Status::Error } else { Status::Unset },
            };
            sink.span(&span, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One;

    impl Ids for One {
        fn trace_id(&mut self) -> crate::ids::TraceId {
            crate::ids::TraceId::from_bytes([1; 16]).unwrap()
        }
        fn span_id(&mut self) -> SpanId {
            SpanId::from_bytes([1; 8]).unwrap()
        }
    }

    #[test]
    fn phases_follow_each_other_and_what_broke_off_lasts_to_the_end() {
        use Mark::{Connected, Connecting, FirstByte, RequestSent};
        type Rows<'a> = &'a [(&'a [(Mark, u64)], [Option<(u64, u64)>; PHASES])];
        let rows: Rows<'_> = &[
            (
                &[(Connecting, 11), (Connected, 20), (RequestSent, 30), (FirstByte, 40)],
                [Some((11, 20)), Some((20, 30)), Some((30, 40)), Some((40, 50))],
            ),
            (&[(Connected, 20), (FirstByte, 40)], [Some((10, 20)), None, Some((20, 40)), Some((40, 50))]),
            // The answer came before the body was read.
            (
                &[(Connected, 20), (FirstByte, 30), (RequestSent, 40)],
                [Some((10, 20)), Some((20, 40)), Some((20, 30)), Some((30, 50))],
            ),
            (&[(Connected, 20)], [Some((10, 20)), None, Some((20, 50)), None]),
            (&[], [Some((10, 50)), None, None, None]),
        ];
        for (marks, expected) in rows {
            let mut phases = Phases::new(&mut One);
            for (mark, at) in *marks {
                phases.mark(*mark, Now { unix_nanos: 0, mono_nanos: *at });
                phases.mark(*mark, Now { unix_nanos: 0, mono_nanos: 99 });
            }
            assert_eq!(phases.spans(10, 50), *expected, "{marks:?}");
        }
    }
}
