//! Everything that this filter asks of Envoy: headers, bodies, properties, shared data, metrics, moments, calls.
//! Bytes only; a call that fails gives nothing, or does nothing. No other module may reach the host.

mod abi;

use std::cell::RefCell;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use throughline_core::carrier::Carrier;
use throughline_core::exchange::Now;
use throughline_core::ids::RandomIds;

/// What becomes of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Action {
    /// It goes on.
    Continue = 0,
    /// It waits until it is told to go on.
    Pause = 1,
}

/// Which headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Map {
    /// Of the request.
    Request = 0,
    /// Of the answer.
    Response = 2,
    /// The trailers of the answer.
    ResponseTrailers = 3,
    /// Of an answer to a call of ours.
    CallResponse = 6,
}

/// Which bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Buffer {
    /// The request's body.
    Request = 0,
    /// The answer's body.
    Response = 1,
    /// The body of an answer to an HTTP call of ours.
    CallResponse = 4,
    /// The message of an answer to a gRPC call of ours.
    GrpcResponse = 5,
    /// The plugin's configuration.
    Configuration = 7,
}

/// Which half of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Half {
    /// The request.
    Request = 0,
}

/// How loud a line of Envoy's log is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Level {
    Debug = 1,
    Warn = 3,
    Error = 4,
}

/// Writes a line into Envoy's log.
pub(crate) fn log(level: Level, line: &str) {
    abi::log(level as u32, line);
}

/// Has the root context ticked from here on, if the host can.
pub(crate) fn tick_every(period: Duration) -> bool {
    abi::tick_every(u32::try_from(period.as_millis()).unwrap_or(u32::MAX).max(1))
}

/// Headers read in one call; what is changed is changed at the host at once.
#[derive(Debug)]
pub(crate) struct Headers {
    map: Map,
    bytes: Vec<u8>,
    fields: Vec<Field>,
    /// Whether the host told them; nothing may be concluded from what is missing otherwise.
    pub(crate) told: bool,
}

#[derive(Debug)]
struct Field {
    name: Range<usize>,
    value: Range<usize>,
}

impl Headers {
    /// Empty where the host has none, or says what can't be read.
    pub(crate) fn of(map: Map) -> Self {
        let bytes = abi::map(map as u32).unwrap_or_default();
        let fields = fields(&bytes);
        Self { map, bytes, told: fields.is_some(), fields: fields.unwrap_or_default() }
    }

    /// A field, pseudo fields such as `:path` included.
    pub(crate) fn raw(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|field| self.name(field) == name.as_bytes()).map(|field| self.value(field))
    }

    fn name(&self, field: &Field) -> &[u8] {
        self.bytes.get(field.name.clone()).unwrap_or_default()
    }

    fn value(&self, field: &Field) -> &[u8] {
        self.bytes.get(field.value.clone()).unwrap_or_default()
    }

    /// Sets a field, if the host takes it.
    pub(crate) fn put(&mut self, name: &str, value: &[u8]) -> bool {
        // What the host does not take must not be believed to be there.
        if !abi::set_map_value(self.map as u32, name, value) {
            return false;
        }
        self.forget(name);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name.as_bytes());
        let middle = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.fields.push(Field { name: start..middle, value: middle..self.bytes.len() });
        true
    }

    fn forget(&mut self, name: &str) {
        let bytes = &self.bytes;
        self.fields.retain(|field| bytes.get(field.name.clone()) != Some(name.as_bytes()));
    }
}

