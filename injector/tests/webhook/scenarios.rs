//! Reviews of any kind against the shipped binary, before an API of some lines.

#![expect(clippy::print_stdout, reason = "what was measured is said")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use throughline_tests::collector::Collector;
use throughline_tests::span::{Kind, SpanStatus};
use throughline_tests::wait::eventually;

use crate::fake::Fake;
use crate::support::{Caller, Folder, Injector, posted, review, trust};

const POD: &str = r#"{"metadata":{"generateName":"web-","labels":{"app":"web"}},"spec":{"containers":[{"name":"web","image":"web:1","ports":[{"name":"http","containerPort":8080}]}]}}"#;

struct Stage {
    fake: Fake,
    injector: Injector,
    _folder: Folder,
}

async fn stage(name: &str, flags: &[(&str, &str)]) -> Stage {
    let folder = Folder::new(name);
    let fake = Fake::start().await;
    let injector = Injector::start(&folder, "one", &fake.kubeconfig(&folder), flags).await;
    Stage { fake, injector, _folder: folder }
}

impl Stage {
    async fn caller(&self) -> Caller {
        Caller::connect(&trust(&self.fake.authority()), self.injector.listen).await
    }
}

fn patched(answer: &Value, pod: &str) -> Value {
    let patch: ByteString = serde_json::from_value(answer["response"]["patch"].clone()).unwrap();
    let operations: Vec<Value> = serde_json::from_slice(&patch.0).unwrap();
    let mut pod = serde_json::from_str(pod).unwrap();
    throughline_injector::patch::apply(&mut pod, &operations).unwrap();
    pod
}

