//! What `deploy/istio/` and docs/envoy.md give an Envoy, tried on a real one: the patches are lifted out of the manifests and put where
//! istiod and its agent would put them. No Istio runs here: what these two do is played, as their source says it.

use serde_json::{Map, Value, json};
use throughline_tests::envoy::{self, Bootstrap, module};
use throughline_tests::pki::Folder;
use throughline_tests::prelude::*;
use throughline_tests::sidecar::{Plan, workspace};

const CLUSTER: &str = "outbound|4317||otel-collector.observability.svc.cluster.local";
const PUSH: &str = r#"{"subscription":"projects\/shop\/subscriptions\/orders","message":{"data":"e30=","attributes":{"ce-specversion":"1.0","ce-id":"1","ce-source":"/shop","ce-type":"order.placed","googclient_traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},"messageId":"1"}}"#;

/// The documents of a manifest.
fn documents(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(workspace().join("deploy/istio").join(file)).expect(file);
    text.split("\n---\n").map(|one| serde_yaml::from_str(one).expect("YAML")).collect()
}

/// The value of a patch.
fn patch(file: &str, apply_to: &str, context: &str) -> Value {
    let [filter] = &documents(file)[..] else { panic!("{file}: one document") };
    let patches = filter["spec"]["configPatches"].as_array().expect("a list");
    let wanted = |one: &&Value| one["applyTo"] == apply_to && one["match"]["context"] == context;
    patches.iter().find(wanted).expect("a patch")["patch"]["value"].clone()
}

fn context(side: &str) -> String {
    format!("SIDECAR_{}", side.to_uppercase())
}

/// What Istio's agent makes of an extension: the module is a file by then, and its own variables are taken out.
fn fetched(mut extension: Value) -> Value {
    let vm = &mut extension["typed_config"]["config"]["vm_config"];
    assert!(vm["code"]["remote"]["http_uri"]["uri"].as_str().expect("a place").starts_with("oci://"));
    vm["code"] = json!({"local": {"filename": module().display().to_string()}});
    let variables = vm["environment_variables"]["key_values"].as_object_mut().expect("variables");
    variables.retain(|name, _| !name.starts_with("ISTIO_META_"));
    variables.insert("OTEL_BSP_SCHEDULE_DELAY".to_owned(), json!("50"));
    extension
}

/// What the agent gives Envoy in the place of a module that it could not fetch, unless the policy is FAIL_OPEN.
fn denying(extension: &Value) -> Value {
    let rbac = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    json!({"name": extension["name"], "typed_config": {"@type": rbac, "rules": {}}})
}

/// An Envoy with the collector's cluster as Istio names it, and without the filter.
fn istio(orders: &Service, collector: &Collector) -> Bootstrap {
    let plan = Plan::before("orders", orders.address)
        .on(Host::Envoy)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint());
    let mut bootstrap = Bootstrap::of(&plan).without_filter();
    let metadata = json!({"WORKLOAD_NAME": "orders-v1", "NAMESPACE": "shop"});
    bootstrap.root["node"] = json!({"id": "sidecar~1", "cluster": "orders.shop", "metadata": metadata});
    let cluster = bootstrap.cluster("otlp");
    cluster["name"] = json!(CLUSTER);
    cluster["load_assignment"]["cluster_name"] = json!(CLUSTER);
    bootstrap
}

fn insert_first(bootstrap: &mut Bootstrap, side: &str, filter: Value) {
    bootstrap.http(side)["http_filters"].as_array_mut().expect("a list").insert(0, filter);
}

/// The filters as the manifest has them, found by a file in the place of istiod's stream.
fn discovered(bootstrap: &mut Bootstrap, folder: &Folder, deliver: impl Fn(Value) -> Value) {
    for side in bootstrap.sides() {
        let mut filter = patch("filter.yaml", "HTTP_FILTER", &context(&side));
        let extension = deliver(patch("filter.yaml", "EXTENSION_CONFIG", &context(&side)));
        assert_eq!(extension["name"], filter["name"], "the name by which the extension is found");
        let mut resource = extension;
        resource["@type"] = json!("type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig");
        let answer = json!({"version_info": "1", "resources": [resource]});
        let file = folder.write(&format!("{side}.json"), answer.to_string());
        filter["config_discovery"]["config_source"] =
            json!({"path_config_source": {"path": file}, "resource_api_version": "V3"});
        insert_first(bootstrap, &side, filter);
    }
}

