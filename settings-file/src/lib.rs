//! Settings written as YAML, or as JSON: read into the pairs that `throughline-core`'s table of settings takes.
//! Reads the part of YAML in which a table of settings is written: one mapping of texts, numbers, switches and
//! lists of these. A whole YAML library is larger than all decisions of the filter together, and would be loaded
//! by every Envoy. What is beyond that part is a mistake, never a guess. Knows no setting, and opens no file.

/// The keys and values of a mapping, each value as a flag would say it, lists joined by commas. `name` is what
/// the text is called in messages.
///
/// # Errors
/// Every mistake, one sentence each.
pub fn pairs(text: &str, name: &str) -> Result<Vec<(String, String)>, Vec<String>> {
    let whole = text.trim_start_matches('\u{feff}');
    let mut reader = Reader { whole, rest: whole, line: 1, mistakes: Vec::new() };
    let mut pairs: Vec<(String, String)> = Vec::new();
    reader.skip_to_content();
    let read = match reader.rest.chars().next() {
        None => Ok(()),
        Some('{') => reader.flow_mapping(&mut pairs),
        Some(_) => reader.block_mapping(&mut pairs),
    };
    if let Err(mistake) = read {
        reader.mistakes.push(mistake);
    }
    for (n, (key, _)) in pairs.iter().enumerate() {
        if pairs.iter().take(n).any(|(known, _)| known == key) {
            reader.mistakes.push(Mistake { line: 0, what: format!("{key}: want it once") });
        }
    }
    if reader.mistakes.is_empty() {
        return Ok(pairs);
    }
    let told = |Mistake { line, what }: Mistake| match line {
        0 => format!("{name}: {what}"),
        _ => format!("{name}, line {line}: {what}"),
    };
    Err(reader.mistakes.into_iter().map(told).collect())
}

#[derive(Debug)]
struct Mistake {
    line: usize,
    what: String,
}

struct Reader<'a> {
    whole: &'a str,
    rest: &'a str,
    line: usize,
    mistakes: Vec<Mistake>,
}

const SCALAR: &str = "want a text, a number, true, false, or a list of these";

impl<'a> Reader<'a> {
    fn wrong<T>(&self, what: impl Into<String>) -> Result<T, Mistake> {
        Err(Mistake { line: self.line, what: what.into() })
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken
    }

    fn take(&mut self, wanted: char) -> bool {
        let there = self.rest.starts_with(wanted);
        if there {
            self.advance(wanted.len_utf8());
        }
        there
    }

    /// Blanks, line ends and comments.
    fn skip_blank(&mut self) {
        loop {
            // YAML has no tabs between things.
            let blanks = self.rest.len() - self.rest.trim_start_matches([' ', '\n', '\r']).len();
            let behind_blank = blanks > 0 || self.column() == 0;
            self.advance(blanks);
            if !(behind_blank && self.rest.starts_with('#')) {
                return;
            }
            self.advance(self.rest.find('\n').unwrap_or(self.rest.len()));
        }
    }

    /// To the mapping itself: past comments and the mark of a document's begin.
    fn skip_to_content(&mut self) {
        self.skip_blank();
        let behind = self.rest.strip_prefix("---");
        if self.column() == 0
            && behind.is_some_and(|behind| behind.is_empty() || behind.starts_with(['\n', ' ', '\r']))
        {
            self.advance(3);
            self.skip_blank();
        }
    }

