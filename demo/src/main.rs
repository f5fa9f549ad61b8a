//! The demo: a small shop with one real `throughline-proxy`, or one real Envoy with the filter, in front of
//! each service, and a real `throughline-flow` behind them. Starts all of it, sends a few requests, draws each trace, and stays up for curl and the browser. Holds no
//! tracing of its own: what it draws is what the sidecars exported.

mod args;
mod broker;
mod call;
mod demo_broker;
mod envoy;
mod flow;
mod process;
mod receiver;
mod screen;
mod shop;
mod sidecars;
mod trace;
mod waterfall;

use std::collections::VecDeque;
use std::io;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{Asked, Host, Options, Stay};
use crate::broker::Broker;
use crate::envoy::Envoy;
use crate::process::{Pids, Processes};
use crate::receiver::Receiver;
use crate::screen::Screen;
use crate::shop::App;
use crate::sidecars::{Plan, Program, Sidecars, Starting};
use crate::trace::{Expected, Kind, TraceId};

/// The longest wait for the spans of one of the demo's own requests.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A request that the demo sends, and what must come of it.
struct Tale {
    method: &'static str,
    target: &'static str,
    status: u16,
    expected: Expected,
}

const BROWSING: &[(&str, Kind)] = &[
    ("web", Kind::Server),
    ("web", Kind::Client),
    ("stock", Kind::Server),
    ("stock", Kind::Client),
    ("warehouse", Kind::Server),
];

const CHECKING_OUT: &[(&str, Kind)] = &[
    ("web", Kind::Server),
    ("web", Kind::Client),
    ("orders", Kind::Server),
    ("orders", Kind::Client),
    ("stock", Kind::Server),
    ("stock", Kind::Client),
    ("warehouse", Kind::Server),
    ("orders", Kind::Client),
    ("payments", Kind::Server),
];

/// What follows an order that was placed.
const SHIPPING: &[(&str, Kind)] = &[
    ("orders", Kind::Producer),
    ("shipping", Kind::Consumer),
    ("shipping", Kind::Client),
    ("warehouse", Kind::Server),
];

/// What the shop answers without a queue: sent while the broker starts.
const AT_ONCE: [Tale; 2] = [
    Tale {
        method: "GET",
        target: "/products",
        status: 200,
        expected: Expected { operation: "browse", spans: &[BROWSING] },
    },
    Tale {
        method: "GET",
        target: "/search?q=lamp",
        status: 200,
        expected: Expected { operation: "search", spans: &[BROWSING] },
    },
];

/// What needs the broker.
const WITH_QUEUE: [Tale; 2] = [
    Tale {
        method: "POST",
        target: "/checkout",
        status: 201,
        expected: Expected { operation: "checkout", spans: &[CHECKING_OUT, SHIPPING] },
    },
    Tale {
        method: "POST",
        // No order is placed, so nothing is published.
        target: "/checkout?payment=fail",
        status: 502,
        expected: Expected { operation: "checkout", spans: &[CHECKING_OUT] },
    },
];

/// Why the demo ended before its end.
enum End {
    /// Something is wrong, and this is what.
    Failed(String),
    /// Nobody reads the output any more.
    OutputClosed,
}

impl From<String> for End {
    fn from(reason: String) -> End {
        End::Failed(reason)
    }
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::OutputClosed
    }
}

fn main() -> ExitCode {
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let options = match args::parse(args) {
        Ok(Asked::Run(options)) => options,
        Ok(Asked::Help) => {
            return exit_code(io::stdout().write_all(args::HELP.as_bytes()).map_err(End::from));
        }
        Err(mistakes) => {
            complain(&mistakes);
            return ExitCode::from(2);
        }
    };
    let pids = Pids::default();
    end_sidecars_on_panic(pids.clone());
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit_code(Err(End::Failed(format!("no runtime: {error}")))),
    };
    exit_code(runtime.block_on(demo(&options, pids)))
}

