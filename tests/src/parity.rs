//! The two hosts against each other: which scenario runs where, and whether both gave the same spans. What may differ
//! is written in `tests/differences.toml`, each row with its reason; a row that holds for nothing is a mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::canonical::Canonical;
use crate::sidecar::{Host, workspace};

/// A scenario that runs on one host only.
#[derive(Debug)]
struct Only {
    scenario: String,
    host: Host,
}

/// A value that differs between the hosts, and may.
#[derive(Debug)]
struct Allowed {
    key: String,
    scenario: String,
    sidecar: Option<String>,
    envoy: Option<String>,
}

/// Spans, by their name, that one host alone makes.
#[derive(Debug)]
struct Extra {
    name: String,
    host: Host,
}

/// Scenarios that are told of when more differ: enough to see what is wrong.
const APART_TOLD_MAX: usize = 30;
/// Scenarios that may get a second look: more than a moment's stall explains is a fault.
const APART_AGAIN_MAX: usize = 5;

/// What a comparison found.
#[derive(Debug, Default)]
struct Found {
    scenarios: usize,
    spans: usize,
    /// Scenarios that differ, each with what differs.
    apart: Vec<(String, String)>,
    /// Rows that hold for nothing, a line each.
    unused: String,
}

/// The list of differences.
#[derive(Debug)]
pub struct Differences {
    only: Vec<Only>,
    extra: Vec<Extra>,
    values: Vec<Allowed>,
    /// Scenarios that run on both hosts, and whose spans are not compared.
    uncompared: Vec<String>,
}

impl Differences {
    /// Reads `tests/differences.toml`.
    pub fn read() -> Result<Differences, String> {
        let path = workspace().join("tests/differences.toml");
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let table: toml::Table = text.parse().map_err(|error| format!("{}: {error}", path.display()))?;
        let rows = |name: &str| {
            let list = table.get(name).and_then(toml::Value::as_array).cloned().unwrap_or_default();
            list.into_iter().map(Row).collect::<Vec<_>>()
        };
        let mut differences =
            Differences { only: Vec::new(), extra: Vec::new(), values: Vec::new(), uncompared: Vec::new() };
        for row in rows("only") {
            row.reasoned()?;
            differences.only.push(Only { scenario: row.must("scenario")?, host: row.host()? });
        }
        for row in rows("span") {
            row.reasoned()?;
            differences.extra.push(Extra { name: row.must("name")?, host: row.host()? });
        }
        for row in rows("value") {
            row.reasoned()?;
            let scenario = row.text("scenario").unwrap_or_else(|| "*".to_owned());
            let (sidecar, envoy) = (row.text("sidecar"), row.text("envoy"));
            differences.values.push(Allowed { key: row.must("key")?, scenario, sidecar, envoy });
        }
        for row in rows("uncompared") {
            row.reasoned()?;
            differences.uncompared.push(row.must("scenario")?);
        }
        Ok(differences)
    }

    /// The filter expression of `cargo nextest` for what runs on a host; every row must name a scenario of `list`,
    /// which is what `cargo nextest list --message-format json` says.
    pub fn filter(&self, host: Host, list: &Value) -> Result<String, String> {
        let scenarios = scenarios(list);
        let named = self.only.iter().map(|row| &row.scenario).chain(&self.uncompared);
        let stale: Vec<_> = named.filter(|row| !scenarios.iter().any(|name| matches(row, name))).collect();
        if !stale.is_empty() {
            return Err(format!("rows of tests/differences.toml that name no scenario: {stale:?}"));
        }
        let left_out = self.only.iter().filter(|row| row.host != host).map(|row| expression(&row.scenario));
        Ok(left_out.fold("all()".to_owned(), |text, one| format!("{text} - ({one})")))
    }

    /// Compares what the hosts' collectors got. Returns how many scenarios and spans were compared, or everything
    /// that differs.
    pub fn compare(&self, folder: &Path) -> Result<(usize, usize), String> {
        let found = self.look(folder)?;
        if found.apart.is_empty() && found.unused.is_empty() {
            return Ok((found.scenarios, found.spans));
        }
        let mut trouble = String::new();
        for (name, told) in found.apart.iter().take(APART_TOLD_MAX) {
            let _ = write!(trouble, "\n{name}:{told}");
        }
        let (differ, of) = (found.apart.len(), found.scenarios);
        Err(format!("{trouble}{}\n{differ} of {of} scenarios differ", found.unused))
    }

