//! A small Envoy: runs the built module on wasmi and answers its host calls as Envoy 1.40 does (statuses, which
//! headers and bodies can be read when, what a pause means). Any call can be made to fail. Knows the filter only
//! by its imports and exports.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::OnceLock;

use wasmi::{Caller, Engine, Error, Extern, Instance, Linker, Memory, Module, Store, Val};

/// Names and values as they are on the wire.
pub(crate) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// Fields from text.
pub(crate) fn fields(list: &[(&str, &str)]) -> Fields {
    list.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

/// The first value of a name.
pub(crate) fn value<'a>(fields: &'a Fields, name: &str) -> Option<&'a [u8]> {
    fields.iter().find(|(known, _)| known == name.as_bytes()).map(|(_, value)| value.as_slice())
}

/// The first value of a name, as text; empty where there is none.
pub(crate) fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    std::str::from_utf8(value(fields, name).unwrap_or_default()).unwrap()
}

/// Statuses of the ABI.
pub(crate) mod status {
    pub(crate) const OK: u32 = 0;
    pub(crate) const NOT_FOUND: u32 = 1;
    pub(crate) const BAD_ARGUMENT: u32 = 2;
    pub(crate) const CAS_MISMATCH: u32 = 8;
    pub(crate) const INTERNAL_FAILURE: u32 = 10;
    /// All but "ok".
    pub(crate) const FAILURES: std::ops::RangeInclusive<u32> = 1..=12;
}

/// What Envoy buffers of one body, unless it is told otherwise; more is answered 413.
const BUFFER_BYTES_MAX: usize = 1024 * 1024;

/// The module, from `THROUGHLINE_WASM` or from where `make wasm` puts it.
pub(crate) fn module_bytes() -> Vec<u8> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/wasm/throughline.wasm");
    let path = std::env::var_os("THROUGHLINE_WASM").map_or_else(|| PathBuf::from(built), PathBuf::from);
    std::fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}: run `make wasm` first, or set THROUGHLINE_WASM", path.display())
    })
}

fn module() -> &'static Module {
    static MODULE: OnceLock<Module> = OnceLock::new();
    MODULE.get_or_init(|| Module::new(&Engine::default(), module_bytes()).unwrap())
}

/// What all workers of one Envoy share.
#[derive(Debug)]
pub(crate) struct Shared {
    data: BTreeMap<Vec<u8>, (Vec<u8>, u32)>,
    version: u32,
    metrics: BTreeMap<String, (u32, i64)>,
    mono_nanos: u64,
    wall_nanos: u64,
}

impl Shared {
    pub(crate) fn get(&self, key: &[u8]) -> Option<&(Vec<u8>, u32)> {
        self.data.get(key)
    }

    /// Keys that begin so and hold something.
    pub(crate) fn keys(&self, prefix: &[u8]) -> Vec<Vec<u8>> {
        let of = self.data.iter().filter(|(key, (value, _))| key.starts_with(prefix) && !value.is_empty());
        of.map(|(key, _)| key.clone()).collect()
    }

    /// As `SharedData::set` of Envoy's host: a version is compared only where the key is there already.
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8], version: u32) -> u32 {
        if let Some((_, known)) = self.data.get(key)
            && version != 0
            && version != *known
        {
            return status::CAS_MISMATCH;
        }
        self.version += 1;
        self.data.insert(key.to_vec(), (value.to_vec(), self.version));
        status::OK
    }
}

/// What became of all spans, as Envoy's statistics say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Books {
    pub(crate) created: i64,
    pub(crate) exported: i64,
    pub(crate) held: i64,
    pub(crate) dropped: BTreeMap<String, i64>,
}

/// One Envoy.
#[derive(Clone, Debug)]
pub(crate) struct Envoy {
    pub(crate) shared: Rc<RefCell<Shared>>,
}

impl Envoy {
    pub(crate) fn new() -> Self {
        let shared = Shared {
            data: BTreeMap::new(),
            version: 0,
            metrics: BTreeMap::new(),
            mono_nanos: 5_000_000_000,
            wall_nanos: 1_800_000_000_000_000_000,
        };
        Self { shared: Rc::new(RefCell::new(shared)) }
    }

    /// A worker: a VM of its own.
    pub(crate) fn worker(&self) -> Vm {
        self.worker_with(&[])
    }

    /// A worker with `vm_config.environment_variables`.
    pub(crate) fn worker_with(&self, env: &[(&str, &str)]) -> Vm {
        Vm::new(self, env)
    }

    pub(crate) fn metric(&self, name: &str) -> i64 {
        self.shared.borrow().metrics.get(name).map_or(0, |(_, value)| *value)
    }

