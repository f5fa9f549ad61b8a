//! The command line, the environment and the file, gathered for the table of settings.

use throughline_core::names::VERSION;
use throughline_core::settings::{FLOW_ROWS, Flow, Found, Sources};
use throughline_rim::sources::read_file;

use crate::engine::TraceQuery;
use crate::span;
use crate::store::Wanted;
use crate::times;

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Run(Box<Found<Flow>>),
    /// Say whether these settings are right, and stop.
    Check(Box<Found<Flow>>),
    /// Write spans of the store as OTLP/JSON lines to standard output: those of these traces.
    Export(Box<Found<Flow>>, Box<Wanted>),
    /// Print this and stop.
    Print(String),
}

/// What is to be done with the settings.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Run,
    Check,
    Export,
}

/// A flag of `export`: its name, and what it is for.
type ExportFlag = (&'static str, &'static str);

/// Which traces `export` writes; all of them without any of these. No variable and no file says them.
const EXPORT_FLAGS: &[ExportFlag] = &[
    ("start", "traces that began here or later: RFC 3339, seconds to nanoseconds since 1970, or now-1h"),
    ("end", "traces that began before this"),
    ("operation", "traces of this operation"),
    ("service", "traces that this service took part in"),
    ("environment", "traces of this environment"),
    ("trace", "the trace of this id, 32 hexadecimal digits; no other flag beside it"),
];

