//! Control at run time: calls, the watched file, who may change anything, and that rules end by themselves.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use throughline_tests::judges::skipped;
use throughline_tests::pki::Folder;
use throughline_tests::prelude::*;

/// A caller's context that says no.
const NO: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

async fn pod(mesh: &Mesh) -> Pod {
    mesh.pod("orders").environment("OTEL_TRACES_SAMPLER_ARG", "0").runs(answer(200, "")).await
}

async fn call(pod: &Pod, what: &str, body: Value) -> (u16, Value) {
    let ask = Ask::post(pod.sidecar.admin_url(&format!("/api/tracing/{what}")), body.to_string());
    let answer = ask.send().await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    (answer.status, serde_json::from_slice(&answer.body).expect("JSON"))
}

async fn status(pod: &Pod) -> Value {
    let answer = Ask::get(pod.sidecar.admin_url("/api/tracing/status")).send().await;
    assert_eq!(answer.status, 200);
    serde_json::from_slice(&answer.body).expect("JSON")
}

/// Whether a request of this operation, whose caller said no, is sampled.
async fn is_sampled(pod: &Pod, operation: &str) -> bool {
    let ask = Ask::get(pod.url("/work")).headers([("traceparent", NO), ("x-operation-name", operation)]);
    ask.send().await;
    pod.app().seen().last().expect("a request").traceparent().sampled()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

#[tokio::test]
async fn an_operation_is_traced_for_a_while_and_the_rest_is_not() {
    let mesh = Mesh::new().await;
    let orders = pod(&mesh).await;
    assert!(!is_sampled(&orders, "checkout").await);
    let before = unix_seconds();
    let (code, rule) =
        call(&orders, "enable", json!({"operation": "checkout", "rate": 1.0, "duration": "1m"})).await;
    assert_eq!((code, &rule["source_id"], &rule["rate"]), (200, &json!("operation=checkout"), &json!(1)));
    let expires = rule["expires"].as_u64().expect("a moment");
    assert!((before + 60..=unix_seconds() + 60).contains(&expires), "{rule}");
    assert!(is_sampled(&orders, "checkout").await);
    assert!(!is_sampled(&orders, "refund").await);
    let shown = status(&orders).await;
    assert_eq!((&shown["mode"], &shown["base_rate"]), (&json!("hybrid"), &json!(0)));
    assert_eq!(shown["rules"], json!([rule]));
    assert_eq!(shown["status"]["exchanges_recorded"], 1);
    let books = orders.books().await;
    assert_eq!(books.sum("throughline_on_demand_rules_active", &[]), 1);
    assert_eq!(books.sum("throughline_tracing_mode", &[("mode", "hybrid")]), 1);
    let (code, done) = call(&orders, "disable", json!({"operation": "checkout"})).await;
    assert_eq!((code, done), (200, json!({"disabled": 1})));
    assert!(!is_sampled(&orders, "checkout").await);
    let logged = orders.sidecar.logged(|line| line["message"] == "tracing was changed").await;
    assert_eq!(
        (&logged["by"], logged["what"].as_str().map(|what| what.contains("checkout"))),
        (&json!("loopback"), Some(true))
    );
    let spans = mesh.end([orders]).await;
    let span = the_only(&spans, |_| true);
    span.assert_attributes(&[
        ("throughline.sampled.by", json!("on_demand")),
        ("app.operation.name", json!("checkout")),
    ]);
}

#[tokio::test]
async fn what_an_operator_asked_for_is_whole_up_to_the_edge() {
    let mesh = Mesh::new().await;
    let stock = mesh.pod("stock").environment("OTEL_TRACES_SAMPLER_ARG", "0").runs(answer(200, "")).await;
    let url = stock.url("/items");
    let plan = mesh.pod("orders").environment("OTEL_TRACES_SAMPLER_ARG", "0");
    let orders = plan.runs(calling(url, Copying::Everything)).await;
    call(&stock, "enable", json!({"service": "stock"})).await;
    Ask::get(orders.url("/")).send().await;
    let spans = mesh.end([orders, stock]).await;
    assert_eq!(spans.len(), 3, "{spans:#?}");
    assert_connected(&spans, &[]);
}

#[tokio::test]
async fn wrong_calls_are_told_all_that_is_wrong_and_change_nothing() {
    let mesh = Mesh::new().await;
    let orders = pod(&mesh).await;
    let mistakes = |answer: &Value| answer["mistakes"].as_array().map_or(0, Vec::len);
    for (what, body, code, count) in [
        ("enable", json!({"rate": 7, "duration": "1s", "colour": "red"}), 400, 4),
        ("enable", json!([]), 400, 1),
        ("disable", json!({}), 400, 1),
        ("disable", json!({"source_id": "nobody"}), 404, 1),
        ("mode", json!({"mode": "some", "base_rate": -1}), 400, 2),
        ("colour", json!({}), 404, 1),
        ("status", json!({}), 405, 1),
    ] {
        let (status, answer) = call(&orders, what, body.clone()).await;
        assert_eq!((status, mistakes(&answer)), (code, count), "{what} {body}: {answer}");
    }
    let url = orders.sidecar.admin_url("/api/tracing/enable");
    assert_eq!(Ask::post(&url, "{").send().await.status, 400);
    assert_eq!(Ask::post(&url, vec![b' '; 20_000]).send().await.status, 400);
    assert_eq!(status(&orders).await["rules"], json!([]));
    call(&orders, "mode", json!({"mode": "full"})).await;
    let (code, answer) = call(&orders, "enable", json!({"operation": "checkout"})).await;
    assert_eq!(code, 409, "{answer}");
    mesh.end([orders]).await;
}

#[tokio::test]
async fn a_mode_is_changed_while_requests_come() {
    let mesh = Mesh::new().await;
    let orders = pod(&mesh).await;
    for (wish, sampled) in [
        (json!({"mode": "full"}), true),
        (json!({"mode": "off"}), false),
        (json!({"mode": null, "base_rate": 1}), false),
        (json!({"base_rate": null}), false),
    ] {
        let (code, _) = call(&orders, "mode", wish.clone()).await;
        assert_eq!((code, is_sampled(&orders, "checkout").await), (200, sampled), "{wish}");
    }
    // `off` passes the context as it came; otherwise the application hangs under our span.
    let seen = orders.app().seen();
    let told: Vec<_> = seen.iter().map(|seen| seen.header("traceparent") == Some(NO)).collect();
    assert_eq!(told, [false, true, false, false]);
    mesh.end([orders]).await;
}

#[tokio::test]
async fn only_callers_on_the_same_host_or_with_the_token_change_anything() {
    let folder = Folder::fresh();
    let token = folder.write("token", "s3cret\n");
    let mesh = Mesh::new().await;
    let plan = || mesh.pod("orders").flag("admin-listen", "0.0.0.0:0");
    let with_token = plan().flag("admin-token-file", token.display()).runs(answer(200, "")).await;
    let without = plan().runs(answer(200, "")).await;
    let wish = json!({"operation": "checkout"}).to_string();
    let ask = |pod: &Pod, host: IpAddr, fields: &[(&str, &str)]| {
        let url = format!("http://{host}:{}/api/tracing/enable", pod.sidecar.admin.port());
        Ask::post(url, wish.clone()).headers(fields.iter().copied())
    };
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let (right, wrong) = (("authorization", "Bearer s3cret"), ("authorization", "Bearer secret"));
    for (fields, expected) in
        [(&[][..], 200), (&[right], 200), (&[wrong], 401), (&[("origin", "http://evil.example")], 403)]
    {
        assert_eq!(ask(&with_token, loopback, fields).send().await.status, expected, "{fields:?}");
    }
    if let Some(host) = own_address() {
        for (pod, fields, expected) in [
            (&with_token, &[][..], 401),
            (&with_token, &[wrong], 401),
            (&with_token, &[("authorization", "s3cret")], 401),
            (&with_token, &[right], 200),
            (&without, &[], 403),
            (&without, &[right], 403),
        ] {
            assert_eq!(ask(pod, host, fields).send().await.status, expected, "{fields:?}");
        }
        let by_token =
            with_token.sidecar.logged(|line| line["by"] == "token" && line["caller"] != "127.0.0.1").await;
        assert_eq!(by_token["message"], "tracing was changed");
        // A token is changed by changing its file, and an empty one is none.
        folder.write("token", "\n");
        assert_eq!(ask(&with_token, host, &[right]).send().await.status, 401);
        let empty = ask(&with_token, host, &[("authorization", "Bearer ")]);
        assert_eq!(empty.send().await.status, 401);
    } else {
        skipped("this machine has no address but loopback");
    }
    mesh.end([with_token, without]).await;
}

/// An address of this machine that is not loopback.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?; // sends nothing: only the route is looked up
    socket
        .local_addr()
        .ok()
        .map(|address| address.ip())
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[tokio::test]
async fn changes_by_calls_are_bounded() {
    let mesh = Mesh::new().await;
    let orders = pod(&mesh).await;
    let mut codes = Vec::new();
    for _ in 0..60 {
        codes.push(call(&orders, "enable", json!({"operation": "checkout"})).await.0);
    }
    let let_through = codes.iter().filter(|code| **code == 200).count();
    assert!((20..60).contains(&let_through), "{codes:?}");
    assert!(codes.iter().all(|code| [200, 429].contains(code)), "{codes:?}");
    mesh.end([orders]).await;
}

/// Puts a document where a ConfigMap's volume puts it: behind a link that is exchanged as a whole.
fn mount(folder: &Path, version: &str, text: &str) {
    let data = folder.join(format!("..{version}"));
    std::fs::create_dir(&data).expect("a new folder");
    std::fs::write(data.join("control.yaml"), text).expect("a file");
    let fresh = folder.join("..data_tmp");
    std::os::unix::fs::symlink(&data, &fresh).expect("a link");
    std::fs::rename(fresh, folder.join("..data")).expect("exchanged");
    let _ = std::os::unix::fs::symlink("..data/control.yaml", folder.join("control.yaml"));
}

#[tokio::test]
async fn a_mounted_file_changes_the_same_and_a_wrong_one_changes_nothing() {
    let folder = Folder::fresh();
    let keep = folder.write("keep", "");
    let volume = keep.parent().expect("a folder");
    let soon = unix_seconds() + 600;
    mount(volume, "1", &format!("rules:\n- operation: checkout\n  expires: {soon}\n"));
    let mesh = Mesh::new().await;
    let orders = mesh
        .pod("orders")
        .environment("OTEL_TRACES_SAMPLER_ARG", "0")
        .environment("THROUGHLINE_CONTROL_FILE", volume.join("control.yaml").display())
        .runs(answer(200, ""))
        .await;
    assert!(is_sampled(&orders, "checkout").await, "the first request already");
    assert!(!is_sampled(&orders, "refund").await);
    mount(volume, "2", "base_rate: 3\nrules: [{rate: 1}]\nmodes: off\n");
    let wrong = |text: &'static str| {
        move |line: &Value| line["error"].as_str().is_some_and(|error| error.contains(text))
    };
    for mistake in ["modes: want", "base_rate=\"3\": want a ratio", "rules[0]: want an operation"] {
        let line = orders.sidecar.logged(wrong(mistake)).await;
        assert_eq!(line["message"], "the control file is wrong: the last good one holds");
    }
    assert!(is_sampled(&orders, "checkout").await, "the last good one holds");
    mount(volume, "3", "mode: off\n");
    orders
        .sidecar
        .books_when("off", |books| books.sum("throughline_tracing_mode", &[("mode", "off")]) == 1)
        .await;
    std::fs::remove_file(volume.join("control.yaml")).expect("removed");
    orders.sidecar.logged(wrong("want a readable, regular file")).await;
    assert_eq!(status(&orders).await["mode"], "off");
    // A call wins over the file.
    call(&orders, "mode", json!({"mode": "hybrid"})).await;
    assert_eq!(status(&orders).await["mode"], "hybrid");
    mesh.end([orders]).await;
}

