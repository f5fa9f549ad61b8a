//! Several VMs of one Envoy, and several plugins of one VM.

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::host::*;
use crate::scene::*;

/// Two workers of one Envoy, each with both plugins; each has seen a request, so it knows of the other.
fn two() -> [(Vm, u32, u32); 2] {
    let envoy = Envoy::new();
    [0, 1]
        .map(|_| {
            let mut vm = envoy.worker();
            let inbound = vm.plugin(&configuration("inbound", ""));
            let outbound = vm.plugin(&configuration("outbound", ""));
            exchange(&mut vm, inbound, request("GET", "/first", &[]), "200");
            (vm, inbound, outbound)
        })
        .map(|(mut vm, inbound, outbound)| {
            collect(&mut vm);
            (vm, inbound, outbound)
        })
}

/// An inbound exchange on the first worker that is answered only when the calls are over.
fn serve(worker: &mut (Vm, u32, u32), head: Fields) -> (u32, Fields) {
    let id = worker.0.open(worker.1);
    worker.0.head(id, Side::Request, head, true);
    let seen = worker.0.stream(id).upstream_head().clone();
    (id, seen)
}

#[test]
fn what_an_application_does_not_forward_is_restored_on_whatever_worker_it_calls() {
    let [mut first, mut second] = two();
    let caller = [
        ("traceparent", SAMPLED),
        ("tracestate", "vendor=1"),
        ("baggage", "user=7"),
        ("x-operation-name", "checkout"),
    ];
    let (id, seen) = serve(&mut first, request("GET", "/cart", &caller));
    // The application forwards the trace, and nothing else of it.
    let forwarded = request("GET", "/stock", &[("traceparent", text(&seen, "traceparent"))]);
    let call = exchange(&mut second.0, second.2, forwarded, "200");
    let head = call.upstream_head();
    assert_eq!(text(head, "x-operation-name"), "checkout");
    assert!(text(head, "baggage").contains("user=7"), "{}", text(head, "baggage"));
    assert_eq!(text(head, "tracestate"), "vendor=1");
    first.0.head(id, Side::Response, answer("200", &[]), true);
    first.0.finish(id);
    let server = only(collect(&mut first.0));
    let client = only(collect(&mut second.0));
    assert_eq!((client.kind(), client.parent()), (SpanKind::Client, server.id()));
    client.says(&[("app.operation.name", "checkout")]);
    assert_eq!(second.0.envoy.metric("throughline_context_restored"), 1);
    // The exchange is over: nothing is restored from it any more.
    let late = request("GET", "/stock", &[("traceparent", text(&seen, "traceparent"))]);
    let call = exchange(&mut second.0, second.2, late, "200");
    assert_eq!(text(call.upstream_head(), "x-operation-name"), "");
}

#[test]
fn the_call_of_an_sdk_that_does_not_sample_hangs_under_the_server_span_of_another_worker() {
    let [mut first, mut second] = two();
    let (id, seen) = serve(&mut first, request("GET", "/cart", &[("traceparent", SAMPLED)]));
    // An SDK of its own span id, which says no.
    let thread = [("traceparent", UNSAMPLED), ("tracestate", text(&seen, "tracestate"))];
    let call = exchange(&mut second.0, second.2, request("GET", "/stock", &thread), "200");
    first.0.head(id, Side::Response, answer("200", &[]), true);
    first.0.finish(id);
    let server = only(collect(&mut first.0));
    let client = only(collect(&mut second.0));
    assert_eq!((client.trace().as_str(), client.parent()), (TRACE, server.id()), "no phantom parent");
    assert_eq!(context(call.upstream_head()), (TRACE.to_owned(), client.id()));
    assert!(!text(call.upstream_head(), "tracestate").contains("tl="), "our member stays in the pod");
}

#[test]
fn a_worker_that_is_alone_shares_nothing() {
    let envoy = Envoy::new();
    let mut vm = envoy.worker();
    let root = vm.plugin(&configuration("inbound", ""));
    exchange(&mut vm, root, request("GET", "/", &[]), "200");
    vm.pass(15_000); // others would have come by now
    let before = vm.state().called.get("proxy_set_shared_data").copied();
    for _ in 0..10 {
        exchange(&mut vm, root, request("GET", "/", &[]), "200");
    }
    assert_eq!(vm.state().called.get("proxy_set_shared_data").copied(), before);
}

