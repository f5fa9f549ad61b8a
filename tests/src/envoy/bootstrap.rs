//! A plan for a sidecar, told to Envoy: the shipped `deploy/envoy/envoy.yaml` with the plan's addresses, timeouts and
//! settings put in. What the shipped file says and a plan does not ask for stays as it is, so the scenarios hold the
//! file too. It must never make up a setting that a user of that file could not write.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::sidecar::{Plan, workspace};

/// Settings that are Envoy's own matter; the filter is not told of them.
const ENVOYS_OWN: &[&str] = &[
    "access-log",
    "admin-listen",
    "config",
    "connect-timeout",
    "connections-max",
    "drain-timeout",
    "header-bytes-max",
    "header-fields-max",
    "header-timeout",
    "idle-timeout",
    "inbound-listen",
    "inbound-upstream",
    "otel-exporter-otlp-certificate",
    "otel-exporter-otlp-client-certificate",
    "otel-exporter-otlp-client-key",
    "otel-exporter-otlp-insecure",
    "outbound-anywhere",
    "outbound-listen",
    "outbound-routes",
    "pool-idle-timeout",
    "pubsub-certificate",
    "pubsub-upstream",
    "response-timeout",
    "stall-timeout",
    "streams-max",
    "worker-threads",
];

/// As the shipped file has it for its own routes.
const BUFFER: u64 = 8_388_608;

/// Protocols that the scenarios upgrade to. Envoy wants each one named.
const UPGRADES: &[&str] = &["shouting/1", "x"];

/// The file that we ship.
pub fn shipped() -> PathBuf {
    workspace().join("deploy/envoy/envoy.yaml")
}

/// The module: `THROUGHLINE_WASM`, else what `make wasm` wrote.
pub fn module() -> PathBuf {
    let named = std::env::var_os("THROUGHLINE_WASM").map(PathBuf::from);
    named.unwrap_or_else(|| workspace().join("target/wasm/throughline.wasm"))
}

/// A configuration of Envoy.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// All of it.
    pub root: Value,
    settings: BTreeMap<String, String>,
}

impl Bootstrap {
    /// The shipped file as it is, with the module where it was built.
    pub fn as_shipped() -> Bootstrap {
        let text = std::fs::read_to_string(shipped()).expect("deploy/envoy/envoy.yaml");
        let root: Value = serde_yaml::from_str(&text).expect("YAML");
        let mut bootstrap = Bootstrap { root, settings: BTreeMap::new() };
        let module = module();
        assert!(
            module.is_file(),
            "no module at {}: `make wasm` builds it, or name one by THROUGHLINE_WASM",
            module.display()
        );
        for side in ["inbound", "outbound"] {
            let code = &mut bootstrap.filter(side)["vm_config"]["code"]["local"]["filename"];
            *code = json!(module.display().to_string());
        }
        bootstrap
    }

    /// What a plan asks for.
    pub fn of(plan: &Plan) -> Bootstrap {
        let mut bootstrap = Bootstrap::as_shipped();
        bootstrap.settings = plan.settings();
        bootstrap.root["admin"]["address"] = address("127.0.0.1:0");
        bootstrap.side("inbound");
        bootstrap.side("outbound");
        bootstrap.collector();
        bootstrap.filters(plan);
        bootstrap
    }

    /// The same without our filter: what Envoy itself does.
    pub fn without_filter(mut self) -> Bootstrap {
        for side in self.sides() {
            let filters = self.http(&side)["http_filters"].as_array_mut().expect("a list");
            filters.retain(|filter| filter["name"] != "throughline");
        }
        self
    }

