//! Takes values out of a document and remembers every mistake with its place, its value and what would be right.

use super::Value;
use super::rule::{seconds, within};
use crate::limits::{RULE_SECONDS_MAX, RULES_MAX};
use crate::sampling::Ratio;
use crate::settings::Mistake;

/// The mistakes of one document.
#[derive(Debug, Default)]
pub(super) struct Reader(Vec<Mistake>);

type Map = [(String, Value)];

impl Reader {
    pub(super) fn mistakes(&self) -> usize {
        self.0.len()
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, Vec<Mistake>> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }

    pub(super) fn mistake(&mut self, path: &str, key: &str, shown: &str, want: &str) {
        // A document with nothing but mistakes must not be answered by a longer one.
        if self.0.len() >= RULES_MAX {
            return;
        }
        let dot = if path.is_empty() || key.is_empty() { "" } else { "." };
        let place = format!("{path}{dot}{key}");
        self.0.push(Mistake::new(match (place.as_str(), shown) {
            ("", _) => format!("want {want}"),
            (place, "") => format!("{place}: want {want}"),
            (place, shown) => format!("{place}=\"{shown}\": want {want}"),
        }));
    }

    pub(super) fn map<'a>(&mut self, value: &'a Value, path: &str) -> Option<&'a Map> {
        match value {
            Value::Map(map) => Some(map),
            other => {
                self.mistake(path, "", &other.shown(), "a mapping of keys and values");
                None
            }
        }
    }

    pub(super) fn unknown(&mut self, map: &Map, path: &str, known: &[&str]) {
        for (at, (key, _)) in map.iter().enumerate() {
            let shown: String = key.chars().take(100).flat_map(char::escape_debug).collect();
            if !known.contains(&key.as_str()) {
                self.mistake(path, &shown, "", &format!("one of {}", known.join(", ")));
            } else if map.iter().take(at).any(|(before, _)| before == key) {
                self.mistake(path, &shown, "", "it once");
            }
        }
    }

    pub(super) fn text(&mut self, map: &Map, path: &str, key: &str, bytes_max: usize) -> Option<String> {
        let value = find(map, key)?;
        let text = match value {
            Value::Text(text) => Some(text.clone()),
            // YAML reads some names as something else.
            Value::Number(number) => Some(crate::decimal::shown(*number)),
            Value::Bool(value) => Some(value.to_string()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        };
        let right = text.map(|text| text.trim().to_owned()).filter(|text| {
            (1..=bytes_max).contains(&text.len()) && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        });
        if right.is_none() {
            self.mistake(path, key, &value.shown(), &format!("1 to {bytes_max} printable characters"));
        }
        right
    }

    pub(super) fn ratio(&mut self, map: &Map, path: &str, key: &str) -> Option<Ratio> {
        let value = find(map, key)?;
        let right = match value {
            Value::Number(number) => Ratio::new(*number),
            Value::Text(text) => Ratio::parse(text.trim()),
            Value::Null | Value::Bool(_) | Value::List(_) | Value::Map(_) => None,
        };
        if right.is_none() {
            self.mistake(path, key, &value.shown(), "a ratio from 0 to 1");
        }
        right
    }

    /// Seconds from now.
    pub(super) fn duration(&mut self, map: &Map, path: &str, key: &str) -> Option<u64> {
        let value = find(map, key)?;
        let right = match value {
            Value::Number(number) => whole(*number).and_then(within),
            Value::Text(text) => seconds(text),
            Value::Null | Value::Bool(_) | Value::List(_) | Value::Map(_) => None,
        };
        if right.is_none() {
            self.mistake(path, key, &value.shown(), "1m to 24h, such as 10m, 1h30m or 90s");
        }
        right
    }

    /// Seconds since 1970, which must be there: a rule without an end is none.
    pub(super) fn moment(&mut self, map: &Map, path: &str, key: &str, now: u64) -> Option<u64> {
        const WANT: &str = "seconds since 1970, 24 hours from now at the most";
        let Some(value) = find(map, key) else {
            self.mistake(path, key, "", WANT);
            return None;
        };
        let number = match value {
            Value::Number(number) => whole(*number),
            Value::Text(text) => text.trim().parse().ok(),
            Value::Null | Value::Bool(_) | Value::List(_) | Value::Map(_) => None,
        };
        // Clocks of two machines differ by seconds.
        let right = number.filter(|moment| *moment <= now.saturating_add(RULE_SECONDS_MAX + 60));
        if right.is_none() {
            self.mistake(path, key, &value.shown(), WANT);
        }
        right
    }
}

/// The value of a key; `null` counts as missing.
pub(super) fn find<'a>(map: &'a Map, key: &str) -> Option<&'a Value> {
    map.iter().find(|(known, value)| known == key && *value != Value::Null).map(|(_, value)| value)
}

fn whole(number: f64) -> Option<u64> {
    ((0.0..=1e15).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}
