//! The texts that carry a trace from one process to the next: one module per format, and [`Invalid`], the one
//! list of rules a received text can break. Never looks at a whole message, chooses a format or decides about
//! sampling.

pub mod b3;
pub mod baggage;
pub mod jaeger;
mod list;
pub mod traceparent;
pub mod tracestate;
#[cfg(test)]
mod vectors;

use crate::hex;
use crate::ids::{SpanId, TraceId};

/// The rule that a received text breaks. The sender is at fault, never this process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Invalid {
    /// Too short for the format, or longer than its version allows.
    Length,
    /// A separator is missing, misplaced or one too many.
    Separator,
    /// The version is not two lower-case hexadecimal digits, or is the forbidden `ff`.
    Version,
    /// The trace id has the wrong number of digits or other characters.
    TraceId,
    /// The trace id is all zeros.
    ZeroTraceId,
    /// The span id has the wrong number of digits or other characters.
    SpanId,
    /// The span id is all zeros.
    ZeroSpanId,
    /// A trace id came without a span id, or the other way round.
    LoneId,
    /// The parent's span id, which nothing reads, is not hexadecimal.
    ParentSpanId,
    /// The flags are not the hexadecimal digits that the format asks for.
    Flags,
    /// The sampling state is not one that the format knows.
    Sampled,
    /// More members than the list may have.
    Members,
    /// A member's key is empty, too long or has other characters than the format allows.
    Key,
    /// A member's value is empty, too long or has other characters than the format allows.
    Value,
}

impl Invalid {
    /// A short name for a counter's label or a log field: lower case, words joined by `_`.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Separator => "separator",
            Self::Version => "version",
            Self::TraceId => "trace_id",
            Self::ZeroTraceId => "zero_trace_id",
            Self::SpanId => "span_id",
            Self::ZeroSpanId => "zero_span_id",
            Self::LoneId => "lone_id",
            Self::ParentSpanId => "parent_span_id",
            Self::Flags => "flags",
            Self::Sampled => "sampled",
            Self::Members => "members",
            Self::Key => "key",
            Self::Value => "value",
        }
    }
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Length => "too short, or longer than its version allows",
            Self::Separator => "a separator is missing, misplaced or one too many",
            Self::Version => "the version is not two lower-case hexadecimal digits below ff",
            Self::TraceId => "the trace id is not the hexadecimal digits that the format asks for",
            Self::ZeroTraceId => "the trace id is all zeros",
            Self::SpanId => "the span id is not the hexadecimal digits that the format asks for",
            Self::ZeroSpanId => "the span id is all zeros",
            Self::LoneId => "the trace id and the span id must come together",
            Self::ParentSpanId => {
                "the parent's span id is not the hexadecimal digits that the format asks for"
            }
            Self::Flags => "the flags are not the hexadecimal digits that the format asks for",
            Self::Sampled => "the sampling state is not one that the format knows",
            Self::Members => "more members than the list may have",
            Self::Key => "a member's key is empty, too long or has characters that the format forbids",
            Self::Value => "a member's value is empty, too long or has characters that the format forbids",
        })
    }
}

impl std::error::Error for Invalid {}

/// Without the optional white space (RFC 9110 §5.6.3) at both ends.
fn trim(text: &[u8]) -> &[u8] {
    let mut text = text;
    while let [b' ' | b'\t', inner @ ..] | [inner @ .., b' ' | b'\t'] = text {
        text = inner;
    }
    text
}

/// Exactly 32 lower-case digits, not all zero.
fn trace_id(digits: &[u8]) -> Result<TraceId, Invalid> {
    TraceId::from_bytes(hex::decode(digits).ok_or(Invalid::TraceId)?).ok_or(Invalid::ZeroTraceId)
}

/// Exactly 16 lower-case digits, not all zero.
fn span_id(digits: &[u8]) -> Result<SpanId, Invalid> {
    SpanId::from_bytes(hex::decode(digits).ok_or(Invalid::SpanId)?).ok_or(Invalid::ZeroSpanId)
}

/// Short digits with zeros to their left; `None` when there is no digit or more than `N`.
fn padded<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    if digits.is_empty() || digits.len() > N {
        return None;
    }
    let mut text = [b'0'; N];
    for (to, from) in text.iter_mut().rev().zip(digits.iter().rev()) {
        *to = *from;
    }
    Some(text)
}

/// Writes `bytes` as hexadecimal digits, beginning at column `at` of a form.
fn fill(form: &mut [u8], at: usize, bytes: &[u8]) {
    hex::encode(bytes, form.get_mut(at..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_spaces_and_tabs_at_the_ends_are_trimmed() {
        assert_eq!(trim(b" \ta b\t "), b"a b");
        assert_eq!(trim(b"\na\r"), b"\na\r");
        assert_eq!(trim(b" \t "), b"");
    }

    #[test]
    fn short_digits_get_zeros_to_their_left() {
        assert_eq!(padded::<4>(b"ab"), Some(*b"00ab"));
        assert_eq!(padded::<2>(b"ab"), Some(*b"ab"));
        assert_eq!(padded::<2>(b"abc"), None);
        assert_eq!(padded::<2>(b""), None);
    }
}
