//! What the two ends of a captured connection tell each other: that the upstream has closed, and that it broke. A caller
//! whose upstream broke sees a reset, as it would have without us, and no answer of ours.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Shared by both ends.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    gone: Notify,
    upgraded: AtomicBool,
    broken: AtomicBool,
}

impl Ends {
    /// The upstream has closed its connection.
    pub(crate) fn upstream_closed(&self) {
        self.gone.notify_one();
    }

    /// The protocol is switched: what closes from here on is the tunnel's.
    pub(crate) fn upgrade(&self) {
        self.upgraded.store(true, Ordering::Release);
    }

    pub(crate) fn is_upgraded(&self) -> bool {
        self.upgraded.load(Ordering::Acquire)
    }

    /// Waits until the upstream has closed.
    pub(crate) async fn gone(&self) {
        self.gone.notified().await;
    }

    /// From here on, closing the caller's connection resets it.
    pub(crate) fn resets(&self) {
        self.broken.store(true, Ordering::Release);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }
}

/// One end's stream: reset instead of closed when the connection is broken.
#[derive(Debug)]
pub(crate) struct End {
    stream: TcpStream,
    ends: Arc<Ends>,
}

impl End {
    pub(super) fn new(stream: TcpStream, ends: &Arc<Ends>) -> Self {
        Self { stream, ends: Arc::clone(ends) }
    }

    /// Waits until there is something to read, or the end.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.stream.readable().await
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.ends.is_broken() {
            reset(&self.stream);
        }
    }
}

/// Makes the close of a connection a reset.
pub(super) fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO)); // else it is closed, which is near
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

throughline_rim::writes_to_stream!(End);
