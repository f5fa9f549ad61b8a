//! A sealed block: an index of its traces, a dictionary, and groups of rows, each a part of its own with a checksum.
//! One trace is read from the index, the dictionary and one group. Must never panic on a part that is damaged.

use super::bytes::{Damaged, Take, unpack, unzigzag};
use super::index::{Entry, Filter, Index};
use super::shape::{self, Column, Form, Head, Step, Value};
use super::staging::Sent;
use std::ops::Range;

/// The parts of a block, as they are stored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Parts {
    pub(super) index: Vec<u8>,
    pub(super) dictionary: Vec<u8>,
    pub(super) groups: Vec<Vec<u8>>,
}

impl Parts {
    pub(super) fn bytes(&self) -> usize {
        self.index.len() + self.dictionary.len() + self.groups.iter().map(Vec::len).sum::<usize>()
    }
}

/// A block, and what is told of it without its parts.
#[derive(Clone, Debug)]
pub(super) struct Sealed {
    pub(super) spans: u64,
    /// Spans that were there twice, and are not in it twice.
    pub(super) duplicates: u64,
    pub(super) traces: u64,
    pub(super) start_min: u64,
    pub(super) start_max: u64,
    pub(super) end_max: u64,
    pub(super) filter: Filter,
    pub(super) parts: Parts,
}

/// Texts of a column.
#[derive(Debug, Default)]
struct Texts {
    ends: Vec<u32>,
    from: usize,
}

/// What the rows of a block refer to.
#[derive(Debug)]
pub(super) struct Dictionary {
    body: Vec<u8>,
    senders: Vec<[Range<usize>; 4]>,
    columns: Vec<Column>,
    shapes: Vec<Vec<Step>>,
    texts: Vec<Texts>,
}

impl Dictionary {
    pub(super) fn unpack(part: &[u8]) -> Result<Self, Damaged> {
        let (body, _) = unpack(part)?;
        let all = body.len();
        let mut take = Take(&body);
        let mut senders = Vec::new();
        for _ in 0..take.count()? {
            let mut ranges = [const { 0..0 }; 4];
            for range in &mut ranges {
                let text = take.text()?;
                let end = all - take.0.len();
                *range = end - text.len()..end;
            }
            senders.push(ranges);
        }
        let mut columns = Vec::new();
        for _ in 0..take.count()? {
            columns.push(match take.varint()? {
                0 => Column::Whole,
                1 => Column::Field(take.index()?),
                form => {
                    let form = usize::try_from(form - 2).ok().and_then(|form| Form::ALL.get(form));
                    Column::Attribute(take.text()?.into(), *form.ok_or(Damaged("a form is unknown"))?)
                }
            });
        }
        let mut shapes = Vec::new();
        for _ in 0..take.count()? {
            let mut steps = Vec::new();
            for _ in 0..take.count()? {
                steps.push(match take.index()? {
                    0 => Step::TraceId,
                    1 => Step::SpanId,
                    2 => Step::Parent,
                    3 => Step::Start,
                    4 => Step::End,
                    5 => Step::Literal(take.text()?.into()),
                    column if (column - 6) as usize >= columns.len() => {
                        return Err(Damaged("a column is missing"));
                    }
                    column => Step::Value(column - 6),
                });
            }
            shapes.push(steps);
        }
        let mut texts = Vec::new();
        for _ in &columns {
            let (count, mut end) = (take.count()?, 0_u32);
            let mut ends = Vec::with_capacity(count);
            for _ in 0..count {
                end = end.checked_add(take.index()?).ok_or(Damaged("texts are too long"))?;
                ends.push(end);
            }
            let from = all - take.0.len();
            take.bytes(end as usize)?;
            texts.push(Texts { ends, from });
        }
        Ok(Self { senders, columns, shapes, texts, body })
    }

    fn text(&self, column: usize, number: usize) -> Option<&[u8]> {
        let texts = self.texts.get(column)?;
        let from = match number.checked_sub(1) {
            Some(before) => *texts.ends.get(before)?,
            None => 0,
        };
        let to = *texts.ends.get(number)?;
        self.body.get(texts.from + from as usize..texts.from + to as usize)
    }

