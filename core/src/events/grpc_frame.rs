//! gRPC's length-prefixed messages (a flag byte, four bytes of big-endian length, the message), put together
//! from chunks of any size. Never holds more than one message, nor one over its bound: that one passes
//! through in pieces.

/// Bytes before each message.
pub const PREFIX_BYTES: usize = 5;

/// What comes out of a stream; the `framed` and `Passing` bytes together are all bytes that went in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A whole message.
    Message {
        /// The flag byte; 1 says that the message is compressed.
        flag: u8,
        /// The message.
        message: &'a [u8],
        /// The message with its prefix, as it was received.
        framed: &'a [u8],
    },
    /// Bytes of a message over the bound, to be sent on as they are.
    Passing(&'a [u8]),
}

/// Takes chunks and gives pieces. Allocates only for a message that is spread over chunks, and then no more
/// than has arrived of it.
#[derive(Debug)]
pub struct Reassembler {
    message_bytes_max: usize,
    held: Vec<u8>,
    given: bool,
    passing_bytes: u64,
    messages_over_bound: u64,
}

impl Reassembler {
    /// Messages of more than `message_bytes_max` bytes pass through.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        Self { message_bytes_max, held: Vec::new(), given: false, passing_bytes: 0, messages_over_bound: 0 }
    }

    /// The next piece, taken from the front of `chunk`; `None` when the chunk is used up. To be called until
    /// then.
    pub fn next_piece<'p, 'c: 'p>(&'p mut self, chunk: &mut &'c [u8]) -> Option<Piece<'p>> {
        if std::mem::take(&mut self.given) {
            self.held.clear();
        }
        let between = self.passing_bytes == 0 && self.held.is_empty();
        if between && let Some(whole) = whole(chunk, self.message_bytes_max) {
            return Some(piece(take(chunk, whole)));
        }
        if self.passing_bytes == 0 {
            self.hold(chunk, PREFIX_BYTES);
            let bytes = message_bytes(&self.held)?;
            if bytes > self.message_bytes_max {
                self.messages_over_bound += 1;
                self.passing_bytes = bytes as u64;
                self.given = true;
                return Some(Piece::Passing(&self.held));
            }
            self.hold(chunk, PREFIX_BYTES + bytes);
            self.given = self.held.len() == PREFIX_BYTES + bytes;
            return self.given.then(|| piece(&self.held));
        }
        let bytes = usize::try_from(self.passing_bytes).unwrap_or(usize::MAX).min(chunk.len());
        self.passing_bytes -= bytes as u64;
        (bytes > 0).then(|| Piece::Passing(take(chunk, bytes)))
    }

    /// The stream has ended: what is left of a message that was cut short, to be sent on as it is.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        if self.given { &[] } else { &self.held }
    }

    /// Messages that passed through because of their size.
    #[must_use]
    pub fn messages_over_bound(&self) -> u64 {
        self.messages_over_bound
    }

    /// Fills the held bytes up to `bytes` as far as the chunk reaches.
    fn hold(&mut self, chunk: &mut &[u8], bytes: usize) {
        let missing = bytes.saturating_sub(self.held.len()).min(chunk.len());
        self.held.extend_from_slice(take(chunk, missing));
    }
}

/// Appends a message in its frame. `false`, and nothing appended, if it is over gRPC's 32 bits.
#[must_use]
pub fn write(flag: u8, message: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(bytes) = u32::try_from(message.len()) else {
        return false;
    };
    out.reserve(PREFIX_BYTES + message.len());
    out.push(flag);
    out.extend_from_slice(&bytes.to_be_bytes());
    out.extend_from_slice(message);
    true
}

/// The first whole gRPC message of some bytes, uncompressed.
#[must_use]
pub fn first_message(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = bytes;
    match Reassembler::new(bytes.len()).next_piece(&mut rest)? {
        Piece::Message { flag: 0, message, .. } => Some(message.to_vec()),
        Piece::Message { .. } | Piece::Passing(_) => None,
    }
}