/// What the flags of `export` ask for.
fn wanted(flags: &[(&'static str, String)], now_unix_nanos: u64, mistakes: &mut Vec<String>) -> Wanted {
    let mut wrong = |name: &str, value: &str, want: &str| {
        mistakes.push(format!("--{name}=\"{}\": want {want}", value.escape_debug()));
    };
    let mut query = TraceQuery { limit: usize::MAX, ..TraceQuery::default() };
    let mut trace = None;
    for (place, (name, value)) in flags.iter().enumerate() {
        if flags.iter().take(place).any(|(other, _)| other == name) {
            wrong(name, value, "it once");
            continue;
        }
        let moment = |wrong: &mut dyn FnMut(&str, &str, &str)| {
            let moment = times::parse(value, now_unix_nanos);
            if moment.is_none() {
                wrong(name, value, times::WANT);
            }
            moment
        };
        match *name {
            "start" => query.start_unix_nanos = moment(&mut wrong).unwrap_or(query.start_unix_nanos),
            "end" => query.end_unix_nanos = moment(&mut wrong).unwrap_or(query.end_unix_nanos),
            "operation" => query.operation = Some(value.clone()),
            "service" => query.service = Some(value.clone()),
            "environment" => query.environment = Some(value.clone()),
            _ => {
                trace = span::trace_id(value);
                if trace.is_none() {
                    wrong(name, value, "32 hexadecimal digits that are not all 0");
                } else if flags.iter().any(|(other, _)| other != name) {
                    wrong(name, value, "no other flag of export beside it: it is one trace");
                }
            }
        }
    }
    if query.start_unix_nanos >= query.end_unix_nanos
        && let Some((name, value)) = flags.iter().find(|(name, _)| *name == "start" || *name == "end")
    {
        wrong(name, value, "a start before the end");
    }
    trace.map_or(Wanted::Query(query), Wanted::Trace)
}

/// Reads everything, at this moment; `Err` is every mistake, one a line.
///
/// # Errors
/// Every mistake.
pub fn read(
    args: impl Iterator<Item = String>,
    env: Vec<(String, String)>,
    now_unix_nanos: u64,
) -> Result<Command, Vec<String>> {
    let mut export_flags = Vec::new();
    let mut sources = Sources { env, ..Sources::default() };
    let (mut wish, mut unreadable, mut mistakes) = (Wish::Run, false, Vec::new());
    let mut args = args.peekable();
    if args.next_if(|first| first == "export").is_some() {
        wish = Wish::Export;
    }
    while let Some(arg) = args.next() {
        if arg == "-h" {
            return Ok(Command::Print(usage()));
        }
        let Some(flag) = arg.strip_prefix("--") else {
            mistakes.push(format!(
                "\"{}\": want a flag such as --listen, or export first; see --help",
                arg.escape_debug()
            ));
            continue;
        };
        match flag {
            "help" => return Ok(Command::Print(usage())),
            "version" => return Ok(Command::Print(format!("throughline-flow {VERSION}\n"))),
            "print-reference" => return Ok(Command::Print(Flow::reference())),
            "check" => wish = Wish::Check,
            _ => {
                let (key, value) = match flag.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (flag.to_owned(), args.next_if(|next| !next.starts_with("--"))),
                };
                let of_export = EXPORT_FLAGS.iter().find(|(name, _)| wish == Wish::Export && *name == key);
                match value {
                    Some(value) if of_export.is_some() => {
                        export_flags.extend(of_export.map(|(name, _)| (*name, value)));
                    }
                    Some(value) if key == "config" => {
                        unreadable |= !read_file(&value, &mut sources, &mut mistakes);
                    }
                    Some(value) => sources.flags.push((key, value)),
                    None if is_switch(&key) => sources.flags.push((key, "on".to_owned())),
                    None => mistakes.push(format!("--{key}: want a value after it")),
                }
            }
        }
    }
    if unreadable {
        return Err(mistakes); // without the file, what it would have said would be missed too
    }
    let wanted = wanted(&export_flags, now_unix_nanos, &mut mistakes);
    let found = Flow::resolve(&sources).map_err(|found| {
        mistakes.extend(found.iter().map(ToString::to_string));
        std::mem::take(&mut mistakes)
    })?;
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let found = Box::new(found);
    Ok(match wish {
        Wish::Run => Command::Run(found),
        Wish::Check => Command::Check(found),
        Wish::Export => Command::Export(found, Box::new(wanted)),
    })
}

/// Whether a flag means something without a value.
fn is_switch(key: &str) -> bool {
    FLOW_ROWS.iter().any(|row| row.key == key && row.default == "off")
}

fn usage() -> String {
    let flags: String =
        EXPORT_FLAGS.iter().map(|(name, what)| format!("  {:<20}{what}\n", format!("--{name}"))).collect();
    format!(
        "throughline-flow {VERSION}: takes OTLP, keeps recent traces, and answers what an operation did\n\n\
         Usage: throughline-flow [export] [--config FILE] [--<setting> <value>]...\n\n\
         A flag wins over its environment variable, that over the YAML file of --config (same keys).\n\n\
         Try: throughline-flow --memory-only\n\n\
         Commands:\n  export              write spans of the data folder to standard output, as OTLP/JSON lines\n  \
         --help              this text\n  --version           the version\n  \
         --check             check the settings, say what is wrong, and stop\n  \
         --print-reference   the table of all settings, in Markdown\n\n\
         Flags of export, all of which must be met; none for every trace:\n{flags}{}",
        Flow::help()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_204_231_000_000_000;

    fn args(list: &[&str]) -> Result<Command, Vec<String>> {
        read(list.iter().map(|arg| (*arg).to_owned()), Vec::new(), NOW)
    }

    #[test]
    fn switches_need_no_value_and_others_do() {
        let Ok(Command::Run(found)) = args(&["--memory-only", "--listen", "127.0.0.1:0"]) else {
            panic!("want to run")
        };
        assert!(found.value.memory_only);
        assert!(matches!(args(&["export", "--data-dir=x"]), Ok(Command::Export(..))));
        assert_eq!(args(&["--listen"]).unwrap_err(), ["--listen: want a value after it"]);
    }

    #[test]
    fn mistakes_are_told_together() {
        let told = args(&["serve", "--listn", "x", "--otlp-grpc", "here"]).unwrap_err();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[1].contains("did you mean listen?"), "{told:?}");
    }

    fn wanted_by(list: &[&str]) -> Result<Wanted, Vec<String>> {
        let list: Vec<&str> = [&["export"], list].concat();
        args(&list).map(|command| match command {
            Command::Export(_, wanted) => *wanted,
            other => panic!("want an export: {other:?}"),
        })
    }

    #[test]
    fn an_export_is_of_what_its_flags_say() {
        let Wanted::Query(all) = wanted_by(&[]).unwrap() else { panic!("want a query") };
        assert_eq!((all.start_unix_nanos, all.end_unix_nanos, all.operation), (0, u64::MAX, None));
        let flags = ["--start", "now-1h", "--end=2026-11-21T00:00:00Z", "--operation", "log in"];
        let Wanted::Query(some) = wanted_by(&flags).unwrap() else { panic!("want a query") };
        assert_eq!(some.start_unix_nanos, NOW - 3_600_000_000_000);
        assert_eq!(some.end_unix_nanos, 1_795_219_200_000_000_000);
        assert_eq!(some.operation.as_deref(), Some("log in"));
        let id = "5b8efff798038103d269b633813fc60c";
        let Wanted::Trace(trace) = wanted_by(&["--trace", id]).unwrap() else { panic!("want a trace") };
        assert_eq!(u128::from_be_bytes(trace), 0x5b8e_fff7_9803_8103_d269_b633_813f_c60c);
    }

    #[test]
    fn what_an_export_cannot_be_of_is_said() {
        for (list, word) in [
            (&["--start", "yesterday"][..], "RFC 3339"),
            (&["--start", "now", "--end", "now-1h"], "a start before the end"),
            (&["--trace", "xyz"], "32 hexadecimal digits"),
            (&["--trace", &"ab".repeat(16), "--operation", "x"], "no other flag"),
            (&["--operation", "a", "--operation", "b"], "it once"),
            (&["--operation"], "a value after it"),
        ] {
            let told = wanted_by(list).unwrap_err();
            assert!(told.len() == 1 && told[0].contains(word), "{list:?}: {told:?}");
        }
        // Where nothing is exported they are no flags.
        assert!(args(&["--trace", "x"]).unwrap_err()[0].contains("--trace"));
    }

    #[test]
    fn help_names_every_setting() {
        let text = usage();
        assert!(EXPORT_FLAGS.iter().all(|(name, _)| text.contains(&format!("--{name} "))));
        assert!(FLOW_ROWS.iter().all(|row| text.contains(&format!("--{} ", row.key))));
    }
}
