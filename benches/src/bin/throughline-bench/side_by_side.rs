//! The run: every candidate in turn, round by round, so that a machine that changes while it is measured changes
//! for all of them. Prints each round as it ends; writes tables and plots when asked to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::machine;
use crate::peers::{CANDIDATES, Candidate, Peers, SCENARIOS, Scenario};
use crate::process::{descriptors_max, find};
use crate::report;
use crate::round::{Found, Size, Stage, round};

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    quick: bool,
    scenarios: Vec<Scenario>,
    candidates: Vec<Candidate>,
    repetitions: usize,
    seconds: f64,
    write: bool,
    command: String,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) rounds: BTreeMap<(Scenario, Candidate), Vec<Found>>,
    /// Rounds that are no result, and why.
    pub(crate) failed: Vec<(Scenario, Candidate, String)>,
    /// Candidates that are not here, and why.
    pub(crate) missing: Vec<(Candidate, String)>,
    pub(crate) machine: Vec<(String, String)>,
}

impl Options {
    pub(crate) fn read(words: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            quick: false,
            scenarios: SCENARIOS.to_vec(),
            candidates: CANDIDATES.to_vec(),
            repetitions: 5,
            seconds: 3.0,
            write: false,
            command: std::iter::once("throughline-bench side-by-side")
                .chain(words.iter().copied())
                .collect::<Vec<_>>()
                .join(" "),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().copied().ok_or_else(|| format!("{word}: want a value"));
            match *word {
                "--quick" => options.quick = true,
                "--write" => options.write = true,
                "--only" => options.scenarios = chosen(value()?, &SCENARIOS, Scenario::key)?,
                "--candidates" => options.candidates = chosen(value()?, &CANDIDATES, Candidate::key)?,
                "--repetitions" => options.repetitions = positive(word, value()?)? as usize,
                "--seconds" => options.seconds = positive(word, value()?)?,
                _ => return Err(format!("{word}: unknown option\n{}", crate::USAGE)),
            }
        }
        if options.quick {
            (options.repetitions, options.seconds) = (1, 0.5);
        }
        Ok(options)
    }

    fn size(&self) -> Size {
        let seconds = Duration::from_secs_f64;
        // Each idle connection is a descriptor of the generator, and one or two of the proxy.
        let idle_connections =
            if self.quick { 400 } else { 10_000.min(descriptors_max().saturating_sub(400) / 8 * 8) };
        Size {
            warm: seconds(if self.quick { 0.2 } else { 0.7 }),
            asked: seconds(self.seconds),
            open: seconds(if self.quick { 1.0 } else { self.seconds * 2.5 }),
            settle: seconds(1.3),
            idle_connections,
            rate: 2000,
        }
    }
}

fn chosen<T: Copy>(text: &str, all: &[T], key: impl Fn(T) -> &'static str) -> Result<Vec<T>, String> {
    let one = |name: &str| {
        let found = all.iter().copied().find(|one| key(*one) == name);
        found.ok_or_else(|| {
            let known: Vec<_> = all.iter().map(|one| key(*one)).collect();
            format!("{name}: want one of {}", known.join(", "))
        })
    };
    text.split(',').map(one).collect()
}

fn positive(name: &str, text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number| *number > 0.0);
    number.ok_or_else(|| format!("{name} {text}: want a number above zero"))
}

/// Runs everything that was asked for.
pub(crate) fn run(mut options: Options) -> Result<(), String> {
    let root = root()?;
    let folder = root.join("target/bench");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    if machine::cores() < 2 {
        return Err("want two cores: one for the proxy, one for everything else".to_owned());
    }
    for tool in ["taskset", "prlimit", "setpriv"] {
        find(tool).ok_or_else(|| format!("{tool} is missing: apt-get install util-linux"))?;
    }
    if find("valgrind").is_none() && options.scenarios.iter().any(|one| one.counts()) {
        println!("\nSKIPPED: instructions: valgrind is missing: apt-get install valgrind\n");
        options.scenarios.retain(|one| !one.counts());
    }
    let peers = Peers::found(&root, &folder);
    let mut results = Results { machine: machine::describe(), ..Results::default() };
    results.machine.extend(peers.versions());
    results.machine.push(("load before the run".to_owned(), format!("{:.2}", machine::load())));
    results.machine.push(("command".to_owned(), options.command.clone()));
    let candidates = present(&options, &peers, &mut results);
    for (name, value) in &results.machine {
        println!("{name}: {value}");
    }
    let stage = Stage::set(&folder)?;
    for repetition in 0..options.repetitions {
        for scenario in &options.scenarios {
            let taking_part: Vec<_> =
                candidates.iter().copied().filter(|one| one.takes_part(*scenario)).collect();
            if scenario.counts() && repetition > 0 {
                continue; // a count repeats to within a percent
            }
            for turn in 0..taking_part.len() {
                // Nobody is always the first, or always behind the same other.
                let candidate = taking_part[(turn + repetition * 3) % taking_part.len()];
                let found = round(&peers, &stage, &folder, candidate, *scenario, options.size());
                tell(repetition, *scenario, candidate, &found);
                match found {
                    Ok(found) => results.rounds.entry((*scenario, candidate)).or_default().push(found),
                    Err(why) => results.failed.push((*scenario, candidate, why)),
                }
            }
        }
    }
    results.machine.push(("load after the run".to_owned(), format!("{:.2}", machine::load())));
    finish(&options, &root, &results)
}

/// Those that are here; the others are named loudly.
fn present(options: &Options, peers: &Peers, results: &mut Results) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for candidate in &options.candidates {
        match peers.missing(*candidate) {
            None => candidates.push(*candidate),
            Some(why) => {
                println!("\nSKIPPED: {}: {why}\n", candidate.name());
                results.missing.push((*candidate, why));
            }
        }
    }
    candidates
}

fn tell(repetition: usize, scenario: Scenario, candidate: Candidate, found: &Result<Found, String>) {
    let numbers = match found {
        Ok(found) => {
            found.0.iter().map(|(name, value)| format!("{name} {value:.2}")).collect::<Vec<_>>().join("  ")
        }
        Err(why) => format!("NO RESULT: {why}"),
    };
    println!("{} {:<5} {:<18} {numbers}", repetition + 1, scenario.key(), candidate.key());
}

fn finish(options: &Options, root: &Path, results: &Results) -> Result<(), String> {
    println!("\n{}", report::text(results));
    if options.write {
        let docs = root.join("docs");
        for (name, text) in report::files(results) {
            let file = docs.join(name);
            std::fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
            println!("wrote {}", file.display());
        }
    }
    match (results.failed.len(), results.missing.iter().any(|(candidate, _)| candidate.is_ours())) {
        (0, false) => Ok(()),
        (0, true) => Err("there is nothing of ours to measure".to_owned()),
        (failed, _) => Err(format!("{failed} rounds are no result")),
    }
}

/// The repository, from where this is run or above.
fn root() -> Result<PathBuf, String> {
    let here = std::env::current_dir().map_err(|error| error.to_string())?;
    let found = here.ancestors().find(|folder| folder.join("benches/budgets.toml").is_file());
    found.map(Path::to_path_buf).ok_or_else(|| "run it inside the repository".to_owned())
}
