//! What is pushed of durations and contexts, in either form of histogram.

use throughline_core::classify::Outcome;
use throughline_core::metrics::Aggregation;

use crate::harness::*;
use crate::pushed::{Numbers, lines, pushed};

/// The value that a share of the requests is not above, as a reader of the point tells it: the middle of its bucket.
fn quantile(scale: i32, offset: i32, counts: &[u64], zero: u64, share: f64) -> f64 {
    let total = zero + counts.iter().sum::<u64>();
    let rank = (share * total as f64).ceil().max(1.0) as u64;
    let mut below = zero;
    if below >= rank {
        return 0.0;
    }
    for (place, count) in counts.iter().enumerate() {
        below += count;
        if below >= rank {
            let base = 2_f64.powf(2_f64.powi(-scale));
            let lower = base.powi(offset + place as i32);
            return 2.0 * lower * base / (1.0 + base);
        }
    }
    panic!("{rank} of {total}");
}

#[test]
fn exponential_histograms_tell_every_quantile_within_their_error_and_every_count() {
    // Times of the slowest by those of the fastest, and the scale and error that come of it.
    for (octaves, scale, error) in [(4, 6, 0.0055), (9, 6, 0.0055), (18, 5, 0.0109), (27, 4, 0.0217)] {
        let mut world = World::with(|config| config.aggregation = Aggregation::Exponential);
        let (mut draw, mut durations) = (1_u64, Vec::new());
        for _ in 0..2000 {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let nanos = 50_000 + (((draw >> 33) % 49_000) << ((draw >> 20) % octaves));
            let (exchange, _) = world.inbound(&[]);
            world.now.mono_nanos += nanos;
            let _ = world.end(exchange, Outcome::CallerGone);
            durations.push(nanos);
        }
        durations.sort_unstable();
        let points = pushed(&world.tracer);
        let [point] = &points[..] else { panic!("{points:?}") };
        assert_eq!((point.name.as_str(), point.unit.as_str()), ("http.server.request.duration", "s"));
        let Numbers::Exponential(point) = &point.numbers else { panic!("{point:?}") };
        assert_eq!((point.scale, point.count, point.zero_count), (scale, 2000, 0));
        let sum = durations.iter().sum::<u64>() as f64 / 1e9;
        assert!((point.sum.unwrap() - sum).abs() < 1e-6, "{sum}");
        let positive = point.positive.as_ref().unwrap();
        assert!(positive.bucket_counts.len() <= 640);
        for share in [0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0] {
            let exact = durations[(share * 2000_f64).ceil() as usize - 1] as f64 / 1e9;
            let told = quantile(point.scale, positive.offset, &positive.bucket_counts, 0, share);
            assert!((told / exact - 1.0).abs() <= error, "{share} of {octaves}: {told} for {exact}");
        }
    }
}

#[test]
fn the_scraped_page_is_the_same_whatever_is_pushed() {
    let pages = [Aggregation::Explicit, Aggregation::Exponential].map(|aggregation| {
        let mut world = World::with(|config| config.aggregation = aggregation);
        for millis in [0, 5, 6, 20_000] {
            let (mut exchange, _) = world.inbound(&[WEB]);
            world.now.mono_nanos += millis * MS;
            world.answer(&mut exchange, 200, &[]);
            let _ = world.end(exchange, Outcome::Complete);
        }
        let counts = lines(&world.tracer, "http.server");
        (world.page(true), counts)
    });
    assert_eq!(pages[0], pages[1]);
    assert!(pages[0].1[0].ends_with(" 4"), "{:?}", pages[0].1);
}

#[test]
fn what_took_no_time_is_counted_as_nothing() {
    let mut world = World::with(|config| config.aggregation = Aggregation::Exponential);
    let (exchange, _) = world.inbound(&[]);
    let _ = world.end(exchange, Outcome::CallerGone);
    let points = pushed(&world.tracer);
    let Numbers::Exponential(point) = &points[0].numbers else { panic!("{points:?}") };
    assert_eq!((point.count, point.zero_count, point.sum), (1, 1, Some(0.0)));
}

#[test]
fn nothing_is_pushed_before_something_was_counted() {
    assert!(World::new().tracer.otlp_metrics(3, 9).is_empty());
}

