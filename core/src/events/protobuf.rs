//! The protobuf wire format: the fields of a message where they lie, and the edit of a `map<string, string>`.
//! Never reorders fields, and never drops what it does not know.

use super::splice::{Slot, Span, Splices};
use super::{BODY_BYTES_MAX, EDITS_MAX, Edit, Untouched, additions, deciding};

/// A length-delimited field: its length prefix and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delimited {
    /// The length's varint.
    pub length: Span,
    /// The bytes it counts.
    pub content: Span,
}

/// A field's value; fixed-width ones have no reader here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Wire type 0.
    Varint(u64),
    /// Wire types 1 and 5.
    Fixed,
    /// Wire type 2.
    Delimited(Delimited),
}

/// One field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The field's number, never 0.
    pub number: u32,
    /// The offset of its tag.
    pub start: usize,
    /// The offset after it.
    pub end: usize,
    /// What it holds.
    pub value: Value,
}

/// Walks the fields of the part of a body that is one message.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// The fields of a whole body.
    ///
    /// # Errors
    /// [`Untouched::TooLarge`].
    pub fn of_body(body: &'a [u8]) -> Result<Self, Untouched> {
        if body.len() > BODY_BYTES_MAX { Err(Untouched::TooLarge) } else { Ok(Self { body, at: 0 }) }
    }

    /// The fields of a message inside a body; offsets stay those of the body.
    #[must_use]
    pub fn within(body: &'a [u8], message: Span) -> Self {
        Self { body: body.get(..message.end()).unwrap_or_default(), at: message.start() }
    }

    /// The next field; `None` at the message's end.
    ///
    /// # Errors
    /// [`Untouched::NotProtobuf`] for what is cut short, field 0, or a group, which `google.pubsub.v1` has
    /// none of.
    pub fn next_field(&mut self) -> Result<Option<Field>, Untouched> {
        if self.at >= self.body.len() {
            return Ok(None);
        }
        let start = self.at;
        let tag = u32::try_from(self.varint()?).map_err(|_| Untouched::NotProtobuf)?;
        let number = tag >> 3;
        if number == 0 {
            return Err(Untouched::NotProtobuf);
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => Value::Delimited(self.delimited()?),
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(Untouched::NotProtobuf),
        };
        Ok(Some(Field { number, start, end: self.at, value }))
    }

    fn delimited(&mut self) -> Result<Delimited, Untouched> {
        let start = self.at;
        let bytes = self.varint()?;
        let length = Span::new(start, self.at);
        let content = self.take(usize::try_from(bytes).map_err(|_| Untouched::NotProtobuf)?)?;
        Ok(Delimited { length, content })
    }

    fn take(&mut self, bytes: usize) -> Result<Span, Untouched> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.body.len());
        let span = Span::new(self.at, end.ok_or(Untouched::NotProtobuf)?);
        self.at = span.end();
        Ok(span)
    }

    fn varint(&mut self) -> Result<u64, Untouched> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = *self.body.get(self.at).ok_or(Untouched::NotProtobuf)?;
            self.at += 1;
            // The tenth byte holds one bit only.
            if shift == 63 && byte > 1 {
                return Err(Untouched::NotProtobuf);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Untouched::NotProtobuf)
    }
}

/// Appends a varint in its shortest spelling.
pub fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn write_delimited(number: u32, content: &[u8], out: &mut Vec<u8>) {
    write_varint(u64::from(number << 3 | 2), out);
    write_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

/// A message whose length prefix follows its content.
#[derive(Clone, Copy)]
pub(super) struct Resized {
    message: Delimited,
    slot: Slot,
    grown_before: i64,
}

impl Resized {
    /// To be called before the content's changes, outermost message first.
    pub(super) fn open(message: Delimited, splices: &mut Splices) -> Self {
        let grown_before = splices.grown_bytes();
        Self { message, slot: splices.reserve(message.length), grown_before }
    }

    /// To be called after them, innermost message first. A length that stays keeps its spelling.
    pub(super) fn close(self, body: &[u8], splices: &mut Splices) {
        let grown = splices.grown_bytes() - self.grown_before;
        splices.fill(self.slot, |out| {
            if grown == 0 {
                out.extend_from_slice(self.message.length.of(body));
            } else {
                write_varint((self.message.content.len() as u64).saturating_add_signed(grown), out);
            }
        });
    }
}

/// One entry of a map of texts: key in field 1, value in field 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    start: u32,
    entry: Delimited,
    key: Span,
    value: Option<Delimited>,
}

