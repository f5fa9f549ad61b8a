//! Any bytes as a structured event: what is refused is refused by a naive parser too, and what is edited
//! differs in the edited extensions alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use throughline_core::events::cloudevent::{Events, Scratch};
use throughline_core::events::splice::Splices;
use throughline_core::events::{Edit, Untouched};

#[expect(dead_code, reason = "shared with the unit tests, which use more of it")]
#[path = "../../core/src/events/judge.rs"]
mod judge;
use judge::{Json, Seed};

fuzz_target!(|input: (u64, &[u8])| {
    let (seed, body) = input;
    let edits = Seed(seed).edits(&["traceparent", "tracestate", "id", "a"]);
    let list: Vec<_> = edits.iter().map(|(name, value)| Edit { name, value: *value }).collect();
    let mut scratch = Scratch::default();
    let events = match Events::structured(body, &mut scratch) {
        Ok(events) => events,
        Err(Untouched::NotJson | Untouched::NotUtf8) => {
            return assert!(Json::parse(body).is_none(), "a valid text was refused");
        }
        Err(_) => return,
    };
    let _ = events.view(0);
    let mut splices = Splices::new();
    events.edit(0, &list, &mut splices).expect("at most three edits, once");
    let mut out = Vec::new();
    splices.apply(body, &mut out).expect("the body they were made for");
    let mut model = Json::parse(body).expect("what we edit is JSON");
    model.edit(&edits);
    assert_eq!(Json::parse(&out), Some(model));
    if edits.is_empty() {
        assert_eq!(out, body);
    }
    let mut in_place = body.to_vec();
    if splices.apply_in_place(&mut in_place) {
        assert_eq!(in_place, out);
    } else {
        assert_ne!(splices.iter().map(|(place, text)| place.len().abs_diff(text.len())).sum::<usize>(), 0);
    }
});
