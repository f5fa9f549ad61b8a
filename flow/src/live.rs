//! The live view: flows as their spans come in, told to whoever looks. What the shards do for it is one look-up a
//! span, and nothing while nobody looks. Must never wait for a reader: one that is slow is let go.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;

use crate::engine::Watcher;
use crate::span::{Incoming, Kind, Sender, Status, TraceId};

/// How often flows that changed are told.
pub const EVERY: Duration = Duration::from_millis(100);
/// A flow of which nothing was heard for so long is over, whether its root came or not.
const QUIET_NANOS: u64 = 10_000_000_000;
/// Senders send each second or so: when the root has ended, the others may still have to come.
const SETTLED_NANOS: u64 = 1_200_000_000;
/// Flows that are looked at, by each shard. Beyond that further ones are left out whole, and counted.
const FLOWS_MAX: usize = 4096;
/// Flows that one reader follows at once.
const FOLLOWED_MAX: usize = 512;
/// Flows that begin to be told to one reader at once, each [`EVERY`]: more than 200 a second nobody can read.
const STARTS_MAX: usize = 20;
/// Messages that wait for a reader. A reader behind by more is let go.
const WAITING_MAX: usize = 1024;
/// Spans of operations that the estimate of progress remembers.
const LEARNED: usize = 31;
/// Operations that it remembers.
const OPERATIONS_MAX: usize = 512;
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 128;
/// Parts of the table, each under a lock of its own, so that shards do not wait for each other.
const PARTS: usize = 16;

/// What a reader wants to see; empty for everything.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filters {
    /// The operation.
    pub operation: Option<String>,
    /// The environment.
    pub environment: Option<String>,
}

/// A flow under way.
#[derive(Clone, Debug)]
struct Flow {
    operation: String,
    environment: String,
    service: String,
    first_start: u64,
    last_end: u64,
    heard: u64,
    spans: u32,
    /// Its root came.
    ended: bool,
    /// Told as over.
    closed: bool,
    changed: bool,
    failed: Option<Failure>,
    /// Whether any span failed.
    has_failed: bool,
}

#[derive(Clone, Debug)]
struct Failure {
    service: String,
    name: String,
    error: String,
}

/// The flows that are under way, and who looks at them.
pub struct Live {
    parts: [Mutex<HashMap<TraceId, Flow>>; PARTS],
    clock: fn() -> u64,
    readers: Mutex<Vec<Reader>>,
    looking: AtomicUsize,
    /// Spans that an operation's flows had, of late.
    learned: Mutex<BTreeMap<String, VecDeque<u32>>>,
    /// Counts for `/metrics`.
    pub counts: Counts,
}

/// What became of the live view.
#[derive(Default, Debug)]
pub struct Counts {
    /// Flows that were left out because too many were under way.
    pub left_out: AtomicU64,
    /// Messages handed to readers.
    pub messages: AtomicU64,
    /// Readers that were let go because they were slow.
    pub dropped: AtomicU64,
}

struct Reader {
    filters: Filters,
    followed: HashSet<TraceId>,
    to: mpsc::Sender<Arc<str>>,
}

/// A message of the contract.
#[derive(Serialize)]
struct Message<'a, T> {
    #[serde(rename = "type")]
    kind: &'a str,
    data: T,
}

/// `FlowUpdate` of the contract.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FlowUpdate<'a> {
    flow_id: String,
    trace_id: String,
    operation_name: &'a str,
    environment: &'a str,
    current_service: &'a str,
    progress: u8,
    /// How `progress` came about: an estimate, until the root has ended.
    progress_is_estimate: bool,
    /// Milliseconds.
    elapsed_time: f64,
    /// Nanoseconds since 1970.
    start_time: u64,
    span_count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
}

/// `ErrorEvent` of the contract.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorEvent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_service: Option<&'a str>,
    message: String,
}

