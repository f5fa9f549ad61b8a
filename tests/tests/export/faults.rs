//! Collectors that fail: requests go unharmed, memory stays bounded, and every span is accounted for.

use std::time::Duration;

use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;
use throughline_tests::wire::{Nobody, Unanswering};

struct Scene {
    collector: Collector,
    app: Service,
}

impl Scene {
    async fn new() -> Scene {
        Scene { collector: Collector::start().await, app: Service::playing(answer(200, "fine")).await }
    }

    fn plan(&self, protocol: &str) -> Plan {
        Plan::before("orders", self.app.address)
            .environment("OTEL_EXPORTER_OTLP_ENDPOINT", self.collector.endpoint())
            .environment("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .environment("OTEL_METRICS_EXPORTER", "none")
    }
}

async fn ask_many(sidecar: &Sidecar, count: usize) {
    let mut connection = Connection::to(sidecar.inbound(), Protocol::H1).await.expect("a connection");
    for _ in 0..count {
        let answer = connection.ask(Ask::get(sidecar.url("/"))).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "fine"));
    }
}

/// What must become of one span whose first export the collector answers so.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fate {
    /// Sent again, no sooner than so many milliseconds later, and accepted.
    TriedAgain(u64),
    /// Dropped at once, as the collector refused it.
    Refused,
}

use Fate::{Refused, TriedAgain};

async fn check_fate(protocol: &'static str, reaction: Reaction, fate: Fate) {
    let row = format!("{protocol} {reaction:?}");
    let scene = Scene::new().await;
    scene.collector.then([reaction]);
    let sidecar = scene.plan(protocol).start().await;
    ask_many(&sidecar, 1).await;
    match fate {
        TriedAgain(milliseconds) => {
            let deliveries = scene.collector.deliveries_when(2).await;
            assert_eq!(deliveries[0].bytes, deliveries[1].bytes, "{row}: the same batch");
            let apart = deliveries[1].at - deliveries[0].at;
            assert!(apart >= Duration::from_millis(milliseconds), "{row}: again after {apart:?}");
            sidecar.books_when(&row, |books| books.exported() == 1).await;
        }
        Refused => {
            let books = sidecar.books_when(&row, |books| books.dropped() == 1).await;
            assert_eq!(books.dropped_by("export_refused"), 1, "{row}: {}", books.text);
        }
    }
    sidecar.end().await;
    let wanted = if fate == Refused { 1 } else { 2 };
    assert_eq!(scene.collector.deliveries().len(), wanted, "{row}");
}