    /// The names of the listeners.
    pub fn sides(&self) -> Vec<String> {
        let all = self.root["static_resources"]["listeners"].as_array().expect("a list");
        all.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// A listener by its name.
    pub fn listener(&mut self, name: &str) -> &mut Value {
        named(&mut self.root["static_resources"]["listeners"], name)
    }

    /// The HTTP connection manager of a side.
    pub fn http(&mut self, side: &str) -> &mut Value {
        let chains = self.listener(side)["filter_chains"].as_array_mut().expect("a list");
        let filters = chains.iter_mut().flat_map(|chain| chain["filters"].as_array_mut().expect("a list"));
        let manager = "envoy.filters.network.http_connection_manager";
        let mut found = filters.filter(|filter| filter["name"] == manager);
        &mut found.next().expect("a chain for HTTP")["typed_config"]
    }

    /// The plugin of a side: its `config`.
    pub fn filter(&mut self, side: &str) -> &mut Value {
        &mut named(&mut self.http(side)["http_filters"], "throughline")["typed_config"]["config"]
    }

    /// A cluster by its name.
    pub fn cluster(&mut self, name: &str) -> &mut Value {
        named(&mut self.root["static_resources"]["clusters"], name)
    }

    /// Sets a key of the filter's own configuration, on both sides.
    pub fn configure(mut self, key: &str, value: impl Into<Value>) -> Bootstrap {
        let value = value.into();
        for side in self.sides() {
            let text = &mut self.filter(&side)["configuration"]["value"];
            let mut settings: Value =
                serde_yaml::from_str(text.as_str().expect("a text")).expect("a mapping");
            settings[key] = value.clone();
            *text = json!(settings.to_string());
        }
        self
    }

    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A setting in milliseconds, as Envoy writes durations.
    fn duration(&self, name: &str) -> Option<Value> {
        let milliseconds: u64 = self.setting(name)?.parse().expect("milliseconds");
        Some(json!(format!("{}.{:03}s", milliseconds / 1000, milliseconds % 1000)))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.setting(name).map(|text| text.parse().expect("a number"))
    }

    /// One side: a plain listener in place of the redirected one, as its user would write who sends traffic there.
    fn side(&mut self, side: &str) {
        let Some(at) = self.setting(&format!("{side}-listen")).map(address) else {
            let all = self.root["static_resources"]["listeners"].as_array_mut().expect("a list");
            all.retain(|listener| listener["name"] != side);
            return;
        };
        let listener = self.listener(side);
        let chains = listener["filter_chains"].as_array_mut().expect("a list");
        chains.retain(|chain| chain["name"] == "http");
        chains[0].as_object_mut().expect("a chain").remove("filter_chain_match");
        let listener = listener.as_object_mut().expect("a listener");
        let redirect = [
            "additional_addresses",
            "continue_on_listener_filters_timeout",
            "default_filter_chain",
            "listener_filters",
            "listener_filters_timeout",
        ];
        redirect.iter().for_each(|key| drop(listener.remove(*key)));
        listener.insert("address".to_owned(), at);
        self.limits(side);
        let hosts = if side == "inbound" { self.application_hosts() } else { self.anywhere_hosts() };
        self.http(side)["route_config"]["virtual_hosts"] = hosts;
    }

    fn limits(&mut self, side: &str) {
        let (header, idle, stall) =
            (self.duration("header-timeout"), self.duration("idle-timeout"), self.duration("stall-timeout"));
        let (kib, fields, streams) =
            (self.number("header-bytes-max"), self.number("header-fields-max"), self.number("streams-max"));
        let http = self.http(side);
        let mut set = |path: &str, value: Option<Value>| {
            if let Some(value) = value {
                *http.pointer_mut(path).expect(path) = value;
            }
        };
        set("/request_headers_timeout", header);
        set("/common_http_protocol_options/idle_timeout", idle);
        set("/stream_flush_timeout", stall);
        set("/max_request_headers_kb", kib.map(|bytes| json!(bytes.div_ceil(1024))));
        set("/common_http_protocol_options/max_headers_count", fields.map(Value::from));
        set("/http2_protocol_options/max_concurrent_streams", streams.map(Value::from));
        let upgrades = http["upgrade_configs"].as_array_mut().expect("a list");
        upgrades.extend(UPGRADES.iter().map(|name| json!({"upgrade_type": name})));
    }

    fn route(&self, cluster: &str) -> Value {
        let timeout = self.duration("response-timeout").unwrap_or_else(|| json!("0s"));
        json!({"cluster": cluster, "timeout": timeout})
    }

    fn application_hosts(&mut self) -> Value {
        let upstream = self.setting("inbound-upstream").expect("an application").to_owned();
        self.add_cluster("application", &upstream);
        let routes = json!([{"match": {"prefix": "/"}, "route": self.route("application")}]);
        json!([{"name": "application", "domains": ["*"], "routes": routes, "request_body_buffer_limit": BUFFER}])
    }

    /// By fixed routes, and else to wherever the request says.
    fn anywhere_hosts(&mut self) -> Value {
        let mut hosts = Vec::new();
        for (number, (name, to)) in self.fixed_routes().into_iter().enumerate() {
            let cluster = format!("route-{number}");
            self.add_cluster(&cluster, &to);
            // A name with a port is that one, a name without a port is any.
            let domains =
                if name.contains(':') { vec![name] } else { vec![name.clone(), format!("{name}:*")] };
            let routes = json!([{"match": {"prefix": "/"}, "route": self.route(&cluster)}]);
            let host = json!({
                "name": cluster,
                "domains": domains,
                "routes": routes,
                "request_body_buffer_limit": BUFFER,
            });
            hosts.push(host);
        }
        let mut routes = self.pubsub_routes();
        let names = json!({
            "name": "anywhere",
            "dns_lookup_family": "V4_PREFERRED",
            // Names are looked up as the sidecar does it, by the system's library.
            "typed_dns_resolver_config": {
                "name": "envoy.network.dns_resolver.getaddrinfo",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig",
                }
            }
        });
        let mut cluster = self.cluster("original-destination").clone();
        let fields = cluster.as_object_mut().expect("a cluster");
        ["type", "original_dst_lb_config"].iter().for_each(|key| drop(fields.remove(*key)));
        cluster["name"] = json!("anywhere");
        cluster["cluster_type"] = json!({
            "name": "envoy.clusters.dynamic_forward_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
                "dns_cache_config": names,
                // Cleartext only.
                "allow_insecure_cluster_options": true,
            }
        });
        self.push_cluster(cluster);
        let forward = json!({
            "name": "envoy.filters.http.dynamic_forward_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
                "dns_cache_config": names,
            }
        });
        let http = self.http("outbound");
        let filters = http["http_filters"].as_array_mut().expect("a list");
        filters.insert(filters.len() - 1, forward);
        http["upgrade_configs"].as_array_mut().expect("a list").push(json!({"upgrade_type": "CONNECT"}));
        let tunnel = json!({"upgrade_type": "CONNECT", "connect_config": {}});
        routes.extend([
            json!({"match": {"connect_matcher": {}}, "route": {"cluster": "anywhere", "upgrade_configs": [tunnel]}}),
            json!({"match": {"prefix": "/"}, "route": self.route("anywhere")}),
        ]);
        let anywhere = json!({
            "name": "anywhere",
            "domains": ["*"],
            "routes": routes,
            "request_body_buffer_limit": BUFFER,
        });
        hosts.push(anywhere);
        Value::Array(hosts)
    }

    fn fixed_routes(&self) -> Vec<(String, String)> {
        let text = self.setting("outbound-routes").unwrap_or_default();
        let pairs = text.split(',').filter_map(|pair| pair.trim().split_once('='));
        pairs.map(|(name, to)| (name.to_owned(), to.to_owned())).collect()
    }

    /// Pub/Sub calls are known by their paths.
    fn pubsub_routes(&mut self) -> Vec<Value> {
        let Some(upstream) = self.setting("pubsub-upstream").map(str::to_owned) else { return Vec::new() };
        let to = authority(&upstream);
        self.add_cluster("pubsub", &to);
        let mut route = self.route("pubsub");
        route["host_rewrite_literal"] = json!(to);
        ["/v1/projects/", "/google.pubsub.v1."]
            .map(|prefix| json!({"match": {"prefix": prefix}, "route": route.clone()}))
            .into()
    }

    /// A cluster like the shipped one, for a fixed place.
    fn add_cluster(&mut self, name: &str, to: &str) {
        let mut cluster = self.cluster("original-destination").clone();
        let fields = cluster.as_object_mut().expect("a cluster");
        ["lb_policy", "original_dst_lb_config"].iter().for_each(|key| drop(fields.remove(*key)));
        cluster["name"] = json!(name);
        aim(&mut cluster, to);
        self.push_cluster(cluster);
    }

    fn push_cluster(&mut self, mut cluster: Value) {
        if let Some(timeout) = self.duration("connect-timeout") {
            cluster["connect_timeout"] = timeout;
        }
        if let Some(idle) = self.duration("pool-idle-timeout") {
            let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
            cluster["typed_extension_protocol_options"][options]["common_http_protocol_options"]["idle_timeout"] =
                idle;
        }
        self.root["static_resources"]["clusters"].as_array_mut().expect("a list").push(cluster);
    }

    fn collector(&mut self) {
        let traces = "otel-exporter-otlp-traces-endpoint";
        let endpoint = self.setting(traces).or(self.setting("otel-exporter-otlp-endpoint"));
        let endpoint = endpoint.unwrap_or("127.0.0.1:4317").to_owned();
        let protocol = "otel-exporter-otlp-protocol";
        let protocol = self.setting("otel-exporter-otlp-traces-protocol").or(self.setting(protocol));
        let http = protocol == Some("http/protobuf");
        let cluster = self.cluster("otlp");
        aim(cluster, &authority(&endpoint));
        if http {
            cluster.as_object_mut().expect("a cluster").remove("typed_extension_protocol_options");
        }
    }

    /// The filter's settings: as keys what the plan says by flags and file, as the VM's environment what it says there.
    fn filters(&mut self, plan: &Plan) {
        let mut settings: Map<String, Value> =
            plan.flags().into_iter().map(|(name, value)| (name, json!(value))).collect();
        settings.retain(|name, _| !ENVOYS_OWN.contains(&name.as_str()));
        let host = |name: String| name.split(':').next().unwrap_or_default().to_owned();
        let routes: Vec<_> = self.fixed_routes().into_iter().map(|(name, _)| host(name)).collect();
        let inside = self.setting("mesh-hosts").map(str::to_owned);
        let inside: Vec<_> = inside.into_iter().chain(routes).collect();
        if !inside.is_empty() {
            settings.insert("mesh-hosts".to_owned(), json!(inside.join(",")));
        }
        let ours =
            |name: &str| ["OTEL_", "THROUGHLINE_", "TRACING_"].iter().any(|prefix| name.starts_with(prefix));
        let environment: Map<String, Value> = plan
            .environments()
            .iter()
            .filter(|(name, _)| ours(name))
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        for side in self.sides() {
            let filter = self.filter(&side);
            let text = filter["configuration"]["value"].as_str().expect("a text");
            let mut all: Map<String, Value> = serde_yaml::from_str(text).expect("a mapping");
            all.extend(settings.clone());
            filter["configuration"]["value"] = json!(Value::Object(all).to_string());
            filter["vm_config"]["environment_variables"]["key_values"] = json!(environment);
        }
    }
}