    /// The books; they balance whenever they are read.
    pub(crate) fn books(&self) -> Books {
        const DROPPED: &str = "throughline_spans_dropped.reason.";
        let dropped = |(name, (_, count)): (&String, &(u32, i64))| {
            name.strip_prefix(DROPPED).map(|reason| (reason.to_owned(), *count))
        };
        let books = Books {
            created: self.metric("throughline_spans_created"),
            exported: self.metric("throughline_spans_exported"),
            held: self.metric("throughline_spans_held"),
            dropped: self.shared.borrow().metrics.iter().filter_map(dropped).collect(),
        };
        let lost: i64 = books.dropped.values().sum();
        assert_eq!(books.created, books.exported + books.held + lost, "the books balance: {books:?}");
        books
    }

    /// As [`Envoy::books`], in one line: created, exported, held, and what was dropped.
    pub(crate) fn told(&self) -> (i64, i64, i64, Vec<(String, i64)>) {
        let books = self.books();
        (books.created, books.exported, books.held, books.dropped.into_iter().collect())
    }

    fn set_clock(&self, mono_nanos: u64) {
        let mut shared = self.shared.borrow_mut();
        shared.wall_nanos += mono_nanos - shared.mono_nanos;
        shared.mono_nanos = mono_nanos;
    }

    pub(crate) fn mono_nanos(&self) -> u64 {
        self.shared.borrow().mono_nanos
    }
}

/// Which half of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Request = 0,
    Response = 1,
}

/// One half of a stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Half {
    pub(crate) headers: Fields,
    trailers: Fields,
    /// Envoy lends the map from its callback on, until the filter lets it go on.
    headers_lent: bool,
    trailers_lent: bool,
    body: Vec<u8>,
    body_lent: bool,
    pub(crate) head_held: bool,
    buffering: bool,
    received: usize,
    declared: Option<usize>,
    /// What went on to the other side.
    pub(crate) head: Option<Fields>,
    pub(crate) sent: Vec<u8>,
    pub(crate) sent_trailers: Option<Fields>,
    pub(crate) ended: bool,
}

impl Half {
    fn release(&mut self) {
        if self.head.is_none() {
            self.head = Some(self.headers.clone());
        }
        (self.head_held, self.buffering, self.headers_lent) = (false, false, false);
        self.sent.append(&mut self.body);
    }

    /// A length that the head tells must be that of the bytes that follow: else it is request smuggling.
    fn check_length(&self) {
        if self.declared != Some(self.received) || !self.ended {
            return;
        }
        let head = self.head.as_ref().unwrap();
        if let Some(told) = value(head, "content-length") {
            assert_eq!(std::str::from_utf8(told).unwrap(), self.sent.len().to_string(), "content-length");
        }
    }
}

/// A request and its answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    root: u32,
    pub(crate) halves: [Half; 2],
    pub(crate) properties: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Envoy runs the access log: headers can be read, not changed.
    logging: bool,
}

impl Stream {
    pub(crate) fn request(&self) -> &Half {
        &self.halves[0]
    }

    pub(crate) fn response(&self) -> &Half {
        &self.halves[1]
    }

    /// What the upstream got of the request's head.
    pub(crate) fn upstream_head(&self) -> &Fields {
        self.request().head.as_ref().expect("the request's head went on")
    }
}

/// A call of the filter's that waits for its answer.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) token: u32,
    pub(crate) root: u32,
    pub(crate) grpc: bool,
    /// The cluster, or the bytes of a `GrpcService`.
    pub(crate) target: Vec<u8>,
    /// `service/method` of a gRPC call.
    pub(crate) method: String,
    pub(crate) headers: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) timeout_ms: u32,
}

/// Which host call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Every call of this function.
    Every(&'static str, u32),
    /// The call of this number, counted from the last [`Vm::fail`].
    Nth(u64, u32),
}

type Meddler = Box<dyn FnOnce(&mut Shared)>;

