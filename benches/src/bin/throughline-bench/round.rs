//! One round: a candidate is started afresh, warmed up, asked, and its costs are read. A round with an answer that
//! is not right, or with spans that did not arrive, is no result and says why.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::peers::{Candidate, Peers, Scenario, address, port};
use crate::process::{Class, OTHER_CORE, PROXY_CORE, Process, start};
use crate::wire::load::told;

/// How long rounds take, and how much is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) warm: Duration,
    pub(crate) asked: Duration,
    pub(crate) open: Duration,
    pub(crate) settle: Duration,
    pub(crate) idle_connections: u64,
    pub(crate) rate: u32,
}

/// What a round found; numbers that the scenario does not have are not there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found(pub(crate) BTreeMap<&'static str, f64>);

impl Found {
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }
}

/// The backend and the sink, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Stage {
    backend: Process,
    sink: Process,
}

impl Stage {
    pub(crate) fn set(folder: &Path) -> Result<Self, String> {
        let own = |arguments: &[&str], log: &str| {
            let command = own_command(arguments)?;
            start(&command, OTHER_CORE, Class::Usual, Some(&folder.join(log)))
                .map_err(|error| error.to_string())
        };
        let mut backend = own(&["backend", &address(port::BACKEND)], "backend.log")?;
        let mut sink = own(&["sink", &address(port::SINK), &address(port::COUNTS)], "sink.log")?;
        wait_for(port::BACKEND, &mut backend)?;
        wait_for(port::COUNTS, &mut sink)?;
        Ok(Self { backend, sink })
    }
}

fn own_command(arguments: &[&str]) -> Result<Command, String> {
    let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    command.args(arguments);
    Ok(command)
}

fn wait_for(port: u16, process: &mut Process) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(15);
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    while Instant::now() < until {
        if let Ok(Some(status)) = process.0.try_wait() {
            return Err(format!("it ended at once: {status}"));
        }
        if TcpStream::connect_timeout(&at, Duration::from_millis(200)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(format!("port {port} did not open"))
}

/// Spans that the sink has so far.
fn spans() -> Result<f64, String> {
    let failed = |error: std::io::Error| format!("the sink does not tell: {error}");
    let mut stream = TcpStream::connect(address(port::COUNTS)).map_err(failed)?;
    let _ = stream.flush();
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(failed)?;
    told(&text).get("spans").copied().ok_or_else(|| "the sink tells no spans".to_owned())
}

/// Runs a generator to its end.
fn ask(arguments: &[&str], class: Class) -> Result<BTreeMap<String, f64>, String> {
    let failed = |error: std::io::Error| error.to_string();
    let process = start(&own_command(arguments)?, OTHER_CORE, class, None).map_err(failed)?;
    let (text, well) = process.said().map_err(failed)?;
    let numbers = told(&text);
    let errors = numbers.get("errors").copied();
    if !well || errors != Some(0.0) || numbers.get("answers").is_none_or(|answers| *answers < 1.0) {
        return Err(format!("the generator saw: {}", text.trim().replace('\n', ", ")));
    }
    Ok(numbers)
}

/// One round of one candidate.
pub(crate) fn round(
    peers: &Peers,
    stage: &Stage,
    folder: &Path,
    candidate: Candidate,
    scenario: Scenario,
    size: Size,
) -> Result<Found, String> {
    let command = peers.command(candidate, scenario).map_err(|error| error.to_string())?;
    let counts = folder.join("callgrind.out");
    let command = match scenario.counts() {
        true => command.map(|command| under_callgrind(&command, &counts)),
        false => command,
    };
    let log = folder.join(format!("{}.log", candidate.key()));
    let mut proxy = match &command {
        Some(command) => {
            Some(start(command, PROXY_CORE, Class::Usual, Some(&log)).map_err(|error| error.to_string())?)
        }
        None => None,
    };
    let said = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.chars().take(2000).collect::<String>()
    };
    if let Some(proxy) = &mut proxy {
        wait_for(port::PROXY, proxy).map_err(|why| format!("{why}; it says: {}", said()))?;
    }
    // In the open loop all is mostly idle; what else the machine does shall not stand in the latencies.
    let class = if scenario == Scenario::Open { Class::RealTime } else { Class::Usual };
    for process in [&stage.backend, &stage.sink].into_iter().chain(&proxy) {
        process.schedule(class);
    }
    let found = match &proxy {
        Some(proxy) if scenario.counts() => count(proxy, &counts, candidate, scenario, size),
        proxy => measure(proxy.as_ref(), candidate, scenario, size),
    };
    if let Some(proxy) = &mut proxy {
        proxy.stop();
    }
    found
}

