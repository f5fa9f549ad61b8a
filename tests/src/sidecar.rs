//! The sidecar as a real process: started with flags and environment as a user would, ready when it says so,
//! ended by its own process id. What it wrote is kept, and shown when a scenario fails. Where the scenarios are run
//! against Envoy, a plan starts that instead.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use crate::books::Books;
use crate::envoy::{self, Bootstrap, Launch};
use crate::pki::Folder;
use crate::wait::{eventually, within};

/// Who runs `core` in a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// `throughline-proxy`.
    Sidecar,
    /// Envoy with our filter.
    Envoy,
}

impl Host {
    /// The one that `THROUGHLINE_TESTS_HOST` names; the sidecar unless it says `envoy`.
    pub fn asked() -> Host {
        match std::env::var("THROUGHLINE_TESTS_HOST").as_deref() {
            Err(_) | Ok("" | "sidecar") => Host::Sidecar,
            Ok("envoy") => Host::Envoy,
            Ok(other) => panic!("THROUGHLINE_TESTS_HOST={other:?}: want sidecar or envoy"),
        }
    }

    /// What is expected where the hosts differ, which `tests/differences.toml` or the scenario gives a reason for.
    pub fn choose<T>(self, sidecar: T, envoy: T) -> T {
        match self {
            Host::Sidecar => sidecar,
            Host::Envoy => envoy,
        }
    }

    /// As files and rows name it.
    pub fn name(self) -> &'static str {
        match self {
            Host::Sidecar => "sidecar",
            Host::Envoy => "envoy",
        }
    }
}

/// Which build of the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// `THROUGHLINE_PROXY_BIN`, else `target/quick/throughline-proxy`.
    Quick,
    /// `THROUGHLINE_PROXY_DEBUG_BIN`, else `target/debug/throughline-proxy`: overflow checks, debug assertions.
    Debug,
}

impl Build {
    /// Where the binary is, if it is.
    pub fn path(self) -> Option<PathBuf> {
        let (variable, folder) = match self {
            Build::Quick => ("THROUGHLINE_PROXY_BIN", "quick"),
            Build::Debug => ("THROUGHLINE_PROXY_DEBUG_BIN", "debug"),
        };
        let named = std::env::var_os(variable).map(PathBuf::from);
        let path = named.unwrap_or_else(|| workspace().join("target").join(folder).join("throughline-proxy"));
        path.is_file().then_some(path)
    }

    fn must(self) -> PathBuf {
        self.path().unwrap_or_else(|| {
            panic!(
                "no sidecar to test: build it with `cargo build --profile quick -p throughline-proxy`, or name \
                 one by THROUGHLINE_PROXY_BIN (debug build: THROUGHLINE_PROXY_DEBUG_BIN)"
            )
        })
    }
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

/// How a sidecar is to be started.
#[derive(Clone, Debug)]
pub struct Plan {
    name: String,
    build: Build,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    hosts: Option<PathBuf>,
    host: Host,
    workers: u32,
    through: Vec<String>,
    reached_at: Option<IpAddr>,
}

impl Plan {
    /// A sidecar with no settings at all.
    pub fn bare(name: &str) -> Plan {
        Plan {
            name: name.to_owned(),
            build: Build::Quick,
            arguments: Vec::new(),
            environment: Vec::new(),
            hosts: None,
            host: Host::asked(),
            workers: 1,
            through: Vec::new(),
            reached_at: None,
        }
    }

    /// A sidecar whose three ports are free ones of loopback, before an application at `upstream`.
    pub fn before(name: &str, upstream: SocketAddr) -> Plan {
        Plan::bare(name)
            .flag("inbound-listen", "127.0.0.1:0")
            .flag("inbound-upstream", upstream)
            .flag("outbound-listen", "127.0.0.1:0")
            .flag("admin-listen", "127.0.0.1:0")
            .environment("OTEL_SERVICE_NAME", name)
            .environment("OTEL_BSP_SCHEDULE_DELAY", "50")
    }

    /// A sidecar with an outbound and an admin side only.
    pub fn outbound_only(name: &str) -> Plan {
        Plan::bare(name)
            .flag("outbound-listen", "127.0.0.1:0")
            .flag("admin-listen", "127.0.0.1:0")
            .environment("OTEL_SERVICE_NAME", name)
            .environment("OTEL_BSP_SCHEDULE_DELAY", "50")
    }

    /// Sets a flag; a flag that was set before is replaced.
    pub fn flag(mut self, name: &str, value: impl std::fmt::Display) -> Plan {
        let flag = format!("--{name}");
        if let Some(at) = self.arguments.iter().position(|argument| *argument == flag) {
            self.arguments.drain(at..at + 2);
        }
        self.arguments.extend([flag, value.to_string()]);
        self
    }

