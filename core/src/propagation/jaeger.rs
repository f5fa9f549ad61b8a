//! Jaeger's `uber-trace-id` header: `{trace}:{span}:{parent}:{flags}`. Never hands on the parent field, which
//! Jaeger deprecates, and never reads `uberctx-*` baggage.

use super::{Invalid, fill, padded, span_id, trace_id, trim};
use crate::hex;
use crate::ids::{SpanId, TraceId};

/// The header's name.
pub const HEADER: &str = "uber-trace-id";

/// Bytes of a value as it is printed.
pub const LEN: usize = 53;

const FORM: &[u8; LEN] = b"00000000000000000000000000000000:0000000000000000:0:0";
const SPAN_ID_AT: usize = 33;
const SAMPLED: u8 = 0x01;
const DEBUG: u8 = 0x02;

/// What the caller says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UberTraceId {
    /// The trace that the caller takes part in.
    pub trace_id: TraceId,
    /// The caller's span.
    pub span_id: SpanId,
    /// Whether the caller sampled it; true in debug.
    pub sampled: bool,
    /// Whether every part of the system is asked to keep it.
    pub debug: bool,
}

/// Reads a header value, white space around it allowed.
///
/// Ids are numbers: zeros to their left may be missing and digits may be upper case. Some clients send the colons
/// percent-encoded, all or in part.
pub fn parse(value: &[u8]) -> Result<UberTraceId, Invalid> {
    let (trace, rest) = field(trim(value)).ok_or(Invalid::Separator)?;
    let (span, rest) = field(rest).ok_or(Invalid::Separator)?;
    let (parent, flags) = field(rest).ok_or(Invalid::Separator)?;
    if field(flags).is_some() {
        return Err(Invalid::Separator);
    }
    let trace_id = trace_id(&number::<32>(trace).ok_or(Invalid::TraceId)?)?;
    let span_id = span_id(&number::<16>(span).ok_or(Invalid::SpanId)?)?;
    number::<16>(parent).and_then(|digits| hex::decode::<8>(&digits)).ok_or(Invalid::ParentSpanId)?;
    let [flags] = number::<2>(flags).and_then(|digits| hex::decode(&digits)).ok_or(Invalid::Flags)?;
    Ok(UberTraceId { trace_id, span_id, sampled: flags & (SAMPLED | DEBUG) != 0, debug: flags & DEBUG != 0 })
}

/// Writes a value: full-length ids, parent `0`, plain colons. Debug means sampled.
#[must_use]
pub fn print(id: &UberTraceId) -> [u8; LEN] {
    let mut form = *FORM;
    fill(&mut form, 0, id.trace_id.bytes());
    fill(&mut form, SPAN_ID_AT, id.span_id.bytes());
    let [.., flags] = &mut form;
    *flags = match (id.debug, id.sampled) {
        (true, _) => b'3',
        (false, true) => b'1',
        (false, false) => b'0',
    };
    form
}

/// The text before the first colon and after it.
fn field(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| matches!(byte, b':' | b'%'))?;
    match text.split_at_checked(at)? {
        (before, [b':', after @ ..] | [b'%', b'3', b'A' | b'a', after @ ..]) => Some((before, after)),
        _ => None,
    }
}

/// Digits with zeros to their left, in lower case.
fn number<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    padded(digits).map(|text: [u8; N]| text.map(|digit| digit.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::propagation::vectors;

    const VALID: &[u8] = b"4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7:a1b2c3d4e5f60718:0:3";

    #[test]
    fn vectors_hold() {
        for row in vectors::rows("jaeger.txt", include_str!("../../vectors/jaeger.txt")) {
            let seen = match parse(row.input(0)) {
                Ok(UberTraceId { trace_id, span_id, sampled, debug }) => {
                    let decision = match (debug, sampled) {
                        (true, true) => "debug",
                        (true, false) => "debug but not sampled",
                        (false, true) => "accept",
                        (false, false) => "deny",
                    };
                    format!("trace {trace_id} span {span_id} {decision}")
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
        for valid in [VALID, b"1%3Af%3A0%3A01"] {
            vectors::damaged(valid, |value| {
                if let Ok(id) = parse(value) {
                    assert_eq!(parse(&print(&id)), Ok(id), "{}", value.escape_ascii());
                }
            });
        }
    }
}
