//! The world of a scenario: a collector, and pods, each an application with a sidecar before it.

use std::net::SocketAddr;

use crate::books::Books;
use crate::collector::Collector;
use crate::service::{Script, Service};
use crate::sidecar::{Ended, Plan, Sidecar};
use crate::span::Span;
use crate::wait::eventually;

/// A collector and the pods that report to it.
#[derive(Debug)]
pub struct Mesh {
    /// The collector of all pods.
    pub collector: Collector,
}

impl Mesh {
    /// A world with a collector and nobody else.
    pub async fn new() -> Mesh {
        Mesh { collector: Collector::start().await }
    }

    /// Plans a pod.
    pub fn pod(&self, name: &str) -> PodPlan {
        let endpoint = self.collector.endpoint();
        PodPlan {
            name: name.to_owned(),
            changes: vec![
                Change::Environment("OTEL_EXPORTER_OTLP_ENDPOINT".into(), endpoint),
                Change::Environment("OTEL_RESOURCE_ATTRIBUTES".into(), "service.namespace=shop".into()),
            ],
        }
    }

    /// Ends pods, callers first, and returns every span of the whole story. Each sidecar's books must balance,
    /// and each must end cleanly: so nothing is still to come, and exact counts can be asserted.
    pub async fn end(&self, pods: impl IntoIterator<Item = Pod>) -> Vec<Span> {
        for pod in pods {
            pod.end().await;
        }
        self.collector.accepted()
    }
}

#[derive(Debug)]
enum Change {
    Flag(String, String),
    Environment(String, String),
    Without(String),
    Hosts(std::path::PathBuf),
    Build(crate::sidecar::Build),
}

/// A pod to be started.
#[derive(Debug)]
pub struct PodPlan {
    name: String,
    changes: Vec<Change>,
}

impl PodPlan {
    /// Sets a flag of the sidecar.
    pub fn flag(mut self, name: &str, value: impl std::fmt::Display) -> PodPlan {
        self.changes.push(Change::Flag(name.to_owned(), value.to_string()));
        self
    }

    /// Sets an environment variable of the sidecar.
    pub fn environment(mut self, name: &str, value: impl std::fmt::Display) -> PodPlan {
        self.changes.push(Change::Environment(name.to_owned(), value.to_string()));
        self
    }

    /// Removes a flag.
    pub fn without(mut self, name: &str) -> PodPlan {
        self.changes.push(Change::Without(name.to_owned()));
        self
    }

    /// Gives the sidecar this file as `/etc/hosts`.
    pub fn hosts(mut self, file: &std::path::Path) -> PodPlan {
        self.changes.push(Change::Hosts(file.to_owned()));
        self
    }

    /// Chooses the sidecar's build.
    pub fn build(mut self, build: crate::sidecar::Build) -> PodPlan {
        self.changes.push(Change::Build(build));
        self
    }

    /// Starts the application with this script and the sidecar before it.
    pub async fn runs(self, script: Script) -> Pod {
        let app = Service::playing(script).await;
        let mut pod = self.before(app.address).await;
        if pod.sidecar.has_outbound() {
            app.outbound.is_at(pod.sidecar.outbound());
        }
        pod.app = Some(app);
        pod
    }

    /// Starts a sidecar before an application that the scenario brings itself.
    pub async fn before(self, upstream: SocketAddr) -> Pod {
        let plan = Plan::before(&self.name, upstream);
        let sidecar = self.changed(plan).start().await;
        Pod { sidecar, app: None }
    }

    /// Starts a sidecar without an inbound side.
    pub async fn outbound_only(self) -> Pod {
        let plan = Plan::outbound_only(&self.name);
        let sidecar = self.changed(plan).start().await;
        Pod { sidecar, app: None }
    }

    fn changed(self, plan: Plan) -> Plan {
        self.changes.into_iter().fold(plan, |plan, change| match change {
            Change::Flag(name, value) => plan.flag(&name, value),
            Change::Environment(name, value) => plan.environment(&name, value),
            Change::Without(name) => plan.without(&name),
            Change::Hosts(file) => plan.hosts(&file),
            Change::Build(build) => plan.build(build),
        })
    }
}

/// An application and the sidecar before it.
#[derive(Debug)]
pub struct Pod {
    /// The sidecar.
    pub sidecar: Sidecar,
    app: Option<Service>,
}

impl Pod {
    /// A URL at the sidecar's inbound port.
    pub fn url(&self, path: &str) -> String {
        self.sidecar.url(path)
    }

    /// The scripted application.
    pub fn app(&self) -> &Service {
        self.app.as_ref().expect("a pod with a scripted application")
    }

    /// The sidecar's numbers, which must balance.
    pub async fn books(&self) -> Books {
        self.sidecar.books().await
    }

    /// Waits until a number stays the same while the sidecar answers twenty scrapes.
    pub async fn stands_still(&self, what: &str, number: impl Fn() -> usize) {
        let mut before = usize::MAX;
        eventually(what, || {
            let now = number();
            let still = now == before;
            before = now;
            async move {
                for _ in 0..20 {
                    self.books().await;
                }
                still.then_some(())
            }
        })
        .await;
    }

    /// Ends the sidecar; its books must balance and its end be clean.
    pub async fn end(self) -> Ended {
        self.books().await;
        self.sidecar.end().await
    }
}
