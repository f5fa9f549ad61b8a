//! Follows the framing of HTTP/1 requests as they come in, for what hyper's parser keeps to itself: when a head
//! is under way, and what of it the parser would mend in silence: a `Content-Length` beside a
//! `Transfer-Encoding` (RFC 9112 §6.1), a fragment in the target (§3.2). Keeps no more than a line's beginning.
//! Decides nothing about a body; what it does not understand it stops following.

use std::io::BufRead as _;

/// Bytes of a line's beginning that are kept: the longest name looked for, its colon, and a length's digits.
const LINE_BYTES: usize = 48;

/// Bytes of the one method that is looked for, its space, and the first one of its target.
const METHOD_BYTES: usize = 9;

/// The state of one connection.
#[derive(Debug)]
pub(super) struct HeadScan {
    state: State,
    line: [u8; LINE_BYTES],
    len: usize,
    head: Head,
    heads: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Before the first byte of a head.
    Between,
    RequestLine,
    Fields,
    /// So many bytes of a body are to come.
    Body(u64),
    ChunkSize,
    /// So many bytes of a chunk, and the end of its line.
    Chunk(u64),
    Trailers,
    /// Not followed any more.
    Lost,
}

/// What a head has said so far.
#[derive(Clone, Copy, Default, Debug)]
struct Head {
    length: Option<u64>,
    encoding: bool,
    fragment: bool,
    switches: bool,
}

/// What the bytes meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    /// A head has begun and not ended.
    pub(crate) inside_head: bool,
    /// The number of the request, from 1, whose head must be refused.
    pub(crate) illegal: Option<u64>,
}

impl HeadScan {
    pub(super) fn new() -> Self {
        Self { state: State::Between, line: [0; LINE_BYTES], len: 0, head: Head::default(), heads: 0 }
    }