/// A message of type `error` about what a reader sent.
#[must_use]
pub fn complaint(message: &str) -> String {
    let data = ErrorEvent {
        flow_id: None,
        operation_name: None,
        current_service: None,
        message: message.to_owned(),
    };
    serde_json::to_string(&Message { kind: "error", data }).unwrap_or_default()
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn short(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..NAME_BYTES_MAX).unwrap_or(bytes));
    text.into_owned()
}

impl Live {
    /// Nobody looks yet. `clock` gives nanoseconds since 1970.
    #[must_use]
    pub fn new(clock: fn() -> u64) -> Self {
        Self {
            parts: Default::default(),
            clock,
            readers: Mutex::default(),
            looking: AtomicUsize::new(0),
            learned: Mutex::default(),
            counts: Counts::default(),
        }
    }

    /// Somebody looks. What is told arrives in order; the end of it means that the reader was too slow.
    pub fn subscribe(&self, filters: Filters) -> mpsc::Receiver<Arc<str>> {
        let (to, from) = mpsc::channel(WAITING_MAX);
        let mut readers = locked(&self.readers);
        readers.push(Reader { filters, followed: HashSet::new(), to });
        self.looking.store(readers.len(), Ordering::Relaxed);
        from
    }

    /// How many look.
    #[must_use]
    pub fn looking(&self) -> usize {
        self.looking.load(Ordering::Relaxed)
    }

    /// Tells readers what changed. Called each [`EVERY`].
    pub fn tell(&self) {
        let mut readers = locked(&self.readers);
        readers.retain(|reader| !reader.to.is_closed());
        self.looking.store(readers.len(), Ordering::Relaxed);
        if readers.is_empty() {
            for part in &self.parts {
                locked(part).clear();
            }
            return;
        }
        let changed = self.take_changed();
        let learned = locked(&self.learned);
        let told: Vec<Told<'_>> = changed.iter().map(|(id, flow)| Told::new(*id, flow, &learned)).collect();
        drop(learned);
        readers.retain_mut(|reader| {
            let kept = tell_one(reader, &told, &self.counts);
            if !kept {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
            kept
        });
        self.looking.store(readers.len(), Ordering::Relaxed);
    }

    /// Flows that changed since the last time, those that began first first; what is over is forgotten.
    fn take_changed(&self) -> Vec<(TraceId, Flow)> {
        let now = (self.clock)();
        let mut changed = Vec::new();
        for part in &self.parts {
            let mut flows = locked(part);
            // What is over makes room first.
            let crowded = flows.len() > FLOWS_MAX / 2;
            flows.retain(|id, flow| {
                let heard_ago = now.saturating_sub(flow.heard);
                let quiet = heard_ago > QUIET_NANOS;
                let closes = !flow.closed && (quiet || (flow.ended && heard_ago >= SETTLED_NANOS));
                if (std::mem::take(&mut flow.changed) && !flow.closed) || closes {
                    changed.push((*id, Flow { closed: closes, ended: flow.ended || quiet, ..flow.clone() }));
                    flow.closed = closes;
                    flow.failed = None;
                    if closes && flow.ended {
                        self.learn(&flow.operation, flow.spans);
                    }
                }
                // Forgotten when it is quiet, so that a span that comes late begins no second flow.
                !(quiet || crowded && flow.closed)
            });
        }
        changed.sort_by_key(|(id, flow)| (flow.first_start, *id));
        changed
    }

    fn learn(&self, operation: &str, spans: u32) {
        let mut learned = locked(&self.learned);
        if !learned.contains_key(operation) && learned.len() >= OPERATIONS_MAX {
            return;
        }
        let of_late = learned.entry(operation.to_owned()).or_default();
        if of_late.len() >= LEARNED {
            of_late.pop_front();
        }
        of_late.push_back(spans);
    }
}

impl Watcher for Live {
    fn span(&self, _shard: usize, sender: &Sender<'_>, span: &Incoming<'_>) {
        if self.looking.load(Ordering::Relaxed) == 0 {
            return;
        }
        let part = usize::from(span.trace_id[0]) % PARTS;
        let Some(part) = self.parts.get(part) else { return };
        let mut flows = locked(part);
        if !flows.contains_key(&span.trace_id) && flows.len() >= FLOWS_MAX {
            self.counts.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let flow = flows.entry(span.trace_id).or_insert_with(|| Flow {
            operation: String::new(),
            environment: short(sender.environment),
            service: String::new(),
            first_start: span.start_unix_nanos,
            last_end: span.end_unix_nanos,
            heard: 0,
            spans: 0,
            ended: false,
            closed: false,
            changed: false,
            failed: None,
            has_failed: false,
        });
        flow.spans = flow.spans.saturating_add(1);
        flow.changed = true;
        flow.heard = (self.clock)();
        if flow.operation.is_empty() && !span.known.operation.is_empty() {
            flow.operation = short(span.known.operation);
        }
        flow.first_start = flow.first_start.min(span.start_unix_nanos);
        if flow.service.is_empty() || span.end_unix_nanos >= flow.last_end {
            if flow.service.as_bytes() != sender.service {
                flow.service = short(sender.service);
            }
            flow.last_end = flow.last_end.max(span.end_unix_nanos);
        }
        flow.ended |= span.parent.is_none() && span.kind != Kind::Consumer;
        let fails = span.status == Status::Error || span.known.http_status >= 500;
        if fails && !flow.has_failed {
            flow.has_failed = true;
            let error = if span.known.error_type.is_empty() { &b"error"[..] } else { span.known.error_type };
            flow.failed =
                Some(Failure { service: short(sender.service), name: short(span.name), error: short(error) });
        }
    }
}

/// A flow that changed, and its messages once somebody wants them.
struct Told<'a> {
    id: TraceId,
    flow: &'a Flow,
    progress: u8,
    messages: std::cell::OnceCell<Messages>,
}

struct Messages {
    start: Arc<str>,
    update: Arc<str>,
    complete: Arc<str>,
    error: Option<Arc<str>>,
}

impl<'a> Told<'a> {
    fn new(id: TraceId, flow: &'a Flow, learned: &BTreeMap<String, VecDeque<u32>>) -> Self {
        let progress = if flow.ended { 100 } else { estimate(flow, learned) };
        Self { id, flow, progress, messages: std::cell::OnceCell::new() }
    }

