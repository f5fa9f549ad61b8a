//! One on-demand rule: which exchanges it is about, at which rate they are sampled, and when it ends by itself.

use std::fmt::Write as _;

use super::Value;
use super::read::Reader;
use crate::events::json::write_string;
use crate::limits::{
    OPERATION_BYTES_MAX, ROUTE_BYTES_MAX, RULE_HEADER_BYTES_MAX, RULE_NAME_BYTES_MAX, RULE_SECONDS_MAX,
    RULE_SECONDS_MIN,
};
use crate::sampling::Ratio;

/// Exchanges that are sampled at a rate of their own for a while.
#[derive(Clone, PartialEq, Debug)]
pub struct Rule {
    /// What the rule is called (`source_id`).
    pub name: String,
    /// The operation that it is about.
    pub operation: Option<String>,
    /// The route that it is about, as spans name it.
    pub route: Option<String>,
    /// The service that it is about.
    pub service: Option<String>,
    /// The request header that it is about, in lower case, with the value that counts.
    pub header: Option<(String, Option<String>)>,
    /// The share that is sampled.
    pub rate: Ratio,
    /// When it ends, in seconds since 1970.
    pub expires_unix_seconds: u64,
}

/// Keys that choose exchanges.
const SELECTORS: [&str; 4] = ["operation", "route", "service", "header"];
/// Seconds of a rule that names none.
const USUAL_SECONDS: u64 = 600;

/// How a rule says when it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ends {
    /// So long from now: `duration`.
    After,
    /// At a moment: `expires`.
    At,
}

impl Rule {
    pub(super) fn is_over(&self, unix_seconds: u64) -> bool {
        self.expires_unix_seconds <= unix_seconds
    }

    /// Reads a rule; every mistake goes to the reader, and none comes back with one.
    pub(super) fn read(value: &Value, path: &str, ends: Ends, now: u64, reader: &mut Reader) -> Option<Self> {
        let map = reader.map(value, path)?;
        let end = match ends {
            Ends::After => "duration",
            Ends::At => "expires",
        };
        let known = ["source_id", "name", "rate", end];
        reader.unknown(map, path, &[&known[..], &SELECTORS].concat());
        let before = reader.mistakes();
        let choice = Choice::read(map, path, reader);
        let rate = reader.ratio(map, path, "rate").unwrap_or(Ratio::ONE);
        let expires_unix_seconds = match ends {
            Ends::After => now.saturating_add(reader.duration(map, path, end).unwrap_or(USUAL_SECONDS)),
            Ends::At => reader.moment(map, path, end, now).unwrap_or(0),
        };
        let Choice { name, operation, route, service, header } = choice?;
        let rule = Self { name, operation, route, service, header, rate, expires_unix_seconds };
        (reader.mistakes() == before).then_some(rule)
    }

    /// Whether the rule is about an exchange of this operation and route, headers apart.
    pub(crate) fn is_about(&self, operation: Option<&str>, route: &[u8]) -> bool {
        let of_operation = self.operation.is_none() || self.operation.as_deref() == operation;
        of_operation && self.route.as_ref().is_none_or(|wanted| wanted.as_bytes() == route)
    }

    /// Whether a request carries the header that the rule is about, if it is about one.
    pub(crate) fn finds<'a>(&self, header: impl Fn(&str) -> Option<&'a [u8]>) -> bool {
        let Some((name, wanted)) = &self.header else { return true };
        header(name)
            .is_some_and(|value| wanted.as_ref().is_none_or(|wanted| wanted.as_bytes() == value.trim_ascii()))
    }

    /// The rule as JSON, which [`Rule::read`] reads with [`Ends::At`].
    pub(super) fn json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"source_id\":");
        write_string(&self.name, out);
        let header = self.header.as_ref().map(|(name, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => name.clone(),
        });
        for (key, value) in SELECTORS.into_iter().zip([&self.operation, &self.route, &self.service, &header])
        {
            if let Some(value) = value {
                out.extend_from_slice(format!(",\"{key}\":").as_bytes());
                write_string(value, out);
            }
        }
        let rest =
            format!(",\"rate\":{},\"expires\":{}}}", self.rate.probability(), self.expires_unix_seconds);
        out.extend_from_slice(rest.as_bytes());
    }
}

/// A derived name as one that may be said again: a long one ends in a number made of all of it.
fn shortened(name: String) -> String {
    const NUMBER_BYTES: usize = 17;
    if name.len() <= RULE_NAME_BYTES_MAX {
        return name;
    }
    // FNV-1a: the same wherever and whenever the name is derived.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let kept: String = name.chars().take(RULE_NAME_BYTES_MAX - NUMBER_BYTES).collect();
    format!("{kept}~{hash:016x}")
}

/// What a rule is about, and what it is called.
pub(super) struct Choice {
    pub(super) name: String,
    operation: Option<String>,
    route: Option<String>,
    service: Option<String>,
    header: Option<(String, Option<String>)>,
}

impl Choice {
    pub(super) fn read(map: &[(String, Value)], path: &str, reader: &mut Reader) -> Option<Self> {
        let name = reader.text(map, path, "source_id", RULE_NAME_BYTES_MAX);
        let name = name.or_else(|| reader.text(map, path, "name", RULE_NAME_BYTES_MAX));
        let mut operation = reader.text(map, path, "operation", OPERATION_BYTES_MAX);
        let route = reader.text(map, path, "route", ROUTE_BYTES_MAX);
        let service = reader.text(map, path, "service", RULE_NAME_BYTES_MAX);
        let header = reader.text(map, path, "header", RULE_HEADER_BYTES_MAX);
        let chosen = [&operation, &route, &service, &header];
        if chosen.iter().all(|chosen| chosen.is_none()) {
            // The rule's name alone stands for the operation: what a caller who knows only of sources means.
            operation.clone_from(&name);
        }
        let derived = || {
            let mut derived = String::new();
            for (key, value) in SELECTORS.iter().zip([&operation, &route, &service, &header]) {
                if let Some(value) = value {
                    let comma = if derived.is_empty() { "" } else { "," };
                    let _ = write!(derived, "{comma}{key}={value}");
                }
            }
            derived
        };
        let name = name.unwrap_or_else(|| shortened(derived()));
        if name.is_empty() {
            reader.mistake(path, "", "", "an operation, a route, a service or a header, or a source_id");
            return None;
        }
        let header = header.map(|text| match text.split_once(['=', ':']) {
            Some((name, value)) => (name.trim().to_ascii_lowercase(), Some(value.trim().to_owned())),
            None => (text.to_ascii_lowercase(), None),
        });
        Some(Self { name, operation, route, service, header })
    }
}

/// `90s`, `10m`, `1h30m`, or seconds: within the bounds of a rule.
pub(super) fn seconds(text: &str) -> Option<u64> {
    let mut total = 0u64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let unit = match after.chars().next() {
            Some('h') => 3600,
            Some('m') => 60,
            Some('s') => 1,
            Some(_) | None => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = after.get(1..)?;
    }
    within(total)
}

pub(super) fn within(seconds: u64) -> Option<u64> {
    (RULE_SECONDS_MIN..=RULE_SECONDS_MAX).contains(&seconds).then_some(seconds)
}