    /// Adds an argument as it is.
    pub fn argument(mut self, argument: impl Into<String>) -> Plan {
        self.arguments.push(argument.into());
        self
    }

    /// Removes a flag.
    pub fn without(mut self, name: &str) -> Plan {
        let flag = format!("--{name}");
        if let Some(at) = self.arguments.iter().position(|argument| *argument == flag) {
            self.arguments.drain(at..at + 2);
        }
        self
    }

    /// Sets an environment variable; the process gets no others but `PATH`.
    pub fn environment(mut self, name: &str, value: impl std::fmt::Display) -> Plan {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Chooses the build.
    pub fn build(mut self, build: Build) -> Plan {
        self.build = build;
        self
    }

    /// Gives the process, in a mount namespace of its own, this file as `/etc/hosts`.
    pub fn hosts(mut self, file: &Path) -> Plan {
        self.hosts = Some(file.to_owned());
        self
    }

    /// Chooses the host, whatever the others run on.
    pub fn on(mut self, host: Host) -> Plan {
        self.host = host;
        self
    }

    /// Puts words before the command; the last of them is the binary to run.
    pub fn through(mut self, words: Vec<String>) -> Plan {
        self.through = words;
        self
    }

    /// Says at which address a port of all addresses is reached.
    pub fn reached_at(mut self, ip: IpAddr) -> Plan {
        self.reached_at = Some(ip);
        self
    }

    /// How many workers Envoy is to have.
    pub fn workers(mut self, workers: u32) -> Plan {
        self.workers = workers;
        self
    }

    /// The flags, and below them the file that `--config` names.
    pub(crate) fn flags(&self) -> BTreeMap<String, String> {
        let mut flags = BTreeMap::new();
        let mut arguments = self.arguments.iter();
        while let Some(argument) = arguments.next() {
            let flag = argument.strip_prefix("--").unwrap_or_else(|| panic!("{argument} is no flag"));
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (flag, arguments.next().unwrap_or_else(|| panic!("{argument}: no value")).clone()),
            };
            flags.insert(name.to_owned(), value);
        }
        for (name, value) in flags.get("config").map(|path| settings_of(path)).unwrap_or_default() {
            flags.entry(name).or_insert(value);
        }
        flags
    }

    /// The environment.
    pub(crate) fn environments(&self) -> &[(String, String)] {
        &self.environment
    }

    /// Every setting by its key, wherever it was set.
    pub(crate) fn settings(&self) -> BTreeMap<String, String> {
        let key = |name: &str| {
            name.strip_prefix("THROUGHLINE_").unwrap_or(name).to_ascii_lowercase().replace('_', "-")
        };
        let mut all: BTreeMap<_, _> =
            self.environment.iter().map(|(name, value)| (key(name), value.clone())).collect();
        all.extend(self.flags());
        all
    }

    /// Starts the process and waits until it says that it is ready.
    pub async fn start(self) -> Sidecar {
        if self.host == Host::Envoy {
            let through = self.hosts.as_deref().map(own_hosts).unwrap_or_default();
            let launch = Launch { workers: self.workers, through };
            let patience = self.settings().get("drain-timeout").and_then(|text| text.parse().ok());
            let mut sidecar = Bootstrap::of(&self).start_with(&self.name, launch).await;
            sidecar.patience = patience.map_or(sidecar.patience, Duration::from_millis);
            return sidecar;
        }
        let reached_at = self.reached_at;
        let mut running = self.spawn();
        let ready = running.ready().await;
        let address = |side: &str| {
            let mut address: SocketAddr = ready[side].as_str().and_then(|text| text.parse().ok())?;
            if address.ip().is_unspecified() {
                address.set_ip(reached_at.unwrap_or(address.ip()));
            }
            Some(address)
        };
        Sidecar {
            inbound: address("inbound"),
            outbound: address("outbound"),
            admin: address("admin").unwrap_or_else(|| panic!("no admin address in {ready}")),
            host: Host::Sidecar,
            patience: SETTLING,
            running,
            _folder: None,
        }
    }

    /// Starts the process and waits until it ends by itself.
    pub async fn ends(self) -> Ended {
        let mut running = self.spawn();
        let code = running.exit().await;
        running.ended(code).await
    }

