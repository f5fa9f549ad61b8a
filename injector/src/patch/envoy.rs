//! Envoy with the filter in the place of the sidecar. Its bootstrap is the shipped one, `deploy/envoy/envoy.yaml`,
//! changed in four places, and travels in the arguments of the container: a ConfigMap would have to be in every
//! namespace before its first pod starts, and a pod whose ConfigMap is missing does not start at all. Must never
//! be another bootstrap than the one that the scenarios run.

use serde_json::{Value, json};

use super::containers::Make;
use super::literal;
use crate::json::text;
use crate::names::{ADMIN_PORT, ENVOY};

const SHIPPED: &str = include_str!("../../../deploy/envoy/envoy.yaml");
/// Where Envoy's own admin interface listens, for the pod alone.
const OWN_ADMIN_PORT: u16 = 15000;

pub(super) fn container(make: &Make<'_>, probes: &[String]) -> Result<Value, String> {
    let settings = make.settings_variables();
    let mut env = make.identity.variables();
    env.extend(settings);
    let names: Vec<&str> = env
        .iter()
        .filter_map(|one| text(one, "/name"))
        .filter(|name| name.starts_with("OTEL_") || name.starts_with("THROUGHLINE_"))
        // Envoy drains by itself; the filter has no such setting.
        .filter(|name| *name != "THROUGHLINE_DRAIN_TIMEOUT")
        .collect();
    let options = &make.plan.options;
    let bootstrap = bootstrap(
        &names,
        &options.otlp_endpoint,
        &options.otlp_protocol,
        &make.settings.listen_host,
        probes,
    )?;
    let mut container =
        make.long_running(ENVOY, &make.settings.envoy_image, vec![make.admin_port()], env.clone());
    let text = literal(&bootstrap.to_string());
    // Kubernetes puts the pod's and the node's address into the arguments.
    let text = ["K8S_POD_IP", "K8S_NODE_IP"]
        .iter()
        .fold(text, |text, name| text.replace(&format!("$$({name})"), &format!("$({name})")));
    container.insert("command".to_owned(), json!(["envoy"]));
    container.insert(
        "args".to_owned(),
        json!(["--disable-hot-restart", "--concurrency", "2", "--log-level", "warn", "--config-yaml", text]),
    );
    Ok(Value::Object(container))
}

/// The shipped bootstrap with: the environment of the container for the filter, the collector of the settings, a
/// listener for health, metrics and probes, and a cluster for each probe, which Envoy checks as the probe would.
pub fn bootstrap(
    environment: &[&str],
    otlp_endpoint: &str,
    otlp_protocol: &str,
    listen_host: &str,
    probes: &[String],
) -> Result<Value, String> {
    let mut bootstrap: Value =
        serde_yaml::from_str(SHIPPED).map_err(|error| format!("the shipped bootstrap: {error}"))?;
    each_object(&mut bootstrap, &mut |object| {
        if let Some(variables) = object.get_mut("environment_variables") {
            *variables = json!({"host_env_keys": environment});
        }
    });
    let (host, port) = host_and_port(otlp_endpoint).ok_or("otlp-endpoint: want a host")?;
    for cluster in list(&mut bootstrap, "/static_resources/clusters")? {
        if text(cluster, "/name") != Some("otlp") {
            continue;
        }
        each_object(cluster, &mut |object| {
            if object.contains_key("port_value") {
                object.insert("address".to_owned(), json!(host));
                object.insert("port_value".to_owned(), json!(port));
            }
        });
        let Some(cluster) = cluster.as_object_mut() else { continue };
        if otlp_protocol != "grpc" {
            cluster.remove("typed_extension_protocol_options");
        }
        if otlp_endpoint.starts_with("https://") {
            let tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
            let authorities = "/etc/ssl/certs/ca-certificates.crt";
            cluster.insert(
                "transport_socket".to_owned(),
                json!({"name": "envoy.transport_sockets.tls", "typed_config": {
                    "@type": tls,
                    "sni": host,
                    "common_tls_context": {"validation_context": {
                        "trusted_ca": {"filename": authorities},
                        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": host}}]
                    }}
                }}),
            );
        }
    }
    let listener = admin_listener(listen_host.trim_matches(['[', ']']), probes.len());
    list(&mut bootstrap, "/static_resources/listeners")?.push(listener);
    let clusters = list(&mut bootstrap, "/static_resources/clusters")?;
    clusters.push(own_admin_cluster());
    clusters.extend(probes.iter().enumerate().filter_map(|(index, probe)| probe_cluster(index, probe)));
    Ok(bootstrap)
}

fn list<'a>(value: &'a mut Value, pointer: &str) -> Result<&'a mut Vec<Value>, String> {
    let found = value.pointer_mut(pointer).and_then(Value::as_array_mut);
    found.ok_or_else(|| format!("the shipped bootstrap has no {pointer}"))
}

fn each_object(value: &mut Value, with: &mut impl FnMut(&mut serde_json::Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            with(object);
            object.values_mut().for_each(|value| each_object(value, with));
        }
        Value::Array(all) => all.iter_mut().for_each(|value| each_object(value, with)),
        _ => {}
    }
}

