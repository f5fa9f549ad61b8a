//! What a query asks for, read once into values that cannot be wrong. All mistakes are told together, and a name
//! that is not known is one of them: a misspelt filter that is passed over would answer another question.

use super::problem::{Problem, WrongParameter};
use crate::engine::Outcome;
use crate::numbers::Window;
use crate::times;

/// Bytes of a value that is looked for.
const VALUE_BYTES_MAX: usize = 512;
/// Flows and traces of one page.
pub(crate) const PAGE_MAX: u64 = 100;
/// The same, unless a query says.
const PAGE: u64 = 20;
/// Pages that may be turned to.
const PAGES_MAX: u64 = 10_000;
/// Nanoseconds that numbers are about, unless a query says.
const WINDOW_NANOS: u64 = 3_600_000_000_000;

/// The parameters of one request.
pub(crate) struct Params {
    pairs: Vec<(String, String)>,
    wrong: Vec<WrongParameter>,
    now_unix_nanos: u64,
}

/// A page of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Page {
    pub(crate) number: u64,
    pub(crate) size: u64,
}

impl Page {
    pub(crate) fn offset(self) -> usize {
        usize::try_from((self.number - 1) * self.size).unwrap_or(usize::MAX)
    }

    pub(crate) fn limit(self) -> usize {
        usize::try_from(self.size).unwrap_or(usize::MAX)
    }
}

impl Params {
    /// Reads a query; `known` are the names that it may have.
    pub(crate) fn read(query: Option<&str>, known: &[&str], now_unix_nanos: u64) -> Self {
        let mut params = Self { pairs: Vec::new(), wrong: Vec::new(), now_unix_nanos };
        for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (Some(name), Some(value)) = (decode(name), decode(value)) else {
                params.note(pair, "", "want percent-encoded UTF-8");
                continue;
            };
            if !known.contains(&name.as_str()) {
                params.note(&name, &value, &format!("no such parameter: want one of {}", known.join(", ")));
            } else if value.len() > VALUE_BYTES_MAX {
                params.note(&name, "", &format!("want {VALUE_BYTES_MAX} bytes at the most"));
            } else if params.pairs.iter().any(|(other, _)| *other == name) {
                params.note(&name, &value, "want it once");
            } else if !value.is_empty() {
                params.pairs.push((name, value));
            }
        }
        params
    }

    fn note(&mut self, parameter: &str, value: &str, detail: &str) {
        let short = |text: &str| text.chars().take(100).collect::<String>();
        let (parameter, value) = (short(parameter), short(value));
        self.wrong.push(WrongParameter { parameter, value, detail: detail.to_owned() });
    }

    /// The value of a name; empty ones count as not there.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        self.pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    fn moment(&mut self, name: &str) -> Option<u64> {
        let value = self.text(name)?;
        let moment = times::parse(&value, self.now_unix_nanos);
        if moment.is_none() {
            self.note(name, &value, &format!("want {}", times::WANT));
        }
        moment
    }

    /// `startTime` and `endTime` of traces: all that are kept, unless one is said.
    pub(crate) fn interval(&mut self) -> (u64, u64) {
        let (start, end) = (self.moment("startTime"), self.moment("endTime"));
        let (start, end) = (start.unwrap_or(0), end.unwrap_or(u64::MAX));
        if start >= end {
            let value = self.text("startTime").unwrap_or_default();
            self.note("startTime", &value, "want a moment before endTime");
        }
        (start, end)
    }

    /// `startTime` and `endTime` of numbers: the last hour, unless they are said.
    pub(crate) fn window(&mut self) -> Window {
        let (start, end) = (self.moment("startTime"), self.moment("endTime"));
        let end_unix_nanos = end.unwrap_or(self.now_unix_nanos);
        let start_unix_nanos = start.unwrap_or(end_unix_nanos.saturating_sub(WINDOW_NANOS));
        if start_unix_nanos >= end_unix_nanos {
            let value = self.text("startTime").unwrap_or_default();
            self.note("startTime", &value, "want a moment before endTime");
        }
        Window { start_unix_nanos, end_unix_nanos }
    }

    fn number(&mut self, name: &str, least: u64, most: u64) -> Option<u64> {
        let value = self.text(name)?;
        let number = value.parse().ok().filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.note(name, &value, &format!("want a whole number from {least} to {most}"));
        }
        number
    }

    pub(crate) fn page(&mut self) -> Page {
        let number = self.number("page", 1, PAGES_MAX).unwrap_or(1);
        let size = self.number("pageSize", 1, PAGE_MAX).unwrap_or(PAGE);
        Page { number, size }
    }

    pub(crate) fn status(&mut self) -> Option<Outcome> {
        let value = self.text("status")?;
        let status = match value.as_str() {
            "success" => Some(Outcome::Success),
            "error" => Some(Outcome::Error),
            "timeout" => Some(Outcome::Timeout),
            _ => None,
        };
        if status.is_none() {
            self.note("status", &value, "want success, error or timeout");
        }
        status
    }

    /// Milliseconds that a trace lasted at the least.
    pub(crate) fn min_duration_nanos(&mut self) -> Option<u64> {
        self.number("minDuration", 0, 86_400_000).map(|ms| ms * 1_000_000)
    }

    /// Whether all was right.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        if self.wrong.is_empty() { Ok(()) } else { Err(Problem::parameters(self.wrong)) }
    }
}