    /// `{"key": value, …}` and nothing behind it.
    fn flow_mapping(&mut self, pairs: &mut Vec<(String, String)>) -> Result<(), Mistake> {
        self.take('{');
        loop {
            self.skip_blank();
            if self.take('}') {
                break;
            }
            let is_json = self.rest.starts_with(['"', '\'']);
            let key = self.key()?;
            self.skip_blank();
            if !self.take(':') {
                return self.wrong(format!("{key}: want a colon and a value"));
            }
            if !is_json && !self.rest.starts_with([' ', '\n', '\r', ',', '}']) {
                return self.wrong(format!("{key}: want a blank behind the colon"));
            }
            self.skip_blank();
            let value = self.flow_value(&key)?;
            pairs.push((key, value));
            self.skip_blank();
            if !self.take(',') && !self.rest.starts_with('}') {
                return self.wrong("want a comma or a closing brace");
            }
        }
        self.skip_blank();
        if self.rest.is_empty() { Ok(()) } else { self.wrong("want nothing behind the closing brace") }
    }

    fn flow_value(&mut self, key: &str) -> Result<String, Mistake> {
        match self.rest.chars().next() {
            Some('[') => self.flow_list(key),
            Some('{') => self.wrong(format!("{key}: {SCALAR}")),
            Some('"' | '\'') => self.quoted(),
            Some(_) | None => self.plain(&[',', '[', ']', '{', '}']).map(plain_value),
        }
    }

    fn flow_list(&mut self, key: &str) -> Result<String, Mistake> {
        self.take('[');
        let mut values = Vec::new();
        loop {
            self.skip_blank();
            if self.take(']') {
                return Ok(values.join(","));
            }
            if self.rest.starts_with('[') {
                return self.wrong(format!("{key}: {SCALAR}"));
            }
            values.push(self.flow_value(key)?);
            self.skip_blank();
            if !self.take(',') && !self.rest.starts_with(']') {
                return self.wrong(format!("{key}: want a comma or a closing bracket"));
            }
        }
    }

    /// `key: value`, a line each. A value that is wrong costs its own line only, so that all are told.
    fn block_mapping(&mut self, pairs: &mut Vec<(String, String)>) -> Result<(), Mistake> {
        while !self.rest.is_empty() {
            if self.column() > 0 {
                return self.wrong("want every key at the beginning of its line");
            }
            if self.rest.starts_with("- ") {
                return self.wrong("want a YAML mapping of settings");
            }
            if self.rest.starts_with("...") || self.rest.starts_with("---") {
                return self.wrong("want one document");
            }
            let key = self.key()?;
            if !self.take(':') {
                return self.wrong("want a YAML mapping of settings: key: value");
            }
            match self.block_value(&key) {
                Ok(value) => pairs.push((key, value)),
                Err(mistake) => {
                    self.mistakes.push(mistake);
                    self.skip_lines_within();
                }
            }
            self.skip_blank();
        }
        Ok(())
    }

    /// How far behind the beginning of its line the reader stands.
    fn column(&self) -> usize {
        let read = self.whole.get(..self.whole.len() - self.rest.len()).unwrap_or_default();
        read.len() - read.rfind('\n').map_or(0, |end| end + 1)
    }

    fn block_value(&mut self, key: &str) -> Result<String, Mistake> {
        let blanks = self.rest.len() - self.rest.trim_start_matches(' ').len();
        if blanks == 0 && !self.rest.is_empty() && !self.rest.starts_with(['\n', '\r']) {
            return self.wrong(format!("{key}: want a blank behind the colon"));
        }
        self.advance(blanks);
        let value = match self.rest.chars().next() {
            None | Some('\n' | '\r' | '#') => return self.block_list(key),
            Some('[') => self.flow_list(key)?,
            Some('"' | '\'') => self.quoted()?,
            Some('{' | '|' | '>' | '&' | '*' | '!' | '%' | '@' | '`') => {
                return self.wrong(format!("{key}: {SCALAR}"));
            }
            Some(_) => plain_value(self.plain(&[])?),
        };
        self.end_of_line(key)?;
        Ok(value)
    }

