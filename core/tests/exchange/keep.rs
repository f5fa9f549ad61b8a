//! Rule 4: what is worth keeping is kept, whatever the head said, and says why.

use opentelemetry_proto::tonic::trace::v1::Span;
use throughline_core::classify::{Direction, Failure, Outcome};
use throughline_core::exchange::{Config, RequestHead};
use throughline_core::keep::{Keep, Slow};
use throughline_core::mode::Mode;
use throughline_core::sampling::{Root, Sampler};

use crate::harness::*;

pub(crate) fn unsampled(change: impl FnOnce(&mut Config)) -> World {
    World::with(|config| {
        config.sampler = Sampler::ParentBased(Root::AlwaysOff);
        change(config);
    })
}

fn reason(span: &Option<Span>) -> String {
    span.as_ref().map_or("-".to_owned(), |span| text(span, "throughline.keep.reason"))
}

const COMPLETE: Outcome = Outcome::Complete;
const REFUSED: Outcome = Outcome::Failed { failure: Failure::ConnectionRefused, answered: Some(502) };

#[test]
fn what_fails_is_kept_on_both_sides() {
    for (direction, status, answer, outcome, expected) in [
        (Direction::Inbound, 200, &[][..], COMPLETE, "-"),
        (Direction::Inbound, 404, &[], COMPLETE, "-"),
        (Direction::Inbound, 500, &[], COMPLETE, "error"),
        (
            Direction::Inbound,
            200,
            &[("content-type", "application/grpc"), ("grpc-status", "14")],
            COMPLETE,
            "error",
        ),
        (
            Direction::Inbound,
            200,
            &[("content-type", "application/grpc"), ("grpc-status", "5")],
            COMPLETE,
            "-",
        ),
        (Direction::Inbound, 200, &[], Outcome::CallerGone, "-"),
        (Direction::Outbound, 200, &[], COMPLETE, "-"),
        (Direction::Outbound, 404, &[], COMPLETE, "error"),
        (Direction::Outbound, 200, &[], REFUSED, "error"),
    ] {
        for errors in [true, false] {
            let mut world = unsampled(|config| config.keep.errors = errors);
            let head = RequestHead { direction, ..request() };
            let mut exchange = world.begin(&head, &mut headers(&[]));
            world.answer(&mut exchange, status, answer);
            let summary = world.end(exchange, outcome);
            let span = world.spans().pop();
            assert_eq!(
                reason(&span),
                if errors { expected } else { "-" },
                "{direction:?} {status} {outcome:?}"
            );
            assert_eq!(summary.recorded, span.is_some());
        }
    }
}

/// A span that was kept says what a sampled one would have said.
#[test]
fn a_kept_span_says_all_that_a_sampled_one_says() {
    let sent = [
        ("traceparent", UNSAMPLED),
        ("tracestate", "a=1"),
        ("user-agent", "curl/8"),
        ("x-operation-name", "checkout"),
        ("x-tenant", "blue"),
        WEB,
    ];
    for (direction, method, query) in [
        (Direction::Inbound, "GET", Some(&b"sig=secret&b=2"[..])),
        (Direction::Inbound, "BREW", None),
        (Direction::Outbound, "GET", Some(b"sig=secret")),
        (Direction::Outbound, "PUT", None),
    ] {
        let [kept, sampled] = [Root::AlwaysOff, Root::AlwaysOn].map(|root| {
            let mut world = World::with(|config| {
                config.sampler = Sampler::Always(root);
                config.capture_request_headers = vec!["x-tenant".into()];
                config.capture_response_headers = vec!["x-shard".into()];
            });
            let caller = Some([10, 1, 2, 3].into());
            let authority = b"user:pass@shop:8080";
            let head = RequestHead { direction, method, query, caller, authority, ..request() };
            let mut exchange = world.begin(&head, &mut headers(&sent));
            world.answer(&mut exchange, 503, &[("x-shard", "7")]);
            world.now.mono_nanos += MS;
            world.end(exchange, COMPLETE);
            let mut span = world.spans().pop().unwrap();
            let ours = ["throughline.keep.reason", "throughline.sampled.by"];
            span.attributes.retain(|attribute| !ours.contains(&attribute.key.as_str()));
            span.attributes.sort_by(|a, b| a.key.cmp(&b.key));
            span
        });
        assert_eq!(kept.flags & 1, 0, "it went on the wire unsampled");
        // Whose child it is has tests of its own: the caller's sidecar is told of the one and not of the other.
        let kept = Span { flags: sampled.flags, parent_span_id: sampled.parent_span_id.clone(), ..kept };
        assert_eq!(kept, sampled, "{direction:?} {method}");
    }
}

#[test]
fn what_takes_longer_than_its_threshold_is_kept() {
    for (slow, route, millis, expected) in [
        (Slow::Over(100 * MS), "/", 100, "-"),
        (Slow::Over(100 * MS), "/", 101, "slow"),
        (Slow::Over(100 * MS), "/report", 300, "-"),
        (Slow::Over(100 * MS), "/report", 501, "slow"),
        (Slow::Never, "/report", 501, "slow"),
        (Slow::Never, "/", 100_000, "-"),
    ] {
        let mut world = unsampled(|config| {
            config.keep.slow = slow;
            config.keep.slow_routes = vec![("/report".into(), 500 * MS)];
        });
        let head = RequestHead { path: route.as_bytes(), ..request() };
        let exchange = world.begin(&head, &mut headers(&[]));
        world.now.mono_nanos += millis * MS;
        assert_eq!(reason(&world.finish(exchange)), expected, "{slow:?} {route} {millis}");
    }
}

