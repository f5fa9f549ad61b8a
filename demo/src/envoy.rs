//! Envoy with the filter in a sidecar's place: finds both, writes each Envoy its configuration, starts it, and
//! knows when it is ready. Must never do what a user's own Envoy could not.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::call;
use crate::process::{Process, Processes};
use crate::sidecars::{HISTOGRAMS, Listeners, Plan, READY_PAUSE, says_ready};

/// How to come by what is missing.
const HOW: &str = "`make demo HOST=envoy` installs and builds what is needed";

const HTTP: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const WASM: &str = "envoy.extensions.filters.http.wasm.v3.Wasm";
const ROUTER: &str = "envoy.extensions.filters.http.router.v3.Router";

/// The program, the filter, and where configurations and logs are kept.
pub(crate) struct Envoy {
    binary: PathBuf,
    module: PathBuf,
    folder: PathBuf,
}

impl Envoy {
    /// Looks where `make demo HOST=envoy` puts them: in `target/`, where this program is too.
    pub(crate) fn find(binary: Option<&Path>, module: Option<&Path>) -> Result<Envoy, String> {
        let own = std::env::current_exe().map_err(|error| format!("own path unknown: {error}"))?;
        let target = own.ancestors().nth(2).unwrap_or(Path::new("/"));
        let named = |given: Option<&Path>, usual: &str| given.map_or(target.join(usual), Path::to_owned);
        let (binary, module) = (named(binary, "envoy/envoy"), named(module, "wasm/throughline.wasm"));
        for (what, path, flag) in [("Envoy", &binary, "envoy"), ("filter", &module, "module")] {
            if !path.is_file() {
                return Err(format!(
                    "no {what} at {}: {HOW}; --{flag} PATH names another one",
                    path.display()
                ));
            }
        }
        let folder = target.join("demo-envoy");
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Envoy { binary, module, folder })
    }

    /// Starts one. It writes the address of its admin port into the file that is returned.
    pub(crate) fn start(
        &self,
        plan: &Plan<'_>,
        processes: &mut Processes,
    ) -> Result<(Process, PathBuf), String> {
        let file = |ending: &str| self.folder.join(format!("{}.{ending}", plan.service));
        let (config, log) = (file("json"), file("log"));
        // A second demo's Envoy is another one.
        let admin = file(&format!("{}.admin", std::process::id()));
        let written = |path: &Path| {
            let path = path.display().to_string();
            move |error| format!("{path}: {error}")
        };
        std::fs::write(&config, self.config(plan).to_string()).map_err(written(&config))?;
        let mut kept = File::create(&log).map_err(written(&log))?;

        let mut command = Command::new(&self.binary);
        // Without hot restart no two Envoys of a machine meet in shared memory.
        command.args(["--disable-hot-restart", "--concurrency", "1", "-l", "warning"]);
        command.arg("--config-path").arg(&config).arg("--admin-address-path").arg(&admin);
        let name = format!("the Envoy of {}", plan.service);
        // A log that can't be written costs its lines: the last ones are kept by `processes` too.
        let process = processes.start(&name, command, move |line| drop(writeln!(kept, "{line}")))?;
        Ok((process, admin))
    }

    /// The whole configuration.
    fn config(&self, plan: &Plan<'_>) -> Value {
        let host = |name: &str, domains: Value| {
            let route = json!({"cluster": name, "timeout": "0s"});
            json!({"name": name, "domains": domains, "routes": [{"match": {"prefix": "/"}, "route": route}]})
        };
        let mut called: Vec<(&str, SocketAddr)> = plan.routes.to_vec();
        let mut hosts: Vec<Value> =
            plan.routes.iter().map(|(name, _)| host(name, json!([name, format!("{name}:*")]))).collect();
        if let Some(broker) = plan.broker {
            called.push(("broker", broker));
            hosts.push(host("broker", json!(["*"])));
        }
        called.extend([("application", plan.upstream), ("otlp", plan.receiver)]);
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        json!({
            "admin": {"address": address(free)},
            "static_resources": {
                "listeners": [
                    self.listener("inbound", plan.inbound, vec![host("application", json!(["*"]))], plan),
                    self.listener("outbound", free, hosts, plan),
                ],
                "clusters": called.into_iter().map(|(name, to)| cluster(name, to)).collect::<Vec<_>>(),
            },
        })
    }

    /// A listener of plain HTTP with the filter. There is no `tracing` block: Envoy's own tracer would write
    /// another context over the filter's.
    fn listener(&self, side: &str, at: SocketAddr, hosts: Vec<Value>, plan: &Plan<'_>) -> Value {
        let http = typed(
            HTTP,
            json!({
                "stat_prefix": side,
                "generate_request_id": false,
                "http_filters": [
                    {"name": "throughline", "typed_config": typed(WASM, self.filter(side, plan))},
                    {"name": "envoy.filters.http.router", "typed_config": typed(ROUTER, json!({}))},
                ],
                "route_config": {"name": side, "virtual_hosts": hosts},
            }),
        );
        let manager = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": http});
        json!({
            "name": side,
            "address": address(at),
            "traffic_direction": side.to_uppercase(),
            "filter_chains": [{"filters": [manager]}],
        })
    }

    fn filter(&self, side: &str, plan: &Plan<'_>) -> Value {
        let mut settings = json!({
            "direction": side,
            "otlp-cluster": "otlp",
            // A push is read before its head goes on.
            "hold-headers": true,
        });
        if let (true, Some(settings)) = (plan.tells_trace_id, settings.as_object_mut()) {
            settings.insert("response-headers".to_owned(), json!("x-trace-id"));
        }
        json!({"config": {
            "name": "throughline",
            "root_id": "throughline",
            "failure_policy": "FAIL_RELOAD",
            "reload_config": {"backoff": {"base_interval": "1s"}},
            "allow_on_headers_stop_iteration": true,
            "vm_config": {
                // Both listeners share a VM: the outbound one must know which requests are in flight inbound.
                "vm_id": "throughline",
                "runtime": "envoy.wasm.runtime.v8",
                "code": {"local": {"filename": self.module.display().to_string()}},
                "environment_variables": {"key_values": {
                    "OTEL_SERVICE_NAME": plan.service,
                    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                    "OTEL_EXPORTER_OTLP_ENDPOINT": format!("http://{}", plan.receiver),
                    "OTEL_METRIC_EXPORT_INTERVAL": "1000",
                    (HISTOGRAMS.0): HISTOGRAMS.1,
                    // Spans leave soon, so that a trace is drawn while its request is still in mind.
                    "OTEL_BSP_SCHEDULE_DELAY": "100",
                }},
            },
            "configuration": typed("google.protobuf.StringValue", json!({"value": settings.to_string()})),
        }})
    }
}

