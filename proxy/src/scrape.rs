//! `/metrics` as a body in pieces: a page with every series that there may be is some megabytes, and is never held
//! whole, however slowly it is read.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use throughline_core::metrics::Numbers;
use throughline_core::prometheus::Text;

/// Bytes of one piece.
const PIECE_BYTES: usize = 64 * 1024;

/// What is still to be written.
#[derive(Debug)]
pub(crate) struct Scrape {
    text: Text,
    rest: Option<Numbers>,
}

impl Scrape {
    /// The sidecar's own numbers, and those of the exchanges behind them.
    pub(crate) fn new(own: Text, exchanges: Numbers) -> Self {
        Self { text: own, rest: Some(exchanges) }
    }
}

impl Body for Scrape {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Self { text, rest } = &mut *self;
        if let Some(numbers) = rest
            && !numbers.write(text, PIECE_BYTES)
        {
            *rest = None;
            text.end();
        }
        let piece = text.take();
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(Bytes::from(piece)))))
    }
}
