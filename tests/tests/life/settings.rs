//! Settings: flags over environment over file; all mistakes at once, each with what would be right.

use throughline_tests::pki::Folder;
use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;

/// One mistake: the environment variable, its value, and words that the message must hold beside both.
const MISTAKES: &[(&str, &str, &[&str])] = &[
    ("THROUGHLINE_INBOUND_LISTEN", "x", &["want", "127.0.0.1:8080"]),
    ("THROUGHLINE_INBOUND_LISTEN", "127.0.0.1:65536", &["want"]),
    ("THROUGHLINE_INBOUND_UPSTREAM", "no port", &["want"]),
    ("THROUGHLINE_OUTBOUND_LISTEN", "0.0.0.0:0", &["loopback", "outbound-anywhere"]),
    ("THROUGHLINE_OUTBOUND_LISTEN", "[::]:0", &["loopback", "outbound-anywhere"]),
    ("THROUGHLINE_ADMIN_LISTEN", "localhost", &["want"]),
    ("THROUGHLINE_ACCESS_LOG", "file", &["stdout", "off"]),
    ("THROUGHLINE_CONNECT_TIMEOUT", "soon", &["want"]),
    ("THROUGHLINE_CONNECT_TIMEOUT", "-1", &["want"]),
    ("THROUGHLINE_ROUTES", "clusters/{id}", &["want"]),
    ("THROUGHLINE_ROUTES_MAX", "many", &["want"]),
    ("THROUGHLINE_OUTBOUND_ROUTES", "orders", &["want"]),
    ("THROUGHLINE_MESH_HOSTS", "10.0.0.0/99", &["want"]),
    ("THROUGHLINE_RESPONSE_HEADERS", "x-span", &["x-trace-id"]),
    ("THROUGHLINE_ROOT_UNSAMPLED", "loud", &["flag", "silent"]),
    ("THROUGHLINE_QUERY", "some", &["redacted", "off"]),
    ("THROUGHLINE_EGRESS_TRACEPARENT", "maybe", &["on", "off"]),
    ("OTEL_TRACES_SAMPLER", "sometimes", &["parentbased_traceidratio"]),
    ("OTEL_TRACES_EXPORTER", "zipkin", &["otlp", "console", "none"]),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", &["grpc", "http/protobuf"]),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", &["gzip", "none"]),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://x", &["want"]),
    ("OTEL_PROPAGATORS", "tracecontext,pigeon", &["b3multi"]),
];

/// Flags that make a sidecar which a row's variable can spoil.
fn plan() -> Plan {
    Plan::bare("mistaken")
        .environment("THROUGHLINE_ADMIN_LISTEN", "127.0.0.1:0")
        .environment("THROUGHLINE_OUTBOUND_LISTEN", "127.0.0.1:0")
}

fn check_named(stderr: &[String], name: &str, value: &str, words: &[&str]) {
    let start = format!("throughline-proxy: {name}=");
    let line = stderr.iter().find(|line| line.starts_with(&start) && line.contains(value));
    let line = line.unwrap_or_else(|| panic!("no line on {name}={value:?} in {stderr:#?}"));
    for word in words {
        assert!(line.contains(word), "{word:?} is missing in {line:?}");
    }
}

#[tokio::test]
async fn a_mistake_is_named_with_its_value_and_what_would_be_right() {
    for (name, value, words) in MISTAKES {
        let ended = plan().environment(name, value).argument("--check").ends().await;
        assert_eq!(ended.code, Some(2), "{name}={value:?}: {ended:#?}");
        check_named(&ended.stderr, name, value, words);
        assert!(ended.stdout.is_empty());
    }
    let started = plan().environment("THROUGHLINE_ROOT_UNSAMPLED", "loud").ends().await;
    assert_eq!(started.code, Some(2), "a start says the same: {started:#?}");
}