/// What the host functions reach.
pub(crate) struct State {
    envoy: Envoy,
    env: Vec<String>,
    roots: BTreeMap<u32, Root>,
    streams: BTreeMap<u32, Stream>,
    /// Properties that every context has: the node's and the listener's.
    pub(crate) properties: BTreeMap<Vec<u8>, Vec<u8>>,
    context: u32,
    pub(crate) calls: Vec<Call>,
    /// What a dispatched call is answered at once; "ok" lets it wait.
    pub(crate) dispatch: u32,
    token: u32,
    answer: Option<(Fields, Vec<u8>)>,
    call_status: (u32, Vec<u8>),
    /// Levels and lines.
    pub(crate) logs: Vec<(u32, String)>,
    continued: Vec<(u32, u32)>,
    pub(crate) done: BTreeSet<u32>,
    fault: Fault,
    count: u64,
    /// Functions that were called, and how often.
    pub(crate) called: BTreeMap<String, u64>,
    /// Given out in the place of every header map.
    pub(crate) odd_map: Option<Vec<u8>>,
    /// Somebody else who is faster: runs once before the named call.
    pub(crate) meddler: Option<(&'static str, Meddler)>,
    seed: u64,
}

#[derive(Clone, Debug, Default)]
struct Root {
    configuration: Vec<u8>,
    period_ms: u32,
    due_nanos: Option<u64>,
    ticks: u64,
}

/// One worker's VM.
pub(crate) struct Vm {
    store: Store<State>,
    instance: Instance,
    pub(crate) envoy: Envoy,
    next_context: u32,
    /// `allow_on_headers_stop_iteration` of the plugin.
    pub(crate) may_hold_heads: bool,
}

impl Vm {
    fn new(envoy: &Envoy, env: &[(&str, &str)]) -> Self {
        static SEED: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let state = State {
            envoy: envoy.clone(),
            env: env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            roots: BTreeMap::new(),
            streams: BTreeMap::new(),
            properties: BTreeMap::new(),
            context: 0,
            calls: Vec::new(),
            dispatch: status::OK,
            token: 0,
            answer: None,
            call_status: (0, Vec::new()),
            logs: Vec::new(),
            continued: Vec::new(),
            done: BTreeSet::new(),
            fault: Fault::None,
            count: 0,
            called: BTreeMap::new(),
            odd_map: None,
            meddler: None,
            seed: SEED.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
        };
        let module = module();
        let mut store = Store::new(module.engine(), state);
        let mut linker = Linker::new(module.engine());
        for import in module.imports() {
            let (space, name) = (import.module().to_owned(), import.name().to_owned());
            let kind = import.ty().func().expect("only functions are imported").clone();
            let of = name.clone();
            linker
                .func_new(&space, &name, kind, move |mut caller, args, results| {
                    let args: Vec<i64> = args.iter().map(number).collect();
                    // A panic must not cross the interpreter: it becomes a trap, and that one ends the test.
                    let ask = AssertUnwindSafe(|| Guest::of(&mut caller).ask(&of, &args));
                    let said = catch_unwind(ask)
                        .unwrap_or_else(|_| Err(Error::new(format!("{of}{args:?}: see the panic above"))))?;
                    if let Some(result) = results.first_mut() {
                        *result = Val::I32(said.cast_signed());
                    }
                    Ok(())
                })
                .unwrap();
        }
        let instance = linker.instantiate_and_start(&mut store, module).unwrap();
        let mut vm = Self { store, instance, envoy: envoy.clone(), next_context: 0, may_hold_heads: true };
        vm.call("_initialize", 0, &[]);
        vm
    }

    pub(crate) fn state(&mut self) -> &mut State {
        self.store.data_mut()
    }

    pub(crate) fn stream(&mut self, id: u32) -> &mut Stream {
        self.state().streams.get_mut(&id).expect("a stream that is open")
    }

    /// Calls an export; a trap is the end of the test, with what led to it.
    pub(crate) fn call(&mut self, export: &'static str, context: u32, args: &[u32]) -> u32 {
        let state = self.store.data_mut();
        state.context = context;
        let function = self.instance.get_func(&self.store, export).expect(export);
        let kind = function.ty(&self.store);
        let args: Vec<Val> = args.iter().map(|arg| Val::I32(arg.cast_signed())).collect();
        let mut results = vec![Val::I32(0); kind.results().len()];
        if let Err(error) = function.call(&mut self.store, &args, &mut results) {
            let state = self.store.data();
            panic!("{export} trapped with {:?}: {error}; {:?}", state.fault, state.logs);
        }
        self.after_call();
        results.first().map_or(0, |result| number(result) as u32)
    }

    /// Envoy goes on with a stream only after the VM's call has returned.
    fn after_call(&mut self) {
        let state = self.store.data_mut();
        for (id, side) in std::mem::take(&mut state.continued) {
            if let Some(stream) = state.streams.get_mut(&id) {
                stream.halves[side as usize].release();
            }
        }
    }

    fn new_context(&mut self) -> u32 {
        self.next_context += 1;
        self.next_context
    }

    /// A plugin, if its configuration is taken.
    pub(crate) fn try_plugin(&mut self, configuration: &[u8]) -> Option<u32> {
        let id = self.new_context();
        let root = Root { configuration: configuration.to_vec(), ..Root::default() };
        self.state().roots.insert(id, root);
        self.call("proxy_on_context_create", id, &[id, 0]);
        assert_eq!(self.call("proxy_on_vm_start", id, &[id, 0]), 1);
        let taken = self.call("proxy_on_configure", id, &[id, configuration.len() as u32]) == 1;
        taken.then_some(id)
    }

