//! Notices connections that stand still at the other side's fault: a head that never ends, an answer that is
//! never read, no request for very long. Only notes; `listener` closes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use http_body::{Body, Frame, SizeHint};

use crate::listener::Seen;
use crate::sidecar::Connection;
use crate::stats::Reaped;

/// What a connection is doing, noted by whoever sees it.
#[derive(Debug)]
pub(crate) struct Progress {
    opened: Instant,
    /// Requests whose answer is not over.
    requests: AtomicU32,
    /// Answers that have bytes at hand which the caller does not take.
    unread: AtomicU32,
    /// Whether an answer moved, or a request was over, since the connection was last looked at. Whoever moves reads no
    /// clock: it happens several times a request, and the look is often enough.
    moved: AtomicBool,
    /// Milliseconds since `opened` when a look last found that it had moved.
    moved_ms: AtomicU64,
    /// Milliseconds since `opened`, plus one, when a head began to arrive; 0 when none is under way.
    head_ms: AtomicU64,
    /// Requests so far.
    begun: AtomicU64,
    /// The number of the request whose head must be refused; 0 for none.
    illegal: AtomicU64,
}

/// How long a connection may stand still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) head: Duration,
    pub(crate) unread: Duration,
    pub(crate) idle: Duration,
}

impl Patience {
    /// How often a connection is looked at: often enough that none overstays by half, a quarter until a move is noted
    /// and a quarter until it is missed.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = self.head.min(self.unread).min(self.idle);
        (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(15))
    }
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            opened: Instant::now(),
            requests: AtomicU32::new(0),
            unread: AtomicU32::new(0),
            moved: AtomicBool::new(false),
            moved_ms: AtomicU64::new(0),
            head_ms: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            illegal: AtomicU64::new(0),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }

    fn moved(&self) {
        self.moved.store(true, Ordering::Relaxed);
    }

    /// Bytes came in on an HTTP/1 connection.
    pub(crate) fn received(&self, seen: Seen) {
        if let Some(number) = seen.illegal {
            self.illegal.store(number, Ordering::Relaxed);
        }
        if !seen.inside_head {
            self.head_ms.store(0, Ordering::Relaxed);
        } else if self.head_ms.load(Ordering::Relaxed) == 0 {
            self.head_ms.store(self.elapsed_ms() + 1, Ordering::Relaxed);
        }
    }

    /// Whether no request is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }

    /// Whether a head has begun to arrive and not ended.
    pub(crate) fn is_inside_head(&self) -> bool {
        self.head_ms.load(Ordering::Relaxed) > 0
    }

    /// Whether the head of the request that has just begun must be refused.
    pub(crate) fn is_illegal(&self) -> bool {
        let illegal = self.illegal.load(Ordering::Relaxed);
        illegal > 0 && self.begun.load(Ordering::Relaxed) >= illegal
    }

    /// A head is whole.
    pub(crate) fn request_began(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    fn request_over(&self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
        self.moved();
    }

    /// Why the connection should be closed, if it should.
    pub(crate) fn judge(&self, patience: Patience) -> Option<Reaped> {
        let now = self.elapsed_ms();
        if self.moved.swap(false, Ordering::Relaxed) {
            self.moved_ms.store(now, Ordering::Relaxed);
        }
        let since = |then: u64| Duration::from_millis(now.saturating_sub(then));
        let head = self.head_ms.load(Ordering::Relaxed);
        let moved = self.moved_ms.load(Ordering::Relaxed);
        if head > 0 && since(head - 1) > patience.head {
            return Some(Reaped::SlowHead);
        }
        // While others on the connection are served, those who do not read only cost their windows; but not for
        // ever.
        let unread = self.unread.load(Ordering::Relaxed);
        let only_unread = unread >= self.requests.load(Ordering::Relaxed);
        let stands_for = since(moved);
        if unread > 0 && (stands_for > patience.unread * 5 || (only_unread && stands_for > patience.unread)) {
            return Some(Reaped::Stalled);
        }
        let idle = self.is_idle() && head == 0;
        (idle && since(moved) > patience.idle).then_some(Reaped::Idle)
    }
}

/// A request under way, from the whole head to the end of its answer.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Connection>);

impl UnderWay {
    pub(crate) fn begin(connection: &Arc<Connection>) -> Self {
        connection.progress.request_began();
        Self(Arc::clone(connection))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.progress.request_over();
    }
}

pin_project_lite::pin_project! {
    /// A body that notes whether its reader takes what is at hand.
    #[derive(Debug)]
    pub(crate) struct Watched<B> {
        #[pin]
        inner: B,
        unread: Unread,
        under_way: UnderWay,
    }
}

/// Counts among the unread answers of the connection while `counted`.
#[derive(Debug)]
struct Unread {
    connection: Arc<Connection>,
    counted: bool,
}

impl Unread {
    fn set(&mut self, counted: bool) {
        if self.counted == counted {
            return;
        }
        self.counted = counted;
        let unread = &self.connection.progress.unread;
        if counted {
            unread.fetch_add(1, Ordering::Relaxed);
        } else {
            unread.fetch_sub(1, Ordering::Relaxed);
            self.connection.progress.moved();
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl<B: Body> Watched<B> {
    pub(crate) fn new(inner: B, under_way: UnderWay) -> Self {
        let connection = Arc::clone(&under_way.0);
        connection.progress.moved();
        let mut unread = Unread { connection, counted: false };
        // A head without a body is gone as soon as it is written; a body waits to be asked for.
        unread.set(!inner.is_end_stream());
        Self { inner, unread, under_way }
    }
}

impl<B: Body> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        this.unread.set(false);
        let frame = ready!(this.inner.poll_frame(cx));
        this.unread.set(matches!(frame, Some(Ok(_))));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(10),
        unread: Duration::from_secs(60),
        idle: Duration::from_secs(3600),
    };

    fn after(seconds: u64, what: impl Fn(&Progress)) -> Option<Reaped> {
        let mut progress = Progress::new();
        what(&progress);
        progress.opened -= Duration::from_secs(seconds);
        progress.judge(PATIENCE)
    }

    #[test]
    fn a_connection_is_reaped_for_what_it_does_not_do() {
        let began = |progress: &Progress| progress.received(Seen { inside_head: true, illegal: None });
        assert_eq!(after(5, began), None);
        assert_eq!(after(11, began), Some(Reaped::SlowHead));
        let reading = |progress: &Progress| {
            began(progress);
            progress.received(Seen { inside_head: false, illegal: None });
            progress.request_began();
        };
        assert_eq!(after(3700, reading), None, "the application may take its time");
        let unread = |progress: &Progress| {
            progress.request_began();
            progress.unread.fetch_add(1, Ordering::Relaxed);
        };
        assert_eq!(after(59, unread), None);
        assert_eq!(after(61, unread), Some(Reaped::Stalled));
        let beside_another = |progress: &Progress| {
            progress.request_began();
            unread(progress);
        };
        assert_eq!(after(61, beside_another), None, "the other is served");
        assert_eq!(after(301, beside_another), Some(Reaped::Stalled));
        let moved = |progress: &Progress| {
            unread(progress);
            progress.moved();
        };
        assert_eq!(after(400, moved), None, "it counts from the look that finds it moved");
        assert_eq!(after(3599, |_| ()), None);
        assert_eq!(after(3601, |_| ()), Some(Reaped::Idle));
    }
}
