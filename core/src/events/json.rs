//! JSON (RFC 8259) read where it lies: a scanner that checks every byte once, without recursion and without
//! allocating, and the edit of one object's members. Never builds a tree, never changes a byte outside the
//! members it is asked to change; text that is not valid JSON cannot be edited at all.

use std::borrow::Cow;

use super::splice::{Span, Splices};
use super::{
    BODY_BYTES_MAX, EDITS_MAX, Edit, MEMBERS_MAX, MEMBERS_TOTAL_MAX, NESTING_MAX, UNESCAPED_BYTES_MAX,
    Untouched, additions, deciding,
};

/// What a value is, told by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `{…}`
    Object,
    /// `[…]`
    Array,
    /// `"…"`
    Text,
    /// A number, `true` or `false`.
    Scalar,
    /// `null`
    Null,
}

/// One member of an object as it stands in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The key without its quotes, escapes as they are.
    pub key: Span,
    /// The value, quotes and brackets included.
    pub value: Span,
    /// What the value is.
    pub kind: Kind,
    /// The offset of the comma before the key; of the opening brace for the first member.
    pub separator: u32,
}

impl Member {
    /// Whether the unescaped key is `name`.
    #[must_use]
    pub fn is(&self, text: &str, name: &str) -> bool {
        is(self.key.text(text), name)
    }

    /// The unescaped value; `None` when it is not a string.
    #[must_use]
    pub fn string<'a>(&self, text: &'a str) -> Option<Cow<'a, str>> {
        unescape(quoted(self.value, self.kind)?.text(text))
    }
}

/// An object whose members stand in an [`Outline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// From the opening brace to after the closing one.
    pub span: Span,
    first: u32,
    count: u32,
}

/// The members of the objects that may be edited. Reusable: [`Outline::clear`] keeps the memory.
#[derive(Debug, Default)]
pub struct Outline {
    members: Vec<Member>,
}

impl Outline {
    /// Forgets all objects.
    pub fn clear(&mut self) {
        self.members.clear();
    }

    /// The members of `object` in the order of the text, duplicates included.
    #[must_use]
    pub fn members(&self, object: &Object) -> &[Member] {
        let first = object.first as usize;
        self.members.get(first..first + object.count as usize).unwrap_or_default()
    }
}

/// Reads a text front to back. It stands on the first byte of a value, or on what separates values; every
/// step either takes a whole piece or says why the text cannot be edited.
#[derive(Clone, Debug)]
pub struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Where the value ended that was taken or left last.
    value_end: usize,
}

/// An object or array that has been entered and not yet left.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    open: usize,
    separator: usize,
    started: bool,
}

