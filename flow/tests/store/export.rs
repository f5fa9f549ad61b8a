//! What is exported, and taken back.

use crate::realistic::Traffic;
use crate::support::{Clock, Folder, NOON, SECOND, Said, child, id, on_disk, root, tell};
use bytes::Bytes;
use std::collections::BTreeMap;
use throughline_flow::engine::{Engine, Refused, TraceQuery};
use throughline_flow::span::Sender;
use throughline_flow::store::{Exported, Wanted, export};
use throughline_flow::wire::walk::{self, Visit};
use throughline_flow::wire::{Malformed, json};

/// Messages of spans, and who sent each.
#[derive(Default)]
struct Spans<'a>(BTreeMap<Vec<u8>, (Vec<u8>, Vec<u8>)>, Sender<'a>);

impl<'a> Visit<'a> for Spans<'a> {
    fn sender(&mut self, sender: Sender<'a>) {
        self.1 = sender;
    }
    fn span(&mut self, raw: &'a [u8]) -> Result<(), Malformed> {
        self.0.insert(raw.to_vec(), (self.1.resource.to_vec(), self.1.scope.to_vec()));
        Ok(())
    }
}

fn spans_in<'a>(bodies: impl IntoIterator<Item = &'a Vec<u8>>) -> BTreeMap<Vec<u8>, (Vec<u8>, Vec<u8>)> {
    let mut spans = Spans::default();
    for body in bodies {
        walk::traces(body, &mut spans).unwrap();
    }
    spans.0
}

fn exported(folder: &Folder, wanted: &Wanted) -> (Exported, Vec<Vec<u8>>) {
    let mut out = Vec::new();
    let exported = export(folder.path(), wanted, &Said::default().log(), &mut out).unwrap();
    let lines = String::from_utf8(out).unwrap();
    (exported, lines.lines().map(|line| json::traces(line.as_bytes()).unwrap()).collect())
}

fn pour(engine: &Engine, bodies: &[Vec<u8>]) {
    for body in bodies {
        while engine.spans(Bytes::copy_from_slice(body)) == Err(Refused::Busy) {
            std::thread::yield_now();
        }
    }
    engine.flush();
}

#[test]
fn what_is_exported_can_be_taken_in_again_and_is_equal() {
    let (first, second, clock) = (Folder::new(), Folder::new(), Clock::new());
    let mut traffic = Traffic::new(21, 40, 1000);
    let mut messages = traffic.messages(5_000);
    messages.extend(traffic.rest());
    let bodies: Vec<Vec<u8>> = messages.into_iter().map(|message| message.body).collect();
    let engine = clock.engine(on_disk(&first));
    pour(&engine, &bodies);
    // While the engine writes.
    let (told, lines) = exported(&first, &Wanted::Query(TraceQuery::default()));
    let expected = spans_in(&bodies);
    assert_eq!((told.spans as usize, told.blocks_damaged), (expected.len(), 0));
    assert_eq!(spans_in(&lines), expected);
    engine.close();
    let other = clock.engine(on_disk(&second));
    pour(&other, &lines);
    other.close();
    assert_eq!(spans_in(&exported(&second, &Wanted::Query(TraceQuery::default())).1), expected);
}

#[test]
fn a_window_an_operation_or_a_trace_is_exported_alone_and_each_span_once() {
    let (folder, clock) = (Folder::new(), Clock::new());
    let engine = clock.engine(on_disk(&folder));
    let mut login = root(2);
    login.operation = "login";
    tell(&engine, &[root(1), child(1, 2, "stock"), login, root(3)]);
    tell(&engine, &[child(1, 2, "stock"), child(1, 3, "bank")]);
    let one = exported(&folder, &Wanted::Trace(id(1)));
    assert_eq!((one.0.traces, one.0.spans, spans_in(&one.1).len()), (1, 3, 3));
    let all = TraceQuery { limit: 0, ..TraceQuery::default() };
    let login =
        exported(&folder, &Wanted::Query(TraceQuery { operation: Some("login".into()), ..all.clone() })).0;
    assert_eq!((login.traces, login.spans), (1, 1));
    let window = TraceQuery { start_unix_nanos: NOON + 2 * SECOND, end_unix_nanos: NOON + 4 * SECOND, ..all };
    assert_eq!(exported(&folder, &Wanted::Query(window)).0.traces, 2);
    assert_eq!(exported(&folder, &Wanted::Trace(id(9))).0, Exported::default());
}
