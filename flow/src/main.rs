//! `throughline-flow`: settings in, listeners up, and down again without losing what was taken.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use throughline_core::settings::{Flow as Settings, Found};
use throughline_flow::engine::{Engine, Log, OpenError, Options};
use throughline_flow::fan_out::FanOut;
use throughline_flow::log;
use throughline_flow::numbers::Thresholds;
use throughline_flow::server::{App, Bound};
use throughline_flow::settings::{Command, read};
use throughline_flow::store::{self, ExportError, Wanted};
use throughline_rim::sources::environment;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Settings that are wrong.
const WRONG_SETTINGS: u8 = 2;
/// Something that the settings can't know: a port in use, a folder that can't be written.
const FAILED: u8 = 1;
/// Of the time for draining, what writing may take once requests are over.
const LAST_WRITES: Duration = Duration::from_secs(3);

/// Why the server does not serve.
enum Stop {
    /// A setting that only showed itself to be wrong when it was used.
    Settings(String),
    /// The machine is in the way.
    Failed(String),
}

fn main() -> ExitCode {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let done = match read(std::env::args_os().skip(1).map(text), environment(), log::unix_nanos()) {
        Ok(Command::Print(text)) => {
            // A reader that has seen enough (`| head`) is no failure.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            Ok(())
        }
        Ok(Command::Check(found)) => check(&found),
        Ok(Command::Export(found, wanted)) => export(&found.value, &wanted),
        Ok(Command::Run(found)) => run(*found),
        Err(mistakes) => return fail(&mistakes, WRONG_SETTINGS),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Settings(message)) => fail(&[message], WRONG_SETTINGS),
        Err(Stop::Failed(message)) => fail(&[message], FAILED),
    }
}

fn fail(messages: &[String], code: u8) -> ExitCode {
    for message in messages {
        let _ = writeln!(std::io::stderr().lock(), "throughline-flow: {message}");
    }
    ExitCode::from(code)
}

/// What a start would say of the settings, the files that they name included.
fn check(found: &Found<Settings>) -> Result<(), Stop> {
    let _ = FanOut::new(&found.value).map_err(Stop::Settings)?;
    throughline_flow::server::check(&found.value).map_err(Stop::Settings)?;
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(b"settings are right\n");
    for warning in &found.warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    Ok(())
}

fn options(settings: &Settings) -> Options {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let shards = match settings.shards {
        0 => cores.min(4),
        told => usize::try_from(told).unwrap_or(cores),
    };
    let defaults = Options::default();
    Options {
        shards,
        queue_bytes_max: settings.queue_bytes_max,
        memory_bytes_max: settings.memory_bytes_max,
        data_dir: (!settings.memory_only).then(|| PathBuf::from(&settings.data_dir)),
        disk_bytes_max: settings.disk_bytes_max,
        keep_for: Duration::from_secs(settings.retention_hours * 3600),
        log: Log(std::sync::Arc::new(|sentence| log::warn(sentence, &[]))),
        numbers: throughline_flow::numbers::Options {
            bytes_max: settings.numbers_bytes_max,
            health: Thresholds {
                degraded_error_rate: settings.degraded_errors.probability(),
                down_error_rate: settings.down_errors.probability(),
                degraded_p95_ms: settings.degraded_latency_ms as f64,
                requests_min: settings.health_requests_min,
            },
            ..defaults.numbers
        },
        ..defaults
    }
}

fn of_open(error: OpenError) -> Stop {
    match error {
        OpenError::File(path, why) => Stop::Failed(format!(
            "THROUGHLINE_FLOW_DATA_DIR: {}: want a folder for the database, or --memory-only: {why}",
            path.display()
        )),
        OpenError::Thread(error) => Stop::Failed(format!("failed to start a thread: {error}")),
    }
}

fn run(found: Found<Settings>) -> Result<(), Stop> {
    let Found { value: settings, warnings } = found;
    log::set_level(settings.log_level);
    for warning in &warnings {
        log::warn(warning, &[]);
    }
    let failed = |error| Stop::Failed(format!("failed to start: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let served = runtime.block_on(serve(&settings));
    runtime.shutdown_background(); // a name that is being looked up is waited for by nobody
    served
}

async fn serve(settings: &Settings) -> Result<(), Stop> {
    let deaf = |error| Stop::Failed(format!("failed to hear signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(deaf)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(deaf)?;
    throughline_flow::server::check(settings).map_err(Stop::Settings)?;
    let (fan_out, sending) = FanOut::new(settings).map_err(Stop::Settings)?.unzip();
    let bound = Bound::new(settings).map_err(Stop::Failed)?;
    let engine = Engine::open(options(settings), log::unix_nanos).map_err(of_open)?;
    let app = App::new(settings, engine.clone(), fan_out).map_err(Stop::Settings)?;
    let addresses = bound.addresses();
    let (stop, stopping) = watch::channel(false);
    let (last, last_sent) = watch::channel(None);
    let sending = sending.map(|sending| tokio::spawn(sending.run(last_sent)));
    let mut serving = tokio::spawn({
        let app = app.clone();
        async move { app.serve(bound, stopping).await }
    });
    let fields: Vec<(&str, &dyn std::fmt::Display)> =
        addresses.iter().map(|(name, address)| (*name, address as &dyn std::fmt::Display)).collect();
    log::info("ready", &fields);

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut serving => {
            let why = match ended {
                Ok(Ok(())) => "the listeners ended".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            return Err(Stop::Failed(format!("failed to serve: {why}")));
        }
    }
    let patience = Duration::from_millis(settings.drain_timeout_ms);
    log::info("draining", &[("drain_timeout_ms", &patience.as_millis())]);
    let deadline = Instant::now() + patience;
    let _ = stop.send(true);
    let _ = timeout_at(deadline - LAST_WRITES.min(patience / 2), serving).await;
    let _ = last.send(Some(deadline));
    if let Some(sending) = sending {
        let _ = timeout_at(deadline, sending).await;
    }
    // What was taken is written, however long the disk takes: the supervisor's patience is the bound.
    let closed = engine.clone();
    let _ = tokio::task::spawn_blocking(move || closed.close()).await;
    let books = engine.books();
    let dropped: u64 = books.dropped.iter().map(|(_, count)| count).sum();
    log::info(
        "stopped",
        &[("spans_received", &books.received), ("spans_stored", &books.stored), ("spans_dropped", &dropped)],
    );
    Ok(())
}

/// Writes the store's spans to standard output.
fn export(settings: &Settings, wanted: &Wanted) -> Result<(), Stop> {
    if settings.memory_only {
        return Err(Stop::Settings("--memory-only: there is no file to export from".to_owned()));
    }
    let folder = PathBuf::from(&settings.data_dir);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let exported = store::export(&folder, wanted, &Log::default(), &mut out)
        .and_then(|exported| out.flush().map(|()| exported).map_err(ExportError::Write));
    match exported {
        // A reader that has seen enough (`| head`) is no failure.
        Err(ExportError::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Stop::Failed(format!("failed to export: {error}"))),
        Ok(exported) => {
            let _ = writeln!(
                std::io::stderr().lock(),
                "throughline-flow: {} traces, {} spans, {} blocks that can't be read",
                exported.traces,
                exported.spans,
                exported.blocks_damaged
            );
            Ok(())
        }
    }
}