    /// A plugin whose configuration is good.
    pub(crate) fn plugin(&mut self, configuration: &str) -> u32 {
        let taken = self.try_plugin(configuration.as_bytes());
        taken.unwrap_or_else(|| panic!("the configuration was refused: {:?}", self.state().logs))
    }

    /// Lets time pass and timers fire.
    pub(crate) fn pass(&mut self, millis: u64) {
        let end = self.envoy.mono_nanos() + millis * 1_000_000;
        loop {
            let due =
                |(id, root): (&u32, &Root)| root.due_nanos.filter(|due| *due <= end).map(|due| (due, *id));
            let Some((due, id)) = self.store.data().roots.iter().filter_map(due).min() else { break };
            self.envoy.set_clock(due.max(self.envoy.mono_nanos()));
            let root = self.state().roots.get_mut(&id).unwrap();
            root.due_nanos = Some(due + u64::from(root.period_ms) * 1_000_000);
            root.ticks += 1;
            self.call("proxy_on_tick", id, &[id]);
        }
        self.envoy.set_clock(end.max(self.envoy.mono_nanos()));
    }

    /// How often a root ticked so far.
    pub(crate) fn ticks(&mut self, root: u32) -> u64 {
        self.state().roots[&root].ticks
    }

    /// Opens a stream.
    pub(crate) fn open(&mut self, root: u32) -> u32 {
        let id = self.new_context();
        self.state().streams.insert(id, Stream { root, ..Stream::default() });
        self.call("proxy_on_context_create", id, &[id, root]);
        id
    }

    /// The head of one half.
    pub(crate) fn head(&mut self, id: u32, side: Side, headers: Fields, end: bool) {
        let count = headers.len() as u32;
        let half = &mut self.stream(id).halves[side as usize];
        half.declared =
            value(&headers, "content-length").and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        (half.headers, half.headers_lent) = (headers, true);
        let export = ["proxy_on_request_headers", "proxy_on_response_headers"][side as usize];
        let paused = self.call(export, id, &[id, count, u32::from(end)]) != 0;
        let may = self.may_hold_heads;
        let half = &mut self.stream(id).halves[side as usize];
        half.ended = end;
        if paused {
            assert!(!end, "a head without a body behind it is held for ever");
            assert!(may, "without allow_on_headers_stop_iteration a held head hangs the request");
            half.head_held = true;
        } else {
            half.release();
            half.check_length();
        }
    }

    /// A piece of a body.
    pub(crate) fn body(&mut self, id: u32, side: Side, piece: &[u8], end: bool) {
        let half = &mut self.stream(id).halves[side as usize];
        half.received += piece.len();
        half.ended = end;
        if !half.buffering {
            half.body.clear();
        }
        half.body.extend_from_slice(piece);
        half.body_lent = true;
        let bytes = half.body.len();
        if half.buffering || half.head_held {
            assert!(bytes <= BUFFER_BYTES_MAX, "Envoy would answer 413: {bytes} bytes are held");
        }
        let export = ["proxy_on_request_body", "proxy_on_response_body"][side as usize];
        let paused = self.call(export, id, &[id, bytes as u32, u32::from(end)]) != 0;
        let half = &mut self.stream(id).halves[side as usize];
        if paused {
            assert!(!end, "the end of a body is held for ever");
            half.buffering = true;
        } else {
            half.body_lent = false;
            half.release();
            half.check_length();
        }
    }

    /// Trailers, which end one half.
    pub(crate) fn trailers(&mut self, id: u32, side: Side, trailers: Fields) {
        let count = trailers.len() as u32;
        let half = &mut self.stream(id).halves[side as usize];
        half.ended = true;
        (half.trailers, half.trailers_lent) = (trailers, true);
        let export = ["proxy_on_request_trailers", "proxy_on_response_trailers"][side as usize];
        let paused = self.call(export, id, &[id, count]) != 0;
        assert!(!paused, "trailers are held for ever");
        let half = &mut self.stream(id).halves[side as usize];
        half.trailers_lent = false;
        half.release();
        half.sent_trailers = Some(half.trailers.clone());
        half.check_length();
    }

    /// Envoy's access log runs.
    pub(crate) fn log(&mut self, id: u32) {
        self.stream(id).logging = true;
        self.call("proxy_on_log", id, &[id]);
        self.stream(id).logging = false;
    }

