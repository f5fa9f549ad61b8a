//! The `traceparent` header of W3C Trace Context Level 2: four fields, read from any version and written as
//! version 00. Never looks at `tracestate`.

use super::{Invalid, fill, span_id, trace_id, trim};
use crate::hex;
use crate::ids::{Flags, SpanId, TraceId};

/// The header's name.
pub const HEADER: &str = "traceparent";

/// Bytes of a version 00 value.
pub const LEN: usize = 55;

const FORM: &[u8; LEN] = b"00-00000000000000000000000000000000-0000000000000000-00";
const TRACE_ID_AT: usize = 3;
const SPAN_ID_AT: usize = 36;
const FLAGS_AT: usize = 53;
const DASHES_AT: [usize; 3] = [2, 35, 52];

/// What the caller says about itself: its trace, its span and its flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TraceParent {
    /// The trace that the caller takes part in.
    pub trace_id: TraceId,
    /// The caller's span, which the header calls parent-id.
    pub span_id: SpanId,
    /// Its flags; bits without a meaning are already dropped.
    pub flags: Flags,
}

/// Reads a header value (§3.2), white space around it allowed.
///
/// A version above 00 is read as far as 00 goes (§4.3): what follows the flags must begin with `-` and is not
/// looked at.
pub fn parse(value: &[u8]) -> Result<TraceParent, Invalid> {
    let (form, beyond) = trim(value).split_first_chunk::<LEN>().ok_or(Invalid::Length)?;
    if DASHES_AT.iter().any(|at| form.get(*at) != Some(&b'-')) {
        return Err(Invalid::Separator);
    }
    let digits = |from: usize, to: usize| form.get(from..to).unwrap_or_default();

    match (hex::decode(digits(0, 2)).ok_or(Invalid::Version)?, beyond) {
        ([0xff], _) => return Err(Invalid::Version),
        (_, []) => {}
        ([0x00], _) => return Err(Invalid::Length),
        (_, [b'-', ..]) => {}
        (_, _) => return Err(Invalid::Separator),
    }
    let trace_id = trace_id(digits(TRACE_ID_AT, 35))?;
    let span_id = span_id(digits(SPAN_ID_AT, 52))?;
    let [flags] = hex::decode(digits(FLAGS_AT, LEN)).ok_or(Invalid::Flags)?;
    Ok(TraceParent { trace_id, span_id, flags: Flags::from_byte(flags) })
}

/// Writes a version 00 value.
#[must_use]
pub fn print(parent: &TraceParent) -> [u8; LEN] {
    let mut form = *FORM;
    fill(&mut form, TRACE_ID_AT, parent.trace_id.bytes());
    fill(&mut form, SPAN_ID_AT, parent.span_id.bytes());
    fill(&mut form, FLAGS_AT, &[parent.flags.byte()]);
    form
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::propagation::vectors;

    const VALID: &[u8] = b"00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-03";

    #[test]
    fn vectors_hold() {
        for row in vectors::rows("traceparent.txt", include_str!("../../vectors/traceparent.txt")) {
            let seen = match parse(row.input(0)) {
                Ok(TraceParent { trace_id, span_id, flags }) => {
                    format!("trace {trace_id} span {span_id} flags {flags:?}")
                }
                Err(invalid) => format!("invalid {}", invalid.reason()),
            };
            row.check(&seen, &[]);
        }
    }

    #[test]
    fn what_is_printed_is_what_was_parsed() {
        assert_eq!(print(&parse(VALID).unwrap()), VALID);
    }

    #[test]
    fn no_damage_panics_and_what_survives_prints_and_parses_to_the_same() {
        vectors::damaged(VALID, |value| {
            if let Ok(parent) = parse(value) {
                assert_eq!(parse(&print(&parent)), Ok(parent), "{}", value.escape_ascii());
            }
        });
    }
}
