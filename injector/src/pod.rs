//! A pod as the decisions see it: raw JSON whose shape was looked at once. Unknown fields stay where they are.
//! Must never turn a pod into a typed one and back, which would lose what this version does not know.

use serde_json::Value;

use crate::json::{entry, items, text};

/// A pod whose parts are of the kind that the decisions rely on.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a> {
    raw: &'a Value,
}

/// In which list of the pod a container stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum List {
    /// `spec.containers`.
    Containers,
    /// `spec.initContainers`.
    Init,
}

impl List {
    /// Its name in `spec`.
    pub fn name(self) -> &'static str {
        match self {
            List::Containers => "containers",
            List::Init => "initContainers",
        }
    }
}

/// A container and its place.
#[derive(Clone, Copy, Debug)]
pub struct Container<'a> {
    /// In which list.
    pub list: List,
    /// At which place of it.
    pub index: usize,
    /// The container itself.
    pub raw: &'a Value,
}

impl<'a> Container<'a> {
    /// Its name, which the reading has made sure of.
    pub fn name(&self) -> &'a str {
        text(self.raw, "/name").unwrap_or_default()
    }

    /// The pointer to it.
    pub fn pointer(&self) -> String {
        format!("/spec/{}/{}", self.list.name(), self.index)
    }

    /// The user id it runs as, if it says so.
    pub fn user(&self) -> Option<i64> {
        self.raw.pointer("/securityContext/runAsUser")?.as_i64()
    }

    /// An init container that goes on running.
    pub fn is_native_sidecar(&self) -> bool {
        self.list == List::Init && text(self.raw, "/restartPolicy") == Some("Always")
    }

    /// Its TCP ports: place, name, number.
    pub fn ports(&self) -> impl Iterator<Item = Port<'a>> {
        let tcp = |port: &&Value| text(port, "/protocol").is_none_or(|protocol| protocol == "TCP");
        items(self.raw, "/ports").iter().enumerate().filter(move |(_, port)| tcp(port)).filter_map(
            |(index, port)| {
                let number = port.pointer("/containerPort")?.as_u64()?;
                Some(Port { index, name: text(port, "/name"), number: u16::try_from(number).ok()? })
            },
        )
    }

    /// The number that a port of this name has in this container.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        self.ports().find(|port| port.name == Some(name)).map(|port| port.number)
    }
}

/// A TCP port that a container declares.
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    /// Place in the container's list.
    pub index: usize,
    /// Its name, if it has one.
    pub name: Option<&'a str>,
    /// Its number.
    pub number: u16,
}

impl<'a> Pod<'a> {
    /// Looks at the shape; `Err` says what is of another kind than a pod's.
    pub fn read(raw: &'a Value) -> Result<Self, String> {
        let spec = raw.get("spec").and_then(Value::as_object).ok_or("spec: want an object")?;
        for list in ["containers", "initContainers", "volumes"] {
            match spec.get(list) {
                None | Some(Value::Null) if list == "containers" => {
                    return Err("spec.containers: want a list with a container".to_owned());
                }
                None | Some(Value::Null) => {}
                Some(Value::Array(all)) => {
                    if all.is_empty() && list == "containers" {
                        return Err("spec.containers: want a container in it".to_owned());
                    }
                    for (index, one) in all.iter().enumerate() {
                        if text(one, "/name").is_none() {
                            return Err(format!("spec.{list}[{index}].name: want text"));
                        }
                        shape_of_container(one).map_err(|what| format!("spec.{list}[{index}].{what}"))?;
                    }
                }
                Some(_) => return Err(format!("spec.{list}: want a list")),
            }
        }
        for map in ["labels", "annotations"] {
            let found = raw.pointer(&format!("/metadata/{map}"));
            let fits = match found {
                None | Some(Value::Null) => true,
                Some(Value::Object(entries)) => entries.values().all(Value::is_string),
                Some(_) => false,
            };
            if !fits {
                return Err(format!("metadata.{map}: want a map of texts"));
            }
        }
        Ok(Self { raw })
    }

    /// The raw JSON.
    pub fn raw(&self) -> &'a Value {
        self.raw
    }

    /// The containers that run beside each other.
    pub fn containers(&self) -> impl Iterator<Item = Container<'a>> {
        self.list(List::Containers)
    }

    /// The containers that run before, and native sidecars.
    pub fn init_containers(&self) -> impl Iterator<Item = Container<'a>> {
        self.list(List::Init)
    }

    /// All of both lists.
    pub fn all_containers(&self) -> impl Iterator<Item = Container<'a>> {
        self.init_containers().chain(self.containers())
    }

    fn list(&self, list: List) -> impl Iterator<Item = Container<'a>> {
        let all = items(self.raw, &format!("/spec/{}", list.name()));
        all.iter().enumerate().map(move |(index, raw)| Container { list, index, raw })
    }

    /// A label.
    pub fn label(&self, key: &str) -> Option<&'a str> {
        entry(self.raw, "/metadata/labels", key)
    }

    /// An annotation.
    pub fn annotation(&self, key: &str) -> Option<&'a str> {
        entry(self.raw, "/metadata/annotations", key)
    }

    /// The name, or what a controller begins the name with.
    pub fn name(&self) -> Option<&'a str> {
        text(self.raw, "/metadata/name")
            .filter(|name| !name.is_empty())
            .or_else(|| text(self.raw, "/metadata/generateName").map(|name| name.trim_end_matches('-')))
    }

    /// Whether the user id of the pod as a whole, or of one of its containers, is this one.
    pub fn runs_as(&self, user: i64) -> Option<Container<'a>> {
        let of_pod = self.raw.pointer("/spec/securityContext/runAsUser").and_then(Value::as_i64);
        self.all_containers().find(|container| container.user().or(of_pod) == Some(user))
    }
}

/// The parts of a container or volume that are walked through.
fn shape_of_container(raw: &Value) -> Result<(), &'static str> {
    let list = |key: &str| raw.get(key).is_none_or(|value| value.is_array() || value.is_null());
    let object = |key: &str| raw.get(key).is_none_or(|value| value.is_object() || value.is_null());
    if !list("ports") {
        return Err("ports: want a list");
    }
    if !list("env") || !list("envFrom") {
        return Err("env: want a list");
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "securityContext"] {
        if !object(key) {
            return Err(
                "livenessProbe, readinessProbe, startupProbe, lifecycle, securityContext: want objects",
            );
        }
    }
    Ok(())
}