/// The host's list: a count, as many pairs of lengths, then names and values, each behind it a zero byte.
fn fields(bytes: &[u8]) -> Option<Vec<Field>> {
    let number = |at: usize| {
        let four = bytes.get(at..)?.first_chunk::<4>()?;
        usize::try_from(u32::from_le_bytes(*four)).ok()
    };
    let count = number(0)?;
    let mut at = count.checked_mul(8)?.checked_add(4)?;
    if at > bytes.len() {
        return None;
    }
    let mut next = |len: usize| {
        let range = at..at.checked_add(len)?;
        at = range.end.checked_add(1)?;
        (range.end < bytes.len()).then_some(range)
    };
    let mut fields = Vec::with_capacity(count + 8);
    for lengths in (0..count).map(|field| 4 + 8 * field) {
        let name = next(number(lengths)?)?;
        let value = next(number(lengths + 4)?)?;
        fields.push(Field { name, value });
    }
    Some(fields)
}

/// Such a list for the host.
fn list(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    let mut bytes = number(fields.len()).to_vec();
    for (name, value) in fields {
        bytes.extend_from_slice(&number(name.len()));
        bytes.extend_from_slice(&number(value.len()));
    }
    for text in fields.iter().flat_map(|(name, value)| [name.as_bytes(), value]) {
        bytes.extend_from_slice(text);
        bytes.push(0);
    }
    bytes
}

impl Carrier for Headers {
    fn get(&self, name: &str) -> Option<&[u8]> {
        self.raw(name)
    }

    fn set(&mut self, name: &'static str, value: &[u8]) {
        self.put(name, value);
    }

    fn remove(&mut self, name: &'static str) {
        abi::remove_map_value(self.map as u32, name);
        self.forget(name);
    }

    fn for_each<'a>(&'a self, visit: &mut dyn FnMut(&'a str, &'a [u8])) {
        for field in &self.fields {
            let name = std::str::from_utf8(self.name(field)).unwrap_or_default();
            if !name.is_empty() && !name.starts_with(':') {
                visit(name, self.value(field));
            }
        }
    }
}

/// One field, without reading the others.
pub(crate) fn header(map: Map, name: &str) -> Option<Vec<u8>> {
    abi::map_value(map as u32, name)
}

/// Bytes from the beginning, `bytes_max` at the most.
pub(crate) fn bytes(buffer: Buffer, bytes_max: usize) -> Vec<u8> {
    match bytes_max {
        0 => Vec::new(),
        _ => abi::buffer(buffer as u32, 0, bytes_max).unwrap_or_default(),
    }
}

/// Puts `value` in the place of the first `replaced` bytes.
pub(crate) fn replace(buffer: Buffer, replaced: usize, value: &[u8]) -> bool {
    abi::set_buffer(buffer as u32, 0, replaced, value)
}

/// A property; the parts of its path are separated by zero bytes.
pub(crate) fn property(path: &str) -> Option<Vec<u8>> {
    abi::property(path.as_bytes()).filter(|value| !value.is_empty())
}

/// A property that is a number.
pub(crate) fn number(path: &str) -> Option<i64> {
    property(path).and_then(|bytes| Some(i64::from_le_bytes(*bytes.first_chunk::<8>()?)))
}

/// A value that all workers share, and its version.
pub(crate) fn shared(key: &str) -> Option<(Vec<u8>, u32)> {
    abi::shared(key)
}

/// Writes a shared value, whatever is there.
pub(crate) fn share(key: &str, value: &[u8]) {
    abi::set_shared(key, value, 0);
}

/// Writes a shared value if it still has this version, or is not there and `version` is none.
pub(crate) fn share_if(key: &str, value: &[u8], version: Option<u32>) -> bool {
    // A key that is not there has no version to compare, so one that none ever gets is "only if it is not there".
    abi::set_shared(key, value, version.unwrap_or(u32::MAX))
}

/// A metric of Envoy's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric(u32);

impl Metric {
    /// A counter.
    pub(crate) fn counter(name: &str) -> Option<Self> {
        abi::define_metric(0, name).map(Self)
    }

    /// A gauge, to which all workers add.
    pub(crate) fn gauge(name: &str) -> Option<Self> {
        abi::define_metric(1, name).map(Self)
    }

    /// Adds to it; says whether that was done.
    pub(crate) fn add(self, by: i64) -> bool {
        abi::add_to_metric(self.0, by)
    }
}

