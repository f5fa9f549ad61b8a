//! Starts processes pinned to a core, reads what they cost from `/proc`, and ends them. Ends only what it started.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The core of the proxy under test.
pub(crate) const PROXY_CORE: usize = 0;
/// The core of everything else.
pub(crate) const OTHER_CORE: usize = 1;

/// How a process is scheduled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// As everything is.
    Usual,
    /// Before all others, where we may: its timers are exact.
    RealTime,
}

/// A process that we started, ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

/// Starts a command on a core, with as many descriptors as the machine allows. What it says goes into `log`, or
/// is kept for [`Process::said`] where there is none: a pipe that nobody reads would stop a server.
pub(crate) fn start(command: &Command, core: usize, class: Class, log: Option<&Path>) -> io::Result<Process> {
    let descriptors = descriptors_max();
    let mut through = Command::new("prlimit");
    through.arg(format!("--nofile={descriptors}:{descriptors}"));
    if class == Class::RealTime && may_run_in_real_time() {
        through.args(["chrt", "-r", "1"]);
    }
    // Whoever ends this run ends what it started.
    through.args(["setpriv", "--pdeathsig", "KILL"]);
    through.args(["taskset", "-c", &core.to_string()]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => through.env(name, value),
            None => through.env_remove(name),
        };
    }
    through.stdin(Stdio::null());
    match log {
        Some(log) => {
            let file = fs::File::create(log)?;
            through.stdout(file.try_clone()?).stderr(file);
        }
        None => {
            through.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
    }
    Ok(Process(through.spawn()?))
}

/// The hard limit of descriptors.
pub(crate) fn descriptors_max() -> u64 {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    line.and_then(|line| line.split_whitespace().nth(4)?.parse().ok()).unwrap_or(1024)
}

fn may_run_in_real_time() -> bool {
    Command::new("chrt").args(["-r", "1", "true"]).output().is_ok_and(|output| output.status.success())
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// What it cost until this moment, its children and all of their threads included.
    pub(crate) fn cpu(&self) -> Duration {
        tree(self.pid()).into_iter().map(cpu).sum()
    }

    /// Resident memory of it and its children, in KiB.
    pub(crate) fn rss_kib(&self) -> u64 {
        tree(self.pid()).into_iter().map(rss_kib).sum()
    }

    /// Schedules all of its threads, and its children, in this way, where we may.
    pub(crate) fn schedule(&self, class: Class) {
        let how: &[&str] = match class {
            Class::Usual => &["-a", "-o", "-p", "0"],
            Class::RealTime => &["-a", "-r", "-p", "1"],
        };
        for pid in tree(self.pid()) {
            let _ = Command::new("chrt").args(how).arg(pid.to_string()).output();
        }
    }

    /// Asks it to end, waits a while, and ends it.
    pub(crate) fn stop(&mut self) {
        self.end(Duration::from_secs(3));
    }

    /// The same, with so much time for it to end by itself.
    pub(crate) fn end(&mut self, patience: Duration) {
        let asked = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status();
        let until = Instant::now() + if asked.is_ok() { patience } else { Duration::ZERO };
        while Instant::now() < until {
            if matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Waits for its end: what it wrote, and whether it was content.
    pub(crate) fn said(mut self) -> io::Result<(String, bool)> {
        use io::Read as _;
        let mut text = String::new();
        if let Some(mut out) = self.0.stdout.take() {
            out.read_to_string(&mut text)?;
        }
        if let Some(mut err) = self.0.stderr.take() {
            err.read_to_string(&mut text)?;
        }
        Ok((text, self.0.wait()?.success()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

fn tree(pid: u32) -> Vec<u32> {
    let (mut found, mut at) = (vec![pid], 0);
    while let Some(pid) = found.get(at).copied() {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        at += 1;
    }
    found
}

/// By the scheduler's own books, in nanoseconds; by ticks of 10 ms where the kernel keeps none.
fn cpu(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos: Option<u64> = threads
        .map(|thread| {
            let books = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            books.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum();
    nanos.filter(|nanos| *nanos > 0).map_or_else(|| ticks(pid), Duration::from_nanos)
}

fn ticks(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// Where a program is: as given, or in the folders of `PATH` and those where Debian keeps servers.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file: &std::path::PathBuf| Path::is_file(file))
}
