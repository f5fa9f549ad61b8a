//! What spans of one kind have in common: the fields in their order, the keys, the types. A span is its shape and the
//! values, and comes back byte for byte. Must never give back other bytes than those that came.

use crate::wire::proto::{put_bytes, put_varint, varint_len};
use crate::wire::walk::{Any, Slot};

/// What a column holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Form {
    /// Text or bytes, by number in the column's dictionary.
    Text,
    /// 64 bits, as a varint.
    Int,
    /// 64 bits, as they are.
    Double,
    /// One bit.
    Flag,
    /// An `AnyValue` message, by number in the column's dictionary.
    Other,
}

impl Form {
    pub(super) const ALL: [Self; 5] = [Self::Text, Self::Int, Self::Double, Self::Flag, Self::Other];
}

/// Which values stand together.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Column {
    /// A field of the span of wire type 2.
    Field(u32),
    /// An attribute of this key and form.
    Attribute(Box<[u8]>, Form),
    /// Whole spans that have no shape.
    Whole,
}

impl Column {
    pub(super) fn form(&self) -> Form {
        match self {
            Self::Field(_) | Self::Whole => Form::Text,
            Self::Attribute(_, form) => *form,
        }
    }
}

/// One step of putting a span together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// The trace's id.
    TraceId,
    /// The span's id.
    SpanId,
    /// The parent's id.
    Parent,
    /// When it began.
    Start,
    /// When it ended.
    End,
    /// These bytes.
    Literal(Box<[u8]>),
    /// A value of this column.
    Value(u32),
}

/// Whether a step is what this slot asks for. `columns` knows the keys.
pub(super) fn fits(step: &Step, slot: &Slot<'_>, columns: &[Column]) -> bool {
    match (step, slot) {
        (Step::TraceId, Slot::TraceId)
        | (Step::SpanId, Slot::SpanId)
        | (Step::Parent, Slot::Parent)
        | (Step::Start, Slot::Start)
        | (Step::End, Slot::End) => true,
        (Step::Literal(bytes), Slot::Literal(slot)) => **bytes == **slot,
        (Step::Value(column), slot) => match (columns.get(*column as usize), slot) {
            (Some(Column::Field(number)), Slot::Bytes { number: slot, .. }) => number == slot,
            (Some(Column::Attribute(key, form)), Slot::Attribute { key: slot, value }) => {
                *form == form_of(value) && **key == **slot
            }
            _ => false,
        },
        _ => false,
    }
}

/// The form of a value.
pub(super) fn form_of(value: &Any<'_>) -> Form {
    match value {
        Any::Text(_) => Form::Text,
        Any::Int(_) => Form::Int,
        Any::Flag(_) => Form::Flag,
        Any::Double(_) => Form::Double,
        Any::Other(_) => Form::Other,
    }
}

/// A small number for finding the shape of slots: equal slots give equal numbers, and different ones mostly differ.
pub(super) fn sum(slots: &[Slot<'_>]) -> u64 {
    let mut sum = slots.len() as u64;
    let mut fold = |value: u64| sum = (sum ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    for slot in slots {
        match slot {
            Slot::TraceId => fold(1),
            Slot::SpanId => fold(2),
            Slot::Parent => fold(3),
            Slot::Start => fold(4),
            Slot::End => fold(5),
            Slot::Literal(bytes) => fold(6 + (edge(bytes) << 8)),
            Slot::Bytes { number, .. } => fold(7 + (u64::from(*number) << 8)),
            Slot::Attribute { key, value } => {
                fold(8 + form_of(value) as u64 + ((key.len() as u64) << 8) + (edge(key) << 16));
            }
        }
    }
    sum
}

/// The last bytes.
fn edge(bytes: &[u8]) -> u64 {
    match bytes {
        [.., a, b, c, d] => u64::from(u32::from_le_bytes([*a, *b, *c, *d])),
        _ => bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    }
}

/// Ids and moments of a span.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head {
    pub(super) trace_id: [u8; 16],
    pub(super) span_id: u64,
    pub(super) parent: u64,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A value while a span is put together.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Bytes(&'a [u8]),
    Bits(u64),
}

/// Writes a step; `value` is that of the step's column, where it has one.
pub(super) fn write(out: &mut Vec<u8>, step: &Step, head: &Head, column: Option<&Column>, value: Value<'_>) {
    match step {
        Step::TraceId => put_bytes(out, 1, &head.trace_id),
        Step::SpanId => put_bytes(out, 2, &head.span_id.to_le_bytes()),
        Step::Parent => put_bytes(out, 4, &head.parent.to_le_bytes()),
        Step::Start => fixed64(out, 7, head.start),
        Step::End => fixed64(out, 8, head.end),
        Step::Literal(bytes) => out.extend_from_slice(bytes),
        Step::Value(_) => match (column, value) {
            (Some(Column::Field(number)), Value::Bytes(bytes)) => put_bytes(out, *number, bytes),
            (Some(Column::Whole), Value::Bytes(bytes)) => out.extend_from_slice(bytes),
            (Some(Column::Attribute(key, form)), value) => attribute(out, key, *form, value),
            (Some(Column::Field(_) | Column::Whole) | None, _) => {}
        },
    }
}

fn fixed64(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn attribute(out: &mut Vec<u8>, key: &[u8], form: Form, value: Value<'_>) {
    let any = match (form, value) {
        (Form::Text, Value::Bytes(text)) => 1 + varint_len(text.len() as u64) + text.len(),
        (Form::Other, Value::Bytes(any)) => any.len(),
        (Form::Int, Value::Bits(int)) => 1 + varint_len(int),
        (Form::Flag, Value::Bits(_)) => 2,
        (Form::Double, Value::Bits(_)) => 9,
        (Form::Text | Form::Other | Form::Int | Form::Flag | Form::Double, _) => return,
    };
    let len = 1 + varint_len(key.len() as u64) + key.len() + 1 + varint_len(any as u64) + any;
    put_varint(out, 9 << 3 | 2);
    put_varint(out, len as u64);
    put_bytes(out, 1, key);
    put_varint(out, 2 << 3 | 2);
    put_varint(out, any as u64);
    match (form, value) {
        (Form::Text, Value::Bytes(text)) => put_bytes(out, 1, text),
        (Form::Other, Value::Bytes(any)) => out.extend_from_slice(any),
        (Form::Int, Value::Bits(int)) => {
            out.push(3 << 3);
            put_varint(out, int);
        }
        (Form::Flag, Value::Bits(flag)) => out.extend_from_slice(&[2 << 3, u8::from(flag != 0)]),
        (Form::Double, Value::Bits(bits)) => fixed64(out, 4, bits),
        (Form::Text | Form::Other | Form::Int | Form::Flag | Form::Double, _) => {}
    }
}
