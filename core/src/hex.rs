//! Lower-case hexadecimal, the only spelling that W3C Trace Context and B3 allow. Never allocates.

const DIGITS: &[u8; 16] = b"0123456789abcdef";
const BAD: u8 = 0xff;

/// The value of each byte as a lower-case hexadecimal digit, `BAD` for all others.
const VALUES: [u8; 256] = {
    let mut table = [BAD; 256];
    let mut i = 0;
    #[expect(clippy::indexing_slicing, reason = "evaluated at compile time: a bad index does not build")]
    while i < 16 {
        table[DIGITS[i] as usize] = i as u8;
        i += 1;
    }
    table
};

fn value(digit: u8) -> u8 {
    VALUES.get(usize::from(digit)).copied().unwrap_or(BAD)
}

/// Reads exactly `2 * N` lower-case digits.
#[must_use]
pub fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut wrong = 0;
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let (high, low) = (value(*high), value(*low));
        wrong |= high | low;
        *byte = (high << 4) | (low & 0x0f);
    }
    (wrong & 0xf0 == 0).then_some(bytes)
}

/// Writes `bytes` as digits into the front of `text`, as many as fit.
pub fn encode(bytes: &[u8], text: &mut [u8]) {
    let (pairs, _) = text.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
        *pair = [digit(byte >> 4), digit(byte & 0x0f)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_digits_of_the_exact_length_are_read() {
        assert_eq!(decode::<2>(b"0aff"), Some([0x0a, 0xff]));
        for bad in [&b"0AFF"[..], b"0af", b"0aff0", b"0agf", b"+1ff", b"", b"0a f", b"\xff\xff\xff\xff"] {
            assert_eq!(decode::<2>(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut text = [0; 8];
        encode(&[0xde, 0xad, 0x00, 0x01], &mut text);
        assert_eq!(&text, b"dead0001");
        assert_eq!(decode::<4>(&text), Some([0xde, 0xad, 0x00, 0x01]));
    }
}
