//! `KeyValue`s: appended to a buffer as the field of the message that they belong to. Text is always valid
//! UTF-8 and within [`limits::ATTRIBUTE_VALUE_BYTES_MAX`]; what is not, is mended or cut here.

use super::wire::{LENGTH_DELIMITED, VARINT, delimited, delimited_len, head, tag, varint, varint_len};
use crate::limits;

/// A list of encoded attributes: the field `N` of a span, a link, a resource or a data point.
#[derive(Debug)]
pub struct Attributes<'a> {
    out: &'a mut Vec<u8>,
    field: u8,
    text_bytes_max: usize,
}

const KEY: u8 = 1;
const VALUE: u8 = 2;
const STRING: u8 = 1;
const BOOL: u8 = 2;
const INT: u8 = 3;
const ARRAY: u8 = 5;
/// Bytes of key and text whose attribute as a whole has a length of one byte: with the tags and lengths in it, 127.
const SHORT_BYTES_MAX: usize = 127 - 6;

impl<'a> Attributes<'a> {
    /// Attributes of a span (`Span.attributes`).
    pub fn of_span(out: &'a mut Vec<u8>) -> Self {
        Self { out, field: 9, text_bytes_max: limits::ATTRIBUTE_VALUE_BYTES_MAX }
    }

    /// The same, with texts cut at fewer bytes.
    #[must_use]
    pub fn within(mut self, text_bytes_max: Option<usize>) -> Self {
        self.text_bytes_max = text_bytes_max.unwrap_or(usize::MAX).min(self.text_bytes_max);
        self
    }

    /// Attributes of a resource (`Resource.attributes`).
    pub fn of_resource(out: &'a mut Vec<u8>) -> Self {
        Self { out, field: 1, text_bytes_max: limits::ATTRIBUTE_VALUE_BYTES_MAX }
    }

    /// Attributes of a data point, whose field they are by another number in each kind of point.
    pub(crate) fn of_point(out: &'a mut Vec<u8>, field: u8) -> Self {
        Self { out, field, text_bytes_max: limits::ATTRIBUTE_VALUE_BYTES_MAX }
    }

    /// A text attribute. Bytes that are no UTF-8 become U+FFFD.
    // Where the key is a constant, nothing is left of its part but a few stores; a module for Envoy is to be small.
    #[cfg_attr(not(target_arch = "wasm32"), inline(always))]
    pub fn text(&mut self, key: &str, value: &[u8]) {
        if key.len() + value.len() > SHORT_BYTES_MAX || value.len() > self.text_bytes_max || !value.is_ascii()
        {
            return self.text_parts(key, &[value]);
        }
        // Most attributes are so short that all of their lengths take one byte each.
        let (name, text) = (key.len() as u8, value.len() as u8);
        let pair = [tag(self.field, LENGTH_DELIMITED), name + text + 6, tag(KEY, LENGTH_DELIMITED), name];
        let content = [tag(VALUE, LENGTH_DELIMITED), text + 2, tag(STRING, LENGTH_DELIMITED), text];
        self.out.reserve(SHORT_BYTES_MAX + 8);
        self.out.extend_from_slice(&pair);
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(&content);
        self.out.extend_from_slice(value);
    }

    /// A text attribute joined of parts, so that a caller need not join them first.
    pub fn text_parts(&mut self, key: &str, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if len > self.text_bytes_max || parts.iter().any(|part| !part.is_ascii()) {
            let mended = mend(&parts.concat(), self.text_bytes_max);
            return self.valid_text(key, &[mended.as_bytes()], mended.len());
        }
        self.valid_text(key, parts, len);
    }

    fn valid_text(&mut self, key: &str, parts: &[&[u8]], len: usize) {
        self.key_value(key, delimited_len(len));
        head(self.out, STRING, len);
        for part in parts {
            self.out.extend_from_slice(part);
        }
    }

    /// An integer attribute.
    pub fn int(&mut self, key: &str, value: u64) {
        self.key_value(key, 1 + varint_len(value));
        self.out.push(tag(INT, VARINT));
        varint(self.out, value);
    }

    /// A boolean attribute.
    pub fn flag(&mut self, key: &str, value: bool) {
        self.key_value(key, 2);
        self.out.push(tag(BOOL, VARINT));
        self.out.push(u8::from(value));
    }

    /// An array of texts, the form of captured headers. `prefix` and `name` make the key.
    pub fn texts(&mut self, prefix: &str, name: &str, values: &[&[u8]]) {
        let mended: Vec<String> = values.iter().map(|value| mend(value, self.text_bytes_max)).collect();
        let array: usize = mended.iter().map(|text| delimited_len(delimited_len(text.len()))).sum();
        let key = [prefix, name].concat();
        self.key_value(&key, delimited_len(array));
        head(self.out, ARRAY, array);
        for text in &mended {
            head(self.out, 1, delimited_len(text.len()));
            delimited(self.out, STRING, text.as_bytes());
        }
    }

    /// Everything before the `AnyValue`'s own bytes, of which there are `value`.
    fn key_value(&mut self, key: &str, value: usize) {
        self.out.push(tag(self.field, LENGTH_DELIMITED));
        varint(self.out, (delimited_len(key.len()) + delimited_len(value)) as u64);
        delimited(self.out, KEY, key.as_bytes());
        head(self.out, VALUE, value);
    }
}

/// Valid UTF-8 within the limit, cut at a character's border.
fn mend(value: &[u8], bytes_max: usize) -> String {
    let cut = value.get(..bytes_max).unwrap_or(value);
    let mut text = String::from_utf8_lossy(cut).into_owned();
    if cut.len() < value.len() {
        // The cut may have split a character: its remains show as one U+FFFD at the end.
        while text.ends_with('\u{fffd}') {
            text.pop();
        }
    }
    while text.len() > bytes_max {
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_attribute_is_the_bytes_that_a_long_one_would_be() {
        for key in 1..=127 {
            for len in [0, 1, 60, 120 - key.min(120), 121 - key.min(121), 122 - key.min(122), 127, 200] {
                let (key, text) = ("k".repeat(key), "v".repeat(len));
                let (mut short, mut long) = (Vec::new(), Vec::new());
                Attributes::of_span(&mut short).text(&key, text.as_bytes());
                Attributes::of_span(&mut long).text_parts(&key, &[text.as_bytes()]);
                assert_eq!(short, long, "{} {len}", key.len());
            }
        }
    }

    #[test]
    fn what_is_no_text_is_mended_and_what_is_too_long_is_cut_at_a_character() {
        assert_eq!(mend(b"a\xffb", 100), "a\u{fffd}b");
        let long = "\u{20ac}".repeat(100);
        let cut = mend(long.as_bytes(), 100);
        assert_eq!((cut.len(), cut.chars().all(|c| c == '\u{20ac}')), (99, true));
    }
}