    /// Takes bytes in.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Seen {
        let (mut rest, mut illegal) = (bytes, None);
        while !rest.is_empty() && self.state != State::Lost {
            if let State::Body(left) | State::Chunk(left) = &mut self.state {
                let now = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                *left -= now as u64;
                let done = *left == 0;
                rest = rest.get(now..).unwrap_or_default();
                if done {
                    self.state =
                        if matches!(self.state, State::Body(_)) { State::Between } else { State::ChunkSize };
                }
                continue;
            }
            let before = rest;
            let _cannot_fail = rest.skip_until(b'\n'); // finds the end faster than a loop over bytes
            let line = before.get(..before.len() - rest.len()).unwrap_or_default();
            let whole = line.ends_with(b"\n");
            if whole && self.is_of_no_interest(line) {
                continue;
            }
            self.take(line);
            if whole {
                illegal = self.line_ended().or(illegal);
            }
        }
        Seen { inside_head: matches!(self.state, State::RequestLine | State::Fields), illegal }
    }

    /// Whether a whole line is a field that tells nothing here: by its first letter alone, for most of them.
    fn is_of_no_interest(&self, line: &[u8]) -> bool {
        let named =
            |name: &[u8]| line.get(..name.len()).is_some_and(|front| front.eq_ignore_ascii_case(name));
        let other = match line.first() {
            Some(b'c' | b'C') => !named(b"content-length:"),
            Some(b't' | b'T') => !named(b"transfer-encoding:"),
            Some(b'u' | b'U') => !named(b"upgrade:"),
            first => first.is_some_and(u8::is_ascii_alphabetic),
        };
        self.state == State::Fields && self.len == 0 && other
    }

    fn take(&mut self, line: &[u8]) {
        if self.state == State::Between && !line.iter().all(|byte| b"\r\n".contains(byte)) {
            self.state = State::RequestLine; // empty lines before it do not count (RFC 9112 §2.2)
            self.head = Head::default();
        }
        if self.state == State::RequestLine && line.contains(&b'#') {
            self.head.fragment = true;
        }
        // Of a request line no more than the method matters.
        let kept = if self.state == State::RequestLine { METHOD_BYTES } else { LINE_BYTES };
        for (to, from) in self.line.iter_mut().take(kept).skip(self.len).zip(line) {
            *to = from.to_ascii_lowercase();
        }
        self.len = (self.len + line.len()).min(kept);
    }

    /// The number of a head that ended with this line and must be refused.
    fn line_ended(&mut self) -> Option<u64> {
        let line = self.line;
        let line = line.get(..std::mem::take(&mut self.len)).unwrap_or_default().trim_ascii_end();
        match self.state {
            State::RequestLine => {
                self.head.switches = line.starts_with(b"connect ");
                self.state = State::Fields;
            }
            State::Fields if line.is_empty() => return self.head_ended(),
            State::Fields => self.field(line),
            State::ChunkSize => self.chunk_size(line),
            State::Trailers if line.is_empty() => self.state = State::Between,
            State::Between | State::Trailers | State::Body(_) | State::Chunk(_) | State::Lost => {}
        }
        None
    }

    fn field(&mut self, line: &[u8]) {
        if let Some(value) = line.strip_prefix(b"content-length:") {
            let value = std::str::from_utf8(value.trim_ascii()).unwrap_or_default();
            self.head.length = Some(value.parse().unwrap_or(u64::MAX));
        }
        self.head.encoding |= line.starts_with(b"transfer-encoding:");
        self.head.switches |= line.starts_with(b"upgrade:");
    }

    fn head_ended(&mut self) -> Option<u64> {
        self.heads += 1;
        let Head { length, encoding, fragment, switches } = self.head;
        if fragment || (length.is_some() && encoding) {
            self.state = State::Lost; // the connection ends with the answer
            return Some(self.heads);
        }
        self.state = match (switches, encoding, length) {
            (true, _, _) => State::Lost,
            (false, true, _) => State::ChunkSize,
            (false, false, Some(length)) if length > 0 => State::Body(length),
            (false, false, _) => State::Between,
        };
        None
    }

    fn chunk_size(&mut self, line: &[u8]) {
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let size = std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        self.state = match size {
            // An empty line is the end of the chunk before.
            None if digits.is_empty() => State::ChunkSize,
            None => State::Lost,
            Some(0) => State::Trailers,
            Some(size) => State::Chunk(size),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which requests are refused, and whether a head is open at the end.
    fn fed(text: &str) -> (Option<u64>, bool) {
        let whole = HeadScan::new().feed(text.as_bytes());
        // However the bytes are cut, the answer is the same.
        let mut bytewise = HeadScan::new();
        let mut illegal = None;
        let mut inside = false;
        for byte in text.bytes() {
            let seen = bytewise.feed(&[byte]);
            illegal = illegal.or(seen.illegal);
            inside = seen.inside_head;
        }
        assert_eq!((whole.illegal, whole.inside_head), (illegal, inside), "{text:?}");
        (illegal, inside)
    }

    #[test]
    fn a_length_beside_a_coding_and_a_fragment_are_refused() {
        for (text, illegal) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", None),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\ntransfer-encoding: chunked\r\n\r\n", Some(1)),
            ("POST / HTTP/1.1\nTRANSFER-ENCODING: chunked\nContent-length: 1\n\n", Some(1)),
            ("POST / HTTP/1.1\r\nX-Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", None),
            ("\r\nGET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", Some(1)),
            ("GET /a HTTP/1.1\r\nX: #\r\n\r\n", None),
            ("GET /a HTTP/1.1\r\n\r\nGET /b#c HTTP/1.1\r\n\r\n", Some(2)),
        ] {
            assert_eq!(fed(text).0, illegal, "{text:?}");
        }
    }

    #[test]
    fn bodies_are_no_heads_whatever_they_hold() {
        let hostile = "GET /#a HTTP/1.1\r\n\r\n# Title\r\n";
        let sized = format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{hostile}", hostile.len());
        let size = hostile.len();
        let chunked = format!(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{size:x};a=b\r\n{hostile}\r\n0\r\nX: #\r\n\r\n"
        );
        for text in [&sized, &chunked] {
            assert_eq!(fed(text), (None, false), "{text:?}");
            assert_eq!(fed(&format!("{text}GET /#a HTTP/1.1\r\n\r\n")).0, Some(2), "{text:?}");
        }
    }

    #[test]
    fn a_head_is_under_way_from_its_first_byte_to_its_last() {
        for (text, inside) in [
            ("", false),
            ("\r\n", false),
            ("G", true),
            ("GET / HTTP/1.1\r\nHost: a\r\n", true),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc", false),
            ("CONNECT a:1 HTTP/1.1\r\n\r\nanything", false),
        ] {
            assert_eq!(fed(text).1, inside, "{text:?}");
        }
    }
}
