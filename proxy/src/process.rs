//! What the kernel knows of this process, read when somebody scrapes, and the one bound that is ours to raise. Where /proc
//! is not as expected, a number is missing; nothing fails.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use throughline_core::prometheus::Text;
use throughline_core::prometheus::table::{Metric, PROCESS_CPU, PROCESS_FDS, PROCESS_RSS, PROCESS_START};

/// Ticks a second of times in /proc: `USER_HZ`, which is part of the kernel's interface.
const TICKS: f64 = 100.0;

/// Raises the soft bound of open descriptors to the hard one. Some runtimes start containers with 1024, which is few for a
/// process that holds two for each connection; who wants fewer sets `connections-max`.
pub(crate) fn raise_descriptors() {
    let bound = getrlimit(Resource::Nofile);
    if bound.current != bound.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: bound.maximum, maximum: bound.maximum });
    }
}

/// Adds the numbers under the names that every exporter has.
pub(crate) fn write(text: &mut Text) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the process stands in parentheses and may hold anything.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or(Vec::new(), |(_, fields)| fields.split_ascii_whitespace().collect());
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    // proc_pid_stat(5): utime, stime and starttime are fields 14, 15 and 22; these begin with the third.
    let cpu = ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) / TICKS);
    let booted = row("/proc/stat", "btime");
    let start = ticks(19).zip(booted).map(|(ticks, booted)| booted + ticks / TICKS);
    let resident = row("/proc/self/status", "VmRSS:").map(|kib| kib * 1024.0);
    let descriptors = fs::read_dir("/proc/self/fd").ok().map(|open| open.count() as f64);
    for (metric, value) in
        [(&PROCESS_CPU, cpu), (&PROCESS_RSS, resident), (&PROCESS_START, start), (&PROCESS_FDS, descriptors)]
    {
        one(text, metric, value);
    }
}

fn one(text: &mut Text, metric: &Metric, value: Option<f64>) {
    let Some(value) = value else { return };
    text.head(metric);
    text.fraction(metric, &[], value);
}

/// The number behind a word at the beginning of a line.
fn row(file: &str, word: &str) -> Option<f64> {
    let all = fs::read_to_string(file).ok()?;
    let line = all.lines().find_map(|line| line.strip_prefix(word))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use throughline_core::prometheus::Form;

    #[test]
    fn the_kernel_knows_all_of_them() {
        let mut text = Text::new(Form::Text);
        write(&mut text);
        let text = text.take();
        for (name, from, to) in [
            ("process_cpu_seconds_total ", 0.0, 3600.0),
            ("process_resident_memory_bytes ", 1e6, 1e11),
            ("process_start_time_seconds ", 1.6e9, 1e10),
            ("process_open_fds ", 3.0, 1e6),
        ] {
            let line =
                text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
            let value: f64 = line.parse().unwrap();
            assert!((from..to).contains(&value), "{name}{value}");
        }
    }
}