fn exit_code(outcome: Result<(), End>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(End::OutputClosed) => ExitCode::FAILURE,
        Err(End::Failed(reason)) => {
            complain(&reason);
            ExitCode::FAILURE
        }
    }
}

fn complain(lines: &str) {
    let mut stderr = io::stderr().lock();
    for (place, line) in lines.lines().enumerate() {
        let before = if place == 0 || !line.starts_with(' ') { "throughline-demo: " } else { "" };
        // When nobody reads complaints either, the exit status is left.
        let _ = writeln!(stderr, "{before}{line}");
    }
}

/// A panic ends the process, in whatever profile it was built, and its sidecars first.
fn end_sidecars_on_panic(pids: Pids) {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        pids.kill();
        std::process::exit(101);
    }));
}

async fn demo(options: &Options, pids: Pids) -> Result<(), End> {
    let program = match options.host {
        Host::Sidecar => Program::Proxy(sidecar_binary(options.proxy.as_deref())?),
        Host::Envoy => Program::Envoy(Envoy::find(options.envoy.as_deref(), options.module.as_deref())?),
    };
    let flow = flow::binary(options.flow.as_deref())?;
    let mut signals = Signals::listen().map_err(|error| format!("no signal handlers: {error}"))?;
    let mut sidecars = Sidecars::new(program, Processes::new(pids.clone()));
    let mut brokers = Processes::new(pids.clone());
    let mut flows = Processes::new(pids);
    let screen = Screen::open(options.color);
    let outcome = tokio::select! {
        biased;
        () = signals.any() => screen.say("\nending the sidecars\n").map_err(End::from),
        outcome = story(options, &screen, &mut sidecars, &mut brokers, (&flow, &mut flows)) => outcome,
    };
    sidecars.stop(signals.any()).await;
    // After those who send to it.
    flows.stop(signals.any()).await;
    // Its messages are the demo's own, so there is nothing to end in order.
    brokers.kill().await;
    outcome
}

fn sidecar_binary(given: Option<&Path>) -> Result<PathBuf, String> {
    let how = "`make demo` builds it (or: cargo build --profile quick -p throughline-proxy); \
               --proxy PATH names another one";
    let binary = match given {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()
            .map_err(|error| format!("own path unknown, so --proxy PATH is needed: {error}"))?
            .with_file_name("throughline-proxy"),
    };
    if binary.is_file() { Ok(binary) } else { Err(format!("no sidecar at {}: {how}", binary.display())) }
}

/// The signals that end the demo.
struct Signals([Signal; 4]);