    /// The lines behind `key:` that begin with a dash; none is an empty value.
    fn block_list(&mut self, key: &str) -> Result<String, Mistake> {
        let mut values = Vec::new();
        loop {
            self.skip_blank();
            if !self.rest.starts_with("- ") {
                break;
            }
            self.advance(2);
            self.advance(self.rest.len() - self.rest.trim_start_matches(' ').len());
            values.push(match self.rest.chars().next() {
                Some('"' | '\'') => self.quoted()?,
                Some('[' | '{' | '|' | '>' | '&' | '*' | '!' | '-') => {
                    return self.wrong(format!("{key}: {SCALAR}"));
                }
                _ => plain_value(self.plain(&[])?),
            });
            self.end_of_line(key)?;
        }
        if values.is_empty() && self.column() > 0 && !self.rest.is_empty() {
            return self.wrong(format!("{key}: {SCALAR}"));
        }
        Ok(values.join(","))
    }

    fn end_of_line(&mut self, key: &str) -> Result<(), Mistake> {
        let line = self.rest.split('\n').next().unwrap_or_default();
        let behind = line.trim_start();
        if behind.is_empty() || (behind.starts_with('#') && behind.len() < line.len()) {
            self.advance(line.len());
            return Ok(());
        }
        self.wrong(format!("{key}: want nothing behind its value"))
    }

    /// Past the rest of a line, and the lines below it that are further in.
    fn skip_lines_within(&mut self) {
        loop {
            self.advance(self.rest.find('\n').map_or(self.rest.len(), |end| end + 1));
            if !self.rest.starts_with([' ', '\t', '\n', '\r', '-']) {
                return;
            }
        }
    }

    /// A key without quotes: names of settings need no more than these letters.
    fn key(&mut self) -> Result<String, Mistake> {
        if self.rest.starts_with(['"', '\'']) {
            return self.quoted();
        }
        let is_end =
            |letter: char| !letter.is_ascii_alphanumeric() && !matches!(letter, '-' | '_' | '.' | '/');
        let end = self.rest.find(is_end).unwrap_or(self.rest.len());
        match self.rest.get(..end) {
            Some(key) if !key.is_empty() && !key.starts_with('-') => Ok(self.advance(end).to_owned()),
            _ => self.wrong("want a YAML mapping of settings: key: value"),
        }
    }

    /// Text without quotes, up to the end of its line, one of `ends`, or a comment.
    fn plain(&mut self, ends: &[char]) -> Result<String, Mistake> {
        const MEANT_OTHERWISE: &[char] =
            &['?', ':', ',', '[', ']', '{', '}', '#', '&', '*', '!', '|', '>', '\'', '"', '%', '@', '`'];
        let line = self.rest.split(['\n', '\r']).next().unwrap_or_default();
        let line = line.split(" #").next().unwrap_or_default();
        let end = line.find(ends).unwrap_or(line.len());
        let text = line.get(..end).unwrap_or_default().trim_end_matches(' ');
        let is_dash = text == "-" || text.starts_with("- ") || text.starts_with("---");
        let is_mapping = text.contains(": ") || text.ends_with(':');
        if is_dash || is_mapping || text.contains(['\t', '\\']) || text.starts_with(MEANT_OTHERWISE) {
            return self.wrong(SCALAR);
        }
        if text.is_empty() {
            return self.wrong("want a value");
        }
        self.advance(end);
        Ok(text.to_owned())
    }

    fn quoted(&mut self) -> Result<String, Mistake> {
        if self.take('\'') {
            let mut text = String::new();
            loop {
                let Some(end) = self.rest.find(['\'', '\n', '\r']) else {
                    return self.wrong("want a closing quote");
                };
                text.push_str(self.advance(end));
                if !self.take('\'') {
                    return self.wrong("want a closing quote on the same line");
                }
                if !self.take('\'') {
                    return Ok(text);
                }
                text.push('\'');
            }
        }
        self.take('"');
        let mut text = String::new();
        loop {
            let Some(end) = self.rest.find(['"', '\\', '\n', '\r']) else {
                return self.wrong("want a closing quote");
            };
            text.push_str(self.advance(end));
            if self.take('"') {
                return Ok(text);
            }
            if !self.take('\\') {
                return self.wrong("want a closing quote on the same line");
            }
            text.push(self.escaped()?);
        }
    }

