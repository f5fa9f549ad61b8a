//! The collector goes away and comes back: within the queue's bound every span arrives, beyond it the books say what
//! was lost. `THROUGHLINE_LONG=1` makes it a minute.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;

const A_SECOND: u32 = 200;

fn gone_for() -> Duration {
    Duration::from_secs(if std::env::var_os("THROUGHLINE_LONG").is_some() { 60 } else { 5 })
}

/// Asks so many times a second for so long; how often that was.
async fn load(sidecar: &Sidecar, lasts: Duration) -> u64 {
    let mut connection = Connection::to(sidecar.inbound(), Protocol::H1).await.expect("a connection");
    let (began, mut asked) = (Instant::now(), 0);
    while began.elapsed() < lasts {
        let due = began + Duration::from_secs(1) / A_SECOND * asked;
        tokio::time::sleep_until(due.into()).await;
        assert_eq!(connection.ask(Ask::get(sidecar.url("/"))).await.status, 200);
        asked += 1;
    }
    u64::from(asked)
}

/// Scrapes until nothing waits any more. The wait before a try grows to 30 seconds.
async fn settled(sidecar: &Sidecar) -> Books {
    let began = Instant::now();
    loop {
        let books = sidecar.books().await;
        if books.held() == 0 {
            return books;
        }
        assert!(began.elapsed() < Duration::from_secs(90), "{}", books.text);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often each span arrived.
fn arrivals(collectors: &[&Collector]) -> BTreeMap<(String, String), usize> {
    let mut arrived = BTreeMap::new();
    for span in collectors.iter().flat_map(|collector| collector.accepted()) {
        *arrived.entry((span.trace, span.id)).or_default() += 1;
    }
    arrived
}

/// What happened, for those who ran it by hand.
fn tell(what: &str, asked: u64, books: &Books) {
    let maybe_twice = books.sum("throughline_spans_maybe_twice_total", &[]);
    let (exported, full) = (books.exported(), books.dropped_by("queue_full"));
    println!("{what}: {asked} asked, {exported} exported, {full} queue_full, {maybe_twice} maybe twice");
}

struct Scene {
    app: Service,
    before: Collector,
    sidecar: Sidecar,
}

impl Scene {
    async fn with_queue_of(spans: u64) -> Scene {
        let (app, before) = (Service::playing(answer(200, "")).await, Collector::start().await);
        let sidecar = Plan::before("orders", app.address)
            .environment("OTEL_EXPORTER_OTLP_ENDPOINT", before.endpoint())
            .environment("OTEL_METRICS_EXPORTER", "none")
            .environment("OTEL_EXPORTER_OTLP_TIMEOUT", 1000)
            .environment("OTEL_BSP_MAX_QUEUE_SIZE", spans)
            .start()
            .await;
        Scene { app, before, sidecar }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_gone_for_a_while_costs_no_span_within_the_queue() {
    let Scene { app: _app, before, sidecar } = Scene::with_queue_of(20_000).await;
    let address = before.address;
    let mut asked = load(&sidecar, Duration::from_secs(1)).await;
    sidecar.books_when("the first spans", |books| books.held() == 0).await;
    before.goes();
    asked += load(&sidecar, gone_for()).await;
    let waiting = sidecar.books().await;
    assert!(waiting.held() > 0 && waiting.dropped() == 0, "{}", waiting.text);
    let after = Collector::at(address).await;
    asked += load(&sidecar, Duration::from_secs(1)).await;
    let books = settled(&sidecar).await;
    tell("within the queue", asked, &books);
    let arrived = arrivals(&[&before, &after]);
    assert_eq!((books.exported(), books.dropped()), (asked, 0), "{}", books.text);
    assert_eq!(arrived.len() as u64, asked);
    let more = arrived.values().map(|times| times - 1).sum::<usize>() as u64;
    let maybe = books.sum("throughline_spans_maybe_twice_total", &[]);
    assert!(more <= maybe, "{more} came again, {maybe} are said to");
    sidecar.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_queue_the_books_say_exactly_what_was_lost() {
    let Scene { app: _app, before, sidecar } = Scene::with_queue_of(300).await;
    let address = before.address;
    before.goes();
    let asked = load(&sidecar, gone_for()).await;
    let after = Collector::at(address).await;
    let books = settled(&sidecar).await;
    tell("beyond the queue", asked, &books);
    let arrived = arrivals(&[&before, &after]);
    let lost = asked - arrived.len() as u64;
    assert!(lost > 0, "the queue was too long for this test");
    assert_eq!(books.created(), asked);
    assert_eq!((books.exported(), books.dropped_by("queue_full")), (asked - lost, lost), "{}", books.text);
    assert_eq!(books.dropped(), lost, "for that reason alone");
    sidecar.end().await;
}

#[tokio::test]
async fn spans_come_twice_only_after_an_answer_that_never_came_and_are_counted() {
    for protocol in ["grpc", "http/protobuf"] {
        let (app, collector) = (Service::playing(answer(200, "")).await, Collector::start().await);
        let sidecar = Plan::before("orders", app.address)
            .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
            .environment("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .environment("OTEL_METRICS_EXPORTER", "none")
            .environment("OTEL_EXPORTER_OTLP_TIMEOUT", 200)
            .environment("OTEL_BSP_SCHEDULE_DELAY", 300)
            .start()
            .await;
        collector.then([Reaction::AcceptInSilence]);
        for _ in 0..3 {
            Ask::get(sidecar.url("/")).send().await;
        }
        collector.spans(6).await;
        let books = sidecar.books_when("the second answer", |books| books.held() == 0).await;
        assert_eq!((books.exported(), books.dropped()), (3, 0), "{protocol}: {}", books.text);
        assert_eq!(books.sum("throughline_spans_maybe_twice_total", &[]), 3, "{protocol}");
        // A collector that says no has not taken them: that is no doubt.
        let refusal = if protocol == "grpc" { Reaction::Code(14) } else { Reaction::Status(503) };
        collector.then([refusal]);
        Ask::get(sidecar.url("/")).send().await;
        let books = sidecar.books_when("the fourth span", |books| books.exported() == 4).await;
        assert_eq!(books.sum("throughline_spans_maybe_twice_total", &[]), 3, "{protocol}");
        let times: Vec<_> = arrivals(&[&collector]).into_values().collect();
        assert_eq!(times.iter().sum::<usize>(), 7, "{protocol}: {times:?}");
        sidecar.end().await;
    }
}
