//! Finished spans on their way out: encoded, bounded, counted. The books balance at every moment:
//! created = exported + held + dropped by reason. Never sends anything; a host takes chunks and says how
//! each one fared.

use std::collections::VecDeque;

use crate::exchange::Now;
use crate::limits::{BATCH_BYTES_MAX, QUEUE_BYTES_MAX, SPAN_BYTES_MAX};
use crate::otlp::{Kind, Span};

/// Where finished spans go.
pub trait SpanSink {
    /// Takes one finished span.
    fn span(&mut self, span: &Span<'_>, now: Now);
}

/// Why a span was lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dropped {
    /// The queue was full, and this span was the oldest.
    QueueFull,
    /// The span alone was larger than a batch may be.
    TooLarge,
    /// The collector said that it will not take the batch.
    Refused,
    /// The collector could not be reached, or asked to come back, until the time allowed was over.
    Failed,
    /// The collector took the batch but rejected these spans of it.
    PartialSuccess,
    /// The process ended first.
    Shutdown,
}

impl Dropped {
    /// Every reason, in the order of its counter.
    pub const ALL: [Self; 6] =
        [Self::QueueFull, Self::TooLarge, Self::Refused, Self::Failed, Self::PartialSuccess, Self::Shutdown];

    /// The label of the metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::TooLarge => "too_large",
            Self::Refused => "export_refused",
            Self::Failed => "export_failed",
            Self::PartialSuccess => "partial_success",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Settings of a batch (`OTEL_BSP_*`).
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Spans held at the most; the oldest go first.
    pub queue_spans_max: usize,
    /// Spans of one chunk.
    pub chunk_spans_max: usize,
    /// A chunk waits for more spans no longer than this.
    pub flush_after_ms: u64,
}

/// Encoded spans that leave together.
#[derive(Debug)]
pub struct Chunk {
    bytes: Vec<u8>,
    /// Where the first span that was not dropped begins.
    start: usize,
    spans: usize,
    opened: Now,
}

impl Chunk {
    /// The spans, as fields `ScopeSpans.spans`.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// How many spans these are.
    #[must_use]
    pub fn spans(&self) -> usize {
        self.spans
    }

    /// Forgets the oldest span and says how many bytes that were.
    fn drop_oldest(&mut self) -> usize {
        let before = self.bytes();
        let len = field_len(before).unwrap_or(before.len()).min(before.len());
        self.start += len;
        self.spans = self.spans.saturating_sub(1);
        len
    }
}

/// Length of the first field: its tag, its length and its body.
fn field_len(fields: &[u8]) -> Option<usize> {
    let mut len = 0usize;
    for (i, byte) in fields.get(1..)?.iter().take(5).enumerate() {
        len |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some(1 + i + 1 + len);
        }
    }
    None
}

/// What became of all spans so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Books {
    /// Finished spans handed in.
    pub created: u64,
    /// The same by kind, in the order of [`Kind::ALL`].
    pub created_by_kind: [u64; Kind::ALL.len()],
    /// Spans that a collector took.
    pub exported: u64,
    /// Spans waiting or under way.
    pub held: u64,
    /// Spans lost, in the order of [`Dropped::ALL`].
    pub dropped: [u64; Dropped::ALL.len()],
}

impl Books {
    /// Both together.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        let Self { created, created_by_kind, exported, held, dropped } = &mut self;
        *created += other.created;
        *exported += other.exported;
        *held += other.held;
        let kinds = created_by_kind.iter_mut().zip(other.created_by_kind);
        for (count, more) in kinds.chain(dropped.iter_mut().zip(other.dropped)) {
            *count += more;
        }
        self
    }
}

/// The bounded queue of encoded spans.
#[derive(Debug)]
pub struct Batch {
    bounds: Bounds,
    chunks: VecDeque<Chunk>,
    queued_spans: usize,
    queued_bytes: usize,
    books: Books,
    spare: Vec<Vec<u8>>,
}