    fn spawn(self) -> Running {
        let binary = self.build.must();
        let mut command = match (&self.hosts, self.through.split_first()) {
            (None, Some((first, rest))) => {
                let mut command = Command::new(first);
                command.args(rest);
                command
            }
            (None, None) => Command::new(&binary),
            (Some(file), _) => {
                let words = own_hosts(file);
                let mut command = Command::new(&words[0]);
                command.args(&words[1..]).arg(&binary);
                command
            }
        };
        command.args(&self.arguments).env_clear().envs(self.environment.iter().cloned());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        Running::spawn(&self.name, command)
    }
}

/// The words before a command that give it this file as `/etc/hosts`.
fn own_hosts(file: &Path) -> Vec<String> {
    let script = r#"mount --bind "$1" /etc/hosts && shift && exec "$@""#;
    let words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"];
    words.into_iter().map(str::to_owned).chain([file.display().to_string()]).collect()
}

/// The settings of a YAML file; lists as the flags have them.
fn settings_of(path: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(path).expect("a file of settings");
    let all: BTreeMap<String, Value> = serde_yaml::from_str(&text).expect("settings");
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let written = |value: Value| match value {
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(","),
        other => plain(&other),
    };
    all.into_iter().map(|(name, value)| (name, written(value))).collect()
}

/// How long Envoy may take to send what it holds before it is ended, which loses the rest.
const SETTLING: Duration = Duration::from_secs(10);

/// A process that ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// The exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to stderr.
    pub stderr: Vec<String>,
    /// What it wrote to stdout.
    pub stdout: Vec<String>,
}

/// A ready sidecar, or Envoy in its place.
#[derive(Debug)]
pub struct Sidecar {
    inbound: Option<SocketAddr>,
    outbound: Option<SocketAddr>,
    /// Its admin port.
    pub admin: SocketAddr,
    host: Host,
    patience: Duration,
    running: Running,
    _folder: Option<Folder>,
}

impl Sidecar {
    /// A ready Envoy with the ports of its sides.
    pub(crate) fn envoy(
        running: Running,
        folder: Folder,
        admin: SocketAddr,
        side: impl Fn(&str) -> Option<SocketAddr>,
    ) -> Sidecar {
        let (inbound, outbound) = (side("inbound"), side("outbound"));
        let patience = SETTLING;
        Sidecar { inbound, outbound, admin, host: Host::Envoy, patience, running, _folder: Some(folder) }
    }

    /// Waits no longer than this for spans to leave when it is ended.
    pub fn waiting_at_most(mut self, patience: Duration) -> Sidecar {
        self.patience = patience;
        self
    }

    /// Its process id.
    pub fn process(&self) -> u32 {
        self.running.child.id()
    }

    /// Its inbound port.
    pub fn inbound(&self) -> SocketAddr {
        self.inbound.expect("a sidecar with an inbound side")
    }

    /// Its outbound port.
    pub fn outbound(&self) -> SocketAddr {
        self.outbound.expect("a sidecar with an outbound side")
    }

    /// Whether it has an outbound port.
    pub fn has_outbound(&self) -> bool {
        self.outbound.is_some()
    }

    /// A URL at its inbound port.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.inbound())
    }

    /// Its admin port.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A URL at its admin port.
    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// Its numbers, which must balance.
    pub async fn books(&self) -> Books {
        match self.host {
            Host::Envoy => envoy::balanced(self.admin).await,
            Host::Sidecar => {
                let books = Books::of(self.admin).await;
                books.assert_balanced();
                books
            }
        }
    }

    /// Waits until its numbers, which must balance at every look, are as wanted.
    pub async fn books_when(&self, what: &str, wanted: impl Fn(&Books) -> bool) -> Books {
        eventually(what, || async {
            let books = self.books().await;
            wanted(&books).then_some(books)
        })
        .await
    }

    /// Its resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most resident memory that it ever had, in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, row: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running.child.id()));
        let status = status.expect("the process runs");
        let line = status.lines().find(|line| line.starts_with(row)).expect(row);
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.running.child.id());
        std::fs::read_dir(folder).expect("the process runs").count()
    }

    /// Asks the process to end (SIGTERM).
    pub fn terminate(&self) {
        self.running.signal("TERM");
    }

    /// Ends the process without asking it (SIGKILL).
    pub async fn kill(mut self) {
        self.running.signal("KILL");
        self.exit().await;
    }

    /// Stops the process where it stands (SIGSTOP): it holds its ports and does nothing.
    pub fn freeze(&self) {
        self.running.signal("STOP");
    }

    /// Lets a stopped process go on (SIGCONT).
    pub fn thaw(&self) {
        self.running.signal("CONT");
    }

    /// Waits until the process has ended; its exit status.
    pub async fn exit(&mut self) -> Option<i32> {
        self.running.exit().await
    }

    /// SIGTERM; the exit must be clean and nothing may have panicked.
    pub async fn end(mut self) -> Ended {
        if self.host == Host::Envoy {
            envoy::settled(self.admin, self.patience).await;
        }
        self.terminate();
        let code = self.exit().await;
        let ended = self.running.ended(code).await;
        assert_eq!(code, Some(0), "{} did not end cleanly", self.running.name);
        let failed = |line: &&String| envoy::FAILURES.iter().any(|words| line.contains(words));
        let panicked = ended.stderr.iter().find(failed);
        assert!(panicked.is_none(), "{} panicked: {panicked:?}", self.running.name);
        ended
    }

    /// Waits for a line of stdout, read as JSON.
    pub async fn access_line(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.running.stdout.json("an access log line", wanted).await
    }

    /// Waits for a line of stdout.
    pub async fn printed(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.running.stdout.line("a printed line", |line| wanted(line).then(|| line.to_owned())).await
    }

    /// Everything on stdout so far.
    pub fn stdout(&self) -> Vec<String> {
        self.running.stdout.now()
    }

    /// Everything on stderr so far.
    pub fn stderr(&self) -> Vec<String> {
        self.running.stderr.now()
    }

    /// Waits for a line of its own log.
    pub async fn logged(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        // Envoy's word for the level.
        let ours = |mut line: Value| {
            if line["level"] == "warning" {
                line["level"] = "warn".into();
            }
            line
        };
        self.running.stderr.json("a log line", |line| wanted(&ours(line.clone()))).await
    }
}

