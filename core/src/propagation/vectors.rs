//! Reads the files of `core/vectors` for the tests of the formats, and damages valid texts for them.

/// One case: `verb "input" … => outcome "output" …`.
pub(super) struct Row {
    place: String,
    given: Side,
    wanted: Side,
}

/// Words joined by one space, and the texts between them; `absent` stands for a text that is not there.
#[derive(PartialEq, Eq, Default)]
struct Side {
    words: String,
    texts: Vec<Option<Vec<u8>>>,
}

impl Row {
    pub(super) fn verb(&self) -> &str {
        &self.given.words
    }

    pub(super) fn unknown_verb(&self) -> ! {
        panic!("{}: nothing here understands {:?}", self.place, self.verb())
    }

    pub(super) fn optional(&self, index: usize) -> Option<&[u8]> {
        let text = self.given.texts.get(index);
        text.unwrap_or_else(|| panic!("{}: has no text {index}", self.place)).as_deref()
    }

    pub(super) fn input(&self, index: usize) -> &[u8] {
        self.optional(index).unwrap_or_else(|| panic!("{}: text {index} is absent", self.place))
    }

    pub(super) fn inputs(&self) -> Vec<&[u8]> {
        (0..self.given.texts.len()).map(|index| self.input(index)).collect()
    }

    pub(super) fn check(&self, words: &str, texts: &[&[u8]]) {
        let seen =
            Side { words: words.to_owned(), texts: texts.iter().map(|text| Some(text.to_vec())).collect() };
        assert!(self.wanted == seen, "{}: want {}\nsaw {}", self.place, self.wanted, seen);
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words)?;
        self.texts.iter().flatten().try_for_each(|text| write!(f, " \"{}\"", text.escape_ascii()))
    }
}

/// The cases of a file; a file without any fails the test that reads it.
pub(super) fn rows(file: &str, content: &str) -> Vec<Row> {
    let cases =
        content.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty() && !line.starts_with('#'));
    let rows: Vec<Row> = cases.map(|(line, number)| row(format!("{file} line {number}"), line)).collect();
    assert!(!rows.is_empty(), "{file} has no cases");
    rows
}

fn row(place: String, line: &str) -> Row {
    let (given, wanted) = line.split_once(" => ").unwrap_or_else(|| panic!("{place}: has no \" => \""));
    let [given, wanted] = [given, wanted].map(|text| side(&place, text));
    Row { place, given, wanted }
}

fn side(place: &str, text: &str) -> Side {
    let mut side = Side::default();
    for (index, part) in text.split('"').enumerate() {
        if index % 2 == 1 {
            side.texts.push(Some(unescape(place, part)));
            continue;
        }
        for word in part.split_whitespace() {
            if word == "absent" {
                side.texts.push(None);
                continue;
            }
            if !side.words.is_empty() {
                side.words.push(' ');
            }
            side.words.push_str(word);
        }
    }
    assert!(text.matches('"').count().is_multiple_of(2), "{place}: a quotation mark is missing");
    side
}

/// `\xNN` is a byte; `\{N text}` is the text N times, with `#` in it counting from 1.
fn unescape(place: &str, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((plain, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        if let Some(digits) = escape.strip_prefix('x') {
            let byte = digits.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
            bytes.push(byte.unwrap_or_else(|| panic!("{place}: \\x wants two digits")));
            rest = &digits[2..];
        } else {
            let inner = escape.strip_prefix('{').unwrap_or_else(|| panic!("{place}: unknown escape"));
            let end = closing_brace(inner).unwrap_or_else(|| panic!("{place}: a brace is missing"));
            let (times, repeated) =
                inner[..end].split_once(' ').unwrap_or_else(|| panic!("{place}: \\{{N text}}"));
            for count in 1..=times.parse().unwrap_or_else(|_| panic!("{place}: {times:?} is not a number")) {
                let count: u32 = count;
                bytes.extend(unescape(place, &repeated.replace('#', &count.to_string())));
            }
            rest = &inner[end + 1..];
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 1;
    text.char_indices()
        .find(|(_, letter)| {
            open += i32::from(*letter == '{') - i32::from(*letter == '}');
            open == 0
        })
        .map(|(at, _)| at)
}

/// Bytes at the edges of every class that a grammar here names: what pairs of damaged bytes are made of, since
/// all pairs of all bytes would take minutes.
const TELLING: &[u8] = b"\0\t\n !\"%*,-./019:;=?@AFGZ[\\_`afgz{~\x7f\x80\xc3\xff";

/// Calls `visit` with `valid`, with every beginning of it, with each byte replaced by every other one, left out
/// or doubled, and with each pair of bytes replaced by every pair of telling ones.
pub(super) fn damaged(valid: &[u8], mut visit: impl FnMut(&[u8])) {
    visit(valid);
    for at in 0..valid.len() {
        visit(&valid[..at]);
        visit(&[&valid[..at], &valid[at + 1..]].concat());
        visit(&[&valid[..=at], &valid[at..]].concat());
        let mut text = valid.to_vec();
        for byte in 0..=255 {
            text[at] = byte;
            visit(&text);
        }
        for (other, first, second) in (at + 1..valid.len())
            .flat_map(|other| TELLING.iter().map(move |first| (other, first)))
            .flat_map(|(other, first)| TELLING.iter().map(move |second| (other, first, second)))
        {
            text[at] = *first;
            text[other] = *second;
            visit(&text);
            text[other] = valid[other];
        }
    }
}

#[test]
fn escapes_repeat_and_count() {
    assert_eq!(unescape("here", r"a\x00\{3 k#=\{2 x},}b"), b"a\0k1=xx,k2=xx,k3=xx,b");
}

#[test]
#[should_panic(expected = "empty.txt has no cases")]
fn an_empty_file_fails() {
    rows("empty.txt", "# only a comment\n\n");
}
