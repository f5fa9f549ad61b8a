//! Probes keep telling the truth. Named ports become numbers, since the name may move to the sidecar. Where the
//! redirect would answer in the application's place (a TCP connection that the sidecar accepts), the probe asks
//! the sidecar, which asks the application. Must never change how often or how long a probe tries.

use serde_json::{Value, json};

use super::edit::Edit;
use super::reverse::Takeover;
use crate::json::text;
use crate::names::ADMIN_PORT;
use crate::pod::{Container, Pod};
use crate::policy::Plan;

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const HOOKS: [&str; 2] = ["lifecycle/postStart", "lifecycle/preStop"];

/// Rewrites all probes. What comes back is what the sidecar is to ask, in the order of `/probe/0`, `/probe/1`, …
pub(super) fn rewrite(
    edit: &mut Edit,
    pod: &Pod<'_>,
    plan: &Plan,
    takeover: Option<&Takeover>,
    warnings: &mut Vec<String>,
) -> Result<Vec<String>, String> {
    let mut asked: Vec<String> = Vec::new();
    for container in pod.all_containers() {
        for probe in PROBES {
            let Some(raw) = container.raw.get(probe).filter(|raw| raw.is_object()) else { continue };
            let pointer = format!("{}/{probe}", container.pointer());
            number(edit, &container, raw, &pointer, warnings)?;
            if !plan.mode.redirects() {
                continue;
            }
            let Some((handler, question)) = question(&container, raw, &plan.options.exclusions.inbound_ports)
            else {
                continue;
            };
            let index = asked.iter().position(|known| *known == question).unwrap_or_else(|| {
                asked.push(question);
                asked.len() - 1
            });
            edit.remove(&format!("{pointer}/{handler}"))?;
            let through = json!({"path": format!("/probe/{index}"), "port": ADMIN_PORT, "scheme": "HTTP"});
            edit.add(&format!("{pointer}/httpGet"), through)?;
        }
        // A hook that names the port that the sidecar takes over would look for it in its own container.
        let moved =
            takeover.filter(|takeover| takeover.pointer.starts_with(&format!("{}/", container.pointer())));
        for hook in HOOKS.iter().filter(|_| moved.is_some()) {
            if let Some(raw) = container.raw.pointer(&format!("/{hook}")).filter(|raw| raw.is_object()) {
                number(edit, &container, raw, &format!("{}/{hook}", container.pointer()), warnings)?;
            }
        }
    }
    Ok(asked)
}

/// A port that is a name becomes its number.
fn number(
    edit: &mut Edit,
    container: &Container<'_>,
    raw: &Value,
    pointer: &str,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    for handler in ["httpGet", "tcpSocket"] {
        let Some(name) = text(raw, &format!("/{handler}/port")) else { continue };
        match port_of(container, &json!(name)) {
            Some(port) => edit.replace(&format!("{pointer}/{handler}/port"), json!(port))?,
            None => warnings.push(format!(
                "throughline: container {}: a probe names port {name}, which the container does not have",
                container.name()
            )),
        }
    }
    Ok(())
}

/// What the sidecar is to ask in the place of a handler that the redirect would answer.
fn question(container: &Container<'_>, probe: &Value, skipped: &[u16]) -> Option<(&'static str, String)> {
    if let Some(tcp) = probe.get("tcpSocket") {
        // Another host is not this pod: nothing of ours stands there.
        if text(tcp, "/host").is_some_and(|host| !host.is_empty()) {
            return None;
        }
        let port = port_of(container, tcp.get("port")?)?;
        return (!skipped.contains(&port)).then(|| ("tcpSocket", format!("tcp:{port}")));
    }
    let grpc = probe.get("grpc")?;
    let port = port_of(container, grpc.get("port")?)?;
    let service = text(grpc, "/service").unwrap_or_default();
    if skipped.contains(&port) || service.contains([',', '/']) || service.contains(char::is_whitespace) {
        return None;
    }
    let service = if service.is_empty() { String::new() } else { format!("/{service}") };
    Some(("grpc", format!("grpc:{port}{service}")))
}

/// The number of a port that is written as number, name, or number in quotes.
fn port_of(container: &Container<'_>, port: &Value) -> Option<u16> {
    match port {
        Value::Number(number) => u16::try_from(number.as_u64()?).ok(),
        Value::String(name) => container.named_port(name).or_else(|| name.parse().ok()),
        _ => None,
    }
}