/// The item of a list with this name.
fn named<'a>(list: &'a mut Value, name: &str) -> &'a mut Value {
    let mut items = list.as_array_mut().expect("a list").iter_mut();
    items.find(|item| item["name"] == name).unwrap_or_else(|| panic!("nothing is called {name}"))
}

fn address(text: &str) -> Value {
    let (host, port) = text.rsplit_once(':').unwrap_or_else(|| panic!("{text}: no port"));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    json!({"socket_address": {"address": host, "port_value": port.parse::<u16>().expect("a port")}})
}

/// Host and port of an endpoint, which may lack a scheme and have a path.
fn authority(endpoint: &str) -> String {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.parse::<SocketAddr>().is_ok() || authority.contains(':') {
        true => authority.to_owned(),
        false => format!("{authority}:80"),
    }
}

/// Leads a cluster to one place.
fn aim(cluster: &mut Value, to: &str) {
    let kind = if to.parse::<SocketAddr>().is_ok() { "STATIC" } else { "STRICT_DNS" };
    cluster["type"] = json!(kind);
    let name = cluster["name"].clone();
    let endpoint = json!({"endpoint": {"address": address(to)}});
    cluster["load_assignment"] = json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]});
}

/// Whether a file exists that Envoy could load as our module.
pub fn is_built() -> bool {
    Path::new(&module()).is_file()
}
