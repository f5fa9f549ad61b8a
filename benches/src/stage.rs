//! A host for `core` that costs next to nothing: headers in place, ids by counting, moments by hand.

use throughline_core::batch::{Batch, Bounds, Dropped};
use throughline_core::carrier::Carrier;
use throughline_core::classify::Direction;
use throughline_core::exchange::{Destination, Now, RequestHead, Scheme, Tracer, Version};
use throughline_core::ids::{Ids, SpanId, TraceId};
use throughline_core::settings::{Settings, Sources};

/// A context as callers send it.
pub const CONTEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// What a usual request says.
pub const USUAL: [(&str, &str); 6] = [
    ("host", "orders.shop.svc:8080"),
    ("user-agent", "Mozilla/5.0 (bench)"),
    ("accept", "application/json"),
    ("accept-language", "en"),
    ("traceparent", CONTEXT),
    ("x-operation-name", "checkout"),
];

/// Fields in place, so that only `core`'s own allocations count.
#[derive(Debug)]
pub struct Fields {
    list: Vec<(&'static str, [u8; 128], usize)>,
}

impl Fields {
    /// These fields, with room for more.
    #[must_use]
    pub fn of(fields: &[(&'static str, &str)]) -> Self {
        let mut list = Vec::with_capacity(32);
        for (name, text) in fields {
            list.push((*name, [0; 128], 0));
            let (_, bytes, len) = list.last_mut().expect("just pushed");
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            *len = text.len();
        }
        Self { list }
    }

    /// The same fields as the others, in the memory that is there.
    pub fn reset(&mut self, to: &Self) {
        self.list.clear();
        self.list.extend_from_slice(&to.list);
    }

    /// No fields.
    pub fn clear(&mut self) {
        self.list.clear();
    }
}

impl Carrier for Fields {
    fn get(&self, name: &str) -> Option<&[u8]> {
        self.list.iter().find(|(field, ..)| *field == name).map(|(_, bytes, len)| &bytes[..*len])
    }

    fn set(&mut self, name: &'static str, value: &[u8]) {
        self.remove(name);
        let mut bytes = [0; 128];
        bytes[..value.len()].copy_from_slice(value);
        self.list.push((name, bytes, value.len()));
    }

    fn remove(&mut self, name: &'static str) {
        self.list.retain(|(field, ..)| *field != name);
    }

    fn for_each<'a>(&'a self, visit: &mut dyn FnMut(&'a str, &'a [u8])) {
        for (name, bytes, len) in &self.list {
            visit(name, &bytes[..*len]);
        }
    }
}

/// Ids by counting: the same in every run.
#[derive(Debug)]
pub struct Counter(pub u64);

impl Ids for Counter {
    fn trace_id(&mut self) -> TraceId {
        self.0 += 1;
        TraceId::from_bytes(u128::from(self.0).to_be_bytes()).expect("not zero")
    }

    fn span_id(&mut self) -> SpanId {
        self.0 += 1;
        SpanId::from_bytes(self.0.to_be_bytes()).expect("not zero")
    }
}

/// A usual request.
#[must_use]
pub fn head(direction: Direction) -> RequestHead<'static> {
    RequestHead {
        direction,
        method: "GET",
        scheme: Scheme::Http,
        authority: b"orders.shop.svc:8080",
        path: b"/clusters/cls-123/nodes",
        query: Some(b"page=2"),
        version: Version::Http11,
        caller: Some([10, 1, 2, 3].into()),
        destination: Destination::Named,
    }
}

/// A tracer with these settings beside the usual ones.
#[must_use]
pub fn tracer(settings: &[(&str, &str)]) -> Tracer {
    let all = [("outbound-listen", "127.0.0.1:1")].into_iter().chain(settings.iter().copied());
    let flags = all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let found = Settings::resolve(&Sources { flags, ..Sources::default() });
    Tracer::new(found.expect("right settings").value.tracer(), 7)
}

/// A queue of the usual size.
#[must_use]
pub fn batch() -> Batch {
    Batch::new(Bounds { queue_spans_max: 2048, chunk_spans_max: 512, flush_after_ms: 1000 })
}

/// Takes what is ready, as an exporter does.
pub fn ship(batch: &mut Batch, now: Now) {
    if batch.ready()
        && let Some(chunk) = batch.poll_flush(now, true)
    {
        let spans = chunk.spans();
        batch.settle(chunk, spans, Dropped::Failed);
    }
}

/// Moments that follow each other by a microsecond.
#[derive(Debug)]
pub struct Clock(u64);

impl Default for Clock {
    fn default() -> Self {
        Self(1_000_000_000)
    }
}

impl Clock {
    /// The next moment.
    pub fn tick(&mut self) -> Now {
        self.0 += 1000;
        Now { unix_nanos: self.0, mono_nanos: self.0 }
    }
}