#[tokio::test]
async fn the_filter_of_the_manifest_traces_both_sides_and_reads_a_push() {
    if !envoy::is_here() {
        return;
    }
    let (folder, collector) = (Folder::fresh(), Collector::start().await);
    let stock = Service::playing(answer(200, "12")).await;
    let orders = Service::playing(calling(stock.url("/items"), Copying::Everything)).await;
    let mut bootstrap = istio(&orders, &collector);
    discovered(&mut bootstrap, &folder, fetched);
    let [tags] = &documents("stats-tags.yaml")[..] else { panic!("one document") };
    let custom: Map<String, Value> =
        serde_json::from_str(tags["data"]["custom_bootstrap.json"].as_str().expect("a text")).expect("JSON");
    bootstrap.root.as_object_mut().expect("a bootstrap").extend(custom);
    let sidecar = bootstrap.start("orders").await;
    orders.outbound.is_at(sidecar.outbound());

    let ask = Ask::post(sidecar.url("/push"), PUSH).header("content-type", "application/json");
    assert_eq!(ask.header("tracestate", "==").send().await.status, 200);
    let spans = collector.spans(2).await;
    let consumer = the_only(&spans, |span| span.kind == Kind::Consumer);
    let client = the_only(&spans, |span| span.kind == Kind::Client);
    assert_eq!(
        consumer.trace, "4bf92f3577b34da6a3ce929d0e0e4736",
        "the producer's, which only the body knows"
    );
    assert_eq!((&client.trace, &client.parent), (&consumer.trace, &consumer.id));
    assert_eq!(consumer.service(), "orders-v1", "named by its workload");
    assert_eq!(consumer.resource["service.namespace"], "shop");

    // A tail of a name is a label, by the tags of the ConfigMap.
    let refused = Ask::get(sidecar.url("/")).header("traceparent", "00-nonsense").send().await;
    assert_eq!(refused.status, 200);
    let label = [("header", "traceparent")];
    let counted = |books: &Books| books.sum("throughline_context_invalid_total", &label) >= 1;
    sidecar.books_when("a labelled counter", counted).await;
    sidecar.end().await;
}

#[tokio::test]
async fn a_module_that_cannot_be_had_costs_spans_and_no_request() {
    if !envoy::is_here() {
        return;
    }
    let (folder, collector) = (Folder::fresh(), Collector::start().await);
    let orders = Service::playing(answer(200, "made")).await;
    let mut bootstrap = istio(&orders, &collector);
    discovered(&mut bootstrap, &folder, |extension| denying(&extension));
    let sidecar = bootstrap.start("orders").await;
    assert_eq!(Ask::get(sidecar.url("/")).send().await.text(), "made");
    drop(sidecar);

    // The same where Envoy would take what the agent gives it: this is what the manifest is for.
    let mut bootstrap = istio(&orders, &collector);
    discovered(&mut bootstrap, &folder, |extension| denying(&extension));
    for side in bootstrap.sides() {
        let discovery = &mut bootstrap.http(&side)["http_filters"][0]["config_discovery"];
        let rbac = json!("type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC");
        discovery["type_urls"].as_array_mut().expect("a list").push(rbac);
    }
    let sidecar = bootstrap.start("orders").await;
    assert_eq!(Ask::get(sidecar.url("/")).send().await.status, 403);
}

/// What istiod makes of a `WasmPlugin`.
fn plugin_of(plugin: &Value) -> Value {
    let spec = &plugin["spec"];
    let env = spec["vmConfig"]["env"].as_array().expect("a list");
    let inline = env.iter().filter(|row| row["value"].is_string());
    let values: Map<String, Value> =
        inline.map(|row| (row["name"].as_str().expect("a name").to_owned(), row["value"].clone())).collect();
    let keys: Vec<_> = env.iter().filter(|row| row["valueFrom"] == "HOST").map(|row| &row["name"]).collect();
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
        "config": {
            "name": plugin["metadata"]["name"],
            "root_id": spec["pluginName"],
            "failure_policy": spec["failStrategy"],
            "configuration": {
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": spec["pluginConfig"].to_string(),
            },
            "vm_config": {
                "runtime": "envoy.wasm.runtime.v8",
                "code": {"local": {"filename": module().display().to_string()}},
                "environment_variables": {"key_values": values, "host_env_keys": keys},
            },
        },
    })
}

#[tokio::test]
async fn what_the_manifests_tell_the_filter_is_taken_by_envoy_and_by_the_filter() {
    if !envoy::is_here() {
        return;
    }
    let collector = Collector::start().await;
    let orders = Service::playing(answer(200, "made")).await;
    let wasm_plugins = documents("wasmplugin/wasmplugin.yaml");
    for way in ["EnvoyFilter", "WasmPlugin"] {
        let mut bootstrap = istio(&orders, &collector);
        for (side, plugin) in bootstrap.sides().iter().zip(&wasm_plugins) {
            let by_filter = fetched(patch("filter.yaml", "EXTENSION_CONFIG", &context(side)));
            let config =
                if way == "EnvoyFilter" { by_filter["typed_config"].clone() } else { plugin_of(plugin) };
            insert_first(&mut bootstrap, side, json!({"name": "throughline", "typed_config": config}));
        }
        let ended = bootstrap.validate(way).await;
        assert_eq!(ended.code, Some(0), "{way}: {:#?}", ended.stderr);
        let ended = bootstrap.configure("otlp-clutser", CLUSTER).validate(way).await;
        assert_eq!(ended.code, Some(1), "{way}: a key that does not exist");
        assert!(ended.stderr.iter().any(|line| line.contains("did you mean otlp-cluster?")), "{way}");
    }
}

