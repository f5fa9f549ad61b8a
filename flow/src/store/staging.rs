//! Spans of the last moment, in pieces: texts once, values in rows. Sealed into a block when there are enough of them
//! or they have waited long enough. Must never give back a span in other bytes than it came in.

use super::block::{Parts, Sealed};
use super::bytes::{Packer, put_text, zigzag};
use super::index::{Entry, FAILED, Filter, HAS_ROOT, Making, TIMED_OUT};
use super::shape::{self, Column, Form, Head, Step, Value};
use crate::span::{Incoming, Kind, Sender, Status, TraceId};
use crate::wire::proto::put_varint;
use crate::wire::walk::{self, Any, NoSlots, Noted, Slot, Slots};
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

/// Shapes of a block; a span of one more is kept whole.
const SHAPES_MAX: usize = 4096;
/// Rows of a group, after which the next trace begins another one.
const GROUP_ROWS: usize = 4096;
const NONE: u32 = u32::MAX;

/// The pieces of one span, in their order. Used again for each span of a message.
#[derive(Debug)]
pub(crate) struct Pieces<'a> {
    slots: Vec<Slot<'a>>,
    irregular: bool,
}

impl Default for Pieces<'_> {
    /// With room for a usual span.
    fn default() -> Self {
        Self { slots: Vec::with_capacity(32), irregular: false }
    }
}

impl Pieces<'_> {
    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.irregular = false;
    }
}

impl<'a> Slots<'a> for Pieces<'a> {
    /// The shape knows which of its attributes tell something: keys are looked at once a shape.
    const KNOWN: bool = false;
    #[inline(always)]
    fn slot(&mut self, slot: Slot<'a>) {
        self.slots.push(slot);
    }
    fn irregular(&mut self) {
        self.irregular = true;
    }
}

#[derive(Debug)]
struct Shape {
    sum: u64,
    steps: Vec<Step>,
    /// For each step, what a slot is held against.
    parts: Vec<Part>,
    /// Keys and literals of the parts, one behind the other.
    bytes: Vec<u8>,
    /// Which attributes tell what; none when that can't be said of the shape.
    notes: Option<Vec<(u32, Noted)>>,
    /// Which word of a row is the name.
    name: Option<u32>,
}

/// A step of a shape, flat, so that a span is held against it without going elsewhere.
#[derive(Clone, Copy, Debug)]
struct Part {
    tag: Tag,
    at: u32,
    len: u32,
    column: u32,
    /// The text that it had the last time.
    last: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tag {
    TraceId,
    SpanId,
    Parent,
    Start,
    End,
    Literal,
    Field(u32),
    Attribute(Form),
    Whole,
}

impl Tag {
    /// Of a slot, with the bytes that all of a shape have in common.
    #[inline(always)]
    fn of<'a>(slot: &Slot<'a>) -> (Self, &'a [u8]) {
        match slot {
            Slot::TraceId => (Self::TraceId, &[]),
            Slot::SpanId => (Self::SpanId, &[]),
            Slot::Parent => (Self::Parent, &[]),
            Slot::Start => (Self::Start, &[]),
            Slot::End => (Self::End, &[]),
            Slot::Literal(bytes) => (Self::Literal, bytes),
            Slot::Bytes { number, .. } => (Self::Field(*number), &[]),
            Slot::Attribute { key, value } => (Self::Attribute(shape::form_of(value)), key),
        }
    }

    /// How its values lie; none where there are none.
    #[inline]
    fn form(self) -> Option<Form> {
        match self {
            Self::Field(_) | Self::Whole => Some(Form::Text),
            Self::Attribute(form) => Some(form),
            Self::TraceId | Self::SpanId | Self::Parent | Self::Start | Self::End | Self::Literal => None,
        }
    }
}

/// Whether texts are equal; short ones, as keys are, without a call.
#[inline(always)]
fn same(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    if let (8..=16, Some(from), Some(other_from), Some(to), Some(other_to)) = (
        one.len(),
        one.first_chunk::<8>(),
        other.first_chunk::<8>(),
        one.last_chunk::<8>(),
        other.last_chunk::<8>(),
    ) {
        return u64::from_ne_bytes(*from) == u64::from_ne_bytes(*other_from)
            && u64::from_ne_bytes(*to) == u64::from_ne_bytes(*other_to);
    }
    if let (17..=32, Some(from), Some(other_from), Some(to), Some(other_to)) = (
        one.len(),
        one.first_chunk::<16>(),
        other.first_chunk::<16>(),
        one.last_chunk::<16>(),
        other.last_chunk::<16>(),
    ) {
        return u128::from_ne_bytes(*from) == u128::from_ne_bytes(*other_from)
            && u128::from_ne_bytes(*to) == u128::from_ne_bytes(*other_to);
    }
    one == other
}

/// Shapes that are tried first, by what is seen at once.
const GUESSES: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Text {
    at: u32,
    len: u32,
    column: u32,
    /// Its hash, so that a table that grows need not read it again.
    hash: u32,
}

/// Texts, each once for its column.
#[derive(Debug, Default)]
struct Texts {
    hash: RandomState,
    texts: Vec<Text>,
    bytes: Vec<u8>,
    table: HashTable<u32>,
}

