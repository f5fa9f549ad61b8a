//! What an exchange costs in memory: once buffers are warm, one of the usual kind allocates nothing in `core`.
//! A binary of its own, because it counts every allocation of its process.

#![expect(unsafe_code, reason = "a counting allocator is a `GlobalAlloc`, whose methods are unsafe")]

#[cfg(test)]
mod steady {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;
    use std::fmt::Write as _;
    use std::net::{IpAddr, Ipv4Addr};

    use throughline_core::batch::{Batch, Bounds, Dropped};
    use throughline_core::browser::{self, Pages, Sent};
    use throughline_core::carrier::Carrier;
    use throughline_core::classify::{Direction, Outcome};
    use throughline_core::exchange::{
        Config, Destination, Edge, Now, Propagators, RequestHead, ResponseHeaders, RootUnsampled, Scheme,
        Tracer, Trust, Version,
    };
    use throughline_core::ids::{Ids, SpanId, TraceId};
    use throughline_core::limits::METRIC_SERIES_MAX;
    use throughline_core::mesh::Mesh;
    use throughline_core::metrics::Aggregation;
    use throughline_core::peer::Peer;
    use throughline_core::prometheus::{Form, Text};
    use throughline_core::redact::Query;
    use throughline_core::sampling::{Root, Sampler};

    thread_local! {
        static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
        static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
    }

    struct Counter;

    #[global_allocator]
    static COUNTER: Counter = Counter;

    fn count(allocations: usize, bytes: isize) {
        // A thread that is ending has no counter any more, and nobody asks for it.
        let _ = ALLOCATIONS.try_with(|counter| counter.set(counter.get() + allocations));
        let _ = LIVE_BYTES.try_with(|counter| counter.set(counter.get() + bytes));
    }

    // SAFETY: every call is handed on to the system's allocator as it came.
    unsafe impl GlobalAlloc for Counter {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            count(1, layout.size() as isize);
            // SAFETY: the caller's promise is the same.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            count(0, -(layout.size() as isize));
            // SAFETY: the caller's promise is the same.
            unsafe { System.dealloc(pointer, layout) }
        }

        unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            count(1, size as isize - layout.size() as isize);
            // SAFETY: the caller's promise is the same.
            unsafe { System.realloc(pointer, layout, size) }
        }
    }

    /// Headers in place: setting one costs nothing, so that what is counted is `core`'s.
    #[derive(Default)]
    struct Fixed {
        fields: Vec<(&'static str, Vec<u8>)>,
        len: usize,
    }

    impl Fixed {
        fn fill(&mut self, fields: &[(&'static str, &str)]) {
            self.len = 0;
            for (name, value) in fields {
                self.push(name, value.as_bytes());
            }
        }

        fn push(&mut self, name: &'static str, value: &[u8]) {
            if self.fields.len() == self.len {
                self.fields.push((name, Vec::with_capacity(4096)));
            }
            let (field, bytes) = &mut self.fields[self.len];
            *field = name;
            bytes.clear();
            bytes.extend_from_slice(value);
            self.len += 1;
        }
    }

    impl Carrier for Fixed {
        fn get(&self, name: &str) -> Option<&[u8]> {
            let found = self.fields[..self.len].iter().find(|(field, _)| *field == name);
            found.map(|(_, value)| value.as_slice())
        }

        fn set(&mut self, name: &'static str, value: &[u8]) {
            self.remove(name);
            self.push(name, value);
        }

        fn remove(&mut self, name: &'static str) {
            while let Some(at) = self.fields[..self.len].iter().position(|(field, _)| *field == name) {
                self.len -= 1;
                self.fields.swap(at, self.len);
            }
        }

        fn for_each<'a>(&'a self, visit: &mut dyn FnMut(&'a str, &'a [u8])) {
            for (name, value) in &self.fields[..self.len] {
                visit(name, value);
            }
        }
    }

    const HEAD: RequestHead<'_> = RequestHead {
        direction: Direction::Inbound,
        method: "GET",
        scheme: Scheme::Http,
        authority: b"stock:8080",
        path: b"/items/42",
        query: Some(b"a=1"),
        version: Version::Http11,
        caller: Some(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3))),
        destination: Destination::Named,
    };

    struct Counting(u64);

    impl Ids for Counting {
        fn trace_id(&mut self) -> TraceId {
            self.0 += 1;
            TraceId::from_bytes(u128::from(self.0).to_be_bytes()).unwrap()
        }

        fn span_id(&mut self) -> SpanId {
            self.0 += 1;
            SpanId::from_bytes(self.0.to_be_bytes()).unwrap()
        }
    }

    fn tracer(root: Root) -> Tracer {
        tracer_with(root, Aggregation::Explicit)
    }

    fn tracer_with(root: Root, aggregation: Aggregation) -> Tracer {
        tracer_at(root, aggregation, Trust::Mesh)
    }

    fn tracer_at(root: Root, aggregation: Aggregation, trust: Trust) -> Tracer {
        let config = Config {
            enabled: true,
            mode: throughline_core::mode::Mode::Hybrid,
            trust,
            adaptive: throughline_core::adaptive::Adaptive::default(),
            spans_per_second: 0,
            service: "orders".to_owned(),
            keep: throughline_core::keep::Keep::default(),
            recording: true,
            sampler: Sampler::ParentBased(root),
            propagators: Propagators { tracecontext: true, baggage: true, ..Propagators::default() },
            routes: Vec::new(),
            routes_max: 200,
            query: Query::Redacted(Vec::new()),
            mesh: Mesh::default(),
            peer_header: Peer::header("orders", "shop"),
            egress_traceparent: true,
            response_headers: ResponseHeaders { traceresponse: true, trace_id: true, server_timing: false },
            root_unsampled: RootUnsampled::Flag,
            capture_request_headers: Vec::new(),
            capture_response_headers: Vec::new(),
            aggregation,
            attribute_bytes_max: None,
            event_context: throughline_core::exchange::EventContext::Rewrite,
            message_names: throughline_core::exchange::MessageNames::DestinationFirst,
        };
        Tracer::new(config, 7)
    }

    /// Allocations of one exchange, after so many others that every buffer has its size.
    fn of_one(root: Root, direction: Direction, fields: &[(&'static str, &str)], status: u16) -> usize {
        of_one_with(&tracer(root), direction, fields, status)
    }

    fn of_one_with(
        tracer: &Tracer,
        direction: Direction,
        fields: &[(&'static str, &str)],
        status: u16,
    ) -> usize {
        let mut batch =
            Batch::new(Bounds { queue_spans_max: 2048, chunk_spans_max: 512, flush_after_ms: 1000 });
        let (mut ids, mut carrier, mut now) = (Counting(0), Fixed::default(), Now::default());
        let head = RequestHead { direction, ..HEAD };
        let mut most = 0;
        for round in 0..5000 {
            carrier.fill(fields);
            now.mono_nanos += 1_000_000;
            let before = ALLOCATIONS.get();
            let mut exchange = tracer.begin(&head, &mut carrier, now, &mut ids);
            carrier.fill(&[("content-type", "application/json")]);
            exchange.response(tracer, status, &mut carrier);
            // From some microseconds to a second, again and again.
            now.mono_nanos += 3_000 << (round % 19);
            let _ = tracer.end(exchange, Outcome::Complete, now, &mut batch);
            if round >= 3000 {
                most = most.max(ALLOCATIONS.get() - before);
            }
            while let Some(chunk) = batch.poll_flush(now, false) {
                let spans = chunk.spans();
                batch.settle(chunk, spans, Dropped::Failed);
            }
        }
        assert_eq!(batch.books().dropped, [0; Dropped::ALL.len()]);
        most
    }

    /// A user may ask for a queue that is shorter than a batch, and a collector may be away for hours.
    #[test]
    fn a_short_queue_that_nobody_empties_keeps_little_memory() {
        let tracer = tracer(Root::AlwaysOn);
        let mut batch =
            Batch::new(Bounds { queue_spans_max: 10, chunk_spans_max: 512, flush_after_ms: 1000 });
        let (mut ids, mut carrier, now) = (Counting(0), Fixed::default(), Now::default());
        let before = LIVE_BYTES.get();
        for _ in 0..200_000 {
            carrier.fill(&[("user-agent", "curl/8")]);
            let exchange = tracer.begin(&HEAD, &mut carrier, now, &mut ids);
            let _ = tracer.end(exchange, Outcome::Complete, now, &mut batch);
        }
        let kept = LIVE_BYTES.get() - before;
        assert!(kept < 16 << 20, "{kept} bytes");
        assert_eq!(batch.books().held, 10);
    }

    /// The number as letters, so that no part of a path looks like an id.
    fn letters(out: &mut String, mut number: u32) {
        for _ in 0..5 {
            out.push(char::from(b'a' + (number % 26) as u8));
            number /= 26;
        }
    }

    /// Callers and applications that make up a name for everything: operations, hosts, paths, methods, peers.
    #[test]
    fn a_million_names_of_everything_keep_series_and_memory_within_their_bounds() {
        const MANY: u32 = 1_000_000;
        let tracer = tracer(Root::AlwaysOff);
        let mut batch =
            Batch::new(Bounds { queue_spans_max: 2048, chunk_spans_max: 512, flush_after_ms: 1000 });
        let (mut ids, mut carrier, mut now) = (Counting(0), Fixed::default(), Now::default());
        let mut text = [const { String::new() }; 5];
        let before = LIVE_BYTES.get();
        for number in 0..MANY {
            let [path, method, operation, host, peer] = &mut text;
            for one in [&mut *path, &mut *method, &mut *operation, &mut *host, &mut *peer] {
                one.clear();
            }
            path.push('/');
            method.push('M');
            peer.push_str("service=");
            for one in [&mut *path, &mut *method, &mut *operation, &mut *host, &mut *peer] {
                letters(one, number);
            }
            let direction = if number % 2 == 0 { Direction::Inbound } else { Direction::Outbound };
            // The first ones combine a few names instead, which is what fills the series.
            let few = number < 20_000;
            if few {
                operation.truncate(1);
                host.truncate(2);
                path.truncate(2);
                peer.truncate(9);
            }
            carrier.fill(&[("x-operation-name", operation), ("throughline-peer", peer)]);
            let head = RequestHead {
                direction,
                path: path.as_bytes(),
                method: if few { "GET" } else { method },
                authority: host.as_bytes(),
                query: None,
                ..HEAD
            };
            now.mono_nanos += 1_000_000;
            let mut exchange = tracer.begin(&head, &mut carrier, now, &mut ids);
            carrier.fill(&[("throughline-peer", peer)]);
            exchange.response(&tracer, 200 + (number % 7) as u16, &mut carrier);
            let _ = tracer.end(exchange, Outcome::Complete, now, &mut batch);
        }
        let grown = LIVE_BYTES.get() - before;
        assert!(grown < 16 << 20, "{grown} bytes");

        const PIECE: usize = 64 * 1024;
        let (mut numbers, mut text) = (tracer.numbers(true), Text::new(Form::OpenMetrics));
        let (mut series, mut total, mut most, mut more) = (0, 0, 0, true);
        let mut rest = String::new();
        while more {
            more = numbers.write(&mut text, PIECE);
            let piece = text.take();
            assert!(piece.len() < PIECE + 16 * 1024, "a piece of {} bytes", piece.len());
            most = most.max(LIVE_BYTES.get() - before - grown);
            rest.push_str(&piece);
            let whole = rest.rfind('\n').map_or(0, |end| end + 1);
            for line in rest[..whole].lines().filter(|line| line.starts_with("http_")) {
                let Some((name, count)) = line.rsplit_once(' ') else { continue };
                if name.split('{').next().is_some_and(|name| name.ends_with("_count")) {
                    series += 1;
                    total += count.parse::<u32>().unwrap();
                }
            }
            rest.drain(..whole);
        }
        assert_eq!(total, MANY, "every exchange counts");
        assert!((1000..=METRIC_SERIES_MAX + 2).contains(&series), "{series} series");
        assert!(most < 4 << 20, "{most} bytes while it was written");
    }

    #[test]
    fn a_million_operations_of_pages_keep_memory_within_its_bound() {
        const MANY: u32 = 1_000_000;
        let edge = Edge { operations: Vec::new(), operations_max: 100, sampled_per_second: 1 };
        let tracer = tracer_at(Root::AlwaysOn, Aggregation::Explicit, Trust::Edge(edge));
        let bounds = Bounds { queue_spans_max: 2048, chunk_spans_max: 512, flush_after_ms: 1000 };
        let (mut own, mut of_pages) = (Batch::new(bounds), Batch::new(bounds));
        let limits = browser::Config {
            address_per_second: 1_000_000,
            per_second: 1_000_000,
            attribute_bytes_max: None,
        };
        let pages = Pages::new(&limits, 7);
        let (mut ids, mut carrier, mut now) = (Counting(0), Fixed::default(), Now::default());
        let (mut parent, mut operation, mut body) = (String::new(), String::new(), String::new());
        let before = LIVE_BYTES.get();
        let mut taken = 0;
        for number in 0..MANY {
            now.mono_nanos += 1_000_000;
            now.unix_nanos += 1_000_000;
            for text in [&mut parent, &mut operation, &mut body] {
                text.clear();
            }
            let _ = write!(parent, "00-{number:08x}4b1d0f7a2c3e5d6f8091a2b3-a1b2c3d4e5f60718-01");
            let _ = write!(operation, "operation-{number}");
            carrier.fill(&[
                ("sec-fetch-site", "same-origin"),
                ("traceparent", &parent),
                ("x-operation-name", &operation),
            ]);
            let address = IpAddr::V4(Ipv4Addr::from_bits(number));
            let page = pages.arrive(&mut carrier, None, address, now, &mut ids).unwrap();
            let mut exchange = tracer.begin_of_page(&HEAD, &mut carrier, now, &mut ids, &page);
            pages.decided(&page, &exchange);
            carrier.fill(&[]);
            exchange.response(&tracer, 200, &mut carrier);
            let _ = tracer.end(exchange, Outcome::Complete, now, &mut own);
            let _ = write!(
                body,
                "{{\"resourceSpans\":[{{\"scopeSpans\":[{{\"spans\":[{{\"traceId\":\"{}\",\"spanId\":\"{}\",\
                 \"name\":\"{operation}\",\"kind\":1,\"startTimeUnixNano\":\"{}\",\"endTimeUnixNano\":\"{}\"\
                 }}]}}]}}]}}",
                parent.get(3..35).unwrap(),
                parent.get(36..52).unwrap(),
                now.unix_nanos,
                now.unix_nanos,
            );
            let sent = Sent { body: body.as_bytes(), address, agent: None, now };
            taken += pages.take(&sent, &mut of_pages).unwrap().taken;
        }
        let grown = LIVE_BYTES.get() - before;
        assert!(grown < 16 << 20, "{grown} bytes");
        assert_eq!(taken, u64::from(MANY), "each told of its operation");
    }

    #[test]
    fn an_exchange_of_the_usual_kind_allocates_nothing() {
        const PARENT: (&str, &str) =
            ("traceparent", "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-01");
        let usual = [PARENT, ("x-operation-name", "checkout"), ("user-agent", "curl/8"), ("accept", "*/*")];
        let lists = [PARENT, ("tracestate", "rojo=1"), ("baggage", "user=7")];
        let peer = [PARENT, ("throughline-peer", "service=web;namespace=shop")];
        for (name, direction, fields, status, expected) in [
            ("root", Direction::Inbound, &[][..], 200, 0),
            ("usual", Direction::Inbound, &usual, 200, 0),
            ("usual call", Direction::Outbound, &usual, 200, 0),
            ("lists", Direction::Inbound, &lists, 200, 0),
            // The names of a sidecar: service and namespace.
            ("peer", Direction::Inbound, &peer, 200, 2),
            ("peer call", Direction::Outbound, &lists, 200, 0),
            ("failing", Direction::Inbound, &usual, 500, 0),
        ] {
            assert_eq!(of_one(Root::AlwaysOn, direction, fields, status), expected, "{name}");
        }
        // Not sampled, and remembered in case it is kept; and kept.
        let usual = &usual[1..];
        for (name, direction, status) in [
            ("not sampled", Direction::Inbound, 200),
            ("call not sampled", Direction::Outbound, 200),
            ("kept", Direction::Inbound, 500),
            ("call kept", Direction::Outbound, 500),
        ] {
            assert_eq!(of_one(Root::AlwaysOff, direction, usual, status), 0, "{name}");
        }
    }
    #[test]
    fn exponential_histograms_allocate_while_their_range_grows_and_no_more() {
        for direction in [Direction::Inbound, Direction::Outbound] {
            let tracer = tracer_with(Root::AlwaysOn, Aggregation::Exponential);
            assert_eq!(of_one_with(&tracer, direction, &[("x-operation-name", "checkout")], 200), 0);
        }
    }

    #[test]
    fn exponential_histograms_of_all_series_keep_within_their_bound() {
        let bytes = [Aggregation::Explicit, Aggregation::Exponential].map(|aggregation| {
            let tracer = tracer_with(Root::AlwaysOff, aggregation);
            let mut batch =
                Batch::new(Bounds { queue_spans_max: 2048, chunk_spans_max: 512, flush_after_ms: 1000 });
            let (mut ids, mut carrier, mut now) = (Counting(0), Fixed::default(), Now::default());
            let mut operation = String::new();
            let before = LIVE_BYTES.get();
            for number in 0..100_000_u32 {
                operation.clear();
                letters(&mut operation, number % 150);
                carrier.fill(&[("x-operation-name", &operation)]);
                let mut exchange = tracer.begin(&HEAD, &mut carrier, now, &mut ids);
                carrier.fill(&[]);
                exchange.response(&tracer, 200 + (number / 150 % 20) as u16, &mut carrier);
                // From 1 µs to 18 minutes, which is more than any service's.
                now.mono_nanos += 1_000 << (number / 3000 % 31);
                let _ = tracer.end(exchange, Outcome::Complete, now, &mut batch);
            }
            LIVE_BYTES.get() - before
        });
        let grown = bytes[1] - bytes[0];
        assert!((2 << 20..6 << 20).contains(&grown), "{grown} bytes more for {METRIC_SERIES_MAX} series");
    }
}
