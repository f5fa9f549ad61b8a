//! Spans without what differs from run to run: ids become places in the tree, ports and moments go, and the order is
//! that of the text. Two hosts that behave alike give equal lists. It must never leave out what a user could ask for.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::sidecar::Host;
use crate::span::Span;

/// One span, flat: `span.name`, `span.parent` and so on, `resource.…`, and the attributes by their own keys.
pub type Canonical = BTreeMap<String, Value>;

/// Attributes whose value somebody drew, or a clock gave.
const DRAWN: &[&str] = &[
    "messaging.message.id",
    "messaging.gcp_pubsub.message.ack_id",
    "service.instance.id",
    "throughline.message.age_ms",
];

/// The deepest tree that is told apart.
const DEPTH_MAX: usize = 32;

/// All spans of a scenario, in an order of their own.
pub fn all(spans: &[Span]) -> Vec<Canonical> {
    let mut by_id: BTreeMap<(&str, &str), &Span> = BTreeMap::new();
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    for span in spans {
        by_id.insert((&span.trace, &span.id), span);
        *sizes.entry(&span.trace).or_default() += 1;
    }
    let mut list: Vec<_> = spans.iter().map(|span| one(span, &by_id, sizes[span.trace.as_str()])).collect();
    list.sort_by_cached_key(|span| json!(span).to_string());
    list
}

type ById<'a> = BTreeMap<(&'a str, &'a str), &'a Span>;

fn one(span: &Span, by_id: &ById<'_>, trace_size: usize) -> Canonical {
    let mut links: Vec<_> = span.links.iter().map(|(trace, id)| place(trace, id, by_id)).collect();
    links.sort();
    let mut flat = Canonical::from([
        ("span.name".to_owned(), json!(plain(&span.name))),
        ("span.kind".to_owned(), json!(format!("{:?}", span.kind))),
        ("span.status".to_owned(), json!(format!("{:?}", span.status))),
        ("span.parent".to_owned(), json!(place(&span.trace, &span.parent, by_id))),
        ("span.links".to_owned(), json!(links)),
        ("span.tracestate".to_owned(), json!(plain(&span.tracestate))),
        ("span.scope".to_owned(), json!(span.scope)),
        ("span.trace_size".to_owned(), json!(trace_size)),
    ]);
    flat.extend(
        span.resource.iter().map(|(key, value)| (format!("resource.{key}"), without_chance(key, value))),
    );
    flat.extend(span.attributes().iter().map(|(key, value)| (key.clone(), without_chance(key, value))));
    flat
}

/// A span's way up to its root, by names; `outside` where nobody of this scenario exported it.
fn place(trace: &str, id: &str, by_id: &ById<'_>) -> String {
    let mut way = Vec::new();
    let (mut trace, mut id) = (trace, id);
    while !id.is_empty() && way.len() < DEPTH_MAX {
        let Some(span) = by_id.get(&(trace, id)) else {
            way.push("outside".to_owned());
            break;
        };
        way.push(format!("{} {:?} {}", span.service(), span.kind, plain(&span.name)));
        (trace, id) = (&span.trace, &span.parent);
    }
    if way.is_empty() { "none".to_owned() } else { way.join(" < ") }
}

fn without_chance(key: &str, value: &Value) -> Value {
    match value {
        _ if DRAWN.contains(&key) => json!("<drawn>"),
        Value::Number(number)
            if key.ends_with(".port") && number.as_u64().is_some_and(|port| port >= 1024) =>
        {
            json!("<port>")
        }
        Value::String(text) => json!(plain(text)),
        Value::Array(list) => list.iter().map(|item| without_chance(key, item)).collect(),
        other => other.clone(),
    }
}

/// A text in which ids are `<id>`, drawn UUIDs too, and ports behind an address `:<port>`.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        if word == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (run, after) = rest.split_at(word);
        out.push_str(match run {
            _ if is_id(run) => "<id>",
            _ if out.ends_with(':') && out.len() > 1 && is_port(run) => "<port>",
            _ => run,
        });
        rest = after;
    }
    out
}

fn is_id(run: &str) -> bool {
    matches!(run.len(), 16 | 32) && run.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_port(run: &str) -> bool {
    run.bytes().all(|byte| byte.is_ascii_digit()) && run.parse::<u16>().is_ok_and(|port| port >= 1024)
}

/// The scenario that runs: binary and test as `cargo nextest` names them, else the thread's name.
pub fn scenario() -> Option<String> {
    let test = std::env::var("NEXTEST_TEST_NAME").ok()?;
    let binary = std::env::var("NEXTEST_BINARY_ID").ok()?;
    Some(format!("{}::{test}", binary.rsplit("::").next().unwrap_or(&binary)))
}

/// Whether the test that runs is one of those that run on both hosts: other packages use the collector too.
fn is_for_both_hosts() -> bool {
    std::env::var("NEXTEST_BINARY_ID").is_ok_and(|binary| binary.starts_with("throughline-tests"))
}

/// Keeps what a collector accepted for the comparison of the hosts, where `THROUGHLINE_PARITY_DIR` asks for it. A
/// scenario may have several collectors; what they got is one list.
pub fn keep(spans: Vec<Span>) {
    static SO_FAR: Mutex<Vec<Span>> = Mutex::new(Vec::new());
    let Some(folder) = std::env::var_os("THROUGHLINE_PARITY_DIR") else { return };
    let Some(scenario) = scenario().filter(|_| is_for_both_hosts()) else { return };
    let Ok(mut so_far) = SO_FAR.lock() else { return };
    so_far.extend(spans);
    let folder = std::path::PathBuf::from(folder).join(Host::asked().name());
    let text = serde_json::to_string_pretty(&all(&so_far)).expect("JSON");
    let written = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::write(folder.join(format!("{scenario}.json")), text));
    written.expect("THROUGHLINE_PARITY_DIR names a folder that can be written");
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn ids_and_ports_go_and_everything_else_stays() {
        for (text, wanted) in [
            ("tl=b7ad6b7169203331,vendor=1", "tl=<id>,vendor=1"),
            ("http://127.0.0.1:41234/items/7?a=b", "http://127.0.0.1:<port>/items/7?a=b"),
            ("[::1]:41234", "[::1]:<port>"),
            ("0af7651916cd43dd8448eb211c80319c", "<id>"),
            ("GET /x:80 7:8080b", "GET /x:80 7:8080b"),
            ("caf\u{e9}", "caf\u{e9}"),
        ] {
            assert_eq!(plain(text), wanted);
        }
    }
}