/// A table wants the upper bits, too.
#[inline]
fn widen(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Texts {
    #[inline]
    fn number(&mut self, column: u32, value: &[u8]) -> u32 {
        let mut hasher = self.hash.build_hasher();
        hasher.write(value);
        hasher.write_u32(column);
        let hash = hasher.finish() as u32;
        let (texts, bytes) = (&self.texts, &self.bytes);
        let is_it = |number: &u32| {
            texts.get(*number as usize).is_some_and(|text| {
                text.hash == hash
                    && text.column == column
                    && bytes.get(text.at as usize..(text.at + text.len) as usize).unwrap_or_default() == value
            })
        };
        if let Some(number) = self.table.find(widen(hash), is_it) {
            return *number;
        }
        let number = self.texts.len() as u32;
        self.texts.push(Text { at: self.bytes.len() as u32, len: value.len() as u32, column, hash });
        self.bytes.extend_from_slice(value);
        let texts = &self.texts;
        self.table.insert_unique(widen(hash), number, |number| {
            texts.get(*number as usize).map_or(0, |text| widen(text.hash))
        });
        number
    }

    #[inline]
    fn get(&self, number: u32) -> &[u8] {
        let Some(text) = self.texts.get(number as usize) else { return &[] };
        self.bytes.get(text.at as usize..(text.at + text.len) as usize).unwrap_or_default()
    }
}

#[derive(Debug)]
struct Origin {
    resource: Box<[u8]>,
    resource_schema: Box<[u8]>,
    scope: Box<[u8]>,
    scope_schema: Box<[u8]>,
    service: Box<[u8]>,
    namespace: Box<[u8]>,
    environment: Box<[u8]>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    shape: u32,
    sender: u32,
    words: u32,
    /// The row of the same trace that came before.
    before: u32,
    span_id: u64,
    parent: u64,
    start: u64,
    end: u64,
    flags: u8,
}

const ROW_KIND: u8 = 7;
const ROW_ERROR: u8 = 8;
const ROW_TIMEOUT: u8 = 16;
const ROW_PARENT: u8 = 32;

#[derive(Clone, Copy, Debug)]
struct Trace {
    id: TraceId,
    last: u32,
    operation: u32,
    ui_event: u32,
    from_root: bool,
}

/// Spans that are not sealed yet.
#[derive(Debug, Default)]
pub(super) struct Staging {
    hash: RandomState,
    columns: Vec<Column>,
    column_numbers: HashMap<Column, u32, RandomState>,
    shapes: Vec<Shape>,
    shape_table: HashTable<u32>,
    shape_whole: Option<u32>,
    guesses: Vec<u32>,
    texts: Texts,
    senders: Vec<Origin>,
    sender_table: HashTable<u32>,
    traces: Vec<Trace>,
    trace_table: HashTable<u32>,
    rows: Vec<Row>,
    words: Vec<u32>,
    labels: super::index::Labels,
    last_operation: (Box<[u8]>, u32),
}

fn word(words: &[u32], at: usize) -> u32 {
    words.get(at).copied().unwrap_or_default()
}

/// Whether an error is one of time.
fn took_too_long(span: &Incoming<'_>) -> bool {
    let known = &span.known;
    matches!(known.http_status, 408 | 504)
        || known.rpc_status == b"DEADLINE_EXCEEDED"
        || [&b"timeout"[..], b"timed_out", b"deadline"]
            .iter()
            .any(|part| known.error_type.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part)))
}

impl Staging {
    pub(super) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Makes it empty, and keeps its room.
    pub(super) fn clear(&mut self) {
        self.columns.clear();
        self.column_numbers.clear();
        self.shapes.clear();
        self.shape_table.clear();
        self.shape_whole = None;
        self.guesses.clear();
        self.texts.texts.clear();
        self.texts.bytes.clear();
        self.texts.table.clear();
        self.senders.clear();
        self.sender_table.clear();
        self.traces.clear();
        self.trace_table.clear();
        self.rows.clear();
        self.words.clear();
        self.labels = super::index::Labels::default();
        self.last_operation = Default::default();
    }

    /// Bytes that it takes, more or less.
    pub(super) fn bytes(&self) -> usize {
        self.rows.len() * size_of::<Row>()
            + self.words.len() * 4
            + self.texts.bytes.len()
            + self.texts.texts.len() * 24
            + self.traces.len() * (size_of::<Trace>() + 8)
    }

    /// The number of a sender.
    pub(super) fn sender(&mut self, sender: &Sender<'_>) -> u32 {
        let parts = [sender.resource, sender.resource_schema, sender.scope, sender.scope_schema];
        let hash_of = |parts: [&[u8]; 4]| self.hash.hash_one(parts);
        let parts_of = |origin: &Origin| -> u64 {
            hash_of([&origin.resource, &origin.resource_schema, &origin.scope, &origin.scope_schema])
        };
        let hash = hash_of(parts);
        let same = |number: &u32| {
            self.senders.get(*number as usize).is_some_and(|origin| {
                [&*origin.resource, &*origin.resource_schema, &*origin.scope, &*origin.scope_schema] == parts
            })
        };
        if let Some(number) = self.sender_table.find(hash, same) {
            return *number;
        }
        let number = self.senders.len() as u32;
        self.senders.push(Origin {
            resource: sender.resource.into(),
            resource_schema: sender.resource_schema.into(),
            scope: sender.scope.into(),
            scope_schema: sender.scope_schema.into(),
            service: sender.service.into(),
            namespace: sender.namespace.into(),
            environment: sender.environment.into(),
        });
        let senders = &self.senders;
        self.sender_table
            .insert_unique(hash, number, |number| senders.get(*number as usize).map_or(0, parts_of));
        number
    }

    fn column(&mut self, column: Column) -> u32 {
        if let Some(number) = self.column_numbers.get(&column) {
            return *number;
        }
        let number = self.columns.len() as u32;
        self.columns.push(column.clone());
        self.column_numbers.insert(column, number);
        number
    }

    fn text_of(&self, number: u32) -> &[u8] {
        self.texts.get(number)
    }