#[test]
fn workers_that_begin_at_the_same_moment_all_count() {
    let envoy = Envoy::new();
    let [mut first, mut second] = [envoy.worker(), envoy.worker()];
    let roots = [&mut first, &mut second].map(|vm| vm.plugin(&configuration("inbound", "")));
    // Between the look and the write of the first, the second has written.
    first.state().meddler = Some((
        "proxy_set_shared_data",
        Box::new(|shared| {
            assert!(shared.get(b"throughline.workers").is_none(), "the first has looked, and found nothing");
            assert_eq!(shared.set(b"throughline.workers", &[1], 0), 0);
        }),
    ));
    exchange(&mut first, roots[0], request("GET", "/", &[]), "200");
    assert!(first.state().meddler.is_none(), "the second was faster");
    let count = envoy.shared.borrow().get(b"throughline.workers").unwrap().0.clone();
    assert_eq!(count, [2], "one of two workers was written over");
    exchange(&mut second, roots[1], request("GET", "/", &[]), "200");
}

#[test]
fn nothing_of_one_worker_is_believed_where_the_shared_place_holds_garbage() {
    for garbage in [&b""[..], b"x", &[0; 31], &[0xff; 2048], &[1; 4096]] {
        let [mut first, mut second] = two();
        let (id, seen) = serve(&mut first, request("GET", "/", &[("traceparent", SAMPLED)]));
        let keys: Vec<Vec<u8>> = first.0.envoy.shared.borrow().keys(b"throughline.inbound.");
        assert_eq!(keys.len(), 1, "one announcement");
        assert_eq!(first.0.envoy.shared.borrow_mut().set(&keys[0], garbage, 0), 0);
        let head = request("GET", "/", &[("traceparent", text(&seen, "traceparent"))]);
        let call = exchange(&mut second.0, second.2, head, "200");
        let client = only(collect(&mut second.0));
        assert_eq!(context(call.upstream_head()), (TRACE.to_owned(), client.id()));
        first.0.head(id, Side::Response, answer("200", &[]), true);
        first.0.finish(id);
        let left = first.0.envoy.shared.borrow().get(&keys[0]).unwrap().0.clone();
        assert!(left.is_empty(), "nothing stands in the place of an exchange that is over");
    }
}

#[test]
fn the_plugins_of_both_directions_share_one_queue() {
    let envoy = Envoy::new();
    let mut vm = envoy.worker();
    let inbound = vm.plugin(&configuration("inbound", ""));
    let outbound = vm.plugin(&configuration("outbound", ""));
    exchange(&mut vm, inbound, request("GET", "/in", &[]), "200");
    exchange(&mut vm, outbound, request("GET", "/out", &[]), "200");
    vm.pass(1_300);
    let calls = vm.calls();
    assert_eq!(calls.len(), 1, "one export for both");
    assert_eq!(spans_of(&calls[0]).len(), 2);
    take(&mut vm, &calls[0]);
    assert_eq!(envoy.told(), (2, 2, 0, vec![]));
    // The application's call knows the exchange of the other plugin.
    let id = vm.open(inbound);
    let caller = [("traceparent", SAMPLED), ("x-operation-name", "checkout")];
    vm.head(id, Side::Request, request("GET", "/", &caller), true);
    let seen = vm.stream(id).upstream_head().clone();
    let head = request("GET", "/", &[("traceparent", text(&seen, "traceparent"))]);
    let call = exchange(&mut vm, outbound, head, "200");
    assert_eq!(text(call.upstream_head(), "x-operation-name"), "checkout");
    vm.head(id, Side::Response, answer("200", &[]), true);
    vm.finish(id);
}

