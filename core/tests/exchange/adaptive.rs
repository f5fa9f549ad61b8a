//! Sampling more while things go badly, and the bound of spans a second that everything chosen here keeps to.

use throughline_core::adaptive::Adaptive;
use throughline_core::classify::Outcome;
use throughline_core::control::Value;
use throughline_core::exchange::Config;
use throughline_core::mode::Mode;
use throughline_core::sampling::{Ratio, Root, Sampler};

use crate::harness::*;
use crate::keep::unsampled;

const WINDOW: u64 = 10_000 * MS;

fn adapting(config: &mut Config) {
    let errors = Ratio::new(0.1);
    config.adaptive =
        Adaptive { rate: Ratio::ONE, latency_nanos: Some(100 * MS), errors, window_nanos: WINDOW };
    config.keep.errors = false;
}

/// A request that takes so long and is answered so; why its span is there.
fn served(world: &mut World, millis: u64, status: u16, fields: Fields<'_>) -> String {
    let (mut exchange, _) = world.inbound(fields);
    world.now.mono_nanos += millis * MS;
    world.answer(&mut exchange, status, &[]);
    world.end(exchange, Outcome::Complete);
    let span = world.spans().pop();
    span.map_or("-".to_owned(), |span| text(&span, "throughline.sampled.by"))
}

#[test]
fn roots_are_sampled_while_too_much_fails_or_is_slow() {
    for (millis, status) in [(1, 500), (300, 200)] {
        let mut world = unsampled(adapting);
        for _ in 0..30 {
            assert_eq!(served(&mut world, 1, 200, &[]), "-");
        }
        for _ in 0..30 {
            served(&mut world, millis, status, &[]);
        }
        world.now.mono_nanos += WINDOW / 10;
        assert_eq!(served(&mut world, 1, 200, &[]), "adaptive", "{millis} {status}");
        assert_eq!(
            served(&mut world, 1, 200, &[("traceparent", UNSAMPLED)]),
            "-",
            "a parent's no is followed"
        );
        assert_eq!(world.tracer.rate(world.now), (Ratio::ONE, true));
        world.now.mono_nanos += 2 * WINDOW;
        assert_eq!(served(&mut world, 1, 200, &[]), "-", "nothing was slow or failed of late");
        assert_eq!(world.tracer.rate(world.now), (Ratio::ZERO, false));
    }
}

#[test]
fn a_caller_that_asks_for_what_is_not_there_is_no_failure() {
    let mut world = unsampled(adapting);
    for _ in 0..50 {
        served(&mut world, 1, 404, &[]);
    }
    world.now.mono_nanos += WINDOW / 10;
    assert_eq!(served(&mut world, 1, 200, &[]), "-");
}

#[test]
fn what_is_chosen_here_keeps_to_the_spans_a_second() {
    let enable = |world: &World, wish: &str| {
        world.tracer.enable(&Value::json(wish.as_bytes()).unwrap(), world.now).unwrap();
    };
    type Row<'a> = (&'a str, fn(&mut Config), Option<&'a str>, u16, usize);
    let rows: [Row<'_>; 5] = [
        ("the sampler", |config| config.sampler = Sampler::ParentBased(Root::AlwaysOn), None, 200, 10),
        ("a rule", |_| {}, Some(r#"{"service":"orders"}"#), 200, 10),
        ("keeping", |_| {}, None, 500, 10),
        ("full", |config| config.mode = Mode::Full, None, 200, 2),
        ("nothing", |_| {}, None, 200, 0),
    ];
    for (name, change, wish, status, expected) in rows {
        let mut world = unsampled(|config| {
            config.spans_per_second = 10;
            change(config);
        });
        if let Some(wish) = wish {
            enable(&world, wish);
        }
        for second in 0..3 {
            let mut made = 0;
            for _ in 0..50 {
                let (mut exchange, _) = world.inbound(&[]);
                world.answer(&mut exchange, status, &[]);
                made += usize::from(world.end(exchange, Outcome::Complete).recorded);
            }
            assert_eq!(made, expected, "{name}, second {second}");
            world.now.mono_nanos += 1000 * MS;
        }
        let left_out = if expected == 0 { 0 } else { 3 * (50 - expected as u64) };
        assert_eq!(world.tracer.counters().over_budget, left_out, "{name}");
        assert!(world.spans().len() <= 3 * 10, "{name}");
    }
}

#[test]
fn a_bound_below_one_exchange_of_full_leaves_one_a_second() {
    let mut world = World::with(|config| (config.mode, config.spans_per_second) = (Mode::Full, 3));
    let made = |world: &mut World| {
        let (exchange, _) = world.inbound(&[]);
        world.end(exchange, Outcome::Complete).recorded
    };
    assert_eq!([made(&mut world), made(&mut world)], [true, false]);
    world.now.mono_nanos += 1000 * MS;
    assert!(made(&mut world));
}

#[test]
fn what_was_left_out_is_counted_once_and_tells_nobody() {
    let mut world = unsampled(|config| config.spans_per_second = 1);
    for (told, left_out) in [("error", 0), ("-", 1), ("-", 2)] {
        let (mut exchange, _) = world.inbound(&[("traceparent", UNSAMPLED), WEB]);
        assert_eq!(value(&world.answer(&mut exchange, 500, &[]), "throughline-keep"), told);
        world.end(exchange, Outcome::Complete);
        assert_eq!(world.tracer.counters().over_budget, left_out);
    }
    assert_eq!(world.spans().len(), 1);
}

/// What others hang under is made all the same, and what was made so leaves less for what is chosen.
#[test]
fn what_a_parent_chose_is_made_and_counts() {
    let mut world = World::with(|config| config.spans_per_second = 10);
    for _ in 0..20 {
        let (exchange, _) = world.inbound(&[("traceparent", SAMPLED)]);
        assert!(world.finish(exchange).is_some());
    }
    let (exchange, _) = world.inbound(&[]);
    assert!(world.finish(exchange).is_none(), "nothing is left");
    world.now.mono_nanos += 1100 * MS;
    let (exchange, _) = world.inbound(&[]);
    assert!(world.finish(exchange).is_some(), "the debt is paid within a second");

    let mut world = unsampled(|config| config.spans_per_second = 1);
    let (first, application) = world.inbound(&[]);
    let copied = [
        ("traceparent", value(&application, "traceparent")),
        ("tracestate", value(&application, "tracestate")),
    ];
    let (mut called, _) = world.outbound(INSIDE, &copied);
    world.answer(&mut called, 500, &[]);
    world.end(called, Outcome::Complete);
    assert_eq!(world.spans().len(), 1);
    assert!(world.finish(first).is_some(), "the parent of a kept span is kept");
}
