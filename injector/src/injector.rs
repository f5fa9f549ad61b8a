//! What webhook and controller share, and the admission itself: a review's bytes in, an answer's bytes out. Must
//! never answer anything but yes: whatever goes wrong, the pod is admitted as it came, and somebody is told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

use crate::api::{Api, Failure};
use crate::json::text;
use crate::log::{Level, tell};
use crate::metrics::Metrics;
use crate::patch::{self, Patch};
use crate::policy::{Around, Decision, Sidecars, Skip, decide};
use crate::review::{Request, answer, uid_of};
use crate::settings::{Mode, Native, Settings};
use crate::telemetry::{Scope, Telemetry};

/// How long what the API said of a namespace holds.
const REMEMBERED: Duration = Duration::from_secs(3);
/// How long it is used while the API does not answer: better a sidecar by what was known than none.
const REMEMBERED_IN_NEED: Duration = Duration::from_secs(60);
/// Namespaces that are remembered.
const REMEMBERED_MAX: usize = 1024;
/// Questions to the API that admissions ask at once.
const QUESTIONS_MAX: usize = 8;
/// How long an admission waits for the API.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of a pod from which on only one is parsed at a time: such a one takes a thread for long, and ten times
/// its size. The others, and handshakes, go on meanwhile.
const LARGE_BYTES: usize = 64 * 1024;
/// How long a large pod waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);
/// Events that wait to be written.
const EVENTS_MAX: usize = 100;

/// An event to be written.
#[derive(Clone, Debug)]
pub struct Event {
    /// What it is about: `involvedObject`.
    pub about: Value,
    /// One word.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
}

#[derive(Debug, Default)]
struct Remembered {
    values: Mutex<HashMap<String, (Instant, Arc<Value>)>>,
}

impl Remembered {
    fn find(&self, key: &str, age: Duration) -> Option<Arc<Value>> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.get(key).filter(|(at, _)| at.elapsed() < age).map(|(_, value)| Arc::clone(value))
    }

    fn keep(&self, key: &str, value: &Arc<Value>) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if values.len() >= REMEMBERED_MAX {
            values.clear();
        }
        values.insert(key.to_owned(), (Instant::now(), Arc::clone(value)));
    }
}

/// What all parts share.
#[derive(Debug)]
pub struct Injector {
    /// The settings.
    pub settings: Settings,
    /// The Kubernetes API.
    pub api: Api,
    /// Own numbers.
    pub metrics: Arc<Metrics>,
    /// Own spans.
    pub telemetry: Telemetry,
    sidecars: AtomicU8,
    namespaces: Remembered,
    services: Remembered,
    questions: Semaphore,
    large: Semaphore,
    events: mpsc::Sender<Event>,
}

/// What became of a review, for metrics, span and log.
struct Outcome {
    decision: &'static str,
    reason: String,
    mode: &'static str,
    operations: Vec<Value>,
    warnings: Vec<String>,
}

impl Outcome {
    fn skipped(reason: Skip, warnings: Vec<String>) -> Self {
        let reason = reason.name().to_owned();
        Self { decision: "skipped", reason, mode: "none", operations: Vec::new(), warnings }
    }

    fn baffled(reason: &'static str, why: &str) -> Self {
        let warnings = vec![format!("throughline: not injected: {why}")];
        Self {
            decision: "baffled",
            reason: reason.to_owned(),
            mode: "none",
            operations: Vec::new(),
            warnings,
        }
    }

    fn busy() -> Self {
        Self::baffled("busy", "too many reviews at once")
    }

    fn injected(mode: Mode, patch: Patch) -> Self {
        let reason = if patch.native { "native" } else { "ordinary" };
        Self {
            decision: "injected",
            reason: reason.to_owned(),
            mode: mode.name(),
            operations: patch.operations,
            warnings: patch.warnings,
        }
    }
}

impl Injector {
    /// Puts the parts together; what comes with it are the events to be written.
    pub fn new(
        settings: Settings,
        api: Api,
        metrics: Arc<Metrics>,
        telemetry: Telemetry,
    ) -> (Arc<Self>, mpsc::Receiver<Event>) {
        let (events, written) = mpsc::channel(EVENTS_MAX);
        let injector = Self {
            settings,
            api,
            metrics,
            telemetry,
            sidecars: AtomicU8::new(0),
            namespaces: Remembered::default(),
            services: Remembered::default(),
            questions: Semaphore::new(QUESTIONS_MAX),
            large: Semaphore::new(1),
            events,
        };
        (Arc::new(injector), written)
    }

