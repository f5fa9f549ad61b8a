//! The sidecar's process: settings in, listeners up, and down again without losing a request or a span.

mod access_log;
mod admin;
mod args;
mod browser;
mod capture;
mod conform;
mod control;
mod export;
mod forward;
mod host;
mod init;
mod listener;
mod messages;
mod moments;
mod probe;
mod process;
mod scrape;
mod sidecar;
mod stack;
mod stall;
mod stats;
mod trace;
mod worker;

use std::io::Write as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use throughline_rim::{log, tls};

use throughline_core::batch::Dropped;
use throughline_core::exchange::{Tracer, Work};
use throughline_core::settings::{self, Capture, Found, Settings};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use export::Exporters;
use sidecar::{OwnPorts, Readiness, Sidecar};
use stats::Side;
use worker::Workers;

/// A future behind a pointer.
pub(crate) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Settings that are wrong.
const WRONG_SETTINGS: u8 = 2;
/// Something that the settings can't know: a port in use, a file that can't be read.
const FAILED: u8 = 1;
/// Of the time for draining, what the last export may take once requests are over.
const LAST_EXPORT: Duration = Duration::from_secs(3);

/// How long redirected connections may take to arrive after the redirect has ended.
const HANDSHAKES: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|first| first == "init") {
        return match init::init(std::env::args().skip(2)) {
            Ok(text) => {
                let _ = std::io::stdout().lock().write_all(text.as_bytes());
                ExitCode::SUCCESS
            }
            Err(init::Error::Usage(mistakes)) => fail(&mistakes, WRONG_SETTINGS),
            Err(init::Error::Failed(why)) => fail(&[why], FAILED),
        };
    }
    match args::read(std::env::args().skip(1)) {
        Ok(args::Command::Print(text)) => {
            // A reader that has seen enough (`| head`) is no failure.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(args::Command::Check(found)) => match check(&found) {
            Ok(text) => {
                let _ = std::io::stdout().lock().write_all(text.as_bytes());
                ExitCode::SUCCESS
            }
            Err(message) => fail(&[message], WRONG_SETTINGS),
        },
        Ok(args::Command::Run(found)) => match run(*found) {
            Ok(()) => ExitCode::SUCCESS,
            Err(Stop::Settings(message)) => fail(&[message], WRONG_SETTINGS),
            Err(Stop::Failed(message)) => fail(&[message], FAILED),
        },
        Err(mistakes) => fail(&mistakes, WRONG_SETTINGS),
    }
}

/// What a start would say of the settings, the files that they name included.
fn check(found: &Found<(Settings, settings::Browser)>) -> Result<String, String> {
    let (settings, _) = &found.value;
    let _ = Exporters::new(settings)?;
    let _ = forward::Upstreams::new(settings, 1)?;
    let warnings = found.warnings.iter().map(|warning| format!("warning: {warning}\n"));
    Ok(std::iter::once("settings are right\n".to_owned()).chain(warnings).collect())
}

/// Why the sidecar does not serve.
enum Stop {
    /// A setting that only showed itself to be wrong when it was used.
    Settings(String),
    /// The machine is in the way.
    Failed(String),
}

fn fail(messages: &[String], code: u8) -> ExitCode {
    for message in messages {
        let _ = writeln!(std::io::stderr().lock(), "throughline-proxy: {message}");
    }
    ExitCode::from(code)
}

fn run(found: Found<(Settings, settings::Browser)>) -> Result<(), Stop> {
    let Found { value: (settings, browser), warnings } = found;
    log::set_level(settings.log_level);
    process::raise_descriptors();
    for warning in &warnings {
        log::warn(warning, &[]);
    }
    let failed = |error| Stop::Failed(format!("failed to start: {error}"));
    let runtime = worker::runtime().map_err(failed)?;
    let workers = Workers::start(worker::count(settings.worker_threads) - 1).map_err(failed)?;
    let served = runtime.block_on(serve(settings, &browser, &workers));
    workers.stop();
    runtime.shutdown_background(); // a name that is being looked up is waited for by nobody
    served
}

