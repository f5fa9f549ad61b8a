//! A program's own log: JSON lines on standard error. Must never be written to once per request or span.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use throughline_core::settings::LogLevel;

static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Info as u8);

/// Lines below this level are left out from here on.
pub fn set_level(level: LogLevel) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// What a user should look at.
pub fn warn(message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    line(LogLevel::Warn, "warn", message, fields);
}

/// Start, stop, changes.
pub fn info(message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    line(LogLevel::Info, "info", message, fields);
}

/// Everything else.
pub fn debug(message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    line(LogLevel::Debug, "debug", message, fields);
}

fn line(level: LogLevel, name: &str, message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    if level as u8 <= LEVEL.load(Ordering::Relaxed) {
        tell(name, message, fields);
    }
}

/// Writes a line of a level of this name, whatever level is left out.
pub fn tell(name: &str, message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    let mut line = String::with_capacity(160);
    let _ = write!(line, "{{\"timestamp\":\"{}\",\"level\":\"{name}\",\"message\":", Timestamp::now());
    quote(message, &mut line);
    for (key, value) in fields {
        let _ = write!(line, ",\"{key}\":");
        quote(&value.to_string(), &mut line);
    }
    line.push_str("}\n");
    // Nobody is left to tell when standard error is closed.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// Appends a JSON string.
pub fn quote(text: &str, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if (control as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", control as u32);
            }
            plain => out.push(plain),
        }
    }
    out.push('"');
}

/// This moment in nanoseconds since 1970.
#[must_use]
pub fn unix_nanos() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX)
}

/// A moment as RFC 3339 writes it, in UTC, with milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Timestamp {
    unix_millis: u64,
}

impl Timestamp {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self::of(unix_nanos())
    }

    /// That of these nanoseconds since 1970.
    #[must_use]
    pub const fn of(unix_nanos: u64) -> Self {
        Self { unix_millis: unix_nanos / 1_000_000 }
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, millis) = (self.unix_millis / 1000, self.unix_millis % 1000);
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Days to a civil date: years counted from March, so that the leap day is the last of its year.
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

/// Lets a message through once per interval and counts those it held back.
#[derive(Debug, Default)]
pub struct Throttle {
    next_millis: AtomicU64,
    held_back: AtomicU64,
}

impl Throttle {
    const EVERY_MILLIS: u64 = 10_000;

    /// Lets the first one through.
    #[must_use]
    pub const fn new() -> Self {
        Self { next_millis: AtomicU64::new(0), held_back: AtomicU64::new(0) }
    }

    /// How many were held back since the last one, when this one may pass.
    #[must_use]
    pub fn pass(&self) -> Option<u64> {
        let now = Timestamp::now().unix_millis;
        let next = self.next_millis.load(Ordering::Relaxed);
        let mine = || {
            let later = now + Self::EVERY_MILLIS;
            self.next_millis.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        if now >= next && mine() {
            return Some(self.held_back.swap(0, Ordering::Relaxed));
        }
        self.held_back.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_rfc_3339_says() {
        for (unix_millis, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_176_015_042, "2026-11-20T12:00:15.042Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp { unix_millis }.to_string(), expected);
        }
    }

    #[test]
    fn text_is_quoted_as_json() {
        let mut out = String::new();
        quote("a\"b\\c\n\u{1}\u{e9}", &mut out);
        assert_eq!(out, "\"a\\\"b\\\\c\\n\\u0001\u{e9}\"");
    }

    #[test]
    fn a_throttle_passes_once_per_interval() {
        let throttle = Throttle::new();
        assert_eq!((throttle.pass(), throttle.pass()), (Some(0), None));
    }
}
