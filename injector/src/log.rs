//! The injector's own log: one JSON line on standard error for each thing that happened. Must never hold a value
//! of a Secret or the body of a review.

use std::sync::atomic::{AtomicU8, Ordering};

/// How much is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Only what is broken.
    Error,
    /// What somebody should look at.
    Warn,
    /// What was done.
    Info,
    /// Each admission.
    Debug,
}

static TOLD: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// Sets how much is told.
pub fn set(level: Level) {
    TOLD.store(level as u8, Ordering::Relaxed);
}

/// Writes a line: a sentence, and what it is about as pairs.
pub fn tell(level: Level, message: &str, about: &[(&str, &str)]) {
    if level as u8 > TOLD.load(Ordering::Relaxed) {
        return;
    }
    let name = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    let about: Vec<(&str, &dyn std::fmt::Display)> =
        about.iter().map(|(key, value)| (*key, value as &dyn std::fmt::Display)).collect();
    throughline_rim::log::tell(name, message, &about);
}
