//! What a connection speaks, by its first bytes, and those bytes put back in front of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

/// What a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Speaks {
    Http1,
    Http2,
    /// TLS, or something else that is no cleartext HTTP.
    Opaque,
}

/// The beginning of HTTP/2 with prior knowledge (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of the longest method taken for one: the longest registered one has 17.
const METHOD_BYTES_MAX: usize = 20;
/// Bytes of a request line that are waited for inside a CONNECT.
const REQUEST_LINE_BYTES_MAX: usize = 16 * 1024;

/// Reads until the first bytes say what is spoken. An end before that is opaque.
pub(crate) async fn detect(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Vec<u8>, Speaks)> {
    let mut first = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut first).await? == 0 {
            return Ok((first, Speaks::Opaque));
        }
        if let Some(speaks) = judge(&first) {
            return Ok((first, speaks));
        }
    }
}

/// The same where other protocols of text are at home, inside a CONNECT and in captured connections: only a whole
/// request line makes HTTP/1. What was read before stands in `first`, and what is read stays there, whatever becomes of
/// the wait.
pub(crate) async fn detect_inside(
    stream: &mut (impl AsyncRead + Unpin),
    first: &mut Vec<u8>,
) -> io::Result<Speaks> {
    loop {
        match (judge(first), first.iter().position(|byte| *byte == b'\n')) {
            (Some(Speaks::Http1), Some(end)) => {
                let line = first.get(..end).unwrap_or_default();
                let version = line.windows(8).any(|window| window == b" HTTP/1.");
                return Ok(if version { Speaks::Http1 } else { Speaks::Opaque });
            }
            (Some(Speaks::Http1), None) if first.len() < REQUEST_LINE_BYTES_MAX => {}
            (Some(Speaks::Http1), None) => return Ok(Speaks::Opaque),
            (Some(speaks), _) => return Ok(speaks),
            (None, _) => {}
        }
        if stream.read_buf(first).await? == 0 {
            return Ok(Speaks::Opaque);
        }
    }
}

/// `None` while the bytes may still become several things.
fn judge(first: &[u8]) -> Option<Speaks> {
    let preface = first.iter().zip(PREFACE).take_while(|(a, b)| a == b).count();
    if preface == PREFACE.len() {
        return Some(Speaks::Http2);
    }
    if preface == first.len() {
        return None;
    }
    // A server is lenient about an empty line before the request line (RFC 9112 §2.2).
    let line = first.trim_ascii_start();
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    match line.iter().position(|byte| !token(byte)) {
        Some(end) if end > 0 && line.get(end) == Some(&b' ') && end <= METHOD_BYTES_MAX => {
            Some(Speaks::Http1)
        }
        Some(_) => Some(Speaks::Opaque),
        None if line.len() > METHOD_BYTES_MAX => Some(Speaks::Opaque),
        None => None,
    }
}

type Note = Box<dyn FnMut(&[u8]) + Send>;

/// A stream with bytes put back in front of it.
pub(crate) struct Prefixed<T> {
    first: Vec<u8>,
    taken: usize,
    stream: T,
    note: Option<Note>,
}

impl<T> Prefixed<T> {
    pub(crate) fn new(first: Vec<u8>, stream: T) -> Self {
        Self { first, taken: 0, stream, note: None }
    }

    /// Shows `note` the bytes that come in.
    pub(crate) fn noting(mut self, note: impl FnMut(&[u8]) + Send + 'static) -> Self {
        self.note = Some(Box::new(note));
        self
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefixed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.taken < this.first.len() {
            let rest = this.first.get(this.taken..).unwrap_or_default();
            let now = rest.get(..buf.remaining()).unwrap_or(rest);
            buf.put_slice(now);
            this.taken += now.len();
            if this.taken == this.first.len() {
                (this.first, this.taken) = (Vec::new(), 0);
            }
        } else {
            std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                return Poll::Ready(Ok(()));
            }
        }
        if let Some(note) = &mut this.note {
            note(buf.filled().get(before..).unwrap_or_default());
        }
        Poll::Ready(Ok(()))
    }
}

throughline_rim::writes_to_stream!(Prefixed<T>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_decide() {
        for (first, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(Speaks::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Speaks::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM", None),
            (b"PRI * HTTP/1.1\r\n", Some(Speaks::Http1)),
            (b"P", None),
            (b"PROPFIND", None),
            (b"\r\nGET /", Some(Speaks::Http1)),
            (b"VERSION-CONTROL /", Some(Speaks::Http1)),
            (b"\x16\x03\x01\x02\x00", Some(Speaks::Opaque)),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Some(Speaks::Opaque)),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAA", Some(Speaks::Opaque)),
            (b"get: x", Some(Speaks::Opaque)),
        ] {
            assert_eq!(judge(first), expected, "{}", first.escape_ascii());
        }
    }

    #[tokio::test]
    async fn inside_a_connect_only_a_request_line_is_http() {
        for (text, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Speaks::Http1),
            (b"NICK bob\r\n", Speaks::Opaque),
            (b"get key\r\n", Speaks::Opaque),
            (b"SSH-2.0-X y\r\n", Speaks::Opaque),
            (PREFACE, Speaks::Http2),
        ] {
            let (mut stream, mut first) = (text, Vec::new());
            let speaks = detect_inside(&mut stream, &mut first).await.unwrap();
            assert_eq!((speaks, &first[..]), (expected, text), "{}", text.escape_ascii());
        }
    }

    #[tokio::test]
    async fn bytes_that_were_read_come_first_again() {
        let mut stream = Prefixed::new(b"abc".to_vec(), &b"def"[..]);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"abcdef");
    }
}
