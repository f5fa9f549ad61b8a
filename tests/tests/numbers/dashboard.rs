//! The dashboard and the alerts name only what is there, and a real Prometheus that scraped real sidecars has an
//! answer to each of their queries.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use throughline_tests::prelude::*;
use throughline_tests::service::response;
use throughline_tests::wire::Nobody;

use crate::prometheus::Prometheus;
use crate::{file, listed, metric_of};

/// A query, and where it stands.
#[derive(Debug)]
struct Query {
    place: String,
    text: String,
}

fn of_dashboard() -> Vec<Query> {
    let dashboard: Value = serde_json::from_str(&file("deploy/grafana/throughline.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let queries: Vec<_> = panels
        .iter()
        .flat_map(|panel| {
            let targets = panel["targets"].as_array().cloned().unwrap_or_default();
            targets.into_iter().map(move |target| Query {
                place: format!("panel {} {}", panel["title"], target["refId"]),
                text: target["expr"].as_str().expect("a query").to_owned(),
            })
        })
        .collect();
    assert!(queries.len() > 40, "{queries:#?}");
    queries
}

fn of_rules() -> Vec<Query> {
    let rules: serde_yaml::Value = serde_yaml::from_str(&file("deploy/grafana/alerts.yaml")).expect("YAML");
    let groups = rules["groups"].as_sequence().expect("groups");
    let all = groups.iter().flat_map(|group| group["rules"].as_sequence().expect("rules"));
    let queries: Vec<_> = all
        .map(|rule| {
            let name = rule["alert"].as_str().or(rule["record"].as_str()).expect("a name");
            if rule["alert"].is_string() {
                for key in ["summary", "action"] {
                    assert!(rule["annotations"][key].is_string(), "{name} has no {key}");
                }
            }
            Query { place: name.to_owned(), text: rule["expr"].as_str().expect("a query").trim().to_owned() }
        })
        .collect();
    assert!(queries.len() >= 10, "{queries:#?}");
    queries
}

/// Names of series, and of labels, that a query has.
fn names(query: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    const WORDS: [&str; 12] = [
        "and",
        "or",
        "unless",
        "by",
        "without",
        "on",
        "ignoring",
        "group_left",
        "group_right",
        "bool",
        "offset",
        "inf",
    ];
    const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let (mut series, mut labels) = (BTreeSet::new(), BTreeSet::new());
    let (mut rest, mut in_braces, mut in_labels, mut last) = (query, false, false, String::new());
    while let Some(first) = rest.chars().next() {
        if first == '"' {
            let end = rest[1..].find('"').expect("a string ends") + 2;
            rest = &rest[end..];
        } else if first == '[' {
            rest = &rest[rest.find(']').expect("a range ends")..];
        } else if is_name(first) {
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            rest = after;
            let is_function = after.trim_start().starts_with('(');
            if in_braces || in_labels {
                labels.insert(word.to_owned());
            } else if !first.is_ascii_digit() && !WORDS.contains(&word) && !is_function {
                // `sum by (…) (…)`: an operator without its parenthesis yet.
                if !["sum", "max", "avg", "count"].contains(&word) {
                    series.insert(word.to_owned());
                }
            }
            last = word.to_owned();
        } else {
            match first {
                '{' => in_braces = true,
                '}' => in_braces = false,
                '(' => in_labels = GROUPING.contains(&last.as_str()),
                ')' => in_labels = false,
                _ => {}
            }
            if !first.is_whitespace() {
                last.clear();
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    (series, labels)
}

#[test]
fn names_are_found_in_queries() {
    let query =
        "sum by (job, le) (rate(a_total{b=~\"c d\",e!=\"f\"}[5m])) / on (g) h:i > 0 unless j or vector(0)";
    let (series, labels) = names(query);
    assert_eq!(series.into_iter().collect::<Vec<_>>(), ["a_total", "h:i", "j"]);
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), ["b", "e", "g", "job", "le"]);
}

#[test]
fn every_metric_and_label_of_a_panel_or_a_rule_is_on_the_reference_page() {
    let listed = listed();
    let rules = of_rules();
    let recorded: BTreeSet<&str> =
        rules.iter().map(|rule| rule.place.as_str()).filter(|name| name.contains(':')).collect();
    for query in of_dashboard().iter().chain(&rules) {
        let (series, labels) = names(&query.text);
        assert!(!series.is_empty(), "{query:?}");
        let mut known: BTreeSet<&str> = ["job", "instance"].into();
        for name in &series {
            if recorded.contains(name.as_str()) {
                known.insert("route");
                continue;
            }
            let (_, row) =
                metric_of(&listed, name).unwrap_or_else(|| panic!("{name} is no metric: {query:?}"));
            known.extend(row.labels.iter().map(String::as_str));
            known.extend(name.ends_with("_bucket").then_some("le"));
        }
        for label in &labels {
            assert!(known.contains(label.as_str()), "{label} is no label of {series:?}: {query:?}");
        }
    }
}

#[test]
fn the_dashboard_can_be_provisioned() {
    let dashboard: Value = serde_json::from_str(&file("deploy/grafana/throughline.json")).expect("JSON");
    assert_eq!((&dashboard["uid"], &dashboard["title"]), (&"throughline".into(), &"Throughline".into()));
    assert!(dashboard.get("id").is_none() && dashboard.get("__inputs").is_none());
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let named: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().expect("a name")).collect();
    assert_eq!(named, ["datasource", "job", "instance"]);
    let mut ids = BTreeSet::new();
    let mut places: Vec<[u64; 4]> = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{} twice", panel["id"]);
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a place"));
        let overlaps = places.iter().any(|[a, b, c, d]| x < a + c && *a < x + w && y < b + d && *b < y + h);
        assert!(!overlaps && x + w <= 24, "{}", panel["title"]);
        places.push([x, y, w, h]);
        if panel["type"] != "row" {
            assert!(panel["description"].as_str().is_some_and(|text| text.len() > 20), "{}", panel["title"]);
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
        }
    }
}

#[test]
fn promtool_takes_the_rules() {
    let Some(promtool) = throughline_tests::judges::installed("promtool") else { return };
    let rules = throughline_tests::sidecar::workspace().join("deploy/grafana/alerts.yaml");
    let said =
        std::process::Command::new(promtool).args(["check", "rules"]).arg(rules).output().expect("it runs");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

/// Answers as the path says, and calls on the way what it is told to.
fn as_asked(next: String) -> Script {
    script(move |visit| {
        let next = next.clone();
        async move {
            let path = visit.request.uri().path().to_owned();
            let copying = if path == "/lost" { Copying::Nothing } else { Copying::Everything };
            let headers = copying.from(visit.request.headers());
            let mut ask = Ask::get(next);
            for (name, value) in &headers {
                ask = ask.header(name.as_str(), value.to_str().expect("text"));
            }
            visit.outbound.send(ask).await;
            response(path.trim_start_matches('/').parse().unwrap_or(200), "")
        }
    })
}

/// Three sidecars, with traffic until told to stop: one is well, one is in every kind of trouble but for a collector
/// that is away, which is the third's.
struct Shop {
    web: Arc<Pod>,
    orders: Arc<Pod>,
    lonely: Pod,
    stop: Arc<AtomicBool>,
    traffic: tokio::task::JoinHandle<()>,
    _open: Vec<Connection>,
    mesh: Mesh,
}

impl Shop {
    async fn opens() -> Shop {
        let mesh = Mesh::new().await;
        let stock = Service::playing(answer(200, "")).await;
        let orders = mesh.pod("orders").runs(as_asked(stock.url("/stock"))).await;
        // Its collector refuses everything, its mode is not the one that it was given, it adapts, and it is full.
        let refusing = Collector::start().await;
        refusing.always(Reaction::Code(3));
        let web = mesh
            .pod("web")
            .environment("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", refusing.endpoint())
            .environment("OTEL_TRACES_SAMPLER_ARG", "0")
            .flag("adaptive-rate", "0.9")
            .flag("adaptive-window", "4000")
            .flag("mode", "full")
            .flag("connections-max", "10")
            .runs(as_asked(orders.url("/items/7")))
            .await;
        let nobody = Nobody::listens();
        let away = format!("http://{}", nobody.address);
        let lonely = mesh.pod("lonely").environment("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", away);
        let lonely = lonely.runs(answer(200, "")).await;
        Ask::get(lonely.url("/")).send().await;
        tokio::spawn(async move {
            let _refusing = refusing;
            std::future::pending::<()>().await;
        });
        let call = |path: &str, wish: &str| Ask::post(web.sidecar.admin_url(path), wish.to_owned()).send();
        assert_eq!(call("/api/tracing/mode", "{\"mode\":\"hybrid\"}").await.status, 200);
        assert_eq!(call("/api/tracing/enable", "{\"operation\":\"checkout\",\"rate\":1}").await.status, 200);
        let mut open = Vec::new();
        for _ in 0..9 {
            let mut connection =
                Connection::to(web.sidecar.inbound(), Protocol::H1).await.expect("a connection");
            connection.ask(Ask::get(web.url("/200"))).await;
            open.push(connection);
        }
        let (web, orders, stop) = (Arc::new(web), Arc::new(orders), Arc::new(AtomicBool::new(false)));
        let (caller, over) = (Arc::clone(&web), Arc::clone(&stop));
        let mut connection = open.pop().expect("nine");
        let traffic = tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                for (path, operation) in [("/200", "checkout"), ("/lost", "browse"), ("/500", "browse")] {
                    let ask = Ask::get(caller.url(path)).header("x-operation-name", operation);
                    connection.ask(ask.header("b3", "nonsense").header("tracestate", "=")).await;
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        Shop { web, orders, lonely, stop, traffic, _open: open, mesh }
    }

    async fn closes(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.traffic.await.expect("the traffic went well");
        drop(self._open);
        let pods = [self.web, self.orders].map(|pod| Arc::into_inner(pod).expect("nobody else has it"));
        self.mesh.end(pods.into_iter().chain([self.lonely])).await;
    }
}

/// Grafana's variables, as it replaces them.
fn filled(query: &str) -> String {
    query.replace("$__rate_interval", "30s").replace("$job", ".*").replace("$instance", ".*")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus_answers_every_query() {
    let shop = Shop::opens().await;
    let targets = [&*shop.web, &shop.orders, &shop.lonely].map(|pod| pod.sidecar.admin());
    let Some(prometheus) = Prometheus::scraping(&targets).await else { return shop.closes().await };
    eventually("two scrapes of both", || async {
        let twice = prometheus.query("min(count_over_time(throughline_build_info[1m])) >= 4").await;
        (!twice.is_empty()).then_some(())
    })
    .await;
    // What no traffic here makes: events that can't be read.
    const NONE: [&str; 1] = ["throughline_events_untouched_total"];
    for query in of_dashboard() {
        if NONE.iter().any(|name| query.text.contains(name)) {
            prometheus.query(&filled(&query.text)).await;
            continue;
        }
        let text = filled(&query.text);
        eventually(&format!("a number for {}: {text}", query.place), || async {
            let result = prometheus.query(&text).await;
            let mut numbers = result.iter().filter_map(|row| row["value"][1].as_str()?.parse::<f64>().ok());
            numbers.any(|number| !number.is_nan()).then_some(())
        })
        .await;
    }
    // The trouble of `web` is what the alerts are about; a short window in place of the long ones.
    for rule in of_rules() {
        let text = rule.text.replace("[5m]", "[30s]").replace("[10m]", "[30s]").replace("[1h]", "[2s]");
        match rule.place.as_str() {
            // Nothing is wrong with the books, and the names are few.
            "ThroughlineBooksDoNotBalance" | "ThroughlineSeriesOverBound" => {
                let result = prometheus.query(&text).await;
                assert!(result.is_empty(), "{}: {result:?}\n{text}", rule.place);
            }
            _ => {
                eventually(&format!("a series of {}: {text}", rule.place), || async {
                    (!prometheus.query(&text).await.is_empty()).then_some(())
                })
                .await;
            }
        }
    }
    for rule in prometheus.rules().await {
        assert!(rule["health"] != "err", "{rule}");
    }
    let exemplars = prometheus.exemplars("http_server_request_duration_seconds_bucket").await;
    let trace = &exemplars.first().expect("exemplars")["exemplars"][0]["labels"]["trace_id"];
    assert_eq!(trace.as_str().map(str::len), Some(32), "{exemplars:?}");
    shop.closes().await;
}