    fn new_shape(&mut self, sum: u64, slots: &[Slot<'_>]) -> u32 {
        let (mut name, mut words) = (None, 0);
        let mut steps = Vec::with_capacity(slots.len());
        for slot in slots {
            let column = match slot {
                Slot::TraceId => {
                    steps.push(Step::TraceId);
                    continue;
                }
                Slot::SpanId => {
                    steps.push(Step::SpanId);
                    continue;
                }
                Slot::Parent => {
                    steps.push(Step::Parent);
                    continue;
                }
                Slot::Start => {
                    steps.push(Step::Start);
                    continue;
                }
                Slot::End => {
                    steps.push(Step::End);
                    continue;
                }
                Slot::Literal(bytes) => {
                    steps.push(Step::Literal((*bytes).into()));
                    continue;
                }
                Slot::Bytes { number, .. } => {
                    if *number == 5 {
                        name = Some(words);
                    }
                    Column::Field(*number)
                }
                Slot::Attribute { key, value } => Column::Attribute((*key).into(), shape::form_of(value)),
            };
            words += if matches!(column.form(), Form::Int | Form::Double) { 2 } else { 1 };
            let column = self.column(column);
            steps.push(Step::Value(column));
        }
        let (mut parts, mut bytes, mut notes) =
            (Vec::with_capacity(slots.len()), Vec::new(), Some(Vec::new()));
        for (i, (step, slot)) in steps.iter().zip(slots).enumerate() {
            let (tag, in_common) = Tag::of(slot);
            let column = if let Step::Value(column) = step { *column } else { NONE };
            let (at, len) = (bytes.len() as u32, in_common.len() as u32);
            parts.push(Part { tag, at, len, column, last: NONE });
            bytes.extend_from_slice(in_common);
            match slot {
                Slot::Attribute { key, .. } => {
                    if let (Some(notes), Some(noted)) = (&mut notes, walk::noted(key)) {
                        notes.push((i as u32, noted));
                    }
                }
                // An attribute in other bytes than usual, which may tell something nevertheless.
                Slot::Bytes { number: 9, .. } => notes = None,
                _ => {}
            }
        }
        self.add_shape(Shape { sum, steps, parts, bytes, notes, name })
    }

    fn add_shape(&mut self, shape: Shape) -> u32 {
        let (number, sum) = (self.shapes.len() as u32, shape.sum);
        self.shapes.push(shape);
        let shapes = &self.shapes;
        self.shape_table
            .insert_unique(sum, number, |number| shapes.get(*number as usize).map_or(0, |shape| shape.sum));
        number
    }

    /// The number of the shape of these pieces; none when they have none.
    #[inline]
    fn shape(&mut self, pieces: &Pieces<'_>) -> Option<u32> {
        if pieces.irregular {
            return None;
        }
        let sum = shape::sum(&pieces.slots);
        let (shapes, columns) = (&self.shapes, &self.columns);
        let same = |number: &u32| {
            shapes.get(*number as usize).is_some_and(|shape| {
                shape.sum == sum
                    && shape.steps.len() == pieces.slots.len()
                    && shape
                        .steps
                        .iter()
                        .zip(&pieces.slots)
                        .all(|(step, slot)| shape::fits(step, slot, columns))
            })
        };
        if let Some(number) = self.shape_table.find(sum, same) {
            return Some(*number);
        }
        (self.shapes.len() < SHAPES_MAX).then(|| self.new_shape(sum, &pieces.slots))
    }

    fn trace(&mut self, id: TraceId) -> u32 {
        let hash = self.hash.hash_one(id);
        let traces = &self.traces;
        let same = |number: &u32| traces.get(*number as usize).is_some_and(|trace| trace.id == id);
        if let Some(number) = self.trace_table.find(hash, same) {
            return *number;
        }
        let number = self.traces.len() as u32;
        self.traces.push(Trace { id, last: NONE, operation: NONE, ui_event: NONE, from_root: false });
        let (traces, hash_one) = (&self.traces, &self.hash);
        self.trace_table.insert_unique(hash, number, |number| {
            traces.get(*number as usize).map_or(0, |trace| hash_one.hash_one(trace.id))
        });
        number
    }

    /// Takes a span, and notes what its attributes tell.
    pub(super) fn push<'a>(&mut self, sender: u32, span: &mut Incoming<'a>, pieces: &Pieces<'a>) {
        let words = self.words.len() as u32;
        let shape = self.push_pieces(span, pieces);
        let notes = shape.and_then(|shape| self.shapes.get(shape as usize)?.notes.as_deref());
        match notes {
            Some(notes) => {
                for (slot, noted) in notes {
                    if let Some(Slot::Attribute { value, .. }) = pieces.slots.get(*slot as usize) {
                        walk::tell(*noted, *value, &mut span.known);
                    }
                }
            }
            None => {
                if let Ok(Ok(read)) = walk::span(span.raw, &mut NoSlots) {
                    span.known = read.known;
                }
            }
        }
        let span = &*span;
        let shape = shape.unwrap_or_else(|| self.push_whole(span.raw));
        let mut flags = match span.kind {
            Kind::Unspecified => 0,
            Kind::Internal => 1,
            Kind::Server => 2,
            Kind::Client => 3,
            Kind::Producer => 4,
            Kind::Consumer => 5,
        };
        if span.status == Status::Error {
            flags |= ROW_ERROR;
            if took_too_long(span) {
                flags |= ROW_TIMEOUT;
            }
        }
        if span.parent.is_some() {
            flags |= ROW_PARENT;
        }
        let trace = self.trace(span.trace_id);
        self.label(trace, span);
        let number = self.rows.len() as u32;
        let before = self
            .traces
            .get_mut(trace as usize)
            .map_or(NONE, |trace| std::mem::replace(&mut trace.last, number));
        self.rows.push(Row {
            shape,
            sender,
            words,
            before,
            span_id: u64::from_le_bytes(span.span_id),
            parent: u64::from_le_bytes(span.parent.unwrap_or_default()),
            start: span.start_unix_nanos,
            end: span.end_unix_nanos,
            flags,
        });
    }

