//! Tables and plots out of what was found: medians, their ratios to the floor and to Envoy with its own tracer.

use crate::peers::{CANDIDATES, Candidate, SCENARIOS, Scenario};
use crate::round::Found;
use crate::side_by_side::Results;
use crate::svg::{Bar, Kind, Panel, plot};

/// The least, the median and the most of several rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
    rounds: usize,
}

impl Spread {
    fn of(rounds: &[Found], name: &str) -> Option<Self> {
        let mut all: Vec<f64> = rounds.iter().filter_map(|found| found.get(name)).collect();
        all.sort_by(f64::total_cmp);
        let (least, most) = (*all.first()?, *all.last()?);
        let middle = all.len() / 2;
        let median = if all.len() % 2 == 1 { all[middle] } else { (all[middle - 1] + all[middle]) / 2.0 };
        Some(Self { least, median, most, rounds: all.len() })
    }

    fn text(self, digits: usize) -> String {
        format!("{:.digits$} / **{:.digits$}** / {:.digits$}", self.least, self.median, self.most)
    }
}

impl Results {
    fn spread(&self, scenario: Scenario, candidate: Candidate, name: &str) -> Option<Spread> {
        Spread::of(self.rounds.get(&(scenario, candidate))?, name)
    }

    fn median(&self, scenario: Scenario, candidate: Candidate, name: &str) -> Option<f64> {
        self.spread(scenario, candidate, name).map(|spread| spread.median)
    }

    /// Envoy with its tracer, in whichever of its two settings does better at this.
    fn tracer(&self, scenario: Scenario, name: &str) -> Option<f64> {
        let both = [Candidate::EnvoyTracer, Candidate::EnvoyTracer512];
        both.into_iter().filter_map(|one| self.median(scenario, one, name)).min_by(f64::total_cmp)
    }

    fn ratio(&self, scenario: Scenario, candidate: Candidate, name: &str, to: Option<f64>) -> String {
        match self.median(scenario, candidate, name).zip(to) {
            Some((median, to)) if to > 0.0 => format!("{:.2}", median / to),
            _ => "–".to_owned(),
        }
    }

    fn shown(&self, scenario: Scenario) -> Vec<Candidate> {
        let measured = |one: &Candidate| self.rounds.contains_key(&(scenario, *one));
        CANDIDATES.into_iter().filter(measured).collect()
    }

    fn measured(&self) -> Vec<Scenario> {
        SCENARIOS.into_iter().filter(|scenario| !self.shown(*scenario).is_empty()).collect()
    }
}

/// The tables for a terminal.
pub(crate) fn text(results: &Results) -> String {
    let tables = tables(results).replace("**", "");
    let mut lines: Vec<String> = tables.lines().map(str::to_owned).collect();
    align(&mut lines);
    lines.join("\n")
}

