//! The two bodies of an exchange on their way through: the caller's to the upstream, the upstream's back.
//! Streams; buffers nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use throughline_core::classify::Failure;
use throughline_core::exchange::Mark;

use super::pool::Lease;
use crate::access_log::BytesIn;
use crate::messages::Resumed;
use crate::moments::Moments;

/// What became of a request's body.
#[derive(Clone, Debug)]
pub(crate) struct UploadState(Option<Arc<AtomicU8>>);

const SENDING: u8 = 0;
const WHOLE: u8 = 1;
const CALLER_FAILED: u8 = 2;

impl UploadState {
    /// Whether all of it went to the upstream, so that its connection can carry another request.
    pub(super) fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|state| state.load(Ordering::Acquire) == WHOLE)
    }

    /// Whether the caller broke off while it was sending.
    pub(super) fn caller_failed(&self) -> bool {
        self.0.as_ref().is_some_and(|state| state.load(Ordering::Acquire) == CALLER_FAILED)
    }

    fn set(&self, to: u8) {
        if let Some(state) = &self.0 {
            state.store(to, Ordering::Release);
        }
    }
}

/// Ends when the body may be sent.
pub(super) type Patience = crate::Boxed<()>;

/// A request's body.
pub(crate) struct Upload {
    body: Resumed<Incoming>,
    state: UploadState,
    counted: Option<BytesIn>,
    patience: Option<Patience>,
    /// In `full` mode, the moments that are noted on the way.
    moments: Option<Moments>,
}

impl Upload {
    /// Watches the body of a request. One that is empty needs no watching, and no memory for it.
    pub(super) fn wrap(mut request: Request<Resumed<Incoming>>) -> (Request<Self>, UploadState) {
        let state = UploadState((!request.body().is_end_stream()).then(Arc::default));
        let watched = state.clone();
        let counted = request.extensions_mut().remove();
        let moments = request.extensions_mut().remove();
        (request.map(|body| Self { body, state: watched, counted, patience: None, moments }), state)
    }

    /// This moment.
    pub(super) fn note(&self, mark: Mark) {
        if let Some(moments) = &self.moments {
            moments.note(mark);
        }
    }

    /// Holds the body back until the upstream asks for it, for a caller that waits to be asked
    /// (RFC 9110 §10.1.1).
    pub(super) fn wait_for(&mut self, asked: Patience) {
        self.patience = Some(asked);
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(asked) = &mut self.patience {
            ready!(asked.as_mut().poll(cx));
            self.patience = None;
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(counted), Some(Ok(frame))) = (&self.counted, &frame) {
            counted.add(frame.data_ref().map_or(0, Bytes::len));
        }
        let state = match &frame {
            None => WHOLE,
            Some(Err(_)) => CALLER_FAILED,
            Some(Ok(_)) if self.body.is_end_stream() => WHOLE,
            Some(Ok(_)) => SENDING,
        };
        self.state.set(state);
        if state == WHOLE {
            self.note(Mark::RequestSent);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An upstream's answer. Gives the connection back to the pool when it has been read to its end.
#[derive(Debug)]
pub(crate) struct FromUpstream {
    body: Incoming,
    lease: Lease,
}

impl FromUpstream {
    pub(super) fn new(body: Incoming, lease: Lease) -> Self {
        let mut from = Self { body, lease };
        from.release_at_end();
        from
    }

    fn release_at_end(&mut self) {
        if self.body.is_end_stream() {
            self.lease.release();
        }
    }
}

impl Body for FromUpstream {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.lease.release(),
            Some(Ok(_)) => self.release_at_end(),
            Some(Err(_)) => {}
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| super::pool::failure(&error))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
