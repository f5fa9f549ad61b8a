//! One exchange: begin, response, end and the encoding of its span, as a sidecar does them.

use throughline_core::batch::{Batch, Bounds, Dropped};
use throughline_core::carrier::Carrier;
use throughline_core::classify::{Direction, Outcome};
use throughline_core::exchange::{Destination, Now, RequestHead, Scheme, Tracer, Version};
use throughline_core::ids::{Ids, SpanId, TraceId};
use throughline_core::propagation::traceparent;
use throughline_core::settings::{Settings, Sources};

use crate::measure;

/// Fields in place, so that only `core`'s own allocations count.
struct Fields {
    list: Vec<(&'static str, [u8; 128], usize)>,
}

impl Fields {
    fn of(fields: &[(&'static str, &str)]) -> Self {
        let mut list = Vec::with_capacity(32);
        for (name, text) in fields {
            list.push((*name, [0; 128], 0));
            let (_, bytes, len) = list.last_mut().expect("just pushed");
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            *len = text.len();
        }
        Self { list }
    }

    fn reset(&mut self, to: &Self) {
        self.list.clear();
        self.list.extend_from_slice(&to.list);
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

struct Counter(u64);

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

const CONTEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn head(direction: Direction) -> RequestHead<'static> {
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

fn tracer(sampler: &str) -> Tracer {
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let flags = vec![setting("outbound-listen", "127.0.0.1:1"), setting("otel-traces-sampler", sampler)];
    let found = Settings::resolve(&Sources { flags, ..Sources::default() });
    Tracer::new(found.expect("right settings").value.tracer(), 7)
}

pub(crate) fn run() {
    measure("parse and print a traceparent", None, || {
        traceparent::parse(CONTEXT.as_bytes()).map(|context| traceparent::print(&context))
    });
    let usual = Fields::of(&[
        ("host", "orders.shop.svc:8080"),
        ("user-agent", "Mozilla/5.0 (bench)"),
        ("accept", "application/json"),
        ("accept-language", "en"),
        ("traceparent", CONTEXT),
        ("x-operation-name", "checkout"),
    ]);
    for (name, sampler, direction) in [
        ("exchange inbound, sampled", "always_on", Direction::Inbound),
        ("exchange inbound, not sampled", "always_off", Direction::Inbound),
        ("exchange outbound, sampled", "always_on", Direction::Outbound),
    ] {
        let (tracer, mut ids) = (tracer(sampler), Counter(1));
        let mut batch =
            Batch::new(Bounds { queue_spans_max: 2048, chunk_spans_max: 512, flush_after_ms: 1000 });
        let (mut fields, mut answer) = (Fields::of(&[]), Fields::of(&[]));
        let mut at = 1_000_000_000;
        measure(name, None, || {
            at += 1000;
            let now = Now { unix_nanos: at, mono_nanos: at };
            fields.reset(&usual);
            answer.list.clear();
            let mut exchange = tracer.begin(&head(direction), &mut fields, now, &mut ids);
            exchange.response(&tracer, 200, &mut answer);
            let summary = tracer.end(exchange, Outcome::Complete, now, &mut batch);
            if batch.ready()
                && let Some(chunk) = batch.poll_flush(now, true)
            {
                let spans = chunk.spans();
                batch.settle(chunk, spans, Dropped::Failed);
            }
            summary.duration_nanos
        });
    }
}
