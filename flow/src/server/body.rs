//! Bodies of exports: read within a time and a size, decompressed within a size. Must never hold more of all bodies
//! together than the bound that they share, whatever a sender says of a length.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// How a body was made smaller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Encoding {
    /// It was not.
    Identity,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Encoding {
    /// What a header says.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Self::Identity),
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Why there is no body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unread {
    /// More bytes than one body may have, before or after decompression.
    TooLarge,
    /// It took too long to arrive.
    TooSlow,
    /// All bodies together are at their bound.
    Busy,
    /// It is no gzip or zstd.
    Broken,
    /// The sender went away.
    Gone,
}

/// Bytes of all bodies that are being read, in pieces of this size.
const PIECE: u64 = 1024;

/// The bounds of bodies.
#[derive(Clone)]
pub(crate) struct Bounds {
    pub(crate) bytes_max: usize,
    pub(crate) patience: Duration,
    all: Arc<Semaphore>,
    pieces: usize,
}

/// A body, and its share of the bound.
pub(crate) struct Whole {
    pub(crate) bytes: Bytes,
    pub(crate) share: Share,
}

/// What a body holds of the bound of all; given back when it is dropped.
#[derive(Default)]
pub(crate) struct Share {
    permits: Option<OwnedSemaphorePermit>,
    pieces: u64,
}

impl Bounds {
    pub(crate) fn new(bytes_max: u64, all_bytes_max: u64, patience: Duration) -> Self {
        let pieces = usize::try_from(all_bytes_max.max(bytes_max * 2) / PIECE).unwrap_or(usize::MAX);
        let pieces = pieces.min(Semaphore::MAX_PERMITS);
        let all = Arc::new(Semaphore::new(pieces));
        Self { bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX), patience, all, pieces }
    }

    /// Bytes of the bound that are taken at this moment.
    pub(crate) fn bytes_held(&self) -> u64 {
        self.pieces.saturating_sub(self.all.available_permits()) as u64 * PIECE
    }

    /// Takes a larger share, so that it covers `bytes`.
    fn grow(&self, share: &mut Share, bytes: usize) -> Result<(), Unread> {
        let wanted = (bytes as u64).div_ceil(PIECE);
        let Some(more) = wanted.checked_sub(share.pieces).filter(|more| *more > 0) else { return Ok(()) };
        let more_permits = u32::try_from(more).map_err(|_| Unread::TooLarge)?;
        let taken = Arc::clone(&self.all).try_acquire_many_owned(more_permits).map_err(|_| Unread::Busy)?;
        match &mut share.permits {
            Some(permits) => permits.merge(taken),
            None => share.permits = Some(taken),
        }
        share.pieces = wanted;
        Ok(())
    }

    /// Reads a body as it comes.
    pub(crate) async fn read(&self, body: Incoming) -> Result<Whole, Unread> {
        self.read_bounded(body, self.bytes_max).await
    }

    /// Reads a body that may be of this size.
    pub(crate) async fn read_bounded(&self, mut body: Incoming, bytes_max: usize) -> Result<Whole, Unread> {
        let told = body.size_hint().lower();
        if told > bytes_max as u64 {
            linger(body, bytes_max).await;
            return Err(Unread::TooLarge);
        }
        let deadline = Instant::now() + self.patience;
        let mut share = Share::default();
        let mut first: Option<Bytes> = None;
        let mut all = BytesMut::new();
        let mut held = 0;
        while let Some(frame) = timeout_at(deadline, body.frame()).await.map_err(|_| Unread::TooSlow)? {
            let Ok(data) = frame.map_err(|_| Unread::Gone)?.into_data() else { continue };
            held += data.len();
            if held > bytes_max {
                linger(body, bytes_max).await;
                return Err(Unread::TooLarge);
            }
            self.grow(&mut share, held)?;
            match first.take() {
                None if all.is_empty() => first = Some(data),
                earlier => {
                    all.extend_from_slice(earlier.as_deref().unwrap_or_default());
                    all.extend_from_slice(&data);
                }
            }
        }
        // A body of one piece is not copied.
        Ok(Whole { bytes: first.unwrap_or_else(|| all.freeze()), share })
    }

    /// Makes it as large as it was.
    pub(crate) fn decompress(&self, read: Whole, encoding: Encoding) -> Result<Whole, Unread> {
        let Whole { bytes, mut share } = read;
        let out = match encoding {
            Encoding::Identity => return Ok(Whole { bytes, share }),
            Encoding::Gzip => self.unpack(flate2::read::MultiGzDecoder::new(&bytes[..]), &mut share),
            Encoding::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(&bytes[..]);
                let mut decoder = decoder.map_err(|_| Unread::Broken)?;
                // 8 MiB: what RFC 8878 asks a decoder to take; more would let a sender choose our memory.
                decoder.window_log_max(23).map_err(|_| Unread::Broken)?;
                self.unpack(decoder, &mut share)
            }
        }?;
        Ok(Whole { bytes: out.into(), share })
    }

    fn unpack(&self, mut from: impl Read, share: &mut Share) -> Result<Vec<u8>, Unread> {
        const STEP: usize = 64 * 1024;
        let mut out = Vec::new();
        loop {
            let held = out.len();
            self.grow(share, held + STEP)?;
            let read = from.by_ref().take(STEP as u64).read_to_end(&mut out);
            match read {
                Ok(0) => return Ok(out),
                Ok(_) if out.len() > self.bytes_max => return Err(Unread::TooLarge),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Unread::Broken),
            }
        }
    }
}

