//! The command line, the environment and the file, gathered for the table of settings.

use throughline_core::names::VERSION;
use throughline_core::settings::{FLOW_ROWS, Flow, Found, Sources};
use throughline_rim::sources::read_file;

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Run(Box<Found<Flow>>),
    /// Say whether these settings are right, and stop.
    Check(Box<Found<Flow>>),
    /// Write all spans of the store as OTLP/JSON lines to standard output.
    Export(Box<Found<Flow>>),
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

/// Reads everything; `Err` is every mistake, one a line.
///
/// # Errors
/// Every mistake.
pub fn read(args: impl Iterator<Item = String>, env: Vec<(String, String)>) -> Result<Command, Vec<String>> {
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
                match value {
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
        Wish::Export => Command::Export(found),
    })
}

/// Whether a flag means something without a value.
fn is_switch(key: &str) -> bool {
    FLOW_ROWS.iter().any(|row| row.key == key && row.default == "off")
}

fn usage() -> String {
    format!(
        "throughline-flow {VERSION}: takes OTLP, keeps recent traces, and answers what an operation did\n\n\
         Usage: throughline-flow [export] [--config FILE] [--<setting> <value>]...\n\n\
         A flag wins over its environment variable, that over the YAML file of --config (same keys).\n\n\
         Try: throughline-flow --memory-only\n\n\
         Commands:\n  export              write all spans of the data folder to standard output, as OTLP/JSON lines\n  \
         --help              this text\n  --version           the version\n  \
         --check             check the settings, say what is wrong, and stop\n  \
         --print-reference   the table of all settings, in Markdown\n{}",
        Flow::help()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(list: &[&str]) -> Result<Command, Vec<String>> {
        read(list.iter().map(|arg| (*arg).to_owned()), Vec::new())
    }

    #[test]
    fn switches_need_no_value_and_others_do() {
        let Ok(Command::Run(found)) = args(&["--memory-only", "--listen", "127.0.0.1:0"]) else {
            panic!("want to run")
        };
        assert!(found.value.memory_only);
        assert!(matches!(args(&["export", "--data-dir=x"]), Ok(Command::Export(_))));
        assert_eq!(args(&["--listen"]).unwrap_err(), ["--listen: want a value after it"]);
    }

    #[test]
    fn mistakes_are_told_together() {
        let told = args(&["serve", "--listn", "x", "--otlp-grpc", "here"]).unwrap_err();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[1].contains("did you mean listen?"), "{told:?}");
    }

    #[test]
    fn help_names_every_setting() {
        let text = usage();
        assert!(FLOW_ROWS.iter().all(|row| text.contains(&format!("--{} ", row.key))));
    }
}
