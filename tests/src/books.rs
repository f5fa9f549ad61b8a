//! The sidecar's own numbers, read from `/metrics`, and the rule that its books balance.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::ask::Ask;

/// One scrape.
#[derive(Clone, Debug)]
pub struct Books {
    rows: Vec<(String, BTreeMap<String, String>, f64)>,
    /// The text as it came.
    pub text: String,
}

impl Books {
    /// Scrapes an admin port.
    pub async fn of(admin: SocketAddr) -> Books {
        let answer = Ask::get(format!("http://{admin}/metrics")).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        Books::read(&answer.text())
    }

    /// Reads Prometheus' text format.
    pub fn read(text: &str) -> Books {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let row = |line: &str| row(line).unwrap_or_else(|| panic!("no line of Prometheus' format: {line:?}"));
        Books { rows: lines.map(row).collect(), text: text.to_owned() }
    }

    /// The sum over all series of a name that carry these labels; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let carries = |series: &BTreeMap<String, String>| {
            labels.iter().all(|(key, value)| series.get(*key).is_some_and(|found| found == value))
        };
        let rows = self.rows.iter().filter(|(found, series, _)| found == name && carries(series));
        rows.map(|(_, _, value)| *value).sum::<f64>() as u64
    }

    /// Whether a series of this name is there at all.
    pub fn has(&self, name: &str) -> bool {
        self.rows.iter().any(|(found, _, _)| found == name)
    }

    /// The distinct values of a label over all series of a name.
    pub fn labels(&self, name: &str, label: &str) -> Vec<String> {
        let rows = self.rows.iter().filter(|(found, _, _)| found == name);
        let mut values: Vec<_> = rows.filter_map(|(_, series, _)| series.get(label).cloned()).collect();
        values.sort();
        values.dedup();
        values
    }

    /// Every name with each of the labels that a series of it has.
    pub fn all_labels(&self) -> BTreeSet<(String, String)> {
        let of = |(name, labels, _): &(String, BTreeMap<String, String>, f64)| {
            labels.keys().map(|label| (name.clone(), label.clone())).collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(of).collect()
    }

    /// How many series there are, a histogram's buckets counted one by one.
    pub fn series(&self) -> usize {
        self.rows.len()
    }

    /// Spans ever made.
    pub fn created(&self) -> u64 {
        self.sum("throughline_spans_created_total", &[])
    }

    /// Spans that a collector accepted.
    pub fn exported(&self) -> u64 {
        self.sum("throughline_spans_exported_total", &[])
    }

    /// Spans waiting or on their way.
    pub fn held(&self) -> u64 {
        self.sum("throughline_spans_held", &[])
    }

    /// Spans lost, for all reasons.
    pub fn dropped(&self) -> u64 {
        self.sum("throughline_spans_dropped_total", &[])
    }

    /// Spans lost for one reason.
    pub fn dropped_by(&self, reason: &str) -> u64 {
        self.sum("throughline_spans_dropped_total", &[("reason", reason)])
    }

    /// How often Envoy has loaded our module again after it failed, and tried to.
    pub fn reloads(&self) -> u64 {
        self.rows
            .iter()
            .filter(|(name, _, _)| name.contains("vm_reload"))
            .map(|(_, _, value)| *value as u64)
            .sum()
    }

    /// Whether created = exported + held + dropped.
    pub fn is_balanced(&self) -> bool {
        self.created() == self.exported() + self.held() + self.dropped()
    }

    /// created = exported + held + dropped, exactly.
    pub fn assert_balanced(&self) {
        let (created, exported, held, dropped) =
            (self.created(), self.exported(), self.held(), self.dropped());
        assert_eq!(
            created,
            exported + held + dropped,
            "created = exported ({exported}) + held ({held}) + dropped ({dropped}):\n{}",
            self.text
        );
    }
}

fn row(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (series, value) = match line.find('}') {
        // The label values may hold blanks; the last brace ends them.
        Some(_) => line.split_at(line.rfind('}')? + 1),
        None => line.split_at(line.find(' ')?),
    };
    let value = match value.trim() {
        "+Inf" => f64::INFINITY,
        number => number.parse().ok()?,
    };
    let Some((name, labels)) = series.split_once('{') else {
        return Some((series.to_owned(), BTreeMap::new(), value));
    };
    Some((name.to_owned(), pairs(labels.strip_suffix('}')?)?, value))
}

fn pairs(mut text: &str) -> Option<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    while !text.is_empty() {
        let (key, rest) = text.split_once("=\"")?;
        let (value, rest) = quoted(rest)?;
        all.insert(key.trim().to_owned(), value);
        text = rest.strip_prefix(',').unwrap_or(rest);
    }
    Some(all)
}

/// The text up to the closing quote, unescaped, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}