/// The listeners, bound: by address, one socket for each worker; none where nothing is listened on.
struct Bound {
    inbound: Vec<Sockets>,
    outbound: Vec<Sockets>,
    admin: Vec<Sockets>,
}

/// Of one address.
type Sockets = Vec<std::net::TcpListener>;

impl Bound {
    fn new(settings: &Settings, workers: usize) -> Result<Self, Stop> {
        let bind = |name: &str, address: Option<SocketAddr>, sockets| {
            let Some(address) = address else { return Ok(Vec::new()) };
            let bound = match settings.capture {
                Capture::Transparent if name != "THROUGHLINE_ADMIN_LISTEN" => {
                    listener::bind_both(address, sockets)
                }
                Capture::Reverse | Capture::Transparent => {
                    listener::bind(address, sockets).map(|sockets| vec![sockets])
                }
            };
            bound.map_err(|error| {
                Stop::Failed(format!("{name}=\"{address}\": want an address that is free: {error}"))
            })
        };
        Ok(Self {
            inbound: bind("THROUGHLINE_INBOUND_LISTEN", settings.inbound_listen, workers)?,
            outbound: bind("THROUGHLINE_OUTBOUND_LISTEN", settings.outbound_listen, workers)?,
            admin: bind("THROUGHLINE_ADMIN_LISTEN", Some(settings.admin_listen), 1)?,
        })
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let all = [&self.inbound, &self.outbound, &self.admin];
        let first = all.into_iter().flatten().filter_map(|sockets| sockets.first());
        first.filter_map(|listener| listener.local_addr().ok()).collect()
    }
}

/// The listener, on this thread's runtime.
fn listening(listener: std::net::TcpListener) -> Result<TcpListener, Stop> {
    TcpListener::from_std(listener).map_err(|error| Stop::Failed(format!("failed to listen: {error}")))
}

