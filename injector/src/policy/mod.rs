//! Whether a pod gets a sidecar, which one, and if not, why. Pure: the pod, its namespace and the cluster's age
//! in, a decision out. Must never look anything up, and never leave a pod without a stated reason.

mod options;
mod skip;

pub use options::{ANNOTATIONS, Options, ProxyEnv};
pub use skip::Skip;

use serde_json::Value;

use crate::json::{entry, text};
use crate::names::{
    ADMIN_PORT, ENVOY, INBOUND_PORT, INJECT, OTHER_MESHES, OUTBOUND_PORT, PROXY, PROXY_UID, RULES,
    SYSTEM_NAMESPACES,
};
use crate::pod::Pod;
use crate::settings::{Injecting, Mode};

/// What the cluster makes of an init container with `restartPolicy: Always`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Sidecars {
    /// Older than 1.29 somewhere: it would be an init container that never ends.
    Ordinary,
    /// 1.29: a native sidecar, but a Service does not find its named ports (kubernetes#127976, #128850).
    Native,
    /// 1.33: its named ports too.
    NativeWithPorts,
}

impl Sidecars {
    /// What a version such as `v1.29.3` can do. One that can't be read counts as old.
    pub fn of_version(version: &str) -> Self {
        let mut parts = version.trim_start_matches('v').split('.');
        let mut number = || -> Option<u32> {
            let part = parts.next()?;
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part.get(..end)?.parse().ok()
        };
        match (number(), number()) {
            (Some(1), Some(minor)) if minor < 29 => Sidecars::Ordinary,
            (Some(1), Some(minor)) if minor < 33 => Sidecars::Native,
            (Some(major), Some(_)) if major >= 1 => Sidecars::NativeWithPorts,
            _ => Sidecars::Ordinary,
        }
    }
}

/// Who made a pod, where it does not say so itself: the workload of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// `Deployment`, `StatefulSet`, …
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// What is around a pod.
#[derive(Clone, Debug)]
pub struct Around<'a> {
    /// Name of its namespace.
    pub namespace: &'a str,
    /// The namespace as JSON: its labels and annotations count.
    pub namespace_object: &'a Value,
    /// The Services of the namespace; `None` where nobody knows them.
    pub services: Option<&'a [Value]>,
    /// Who made the pod, where it does not say so.
    pub owner: Option<Owner>,
    /// What the cluster can do.
    pub sidecars: Sidecars,
    /// The injector's own namespace.
    pub own_namespace: &'a str,
}

/// What is to be done with a pod.
#[derive(Clone, Debug)]
pub enum Decision {
    /// It gets a sidecar.
    Inject(Box<Plan>),
    /// It is left alone, for this reason.
    Skip(Skip, Vec<String>),
    /// It is left alone because it was not understood: what was expected.
    Baffled(String),
}

/// What is injected.
#[derive(Clone, Debug)]
pub struct Plan {
    /// By which capture.
    pub mode: Mode,
    /// What the pod, its namespace and the settings say together.
    pub options: Options,
    /// One sentence each.
    pub warnings: Vec<String>,
}

/// Decides about a pod that is being created, or that is running.
pub fn decide(raw: &Value, around: &Around<'_>, settings: &Injecting) -> Decision {
    let skip = |reason| Decision::Skip(reason, Vec::new());
    if SYSTEM_NAMESPACES.contains(&around.namespace) {
        return skip(Skip::SystemNamespace);
    }
    if around.namespace == around.own_namespace {
        return skip(Skip::OwnNamespace);
    }
    match wanted(raw, around.namespace_object) {
        Ok(Wanted::Yes) => {}
        Ok(Wanted::OptedOut) => return skip(Skip::OptedOut),
        Ok(Wanted::NotAsked) => return skip(Skip::NotLabelled),
        Err(told) => return Decision::Baffled(told),
    }
    let pod = match Pod::read(raw) {
        Ok(pod) => pod,
        Err(told) => return Decision::Baffled(told),
    };
    if let Some(reason) = never(&pod) {
        return skip(reason);
    }
    let mut warnings = Vec::new();
    let options = match options::read(&pod, around, settings, &mut warnings) {
        Ok(options) => options,
        Err(told) => return Decision::Baffled(told.join("; ")),
    };
    match mode(&pod, around, settings, &options, &mut warnings) {
        Ok(mode) => Decision::Inject(Box::new(Plan { mode, options, warnings })),
        Err(reason) => {
            if let Some(warning) = reason.warning() {
                warnings.push(warning);
            }
            Decision::Skip(reason, warnings)
        }
    }
}

