//! Protobuf's wire format, as far as OTLP needs it: tags, varints, length-delimited fields. Only appends to a
//! buffer; lengths are computed before they are written, so nothing is moved afterwards.

/// Wire type 2: a length and that many bytes.
pub(crate) const LENGTH_DELIMITED: u8 = 2;
/// Wire type 0.
pub(crate) const VARINT: u8 = 0;
/// Wire type 1: eight bytes, little endian.
pub(crate) const FIXED64: u8 = 1;
/// Wire type 5: four bytes, little endian.
pub(crate) const FIXED32: u8 = 5;

/// The tag of a field below 16, which is all that OTLP has on our paths but one (handled by [`wide_tag`]).
pub(crate) const fn tag(field: u8, wire_type: u8) -> u8 {
    (field << 3) | wire_type
}

/// Bytes that `value` takes as a varint.
pub(crate) const fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[inline]
pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes that a length-delimited field with a one-byte tag takes.
pub(crate) const fn delimited_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

#[inline]
pub(crate) fn delimited(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    head(out, field, bytes.len());
    out.extend_from_slice(bytes);
}

/// The tag and length of a field whose `len` bytes the caller appends.
#[inline]
pub(crate) fn head(out: &mut Vec<u8>, field: u8, len: usize) {
    out.push(tag(field, LENGTH_DELIMITED));
    varint(out, len as u64);
}

pub(crate) fn fixed64(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(tag(field, FIXED64));
    out.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn uint(out: &mut Vec<u8>, field: u8, value: u64) {
    out.push(tag(field, VARINT));
    varint(out, value);
}

/// Field numbers 16 to 2047 take a tag of two bytes.
pub(crate) fn wide_tag(out: &mut Vec<u8>, field: u16, wire_type: u8) {
    varint(out, (u64::from(field) << 3) | u64::from(wire_type));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_is_as_long_as_said() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
        }
    }
}
