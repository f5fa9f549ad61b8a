//! Tests only: a second, naive opinion on JSON and protobuf, and a seeded generator of both. Recursive,
//! allocating and slow on purpose; shares no code with what it judges, so fuzz targets include it by path.

/// A JSON value; numbers as spelled, texts in UTF-16 so that half a surrogate pair can be told, objects in
/// order with duplicates.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(String),
    Text(Vec<u16>),
    List(Vec<Json>),
    Object(Vec<(Vec<u16>, Json)>),
}

pub(crate) fn text(text: &str) -> Json {
    Json::Text(utf16(text))
}

pub(crate) fn utf16(text: &str) -> Vec<u16> {
    text.encode_utf16().collect()
}

impl Json {
    /// The value of a text, or `None` if it is not JSON or nested deeper than 200.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let chars: Vec<char> = std::str::from_utf8(bytes).ok()?.chars().collect();
        let mut reader = Reader { chars: &chars, at: 0, depth: 0 };
        let value = reader.value()?;
        reader.blank();
        (reader.at == chars.len()).then_some(value)
    }

    pub(crate) fn members(&mut self) -> Option<&mut Vec<(Vec<u16>, Json)>> {
        if let Self::Object(members) = self { Some(members) } else { None }
    }

    /// What an edit should make of an object.
    pub(crate) fn edit(&mut self, edits: &[(&str, Option<&str>)]) {
        let Some(members) = self.members() else { return };
        for (i, (name, value)) in edits.iter().enumerate() {
            let name = utf16(name);
            if edits[i + 1..].iter().any(|(later, _)| utf16(later) == name) {
                continue;
            }
            match value {
                Some(value) if members.iter().any(|(key, _)| *key == name) => {
                    for (_, old) in members.iter_mut().filter(|(key, _)| *key == name) {
                        *old = text(value);
                    }
                }
                Some(value) => members.push((name, text(value))),
                None => members.retain(|(key, _)| *key != name),
            }
        }
    }
}

struct Reader<'a> {
    chars: &'a [char],
    at: usize,
    depth: u32,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        self.at += 1;
        self.chars.get(self.at - 1).copied()
    }

    fn expect(&mut self, c: char) -> Option<()> {
        (self.next()? == c).then_some(())
    }

    fn blank(&mut self) {
        while self.peek().is_some_and(|c| " \t\r\n".contains(c)) {
            self.at += 1;
        }
    }

    fn value(&mut self) -> Option<Json> {
        self.blank();
        match self.peek()? {
            '{' => {
                let mut members = Vec::new();
                self.items('}', |reader| {
                    reader.blank();
                    let key = reader.string()?;
                    reader.blank();
                    reader.expect(':')?;
                    members.push((key, reader.value()?));
                    Some(())
                })?;
                Some(Json::Object(members))
            }
            '[' => {
                let mut items = Vec::new();
                self.items(']', |reader| {
                    items.push(reader.value()?);
                    Some(())
                })?;
                Some(Json::List(items))
            }
            '"' => self.string().map(Json::Text),
            't' => self.word("true", Json::Bool(true)),
            'f' => self.word("false", Json::Bool(false)),
            'n' => self.word("null", Json::Null),
            _ => self.number(),
        }
    }

    fn items(&mut self, close: char, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.at += 1;
        self.blank();
        self.depth += 1;
        if self.depth > 200 {
            return None;
        }
        if self.peek()? == close {
            self.at += 1;
            self.depth -= 1;
            return Some(());
        }
        loop {
            item(self)?;
            self.blank();
            match self.next()? {
                ',' => {}
                c => {
                    self.depth -= 1;
                    return (c == close).then_some(());
                }
            }
        }
    }

    fn string(&mut self) -> Option<Vec<u16>> {
        self.expect('"')?;
        let mut units = Vec::new();
        loop {
            match self.next()? {
                '"' => return Some(units),
                '\\' => match self.next()? {
                    'u' => {
                        let hex: String = (0..4).map(|_| self.next()).collect::<Option<_>>()?;
                        let digits = hex.chars().all(|c| c.is_ascii_hexdigit());
                        units.push(u16::from_str_radix(&hex, 16).ok().filter(|_| digits)?);
                    }
                    c => {
                        let at = "\"\\/bfnrt".find(c)?;
                        units.push("\"\\/\u{8}\u{c}\n\r\t".encode_utf16().nth(at)?);
                    }
                },
                c if c < ' ' => return None,
                c => units.extend(c.encode_utf16(&mut [0; 2]).iter()),
            }
        }
    }

    fn word(&mut self, word: &str, value: Json) -> Option<Json> {
        word.chars().try_for_each(|c| self.expect(c))?;
        Some(value)
    }

    fn number(&mut self) -> Option<Json> {
        let start = self.at;
        while self.peek().is_some_and(|c| "+-.eE".contains(c) || c.is_ascii_digit()) {
            self.at += 1;
        }
        let spelled: String = self.chars[start..self.at].iter().collect();
        let unsigned = spelled.strip_prefix('-').unwrap_or(&spelled);
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, Some(exponent)),
            None => (unsigned, None),
        };
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((whole, fraction)) => (whole, Some(fraction)),
            None => (mantissa, None),
        };
        let digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        let valid = digits(whole)
            && (whole == "0" || !whole.starts_with('0'))
            && fraction.is_none_or(digits)
            && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)));
        valid.then_some(Json::Number(spelled))
    }
}

