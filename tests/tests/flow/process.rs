//! The process: settings, tokens, what is kept over a restart and a kill, the export.

use std::path::PathBuf;

use prost::Message as _;
use serde_json::{Value, json};
use throughline_tests::flow::{FlowPlan, counted, login, now};
use throughline_tests::prelude::*;

/// A folder of a scenario, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("throughline-flow-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn what_was_taken_is_there_after_a_restart_and_after_a_kill() {
    let folder = Folder::new("kill");
    let plan = FlowPlan::on_disk(Some(&folder.0));
    let server = plan.clone().start().await;
    let at = now() - 5_000_000_000;
    server.send(&login(1, at)).await;
    server.send_metrics(&counted(1000, 10, at, now())).await;
    server.get_when("operations", |all| all["operations"][0]["count"] == 1000).await;
    let ended = server.end().await;
    assert_eq!(ended.code, Some(0), "{:?}", ended.stderr);

    let server = plan.clone().start().await;
    assert_eq!(server.get("traces").await["total"], 1);
    assert_eq!(server.get("operations").await["operations"][0]["count"], 1000, "numbers too");
    server.send(&login(2, at)).await;
    // Written within a second: then a kill loses nothing of it.
    eventually("the second trace to be written", || async {
        (server.counted("throughline_flow_spans_held").await == 0.0).then_some(())
    })
    .await;
    for trace in 3..50 {
        server.send(&login(trace, at)).await;
    }
    server.kill().await;

    let server = plan.clone().start().await;
    let total = server.get("traces").await["total"].as_u64().unwrap();
    assert!((2..=49).contains(&total), "{total}");
    assert_eq!(server.ask(&format!("traces/{}", "02".repeat(16))).await.status, 200);
    assert_eq!(server.counted("throughline_flow_blocks_damaged").await, 0.0);
    assert_eq!(server.end().await.code, Some(0));

    let exported = plan.ends(Some("export")).await;
    assert_eq!(exported.code, Some(0), "{:?}", exported.stderr);
    let spans: usize = exported
        .stdout
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .flat_map(|request| request["resourceSpans"].as_array().unwrap().clone())
        .flat_map(|resource| resource["scopeSpans"].as_array().unwrap().clone())
        .map(|scope| scope["spans"].as_array().unwrap().len())
        .sum();
    assert_eq!(spans as u64, total * 3);
}

/// Lines of an export, and the trace ids of their spans.
fn ids_in(lines: &[String]) -> std::collections::BTreeMap<String, usize> {
    let mut ids = std::collections::BTreeMap::new();
    for line in lines {
        let request: Value = serde_json::from_str(line).expect("JSON");
        for resource in request["resourceSpans"].as_array().unwrap() {
            for scope in resource["scopeSpans"].as_array().unwrap() {
                for span in scope["spans"].as_array().unwrap() {
                    *ids.entry(span["traceId"].as_str().unwrap().to_owned()).or_default() += 1;
                }
            }
        }
    }
    ids
}

#[tokio::test]
async fn an_export_is_of_what_was_asked_for_and_can_be_taken_in_again() {
    let (folder, copy) = (Folder::new("export"), Folder::new("export-copy"));
    let plan = FlowPlan::on_disk(Some(&folder.0));
    let server = plan.clone().start().await;
    let (at, minute) = (now() - 600_000_000_000, 60_000_000_000);
    for trace in 1..=5 {
        let mut spans = login(trace, at + u64::from(trace) * minute);
        if trace == 3 {
            for resource in &mut spans.resource_spans {
                for span in &mut resource.scope_spans[0].spans {
                    span.attributes[0] = throughline_tests::flow::text("app.operation.name", "Käse / 100 %");
                }
            }
        }
        assert_eq!(server.send(&spans).await.status, 200);
    }
    server.get_when("traces", |traces| traces["total"] == 5).await;
    let wanted = |flags: &[(&str, String)]| {
        flags.iter().fold(plan.clone(), |plan, (name, value)| plan.flag(name, value)).ends(Some("export"))
    };
    let id = |trace: u8| format!("{trace:02x}").repeat(16);
    let ids = |traces: &[u8]| traces.iter().map(|trace| (id(*trace), 3)).collect();
    eventually("all spans to be written", || async {
        (server.counted("throughline_flow_spans_held").await == 0.0).then_some(())
    })
    .await;
    // Beside the server that writes. Seconds and RFC 3339 mean the same moment.
    let (from, to) = ((at + 2 * minute) / 1_000_000_000, (at + 4 * minute) / 1_000_000_000);
    let graph = server.get(&format!("dependencies?endTime={to}")).await;
    let rfc = graph["metadata"]["period"]["end"].as_str().unwrap().to_owned();
    for (flags, traces) in [
        (vec![], vec![1, 2, 3, 4, 5]),
        (vec![("start", from.to_string())], vec![2, 3, 4, 5]),
        (vec![("start", from.to_string()), ("end", rfc)], vec![2, 3]),
        (vec![("end", "now-510s".to_owned())], vec![1]),
        (vec![("operation", "Käse / 100 %".to_owned())], vec![3]),
        (vec![("operation", "login".to_owned()), ("end", to.to_string())], vec![1, 2]),
        (
            vec![("service", "orders".to_owned()), ("environment", "production".to_owned())],
            vec![1, 2, 3, 4, 5],
        ),
        (vec![("service", "nobody".to_owned())], vec![]),
        (vec![("trace", id(4))], vec![4]),
        (vec![("trace", id(9))], vec![]),
    ] {
        let ended = wanted(&flags).await;
        assert_eq!(ended.code, Some(0), "{flags:?}: {:?}", ended.stderr);
        assert_eq!(ids_in(&ended.stdout), ids(&traces), "{flags:?}");
    }
    let told = wanted(&[("start", "now".to_owned()), ("end", "now-1h".to_owned())]).await;
    assert_eq!((told.code, told.stderr.len()), (Some(2), 1), "{:?}", told.stderr);

    // What was written is taken in again, and comes out as it went in.
    let whole = wanted(&[]).await;
    let second = FlowPlan::on_disk(Some(&copy.0)).start().await;
    for line in &whole.stdout {
        assert_eq!(second.post("/v1/traces", "application/json", line.clone()).await.status, 200);
    }
    for trace in 1..=5 {
        let path = format!("traces/{}", id(trace));
        let (one, other) = (server.get(&path).await, second.get_when(&path, |_| true).await);
        assert_eq!(one["spans"], other["spans"], "{path}");
    }
    assert_eq!((server.end().await.code, second.end().await.code), (Some(0), Some(0)));
    let again = FlowPlan::on_disk(Some(&copy.0)).ends(Some("export")).await;
    assert_eq!(ids_in(&again.stdout), ids(&[1, 2, 3, 4, 5]));
}

