//! Numbers with a point, as settings and documents have them. The standard library's own reader and writer are exact
//! to the last bit of any number, and are with their tables a tenth of a module for Envoy; these are exact for up to
//! fifteen digits.

/// Digits that are read; further ones behind the point change nothing that matters.
const DIGITS_MAX: usize = 18;

/// A number as people and JSON write it: `0.25`, `-1`, `.5`, `1e-3`.
#[must_use]
pub(crate) fn parse(text: &str) -> Option<f64> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = || whole.bytes().chain(part.bytes());
    if digits().next().is_none() || digits().any(|digit| !digit.is_ascii_digit()) {
        return None;
    }
    let significant = part.len().min(DIGITS_MAX.saturating_sub(whole.len()));
    let kept = whole.bytes().chain(part.bytes().take(significant));
    let value =
        kept.fold(0_u64, |value, digit| value.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
    let scale = exponent.saturating_sub(i32::try_from(significant).ok()?);
    let power = 10_f64.powi(scale.checked_abs()?.min(400));
    let value = match value {
        0 => 0.0,
        _ if scale < 0 => value as f64 / power,
        _ => value as f64 * power,
    };
    Some(if negative { -value } else { value })
}

/// A number for a message, six places behind the point at the most.
#[must_use]
pub(crate) fn shown(number: f64) -> String {
    let size = number.abs();
    if size.is_nan() || size >= 1e12 {
        return "a number that is none or far too large".to_owned();
    }
    let millionths = (size * 1e6).round() as u64;
    let (whole, part) = (millionths / 1_000_000, millionths % 1_000_000);
    let sign = if number < 0.0 && millionths > 0 { "-" } else { "" };
    let part = format!("{part:06}");
    match part.trim_end_matches('0') {
        "" => format!("{sign}{whole}"),
        part => format!("{sign}{whole}.{part}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_standard_library_reads_them() {
        for text in [
            "0",
            "1",
            "1.0",
            "0.25",
            ".5",
            "5.",
            "1e-3",
            "2.5E-1",
            "0.1",
            "0.333333333333333333333",
            "1e0",
            "0.01",
            "0e9",
            "00.50",
            "1e-400",
            "0.000000001",
            "-25",
            "-2.5e1",
            "1763600000",
            "86400",
        ] {
            assert_eq!(parse(text), text.parse().ok(), "{text}");
        }
        for text in [
            "",
            ".",
            "+1",
            "nan",
            "inf",
            "1e",
            "e1",
            "0,5",
            "1e99999999999",
            "0x1",
            "1 ",
            "0.5.5",
            "--1",
            "-",
        ] {
            assert!(parse(text).is_none(), "{text}");
        }
        for thousandth in 0..=1000 {
            let text = format!("{}", f64::from(thousandth) / 1000.0);
            assert_eq!(parse(&text), text.parse().ok(), "{text}");
        }
    }

    #[test]
    fn numbers_are_shown_as_people_write_them() {
        for (number, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.25, "0.25"),
            (-2.5, "-2.5"),
            (1e-7, "0"),
            (-1e-7, "0"),
            (86_400.0, "86400"),
            (0.1, "0.1"),
            (f64::NAN, "a number that is none or far too large"),
            (1e300, "a number that is none or far too large"),
        ] {
            assert_eq!(shown(number), text);
        }
    }
}
