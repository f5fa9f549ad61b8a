//! A reader of JSON and base64 that shares nothing with the code under test: slow, strict, panics on a mistake.

use std::collections::BTreeMap;

/// Leaves of a document by path (`messages.0.attributes.k`), as they are written; a text without its quotes.
pub(crate) type Leaves = BTreeMap<String, String>;

struct Reader<'a> {
    rest: &'a str,
    leaves: Leaves,
}

/// Reads a document. A member that is there twice is a mistake.
pub(crate) fn leaves(text: &str) -> Leaves {
    let mut reader = Reader { rest: text, leaves: Leaves::new() };
    reader.value("");
    assert_eq!(reader.rest.trim(), "", "after the document: {text}");
    reader.leaves
}

/// What differs: path, before, after; `-` where there is nothing.
pub(crate) fn changes(before: &str, after: &str) -> Vec<[String; 3]> {
    let (before, after) = (leaves(before), leaves(after));
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort();
    paths.dedup();
    let of = |leaves: &Leaves, path: &String| leaves.get(path).map_or("-".to_owned(), Clone::clone);
    let row = |path: &String| [path.clone(), of(&before, path), of(&after, path)];
    paths.into_iter().map(row).filter(|[_, before, after]| before != after).collect()
}

impl Reader<'_> {
    fn value(&mut self, path: &str) {
        self.rest = self.rest.trim_start();
        match self.rest.as_bytes()[0] {
            b'{' => self.list(path, '}', true),
            b'[' => self.list(path, ']', false),
            b'"' => {
                let text = self.text();
                self.leaf(path, text);
            }
            _ => {
                let end = self.rest.find([',', '}', ']', ' ', '\n']).unwrap_or(self.rest.len());
                let (bare, rest) = self.rest.split_at(end);
                let known = matches!(bare, "null" | "true" | "false") || bare.parse::<f64>().is_ok();
                assert!(known, "{bare} at {path}");
                self.rest = rest;
                self.leaf(path, bare.to_owned());
            }
        }
    }

    fn leaf(&mut self, path: &str, value: String) {
        assert!(self.leaves.insert(path.to_owned(), value).is_none(), "{path} twice");
    }

    fn take(&mut self, expected: char) -> bool {
        self.rest = self.rest.trim_start();
        let after = self.rest.strip_prefix(expected);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn list(&mut self, path: &str, end: char, keyed: bool) {
        self.rest = &self.rest[1..];
        let mut number = 0;
        while !self.take(end) {
            assert!(number == 0 || self.take(','), "a comma at {path}.{number}: {}", self.rest);
            let name = if keyed { self.key() } else { number.to_string() };
            let within = if path.is_empty() { name } else { format!("{path}.{name}") };
            self.value(&within);
            number += 1;
        }
    }

    fn key(&mut self) -> String {
        self.rest = self.rest.trim_start();
        let key = self.text();
        assert!(self.take(':'), "a colon after {key}");
        key
    }

    fn text(&mut self) -> String {
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        assert_eq!(chars.next(), Some((0, '"')), "{}", self.rest);
        while let Some((at, char)) = chars.next() {
            match char {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return text;
                }
                '\\' => match chars.next().unwrap().1 {
                    'n' => text.push('\n'),
                    plain @ ('"' | '\\' | '/') => text.push(plain),
                    other => panic!("an escape that no test writes: {other}"),
                },
                plain => text.push(plain),
            }
        }
        panic!("a text without end: {}", self.rest)
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(crate) fn encode64(text: &str) -> String {
    let mut out = String::new();
    for three in text.as_bytes().chunks(3) {
        let bits =
            three.iter().chain([0, 0].iter()).take(3).fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        for place in 0..4 {
            let digit = DIGITS[bits >> (18 - 6 * place) & 63] as char;
            out.push(if place > three.len() { '=' } else { digit });
        }
    }
    out
}

pub(crate) fn decode64(text: &str) -> String {
    assert_eq!(text.len() % 4, 0, "{text}");
    let mut out = Vec::new();
    for four in text.as_bytes().chunks(4) {
        let digits: Vec<usize> = four
            .iter()
            .filter(|digit| **digit != b'=')
            .map(|digit| DIGITS.iter().position(|known| known == digit).unwrap())
            .collect();
        let bits = digits.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - digits.len()));
        out.extend((0..digits.len() - 1).map(|place| (bits >> (16 - 8 * place)) as u8));
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn the_judge_reads_what_it_should() {
    let changed = changes(r#"{"a" : [1, "x\"" , {"b":null}]}"#, r#"{"a":[1,"x\"",{"b":true}],"c":"d"}"#);
    assert_eq!(changed, [["a.2.b", "null", "true"], ["c", "-", "d"]]);
    for text in ["", "a", "ab", "abc", "{\"type\":\"t\"}"] {
        assert_eq!(decode64(&encode64(text)), text);
    }
    assert_eq!(encode64("hi"), "aGk=");
}
