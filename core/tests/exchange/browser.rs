//! Rule 10, for browsers: whose trace goes on at an edge, what a page may tell of it, and what may be sent without
//! ever getting into a trace.

use std::net::IpAddr;

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use throughline_core::browser::{Asked, Body, Config as Bounds, Pages, Sent, Told};
use throughline_core::classify::Outcome;
use throughline_core::exchange::{Config, Edge, Trust};
use throughline_core::sampling::{Ratio, Root, Sampler};

use crate::harness::*;

const PAGE: (&str, &str) = ("sec-fetch-site", "same-origin");
const ROOT_SPAN: &str = "00f067aa0ba902b7";
const LOGIN: (&str, &str) = ("x-operation-name", "login");
/// The moment of these tests in milliseconds, as a page with a good clock has it.
const NOW: &str = "1763600000000";
const AGENT: &[u8] = b"Mozilla/5.0";

fn address(last: u8) -> IpAddr {
    IpAddr::from([203, 0, 113, last])
}

fn pages() -> Pages {
    Pages::new(&Bounds { address_per_second: 1000, per_second: 10_000, attribute_bytes_max: None }, 7)
}

fn edge(change: impl FnOnce(&mut Config)) -> World {
    World::with(|config| {
        let operations = Vec::new();
        config.trust = Trust::Edge(Edge { operations, operations_max: 2, sampled_per_second: 2 });
        change(config);
    })
}

/// A span as a page tells it, with changes: `key=JSON`, or `key=` to leave it out.
fn told(kind: u8, id: &str, parent: &str, changes: &[(&str, &str)]) -> String {
    let [start, end] = [10, 20].map(|millis| (START_UNIX_NANOS - 100 * MS + millis * MS).to_string());
    let mut fields = vec![
        ("traceId", format!("\"{TRACE}\"")),
        ("spanId", format!("\"{id}\"")),
        ("name", "\"login\"".to_owned()),
        ("kind", kind.to_string()),
        ("startTimeUnixNano", format!("\"{start}\"")),
        ("endTimeUnixNano", format!("\"{end}\"")),
    ];
    if !parent.is_empty() {
        fields.push(("parentSpanId", format!("\"{parent}\"")));
    }
    for (key, value) in changes {
        fields.retain(|(known, _)| known != key);
        if !value.is_empty() {
            fields.push((key, (*value).to_owned()));
        }
    }
    let fields: Vec<_> = fields.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn body(spans: &[String], sent: &str) -> String {
    let resource = format!(
        r#"{{"attributes":[{{"key":"service.name","value":{{"stringValue":"evil"}}}},
            {{"key":"throughline.sent","value":{{"intValue":"{sent}"}}}}]}}"#
    );
    format!(
        r#"{{"resourceSpans":[{{"resource":{resource},"scopeSpans":[{{"scope":{{"name":"x"}},"spans":[{}]}}]}}]}}"#,
        spans.join(",")
    )
}

