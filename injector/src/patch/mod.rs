//! Builds the JSON patch of a decision: the pod in, operations and warnings out. Must never touch a field that it
//! has nothing to say about; whatever does not apply is an error, and then nothing is patched.

mod containers;
mod edit;
mod envoy;
mod identity;
mod probes;
mod reverse;

pub use edit::apply;
pub use envoy::bootstrap;

use serde_json::{Value, json};

use crate::names::{STATUS, VERSION};
use crate::pod::{List, Pod};
use crate::policy::{Around, Plan, Sidecars, ends};
use crate::settings::{Injecting, Mode};
use edit::Edit;
use identity::Identity;
use reverse::Takeover;

/// What was built.
#[derive(Clone, Debug)]
pub struct Patch {
    /// Operations of RFC 6902, in order.
    pub operations: Vec<Value>,
    /// One sentence each, for whoever creates the pod.
    pub warnings: Vec<String>,
    /// Whether the sidecar is a native one.
    pub native: bool,
}

/// Builds the patch. `Err`: what in the pod was not as expected.
pub fn build(raw: &Value, plan: &Plan, around: &Around<'_>, settings: &Injecting) -> Result<Patch, String> {
    let pod = Pod::read(raw)?;
    let mut edit = Edit::new(raw);
    let mut warnings = plan.warnings.clone();
    let identity = Identity::of(&pod, plan, around, settings);

    let takeover = match plan.mode {
        Mode::Reverse => reverse::takeover(&pod, plan, around, &mut warnings),
        Mode::Sidecar | Mode::EnvoyWasm | Mode::IstioWasm => None,
    };
    let probes = probes::rewrite(&mut edit, &pod, plan, takeover.as_ref(), &mut warnings)?;
    let native = is_native(around.sidecars, &pod, takeover.as_ref());
    if plan.mode == Mode::Reverse {
        if let Some(takeover) = &takeover {
            reverse::release(&mut edit, takeover)?;
        }
        reverse::proxy_environment(&mut edit, &pod, plan, native, &mut warnings)?;
    }

    let make = containers::Make { plan, settings, identity: &identity, pod: &pod, native };
    let sidecar = match plan.mode {
        Mode::EnvoyWasm => envoy::container(&make, &probes)?,
        Mode::Sidecar | Mode::Reverse | Mode::IstioWasm => make.sidecar(&probes, takeover.as_ref()),
    };
    let rules = plan.mode.redirects().then(|| make.rules());
    place(&mut edit, &pod, native, rules, sidecar)?;
    annotate(&mut edit, &pod, plan.mode)?;
    Ok(Patch { operations: edit.finish(), warnings, native })
}

/// Native wherever the cluster can do it. A port that Services look for by name is moved to a native sidecar only
/// where they find it there; a pod that ends by itself keeps its ports and has a native one.
fn is_native(sidecars: Sidecars, pod: &Pod<'_>, takeover: Option<&Takeover>) -> bool {
    match (sidecars, takeover) {
        (Sidecars::Ordinary, _) => false,
        (Sidecars::Native, Some(_)) => ends(pod),
        (Sidecars::Native, None) | (Sidecars::NativeWithPorts, _) => true,
    }
}

/// Native: rules and sidecar are the first two init containers, so that those of the application have a network
/// that works. Ordinary: the rules come last, since until the sidecar runs nobody would serve what they redirect;
/// the sidecar of reverse mode comes first of the containers, which start in that order.
fn place(
    edit: &mut Edit,
    pod: &Pod<'_>,
    native: bool,
    rules: Option<Value>,
    sidecar: Value,
) -> Result<(), String> {
    let inits = pod.init_containers().count();
    let with_rules = rules.is_some();
    let mut first: Vec<Value> = rules.into_iter().collect();
    if native {
        first.push(sidecar);
        return edit.insert(List::Init, 0, first);
    }
    edit.insert(List::Init, inits, first)?;
    if with_rules {
        return edit.insert(List::Containers, pod.containers().count(), vec![sidecar]);
    }
    edit.insert(List::Containers, 0, vec![sidecar])?;
    // kubectl logs and exec would otherwise mean the sidecar.
    const DEFAULT: &str = "kubectl.kubernetes.io/default-container";
    match (pod.annotation(DEFAULT), pod.containers().next()) {
        (None, Some(container)) => edit.annotation(DEFAULT, container.name()),
        _ => Ok(()),
    }
}

fn annotate(edit: &mut Edit, pod: &Pod<'_>, mode: Mode) -> Result<(), String> {
    let status = format!("{} {VERSION}", mode.name());
    match pod.annotation(STATUS) {
        Some(said) if said == status => Ok(()),
        _ => edit.annotation(STATUS, &status),
    }
}

/// An environment variable.
fn variable(name: &str, value: impl Into<String>) -> Value {
    json!({"name": name, "value": value.into()})
}

/// Text that Kubernetes must not expand: `$(NAME)` means a variable there.
fn literal(text: &str) -> String {
    text.replace("$(", "$$(")
}