#[tokio::test]
async fn all_mistakes_are_reported_together_however_they_were_made() {
    let folder = Folder::fresh();
    let file = folder.write("settings.yaml", "access-log: file\nno-such-setting: 1\n");
    let ended = plan()
        .environment("OTEL_TRACES_EXPORTER", "zipkin")
        .environment("THROUGHLINE_OUTBOUND_LISTEN", "nowhere")
        .flag("inbound-listen", "x")
        .flag("config", file.display())
        .argument("--no-such-flag=1")
        .ends()
        .await;
    assert_eq!(ended.code, Some(2));
    check_named(&ended.stderr, "OTEL_TRACES_EXPORTER", "zipkin", &["console"]);
    check_named(&ended.stderr, "THROUGHLINE_OUTBOUND_LISTEN", "nowhere", &["want"]);
    check_named(&ended.stderr, "--inbound-listen", "x", &["want"]);
    let all = ended.stderr.join("\n");
    for word in ["access-log in", "settings.yaml", "no-such-setting", "--no-such-flag"] {
        assert!(all.contains(word), "{word:?} is missing in {all}");
    }
}

#[tokio::test]
async fn an_unreadable_file_is_named() {
    let folder = Folder::fresh();
    let rows = [
        (folder.file("missing.yaml"), "missing.yaml"),
        (folder.write("broken.yaml", "a: [1"), "broken.yaml"),
        (folder.write("list.yaml", "- 1\n- 2\n"), "list.yaml"),
        (folder.write("binary.yaml", [0xff, 0xfe, 0]), "binary.yaml"),
    ];
    for (path, name) in rows {
        let ended = plan().flag("config", path.display()).ends().await;
        assert_eq!(ended.code, Some(2), "{name}: {:#?}", ended.stderr);
        assert!(ended.stderr.iter().any(|line| line.contains(name)), "{:#?}", ended.stderr);
    }
}

#[tokio::test]
async fn an_inbound_side_needs_its_upstream() {
    let ended = plan().flag("inbound-listen", "127.0.0.1:0").ends().await;
    assert_eq!(ended.code, Some(2), "{:#?}", ended.stderr);
    let all = ended.stderr.join("\n");
    assert!(all.to_ascii_lowercase().replace('_', "-").contains("inbound-upstream"), "{all}");
}

#[tokio::test]
async fn a_certificate_that_is_none_is_named() {
    let folder = Folder::fresh();
    let rows = [folder.write("ca.pem", "no certificate"), folder.file("missing.pem")];
    for path in rows {
        let ended = plan()
            .environment("OTEL_EXPORTER_OTLP_ENDPOINT", "https://127.0.0.1:4317")
            .environment("OTEL_EXPORTER_OTLP_CERTIFICATE", path.display())
            .ends()
            .await;
        assert_eq!((ended.code, ended.stderr.len()), (Some(2), 1), "{:#?}", ended.stderr);
        let path = path.display().to_string();
        check_named(&ended.stderr, "OTEL_EXPORTER_OTLP_CERTIFICATE", &path, &["want"]);
    }
}

/// OpenTelemetry's own rule for its numbers ("Parsing empty value, numeric value").
#[tokio::test]
async fn a_bad_number_of_opentelemetrys_is_a_warning_and_the_default() {
    for (name, value, want) in [
        ("OTEL_TRACES_SAMPLER_ARG", "2", "want a ratio from 0 to 1"),
        ("OTEL_TRACES_SAMPLER_ARG", "NaN", "want a ratio from 0 to 1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "want"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1", "want"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "want"),
    ] {
        let plan = plan().environment("OTEL_TRACES_EXPORTER", "none");
        let sidecar = plan.environment(name, value).start().await;
        let said = format!("{name}=\"{value}\"");
        let warned = |line: &serde_json::Value| {
            let message = line["message"].as_str().unwrap_or("");
            line["level"] == "warn" && message.contains(&said) && message.contains(want)
        };
        sidecar.logged(warned).await;
        sidecar.end().await;
    }
}

