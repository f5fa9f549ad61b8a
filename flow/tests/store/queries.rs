//! What is asked, and what is answered.

use crate::realistic::Traffic;
use crate::support::{
    Clock, Folder, NOON, SECOND, child, count, found, id, message, on_disk, root, settled, spans_of, tell,
    until,
};
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use std::collections::BTreeMap;
use std::time::Duration;
use throughline_flow::engine::{Engine, Options, Outcome, Refused, TraceQuery};
use throughline_flow::span::Value;

#[test]
fn a_trace_is_found_while_it_waits_in_memory_and_after_a_restart() {
    let (folder, clock) = (Folder::new(), Clock::new());
    let engine = clock.engine(on_disk(&folder));
    engine.spans(message(&[root(1), child(1, 2, "stock"), child(1, 3, "bank")])).unwrap();
    until("the shard has the spans", || spans_of(&engine, 1).len() == 3);
    assert_eq!(engine.books().stored, 0, "the clock stands, so nothing is due");
    assert_eq!(engine.trace(id(2)).unwrap(), None);
    clock.forward(Duration::from_secs(1));
    until("the block is written", || engine.books().stored == 3);
    assert_eq!(spans_of(&engine, 1), [1001, 1002, 1003]);
    settled(&engine);
    engine.close();
    let engine = clock.engine(on_disk(&folder));
    assert_eq!(spans_of(&engine, 1), [1001, 1002, 1003]);
    let spans = engine.trace(id(1)).unwrap().unwrap();
    assert_eq!((spans[0].parent, spans[1].parent), (None, Some(1001_u64.to_be_bytes())));
    assert_eq!((&*spans[0].service.name, &*spans[0].service.namespace), ("shop", "market"));
    assert_eq!(spans[0].attribute("app.operation.name"), Some(&Value::Text("checkout".into())));
}

#[test]
fn a_list_answers_each_question_from_the_index() {
    let (folder, clock) = (Folder::new(), Clock::new());
    let engine = clock.engine(on_disk(&folder));
    let mut slow = root(2);
    slow.lasted = 5 * SECOND;
    let mut login = root(3);
    login.operation = "login";
    login.environment = "staging";
    let mut failed = root(4);
    failed.error = Some("500");
    let mut late = root(5);
    late.error = Some("timeout");
    let mut inner = child(6, 2, "stock");
    inner.error = Some("500");
    // Blocks of their own for some, so that lists are made of several.
    tell(&engine, &[root(1), slow, login]);
    tell(&engine, &[failed, late, root(6), inner, child(1, 2, "bank")]);
    let ask = |query: TraceQuery| found(&engine, &query, 1..7);
    let all = TraceQuery::default();
    assert_eq!(ask(all.clone()), [6, 5, 4, 3, 2, 1]);
    assert_eq!(ask(TraceQuery { operation: Some("login".into()), ..all.clone() }), [3]);
    assert_eq!(ask(TraceQuery { environment: Some("production".into()), ..all.clone() }), [6, 5, 4, 2, 1]);
    assert_eq!(ask(TraceQuery { service: Some("bank".into()), ..all.clone() }), [1]);
    assert_eq!(
        ask(TraceQuery { service: Some("bank".into()), operation: Some("checkout".into()), ..all.clone() }),
        [1]
    );
    assert_eq!(ask(TraceQuery { namespace: Some("market".into()), ..all.clone() }).len(), 6);
    assert!(
        ask(TraceQuery { service: Some("bank".into()), namespace: Some("other".into()), ..all.clone() })
            .is_empty()
    );
    assert_eq!(ask(TraceQuery { status: Some(Outcome::Error), ..all.clone() }), [4]);
    assert_eq!(ask(TraceQuery { status: Some(Outcome::Timeout), ..all.clone() }), [5]);
    assert_eq!(ask(TraceQuery { status: Some(Outcome::Success), ..all.clone() }), [6, 3, 2, 1]);
    assert_eq!(ask(TraceQuery { min_duration_nanos: Some(SECOND), ..all.clone() }), [2]);
    let window =
        TraceQuery { start_unix_nanos: NOON + 2 * SECOND, end_unix_nanos: NOON + 4 * SECOND, ..all.clone() };
    assert_eq!(ask(window), [3, 2]);
    let page = engine.find(&TraceQuery { limit: 2, offset: 1, ..all.clone() }).unwrap();
    assert_eq!((page.traces.len(), page.total, page.more), (2, 6, false));
    let one = &engine.find(&TraceQuery { service: Some("bank".into()), ..all }).unwrap().traces[0];
    assert_eq!((&*one.root_service, &*one.root_name, one.has_root), ("shop", "call of shop", true));
    assert_eq!((one.span_count, one.error_count, &*one.operation), (2, 0, "checkout"));
    assert_eq!(one.services, [("bank".into(), "market".into()), ("shop".into(), "market".into())]);
}