#[tokio::test]
async fn a_rule_ends_although_nobody_calls_and_a_status_is_a_document() {
    let mesh = Mesh::new().await;
    let orders = pod(&mesh).await;
    call(&orders, "enable", json!({"source_id": "checkout", "rate": 1, "duration": "1h"})).await;
    let mut document = status(&orders).await;
    assert_eq!(document["rules"][0]["operation"], "checkout");
    document["rules"][0]["expires"] = json!(unix_seconds() + 3);
    let folder = Folder::fresh();
    let file = folder.write("control.json", document.to_string());
    let other = mesh.pod("other").flag("control-file", file.display()).runs(answer(200, "")).await;
    assert_eq!(status(&other).await["base_rate"], 0, "as the other one shows it");
    assert!(is_sampled(&other, "checkout").await);
    eventually("the end of the rule", || async { (!is_sampled(&other, "checkout").await).then_some(()) })
        .await;
    assert_eq!(status(&other).await["rules"], json!([]));
    assert!(is_sampled(&orders, "checkout").await, "here it has an hour");
    mesh.end([orders, other]).await;
}

#[tokio::test]
async fn whoever_guesses_tokens_is_slowed_down_and_does_not_keep_others_waiting() {
    let folder = Folder::fresh();
    let token = folder.write("token", "s3cret\n");
    let mesh = Mesh::new().await;
    let orders = mesh.pod("orders").flag("admin-token-file", token.display()).runs(answer(200, "")).await;
    let wish = json!({"operation": "checkout"}).to_string();
    let url = orders.sidecar.admin_url("/api/tracing/enable");
    let guess = || Ask::post(&url, wish.clone()).header("authorization", "Bearer guess");
    let mut told = Vec::new();
    for _ in 0..60 {
        told.push(guess().send().await.status);
    }
    assert!(told.iter().all(|status| [401, 429].contains(status)), "{told:?}");
    assert!(told.contains(&429), "sixty guesses at once were all looked at");
    assert_eq!(Ask::post(&url, wish.clone()).send().await.status, 200, "who needs no token does not wait");
    assert_eq!(status(&orders).await["rules"].as_array().map(Vec::len), Some(1));
    // The scheme's name is no matter of letters (RFC 9110 §11.1); the bucket fills again by itself.
    let lower = || Ask::post(&url, wish.clone()).header("authorization", "bearer s3cret");
    eventually("a token that is right", || async { (lower().send().await.status == 200).then_some(()) })
        .await;
    mesh.end([orders]).await;
}