fn measure(
    proxy: Option<&Process>,
    candidate: Candidate,
    scenario: Scenario,
    size: Size,
) -> Result<Found, String> {
    let to = address(if proxy.is_some() { port::PROXY } else { port::BACKEND });
    let context = if candidate.with_context() { "with-context" } else { "without-context" };
    let millis = |time: Duration| time.as_millis().to_string();
    let closed = |time: Duration| -> Result<_, String> {
        let kind = match scenario {
            Scenario::Large => "load-large",
            Scenario::Http2 | Scenario::Count2 => "load-http2",
            Scenario::Grpc => "load-grpc",
            Scenario::Http1 | Scenario::Idle | Scenario::Open | Scenario::Count1 => "load-http1",
        };
        ask(&[kind, &to, context, &millis(time)], Class::Usual)
    };
    let mut found = Found::default();
    if scenario == Scenario::Idle {
        std::thread::sleep(Duration::from_millis(500));
        return idle(proxy, &to, size, found);
    }
    // Long enough that what is exported once a second has left.
    let settle = if candidate.spans_per_request() > 0.0 { size.settle } else { size.settle / 5 };
    closed(size.warm)?;
    std::thread::sleep(settle);
    let (spans_before, cpu_before, began) = (spans()?, proxy.map(Process::cpu), Instant::now());
    let seen = match scenario {
        Scenario::Open => {
            let (rate, time) = (size.rate.to_string(), millis(size.open));
            ask(&["load-fixed", &to, context, &time, &rate], Class::RealTime)?
        }
        _ => closed(size.asked)?,
    };
    let busy = proxy.zip(cpu_before).map(|(proxy, before)| {
        proxy.cpu().saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64()
    });
    std::thread::sleep(settle); // the export of what is left is part of the cost
    let answers = seen.get("answers").copied().unwrap_or(0.0);
    if let (Some(proxy), Some(before)) = (proxy, cpu_before) {
        let cost = proxy.cpu().saturating_sub(before);
        found.0.insert("micros", cost.as_secs_f64() * 1e6 / answers);
        found.0.insert("rss_mib", proxy.rss_kib() as f64 / 1024.0);
    }
    found.0.extend(busy.map(|busy| ("busy", busy)));
    found.0.insert("rate", answers / seen.get("seconds").copied().unwrap_or(f64::NAN));
    found.0.insert("answers", answers);
    for name in ["p50", "p99", "p999"] {
        found.0.extend(seen.get(name).map(|value| (name, *value)));
    }
    let spans = (spans()? - spans_before) / answers;
    found.0.insert("spans", spans);
    judge_spans(candidate, spans)?;
    if scenario == Scenario::Open {
        judge_rate(&seen)?;
    }
    Ok(found)
}

/// The same command, its instructions counted from when it is told.
fn under_callgrind(command: &Command, counts: &Path) -> Command {
    let mut through = Command::new("valgrind");
    through.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", counts.display()));
    through.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => through.env(name, value),
            None => through.env_remove(name),
        };
    }
    through
}

/// Instructions of a request, what its export takes included.
fn count(
    proxy: &Process,
    counts: &Path,
    candidate: Candidate,
    scenario: Scenario,
    size: Size,
) -> Result<Found, String> {
    let (to, kind) = (address(port::PROXY), if scenario.by_http2() { "load-http2" } else { "load-http1" });
    let closed =
        |time: Duration| ask(&[kind, &to, "with-context", &time.as_millis().to_string()], Class::Usual);
    let control = |what: &str| {
        let output = Command::new("callgrind_control").args([what, &proxy.pid().to_string()]).output();
        output.map_err(|error| format!("callgrind_control: {error}"))
    };
    // Everything is fifty times slower.
    closed(size.warm * 3)?;
    std::thread::sleep(size.settle);
    let before = spans()?;
    control("-z")?;
    let seen = closed(size.asked * 4)?;
    std::thread::sleep(size.settle);
    let first = counts.with_extension("out.1");
    let _ = std::fs::remove_file(&first);
    control("-d")?;
    let until = Instant::now() + Duration::from_secs(10);
    let total = loop {
        let text = std::fs::read_to_string(&first).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("totals: "));
        match line.and_then(|total| total.trim().parse::<f64>().ok()) {
            Some(total) => break total,
            None if Instant::now() > until => return Err("callgrind wrote no counts".to_owned()),
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let _ = std::fs::remove_file(&first);
    let answers = seen.get("answers").copied().unwrap_or(f64::NAN);
    let spans = (spans()? - before) / answers;
    judge_spans(candidate, spans)?;
    let mut found = Found::default();
    found.0.insert("instructions", total / answers);
    found.0.insert("answers", answers);
    found.0.insert("spans", spans);
    Ok(found)
}

/// A candidate that does not export what it should has done less work than the others.
fn judge_spans(candidate: Candidate, spans: f64) -> Result<(), String> {
    let wanted = candidate.spans_per_request();
    let right = if wanted == 0.01 { 0.005..=0.02 } else { wanted * 0.99..=wanted * 1.01 + 0.001 };
    match right.contains(&spans) {
        true => Ok(()),
        false => Err(format!("{spans:.3} spans a request arrived at the sink, want {wanted}")),
    }
}

fn judge_rate(seen: &BTreeMap<String, f64>) -> Result<(), String> {
    let (answers, due) = (seen.get("answers"), seen.get("due"));
    match answers == due {
        true => Ok(()),
        false => Err(format!("{answers:?} answers to {due:?} requests")),
    }
}

fn idle(proxy: Option<&Process>, to: &str, size: Size, mut found: Found) -> Result<Found, String> {
    let Some(proxy) = proxy else { return Ok(found) };
    let before = proxy.rss_kib();
    let command = own_command(&["load-idle", to, &size.idle_connections.to_string()])?;
    let failed = |error: std::io::Error| error.to_string();
    let mut load = start(&command, OTHER_CORE, Class::Usual, None).map_err(failed)?;
    let out = load.0.stdout.take().ok_or("no standard output")?;
    let lines = BufReader::new(out).lines().map_while(Result::ok);
    let text: Vec<String> = lines.take_while(|line| line != "standing").collect();
    let seen = told(&text.join("\n"));
    if seen.get("open").copied() != Some(size.idle_connections as f64) {
        return Err(format!("want {} connections open: {}", size.idle_connections, text.join(", ")));
    }
    std::thread::sleep(Duration::from_secs(1));
    let after = proxy.rss_kib();
    found.0.insert("rss_before_mib", before as f64 / 1024.0);
    found.0.insert("rss_mib", after as f64 / 1024.0);
    found.0.insert("connection_kib", after.saturating_sub(before) as f64 / size.idle_connections as f64);
    load.stop();
    Ok(found)
}
