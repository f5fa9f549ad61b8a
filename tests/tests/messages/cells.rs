//! Every way of publishing with every way of delivering, every form of message, with and without a context of
//! the application's: each cell is one connected trace, or a row of the table of what can't be.

use std::collections::BTreeMap;

use throughline_tests::judges::python;
use throughline_tests::prelude::*;
use throughline_tests::span::listing;

use crate::emulator::{Delivery, PROJECT};
use crate::stage::{FORMS, Form, Google, Got, Message, Stage, publish, pull_all};
use Form::{Binary, Plain};
use Via::*;

/// Who publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Plain REST.
    Rest,
    /// Google's client over gRPC.
    Google,
    /// Google's client, whose own tracing is on.
    GoogleTracing,
}

/// How a message is delivered, by the name of its subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Via {
    RestPull,
    GrpcPull,
    Streaming,
    /// Google's client with its own tracing on.
    StreamingTracing,
    PushWrapped,
    PushMetadata,
    PushBare,
}

const VIAS: [Via; 7] = [RestPull, GrpcPull, Streaming, StreamingTracing, PushWrapped, PushMetadata, PushBare];

/// The cells in which no trace can be connected, and why. The README shows this table.
const IMPOSSIBLE: [(Via, Form, &str); 2] = [
    (PushBare, Binary, "attributes are not delivered without metadata, and the event is in them"),
    (PushBare, Plain, "attributes are not delivered without metadata, and the data is the user's own"),
];

