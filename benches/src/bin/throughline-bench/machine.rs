//! What a run was made on, for the record.

use std::fs;
use std::process::Command;

/// Name and value, one a line.
pub(crate) fn describe() -> Vec<(String, String)> {
    let row = |name: &str, value: String| (name.to_owned(), value);
    vec![
        row("date", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        row("processor", format!("{}, {} cores", processor(), cores())),
        row("kernel", format!("{} {}", said("uname", &["-s"]), said("uname", &["-r"]))),
        row("memory", format!("{} GiB", memory_kib() / 1024 / 1024)),
        row("commit", said("git", &["describe", "--always", "--dirty", "--abbrev=10"])),
        row("compiler", said("rustc", &["--version"])),
    ]
}

/// Cores that may be used.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The load of the last minute, before anything was started.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name).to_owned()
}

fn memory_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("MemTotal:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}
