//! Moments as people and programs write them, and as answers write them. Reads no clock.

/// RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn rfc3339(unix_nanos: u64) -> String {
    throughline_rim::log::Timestamp::of(unix_nanos).to_string()
}

/// What a moment may look like, in words that follow "want".
pub const WANT: &str = "a moment: seconds, milliseconds, microseconds or nanoseconds since 1970, RFC 3339 such as \
                        2024-01-15T10:00:00Z, or now-1h";

/// A moment in nanoseconds since 1970.
#[must_use]
pub fn parse(text: &str, now_unix_nanos: u64) -> Option<u64> {
    if let Some(rest) = text.strip_prefix("now") {
        return match rest.strip_prefix('-') {
            None => rest.is_empty().then_some(now_unix_nanos),
            Some(ago) => Some(now_unix_nanos.saturating_sub(span(ago)?)),
        };
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        return Some(by_magnitude(text.parse().ok()?));
    }
    civil(text)
}

/// Seconds reach the year 5138, milliseconds begin in 1973, and so on: no moment of this century has two readings.
fn by_magnitude(number: u64) -> u64 {
    let factor = match number {
        0..100_000_000_000 => 1_000_000_000,
        100_000_000_000..100_000_000_000_000 => 1_000_000,
        100_000_000_000_000..100_000_000_000_000_000 => 1000,
        _ => 1,
    };
    number.saturating_mul(factor)
}

/// A length of time such as `90s`, `15m`, `1h`, `7d` or `2w`, in nanoseconds.
#[must_use]
pub fn span(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let nanos: u64 = match unit {
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        "w" => 604_800_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(nanos)
}

/// `2024-01-15T10:00:00[.123][Z|+01:00]`, or the day alone.
fn civil(text: &str) -> Option<u64> {
    let (date, rest) = text.split_at_checked(10)?;
    let mut parts = date.split('-').map(number);
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let longest = match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    };
    if parts.next().is_some()
        || !(1970..=2261).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=longest).contains(&day)
    {
        return None;
    }
    let midnight = days_before(year, month, day) * 86_400;
    if rest.is_empty() {
        return Some(midnight * 1_000_000_000);
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, rest) = rest.split_at_checked(8)?;
    let mut parts = clock.split(':').map(number);
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction, zone) = fraction(rest)?;
    let unix = (midnight + hour * 3600 + minute * 60 + second) * 1_000_000_000 + fraction;
    let offset = offset_seconds(zone)? * 1_000_000_000;
    unix.checked_add_signed(-offset)
}

fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

fn days_before(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Nanoseconds behind the second, and what follows.
fn fraction(rest: &str) -> Option<(u64, &str)> {
    let Some(digits) = rest.strip_prefix('.') else { return Some((0, rest)) };
    let count = digits.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, zone) = digits.split_at_checked(count)?;
    let nine: String = digits.chars().chain("000000000".chars()).take(9).collect();
    (count > 0).then(|| nine.parse().ok().map(|nanos| (nanos, zone)))?
}

/// A `+` of a query arrives as a blank where it was not escaped.
fn offset_seconds(zone: &str) -> Option<i64> {
    let (sign, rest) = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => return Some(0),
        ("+" | " ", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours <= 23 && minutes <= 59).then(|| sign * i64::try_from(hours * 3600 + minutes * 60).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_176_015_042_000_000;

    #[test]
    fn moments_are_written_as_rfc_3339_says_and_read_back() {
        for (unix_millis, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_176_015_042, "2026-11-20T12:00:15.042Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(unix_millis * 1_000_000), expected);
            assert_eq!(parse(expected, NOW), Some(unix_millis * 1_000_000));
        }
    }

    #[test]
    fn the_size_of_a_number_says_its_unit() {
        for text in ["1795176015", "1795176015000", "1795176015000000", "1795176015000000000"] {
            assert_eq!(parse(text, NOW), Some(1_795_176_015_000_000_000), "{text}");
        }
        assert_eq!(
            parse("1234567890", NOW),
            Some(1_234_567_890_000_000_000),
            "as the contract's example has it"
        );
    }

    #[test]
    fn moments_may_be_told_from_now_or_with_an_offset() {
        assert_eq!(parse("now", NOW), Some(NOW));
        assert_eq!(parse("now-1h", NOW), Some(NOW - 3_600_000_000_000));
        assert_eq!(parse("2024-01-15", NOW), parse("2024-01-15T00:00:00Z", NOW));
        assert_eq!(parse("2024-01-15T11:30:00+01:30", NOW), parse("2024-01-15T10:00:00Z", NOW));
        assert_eq!(parse("2024-01-15T11:30:00 01:30", NOW), parse("2024-01-15T10:00:00Z", NOW));
        assert_eq!(parse("2024-01-15T10:00:00.5Z", NOW), Some(1_705_312_800_500_000_000));
    }

    #[test]
    fn anything_else_is_no_moment() {
        for bad in [
            "",
            "yesterday",
            "now-",
            "now-1y",
            "now+1h",
            "now-1",
            "-5",
            "1e9",
            "2024-13-01",
            "2023-02-29",
            "2024-01-15T",
            "2024-01-15T10:00:00",
            "2024-01-15T25:00:00Z",
            "2024-01-15T10:00:00.Z",
            "é024-01-15",
            "99999999999999999999999",
            "1970-01-01T00:00:00+23:00",
            "now-99999999999999999999w",
        ] {
            assert_eq!(parse(bad, NOW), None, "{bad}");
        }
    }
}