/// The fields of a protobuf message in order: number, wire type, and the value's bytes (without a length).
/// `None` if it is none, or has groups.
pub(crate) fn fields(message: &[u8]) -> Option<Vec<(u64, u64, Vec<u8>)>> {
    let mut rest = message;
    let mut fields = Vec::new();
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        if tag >> 3 == 0 || tag > u64::from(u32::MAX) {
            return None;
        }
        let before = rest;
        let bytes = match tag & 7 {
            0 => {
                varint(&mut rest)?;
                before.len() - rest.len()
            }
            1 => 8,
            5 => 4,
            2 => usize::try_from(varint(&mut rest)?).ok()?,
            _ => return None,
        };
        let from = if tag & 7 == 0 { before } else { rest };
        fields.push((tag >> 3, tag & 7, from.get(..bytes)?.to_vec()));
        rest = &from[bytes..];
    }
    Some(fields)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u128;
    for i in 0..10 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u128::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return u64::try_from(value).ok();
        }
    }
    None
}

/// What an edit should make of the message `fields`, whose field `number` is a map of texts; `None` if its
/// entries are no messages.
pub(crate) fn edit_map(
    fields: &mut Vec<(u64, u64, Vec<u8>)>,
    number: u64,
    edits: &[(&str, Option<&str>)],
) -> Option<()> {
    let last = |entry: &[u8], number: u64| -> Option<Vec<u8>> {
        let found = self::fields(entry)?.into_iter().rfind(|field| (field.0, field.1) == (number, 2));
        Some(found.map(|field| field.2).unwrap_or_default())
    };
    for (i, (name, value)) in edits.iter().enumerate() {
        if edits[i + 1..].iter().any(|(later, _)| later == name) {
            continue;
        }
        let mut found = false;
        let mut edited = Vec::new();
        for field in fields.drain(..) {
            if (field.0, field.1) != (number, 2) || key_of(&last(&field.2, 1)?) != *name {
                edited.push(field);
                continue;
            }
            found = true;
            match value {
                Some(value) if last(&field.2, 2)? != value.as_bytes() => {
                    let mut entry = self::fields(&field.2)?;
                    match entry.iter_mut().rfind(|field| (field.0, field.1) == (2, 2)) {
                        Some(old) => old.2 = value.as_bytes().to_vec(),
                        None => entry.push((2, 2, value.as_bytes().to_vec())),
                    }
                    edited.push((number, 2, spell(&entry)));
                }
                Some(_) => edited.push(field),
                None => {}
            }
        }
        if let (false, Some(value)) = (found, value) {
            let entry = [(1, 2, name.as_bytes().to_vec()), (2, 2, value.as_bytes().to_vec())];
            edited.push((number, 2, spell(&entry)));
        }
        *fields = edited;
    }
    Some(())
}

/// A key that is not UTF-8 is read as an empty one.
fn key_of(key: &[u8]) -> String {
    String::from_utf8(key.to_vec()).unwrap_or_default()
}