/// The host and port of an endpoint; 4317 where it has none.
fn host_and_port(endpoint: &str) -> Option<(String, u16)> {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("http", endpoint));
    let authority = rest.split('/').next()?;
    let default = if scheme == "https" { 443 } else { 4317 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, default),
    };
    let host = host.trim_matches(['[', ']']);
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// `/livez`, `/readyz`, `/metrics` and `/probe/N` where the kubelet and Prometheus reach them, as the sidecar has
/// them; the rest of Envoy's admin interface stays within the pod.
fn admin_listener(host: &str, probes: usize) -> Value {
    let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let check = "type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck";
    // Answers by the health of the cluster, which Envoy checks all the time: 200 or 503.
    let mut filters: Vec<Value> = (0..probes)
        .map(|index| {
            json!({"name": format!("probe-{index}"), "typed_config": {
                "@type": check,
                "pass_through_mode": false,
                "cluster_min_healthy_percentages": {probe_name(index): {"value": 100.0}},
                "headers": [{"name": ":path", "string_match": {"exact": format!("/probe/{index}")}}]
            }})
        })
        .collect();
    filters.push(json!({"name": "envoy.filters.http.router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    }}));
    let own = |path: &str, to: &str| json!({"match": {"path": path}, "route": {"cluster": "own-admin", "prefix_rewrite": to}});
    json!({
        "name": "admin",
        "address": {"socket_address": {"address": host, "port_value": ADMIN_PORT}},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": manager,
                "stat_prefix": "admin",
                "http_filters": filters,
                "route_config": {"name": "admin", "virtual_hosts": [{"name": "admin", "domains": ["*"], "routes": [
                    {"match": {"path": "/livez"}, "direct_response": {"status": 200}},
                    own("/readyz", "/ready"),
                    own("/metrics", "/stats/prometheus"),
                    {"match": {"prefix": "/"}, "direct_response": {"status": 404}}
                ]}]}
            }
        }]}]
    })
}

fn own_admin_cluster() -> Value {
    json!({
        "name": "own-admin",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": endpoint("own-admin", "127.0.0.1", OWN_ADMIN_PORT)
    })
}

fn probe_name(index: usize) -> String {
    format!("probe-{index}")
}

fn endpoint(name: &str, address: &str, port: u16) -> Value {
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [
        {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}
    ]}]})
}

/// Asks at the pod's own address, as the kubelet would have.
fn probe_cluster(index: usize, probe: &str) -> Option<Value> {
    let (kind, rest) = probe.split_once(':')?;
    let (port, service) = rest.split_once('/').unwrap_or((rest, ""));
    let name = probe_name(index);
    let mut check = json!({
        "timeout": "1s", "interval": "1s", "no_traffic_interval": "1s", "no_traffic_healthy_interval": "1s",
        "healthy_threshold": 1, "unhealthy_threshold": 1
    });
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": endpoint(&name, "$(K8S_POD_IP)", port.parse().ok()?)
    });
    let (key, handler) = match kind {
        "grpc" if service.is_empty() => ("grpc_health_check", json!({})),
        "grpc" => ("grpc_health_check", json!({"service_name": service})),
        _ => ("tcp_health_check", json!({})),
    };
    check.as_object_mut()?.insert(key.to_owned(), handler);
    let cluster_object = cluster.as_object_mut()?;
    cluster_object.insert("health_checks".to_owned(), json!([check]));
    if kind == "grpc" {
        cluster_object.insert(
            "typed_extension_protocol_options".to_owned(),
            json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}
            }}),
        );
    }
    Some(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::items;

    #[test]
    fn the_collector_is_read_from_its_endpoint() {
        for (endpoint, host, port) in [
            ("http://collector:4317", "collector", 4317),
            ("http://collector", "collector", 4317),
            ("https://otel.example.com", "otel.example.com", 443),
            ("http://[fd00::1]:4317/", "fd00::1", 4317),
            ("http://$(K8S_NODE_IP):4317", "$(K8S_NODE_IP)", 4317),
        ] {
            assert_eq!(host_and_port(endpoint), Some((host.to_owned(), port)), "{endpoint}");
        }
    }

    #[test]
    fn the_shipped_bootstrap_has_the_places_that_are_changed() {
        let made =
            bootstrap(&["OTEL_SERVICE_NAME"], "http://a:1", "grpc", "0.0.0.0", &["tcp:5432".to_owned()])
                .unwrap();
        let text = made.to_string();
        assert_eq!(text.matches("host_env_keys").count(), 2, "both filters have the container's environment");
        assert!(!text.contains("my-service") && !text.contains("otel-collector"));
        let clusters = items(&made, "/static_resources/clusters");
        assert!(clusters.iter().any(|cluster| text_of(cluster) == "probe-0"));
    }

    fn text_of(cluster: &Value) -> &str {
        text(cluster, "/name").unwrap()
    }
}