impl Signals {
    fn listen() -> io::Result<Signals> {
        Ok(Signals([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::quit())?,
        ]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup, quit] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

async fn story(
    options: &Options,
    screen: &Screen,
    sidecars: &mut Sidecars,
    brokers: &mut Processes,
    (flow, flows): (&Path, &mut Processes),
) -> Result<(), End> {
    let receiver = Receiver::start().await.map_err(|error| format!("no OTLP receiver: {error}"))?;
    let flow = flow::start(flow, receiver.address(), flows).await?;
    let flows = &*flows;
    let mut broker = Broker::start(options.broker, options.port, brokers).await?;
    let entrance = entrance(options.port, screen).await?;
    let shop = open_shop(entrance, flow.otlp, broker.address(), sidecars).await?;
    let sidecars = &*sidecars;
    screen.say(&format!(
        "Throughline demo: a shop of {count} services, one {what} in front of each.\n\
         No service makes spans; what follows is what the sidecars exported, by way of throughline-flow.\n\
         Look at it in a browser: http://{api}/\n{broker}\n\n{legend}",
        api = flow.api,
        count = sidecars.len(),
        what = sidecars.what(),
        broker = broker.introduction(),
        legend = waterfall::legend(&screen.look()),
    ))?;
    tokio::select! {
        reason = sidecars.first_end() => Err(End::Failed(reason)),
        reason = flows.first_end() => Err(End::Failed(reason)),
        outcome = scenes(options.stay, shop, flow.api, &receiver, screen, &mut broker, brokers) => outcome,
    }
}

/// The demo's own requests, those that need no queue first; then whatever comes.
async fn scenes(
    stay: Stay,
    shop: Shop,
    dashboard: SocketAddr,
    receiver: &Receiver,
    screen: &Screen,
    broker: &mut Broker,
    brokers: &mut Processes,
) -> Result<(), End> {
    let stage = Stage { shop, dashboard, receiver, screen };
    let ready = async { broker.ready(shop.deliveries, brokers).await.map_err(End::from) };
    let (mut lacks, news) = tokio::try_join!(stage.send_all(&AT_ONCE), ready)?;
    if let Some(news) = news {
        screen.say(&format!("\n{news}\n"))?;
    }
    let rest = async {
        lacks.extend(stage.send_all(&WITH_QUEUE).await?);
        match stay {
            Stay::Once if lacks.is_empty() => Ok(()),
            Stay::Once => Err(End::Failed(lacks.join("\n"))),
            Stay::UntilSignal => stage.stay_up().await,
        }
    };
    tokio::select! {
        reason = brokers.first_end() => Err(End::Failed(reason)),
        outcome = rest => outcome,
    }
}

/// The shop's own address, or one with a free port when that is taken.
async fn entrance(port: u16, screen: &Screen) -> Result<SocketAddr, End> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // The listener closes at once: its port is for the sidecar.
    if let Err(error) = TcpListener::bind(wanted).await {
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "is in use".to_owned(),
            _ => format!("cannot be had ({error})"),
        };
        screen.say(&format!("Port {port} {why}: the shop takes a free one.\n\n"))?;
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    }
    Ok(wanted)
}

/// Where the shop is reached from outside: the inbound side of two sidecars.
#[derive(Clone, Copy)]
struct Shop {
    entrance: SocketAddr,
    /// Where the broker pushes to.
    deliveries: SocketAddr,
}

/// Starts each service and its sidecar after those that it calls, so that every address is known
/// by the time that it is needed. Those that wait for the same start together.
async fn open_shop(
    entrance: SocketAddr,
    receiver: SocketAddr,
    broker: SocketAddr,
    sidecars: &mut Sidecars,
) -> Result<Shop, End> {
    let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut reached: Vec<(App, SocketAddr)> = Vec::new();
    let mut starting: Vec<(App, TcpListener, Starting)> = Vec::new();
    for app in App::STARTING_ORDER {
        let broken = |error: io::Error| format!("{} has no port: {error}", app.name());
        if starting.iter().any(|(other, ..)| app.neighbours().contains(other)) {
            serve_when_ready(&mut starting, &mut reached).await?;
        }
        let listener = TcpListener::bind(free).await.map_err(broken)?;
        let known = reached.iter().filter(|(other, _)| app.neighbours().contains(other));
        let routes: Vec<_> = known.map(|(other, address)| (other.name(), *address)).collect();
        let started = sidecars.start(&Plan {
            service: app.name(),
            inbound: if app == App::Web { entrance } else { free },
            upstream: listener.local_addr().map_err(broken)?,
            routes: &routes,
            broker: app.publishes().then_some(broker),
            receiver,
            tells_trace_id: app == App::Web,
        })?;
        starting.push((app, listener, started));
    }
    serve_when_ready(&mut starting, &mut reached).await?;
    let address = |wanted: App| {
        let found = reached.iter().find(|(app, _)| *app == wanted).map(|(_, address)| *address);
        found.ok_or_else(|| format!("the shop has no {} service", wanted.name()))
    };
    Ok(Shop { entrance: address(App::Web)?, deliveries: address(App::Shipping)? })
}