    fn sender(&self, number: u64) -> Option<Sent<'_>> {
        let [resource, resource_schema, scope, scope_schema] =
            usize::try_from(number).ok().and_then(|number| self.senders.get(number))?;
        Some(Sent {
            resource: self.body.get(resource.clone())?,
            resource_schema: self.body.get(resource_schema.clone())?,
            scope: self.body.get(scope.clone())?,
            scope_schema: self.body.get(scope_schema.clone())?,
        })
    }
}

/// A column's values in a group.
#[derive(Clone, Copy)]
struct Values<'a> {
    take: Take<'a>,
    told: u64,
}

/// Reads the rows of a group from the first to the last.
struct Rows<'a> {
    dictionary: &'a Dictionary,
    shapes: Take<'a>,
    senders: Take<'a>,
    starts: Take<'a>,
    lasted: Take<'a>,
    parents: Take<'a>,
    ids: &'a [u8],
    parent_ids: Take<'a>,
    columns: Vec<Option<Values<'a>>>,
}

const SHORT: Damaged = Damaged("a row refers to what is not there");

impl<'a> Rows<'a> {
    fn new(dictionary: &'a Dictionary, body: &'a [u8], plain: &'a [u8]) -> Result<(u64, Self), Damaged> {
        let mut take = Take(body);
        let rows = take.varint()?;
        let mut stream = || Ok(Take(take.text()?));
        let (shapes, senders, starts) = (stream()?, stream()?, stream()?);
        let (lasted, parents) = (stream()?, stream()?);
        let mut columns = vec![None; dictionary.columns.len()];
        for _ in 0..take.count()? {
            let number = take.size()?;
            let told = take.varint()?;
            *columns.get_mut(number).ok_or(SHORT)? = Some(Values { take: Take(take.text()?), told });
        }
        let ids = usize::try_from(rows).ok().and_then(|rows| rows.checked_mul(8)).ok_or(SHORT)?;
        let (ids, parent_ids) = plain.split_at_checked(ids).ok_or(SHORT)?;
        let rows_read = Self {
            dictionary,
            shapes,
            senders,
            starts,
            lasted,
            parents,
            ids,
            parent_ids: Take(parent_ids),
            columns,
        };
        Ok((rows, rows_read))
    }

