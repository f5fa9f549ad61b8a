//! The containers that are added: the one that writes the redirect, and the sidecar. Must never ask for more
//! privilege than its work needs: the rules have NET_ADMIN and end, the sidecar has nothing.

use serde_json::{Map, Value, json};

use super::identity::Identity;
use super::reverse::Takeover;
use super::variable;
use crate::json::text;
use crate::names::{ADMIN_PORT, ADMIN_PORT_NAME, INBOUND_PORT, OUTBOUND_PORT, PROXY, PROXY_UID, RULES};
use crate::pod::Pod;
use crate::policy::Plan;
use crate::settings::{Injecting, Mode, sidecar_env};

/// Seconds that an ordinary sidecar goes on after the pod was told to end, so that it outlives the application's
/// last calls and the callers that have not heard yet.
const LINGER_SECONDS: u32 = 5;

/// What the containers are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Make<'a> {
    pub(super) plan: &'a Plan,
    pub(super) settings: &'a Injecting,
    pub(super) identity: &'a Identity,
    pub(super) pod: &'a Pod<'a>,
    pub(super) native: bool,
}

impl Make<'_> {
    /// Writes the redirect, and ends.
    pub(super) fn rules(&self) -> Value {
        let mut command =
            vec![PROXY.to_owned(), "init".to_owned(), "--proxy-uid".to_owned(), PROXY_UID.to_string()];
        let exclusions = &self.plan.options.exclusions;
        let ports = |ports: &[u16]| {
            let mut ports = ports.to_vec();
            ports.sort_unstable();
            ports.dedup();
            ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
        };
        for (flag, value) in [
            ("--exclude-inbound-ports", ports(&exclusions.inbound_ports)),
            ("--exclude-outbound-ports", ports(&exclusions.outbound_ports)),
            ("--exclude-outbound-cidrs", exclusions.outbound_cidrs.join(",")),
        ] {
            if !value.is_empty() {
                command.extend([flag.to_owned(), value]);
            }
        }
        if self.plan.mode == Mode::EnvoyWasm {
            // Envoy renews no lease: the rules hold by themselves.
            command.push("--no-lease".to_owned());
        }
        json!({
            "name": RULES,
            "image": self.settings.sidecar_image,
            "imagePullPolicy": self.settings.pull_policy,
            "command": command,
            "resources": {
                "requests": {"cpu": "10m", "memory": "16Mi"},
                "limits": {"cpu": "1", "memory": "64Mi"}
            },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsGroup": 0,
                "runAsNonRoot": false,
                "runAsUser": 0,
                "seccompProfile": {"type": "RuntimeDefault"}
            },
            "terminationMessagePolicy": "FallbackToLogsOnError"
        })
    }

    /// The sidecar.
    pub(super) fn sidecar(&self, probes: &[String], takeover: Option<&Takeover>) -> Value {
        let mut env = self.identity.variables();
        let host = &self.settings.listen_host;
        env.push(variable("THROUGHLINE_ADMIN_LISTEN", format!("{host}:{ADMIN_PORT}")));
        if self.plan.mode == Mode::Reverse {
            env.push(variable("THROUGHLINE_CAPTURE", "reverse"));
            if let Some(takeover) = takeover {
                env.push(variable("THROUGHLINE_INBOUND_LISTEN", format!("{host}:{INBOUND_PORT}")));
                env.push(variable("THROUGHLINE_INBOUND_UPSTREAM", format!("localhost:{}", takeover.number)));
            }
            env.push(variable("THROUGHLINE_OUTBOUND_LISTEN", format!("127.0.0.1:{OUTBOUND_PORT}")));
        } else {
            env.push(variable("THROUGHLINE_CAPTURE", "transparent"));
        }
        if !probes.is_empty() {
            env.push(variable("THROUGHLINE_PROBES", probes.join(",")));
        }
        env.extend(self.settings_variables());
        let mut ports = vec![self.admin_port()];
        if let Some(takeover) = takeover {
            ports.push(json!({"containerPort": INBOUND_PORT, "name": takeover.name, "protocol": "TCP"}));
        }
        let mut container = self.long_running(PROXY, &self.settings.sidecar_image, ports, env);
        // In reverse mode the sidecar stands in the way: a pod whose sidecar can't serve is not ready. With the
        // redirect traffic goes past a sidecar that is gone, so its state is not the application's.
        if self.plan.mode == Mode::Reverse {
            container.insert("readinessProbe".to_owned(), probe("/readyz", 5, 3));
        }
        Value::Object(container)
    }

    /// What sidecar and Envoy have alike.
    pub(super) fn long_running(
        &self,
        name: &str,
        image: &str,
        ports: Vec<Value>,
        env: Vec<Value>,
    ) -> Map<String, Value> {
        let resources = &self.plan.options.resources;
        let mut container = Map::new();
        let mut set = |key: &str, value: Value| container.insert(key.to_owned(), value);
        set("name", json!(name));
        set("image", json!(image));
        set("imagePullPolicy", json!(self.settings.pull_policy));
        set("env", Value::Array(env));
        set("ports", Value::Array(ports));
        set(
            "resources",
            json!({
                "requests": {"cpu": resources.cpu_request, "memory": resources.memory_request},
                "limits": {"cpu": resources.cpu_limit, "memory": resources.memory_limit}
            }),
        );
        set(
            "securityContext",
            json!({
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsGroup": PROXY_UID,
                "runAsNonRoot": true,
                "runAsUser": PROXY_UID,
                "seccompProfile": {"type": "RuntimeDefault"}
            }),
        );
        set("startupProbe", probe("/readyz", 1, 60));
        set("livenessProbe", probe("/livez", 10, 3));
        set("terminationMessagePolicy", json!("FallbackToLogsOnError"));
        if self.native {
            set("restartPolicy", json!("Always"));
        } else {
            // A native sidecar is told to end after the containers; an ordinary one together with them.
            set(
                "lifecycle",
                json!({"preStop": {"exec": {"command": ["sleep", LINGER_SECONDS.to_string()]}}}),
            );
        }
        container
    }

    /// The collector, the settings that were given, and what follows from the pod.
    pub(super) fn settings_variables(&self) -> Vec<Value> {
        let options = &self.plan.options;
        let mut env = vec![
            variable("OTEL_EXPORTER_OTLP_ENDPOINT", options.otlp_endpoint.as_str()),
            variable("OTEL_EXPORTER_OTLP_PROTOCOL", options.otlp_protocol.as_str()),
            // The flow server tells quantiles from these within 1 %.
            variable(
                "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
                "base2_exponential_bucket_histogram",
            ),
        ];
        if options.setting("drain-timeout").is_none() {
            // The default is for the 30 seconds that a pod has unless it says otherwise.
            let grace = self.pod.raw().pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64);
            let linger = if self.native { 0 } else { u64::from(LINGER_SECONDS) };
            let drain = grace.unwrap_or(30).saturating_sub(linger).saturating_mul(5000) / 6;
            if drain < 25_000 {
                env.push(variable("THROUGHLINE_DRAIN_TIMEOUT", drain.to_string()));
            }
        }
        for (key, value) in &options.settings {
            if let Some(name) = sidecar_env(key) {
                env.retain(|known| text(known, "/name") != Some(name));
                env.push(variable(name, value.as_str()));
            }
        }
        env
    }

    /// The admin port has no name where the pod uses that name already.
    pub(super) fn admin_port(&self) -> Value {
        let taken =
            self.pod.all_containers().any(|container| container.named_port(ADMIN_PORT_NAME).is_some());
        match taken {
            true => json!({"containerPort": ADMIN_PORT, "protocol": "TCP"}),
            false => json!({"containerPort": ADMIN_PORT, "name": ADMIN_PORT_NAME, "protocol": "TCP"}),
        }
    }
}

fn probe(path: &str, period: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": path, "port": ADMIN_PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 1,
        "failureThreshold": failures
    })
}
