//! HTTP/2 by hand: frames as bytes, header blocks without compression, so that a scenario can send what no
//! library would.

use std::net::SocketAddr;

use crate::wire::Wire;

/// The kinds of frames that the scenarios look at.
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// RST_STREAM.
    pub const RST_STREAM: u8 = 3;
    /// SETTINGS.
    pub const SETTINGS: u8 = 4;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
    /// WINDOW_UPDATE.
    pub const WINDOW_UPDATE: u8 = 8;
    /// CONTINUATION.
    pub const CONTINUATION: u8 = 9;
}

/// The flag END_STREAM.
pub const END_STREAM: u8 = 1;
/// The flag END_HEADERS.
pub const END_HEADERS: u8 = 4;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The kind.
    pub kind: u8,
    /// The flags.
    pub flags: u8,
    /// The stream.
    pub stream: u32,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Frame {
        Frame { kind, flags, stream, payload: payload.into() }
    }

    /// A whole header block in one frame.
    pub fn headers(stream: u32, fields: &[(&[u8], &[u8])], flags: u8) -> Frame {
        Frame::new(kind::HEADERS, flags | END_HEADERS, stream, block(fields))
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).expect("a frame").to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// A header block of literal fields that touch no table.
pub fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.extend(prefixed(text.len()));
            block.extend(*text);
        }
    }
    block
}

/// An integer with a seven-bit prefix (RFC 7541 §5.1), no Huffman coding.
fn prefixed(mut length: usize) -> Vec<u8> {
    let byte = |number: usize| u8::try_from(number).expect("a byte");
    if length < 127 {
        return vec![byte(length)];
    }
    let mut bytes = vec![127];
    length -= 127;
    while length >= 128 {
        bytes.push(byte(length % 128) | 128);
        length /= 128;
    }
    bytes.push(byte(length));
    bytes
}

/// An HTTP/2 connection of frames.
#[derive(Debug)]
pub struct Frames {
    wire: Wire,
    settings: Vec<u8>,
}

impl Frames {
    /// Connects and sends the preface with these settings.
    pub async fn to(address: SocketAddr, settings: &[(u16, u32)]) -> Frames {
        let mut wire = Wire::to(address).await;
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        wire.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        wire.send(Frame::new(kind::SETTINGS, 0, 0, payload).bytes()).await;
        Frames { wire, settings: Vec::new() }
    }

    /// Sends a frame. False when the peer has closed.
    pub async fn send(&mut self, frame: Frame) -> bool {
        self.wire.send(frame.bytes()).await
    }

    /// The next frame that is no bookkeeping; acknowledges SETTINGS and PING by itself. `None` when the peer
    /// has closed.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            let head = self.wire.exactly(9).await;
            let [a, b, c, kind, flags, s0, s1, s2, s3] = *head else { return None };
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let payload = self.wire.exactly(length).await;
            let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
            match kind {
                kind::SETTINGS if flags & 1 == 0 => {
                    self.settings.extend(&payload);
                    self.send(Frame::new(kind::SETTINGS, 1, 0, [])).await;
                }
                kind::PING if flags & 1 == 0 => {
                    self.send(Frame::new(kind::PING, 1, 0, payload)).await;
                }
                kind::SETTINGS | kind::PING | kind::WINDOW_UPDATE => {}
                _ => return Some(Frame { kind, flags, stream, payload }),
            }
        }
    }

    /// A setting that the peer has sent so far.
    pub fn setting(&self, number: u16) -> Option<u32> {
        let mut pairs = self.settings.chunks_exact(6);
        let found = pairs.find(|pair| pair[..2] == number.to_be_bytes())?;
        found[2..].try_into().ok().map(u32::from_be_bytes)
    }

    /// How the peer ends a stream.
    pub async fn verdict(&mut self, stream: u32) -> Verdict {
        loop {
            let Some(frame) = self.next().await else { return Verdict::Closed };
            match frame.kind {
                kind::GOAWAY => return Verdict::GoAway(code(&frame.payload[4..])),
                kind::RST_STREAM if frame.stream == stream => return Verdict::Reset(code(&frame.payload)),
                kind::HEADERS if frame.stream == stream => return Verdict::Status(status(&frame.payload)),
                _ => {}
            }
        }
    }

    /// Reads until the peer closes, and returns the frames that came.
    pub async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next().await {
            frames.push(frame);
        }
        frames
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answered with a status.
    Status(u16),
    /// Reset with an error code.
    Reset(u32),
    /// The whole connection is going away with an error code.
    GoAway(u32),
    /// The whole connection was closed.
    Closed,
}

fn code(payload: &[u8]) -> u32 {
    payload.get(..4).map_or(0, |four| u32::from_be_bytes(four.try_into().expect("four bytes")))
}

/// The `:status` at the start of a header block: indexed, or a literal with an indexed name.
fn status(block: &[u8]) -> u16 {
    // A change of the dynamic table's size may come first (RFC 7541 §6.3).
    let start = block.iter().position(|byte| byte & 0xe0 != 0x20).expect("a header block");
    let block = &block[start..];
    match block[0] {
        indexed @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        0x48 | 0x08 | 0x18 => {
            let length = usize::from(block[1] & 0x7f);
            let text = &block[2..2 + length];
            let digits = if block[1] & 0x80 == 0 { text.to_vec() } else { huffman_digits(text) };
            String::from_utf8_lossy(&digits).parse().expect("a status")
        }
        other => panic!("a header block that starts with {other:#x}"),
    }
}

/// Digits in Huffman code (RFC 7541 appendix B): 0 to 2 in five bits, 3 to 9 in six.
fn huffman_digits(bytes: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> =
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |place| byte >> place & 1)).collect();
    let number = |bits: &[u8]| bits.iter().fold(0_u8, |number, bit| number << 1 | bit);
    let mut digits = Vec::new();
    let mut at = 0;
    while let Some(five) = bits.get(at..at + 5) {
        match number(five) {
            short @ 0..=2 => {
                digits.push(b'0' + short);
                at += 5;
            }
            _ => match bits.get(at..at + 6).map(number) {
                Some(long @ 0b01_1001..=0b01_1111) => {
                    digits.push(b'3' + long - 0b01_1001);
                    at += 6;
                }
                _ => break,
            },
        }
    }
    digits
}
