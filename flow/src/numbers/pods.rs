//! Who sends: pods by service, and which of them have a sidecar or filter of ours. Must never grow with what senders
//! invent, and never decide what a number is.

use super::answer::Pod;
use super::foreign::Met;
use super::keys::{Map, Name, NodeId, Seeded};
use super::limits;

/// A sidecar that was silent for longer covers nobody.
const COVERS_NANOS: u64 = 15 * 60 * 1_000_000_000;

#[derive(Clone, Debug)]
struct Known {
    pod: Pod,
    /// Of its name, else of its instance.
    id: u64,
    /// Of its name; 0 where it has none.
    named: u64,
    /// When a sidecar or filter of ours last told of it, and when anybody else did.
    ours: u64,
    others: u64,
}

#[derive(Clone, Debug, Default)]
struct Service {
    pods: Vec<Known>,
    deployment: String,
}

/// All senders by service.
#[derive(Clone, Debug)]
pub(super) struct Pods {
    services: Map<(u16, NodeId), Service>,
    /// Environment, namespace and node of what has this name.
    by_name: Map<Name, Vec<(u16, Name, NodeId)>>,
}

/// What a sender says of its pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    /// The pod's name, else the instance's, hashed.
    pub(super) id: u64,
    pub(super) pod: &'a [u8],
    pub(super) instance: &'a [u8],
    pub(super) node: &'a [u8],
    pub(super) version: &'a [u8],
    pub(super) deployment: &'a [u8],
    pub(super) ours: bool,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..limits::NAME_BYTES_MAX).unwrap_or(bytes)).into_owned()
}

impl Pods {
    pub(super) fn new(hash: Seeded) -> Self {
        Self { services: Map::with_hasher(hash), by_name: Map::with_hasher(hash) }
    }

    /// Notes a sender. Says whether a pod is covered since then that was not.
    pub(super) fn meet(&mut self, met: &Met, name: Name, said: &Said<'_>, now: u64) -> bool {
        let place = (met.environment, met.namespace, met.service);
        let of_name = self.by_name.entry(name).or_default();
        if !of_name.contains(&place) {
            of_name.push(place);
        }
        let service = self.services.entry((met.environment, met.service)).or_default();
        if !said.deployment.is_empty() && service.deployment.as_bytes() != said.deployment {
            service.deployment = text(said.deployment);
        }
        let known = match service.pods.iter().position(|known| known.id == said.id) {
            Some(at) => service.pods.get_mut(at),
            None => {
                if service.pods.len() >= limits::PODS_MAX {
                    let oldest =
                        service.pods.iter().enumerate().min_by_key(|(_, known)| known.ours.max(known.others));
                    let oldest = oldest.map_or(0, |(at, _)| at);
                    service.pods.swap_remove(oldest);
                }
                let name = if said.pod.is_empty() { said.instance } else { said.pod };
                let pod = Pod {
                    name: text(name),
                    node: text(said.node),
                    version: text(said.version),
                    last_seen_unix_nanos: 0,
                };
                service.pods.push(Known { pod, id: said.id, named: met.pod, ours: 0, others: 0 });
                service.pods.last_mut()
            }
        };
        let Some(known) = known else { return false };
        if !said.version.is_empty() && known.pod.version.as_bytes() != said.version {
            known.pod.version = text(said.version);
        }
        known.pod.last_seen_unix_nanos = now;
        if said.ours {
            let is_new = known.ours.saturating_add(COVERS_NANOS) < now;
            known.ours = now;
            is_new
        } else {
            known.others = now;
            false
        }
    }

    /// Whether a sidecar or filter of ours stands beside this sender. Without names of pods one covers them all.
    pub(super) fn covers(&self, met: &Met, name: Name, now: u64) -> bool {
        let Some(of_name) = self.by_name.get(&name) else { return false };
        of_name.iter().any(|(environment, namespace, node)| {
            let same = |one: u32, other: u32| one == other || one == 0 || other == 0;
            same(u32::from(*environment), u32::from(met.environment))
                && same(*namespace, met.namespace)
                && self.services.get(&(*environment, *node)).is_some_and(|service| {
                    service
                        .pods
                        .iter()
                        .filter(|known| known.ours.saturating_add(COVERS_NANOS) >= now && known.ours > 0)
                        .any(|known| known.named == met.pod || known.named == 0 || met.pod == 0)
                })
        })
    }

    /// Whether all pods of a service that were heard of since `from` are covered, and whether any is.
    pub(super) fn coverage(&self, environment: Option<u16>, node: NodeId, from: u64) -> (bool, bool) {
        let pods = self.of(environment, node).filter(|known| known.pod.last_seen_unix_nanos >= from);
        pods.fold((true, false), |(all, any), known| (all && known.ours > 0, any || known.ours > 0))
    }

    fn of(&self, environment: Option<u16>, node: NodeId) -> impl Iterator<Item = &Known> {
        let services = self.services.iter();
        let one = move |(of, service): &(&(u16, NodeId), &Service)| {
            let _ = service;
            of.1 == node && environment.is_none_or(|environment| of.0 == environment)
        };
        services.filter(one).flat_map(|(_, service)| &service.pods)
    }

    /// Pods that were heard of in a time, the newest first, and the deployment.
    pub(super) fn list(&self, environment: u16, node: NodeId, from: u64) -> (Vec<Pod>, String) {
        let Some(service) = self.services.get(&(environment, node)) else { return Default::default() };
        let heard = service.pods.iter().filter(|known| known.pod.last_seen_unix_nanos >= from);
        let mut pods: Vec<Pod> = heard.map(|known| known.pod.clone()).collect();
        // Spans may come without what metrics of the same pod are named by: that is no pod more.
        if pods.iter().any(|pod| !pod.name.is_empty()) {
            pods.retain(|pod| !pod.name.is_empty());
        }
        pods.sort_unstable_by(|one, other| {
            other.last_seen_unix_nanos.cmp(&one.last_seen_unix_nanos).then_with(|| one.name.cmp(&other.name))
        });
        (pods, service.deployment.clone())
    }

    /// Services heard of.
    pub(super) fn services(&self) -> impl Iterator<Item = (u16, NodeId)> {
        self.services.keys().copied()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.services.values().map(|service| 100 + service.pods.len() as u64 * 250).sum()
    }
}