/// Puts the messages of a stream together, has each one edited, and frames them anew. Those over the
/// reassembler's bound pass as they come.
pub fn reframe(
    reassembler: &mut Reassembler,
    chunk: &[u8],
    mut edit: impl FnMut(u8, &[u8]) -> Option<Vec<u8>>,
) -> Vec<u8> {
    let (mut rest, mut out) = (chunk, Vec::with_capacity(chunk.len() + 256));
    while let Some(piece) = reassembler.next_piece(&mut rest) {
        match piece {
            Piece::Message { flag, message, framed } => {
                let edited = edit(flag, message).is_some_and(|edited| write(flag, &edited, &mut out));
                if !edited {
                    out.extend_from_slice(framed);
                }
            }
            Piece::Passing(bytes) => out.extend_from_slice(bytes),
        }
    }
    out
}

fn message_bytes(framed: &[u8]) -> Option<usize> {
    let [_, a, b, c, d] = *framed.first_chunk::<PREFIX_BYTES>()?;
    usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()
}

/// The length of the frame at the front of `chunk`, if all of it is there and within the bound.
fn whole(chunk: &[u8], message_bytes_max: usize) -> Option<usize> {
    let bytes = message_bytes(chunk).filter(|bytes| *bytes <= message_bytes_max)?;
    Some(bytes + PREFIX_BYTES).filter(|framed| *framed <= chunk.len())
}

fn take<'a>(chunk: &mut &'a [u8], bytes: usize) -> &'a [u8] {
    let (front, rest) = chunk.split_at_checked(bytes).unwrap_or((chunk, &[]));
    *chunk = rest;
    front
}

fn piece(framed: &[u8]) -> Piece<'_> {
    let flag = framed.first().copied().unwrap_or(0);
    Piece::Message { flag, message: framed.get(PREFIX_BYTES..).unwrap_or_default(), framed }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out when `stream` arrives in chunks of `chunk_bytes`.
    fn pieces(stream: &[u8], chunk_bytes: usize, message_bytes_max: usize) -> (Vec<String>, Vec<u8>) {
        let mut reassembler = Reassembler::new(message_bytes_max);
        let (mut seen, mut sent) = (Vec::new(), Vec::new());
        for mut chunk in stream.chunks(chunk_bytes) {
            while let Some(piece) = reassembler.next_piece(&mut chunk) {
                match piece {
                    Piece::Message { flag, message, framed } => {
                        seen.push(format!("{flag}:{}", message.escape_ascii()));
                        sent.extend_from_slice(framed);
                    }
                    Piece::Passing(bytes) => {
                        if seen.last().is_none_or(|last| last != "passing") {
                            seen.push("passing".to_owned());
                        }
                        sent.extend_from_slice(bytes);
                    }
                }
            }
            assert!(chunk.is_empty());
            assert!(reassembler.held.len() <= PREFIX_BYTES + message_bytes_max);
        }
        sent.extend_from_slice(reassembler.rest());
        (seen, sent)
    }

    #[test]
    fn chunk_borders_make_no_difference() {
        let mut stream = Vec::new();
        for (flag, message) in
            [(0, &b"one"[..]), (1, b""), (0, b"far over the bound"), (0, b"12345678"), (0, b"end")]
        {
            assert!(write(flag, message, &mut stream));
        }
        for chunk_bytes in 1..=stream.len() {
            let (seen, sent) = pieces(&stream, chunk_bytes, 8);
            assert_eq!(seen, ["0:one", "1:", "passing", "0:12345678", "0:end"], "{chunk_bytes}");
            assert_eq!(sent, stream);
        }
    }

    #[test]
    fn a_stream_cut_short_is_sent_on_whole() {
        let mut stream = Vec::new();
        assert!(write(0, b"message", &mut stream));
        for bytes in 0..stream.len() {
            for chunk_bytes in 1..=stream.len() {
                let (seen, sent) = pieces(&stream[..bytes], chunk_bytes, 100);
                assert_eq!((seen.len(), sent.as_slice()), (0, &stream[..bytes]));
            }
        }
    }

    #[test]
    fn a_claimed_length_reserves_nothing() {
        let mut reassembler = Reassembler::new(usize::MAX);
        let mut chunk = &[0, 0xff, 0xff, 0xff, 0xff, 1][..];
        assert_eq!(reassembler.next_piece(&mut chunk), None);
        assert!(reassembler.held.capacity() < 100);
        assert_eq!(reassembler.rest().len(), 6);
    }
}
