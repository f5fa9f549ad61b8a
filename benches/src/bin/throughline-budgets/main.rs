//! Holds what `core` and the artefacts cost to a budget: instructions by callgrind, sizes by the file. Instructions
//! repeat exactly where times do not, so a rise is found in the change that made it.
//!
//! `throughline-budgets check|write [NAME=FILE|NAME=NUMBER...]` takes sizes of files, and instructions a request as
//! `throughline-bench requests-instructions` counted them, and runs itself under callgrind with `case NAME TIMES`, twice a case:
//! what the longer run has more is what the further repetitions cost, without start and warming up.

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};

use throughline_benches::cases::CASES;

/// Repetitions of the shorter run; the longer one has twice as many. A multiple of the spans in a batch.
const TIMES: u64 = 2048;
/// Percent by which a number may be above its budget: compilers of one version lay code out a little differently.
const RISE_MAX: f64 = 2.0;
const FILE: &str = "benches/budgets.toml";
const HEAD: &str = "\
# What `make test` holds to: a number more than 2 % above its line fails. Whoever raises one says why in the commit
# (`scripts/budgets write` writes this file). Instructions are those of callgrind, for one exchange or event in core;
# those per request are the whole sidecar's, over HTTP/1.1 on one connection, in each mode and with so many percent of
# traces sampled. Bytes are those of the stripped files, built for release.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["case", name, times] => repeat(name, times),
        ["check", files @ ..] => measured(files).and_then(|found| check(&found)),
        ["write", files @ ..] => measured(files).and_then(|found| write(&found)),
        _ => Err("want check or write, and NAME=FILE or NAME=NUMBER".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("budgets: {message}");
            ExitCode::FAILURE
        }
    }
}

fn repeat(name: &str, times: &str) -> Result<(), String> {
    let case = CASES.iter().find(|(known, _)| *known == name);
    let (Some((_, run)), Ok(times)) = (case, times.parse()) else {
        return Err(format!("case {name} {times}: want a known case and a number"));
    };
    run(times);
    Ok(())
}

/// Section and name of each number, with its value.
type Numbers = BTreeMap<(String, String), u64>;

fn measured(files: &[&str]) -> Result<Numbers, String> {
    let mut found = Numbers::new();
    for (name, _) in CASES {
        let (short, long) = (instructions(name, TIMES)?, instructions(name, 2 * TIMES)?);
        let each =
            long.checked_sub(short).ok_or_else(|| format!("{name}: more work took fewer instructions"))?;
        found.insert(("instructions".to_owned(), name.to_owned()), each.div_ceil(TIMES));
    }
    for file in files {
        let (name, path) =
            file.split_once('=').ok_or_else(|| format!("{file}: want NAME=FILE or NAME=NUMBER"))?;
        if let Ok(number) = path.parse() {
            found.insert(("instructions_per_request".to_owned(), name.to_owned()), number);
            continue;
        }
        let bytes = std::fs::metadata(path).map_err(|error| format!("{path}: {error}"))?.len();
        found.insert(("bytes".to_owned(), name.to_owned()), bytes);
    }
    Ok(found)
}

/// Instructions of a whole run of this program.
fn instructions(name: &str, times: u64) -> Result<u64, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(own);
    let output = command.args(["case", name, &times.to_string()]).output();
    let output = output.map_err(|error| format!("valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    let number = collected.and_then(|(_, number)| number.trim().parse().ok());
    match number.filter(|_| output.status.success()) {
        Some(number) => Ok(number),
        None => Err(format!("{name} under valgrind: {said}")),
    }
}

fn check(found: &Numbers) -> Result<(), String> {
    let text = std::fs::read_to_string(FILE).map_err(|error| format!("{FILE}: {error}"))?;
    let budgets = read(&text)?;
    let mut wrong = Vec::new();
    println!("{:<40} {:>12} {:>12} {:>9}", "", "found", "budget", "");
    for (key, number) in found {
        let (section, name) = key;
        let Some(budget) = budgets.get(key) else {
            wrong.push(format!("{name} has no line in [{section}] of {FILE}"));
            continue;
        };
        let rise = (*number as f64 / *budget as f64 - 1.0) * 100.0;
        println!("{name:<40} {number:>12} {budget:>12} {rise:>+7.1} %  {section}");
        if rise > RISE_MAX {
            wrong.push(format!("{name} is {rise:.1} % above its budget: {number} {section}, want {budget}"));
        } else if rise < -RISE_MAX {
            println!("    lower the budget, so that it holds what was gained: scripts/budgets write");
        }
    }
    for (section, name) in budgets.keys().filter(|key| !found.contains_key(*key)) {
        wrong.push(format!("{name} in [{section}] of {FILE} was not measured"));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!(
        "{}\nIf it is worth it: scripts/budgets write, and say why in the commit.",
        wrong.join("\nbudgets: ")
    ))
}

/// The part of TOML that the file needs: sections, and names with whole numbers.
fn read(text: &str) -> Result<Numbers, String> {
    let (mut numbers, mut section) = (Numbers::new(), String::new());
    for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
        } else if !line.is_empty() {
            let pair =
                line.split_once('=').map(|(name, number)| (name.trim(), number.trim().replace('_', "")));
            let number = pair.as_ref().and_then(|(_, number)| number.parse().ok());
            let (Some((name, _)), Some(number)) = (pair, number) else {
                return Err(format!("{FILE}: {line}: want a name and a whole number"));
            };
            numbers.insert((section.clone(), name.to_owned()), number);
        }
    }
    Ok(numbers)
}

fn write(found: &Numbers) -> Result<(), String> {
    let mut text = HEAD.to_owned();
    let mut section = "";
    for ((of, name), number) in found {
        if of != section {
            text += &format!("\n[{of}]\n");
            section = of;
        }
        text += &format!("{name} = {number}\n");
    }
    print!("{text}");
    std::fs::write(FILE, text).map_err(|error| format!("{FILE}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_file_is_read_or_its_line_is_named() {
        let read_back = read("# why\n[bytes]\nmodule = 1_000 # so much\n").unwrap();
        assert_eq!(read_back.get(&("bytes".to_owned(), "module".to_owned())), Some(&1000));
        assert!(read("[bytes]\nmodule = much").unwrap_err().contains("module = much"));
    }
}
