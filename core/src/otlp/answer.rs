//! What a collector's answer means: taken, refused, or worth another try, as the OTLP specification lists it.
//! Sends nothing, and reads nothing but what a host hands in.

use std::fmt::Write as _;

/// What a collector made of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It arrived.
    Taken {
        /// So many items of it were rejected.
        rejected: u64,
    },
    /// It will never be taken.
    Refused {
        /// What the collector said, for a log.
        why: String,
    },
    /// It may be taken later.
    Again {
        /// Milliseconds to wait, where the collector asked for that.
        after_ms: Option<u64>,
        /// What the collector said, for a log.
        why: String,
    },
}

/// OTLP/HTTP: 2xx is taken; 429, 502, 503, 504 are worth another try; everything else is final.
#[must_use]
pub fn by_http(status: u16, retry_after: Option<&[u8]>, body: &[u8]) -> Answer {
    match status {
        200..=299 => Answer::Taken { rejected: rejected(body) },
        _ => other(status, retry_after, format!("the collector answered {status}")),
    }
}

/// An answer to a gRPC call that is none of gRPC's.
#[must_use]
pub fn no_grpc(status: u16, retry_after: Option<&[u8]>) -> Answer {
    other(status, retry_after, format!("the collector answered {status} where gRPC was expected"))
}

fn other(status: u16, retry_after: Option<&[u8]>, why: String) -> Answer {
    match status {
        429 | 502..=504 => Answer::Again { after_ms: retry_after.and_then(seconds), why },
        _ => Answer::Refused { why },
    }
}

/// OTLP/gRPC: which codes are worth another try is listed in the OTLP specification; RESOURCE_EXHAUSTED only
/// when the server says when. `details` is the value of `grpc-status-details-bin`, `message` that of
/// `grpc-message`, `body` the message without its frame.
#[must_use]
pub fn by_grpc(status: Option<&[u8]>, message: Option<&[u8]>, details: Option<&[u8]>, body: &[u8]) -> Answer {
    let Some(status) = status else {
        return Answer::Again { after_ms: None, why: "the collector's answer has no gRPC status".into() };
    };
    let mut why = String::from("the collector answered gRPC status ");
    for part in [status, b" ", message.unwrap_or_default()] {
        let _ = write!(why, "{}", String::from_utf8_lossy(part));
    }
    let delay = details.and_then(retry_info);
    match status {
        b"0" => Answer::Taken { rejected: rejected(body) },
        b"1" | b"4" | b"10" | b"11" | b"14" | b"15" => Answer::Again { after_ms: delay, why },
        b"8" if delay.is_some() => Answer::Again { after_ms: delay, why },
        _ => Answer::Refused { why },
    }
}

/// `Retry-After` in seconds, as milliseconds. A date is not read: collectors send seconds.
fn seconds(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.trim().parse::<u64>().ok().map(|seconds| seconds.saturating_mul(1000))
}

/// `ExportTraceServiceResponse{partial_success=1{rejected_spans=1}}`; metrics have the same numbers.
fn rejected(response: &[u8]) -> u64 {
    let partial = field(response, 1).and_then(|(_, bytes)| bytes);
    partial.and_then(|partial| field(partial, 1)).map_or(0, |(number, _)| number)
}

/// `google.rpc.Status{details=3: Any{value=2: RetryInfo{retry_delay=1: Duration{seconds=1}}}}` in the binary
/// trailer, as milliseconds.
fn retry_info(details: &[u8]) -> Option<u64> {
    let status = base64(details)?;
    let mut rest = status.as_slice();
    while let Some((number, _, bytes, after)) = next_field(rest) {
        rest = after;
        let Some(any) = bytes.filter(|_| number == 3) else { continue };
        let kind = field(any, 1).and_then(|(_, bytes)| bytes).unwrap_or_default();
        if kind.ends_with(b"google.rpc.RetryInfo") {
            let delay = field(any, 2)?.1.and_then(|info| field(info, 1))?.1?;
            // Both are signed on the wire; a negative delay asks for nothing that can be done.
            let positive =
                |number| field(delay, number).map_or(Some(0), |(value, _)| i64::try_from(value).ok());
            let (seconds, nanos) = (positive(1)?.unsigned_abs(), positive(2)?.unsigned_abs());
            return Some(seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000));
        }
    }
    None
}