async fn check_fates(rows: Vec<(&'static str, Reaction, Fate)>) {
    let mut all = tokio::task::JoinSet::new();
    for (protocol, reaction, fate) in rows {
        all.spawn(check_fate(protocol, reaction, fate));
    }
    all.join_all().await;
}

#[tokio::test]
async fn http_refusals_are_tried_again_exactly_when_otlp_says_so() {
    let again = [429, 502, 503, 504].map(|status| ("http/protobuf", Reaction::Status(status), TriedAgain(1)));
    let never =
        [400, 401, 403, 404, 413, 500, 501, 505].map(|s| ("http/protobuf", Reaction::Status(s), Refused));
    check_fates(again.into_iter().chain(never).collect()).await;
}

#[tokio::test]
async fn grpc_refusals_are_tried_again_exactly_when_otlp_says_so() {
    let again = [1, 4, 10, 11, 14, 15].map(|code| ("grpc", Reaction::Code(code), TriedAgain(1)));
    let never = [2, 3, 5, 6, 7, 8, 9, 12, 13, 16].map(|code| ("grpc", Reaction::Code(code), Refused));
    check_fates(again.into_iter().chain(never).collect()).await;
}

#[tokio::test]
async fn a_collector_that_names_a_time_is_left_alone_for_so_long() {
    let by_http = vec![
        ("http/protobuf", Reaction::RetryAfter(429, 2), TriedAgain(1_950)),
        ("http/protobuf", Reaction::RetryAfter(503, 2), TriedAgain(1_950)),
    ];
    // Envoy tells a module the status of a gRPC call and not its details, in which the time is.
    let by_grpc = vec![
        ("grpc", Reaction::CodeRetryInfo(8, 1_700), Host::asked().choose(TriedAgain(1_650), Refused)),
        ("grpc", Reaction::CodeRetryInfo(14, 1_700), Host::asked().choose(TriedAgain(1_650), TriedAgain(1))),
    ];
    check_fates([by_http, by_grpc].concat()).await;
}

#[tokio::test]
async fn a_connection_closed_in_place_of_an_answer_is_tried_again() {
    check_fates(vec![
        ("http/protobuf", Reaction::Close, TriedAgain(1)),
        ("grpc", Reaction::Close, TriedAgain(1)),
    ])
    .await;
}

#[tokio::test]
async fn what_a_collector_accepts_only_partly_is_never_sent_again() {
    for protocol in ["http/protobuf", "grpc"] {
        let scene = Scene::new().await;
        scene.collector.then([Reaction::Reject(1)]);
        let sidecar = scene.plan(protocol).environment("OTEL_BSP_SCHEDULE_DELAY", 300).start().await;
        ask_many(&sidecar, 3).await;
        let books = sidecar
            .books_when("the end of the export", |books| books.created() == 3 && books.held() == 0)
            .await;
        assert_eq!((books.exported(), books.dropped_by("partial_success")), (2, 1), "{}", books.text);
        sidecar.end().await;
        let sent: usize = scene.collector.deliveries().iter().map(|delivery| delivery.spans.len()).sum();
        assert_eq!(sent, 3, "{protocol}");
    }
}

#[tokio::test]
async fn an_absurd_partial_success_does_not_spoil_the_books() {
    for rejected in [-5, 0, 1_000_000] {
        let scene = Scene::new().await;
        scene.collector.always(Reaction::Reject(rejected));
        let sidecar = scene.plan("grpc").start().await;
        ask_many(&sidecar, 3).await;
        let books = sidecar
            .books_when("the end of the export", |books| books.created() == 3 && books.held() == 0)
            .await;
        // A negative count is nonsense: whatever is made of it, every span is accounted for.
        let exported = if rejected > 0 { 0 } else { 3 };
        assert!(rejected < 0 || books.exported() == exported, "{rejected}: {}", books.text);
        sidecar.end().await;
    }
}

/// Sends requests while the collector behaves so; the books must balance at every look and in the end.
async fn check_unharmed(plan: Plan, count: usize) -> throughline_tests::books::Books {
    let sidecar = plan
        .environment("OTEL_BSP_MAX_QUEUE_SIZE", 64)
        .environment("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 16)
        .environment("OTEL_EXPORTER_OTLP_TIMEOUT", 300)
        .environment("OTEL_BSP_EXPORT_TIMEOUT", 600)
        .flag("drain-timeout", 3000)
        .start()
        .await;
    let before = sidecar.resident_kib();
    for _ in 0..4 {
        ask_many(&sidecar, count / 4).await;
        sidecar.books().await;
    }
    let books = sidecar
        .books_when("the fate of some spans", |books| {
            books.created() == count as u64 && books.dropped() + books.exported() > 0
        })
        .await;
    // The queue, and one batch on its way.
    assert!(books.held() <= 64 + 16, "{}", books.text);
    let grown = sidecar.resident_kib().saturating_sub(before);
    assert!(grown < 30_000, "{grown} KiB more");
    sidecar.end().await;
    books
}

#[tokio::test]
async fn a_collector_that_is_down_harms_nobody() {
    let scene = Scene::new().await;
    for protocol in ["http/protobuf", "grpc"] {
        let nobody = Nobody::listens();
        let plan = scene.plan(protocol);
        let plan = plan.environment("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", nobody.address));
        let books = check_unharmed(plan, 400).await;
        assert_eq!(books.exported(), 0);
        assert!(books.dropped_by("queue_full") > 0, "{}", books.text);
    }
}

#[tokio::test]
async fn a_collector_that_takes_no_connection_harms_nobody() {
    let scene = Scene::new().await;
    let silent = Unanswering::start().await;
    let plan =
        scene.plan("grpc").environment("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", silent.address));
    assert_eq!(check_unharmed(plan, 400).await.exported(), 0);
}

