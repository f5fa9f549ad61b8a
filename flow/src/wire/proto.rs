//! The protobuf wire format: fields of a message, borrowed, and the few writers that we need.
//! Must never panic or read beyond its input, whatever the bytes.

/// What is wrong with a message, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// The field, dotted, such as `resource_spans.scope_spans.spans.trace_id`.
    pub field: &'static str,
    /// What was expected there.
    pub want: &'static str,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: want {}", self.field, self.want)
    }
}

impl std::error::Error for Malformed {}

/// The value of a field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
}

/// A varint at the head of `bytes`, and what follows it.
#[inline]
#[must_use]
pub fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    if first < 0x80 {
        return Some((u64::from(first), rest));
    }
    long_varint(bytes)
}

#[inline(never)]
fn long_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        if i == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Some((value, bytes.get(i + 1..)?));
        }
    }
    None
}

/// The field at the head of `bytes`: its number, its value, and what follows. Groups (wire types 3 and 4), which
/// OTLP never had, are refused.
#[inline]
#[must_use]
pub fn field(bytes: &[u8]) -> Option<(u32, Field<'_>, &[u8])> {
    let (tag, rest) = varint(bytes)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| (1..=0x1fff_ffff).contains(number))?;
    let (value, rest) = match tag & 7 {
        0 => {
            let (value, rest) = varint(rest)?;
            (Field::Varint(value), rest)
        }
        1 => {
            let (value, rest) = rest.split_first_chunk::<8>()?;
            (Field::Fixed64(u64::from_le_bytes(*value)), rest)
        }
        2 => {
            let (len, rest) = varint(rest)?;
            let (value, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            (Field::Bytes(value), rest)
        }
        5 => {
            let (value, rest) = rest.split_first_chunk::<4>()?;
            (Field::Fixed32(u32::from_le_bytes(*value)), rest)
        }
        _ => return None,
    };
    Some((number, value, rest))
}

/// The fields of a message, in their order. A message that is cut or wrong yields one `Err` and ends.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

/// The bytes are no protobuf message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMessage;

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Field<'a>), NoMessage>;
    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        match field(self.0) {
            Some((number, value, rest)) => {
                self.0 = rest;
                Some(Ok((number, value)))
            }
            None => {
                self.0 = &[];
                Some(Err(NoMessage))
            }
        }
    }
}

/// Writes a varint.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes a varint takes.
#[inline]
#[must_use]
pub fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Writes a field of wire type 2.
#[inline]
pub fn put_bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_go_out_and_in_and_longer_ones_than_ten_bytes_are_refused() {
        for value in [0, 1, 127, 128, 300, 1 << 20, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value));
            assert_eq!(varint(&out), Some((value, &[][..])));
            for cut in 0..out.len() {
                assert_eq!(varint(&out[..cut]), None);
            }
        }
        assert_eq!(varint(&[0xff; 10]), None);
        assert_eq!(varint(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02]), None);
    }

    #[test]
    fn a_field_that_is_cut_or_a_group_ends_the_message_with_an_error() {
        for bytes in [&[0x0a, 5, 1][..], &[0x0b], &[0x0c], &[0x0d, 1, 2, 3], &[0x09, 1], &[0x00, 1], &[0x08]]
        {
            let all: Vec<_> = Fields(bytes).collect();
            assert_eq!(all, [Err(NoMessage)], "{bytes:?}");
        }
        let all: Vec<_> = Fields(&[0x08, 1, 0x0a, 1, 7, 0x0a]).collect();
        assert_eq!(all, [Ok((1, Field::Varint(1))), Ok((1, Field::Bytes(&[7]))), Err(NoMessage)]);
    }
}