#[test]
fn late_spans_and_orphans_of_a_trace_on_disk_are_found_too() {
    let (folder, clock) = (Folder::new(), Clock::new());
    let engine = clock.engine(on_disk(&folder));
    let mut orphan = child(1, 2, "stock");
    orphan.error = Some("500");
    tell(&engine, &[orphan]);
    let alone = engine.find(&TraceQuery::default()).unwrap().traces.remove(0);
    assert_eq!((alone.has_root, &*alone.root_service, alone.status), (false, "stock", Outcome::Error));
    engine.close();
    let engine = clock.engine(on_disk(&folder));
    tell(&engine, &[child(1, 3, "bank")]);
    tell(&engine, &[root(1)]);
    assert_eq!(spans_of(&engine, 1), [1001, 1002, 1003]);
    let whole = engine.find(&TraceQuery::default()).unwrap();
    assert_eq!((whole.traces.len(), whole.total), (1, 1));
    let whole = &whole.traces[0];
    assert_eq!((whole.has_root, &*whole.root_service, whole.status), (true, "shop", Outcome::Success));
    assert_eq!((whole.span_count, whole.error_count, whole.services.len()), (3, 1, 3));
    assert_eq!(whole.start_unix_nanos, NOON + SECOND);
}

#[test]
fn a_span_that_is_sent_twice_is_one_span() {
    let (folder, clock) = (Folder::new(), Clock::new());
    let engine = clock.engine(on_disk(&folder));
    tell(&engine, &[root(1), child(1, 2, "stock"), root(1), child(1, 2, "stock")]);
    assert_eq!(spans_of(&engine, 1), [1001, 1002]);
    assert_eq!(count(&settled(&engine).dropped, "duplicate"), 2);
    assert_eq!(engine.find(&TraceQuery::default()).unwrap().traces[0].span_count, 2);
    // And across blocks.
    tell(&engine, &[child(1, 2, "stock"), child(1, 3, "bank")]);
    assert_eq!(spans_of(&engine, 1), [1001, 1002, 1003]);
    // A long trace, where duplicates are looked for in another way.
    let long: Vec<_> = (2..200).map(|number| child(2, number, "stock")).collect();
    tell(&engine, &[long.clone(), long].concat());
    assert_eq!(spans_of(&engine, 2).len(), 198);
    settled(&engine);
}

#[test]
fn small_blocks_become_great_ones_and_nothing_is_lost_on_the_way() {
    let (folder, clock) = (Folder::new(), Clock::new());
    let engine = clock.engine(on_disk(&folder));
    for number in 2..80 {
        tell(&engine, &[child(number % 7, number, "stock"), child(number % 7, 1000 + number, "bank")]);
    }
    until("blocks are merged", || engine.books().blocks < 20);
    for trace in 0..7 {
        assert_eq!(spans_of(&engine, trace).len(), (2..80).filter(|number| number % 7 == trace).count() * 2);
    }
    let before = engine.find(&TraceQuery::default()).unwrap();
    assert_eq!(before.traces.iter().map(|trace| trace.span_count).sum::<u32>(), 156);
    settled(&engine);
    engine.close();
    let engine = clock.engine(on_disk(&folder));
    assert_eq!(engine.find(&TraceQuery::default()).unwrap(), before);
}

