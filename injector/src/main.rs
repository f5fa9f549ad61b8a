//! `throughline-injector`: reads the command line and does what it says. Knows no setting by itself.

use std::io::{Read, Write};
use std::process::ExitCode;

use throughline_injector::names::VERSION;
use throughline_injector::policy::Sidecars;
use throughline_injector::run::say;
use throughline_injector::settings::{self, Native, Settings};
use throughline_injector::{log, manifest, metrics, offline, policy, run};

const USAGE: &str = "the mutating webhook that gives pods their tracing sidecar, and its controller

Usage: throughline-injector run [--<setting> <value>]...
       throughline-injector check [--<setting> <value>]...
       throughline-injector inject -f FILE [-n NAMESPACE] [--diff] [--<setting> <value>]...

Commands:
  run               serve the webhook and look after its certificates, in a cluster
  check             name the running pods of labelled namespaces that are missing their sidecar; 1 if there are any
  inject -f FILE    print the manifests of FILE (- for standard input) with the sidecar in them, without a cluster;
                    --diff prints the changes instead. Comments of changed documents are lost
  manifest          print the MutatingWebhookConfiguration and the roles that belong to this version and settings
  help, --help      this text
  --version         the version
  --print-reference the tables of settings, annotations and metrics, in Markdown

A flag wins over its environment variable.
";

fn main() -> ExitCode {
    match command(std::env::args().skip(1).collect()) {
        Ok(code) => code,
        Err(mistakes) => {
            for mistake in mistakes {
                let _ = writeln!(std::io::stderr(), "throughline-injector: {mistake}");
            }
            ExitCode::from(2)
        }
    }
}

fn command(arguments: Vec<String>) -> Result<ExitCode, Vec<String>> {
    let mut arguments = arguments.into_iter();
    let first = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    if rest.iter().any(|argument| argument == "--help" || argument == "-h") {
        say(&help());
        return Ok(ExitCode::SUCCESS);
    }
    match first.as_str() {
        "" | "help" | "--help" | "-h" => say(&help()),
        "--version" | "version" => say(&format!("throughline-injector {VERSION}")),
        "--print-reference" => say(reference().trim_end()),
        "manifest" => {
            let settings = settings(&rest)?;
            let all = std::iter::once(manifest::webhook(&settings)).chain(manifest::roles(&settings));
            let all: Result<Vec<String>, _> = all.map(|one| serde_yaml::to_string(&one)).collect();
            say(all.map_err(|error| vec![error.to_string()])?.join("---\n").trim_end());
        }
        "inject" => return inject(rest),
        "run" => {
            let settings = settings(&rest)?;
            log::set(settings.log_level);
            on_runtime(run::run(settings))?;
        }
        "check" => {
            let settings = settings(&rest)?;
            log::set(settings.log_level);
            let missing = on_runtime(run::check(settings))?;
            return Ok(if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        other => {
            return Err(vec![format!(
                "\"{}\": want run, check, inject, manifest or help",
                other.escape_debug()
            )]);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn on_runtime<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, Vec<String>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| vec![format!("failed to start: {error}")])?;
    let done = runtime.block_on(work).map_err(|mistake| vec![mistake]);
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    done
}

fn help() -> String {
    format!("throughline-injector {VERSION}: {USAGE}{}", settings::help().trim_end())
}

fn reference() -> String {
    let mut page = format!(
        "### Settings\n\n{}\n### Annotations\n\n| annotation | what it says |\n|---|---|\n",
        settings::reference()
    );
    for (name, help) in policy::ANNOTATIONS {
        page.push_str(&format!("| `throughline.dev/{name}` | {help} |\n"));
    }
    page.push_str(&format!("\n### Metrics\n\n{}", metrics::reference()));
    page
}

/// Flags as pairs; `--key value` and `--key=value`.
fn flags(arguments: &[String]) -> Result<Vec<(String, String)>, Vec<String>> {
    let (mut pairs, mut mistakes) = (Vec::new(), Vec::new());
    let mut arguments = arguments.iter().peekable();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--") else {
            mistakes
                .push(format!("\"{}\": want a flag such as --listen; see --help", argument.escape_debug()));
            continue;
        };
        match flag.split_once('=') {
            Some((key, value)) => pairs.push((key.to_owned(), value.to_owned())),
            None => match arguments.next_if(|next| !next.starts_with("--")) {
                Some(value) => pairs.push((flag.to_owned(), value.clone())),
                None => mistakes.push(format!("--{flag}: want a value after it")),
            },
        }
    }
    if mistakes.is_empty() { Ok(pairs) } else { Err(mistakes) }
}

fn settings(arguments: &[String]) -> Result<Settings, Vec<String>> {
    let environment = throughline_rim::sources::environment();
    let mut settings = Settings::read(&flags(arguments)?, environment.into_iter())?;
    if settings.identity.is_empty() {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        settings.identity = format!("{}-{}", host.trim(), std::process::id());
    }
    Ok(settings)
}

fn inject(arguments: Vec<String>) -> Result<ExitCode, Vec<String>> {
    let (mut file, mut namespace, mut diff, mut rest) = (None, "default".to_owned(), false, Vec::new());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-f" | "--file" if file.is_some() => {
                return Err(vec!["-f: want one file; several can be joined with lines of ---".to_owned()]);
            }
            "-f" | "--file" => file = arguments.next(),
            "-n" => {
                let named = arguments.next().filter(|name| !name.is_empty() && !name.starts_with('-'));
                namespace = named.ok_or_else(|| vec!["-n: want a namespace after it".to_owned()])?;
            }
            "--diff" => diff = true,
            _ => rest.push(argument),
        }
    }
    let settings = settings(&rest)?;
    let file =
        file.ok_or_else(|| vec!["-f: want a file of manifests, or - for standard input".to_owned()])?;
    let read = match file.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        path => std::fs::read_to_string(path),
    };
    let text = read.map_err(|error| vec![format!("-f {file}: {error}")])?;
    // Without a cluster nobody knows its nodes: what is current is assumed, unless it is said otherwise.
    let sidecars = match settings.injecting.native {
        Native::Off => Sidecars::Ordinary,
        Native::Auto | Native::On => Sidecars::NativeWithPorts,
    };
    let injected = offline::inject(&text, &namespace, sidecars, &settings)
        .map_err(|why| vec![format!("{file}: {why}")])?;
    let out = if diff { &injected.diff } else { &injected.yaml };
    let _ = std::io::stdout().write_all(out.as_bytes());
    let _ = std::io::stderr().write_all(offline::lines(&injected.told).as_bytes());
    Ok(ExitCode::SUCCESS)
}
