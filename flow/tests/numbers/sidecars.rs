//! A mesh of real tracers at 1 % sampling, whose pushes are lost, repeated and reordered, and whose sidecars restart:
//! graph, operations and statistics are equal to a count of all requests.

use std::collections::BTreeMap;

use throughline_core::batch::{Batch, Bounds, Dropped};
use throughline_core::classify::{Direction, Failure, Outcome};
use throughline_core::exchange::{Destination, Now, RequestHead, Scheme, Tracer, Version};
use throughline_core::ids::{Ids, SpanId, TraceId};
use throughline_core::otlp::request::Envelope;
use throughline_core::settings::{Settings, Sources};
use throughline_flow::numbers::{Filter, Numbers, ToldBy};

use crate::push::{Draw, MINUTE, SECOND, START, counts, edge, graph, numbers, whole};

struct Drawn(Draw);

impl Ids for Drawn {
    fn trace_id(&mut self) -> TraceId {
        let (high, low) = (self.0.next() | 1, self.0.next());
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&low.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        TraceId::from_bytes(bytes).unwrap()
    }

    fn span_id(&mut self) -> SpanId {
        SpanId::from_bytes((self.0.next() | 1).to_be_bytes()).unwrap()
    }
}

/// A service with its sidecar.
struct Service {
    name: &'static str,
    calls: &'static [&'static str],
    tracer: Tracer,
    envelope: Envelope,
    batch: Batch,
    start: u64,
    incarnation: u32,
}

fn sidecar(name: &'static str, exponential: bool, incarnation: u32) -> (Tracer, Envelope) {
    let aggregation =
        if exponential { "base2_exponential_bucket_histogram" } else { "explicit_bucket_histogram" };
    let flags = [
        ("outbound-listen", "127.0.0.1:1"),
        ("otel-service-name", name),
        ("otel-traces-sampler-arg", "0.01"),
        ("otel-exporter-otlp-metrics-default-histogram-aggregation", aggregation),
    ];
    let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let env = vec![(
        "OTEL_RESOURCE_ATTRIBUTES".to_owned(),
        format!(
            "service.namespace=shop,deployment.environment.name=test,service.instance.id={name}-{incarnation}"
        ),
    )];
    let found = Settings::resolve(&Sources { flags, env, ..Sources::default() });
    let settings = found.unwrap_or_else(|mistakes| panic!("{mistakes:?}")).value;
    (Tracer::new(settings.tracer(), 7), Envelope::new(settings.resource()))
}

impl Service {
    fn new(name: &'static str, calls: &'static [&'static str], exponential: bool) -> Self {
        let (tracer, envelope) = sidecar(name, exponential, 0);
        let bounds = Bounds { queue_spans_max: 4096, chunk_spans_max: 512, flush_after_ms: 1000 };
        Self { name, calls, tracer, envelope, batch: Batch::new(bounds), start: START, incarnation: 0 }
    }

    fn push(&self, now: u64) -> Vec<u8> {
        let metrics = self.tracer.otlp_metrics(self.start, now);
        let mut body = self.envelope.prefix(metrics.len());
        body.extend_from_slice(&metrics);
        body
    }

    fn restart(&mut self, exponential: bool, now: u64) {
        self.incarnation += 1;
        (self.tracer, self.envelope) = sidecar(self.name, exponential, self.incarnation);
        self.start = now;
    }
}

/// Requests and failures.
type Count = BTreeMap<(String, String, String), (u64, u64)>;

struct Mesh {
    services: BTreeMap<&'static str, Service>,
    draw: Draw,
    ids: Drawn,
    now: Now,
    naive: Count,
    /// Requests and failures by operation, as those outside saw them.
    entered: BTreeMap<String, (u64, u64)>,
    durations: Vec<u64>,
    spans: u64,
}

type Headers = Vec<(String, Vec<u8>)>;

fn head<'a>(direction: Direction, authority: &'a [u8], path: &'a [u8]) -> RequestHead<'a> {
    RequestHead {
        direction,
        method: "GET",
        scheme: Scheme::Http,
        authority,
        path,
        query: None,
        version: Version::Http11,
        caller: None,
        destination: Destination::Named,
    }
}

impl Mesh {
    fn new(exponential: bool) -> Self {
        let services = [
            Service::new("web", &["orders", "stock"], exponential),
            Service::new("orders", &["stock", "mail", "api.example.com"], exponential),
            Service::new("stock", &[], exponential),
            Service::new("mail", &["stock"], exponential),
        ];
        Self {
            services: services.into_iter().map(|service| (service.name, service)).collect(),
            draw: Draw(77),
            ids: Drawn(Draw(99)),
            now: Now { unix_nanos: START, mono_nanos: 1 },
            naive: BTreeMap::new(),
            entered: BTreeMap::new(),
            durations: Vec::new(),
            spans: 0,
        }
    }

