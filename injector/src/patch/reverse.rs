//! Capture without privilege. The sidecar takes over the port that Services look for by name: the name moves to
//! it, the number stays with the application. Calls of the application come by `HTTP_PROXY`. Must never overwrite
//! a variable that a container has.

use serde_json::Value;

use super::edit::Edit;
use super::variable;
use crate::json::{items, pairs, text};
use crate::names::OUTBOUND_PORT;
use crate::pod::Pod;
use crate::policy::{Around, Plan, ProxyEnv, Sidecars, ends};

/// The port that moves.
#[derive(Clone, Debug)]
pub(super) struct Takeover {
    /// The name that Services look for.
    pub(super) name: String,
    /// Where the application listens.
    pub(super) number: u16,
    /// The pointer to the port in the application's container.
    pub(super) pointer: String,
}

/// Which port moves, if any; and what the user should know of those that don't.
pub(super) fn takeover(
    pod: &Pod<'_>,
    plan: &Plan,
    around: &Around<'_>,
    warnings: &mut Vec<String>,
) -> Option<Takeover> {
    if around.sidecars == Sidecars::Native && ends(pod) {
        return None; // a native sidecar, whose named ports Services do not find
    }
    let named: Vec<Takeover> = pod
        .containers()
        .flat_map(|container| container.ports().map(move |port| (container, port)).collect::<Vec<_>>())
        .filter_map(|(container, port)| {
            let pointer = format!("{}/ports/{}", container.pointer(), port.index);
            Some(Takeover { name: port.name?.to_owned(), number: port.number, pointer })
        })
        .collect();
    if let Some(asked) = &plan.options.port {
        let found = named.iter().find(|port| port.name == *asked || port.number.to_string() == *asked);
        if found.is_none() {
            warnings.push(format!("throughline: throughline.dev/port: {asked}: no container has such a named port, so callers are not captured"));
        }
        return found.cloned();
    }
    let wanted = wanted_by_services(pod, around, &named, warnings);
    let candidates: Vec<&Takeover> = match &wanted {
        Some(names) => named.iter().filter(|port| names.contains(&port.name)).collect(),
        None => named.iter().collect(),
    };
    let chosen = match candidates.as_slice() {
        [] => None,
        [only] => Some(*only),
        several => {
            several.iter().copied().find(|port| port.name.starts_with("http")).or(several.first().copied())
        }
    };
    let others: Vec<&str> = candidates
        .iter()
        .filter(|port| chosen.is_none_or(|chosen| chosen.pointer != port.pointer))
        .map(|port| port.name.as_str())
        .collect();
    if let (Some(chosen), false) = (chosen, others.is_empty()) {
        warnings.push(format!(
            "throughline: mode reverse captures one port, {}: not {} (throughline.dev/port chooses)",
            chosen.name,
            others.join(", ")
        ));
    }
    if chosen.is_none()
        && wanted.is_none()
        && pod.containers().any(|container| container.ports().next().is_some())
    {
        warnings.push("throughline: mode reverse: no port has a name, so callers are not captured: name it, and use the name as targetPort".to_owned());
    }
    chosen.cloned()
}

/// The names of ports that Services look for in this pod; `None` where no Service is known to want it. A Service
/// that goes by the number goes past the sidecar, and whoever creates the pod is told.
fn wanted_by_services(
    pod: &Pod<'_>,
    around: &Around<'_>,
    named: &[Takeover],
    warnings: &mut Vec<String>,
) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut any = false;
    for service in around.services? {
        let mut selector = pairs(service, "/spec/selector").peekable();
        if selector.peek().is_none() || !selector.all(|(key, value)| pod.label(key) == Some(value)) {
            continue;
        }
        for port in items(service, "/spec/ports") {
            if text(port, "/protocol").is_some_and(|protocol| protocol != "TCP") {
                continue;
            }
            any = true;
            let target = port.get("targetPort").or_else(|| port.get("port"));
            match target {
                Some(Value::String(name)) => names.push(name.clone()),
                Some(Value::Number(number)) => {
                    let name = named.iter().find(|port| Some(u64::from(port.number)) == number.as_u64());
                    let hint = match name {
                        Some(port) => format!("targetPort: {} would", port.name),
                        None => "a named port would".to_owned(),
                    };
                    warnings.push(format!(
                        "throughline: Service {} goes to port {number} by number, past the sidecar: {hint} be captured",
                        text(service, "/metadata/name").unwrap_or("without a name"),
                    ));
                }
                _ => {}
            }
        }
    }
    any.then_some(names)
}

/// Takes the name from the application's port. The number stays, for people and for hostPort.
pub(super) fn release(edit: &mut Edit, takeover: &Takeover) -> Result<(), String> {
    edit.remove(&format!("{}/name", takeover.pointer))
}

/// Points HTTP clients at the sidecar, in each container that has nothing of the kind.
pub(super) fn proxy_environment(
    edit: &mut Edit,
    pod: &Pod<'_>,
    plan: &Plan,
    native: bool,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    if plan.options.proxy_env == ProxyEnv::Never {
        return Ok(());
    }
    let proxy = format!("http://127.0.0.1:{OUTBOUND_PORT}");
    for container in pod.all_containers() {
        // Before an ordinary sidecar runs, init containers would call somebody who is not there.
        if container.list == crate::pod::List::Init && !native {
            continue;
        }
        let has = |names: &[&str]| {
            items(container.raw, "/env")
                .iter()
                .any(|env| text(env, "/name").is_some_and(|name| names.contains(&name)))
        };
        if has(&["HTTP_PROXY", "http_proxy"]) {
            warnings.push(format!(
                "throughline: container {} has an HTTP_PROXY of its own, so its calls are not captured",
                container.name()
            ));
            continue;
        }
        // `env` wins over `envFrom`, whose content is not known here.
        let hidden = items(container.raw, "/envFrom").iter().any(|from| {
            let prefix = text(from, "/prefix").unwrap_or_default();
            ["HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"].iter().any(|name| name.starts_with(prefix))
        });
        if hidden && plan.options.proxy_env != ProxyEnv::Always {
            warnings.push(format!(
                "throughline: container {} takes variables from elsewhere (envFrom), which may name a proxy: its calls are not captured unless throughline.dev/proxy-env: always",
                container.name()
            ));
            continue;
        }
        let env = format!("{}/env", container.pointer());
        edit.append(&env, variable("HTTP_PROXY", proxy.as_str()))?;
        edit.append(&env, variable("http_proxy", proxy.as_str()))?;
        if !has(&["NO_PROXY", "no_proxy"]) {
            edit.append(&env, variable("NO_PROXY", "localhost,127.0.0.1,::1"))?;
            edit.append(&env, variable("no_proxy", "localhost,127.0.0.1,::1"))?;
        }
    }
    Ok(())
}
