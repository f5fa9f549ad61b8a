//! Any bytes as OTLP traces, in protobuf and in JSON: read or refused, never a panic; what is read can be decoded
//! whole, and goes through JSON and back as the same spans.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "shared with the server, which uses more of it")]
#[path = "../../flow/src/span.rs"]
mod span;
#[expect(dead_code, reason = "shared with the server, which uses more of it")]
#[path = "../../flow/src/wire/mod.rs"]
mod wire;

use span::{Sender, Span};
use wire::walk::{self, Check, Visit};
use wire::whole::{self, Origin};
use wire::{Malformed, json};

#[derive(Default)]
struct Spans {
    origin: Option<Origin>,
    spans: Vec<Span>,
}

impl<'a> Visit<'a> for Spans {
    fn sender(&mut self, sender: Sender<'a>) {
        self.origin = Some(Origin::of(&sender));
    }
    fn span(&mut self, raw: &'a [u8]) -> Result<(), Malformed> {
        if walk::span(raw, &mut Check)?.is_ok() {
            let origin = self.origin.as_ref().expect("the sender is told before its spans");
            self.spans.push(whole::span(raw, origin).expect("what was read can be decoded"));
        }
        Ok(())
    }
}

fuzz_target!(|body: &[u8]| {
    let _ = json::metrics(body);
    if let Ok(request) = json::traces(body) {
        // Ids of any length and values of any depth come through JSON: the walk may refuse them, and must not panic.
        let _ = walk::traces(&request, &mut Spans::default());
    }
    let mut spans = Spans::default();
    if walk::traces(body, &mut spans).is_ok() {
        let mut line = String::new();
        json::write_traces(body, &mut line);
        if let Ok(again) = json::traces(line.as_bytes()) {
            let mut back = Spans::default();
            walk::traces(&again, &mut back).expect("what we write can be read");
            // Numbers that are no numbers differ from themselves, so their texts are compared.
            assert_eq!(spans.spans.len(), back.spans.len());
            for (one, other) in spans.spans.iter().zip(&back.spans) {
                assert_eq!((one.trace_id, one.span_id, one.parent), (other.trace_id, other.span_id, other.parent));
                assert_eq!((&one.name, one.attributes.len()), (&other.name, other.attributes.len()));
            }
        }
    }
});