    /// The filter expression of `cargo nextest` for the few scenarios that differ, which `scripts/parity` runs once
    /// more; an error where there are many, or none.
    pub fn again(&self, folder: &Path) -> Result<String, String> {
        let found = self.look(folder)?;
        if !(1..=APART_AGAIN_MAX).contains(&found.apart.len()) {
            return Err(format!("{} scenarios differ: no second look", found.apart.len()));
        }
        let all: Vec<_> = found.apart.iter().map(|(name, _)| format!("({})", expression(name))).collect();
        Ok(all.join(" | "))
    }

    fn look(&self, folder: &Path) -> Result<Found, String> {
        let (sidecar, envoy) = (kept(folder, Host::Sidecar)?, kept(folder, Host::Envoy)?);
        let mut used = BTreeSet::new();
        let mut found = Found::default();
        let names: BTreeSet<_> = sidecar.keys().chain(envoy.keys()).collect();
        for name in names {
            let one_host = self.only.iter().any(|row| matches(&row.scenario, name));
            if one_host || self.uncompared.iter().any(|row| matches(row, name)) {
                continue;
            }
            let mut of = |host: Host, all: &BTreeMap<String, Vec<Canonical>>| {
                let mut list = all.get(name).cloned().unwrap_or_default();
                list.retain(|span| {
                    !self.extra.iter().any(|row| row.host == host && span["span.name"] == row.name.as_str())
                });
                list.into_iter().map(|span| self.forgiving(host, name, span, &mut used)).collect::<Vec<_>>()
            };
            let (left, right) = (of(Host::Sidecar, &sidecar), of(Host::Envoy, &envoy));
            found.scenarios += 1;
            found.spans += left.len();
            let told = told(left, right);
            if !told.is_empty() {
                found.apart.push((name.clone(), told));
            }
        }
        for (at, row) in self.values.iter().enumerate().filter(|(at, _)| !used.contains(at)) {
            let _ = write!(found.unused, "\nrow {at} of [[value]] holds for nothing: {row:?}");
        }
        if found.scenarios == 0 {
            return Err(format!("nothing to compare in {}", folder.display()));
        }
        Ok(found)
    }

    /// A span in which every value that may differ is the same word on both hosts.
    fn forgiving(
        &self,
        host: Host,
        scenario: &str,
        mut span: Canonical,
        used: &mut BTreeSet<usize>,
    ) -> Canonical {
        for (at, row) in self.values.iter().enumerate().filter(|(_, row)| matches(&row.scenario, scenario)) {
            let pattern = if host == Host::Sidecar { &row.sidecar } else { &row.envoy };
            let found = span.get(&row.key).map(written);
            let holds = match (pattern.as_deref(), &found) {
                (None, _) => true,
                (Some("absent"), None) => true,
                (Some(pattern), Some(found)) => like(pattern, found),
                (Some(_), None) => false,
            };
            if holds {
                if found.is_some() {
                    used.insert(at);
                }
                span.insert(row.key.clone(), json!(format!("<may differ: {at}>")));
            }
        }
        span
    }
}

struct Row(toml::Value);

impl Row {
    fn text(&self, key: &str) -> Option<String> {
        self.0.get(key).and_then(toml::Value::as_str).map(str::to_owned)
    }

    fn host(&self) -> Result<Host, String> {
        match self.must("host")?.as_str() {
            "sidecar" => Ok(Host::Sidecar),
            "envoy" => Ok(Host::Envoy),
            other => Err(format!("tests/differences.toml: host = {other:?}: want sidecar or envoy")),
        }
    }

    fn must(&self, key: &str) -> Result<String, String> {
        self.text(key).ok_or_else(|| format!("tests/differences.toml: no {key} in {:?}", self.0))
    }