impl Via {
    fn subscription(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn is_push(self) -> bool {
        matches!(self, PushWrapped | PushMetadata | PushBare)
    }
}

/// The span of the application that publishes.
const CALLER: &str = "b7ad6b7169203331";

fn caller_trace(number: usize) -> String {
    format!("0af7651916cd43dd8448eb211c80{number:04x}")
}

/// One published message.
struct Row {
    by: By,
    form: Form,
    /// The trace of the application that publishes, where it has one.
    trace: Option<String>,
    message: Message,
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for by in [By::Rest, By::Google, By::GoogleTracing] {
        for form in FORMS {
            for present in [true, false] {
                let id = format!("{by:?}-{form:?}-{present}");
                let trace = present.then(|| caller_trace(rows.len()));
                let message = Message::new(form, &id).with("tenant", "blue");
                let message = match &trace {
                    Some(trace) => message.called_by(format!("00-{trace}-{CALLER}-01")),
                    None => message,
                };
                rows.push(Row { by, form, trace, message });
            }
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_of_publishing_and_delivering_leaves_one_connected_trace_or_is_in_the_table() {
    let Some(interpreter) = python(&["google.cloud.pubsub_v1", "opentelemetry.sdk.trace"]) else { return };
    let Some(stage) = Stage::set().await else { return };
    for via in VIAS {
        let delivery = match via {
            PushWrapped => Delivery::Wrapped(stage.shipping.url("/wrapped")),
            PushMetadata => Delivery::Metadata(stage.shipping.url("/metadata")),
            PushBare => Delivery::Bare(stage.shipping.url("/bare")),
            RestPull | GrpcPull | Streaming | StreamingTracing => Delivery::Pull,
        };
        stage.emulator.subscribe("orders", &via.subscription(), delivery).await;
    }
    let rows = rows();
    let of = |by: By| rows.iter().filter(move |row| row.by == by).map(|row| row.message.clone());
    let google =
        Google { interpreter: &interpreter, endpoint: stage.orders.sidecar.outbound(), collector: None };
    for message in of(By::Rest) {
        publish(stage.orders.sidecar.outbound(), "orders", &[message], &[]).await;
    }
    google.publishes("orders", &of(By::Google).collect::<Vec<_>>(), false).await;
    let tracing = Google { collector: Some(&stage.mesh.collector), ..google };
    tracing.publishes("orders", &of(By::GoogleTracing).collect::<Vec<_>>(), false).await;

    let endpoint = stage.shipping.sidecar.outbound();
    let google = Google { endpoint, ..google };
    let tracing = Google { endpoint, ..tracing };
    let count = rows.len();
    let mut got = BTreeMap::from([
        (RestPull, pull_all(endpoint, &RestPull.subscription(), count).await),
        (GrpcPull, google.pulls(&GrpcPull.subscription(), count).await),
        (Streaming, google.streams(&Streaming.subscription(), count, 0).await),
        (StreamingTracing, tracing.streams(&StreamingTracing.subscription(), count, 0).await),
    ]);
    let pushed = stage.inbox.has(3 * count).await;
    for (via, path) in [(PushWrapped, "/wrapped"), (PushMetadata, "/metadata"), (PushBare, "/bare")] {
        got.insert(via, pushed.iter().filter(|one| one.path == path).cloned().collect());
    }
    let spans = stage.end().await;
    assert_connected(&spans, &[CALLER]);
    let mut failed = Vec::new();
    for row in &rows {
        let producer = producer_of(row, &got[&RestPull], &spans);
        for via in VIAS {
            let cell = format!("{:?} -> {via:?}, {:?}, context {}", row.by, row.form, row.trace.is_some());
            let checked = || check(row, via, &the_one(&got[&via], row), &producer, &spans);
            // All cells are looked at, so that a failure shows which ways are broken.
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(checked)) {
                Ok(word) => println!("{cell}: {word}"),
                Err(_) => failed.push(cell),
            }
        }
    }
    assert!(failed.is_empty(), "cells that failed: {failed:#?}");
    let distinct: std::collections::BTreeSet<_> = producers(&spans).map(|span| span.id.clone()).collect();
    assert_eq!(distinct.len(), count, "one producer's span a message");
}

fn producers(spans: &[Span]) -> impl Iterator<Item = &Span> {
    spans.iter().filter(|span| span.service() == "orders" && span.kind == Kind::Producer)
}

fn the_one(got: &[Got], row: &Row) -> Got {
    let id = format!(r#""id":"{:?}-{:?}-{}"}}"#, row.by, row.form, row.trace.is_some());
    let mine: Vec<_> = got.iter().filter(|one| String::from_utf8_lossy(&one.data).contains(&id)).collect();
    assert_eq!(mine.len(), 1, "{id} was delivered once: {mine:#?}");
    mine[0].clone()
}

/// The producer's span of a row: the parent of the span that the message was given when it was pulled.
fn producer_of(row: &Row, pulled: &[Got], spans: &[Span]) -> Span {
    let context = the_one(pulled, row).context();
    let consumer = the_only(spans, |span| span.id == context.span);
    let producer = the_only(spans, |span| span.id == consumer.parent);
    assert_eq!((producer.service(), producer.kind), ("orders", Kind::Producer), "{:?}", row.message);
    assert_eq!(producer.name, "orders publish");
    producer.assert_attributes(&[
        ("messaging.system", "gcp_pubsub".into()),
        ("messaging.destination.name", "orders".into()),
        ("messaging.operation.name", "publish".into()),
    ]);
    match (&row.trace, row.by) {
        (Some(trace), By::Rest | By::Google) => {
            assert_eq!((&producer.trace, producer.parent.as_str()), (trace, CALLER));
        }
        (None, By::Rest | By::Google) => assert_eq!(producer.parent, "", "{:?}", row.message),
        // The client library's own span stands between the application's and ours.
        (trace, By::GoogleTracing) => {
            let create = the_only(spans, |span| span.id == producer.parent);
            assert_eq!((create.service(), &create.trace), ("google-publish", &producer.trace));
            assert!(trace.as_ref().is_none_or(|trace| *trace == create.trace));
            assert_eq!(create.parent, if trace.is_some() { CALLER } else { "" });
        }
    }
    producer
}

/// One cell; what it is in a word.
fn check(row: &Row, via: Via, got: &Got, producer: &Span, spans: &[Span]) -> &'static str {
    let cell = format!("{:?} -> {via:?}, {:?}, context {}", row.by, row.form, row.trace.is_some());
    let context = got.context();
    let published = String::from_utf8(row.message.data.clone()).expect("UTF-8");
    let impossible = IMPOSSIBLE.iter().find(|(there, form, _)| (*there, *form) == (via, row.form));
    let consumer = the_only(spans, |span| span.id == context.span);
    assert_eq!((consumer.service(), &consumer.trace), ("shipping", &context.trace), "{cell}");
    assert_eq!(got.data_as_published(), published, "{cell}");
    if impossible.is_some() {
        assert_ne!(consumer.trace, producer.trace, "{cell} is not impossible");
        assert_eq!((consumer.kind, consumer.parent.as_str()), (Kind::Server, ""), "{cell}");
        return "impossible";
    }
    let row_of_spans = || format!("{cell}:{}", listing(&[producer.clone(), consumer.clone()]));
    assert_eq!((&consumer.trace, &consumer.parent), (&producer.trace, &producer.id), "{}", row_of_spans());
    assert_eq!(consumer.kind, Kind::Consumer, "{}", row_of_spans());
    let verb = if via.is_push() { "process" } else { "receive" };
    if via == PushBare {
        // Nothing names the subscription: an event by itself is named after its type.
        assert_eq!(consumer.name, "order.placed process", "{}", row_of_spans());
        return "connected";
    }
    assert_eq!(consumer.name, format!("{} {verb}", via.subscription()), "{}", row_of_spans());
    consumer.assert_attributes(&[
        ("messaging.system", "gcp_pubsub".into()),
        ("messaging.operation.name", verb.into()),
        ("messaging.operation.type", verb.into()),
        ("messaging.destination.subscription.name", via.subscription().into()),
        ("messaging.message.id", got.id.clone().into()),
    ]);
    assert_eq!(got.attribute("tenant"), Some("blue"), "{cell}");
    // The event says the same as the transport, and remembers what arrived.
    let written = |span: &Span| format!("00-{}-{}-", span.trace, span.id);
    if row.form != Plain {
        let (own, origin) =
            (got.extension(row.form, "traceparent"), got.extension(row.form, "origintraceparent"));
        assert!(own.expect("a traceparent").starts_with(&written(&consumer)), "{cell}");
        assert!(origin.expect("an origintraceparent").starts_with(&written(producer)), "{cell}");
        let ids = ["event_id", "event_source", "event_type", "event_subject"];
        assert!(ids.iter().all(|id| consumer.has(&format!("cloudevents.{id}"))), "{}", row_of_spans());
    }
    if via == StreamingTracing {
        let subscribe =
            the_only(spans, |span| span.service() == "google-stream" && span.parent == consumer.id);
        assert!(subscribe.name.contains("subscribe"), "{}", subscribe.name);
        assert_eq!(subscribe["gcp.project_id"], PROJECT, "{subscribe:#?}");
    }
    "connected"
}