/// Lets services serve whose sidecars have been started, each when its own is ready.
async fn serve_when_ready(
    starting: &mut Vec<(App, TcpListener, Starting)>,
    reached: &mut Vec<(App, SocketAddr)>,
) -> Result<(), String> {
    for (app, listener, started) in starting.drain(..) {
        let listeners = started.ready().await?;
        tokio::spawn(shop::serve(app, listener, listeners.outbound));
        reached.push((app, listeners.inbound));
    }
    Ok(())
}

/// What a scene plays on.
struct Stage<'a> {
    shop: Shop,
    /// Where the dashboard is.
    dashboard: SocketAddr,
    receiver: &'a Receiver,
    screen: &'a Screen,
}

impl Stage<'_> {
    /// Sends the demo's own requests and draws their traces. Returns what was not as it must be.
    async fn send_all(&self, tales: &[Tale]) -> Result<Vec<String>, End> {
        let mut lacks = Vec::new();
        let Stage { shop, receiver, screen, .. } = *self;
        for tale in tales {
            screen.say(&format!("\n$ {}\n", tale.as_curl(shop.entrance)))?;
            let (status, trace) = tale.send(shop.entrance).await?;
            let (spans, lacking) = receiver.await_trace(trace, &tale.expected, WHOLE_TIMEOUT).await;
            screen.say(&waterfall::draw(&spans, &screen.look()))?;
            let line = format!("{} {}", tale.method, tale.target);
            if status != tale.status {
                lacks.push(format!("{line}: answered {status}, want {}", tale.status));
            }
            if let Some(lacking) = lacking {
                let waited = WHOLE_TIMEOUT.as_secs();
                lacks.push(format!("{line}: trace {trace} is not whole after {waited} s: {lacking}"));
            }
        }
        for lack in &lacks {
            screen.say(&format!("\n✗ {lack}\n"))?;
        }
        Ok(lacks)
    }

    /// Draws every further trace when it is finished, until something ends the demo.
    async fn stay_up(&self) -> Result<(), End> {
        let Stage { shop, dashboard, receiver, screen } = *self;
        let tries: Vec<String> =
            WITH_QUEUE.iter().map(|tale| format!("  {}\n", tale.as_curl(shop.entrance))).collect();
        screen.say(&format!(
            "\nThe shop stays up, and every further trace is drawn here. Try\n\n{}\n\
             or the page with buttons: http://{}/\n\
             and see where each click went: http://{dashboard}/ (a little traffic runs by itself)\n\nCtrl-C ends it.\n",
            tries.concat(),
            shop.entrance
        ))?;
        let traffic = Traffic::default();
        tokio::select! {
            () = traffic.run(shop.entrance) => Ok(()),
            outcome = self.draw(receiver, screen, &traffic) => outcome,
        }
    }

    /// Draws what users did. What the traffic did is for the dashboard.
    async fn draw(&self, receiver: &Receiver, screen: &Screen, traffic: &Traffic) -> Result<(), End> {
        loop {
            for spans in receiver.next_finished(App::Web.name()).await {
                if traffic.sent(&spans) {
                    continue;
                }
                screen.say(&format!("\n{}", waterfall::draw(&spans, &screen.look())))?;
            }
            let dropped = receiver.take_dropped();
            if dropped > 0 {
                screen.say(&format!("\n{dropped} spans were dropped: more came than the demo keeps\n"))?;
            }
        }
    }
}

/// Requests that the demo sends by itself while it stays up, so that the dashboard is not empty.
#[derive(Default)]
struct Traffic {
    /// Traces of the latest of them.
    traces: Mutex<VecDeque<TraceId>>,
}

/// What the traffic asks for, in turn.
const TRAFFIC: [(&str, &str, &str); 6] = [
    ("GET", "/products", "browse"),
    ("POST", "/login", "login"),
    ("POST", "/checkout", "checkout"),
    ("GET", "/recommendations", "recommend"),
    ("GET", "/search?q=kettle", "search"),
    ("POST", "/checkout?payment=fail", "checkout"),
];
/// Requests of the traffic that come one after the other at first.
const TRAFFIC_AT_ONCE: usize = 36;
/// Between two of its requests after those.
const TRAFFIC_EVERY: Duration = Duration::from_secs(3);
/// Its traces that are remembered: more than come while one is finished.
const TRAFFIC_TRACES_MAX: usize = 256;