/// The first field of that number: its value, and its bytes where it has some.
fn field(message: &[u8], wanted: u64) -> Option<(u64, Option<&[u8]>)> {
    let mut rest = message;
    while let Some((number, value, bytes, after)) = next_field(rest) {
        if number == wanted {
            return Some((value, bytes));
        }
        rest = after;
    }
    None
}

/// Number, value, bytes where it has some, and what comes after it.
pub type Field<'a> = (u64, u64, Option<&'a [u8]>, &'a [u8]);

/// Number, value, bytes and rest of a protobuf message; `None` at its end or where it is broken.
#[must_use]
pub fn next_field(message: &[u8]) -> Option<Field<'_>> {
    let (tag, rest) = varint(message)?;
    let number = tag >> 3;
    match tag & 7 {
        0 => varint(rest).map(|(value, rest)| (number, value, None, rest)),
        1 => rest.split_at_checked(8).map(|(bytes, rest)| (number, le(bytes), Some(bytes), rest)),
        2 => {
            let (len, rest) = varint(rest)?;
            let (bytes, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            Some((number, len, Some(bytes), rest))
        }
        5 => rest.split_at_checked(4).map(|(bytes, rest)| (number, le(bytes), Some(bytes), rest)),
        _ => None,
    }
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(i + 1..).unwrap_or_default()));
        }
    }
    None
}

/// Base64 of a binary header, padded or not.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for byte in text.iter().filter(|byte| **byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejected_spans_are_read_from_a_partial_success() {
        assert_eq!(rejected(&[0x0a, 2, 0x08, 7]), 7);
        assert_eq!(rejected(&[0x0a, 0]), 0);
        assert_eq!(rejected(&[]), 0);
        assert_eq!(rejected(&[0x0a, 200, 1]), 0, "broken off");
        assert_eq!(rejected(&[0xff; 40]), 0);
    }

    #[test]
    fn a_retry_delay_is_read_from_the_details_of_a_status() {
        let kind = b"type.googleapis.com/google.rpc.RetryInfo";
        let mut any = vec![0x0a, kind.len() as u8];
        any.extend_from_slice(kind);
        any.extend_from_slice(&[0x12, 4, 0x0a, 2, 0x08, 3]);
        let mut status = vec![0x08, 8, 0x1a, any.len() as u8];
        status.extend_from_slice(&any);
        assert_eq!(retry_info(encode_base64(&status).as_bytes()), Some(3000));
        let negative = [0xff; 9].iter().chain(&[0x01]).copied();
        let delay: Vec<u8> =
            [0x08].into_iter().chain(negative.clone()).chain([0x10]).chain(negative).collect();
        let mut any = vec![0x0a, kind.len() as u8];
        any.extend_from_slice(kind);
        any.extend_from_slice(&[0x12, delay.len() as u8 + 2, 0x0a, delay.len() as u8]);
        any.extend_from_slice(&delay);
        let mut status = vec![0x08, 14, 0x1a, any.len() as u8];
        status.extend_from_slice(&any);
        assert_eq!(retry_info(encode_base64(&status).as_bytes()), None, "a negative delay");
        assert_eq!(retry_info(b"!!"), None);
    }

    fn encode_base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut out = String::new();
        for three in bytes.chunks(3) {
            let bits = three.iter().fold(0u32, |bits, byte| (bits << 8) | u32::from(*byte))
                << (8 * (3 - three.len()));
            for digit in 0..=three.len() {
                out.push(char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]));
            }
        }
        out
    }

    #[test]
    fn answers_are_read_as_the_specification_lists_them() {
        let kind = |answer: &Answer| match answer {
            Answer::Taken { .. } => "taken",
            Answer::Refused { .. } => "refused",
            Answer::Again { .. } => "again",
        };
        for (status, expected) in [
            (200, "taken"),
            (202, "taken"),
            (400, "refused"),
            (404, "refused"),
            (429, "again"),
            (500, "refused"),
        ] {
            assert_eq!(kind(&by_http(status, None, b"")), expected, "{status}");
        }
        for code in 0..=16 {
            let expected = match code {
                0 => "taken",
                1 | 4 | 10 | 11 | 14 | 15 => "again",
                _ => "refused",
            };
            assert_eq!(
                kind(&by_grpc(Some(code.to_string().as_bytes()), None, None, b"")),
                expected,
                "{code}"
            );
        }
        let Answer::Again { after_ms, .. } = by_http(503, Some(b" 7"), b"") else {
            panic!("want another try")
        };
        assert_eq!(after_ms, Some(7000));
    }
}
