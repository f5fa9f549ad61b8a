//! One request and its answer: the span that comes of it, and what goes on to the other side.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::host::*;
use crate::scene::*;

#[test]
fn a_get_leaves_a_server_span_with_what_is_known_of_it() {
    let mut scene = inbound("otel-resource-attributes: service.namespace=shop");
    let id = scene.vm.open(scene.root);
    let properties = &mut scene.vm.stream(id).properties;
    properties.insert(b"request\0protocol".to_vec(), b"HTTP/1.1".to_vec());
    properties.insert(b"source\0address".to_vec(), b"10.1.2.3:4567".to_vec());
    let head = request("GET", "/clusters/42?token=secret&page=2", &[("user-agent", "curl/8.5")]);
    scene.vm.head(id, Side::Request, head, true);
    scene.vm.pass(30);
    scene.vm.head(id, Side::Response, answer("200", &[]), false);
    scene.vm.body(id, Side::Response, b"hello ", false);
    scene.vm.body(id, Side::Response, b"you", true);
    let stream = scene.vm.finish(id);
    assert_eq!(stream.response().sent, b"hello you");
    let span = only(scene.spans());
    assert_eq!(span.kind(), SpanKind::Server);
    assert!(!span.failed());
    assert_eq!((span.millis(), span.parent().as_str()), (30, ""));
    span.says(&[
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.path", "/clusters/42"),
        ("url.scheme", "http"),
        ("server.address", "orders"),
        ("server.port", "8080"),
        ("client.address", "10.1.2.3"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "curl/8.5"),
    ]);
    assert_eq!(span.resource("service.name"), "orders");
    assert_eq!(span.resource("service.namespace"), "shop");
    assert_eq!(
        context(stream.upstream_head()),
        (span.trace(), span.id()),
        "the application is told of our span"
    );
    assert_eq!(scene.vm.envoy.told(), (1, 1, 0, vec![]));
}

#[test]
fn a_call_of_the_application_leaves_a_client_span_and_the_next_hop_gets_its_id() {
    let mut scene = outbound("");
    let head = request("GET", "/stock?sig=hidden", &[("traceparent", SAMPLED)]);
    let stream = scene.exchange(head, "404");
    let span = only(scene.spans());
    assert_eq!(span.kind(), SpanKind::Client);
    assert!(span.failed(), "a client takes 404 for an error");
    assert_eq!((span.trace().as_str(), span.parent().as_str()), (TRACE, PARENT));
    assert_eq!(context(stream.upstream_head()), (TRACE.to_owned(), span.id()));
    span.says(&[
        ("http.response.status_code", "404"),
        ("error.type", "404"),
        ("url.full", "http://orders:8080/stock?sig=REDACTED"),
    ]);
}

#[test]
fn the_listener_says_which_side_it_is_where_no_setting_does() {
    for (path, number, expected) in [
        ("xds\0listener_direction", 1, SpanKind::Server),
        ("xds\0listener_direction", 2, SpanKind::Client),
        ("listener_direction", 2, SpanKind::Client),
        ("xds\0listener_direction", 0, SpanKind::Server),
    ] {
        let mut vm = Envoy::new().worker();
        vm.state().properties.insert(path.as_bytes().to_vec(), property_number(number));
        let root = vm.plugin(&configuration("auto", ""));
        exchange(&mut vm, root, request("GET", "/", &[]), "200");
        assert_eq!(only(collect(&mut vm)).kind(), expected, "{path:?} {number}");
    }
}

#[test]
fn a_callers_context_is_continued() {
    let mut scene = inbound("");
    let head = request("GET", "/", &[("traceparent", SAMPLED), ("tracestate", "vendor=1")]);
    let stream = scene.exchange(head, "200");
    let span = only(scene.spans());
    assert_eq!((span.trace().as_str(), span.parent().as_str()), (TRACE, PARENT));
    let upstream = stream.upstream_head();
    assert_eq!(context(upstream), (TRACE.to_owned(), span.id()));
    assert_eq!(text(upstream, "tracestate"), format!("tl={},vendor=1", span.id()));
    assert_eq!(text(upstream, "x-request-id"), "7", "what is not ours stays");
}