fn typed(name: &str, mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.insert("@type".to_owned(), json!(format!("type.googleapis.com/{name}")));
    }
    value
}

fn address(at: SocketAddr) -> Value {
    json!({"socket_address": {"address": at.ip().to_string(), "port_value": at.port()}})
}

fn cluster(name: &str, to: SocketAddr) -> Value {
    let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": address(to)}}]}]);
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    })
}

/// Waits until an Envoy serves, which has been told to write the address of its admin port into `file`.
pub(crate) async fn readiness(file: PathBuf) -> Listeners {
    loop {
        if let Some(listeners) = listeners(&file).await {
            // Nobody else reads it.
            let _ = std::fs::remove_file(&file);
            return listeners;
        }
        tokio::time::sleep(READY_PAUSE).await;
    }
}

async fn listeners(file: &Path) -> Option<Listeners> {
    let admin: SocketAddr = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    if !says_ready(admin, "/ready").await {
        return None;
    }
    let request = Request::get("/listeners?format=json").header("host", admin.to_string());
    let answer = call::exchange(admin, request.body(Bytes::new()).ok()?).await.ok()?;
    told(answer.body())
}

/// Reads Envoy's list of listeners.
fn told(body: &[u8]) -> Option<Listeners> {
    let list: Value = serde_json::from_slice(body).ok()?;
    let find = |name: &str| {
        let all = list.get("listener_statuses")?.as_array()?;
        let found = all.iter().find(|one| one.get("name").is_some_and(|own| own == name))?;
        let at = found.get("local_address")?.get("socket_address")?;
        let port = u16::try_from(at.get("port_value")?.as_u64()?).ok().filter(|port| *port > 0)?;
        Some(SocketAddr::new(at.get("address")?.as_str()?.parse().ok()?, port))
    };
    Some(Listeners { inbound: find("inbound")?, outbound: find("outbound")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_listeners_tells_the_ports() {
        let list = |inbound: u16| {
            let at = |name: &str, port: u16| json!({"name": name, "local_address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}});
            json!({"listener_statuses": [at("inbound", inbound), at("outbound", 2)]}).to_string()
        };
        let ports = |body: &str| told(body.as_bytes()).map(|at| [at.inbound.port(), at.outbound.port()]);
        assert_eq!(ports(&list(1)), Some([1, 2]));
        assert_eq!(ports(&list(0)), None, "not bound so far");
        assert_eq!(ports("{}"), None);
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let reason = Envoy::find(Some(Path::new("/nowhere/envoy")), None).map(drop).unwrap_err();
        assert_eq!(
            reason,
            "no Envoy at /nowhere/envoy: `make demo HOST=envoy` installs and builds what is needed; --envoy PATH \
             names another one"
        );
    }
}