async fn serve(settings: Settings, browser: &settings::Browser, workers: &Workers) -> Result<(), Stop> {
    let deaf = |error| Stop::Failed(format!("failed to hear signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(deaf)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(deaf)?;
    let exporters = Exporters::new(&settings).map_err(Stop::Settings)?;
    let workers = workers.handles();
    let bound = Bound::new(&settings, workers.len())?;
    let patience = Duration::from_millis(settings.drain_timeout_ms);
    let sidecar = Arc::new(Sidecar {
        tracer: Tracer::new(settings.tracer(), host::seed()),
        spans: export::SpanQueue::new(&settings),
        stats: stats::Stats::default(),
        access_log: access_log::AccessLog::new(settings.access_log),
        upstreams: forward::Upstreams::new(&settings, workers.len()).map_err(Stop::Settings)?,
        own_ports: OwnPorts(bound.addresses()),
        readiness: Readiness::default(),
        cut: watch::Sender::new(false),
        tunnels: Semaphore::new(sidecar::TUNNELS_MAX as usize),
        holding: Semaphore::new(sidecar::HELD_KIB_MAX),
        lease: capture::Lease::default(),
        control_calls: control::Calls::default(),
        browser: browser
            .pages(&settings)
            .map(|config| browser::Browser::new(&config, browser.service_name(&settings), &settings)),
        settings,
    });
    // Before the first request: it is decided by what the file says already.
    if let Some(mut watched) = control::Watched::new(&sidecar.settings.control_file) {
        watched.look(&sidecar);
        tokio::spawn(watched.watch(Arc::clone(&sidecar)));
    }
    let addresses = Addresses::of(&bound);
    let (drain, draining) = watch::channel(false);
    let (stop, stopping) = watch::channel(None);
    let asked_to_drain = Arc::new(Notify::new());
    for admin in bound.admin.into_iter().flatten() {
        tokio::spawn(admin::serve(Arc::clone(&sidecar), listening(admin)?, Arc::clone(&asked_to_drain)));
    }
    let export = tokio::spawn(exporters.run(Arc::clone(&sidecar), stopping));
    tokio::spawn(tidy(Arc::clone(&sidecar)));
    let sides = [(Side::Inbound, bound.inbound), (Side::Outbound, bound.outbound)];
    let mut listeners = Vec::new();
    for (side, addresses) in sides {
        let places = listener::Places::new(&sidecar.settings);
        let sockets = addresses.into_iter().flat_map(|sockets| workers.iter().zip(sockets));
        for (worker, socket) in sockets {
            let _on_its_thread = worker.enter();
            let listener = listening(socket)?;
            let accept =
                listener::accept(Arc::clone(&sidecar), side, listener, places.clone(), draining.clone());
            listeners.push(worker.spawn(accept));
        }
    }
    if sidecar.settings.capture == Capture::Transparent {
        // Whoever starts when it is ready is captured from the first connection on.
        sidecar.lease.beat();
    }
    sidecar.readiness.start();
    if sidecar.settings.capture == Capture::Transparent {
        tokio::spawn(capture::Lease::keep(Arc::clone(&sidecar)));
    }
    addresses.log(&sidecar);

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = asked_to_drain.notified() => {}
    }
    let deadline = Instant::now() + patience;
    log::info("draining", &[("drain_timeout_ms", &patience.as_millis())]);
    sidecar.readiness.drain();
    if sidecar.settings.capture == Capture::Transparent {
        // Who connects from here on goes directly; whoever was redirected just before is still shaking hands.
        sidecar.lease.release();
        tokio::time::sleep(HANDSHAKES.min(patience / 4)).await;
    }
    let _ = drain.send(true);
    let requests_until = deadline - LAST_EXPORT.min(patience / 2);
    let began = host::now();
    finish(&sidecar, listeners, requests_until).await;
    let cut = *sidecar.cut.borrow();
    sidecar.work(Work::Drain, began, cut.then_some("timeout"), "requests in flight were finished");
    let deadline = deadline.min(Instant::now() + LAST_EXPORT);
    let _ = stop.send(Some(deadline));
    let _ = timeout_at(deadline, export).await;
    sidecar.queues().for_each(|queue| queue.drop_all(Dropped::Shutdown));
    let books = sidecar.books();
    log::info(
        "stopped",
        &[
            ("spans_created", &books.created),
            ("spans_exported", &books.exported),
            ("spans_dropped", &books.dropped.iter().sum::<u64>()),
        ],
    );
    Ok(())
}

/// Waits for connections and tunnels to end by themselves, and drops those that do not in time, so that what
/// they were about is accounted for.
async fn finish(sidecar: &Sidecar, mut listeners: Vec<JoinHandle<()>>, until: Instant) {
    const DROPPING: Duration = Duration::from_millis(500);
    for deadline in [until, until + DROPPING] {
        let all = async {
            for listener in listeners.iter_mut().filter(|listener| !listener.is_finished()) {
                let _ = listener.await;
            }
            let _all_closed = sidecar.tunnels.acquire_many(sidecar::TUNNELS_MAX).await;
        };
        if timeout_at(deadline, all).await.is_ok() {
            return;
        }
        let _ = sidecar.cut.send_replace(true);
    }
}

/// Lets go of what nobody uses any more, off the path of requests.
async fn tidy(sidecar: Arc<Sidecar>) {
    let mut every = tokio::time::interval(Duration::from_millis(sidecar.settings.pool_idle_timeout_ms));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        sidecar.upstreams.tidy();
    }
}

/// Where the sidecar listens, as its first line says.
struct Addresses(Vec<(&'static str, String)>);

impl Addresses {
    fn of(bound: &Bound) -> Self {
        let all = [
            ("inbound", bound.inbound.first()),
            ("outbound", bound.outbound.first()),
            ("admin", bound.admin.first()),
        ];
        let known = all.into_iter().filter_map(|(name, sockets)| {
            sockets?.first()?.local_addr().ok().map(|address| (name, address.to_string()))
        });
        Self(known.collect())
    }

    fn log(&self, sidecar: &Sidecar) {
        let service = sidecar.settings.service().0;
        let mut fields: Vec<(&str, &dyn std::fmt::Display)> = vec![("service", &service)];
        for (name, address) in &self.0 {
            fields.push((name, address));
        }
        log::info("ready", &fields);
    }
}
