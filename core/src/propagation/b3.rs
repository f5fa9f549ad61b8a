//! Zipkin's B3 headers: the single `b3` header and the family of `x-b3-*`. Never hands on a parent's span id:
//! B3 may share one span between client and server, this product does not.

use super::{Invalid, fill, padded, span_id, trace_id, trim};
use crate::hex;
use crate::ids::{SpanId, TraceId};

/// The name of the single header.
pub const SINGLE: &str = "b3";
/// The trace id: 32 or 16 digits.
pub const TRACE_ID: &str = "x-b3-traceid";
/// The caller's span id: 16 digits.
pub const SPAN_ID: &str = "x-b3-spanid";
/// The span id of the caller's own parent; never read, removed when a new context is written.
pub const PARENT_SPAN_ID: &str = "x-b3-parentspanid";
/// The sampling decision: `1` or `0`.
pub const SAMPLED: &str = "x-b3-sampled";
/// `1` for debug.
pub const FLAGS: &str = "x-b3-flags";

/// Bytes of a single header as it is printed.
pub const SINGLE_LEN: usize = 51;

const FORM: &[u8; SINGLE_LEN] = b"00000000000000000000000000000000-0000000000000000-0";
const SPAN_ID_AT: usize = 33;

/// What the caller says about sampling.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sampling {
    /// Nothing: the receiver decides.
    Deferred,
    /// Not sampled.
    Deny,
    /// Sampled.
    Accept,
    /// Sampled, and every part of the system is asked to keep it.
    Debug,
}

impl Sampling {
    /// The caller's decision; `None` when it leaves it to the receiver.
    #[must_use]
    pub fn sampled(self) -> Option<bool> {
        match self {
            Self::Deferred => None,
            Self::Deny => Some(false),
            Self::Accept | Self::Debug => Some(true),
        }
    }
}

/// What B3 headers say; a sampling state may come without any ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct B3 {
    /// The trace and the caller's span.
    pub context: Option<(TraceId, SpanId)>,
    /// The sampling state.
    pub sampling: Sampling,
}

/// Reads the single header: `trace-span`, `trace-span-state`, `trace-span-state-parent` or a lone state.
pub fn parse_single(value: &[u8]) -> Result<B3, Invalid> {
    let value = trim(value);
    if let Some(sampling) = state(value) {
        return Ok(B3 { context: None, sampling });
    }
    let mut fields = value.split(|byte| *byte == b'-');
    let (Some(trace), Some(span)) = (fields.next(), fields.next()) else {
        return Err(Invalid::Separator);
    };
    let context = Some((long_or_short(trace)?, span_id(span)?));
    let sampling = match fields.next() {
        None => Sampling::Deferred,
        Some(text) => state(text).ok_or(Invalid::Sampled)?,
    };
    if let Some(parent) = fields.next() {
        hex::decode::<8>(parent).ok_or(Invalid::ParentSpanId)?;
    }
    match fields.next() {
        None => Ok(B3 { context, sampling }),
        Some(_) => Err(Invalid::Separator),
    }
}

/// Reads the values of the headers [`TRACE_ID`], [`SPAN_ID`], [`SAMPLED`] and [`FLAGS`]; `Ok(None)` when none
/// of them is there.
///
/// Flags other than `1` have no meaning and are ignored, as B3 asks. Sampled may be spelt `true` and `false`.
pub fn parse_multi(
    trace_id: Option<&[u8]>,
    span_id: Option<&[u8]>,
    sampled: Option<&[u8]>,
    flags: Option<&[u8]>,
) -> Result<Option<B3>, Invalid> {
    if let (None, None, None, None) = (trace_id, span_id, sampled, flags) {
        return Ok(None);
    }
    let context = match (trace_id, span_id) {
        (Some(trace), Some(span)) => Some((long_or_short(trim(trace))?, super::span_id(trim(span))?)),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => return Err(Invalid::LoneId),
    };
    let decision = match sampled.map(trim) {
        None => Sampling::Deferred,
        Some(b"1" | b"true") => Sampling::Accept,
        Some(b"0" | b"false") => Sampling::Deny,
        Some(_) => return Err(Invalid::Sampled),
    };
    let sampling = if flags.map(trim) == Some(b"1") { Sampling::Debug } else { decision };
    Ok(Some(B3 { context, sampling }))
}