    /// Envoy takes the stream away.
    pub(crate) fn delete(&mut self, id: u32) -> Stream {
        assert_eq!(self.call("proxy_on_done", id, &[id]), 1, "a stream is done when Envoy says so");
        self.call("proxy_on_delete", id, &[id]);
        self.state().streams.remove(&id).unwrap()
    }

    /// The end of a stream, as Envoy tells of it.
    pub(crate) fn finish(&mut self, id: u32) -> Stream {
        self.log(id);
        self.delete(id)
    }

    /// Envoy asks a plugin to end; whether it is done at once.
    pub(crate) fn shut(&mut self, root: u32) -> bool {
        self.call("proxy_on_done", root, &[root]) == 1
    }

    /// Envoy takes a plugin away.
    pub(crate) fn delete_root(&mut self, root: u32) {
        self.call("proxy_on_delete", root, &[root]);
        self.state().roots.remove(&root);
    }

    /// Answers a call over HTTP; no headers mean that it failed or took too long.
    pub(crate) fn answer_http(&mut self, call: &Call, headers: &[(&str, &str)], body: &[u8]) {
        assert!(!call.grpc);
        let counts = [headers.len() as u32, body.len() as u32, 0];
        self.state().answer = Some((fields(headers), body.to_vec()));
        self.call(
            "proxy_on_http_call_response",
            call.root,
            &[call.root, call.token, counts[0], counts[1], counts[2]],
        );
        self.state().answer = None;
    }

    /// Answers a gRPC call well.
    pub(crate) fn answer_grpc(&mut self, call: &Call, message: &[u8]) {
        assert!(call.grpc);
        self.state().answer = Some((Vec::new(), message.to_vec()));
        let args = [call.root, call.token, message.len() as u32];
        self.call("proxy_on_grpc_receive", call.root, &args);
        self.state().answer = None;
    }

    /// Ends a gRPC call with a status.
    pub(crate) fn refuse_grpc(&mut self, call: &Call, code: u32, message: &[u8]) {
        assert!(call.grpc);
        self.state().call_status = (code, message.to_vec());
        self.call("proxy_on_grpc_close", call.root, &[call.root, call.token, code]);
        self.state().call_status = (0, Vec::new());
    }

    /// Takes the calls that wait.
    pub(crate) fn calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.state().calls)
    }

    /// From here on, this fails. Says how many calls were made since the last time.
    pub(crate) fn fail(&mut self, fault: Fault) -> u64 {
        let state = self.state();
        state.fault = fault;
        std::mem::take(&mut state.count)
    }

    /// Lines of the log at this level.
    pub(crate) fn logged(&mut self, level: u32) -> Vec<String> {
        self.state().logs.iter().filter(|(of, _)| *of == level).map(|(_, line)| line.clone()).collect()
    }

    /// Bytes of memory that the VM has.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.instance.get_memory(&self.store, "memory").unwrap().data_size(&self.store)
    }
}

fn number(value: &Val) -> i64 {
    match value {
        Val::I32(value) => i64::from(*value),
        Val::I64(value) => *value,
        other => panic!("no number: {other:?}"),
    }
}

/// The VM as a host function sees it.
struct Guest<'a, 'c> {
    caller: &'a mut Caller<'c, State>,
    memory: Memory,
}

/// Calls that the standard library answers with a panic, whatever this filter does, and that Envoy's host cannot give:
/// they fail only for a clock that does not exist, and for pointers outside of memory.
pub(crate) fn cannot_fail(function: &str) -> bool {
    matches!(function, "clock_time_get" | "random_get" | "environ_get" | "environ_sizes_get")
}

impl<'a, 'c> Guest<'a, 'c> {
    fn of(caller: &'a mut Caller<'c, State>) -> Self {
        let memory = caller.get_export("memory").and_then(Extern::into_memory).expect("memory");
        Self { caller, memory }
    }

    fn state(&mut self) -> &mut State {
        self.caller.data_mut()
    }

    fn ask(&mut self, name: &str, args: &[i64]) -> Result<u32, Error> {
        let state = self.state();
        *state.called.entry(name.to_owned()).or_default() += 1;
        let (fault, nth) = (state.fault, state.count);
        state.count += 1;
        let failing = match fault {
            Fault::Every(function, status) if function == name => Some(status),
            Fault::Nth(number, status) if number == nth => Some(status),
            Fault::None | Fault::Every(..) | Fault::Nth(..) => None,
        };
        if let Some(status) = failing.filter(|_| !cannot_fail(name)) {
            return Ok(status);
        }
        if state.meddler.as_ref().is_some_and(|(before, _)| *before == name) {
            let (_, meddle) = state.meddler.take().unwrap();
            meddle(&mut state.envoy.clone().shared.borrow_mut());
        }
        self.answer(name, args)
    }