/// Lets a half of a stream that waits go on. `stream` is its context, `own` the one that runs.
/// Says whether it does.
pub(crate) fn go_on(stream: u32, half: Half, own: u32) -> bool {
    let goes_on = abi::speak_for(stream) && abi::go_on(half as u32);
    abi::speak_for(own);
    goes_on
}

/// Tells the host that a root context which asked for time has ended.
pub(crate) fn done() {
    abi::done();
}

/// Status and message of the answer to a gRPC call.
pub(crate) fn grpc_status() -> (u32, String) {
    let (code, message) = abi::call_status().unwrap_or_default();
    (code, String::from_utf8_lossy(&message).into_owned())
}

/// Sends a POST, or a GET where there is no body, to a cluster; the answer comes to the root context.
pub(crate) fn call_http(
    cluster: &str,
    headers: Vec<(&str, &str)>,
    body: Option<&[u8]>,
    timeout: Duration,
) -> Option<u32> {
    let headers: Vec<_> = headers.into_iter().map(|(name, value)| (name, value.as_bytes())).collect();
    abi::call_http(cluster, &list(&headers), body.unwrap_or_default(), &list(&[]), millis(timeout))
}

/// Calls a gRPC method at a cluster; the answer comes to the root context.
pub(crate) fn call_grpc(
    cluster: &str,
    authority: &str,
    service: &str,
    metadata: Vec<(&str, &[u8])>,
    message: &[u8],
    timeout: Duration,
) -> Option<u32> {
    let target = grpc_service(cluster, authority);
    abi::call_grpc(&target, service, "Export", &list(&metadata), message, millis(timeout))
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// `GrpcService{envoy_grpc=1{cluster_name=1, authority=2}}`. A bare name would be taken for the bytes of such a
/// message where it happens to be one.
fn grpc_service(cluster: &str, authority: &str) -> String {
    let field = |number: u8, text: &str| {
        let len = u8::try_from(text.len()).unwrap_or(0) & 0x7f;
        let tag = number << 3 | 2;
        format!("{}{}{text}", char::from(tag), char::from(len))
    };
    let whole = field(1, cluster) + &field(2, authority);
    if whole.len() < 128 { field(1, &whole) } else { field(1, &field(1, cluster)) }
}

thread_local! {
    static IDS: RefCell<RandomIds> = RefCell::new(RandomIds::seeded([seed(), seed(), seed(), seed()]));
    static CLOCK: Clock = Clock::default();
}

/// A random number of the host's, by way of the standard library's hash keys.
pub(crate) fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Runs with this VM's ids, seeded once.
pub(crate) fn with_ids<T>(run: impl FnOnce(&mut RandomIds) -> T) -> T {
    IDS.with_borrow_mut(run)
}

/// A moment costs one call: the wall clock is read anew once a second, and told from the other one between.
#[derive(Debug)]
struct Clock {
    start: Instant,
    /// The wall clock, and the other one at that time.
    read: std::cell::Cell<Option<(u64, u64)>>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { start: Instant::now(), read: std::cell::Cell::new(None) }
    }
}

/// How long a reading of the wall clock is good for.
const WALL_CLOCK_NANOS: u64 = 1_000_000_000;

/// This moment.
pub(crate) fn now() -> Now {
    CLOCK.with(|clock| {
        let mono_nanos = u64::try_from(clock.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let fresh = clock.read.get().filter(|(_, at)| mono_nanos.saturating_sub(*at) < WALL_CLOCK_NANOS);
        let (unix, at) = fresh.unwrap_or_else(|| {
            let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let read = (u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX), mono_nanos);
            clock.read.set(Some(read));
            read
        });
        Now { unix_nanos: unix.saturating_add(mono_nanos - at), mono_nanos }
    })
}

/// The environment that Envoy gives the VM.
pub(crate) fn environment() -> Vec<(String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}
