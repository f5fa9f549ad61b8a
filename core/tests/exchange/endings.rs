//! What a span says when its exchange is over: name, kind, status, `error.type`, attributes, times. Each
//! exchange leaves one span.

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use throughline_core::classify::{Direction, Failure, Outcome};
use throughline_core::exchange::{RequestHead, Scheme, Version};
use throughline_core::redact::Query;
use throughline_core::route::Pattern;

use crate::harness::*;

const GRPC: (&str, &str) = ("content-type", "application/grpc");

fn failed(failure: Failure, answered: Option<u16>) -> Outcome {
    Outcome::Failed { failure, answered }
}

fn is_error(span: &Span) -> bool {
    let status = span.status.as_ref().map_or(StatusCode::Unset as i32, |status| status.code);
    assert_ne!(status, StatusCode::Ok as i32, "that is the application's to say");
    status == StatusCode::Error as i32
}

/// One exchange to its end. `answered` is the upstream's status, none when it gave no answer.
fn run(world: &mut World, head: &RequestHead<'_>, answered: Option<u16>, outcome: Outcome) -> Span {
    let mut exchange = world.begin(head, &mut Headers::new());
    if let Some(status) = answered {
        world.answer(&mut exchange, status, &[]);
    }
    let _ = world.end(exchange, outcome);
    let mut spans = world.spans();
    assert_eq!(spans.len(), 1);
    spans.remove(0)
}

#[test]
fn http_outcomes_are_judged_by_side() {
    use Failure::*;
    let complete = Outcome::Complete;
    for (answered, outcome, server, client) in [
        (Some(200), complete, ("200", "-"), ("200", "-")),
        (Some(101), complete, ("101", "-"), ("101", "-")),
        (Some(304), complete, ("304", "-"), ("304", "-")),
        (Some(400), complete, ("400", "-"), ("400", "400")),
        (Some(404), complete, ("404", "-"), ("404", "404")),
        (Some(499), complete, ("499", "-"), ("499", "499")),
        (Some(500), complete, ("500", "500"), ("500", "500")),
        (Some(503), complete, ("503", "503"), ("503", "503")),
        (Some(599), complete, ("599", "599"), ("599", "599")),
        (Some(200), Outcome::CallerGone, ("200", "-"), ("200", "-")),
        (None, Outcome::CallerGone, ("-", "-"), ("-", "-")),
        (Some(500), Outcome::CallerGone, ("500", "500"), ("500", "500")),
        // The caller of a server span got the sidecar's own answer; a client span claims no status for it.
        (
            None,
            failed(ConnectionRefused, Some(502)),
            ("502", "connection_refused"),
            ("-", "connection_refused"),
        ),
        (None, failed(Timeout, Some(504)), ("504", "timeout"), ("-", "timeout")),
        (None, failed(Dns, Some(502)), ("502", "dns_failure"), ("-", "dns_failure")),
        (None, failed(Unreachable, Some(502)), ("502", "unreachable"), ("-", "unreachable")),
        (None, failed(Protocol, Some(502)), ("502", "protocol_error"), ("-", "protocol_error")),
        (None, failed(Refused, Some(403)), ("403", "destination_refused"), ("-", "destination_refused")),
        (None, failed(Overload, Some(503)), ("503", "overload"), ("-", "overload")),
        (Some(200), failed(ConnectionReset, None), ("200", "connection_reset"), ("200", "connection_reset")),
    ] {
        let mut world = World::new();
        for (head, (status, error)) in [(request(), server), (call(INSIDE), client)] {
            let span = run(&mut world, &head, answered, outcome);
            let row = format!("{answered:?} {outcome:?} {:?}", head.direction);
            assert_eq!(text(&span, "http.response.status_code"), status, "{row}");
            assert_eq!(text(&span, "error.type"), error, "{row}");
            assert_eq!(is_error(&span), error != "-", "{row}");
            let end = if outcome == Outcome::CallerGone { "caller_gone" } else { "-" };
            assert_eq!(text(&span, "throughline.end"), end, "{row}");
        }
    }
}