#[test]
fn what_a_caller_does_not_sample_leaves_no_span_and_is_carried_on() {
    let mut scene = inbound("");
    let stream = scene.exchange(request("GET", "/", &[("traceparent", UNSAMPLED)]), "200");
    assert!(text(stream.upstream_head(), "traceparent").ends_with("-00"));
    assert!(scene.spans().is_empty());
    assert_eq!(scene.vm.envoy.told(), (0, 0, 0, vec![]));
}

#[test]
fn a_service_is_named_by_the_environment_or_by_the_node() {
    let node: [(&[u8], &[u8]); 3] = [
        (b"xds\0node\0metadata\0WORKLOAD_NAME", b"cart-v1"),
        (b"xds\0node\0metadata\0NAMESPACE", b"shop"),
        (b"xds\0node\0cluster", b"proxy"),
    ];
    for (env, properties, expected) in [
        (&[("OTEL_SERVICE_NAME", "named")][..], &node[..], ("named", "shop")),
        (&[], &node[..], ("cart-v1", "shop")),
        (&[], &node[2..], ("proxy", "")),
        (&[], &[], ("unknown_service:throughline", "")),
    ] {
        let mut vm = Envoy::new().worker_with(env);
        for (path, value) in properties {
            vm.state().properties.insert(path.to_vec(), value.to_vec());
        }
        let root = vm.plugin("direction: inbound\notel-metrics-exporter: none\n");
        exchange(&mut vm, root, request("GET", "/", &[]), "200");
        let span = only(collect(&mut vm));
        assert_eq!(
            (span.resource("service.name"), span.resource("service.namespace")),
            (expected.0.into(), expected.1.into())
        );
    }
}

#[test]
fn a_grpc_call_is_judged_by_its_trailers() {
    for (code, name, failed) in [("0", "OK", false), ("5", "NOT_FOUND", false), ("14", "UNAVAILABLE", true)] {
        let mut scene = inbound("");
        let id = scene.vm.open(scene.root);
        let head =
            request("POST", "/shop.Cart/Add", &[("content-type", "application/grpc"), ("te", "trailers")]);
        scene.vm.head(id, Side::Request, head, false);
        scene.vm.body(id, Side::Request, b"\0\0\0\0\x01x", true);
        scene.vm.head(id, Side::Response, answer("200", &[("content-type", "application/grpc")]), false);
        scene.vm.body(id, Side::Response, b"\0\0\0\0\x01y", false);
        scene.vm.trailers(id, Side::Response, fields(&[("grpc-status", code)]));
        let stream = scene.vm.finish(id);
        assert_eq!(stream.response().sent_trailers, Some(fields(&[("grpc-status", code)])));
        let span = only(scene.spans());
        span.says(&[("rpc.system.name", "grpc"), ("rpc.method", "shop.Cart/Add"), ("rpc.status_code", name)]);
        assert_eq!((span.failed(), span.span.name.as_str()), (failed, "shop.Cart/Add"), "{code}");
    }
}

#[test]
fn a_grpc_answer_of_a_head_alone_is_judged_by_its_head() {
    let mut scene = inbound("");
    let id = scene.vm.open(scene.root);
    let head = request("POST", "/shop.Cart/Add", &[("content-type", "application/grpc")]);
    scene.vm.head(id, Side::Request, head, true);
    let grpc = [("content-type", "application/grpc"), ("grpc-status", "13")];
    scene.vm.head(id, Side::Response, answer("200", &grpc), true);
    scene.vm.finish(id);
    let span = only(scene.spans());
    span.says(&[("rpc.status_code", "INTERNAL")]);
    assert!(span.failed());
}

/// A stream that ends with these flags and details of Envoy's; what became of it.
fn ended(direction: &str, flags: i64, details: &str, answered: Option<(&str, bool)>) -> Span {
    let mut vm = Envoy::new().worker();
    let root = vm.plugin(&configuration(direction, ""));
    let id = vm.open(root);
    vm.head(id, Side::Request, request("GET", "/", &[]), true);
    let properties = &mut vm.stream(id).properties;
    properties.insert(b"response\0flags".to_vec(), property_number(flags));
    properties.insert(b"response\0code_details".to_vec(), details.as_bytes().to_vec());
    if let Some((status, end)) = answered {
        vm.head(id, Side::Response, answer(status, &[]), false);
        vm.body(id, Side::Response, b"part", end);
    }
    vm.finish(id);
    assert_eq!(vm.envoy.books(), vm.envoy.books());
    only(collect(&mut vm))
}