    fn escaped(&mut self) -> Result<char, Mistake> {
        let Some(letter) = self.rest.chars().next() else { return self.wrong("want a closing quote") };
        self.advance(letter.len_utf8());
        Ok(match letter {
            '"' | '\\' | '/' => letter,
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'u' => {
                let Some(high) = self.four_digits() else { return self.wrong("want four digits behind \\u") };
                // A character beyond 16 bits is written as two halves (RFC 8259 §7).
                let code = if (0xd800..0xdc00).contains(&high) && self.rest.starts_with("\\u") {
                    self.advance(2);
                    let low = self.four_digits().filter(|low| (0xdc00..0xe000).contains(low));
                    low.map(|low| 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00))
                } else {
                    Some(high)
                };
                match code.and_then(char::from_u32) {
                    Some(letter) => letter,
                    None => return self.wrong("want a character behind \\u"),
                }
            }
            _ => return self.wrong(format!("\\{letter}: want an escape as JSON has them")),
        })
    }

    fn four_digits(&mut self) -> Option<u32> {
        let digits = self.rest.get(..4).filter(|four| four.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        let code = u32::from_str_radix(digits, 16).ok()?;
        self.advance(4);
        Some(code)
    }
}

/// YAML's nothing is an empty value.
fn plain_value(text: String) -> String {
    if matches!(text.as_str(), "null" | "~" | "Null" | "NULL") { String::new() } else { text }
}

#[cfg(test)]
mod tests {
    use serde_yaml::Value;

    use super::*;

    fn said(text: &str) -> Vec<String> {
        pairs(text, "f").unwrap_err()
    }

    /// What a whole YAML library reads, as a flag would say it; none where it holds more than a table.
    fn by_library(text: &str) -> Option<Vec<(String, String)>> {
        fn scalar(value: &Value) -> Option<String> {
            match value {
                Value::Null => Some(String::new()),
                Value::Bool(value) => Some(value.to_string()),
                Value::Number(value) => Some(value.to_string()),
                Value::String(value) => Some(value.clone()),
                Value::Sequence(values) => {
                    Some(values.iter().map(scalar).collect::<Option<Vec<_>>>()?.join(","))
                }
                Value::Mapping(_) | Value::Tagged(_) => None,
            }
        }
        match serde_yaml::from_str::<Value>(text).ok()? {
            Value::Null => Some(Vec::new()),
            Value::Mapping(mapping) => {
                mapping.iter().map(|(key, value)| Some((scalar(key)?, scalar(value)?))).collect()
            }
            _ => None,
        }
    }

    /// Numbers and switches may be spelled in several ways.
    fn same(ours: &str, theirs: &str) -> bool {
        let number = |text: &str| text.parse::<f64>().ok();
        ours == theirs
            || ours.eq_ignore_ascii_case(theirs)
            || ours
                .split(',')
                .zip(theirs.split(','))
                .all(|(a, b)| a == b || (number(a).is_some() && number(a) == number(b)))
            || (matches!(ours, "null" | "~") && theirs.is_empty()) // as a key
            || ours.starts_with("0x")
            || ours.starts_with("0o")
            || matches!(theirs, ".inf" | "-.inf" | ".nan")
    }