#[test]
fn a_route_learns_what_is_slow_for_it() {
    let mut world = unsampled(|_| {});
    let after = |world: &mut World, path: &str, millis: u64| {
        let head = RequestHead { path: path.as_bytes(), ..request() };
        let exchange = world.begin(&head, &mut headers(&[]));
        world.now.mono_nanos += millis * MS;
        reason(&world.finish(exchange))
    };
    for _ in 0..200 {
        assert_eq!(after(&mut world, "/fast", 5), "-");
        assert_eq!(after(&mut world, "/slow", 500), "-");
    }
    assert_eq!(after(&mut world, "/fast", 50), "slow");
    assert_eq!(after(&mut world, "/slow", 500), "-", "for this route it is the usual");
    assert_eq!(after(&mut world, "/new", 50_000), "-", "nothing is known of it");
}

#[test]
fn chosen_operations_routes_and_headers_are_kept_and_an_error_is_the_better_reason() {
    for (fields, status, expected) in [
        (&[("x-operation-name", "checkout")][..], 200, "operation"),
        (&[("baggage", "app.operation.name=checkout")], 200, "operation"),
        (&[("x-operation-name", "other")], 200, "-"),
        (&[("x-tenant", "blue")], 200, "header"),
        (&[("x-tenant", "red")], 200, "-"),
        (&[("x-tenant", "blue")], 500, "error"),
    ] {
        let mut world = unsampled(|config| {
            config.keep.operations = vec!["checkout".into()];
            config.keep.headers = vec![("x-tenant".into(), Some("blue".into()))];
        });
        let (mut exchange, _) = world.inbound(fields);
        world.answer(&mut exchange, status, &[]);
        world.end(exchange, COMPLETE);
        assert_eq!(reason(&world.spans().pop()), expected, "{fields:?} {status}");
    }
    let mut world = unsampled(|config| config.keep.routes = vec!["/items/{id}".into()]);
    let (exchange, _) = world.inbound(&[]);
    assert_eq!(reason(&world.finish(exchange)), "route");
    assert_eq!(world.tracer.counters().kept, [0, 0, 0, 1, 0, 0]);
}

#[test]
fn a_kept_span_claims_no_probability_and_the_wire_keeps_what_it_carried() {
    let mut world = unsampled(|_| {});
    let (mut exchange, application) =
        world.inbound(&[("traceparent", UNSAMPLED), ("tracestate", "ot=th:8;rv:0123456789abcd,b=2")]);
    assert!(value(&application, "tracestate").contains("ot=th:8;rv:"));
    assert!(value(&application, "traceparent").ends_with("-00"));
    world.answer(&mut exchange, 500, &[]);
    world.end(exchange, COMPLETE);
    let span = world.spans().pop().unwrap();
    assert_eq!(span.trace_state, "ot=rv:0123456789abcd,b=2");
    assert_eq!(text(&span, "throughline.sampled.by"), "-");
    assert_eq!(parent_of(&span), CALLER, "a caller outside of the mesh");
}

#[test]
fn a_sampled_exchange_is_not_kept_on_top_and_nothing_is_kept_where_nothing_is_exported() {
    let mut world = World::new();
    let (mut exchange, _) = world.inbound(&[]);
    world.answer(&mut exchange, 500, &[]);
    world.end(exchange, COMPLETE);
    let span = world.spans().pop();
    assert_eq!(reason(&span), "-");
    assert_eq!(world.spans().len(), 0);
    for change in
        [|config: &mut Config| config.recording = false, |config: &mut Config| config.mode = Mode::Off]
    {
        let mut world = unsampled(change);
        let (mut exchange, _) = world.inbound(&[]);
        world.answer(&mut exchange, 500, &[]);
        assert!(!world.end(exchange, COMPLETE).recorded);
        assert_eq!(world.spans().len(), 0);
    }
    let nothing = Keep { errors: false, slow: Slow::Never, ..Keep::default() };
    let mut world = unsampled(|config| config.keep = nothing);
    let (mut exchange, _) = world.inbound(&[]);
    world.answer(&mut exchange, 500, &[]);
    assert!(!world.end(exchange, COMPLETE).recorded);
}

/// Rule 3: a caller whose sidecar exported nothing is nobody's parent, where its application called past
/// its own sidecar.
#[test]
fn a_kept_span_names_no_parent_that_the_mesh_did_not_export() {
    for (fields, expected) in [
        (&[("traceparent", UNSAMPLED)][..], CALLER),
        (&[("traceparent", UNSAMPLED), ("tracestate", "tl=a1b2c3d4e5f60718,a=1")], ""),
        (&[("traceparent", SAMPLED), ("tracestate", "tl=a1b2c3d4e5f60718,a=1")], CALLER),
    ] {
        let mut world = unsampled(|_| {});
        let (mut exchange, _) = world.inbound(fields);
        world.answer(&mut exchange, 500, &[]);
        world.end(exchange, COMPLETE);
        assert_eq!(parent_of(&world.spans().pop().unwrap()), expected, "{fields:?}");
    }
}
