//! Collectors that are well, slow, full, away or wrong: every span arrives or is dropped with its reason, and the
//! books balance at every step.

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceResponse,
};
use prost::Message;

use crate::host::*;
use crate::scene::*;

const HTTP: &str = "otel-exporter-otlp-protocol: http/protobuf\n";

/// What a collector does with a batch.
#[derive(Clone, Debug)]
enum Does {
    /// The host does not take the call.
    RefuseCall(u32),
    Http(&'static [(&'static str, &'static str)], Vec<u8>),
    Grpc(u32, Vec<u8>),
    /// No answer came in time.
    TimeOut,
}

fn partly(rejected: i64) -> Vec<u8> {
    let partial = ExportTracePartialSuccess { rejected_spans: rejected, error_message: "no".into() };
    ExportTraceServiceResponse { partial_success: Some(partial) }.encode_to_vec()
}

impl Does {
    fn answer(&self, vm: &mut Vm, call: &Call) {
        match self {
            Self::RefuseCall(_) => panic!("no call was made"),
            Self::Http(headers, body) => vm.answer_http(call, headers, body),
            Self::Grpc(0, body) => vm.answer_grpc(call, body),
            Self::Grpc(code, message) => vm.refuse_grpc(call, *code, message),
            Self::TimeOut if call.grpc => vm.refuse_grpc(call, 14, b"upstream connect error"),
            Self::TimeOut => vm.answer_http(call, &[], &[]),
        }
    }
}

type Told = (i64, i64, i64, Vec<(String, i64)>);

fn told(created: i64, exported: i64, held: i64, dropped: &[(&str, i64)]) -> Told {
    (created, exported, held, dropped.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect())
}

/// Four spans, of which the first batch is treated so; the books right after, and how the export was counted.
fn after(more: &str, does: &Does) -> (Scene, Told, &'static str) {
    let mut scene = inbound(more);
    for i in 0..4 {
        scene.get(&format!("/{i}"));
    }
    scene.vm.pass(100);
    assert_eq!(scene.vm.envoy.told(), told(4, 0, 4, &[]), "held before they leave");
    if let Does::RefuseCall(status) = does {
        scene.vm.state().dispatch = *status;
    }
    scene.vm.pass(1_200);
    assert_eq!(scene.vm.envoy.told(), told(4, 0, 4, &[]), "held while they are under way");
    if matches!(does, Does::RefuseCall(_)) {
        scene.vm.state().dispatch = status::OK;
    } else {
        let call = scene.vm.calls().pop().expect("an export");
        assert_eq!(spans_of(&call).len(), 4);
        does.answer(&mut scene.vm, &call);
    }
    let books = scene.vm.envoy.told();
    let counted = ["ok", "partial", "refused", "failed", "retried"];
    let counted = counted
        .into_iter()
        .find(|how| scene.vm.envoy.metric(&format!("throughline_exports.result.{how}")) > 0);
    (scene, books, counted.expect("the export is counted"))
}

#[test]
fn every_answer_of_a_collector_is_booked_as_what_it_means() {
    let ok: &[(&str, &str)] = &[(":status", "200")];
    for (more, does, expected, how) in [
        ("", Does::Grpc(0, vec![]), told(4, 4, 0, &[]), "ok"),
        ("", Does::Grpc(0, partly(0)), told(4, 4, 0, &[]), "ok"),
        ("", Does::Grpc(0, partly(1)), told(4, 3, 0, &[("partial_success", 1)]), "partial"),
        ("", Does::Grpc(0, partly(1_000_000)), told(4, 0, 0, &[("partial_success", 4)]), "partial"),
        ("", Does::Grpc(0, partly(-1)), told(4, 0, 0, &[("partial_success", 4)]), "partial"),
        ("", Does::Grpc(0, vec![0xff; 100_000]), told(4, 4, 0, &[]), "ok"),
        ("", Does::Grpc(3, b"no".to_vec()), told(4, 0, 0, &[("export_refused", 4)]), "refused"),
        ("", Does::Grpc(12, vec![0xff, 0xfe]), told(4, 0, 0, &[("export_refused", 4)]), "refused"),
        ("", Does::Grpc(14, vec![]), told(4, 0, 4, &[]), "retried"),
        ("", Does::Grpc(99, vec![]), told(4, 0, 0, &[("export_refused", 4)]), "refused"),
        ("", Does::TimeOut, told(4, 0, 4, &[]), "retried"),
        ("", Does::RefuseCall(10), told(4, 0, 4, &[]), "retried"),
        ("", Does::RefuseCall(4), told(4, 0, 4, &[]), "retried"),
        (HTTP, Does::Http(ok, vec![]), told(4, 4, 0, &[]), "ok"),
        (HTTP, Does::Http(ok, partly(2)), told(4, 2, 0, &[("partial_success", 2)]), "partial"),
        (HTTP, Does::Http(&[(":status", "400")], vec![]), told(4, 0, 0, &[("export_refused", 4)]), "refused"),
        (HTTP, Does::Http(&[(":status", "503")], vec![]), told(4, 0, 4, &[]), "retried"),
        (
            HTTP,
            Does::Http(&[(":status", "429"), ("retry-after", "soon")], vec![]),
            told(4, 0, 4, &[]),
            "retried",
        ),
        (HTTP, Does::Http(&[(":status", "x")], vec![]), told(4, 0, 4, &[]), "retried"),
        (HTTP, Does::TimeOut, told(4, 0, 4, &[]), "retried"),
        (HTTP, Does::RefuseCall(2), told(4, 0, 4, &[]), "retried"),
        (HTTP, Does::RefuseCall(10), told(4, 0, 4, &[]), "retried"),
    ] {
        let (mut scene, books, counted) = after(more, &does);
        assert_eq!((&books, counted), (&expected, how), "{does:?}");
        // What is held arrives as soon as the collector is well, once each, and so does what is new.
        scene.get("/new");
        let mut paths: Vec<String> = scene.spans().iter().map(|span| span.get("url.path")).collect();
        paths.sort();
        let again: &[&str] = if how == "retried" { &["/0", "/1", "/2", "/3", "/new"] } else { &["/new"] };
        assert_eq!(paths, again, "{does:?}");
        let lost: i64 = expected.3.iter().map(|(_, count)| count).sum();
        assert_eq!(scene.vm.envoy.told(), (5, 5 - lost, 0, expected.3), "{does:?}");
    }
}

#[test]
fn an_export_says_whom_it_wants() {
    let more = "otel-exporter-otlp-endpoint: http://collector.obs:4317\notel-exporter-otlp-headers: X-Key=7\notlp-cluster: to-collector\notel-exporter-otlp-timeout: 3000\n";
    let mut scene = inbound(more);
    scene.get("/");
    scene.vm.pass(1_300);
    let call = scene.vm.calls().pop().unwrap();
    assert_eq!(call.method, "opentelemetry.proto.collector.trace.v1.TraceService/Export");
    assert_eq!((text(&call.headers, "x-key"), call.timeout_ms), ("7", 3_000));
    // GrpcService{envoy_grpc=1{cluster_name=1, authority=2}}
    let mut service = vec![10, 14 + 20, 10, 12];
    service.extend_from_slice(b"to-collector");
    service.extend_from_slice(&[18, 18]);
    service.extend_from_slice(b"collector.obs:4317");
    assert_eq!(call.target, service);

    let mut scene = inbound(&format!("{HTTP}{}", more.replace("4317", "4318")));
    scene.get("/");
    scene.vm.pass(1_300);
    let call = scene.vm.calls().pop().unwrap();
    assert_eq!(call.target, b"to-collector");
    for (name, expected) in [
        (":method", "POST"),
        (":path", "/v1/traces"),
        (":authority", "collector.obs:4318"),
        ("content-type", "application/x-protobuf"),
        ("x-key", "7"),
    ] {
        assert_eq!(text(&call.headers, name), expected);
    }
}

#[test]
fn a_collector_that_stays_away_is_asked_ever_more_rarely_and_for_five_minutes() {
    for protocol in ["", HTTP] {
        let mut scene = inbound(protocol);
        scene.get("/");
        let mut asked = Vec::new();
        for _ in 0..3_500 {
            scene.vm.pass(100);
            for call in scene.vm.calls() {
                asked.push(scene.vm.envoy.mono_nanos() / 1_000_000);
                Does::TimeOut.answer(&mut scene.vm, &call);
                scene.vm.envoy.books();
            }
        }
        assert_eq!(scene.vm.envoy.told(), told(1, 0, 0, &[("export_failed", 1)]));
        assert!((10..40).contains(&asked.len()), "{} tries", asked.len());
        let waits: Vec<u64> = asked.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(waits[0] >= 250 && waits.iter().all(|wait| *wait <= 30_400), "{waits:?}");
        assert!(asked.last().unwrap() - asked[0] <= 300_000);
        let lines = scene.vm.logged(3).len();
        assert!((2..=32).contains(&lines), "one line in ten seconds at the most: {lines}");
    }
}

#[test]
fn a_collector_that_says_when_is_asked_then() {
    let mut scene = inbound(HTTP);
    scene.get("/");
    scene.vm.pass(1_300);
    let call = scene.vm.calls().pop().unwrap();
    scene.vm.answer_http(&call, &[(":status", "503"), ("retry-after", "7")], &[]);
    scene.vm.pass(6_900);
    assert!(scene.vm.calls().is_empty());
    scene.vm.pass(400);
    assert_eq!(scene.vm.calls().len(), 1);
}

#[test]
fn a_full_queue_drops_the_oldest_and_says_so() {
    let mut scene = inbound("otel-bsp-max-queue-size: 10\notel-bsp-max-export-batch-size: 5\n");
    let mut calls = Vec::new();
    for i in 0..30 {
        scene.get(&format!("/{i}"));
        scene.vm.pass(5);
        calls.extend(scene.vm.calls());
        scene.vm.envoy.books();
    }
    // Five are under way and ten wait; the others had no place.
    assert_eq!(calls.len(), 1, "one batch at a time");
    scene.vm.pass(100);
    assert_eq!(scene.vm.envoy.told(), told(30, 0, 15, &[("queue_full", 15)]));
    take(&mut scene.vm, &calls[0]);
    let mut paths: Vec<String> = spans_of(&calls[0]).iter().map(|span| span.get("url.path")).collect();
    for _ in 0..4 {
        for call in scene.vm.calls() {
            paths.extend(spans_of(&call).iter().map(|span| span.get("url.path")));
            take(&mut scene.vm, &call);
        }
        scene.vm.pass(1_300);
    }
    let newest: Vec<String> = (0..5).chain(20..30).map(|i| format!("/{i}")).collect();
    assert_eq!(paths, newest);
    assert_eq!(scene.vm.envoy.told(), told(30, 15, 0, &[("queue_full", 15)]));
}

#[test]
fn a_full_batch_does_not_wait_for_its_time() {
    let mut scene = inbound("otel-bsp-max-export-batch-size: 3\notel-bsp-schedule-delay: 60000\n");
    for _ in 0..3 {
        scene.get("/");
    }
    scene.vm.pass(5);
    let call = scene.vm.calls().pop().expect("a full batch");
    assert_eq!(spans_of(&call).len(), 3);
}

#[test]
fn memory_stays_bounded_while_the_collector_is_dead() {
    let mut scene = inbound("");
    scene.vm.state().dispatch = status::INTERNAL_FAILURE;
    let mut sizes = Vec::new();
    for _ in 0..3 {
        for i in 0..1_500 {
            scene.get(&format!("/{i}?{}", "x".repeat(200)));
        }
        scene.vm.pass(500);
        sizes.push(scene.vm.memory_bytes());
    }
    assert_eq!(sizes[1], sizes[2], "{sizes:?}");
    let books = scene.vm.envoy.books();
    assert_eq!(
        (books.created, books.held),
        (4_500, 2_048 + 512),
        "a queue, and the batch that is tried: {books:?}"
    );
}

#[test]
fn metrics_are_pushed_and_what_becomes_of_them_disturbs_no_span() {
    for (protocol, path) in [("", ""), (HTTP, "/v1/metrics")] {
        let mut vm = Envoy::new().worker();
        let root = vm.plugin(&format!(
            "direction: inbound\notel-service-name: orders\notel-metric-export-interval: 2000\n{protocol}"
        ));
        let mut pushed = 0;
        for round in 0..6 {
            exchange(&mut vm, root, request("GET", "/", &[]), "200");
            vm.pass(2_500);
            for call in vm.calls() {
                let metrics = call.method.contains("MetricsService")
                    || text(&call.headers, ":path") == path && !call.grpc;
                if !metrics {
                    take(&mut vm, &call);
                    continue;
                }
                pushed += 1;
                assert_eq!(metrics_of(&call), ["http.server.request.duration"]);
                match round % 3 {
                    0 => take(&mut vm, &call),
                    1 => Does::TimeOut.answer(&mut vm, &call),
                    _ => match call.grpc {
                        true => vm.refuse_grpc(&call, 12, b"no metrics here"),
                        false => vm.answer_http(&call, &[(":status", "404")], &[]),
                    },
                }
            }
        }
        assert!(pushed >= 5, "{pushed}");
        vm.pass(1_300);
        for call in vm.calls() {
            take(&mut vm, &call);
        }
        vm.pass(100);
        assert_eq!(vm.envoy.told(), told(6, 6, 0, &[]));
    }
}