    fn pass(&mut self, nanos: u64) {
        self.now.unix_nanos += nanos;
        self.now.mono_nanos += nanos;
    }

    fn count(&mut self, from: &str, to: &str, operation: &str, failed: bool) {
        for operation in ["", operation] {
            let key = (from.to_owned(), to.to_owned(), operation.to_owned());
            let (all, errors) = self.naive.entry(key).or_default();
            *all += 1;
            *errors += u64::from(failed);
        }
    }

    /// A request comes to a service, which calls others; its status and its headers.
    fn serve(
        &mut self,
        name: &'static str,
        from: &str,
        operation: &str,
        mut headers: Headers,
    ) -> (u16, Headers) {
        let began = self.now.mono_nanos;
        let path = [&b"/a"[..], b"/b/42", b"/c"][self.draw.below(3) as usize];
        let service = self.services.get_mut(name).unwrap();
        let head = head(Direction::Inbound, b"shop:8080", path);
        let mut exchange = service.tracer.begin(&head, &mut headers, self.now, &mut self.ids);
        let (calls, mut failed) = (service.calls, false);
        let spent = 200_000 + self.draw.below(30_000_000);
        self.pass(spent);
        for to in calls {
            if self.draw.below(3) > 0 {
                failed |= self.call(name, to, operation, &headers) >= 500;
            }
        }
        let status = match self.draw.below(20) {
            0 => 503,
            1 => 404,
            _ if failed && self.draw.below(2) == 0 => 500,
            _ => 200,
        };
        let service = self.services.get_mut(name).unwrap();
        let mut answer = Headers::new();
        exchange.response(&service.tracer, status, &mut answer);
        service.tracer.end(exchange, Outcome::Complete, self.now, &mut service.batch);
        self.count(from, name, operation, status >= 500);
        if from == "user" {
            let (all, errors) = self.entered.entry(operation.to_owned()).or_default();
            *all += 1;
            *errors += u64::from(status >= 500);
            self.durations.push(self.now.mono_nanos - began);
        }
        (status, answer)
    }

    /// A service calls another, or a host without a sidecar; the status that it gets.
    fn call(&mut self, name: &'static str, to: &'static str, operation: &str, inbound: &Headers) -> u16 {
        let mut headers = inbound.clone(); // the application copies what it got
        let authority = format!("{to}:8080");
        let service = self.services.get_mut(name).unwrap();
        let head = head(Direction::Outbound, authority.as_bytes(), b"/x");
        let mut exchange = service.tracer.begin(&head, &mut headers, self.now, &mut self.ids);
        self.pass(100_000);
        let fails = self.draw.below(40) == 0;
        if fails {
            // Nobody listens: only the client can tell.
            let failure = Failure::ConnectionRefused;
            let answered = Some(failure.answer());
            let service = self.services.get_mut(name).unwrap();
            service.tracer.end(exchange, Outcome::Failed { failure, answered }, self.now, &mut service.batch);
            self.count(name, to, operation, true);
            return 502;
        }
        let (status, mut answer) = if self.services.contains_key(to) {
            self.serve(to, name, operation, headers)
        } else {
            self.pass(5_000_000);
            let status = if self.draw.below(10) == 0 { 500 } else { 200 };
            self.count(name, to, operation, status >= 400);
            (status, Headers::new())
        };
        let service = self.services.get_mut(name).unwrap();
        exchange.response(&service.tracer, status, &mut answer);
        service.tracer.end(exchange, Outcome::Complete, self.now, &mut service.batch);
        status
    }

