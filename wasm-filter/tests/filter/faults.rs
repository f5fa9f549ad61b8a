//! Host calls that fail: each function with each status, and each single call of a long scenario. Nothing traps,
//! every request goes on whole, and what comes after the fault is well, with books that balance.

use crate::host::*;
use crate::scene::*;

const SETTINGS: &str = "hold-headers: on\notel-bsp-max-export-batch-size: 4\n";

/// Calls by HTTP, and a control endpoint that is asked.
const HTTP: &str =
    "otel-exporter-otlp-protocol: http/protobuf\ncontrol-cluster: ops\ncontrol-interval: 1000\n";

/// The functions that the filter calls.
const CALLED: &[&str] = &[
    "proxy_continue_stream",
    "proxy_define_metric",
    "proxy_done",
    "proxy_get_buffer_bytes",
    "proxy_get_header_map_pairs",
    "proxy_get_header_map_value",
    "proxy_get_property",
    "proxy_get_shared_data",
    "proxy_get_status",
    "proxy_grpc_call",
    "proxy_http_call",
    "proxy_increment_metric",
    "proxy_log",
    "proxy_remove_header_map_value",
    "proxy_replace_header_map_value",
    "proxy_set_buffer_bytes",
    "proxy_set_effective_context",
    "proxy_set_shared_data",
    "proxy_set_tick_period_milliseconds",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "random_get",
];

const PUSH: &str =
    r#"{"subscription":"projects\/p\/subscriptions\/ship","message":{"data":"aGk=","messageId":"7"}}"#;
const PUBLISH: &str = r#"{"messages":[{"data":"aGk="}]}"#;
const PULLED: &str = r#"{"receivedMessages":[{"ackId":"a","message":{"data":"aGk=","messageId":"1"}}]}"#;

/// A worker with both plugins, and what another worker says of itself.
struct World {
    vm: Vm,
    roots: [u32; 2],
}

fn plugins(vm: &mut Vm, protocol: &str) -> Option<[u32; 2]> {
    let side =
        |vm: &mut Vm, side| vm.try_plugin(configuration(side, &format!("{SETTINGS}{protocol}")).as_bytes());
    Some([side(vm, "inbound")?, side(vm, "outbound")?])
}

fn worker() -> Vm {
    let envoy = Envoy::new();
    assert_eq!(envoy.shared.borrow_mut().set(b"throughline.workers", &[1], 0), 0);
    envoy.worker_with(&[("TZ", "UTC")])
}

fn with_length(head: Fields, body: &str) -> Fields {
    let mut head = head;
    head.push((b"content-length".to_vec(), body.len().to_string().into_bytes()));
    head
}