#[tokio::test]
async fn envoys_own_tracer_can_stay_and_leave_the_context_alone() {
    if !envoy::is_here() {
        return;
    }
    let (folder, ours, theirs) = (Folder::fresh(), Collector::start().await, Collector::start().await);
    let stock = Service::playing(answer(200, "12")).await;
    let orders = Service::playing(calling(stock.url("/items"), Copying::Everything)).await;
    let mut bootstrap = istio(&orders, &ours);
    discovered(&mut bootstrap, &folder, fetched);
    let mut cluster = bootstrap.cluster(CLUSTER).clone();
    let to = theirs.address.port();
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        ["port_value"] = json!(to);
    cluster["name"] = json!("envoys-own");
    cluster["load_assignment"]["cluster_name"] = json!("envoys-own");
    bootstrap.root["static_resources"]["clusters"].as_array_mut().expect("a list").push(cluster);
    for side in bootstrap.sides() {
        let provider = json!({
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                "grpc_service": {"envoy_grpc": {"cluster_name": "envoys-own"}, "timeout": "1s"},
                "service_name": "envoys-own",
            },
        });
        let merged = patch("beside-envoys-tracer/envoyfilter.yaml", "NETWORK_FILTER", &context(&side));
        let mut tracing = merged["typed_config"]["tracing"].as_object().expect("a block").clone();
        tracing.insert("provider".to_owned(), provider);
        let http = bootstrap.http(&side);
        http["tracing"] = Value::Object(tracing);
        // As in Istio: Envoy's tracer decides by the request's id.
        http["generate_request_id"] = json!(true);
    }
    let sidecar = bootstrap.start("orders").await;
    orders.outbound.is_at(sidecar.outbound());
    assert_eq!(Ask::get(sidecar.url("/orders")).send().await.text(), "12");
    let spans = ours.spans(2).await;
    assert_connected(&spans, &[]);
    let server = the_only(&spans, |span| span.kind == Kind::Server);
    assert_eq!(server.id, orders.saw_one().traceparent().span, "what the application got is ours");
    let client = the_only(&spans, |span| span.kind == Kind::Client);
    assert_eq!(client.id, stock.saw_one().traceparent().span, "what went on is ours");
    let own = |books: &Books| books.created() == 2;
    let books = sidecar.books_when("the numbers of two spans", own).await;
    assert_eq!(books.sum("throughline_context_overwritten_total", &[]), 0);
    assert!(!theirs.spans(2).await.is_empty(), "Envoy reports its own");
    sidecar.end().await;
}

/// A YAML block of docs/envoy.md, by its first line.
fn documented(first: &str) -> Value {
    let text = std::fs::read_to_string(workspace().join("docs/envoy.md")).expect("docs/envoy.md");
    let mut blocks = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().expect("a block"));
    let block = blocks.find(|block| block.starts_with(first)).expect("a block");
    serde_yaml::from_str(block).expect("YAML")
}

#[tokio::test]
async fn what_the_documentation_tells_users_of_envoy_to_write_traces() {
    if !envoy::is_here() {
        return;
    }
    let collector = Collector::start().await;
    let orders = Service::playing(answer(200, "made")).await;
    let mut bootstrap = istio(&orders, &collector);
    let mut cluster = documented("# one of clusters");
    assert_eq!(cluster["name"], "otlp");
    let shipped = bootstrap.cluster(CLUSTER);
    // Only the place is the reader's own.
    cluster["type"] = shipped["type"].clone();
    cluster["load_assignment"]["endpoints"] = shipped["load_assignment"]["endpoints"].clone();
    *shipped = cluster;
    for side in bootstrap.sides() {
        let mut filter = documented("# first of http_filters");
        let file = &mut filter["typed_config"]["config"]["vm_config"]["code"]["local"]["filename"];
        *file = json!(module().display().to_string());
        insert_first(&mut bootstrap, &side, filter);
    }
    let sidecar = bootstrap.configure("otel-bsp-schedule-delay", 50).start("orders").await;
    assert_eq!(Ask::get(sidecar.url("/")).send().await.text(), "made");
    let spans = collector.spans(1).await;
    assert_eq!((spans[0].service(), spans[0].kind), ("orders", Kind::Server));
    sidecar.end().await;
}