#[test]
fn grpc_calls_are_judged_by_their_own_status() {
    const HEAD: bool = true;
    const TRAILERS: bool = false;
    for (status, place, server, client) in [
        ("0", TRAILERS, "-", "-"),
        ("5", TRAILERS, "-", "NOT_FOUND"),
        ("2", TRAILERS, "UNKNOWN", "UNKNOWN"),
        ("4", TRAILERS, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        ("13", TRAILERS, "INTERNAL", "INTERNAL"),
        ("14", HEAD, "UNAVAILABLE", "UNAVAILABLE"),
        ("15", HEAD, "DATA_LOSS", "DATA_LOSS"),
        ("16", HEAD, "-", "UNAUTHENTICATED"),
        ("rubbish", HEAD, "UNKNOWN", "UNKNOWN"),
    ] {
        let mut world = World::new();
        for (head, expected) in [(request(), server), (call(INSIDE), client)] {
            let head = RequestHead { method: "POST", path: b"/shop.Cart/Add", ..head };
            let mut exchange = world.begin(&head, &mut headers(&[GRPC]));
            let code = ("grpc-status", status);
            if place == HEAD {
                world.answer(&mut exchange, 200, &[GRPC, code]);
            } else {
                world.answer(&mut exchange, 200, &[GRPC]);
                exchange.trailers(&headers(&[code]));
            }
            let _ = world.end(exchange, Outcome::Complete);
            let span = world.spans().pop().unwrap();
            assert_eq!(span.name, "shop.Cart/Add");
            assert_eq!(text(&span, "rpc.system.name"), "grpc");
            assert_eq!(text(&span, "rpc.method"), "shop.Cart/Add");
            assert_eq!(text(&span, "error.type"), expected, "{status} {:?}", head.direction);
            assert_eq!(is_error(&span), expected != "-");
            assert_eq!(text(&span, "http.response.status_code"), "200");
            assert_eq!(text(&span, "http.route"), "-");
            assert_ne!(text(&span, "rpc.status_code"), "-");
        }
    }
}

#[test]
fn a_method_that_no_grpc_server_knows_names_no_span_and_a_dead_one_is_still_named_by_its_caller() {
    let mut world = World::new();
    let inbound = RequestHead { method: "POST", path: b"/no.Such/Method", ..request() };
    let mut exchange = world.begin(&inbound, &mut headers(&[GRPC]));
    world.answer(&mut exchange, 200, &[GRPC, ("grpc-status", "12")]);
    let _ = world.end(exchange, Outcome::Complete);
    assert_eq!(world.spans().pop().unwrap().name, "grpc");

    let outbound = RequestHead { method: "POST", path: b"/shop.Cart/Add", ..call(INSIDE) };
    let exchange = world.begin(&outbound, &mut headers(&[GRPC]));
    let _ = world.end(exchange, failed(Failure::ConnectionRefused, Some(502)));
    let span = world.spans().pop().unwrap();
    assert_eq!(
        (span.name.as_str(), text(&span, "error.type").as_str()),
        ("shop.Cart/Add", "connection_refused")
    );
}

#[test]
fn names_are_methods_with_routes_and_never_paths() {
    let patterns = ["/teams/{team}", "/static/*"].map(|text| Pattern::parse(text).unwrap());
    let mut world = World::with(|config| (config.routes, config.routes_max) = (patterns.into(), 4));
    for (method, path, status, name, route) in [
        ("GET", "/wp-admin", 404, "GET", "-"),
        ("GET", "/items/42", 200, "GET /items/{id}", "/items/{id}"),
        ("DELETE", "/items/43", 404, "DELETE /items/{id}", "/items/{id}"),
        ("POST", "/teams/west", 201, "POST /teams/{team}", "/teams/{team}"),
        ("GET", "/static/a/b.css", 304, "GET /static/*", "/static/*"),
        ("GET", "/", 500, "GET /", "/"),
        ("GET", "/one-too-many", 200, "GET", "-"),
        ("GET", "/items/44", 405, "GET /items/{id}", "/items/{id}"),
        ("OPTIONS", "*", 200, "OPTIONS", "-"),
        ("PURGE", "/items/45", 200, "HTTP /items/{id}", "/items/{id}"),
        ("get", "/wp-admin", 404, "HTTP", "-"),
    ] {
        let head = RequestHead { method, path: path.as_bytes(), ..request() };
        let span = run(&mut world, &head, Some(status), Outcome::Complete);
        assert_eq!(
            (span.name.as_str(), text(&span, "http.route").as_str()),
            (name, route),
            "{method} {path}"
        );
        assert_eq!(span.kind, SpanKind::Server as i32);
        assert_eq!(text(&span, "url.path"), path);
        let known = !["PURGE", "get"].contains(&method);
        assert_eq!(text(&span, "http.request.method"), if known { method } else { "_OTHER" });
        assert_eq!(text(&span, "http.request.method_original"), if known { "-" } else { method });
        let span = run(
            &mut world,
            &RequestHead { direction: Direction::Outbound, ..head },
            Some(status),
            Outcome::Complete,
        );
        assert_eq!(
            (span.name.as_str(), span.kind),
            (if known { method } else { "HTTP" }, SpanKind::Client as i32)
        );
    }
}

#[test]
fn a_scanner_takes_no_route_while_the_application_is_down() {
    let mut world = World::with(|config| config.routes_max = 1);
    for path in ["/.env", "/wp-login.php"] {
        let head = RequestHead { path: path.as_bytes(), ..request() };
        let span = run(&mut world, &head, None, failed(Failure::ConnectionRefused, Some(502)));
        assert_eq!(span.name, "GET");
    }
    assert_eq!(run(&mut world, &request(), Some(200), Outcome::Complete).name, "GET /items/{id}");
}

#[test]
fn a_server_span_says_who_asked_for_what() {
    let mut world = World::with(|config| config.query = Query::Redacted(vec!["token".into()]));
    let head = RequestHead {
        query: Some(b"a=1&sig=secret&TOKEN=secret"),
        version: Version::Http2,
        caller: Some("::ffff:10.1.2.3".parse().unwrap()),
        ..request()
    };
    let mut exchange = world.begin(&head, &mut headers(&[("user-agent", "curl/8"), ("host", "shop:8080")]));
    world.answer(&mut exchange, 200, &[]);
    let _ = world.end(exchange, Outcome::Complete);
    let span = world.spans().pop().unwrap();
    for (key, expected) in [
        ("http.request.method", "GET"),
        ("url.path", "/items/42"),
        ("url.query", "a=1&sig=REDACTED&TOKEN=REDACTED"),
        ("url.scheme", "http"),
        ("url.full", "-"),
        ("server.address", "shop"),
        ("server.port", "8080"),
        ("client.address", "10.1.2.3"),
        ("network.protocol.version", "2"),
        ("user_agent.original", "curl/8"),
    ] {
        assert_eq!(text(&span, key), expected, "{key}");
    }
}

#[test]
fn a_client_span_says_the_whole_url_without_its_secrets() {
    for (scheme, authority, query, url, address, port) in [
        (Scheme::Http, "stock", None, "http://stock/stock", "stock", "80"),
        (Scheme::Https, "stock", Some(""), "https://stock/stock", "stock", "443"),
        (Scheme::Http, "stock:8080", Some("a=1"), "http://stock:8080/stock?a=1", "stock", "8080"),
        (
            Scheme::Http,
            "me:secret@stock",
            Some("Signature=secret"),
            "http://REDACTED:REDACTED@stock/stock?Signature=REDACTED",
            "stock",
            "80",
        ),
        (
            Scheme::Http,
            "me:p@ss@[fd00::1]:81",
            Some("%73ig=x"),
            "http://REDACTED:REDACTED@[fd00::1]:81/stock?%73ig=REDACTED",
            "fd00::1",
            "81",
        ),
    ] {
        let mut world = World::new();
        let head = RequestHead { scheme, query: query.map(str::as_bytes), ..call(authority) };
        let span = run(&mut world, &head, Some(200), Outcome::Complete);
        for (key, expected) in
            [("url.full", url), ("server.address", address), ("server.port", port), ("url.path", "-")]
        {
            assert_eq!(text(&span, key), expected, "{authority} {key}");
        }
        let counted = world.counts();
        assert!(
            counted[0].contains(&format!("server_address=\"{address}\"")),
            "as the span says it: {counted:?}"
        );
    }
    let mut world = World::with(|config| config.query = Query::Off);
    for head in [request(), call(INSIDE)] {
        let span =
            run(&mut world, &RequestHead { query: Some(b"a=1"), ..head }, Some(200), Outcome::Complete);
        assert!(!format!("{span:?}").contains("a=1"));
    }
}

/// Rule 9, and the clocks: a wall clock that is set while an exchange runs does not change how long it took.
#[test]
fn a_duration_is_the_monotonic_clocks() {
    const HOUR: u64 = 3_600_000 * MS;
    for jump in [-(HOUR as i64), 0, HOUR as i64] {
        let mut world = World::new();
        let (mut exchange, _) = world.inbound(&[]);
        world.now.mono_nanos += 40 * MS;
        world.now.unix_nanos = world.now.unix_nanos.saturating_add_signed(jump);
        world.answer(&mut exchange, 200, &[]);
        world.now.mono_nanos += 2 * MS;
        let summary = world.end(exchange, Outcome::Complete);
        let span = world.spans().pop().unwrap();
        assert_eq!(span.start_time_unix_nano, START_UNIX_NANOS);
        assert_eq!(span.end_time_unix_nano, START_UNIX_NANOS + 42 * MS);
        assert_eq!(summary.duration_nanos, 42 * MS);
    }
    let mut world = World::new();
    world.now.mono_nanos = 100;
    let (exchange, _) = world.inbound(&[]);
    world.now.mono_nanos = 1;
    assert_eq!(
        world.end(exchange, Outcome::Complete).duration_nanos,
        0,
        "even where a host's clock is broken"
    );
}

#[test]
fn an_access_log_gets_what_the_span_got() {
    let mut world = World::new();
    let (mut exchange, _) = world.inbound(&[("traceparent", SAMPLED), ("x-operation-name", "checkout")]);
    assert_eq!(exchange.direction(), Direction::Inbound);
    world.answer(&mut exchange, 500, &[]);
    let summary = world.end(exchange, Outcome::Complete);
    assert_eq!(summary.ids.unwrap().0.to_string(), TRACE);
    assert_eq!((summary.recorded, summary.http_status, summary.ignored), (true, Some(500), false));
    assert_eq!(summary.operation.unwrap().as_str(), "checkout");
    assert!(summary.error.is_some());
}