    /// Finds the shape of the pieces and takes their values; none when they have no shape.
    #[inline]
    fn push_pieces(&mut self, span: &Incoming<'_>, pieces: &Pieces<'_>) -> Option<u32> {
        if pieces.irregular {
            return None;
        }
        // Spans of few kinds make up most: the last that looked alike is tried before the sum is made.
        let looks = (pieces.slots.len() * 8 + span.kind as usize) % GUESSES;
        if let Some(guess) = self.guesses.get(looks).copied()
            && self.push_words(guess, pieces)
        {
            return Some(guess);
        }
        let number = self.shape(pieces)?;
        if self.guesses.is_empty() {
            self.guesses.resize(GUESSES, NONE);
        }
        if let Some(guess) = self.guesses.get_mut(looks) {
            *guess = number;
        }
        self.push_words(number, pieces).then_some(number)
    }

    /// Takes the values of pieces of this shape; nothing when they are of another.
    #[inline]
    fn push_words(&mut self, shape: u32, pieces: &Pieces<'_>) -> bool {
        let Some(shape) = self.shapes.get_mut(shape as usize) else { return false };
        if shape.parts.len() != pieces.slots.len() {
            return false;
        }
        let before = self.words.len();
        for (part, slot) in shape.parts.iter_mut().zip(&pieces.slots) {
            let (tag, in_common) = Tag::of(slot);
            let there = shape.bytes.get(part.at as usize..(part.at + part.len) as usize).unwrap_or_default();
            if part.tag != tag || !same(there, in_common) {
                self.words.truncate(before);
                return false;
            }
            let value = match slot {
                Slot::Bytes { value, .. } => *value,
                Slot::Attribute { value, .. } => match value {
                    Any::Text(value) | Any::Other(value) => value,
                    Any::Int(bits) | Any::Double(bits) => {
                        self.words.extend_from_slice(&[*bits as u32, (*bits >> 32) as u32]);
                        continue;
                    }
                    Any::Flag(flag) => {
                        self.words.push(u32::from(*flag));
                        continue;
                    }
                },
                Slot::TraceId | Slot::SpanId | Slot::Parent | Slot::Start | Slot::End | Slot::Literal(_) => {
                    continue;
                }
            };
            if part.last == NONE || !same(self.texts.get(part.last), value) {
                part.last = self.texts.number(part.column, value);
            }
            self.words.push(part.last);
        }
        true
    }

    fn push_whole(&mut self, raw: &[u8]) -> u32 {
        let column = self.column(Column::Whole);
        let text = self.texts.number(column, raw);
        self.words.push(text);
        match self.shape_whole {
            Some(number) => number,
            None => {
                // No slots add up to this: found by its number only.
                let part = Part { tag: Tag::Whole, at: 0, len: 0, column, last: NONE };
                let number = self.add_shape(Shape {
                    sum: u64::MAX,
                    steps: vec![Step::Value(column)],
                    parts: vec![part],
                    bytes: Vec::new(),
                    notes: None,
                    name: None,
                });
                self.shape_whole = Some(number);
                number
            }
        }
    }

    /// Notes operation and event of a trace: the root's, else those that came first.
    fn label(&mut self, trace: u32, span: &Incoming<'_>) {
        let known = &span.known;
        let Some(trace) = self.traces.get_mut(trace as usize) else { return };
        let root = span.parent.is_none();
        if !known.operation.is_empty() && (trace.operation == NONE || root && !trace.from_root) {
            if *self.last_operation.0 != *known.operation {
                self.last_operation = (known.operation.into(), self.labels.number(known.operation));
            }
            trace.operation = self.last_operation.1;
            trace.from_root = root;
        }
        if !known.ui_event.is_empty() && (trace.ui_event == NONE || root) {
            trace.ui_event = self.labels.number(known.ui_event);
        }
    }

    /// The text that is the name of a span, by number.
    fn name_text(&self, row: &Row) -> u32 {
        let at = self.shapes.get(row.shape as usize).and_then(|shape| shape.name);
        at.map_or(NONE, |at| word(&self.words, (row.words + at) as usize))
    }

    fn name_of(&self, row: &Row) -> &[u8] {
        self.text_of(self.name_text(row))
    }

    fn rows_of(&self, trace: &Trace, out: &mut Vec<u32>) {
        out.clear();
        let mut next = trace.last;
        while let Some(row) = self.rows.get(next as usize) {
            out.push(next);
            next = row.before;
        }
        let start = |number: &u32| self.rows.get(*number as usize).map_or(0, |row| row.start);
        out.sort_unstable_by_key(|number| (start(number), *number));
    }