    fn read(&self, at: i64, bytes: i64) -> Vec<u8> {
        let (at, bytes) = (at as u32 as usize, bytes as u32 as usize);
        self.memory.data(&*self.caller)[at..at + bytes].to_vec()
    }

    fn write(&mut self, at: i64, bytes: &[u8]) {
        self.memory.write(&mut *self.caller, at as u32 as usize, bytes).unwrap();
    }

    fn write_u32(&mut self, at: i64, number: u32) {
        self.write(at, &number.to_le_bytes());
    }

    /// Bytes into memory that the VM gives, as Envoy does; nothing is no memory.
    fn give(&mut self, bytes: &[u8], data: i64, len: i64) -> Result<u32, Error> {
        let mut at = 0;
        if !bytes.is_empty() {
            let allocate = self.caller.get_export("proxy_on_memory_allocate").and_then(Extern::into_func);
            let allocate = allocate.unwrap().typed::<u32, u32>(&*self.caller)?;
            at = allocate.call(&mut *self.caller, bytes.len() as u32)?;
            assert_ne!(at, 0, "the VM gave no memory");
            self.write(i64::from(at), bytes);
        }
        self.write_u32(data, at);
        self.write_u32(len, bytes.len() as u32);
        Ok(status::OK)
    }

    fn current(&mut self) -> Option<&mut Stream> {
        let state = self.state();
        state.streams.get_mut(&state.context)
    }

    /// The map, where it can be read; changed only while it is lent.
    fn map(&mut self, map: i64, change: bool) -> Option<&mut Fields> {
        if matches!(map, 6 | 7) {
            let state = self.state();
            return state.answer.as_mut().filter(|_| !change && map == 6).map(|(headers, _)| headers);
        }
        let stream = self.current()?;
        let logging = stream.logging && !change;
        let half = &mut stream.halves[(map / 2) as usize];
        match map % 2 {
            0 => (half.headers_lent || logging).then_some(&mut half.headers),
            _ => (half.trailers_lent || logging).then_some(&mut half.trailers),
        }
    }

    fn buffer(&mut self, buffer: i64) -> Option<&mut Vec<u8>> {
        match buffer {
            0 | 1 => {
                let half = &mut self.current()?.halves[buffer as usize];
                half.body_lent.then_some(&mut half.body)
            }
            4 | 5 => self.state().answer.as_mut().map(|(_, body)| body),
            7 => {
                let state = self.state();
                state.roots.get_mut(&state.context).map(|root| &mut root.configuration)
            }
            _ => None,
        }
    }