fn warning(answer: &Value) -> &str {
    answer["response"]["warnings"][0].as_str().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_a_labelled_namespace_gets_its_sidecar_and_others_are_left_alone() {
    let stage = stage("ordinary", &[]).await;
    let mut caller = stage.caller().await;
    let (status, answer) = caller.review(review("u-1", "shop", POD)).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(answer["response"]["uid"], "u-1");
    assert_eq!(answer["response"]["allowed"], true);
    let pod = patched(&answer, POD);
    assert_eq!(pod["spec"]["initContainers"][1]["name"], "throughline-proxy");
    // Again, as under `reinvocationPolicy: IfNeeded`.
    let (_, again) = caller.review(review("u-2", "shop", &pod.to_string())).await;
    assert_eq!(again["response"], json!({"uid": "u-2", "allowed": true}));
    let (_, other) = caller.review(review("u-3", "plain", POD)).await;
    assert_eq!(other["response"], json!({"uid": "u-3", "allowed": true}));
    let numbers = stage.injector.numbers().await;
    let count =
        |labels: &str| numbers.get(&format!("throughline_injector_admissions_total{{{labels}}}")).copied();
    assert_eq!(count(r#"decision="injected",reason="native",mode="sidecar""#), Some(1.0));
    assert_eq!(count(r#"decision="skipped",reason="already-injected",mode="none""#), Some(1.0));
    assert_eq!(count(r#"decision="skipped",reason="not-labelled",mode="none""#), Some(1.0));
    assert_eq!(stage.fake.caught_bundles(), [stage.fake.authority(), stage.fake.authority()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_is_admitted_or_told_what_is_wanted() {
    let stage = stage("hostile", &[]).await;
    let mut caller = stage.caller().await;

    let large = format!(r#"{{"metadata":{{"annotations":{{"x":"{}"}}}}}}"#, "x".repeat(10 << 20));
    let (status, answer) = caller.review(review("u-large", "shop", &large)).await;
    assert_eq!((status, &answer["response"]["uid"]), (StatusCode::OK, &json!("u-large")));
    assert_eq!(answer["response"]["allowed"], true);
    assert!(warning(&answer).contains("larger than 4 MiB"), "{answer}");

    let deep = format!(r#"{{"spec":{}{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
    let (status, answer) = caller.review(review("u-deep", "shop", &deep)).await;
    assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(true)));
    assert!(warning(&answer).contains("could not be read"), "{answer}");

    for (what, pod) in [
        ("no pod", "null"),
        ("a list", "[]"),
        ("text in the place of containers", r#"{"spec":{"containers":"x"}}"#),
        ("numbers as labels", r#"{"metadata":{"labels":{"a":1}},"spec":{"containers":[{"name":"a"}]}}"#),
        ("ports that are none", r#"{"spec":{"containers":[{"name":"a","ports":"x"}]}}"#),
        ("a port beyond all", r#"{"spec":{"containers":[{"name":"a","ports":[{"containerPort":1e400}]}]}}"#),
    ] {
        let (status, answer) = caller.review(review("u-odd", "shop", pod)).await;
        assert_eq!(status, StatusCode::OK, "{what}");
        assert_eq!(answer["response"]["allowed"], true, "{what}");
        assert_eq!(answer["response"].get("patch"), None, "{what}: {answer}");
        assert!(warning(&answer).contains("not injected"), "{what}: {answer}");
    }

    // A namespace that is a path leads nowhere.
    let (_, answer) = caller.review(review("u-path", "../../secrets", POD)).await;
    assert!(warning(&answer).contains("is no name"), "{answer}");
    assert!(stage.fake.asked().iter().all(|asked| !asked.contains("..")));

    // What is refused unread costs its connection.
    let mut caller = stage.caller().await;
    let (status, body) = caller.send(posted("text/plain", review("u", "shop", POD))).await;
    assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert!(String::from_utf8_lossy(&body).contains("want an AdmissionReview as application/json"));
    for body in ["", "not JSON", "{}", r#"{"request":{}}"#, "[[[[[["] {
        let (status, answer) = stage.caller().await.review(body.to_owned()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(answer.as_str().unwrap().contains("want an AdmissionReview"), "{answer}");
    }
    // Not even a review as a whole, but it has a uid: whoever waits for it gets a yes.
    let cut = review("u-cut", "shop", POD);
    let (status, answer) = stage.caller().await.review(cut[..cut.len() - 40].to_owned()).await;
    assert_eq!((status, &answer["response"]["uid"]), (StatusCode::OK, &json!("u-cut")));

    let get = Request::get("/mutate").header("host", "x").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(stage.caller().await.send(get).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let elsewhere = Request::post("/").header("host", "x").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(stage.caller().await.send(elsewhere).await.0, StatusCode::NOT_FOUND);
    let (_, answer) = stage.caller().await.review(review("u-after", "shop", POD)).await;
    assert!(answer["response"].get("patch").is_some(), "it goes on as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_reviews_at_once_are_answered_within_bounded_memory() {
    let stage = stage("many", &[]).await;
    let before = stage.injector.peak_kib();
    let trusted = trust(&stage.fake.authority());
    // 300 KB of the kind that grows when it is parsed: 150 MB in all.
    let pod = format!(
        r#"{{"metadata":{{"labels":{{"app":"web"}}}},"more":[{}0],"spec":{{"containers":[{{"name":"web","image":"web:1"}}]}}}}"#,
        "[],".repeat(100_000)
    );
    let body = Bytes::from(review("u-many", "shop", &pod));
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let (trusted, body, to) = (trusted.clone(), body.clone(), stage.injector.listen);
        all.spawn(async move { Caller::connect(&trusted, to).await.review(body).await });
    }
    let (mut injected, mut unread) = (0, 0);
    while let Some(answered) = all.join_next().await {
        let (status, answer) = answered.unwrap();
        assert_eq!(status, StatusCode::OK);
        assert_eq!(
            (&answer["response"]["allowed"], &answer["response"]["uid"]),
            (&json!(true), &json!("u-many"))
        );
        match answer["response"].get("patch") {
            Some(_) => injected += 1,
            None => {
                // Why is said: its turn, the API's answer, or on a busy machine its bytes did not come in time.
                let told = [
                    "too many reviews at once",
                    "it took more than 2 seconds",
                    "did not arrive within 10 seconds",
                ];
                assert!(told.iter().any(|why| warning(&answer).contains(why)), "{answer}");
                unread += 1;
            }
        }
    }
    let peak = stage.injector.peak_kib();
    println!("{injected} injected, {unread} admitted unread; memory rose from {before} to {peak} KiB");
    assert!(injected > 0);
    assert!(peak < 256 * 1024, "{peak} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_not_understood_leaves_an_event() {
    let stage = stage("event", &[]).await;
    let mut caller = stage.caller().await;
    let pod = r#"{"metadata":{"generateName":"web-","annotations":{"throughline.dev/mode":"sidekick"},"ownerReferences":[{"kind":"ReplicaSet","apiVersion":"apps/v1","name":"web-1","uid":"77"}]},"spec":{"containers":[{"name":"web"}]}}"#;
    let (_, answer) = caller.review(review("u", "shop", pod)).await;
    assert!(warning(&answer).contains("want sidecar, reverse, envoy-wasm or istio-wasm"), "{answer}");
    let event = eventually("an event", || async { stage.fake.events().first().cloned() }).await;
    assert_eq!(event["reason"], "NotInjected");
    assert_eq!(event["involvedObject"]["name"], "web-1");
    assert!(event["message"].as_str().unwrap().contains("sidekick"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_does_not_answer_keeps_no_pod_from_being_admitted() {
    let stage = stage("silent", &[]).await;
    let mut caller = stage.caller().await;
    stage.fake.forget("/api/v1/namespaces/shop");
    let (status, answer) = caller.review(review("u", "shop", POD)).await;
    assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(true)));
    assert!(warning(&answer).contains("namespace shop: there is no such object"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admission_is_a_trace_of_its_steps_under_its_callers_context() {
    let collector = Collector::start().await;
    let stage = stage("spans", &[("otel-exporter-otlp-endpoint", &collector.endpoint())]).await;
    let mut caller = stage.caller().await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let reverse = POD.replace(r#""labels""#, r#""annotations":{"throughline.dev/mode":"reverse"},"labels""#);
    let mut request = posted("application/json", review("u", "shop", &reverse));
    request.headers_mut().insert("traceparent", format!("00-{trace}-b7ad6b7169203331-01").parse().unwrap());
    caller.send(request).await;
    let spans = collector
        .spans_when("the trace of an admission", |spans| {
            spans.iter().any(|span| span.name == "admit" && span.trace == trace)
        })
        .await;
    let spans: Vec<_> = spans.into_iter().filter(|span| span.trace == trace).collect();
    let admit = spans.iter().find(|span| span.name == "admit").unwrap();
    assert_eq!((admit.kind, admit.parent.as_str()), (Kind::Server, "b7ad6b7169203331"));
    assert_eq!(admit["throughline.decision"], json!("injected"));
    let mut children: Vec<(&str, Kind)> = spans
        .iter()
        .filter(|span| span.parent == admit.id)
        .map(|span| (span.name.as_str(), span.kind))
        .collect();
    children.sort_by_key(|(name, _)| *name);
    assert_eq!(
        children,
        [
            ("K8s GET /api/v1/namespaces/{namespace}/services", Kind::Client),
            ("K8s GET /api/v1/namespaces/{name}", Kind::Client),
            ("build patch", Kind::Internal),
            ("decide", Kind::Internal),
            ("read review", Kind::Internal),
        ]
    );
    // What fails is recorded.
    let (_, _) = caller.review(review("u", "nowhere", POD)).await;
    let failed = |span: &throughline_tests::span::Span| {
        span.name == "K8s GET /api/v1/namespaces/{name}" && span.status == SpanStatus::Error
    };
    let spans = collector.spans_when("a failed call", |spans| spans.iter().any(failed)).await;
    let failed = spans.iter().find(|span| failed(span)).unwrap();
    assert_eq!(failed["error.type"], json!("not_found"));
    assert_eq!(failed["http.response.status_code"], json!(404));
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    for name in ["look at cluster", "look at certificates", "rotate", "repair caBundle", "reconcile"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
}

/// 50 pods a second, as a large rollout makes them; prints what an admission took, on the wire and back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a bench: run it alone"]
async fn bench_of_admissions() {
    let stage = stage("bench", &[]).await;
    let trusted = trust(&stage.fake.authority());
    let mut tasks = tokio::task::JoinSet::new();
    let (callers, seconds, rate) = (5u32, 20u32, 50u32);
    let cpu = stage.injector.cpu_ms();
    let began = Instant::now() + Duration::from_millis(500);
    for caller in 0..callers {
        let (trusted, to) = (trusted.clone(), stage.injector.listen);
        tasks.spawn(async move {
            let mut connection = Caller::connect(&trusted, to).await;
            let mut took = Vec::new();
            for n in 0..seconds * rate / callers {
                let due = began + Duration::from_secs(1) * (n * callers + caller) / rate;
                tokio::time::sleep_until(due.into()).await;
                let (status, answer) = connection.review(review("u", "shop", POD)).await;
                // From when it was due: a slow answer delays the next one, and that counts.
                took.push(due.elapsed());
                assert!(status.is_success() && answer["response"].get("patch").is_some());
            }
            took
        });
    }
    let mut all = Vec::new();
    while let Some(took) = tasks.join_next().await {
        all.extend(took.unwrap());
    }
    all.sort();
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    println!(
        "{} admissions at {rate} a second: p50 {:.2} ms, p99 {:.2} ms, worst {:.2} ms; {:.2} ms of CPU each, {} KiB at the most",
        all.len(),
        at(0.5),
        at(0.99),
        at(1.0),
        (stage.injector.cpu_ms() - cpu) / all.len() as f64,
        stage.injector.peak_kib()
    );
    assert!(at(0.99) < 20.0, "p99 {:.2} ms", at(0.99));
}
