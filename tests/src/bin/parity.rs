//! What `scripts/parity` asks: which scenarios run on a host, and whether both hosts gave the same spans. It must never
//! run a scenario itself.

use std::path::Path;
use std::process::ExitCode;

use throughline_tests::parity::Differences;
use throughline_tests::sidecar::Host;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match asked(&words) {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(trouble) => {
            eprintln!("parity: {trouble}");
            ExitCode::FAILURE
        }
    }
}

fn asked(words: &[&str]) -> Result<String, String> {
    let differences = Differences::read()?;
    match words {
        ["filter", host @ ("sidecar" | "envoy"), list] => {
            let text = std::fs::read_to_string(list).map_err(|error| format!("{list}: {error}"))?;
            let list = serde_json::from_str(&text).map_err(|error| format!("{list}: {error}"))?;
            let host = if *host == "envoy" { Host::Envoy } else { Host::Sidecar };
            differences.filter(host, &list)
        }
        ["compare", folder] => {
            let (scenarios, spans) = differences.compare(Path::new(folder))?;
            Ok(format!("{spans} spans of {scenarios} scenarios are equal on both hosts"))
        }
        ["again", folder] => differences.again(Path::new(folder)),
        _ => Err("want `filter sidecar|envoy LIST`, `compare FOLDER` or `again FOLDER`".to_owned()),
    }
}