/// What becomes of a body: the counters that moved, and the spans.
fn send(world: &mut World, pages: &Pages, body: &str, from: IpAddr) -> (Vec<(&'static str, u64)>, Vec<Span>) {
    let before = pages.counters();
    let sent = Sent { body: body.as_bytes(), address: from, agent: Some(AGENT), now: world.now };
    let taken = pages.take(&sent, &mut world.batch);
    let after = pages.counters();
    let counts = Told::ALL.iter().zip(after.told.iter().zip(before.told));
    let mut moved: Vec<_> = counts.map(|(told, (after, before))| (told.as_str(), after - before)).collect();
    moved.retain(|(_, count)| *count > 0);
    if let Ok(taken) = taken {
        assert_eq!(taken.taken + taken.rejected, moved.iter().map(|(_, count)| count).sum::<u64>());
    }
    (moved, world.spans())
}

/// A request of the page of this address; the span of its exchange, if there is one.
fn asks(world: &mut World, pages: &Pages, from: IpAddr) -> Option<Span> {
    let (exchange, _) = world.of_browser(pages, &[("traceparent", SAMPLED), PAGE, LOGIN], "", from);
    world.finish(exchange)
}

#[test]
fn a_page_of_the_same_origin_goes_on_with_its_trace() {
    let mut world = edge(|_| {});
    let pages = pages();
    let fields = [("traceparent", SAMPLED), ("tracestate", "rojo=1"), PAGE, LOGIN];
    let (exchange, application) = world.of_browser(&pages, &fields, "", address(1));
    let told = value(&application, "traceparent").to_owned();
    assert!(told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-01"), "{told}");
    assert_eq!(value(&application, "tracestate"), format!("tl={}", span_id(&exchange)), "a stranger's went");
    assert_eq!(value(&application, "x-operation-name"), "login");
    let span = world.finish(exchange).unwrap();
    assert_eq!((hex(&span.trace_id).as_str(), parent_of(&span).as_str()), (TRACE, CALLER));
    assert!(span.links.is_empty() && text(&span, "app.operation.name") == "login");
}

#[test]
fn whoever_else_asks_gets_a_trace_of_his_own() {
    let site = |value| [("traceparent", SAMPLED), ("sec-fetch-site", value)];
    let twice = [("traceparent", SAMPLED), PAGE, ("sec-fetch-site", "cross-site")];
    let parents = [("traceparent", SAMPLED), ("traceparent", SAMPLED), PAGE];
    for fields in [
        &site("cross-site")[..],
        &site("same-site"),
        &site("none"),
        &site("same-origin, same-origin"),
        &[("traceparent", SAMPLED)],
        &[("traceparent", SAMPLED), ("origin", "http://shop:8080")],
        &twice,
        &parents,
        &[("traceparent", "00-00000000000000000000000000000000-a1b2c3d4e5f60718-01"), PAGE],
        &[("b3", "4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-1"), PAGE],
    ] {
        let mut world = edge(|_| {});
        let pages = pages();
        let (exchange, _) = world.of_browser(&pages, fields, "", address(1));
        let span = world.finish(exchange).unwrap();
        assert_ne!(hex(&span.trace_id), TRACE, "{fields:?}");
        assert_eq!((pages.counters().traces_held, pages.counters().asked), (0, [0; 3]), "{fields:?}");
    }
}

#[test]
fn the_decision_is_ours_and_the_whole_trace_follows_it() {
    // The flag of a page says nothing, not even within what strangers may have sampled.
    let mut world = edge(|config| config.sampler = Sampler::ParentBased(Root::AlwaysOff));
    let unsampled = pages();
    assert_eq!(asks(&mut world, &unsampled, address(1)), None);
    let told_of = body(&[told(1, CALLER, "", &[])], NOW);
    assert_eq!(send(&mut world, &unsampled, &told_of, address(1)), (vec![("unsampled", 1)], vec![]));

    // Decided by ids that we draw: one trace is sampled or not, whichever of its requests asks.
    let half = Ratio::new(0.5).unwrap();
    let mut world = edge(|config| config.sampler = Sampler::ParentBased(Root::Ratio(half)));
    let mut always: Vec<bool> = Vec::new();
    for last in 0..=255 {
        let pages = pages();
        let made: Vec<_> = (0..3).map(|_| asks(&mut world, &pages, address(last)).is_some()).collect();
        assert!(made.iter().all(|one| *one == made[0]), "{made:?}");
        always.push(made[0]);
    }
    assert!(always.iter().all(|made| *made == always[0]), "counting ids differ in their last bits alone");
}

#[test]
fn a_page_tells_of_the_operation_and_its_requests() {
    let mut world = edge(|_| {});
    let pages = pages();
    let server = asks(&mut world, &pages, address(1)).unwrap();
    let attribute = |key: &str, value: &str| format!("{{\"key\":\"{key}\",\"value\":{value}}}");
    let text_value = |text: &str| format!("{{\"stringValue\":\"{text}\"}}");
    let root = [
        attribute("ui.event", &text_value("form_submit")),
        attribute("ui.result", &text_value("error")),
        attribute("error.type", &text_value("TypeError")),
        attribute("app.operation.name", &text_value("login")),
        attribute("app.operation.attribution", &text_value("window")),
        attribute("url.path", &text_value("/shop")),
        attribute("service.name", &text_value("evil")),
        attribute("throughline.sampled.by", &text_value("evil")),
        attribute("ui.timestamp", "{\"intValue\":1}"),
    ];
    let child = [
        attribute("http.request.method", &text_value("POST")),
        attribute("http.response.status_code", "{\"intValue\":\"204\"}"),
        attribute("url.path", &text_value("/a?secret=1")),
        attribute("server.address", &text_value("shop.example")),
        attribute("server.port", "{\"intValue\":99999}"),
    ];
    let (root, child) = (format!("[{}]", root.join(",")), format!("[{}]", child.join(",")));
    let spans = [
        told(1, ROOT_SPAN, "", &[("attributes", &root), ("status", "{\"code\":2}")]),
        told(3, CALLER, ROOT_SPAN, &[("attributes", &child), ("name", "\"anything\"")]),
    ];
    let (moved, spans) = send(&mut world, &pages, &body(&spans, NOW), address(1));
    assert_eq!(moved, [("taken", 2)]);
    let [operation, request] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((operation.name.as_str(), operation.kind()), ("login", SpanKind::Internal));
    assert_eq!((hex(&operation.trace_id).as_str(), parent_of(operation).as_str()), (TRACE, ""));
    for (key, expected) in [
        ("ui.event", "form_submit"),
        ("ui.result", "error"),
        ("error.type", "TypeError"),
        ("app.operation.name", "login"),
        ("app.operation.attribution", "window"),
        ("url.path", "/shop"),
        ("user_agent.original", "Mozilla/5.0"),
        ("throughline.sampled.by", "always_on"),
        ("service.name", "-"),
    ] {
        assert_eq!(text(operation, key), expected, "{key}");
    }
    let began = (START_UNIX_NANOS - 90 * MS) / MS;
    assert_eq!(text(operation, "ui.timestamp"), began.to_string());
    assert_eq!((request.name.as_str(), request.kind()), ("POST", SpanKind::Client));
    assert_eq!((hex(&request.span_id), parent_of(request)), (parent_of(&server), hex(&operation.span_id)));
    let of_request = ["http.response.status_code", "url.path", "server.address", "server.port"];
    assert_eq!(of_request.map(|key| text(request, key)), ["204", "-", "shop.example", "-"]);
    assert_eq!(pages.counters().attributes_dropped, 5, "of the root three, of the child two");

    // Told once.
    let again = [told(1, ROOT_SPAN, "", &[]), told(3, CALLER, ROOT_SPAN, &[])];
    assert_eq!(send(&mut world, &pages, &body(&again, NOW), address(1)), (vec![("repeated", 2)], vec![]));
}

#[test]
fn nothing_gets_into_the_trace_of_another_or_under_another_name() {
    let other = format!("\"{}\"", TRACE.replace('4', "5"));
    let nobody = format!("\"{}\"", "0".repeat(32));
    let (past, future) = ("\"1000\"", format!("\"{}\"", START_UNIX_NANOS + 60_000 * MS));
    let long_ago = format!("\"{}\"", START_UNIX_NANOS - 700_000 * MS);
    let child =
        |changes: &[(&str, &str)]| vec![told(1, ROOT_SPAN, "", &[]), told(3, CALLER, ROOT_SPAN, changes)];
    let root = |changes: &[(&str, &str)]| vec![told(1, CALLER, "", changes)];
    for (name, spans, from, expected) in [
        ("a trace that nobody began", root(&[("traceId", &other)]), 1, vec![("unknown_trace", 1)]),
        (
            "a request of one",
            vec![told(3, CALLER, ROOT_SPAN, &[("traceId", &other)])],
            1,
            vec![("unknown_trace", 1)],
        ),
        ("of another address", root(&[]), 2, vec![("foreign_trace", 1)]),
        ("a request of that", vec![told(3, CALLER, ROOT_SPAN, &[])], 2, vec![("foreign_trace", 1)]),
        ("one that knows the trace alone", vec![told(1, ROOT_SPAN, "", &[])], 1, vec![("shape", 1)]),
        ("another name", root(&[("name", "\"logout\"")]), 1, vec![("shape", 1)]),
        ("no name", root(&[("name", "\"\"")]), 1, vec![("shape", 1)]),
        ("no trace", root(&[("traceId", &nobody)]), 1, vec![("shape", 1)]),
        ("no ids at all", root(&[("traceId", ""), ("spanId", "7")]), 1, vec![("shape", 1)]),
        ("a server", root(&[("kind", "2")]), 1, vec![("shape", 1)]),
        ("a broken parent", root(&[("parentSpanId", "\"x\"")]), 1, vec![("shape", 1)]),
        ("its own parent", vec![told(3, CALLER, CALLER, &[])], 1, vec![("shape", 1)]),
        ("an orphan", vec![told(3, CALLER, ROOT_SPAN, &[])], 1, vec![("shape", 1)]),
        ("backwards", root(&[("endTimeUnixNano", past)]), 1, vec![("time", 1)]),
        ("in the future", root(&[("endTimeUnixNano", &future)]), 1, vec![("time", 1)]),
        ("long ago", root(&[("startTimeUnixNano", &long_ago)]), 1, vec![("time", 1)]),
        ("without an end", root(&[("endTimeUnixNano", "")]), 1, vec![("time", 1)]),
        (
            "a twin",
            {
                let mut spans = child(&[]);
                spans.push(told(3, CALLER, ROOT_SPAN, &[]));
                spans
            },
            1,
            vec![("taken", 2), ("shape", 1)],
        ),
        (
            "two operations of one trace",
            {
                let mut spans = root(&[]);
                spans.push(told(1, ROOT_SPAN, "", &[]));
                spans
            },
            1,
            vec![("taken", 1), ("repeated", 1)],
        ),
        (
            "too many",
            vec![told(1, CALLER, "", &[]); 70],
            1,
            vec![("taken", 1), ("repeated", 63), ("over_limit", 6)],
        ),
    ] {
        let mut world = edge(|_| {});
        let pages = pages();
        asks(&mut world, &pages, address(1)).unwrap();
        let (moved, spans) = send(&mut world, &pages, &body(&spans, NOW), address(from));
        assert_eq!(moved, expected, "{name}");
        let taken = moved.iter().find(|(told, _)| *told == "taken").map_or(0, |(_, count)| *count);
        assert_eq!(spans.len() as u64, taken, "{name}");
    }
}

#[test]
fn a_trace_that_a_page_began_is_no_other_addresss_to_go_on_with() {
    let mut world = edge(|_| {});
    let pages = pages();
    asks(&mut world, &pages, address(1)).unwrap();
    let stranger = asks(&mut world, &pages, address(2)).unwrap();
    assert_ne!(hex(&stranger.trace_id), TRACE);
    assert_eq!(stranger.links.len(), 1, "as any stranger's");
    assert_eq!(pages.counters().asked[Asked::ForeignTrace as usize], 1);
}

#[test]
fn operations_that_are_not_believed_name_no_span() {
    let mut world = edge(|_| {});
    let pages = pages();
    for name in ["first", "second"] {
        let (exchange, _) = world.inbound(&[("x-operation-name", name)]);
        world.finish(exchange);
    }
    asks(&mut world, &pages, address(1)).unwrap();
    let (moved, spans) = send(&mut world, &pages, &body(&[told(1, CALLER, "", &[])], NOW), address(1));
    assert_eq!(moved, [("taken", 1)]);
    assert_eq!((spans[0].name.as_str(), text(&spans[0], "app.operation.name").as_str()), ("ui", "-"));
}

#[test]
fn a_page_whose_clock_is_wrong_is_put_right() {
    for (ahead_ms, expected_ms) in [(-86_400_000_i64, -90), (3_600_000, -90), (1500, 1410), (0, -90)] {
        let mut world = edge(|_| {});
        let pages = pages();
        asks(&mut world, &pages, address(1)).unwrap();
        let at = |millis: i64| {
            let nanos = START_UNIX_NANOS as i64 + (millis + ahead_ms) * MS as i64;
            format!("\"{nanos}\"")
        };
        let times = [("startTimeUnixNano", &*at(-90)), ("endTimeUnixNano", &*at(-80))];
        let sent = (START_UNIX_NANOS / MS) as i64 + ahead_ms;
        let spans = body(&[told(1, CALLER, "", &times)], &sent.to_string());
        let (moved, spans) = send(&mut world, &pages, &spans, address(1));
        assert_eq!(moved, [("taken", 1)], "{ahead_ms}");
        let began = (spans[0].start_time_unix_nano as i64 - START_UNIX_NANOS as i64) / MS as i64;
        assert_eq!(began, expected_ms, "{ahead_ms}");
        assert_eq!(spans[0].end_time_unix_nano - spans[0].start_time_unix_nano, 10 * MS);
    }
}

#[test]
fn a_navigation_carries_its_operation_by_a_cookie() {
    let cookie = format!("theme=dark; _tl_op={SAMPLED}~login");
    let navigate = ("sec-fetch-mode", "navigate");
    for (fields, goes_on) in [
        (&[PAGE, navigate][..], true),
        (&[PAGE, ("sec-fetch-mode", "cors")], false),
        (&[("sec-fetch-site", "cross-site"), navigate], false),
        (&[navigate], false),
    ] {
        let mut world = edge(|_| {});
        let (exchange, application) = world.of_browser(&pages(), fields, &cookie, address(1));
        let named = if goes_on { "login" } else { "-" };
        assert_eq!(value(&application, "x-operation-name"), named, "{fields:?}");
        let span = world.finish(exchange).unwrap();
        assert_eq!(hex(&span.trace_id) == TRACE, goes_on, "{fields:?}");
        assert_eq!(parent_of(&span), if goes_on { CALLER } else { "" }, "{fields:?}");
    }
    // A context of its own counts for more.
    let mut world = edge(|_| {});
    let other = SAMPLED.replace('7', "8");
    let (exchange, _) =
        world.of_browser(&pages(), &[PAGE, navigate, ("traceparent", &other)], &cookie, address(1));
    assert!(other.contains(&hex(&world.finish(exchange).unwrap().trace_id)));
}

#[test]
fn what_was_kept_at_the_end_is_told_of_too() {
    let mut world = edge(|config| config.sampler = Sampler::ParentBased(Root::AlwaysOff));
    let pages = pages();
    let fields = [("traceparent", SAMPLED), PAGE, LOGIN];
    let (mut exchange, _) = world.of_browser(&pages, &fields, "", address(1));
    let trace_id = exchange.ids().unwrap().0;
    world.answer(&mut exchange, 500, &[]);
    let summary = world.end(exchange, Outcome::Complete);
    assert!(summary.recorded);
    pages.kept(trace_id);
    let server = world.spans().pop().unwrap();
    let (moved, spans) = send(&mut world, &pages, &body(&[told(1, CALLER, "", &[])], NOW), address(1));
    assert_eq!((moved, parent_of(&server)), (vec![("taken", 1)], hex(&spans[0].span_id)));
    assert_eq!(text(&spans[0], "throughline.keep.reason"), "downstream");
    assert!(asks(&mut world, &pages, address(1)).is_some(), "the rest of the operation follows");
}

#[test]
fn only_a_page_of_the_same_origin_may_send() {
    let json = ("content-type", "application/json; charset=utf-8");
    for (fields, length, expected) in [
        (&[PAGE, json][..], Some(100), Ok(())),
        (&[("origin", "https://shop.example"), json], None, Ok(())),
        (&[("origin", "http://SHOP.example"), json], None, Ok(())),
        (&[json], None, Err(Body::Foreign)),
        (&[("origin", "null"), json], None, Err(Body::Foreign)),
        (&[("origin", "https://shop.example.evil"), json], None, Err(Body::Foreign)),
        (&[("origin", "https://evil/shop.example"), json], None, Err(Body::Foreign)),
        (
            &[("sec-fetch-site", "cross-site"), ("origin", "https://shop.example"), json],
            None,
            Err(Body::Foreign),
        ),
        (&[("sec-fetch-site", "same-site"), json], None, Err(Body::Foreign)),
        (&[PAGE], None, Err(Body::Type)),
        (&[PAGE, ("content-type", "text/plain")], None, Err(Body::Type)),
        (&[PAGE, json, ("content-encoding", "gzip")], None, Err(Body::Type)),
        (&[PAGE, json], Some(65_537), Err(Body::TooLarge)),
    ] {
        let carrier = headers(fields);
        let judged = pages().may_send(&carrier, length, b"shop.example", address(1), Default::default());
        assert_eq!(judged, expected, "{fields:?}");
    }
}

#[test]
fn floods_are_capped_by_address_and_counted() {
    let bounds = Bounds { address_per_second: 2, per_second: 4, attribute_bytes_max: None };
    let pages = Pages::new(&bounds, 7);
    let carrier = headers(&[PAGE, ("content-type", "application/json")]);
    let mut world = edge(|_| {});
    let let_in = |last| {
        (0..100).filter(|_| pages.may_send(&carrier, None, b"", address(last), world.now).is_ok()).count()
    };
    assert_eq!([let_in(1), let_in(2), let_in(3)], [10, 10, 0]);
    assert_eq!(pages.counters().bodies[Body::Rate as usize], 280);
    let mut began = 0;
    for number in 0..100u32 {
        let parent = format!("00-{number:032x}-a1b2c3d4e5f60718-01").replace("00-00000000", "00-10000000");
        let (exchange, _) = world.of_browser(&pages, &[("traceparent", &parent), PAGE], "", address(9));
        began += usize::from(parent.contains(&hex(&world.finish(exchange).unwrap().trace_id)));
    }
    assert_eq!((began, pages.counters().asked), (10, [10, 0, 90]));
}

#[test]
fn no_body_breaks_the_reader_and_nothing_of_a_broken_one_is_taken() {
    let good = body(&[told(1, ROOT_SPAN, "", &[]), told(3, CALLER, ROOT_SPAN, &[])], NOW);
    let mut world = edge(|_| {});
    let pages = pages();
    asks(&mut world, &pages, address(1)).unwrap();
    let deep = format!("{{\"resourceSpans\":{}", "[".repeat(60_000));
    let wide = format!("{{\"a\":[{}1]}}", "1,".repeat(30_000));
    for bad in
        ["", "{", "[]", "null", "\u{feff}{}", "{\"resourceSpans\":{}}", "{\"resourceSpans\":[7]}", &deep]
    {
        let sent = Sent { body: bad.as_bytes(), address: address(1), agent: None, now: world.now };
        assert_eq!(pages.take(&sent, &mut world.batch), Err(Body::NoOtlp), "{}", &bad[..bad.len().min(40)]);
    }
    assert_eq!(send(&mut world, &pages, &wide, address(1)), (vec![], vec![]));
    // Cut and changed at every byte: from another address, so that whatever is left of it is refused.
    for at in 0..good.len() {
        for byte in [b'"', b'}', b'9', b'\\', 0xff] {
            let mut bytes = good.clone().into_bytes();
            bytes[at] = byte;
            for bytes in [&bytes[..], &bytes[..at]] {
                let sent = Sent { body: bytes, address: address(2), agent: None, now: world.now };
                let taken = pages.take(&sent, &mut world.batch);
                assert!(taken.is_err() || taken.is_ok_and(|taken| taken.taken == 0));
            }
        }
    }
    assert_eq!(world.spans(), []);
    assert_eq!(send(&mut world, &pages, &good, address(1)).0, [("taken", 2)]);
}