    /// Spans of a trace: who sent each, and its message.
    pub(super) fn spans(&self, id: TraceId, each: &mut dyn FnMut(Sent<'_>, &[u8])) {
        let hash = self.hash.hash_one(id);
        let same = |number: &u32| self.traces.get(*number as usize).is_some_and(|trace| trace.id == id);
        let Some(trace) =
            self.trace_table.find(hash, same).and_then(|number| self.traces.get(*number as usize))
        else {
            return;
        };
        let (mut rows, mut out) = (Vec::new(), Vec::new());
        self.rows_of(trace, &mut rows);
        for row in rows.iter().filter_map(|number| self.rows.get(*number as usize)) {
            out.clear();
            self.write(trace.id, row, &mut out);
            if let Some(sender) = self.senders.get(row.sender as usize) {
                each(
                    Sent {
                        resource: &sender.resource,
                        resource_schema: &sender.resource_schema,
                        scope: &sender.scope,
                        scope_schema: &sender.scope_schema,
                    },
                    &out,
                );
            }
        }
    }

    fn write(&self, trace_id: TraceId, row: &Row, out: &mut Vec<u8>) {
        let head =
            Head { trace_id, span_id: row.span_id, parent: row.parent, start: row.start, end: row.end };
        let Some(shape) = self.shapes.get(row.shape as usize) else { return };
        let mut at = row.words as usize;
        for step in &shape.steps {
            let mut column = None;
            let mut value = Value::Bits(0);
            if let Step::Value(number) = step {
                column = self.columns.get(*number as usize);
                let first = word(&self.words, at);
                match column.map(Column::form) {
                    Some(Form::Int | Form::Double) => {
                        value = Value::Bits(u64::from(first) | u64::from(word(&self.words, at + 1)) << 32);
                        at += 2;
                    }
                    Some(Form::Flag) => {
                        value = Value::Bits(u64::from(first));
                        at += 1;
                    }
                    Some(Form::Text | Form::Other) => {
                        value = Value::Bytes(self.text_of(first));
                        at += 1;
                    }
                    None => {}
                }
            }
            shape::write(out, step, &head, column, value);
        }
    }

    /// Makes a block of it.
    pub(super) fn seal(&self, packer: &mut Packer) -> std::io::Result<Sealed> {
        Sealing::new(self).seal(packer)
    }
}

/// Who sent a span, as the messages came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sent<'a> {
    pub(crate) resource: &'a [u8],
    pub(crate) resource_schema: &'a [u8],
    pub(crate) scope: &'a [u8],
    pub(crate) scope_schema: &'a [u8],
}

/// Values of a column, while its block is sealed.
#[derive(Default)]
struct Stream {
    /// Of the group that is being filled.
    bytes: Vec<u8>,
    /// Texts that were told until now, and until the group began.
    told: u32,
    told_before: u32,
    /// Lengths and bytes of the texts.
    lengths: Vec<u8>,
    texts: Vec<u8>,
}

struct Sealing<'s> {
    staging: &'s Staging,
    streams: Vec<Stream>,
    /// By number of the text: its number in its column.
    local: Vec<u32>,
    /// By number: shapes and senders in the order in which rows have them.
    shapes: Vec<u32>,
    shape_order: Vec<u32>,
    senders: Vec<u32>,
    sender_order: Vec<u32>,
    group: Group,
    groups: Vec<Vec<u8>>,
    making: Making,
    services: HashMap<(u32, u32), u32, RandomState>,
    service_of_sender: Vec<u32>,
    /// Labels of what was looked up before: names by text, operations and events by label of the staging, name and
    /// environment of senders.
    names: HashMap<u32, u32, RandomState>,
    labels: Vec<u32>,
    origins: Vec<Option<(u32, u32)>>,
    duplicates: u64,
}

#[derive(Default)]
struct Group {
    rows: u32,
    shapes: Vec<u8>,
    senders: Vec<u8>,
    starts: Vec<u8>,
    lasted: Vec<u8>,
    parents: Vec<u8>,
    ids: Vec<u8>,
    parent_ids: Vec<u8>,
}

fn in_order(numbers: &mut [u32], order: &mut Vec<u32>, number: u32) -> u32 {
    let Some(place) = numbers.get_mut(number as usize) else { return 0 };
    if *place == NONE {
        *place = order.len() as u32;
        order.push(number);
    }
    *place
}

impl<'s> Sealing<'s> {
    fn new(staging: &'s Staging) -> Self {
        Self {
            staging,
            streams: staging.columns.iter().map(|_| Stream::default()).collect(),
            local: vec![NONE; staging.texts.texts.len()],
            shapes: vec![NONE; staging.shapes.len()],
            shape_order: Vec::new(),
            senders: vec![NONE; staging.senders.len()],
            sender_order: Vec::new(),
            group: Group::default(),
            groups: Vec::new(),
            making: Making::default(),
            services: HashMap::default(),
            service_of_sender: vec![NONE; staging.senders.len()],
            names: HashMap::default(),
            labels: vec![NONE; staging.labels.len()],
            origins: vec![None; staging.senders.len()],
            duplicates: 0,
        }
    }

    fn seal(mut self, packer: &mut Packer) -> std::io::Result<Sealed> {
        let staging = self.staging;
        let mut order: Vec<u32> = (0..staging.traces.len() as u32).collect();
        let id =
            |number: &u32| staging.traces.get(*number as usize).map(|trace| u128::from_be_bytes(trace.id));
        order.sort_unstable_by_key(id);
        let mut filter = Filter::new(order.len());
        let (mut rows, mut ids) = (Vec::new(), Vec::new());
        for number in order {
            let Some(trace) = staging.traces.get(number as usize) else { continue };
            filter.add(&trace.id);
            staging.rows_of(trace, &mut rows);
            self.drop_duplicates(&mut rows, &mut ids);
            self.entry(trace, &rows);
            let mut parents = Parents::new(&ids);
            let mut before =
                rows.first().and_then(|row| staging.rows.get(*row as usize)).map_or(0, |row| row.start);
            for (i, number) in rows.iter().enumerate() {
                let Some(row) = staging.rows.get(*number as usize) else { continue };
                self.row(row, i, before, &mut parents);
                before = row.start;
            }
            if self.group.rows as usize >= GROUP_ROWS {
                self.end_group(packer)?;
            }
        }
        self.end_group(packer)?;
        let dictionary = self.dictionary(packer)?;
        let index = self.making.pack(packer)?;
        let entries = &self.making.entries;
        Ok(Sealed {
            spans: entries.iter().map(|entry| u64::from(entry.spans)).sum(),
            duplicates: self.duplicates,
            traces: entries.len() as u64,
            start_min: entries.iter().map(|entry| entry.start).min().unwrap_or_default(),
            start_max: entries.iter().map(|entry| entry.start).max().unwrap_or_default(),
            end_max: entries.iter().map(|entry| entry.end).max().unwrap_or_default(),
            filter,
            parts: Parts { index, dictionary, groups: self.groups },
        })
    }

