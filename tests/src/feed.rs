//! Bodies: whole, empty, or fed frame by frame by the script that decides when each one leaves.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

/// Whatever goes wrong with a body.
pub type Broken = Box<dyn std::error::Error + Send + Sync>;
/// Any of the bodies below.
pub type AnyBody = UnsyncBoxBody<Bytes, Broken>;

/// A body of known length.
pub fn whole(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
pub fn nothing() -> AnyBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body of unknown length and the hand that feeds it. Dropping the hand ends the body cleanly.
pub fn fed() -> (Feeder, AnyBody) {
    let (sender, receiver) = mpsc::channel(16);
    (Feeder { sender }, Fed { receiver }.boxed_unsync())
}

/// Feeds a body.
#[derive(Clone, Debug)]
pub struct Feeder {
    sender: mpsc::Sender<Result<Frame<Bytes>, Broken>>,
}

impl Feeder {
    /// Sends one piece. False when nobody reads this body any more.
    pub async fn send(&self, bytes: impl Into<Bytes>) -> bool {
        self.sender.send(Ok(Frame::data(bytes.into()))).await.is_ok()
    }

    /// Ends the body with trailers.
    pub async fn trailers(self, trailers: HeaderMap) -> bool {
        self.sender.send(Ok(Frame::trailers(trailers))).await.is_ok()
    }

    /// Breaks the body off: the connection closes early (HTTP/1.1), the stream is reset (HTTP/2).
    pub async fn break_off(self) {
        let _ = self.sender.send(Err("broken off by the script".into())).await;
    }

    /// Resolves once nobody reads this body any more.
    pub async fn abandoned(&self) {
        self.sender.closed().await;
    }
}

struct Fed {
    receiver: mpsc::Receiver<Result<Frame<Bytes>, Broken>>,
}

impl Body for Fed {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.receiver.poll_recv(context)
    }
}