/// The message that has these fields, lengths in their shortest spelling.
pub(crate) fn spell(fields: &[(u64, u64, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let varint = |mut value: u64, out: &mut Vec<u8>| {
        while value > 127 {
            out.push((value % 128) as u8 + 128);
            value /= 128;
        }
        out.push(value as u8);
    };
    for (number, wire, bytes) in fields {
        varint(number * 8 + wire, &mut out);
        if *wire == 2 {
            varint(bytes.len() as u64, &mut out);
        }
        out.extend_from_slice(bytes);
    }
    out
}

/// A small generator of numbers that repeats from its seed.
pub(crate) struct Seed(pub(crate) u64);

impl Seed {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub(crate) fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    fn blank(&mut self, out: &mut String) {
        while self.one_in(6) {
            out.push_str(self.pick(&[" ", "\n", "\t", "\r\n  "]));
        }
    }

    /// A string with its quotes: letters, escapes of every kind, and characters of one to four bytes.
    pub(crate) fn string(&mut self, out: &mut String) {
        out.push('"');
        let pieces = if self.one_in(12) { self.below(200) } else { self.below(8) };
        for _ in 0..pieces {
            let piece = self.pick(&[
                "a",
                "xyz",
                "plain text that is long enough for a block ",
                "\\/",
                "\\\"",
                "\\\\",
                "\\n",
                "\\u0041",
                "\\u00e9",
                "\\ud83d\\ude00",
                "\\ud800",
                "é",
                "€",
                "😀",
                "{",
                "]",
                ",",
                ":",
                "'",
                "\u{7f}",
                "\\udc00",
            ]);
            out.push_str(piece);
        }
        out.push('"');
    }

    fn key(&mut self, out: &mut String) {
        match self.below(6) {
            0 => self.string(out),
            1 => out.push_str("\"tr\\u0061ceparent\""),
            _ => {
                let names =
                    ["id", "source", "type", "traceparent", "tracestate", "data", "traceid", "operationname"];
                out.push('"');
                out.push_str(self.pick(&names));
                out.push('"');
            }
        }
    }

    /// An object of the given depth at most.
    pub(crate) fn object(&mut self, depth: usize, out: &mut String) {
        out.push('{');
        self.blank(out);
        for i in 0..self.below(7) {
            if i > 0 {
                out.push(',');
                self.blank(out);
            }
            self.key(out);
            self.blank(out);
            out.push(':');
            self.blank(out);
            self.value(depth.saturating_sub(1), out);
            self.blank(out);
        }
        out.push('}');
    }

    pub(crate) fn value(&mut self, depth: usize, out: &mut String) {
        let numbers = ["0", "-0", "1.50", "1E+3", "12345678901234567890", "-0.0e-0", "1e400"];
        match self.below(if depth == 0 { 5 } else { 7 }) {
            0 => out.push_str(self.pick(&["null", "true", "false"])),
            1 => out.push_str(self.pick(&numbers)),
            2..=4 => self.string(out),
            5 => self.object(depth - 1, out),
            _ => {
                out.push('[');
                self.blank(out);
                for i in 0..self.below(4) {
                    if i > 0 {
                        out.push(',');
                    }
                    self.blank(out);
                    self.value(depth - 1, out);
                    self.blank(out);
                }
                out.push(']');
            }
        }
    }

    /// Damages a text in a few places.
    pub(crate) fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len() + 1);
            let byte = *b"\"\\{}[],:0e-.tn u\x00\x1f\x80\xffA".get(self.below(20)).unwrap_or(&b' ');
            match self.below(4) {
                0 => bytes.insert(at, byte),
                1 => bytes.truncate(at),
                _ if at == bytes.len() => {}
                2 => bytes[at] = byte,
                _ => drop(bytes.remove(at)),
            }
        }
    }

    /// Some edits, with repeated names now and then.
    pub(crate) fn edits<'a>(&mut self, names: &[&'a str]) -> Vec<(&'a str, Option<&'a str>)> {
        let values = [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "quote \" slash \\ / é😀",
            "\u{1}\n",
        ];
        let count = self.below(4);
        (0..count)
            .map(|_| (self.pick(names), if self.one_in(3) { None } else { Some(self.pick(&values)) }))
            .collect()
    }
}
