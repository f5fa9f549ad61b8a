//! What of a request's head hyper's parser mends in silence, seen before it does: a `Content-Length` beside a
//! `Transfer-Encoding` (RFC 9112 §6.1) and a fragment in the target (§3.2). Looks at the bytes as they come in,
//! from the first one after a connection was idle to the end of the head; keeps no more than a line's beginning.

/// Bytes of a line's beginning that are kept: enough for the longest name looked for, with its colon.
const NAME_BYTES: usize = 18;

/// The state of one connection.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    inside: bool,
    request_line: bool,
    name: [u8; NAME_BYTES],
    len: usize,
    length: bool,
    encoding: bool,
    fragment: bool,
}

impl HeadScan {
    /// Takes bytes in; true when a head ended with them that must be refused. `idle` says that no request is
    /// under way, so that these bytes begin a head if none has begun.
    pub(super) fn feed(&mut self, bytes: &[u8], idle: bool) -> bool {
        if !self.inside {
            if !idle {
                return false;
            }
            *self = Self { inside: true, request_line: true, ..Self::default() };
        }
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.request_line && line.contains(&b'#') {
                self.fragment = true;
            }
            for (to, from) in self.name.iter_mut().skip(self.len).zip(line) {
                *to = from.to_ascii_lowercase();
            }
            self.len = (self.len + line.len()).min(NAME_BYTES);
            if line.ends_with(b"\n") && self.line_ended() {
                return self.fragment || (self.length && self.encoding);
            }
        }
        false
    }

    /// Whether the head is over.
    fn line_ended(&mut self) -> bool {
        let name = self.name.get(..std::mem::take(&mut self.len)).unwrap_or_default();
        if matches!(name, b"\n" | b"\r\n") {
            // Empty lines before the request line are no end (RFC 9112 §2.2).
            self.inside = self.request_line;
            return !self.inside;
        }
        self.length |= !self.request_line && name.starts_with(b"content-length:");
        self.encoding |= !self.request_line && name.starts_with(b"transfer-encoding:");
        self.request_line = false;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(head: &str) -> bool {
        let whole = HeadScan::default().feed(head.as_bytes(), true);
        // However the bytes are cut, the answer is the same.
        let mut bytewise = HeadScan::default();
        let by_byte = head.bytes().fold(false, |refused, byte| refused | bytewise.feed(&[byte], true));
        assert_eq!(whole, by_byte, "{head:?}");
        whole
    }

    #[test]
    fn a_length_beside_a_coding_is_refused_in_either_order_and_spelling() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\ntransfer-encoding: chunked\r\n\r\n", true),
            ("POST / HTTP/1.1\nTRANSFER-ENCODING: chunked\nContent-length: 1\n\n", true),
            ("POST / HTTP/1.1\r\nX-Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            ("\r\nGET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", true),
            ("GET /a HTTP/1.1\r\nX: #\r\n\r\n", false),
        ] {
            assert_eq!(refused(head), expected, "{head:?}");
        }
    }

    #[test]
    fn each_head_is_looked_at_by_itself_and_bodies_are_not() {
        let mut scan = HeadScan::default();
        assert!(!scan.feed(b"POST / HTTP/1.1\r\nContent-Length: 30\r\n\r\n", true));
        assert!(!scan.feed(b"\r\nTransfer-Encoding: x\r\n\r\n#", false));
        assert!(!scan.feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", true));
        assert!(scan.feed(b"GET /#a HTTP/1.1\r\n\r\n", true));
    }
}