/// Percent-decoding of a query, where a plus is a blank.
pub(crate) fn decode(text: &str) -> Option<String> {
    let blanks = text.replace('+', " ");
    decode_path(&blanks)
}

/// Percent-decoding of a segment of a path.
pub(crate) fn decode_path(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["operation", "startTime", "endTime", "page", "pageSize", "status"];
    const NOW: u64 = 1_795_176_015_042_000_000;

    fn told(query: &str) -> Vec<String> {
        let mut params = Params::read(Some(query), KNOWN, NOW);
        let _ = (params.interval(), params.page(), params.status());
        let wrong = params.finish().err();
        wrong.map(|problem| problem.answer()).map_or(Vec::new(), |_| {
            let mut params = Params::read(Some(query), KNOWN, NOW);
            let _ = (params.interval(), params.page(), params.status());
            params
                .wrong
                .iter()
                .map(|wrong| format!("{}={}: {}", wrong.parameter, wrong.value, wrong.detail))
                .collect()
        })
    }

    #[test]
    fn names_are_decoded_and_empty_values_are_not_there() {
        let params = Params::read(Some("operation=create%20vm+2&status="), KNOWN, NOW);
        assert_eq!((params.text("operation").as_deref(), params.text("status")), (Some("create vm 2"), None));
        assert!(params.finish().is_ok());
    }

    #[test]
    fn all_mistakes_are_told_with_what_would_be_right() {
        let told = told("operatoin=x&page=0&status=bad&startTime=soon&operation=a&operation=b&endTime=%zz");
        assert_eq!(told.len(), 6, "{told:?}");
        assert!(
            told.iter()
                .any(|line| line.starts_with("operatoin=x: no such parameter: want one of operation,"))
        );
        assert!(told.iter().any(|line| line == "page=0: want a whole number from 1 to 10000"));
        assert!(told.iter().any(|line| line == "status=bad: want success, error or timeout"));
        assert!(told.iter().any(|line| line.starts_with("startTime=soon: want a moment")));
    }

    #[test]
    fn a_window_ends_now_and_is_an_hour_long_unless_said() {
        let mut params = Params::read(None, KNOWN, NOW);
        let window = params.window();
        assert_eq!(
            (window.end_unix_nanos, window.end_unix_nanos - window.start_unix_nanos),
            (NOW, WINDOW_NANOS)
        );
        let mut params = Params::read(Some("startTime=now-5m&endTime=now-10m"), KNOWN, NOW);
        let _ = params.window();
        assert!(params.finish().is_err());
    }
}
