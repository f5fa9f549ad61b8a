//! `Expect: 100-continue`, end to end: a body is held back until the upstream asks for it, so that an
//! application can still refuse it. hyper's client keeps interim answers to itself; they are seen here, in the
//! first bytes that an upstream sends after such a request.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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

    fn read(&self, bytes: &[u8]) {
        if bytes.starts_with(b"HTTP/1.1 1") {
            self.asked.notify_one();
        }
    }
}

/// A connection whose first bytes are looked at while somebody waits.
pub(super) struct Listening<T> {
    pub(super) stream: T,
    pub(super) asked: Arc<Asked>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Listening<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if self.asked.waiting.load(Ordering::Acquire) {
            self.asked.read(buf.filled().get(before..).unwrap_or_default());
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Listening<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
