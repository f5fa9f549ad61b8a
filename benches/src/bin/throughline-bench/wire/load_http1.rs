//! Closed loop by HTTP/1.1: each connection sends its next request when the answer to the last one was read.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::backend::{end_of_head, field, number};
use super::load::{Contexts, HEADERS, HOST, Seen};
use super::{LARGE_BYTES, LARGE_PATH, SMALL, SMALL_PATH};

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    /// A GET and 100 bytes of answer.
    Small,
    /// A POST with 100 KB, and 100 KB of answer.
    Large,
}

/// A request as bytes, with room for a context.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    bytes: Vec<u8>,
    context_at: Option<usize>,
    answer_bytes: usize,
}

impl Asking {
    pub(crate) fn new(ask: Ask, with_context: bool) -> Self {
        let (line, answer_bytes) = match ask {
            Ask::Small => (format!("GET {SMALL_PATH}"), SMALL.len()),
            Ask::Large => (format!("POST {LARGE_PATH}"), LARGE_BYTES),
        };
        let mut head = format!("{line} HTTP/1.1\r\nhost: {HOST}\r\n");
        for (name, value) in HEADERS {
            head += &format!("{name}: {value}\r\n");
        }
        let mut context_at = None;
        if with_context {
            head += "traceparent: ";
            context_at = Some(head.len());
            head += &format!("{}\r\n", "0".repeat(55));
        }
        if ask == Ask::Large {
            head += &format!("content-type: application/octet-stream\r\ncontent-length: {LARGE_BYTES}\r\n");
        }
        let mut bytes = (head + "\r\n").into_bytes();
        if ask == Ask::Large {
            bytes.resize(bytes.len() + LARGE_BYTES, b'x');
        }
        Self { bytes, context_at, answer_bytes }
    }

    /// The bytes of the next request.
    pub(crate) fn next(&mut self, contexts: &mut Contexts) -> &[u8] {
        if let Some(at) = self.context_at {
            self.bytes[at..at + 55].copy_from_slice(contexts.next());
        }
        &self.bytes
    }

    /// Whether the head of an answer is right, and how many bytes of body follow it.
    pub(crate) fn judge(&self, head: &[u8]) -> Result<usize, String> {
        let bytes = number(field(head, b"content-length"));
        if head.get(..13) != Some(b"HTTP/1.1 200 ") || bytes != self.answer_bytes {
            return Err(String::from_utf8_lossy(head).into_owned());
        }
        Ok(bytes)
    }
}

/// Asks on so many connections for so long.
pub(crate) async fn run(to: SocketAddr, ask: Ask, with_context: bool, connections: u64, time: Duration) {
    let began = Instant::now();
    let until = began + time;
    let tasks: Vec<_> = (0..connections)
        .map(|seed| {
            tokio::spawn(one(to, Asking::new(ask, with_context), Contexts::seeded(seed << 40), until))
        })
        .collect();
    let mut all = Seen::default();
    for task in tasks {
        all.add(task.await.expect("no panic in a generator"));
    }
    all.tell(&[("seconds", began.elapsed().as_secs_f64())]);
}

async fn one(to: SocketAddr, mut asking: Asking, mut contexts: Contexts, until: Instant) -> Seen {
    let mut seen = Seen::default();
    let mut stream = match TcpStream::connect(to).await {
        Ok(stream) => stream,
        Err(error) => {
            seen.failed(error);
            return seen;
        }
    };
    let _ = stream.set_nodelay(true);
    let mut buffer = vec![0; 64 * 1024];
    while Instant::now() < until {
        match exchange(&mut stream, &mut asking, &mut contexts, &mut buffer).await {
            Ok(()) => seen.answers += 1,
            Err(why) => {
                seen.failed(why);
                return seen;
            }
        }
    }
    seen
}

async fn exchange(
    stream: &mut TcpStream,
    asking: &mut Asking,
    contexts: &mut Contexts,
    buffer: &mut [u8],
) -> Result<(), String> {
    let lost = |error: std::io::Error| format!("connection lost: {error}");
    stream.write_all(asking.next(contexts)).await.map_err(lost)?;
    let mut filled = 0;
    let mut left = loop {
        let bytes = stream.read(&mut buffer[filled..]).await.map_err(lost)?;
        if bytes == 0 {
            return Err("connection closed".to_owned());
        }
        filled += bytes;
        if let Some(end) = end_of_head(&buffer[..filled]) {
            break asking.judge(&buffer[..end])?.checked_sub(filled - end).ok_or("more than was said")?;
        }
    };
    while left > 0 {
        let bytes = stream.read(buffer).await.map_err(lost)?;
        if bytes == 0 {
            return Err("connection closed within a body".to_owned());
        }
        left = left.checked_sub(bytes).ok_or("more than was said")?;
    }
    Ok(())
}
