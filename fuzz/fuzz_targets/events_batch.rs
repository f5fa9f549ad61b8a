//! Any bytes as a batch of events and as the JSON bodies of Pub/Sub: never a panic, never an edit that a
//! naive parser cannot read or that changes another event.
#![no_main]

use libfuzzer_sys::fuzz_target;
use throughline_core::events::cloudevent::{self, Events};
use throughline_core::events::pubsub::{InsideScratch, MessageEdit};
use throughline_core::events::pubsub_json::{self, Form, Messages};
use throughline_core::events::splice::Splices;
use throughline_core::events::{Edit, detect};

#[expect(dead_code, reason = "shared with the unit tests, which use more of it")]
#[path = "../../core/src/events/judge.rs"]
mod judge;
use judge::{Json, Seed};

const NAMES: [&str; 3] = ["traceparent", "tracestate", "content-type"];

fuzz_target!(|input: (u64, &[u8])| {
    let (seed, body) = input;
    batch(&mut Seed(seed), body);
    for form in [Form::Publish, Form::Pull, Form::Push] {
        messages(&mut Seed(seed), body, form);
    }
    let _ = (detect::looks_wrapped(body), pubsub_json::ack_ids(body));
});

fn batch(seed: &mut Seed, body: &[u8]) {
    let mut scratch = cloudevent::Scratch::default();
    let Ok(events) = Events::batch(body, &mut scratch) else { return };
    let Some(Json::List(mut model)) = Json::parse(body) else { panic!("what we edit is a list") };
    assert_eq!(model.len(), events.len());
    let mut splices = Splices::new();
    for (i, event) in model.iter_mut().enumerate() {
        let edits = seed.edits(&NAMES);
        event.edit(&edits);
        let edits: Vec<_> = edits.iter().map(|(name, value)| Edit { name, value: *value }).collect();
        events.edit(i, &edits, &mut splices).expect("in order, once");
    }
    let mut out = Vec::new();
    splices.apply(body, &mut out).expect("the body they were made for");
    assert_eq!(Json::parse(&out), Some(Json::List(model)));
}

fn messages(seed: &mut Seed, body: &[u8], form: Form) {
    let (mut scratch, mut inside) = (pubsub_json::Scratch::default(), InsideScratch::default());
    let Ok(messages) = Messages::read(body, form, &mut scratch) else { return };
    let mut splices = Splices::new();
    let mut inserted = 0;
    for i in 0..messages.len() {
        let edits = seed.edits(&NAMES);
        let edits: Vec<_> = edits.iter().map(|(name, value)| Edit { name, value: *value }).collect();
        let event = messages.inside(i, &mut inside).ok().flatten().map(|event| (event, edits.as_slice()));
        if messages.edit(i, MessageEdit { attributes: &edits, event }, &mut splices).is_ok() {
            inserted += 1;
        }
    }
    let mut out = Vec::new();
    splices.apply(body, &mut out).expect("the body they were made for");
    assert!(Json::parse(&out).is_some(), "an edit broke the body");
    let mut again = pubsub_json::Scratch::default();
    let read = Messages::read(&out, form, &mut again);
    // Only a message whose attributes were full may be refused once one was added.
    assert!(inserted == 0 || read.is_err() || read.is_ok_and(|read| read.len() == messages.len()));
}