/// Pads the cells of each table to the width of its columns.
fn align(lines: &mut [String]) {
    let mut at = 0;
    while at < lines.len() {
        let rows = lines[at..].iter().take_while(|line| line.starts_with('|')).count();
        if rows == 0 {
            at += 1;
            continue;
        }
        let cells = |line: &String| -> Vec<String> {
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let table: Vec<Vec<String>> = lines[at..at + rows].iter().map(cells).collect();
        let columns = table.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            table.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (line, row) in lines[at..at + rows].iter_mut().zip(&table) {
            let padded = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if cell.starts_with("--") {
                    "-".repeat(*width)
                } else if column == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            *line = padded.collect::<Vec<_>>().join("  ");
        }
        at += rows;
    }
}

fn tables(results: &Results) -> String {
    let mut out = String::new();
    for scenario in results.measured() {
        let title = scenario.title();
        out += &format!("### {}{}\n\n", title[..1].to_uppercase(), &title[1..]);
        out += &match scenario {
            Scenario::Http1 | Scenario::Http2 | Scenario::Grpc | Scenario::Large => cost(results, scenario),
            Scenario::Idle => idle(results),
            Scenario::Open => latency(results),
            Scenario::Count1 | Scenario::Count2 => counts(results, scenario),
        };
        out += "\n";
    }
    for (scenario, candidate, why) in &results.failed {
        out += &format!("No result: {}, {}: {why}\n\n", scenario.title(), candidate.name());
    }
    for (candidate, why) in &results.missing {
        out += &format!("Skipped: {}: {why}\n\n", candidate.name());
    }
    out
}

fn cost(results: &Results, scenario: Scenario) -> String {
    let mut out = "| | rounds | CPU µs a request: least / median / most | × floor | × Envoy's tracer | requests a second | core busy | spans a request | RSS MiB |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n".to_owned();
    let floor = results.median(scenario, Candidate::Floor, "micros");
    let tracer = results.tracer(scenario, "micros");
    for candidate in results.shown(scenario) {
        let Some(micros) = results.spread(scenario, candidate, "micros") else { continue };
        let number = |name: &str| results.median(scenario, candidate, name).unwrap_or(f64::NAN);
        out += &format!(
            "| {} | {} | {} | {} | {} | {:.0} | {:.0} % | {:.2} | {:.1} |\n",
            candidate.name(),
            micros.rounds,
            micros.text(1),
            results.ratio(scenario, candidate, "micros", floor),
            results.ratio(scenario, candidate, "micros", tracer),
            number("rate"),
            number("busy") * 100.0,
            number("spans"),
            number("rss_mib"),
        );
    }
    out + &added(results, scenario)
}

/// What tracing adds, over the same proxy without it.
fn added(results: &Results, scenario: Scenario) -> String {
    let median = |candidate| results.median(scenario, candidate, "micros");
    let over = |what: Option<f64>, off: Candidate| what.zip(median(off)).map(|(what, off)| what - off);
    let all = [
        ("Throughline", over(median(Candidate::Sidecar100), Candidate::SidecarOff)),
        ("our filter in Envoy", over(median(Candidate::EnvoyFilter), Candidate::EnvoyOff)),
        ("Envoy's own tracer", over(results.tracer(scenario, "micros"), Candidate::EnvoyOff)),
    ];
    let known: Vec<String> =
        all.into_iter().filter_map(|(name, added)| Some(format!("{name} {:.1} µs", added?))).collect();
    if known.is_empty() {
        return String::new();
    }
    format!("\nAt 100 %, tracing adds to a request: {}.\n", known.join(", "))
}

fn idle(results: &Results) -> String {
    let mut out = "| | rounds | KiB a connection: least / median / most | × floor | RSS before, MiB | RSS with them, MiB |\n|---|--:|--:|--:|--:|--:|\n".to_owned();
    let floor = results.median(Scenario::Idle, Candidate::Floor, "connection_kib");
    for candidate in results.shown(Scenario::Idle) {
        let spread = |name: &str| results.spread(Scenario::Idle, candidate, name);
        let Some(each) = spread("connection_kib") else { continue };
        let median = |name: &str| spread(name).map_or(f64::NAN, |spread| spread.median);
        out += &format!(
            "| {} | {} | {} | {} | {:.1} | {:.1} |\n",
            candidate.name(),
            each.rounds,
            each.text(1),
            results.ratio(Scenario::Idle, candidate, "connection_kib", floor),
            median("rss_before_mib"),
            median("rss_mib"),
        );
    }
    out
}

fn latency(results: &Results) -> String {
    let mut out = "| | rounds | p50 µs: least / median / most | p99 µs | p99.9 µs | added p99 | added p99 × floor | CPU µs a request |\n|---|--:|--:|--:|--:|--:|--:|--:|\n".to_owned();
    let p99 = |candidate| results.median(Scenario::Open, candidate, "p99");
    let added = |candidate| p99(candidate).zip(p99(Candidate::Direct)).map(|(with, without)| with - without);
    for candidate in results.shown(Scenario::Open) {
        let text = |name: &str| {
            let spread = results.spread(Scenario::Open, candidate, name);
            spread.map_or("–".to_owned(), |spread| spread.text(0))
        };
        let number = |value: Option<f64>, digits: usize| {
            value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
        };
        let ratio = added(candidate).zip(added(Candidate::Floor)).map(|(ours, floor)| ours / floor);
        out += &format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |\n",
            candidate.name(),
            results.rounds.get(&(Scenario::Open, candidate)).map_or(0, Vec::len),
            text("p50"),
            text("p99"),
            text("p999"),
            number(added(candidate), 0),
            number(ratio, 2),
            number(results.median(Scenario::Open, candidate, "micros"), 1),
        );
    }
    out
}

fn counts(results: &Results, scenario: Scenario) -> String {
    let mut out =
        "| | instructions a request | × floor | over Throughline off | requests |\n|---|--:|--:|--:|--:|\n"
            .to_owned();
    let median = |candidate| results.median(scenario, candidate, "instructions");
    for candidate in results.shown(scenario) {
        let Some(instructions) = median(candidate) else { continue };
        let over = median(Candidate::SidecarOff).filter(|_| candidate == Candidate::Sidecar100);
        out += &format!(
            "| {} | {instructions:.0} | {} | {} | {:.0} |\n",
            candidate.name(),
            results.ratio(scenario, candidate, "instructions", median(Candidate::Floor)),
            over.map_or("–".to_owned(), |off| format!("{:+.1} %", (instructions / off - 1.0) * 100.0)),
            results.median(scenario, candidate, "answers").unwrap_or(f64::NAN),
        );
    }
    out
}

