//! The process's one queue of finished spans: `core`'s batch behind a lock that is held for one copy.

use std::sync::{Mutex, MutexGuard, PoisonError};

use throughline_core::batch::{Batch, Books, Bounds, Chunk, Dropped, SpanSink};
use throughline_core::exchange::Now;
use throughline_core::otlp::Span;
use throughline_core::settings::Settings;
use tokio::sync::Notify;

use crate::host::now;

/// Finished spans on their way out.
#[derive(Debug)]
pub(crate) struct SpanQueue {
    batch: Mutex<Batch>,
    full: Notify,
}

impl SpanQueue {
    pub(crate) fn new(settings: &Settings) -> Self {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let bounds = Bounds {
            queue_spans_max: size(settings.bsp_queue_max),
            // A chunk larger than the queue would never be full.
            chunk_spans_max: size(settings.bsp_batch_max.min(settings.bsp_queue_max)),
            flush_after_ms: settings.bsp_schedule_delay_ms,
        };
        Self { batch: Mutex::new(Batch::new(bounds)), full: Notify::new() }
    }

    /// Waits until a chunk is full.
    pub(crate) async fn full(&self) {
        self.full.notified().await;
    }

    pub(crate) fn poll_flush(&self, all: bool) -> Option<Chunk> {
        self.lock().poll_flush(now(), all)
    }

    pub(crate) fn settle(&self, chunk: Chunk, exported: usize, reason: Dropped) {
        self.lock().settle(chunk, exported, reason);
    }

    pub(crate) fn drop_all(&self, reason: Dropped) {
        self.lock().drop_all(reason);
    }

    pub(crate) fn books(&self) -> Books {
        self.lock().books()
    }

    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SpanSink for &SpanQueue {
    fn span(&mut self, span: &Span<'_>, now: Now) {
        let ready = {
            let mut batch = self.lock();
            batch.span(span, now);
            batch.ready()
        };
        if ready {
            self.full.notify_one();
        }
    }
}
