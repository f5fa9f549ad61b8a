//! Holds a body while `core` edits the messages in it, no longer and no larger than the settings say. What can't be held streams through untouched, counted by reason. Decides
//! nothing about contexts, and never changes a status or an ack.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use throughline_core::exchange;
use tokio::time::{Instant, timeout_at};

use crate::host::Headers;

/// A body of which the beginning was read: what was read comes first again, then the rest.
#[derive(Debug)]
pub(crate) struct Resumed<B> {
    frames: VecDeque<Frame<Bytes>>,
    /// `None` when the whole body was read.
    rest: Option<B>,
}

impl<B: Body<Data = Bytes>> Resumed<B> {
    /// A body as it came.
    pub(crate) fn untouched(body: B) -> Self {
        Self { frames: VecDeque::new(), rest: Some(body) }
    }

    fn held(&self) -> u64 {
        self.frames.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum()
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Resumed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(frame) = self.frames.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held();
        let mut hint = SizeHint::with_exact(held);
        if self.frames.iter().any(Frame::is_trailers) {
            hint = SizeHint::new(); // a body of known length would lose its trailers
            hint.set_lower(held);
        } else if let Some(rest) = &self.rest {
            let rest = rest.size_hint();
            hint = SizeHint::new();
            hint.set_lower(held + rest.lower());
            if let Some(upper) = rest.upper() {
                hint.set_upper(held + upper);
            }
        }
        hint
    }
}

/// Why a body is not held, as the label of a counter.
pub(crate) fn unfit(headers: &mut HeaderMap, bytes_max: u64) -> Option<&'static str> {
    exchange::unfit(&Headers(headers), bytes_max)
}

/// KiB that a body of this head may take while it is held.
pub(crate) fn kib(headers: &HeaderMap, bytes_max: u64) -> u32 {
    let bytes = length(headers).unwrap_or(bytes_max).min(bytes_max);
    u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX)
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What reading a body gave.
pub(crate) enum Held<B> {
    /// All of it, with its trailers.
    Whole(Bytes, Option<HeaderMap>),
    /// Too much, or an error on the way: what was read, and the rest.
    Streaming(Resumed<B>, Option<&'static str>),
}

/// Reads a body to its end, unless it is over the limit.
pub(crate) async fn hold<B>(mut body: Resumed<B>, bytes_max: u64) -> Result<Held<B>, B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (mut read, mut trailers) = (VecDeque::new(), None);
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        match frame.into_trailers() {
            Ok(fields) => trailers = Some(fields),
            Err(frame) => read.push_back(frame),
        }
        if bytes > bytes_max {
            let rest = body.rest.take();
            return Ok(Held::Streaming(Resumed { frames: read, rest }, Some("over_limit")));
        }
    }
    Ok(Held::Whole(joined(read), trailers))
}

fn joined(mut frames: VecDeque<Frame<Bytes>>) -> Bytes {
    let one =
        if frames.len() == 1 { frames.pop_front().and_then(|frame| frame.into_data().ok()) } else { None };
    one.unwrap_or_else(|| {
        let mut all = BytesMut::new();
        frames.iter().filter_map(Frame::data_ref).for_each(|data| all.extend_from_slice(data));
        all.freeze()
    })
}

/// Reads the beginning of a body, until `known` says something of it, and puts it back. Reads no more than
/// `bytes_max`, and no longer than `patience`: a caller may want its answer before it sends a body.
pub(crate) async fn beginning<B, T>(
    mut body: B,
    bytes_max: u64,
    patience: Duration,
    known: impl Fn(&[u8]) -> Option<T>,
) -> Result<(Option<T>, Resumed<B>), B::Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (mut frames, mut read) = (VecDeque::new(), Vec::new());
    let deadline = Instant::now() + patience;
    loop {
        let Ok(frame) = timeout_at(deadline, body.frame()).await else {
            return Ok((None, Resumed { frames, rest: Some(body) }));
        };
        let Some(frame) = frame.transpose()? else {
            return Ok((None, Resumed { frames, rest: None }));
        };
        read.extend_from_slice(frame.data_ref().map_or(&[], |data| data.as_ref()));
        frames.push_back(frame);
        let said = known(&read);
        if said.is_some() || read.len() as u64 > bytes_max {
            return Ok((said, Resumed { frames, rest: Some(body) }));
        }
    }
}

/// A body that is whole.
pub(crate) fn whole<B>(body: Bytes, trailers: Option<HeaderMap>) -> Resumed<B> {
    let mut frames = VecDeque::new();
    if !body.is_empty() {
        frames.push_back(Frame::data(body));
    }
    frames.extend(trailers.map(Frame::trailers));
    Resumed { frames, rest: None }
}

/// The length of an edited body, where the head tells one: a stale one would be request smuggling.
pub(crate) fn set_length(headers: &mut HeaderMap, bytes: usize) {
    if headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn full(text: &'static str) -> Resumed<Full<Bytes>> {
        Resumed::untouched(Full::new(Bytes::from_static(text.as_bytes())))
    }

    #[tokio::test]
    async fn a_body_within_the_limit_is_held_whole() {
        let Ok(Held::Whole(body, None)) = hold(full("0123456789"), 10).await else { panic!("want it whole") };
        assert_eq!(body, "0123456789");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_goes_on_as_it_came() {
        let Ok(Held::Streaming(body, Some("over_limit"))) = hold(full("0123456789"), 9).await else {
            panic!("want it to stream")
        };
        assert_eq!(body.collect().await.unwrap().to_bytes(), "0123456789");
    }

    #[tokio::test]
    async fn the_beginning_of_a_body_is_put_back() {
        let text = || Full::new(Bytes::from_static(b"abc"));
        let (said, body) =
            beginning(text(), 100, Duration::from_secs(9), |read| read.first().copied()).await.unwrap();
        assert_eq!((said, body.size_hint().exact()), (Some(b'a'), Some(3)));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
        let (said, body) = beginning(text(), 100, Duration::from_secs(9), |_| None::<()>).await.unwrap();
        assert_eq!((said, body.collect().await.unwrap().to_bytes()), (None, Bytes::from_static(b"abc")));
    }
}
