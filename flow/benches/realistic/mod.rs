//! Spans as a thousand services send them: what a sidecar writes of a request, both sides of each call, messages by
//! service as its exporter fills them. Must give the same bytes for the same seed, and must not repeat itself more than
//! traffic does: ids, moments, paths, ports and pods differ.

/// Draws numbers, the same ones for the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(end)) >> 64) as u64
    }

    /// Few are often, many are seldom.
    fn skewed(&mut self, end: u64) -> u64 {
        let (a, b) = (self.below(end), self.below(end));
        let c = self.below(end);
        a.min(b).min(c)
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, number: u64, value: &[u8]) {
    varint(out, number << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn fixed64(out: &mut Vec<u8>, number: u64, value: u64) {
    varint(out, number << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

fn pair(out: &mut Vec<u8>, number: u64, key: &str, any: &[u8]) {
    let mut pair = Vec::with_capacity(key.len() + any.len() + 8);
    bytes(&mut pair, 1, key.as_bytes());
    bytes(&mut pair, 2, any);
    bytes(out, number, &pair);
}

fn text(out: &mut Vec<u8>, number: u64, key: &str, value: &str) {
    let mut any = Vec::with_capacity(value.len() + 4);
    bytes(&mut any, 1, value.as_bytes());
    pair(out, number, key, &any);
}

fn int(out: &mut Vec<u8>, number: u64, key: &str, value: u64) {
    let mut any = vec![3 << 3];
    varint(&mut any, value);
    pair(out, number, key, &any);
}

/// A call of an operation's tree.
struct Call {
    service: usize,
    method: &'static str,
    route: String,
    parent: Option<usize>,
    typical_micros: u64,
}

struct Service {
    name: String,
    namespace: String,
    /// `Resource` messages, one a pod.
    resources: Vec<Vec<u8>>,
    addresses: Vec<String>,
}

/// A message, and how many spans are in it.
pub struct Message {
    pub body: Vec<u8>,
    pub spans: u64,
}

/// Makes messages.
pub struct Traffic {
    random: Random,
    services: Vec<Service>,
    operations: Vec<(String, Vec<Call>)>,
    /// By service and pod: encoded spans, how many, and when the first one ended.
    waiting: Vec<Vec<(Vec<u8>, u64, u64)>>,
    now: u64,
    spans_a_second: u64,
    raw_bytes: u64,
    spans: u64,
}

const AREAS: [&str; 12] = [
    "orders", "payments", "catalog", "search", "users", "carts", "billing", "mail", "stock", "media", "auth",
    "audit",
];
const ROLES: [&str; 8] = ["api", "worker", "gateway", "store", "cache", "index", "sync", "rules"];
const AGENTS: [&str; 6] = [
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 Version/18.5 Mobile Safari/604.1",
    "okhttp/4.12.0",
    "python-requests/2.32.3",
    "Go-http-client/2.0",
    "axios/1.7.9",
];

impl Traffic {
    /// `services` services with two pods each, which together make so many spans a second.
    pub fn new(seed: u64, services: usize, spans_a_second: u64) -> Self {
        let mut random = Random(seed);
        let services: Vec<_> = (0..services).map(|i| service(i, &mut random)).collect();
        let operations = (0..200_u64.min(services.len() as u64 * 2))
            .map(|i| {
                let verbs = ["view", "create", "update", "delete", "list", "sync"];
                let name = format!("{}_{}_{i}", verbs[(i % 6) as usize], AREAS[(i / 6 % 12) as usize]);
                let count = 3 + random.below(7) as usize;
                let calls = (0..count)
                    .map(|call| {
                        let service = random.below(services.len() as u64) as usize;
                        let area = AREAS[service % AREAS.len()];
                        let (method, route) = match random.below(5) {
                            0 => ("POST", format!("/api/v1/{area}")),
                            1 => ("GET", format!("/api/v1/{area}")),
                            2 => ("GET", format!("/api/v1/{area}/{{id}}")),
                            3 => ("PUT", format!("/api/v1/{area}/{{id}}/items/{{item}}")),
                            _ => ("GET", format!("/internal/{area}/{{id}}/state")),
                        };
                        let parent = (call > 0).then(|| random.skewed(call as u64) as usize);
                        Call { service, method, route, parent, typical_micros: 500 + random.below(20_000) }
                    })
                    .collect();
                (name, calls)
            })
            .collect();
        let waiting = services
            .iter()
            .map(|service: &Service| vec![(Vec::new(), 0, 0); service.resources.len()])
            .collect();
        let now = 1_795_000_000_000_000_000;
        Self { random, services, operations, waiting, now, spans_a_second, raw_bytes: 0, spans: 0 }
    }

    /// Bytes of a `Span` message, on average.
    pub fn raw_bytes_a_span(&self) -> f64 {
        self.raw_bytes as f64 / self.spans as f64
    }

    /// When the last trace began.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Messages until so many spans are in them.
    pub fn messages(&mut self, spans: u64) -> Vec<Message> {
        let (mut out, mut sum) = (Vec::new(), 0);
        while sum < spans {
            let before = out.len();
            self.trace(&mut out);
            sum += out[before..].iter().map(|message| message.spans).sum::<u64>();
        }
        out
    }

    /// What still waits.
    pub fn rest(&mut self) -> Vec<Message> {
        let mut out = Vec::new();
        for service in 0..self.services.len() {
            for pod in 0..self.services[service].resources.len() {
                self.flush(service, pod, &mut out);
            }
        }
        out
    }

    fn flush(&mut self, service: usize, pod: usize, out: &mut Vec<Message>) {
        let (spans, count, _) = std::mem::take(&mut self.waiting[service][pod]);
        if count == 0 {
            return;
        }
        let mut scope = Vec::new();
        // Every fourth service has no sidecar but an SDK.
        bytes(&mut scope, 1, if service % 4 == 3 { b"io.opentelemetry.http" } else { b"throughline" });
        bytes(&mut scope, 2, b"0.1.0");
        let mut scope_spans = Vec::with_capacity(spans.len() + 64);
        bytes(&mut scope_spans, 1, &scope);
        scope_spans.extend_from_slice(&spans);
        let mut resource_spans = Vec::with_capacity(scope_spans.len() + 512);
        bytes(&mut resource_spans, 1, &self.services[service].resources[pod]);
        bytes(&mut resource_spans, 2, &scope_spans);
        let mut body = Vec::with_capacity(resource_spans.len() + 8);
        bytes(&mut body, 1, &resource_spans);
        out.push(Message { body, spans: count });
    }

    fn trace(&mut self, out: &mut Vec<Message>) {
        let operation = self.random.skewed(self.operations.len() as u64) as usize;
        let calls = self.operations[operation].1.len();
        let spans = calls as u64 * 2 - 1;
        self.now += self.random.below(2_000_000_000 * spans / self.spans_a_second) + 1;
        let trace_id: Vec<u8> = [self.random.draw().to_be_bytes(), self.random.draw().to_be_bytes()].concat();
        let agent = AGENTS[self.random.skewed(AGENTS.len() as u64) as usize];
        let failing = (self.random.below(50) == 0).then(|| self.random.below(calls as u64) as usize);
        let ids: Vec<(u64, u64)> = (0..calls).map(|_| (self.random.draw(), self.random.draw())).collect();
        let mut times: Vec<(u64, u64)> = Vec::with_capacity(calls);
        for call in 0..calls {
            let (parent, typical) = {
                let call = &self.operations[operation].1[call];
                (call.parent, call.typical_micros)
            };
            let lasted = typical * (500 + self.random.below(1500)) + self.random.below(1000);
            let begin = parent.map_or(self.now, |parent| {
                let (begin, lasted) = times[parent];
                begin + lasted / 10 + self.random.below(lasted / 2)
            });
            times.push((begin, lasted));
        }
        let pods: Vec<usize> = (0..calls).map(|_| self.random.below(2) as usize).collect();
        for call in 0..calls {
            let (begin, lasted) = times[call];
            let object = (self.random.below(9_000_000), self.random.below(400));
            let failed = failing == Some(call);
            let status = if failed { [500, 503, 404][self.random.below(3) as usize] } else { 200 };
            let parent = self.operations[operation].1[call].parent;
            if let Some(parent) = parent {
                // The caller's side.
                let hop = self.random.below(400_000) + 30_000;
                let ids_here = (ids[call].0, Some(ids[parent].1));
                let span = self.span(
                    operation,
                    call,
                    &trace_id,
                    ids_here,
                    (begin - hop, lasted + 2 * hop),
                    object,
                    status,
                    None,
                );
                let service = self.operations[operation].1[parent].service;
                self.hand_over(service, pods[parent], span, begin + lasted, out);
            }
            let ids_here = (ids[call].1, parent.map(|_| ids[call].0));
            let client = match parent {
                None => (
                    format!(
                        "10.{}.{}.{}",
                        200 + self.random.below(4),
                        self.random.below(256),
                        self.random.below(256)
                    ),
                    agent,
                ),
                Some(parent) => {
                    let service = &self.services[self.operations[operation].1[parent].service];
                    (
                        service.addresses[pods[parent]].clone(),
                        AGENTS[2 + self.operations[operation].1[parent].service % 4],
                    )
                }
            };
            let span = self.span(
                operation,
                call,
                &trace_id,
                ids_here,
                (begin, lasted),
                object,
                status,
                Some(client),
            );
            let service = self.operations[operation].1[call].service;
            self.hand_over(service, pods[call], span, begin + lasted, out);
        }
    }

    fn hand_over(&mut self, service: usize, pod: usize, span: Vec<u8>, ended: u64, out: &mut Vec<Message>) {
        self.raw_bytes += span.len() as u64;
        self.spans += 1;
        let waiting = &mut self.waiting[service][pod];
        if waiting.1 > 0 && (waiting.1 >= 512 || ended > waiting.2 + 1_000_000_000) {
            self.flush(service, pod, out);
        }
        let waiting = &mut self.waiting[service][pod];
        if waiting.1 == 0 {
            waiting.2 = ended;
        }
        bytes(&mut waiting.0, 2, &span);
        waiting.1 += 1;
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a span")]
    fn span(
        &self,
        operation: usize,
        call: usize,
        trace_id: &[u8],
        (id, parent): (u64, Option<u64>),
        (begin, lasted): (u64, u64),
        object: (u64, u64),
        status: u64,
        served: Option<(String, &str)>,
    ) -> Vec<u8> {
        let (operation_name, calls) = &self.operations[operation];
        let call = &calls[call];
        let service = &self.services[call.service];
        let mut out = Vec::with_capacity(512);
        bytes(&mut out, 1, trace_id);
        bytes(&mut out, 2, &id.to_be_bytes());
        if let Some(parent) = parent {
            bytes(&mut out, 4, &parent.to_be_bytes());
        }
        bytes(&mut out, 5, format!("{} {}", call.method, call.route).as_bytes());
        varint(&mut out, 6 << 3);
        varint(&mut out, if served.is_some() { 2 } else { 3 });
        fixed64(&mut out, 7, begin);
        fixed64(&mut out, 8, begin + lasted);
        let path = call.route.replace("{id}", &object.0.to_string()).replace("{item}", &object.1.to_string());
        let host = format!("{}.{}.svc.cluster.local", service.name, service.namespace);
        text(&mut out, 9, "http.request.method", call.method);
        text(&mut out, 9, "http.route", &call.route);
        text(&mut out, 9, "server.address", &host);
        int(&mut out, 9, "server.port", 8080);
        text(&mut out, 9, "network.protocol.version", "1.1");
        int(&mut out, 9, "http.response.status_code", status);
        if status >= 500 || status >= 400 && served.is_none() {
            text(&mut out, 9, "error.type", &status.to_string());
        }
        match &served {
            Some((address, agent)) => {
                text(&mut out, 9, "url.path", &path);
                text(&mut out, 9, "url.scheme", "http");
                text(&mut out, 9, "client.address", address);
                text(&mut out, 9, "user_agent.original", agent);
            }
            None => {
                text(&mut out, 9, "url.full", &format!("http://{host}:8080{path}"));
                text(&mut out, 9, "throughline.peer.service", &service.name);
                text(&mut out, 9, "throughline.peer.namespace", &service.namespace);
            }
        }
        text(&mut out, 9, "app.operation.name", operation_name);
        if parent.is_none() {
            text(&mut out, 9, "throughline.sampled.by", "ratio");
        }
        if status >= 500 || status >= 400 && served.is_none() {
            bytes(&mut out, 15, &[3 << 3, 2]);
        }
        varint(&mut out, 16 << 3 | 5);
        out.extend_from_slice(&if parent.is_none() { 0x101_u32 } else { 0x301 }.to_le_bytes());
        out
    }
}

fn service(i: usize, random: &mut Random) -> Service {
    let name = format!("{}-{}-{i}", AREAS[i % AREAS.len()], ROLES[i / AREAS.len() % ROLES.len()]);
    let namespace = format!("team-{}", i % 23);
    let (mut resources, mut addresses) = (Vec::new(), Vec::new());
    let replica_set = format!("{:09x}", random.draw() >> 28);
    for _ in 0..2 {
        let mut resource = Vec::new();
        let suffix: String =
            (0..5).map(|_| char::from(b"bcdfghjklmnpqrstvwxz2456789"[random.below(27) as usize])).collect();
        let pod = format!("{name}-{replica_set}-{suffix}");
        text(&mut resource, 1, "service.name", &name);
        text(&mut resource, 1, "service.namespace", &namespace);
        text(
            &mut resource,
            1,
            "service.instance.id",
            &format!("{:016x}{:016x}", random.draw(), random.draw()),
        );
        text(&mut resource, 1, "service.version", &format!("1.{}.{}", i % 7, i % 40));
        text(&mut resource, 1, "k8s.pod.name", &pod);
        text(&mut resource, 1, "k8s.namespace.name", &namespace);
        text(&mut resource, 1, "k8s.deployment.name", &name);
        text(
            &mut resource,
            1,
            "k8s.node.name",
            &format!("ip-10-0-{}-{}", random.below(8), random.below(250)),
        );
        text(
            &mut resource,
            1,
            "deployment.environment.name",
            if i % 10 == 9 { "staging" } else { "production" },
        );
        text(&mut resource, 1, "telemetry.distro.name", "throughline");
        text(&mut resource, 1, "telemetry.distro.version", "0.1.0");
        resources.push(resource);
        addresses.push(format!("10.{}.{}.{}", random.below(32), random.below(256), random.below(256)));
    }
    Service { name, namespace, resources, addresses }
}
