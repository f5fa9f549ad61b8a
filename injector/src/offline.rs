//! `inject -f`: injects into manifests without a cluster. Pods, and what has a pod template, in as many documents
//! as come; all other documents go through as they are, to the byte. Must never drop or reorder a field: the patch
//! is applied to the YAML itself, whose comments alone are lost.

use std::fmt::Write as _;

use serde_json::{Value, json};
use serde_yaml::Value as Yaml;

use crate::json::{items, text};
use crate::names::INJECT;
use crate::patch;
use crate::policy::{Around, Decision, Owner, Sidecars, decide};
use crate::settings::Settings;

/// What came of a file.
#[derive(Debug, Default)]
pub struct Injected {
    /// The documents.
    pub yaml: String,
    /// What was changed, as a unified diff.
    pub diff: String,
    /// One sentence for each thing that the user should know.
    pub told: Vec<String>,
    /// Pods and templates that got a sidecar.
    pub count: usize,
}

/// Injects into a text of YAML documents (or one of JSON). `namespace`: of what names none itself.
///
/// # Errors
/// Which document is no YAML.
pub fn inject(
    text: &str,
    namespace: &str,
    sidecars: Sidecars,
    settings: &Settings,
) -> Result<Injected, String> {
    let chunks = documents(text);
    let mut parsed = Vec::new();
    for (number, chunk) in chunks.iter().enumerate() {
        let yaml = crate::yaml::read(chunk).map_err(|error| format!("document {}: {error}", number + 1))?;
        parsed.push(yaml);
    }
    let world = World::of(&parsed, namespace);
    let mut out = Injected::default();
    for (number, (chunk, mut yaml)) in chunks.iter().zip(parsed).enumerate() {
        if number > 0 {
            out.yaml.push_str("---\n");
        }
        let before = yaml.clone();
        let count = each_resource(&mut yaml, &mut |resource| {
            one(resource, &world, sidecars, settings, &mut out.told)
        });
        out.count += count;
        if count == 0 {
            out.yaml.push_str(chunk);
            if !chunk.is_empty() && !chunk.ends_with('\n') {
                out.yaml.push('\n');
            }
            continue;
        }
        if chunk.lines().any(|line| line.trim_start().starts_with('#') || line.contains(" #")) {
            out.told.push(format!("document {}: its comments are lost", number + 1));
        }
        let said = |yaml: &Yaml| {
            crate::yaml::write(yaml).map_err(|error| format!("document {}: {error}", number + 1))
        };
        let (before, after) = (said(&before)?, said(&yaml)?);
        out.diff.push_str(&crate::diff::unified(&before, &after, &format!("document {}", number + 1)));
        out.yaml.push_str(&after);
    }
    if out.count == 0 && out.told.is_empty() {
        out.told.push("no document is a pod or has a pod template: nothing was changed".to_owned());
    }
    Ok(out)
}

/// The text between lines of `---`.
fn documents(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") {
            // What stands before the first marker counts if it is more than comments.
            let empty =
                all.len() == 1 && all.iter().all(|chunk| chunk.lines().all(|line| line.trim().is_empty()));
            if empty {
                all.clear();
            }
            all.push(bare.strip_prefix("--- ").map(|rest| format!("{rest}\n")).unwrap_or_default());
        } else if let Some(last) = all.last_mut() {
            last.push_str(line);
        }
    }
    all
}

/// What the documents say of each other.
struct World {
    default: String,
    namespaces: Vec<Value>,
    services: Vec<(String, Value)>,
}

impl World {
    fn of(parsed: &[Yaml], default: &str) -> Self {
        let mut world = Self { default: default.to_owned(), namespaces: Vec::new(), services: Vec::new() };
        let all = parsed.iter().filter_map(|yaml| serde_json::to_value(yaml).ok());
        for document in all {
            let listed = items(&document, "/items").to_vec();
            for one in std::iter::once(document).chain(listed) {
                match text(&one, "/kind") {
                    Some("Namespace") => world.namespaces.push(one),
                    Some("Service") => world.services.push((world.namespace_of(&one), one)),
                    _ => {}
                }
            }
        }
        world
    }

    fn namespace_of(&self, resource: &Value) -> String {
        text(resource, "/metadata/namespace").unwrap_or(&self.default).to_owned()
    }
}

/// Calls `with` for the resource, or for each of a List; counts how often it changed something.
fn each_resource(yaml: &mut Yaml, with: &mut impl FnMut(&mut Yaml) -> bool) -> usize {
    let is_list = yaml.get("kind").and_then(Yaml::as_str).is_some_and(|kind| kind.ends_with("List"));
    match yaml.get_mut("items").and_then(Yaml::as_sequence_mut) {
        Some(all) if is_list => all.iter_mut().map(|one| usize::from(with(one))).sum(),
        _ => usize::from(with(yaml)),
    }
}

