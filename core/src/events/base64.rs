//! Base64 (RFC 4648 §4 and §5) of message data: reads both alphabets, padded or not, and writes the one it
//! read. Never guesses: a foreign character, mixed alphabets or a lone digit make the whole text unreadable.

use super::Untouched;

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const BAD: u8 = 0x80;
/// Marks the digits that only one alphabet has.
const ONLY_STANDARD: u8 = 1;
const ONLY_URL_SAFE: u8 = 2;

/// The value of each digit of either alphabet.
const VALUES: [u8; 256] = {
    let mut table = [BAD; 256];
    let mut i = 0;
    #[expect(clippy::indexing_slicing, reason = "evaluated at compile time: a bad index does not build")]
    while i < 64 {
        table[STANDARD[i] as usize] = i as u8;
        table[URL_SAFE[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// How a text was spelled, so that what replaces it is spelled the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spelling {
    /// `-_` in the place of `+/`.
    url_safe: bool,
    /// No `=` at the end though the length asks for it.
    unpadded: bool,
    /// JSON's optional escape of the slash, `\/`.
    escaped_slash: bool,
}

impl Spelling {
    /// The same digits inside a JSON string whose writer escapes slashes.
    pub(super) fn with_escaped_slash(self, escaped_slash: bool) -> Self {
        Self { escaped_slash, ..self }
    }

    /// Whether the text's places are not those of its digits.
    pub(super) fn escaped_slash(self) -> bool {
        self.escaped_slash
    }
}

/// Appends what `digits` stand for.
pub(super) fn decode(digits: &[u8], out: &mut Vec<u8>) -> Result<Spelling, Untouched> {
    let unpadded = digits.strip_suffix(b"==").or_else(|| digits.strip_suffix(b"=")).unwrap_or(digits);
    let padding = digits.len() - unpadded.len();
    let (quads, rest) = unpadded.as_chunks::<4>();
    if rest.len() == 1 || (padding > 0 && rest.len() + padding != 4) {
        return Err(Untouched::NotBase64);
    }
    out.reserve(quads.len() * 3 + 2);
    let mut bad = 0;
    for quad in quads {
        let [a, b, c, d] = quad.map(value);
        bad |= a | b | c | d;
        let bits = u32::from(a) << 18 | u32::from(b) << 12 | u32::from(c) << 6 | u32::from(d);
        let [_, x, y, z] = bits.to_be_bytes();
        out.extend_from_slice(&[x, y, z]);
    }
    if let [a, b, c @ ..] = rest {
        let (a, b, c) = (value(*a), value(*b), c.first().map(|c| value(*c)));
        bad |= a | b | c.unwrap_or(0);
        out.push(a << 2 | b >> 4);
        out.extend(c.map(|c| b << 4 | c >> 2));
    }
    let alphabets = alphabets(unpadded);
    if bad & BAD != 0 || alphabets == ONLY_STANDARD | ONLY_URL_SAFE {
        return Err(Untouched::NotBase64);
    }
    Ok(Spelling {
        url_safe: alphabets == ONLY_URL_SAFE,
        unpadded: !rest.is_empty() && padding == 0,
        escaped_slash: false,
    })
}

#[inline]
fn value(digit: u8) -> u8 {
    VALUES.get(usize::from(digit)).copied().unwrap_or(BAD)
}

fn alphabets(digits: &[u8]) -> u8 {
    digits.iter().fold(0, |seen, digit| {
        seen | u8::from(matches!(digit, b'+' | b'/')) | u8::from(matches!(digit, b'-' | b'_')) << 1
    })
}

/// Appends `bytes` in this spelling.
pub(super) fn encode(bytes: &[u8], spelling: Spelling, out: &mut Vec<u8>) {
    let alphabet = if spelling.url_safe { URL_SAFE } else { STANDARD };
    let digit = |value: u32| alphabet.get((value & 63) as usize).copied().unwrap_or(b'A');
    let digits = |bits: u32| [digit(bits >> 18), digit(bits >> 12), digit(bits >> 6), digit(bits)];
    let start = out.len();
    out.reserve(bytes.len().div_ceil(3) * 4);
    let (triples, rest) = bytes.as_chunks::<3>();
    for [x, y, z] in triples {
        out.extend_from_slice(&digits(u32::from_be_bytes([0, *x, *y, *z])));
    }
    if let [x, y @ ..] = rest {
        let y = y.first().copied();
        let [a, b, c, _] = digits(u32::from_be_bytes([0, *x, y.unwrap_or(0), 0]));
        out.extend([a, b]);
        out.extend(y.map(|_| c));
        if !spelling.unpadded {
            out.extend_from_slice(if y.is_some() { b"=" } else { b"==" });
        }
    }
    if spelling.escaped_slash {
        escape_slashes(out, start);
    }
}

/// Puts a backslash before each slash from `start` on, moving every byte once.
fn escape_slashes(out: &mut Vec<u8>, start: usize) {
    let slashes = out.iter().skip(start).filter(|byte| **byte == b'/').count();
    let mut from = out.len();
    out.resize(from + slashes, 0);
    let mut to = out.len();
    while from < to && from > start {
        from -= 1;
        to -= 1;
        out.copy_within(from..=from, to);
        if out.get(to) == Some(&b'/') {
            to -= 1;
            out.iter_mut().skip(to).take(1).for_each(|byte| *byte = b'\\');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(digits: &str, bytes: &[u8], url_safe: bool, unpadded: bool) {
        let mut out = Vec::new();
        let spelling = decode(digits.as_bytes(), &mut out).unwrap();
        assert_eq!(out.escape_ascii().to_string(), bytes.escape_ascii().to_string());
        assert_eq!(spelling, Spelling { url_safe, unpadded, escaped_slash: false });
        let mut again = Vec::new();
        encode(&out, spelling, &mut again);
        assert_eq!(again.escape_ascii().to_string(), digits);
    }

    #[test]
    fn each_spelling_is_written_as_it_was_read() {
        reads("", b"", false, false);
        reads("Zg==", b"f", false, false);
        reads("Zm8=", b"fo", false, false);
        reads("Zm9v", b"foo", false, false);
        reads("Zm9vYg", b"foob", false, true);
        reads("Zm9vYmE", b"fooba", false, true);
        reads("+/+/", &[0xfb, 0xff, 0xbf], false, false);
        reads("-_-_", &[0xfb, 0xff, 0xbf], true, false);
        reads("-_-_-w", &[0xfb, 0xff, 0xbf, 0xfb], true, true);
        reads("-_-_-w==", &[0xfb, 0xff, 0xbf, 0xfb], true, false);
    }

    #[test]
    fn slashes_are_escaped_where_they_were() {
        let mut out = b"/".to_vec();
        encode(&[0xff; 7], Spelling { escaped_slash: true, ..Spelling::default() }, &mut out);
        assert_eq!(out.escape_ascii().to_string(), r"/\/\/\/\/\/\/\/\/\/w==".replace('\\', r"\\"));
    }

    #[test]
    fn broken_texts_are_refused() {
        for bad in ["A", "A===", "AA=", "AAA==", "AAAA=", "AA A", "AA\n==", "A+-A", "=", "====", "AA=A", "é"]
        {
            assert_eq!(decode(bad.as_bytes(), &mut Vec::new()), Err(Untouched::NotBase64), "{bad}");
        }
    }
}