impl Traffic {
    /// Sends until it is dropped. A request that fails is as good as another: the dashboard shows it.
    async fn run(&self, shop: SocketAddr) {
        for turn in 0_usize.. {
            if turn >= TRAFFIC_AT_ONCE {
                tokio::time::sleep(TRAFFIC_EVERY).await;
            }
            // Most things go well.
            let place = if turn % 18 == 5 { 5 } else { turn % 5 };
            let Some((method, target, operation)) = TRAFFIC.get(place) else { continue };
            let (expected, status) = (Expected { operation, spans: &[] }, 200);
            let tale = Tale { method, target, status, expected };
            if let Ok((_, trace)) = tale.send(shop).await {
                let mut traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
                if traces.len() >= TRAFFIC_TRACES_MAX {
                    traces.pop_front();
                }
                traces.push_back(trace);
            }
        }
    }

    /// Whether a trace came of the traffic. One that begins inside of the shop lost its context, and is for the
    /// Doctor.
    fn sent(&self, spans: &[trace::Span]) -> bool {
        let outside = |span: &trace::Span| span.service == App::Web.name() || span.kind == Kind::Other;
        let traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        spans.first().is_some_and(|span| traces.contains(&span.trace)) || !spans.iter().any(outside)
    }
}

impl Tale {
    fn as_curl(&self, shop: SocketAddr) -> String {
        let method = if self.method == "GET" { String::new() } else { format!("-X {} ", self.method) };
        let operation = self.expected.operation;
        // Only a question mark means something to the shell.
        let quote = if self.target.contains('?') { "'" } else { "" };
        let target = self.target;
        format!("curl -H 'X-Operation-Name: {operation}' {method}{quote}http://{shop}{target}{quote}")
    }

    /// Sends the request and returns the answer's status and the trace's id.
    async fn send(&self, shop: SocketAddr) -> Result<(u16, TraceId), String> {
        let line = format!("{} {}", self.method, self.target);
        let request = Request::builder()
            .method(self.method)
            .uri(self.target)
            .header("host", shop.to_string())
            .header("user-agent", "throughline-demo")
            .header("x-operation-name", self.expected.operation)
            .body(Bytes::new())
            .map_err(|error| format!("{line}: {error}"))?;
        let answer = call::exchange(shop, request).await.map_err(|reason| format!("{line}: {reason}"))?;
        let told = answer.headers().get("x-trace-id").and_then(|value| value.to_str().ok());
        let trace = told.and_then(TraceId::parse).ok_or_else(|| {
            format!("{line}: the sidecar answered {} without a usable x-trace-id", answer.status())
        })?;
        Ok((answer.status().as_u16(), trace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_try_is_a_curl_command() {
        let shop = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        assert_eq!(
            WITH_QUEUE[0].as_curl(shop),
            "curl -H 'X-Operation-Name: checkout' -X POST http://127.0.0.1:8080/checkout"
        );
        assert_eq!(
            WITH_QUEUE[1].as_curl(shop),
            "curl -H 'X-Operation-Name: checkout' -X POST 'http://127.0.0.1:8080/checkout?payment=fail'"
        );
        assert_eq!(
            AT_ONCE[0].as_curl(shop),
            "curl -H 'X-Operation-Name: browse' http://127.0.0.1:8080/products"
        );
    }

    #[test]
    fn a_missing_sidecar_says_how_it_is_built() {
        let reason = sidecar_binary(Some(Path::new("/nowhere/throughline-proxy"))).unwrap_err();
        assert_eq!(
            reason,
            "no sidecar at /nowhere/throughline-proxy: `make demo` builds it (or: cargo build --profile quick \
             -p throughline-proxy); --proxy PATH names another one"
        );
    }
}