impl Batch {
    /// An empty queue.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let books = Books::default();
        Self { bounds, chunks: VecDeque::new(), queued_spans: 0, queued_bytes: 0, books, spare: Vec::new() }
    }

    /// Takes the oldest chunk that is full, or old enough, or any when `all` is asked for. Its spans stay in
    /// the books as held until [`Batch::settle`] says what became of them.
    pub fn poll_flush(&mut self, now: Now, all: bool) -> Option<Chunk> {
        let front = self.chunks.front()?;
        let old = now.millis_since(front.opened) >= self.bounds.flush_after_ms;
        if !(all || old || self.is_full(front)) {
            return None;
        }
        let chunk = self.chunks.pop_front()?;
        self.queued_spans -= chunk.spans.min(self.queued_spans);
        self.queued_bytes -= chunk.bytes().len().min(self.queued_bytes);
        Some(chunk)
    }

    /// Whether a chunk is full already, so that a flush need not wait for the tick.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.chunks.front().is_some_and(|front| self.is_full(front))
    }

    /// Books a chunk that was taken: `exported` spans arrived, the rest was dropped for the reason.
    pub fn settle(&mut self, chunk: Chunk, exported: usize, reason: Dropped) {
        let exported = exported.min(chunk.spans);
        self.books.held -= chunk.spans as u64;
        self.books.exported += exported as u64;
        self.count_dropped(reason, chunk.spans - exported);
        self.keep_spare(chunk.bytes);
    }

    /// Drops everything that still waits.
    pub fn drop_all(&mut self, reason: Dropped) {
        while let Some(chunk) = self.chunks.pop_front() {
            self.settle(chunk, 0, reason);
        }
        (self.queued_spans, self.queued_bytes) = (0, 0);
    }

    /// What became of all spans so far.
    #[must_use]
    pub fn books(&self) -> Books {
        self.books
    }

    /// Bytes of dropped spans count too: where the queue is shorter than a chunk, they are all that bounds it.
    fn is_full(&self, chunk: &Chunk) -> bool {
        chunk.spans >= self.bounds.chunk_spans_max || chunk.bytes.len() >= BATCH_BYTES_MAX - SPAN_BYTES_MAX
    }

    fn count_dropped(&mut self, reason: Dropped, spans: usize) {
        if let Some(counter) = self.books.dropped.get_mut(reason as usize) {
            *counter += spans as u64;
        }
    }

    fn keep_spare(&mut self, mut bytes: Vec<u8>) {
        if self.spare.len() < 2 {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    fn drop_oldest(&mut self) {
        let Some(front) = self.chunks.front_mut() else { return };
        self.queued_bytes -= front.drop_oldest().min(self.queued_bytes);
        self.queued_spans -= 1;
        self.books.held -= 1;
        if front.spans == 0
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.keep_spare(chunk.bytes);
        }
        self.count_dropped(Dropped::QueueFull, 1);
    }
}

impl SpanSink for Batch {
    fn span(&mut self, span: &Span<'_>, now: Now) {
        self.books.created += 1;
        if let Some(created) = self.books.created_by_kind.get_mut(span.kind.place()) {
            *created += 1;
        }
        if self.chunks.back().is_none_or(|back| self.is_full(back)) {
            let bytes = self.spare.pop().unwrap_or_default();
            self.chunks.push_back(Chunk { bytes, start: 0, spans: 0, opened: now });
        }
        let Some(open) = self.chunks.back_mut() else { return };
        let before = open.bytes.len();
        span.encode(&mut open.bytes);
        let len = open.bytes.len() - before;
        if len > SPAN_BYTES_MAX {
            open.bytes.truncate(before);
            if open.spans == 0 {
                self.chunks.pop_back();
            }
            return self.count_dropped(Dropped::TooLarge, 1);
        }
        open.spans += 1;
        self.books.held += 1;
        self.queued_spans += 1;
        self.queued_bytes += len;
        while self.queued_spans > self.bounds.queue_spans_max || self.queued_bytes > QUEUE_BYTES_MAX {
            self.drop_oldest();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Flags, SpanId, TraceId};
    use crate::otlp::{Kind, Status};

    fn span(attributes: &[u8], number: u8) -> Span<'_> {
        Span {
            trace_id: TraceId::from_bytes([1; 16]).unwrap(),
            span_id: SpanId::from_bytes([number; 8]).unwrap(),
            flags: Flags::start(true),
            parent: None,
            trace_state: b"",
            name: &["GET"],
            kind: Kind::Server,
            start_unix_nanos: 1,
            end_unix_nanos: 2,
            attributes,
            links: b"",
            status: Status::Unset,
        }
    }