#[tokio::test]
async fn a_collector_that_never_answers_harms_nobody() {
    for protocol in ["http/protobuf", "grpc"] {
        let scene = Scene::new().await;
        scene.collector.always(Reaction::Silence);
        assert_eq!(check_unharmed(scene.plan(protocol), 400).await.exported(), 0);
    }
}

#[tokio::test]
async fn a_collector_whose_answer_never_ends_harms_nobody() {
    for protocol in ["http/protobuf", "grpc"] {
        let scene = Scene::new().await;
        // Over HTTP the status has already said that it took them; over gRPC the trailers never come.
        scene.collector.always(Reaction::Endless);
        check_unharmed(scene.plan(protocol), 400).await;
    }
}

#[tokio::test]
async fn a_collector_that_speaks_no_http_harms_nobody() {
    let scene = Scene::new().await;
    let babbler = Peer::saying("220 mail.example ESMTP\r\n").await;
    for protocol in ["http/protobuf", "grpc"] {
        let plan = scene.plan(protocol);
        let plan = plan.environment("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", babbler.address));
        assert_eq!(check_unharmed(plan, 400).await.exported(), 0);
    }
}

#[tokio::test]
async fn a_collector_that_comes_back_gets_what_is_still_held() {
    let scene = Scene::new().await;
    scene.collector.always(Reaction::Status(503));
    let sidecar = scene.plan("http/protobuf").start().await;
    ask_many(&sidecar, 20).await;
    scene.collector.deliveries_when(2).await;
    scene.collector.always(Reaction::Accept);
    sidecar.books_when("all exported", |books| books.exported() == 20).await;
    sidecar.end().await;
    assert_eq!(scene.collector.accepted().len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_books_balance_at_every_look_while_everything_moves() {
    let scene = Scene::new().await;
    // Accepts, refuses, accepts partly and asks to wait, over and over.
    let mixed = [Reaction::Accept, Reaction::Status(400), Reaction::Reject(3), Reaction::Status(503)];
    scene.collector.then(mixed.into_iter().cycle().take(4_000));
    let sidecar = scene
        .plan("http/protobuf")
        .environment("OTEL_BSP_SCHEDULE_DELAY", 1)
        .environment("OTEL_BSP_MAX_QUEUE_SIZE", 200)
        .environment("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 20)
        .start()
        .await;
    let mut looks = 0;
    {
        let asking = async {
            tokio::join!(ask_many(&sidecar, 1_500), ask_many(&sidecar, 1_500), ask_many(&sidecar, 1_500))
        };
        let mut asking = std::pin::pin!(asking);
        loop {
            tokio::select! {
                _ = &mut asking => break,
                _ = sidecar.books() => looks += 1,
            }
        }
    }
    assert!(looks > 20, "{looks} looks");
    let books = sidecar.books_when("all 4500", |books| books.created() == 4_500).await;
    assert!(books.exported() > 0 && books.dropped_by("export_refused") > 0, "{}", books.text);
    sidecar.end().await;
}

#[tokio::test]
async fn a_loss_is_logged_once_and_not_per_span() {
    let scene = Scene::new().await;
    scene.collector.always(Reaction::Status(400));
    let sidecar = scene.plan("http/protobuf").start().await;
    ask_many(&sidecar, 100).await;
    sidecar.books_when("all dropped", |books| books.dropped() == 100).await;
    let ended = sidecar.end().await;
    let warnings = ended.stderr.iter().filter(|line| line.contains("export")).count();
    assert!((1..=10).contains(&warnings), "{warnings} lines about it: {:#?}", ended.stderr);
}

#[tokio::test]
async fn what_is_held_is_sent_before_the_end() {
    for protocol in ["http/protobuf", "grpc"] {
        let scene = Scene::new().await;
        let sidecar = scene.plan(protocol).environment("OTEL_BSP_SCHEDULE_DELAY", 60_000).start().await;
        ask_many(&sidecar, 30).await;
        assert_eq!(sidecar.books().await.held(), 30);
        sidecar.end().await;
        assert_eq!(scene.collector.accepted().len(), 30, "{protocol}");
    }
}
