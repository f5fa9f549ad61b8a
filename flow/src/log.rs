//! The server's own log: JSON lines on standard error. Must never be written to once per request or span.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use throughline_core::settings::LogLevel;

use crate::times::rfc3339;

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
    if level as u8 > LEVEL.load(Ordering::Relaxed) {
        return;
    }
    let mut line = String::with_capacity(160);
    let _ = write!(line, "{{\"timestamp\":\"{}\",\"level\":\"{name}\",\"message\":", rfc3339(unix_nanos()));
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
    pub fn pass(&self) -> Option<u64> {
        let now = unix_nanos() / 1_000_000;
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
