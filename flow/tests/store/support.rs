//! Folders, messages and engines for the scenarios.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use throughline_flow::engine::{Engine, Log, Options, TraceQuery};

pub(crate) const SECOND: u64 = 1_000_000_000;
/// When the scenarios play.
pub(crate) const NOON: u64 = 1_795_000_000 * SECOND;

/// A folder that is gone when the scenario is over.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("throughline-flow-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A clock that stands until it is moved.
#[derive(Clone)]
pub(crate) struct Clock(Arc<AtomicU64>);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU64::new(NOON)))
    }

    pub(crate) fn forward(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_nanos()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn engine(&self, options: Options) -> Engine {
        let clock = self.clone();
        Engine::open(options, move || clock.0.load(Ordering::SeqCst)).unwrap()
    }
}

/// What an engine had to say.
#[derive(Clone, Default)]
pub(crate) struct Said(Arc<Mutex<Vec<String>>>);

impl Said {
    pub(crate) fn log(&self) -> Log {
        let said = Arc::clone(&self.0);
        Log(Arc::new(move |sentence| said.lock().unwrap().push(sentence.to_owned())))
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

pub(crate) fn on_disk(folder: &Folder) -> Options {
    Options { shards: 2, data_dir: Some(folder.path().to_owned()), ..Options::default() }
}

/// A span for a scenario.
#[derive(Clone)]
pub(crate) struct Told {
    pub(crate) trace: u64,
    pub(crate) span: u64,
    pub(crate) parent: u64,
    pub(crate) service: &'static str,
    pub(crate) start: u64,
    pub(crate) lasted: u64,
    pub(crate) operation: &'static str,
    pub(crate) error: Option<&'static str>,
    pub(crate) environment: &'static str,
}

/// A root of a trace, a second after another.
pub(crate) fn root(trace: u64) -> Told {
    Told {
        trace,
        span: trace * 1000 + 1,
        parent: 0,
        service: "shop",
        start: NOON + trace * SECOND,
        lasted: SECOND / 10,
        operation: "checkout",
        error: None,
        environment: "production",
    }
}

/// A child of it.
pub(crate) fn child(trace: u64, number: u64, service: &'static str) -> Told {
    let root = root(trace);
    Told { span: trace * 1000 + number, parent: root.span, service, start: root.start + number, ..root }
}

pub(crate) fn id(trace: u64) -> [u8; 16] {
    // As drawn at random, so that shards and filters see what they see in life.
    let mixed = u128::from(trace).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    (mixed ^ (mixed >> 64)).wrapping_add(1).to_be_bytes()
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.into())) }),
        ..KeyValue::default()
    }
}

/// A message with these spans, each with its own resource.
pub(crate) fn message(spans: &[Told]) -> Bytes {
    let resource_spans = spans.iter().map(|told| {
        let mut attributes = Vec::new();
        if !told.operation.is_empty() {
            attributes.push(text("app.operation.name", told.operation));
        }
        attributes.extend(told.error.map(|error| text("error.type", error)));
        let span = Span {
            trace_id: id(told.trace).to_vec(),
            span_id: told.span.to_be_bytes().to_vec(),
            parent_span_id: if told.parent == 0 { Vec::new() } else { told.parent.to_be_bytes().to_vec() },
            name: format!("call of {}", told.service),
            kind: 2,
            start_time_unix_nano: told.start,
            end_time_unix_nano: told.start + told.lasted,
            attributes,
            status: told.error.map(|_| Status { code: 2, message: String::new() }),
            ..Span::default()
        };
        let resource = Resource {
            attributes: vec![
                text("service.name", told.service),
                text("service.namespace", "market"),
                text("deployment.environment.name", told.environment),
            ],
            ..Resource::default()
        };
        ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans { spans: vec![span], ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }
    });
    ExportTraceServiceRequest { resource_spans: resource_spans.collect() }.encode_to_vec().into()
}

/// Puts spans in, and waits until they are written.
pub(crate) fn tell(engine: &Engine, spans: &[Told]) {
    engine.spans(message(spans)).unwrap();
    engine.flush();
}

/// The span ids of a trace, sorted.
pub(crate) fn spans_of(engine: &Engine, trace: u64) -> Vec<u64> {
    let spans = engine.trace(id(trace)).unwrap().unwrap_or_default();
    let mut ids: Vec<u64> = spans.iter().map(|span| u64::from_be_bytes(span.span_id)).collect();
    ids.sort_unstable();
    ids
}

/// Numbers of the traces that are found, in their order.
pub(crate) fn found(engine: &Engine, query: &TraceQuery, among: std::ops::Range<u64>) -> Vec<u64> {
    let traces = engine.find(query).unwrap().traces;
    let number = |trace_id: [u8; 16]| among.clone().find(|trace| id(*trace) == trace_id).unwrap();
    traces.iter().map(|trace| number(trace.trace_id)).collect()
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited for a minute: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The books balance, and nothing is under way.
pub(crate) fn settled(engine: &Engine) -> throughline_flow::engine::Books {
    let books = engine.books();
    let dropped: u64 = books.dropped.iter().map(|(_, count)| count).sum();
    assert_eq!(books.held, 0, "{books:?}");
    assert_eq!(books.received, books.stored + dropped, "{books:?}");
    books
}

/// A count by its reason.
pub(crate) fn count(counts: &[(&str, u64)], reason: &str) -> u64 {
    counts.iter().find(|(name, _)| *name == reason).unwrap().1
}

/// Says that a scenario was skipped.
pub(crate) fn skipped(why: &str) {
    use std::io::Write;
    let line = format!("SKIPPED: {}: {why}", std::thread::current().name().unwrap_or("a scenario"));
    println!("{line}");
    let Some(path) = std::env::var_os("THROUGHLINE_SKIPS") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| writeln!(file, "{line}"))
        .expect("THROUGHLINE_SKIPS names a file that can be written");
}