    /// What the cluster can do, by the settings or as it was last seen.
    pub fn sidecars(&self) -> Sidecars {
        match (self.settings.injecting.native, self.sidecars.load(Ordering::Relaxed)) {
            (Native::Off, _) => Sidecars::Ordinary,
            (Native::On, _) => Sidecars::NativeWithPorts,
            (Native::Auto, 2) => Sidecars::NativeWithPorts,
            (Native::Auto, 1) => Sidecars::Native,
            (Native::Auto, _) => Sidecars::Ordinary,
        }
    }

    /// Notes what the cluster can do.
    pub fn saw(&self, sidecars: Sidecars) {
        let number = match sidecars {
            Sidecars::Ordinary => 0,
            Sidecars::Native => 1,
            Sidecars::NativeWithPorts => 2,
        };
        self.sidecars.store(number, Ordering::Relaxed);
    }

    /// Has an event written, unless too many wait.
    pub fn event(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.metrics.count("throughline_injector_events_total", &[("result", "dropped")]);
        }
    }

    /// Answers a review. `Err`: it is none, not even enough of one to be admitted.
    pub async fn admit(&self, headers: &HeaderMap, body: &[u8]) -> Result<Vec<u8>, String> {
        let began = Instant::now();
        let scope = self.telemetry.served("admit", headers);
        self.metrics.add("throughline_injector_reviews_in_flight", 1.0);
        let answered = self.answer(&scope, body).await;
        self.metrics.add("throughline_injector_reviews_in_flight", -1.0);
        self.metrics.admitted_in(began.elapsed());
        answered
    }

    /// The answer to a review that was too large or came too late to be read: yes, and why nothing was done.
    pub fn admit_unread(&self, prefix: &[u8], reason: &'static str, why: &str) -> Option<Vec<u8>> {
        let uid = uid_of(prefix)?;
        let outcome = Outcome::baffled(reason, why);
        self.book(&outcome);
        Some(answer(&uid, &[], &outcome.warnings))
    }

    fn book(&self, outcome: &Outcome) {
        let labels =
            [("decision", outcome.decision), ("reason", outcome.reason.as_str()), ("mode", outcome.mode)];
        self.metrics.count("throughline_injector_admissions_total", &labels);
    }

    async fn answer(&self, scope: &Scope, body: &[u8]) -> Result<Vec<u8>, String> {
        let read = {
            let scope = scope.child("read review");
            scope.set("throughline.review.bytes", i64::try_from(body.len()).unwrap_or(i64::MAX));
            let read = Request::read(body);
            if let Err(why) = &read {
                scope.error("unreadable", why);
            }
            read
        };
        let request = match read {
            Ok(request) => request,
            Err(why) => {
                scope.error("unreadable", &why);
                return self.admit_unread(body, "unreadable", &why).ok_or(why);
            }
        };
        scope.set("k8s.namespace.name", request.namespace.clone());
        scope.set("throughline.review.dry_run", request.dry_run);
        let outcome = self.outcome(scope, &request).await;
        scope.set("throughline.decision", outcome.decision);
        scope.set("throughline.reason", outcome.reason.clone());
        scope.set("throughline.mode", outcome.mode);
        self.book(&outcome);
        let said = outcome.warnings.join("; ");
        if outcome.decision == "baffled" {
            scope.error("baffled", &said);
            tell(
                Level::Warn,
                "a pod was admitted unchanged",
                &[("namespace", &request.namespace), ("why", &said)],
            );
            if !request.dry_run {
                self.tell_of_baffling(&request, &said);
            }
        } else {
            let about = [
                ("namespace", request.namespace.as_str()),
                ("decision", outcome.decision),
                ("reason", &outcome.reason),
            ];
            tell(Level::Debug, "admitted", &about);
        }
        Ok(answer(&request.uid, &outcome.operations, &outcome.warnings))
    }

    /// What the event is about is the pod's owner where it has one: the pod itself has no name yet.
    fn tell_of_baffling(&self, request: &Request, message: &str) {
        let pod: Value = serde_json::from_str(request.object.get()).unwrap_or(Value::Null);
        let owner = pod.pointer("/metadata/ownerReferences/0");
        let field = |key: &str| owner.and_then(|owner| text(owner, &format!("/{key}")));
        let about = match (field("kind"), field("name"), field("apiVersion")) {
            (Some(kind), Some(name), Some(version)) => json!({
                "kind": kind, "name": name, "apiVersion": version, "namespace": request.namespace,
                "uid": field("uid").unwrap_or_default()
            }),
            _ => json!({
                "kind": "Pod", "apiVersion": "v1", "namespace": request.namespace,
                "name": text(&pod, "/metadata/name").or(text(&pod, "/metadata/generateName")).unwrap_or("unnamed")
            }),
        };
        self.event(Event { about, reason: "NotInjected", message: message.to_owned() });
    }

    async fn outcome(&self, scope: &Scope, request: &Request) -> Outcome {
        if !request.creates_a_pod() {
            return Outcome::skipped(Skip::NotAPodCreation, Vec::new());
        }
        let namespace_object = match self.namespace(scope, &request.namespace).await {
            Ok(found) => found,
            Err(failure) => {
                return Outcome::baffled("api", &format!("namespace {}: {failure}", request.namespace));
            }
        };
        // The pod is parsed and let go within each step, so that no large one is held while the API is asked.
        let around = |services| Around {
            namespace: &request.namespace,
            namespace_object: &namespace_object,
            services,
            owner: None,
            sidecars: self.sidecars(),
            own_namespace: &self.settings.namespace,
        };
        let plan = {
            let Ok(_turn) = self.turn(request).await else { return Outcome::busy() };
            let scope = scope.child("decide");
            let pod: Value = match serde_json::from_str(request.object.get()) {
                Ok(pod) => pod,
                Err(error) => {
                    scope.error("unreadable", &error.to_string());
                    return Outcome::baffled("unreadable", &format!("the pod could not be read: {error}"));
                }
            };
            match decide(&pod, &around(None), &self.settings.injecting) {
                Decision::Inject(plan) => plan,
                Decision::Skip(reason, warnings) => {
                    scope.set("throughline.reason", reason.name());
                    return Outcome::skipped(reason, warnings);
                }
                Decision::Baffled(why) => {
                    scope.error("baffled", &why);
                    return Outcome::baffled("not-understood", &why);
                }
            }
        };
        let services = match plan.mode {
            Mode::Reverse => self.services(scope, &request.namespace).await.ok(),
            Mode::Sidecar | Mode::EnvoyWasm | Mode::IstioWasm => None,
        };
        let services = services.as_ref().and_then(|list| list.pointer("/items")?.as_array());
        let Ok(_turn) = self.turn(request).await else { return Outcome::busy() };
        let scope = scope.child("build patch");
        let built = serde_json::from_str::<Value>(request.object.get())
            .map_err(|error| error.to_string())
            .and_then(|pod| {
                patch::build(&pod, &plan, &around(services.map(Vec::as_slice)), &self.settings.injecting)
            });
        match built {
            Ok(built) => {
                scope.set(
                    "throughline.patch.operations",
                    i64::try_from(built.operations.len()).unwrap_or(i64::MAX),
                );
                Outcome::injected(plan.mode, built)
            }
            Err(why) => {
                scope.error("baffled", &why);
                Outcome::baffled("not-understood", &why)
            }
        }
    }

    /// Waits until a pod of this size may be parsed. `Err`: it took too long.
    async fn turn(&self, request: &Request) -> Result<Option<SemaphorePermit<'_>>, ()> {
        if request.object.get().len() < LARGE_BYTES {
            return Ok(None);
        }
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.large.acquire()).await;
        turn.ok().and_then(Result::ok).map(Some).ok_or(())
    }

    async fn namespace(&self, scope: &Scope, name: &str) -> Result<Arc<Value>, Failure> {
        self.ask(scope, &self.namespaces, name, "/api/v1/namespaces/{name}", "name", "").await
    }

    async fn services(&self, scope: &Scope, namespace: &str) -> Result<Arc<Value>, Failure> {
        let template = "/api/v1/namespaces/{namespace}/services";
        self.ask(scope, &self.services, namespace, template, "namespace", "limit=1000").await
    }

    async fn ask(
        &self,
        scope: &Scope,
        remembered: &Remembered,
        key: &str,
        template: &str,
        parameter: &str,
        query: &str,
    ) -> Result<Arc<Value>, Failure> {
        if let Some(value) = remembered.find(key, REMEMBERED) {
            return Ok(value);
        }
        let asked = tokio::time::timeout(QUESTION_TIMEOUT, async {
            let _permit = self.questions.acquire().await;
            // Others may have asked the same while we waited.
            if let Some(value) = remembered.find(key, REMEMBERED) {
                return Ok(value);
            }
            let value = Arc::new(
                self.api.call(scope, Method::GET, template, &[(parameter, key)], query, None).await?,
            );
            remembered.keep(key, &value);
            Ok(value)
        });
        let unreachable = |_| Err(Failure::Unreachable("it took more than 2 seconds".to_owned()));
        match asked.await.unwrap_or_else(unreachable) {
            Err(Failure::Unreachable(why)) => {
                remembered.find(key, REMEMBERED_IN_NEED).ok_or(Failure::Unreachable(why))
            }
            answered => answered,
        }
    }
}