    const DOCUMENTS: &[&str] = &[
        "",
        "# nothing\n",
        "---\na: 1\n",
        "a: b\n",
        "a: b",
        "a: b # c\nd: e#f\n",
        "routes: [\"/a/{id}\", /b]\nratio: 0.5\non: true\nx:\ny: ~\n",
        "routes:\n  - /a/{id}\n  - '/b'\n# c\n  - \"/c\"\nnext: 7\n",
        "routes:\n- /a\n- /b\nnext: x\n",
        "url: http://collector:4317\n",
        "a: 'it''s'\nb: \"x\\ty\\u00e9\\\"\"\n",
        "\"a\": \"b\"\n'c': 'd'\n",
        "a:   spaced out   \nb: x\r\nc: y\r\n",
        "{\"a\": \"b\", \"c\": [1, \"2\", true], \"d\": null}",
        "{\n  \"a\": \"b\",\n  \"c\": []\n}\n",
        "{a: b, c: d}",
        "{}",
        "a: [\n  x,\n  y\n]\nb: z\n",
    ];

    #[test]
    fn what_is_read_is_what_a_yaml_library_reads() {
        for text in DOCUMENTS {
            assert_eq!(pairs(text, "f").ok(), by_library(text), "{text:?}");
        }
    }

    #[test]
    fn what_is_beyond_a_table_is_a_mistake_with_its_line() {
        assert_eq!(
            said("a: {b: 1}\nc: x\nd:\n  e: 1\n  f: 2\ng: |\n  text\nh: 1\n"),
            [
                "f, line 1: a: want a text, a number, true, false, or a list of these",
                "f, line 4: d: want a text, a number, true, false, or a list of these",
                "f, line 6: g: want a text, a number, true, false, or a list of these",
            ]
        );
        for (text, expected) in [
            ("- a\n", "want a YAML mapping"),
            ("just text\n", "want a YAML mapping"),
            ("a: [1, [2]]\n", "or a list of these"),
            ("a: [1, 2\n", "closing bracket"),
            ("a: 'b\n", "want a closing quote"),
            ("a: \"\\q\"\n", "an escape as JSON has them"),
            ("a: \"\\ud800\"\n", "want a character"),
            ("a: 1\na: 2\n", "a: want it once"),
            ("a: 1\n---\nb: 2\n", "want one document"),
            (" a: 1\n", "at the beginning of its line"),
            ("a: \"b\" c\n", "want nothing behind its value"),
            ("{\"a\": 1} x", "want nothing behind the closing brace"),
            ("{\"a\" 1}", "want a colon"),
            ("a:b\n", "want a blank behind the colon"),
            ("a: &x 1\n", "want a text, a number"),
        ] {
            assert!(said(text).iter().any(|told| told.contains(expected)), "{text:?}: {:?}", said(text));
        }
    }

    #[test]
    fn whatever_is_read_is_never_read_otherwise_by_a_yaml_library() {
        const PIECES: &[&str] = &[
            "a",
            "b",
            "key",
            ":",
            ": ",
            "\n",
            "\n",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ",",
            ", ",
            "'",
            "\"",
            "#",
            " #",
            " ",
            "  ",
            "1",
            "0.5",
            "true",
            "null",
            "~",
            "\\n",
            "|",
            "&x",
            "!t",
            "http://h:1",
            "---\n",
            "\t",
            "é",
            "?",
        ];
        let (mut draw, mut read) = (7_u64, 0);
        for _ in 0..200_000 {
            let mut text = String::new();
            for _ in 0..12 {
                draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let number = usize::try_from(draw >> 33).unwrap();
                text.push_str(PIECES[number % PIECES.len()]);
                if number / 64 % 5 == 0 {
                    break;
                }
            }
            let Ok(ours) = pairs(&text, "f") else { continue };
            let Some(theirs) = by_library(&text) else {
                panic!("{text:?} is no table, but was read as {ours:?}")
            };
            read += usize::from(!ours.is_empty());
            assert_eq!(ours.len(), theirs.len(), "{text:?}: {ours:?} {theirs:?}");
            for ((key, value), (their_key, their_value)) in ours.iter().zip(&theirs) {
                assert!(same(key, their_key) && same(value, their_value), "{text:?}: {ours:?} {theirs:?}");
            }
        }
        assert!(read > 500, "{read}");
    }
}
