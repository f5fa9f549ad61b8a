//! `throughline-bench side-by-side`: the sidecar and the filter beside their peers, on the same work in one
//! interleaved run. `requests-instructions`: what a request costs in each mode. The other commands are the processes that such a run starts; see `wire`.

mod instructions;
mod machine;
mod peers;
mod process;
mod report;
mod round;
mod side_by_side;
mod svg;
mod wire;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use wire::{backend, floor, load_fixed, load_http1, load_http2, load_idle, sink};

const USAGE: &str = "\
throughline-bench side-by-side [--quick] [--only h1,h2,grpc,body,idle,open,count-h1,count-h2] [--candidates NAME,...]
                               [--repetitions N] [--seconds N] [--write]
  --quick        one short repetition: only whether everything works
  --only         these scenarios
  --candidates   these candidates, such as hyper,throughline-100,envoy-tracer
  --repetitions  how often each candidate has its turn; 5
  --seconds      how long a closed loop asks; 3
  --write        write docs/bench.md and its plots
throughline-bench requests-instructions SIDECAR [--only NAME [--keep FILE]]
                 user-space instructions a request in each mode, by callgrind; --keep leaves the profile
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["side-by-side", options @ ..] => side_by_side::Options::read(options).and_then(side_by_side::run),
        ["requests-instructions", arguments @ ..] => instructions::run(arguments),
        ["help" | "--help" | "-h"] | [] => {
            print!("{USAGE}");
            Ok(())
        }
        [part, arguments @ ..] => play(part, arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("throughline-bench: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A process of the stage, or a generator.
fn play(part: &str, arguments: &[&str]) -> Result<(), String> {
    let wrong = || format!("{part}: unknown command, or wrong arguments\n{USAGE}");
    let address = |at: usize| -> Result<SocketAddr, String> {
        arguments.get(at).and_then(|text| text.parse().ok()).ok_or_else(wrong)
    };
    let number = |at: usize| -> Result<u64, String> {
        arguments.get(at).and_then(|text| text.parse().ok()).ok_or_else(wrong)
    };
    let context = || arguments.get(1) == Some(&"with-context");
    let time = || number(2).map(Duration::from_millis);
    let failed = |error: std::io::Error| format!("{part}: {error}");
    match part {
        "backend" => alone()?.block_on(backend::run(address(0)?)).map_err(failed),
        "sink" => alone()?.block_on(sink::run(address(0)?, address(1)?)).map_err(failed),
        "floor" => alone()?.block_on(floor::run(address(0)?, address(1)?)).map_err(failed),
        "floor-stealing" => stealing()?.block_on(floor::run(address(0)?, address(1)?)).map_err(failed),
        "load-http1" | "load-large" => {
            let ask = if part == "load-large" { load_http1::Ask::Large } else { load_http1::Ask::Small };
            alone()?.block_on(load_http1::run(address(0)?, ask, context(), 32, time()?));
            Ok(())
        }
        "load-http2" | "load-grpc" => {
            let ask = if part == "load-grpc" { load_http2::Ask::Grpc } else { load_http2::Ask::Small };
            alone()?.block_on(load_http2::run(address(0)?, ask, context(), (8, 8), time()?));
            Ok(())
        }
        "load-fixed" => {
            let rate = u32::try_from(number(3)?).map_err(|_| wrong())?;
            load_fixed::run(address(0)?, context(), 32, rate, time()?);
            Ok(())
        }
        "load-idle" => {
            alone()?.block_on(load_idle::run(address(0)?, number(1)?));
            Ok(())
        }
        _ => Err(wrong()),
    }
}

fn alone() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())
}

/// The usual runtime of tokio, with a thread for each core that may be used, two at the most.
fn stealing() -> Result<tokio::runtime::Runtime, String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(2);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(threads).enable_all().build().map_err(|error| error.to_string())
}