    /// The same span twice is one span: the one that came first. Zipkin's client and server share an id, so the
    /// kind tells them apart. `ids` becomes those of the rows.
    fn drop_duplicates(&mut self, rows: &mut Vec<u32>, ids: &mut Vec<u64>) {
        let staging = self.staging;
        let key = |number: u32| {
            staging.rows.get(number as usize).map_or((0, 0), |row| (row.span_id, row.flags & ROW_KIND))
        };
        let before = rows.len();
        if before <= 24 {
            let mut i = 1;
            while i < rows.len() {
                let (head, tail) = rows.split_at(i);
                let Some(&this) = tail.first() else { break };
                let this_key = key(this);
                match head.iter().position(|other| key(*other) == this_key) {
                    Some(at) => {
                        let first = head.get(at).copied().unwrap_or(this).min(this);
                        if first == this {
                            rows.remove(at);
                        } else {
                            rows.remove(i);
                        }
                    }
                    None => i += 1,
                }
            }
        } else {
            let mut first: HashMap<(u64, u8), u32, RandomState> = HashMap::default();
            for number in rows.iter() {
                let place = first.entry(key(*number)).or_insert(*number);
                *place = (*place).min(*number);
            }
            if first.len() < before {
                rows.retain(|number| first.get(&key(*number)) == Some(number));
            }
        }
        self.duplicates += (before - rows.len()) as u64;
        ids.clear();
        ids.extend(rows.iter().map(|number| key(*number).0));
    }

    fn service(&mut self, sender: u32) -> u32 {
        let known = self.service_of_sender.get(sender as usize).copied().unwrap_or_default();
        if known != NONE {
            return known;
        }
        let Some(origin) = self.staging.senders.get(sender as usize) else { return 0 };
        let labels = &mut self.making.labels;
        let key = (labels.number(&origin.service), labels.number(&origin.namespace));
        let next = self.making.services.len() as u32;
        let number = *self.services.entry(key).or_insert(next);
        if number == next {
            self.making.services.push(key);
        }
        if let Some(place) = self.service_of_sender.get_mut(sender as usize) {
            *place = number;
        }
        number
    }

    fn entry(&mut self, trace: &Trace, rows: &[u32]) {
        let staging = self.staging;
        let mut entry =
            Entry { trace_id: trace.id, spans: rows.len() as u32, start: u64::MAX, ..Entry::default() };
        let (mut any, mut root): (u8, Option<&Row>) = (0, None);
        let from = self.making.taking_part.len();
        let mut last = NONE;
        for row in rows.iter().filter_map(|number| staging.rows.get(*number as usize)) {
            entry.start = entry.start.min(row.start);
            entry.end = entry.end.max(row.end);
            entry.errors += u32::from(row.flags & ROW_ERROR != 0);
            any |= row.flags;
            let is_root = row.flags & ROW_PARENT == 0;
            if root.is_none() || is_root && root.is_some_and(|root| root.flags & ROW_PARENT != 0) {
                root = Some(row);
            }
            if row.sender != last {
                last = row.sender;
                let service = self.service(row.sender);
                if !self.making.taking_part.get(from..).is_some_and(|there| there.contains(&service)) {
                    self.making.taking_part.push(service);
                }
            }
        }
        entry.end = entry.end.max(entry.start);
        entry.services = (from as u32, (self.making.taking_part.len() - from) as u32);
        let mut verdict = any;
        let labels = &mut self.making.labels;
        if let Some(root) = root {
            if root.flags & ROW_PARENT == 0 {
                entry.flags |= HAS_ROOT;
                verdict = root.flags;
            }
            entry.root_start = root.start;
            entry.root_name = *self
                .names
                .entry(staging.name_text(root))
                .or_insert_with(|| labels.number(staging.name_of(root)));
            if let (Some(origin), Some(known)) =
                (staging.senders.get(root.sender as usize), self.origins.get_mut(root.sender as usize))
            {
                (entry.root_service, entry.environment) = *known.get_or_insert_with(|| {
                    (labels.number(&origin.service), labels.number(&origin.environment))
                });
            }
        }
        if verdict & ROW_ERROR != 0 {
            entry.flags |= FAILED;
        }
        if verdict & ROW_TIMEOUT != 0 {
            entry.flags |= TIMED_OUT;
        }
        let mut label = |number: u32| match self.labels.get_mut(number as usize) {
            Some(known) => {
                if *known == NONE {
                    *known = labels.number(staging.labels.text(number));
                }
                *known
            }
            None => labels.number(&[]),
        };
        entry.operation = label(trace.operation);
        entry.ui_event = label(trace.ui_event);
        self.making.entries.push(entry);
    }

