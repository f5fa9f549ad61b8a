//! Prints the schema of the chart's values, for `make reference`. Must never write a file itself.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let text = throughline_deploy::schema().and_then(|schema| serde_json::to_string_pretty(&schema));
    let written = text.map_err(std::io::Error::other).and_then(|text| {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n"))
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