    fn batch(queue: usize, chunk: usize) -> Batch {
        Batch::new(Bounds { queue_spans_max: queue, chunk_spans_max: chunk, flush_after_ms: 1000 })
    }

    fn at(millis: u64) -> Now {
        Now { unix_nanos: 0, mono_nanos: millis * 1_000_000 }
    }

    fn balanced(batch: &Batch) -> Books {
        let books = batch.books();
        assert_eq!(
            books.created,
            books.exported + books.held + books.dropped.iter().sum::<u64>(),
            "{books:?}"
        );
        books
    }

    #[test]
    fn a_chunk_leaves_when_it_is_full_or_old_enough() {
        let mut batch = batch(10, 2);
        batch.span(&span(b"", 1), at(0));
        assert!(batch.poll_flush(at(999), false).is_none() && !batch.ready());
        batch.span(&span(b"", 2), at(5));
        assert!(batch.ready());
        batch.span(&span(b"", 3), at(6));
        assert_eq!(batch.poll_flush(at(6), false).unwrap().spans(), 2);
        assert!(batch.poll_flush(at(1005), false).is_none());
        assert_eq!(batch.poll_flush(at(1006), false).unwrap().spans(), 1);
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_says_so() {
        let mut batch = batch(3, 2);
        for number in 1..=8 {
            batch.span(&span(b"", number), at(0));
            balanced(&batch);
        }
        let books = balanced(&batch);
        assert_eq!((books.created, books.held, books.dropped[0]), (8, 3, 5));
        let mut ids = Vec::new();
        while let Some(chunk) = batch.poll_flush(at(0), true) {
            let mut rest = chunk.bytes();
            while let Some(len) = field_len(rest) {
                ids.push(rest[22]);
                rest = &rest[len..];
            }
            let spans = chunk.spans();
            batch.settle(chunk, spans, Dropped::Failed);
        }
        assert_eq!(ids, [6, 7, 8]);
        assert_eq!(balanced(&batch).exported, 3);
    }

    #[test]
    fn what_a_collector_rejects_is_booked_by_reason() {
        let mut batch = batch(10, 10);
        for number in 1..=4 {
            batch.span(&span(b"", number), at(0));
        }
        let chunk = batch.poll_flush(at(0), true).unwrap();
        assert_eq!(balanced(&batch).held, 4);
        batch.settle(chunk, 3, Dropped::PartialSuccess);
        let books = balanced(&batch);
        assert_eq!((books.exported, books.held, books.dropped[Dropped::PartialSuccess as usize]), (3, 0, 1));
        batch.span(&span(b"", 9), at(0));
        batch.drop_all(Dropped::Shutdown);
        assert_eq!(balanced(&batch).dropped[Dropped::Shutdown as usize], 1);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut batch = batch(1_000_000, 100);
        let large = vec![0x4a; SPAN_BYTES_MAX - 200];
        for _ in 0..200 {
            batch.span(&span(&large, 1), at(0));
        }
        assert!(batch.queued_bytes <= QUEUE_BYTES_MAX);
        assert!(balanced(&batch).dropped[0] > 0);
        let huge = vec![0x4a; SPAN_BYTES_MAX];
        batch.span(&span(&huge, 1), at(0));
        assert_eq!(balanced(&batch).dropped[Dropped::TooLarge as usize], 1);
    }
}