    fn request(&mut self) {
        let operation = ["checkout", "browse", "search"][self.draw.below(3) as usize];
        let headers = vec![("x-operation-name".to_owned(), operation.as_bytes().to_vec())];
        let entry = if self.draw.below(5) == 0 { "orders" } else { "web" };
        self.serve(entry, "user", operation, headers);
        let gap = self.draw.below(200_000_000);
        self.pass(gap);
    }

    /// Spans go nowhere here: they are counted.
    fn ship(&mut self) {
        for service in self.services.values_mut() {
            while let Some(chunk) = service.batch.poll_flush(self.now, true) {
                let all = chunk.spans();
                self.spans += all as u64;
                service.batch.settle(chunk, all, Dropped::Failed);
            }
        }
    }
}

/// Runs a mesh with pushes that are lost, late and doubled.
fn run(exponential: bool) -> (Mesh, Numbers) {
    let (mut mesh, numbers) = (Mesh::new(exponential), numbers());
    let mut late: Vec<Vec<u8>> = Vec::new();
    for round in 0..40 {
        for _ in 0..100 {
            mesh.request();
        }
        mesh.ship();
        let now = mesh.now.unix_nanos;
        for service in mesh.services.values() {
            let body = service.push(now);
            match mesh.draw.below(6) {
                0 => {}               // lost
                1 => late.push(body), // comes after newer ones
                2 => {
                    numbers.metrics(&body, now).unwrap();
                    numbers.metrics(&body, now + 1).unwrap();
                }
                _ => {
                    numbers.metrics(&body, now).unwrap();
                }
            }
        }
        if round % 7 == 6 {
            for body in late.drain(..) {
                numbers.metrics(&body, now).unwrap();
            }
        }
        if round == 20 {
            // Its last push gets through, since a sidecar that drains waits for it.
            let body = mesh.services["orders"].push(now);
            numbers.metrics(&body, now).unwrap();
            mesh.services.get_mut("orders").unwrap().restart(exponential, now);
        }
        numbers.tick(now);
    }
    let now = mesh.now.unix_nanos;
    for service in mesh.services.values() {
        numbers.metrics(&service.push(now), now).unwrap();
    }
    for body in late {
        numbers.metrics(&body, now).unwrap();
    }
    numbers.tick(now + 10 * MINUTE);
    numbers.tick(now + 10 * MINUTE + 2 * SECOND);
    (mesh, numbers)
}

fn compare(exponential: bool) {
    let (mesh, numbers) = run(exponential);
    let all: u64 = mesh.entered.values().map(|(all, _)| all).sum();
    assert_eq!(all, 4000);
    for operation in [None, Some("checkout"), Some("browse"), Some("search")] {
        let graph = graph(&numbers, operation);
        let mut edges = 0;
        for ((from, to, of), expected) in &mesh.naive {
            if of != operation.unwrap_or_default() {
                continue;
            }
            let to = if to == "api.example.com" { "api.example.com:8080" } else { to };
            assert_eq!(counts(&graph, from, to), *expected, "{operation:?}: {from} to {to}");
            edges += 1;
        }
        assert_eq!(graph.edges.len(), edges, "{:?}", graph.edges);
        for node in graph.nodes.iter().filter(|node| node.id != "user") {
            let name = node.id.strip_suffix(":8080").unwrap_or(&node.id);
            let of_node = mesh
                .naive
                .iter()
                .filter(|((_, to, of), _)| to == name && of == operation.unwrap_or_default());
            let (requests, errors) = of_node.fold((0, 0), |sum, (_, one)| (sum.0 + one.0, sum.1 + one.1));
            assert_eq!((node.figures.requests, node.figures.errors), (requests, errors), "{}", node.id);
        }
        assert!(graph.edges.iter().all(|edge| !edge.figures.estimated && edge.unanswered == 0));
    }
    let operations = numbers.operations(Some("test"), whole());
    assert_eq!(operations.len(), 3);
    for row in operations.iter() {
        assert_eq!((row.figures.requests, row.figures.errors), mesh.entered[&row.name], "{}", row.name);
        let filter = Filter { operation: Some(&row.name), environment: Some("test"), ..Filter::default() };
        let stats = numbers.stats(&filter, whole()).unwrap();
        assert_eq!((stats.figures.requests, stats.figures.errors), mesh.entered[&row.name]);
        for share in &stats.services {
            let of = mesh.naive.iter().filter(|((_, to, of), _)| *to == share.name && *of == row.name);
            let expected = of.fold((0, 0), |sum, (_, one)| (sum.0 + one.0, sum.1 + one.1));
            assert_eq!((share.figures.requests, share.figures.errors), expected, "{}", share.name);
        }
        let by_route: u64 = stats.routes.iter().map(|route| route.figures.requests).sum();
        assert_eq!(by_route, stats.figures.requests);
    }
    // A hundredth, and what was kept: by far not every exchange is a span.
    let exchanges: u64 =
        mesh.naive.iter().filter(|((_, _, of), _)| of.is_empty()).map(|(_, (all, _))| all).sum();
    assert!(mesh.spans * 2 < exchanges, "{} spans of {exchanges} exchanges", mesh.spans);

    let mut durations = mesh.durations.clone();
    durations.sort_unstable();
    let figures = numbers.stats(&Filter::default(), whole()).unwrap().figures;
    let mean = durations.iter().sum::<u64>() as f64 / durations.len() as f64 / 1e6;
    assert!((figures.avg_ms / mean - 1.0).abs() < 1e-6, "{} for {mean}", figures.avg_ms);
    for (share, found) in [(0.5, figures.p50_ms), (0.95, figures.p95_ms), (0.99, figures.p99_ms)] {
        let truth = durations[(share * durations.len() as f64) as usize - 1] as f64 / 1e6;
        let most = if exponential { 0.011 } else { 1.5 };
        assert!((found / truth - 1.0).abs() < most, "{share}: {found} ms for {truth} ms");
    }
}

#[test]
fn at_one_percent_graph_and_statistics_equal_a_count_of_all_requests() {
    compare(false);
}

#[test]
fn with_exponential_histograms_quantiles_are_within_one_percent_too() {
    compare(true);
}

#[test]
fn an_edge_that_both_ends_tell_counts_once_and_has_both_views() {
    let (_, numbers) = run(false);
    let graph = graph(&numbers, None);
    let edge_of =
        |from: &str, to: &str| graph.edges.iter().find(|edge| edge.from == from && edge.to == to).unwrap();
    let both = edge_of("web", "orders");
    assert_eq!(both.told_by, ToldBy::Both); // refused connections are the client's to tell
    let client = both.client.unwrap();
    assert!(client.requests <= both.figures.requests && client.avg_ms > both.figures.avg_ms * 0.9);
    assert_eq!(edge_of("orders", "api.example.com:8080").told_by, ToldBy::Client);
    assert!(edge(&graph, "user", "web").is_some());
    let place = |id: &str| graph.nodes.iter().position(|node| node.id == id).unwrap();
    let ends: Vec<_> = graph.edges.iter().map(|edge| (place(&edge.from), place(&edge.to))).collect();
    let layout = throughline_flow::layout::lay_out(graph.nodes.len(), &ends);
    let across = |id: &str| layout.nodes[place(id)].x;
    assert!(
        across("user") < across("web")
            && across("web") < across("orders")
            && across("orders") < across("stock")
    );
}