    fn fits(&self, filters: &Filters) -> bool {
        let is =
            |wanted: &Option<String>, value: &str| wanted.as_deref().is_none_or(|wanted| wanted == value);
        is(&filters.operation, &self.flow.operation) && is(&filters.environment, &self.flow.environment)
    }

    fn messages(&self) -> &Messages {
        self.messages.get_or_init(|| {
            let failed = self.flow.has_failed;
            Messages {
                start: self.message("flow_start", None),
                update: self.message("flow_update", None),
                complete: self.message("flow_complete", Some(if failed { "error" } else { "success" })),
                error: self.flow.failed.as_ref().map(|failure| self.error(failure)),
            }
        })
    }

    fn message(&self, kind: &str, status: Option<&'static str>) -> Arc<str> {
        let Self { id, flow, progress, .. } = self;
        let trace_id = hex(id);
        let data = FlowUpdate {
            flow_id: format!("flow-{trace_id}"),
            trace_id,
            operation_name: &flow.operation,
            environment: &flow.environment,
            current_service: &flow.service,
            progress: *progress,
            progress_is_estimate: !flow.ended,
            elapsed_time: flow.last_end.saturating_sub(flow.first_start) as f64 / 1e6,
            start_time: flow.first_start,
            span_count: flow.spans,
            status,
        };
        serde_json::to_string(&Message { kind, data }).unwrap_or_default().into()
    }

