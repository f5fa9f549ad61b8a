//! `Expect: 100-continue`, end to end: a body is held back until the upstream asks for it, so that an
//! application can still refuse it. hyper's client keeps interim answers to itself; they are seen here, in the
//! first bytes that an upstream sends after such a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// An upstream that says nothing gets the body after this long: RFC 9110 §10.1.1 lets nobody wait for ever.
const SILENCE: Duration = Duration::from_secs(1);

/// Whether a connection's upstream has asked for the body that is held back.
#[derive(Debug, Default)]
pub(super) struct Asked {
    waiting: AtomicBool,
    asked: Notify,
}

impl Asked {
    /// From here on, an interim answer is the sign.
    pub(super) fn wait(self: &Arc<Self>) -> crate::Boxed<()> {
        self.waiting.store(true, Ordering::Release);
        let asked = Arc::clone(self);
        Box::pin(async move {
            let _ = tokio::time::timeout(SILENCE, asked.asked.notified()).await;
            asked.waiting.store(false, Ordering::Release);
        })
    }

    /// Bytes came from the upstream.
    pub(super) fn saw(&self, bytes: &[u8]) {
        if self.waiting.load(Ordering::Acquire) && bytes.starts_with(b"HTTP/1.1 1") {
            self.asked.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_interim_answer_ends_the_wait_and_a_final_one_does_not() {
        let asked = Arc::<Asked>::default();
        let mut wait = asked.wait();
        asked.saw(b"HTTP/1.1 413 Content Too Large\r\n");
        assert!(tokio::time::timeout(Duration::from_millis(20), wait.as_mut()).await.is_err());
        asked.saw(b"HTTP/1.1 100 Continue\r\n\r\n");
        wait.await;
    }
}
