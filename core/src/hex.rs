//! Lower-case hexadecimal, the only spelling that W3C Trace Context and B3 allow. Never allocates.

/// The value of a lower-case hexadecimal digit, [`BAD`] for all other bytes. By arithmetic, so that the compiler can
/// do many at once.
const fn value(digit: u8) -> u8 {
    let (number, letter) = (digit.wrapping_sub(b'0'), digit.wrapping_sub(b'a'));
    if number < 10 {
        number
    } else if letter < 6 {
        letter + 10
    } else {
        BAD
    }
}

const BAD: u8 = 0xff;

const fn digit(nibble: u8) -> u8 {
    nibble + if nibble < 10 { b'0' } else { b'a' - 10 }
}

/// Reads exactly `2 * N` lower-case digits.
#[must_use]
pub fn decode<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_chunks::<2>();
    let pairs: &[[u8; 2]; N] = pairs.try_into().ok()?;
    if !rest.is_empty() {
        return None;
    }
    let values = pairs.map(|[high, low]| (value(high), value(low)));
    let wrong = values.iter().fold(0, |wrong, (high, low)| wrong | high | low);
    (wrong & 0xf0 == 0).then(|| values.map(|(high, low)| (high << 4) | low))
}

/// Writes `bytes` as digits into the front of `text`, as many as fit.
pub fn encode(bytes: &[u8], text: &mut [u8]) {
    let (pairs, _) = text.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
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
