//! The numbers that an operator reads: `/metrics` in both formats, the reference page, the dashboard and the alerts,
//! what many names cost, and what becomes of spans while the collector is gone.

mod dashboard;
mod gone;
mod names;
mod page;
mod prometheus;

use std::collections::BTreeMap;

use throughline_tests::sidecar::workspace;

/// A file of the work tree.
fn file(path: &str) -> String {
    std::fs::read_to_string(workspace().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What the reference page says of a metric.
#[derive(Debug)]
struct Listed {
    kind: String,
    labels: Vec<String>,
}

/// Every metric of the reference page.
fn listed() -> BTreeMap<String, Listed> {
    let page = file("docs/metrics.md");
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix("| `")?.trim_end_matches('|').split(" | ").collect();
        let [name, kind, labels, _] = cells[..] else { return None };
        let labels = labels.split(", ").map(|label| label.trim_matches(['`', ' ']).to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        Some((name.trim_end_matches('`').to_owned(), Listed { kind: kind.trim().to_owned(), labels }))
    });
    let all: BTreeMap<_, _> = rows
        .filter(|(_, row)| ["counter", "gauge", "histogram", "info"].contains(&row.kind.as_str()))
        .collect();
    assert!(all.len() > 30, "the page has its tables: {all:?}");
    all
}

/// The listed metric that a series belongs to: a histogram's have endings.
fn metric_of<'a>(listed: &'a BTreeMap<String, Listed>, series: &str) -> Option<(&'a str, &'a Listed)> {
    let whole = listed.get_key_value(series).filter(|(_, row)| row.kind != "histogram");
    let part = || {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| series.strip_suffix(end))?;
        listed.get_key_value(base).filter(|(_, row)| row.kind == "histogram")
    };
    whole.or_else(part).map(|(name, row)| (name.as_str(), row))
}