    fn reasoned(&self) -> Result<(), String> {
        let reason = self.must("reason")?;
        if reason.len() < 20 { Err(format!("a reason that says nothing: {reason:?}")) } else { Ok(()) }
    }
}

/// Whether a row speaks of a scenario: by its name, or by a prefix with `::*`.
fn matches(row: &str, scenario: &str) -> bool {
    match row.strip_suffix('*') {
        Some(prefix) => scenario.starts_with(prefix),
        None => row == scenario,
    }
}

/// Whether a text is like a pattern in which `*` stands for anything.
fn like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

fn expression(row: &str) -> String {
    let (binary, test) = row.split_once("::").unwrap_or((row, "*"));
    match test.strip_suffix('*') {
        Some("") => format!("binary(={binary})"),
        Some(prefix) => format!("binary(={binary}) & test(/^{prefix}/)"),
        None => format!("binary(={binary}) & test(={test})"),
    }
}

fn scenarios(list: &Value) -> Vec<String> {
    let suites = list["rust-suites"].as_object().into_iter().flatten();
    suites
        .flat_map(|(_, suite)| {
            let binary = suite["binary-name"].as_str().unwrap_or_default().to_owned();
            let tests = suite["testcases"].as_object().into_iter().flatten();
            tests.map(move |(test, _)| format!("{binary}::{test}"))
        })
        .collect()
}

fn kept(folder: &Path, host: Host) -> Result<BTreeMap<String, Vec<Canonical>>, String> {
    let folder = folder.join(host.name());
    let files = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut all = BTreeMap::new();
    for file in files.flatten() {
        let path = file.path();
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let spans = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        all.insert(name, spans);
    }
    Ok(all)
}

/// What differs between two lists of spans, in words; nothing if they are equal.
fn told(mut left: Vec<Canonical>, mut right: Vec<Canonical>) -> String {
    left.retain(|span| match right.iter().position(|other| other == span) {
        Some(at) => {
            right.swap_remove(at);
            false
        }
        None => true,
    });
    let mut text = String::new();
    for span in left {
        let nearest = right.iter().enumerate().min_by_key(|(_, other)| apart(&span, other).len());
        let Some((at, other)) = nearest.filter(|(_, other)| apart(&span, other).len() < span.len() / 2)
        else {
            let _ = write!(text, "\n  only from the sidecar: {}", json!(span));
            continue;
        };
        let _ = write!(text, "\n  {} {}", span["span.kind"], span["span.name"]);
        for key in apart(&span, other) {
            let show = |span: &Canonical| span.get(key).map_or_else(|| "absent".to_owned(), written);
            let _ = write!(text, "\n    {key}: sidecar {}, envoy {}", show(&span), show(other));
        }
        right.swap_remove(at);
    }
    for span in right {
        let _ = write!(text, "\n  only from Envoy: {}", json!(span));
    }
    text
}

fn apart<'a>(left: &'a Canonical, right: &'a Canonical) -> Vec<&'a str> {
    let keys: BTreeSet<_> = left.keys().chain(right.keys()).map(String::as_str).collect();
    keys.into_iter().filter(|key| left.get(*key) != right.get(*key)).collect()
}

fn written(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_what_it_says() {
        for (pattern, text, wanted) in [
            ("503", "503", true),
            ("503", "5030", false),
            ("50*", "502", true),
            ("*refused*", "connection_refused", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*", "", true),
        ] {
            assert_eq!(like(pattern, text), wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn a_span_that_differs_is_told_by_what_differs() {
        let span = |status: &str| {
            let pairs =
                [("span.kind", "Server"), ("span.name", "GET /"), ("status", status), ("x", "1"), ("y", "2")];
            pairs.map(|(key, value)| (key.to_owned(), json!(value))).into()
        };
        assert_eq!(told(vec![span("a"), span("b")], vec![span("b"), span("a")]), "");
        assert!(told(vec![span("a")], vec![span("b")]).contains("status: sidecar a, envoy b"));
        assert!(told(vec![span("a")], vec![]).contains("only from the sidecar"));
        assert!(told(vec![], vec![span("a")]).contains("only from Envoy"));
    }
}
