//! Any bytes as `google.pubsub.v1` messages and as a gRPC stream: what is edited differs in the attributes
//! alone, judged by a naive decoder; what goes through the reassembler comes out byte for byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use throughline_core::events::Edit;
use throughline_core::events::grpc_frame::{Piece, Reassembler};
use throughline_core::events::pubsub::{InsideScratch, MessageEdit};
use throughline_core::events::pubsub_grpc::{self, Form, Messages, SubscriptionRequest};
use throughline_core::events::splice::Splices;

#[expect(dead_code, reason = "shared with the unit tests, which use more of it")]
#[path = "../../core/src/events/judge.rs"]
mod judge;
use judge::Seed;

fuzz_target!(|input: (u64, &[u8])| {
    let (seed, body) = input;
    publish(&mut Seed(seed), body);
    pull(&mut Seed(seed), body);
    stream(&mut Seed(seed), body);
    let _ = pubsub_grpc::subscription_view(body, SubscriptionRequest::StreamingPull);
});

fn publish(seed: &mut Seed, body: &[u8]) {
    let mut scratch = pubsub_grpc::Scratch::default();
    let Ok(messages) = Messages::read(body, Form::PublishRequest, &mut scratch) else { return };
    let mut model = judge::fields(body).expect("what we edit is protobuf");
    let mut splices = Splices::new();
    let mut expected = Vec::new();
    for (i, field) in model.iter_mut().filter(|field| (field.0, field.1) == (2, 2)).enumerate() {
        let edits = seed.edits(&["traceparent", "k", "a", ""]);
        let mut message = judge::fields(&field.2).expect("a message");
        judge::edit_map(&mut message, 2, &edits).expect("entries are messages");
        expected.push(message);
        let edits: Vec<_> = edits.iter().map(|(name, value)| Edit { name, value: *value }).collect();
        messages
            .edit(i, MessageEdit { attributes: &edits, event: None }, &mut splices)
            .expect("in order, once");
    }
    let mut out = Vec::new();
    splices.apply(body, &mut out).expect("the body they were made for");
    let edited = judge::fields(&out).expect("still protobuf");
    assert_eq!(edited.len(), model.len());
    let mut expected = expected.into_iter();
    for (field, old) in edited.iter().zip(&model) {
        if (field.0, field.1) == (2, 2) {
            // Compared field by field: the model spells every length anew, we only those that change.
            let message = judge::fields(&field.2).expect("still a message");
            let expected = expected.next().expect("as many messages");
            assert_eq!(message.len(), expected.len());
            for (field, expected) in message.iter().zip(&expected) {
                let entry = (field.0, field.1) == (2, 2);
                assert!(field == expected || entry && judge::fields(&field.2) == judge::fields(&expected.2));
            }
        } else {
            assert_eq!(field, old);
        }
    }
}

fn pull(seed: &mut Seed, body: &[u8]) {
    let (mut scratch, mut inside) = (pubsub_grpc::Scratch::default(), InsideScratch::default());
    let Ok(messages) = Messages::read(body, Form::PullResponse, &mut scratch) else { return };
    let mut splices = Splices::new();
    for i in 0..messages.len() {
        let edits = seed.edits(&["traceparent", "content-type"]);
        let edits: Vec<_> = edits.iter().map(|(name, value)| Edit { name, value: *value }).collect();
        let _ = messages.view(i);
        let event = messages.inside(i, &mut inside).ok().flatten().map(|event| (event, edits.as_slice()));
        messages.edit(i, MessageEdit { attributes: &edits, event }, &mut splices).expect("in order, once");
    }
    let mut out = Vec::new();
    splices.apply(body, &mut out).expect("the body they were made for");
    let (before, after) = (judge::fields(body).expect("protobuf"), judge::fields(&out).expect("protobuf"));
    assert_eq!(before.len(), after.len());
    assert!(before.iter().zip(&after).all(|(old, new)| old == new || (old.0, old.1) == (1, 2)));
}

fn stream(seed: &mut Seed, body: &[u8]) {
    let mut reassembler = Reassembler::new(seed.below(64));
    let (mut rest, mut sent) = (body, Vec::new());
    while !rest.is_empty() {
        let (mut chunk, after) = rest.split_at(1 + seed.below(rest.len().min(40)));
        rest = after;
        while let Some(piece) = reassembler.next_piece(&mut chunk) {
            match piece {
                Piece::Message { framed, .. } => sent.extend_from_slice(framed),
                Piece::Passing(bytes) => sent.extend_from_slice(bytes),
            }
        }
        assert!(chunk.is_empty());
    }
    sent.extend_from_slice(reassembler.rest());
    assert_eq!(sent, body);
}
