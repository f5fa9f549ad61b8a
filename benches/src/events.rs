//! An event on its way: found, its `traceparent` replaced and its operation added, copied into the body that
//! goes on.

use throughline_core::events::Edit;
use throughline_core::events::cloudevent::{Events, Scratch};
use throughline_core::events::json::Scanner;
use throughline_core::events::splice::Splices;

use crate::measure;

const BEFORE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const AFTER: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";

/// What `data` is made of.
const KINDS: [(&str, &str); 3] = [
    ("text", "the quick brown fox jumps over the lazy dog 0123456789 "),
    ("escaped JSON", r#"{\"id\":17,\"name\":\"x\"},"#),
    ("objects", r#"{"id":1234,"name":"Widget","price":12.50,"tags":["a","b"],"ok":true},"#),
];

fn event(kind: &str, unit: &str, bytes: usize) -> String {
    let head = format!(
        r#"{{"specversion":"1.0","id":"A234-1234","source":"/orders","type":"order.placed","traceparent":"{BEFORE}","data":"#
    );
    let filler = unit.repeat(bytes.saturating_sub(head.len() + 4) / unit.len());
    if kind == "objects" { format!("{head}[{filler}0]}}") } else { format!("{head}\"{filler}\"}}") }
}

pub(crate) fn run() {
    for (kind, unit) in KINDS {
        for bytes in [1024, 64 * 1024, 1024 * 1024] {
            let body = event(kind, unit, bytes);
            let size = if bytes < 1_000_000 { format!("{} KB", bytes / 1024) } else { "1 MB".to_owned() };
            measure(&format!("scan an event of {kind}, {size}"), Some(body.len()), || {
                let mut scanner = Scanner::new(body.as_bytes()).expect("text");
                scanner.skip().expect("JSON");
            });
            let (mut scratch, mut splices) = (Scratch::default(), Splices::new());
            measure(&format!("edit an event of {kind}, {size}"), Some(body.len()), || {
                let mut out = Vec::with_capacity(body.len() + 512);
                splices.clear();
                let events = Events::structured(body.as_bytes(), &mut scratch).expect("an event");
                let edits = [Edit::set("traceparent", AFTER), Edit::set("operationname", "checkout")];
                events.edit(0, &edits, &mut splices).expect("an edit");
                splices.apply(body.as_bytes(), &mut out).expect("a body");
                out.len()
            });
        }
    }
}
