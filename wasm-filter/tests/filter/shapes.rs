//! Bytes of any shape: headers, header maps, properties. The request goes on as it came, and the next one is well.

use crate::host::*;
use crate::orders::Dice;
use crate::scene::*;

/// The next request leaves a span with all that belongs to it.
fn is_well(scene: &mut Scene) {
    scene.vm.pass(1_300);
    for call in scene.vm.calls() {
        take(&mut scene.vm, &call);
    }
    let before = scene.spans().len();
    let stream = scene.exchange(request("GET", "/well", &[("traceparent", SAMPLED)]), "200");
    let spans = scene.spans();
    let span =
        spans.iter().find(|span| span.get("url.path") == "/well" || span.get("url.full").ends_with("/well"));
    let span = span.unwrap_or_else(|| panic!("no span of the next request, {before} before: {spans:?}"));
    assert_eq!(context(stream.upstream_head()), (TRACE.to_owned(), span.id()));
    scene.vm.envoy.books();
}

#[test]
fn no_header_has_to_be_utf_8() {
    let odd: [&[u8]; 6] = [b"\xff", b"\xc3", b"\x80abc\xfe", &[0xff; 4096], b"\xed\xa0\x80", b"a\0b"];
    let names = [
        ":path",
        ":method",
        ":authority",
        ":scheme",
        "traceparent",
        "tracestate",
        "baggage",
        "x-operation-name",
        "throughline-peer",
        "user-agent",
        "content-type",
        "content-length",
        "content-encoding",
        "b3",
        "x-trace-id",
        "ce-id",
        "ce-specversion",
        "ce-type",
        "ce-source",
        "expect",
        "x-goog-pubsub-message-id",
        "forwarded",
    ];
    for direction in ["inbound", "outbound"] {
        let mut vm = Envoy::new().worker();
        let root =
            vm.plugin(&configuration(direction, "capture-request-headers: user-agent\nhold-headers: on\n"));
        let mut scene = Scene { vm, root };
        for name in names {
            for value in odd {
                let mut head = request("POST", "/", &[]);
                head.retain(|(known, _)| known != name.as_bytes());
                head.push((name.as_bytes().to_vec(), value.to_vec()));
                let id = scene.vm.open(root);
                scene.vm.head(id, Side::Request, head, false);
                scene.vm.body(id, Side::Request, value, true);
                let mut back = answer("200", &[]);
                back.retain(|(known, _)| known.as_slice() != b":status" || name != ":scheme");
                back.push((name.as_bytes().to_vec(), value.to_vec()));
                scene.vm.head(id, Side::Response, back, false);
                scene.vm.body(id, Side::Response, value, false);
                scene.vm.trailers(id, Side::Response, vec![(b"grpc-status".to_vec(), value.to_vec())]);
                let stream = scene.vm.finish(id);
                assert_eq!(
                    (stream.request().sent.as_slice(), stream.response().sent.as_slice()),
                    (value, value)
                );
            }
        }
        is_well(&mut scene);
    }
}

#[test]
fn no_name_has_to_be_utf_8() {
    let mut scene = inbound("");
    for name in [&b"\xff"[..], b"", b"\xc3\x28", &[0x80; 1000], b":", b":\xff", b"a:b", b"TRACEPARENT"] {
        let mut head = request("GET", "/", &[("traceparent", SAMPLED)]);
        head.insert(2, (name.to_vec(), b"value".to_vec()));
        let stream = scene.exchange(head, "200");
        assert_eq!(context(stream.upstream_head()).0, TRACE);
        assert!(stream.upstream_head().iter().any(|(known, value)| known == name && value == b"value"));
    }
    is_well(&mut scene);
}

/// Header maps as no host should write them.
fn odd_maps() -> Vec<Vec<u8>> {
    let good = pairs(&request("GET", "/", &[("traceparent", SAMPLED)]));
    let mut odd: Vec<Vec<u8>> = vec![vec![], vec![0], vec![0, 0, 0, 0], vec![0xff; 4], vec![0xff; 4096]];
    odd.extend((0..good.len()).step_by(3).map(|end| good[..end].to_vec()));
    for count in [0u32, 1, 4, 7, 1_000, 0x1fff_ffff, 0x2000_0000, u32::MAX] {
        let mut map = good.clone();
        map[..4].copy_from_slice(&count.to_le_bytes());
        odd.push(map);
    }
    for length in [0u32, 1, 0x7fff_ffff, 0xffff_fff0, u32::MAX] {
        for at in [4, 8, 12, 20, 44] {
            let mut map = good.clone();
            map[at..at + 4].copy_from_slice(&length.to_le_bytes());
            odd.push(map);
        }
    }
    let mut dice = Dice(5);
    for _ in 0..300 {
        let mut map = good.clone();
        for _ in 0..=dice.below(4) {
            let at = dice.below(map.len().min(60));
            map[at] = dice.below(256) as u8;
        }
        odd.push(map);
    }
    odd
}

#[test]
fn a_header_map_of_any_shape_lets_the_request_go_on() {
    let mut scene = inbound("hold-headers: on\n");
    for map in odd_maps() {
        scene.vm.state().odd_map = Some(map);
        let id = scene.vm.open(scene.root);
        scene.vm.head(
            id,
            Side::Request,
            request("POST", "/", &[("content-type", "application/json")]),
            false,
        );
        scene.vm.body(id, Side::Request, b"{\"message\":1}", true);
        scene.vm.head(id, Side::Response, answer("200", &[]), false);
        scene.vm.body(id, Side::Response, b"x", false);
        scene.vm.trailers(id, Side::Response, fields(&[("grpc-status", "0")]));
        let stream = scene.vm.finish(id);
        assert_eq!(
            (stream.request().sent.as_slice(), stream.response().sent.as_slice()),
            (&b"{\"message\":1}"[..], &b"x"[..])
        );
        scene.vm.state().odd_map = None;
    }
    is_well(&mut scene);
}

#[test]
fn who_can_not_read_a_context_writes_none() {
    let mut scene = inbound("");
    scene.vm.state().odd_map = Some(vec![9, 0, 0, 0]);
    let stream = scene.exchange(request("GET", "/", &[("traceparent", SAMPLED)]), "200");
    assert_eq!(text(stream.upstream_head(), "traceparent"), SAMPLED, "the caller's own");
}

#[test]
fn properties_of_any_shape_are_read_for_what_they_are() {
    let paths = [
        "xds\0listener_direction",
        "listener_direction",
        "request\0protocol",
        "source\0address",
        "response\0flags",
        "response\0code_details",
        "request\0time",
        "request\0duration",
        "xds\0node\0metadata\0WORKLOAD_NAME",
        "xds\0node\0metadata\0NAMESPACE",
        "xds\0node\0cluster",
    ];
    for value in [
        &b""[..],
        b"\xff",
        &[0xff; 7],
        &[0xff; 8],
        &[0; 8],
        &[0x80; 9],
        b":",
        b"]:",
        b"[::1",
        &[0xff; 100_000],
    ] {
        let mut vm = Envoy::new().worker();
        for path in paths {
            vm.state().properties.insert(path.as_bytes().to_vec(), value.to_vec());
        }
        let root = vm.plugin("otel-metrics-exporter: none\n");
        let mut scene = Scene { vm, root };
        for status in ["200", "503"] {
            scene.exchange(request("GET", "/", &[]), status);
        }
        let id = scene.vm.open(root);
        scene.vm.head(id, Side::Request, request("GET", "/", &[]), true);
        scene.vm.finish(id);
        is_well(&mut scene);
    }
}
