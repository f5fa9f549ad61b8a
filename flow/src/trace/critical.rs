//! The critical path: the pieces of spans that the answer waited for, so that each moment of the root belongs to
//! one of them. What ran beside it, and what was only sent off, is not on it.

use super::assemble::{Assembled, Relation, relation};

/// A piece of a span that was waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The span's place.
    pub place: usize,
    /// From, by the mended clocks.
    pub start_unix_nanos: u64,
    /// To.
    pub end_unix_nanos: u64,
}

/// The path of the trace's first root, from its start to its end.
#[must_use]
pub fn path(assembled: &Assembled) -> Vec<Piece> {
    let root = assembled.root().map(|root| root.span_id);
    let place =
        assembled.roots.iter().find(|place| assembled.spans.get(**place).map(|span| span.span_id) == root);
    place.map(|place| below(assembled, *place)).unwrap_or_default()
}

/// A span under way, walked from its end to its start.
struct Frame {
    place: usize,
    start: u64,
    /// Up to here nothing is told yet.
    cursor: u64,
    /// Children that were waited for, by their end, the last at the back.
    children: Vec<(u64, u64, usize)>,
}

impl Frame {
    /// `end` bounds the span: a caller did not wait any longer.
    fn new(assembled: &Assembled, place: usize, start: u64, end: u64) -> Self {
        let mut children: Vec<(u64, u64, usize)> = assembled
            .children_of(place)
            .iter()
            .filter(|child| waited_for(assembled, place, **child))
            .map(|child| {
                let (from, to) = assembled.interval(*child);
                (to, from, *child)
            })
            .collect();
        children.sort_unstable();
        Self { place, start, cursor: end, children }
    }
}

fn waited_for(assembled: &Assembled, parent: usize, child: usize) -> bool {
    match (assembled.spans.get(parent), assembled.spans.get(child)) {
        (Some(parent), Some(child)) => relation(parent, child) != Relation::Message,
        (None, _) | (_, None) => false,
    }
}

fn below(assembled: &Assembled, root: usize) -> Vec<Piece> {
    let (start, end) = assembled.interval(root);
    let mut stack = vec![Frame::new(assembled, root, start, end)];
    let mut pieces = Vec::new();
    while let Some(frame) = stack.last_mut() {
        // Whoever ended last before the cursor was waited for up to there.
        match frame.children.pop() {
            Some((to, from, _)) if from >= frame.cursor || to <= frame.start => {}
            Some((to, from, child)) => {
                let (to, from) = (to.min(frame.cursor), from.max(frame.start));
                push(&mut pieces, frame.place, to, frame.cursor);
                frame.cursor = from;
                stack.push(Frame::new(assembled, child, from, to));
            }
            None => {
                push(&mut pieces, frame.place, frame.start, frame.cursor);
                stack.pop();
            }
        }
    }
    pieces.sort_by_key(|piece| piece.start_unix_nanos);
    pieces
}

fn push(pieces: &mut Vec<Piece>, place: usize, from: u64, to: u64) {
    if from < to {
        pieces.push(Piece { place, start_unix_nanos: from, end_unix_nanos: to });
    }
}

#[cfg(test)]
mod tests {
    use super::super::assemble::tests::span;
    use super::*;
    use crate::span::Kind;

    fn told(assembled: &Assembled) -> Vec<(u64, u64, u64)> {
        let ms = |nanos: u64| (nanos - 1_000_000_000) / 1_000_000;
        let of = |piece: &Piece| {
            let id = u64::from_be_bytes(assembled.spans[piece.place].span_id);
            (id, ms(piece.start_unix_nanos), ms(piece.end_unix_nanos))
        };
        path(assembled).iter().map(of).collect()
    }

    #[test]
    fn of_two_calls_at_once_the_longer_one_is_on_the_path() {
        let assembled = Assembled::new(vec![
            span("web", 1, 0, Kind::Server, 0, 100),
            span("web", 2, 1, Kind::Client, 10, 60),
            span("web", 3, 1, Kind::Client, 10, 90),
        ]);
        assert_eq!(told(&assembled), [(1, 0, 10), (3, 10, 90), (1, 90, 100)]);
    }

    #[test]
    fn calls_one_after_the_other_are_all_on_it() {
        let assembled = Assembled::new(vec![
            span("web", 1, 0, Kind::Server, 0, 100),
            span("web", 2, 1, Kind::Client, 10, 40),
            span("orders", 4, 2, Kind::Server, 15, 35),
            span("web", 3, 1, Kind::Client, 50, 90),
        ]);
        let expected =
            [(1, 0, 10), (2, 10, 15), (4, 15, 35), (2, 35, 40), (1, 40, 50), (3, 50, 90), (1, 90, 100)];
        assert_eq!(told(&assembled), expected);
    }

    #[test]
    fn what_was_only_sent_off_is_not_waited_for() {
        let assembled = Assembled::new(vec![
            span("web", 1, 0, Kind::Server, 0, 100),
            span("web", 2, 1, Kind::Producer, 10, 12),
            span("mail", 3, 2, Kind::Consumer, 11, 5000),
        ]);
        assert_eq!(told(&assembled), [(1, 0, 10), (2, 10, 12), (1, 12, 100)]);
    }

    #[test]
    fn each_moment_of_the_root_is_told_once() {
        let assembled = Assembled::new(
            (0..60_u64)
                .map(|id| {
                    let (from, length) = ((id * 37) % 90, (id * 53) % 40);
                    if id == 0 {
                        span("web", 1, 0, Kind::Server, 0, 100)
                    } else {
                        span("web", id + 1, 1 + (id * 7) % id, Kind::Internal, from, from + length)
                    }
                })
                .collect(),
        );
        let mut at = 0;
        for (_, from, to) in told(&assembled) {
            assert_eq!(from, at);
            at = to;
        }
        assert_eq!(at, 100);
    }
}