/// A body is the one that came, or an edited one that says the same.
fn is_whole(sent: &[u8], body: &str) {
    let text = std::str::from_utf8(sent).expect("text");
    let same = |text: &str| text.chars().filter(|c| "{}[]".contains(*c)).collect::<String>();
    let cut = text.replace(r#","attributes":{}"#, "");
    assert!(text.len() >= body.len() && text.ends_with('}') && cut.contains("aGk="), "{text}");
    assert!(same(text).len() >= same(body).len(), "{text}");
}

impl World {
    fn new(protocol: &str) -> Self {
        let mut vm = worker();
        let roots = plugins(&mut vm, protocol).expect("a good configuration");
        Self { vm, roots }
    }

    /// Everything that the filter does, once; asserts that what users send goes on.
    fn everything(&mut self) {
        let [inbound, outbound] = self.roots;
        let vm = &mut self.vm;
        let caller = [("traceparent", SAMPLED), ("baggage", "user=7"), ("x-operation-name", "checkout")];
        let served = vm.open(inbound);
        vm.head(served, Side::Request, request("GET", "/cart", &caller), true);
        let seen = vm.stream(served).upstream_head().clone();
        let forwarded = [("traceparent", text(&seen, "traceparent"))];
        exchange(vm, outbound, request("GET", "/stock", &forwarded), "200");
        let call = vm.open(outbound);
        vm.head(call, Side::Request, request("GET", "/stock", &[]), true);
        vm.head(call, Side::Response, answer("503", &[("throughline-peer", "stock/shop")]), true);
        vm.finish(call);
        // Messages.
        let json = [("content-type", "application/json")];
        let push = self.send(inbound, with_length(request("POST", "/push", &json), PUSH), PUSH, "");
        is_whole(&push.request().sent, PUSH);
        let publish = "/v1/projects/p/topics/orders:publish";
        let publish = self.send(outbound, with_length(request("POST", publish, &json), PUBLISH), PUBLISH, "");
        is_whole(&publish.request().sent, PUBLISH);
        let pull = request("POST", "/v1/projects/p/subscriptions/ship:pull", &json);
        let pull = self.send(outbound, with_length(pull, "{}"), "{}", PULLED);
        assert_eq!(pull.request().sent, b"{}");
        is_whole(&pull.response().sent, PULLED);
        self.stream(outbound);
        // A head that waits for its body, and one whose caller leaves.
        let vm = &mut self.vm;
        let waits = vm.open(inbound);
        let event = [("content-type", "application/cloudevents+json")];
        vm.head(waits, Side::Request, request("POST", "/push", &event), false);
        let leaves = vm.open(inbound);
        vm.head(leaves, Side::Request, request("POST", "/push", &event), false);
        vm.body(leaves, Side::Request, b"{", false);
        vm.finish(leaves);
        vm.pass(1_200);
        vm.body(waits, Side::Request, b"{}", true);
        vm.head(waits, Side::Response, answer("200", &[]), true);
        assert_eq!(vm.finish(waits).request().sent, b"{}");
        vm.head(served, Side::Response, answer("200", &[]), false);
        vm.body(served, Side::Response, b"ok", true);
        assert_eq!(vm.finish(served).response().sent, b"ok");
        // A collector that is well, then one that is not.
        for round in 0..4 {
            vm.pass(600);
            for call in vm.calls() {
                match round % 2 {
                    0 => take(vm, &call),
                    _ if call.grpc => vm.refuse_grpc(&call, 14, b"away"),
                    _ => vm.answer_http(&call, &[(":status", "503")], b""),
                }
            }
        }
    }

    fn send(&mut self, root: u32, head: Fields, body: &str, told: &str) -> Stream {
        let vm = &mut self.vm;
        let id = vm.open(root);
        vm.head(id, Side::Request, head, false);
        let (first, second) = body.as_bytes().split_at(body.len() / 2);
        vm.body(id, Side::Request, first, false);
        vm.body(id, Side::Request, second, true);
        let length = told.len().to_string();
        vm.head(id, Side::Response, answer("200", &[("content-length", &length)]), told.is_empty());
        if !told.is_empty() {
            vm.body(id, Side::Response, told.as_bytes(), true);
        }
        vm.finish(id)
    }

    /// A stream of deliveries, whose frames are cut anywhere: what comes out is the messages, whole and once.
    fn stream(&mut self, root: u32) {
        let vm = &mut self.vm;
        let id = vm.open(root);
        let grpc = [("content-type", "application/grpc")];
        let path = "/google.pubsub.v1.Subscriber/StreamingPull";
        vm.head(id, Side::Request, request("POST", path, &grpc), false);
        vm.body(id, Side::Request, b"\0\0\0\0\x03\x0a\x01s", false);
        vm.head(id, Side::Response, answer("200", &grpc), false);
        // ReceivedMessage{ack_id, message{data, message_id}}
        let message = b"\x0a\x0c\x0a\x01a\x12\x07\x0a\x02hi\x1a\x01";
        let one = [&b"\0\0\0\0\x0e"[..], message, b"9"].concat();
        for part in [&one[..4], &one[4..], &one[..], &one[..12], &one[12..]] {
            vm.body(id, Side::Response, part, false);
        }
        vm.trailers(id, Side::Response, fields(&[("grpc-status", "0")]));
        let sent = vm.finish(id).response().sent.clone();
        let (mut rest, mut messages) = (sent.as_slice(), 0);
        while !rest.is_empty() {
            let bytes = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            let message = &rest[5..5 + bytes];
            assert!(message.windows(2).any(|two| two == b"hi"), "{message:?}");
            (rest, messages) = (&rest[5 + bytes..], messages + 1);
        }
        assert_eq!(messages, 3, "{sent:?}");
    }

    /// The fault is over: the next request is as any, and everything that happened is in the books.
    fn is_well(&mut self) {
        let [inbound, outbound] = self.roots;
        for call in self.vm.calls() {
            take(&mut self.vm, &call);
        }
        let stream =
            exchange(&mut self.vm, inbound, request("GET", "/well", &[("traceparent", SAMPLED)]), "200");
        let publish = "/v1/projects/p/topics/orders:publish";
        let sent = self.send(outbound, with_length(request("POST", publish, &[]), PUBLISH), PUBLISH, "");
        assert!(sent.request().sent.len() > PUBLISH.len(), "edited");
        let spans = collect_all(&mut self.vm);
        let span =
            spans.iter().find(|span| span.get("url.path") == "/well").expect("a span of the next request");
        assert_eq!(context(stream.upstream_head()), (TRACE.to_owned(), span.id()));
        let books = self.vm.envoy.books();
        assert_eq!(books.held, 0, "{books:?}");
    }
}

#[test]
fn the_scenario_calls_every_function_and_is_well() {
    let mut called = std::collections::BTreeSet::new();
    for protocol in ["", HTTP] {
        let mut world = World::new(protocol);
        world.everything();
        world.is_well();
        world.vm.pass(1_300);
        let [inbound, outbound] = world.roots;
        exchange(&mut world.vm, outbound, request("GET", "/", &[]), "200");
        world.vm.shut(outbound);
        for call in world.vm.calls() {
            take(&mut world.vm, &call);
        }
        world.vm.shut(inbound);
        called.extend(world.vm.state().called.keys().cloned());
    }
    for function in CALLED {
        assert!(called.contains(*function), "{function} is never called: take it from the list, or call it");
    }
    for function in &called {
        assert!(CALLED.contains(&function.as_str()), "{function} is called and must be able to fail");
    }
}

#[test]
fn each_function_may_fail_with_each_status() {
    for function in CALLED {
        for code in status::FAILURES {
            let protocol = if *function == "proxy_http_call" { HTTP } else { "" };
            let mut world = World::new(protocol);
            world.vm.fail(Fault::Every(function, code));
            // Where nobody can be let go on, a head waits until the fault is over.
            if !matches!(*function, "proxy_continue_stream" | "proxy_set_effective_context") {
                world.everything();
            }
            world.vm.fail(Fault::None);
            world.is_well();
        }
    }
}

#[test]
fn each_function_may_fail_while_a_plugin_is_configured() {
    for function in CALLED {
        for code in status::FAILURES {
            let mut vm = worker();
            vm.fail(Fault::Every(function, code));
            let found = plugins(&mut vm, "");
            vm.fail(Fault::None);
            let roots = found.unwrap_or_else(|| plugins(&mut vm, "").expect("taken when the fault is over"));
            World { vm, roots }.is_well();
        }
    }
}

#[test]
fn a_configuration_that_can_not_be_read_is_refused() {
    let mut vm = worker();
    vm.fail(Fault::Every("proxy_get_buffer_bytes", status::NOT_FOUND));
    assert_eq!(vm.try_plugin(b"otel-traces-sampler: always_off"), None);
    assert_eq!(vm.logged(4).len(), 1);
}

#[test]
fn a_head_that_can_not_be_let_go_on_is_tried_again() {
    for function in ["proxy_continue_stream", "proxy_set_effective_context"] {
        for code in status::FAILURES {
            let mut scene = inbound(SETTINGS);
            let id = scene.vm.open(scene.root);
            let head = request("POST", "/push", &[("content-type", "application/cloudevents+json")]);
            scene.vm.head(id, Side::Request, head, false);
            scene.vm.fail(Fault::Every(function, code));
            scene.vm.pass(1200);
            assert!(scene.vm.stream(id).request().head_held);
            scene.vm.fail(Fault::None);
            scene.vm.pass(300);
            assert!(!scene.vm.stream(id).request().head_held, "{function} {code}");
            scene.vm.finish(id);
            assert_eq!(scene.vm.envoy.metric("throughline_heads_released"), 1);
        }
    }
}

fn each_single_call_may_fail(protocol: &str) {
    let mut world = World::new(protocol);
    world.vm.fail(Fault::None);
    world.everything();
    let calls = world.vm.fail(Fault::None);
    assert!(calls > 200, "{calls}");
    for nth in 0..calls {
        for code in [status::BAD_ARGUMENT, status::INTERNAL_FAILURE] {
            let mut world = World::new(protocol);
            world.vm.fail(Fault::Nth(nth, code));
            world.everything();
            world.vm.fail(Fault::None);
            world.is_well();
        }
    }
}

#[test]
fn each_single_call_of_a_long_scenario_may_fail_with_a_collector_by_grpc() {
    each_single_call_may_fail("");
}

#[test]
fn each_single_call_of_a_long_scenario_may_fail_with_a_collector_by_http() {
    each_single_call_may_fail(HTTP);
}
