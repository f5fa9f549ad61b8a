//! Tests only: runs the files of `core/vectors/events`, whose README says how they are written.

use super::cloudevent::{self, Events};
use super::pubsub::{InsideScratch, MessageEdit};
use super::pubsub_json::{self, Form, Messages};
use super::splice::Splices;
use super::{Edit, Untouched};

/// The edits of one event, in the order of the file.
#[derive(Default)]
struct Step {
    at: usize,
    edits: Vec<(String, Option<String>)>,
    event_edits: Vec<(String, Option<String>)>,
}

fn borrowed(edits: &[(String, Option<String>)]) -> Vec<Edit<'_>> {
    edits.iter().map(|(name, value)| Edit { name, value: value.as_deref() }).collect()
}

/// Edits a body step by step and appends the result.
type Run = fn(&[u8], &[Step], &mut Vec<u8>) -> Result<(), Untouched>;

/// Runs every block of a file.
fn check(file: &str, run: Run) {
    let mut cases = 0;
    for block in file.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let mut title = "";
        let mut steps = vec![Step::default()];
        let (mut input, mut expected) = (String::new(), None);
        for line in block.lines() {
            let (verb, rest) = line.split_once(' ').unwrap();
            let pair = || {
                rest.split_once(' ').map(|(name, value)| (name.to_owned(), Some(value.to_owned()))).unwrap()
            };
            let step = steps.last_mut().unwrap();
            match verb {
                "#" => title = rest,
                "in" => input = rest.replace('␊', "\n").replace('␉', "\t"),
                "at" => steps.push(Step { at: rest.parse().unwrap(), ..Step::default() }),
                "set" => step.edits.push(pair()),
                "remove" => step.edits.push((rest.to_owned(), None)),
                "event-set" => step.event_edits.push(pair()),
                "event-remove" => step.event_edits.push((rest.to_owned(), None)),
                "out" if rest == "same" => expected = Some(Ok(input.clone())),
                "out" => expected = Some(Ok(rest.replace('␊', "\n").replace('␉', "\t"))),
                "untouched" => expected = Some(Err(rest.to_owned())),
                _ => panic!("{title}: what is {verb}?"),
            }
        }
        let mut out = Vec::new();
        steps.retain(|step| !step.edits.is_empty() || !step.event_edits.is_empty());
        let done = run(input.as_bytes(), &steps, &mut out);
        let done = done.map(|()| String::from_utf8(out).unwrap()).map_err(|reason| reason.label().to_owned());
        assert_eq!(done, expected.unwrap(), "{title}");
        cases += 1;
    }
    assert!(cases > 2, "the file is empty");
}

fn events(events: &Events<'_, '_>, body: &[u8], steps: &[Step], out: &mut Vec<u8>) -> Result<(), Untouched> {
    let mut splices = Splices::new();
    for step in steps {
        events.edit(step.at, &borrowed(&step.edits), &mut splices)?;
    }
    splices.apply(body, out)
}

fn messages(body: &[u8], form: Form, steps: &[Step], out: &mut Vec<u8>) -> Result<(), Untouched> {
    let (mut scratch, mut inside) = (pubsub_json::Scratch::default(), InsideScratch::default());
    let messages = Messages::read(body, form, &mut scratch)?;
    let mut splices = Splices::new();
    for step in steps {
        let (attributes, event_edits) = (borrowed(&step.edits), borrowed(&step.event_edits));
        let mut event = None;
        if !event_edits.is_empty() {
            let opened = messages.inside(step.at, &mut inside)?.ok_or(Untouched::Shape)?;
            event = Some((opened, event_edits.as_slice()));
        }
        messages.edit(step.at, MessageEdit { attributes: &attributes, event }, &mut splices)?;
    }
    splices.apply(body, out)
}

#[test]
fn structured_events() {
    check(include_str!("../../vectors/events/structured.txt"), |body, steps, out| {
        events(&Events::structured(body, &mut cloudevent::Scratch::default())?, body, steps, out)
    });
}

#[test]
fn batches() {
    check(include_str!("../../vectors/events/batch.txt"), |body, steps, out| {
        events(&Events::batch(body, &mut cloudevent::Scratch::default())?, body, steps, out)
    });
}

#[test]
fn publish_bodies() {
    check(include_str!("../../vectors/events/publish.txt"), |body, steps, out| {
        messages(body, Form::Publish, steps, out)
    });
}

#[test]
fn pull_answers() {
    check(include_str!("../../vectors/events/pull.txt"), |body, steps, out| {
        messages(body, Form::Pull, steps, out)
    });
}

#[test]
fn wrapped_pushes() {
    check(include_str!("../../vectors/events/push.txt"), |body, steps, out| {
        messages(body, Form::Push, steps, out)
    });
}