fn one(
    resource: &mut Yaml,
    world: &World,
    sidecars: Sidecars,
    settings: &Settings,
    told: &mut Vec<String>,
) -> bool {
    let kind = resource.get("kind").and_then(Yaml::as_str).unwrap_or_default().to_owned();
    let path: &[&str] = match kind.as_str() {
        "Pod" => &[],
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            &["spec", "template"]
        }
        "CronJob" => &["spec", "jobTemplate", "spec", "template"],
        "PodTemplate" => &["template"],
        _ => return false,
    };
    let json = serde_json::to_value(&*resource).unwrap_or(Value::Null);
    let name =
        text(&json, "/metadata/name").or(text(&json, "/metadata/generateName")).unwrap_or("without a name");
    let what = format!("{kind} {name}");
    let namespace = world.namespace_of(&json);
    let pointer: String = path.iter().map(|part| format!("/{part}")).collect();
    let Some(pod) = json.pointer(&pointer) else {
        told.push(format!("{what}: not injected: it has no pod template"));
        return false;
    };
    // Whoever calls this command wants it; a Namespace among the documents may say more.
    let known = world.namespaces.iter().find(|one| text(one, "/metadata/name") == Some(&namespace));
    let mut namespace_object = known.cloned().unwrap_or_else(|| json!({}));
    label(&mut namespace_object);
    let services: Vec<Value> = world
        .services
        .iter()
        .filter(|(of, _)| *of == namespace)
        .map(|(_, service)| service.clone())
        .collect();
    let owner = (kind != "Pod").then(|| Owner { kind: kind.clone(), name: name.to_owned() });
    let around = Around {
        namespace: &namespace,
        namespace_object: &namespace_object,
        services: (!services.is_empty()).then_some(services.as_slice()),
        owner,
        sidecars,
        own_namespace: &settings.namespace,
    };
    let built = match decide(pod, &around, &settings.injecting) {
        Decision::Inject(plan) => patch::build(pod, &plan, &around, &settings.injecting),
        Decision::Skip(reason, _) => {
            told.push(format!("{what}: not injected: {}", reason.sentence()));
            return false;
        }
        Decision::Baffled(why) => Err(why),
    };
    let place = path.iter().try_fold(resource, |place, part| place.get_mut(*part));
    match (built, place) {
        (Ok(built), Some(place)) => {
            let mut changed = place.clone();
            if let Err(why) = apply(&mut changed, &built.operations) {
                told.push(format!("{what}: not injected: {why}"));
                return false;
            }
            *place = changed;
            told.extend(
                built.warnings.iter().map(|w| format!("{what}: {}", w.trim_start_matches("throughline: "))),
            );
            true
        }
        (Err(why), _) => {
            told.push(format!("{what}: not injected: {why}"));
            false
        }
        (Ok(_), None) => false,
    }
}

fn label(namespace: &mut Value) {
    let pointers = [("", "metadata"), ("/metadata", "labels")];
    for (at, key) in pointers {
        if let Some(Value::Object(object)) = namespace.pointer_mut(at) {
            object.entry(key).or_insert_with(|| json!({}));
        }
    }
    if let Some(Value::Object(labels)) = namespace.pointer_mut("/metadata/labels") {
        labels.insert(INJECT.to_owned(), json!("enabled"));
    }
}

/// Applies operations to YAML, where the order of keys is the user's.
fn apply(document: &mut Yaml, operations: &[Value]) -> Result<(), String> {
    for operation in operations {
        let (op, path) =
            (text(operation, "/op").unwrap_or_default(), text(operation, "/path").unwrap_or_default());
        let value = operation
            .get("value")
            .map(serde_yaml::to_value)
            .transpose()
            .map_err(|error| error.to_string())?
            .map(named_first);
        let fails = || format!("{op} {path} does not apply");
        let (parent, last) = path.rsplit_once('/').ok_or_else(fails)?;
        let unescaped = |part: &str| part.replace("~1", "/").replace("~0", "~");
        let parent = parent.split('/').skip(1).try_fold(&mut *document, |place, part| match place {
            Yaml::Sequence(all) => all.get_mut(part.parse::<usize>().ok()?),
            place => place.get_mut(unescaped(part)),
        });
        match (parent.ok_or_else(fails)?, op, value) {
            (Yaml::Sequence(all), "add", Some(value)) if last == "-" => all.push(value),
            (Yaml::Sequence(all), "add", Some(value)) => {
                let at = last.parse::<usize>().ok().filter(|at| *at <= all.len()).ok_or_else(fails)?;
                all.insert(at, value);
            }
            (Yaml::Sequence(all), "remove", _) => {
                let at = last.parse::<usize>().ok().filter(|at| *at < all.len()).ok_or_else(fails)?;
                all.remove(at);
            }
            (Yaml::Mapping(map), "add" | "replace", Some(value)) => {
                map.insert(Yaml::String(unescaped(last)), value);
            }
            (Yaml::Mapping(map), "remove", _) => {
                map.shift_remove(unescaped(last).as_str()).ok_or_else(fails)?;
            }
            _ => return Err(fails()),
        }
    }
    Ok(())
}

/// What is added reads as people write it: names first.
fn named_first(value: Yaml) -> Yaml {
    match value {
        Yaml::Mapping(map) => {
            let (mut first, mut rest) = (serde_yaml::Mapping::new(), serde_yaml::Mapping::new());
            for (key, value) in map {
                let into = if key.as_str() == Some("name") { &mut first } else { &mut rest };
                into.insert(key, named_first(value));
            }
            first.extend(rest);
            Yaml::Mapping(first)
        }
        Yaml::Sequence(all) => Yaml::Sequence(all.into_iter().map(named_first).collect()),
        other => other,
    }
}

/// What was told, as lines.
pub fn lines(told: &[String]) -> String {
    let mut all = String::new();
    for one in told {
        let _ = writeln!(all, "# {one}");
    }
    all
}