impl<'a> Scanner<'a> {
    /// Stands on the text's one value.
    ///
    /// # Errors
    /// [`Untouched::TooLarge`], [`Untouched::NotUtf8`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, Untouched> {
        if bytes.len() > BODY_BYTES_MAX {
            return Err(Untouched::TooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Untouched::NotUtf8)?;
        let mut scanner = Self { text, bytes, at: 0, value_end: 0 };
        scanner.blank();
        Ok(scanner)
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The offset after the value that was taken or left last.
    #[must_use]
    pub fn value_end(&self) -> usize {
        self.value_end
    }

    /// What the value ahead is, if it is valid.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.ahead() {
            b'{' => Kind::Object,
            b'[' => Kind::Array,
            b'"' => Kind::Text,
            b'n' => Kind::Null,
            _ => Kind::Scalar,
        }
    }

    /// Goes into the object ahead.
    ///
    /// # Errors
    /// [`Untouched::Shape`] if another value is ahead, [`Untouched::NotJson`] if none is.
    pub fn enter_object(&mut self) -> Result<Level, Untouched> {
        self.enter(b'{')
    }

    /// Goes into the array ahead.
    ///
    /// # Errors
    /// [`Untouched::Shape`] if another value is ahead, [`Untouched::NotJson`] if none is.
    pub fn enter_array(&mut self) -> Result<Level, Untouched> {
        self.enter(b'[')
    }

    fn enter(&mut self, bracket: u8) -> Result<Level, Untouched> {
        match self.ahead() {
            byte if byte == bracket => {}
            b'{' | b'[' | b'"' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9' => return Err(Untouched::Shape),
            _ => return Err(Untouched::NotJson),
        }
        let open = self.at;
        self.step();
        Ok(Level { open, separator: open, started: false })
    }

    /// The next key of the object, without quotes; the scanner then stands on its value, which must be taken
    /// before the next call. `None`: the object has ended and has been left.
    ///
    /// # Errors
    /// [`Untouched::NotJson`].
    pub fn next_key(&mut self, level: &mut Level) -> Result<Option<Span>, Untouched> {
        if !self.next_item(level, b'}')? {
            return Ok(None);
        }
        self.key().map(Some)
    }

    /// Whether the array has a further element; the scanner then stands on it. `false`: the array has ended
    /// and has been left.
    ///
    /// # Errors
    /// [`Untouched::NotJson`].
    pub fn next_element(&mut self, level: &mut Level) -> Result<bool, Untouched> {
        self.next_item(level, b']')
    }

    fn next_item(&mut self, level: &mut Level, close: u8) -> Result<bool, Untouched> {
        match self.ahead() {
            byte if byte == close => {
                level.separator = self.at;
                self.value_end = self.at + 1;
                self.step();
                return Ok(false);
            }
            b',' if level.started => {
                level.separator = self.at;
                self.step();
            }
            _ if !level.started => {}
            _ => return Err(Untouched::NotJson),
        }
        level.started = true;
        Ok(true)
    }

    /// Takes the value ahead, whatever it holds, and gives its exact extent.
    ///
    /// # Errors
    /// [`Untouched::NotJson`], [`Untouched::TooDeep`].
    pub fn skip(&mut self) -> Result<Span, Untouched> {
        let start = self.at;
        let mut nesting = Nesting::default();
        loop {
            match self.ahead() {
                b'{' => {
                    self.step();
                    if self.ahead() != b'}' {
                        nesting.open(true)?;
                        self.key()?;
                        continue;
                    }
                    self.at += 1;
                }
                b'[' => {
                    self.step();
                    if self.ahead() != b']' {
                        nesting.open(false)?;
                        continue;
                    }
                    self.at += 1;
                }
                b'"' => self.string()?,
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                _ => self.number()?,
            }
            if self.close(&mut nesting)? {
                self.value_end = self.at;
                self.blank();
                return Ok(Span::new(start, self.value_end));
            }
        }
    }

    /// After a value: leaves all that ends here, and goes to the next value. `true` when nothing is open.
    #[inline]
    fn close(&mut self, nesting: &mut Nesting) -> Result<bool, Untouched> {
        while let Some(object) = nesting.innermost() {
            self.blank();
            match (self.ahead(), object) {
                (b',', true) => {
                    self.step();
                    self.key()?;
                    return Ok(false);
                }
                (b',', false) => {
                    self.step();
                    return Ok(false);
                }
                (b'}', true) | (b']', false) => {
                    self.at += 1;
                    nesting.close();
                }
                _ => return Err(Untouched::NotJson),
            }
        }
        Ok(true)
    }

    /// Nothing but white space may follow.
    ///
    /// # Errors
    /// [`Untouched::NotJson`] if more does.
    pub fn finish(&self) -> Result<(), Untouched> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(Untouched::NotJson) }
    }

    /// Takes the object ahead and writes down its members.
    ///
    /// # Errors
    /// [`Untouched::Shape`] if it is no object; [`Untouched::TooMany`] members; [`Untouched::NotJson`];
    /// [`Untouched::TooDeep`].
    pub fn object(&mut self, outline: &mut Outline) -> Result<Object, Untouched> {
        let mut level = self.enter_object()?;
        let first = outline.members.len();
        while let Some(key) = self.next_key(&mut level)? {
            if outline.members.len() - first >= MEMBERS_MAX || outline.members.len() >= MEMBERS_TOTAL_MAX {
                return Err(Untouched::TooMany);
            }
            let kind = self.kind();
            let value = self.skip()?;
            outline.members.push(Member { key, value, kind, separator: level.separator as u32 });
        }
        let count = (outline.members.len() - first) as u32;
        Ok(Object { span: level.span(), first: first as u32, count })
    }

    /// The byte ahead; 0 at the end, which no valid text has outside of strings.
    #[inline]
    fn ahead(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    /// Takes one byte and the white space after it.
    #[inline]
    fn step(&mut self) {
        self.at += 1;
        self.blank();
    }

    #[inline]
    fn blank(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes a key and its colon.
    #[inline]
    fn key(&mut self) -> Result<Span, Untouched> {
        let start = self.at + 1;
        self.string()?;
        let end = self.at - 1;
        self.blank();
        if self.ahead() != b':' {
            return Err(Untouched::NotJson);
        }
        self.step();
        Ok(Span::new(start, end))
    }

    /// Takes a string and both its quotes (RFC 8259 §7).
    #[inline]
    fn string(&mut self) -> Result<(), Untouched> {
        if self.ahead() != b'"' {
            return Err(Untouched::NotJson);
        }
        self.at += 1;
        loop {
            self.at += plain(self.bytes.get(self.at..).unwrap_or_default());
            match self.ahead() {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => self.escape()?,
                _ => return Err(Untouched::NotJson),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Untouched> {
        let bytes = match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') if self.text.get(self.at + 2..self.at + 6).is_some_and(|hex| unit(hex).is_some()) => 6,
            _ => return Err(Untouched::NotJson),
        };
        self.at += bytes;
        Ok(())
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Untouched> {
        if !self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return Err(Untouched::NotJson);
        }
        self.at += word.len();
        Ok(())
    }

    /// Takes a number (RFC 8259 §6).
    #[inline]
    fn number(&mut self) -> Result<(), Untouched> {
        if self.ahead() == b'-' {
            self.at += 1;
        }
        if self.ahead() == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.ahead() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.ahead(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.ahead(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    #[inline]
    fn digits(&mut self) -> Result<(), Untouched> {
        let start = self.at;
        while self.ahead().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start { Err(Untouched::NotJson) } else { Ok(()) }
    }
}

impl Level {
    /// From the opening bracket to after the closing one, once the level has been left.
    #[must_use]
    pub fn span(&self) -> Span {
        Span::new(self.open, self.separator + 1)
    }
}

/// What is open around a value: a bit each, set for an object, the innermost lowest.
#[derive(Default)]
struct Nesting {
    objects: u128,
    depth: u32,
}

impl Nesting {
    #[inline]
    fn open(&mut self, object: bool) -> Result<(), Untouched> {
        if self.depth >= NESTING_MAX {
            return Err(Untouched::TooDeep);
        }
        self.depth += 1;
        self.objects = (self.objects << 1) | u128::from(object);
        Ok(())
    }

    #[inline]
    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.objects >>= 1;
    }

    /// Whether the innermost is an object.
    #[inline]
    fn innermost(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.objects & 1 == 1)
    }
}

/// A byte that a string cannot hold as it is: quote, backslash, control character.
#[inline]
fn ends_plain(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// How many bytes pass before one that [`ends_plain`]. Eight at a time for short texts, and in blocks that
/// the compiler turns into vector code for long ones.
#[inline]
fn plain(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let Some(word) = rest.first_chunk::<8>() else {
            return at + rest.iter().position(|byte| ends_plain(*byte)).unwrap_or(rest.len());
        };
        let ends = ends_of_word(u64::from_le_bytes(*word));
        if ends != 0 {
            return at + (ends.trailing_zeros() / 8) as usize;
        }
        at += 8;
        if at == 32 {
            at += plain_blocks(bytes.get(at..).unwrap_or_default());
        }
    }
}

const BLOCK: usize = 64;

/// Bytes of the whole blocks without an end at the front.
fn plain_blocks(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<BLOCK>();
    let ends = |block: &[u8; BLOCK]| block.iter().fold(false, |ends, byte| ends | ends_plain(*byte));
    BLOCK * blocks.iter().position(ends).unwrap_or(blocks.len())
}

/// The high bit of every byte that [`ends_plain`]; bits above the lowest such byte may be wrong, the lowest
/// is exact.
#[inline]
fn ends_of_word(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let less = |word: u64, bound: u8| word.wrapping_sub(ONES * u64::from(bound)) & !word;
    let equal = |byte: u8| less(word ^ (ONES * u64::from(byte)), 1);
    (less(word, 0x20) | equal(b'"') | equal(b'\\')) & HIGHS
}

/// The inside of a string value.
pub(super) fn quoted(value: Span, kind: Kind) -> Option<Span> {
    match kind {
        Kind::Text => Some(Span::new(value.start() + 1, value.end().saturating_sub(1))),
        Kind::Object | Kind::Array | Kind::Scalar | Kind::Null => None,
    }
}

/// The four hexadecimal digits of a `\u` escape.
fn unit(hex: &str) -> Option<u32> {
    let digit = |value: u32, c: char| Some(value << 4 | c.to_digit(16)?);
    hex.chars().try_fold(0, digit)
}

/// Whether the inside of a string, unescaped, is `name`.
#[must_use]
pub fn is(raw: &str, name: &str) -> bool {
    // An escape spells one character in at most six bytes.
    raw == name
        || (raw.len() <= 6 * name.len()
            && raw.contains('\\')
            && unescape(raw).is_some_and(|text| text == name))
}

/// The text that the inside of a string stands for. `None` if an escape is not a character (half a surrogate
/// pair), or if there are escapes and more than [`UNESCAPED_BYTES_MAX`] bytes.
#[must_use]
pub fn unescape(raw: &str) -> Option<Cow<'_, str>> {
    if !raw.contains('\\') {
        return Some(Cow::Borrowed(raw));
    }
    if raw.len() > UNESCAPED_BYTES_MAX {
        return None;
    }
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once('\\') {
        text.push_str(before);
        let (c, bytes) = escaped(after)?;
        text.push(c);
        rest = after.get(bytes..)?;
    }
    text.push_str(rest);
    Some(Cow::Owned(text))
}

/// The character after a backslash, and how many bytes spell it.
fn escaped(after: &str) -> Option<(char, usize)> {
    let c = match after.bytes().next()? {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let high = unit(after.get(1..5)?)?;
            if !(0xd800..0xdc00).contains(&high) {
                return Some((char::from_u32(high)?, 5));
            }
            let low = after.get(5..11)?.strip_prefix("\\u").and_then(unit)?;
            let low = low.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
            return Some((char::from_u32(0x10000 + ((high - 0xd800) << 10) + low)?, 11));
        }
        byte @ (b'"' | b'\\' | b'/') => char::from(byte),
        _ => return None,
    };
    Some((c, 1))
}

/// Appends `text` as a string with its quotes. Escapes only what RFC 8259 §7 demands.
pub fn write_string(text: &str, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', byte]),
            0..0x20 => {
                let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or(b'0');
                out.extend([b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// Appends `"name":"value"`.
pub(super) fn write_member(name: &str, value: &str, out: &mut Vec<u8>) {
    write_string(name, out);
    out.push(b':');
    write_string(value, out);
}

/// Changes the members of one object. A name that occurs several times is changed everywhere, so that it
/// does not matter which one a reader takes. What is not there yet goes after the last member, without
/// white space; a member that is removed takes the comma before it along, or the one after it when no
/// member is left before.
///
/// # Errors
/// [`Untouched::TooMany`] edits.
pub(super) fn edit_object(
    text: &str,
    object: &Object,
    members: &[Member],
    edits: &[Edit<'_>],
    splices: &mut Splices,
) -> Result<(), Untouched> {
    if edits.len() > EDITS_MAX {
        return Err(Untouched::TooMany);
    }
    let mut stay = 0_usize;
    let nexts = members.iter().skip(1).map(Some).chain([None]);
    for (member, next) in members.iter().zip(nexts) {
        let edit = deciding(edits, |name| member.is(text, name));
        match edit.map(|edit| edit.value) {
            Some(None) if stay > 0 => {
                splices.cut(Span::new(member.separator as usize, member.value.end()));
            }
            Some(None) => {
                let end = next.map_or(member.value.end(), |next| next.key.start() - 1);
                splices.cut(Span::new(member.key.start() - 1, end));
            }
            Some(Some(value)) => {
                stay += 1;
                if member.string(text).is_none_or(|old| old != value) {
                    splices.replace(member.value, |out| write_string(value, out));
                }
            }
            None => stay += 1,
        }
    }
    let mut new = additions(edits, |name| members.iter().any(|member| member.is(text, name))).peekable();
    if new.peek().is_some() {
        let end = members.last().map_or(object.span.start() + 1, |last| last.value.end());
        splices.replace(Span::new(end, end), |out| {
            for (i, (name, value)) in new.enumerate() {
                if stay + i > 0 {
                    out.push(b',');
                }
                write_member(name, value, out);
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::judge::{Json, Seed};
    use super::*;

    fn object(bytes: &[u8]) -> Result<(Outline, Object), Untouched> {
        let mut scanner = Scanner::new(bytes)?;
        let mut outline = Outline::default();
        let object = scanner.object(&mut outline)?;
        scanner.finish()?;
        Ok((outline, object))
    }

    fn valid(bytes: &[u8]) -> Result<(), Untouched> {
        let mut scanner = Scanner::new(bytes)?;
        scanner.skip()?;
        scanner.finish()
    }

    fn edited(bytes: &[u8], edits: &[Edit<'_>]) -> Result<Vec<u8>, Untouched> {
        let (outline, object) = object(bytes)?;
        let mut splices = Splices::new();
        splices.claim(bytes.len(), object.span)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Untouched::NotUtf8)?;
        edit_object(text, &object, outline.members(&object), edits, &mut splices)?;
        let mut out = Vec::new();
        splices.apply(bytes, &mut out)?;
        assert_eq!(out.capacity(), out.len(), "one exact allocation");
        Ok(out)
    }

    #[test]
    fn what_is_no_json_is_told_as_a_naive_parser_tells_it() {
        for text in [
            "",
            " ",
            "{",
            "}",
            "[",
            "{]",
            "[}",
            "{,}",
            "[,]",
            "[1,]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "[1 2]",
            "01",
            "-",
            "1.",
            ".5",
            "+1",
            "1e",
            "1e+",
            "tru",
            "truee",
            "nul",
            "\"",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12g4\"",
            "\"\\u+123\"",
            "\"\u{1}\"",
            "\"\\ué12\"",
            "1 1",
            "{}{}",
            "\u{feff}{}",
            "[]]",
            "'a'",
            "NaN",
            "{\"a\":1 \"b\":2}",
            "\0",
            "[\0]",
            "{}\0",
            "/**/{}",
            "\u{a0}{}",
            "[1]",
            " {} ",
            "\"\\ud800\"",
            "-0.0E-00",
            "[[[]]]",
            "{\"\":{\"\":[{}]}}",
            "\"\u{7f}\"",
            "\"012345678901234567890123456789\t\"",
        ] {
            assert_eq!(valid(text.as_bytes()).is_ok(), Json::parse(text.as_bytes()).is_some(), "{text}");
        }
        assert_eq!(valid(b"\"\xff\""), Err(Untouched::NotUtf8));
        assert_eq!(valid(b"{\"a\":\"\xed\xa0\x80\"}"), Err(Untouched::NotUtf8));
    }

    #[test]
    fn generated_and_damaged_texts_are_judged_alike() {
        let mut seed = Seed(1);
        let mut refused = 0;
        for round in 0..20_000 {
            let mut text = String::new();
            seed.value(4, &mut text);
            let mut bytes = text.into_bytes();
            if round % 4 > 0 {
                seed.damage(&mut bytes);
            }
            let judged = Json::parse(&bytes).is_some();
            refused += u32::from(!judged);
            assert_eq!(valid(&bytes).is_ok(), judged, "{}", bytes.escape_ascii());
        }
        assert!((5_000..15_000).contains(&refused), "{refused} of 20000 refused: the damage is no test");
    }

    #[test]
    fn an_edit_changes_the_named_members_alone() {
        let mut seed = Seed(2);
        for _ in 0..20_000 {
            let mut text = String::new();
            seed.object(3, &mut text);
            let edits = seed.edits(&["traceparent", "tracestate", "id", "new", "q\"\\"]);
            let list: Vec<_> = edits.iter().map(|(name, value)| Edit { name, value: *value }).collect();
            let out = edited(text.as_bytes(), &list).unwrap();
            let mut model = Json::parse(text.as_bytes()).unwrap();
            model.edit(&edits);
            let Some(judged) = Json::parse(&out) else { panic!("{text} {edits:?} {}", out.escape_ascii()) };
            assert_eq!(judged, model, "{text} {edits:?} {}", out.escape_ascii());
            if list.is_empty() {
                assert_eq!(out, text.as_bytes());
            }
        }
    }

    #[test]
    fn bytes_outside_of_a_replaced_value_stay() {
        let mut seed = Seed(3);
        let new = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        for _ in 0..5_000 {
            let (mut before, mut after) = (String::new(), String::new());
            seed.value(3, &mut before);
            seed.value(3, &mut after);
            let (before, after) =
                (format!("\n{{ \"x\" :{before} ,\"traceparent\": "), format!("\t, \"y\":{after} }} "));
            let mut old = String::new();
            seed.value(2, &mut old);
            let out =
                edited(format!("{before}{old}{after}").as_bytes(), &[Edit::set("traceparent", new)]).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), format!("{before}\"{new}\"{after}"));
        }
    }

    #[test]
    fn nesting_is_bounded_and_costs_no_stack() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(valid(nested(NESTING_MAX as usize).as_bytes()), Ok(()));
        assert_eq!(valid(nested(NESTING_MAX as usize + 2).as_bytes()), Err(Untouched::TooDeep));
        let mixed = "{\"a\":[".repeat(64) + &"]}".repeat(64);
        assert_eq!(valid(mixed.as_bytes()), Ok(()));
        assert_eq!(valid(mixed.replacen("]}", "}]", 1).as_bytes()), Err(Untouched::NotJson));
    }

    #[test]
    fn hostile_texts_end_soon() {
        let megabytes_10 = 10 * 1024 * 1024;
        let started = std::time::Instant::now();
        for piece in
            ["{", "[", "{\"a\":", "\"", "\\", "\"\\", " ", "9", "[]", "{},", "\"a\":0,", "\u{1}", "\"\\u0041"]
        {
            let text = piece.repeat(megabytes_10 / piece.len());
            assert!(valid(text.as_bytes()).is_err() || piece == "9", "{piece}");
            let inside = format!("{{\"data\":\"{text}");
            assert!(object(inside.as_bytes()).is_err(), "{piece}");
        }
        let many = format!("{{{}\"z\":0}}", "\"a\":0,".repeat(300));
        assert_eq!(object(many.as_bytes()).err(), Some(Untouched::TooMany));
        assert_eq!(valid(&vec![b' '; BODY_BYTES_MAX + 1]), Err(Untouched::TooLarge));
        // Unoptimized; a release build takes a twentieth.
        assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    }

    #[test]
    fn texts_are_read_through_their_escapes() {
        for (raw, text) in [
            ("plain é", Some("plain é")),
            (r#"\"\\\/\b\f\n\r\t"#, Some("\"\\/\u{8}\u{c}\n\r\t")),
            (r"\u0041\u00e9\u20AC", Some("Aé€")),
            (r"\ud83d\ude00!", Some("😀!")),
            (r"\ud83d", None),
            (r"\ud83dx", None),
            (r"\ud83d\u0041", None),
            (r"\ude00", None),
        ] {
            assert_eq!(unescape(raw).as_deref(), text, "{raw}");
        }
        assert_eq!(unescape(&"\\n".repeat(UNESCAPED_BYTES_MAX)), None);
        assert!(is(r"\u0074raceparent", "traceparent") && !is("Traceparent", "traceparent"));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let all: String = (0..0x300).filter_map(char::from_u32).chain("😀\u{2028}".chars()).collect();
        let mut out = Vec::new();
        write_string(&all, &mut out);
        assert_eq!(Json::parse(&out), Some(super::super::judge::text(&all)));
    }
}