enum Wanted {
    Yes,
    OptedOut,
    NotAsked,
}

/// The pod's own word wins over its namespace's.
fn wanted(raw: &Value, namespace: &Value) -> Result<Wanted, String> {
    let of_pod =
        entry(raw, "/metadata/annotations", INJECT).or_else(|| entry(raw, "/metadata/labels", INJECT));
    match of_pod {
        Some("disabled" | "false") => return Ok(Wanted::OptedOut),
        Some("enabled" | "true") => return Ok(Wanted::Yes),
        Some(other) => {
            return Err(format!("{INJECT}: \"{}\": want enabled or disabled", other.escape_debug()));
        }
        None => {}
    }
    Ok(match entry(namespace, "/metadata/labels", INJECT) {
        Some("enabled" | "true") => Wanted::Yes,
        _ => Wanted::NotAsked,
    })
}

/// What holds in every mode.
fn never(pod: &Pod<'_>) -> Option<Skip> {
    let raw = pod.raw();
    let os = text(raw, "/spec/os/name")
        .or_else(|| entry(raw, "/spec/nodeSelector", "kubernetes.io/os"))
        .or_else(|| entry(raw, "/spec/nodeSelector", "beta.kubernetes.io/os"));
    if os == Some("windows") {
        return Some(Skip::Windows);
    }
    if pod.all_containers().any(|container| [PROXY, ENVOY, RULES].contains(&container.name())) {
        return Some(Skip::Already);
    }
    if raw.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true) {
        return Some(Skip::HostNetwork);
    }
    // The kubelet's own copy of a static pod: changing it changes nothing.
    pod.annotation("kubernetes.io/config.mirror").map(|_| Skip::StaticPod)
}

/// Whether the pod ends by itself, as those of Jobs do.
pub fn ends(pod: &Pod<'_>) -> bool {
    text(pod.raw(), "/spec/restartPolicy").is_some_and(|policy| policy != "Always")
}

/// Which mode, and whether the pod can have it.
fn mode(
    pod: &Pod<'_>,
    around: &Around<'_>,
    settings: &Injecting,
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<Mode, Skip> {
    let asked = options.mode.or(settings.mode);
    let enforced = entry(around.namespace_object, "/metadata/labels", "pod-security.kubernetes.io/enforce");
    let forbidden = enforced.is_some_and(|level| level == "restricted" || level == "baseline");
    let mode = match asked {
        Some(Mode::IstioWasm) => return Err(Skip::LeftToIstio),
        Some(mode) if mode.redirects() && forbidden => return Err(Skip::PodSecurity),
        Some(mode) => mode,
        None if forbidden => {
            warnings.push(format!(
                "throughline: the namespace enforces Pod Security {}, which forbids the redirect: mode reverse",
                enforced.unwrap_or_default()
            ));
            Mode::Reverse
        }
        None => Mode::Sidecar,
    };
    if mode.redirects() && pod.all_containers().any(|container| OTHER_MESHES.contains(&container.name())) {
        return Err(Skip::OtherMesh);
    }
    if mode.redirects() && pod.runs_as(PROXY_UID).is_some() {
        return Err(Skip::UidInUse);
    }
    let ours = [ADMIN_PORT, INBOUND_PORT, OUTBOUND_PORT];
    let taken = pod.all_containers().flat_map(|container| container.ports().collect::<Vec<_>>());
    if let Some(port) = taken.into_iter().find(|port| ours.contains(&port.number)) {
        return Err(Skip::PortInUse(port.number));
    }
    if around.sidecars == Sidecars::Ordinary && ends(pod) {
        return Err(Skip::WouldNeverEnd);
    }
    Ok(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_kubelets_and_clouds_write_them() {
        for (version, can) in [
            ("v1.28.15", Sidecars::Ordinary),
            ("v1.29.0", Sidecars::Native),
            ("v1.32.4-gke.1106", Sidecars::Native),
            ("v1.33.0+k3s1", Sidecars::NativeWithPorts),
            ("1.40", Sidecars::NativeWithPorts),
            ("v1.29+", Sidecars::Native),
            ("v2.0.0", Sidecars::NativeWithPorts),
            ("", Sidecars::Ordinary),
            ("fargate", Sidecars::Ordinary),
        ] {
            assert_eq!(Sidecars::of_version(version), can, "{version:?}");
        }
    }
}