/// The page and its plots, by their names in `docs/`.
pub(crate) fn files(results: &Results) -> Vec<(&'static str, String)> {
    let costs = [Scenario::Http1, Scenario::Http2, Scenario::Grpc, Scenario::Large];
    let plots = [
        ("bench-cpu.svg", "CPU time of the proxy, µs a request", panels(results, &costs, "micros", 1)),
        (
            "bench-latency.svg",
            "99th percentile at 2,000 requests a second, µs",
            panels(results, &[Scenario::Open], "p99", 0),
        ),
        (
            "bench-memory.svg",
            "Memory of an idle connection, KiB",
            panels(results, &[Scenario::Idle], "connection_kib", 1),
        ),
    ];
    let drawn: Vec<_> = plots.into_iter().filter(|(.., panels)| !panels.is_empty()).collect();
    let mut files = vec![("bench.md", page(results, &drawn))];
    files.extend(drawn.iter().map(|(name, title, panels)| (*name, plot(title, panels))));
    files
}

fn panels(results: &Results, scenarios: &[Scenario], name: &str, digits: usize) -> Vec<Panel> {
    let kind = |candidate: Candidate| match candidate {
        _ if candidate.is_ours() => Kind::Ours,
        Candidate::Direct | Candidate::Floor | Candidate::FloorStealing => Kind::Floor,
        _ => Kind::Peer,
    };
    let panel = |scenario: &Scenario| {
        let bar = |candidate: Candidate| {
            let spread = results.spread(*scenario, candidate, name)?;
            Some(Bar { label: candidate.name(), kind: kind(candidate), spread, digits })
        };
        let bars: Vec<Bar> = results.shown(*scenario).into_iter().filter_map(bar).collect();
        (!bars.is_empty()).then(|| Panel { title: scenario.title(), bars })
    };
    scenarios.iter().filter_map(panel).collect()
}

fn page(results: &Results, plots: &[(&'static str, &'static str, Vec<Panel>)]) -> String {
    let mut out = "# Side by side\n\nGenerated by `make bench`. Every candidate did the same work in one interleaved run, each on one core, with what asks, answers and collects on another.\n\n".to_owned();
    for (name, title, _) in plots {
        out += &format!(
            "![{title}: bars with the median, whiskers from the least to the most of the rounds; the tables below hold the same numbers.]({name})\n\n"
        );
    }
    out += "## The machine\n\n| | |\n|---|---|\n";
    for (name, value) in &results.machine {
        out += &format!("| {name} | {value} |\n");
    }
    out += "\n## The numbers\n\n";
    out += &tables(results);
    out + HOW
}

const HOW: &str = "\
## How it is measured

- **CPU time** is that of the proxy process, all threads and children, from the scheduler's own books (`/proc/<pid>/task/*/schedstat`), the export of what is left at the end included. Time per request stays usable on a machine that is not quiet, where requests a second do not.
- **Every candidate is started afresh** for each round and warmed up; the order changes with each repetition. A ratio compares medians of one run: absolute figures drift with the machine.
- **A round in which an answer was not right is no result.** The generators check each answer's status and length, and `grpc-status` in the trailers.
- **Spans are counted where they arrive**, by a collector that reads OTLP. A round in which less than 99 % of the spans that it should leave are there is no result, so nothing is won by not exporting.
- **The floor** is a proxy on hyper and tokio, on a runtime of one thread, with a pool and without checks, limits, timeouts or metrics.
- **Throughline** runs at its defaults with all attributes, by gRPC; at 1 % the requests carry no context, so that the decision is its own. In Envoy it is the filter of this repository, with all attributes at 100 %.
- **Envoy's tracer** exports by gRPC at 100 %, with its default of five spans an export and with 512; it flushes once a second as ours does. Ratios are to whichever of the two does better.
- **Latency** is open loop: a request is due each half millisecond whether or not earlier answers are there, and its latency counts from when it was due (the correction for coordinated omission). Proxy, application and generator run before all else on the machine there (`SCHED_RR`), where that is allowed. *Added* is what lies above asking the application without a proxy.
- **Idle connections** have each carried one request. Their memory is resident memory with them, less without them, by their number.
- **Instructions** are those of the process outside of the kernel, by callgrind, over all requests of one round; they need no quiet machine.
- **Core busy** is the share of its core that the proxy used while it was asked. Where it is far below 100 %, requests a second are the generator's, and CPU time includes more waking up.
";
