//! Reading and writing of the parts of a block: numbers, texts, and a frame with a checksum around each part.
//! Must never panic on a part that is damaged.

use crate::wire::proto;

/// Bytes that a part may come to when it is decompressed; more is damage.
const PART_BYTES_MAX: usize = 1 << 30;

/// A part that can't be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damaged(pub &'static str);

/// Takes a part from its head on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Take<'a>(pub(super) &'a [u8]);

impl<'a> Take<'a> {
    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Damaged> {
        let (value, rest) = proto::varint(self.0).ok_or(Damaged("a number is cut"))?;
        self.0 = rest;
        Ok(value)
    }

    /// A count of things that take a byte at least, or none at all.
    pub(super) fn count(&mut self) -> Result<usize, Damaged> {
        let count = self.size()?;
        if count > self.0.len() { Err(Damaged("a count is too great")) } else { Ok(count) }
    }

    pub(super) fn size(&mut self) -> Result<usize, Damaged> {
        usize::try_from(self.varint()?).map_err(|_| Damaged("a size is too great"))
    }

    #[inline]
    pub(super) fn index(&mut self) -> Result<u32, Damaged> {
        u32::try_from(self.varint()?).map_err(|_| Damaged("a number is too great"))
    }

    #[inline]
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Damaged> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Damaged("bytes are cut"))?;
        self.0 = rest;
        Ok(bytes)
    }

    #[inline]
    pub(super) fn word(&mut self) -> Result<u64, Damaged> {
        let (bytes, rest) = self.0.split_first_chunk::<8>().ok_or(Damaged("a word is cut"))?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    pub(super) fn text(&mut self) -> Result<&'a [u8], Damaged> {
        let len = self.size()?;
        self.bytes(len)
    }
}

/// A small number for one that may be less than none.
#[inline]
pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// What [`zigzag`] was made from.
#[inline]
pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    proto::put_varint(out, text.len() as u64);
    out.extend_from_slice(text);
}

/// Compresses parts; keeps what it needs for that.
pub(crate) struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    pub(crate) fn new(level: i32) -> std::io::Result<Self> {
        Ok(Self(zstd::bulk::Compressor::new(level)?))
    }

    /// A part: checksum, sizes, what is compressed, what is not.
    pub(super) fn pack(&mut self, body: &[u8], plain: &[u8]) -> std::io::Result<Vec<u8>> {
        let packed = self.0.compress(body)?;
        let mut out = Vec::with_capacity(packed.len() + plain.len() + 24);
        out.extend_from_slice(&[0; 4]);
        proto::put_varint(&mut out, body.len() as u64);
        proto::put_varint(&mut out, packed.len() as u64);
        out.extend_from_slice(&packed);
        out.extend_from_slice(plain);
        let sum = crc32fast::hash(out.get(4..).unwrap_or_default());
        if let Some(head) = out.first_chunk_mut::<4>() {
            *head = sum.to_le_bytes();
        }
        Ok(out)
    }
}

/// Reads a part: what was compressed, and what was not.
pub(super) fn unpack(part: &[u8]) -> Result<(Vec<u8>, &[u8]), Damaged> {
    let (sum, rest) = part.split_first_chunk::<4>().ok_or(Damaged("a part is cut"))?;
    if crc32fast::hash(rest) != u32::from_le_bytes(*sum) {
        return Err(Damaged("its checksum is wrong"));
    }
    let mut take = Take(rest);
    let (size, packed) = (take.size()?, take.size()?);
    if size > PART_BYTES_MAX {
        return Err(Damaged("a part is too great"));
    }
    let body =
        zstd::bulk::decompress(take.bytes(packed)?, size).map_err(|_| Damaged("it can't be decompressed"))?;
    if body.len() == size { Ok((body, take.0)) } else { Err(Damaged("a part is of another size")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_comes_back_and_a_bit_that_flips_is_noticed() {
        let mut packer = Packer::new(1).unwrap();
        let part = packer.pack(&[7; 1000], b"plain").unwrap();
        assert_eq!(unpack(&part), Ok((vec![7; 1000], &b"plain"[..])));
        for at in 0..part.len() * 8 {
            let mut broken = part.clone();
            broken[at / 8] ^= 1 << (at % 8);
            assert!(unpack(&broken).is_err());
        }
        for cut in 0..part.len() {
            assert!(unpack(&part[..cut]).is_err());
        }
    }

    #[test]
    fn numbers_less_than_none_stay_small() {
        for value in [0, 1, -1, 2, -2, i64::MAX, i64::MIN] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert_eq!((zigzag(-1), zigzag(1)), (1, 2));
    }
}