    fn answer(&mut self, name: &str, args: &[i64]) -> Result<u32, Error> {
        use status::*;
        let said = match (name, args) {
            ("proxy_log", [level, at, len]) => {
                let line = String::from_utf8(self.read(*at, *len)).expect("a line of UTF-8");
                let level = *level as u32;
                self.state().logs.push((level, line));
                OK
            }
            ("proxy_set_tick_period_milliseconds", [millis]) => self.tick_every(*millis as u32),
            ("proxy_get_header_map_pairs", [map, data, len]) => {
                let Some(fields) = self.map(*map, false).cloned() else {
                    return self.give(&[], *data, *len);
                };
                let bytes = self.state().odd_map.clone().unwrap_or_else(|| pairs(&fields));
                self.give(&bytes, *data, *len)?
            }
            ("proxy_get_header_map_value", [map, key, key_len, data, len]) => {
                let key = self.read(*key, *key_len);
                let Some(fields) = self.map(*map, false) else { return Ok(BAD_ARGUMENT) };
                let found = fields.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
                match found {
                    Some(found) => self.give(&found, *data, *len)?,
                    None => NOT_FOUND,
                }
            }
            ("proxy_replace_header_map_value", [map, key, key_len, value, value_len]) => {
                let (key, value) = (self.read(*key, *key_len), self.read(*value, *value_len));
                let Some(fields) = self.map(*map, true) else { return Ok(BAD_ARGUMENT) };
                let place = fields.iter().position(|(name, _)| *name == key).unwrap_or(fields.len());
                fields.retain(|(name, _)| *name != key);
                fields.insert(place, (key, value));
                OK
            }
            ("proxy_remove_header_map_value", [map, key, key_len]) => {
                let key = self.read(*key, *key_len);
                let Some(fields) = self.map(*map, true) else { return Ok(BAD_ARGUMENT) };
                fields.retain(|(name, _)| *name != key);
                OK
            }
            ("proxy_get_buffer_bytes", [buffer, start, max, data, len]) => {
                let (start, max) = (*start as u32 as usize, *max as u32 as usize);
                let Some(bytes) = self.buffer(*buffer) else { return Ok(NOT_FOUND) };
                let bytes = bytes.iter().skip(start).take(max).copied().collect::<Vec<u8>>();
                self.give(&bytes, *data, *len)?
            }
            ("proxy_set_buffer_bytes", [buffer, start, replaced, at, len]) => {
                let bytes = self.read(*at, *len);
                let Some(body) = self.buffer(*buffer).filter(|_| *buffer < 2) else {
                    return Ok(BAD_ARGUMENT);
                };
                assert_eq!(*start, 0, "only the beginning of a body is replaced");
                body.splice(..*replaced as usize, bytes);
                OK
            }
            ("proxy_get_property", [path, path_len, data, len]) => {
                let path = self.read(*path, *path_len);
                let own = self.current().and_then(|stream| stream.properties.get(&path).cloned());
                match own.or_else(|| self.state().properties.get(&path).cloned()) {
                    Some(found) => self.give(&found, *data, *len)?,
                    None => NOT_FOUND,
                }
            }
            ("proxy_get_shared_data", [key, key_len, data, len, version]) => {
                let key = self.read(*key, *key_len);
                let found = self.state().envoy.shared.borrow().get(&key).cloned();
                let Some((found, at)) = found else { return Ok(NOT_FOUND) };
                self.write_u32(*version, at);
                self.give(&found, *data, *len)?
            }
            ("proxy_set_shared_data", [key, key_len, at, len, version]) => {
                let (key, bytes) = (self.read(*key, *key_len), self.read(*at, *len));
                let envoy = self.state().envoy.clone();
                envoy.shared.borrow_mut().set(&key, &bytes, *version as u32)
            }
            ("proxy_define_metric", [kind, at, len, id]) => {
                let name = String::from_utf8(self.read(*at, *len)).expect("a metric's name");
                let number = self.define(*kind as u32, name);
                self.write_u32(*id, number);
                OK
            }
            ("proxy_increment_metric", [id, by]) => self.increment(*id as u32, *by),
            ("proxy_continue_stream", [side]) => {
                let state = self.state();
                let context = state.context;
                if !state.streams.contains_key(&context) || !(0..2).contains(side) {
                    return Ok(BAD_ARGUMENT);
                }
                state.continued.push((context, *side as u32));
                OK
            }
            ("proxy_set_effective_context", [context]) => {
                let (state, context) = (self.state(), *context as u32);
                if !state.streams.contains_key(&context) && !state.roots.contains_key(&context) {
                    return Ok(BAD_ARGUMENT);
                }
                state.context = context;
                OK
            }
            ("proxy_get_status", [code, data, len]) => {
                let (number, message) = self.state().call_status.clone();
                self.write_u32(*code, number);
                self.give(&message, *data, *len)?
            }
            ("proxy_done", []) => {
                let state = self.state();
                let root = state.context;
                if state.roots.contains_key(&root) && state.done.insert(root) { OK } else { NOT_FOUND }
            }
            (
                "proxy_http_call",
                [cluster, cluster_len, map, map_len, body, body_len, _, _, timeout, token],
            ) => {
                let headers = unpairs(&self.read(*map, *map_len));
                let call = Call {
                    token: 0,
                    root: 0,
                    grpc: false,
                    target: self.read(*cluster, *cluster_len),
                    method: String::new(),
                    headers,
                    body: self.read(*body, *body_len),
                    timeout_ms: *timeout as u32,
                };
                self.dispatch(call, *token)
            }
            (
                "proxy_grpc_call",
                [
                    to,
                    to_len,
                    service,
                    service_len,
                    method,
                    method_len,
                    map,
                    map_len,
                    body,
                    body_len,
                    timeout,
                    token,
                ],
            ) => {
                let text = |bytes| String::from_utf8(bytes).expect("a name");
                let service = text(self.read(*service, *service_len));
                let method = text(self.read(*method, *method_len));
                let call = Call {
                    token: 0,
                    root: 0,
                    grpc: true,
                    target: self.read(*to, *to_len),
                    method: format!("{service}/{method}"),
                    headers: unpairs(&self.read(*map, *map_len)),
                    body: self.read(*body, *body_len),
                    timeout_ms: *timeout as u32,
                };
                self.dispatch(call, *token)
            }
            ("environ_sizes_get", [count, bytes]) => {
                let env = self.state().env.clone();
                self.write_u32(*count, env.len() as u32);
                self.write_u32(*bytes, env.iter().map(|one| one.len() as u32 + 1).sum());
                OK
            }
            ("environ_get", [list, bytes]) => {
                let mut at = *bytes;
                for (i, one) in self.state().env.clone().iter().enumerate() {
                    self.write_u32(*list + 4 * i as i64, at as u32);
                    self.write(at, one.as_bytes());
                    self.write(at + one.len() as i64, &[0]);
                    at += one.len() as i64 + 1;
                }
                OK
            }
            ("clock_time_get", [clock, _, at]) => {
                let shared = Rc::clone(&self.state().envoy.shared);
                let shared = shared.borrow();
                let nanos = if *clock == 0 { shared.wall_nanos } else { shared.mono_nanos };
                self.write(*at, &nanos.to_le_bytes());
                OK
            }
            ("random_get", [at, len]) => {
                let mut bytes = Vec::new();
                for _ in 0..*len {
                    let state = self.state();
                    state.seed = state.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    bytes.push((state.seed >> 33) as u8);
                }
                self.write(*at, &bytes);
                OK
            }
            ("fd_write", [file, list, count, written]) => {
                let mut whole = Vec::new();
                for i in 0..*count {
                    let pair = self.read(*list + 8 * i, 8);
                    let number = |at: usize| u32::from_le_bytes(pair[at..at + 4].try_into().unwrap());
                    whole.extend(self.read(i64::from(number(0)), i64::from(number(4))));
                }
                self.write_u32(*written, whole.len() as u32);
                let line = format!("written to {file}: {}", String::from_utf8_lossy(&whole));
                self.state().logs.push((u32::MAX, line));
                OK
            }
            // The crate imports more than the filter uses.
            _ => return Err(Error::new(format!("the filter called {name}{args:?}"))),
        };
        Ok(said)
    }