    /// Reads the next row, which is one of `entry` and the `place`th of it, `row`th of the group. Writes its message
    /// when it is wanted.
    fn row(
        &mut self,
        entry: &Entry,
        place: u64,
        row: u64,
        before: &mut u64,
        out: Option<&mut Vec<u8>>,
    ) -> Result<Sent<'a>, Damaged> {
        let dictionary = self.dictionary;
        let steps =
            usize::try_from(self.shapes.varint()?).ok().and_then(|shape| dictionary.shapes.get(shape));
        let steps = steps.ok_or(SHORT)?;
        let sender = dictionary.sender(self.senders.varint()?).ok_or(SHORT)?;
        let start = before.wrapping_add(self.starts.varint()?);
        *before = start;
        let end = start.wrapping_add(unzigzag(self.lasted.varint()?).cast_unsigned());
        let span_id = self.id(row)?;
        let mut head = Head { trace_id: entry.trace_id, span_id, parent: 0, start, end };
        let mut nowhere = Vec::new();
        let wanted = out.is_some();
        let out = out.unwrap_or(&mut nowhere);
        for step in steps {
            let mut value = Value::Bits(0);
            let mut column = None;
            match step {
                Step::Parent => {
                    head.parent = match self.parents.varint()? {
                        0 => self.parent_ids.word()?,
                        near => {
                            let distance = unzigzag(near - 1);
                            // Rows of a trace stand together, so its parent is so many rows before, or after.
                            let there = place.checked_add_signed(distance.wrapping_neg()).ok_or(SHORT)?;
                            if there >= u64::from(entry.spans) {
                                return Err(SHORT);
                            }
                            self.id(row.wrapping_sub(place).wrapping_add(there))?
                        }
                    };
                }
                Step::Value(number) => {
                    let number = *number as usize;
                    column = dictionary.columns.get(number);
                    let values = self.columns.get_mut(number).and_then(Option::as_mut).ok_or(SHORT)?;
                    match column.ok_or(SHORT)?.form() {
                        Form::Text | Form::Other => {
                            let local = match values.take.varint()? {
                                0 => {
                                    values.told += 1;
                                    values.told - 1
                                }
                                local => local - 1,
                            };
                            if wanted {
                                let local = usize::try_from(local).map_err(|_| SHORT)?;
                                value = Value::Bytes(dictionary.text(number, local).ok_or(SHORT)?);
                            }
                        }
                        Form::Int => value = Value::Bits(values.take.varint()?),
                        Form::Double => value = Value::Bits(values.take.word()?),
                        Form::Flag => value = Value::Bits(values.take.varint()?),
                    }
                }
                Step::TraceId | Step::SpanId | Step::Start | Step::End | Step::Literal(_) => {}
            }
            if wanted {
                shape::write(out, step, &head, column, value);
            }
        }
        Ok(sender)
    }

    fn id(&self, row: u64) -> Result<u64, Damaged> {
        let at = usize::try_from(row).ok().and_then(|row| row.checked_mul(8)).ok_or(SHORT)?;
        let bytes = self.ids.get(at..).and_then(|ids| ids.first_chunk::<8>()).ok_or(SHORT)?;
        Ok(u64::from_le_bytes(*bytes))
    }
}

/// Takes the spans of a block: who sent each, and its message.
pub(super) type Each<'e> = dyn FnMut(Sent<'_>, &[u8]) + 'e;

/// Which group has this row, and how many rows stand before that group.
pub(super) fn group_of(index: &Index, row: u64) -> Option<(usize, u64)> {
    let mut before = 0;
    for (group, rows) in index.groups.iter().enumerate() {
        if row < before + u64::from(*rows) {
            return Some((group, before));
        }
        before += u64::from(*rows);
    }
    None
}

/// Reads the spans of some traces of a group: those that `wants` says yes to. `first_row` is that of the group.
pub(super) fn read_group(
    index: &Index,
    dictionary: &Dictionary,
    group: &[u8],
    first_row: u64,
    wants: &dyn Fn(&Entry) -> bool,
    each: &mut Each<'_>,
) -> Result<(), Damaged> {
    let (body, plain) = unpack(group)?;
    let (count, mut rows) = Rows::new(dictionary, &body, plain)?;
    // Groups end with a trace.
    let mut at = 0_u64;
    let mut out = Vec::new();
    let mut here = 0_u64;
    for entry in &index.entries {
        let spans = u64::from(entry.spans);
        if at < first_row {
            at += spans;
            continue;
        }
        if here >= count {
            break;
        }
        if here + spans > count {
            return Err(Damaged("a trace lies in two groups"));
        }
        let wanted = wants(entry);
        let mut before = entry.start;
        for place in 0..spans {
            out.clear();
            let sent = rows.row(entry, place, here + place, &mut before, wanted.then_some(&mut out))?;
            if wanted {
                each(sent, &out);
            }
        }
        here += spans;
        at += spans;
    }
    if here == count { Ok(()) } else { Err(Damaged("rows belong to no trace")) }
}

/// Reads all spans of a block.
pub(super) fn read_all(parts: &Parts, each: &mut Each<'_>) -> Result<(), Damaged> {
    let index = Index::unpack(&parts.index)?;
    let dictionary = Dictionary::unpack(&parts.dictionary)?;
    let mut first = 0;
    for (group, rows) in parts.groups.iter().zip(&index.groups) {
        read_group(&index, &dictionary, group, first, &|_| true, each)?;
        first += u64::from(*rows);
    }
    Ok(())
}