#[test]
fn a_configuration_that_changes_takes_effect_while_the_old_one_ends() {
    let envoy = Envoy::new();
    let mut vm = envoy.worker();
    let old = vm.plugin(&configuration("inbound", "otel-traces-sampler: always_on"));
    exchange(&mut vm, old, request("GET", "/", &[]), "200");
    let new = vm.plugin(&configuration("inbound", "otel-traces-sampler: always_off"));
    exchange(&mut vm, new, request("GET", "/", &[]), "200");
    vm.pass(100);
    assert_eq!(envoy.told(), (1, 0, 1, vec![]), "the new settings hold at once");
    assert!(!vm.shut(old), "the old plugin waits for its last export");
    let call = vm.calls().pop().expect("flushed when Envoy asked it to end");
    assert_eq!(spans_of(&call).len(), 1);
    take(&mut vm, &call);
    assert!(vm.state().done.contains(&old), "Envoy is told that it is done");
    vm.delete_root(old);
    assert_eq!(envoy.told(), (1, 1, 0, vec![]));
    exchange(&mut vm, new, request("GET", "/", &[]), "200");
}

#[test]
fn a_plugin_that_ends_flushes_and_waits_for_the_answer() {
    for (answered, expected) in [
        (true, (3, 3, 0, vec![])),
        (false, (3, 0, 0, vec![("export_failed".to_owned(), 0), ("shutdown".to_owned(), 3)])),
    ] {
        let mut scene = inbound("");
        for _ in 0..3 {
            scene.get("/");
        }
        assert!(!scene.vm.shut(scene.root), "waits");
        let call = scene.vm.calls().pop().unwrap();
        assert_eq!(spans_of(&call).len(), 3);
        match answered {
            true => take(&mut scene.vm, &call),
            false => scene.vm.refuse_grpc(&call, 14, b"gone"),
        }
        // Spans that could not leave are tried once more, and given up when that fails as well.
        for call in scene.vm.calls() {
            scene.vm.refuse_grpc(&call, 14, b"gone");
        }
        assert!(scene.vm.state().done.contains(&scene.root));
        scene.vm.delete_root(scene.root);
        let mut told = scene.vm.envoy.told();
        told.3.retain(|(_, count)| *count > 0);
        let mut expected = expected;
        expected.3.retain(|(_, count)| *count > 0);
        assert_eq!(told, expected, "{answered}");
    }
}

#[test]
fn a_plugin_that_can_not_send_ends_at_once_and_its_books_say_so() {
    let mut scene = inbound("");
    for _ in 0..3 {
        scene.get("/");
    }
    scene.vm.state().dispatch = status::INTERNAL_FAILURE;
    assert!(scene.vm.shut(scene.root), "there is nothing to wait for");
    scene.vm.delete_root(scene.root);
    assert_eq!(scene.vm.envoy.told(), (3, 0, 0, vec![("shutdown".to_owned(), 3)]));
}

#[test]
fn a_plugin_that_ends_sends_all_batches_one_after_the_other() {
    let mut scene = inbound("otel-bsp-max-export-batch-size: 2\n");
    for _ in 0..7 {
        scene.get("/");
    }
    assert!(!scene.vm.shut(scene.root));
    let mut sent = Vec::new();
    while let Some(call) = scene.vm.calls().pop() {
        sent.push(spans_of(&call).len());
        take(&mut scene.vm, &call);
    }
    assert_eq!(sent, [2, 2, 2, 1]);
    assert!(scene.vm.state().done.contains(&scene.root));
    assert_eq!(scene.vm.envoy.told(), (7, 7, 0, vec![]));
}

#[test]
fn a_plugin_with_nothing_to_send_ends_at_once() {
    let mut scene = inbound("");
    assert!(scene.vm.shut(scene.root));
    scene.vm.delete_root(scene.root);
}

#[test]
fn no_plugin_stays_hurried_when_another_was_hurried_with_it() {
    let mut vm = Envoy::new().worker();
    let roots = ["inbound", "outbound"]
        .map(|side| vm.plugin(&configuration(side, "otel-bsp-max-export-batch-size: 1")));
    for i in 0..40 {
        exchange(&mut vm, roots[i % 2], request("GET", "/", &[]), "200");
        vm.pass(7);
        for call in vm.calls() {
            take(&mut vm, &call);
        }
    }
    let before = roots.map(|root| vm.ticks(root));
    vm.pass(10_000);
    let after = roots.map(|root| vm.ticks(root));
    for (before, after) in before.iter().zip(after) {
        assert!(after - before <= 45, "{} ticks in ten idle seconds", after - before);
    }
}