#[test]
fn a_full_queue_refuses_whole_messages_and_says_so() {
    let clock = Clock::new();
    let engine = clock.engine(Options { shards: 1, queue_bytes_max: 64 << 10, ..Options::default() });
    let body = Bytes::from(
        Traffic::new(3, 20, 1000)
            .messages(3_000)
            .into_iter()
            .flat_map(|message| message.body)
            .collect::<Vec<_>>(),
    );
    let (mut taken, mut refused) = (0, 0);
    until("a message is refused", || {
        match engine.spans(body.clone()) {
            Ok(accepted) => taken += accepted.taken,
            Err(Refused::Busy) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
        refused > 0
    });
    engine.flush();
    let books = settled(&engine);
    assert_eq!((books.received, count(&books.refused, "busy")), (taken, refused));
    assert_eq!(books.queued_bytes, 0);
}

#[test]
fn a_message_that_is_wrong_is_refused_whole_and_names_the_field() {
    let clock = Clock::new();
    let engine = clock.engine(Options::default());
    let refused = |body: &[u8]| match engine.spans(Bytes::copy_from_slice(body)) {
        Err(Refused::Malformed(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(b"\x0a\x05abc"), "request: want a protobuf message");
    assert_eq!(refused(b"\x08\x01"), "resource_spans: want messages");
    let cut = message(&[root(1)]);
    for len in 1..cut.len() {
        refused(&cut[..len]);
    }
    let mut without_id = ExportTraceServiceRequest::decode(&*message(&[root(1), root(2)])).unwrap();
    without_id.resource_spans[0].scope_spans[0].spans[0].trace_id = vec![0; 16];
    let accepted = engine.spans(without_id.encode_to_vec().into()).unwrap();
    assert_eq!((accepted.taken, accepted.rejected), (1, 1));
    assert_eq!(accepted.why.as_deref(), Some("trace_id: want 16 bytes that are not all zero"));
}

/// By trace and span: service, name and kind; how many attributes; the end.
type Reference = BTreeMap<([u8; 16], [u8; 8]), (String, usize, u64)>;

/// Spans by id, as the reference decoder has them.
fn reference(bodies: &[Vec<u8>]) -> Reference {
    let mut spans = BTreeMap::new();
    for body in bodies {
        for resource in ExportTraceServiceRequest::decode(&**body).unwrap().resource_spans {
            let attributes = resource.resource.unwrap().attributes;
            let service = attributes.iter().find(|pair| pair.key == "service.name").unwrap().value.clone();
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let key = (span.trace_id.try_into().unwrap(), span.span_id.try_into().unwrap());
                let said = format!("{service:?} {} {}", span.name, span.kind);
                spans.insert(key, (said, span.attributes.len(), span.end_time_unix_nano));
            }
        }
    }
    spans
}

#[test]
fn realistic_traffic_costs_few_bytes_and_comes_back_whole() {
    let folder = Folder::new();
    let clock = Clock::new();
    let engine = clock.engine(on_disk(&folder));
    let mut traffic = Traffic::new(5, 300, 20_000);
    let mut messages = traffic.messages(60_000);
    messages.extend(traffic.rest());
    let bodies: Vec<Vec<u8>> = messages.into_iter().map(|message| message.body).collect();
    for body in &bodies {
        while engine.spans(Bytes::copy_from_slice(body)) == Err(Refused::Busy) {
            std::thread::yield_now();
        }
    }
    engine.flush();
    let expected = reference(&bodies);
    let books = settled(&engine);
    assert_eq!(books.stored, expected.len() as u64);
    // The bars are 45 bytes on disk and 100 in memory. A block of half the usual size costs some more.
    let (disk, memory) = (books.disk_bytes / books.stored, books.memory_bytes / books.stored);
    assert!(disk <= 50 && memory <= 60, "{disk} B a span on disk, {memory} B in memory");
    let mut traces: Vec<[u8; 16]> = expected.keys().map(|(trace, _)| *trace).collect();
    traces.dedup();
    let value = |engine: &Engine| {
        for trace in traces.iter().step_by(37) {
            for span in engine.trace(*trace).unwrap().unwrap() {
                let (said, attributes, end) = &expected[&(span.trace_id, span.span_id)];
                assert!(
                    said.contains(&format!("\"{}\"", span.service.name)) && said.contains(&span.name),
                    "{said}"
                );
                assert_eq!((span.attributes.len(), span.end_unix_nanos), (*attributes, *end));
            }
            let there = expected.range((*trace, [0; 8])..=(*trace, [255; 8])).count();
            assert_eq!(engine.trace(*trace).unwrap().unwrap().len(), there);
        }
    };
    value(&engine);
    engine.close();
    value(&clock.engine(Options { memory_bytes_max: 0, ..on_disk(&folder) }));
}