#[test]
fn what_becomes_of_contexts_is_pushed_by_route() {
    let mut world = World::new();
    let of = |context: &str| [("traceparent", context.to_owned())];
    let call = |world: &mut World, fields: &[(&str, String)]| {
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (exchange, _) = world.outbound(INSIDE, &fields);
        let _ = world.end(exchange, Outcome::Complete);
    };
    // Forwarded, with what the application forgot put back.
    let (mut exchange, received) =
        world.inbound(&[("traceparent", SAMPLED), ("x-operation-name", "checkout")]);
    let given = value(&received, "traceparent").to_owned();
    call(&mut world, &of(&given));
    world.answer(&mut exchange, 200, &[]);
    let _ = world.end(exchange, Outcome::Complete);
    // Dropped.
    let (mut exchange, _) = world.inbound(&[("traceparent", SAMPLED)]);
    call(&mut world, &[]);
    call(&mut world, &[]);
    world.answer(&mut exchange, 200, &[]);
    let _ = world.end(exchange, Outcome::Complete);
    // Unreadable.
    for (header, value) in [("traceparent", "00-1-2-3"), ("b3", "x"), ("traceparent", "")] {
        let (exchange, _) = world.inbound(&[(header, value)]);
        let _ = world.end(exchange, Outcome::CallerGone);
    }
    let (exchange, _) = world.inbound(&[("x-operation-name", "not a name")]);
    let _ = world.end(exchange, Outcome::CallerGone);
    world.tracer.count_untouched("compressed");
    let shown: Vec<String> = lines(&world.tracer, "throughline.");
    assert_eq!(
        shown,
        [
            "throughline.context.forwarded{route=/items/{id}} 1",
            "throughline.context.dropped{route=/items/{id}} 1",
            "throughline.context.invalid{header=traceparent} 2",
            "throughline.events_untouched{reason=compressed} 1",
            "throughline.context.restored{} 1",
            "throughline.calls_without_context{} 2",
            "throughline.operations_ignored{} 1",
        ]
    );
    let units: Vec<String> = pushed(&world.tracer).into_iter().map(|point| point.unit).collect();
    assert_eq!(
        units[units.len() - 7..],
        ["{exchange}", "{exchange}", "{header}", "{body}", "{call}", "{call}", "{name}"]
    );
}

#[test]
fn a_call_of_another_trace_counts_while_something_is_in_flight_and_a_late_one_does_not() {
    const OTHER: &str = "00-99999999999999999999999999999999-8888888888888888-01";
    let mut world = World::new();
    let call = |world: &mut World, context: &str, state: &str| {
        let fields = [("traceparent", context), ("tracestate", state)];
        let (exchange, _) = world.outbound(INSIDE, &fields[..if state.is_empty() { 1 } else { 2 }]);
        let _ = world.end(exchange, Outcome::Complete);
        lines(&world.tracer, "throughline.calls_of_other_traces")
    };
    assert!(call(&mut world, OTHER, "").is_empty(), "nothing is in flight: work of the application's own");
    let (late, received) = world.inbound(&[("traceparent", SAMPLED)]);
    let (given, state) =
        (value(&received, "traceparent").to_owned(), value(&received, "tracestate").to_owned());
    assert!(call(&mut world, &given, &state).is_empty(), "its own trace");
    let _ = world.end(late, Outcome::Complete);
    let (exchange, _) = world.inbound(&[]);
    assert!(call(&mut world, &given, &state).is_empty(), "it comes late, and says whose it is");
    assert_eq!(call(&mut world, OTHER, ""), ["throughline.calls_of_other_traces{} 1"]);
    let _ = world.end(exchange, Outcome::Complete);
}

#[test]
fn grpc_and_messages_are_series_of_their_own_and_none_stands_twice() {
    let mut world = World::new();
    let grpc = [("content-type", "application/grpc"), ("traceparent", SAMPLED)];
    let event = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];
    for fields in [&grpc[..], &event[..], &[]] {
        let (mut exchange, _) = world.inbound(fields);
        world.answer(&mut exchange, 200, &[]);
        let _ = world.end(exchange, Outcome::Complete);
    }
    let mut shown = lines(&world.tracer, "http.server");
    let page = world.page(false);
    let mut series: Vec<&str> = page.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect();
    let all = (shown.len(), series.len());
    shown.sort_unstable();
    shown.dedup();
    series.sort_unstable();
    series.dedup();
    assert_eq!((shown.len(), series.len()), all, "{shown:?}");
    assert!(shown.iter().any(|line| line.contains("name=grpc")), "{shown:?}");
}
