//! The command line, the environment and the file, gathered for `core`'s table of settings. Prints help,
//! version and reference page itself.

use throughline_core::names::VERSION;
use throughline_core::prometheus::table;
use throughline_core::settings::{Browser, Found, Settings, Sources, help, reference};
use throughline_rim::sources::{environment, read_file};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Serve.
    Run(Box<Found<(Settings, Browser)>>),
    /// Say whether these settings are right, and stop.
    Check(Box<Found<(Settings, Browser)>>),
    /// Print this and stop.
    Print(String),
}

/// Reads everything; `Err` is every mistake, one a line.
pub(crate) fn read(args: impl Iterator<Item = String>) -> Result<Command, Vec<String>> {
    let mut sources = Sources { env: environment(), ..Sources::default() };
    let (mut check, mut unreadable, mut mistakes) = (false, false, Vec::new());
    let mut args = args.peekable();
    if args.peek().is_some_and(|first| first == "-h") {
        return Ok(Command::Print(usage()));
    }
    while let Some(arg) = args.next() {
        let Some(flag) = arg.strip_prefix("--") else {
            mistakes.push(format!(
                "\"{}\": want a flag such as --inbound-listen; see --help",
                arg.escape_debug()
            ));
            continue;
        };
        match flag {
            "help" => return Ok(Command::Print(usage())),
            "version" => return Ok(Command::Print(format!("throughline-proxy {VERSION}\n"))),
            "print-reference" => return Ok(Command::Print(reference())),
            "print-metrics" => return Ok(Command::Print(table::reference())),
            "check" => check = true,
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
                    None => mistakes.push(format!("--{key}: want a value after it")),
                }
            }
        }
    }
    if unreadable {
        return Err(mistakes); // without the file, what it would have said would be missed too
    }
    let found = Browser::resolve(&sources).map_err(|found| {
        mistakes.extend(found.iter().map(ToString::to_string));
        std::mem::take(&mut mistakes)
    })?;
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    if check {
        return Ok(Command::Check(Box::new(found)));
    }
    Ok(Command::Run(Box::new(found)))
}

fn usage() -> String {
    format!(
        "throughline-proxy {VERSION}: the sidecar that carries trace context through an application's HTTP\n\n\
         Usage: throughline-proxy [--config FILE] [--<setting> <value>]...\n\n\
         A flag wins over its environment variable, that over the YAML file of --config (same keys).\n\n\
         Try: throughline-proxy --inbound-listen 127.0.0.1:8080 --inbound-upstream 127.0.0.1:3000 \\\n\
         \x20                      --outbound-listen 127.0.0.1:15001 --otel-traces-exporter console\n\n\
         Commands:\n  init                redirect connections to a transparent sidecar; see init --help\n  \
         --help              this text\n  --version           the version\n  \
         --check             check the settings, say what is wrong, and stop\n  \
         --print-reference   the reference page of all settings, in Markdown\n  \
         --print-metrics     the reference page of all metrics, in Markdown\n{}",
        help()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(list: &[&str]) -> Result<Command, Vec<String>> {
        read(list.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn flags_take_their_value_behind_a_blank_or_an_equals_sign() {
        for list in [&["--outbound-listen", "127.0.0.1:1"][..], &["--outbound-listen=127.0.0.1:1"][..]] {
            assert!(matches!(args(list), Ok(Command::Run(_))), "{list:?}");
        }
    }

    #[test]
    fn mistakes_of_the_command_line_and_of_values_are_told_together() {
        let said = args(&["serve", "--outbound-listen", "x", "--inbound-listen"]).unwrap_err();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[1].starts_with("--inbound-listen: want a value"), "{said:?}");
        assert!(said[2].starts_with("--outbound-listen=\"x\": want an address"), "{said:?}");
    }

    #[test]
    fn a_file_holds_the_same_keys_and_lists() {
        let path = std::env::temp_dir().join(format!("throughline-args-{}.yaml", std::process::id()));
        std::fs::write(
            &path,
            "outbound-listen: 127.0.0.1:1\nroutes: [\"/a/{id}\", /b]\notel-bsp-max-queue-size: 7\n",
        )
        .unwrap();
        let command = args(&["--config", path.to_str().unwrap()]);
        let Ok(Command::Run(found)) = command else { panic!("{command:?}") };
        assert_eq!((found.value.0.routes.len(), found.value.0.bsp_queue_max), (2, 7));
        std::fs::write(&path, "- a\n").unwrap();
        assert!(args(&["--config", path.to_str().unwrap()]).unwrap_err()[0].contains("want a YAML mapping"));
        std::fs::remove_file(&path).unwrap();
        assert!(args(&["--config", path.to_str().unwrap()]).unwrap_err()[0].contains("want a readable file"));
    }

    #[test]
    fn help_names_every_setting() {
        let text = usage();
        let mut rows =
            throughline_core::settings::ROWS.iter().chain(throughline_core::settings::BROWSER_ROWS);
        assert!(rows.all(|row| text.contains(&format!("--{} ", row.key))));
    }
}