    fn row(&mut self, row: &Row, place: usize, before: u64, parents: &mut Parents<'_>) {
        let staging = self.staging;
        let group = &mut self.group;
        group.rows += 1;
        put_varint(
            &mut group.shapes,
            u64::from(in_order(&mut self.shapes, &mut self.shape_order, row.shape)),
        );
        put_varint(
            &mut group.senders,
            u64::from(in_order(&mut self.senders, &mut self.sender_order, row.sender)),
        );
        put_varint(&mut group.starts, row.start.wrapping_sub(before));
        put_varint(&mut group.lasted, zigzag(row.end.wrapping_sub(row.start).cast_signed()));
        group.ids.extend_from_slice(&row.span_id.to_le_bytes());
        let Some(shape) = staging.shapes.get(row.shape as usize) else { return };
        let mut at = row.words as usize;
        for part in &shape.parts {
            if part.tag == Tag::Parent {
                match parents.place(row.parent) {
                    Some(parent) => {
                        let distance = place as i64 - parent as i64;
                        put_varint(&mut group.parents, zigzag(distance) + 1);
                    }
                    None => {
                        group.parents.push(0);
                        group.parent_ids.extend_from_slice(&row.parent.to_le_bytes());
                    }
                }
                continue;
            }
            let Some(form) = part.tag.form() else { continue };
            let Some(stream) = self.streams.get_mut(part.column as usize) else { return };
            let first = word(&staging.words, at);
            at += 1;
            match form {
                Form::Text | Form::Other => {
                    let Some(local) = self.local.get_mut(first as usize) else { return };
                    if *local == NONE {
                        *local = stream.told;
                        stream.told += 1;
                        let text = staging.text_of(first);
                        put_varint(&mut stream.lengths, text.len() as u64);
                        stream.texts.extend_from_slice(text);
                        stream.bytes.push(0);
                    } else {
                        put_varint(&mut stream.bytes, u64::from(*local) + 1);
                    }
                }
                Form::Flag => stream.bytes.push(first as u8),
                Form::Int | Form::Double => {
                    let bits = u64::from(first) | u64::from(word(&staging.words, at)) << 32;
                    at += 1;
                    if form == Form::Int {
                        put_varint(&mut stream.bytes, bits);
                    } else {
                        stream.bytes.extend_from_slice(&bits.to_le_bytes());
                    }
                }
            }
        }
    }

    fn end_group(&mut self, packer: &mut Packer) -> std::io::Result<()> {
        let mut group = std::mem::take(&mut self.group);
        if group.rows == 0 {
            return Ok(());
        }
        let mut out = Vec::with_capacity(group.rows as usize * 48);
        put_varint(&mut out, u64::from(group.rows));
        for stream in [&group.shapes, &group.senders, &group.starts, &group.lasted, &group.parents] {
            put_text(&mut out, stream);
        }
        let used = self.streams.iter().filter(|stream| !stream.bytes.is_empty()).count();
        put_varint(&mut out, used as u64);
        for (number, stream) in self.streams.iter_mut().enumerate() {
            if !stream.bytes.is_empty() {
                put_varint(&mut out, number as u64);
                put_varint(&mut out, u64::from(stream.told_before));
                put_text(&mut out, &stream.bytes);
                stream.bytes.clear();
            }
            stream.told_before = stream.told;
        }
        group.ids.extend_from_slice(&group.parent_ids);
        self.groups.push(packer.pack(&out, &group.ids)?);
        self.making.groups.push(group.rows);
        Ok(())
    }

    fn dictionary(&self, packer: &mut Packer) -> std::io::Result<Vec<u8>> {
        let staging = self.staging;
        let mut out = Vec::new();
        put_varint(&mut out, self.sender_order.len() as u64);
        for origin in self.sender_order.iter().filter_map(|number| staging.senders.get(*number as usize)) {
            for part in [&origin.resource, &origin.resource_schema, &origin.scope, &origin.scope_schema] {
                put_text(&mut out, part);
            }
        }
        put_varint(&mut out, staging.columns.len() as u64);
        for column in &staging.columns {
            match column {
                Column::Whole => out.push(0),
                Column::Field(number) => {
                    out.push(1);
                    put_varint(&mut out, u64::from(*number));
                }
                Column::Attribute(key, form) => {
                    let form = Form::ALL.iter().position(|other| other == form).unwrap_or_default();
                    out.push(2 + form as u8);
                    put_text(&mut out, key);
                }
            }
        }
        put_varint(&mut out, self.shape_order.len() as u64);
        for shape in self.shape_order.iter().filter_map(|number| staging.shapes.get(*number as usize)) {
            put_varint(&mut out, shape.steps.len() as u64);
            for step in &shape.steps {
                match step {
                    Step::TraceId => out.push(0),
                    Step::SpanId => out.push(1),
                    Step::Parent => out.push(2),
                    Step::Start => out.push(3),
                    Step::End => out.push(4),
                    Step::Literal(bytes) => {
                        out.push(5);
                        put_text(&mut out, bytes);
                    }
                    Step::Value(column) => put_varint(&mut out, 6 + u64::from(*column)),
                }
            }
        }
        for stream in &self.streams {
            put_varint(&mut out, u64::from(stream.told));
            out.extend_from_slice(&stream.lengths);
            out.extend_from_slice(&stream.texts);
        }
        packer.pack(&out, &[])
    }
}

/// Places of the spans of a trace by their ids.
struct Parents<'i> {
    ids: &'i [u64],
    places: Option<HashMap<u64, usize, RandomState>>,
}

impl<'i> Parents<'i> {
    fn new(ids: &'i [u64]) -> Self {
        let places = (ids.len() > 24).then(|| ids.iter().enumerate().rev().map(|(i, id)| (*id, i)).collect());
        Self { ids, places }
    }

    fn place(&mut self, id: u64) -> Option<usize> {
        match &self.places {
            Some(places) => places.get(&id).copied(),
            None => self.ids.iter().position(|other| *other == id),
        }
    }
}

#[cfg(test)]
#[path = "../../benches/realistic/mod.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the bench")]
mod realistic;

#[cfg(test)]
mod tests {
    use super::realistic::Traffic;
    use super::*;
    use crate::span::Sender;
    use crate::store::block;
    use crate::wire::proto::Malformed;
    use std::collections::BTreeMap;