/// A child process and what it writes. Killed, by its own id, when the scenario is over.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
    pub(crate) stdout: Lines,
    stderr: Lines,
}

impl Running {
    pub(crate) fn spawn(name: &str, mut command: Command) -> Running {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let stdout = Lines::of(child.stdout.take().expect("piped"));
        let stderr = Lines::of(child.stderr.take().expect("piped"));
        Running { name: name.to_owned(), child, stdout, stderr }
    }

    pub(crate) async fn ready(&mut self) -> Value {
        let is_ready = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == "ready").then_some(line)
        };
        let stderr = self.stderr.clone();
        self.unless_it_ends(stderr.line("the line that says ready", is_ready)).await
    }

    /// What a process that must not end by then is waited for.
    pub(crate) async fn unless_it_ends<T>(&mut self, waiting: impl Future<Output = T>) -> T {
        let name = self.name.clone();
        tokio::select! {
            outcome = waiting => outcome,
            code = self.exit() => panic!("{name} ended with {code:?} instead of getting ready"),
        }
    }

    pub(crate) async fn ended(&self, code: Option<i32>) -> Ended {
        Ended { code, stderr: self.stderr.all().await, stdout: self.stdout.all().await }
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("sh").args(["-c", r#"kill -s "$1" "$2""#, "sh", signal, &id]).status();
        assert!(sent.expect("sh runs").success(), "no {signal} for {}", self.name);
    }

    pub(crate) async fn exit(&mut self) -> Option<i32> {
        let what = format!("the end of {}", self.name);
        let child = Mutex::new(&mut self.child);
        let ended = eventually(&what, || async {
            child.lock().expect("one waiter").try_wait().expect("a child of ours")
        });
        ended.await.code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- stderr of {}:", self.name);
            self.stderr.now().iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// The lines that a process has written so far.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    so_far: watch::Receiver<Written>,
}

#[derive(Debug, Default)]
struct Written {
    lines: Arc<Vec<String>>,
    over: bool,
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Lines {
        let (sender, so_far) = watch::channel(Written::default());
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                sender.send_modify(|written| Arc::make_mut(&mut written.lines).push(line));
            }
            sender.send_modify(|written| written.over = true);
        });
        Lines { so_far }
    }

    fn now(&self) -> Vec<String> {
        self.so_far.borrow().lines.to_vec()
    }

    /// All lines, once the process has closed its end.
    pub(crate) async fn all(&self) -> Vec<String> {
        let mut so_far = self.so_far.clone();
        let over = so_far.wait_for(|written| written.over);
        within("the end of a process's output", over).await.expect("the reader runs").lines.to_vec()
    }

    pub(crate) async fn line<T>(&self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        within(what, self.line_whenever(what, wanted)).await
    }

    /// As `line`, for a caller with a patience of his own.
    pub(crate) async fn line_whenever<T>(&self, what: &str, wanted: impl Fn(&str) -> Option<T>) -> T {
        let mut so_far = self.so_far.clone();
        let mut looked_at = 0;
        loop {
            let lines = Arc::clone(&so_far.borrow_and_update().lines);
            if let Some(found) = lines[looked_at..].iter().find_map(|line| wanted(line)) {
                return found;
            }
            looked_at = lines.len();
            if so_far.changed().await.is_err() {
                panic!("the process closed its output without {what}; it wrote: {lines:#?}");
            }
        }
    }

    async fn json(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.line(what, |line| serde_json::from_str(line).ok().filter(|value| wanted(value))).await
    }
}