    fn error(&self, failure: &Failure) -> Arc<str> {
        let data = ErrorEvent {
            flow_id: Some(format!("flow-{}", hex(&self.id))),
            operation_name: Some(&self.flow.operation),
            current_service: Some(&failure.service),
            message: format!("{} at {}: {}", failure.name, failure.service, failure.error),
        };
        serde_json::to_string(&Message { kind: "error", data }).unwrap_or_default().into()
    }
}

/// Spans seen of those that the operation's flows have in the middle; 99 until the root has ended.
fn estimate(flow: &Flow, learned: &BTreeMap<String, VecDeque<u32>>) -> u8 {
    let Some(of_late) = learned.get(&flow.operation).filter(|of_late| !of_late.is_empty()) else { return 0 };
    let mut sorted: Vec<u32> = of_late.iter().copied().collect();
    sorted.sort_unstable();
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or(1).max(1);
    let percent = u64::from(flow.spans) * 100 / u64::from(median);
    u8::try_from(percent.min(99)).unwrap_or(99)
}

/// Whether the reader keeps up.
fn tell_one(reader: &mut Reader, told: &[Told<'_>], counts: &Counts) -> bool {
    let mut starts = 0;
    for flow in told.iter().filter(|flow| flow.fits(&reader.filters)) {
        let mut messages: Vec<&Arc<str>> = Vec::new();
        let follows = reader.followed.contains(&flow.id);
        if !follows {
            // What is over already and was never begun, or has no room, is left out whole.
            if starts >= STARTS_MAX || reader.followed.len() >= FOLLOWED_MAX {
                counts.left_out.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            starts += 1;
            reader.followed.insert(flow.id);
            messages.push(&flow.messages().start);
        } else if !flow.flow.closed {
            messages.push(&flow.messages().update);
        }
        messages.extend(flow.messages().error.as_ref());
        if flow.flow.closed {
            messages.push(&flow.messages().complete);
            reader.followed.remove(&flow.id);
        }
        for message in messages {
            if reader.to.try_send(Arc::clone(message)).is_err() {
                return false;
            }
            counts.messages.fetch_add(1, Ordering::Relaxed);
        }
    }
    true
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static NOW: std::cell::Cell<u64> = const { std::cell::Cell::new(1_000_000_000_000) };
    }

    fn live() -> Live {
        Live::new(|| NOW.get())
    }

    fn pass(nanos: u64) {
        NOW.set(NOW.get() + nanos);
    }

    fn come(live: &Live, trace: u8, operation: &str, parent: bool, failing: bool) {
        let sender = Sender { service: b"web", environment: b"production", ..Sender::default() };
        let mut span = Incoming {
            trace_id: [trace; 16],
            span_id: [1; 8],
            parent: parent.then_some([9; 8]),
            kind: Kind::Server,
            start_unix_nanos: 1_000,
            end_unix_nanos: 2_001_000,
            name: b"GET /",
            ..Incoming::default()
        };
        span.known.operation = operation.as_bytes();
        if failing {
            span.status = Status::Error;
            span.known.error_type = b"503";
        }
        live.span(0, &sender, &span);
    }

    fn drained(from: &mut mpsc::Receiver<Arc<str>>) -> Vec<serde_json::Value> {
        std::iter::from_fn(|| from.try_recv().ok()).map(|text| serde_json::from_str(&text).unwrap()).collect()
    }

    fn kinds(from: &mut mpsc::Receiver<Arc<str>>) -> Vec<String> {
        drained(from).iter().map(|message| message["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_flow_is_told_from_its_first_span_to_its_root() {
        let live = live();
        let mut from = live.subscribe(Filters::default());
        come(&live, 7, "login", true, false);
        live.tell();
        let told = drained(&mut from);
        assert_eq!(told[0]["type"], "flow_start");
        let data = &told[0]["data"];
        assert_eq!(data["flowId"], format!("flow-{}", "07".repeat(16)));
        assert_eq!((&data["operationName"], &data["currentService"]), (&"login".into(), &"web".into()));
        assert_eq!((&data["progress"], &data["elapsedTime"]), (&0.into(), &2.0.into()));
        live.tell();
        assert_eq!(kinds(&mut from), [""; 0], "nothing changed");
        come(&live, 7, "login", true, true);
        live.tell();
        assert_eq!(kinds(&mut from), ["flow_update", "error"]);
        come(&live, 7, "login", false, false);
        live.tell();
        let told = drained(&mut from);
        assert_eq!((&told[0]["type"], &told[0]["data"]["progress"]), (&"flow_update".into(), &100.into()));
        pass(SETTLED_NANOS);
        live.tell();
        let told = drained(&mut from);
        assert_eq!(
            (&told[0]["type"], &told[0]["data"]["status"]),
            (&"flow_complete".into(), &"error".into())
        );
        come(&live, 7, "login", true, false);
        live.tell();
        assert_eq!(kinds(&mut from), [""; 0], "it is over");
    }

    #[test]
    fn a_flow_without_a_root_is_over_when_nothing_more_comes() {
        let live = live();
        let mut from = live.subscribe(Filters::default());
        come(&live, 7, "login", true, false);
        live.tell();
        pass(QUIET_NANOS + 1);
        live.tell();
        assert_eq!(kinds(&mut from), ["flow_start", "flow_complete"]);
        assert!(live.parts.iter().all(|part| locked(part).is_empty()));
    }

    #[test]
    fn progress_is_an_estimate_from_earlier_flows_of_the_operation() {
        let live = live();
        let mut from = live.subscribe(Filters::default());
        for _ in 0..3 {
            come(&live, 1, "login", true, false);
        }
        come(&live, 1, "login", false, false);
        pass(SETTLED_NANOS);
        live.tell();
        let _ = drained(&mut from);
        come(&live, 2, "login", true, false);
        live.tell();
        assert_eq!(drained(&mut from)[0]["data"]["progress"], 25);
        for _ in 0..30 {
            come(&live, 2, "login", true, false);
        }
        live.tell();
        assert_eq!(drained(&mut from)[0]["data"]["progress"], 99, "its root has not ended");
    }

    #[test]
    fn readers_see_what_they_asked_for() {
        let live = live();
        let filters = Filters { operation: Some("login".into()), environment: Some("production".into()) };
        let (mut one, mut other) = (
            live.subscribe(filters.clone()),
            live.subscribe(Filters { environment: Some("dev".into()), ..filters }),
        );
        come(&live, 1, "login", true, false);
        come(&live, 2, "browse", true, false);
        live.tell();
        assert_eq!((kinds(&mut one).len(), kinds(&mut other).len()), (1, 0));
    }

    #[test]
    fn a_slow_reader_is_let_go_and_others_are_unharmed() {
        let live = live();
        let (mut slow, mut quick) = (live.subscribe(Filters::default()), live.subscribe(Filters::default()));
        let mut read = 0;
        for round in 0..200_u64 {
            for trace in 0..20 {
                come(&live, trace, "login", true, round % 2 == 0);
            }
            live.tell();
            read += drained(&mut quick).len();
        }
        assert!(read > WAITING_MAX);
        assert_eq!((live.looking(), live.counts.dropped.load(Ordering::Relaxed)), (1, 1));
        assert_eq!(drained(&mut slow).len(), WAITING_MAX, "what it had, it may still read");
        assert!(slow.try_recv().is_err());
    }

    #[test]
    fn too_many_flows_at_once_are_left_out_whole() {
        let live = live();
        let mut from = live.subscribe(Filters::default());
        for trace in 0..100 {
            come(&live, trace, "login", false, false);
        }
        pass(SETTLED_NANOS);
        live.tell();
        let told = kinds(&mut from);
        let of = |kind: &str| told.iter().filter(|told| *told == kind).count();
        assert_eq!((of("flow_start"), of("flow_complete")), (STARTS_MAX, STARTS_MAX));
        assert_eq!(live.counts.left_out.load(Ordering::Relaxed), 80);
    }

    #[test]
    fn nothing_is_held_while_nobody_looks() {
        let live = live();
        come(&live, 1, "login", true, false);
        assert!(live.parts.iter().all(|part| locked(part).is_empty()));
        drop(live.subscribe(Filters::default()));
        live.tell();
        assert_eq!(live.looking(), 0);
    }
}
