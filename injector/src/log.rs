//! The injector's own log: one JSON line on standard error for each thing that happened. Must never hold a value
//! of a Secret or the body of a review.

use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

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
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = serde_json::Map::new();
    line.insert("time_ms".to_owned(), serde_json::json!(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)));
    line.insert("level".to_owned(), serde_json::json!(format!("{level:?}").to_lowercase()));
    line.insert("message".to_owned(), serde_json::json!(message));
    for (key, value) in about {
        line.insert((*key).to_owned(), serde_json::json!(value));
    }
    // A log that can't be written harms nobody's pod.
    let _ = writeln!(std::io::stderr().lock(), "{}", serde_json::Value::Object(line));
}
