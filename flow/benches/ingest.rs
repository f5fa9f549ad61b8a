//! What a span costs the engine, within the process: CPU and wall, bytes in memory and on disk, a trace by id, a list.
//! Spans are those of `realistic/`. `make bench-flow`; numbers after the name: spans, runs.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a bench"
)]

#[expect(dead_code, unreachable_pub, reason = "shared with tests")]
mod realistic;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use std::time::{Duration, Instant};
use throughline_flow::engine::{Engine, Options, Outcome, Refused, TraceQuery};

/// CPU seconds of this process until now.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // Ticks of a hundredth of a second: fields 14 and 15 of the line, 12 and 13 after the name.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    format!("{:.3} / {:.3} / {:.3}", values[0], values[values.len() / 2], values[values.len() - 1])
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// Puts all messages in, as fast as they are taken.
fn ingest(engine: &Engine, bodies: &[Bytes]) {
    for body in bodies {
        loop {
            match engine.spans(body.clone()) {
                Ok(_) => break,
                Err(Refused::Busy) => std::thread::sleep(Duration::from_micros(200)),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
    engine.flush();
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let spans = numbers.next().unwrap_or(1_000_000);
    let runs = numbers.next().unwrap_or(5);
    let mut traffic = realistic::Traffic::new(7, 1000, 100_000);
    let mut messages = traffic.messages(spans);
    messages.extend(traffic.rest());
    let spans: u64 = messages.iter().map(|message| message.spans).sum();
    let bodies: Vec<Bytes> = messages.into_iter().map(|message| Bytes::from(message.body)).collect();
    let ids = trace_ids(&bodies);
    println!(
        "{spans} spans of {} traces in {} messages, {:.0} B a span",
        ids.len(),
        bodies.len(),
        traffic.raw_bytes_a_span()
    );
    // An anchor on the same machine in the same minute: what the stock decoder takes to make structs of them.
    let decoded: Vec<f64> = (0..runs)
        .map(|_| {
            let before = cpu();
            for body in &bodies {
                let request: ExportTraceServiceRequest = prost::Message::decode(body.clone()).unwrap();
                assert!(!std::hint::black_box(request).resource_spans.is_empty());
            }
            (cpu() - before) * 1e6 / spans as f64
        })
        .collect();
    println!("prost's decoder alone: CPU µs a span, min/median/max of {runs}: {}", spread(decoded));
    for on_disk in [false, true] {
        let name = if on_disk { "memory and file" } else { "memory only" };
        let (mut cpus, mut walls) = (Vec::new(), Vec::new());
        for run in 0..runs {
            let folder =
                std::env::temp_dir().join(format!("throughline-flow-bench-{}-{run}", std::process::id()));
            let options = Options {
                memory_bytes_max: 512 << 20,
                data_dir: on_disk.then(|| folder.clone()),
                ..Options::default()
            };
            let before = resident();
            let engine = Engine::open(options, now).unwrap();
            let (cpu_before, began) = (cpu(), Instant::now());
            ingest(&engine, &bodies);
            cpus.push((cpu() - cpu_before) * 1e6 / spans as f64);
            walls.push(began.elapsed().as_secs_f64() * 1e6 / spans as f64);
            let books = engine.books();
            assert_eq!((books.received, books.stored, books.held), (spans, spans, 0), "{books:?}");
            if run + 1 == runs {
                println!(
                    "{name}: blocks and indexes {:.1} B a span, resident {:+.1} MB, {} blocks{}",
                    books.memory_bytes as f64 / spans as f64,
                    resident().saturating_sub(before) as f64 / 1e6,
                    books.blocks,
                    if on_disk {
                        format!(", file {:.1} B a span", books.disk_bytes as f64 / spans as f64)
                    } else {
                        String::new()
                    }
                );
                if std::env::var_os("INGEST_ONLY").is_none() {
                    questions(&engine, &ids, name);
                }
                engine.close();
                if on_disk && std::env::var_os("INGEST_ONLY").is_none() {
                    let options =
                        Options { memory_bytes_max: 0, data_dir: Some(folder.clone()), ..Options::default() };
                    let began = Instant::now();
                    let engine = Engine::open(options, now).unwrap();
                    println!("opened again in {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
                    questions(&engine, &ids, "file only");
                }
            }
            engine.close();
            drop(std::fs::remove_dir_all(&folder));
        }
        println!("{name}: CPU µs a span, min/median/max of {runs}: {}", spread(cpus));
        println!("{name}: wall µs a span, min/median/max of {runs}: {}", spread(walls));
    }
}

fn trace_ids(bodies: &[Bytes]) -> Vec<[u8; 16]> {
    struct Ids(std::collections::HashSet<[u8; 16]>);
    impl<'a> throughline_flow::wire::walk::Visit<'a> for Ids {
        fn sender(&mut self, _: throughline_flow::span::Sender<'a>) {}
        fn span(&mut self, raw: &'a [u8]) -> Result<(), throughline_flow::wire::Malformed> {
            let span = throughline_flow::wire::walk::span(raw, &mut throughline_flow::wire::walk::NoSlots)?;
            self.0.insert(span.unwrap().trace_id);
            Ok(())
        }
    }
    let mut ids = Ids(std::collections::HashSet::new());
    for body in bodies {
        throughline_flow::wire::walk::traces(body, &mut ids).unwrap();
    }
    let mut ids: Vec<_> = ids.0.into_iter().collect();
    ids.sort_unstable();
    ids
}

fn quantiles(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    format!("median {:.2} ms, p99 {:.2} ms", times[times.len() / 2], times[times.len() * 99 / 100])
}

fn questions(engine: &Engine, ids: &[[u8; 16]], name: &str) {
    let mut times = Vec::new();
    let step = (ids.len() / 500).max(1);
    for id in ids.iter().step_by(step) {
        let began = Instant::now();
        let spans = engine.trace(*id).unwrap().unwrap();
        times.push(began.elapsed().as_secs_f64() * 1e3);
        assert!(!spans.is_empty());
    }
    println!("{name}: trace by id, {}", quantiles(times));
    let lists: [(&str, TraceQuery); 3] = [
        ("latest 20", TraceQuery { limit: 20, ..TraceQuery::default() }),
        (
            "failed ones of a service",
            TraceQuery {
                service: Some("orders-api-0".into()),
                status: Some(Outcome::Error),
                limit: 20,
                ..TraceQuery::default()
            },
        ),
        (
            "of an operation",
            TraceQuery { operation: Some("view_orders_0".into()), limit: 20, ..TraceQuery::default() },
        ),
    ];
    for (what, query) in lists {
        let mut times = Vec::new();
        let mut total = 0;
        for _ in 0..50 {
            let began = Instant::now();
            let found = engine.find(&query).unwrap();
            times.push(began.elapsed().as_secs_f64() * 1e3);
            total = found.total;
        }
        println!("{name}: {what}: {total} found, {}", quantiles(times));
    }
}