/// Which of two answers a caller sees in the response headers tells which setting won.
#[tokio::test]
async fn flags_win_over_environment_and_environment_over_the_file() {
    let folder = Folder::fresh();
    let file = folder.write("settings.yaml", "otel-service-name: from-file\naccess-log: stdout\n");
    let rows = [
        (None, None, "from-file"),
        (Some("from-env"), None, "from-env"),
        (Some("e"), Some("from-flag"), "from-flag"),
    ];
    for (environment, flag, wanted) in rows {
        let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
        let plan = Plan::before("unused", app.address)
            .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
            .environment("OTEL_SERVICE_NAME", environment.unwrap_or(""))
            .flag("config", file.display());
        let plan = match flag {
            None => plan,
            Some(flag) => plan.argument(format!("--otel-service-name={flag}")),
        };
        let sidecar = plan.start().await;
        Ask::get(sidecar.url("/")).send().await;
        sidecar.access_line(|_| true).await;
        assert_eq!(collector.spans(1).await[0].service(), wanted);
        sidecar.end().await;
    }
}

#[tokio::test]
async fn every_setting_of_the_file_has_its_key() {
    let folder = Folder::fresh();
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let text = format!(
        "inbound-listen: 127.0.0.1:0\ninbound-upstream: {}\nadmin-listen: 127.0.0.1:0\nconnect-timeout: 1234\n\
         routes:\n  - /users/{{name}}\n  - /static/*\notel-exporter-otlp-endpoint: {}\notel-bsp-schedule-delay: 50\n\
         otel-resource-attributes: service.name=orders\n",
        app.address,
        collector.endpoint()
    );
    let file = folder.write("settings.yaml", text);
    let sidecar = Plan::bare("orders").flag("config", file.display()).start().await;
    Ask::get(sidecar.url("/users/ada")).send().await;
    let span = collector.spans(1).await.remove(0);
    assert_eq!((span.service(), span.name.as_str()), ("orders", "GET /users/{name}"));
    sidecar.end().await;
}

#[tokio::test]
async fn other_common_names_are_understood() {
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let plan = |name: &str, value: &str| {
        Plan::before("orders", app.address)
            .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
            .environment(name, value)
    };
    let none = plan("OTEL_TRACE_SAMPLING_RATE", "0").start().await;
    let never = plan("OTEL_TRACE_SAMPLER", "always_off").start().await;
    let off = plan("TRACING_ENABLED", "false").start().await;
    for sidecar in [none, never, off] {
        assert_eq!(Ask::get(sidecar.url("/")).send().await.status, 200);
        sidecar.end().await;
    }
    let on = plan("TRACING_ENABLED", "true").start().await;
    Ask::get(on.url("/on")).send().await;
    on.end().await;
    assert_eq!(the_only(&collector.accepted(), |_| true)["url.path"], "/on");
}

#[tokio::test]
async fn a_check_says_what_a_start_would_say() {
    let good = plan().argument("--check").ends().await;
    assert_eq!((good.code, good.stdout.len(), good.stderr.len()), (Some(0), 1, 0), "{good:#?}");
    let bad = plan().environment("OTEL_TRACES_EXPORTER", "zipkin").argument("--check").ends().await;
    assert_eq!(bad.code, Some(2));
    check_named(&bad.stderr, "OTEL_TRACES_EXPORTER", "zipkin", &["console"]);
}

#[tokio::test]
async fn help_and_the_reference_come_from_the_one_table() {
    let help = Plan::bare("help").argument("--help").ends().await;
    let reference = Plan::bare("reference").argument("--print-reference").ends().await;
    let version = Plan::bare("version").argument("--version").ends().await;
    assert_eq!((help.code, reference.code, version.code), (Some(0), Some(0), Some(0)));
    assert!(version.stdout.join("\n").contains("throughline-proxy"));
    let (help, reference) = (help.stdout.join("\n"), reference.stdout.join("\n"));
    let flags: Vec<_> = help
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("--"))
        .map(|word| word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()))
        .filter(|word| word.len() > 2)
        .collect();
    for flag in
        ["inbound-listen", "outbound-routes", "stall-timeout", "otel-traces-sampler-arg", "drain-timeout"]
    {
        assert!(flags.contains(&flag), "{flag} is missing in {help}");
        assert!(reference.contains(flag), "{flag} is missing in the reference");
    }
    for (name, _, _) in MISTAKES {
        assert!(reference.contains(name), "{name} is missing in the reference");
    }
}