    fn tick_every(&mut self, millis: u32) -> u32 {
        let state = self.state();
        let root = state.streams.get(&state.context).map_or(state.context, |stream| stream.root);
        let now = state.envoy.mono_nanos();
        let Some(root) = state.roots.get_mut(&root) else { return status::BAD_ARGUMENT };
        root.period_ms = millis;
        root.due_nanos = (millis > 0).then_some(now + u64::from(millis) * 1_000_000);
        status::OK
    }

    /// Ids are places in the list of names, beside the kind in the two lowest bits, as in Envoy.
    fn define(&mut self, kind: u32, name: String) -> u32 {
        assert!(kind < 2, "a counter or a gauge");
        let shared = Rc::clone(&self.state().envoy.shared);
        let mut shared = shared.borrow_mut();
        shared.metrics.entry(name.clone()).or_insert((kind, 0));
        // Names that come later move places: an id is made of the name itself.
        let hash = name
            .bytes()
            .fold(2_166_136_261u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
        (hash << 2) | kind
    }

    fn increment(&mut self, id: u32, by: i64) -> u32 {
        let shared = Rc::clone(&self.state().envoy.shared);
        let mut shared = shared.borrow_mut();
        let of = |name: &String| {
            name.bytes()
                .fold(2_166_136_261u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619))
                << 2
        };
        let Some((_, (kind, value))) = shared.metrics.iter_mut().find(|(name, _)| of(name) == id & !3) else {
            return status::NOT_FOUND;
        };
        if *kind == 0 && by <= 0 {
            return status::BAD_ARGUMENT;
        }
        *value += by;
        assert!(*value >= 0, "a gauge below nothing");
        status::OK
    }

    fn dispatch(&mut self, mut call: Call, token: i64) -> u32 {
        let state = self.state();
        assert!(state.roots.contains_key(&state.context), "only a root lives until the answer comes");
        if state.dispatch != status::OK {
            return state.dispatch;
        }
        state.token += 1;
        // The lowest bits are the kind of call, as in Envoy.
        (call.token, call.root) = (state.token << 2 | u32::from(call.grpc), state.context);
        let number = call.token;
        state.calls.push(call);
        self.write_u32(token, number);
        status::OK
    }
}

/// A header map as the ABI writes it.
pub(crate) fn pairs(fields: &Fields) -> Vec<u8> {
    let mut out = (fields.len() as u32).to_le_bytes().to_vec();
    for (name, value) in fields {
        out.extend_from_slice(&(name.len() as u32).to_le_bytes());
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    }
    for part in fields.iter().flat_map(|(name, value)| [name, value]) {
        out.extend_from_slice(part);
        out.push(0);
    }
    out
}

fn unpairs(bytes: &[u8]) -> Fields {
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    if bytes.is_empty() {
        return Vec::new();
    }
    let mut at = 4 + 8 * number(0);
    let mut next = |len: usize| {
        let part = bytes[at..at + len].to_vec();
        at += len + 1;
        part
    };
    (0..number(0)).map(|i| (next(number(4 + 8 * i)), next(number(8 + 8 * i)))).collect()
}