impl Entry {
    const KEY: u32 = 1;
    const VALUE: u32 = 2;

    /// Reads the entry that a field holds. Of a key or value that occurs twice, the last counts; one that is
    /// missing is empty.
    pub(super) fn read(body: &[u8], field: &Field, entry: Delimited) -> Result<Self, Untouched> {
        let mut read = Self { start: field.start as u32, entry, key: Span::default(), value: None };
        let mut fields = Fields::within(body, entry.content);
        while let Some(field) = fields.next_field()? {
            match (field.number, field.value) {
                (Self::KEY, Value::Delimited(key)) => read.key = key.content,
                (Self::VALUE, Value::Delimited(value)) => read.value = Some(value),
                _ => {}
            }
        }
        Ok(read)
    }

    /// The key; empty if it is not UTF-8.
    #[must_use]
    pub fn key<'a>(&self, body: &'a [u8]) -> &'a str {
        text(self.key, body).unwrap_or_default()
    }

    /// The value; `None` if it is not UTF-8.
    #[must_use]
    pub fn value<'a>(&self, body: &'a [u8]) -> Option<&'a str> {
        self.value.map_or(Some(""), |value| text(value.content, body))
    }

    /// Gives the entry another value and keeps the rest of it, unknown fields included.
    fn set(&self, body: &[u8], value: &str, splices: &mut Splices) {
        if self.value(body) == Some(value) {
            return;
        }
        let resized = Resized::open(self.entry, splices);
        match self.value {
            Some(old) => {
                let inner = Resized::open(old, splices);
                splices.replace(old.content, |out| out.extend_from_slice(value.as_bytes()));
                inner.close(body, splices);
            }
            None => {
                let end = self.entry.content.end();
                splices
                    .replace(Span::new(end, end), |out| write_delimited(Self::VALUE, value.as_bytes(), out));
            }
        }
        resized.close(body, splices);
    }
}

/// The text of a field of type `string`; `None` if it is not UTF-8.
pub(super) fn text(place: Span, body: &[u8]) -> Option<&str> {
    std::str::from_utf8(place.of(body)).ok()
}

/// The changes of a map: those inside its entries, which the caller may have to interleave with changes of
/// other fields, and those added at the message's end.
pub(super) struct MapEdit<'e> {
    /// The map's field number.
    pub(super) number: u32,
    pub(super) entries: &'e [Entry],
    pub(super) edits: &'e [Edit<'e>],
}

impl MapEdit<'_> {
    pub(super) fn check(&self) -> Result<(), Untouched> {
        if self.edits.len() > EDITS_MAX { Err(Untouched::TooMany) } else { Ok(()) }
    }

    /// Changes or removes the entries that begin within `from..to`.
    pub(super) fn change(&self, body: &[u8], range: std::ops::Range<usize>, splices: &mut Splices) {
        for entry in self.entries.iter().filter(|entry| range.contains(&(entry.start as usize))) {
            let key = entry.key(body);
            match deciding(self.edits, |name| name == key).map(|edit| edit.value) {
                Some(Some(value)) => entry.set(body, value, splices),
                Some(None) => splices.cut(Span::new(entry.start as usize, entry.entry.content.end())),
                None => {}
            }
        }
    }

    /// Adds the entries that no key has yet.
    pub(super) fn add(&self, body: &[u8], end: usize, splices: &mut Splices) {
        let present = |name: &str| self.entries.iter().any(|entry| entry.key(body) == name);
        let mut new = additions(self.edits, present).peekable();
        if new.peek().is_none() {
            return;
        }
        splices.replace(Span::new(end, end), |out| {
            let mut entry = Vec::with_capacity(128);
            for (name, value) in new {
                entry.clear();
                write_delimited(Entry::KEY, name.as_bytes(), &mut entry);
                write_delimited(Entry::VALUE, value.as_bytes(), &mut entry);
                write_delimited(self.number, &entry, out);
            }
        });
    }
}