#[tokio::test]
async fn other_addresses_want_a_token_before_anything_starts() {
    let ended = FlowPlan::new().flag("listen", "0.0.0.0:0").flag("otlp-grpc", "0.0.0.0:0").ends(None).await;
    assert_eq!(ended.code, Some(2));
    assert_eq!(ended.stderr.len(), 2, "{:?}", ended.stderr);
    assert!(
        ended.stderr[0].contains("--listen=\"0.0.0.0:0\": want a loopback address"),
        "{:?}",
        ended.stderr
    );
    let ended = FlowPlan::new().flag("token-file", "/nowhere").ends(None).await;
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr[0].contains("THROUGHLINE_FLOW_TOKEN_FILE=\"/nowhere\""), "{:?}", ended.stderr);
}

/// An address of this machine that is not loopback, if there is one.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    // No packet leaves: connecting only chooses the route.
    socket.connect("192.0.2.1:9").ok()?;
    socket
        .local_addr()
        .ok()
        .map(|address| address.ip())
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[tokio::test]
async fn callers_from_elsewhere_send_and_read_with_the_token_only() {
    let Some(ip) = own_address() else {
        throughline_tests::judges::skipped("this machine has no address but loopback");
        return;
    };
    let folder = Folder::new("token");
    let file = folder.0.join("token");
    std::fs::write(&file, "a-token-of-some-length\n").unwrap();
    let token = ("authorization", "Bearer a-token-of-some-length");
    for open in [false, true] {
        let plan = FlowPlan::new()
            .flag("token-file", file.display())
            .flag("otlp-open", if open { "on" } else { "off" });
        let every = |plan: FlowPlan, name: &str| plan.flag(name, format!("{ip}:0"));
        let plan = ["listen", "otlp-grpc", "otlp-http"].into_iter().fold(plan, every);
        let server = plan.start().await;
        let read = |headers: Vec<(&'static str, &'static str)>| {
            Ask::get(server.url("/api/v1/traces")).headers(headers).send()
        };
        let refused = read(Vec::new()).await;
        assert_eq!((refused.status, refused.header("content-type")), (401, Some("application/problem+json")));
        assert!(refused.header("www-authenticate").is_some());
        assert_eq!(read(vec![("authorization", "Bearer a-token-of-some-lengtH")]).await.status, 401);
        assert_eq!(read(vec![token]).await.status, 200);
        assert_eq!(Ask::get(server.url("/livez")).send().await.status, 200, "the kubelet has no token");
        assert_eq!(server.send(&login(7, now())).await.status, if open { 200 } else { 401 });
        let call = |headers: Vec<(&'static str, &'static str)>| {
            let url = format!(
                "http://{}/opentelemetry.proto.collector.trace.v1.TraceService/Export",
                server.grpc()
            );
            let framed = throughline_tests::grpc::framed(&login(8, now()).encode_to_vec());
            let ask = Ask::post(url, framed).over(Protocol::H2).header("content-type", "application/grpc");
            ask.headers(headers).send()
        };
        let status = |answer: &Answer| {
            answer.trailer("grpc-status").or(answer.header("grpc-status")).unwrap_or("none").to_owned()
        };
        assert_eq!(status(&call(Vec::new()).await), if open { "0" } else { "16" });
        assert_eq!(status(&call(vec![token]).await), "0");
    }
}

#[tokio::test]
async fn settings_are_checked_and_told_together() {
    let ended = FlowPlan::new().flag("listn", "x").flag("memory-bytes-max", 7).ends(None).await;
    assert_eq!(ended.code, Some(2));
    assert_eq!(ended.stderr.len(), 2, "{:?}", ended.stderr);
    assert!(ended.stderr[0].contains("did you mean listen?"), "{:?}", ended.stderr);
    let right = FlowPlan::new().flag("check", "").ends(None).await;
    assert_eq!(right.code, Some(2), "a switch of the command line has no value: {:?}", right.stderr);
    let export = FlowPlan::new().ends(Some("export")).await;
    assert_eq!(export.code, Some(2), "nothing to export from memory: {:?}", export.stderr);
    assert_eq!(json!(export.stdout), json!([]));
}