#[test]
fn a_caller_who_leaves_before_or_amid_the_answer_still_leaves_one_span() {
    const GONE: i64 = 0x4000;
    for answered in [None, Some(("200", false))] {
        let span = ended("inbound", GONE, "downstream_remote_disconnect", answered);
        span.says(&[("throughline.end", "caller_gone")]);
        assert_eq!(span.get("http.response.status_code"), answered.map_or("", |(status, _)| status));
    }
    let span = ended("inbound", GONE, "downstream_remote_disconnect", Some(("200", true)));
    span.says(&[("throughline.end", ""), ("http.response.status_code", "200")]);
    assert!(!span.failed(), "an answer that was whole is a good one, whoever hung up behind it");
}

#[test]
fn answers_that_envoy_gives_in_the_upstreams_place_are_told_by_their_flags() {
    let refused =
        "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_111}";
    for (flags, details, status, error) in [
        (0x20, refused, "503", "connection_refused"),
        (0x20, "upstream_reset_before_response_started{connection_timeout}", "503", "timeout"),
        (0x4, "response_timeout", "504", "timeout"),
        (0x40, "upstream_reset_before_response_started{connection_termination}", "503", "connection_reset"),
        (0x2, "no_healthy_upstream", "503", "connection_refused"),
        (0x400_0000, "dns_resolution_failure", "503", "dns"),
        (0x80, "overflow", "503", "overload"),
        (0x80_0000, "upstream_protocol_error", "502", "protocol"),
    ] {
        let inbound = ended("inbound", flags, details, Some((status, true)));
        let outbound = ended("outbound", flags, details, Some((status, true)));
        let errors = (inbound.get("error.type"), outbound.get("error.type"));
        assert!(inbound.failed() && outbound.failed(), "{flags:x}");
        assert!(errors.0.contains(error) && errors.1.contains(error), "{flags:x} {details}: {errors:?}");
        assert_eq!(inbound.get("http.response.status_code"), status, "the caller got it");
        assert_eq!(outbound.get("http.response.status_code"), "", "no server sent it");
    }
    let broken = ended("inbound", 0x40, "upstream_reset_after_response_started", Some(("200", false)));
    assert!(broken.failed(), "an answer that broke off");
    let own = ended("inbound", 0x1000, "ext_authz_denied", Some(("403", true)));
    assert_eq!((own.failed(), own.get("http.response.status_code").as_str()), (false, "403"));
}

#[test]
fn a_context_that_somebody_wrote_over_ours_is_adopted_and_counted() {
    let mut scene = outbound("");
    let id = scene.vm.open(scene.root);
    scene.vm.head(id, Side::Request, request("GET", "/", &[("traceparent", SAMPLED)]), true);
    let wire = format!("00-{TRACE}-00000000000000aa-01");
    for (name, value) in &mut scene.vm.stream(id).halves[0].headers {
        if name == b"traceparent" {
            *value = wire.clone().into_bytes();
        }
    }
    scene.vm.head(id, Side::Response, answer("200", &[]), true);
    scene.vm.finish(id);
    let span = only(scene.spans());
    assert_eq!((span.id().as_str(), span.parent().as_str()), ("00000000000000aa", PARENT));
    assert_eq!(scene.vm.envoy.metric("throughline_context_overwritten"), 1);
}

#[test]
fn a_tunnel_is_no_exchange() {
    let mut scene = outbound("");
    let head = fields(&[(":method", "CONNECT"), (":authority", "bank:443")]);
    let stream = scene.exchange(head.clone(), "200");
    assert_eq!(stream.upstream_head(), &head);
    assert!(scene.spans().is_empty());
}

#[test]
fn tracing_that_is_off_touches_nothing() {
    let mut scene = inbound("tracing-enabled: off");
    let head = request("POST", "/", &[("traceparent", SAMPLED), ("content-type", "application/json")]);
    let stream = scene.exchange(head.clone(), "200");
    assert_eq!(stream.upstream_head(), &head);
    assert!(scene.spans().is_empty());
}

#[test]
fn an_answer_of_the_upstreams_after_tries_in_vain_is_its_own() {
    const RETRY_LIMIT_EXCEEDED: i64 = 0x8000;
    let call = ended("outbound", RETRY_LIMIT_EXCEEDED, "via_upstream", Some(("503", true)));
    call.says(&[("http.response.status_code", "503"), ("error.type", "503")]);
}