/// Reads on for a moment, up to as many bytes again: a connection that is closed while its sender still writes takes
/// the answer with it.
async fn linger(mut body: Incoming, bytes_max: usize) {
    const MOMENT: Duration = Duration::from_secs(2);
    let deadline = Instant::now() + MOMENT;
    let mut left = bytes_max;
    while let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn bounds(bytes_max: u64) -> Bounds {
        Bounds::new(bytes_max, 4 << 20, Duration::from_secs(1))
    }

    fn packed(encoding: Encoding, bytes: &[u8]) -> Bytes {
        match encoding {
            Encoding::Identity => Bytes::copy_from_slice(bytes),
            Encoding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap().into()
            }
            Encoding::Zstd => zstd::stream::encode_all(bytes, 3).unwrap().into(),
        }
    }

    fn unpacked(bounds: &Bounds, encoding: Encoding, bytes: Bytes) -> Result<Bytes, Unread> {
        let read = Whole { bytes, share: Share::default() };
        bounds.decompress(read, encoding).map(|read| read.bytes)
    }

    #[test]
    fn what_was_packed_comes_out_as_it_was() {
        let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Zstd] {
            let out = unpacked(&bounds(2 << 20), encoding, packed(encoding, &bytes)).unwrap();
            assert!(out == bytes, "{encoding:?}");
        }
    }

    #[test]
    fn a_bomb_is_left_at_the_bound() {
        let zeros = vec![0; 50 << 20];
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let bomb = packed(encoding, &zeros);
            assert!(bomb.len() < 100_000);
            let bounds = bounds(1 << 20);
            assert_eq!(unpacked(&bounds, encoding, bomb), Err(Unread::TooLarge), "{encoding:?}");
            assert_eq!(bounds.all.available_permits(), 4096, "its share came back");
        }
    }

    #[test]
    fn garbage_is_broken_and_not_more() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            for garbage in [&b"garbage"[..], &[0x1f, 0x8b, 8, 0], &[0x28, 0xb5, 0x2f, 0xfd, 0xff]] {
                let out = unpacked(&bounds(1 << 20), encoding, Bytes::copy_from_slice(garbage));
                assert_eq!(out, Err(Unread::Broken), "{encoding:?} {garbage:?}");
            }
        }
    }

    #[test]
    fn all_bodies_share_a_bound() {
        let bounds = bounds(1 << 20);
        let mut first = Share::default();
        bounds.grow(&mut first, 3 << 20).unwrap();
        let mut second = Share::default();
        assert_eq!(bounds.grow(&mut second, 2 << 20), Err(Unread::Busy));
        drop(first);
        assert_eq!(bounds.grow(&mut second, 2 << 20), Ok(()));
    }
}