    /// Takes messages into a staging, and notes what they had: by sender and span.
    struct Fill<'a> {
        staging: &'a mut Staging,
        came: &'a mut BTreeMap<Vec<u8>, Vec<u8>>,
        sender: u32,
        resource: &'a [u8],
        pieces: Pieces<'a>,
    }

    impl<'a> walk::Visit<'a> for Fill<'a> {
        fn sender(&mut self, sender: Sender<'a>) {
            self.sender = self.staging.sender(&sender);
            self.resource = sender.resource;
        }
        fn span(&mut self, raw: &'a [u8]) -> Result<(), Malformed> {
            self.pieces.clear();
            let mut span = walk::span(raw, &mut self.pieces)?.unwrap();
            self.staging.push(self.sender, &mut span, &self.pieces);
            let read = walk::span(raw, &mut NoSlots)?.unwrap();
            assert_eq!(format!("{:?}", span.known), format!("{:?}", read.known));
            self.came.insert(raw.to_vec(), self.resource.to_vec());
            Ok(())
        }
    }

    fn fill(staging: &mut Staging, body: &[u8], came: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
        let mut fill = Fill { staging, came, sender: 0, resource: &[], pieces: Pieces::default() };
        walk::traces(body, &mut fill).unwrap();
    }

    #[test]
    fn spans_leave_a_block_in_the_bytes_in_which_they_came() {
        let mut traffic = Traffic::new(1, 50, 1000);
        let (mut staging, mut came) = (Staging::default(), BTreeMap::new());
        let mut messages = traffic.messages(9_000);
        messages.extend(traffic.rest());
        for message in &messages {
            fill(&mut staging, &message.body, &mut came);
        }
        let sealed = staging.seal(&mut Packer::new(1).unwrap()).unwrap();
        assert_eq!((sealed.spans as usize, sealed.duplicates), (came.len(), 0));
        assert!(sealed.parts.groups.len() > 1);
        let mut went = BTreeMap::new();
        block::read_all(&sealed.parts, &mut |sent, raw| {
            went.insert(raw.to_vec(), sent.resource.to_vec());
        })
        .unwrap();
        assert_eq!(went, came);
        let mut staged = BTreeMap::new();
        let ids: Vec<_> = staging.traces.iter().map(|trace| trace.id).collect();
        for id in ids {
            staging.spans(id, &mut |sent, raw| {
                staged.insert(raw.to_vec(), sent.resource.to_vec());
            });
        }
        assert_eq!(staged, came);
    }

    /// CPU nanoseconds of this thread.
    fn cpu() -> u64 {
        let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        told.split(' ').next().unwrap().parse().unwrap()
    }

    /// A small version of `make bench-flow`, by a ratio, since machines and builds differ: to read, keep and compress
    /// a span must not cost more than what the stock decoder takes to make a struct of it, two and a half times over.
    #[test]
    fn to_keep_a_span_costs_no_more_than_a_few_times_the_stock_decoder() {
        use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
        use prost::Message;
        let mut traffic = Traffic::new(9, 100, 10_000);
        let messages = traffic.messages(20_000);
        let spans: u64 = messages.iter().map(|message| message.spans).sum();
        let least = |run: &dyn Fn()| {
            let once = || {
                let before = cpu();
                run();
                cpu() - before
            };
            (0..3).map(|_| once()).min().unwrap() / spans
        };
        let stock = least(&|| {
            for message in &messages {
                let request = ExportTraceServiceRequest::decode(&*message.body).unwrap();
                assert!(!std::hint::black_box(request).resource_spans.is_empty());
            }
        });
        struct Keep<'s, 'a> {
            staging: &'s mut Staging,
            sender: u32,
            pieces: Pieces<'a>,
        }
        impl<'a> walk::Visit<'a> for Keep<'_, 'a> {
            fn sender(&mut self, sender: Sender<'a>) {
                self.sender = self.staging.sender(&sender);
            }
            fn span(&mut self, raw: &'a [u8]) -> Result<(), Malformed> {
                self.pieces.clear();
                walk::span(raw, &mut walk::Check)?.unwrap();
                let mut span = walk::span(raw, &mut self.pieces)?.unwrap();
                self.staging.push(self.sender, &mut span, &self.pieces);
                Ok(())
            }
        }
        let ours = least(&|| {
            let mut staging = Staging::default();
            for message in &messages {
                let mut keep = Keep { staging: &mut staging, sender: 0, pieces: Pieces::default() };
                walk::traces(&message.body, &mut keep).unwrap();
            }
            assert!(staging.seal(&mut Packer::new(1).unwrap()).unwrap().spans > 15_000);
        });
        assert!(2 * ours < 5 * stock, "{ours} ns a span, the stock decoder {stock} ns");
    }

    /// A checksum says that bytes are those that were written, not that they make sense.
    #[test]
    fn a_block_that_makes_no_sense_is_an_error_and_never_a_panic() {
        use crate::store::bytes::unpack;
        let mut staging = Staging::default();
        let mut came = BTreeMap::new();
        for message in Traffic::new(4, 10, 1000).messages(150) {
            fill(&mut staging, &message.body, &mut came);
        }
        let mut packer = Packer::new(1).unwrap();
        let sealed = staging.seal(&mut packer).unwrap();
        let mut random = super::realistic::Random(1);
        let (mut refused, mut read) = (0, 0);
        for round in 0..3_000 {
            let mut parts = sealed.parts.clone();
            let part = match round % 3 {
                0 => &mut parts.index,
                1 => &mut parts.dictionary,
                _ => &mut parts.groups[0],
            };
            let (mut body, plain) = unpack(part).map(|(body, plain)| (body, plain.to_vec())).unwrap();
            for _ in 0..=random.below(3) {
                let at = random.below(body.len() as u64) as usize;
                body[at] = random.below(256) as u8;
            }
            if random.below(4) == 0 {
                body.truncate(random.below(body.len() as u64) as usize);
            }
            *part = packer.pack(&body, &plain).unwrap();
            match block::read_all(&parts, &mut |_, _| {}) {
                Ok(()) => read += 1,
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 1_000 && read > 100, "{refused} refused, {read} read");
    }
}