/// Writes the single header, `trace-span-state`, always with 32 digits of trace id and never with a parent.
/// Debug means sampled.
#[must_use]
pub fn print_single(trace: TraceId, span: SpanId, sampled: bool, debug: bool) -> [u8; SINGLE_LEN] {
    let mut form = *FORM;
    fill(&mut form, 0, trace.bytes());
    fill(&mut form, SPAN_ID_AT, span.bytes());
    let [.., state] = &mut form;
    *state = match (debug, sampled) {
        (true, _) => b'd',
        (false, true) => b'1',
        (false, false) => b'0',
    };
    form
}

fn state(text: &[u8]) -> Option<Sampling> {
    match text {
        b"0" => Some(Sampling::Deny),
        b"1" => Some(Sampling::Accept),
        b"d" => Some(Sampling::Debug),
        _ => None,
    }
}

/// A trace id of 32 digits, or of 16 that get zeros to their left.
fn long_or_short(digits: &[u8]) -> Result<TraceId, Invalid> {
    match digits.len() {
        16 | 32 => trace_id(&padded::<32>(digits).ok_or(Invalid::TraceId)?),
        _ => Err(Invalid::TraceId),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::propagation::vectors;

    const VALID: &[u8] = b"4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-d";

    fn described(b3: B3) -> String {
        let sampling = match b3.sampling {
            Sampling::Deferred => "deferred",
            Sampling::Deny => "deny",
            Sampling::Accept => "accept",
            Sampling::Debug => "debug",
        };
        match b3.context {
            Some((trace, span)) => format!("trace {trace} span {span} {sampling}"),
            None => sampling.to_owned(),
        }
    }

    #[test]
    fn vectors_hold() {
        for row in vectors::rows("b3.txt", include_str!("../../vectors/b3.txt")) {
            let parsed = match row.verb() {
                "single" => parse_single(row.input(0)).map(Some),
                "multi" => parse_multi(row.optional(0), row.optional(1), row.optional(2), row.optional(3)),
                _ => row.unknown_verb(),
            };
            let seen = match parsed {
                Ok(Some(b3)) => described(b3),
                Ok(None) => "nothing".to_owned(),
                Err(invalid) => format!("invalid {}", invalid.reason()),
            };
            row.check(&seen, &[]);
        }
    }

    #[test]
    fn what_is_printed_is_what_was_parsed() {
        let (trace, span) = parse_single(VALID).unwrap().context.unwrap();
        for (sampled, debug, sampling) in [
            (true, true, Sampling::Debug),
            (false, true, Sampling::Debug),
            (true, false, Sampling::Accept),
            (false, false, Sampling::Deny),
        ] {
            let text = print_single(trace, span, sampled, debug);
            assert_eq!(parse_single(&text), Ok(B3 { context: Some((trace, span)), sampling }));
        }
        assert_eq!(print_single(trace, span, true, true), VALID);
    }

    #[test]
    fn no_damage_panics_and_what_survives_prints_and_parses_to_the_same() {
        for valid in [VALID, b"a1b2c3d4e5f60718-a1b2c3d4e5f60718-1-a1b2c3d4e5f60718", b"d"] {
            vectors::damaged(valid, |value| {
                if let Ok(b3) = parse_single(value)
                    && let (Some((trace, span)), Some(sampled)) = (b3.context, b3.sampling.sampled())
                {
                    let text = print_single(trace, span, sampled, b3.sampling == Sampling::Debug);
                    assert_eq!(parse_single(&text), Ok(b3), "{}", value.escape_ascii());
                }
            });
        }
    }
}
