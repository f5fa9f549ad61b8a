//! What the user asked for on the command line. Reads arguments only: no environment, no files.

use std::path::PathBuf;

/// The text of `--help`.
pub(crate) const HELP: &str = "\
throughline-demo: a small shop with one throughline-proxy, or one Envoy, in front of each service

Starts web, orders, stock, payments, warehouse and shipping, sends a few requests with
an operation, draws each trace in the terminal, and stays up for curl and the browser.
Orders reach shipping through Pub/Sub.

usage: throughline-demo [options]

  --host WHICH    sidecar (throughline-proxy) or envoy (Envoy with the filter); default sidecar
  --proxy PATH    the throughline-proxy to run (default: the one beside this program)
  --flow PATH     the throughline-flow to run (default: the one beside this program)
  --envoy PATH    the Envoy to run (default: the one that `make demo HOST=envoy` installs)
  --module PATH   the filter for it (default: the one that `make wasm` builds)
  --port N        port of the shop on 127.0.0.1 (default 8080; when it is taken, a free one)
  --broker WHICH  auto, emulator (Google's, needs java) or own (the demo's, small); default
                  auto: the emulator where it is installed and ready within 10 s
  --once          draw the traces and exit: 0 when each is whole, 1 when one is not
  --color WHEN    auto, always or never (default auto; auto honours NO_COLOR)
  --help          this text

The drawing is as wide as the terminal; COLUMNS=N says otherwise.
";

const PORT_DEFAULT: u16 = 8080;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Help,
    Run(Options),
}

/// How to run the demo.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) host: Host,
    /// The sidecar's binary, when it is not the one beside us.
    pub(crate) proxy: Option<PathBuf>,
    /// The flow server's binary, when it is not the one beside us.
    pub(crate) flow: Option<PathBuf>,
    /// Envoy's binary, when it is not the one that was installed for the demo.
    pub(crate) envoy: Option<PathBuf>,
    /// The filter, when it is not the one that was built last.
    pub(crate) module: Option<PathBuf>,
    /// The shop's port on loopback.
    pub(crate) port: u16,
    pub(crate) stay: Stay,
    pub(crate) color: Color,
    pub(crate) broker: Broker,
}

/// What stands in front of each service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// A `throughline-proxy`.
    Sidecar,
    /// An Envoy with the filter.
    Envoy,
}

/// What follows the demo's own requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stay {
    /// Exit, and say by the status whether the traces were whole.
    Once,
    /// Serve the shop and draw further traces until a signal comes.
    UntilSignal,
}

/// Which Pub/Sub broker stands between orders and shipping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broker {
    /// Google's emulator where it is installed and soon ready, else the demo's own.
    Auto,
    /// Google's emulator, or an error.
    Emulator,
    /// The demo's own.
    Own,
}

/// When to colour the drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

/// Reads the arguments after the program's name, and reports every mistake at once, one per line.
pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Asked, String> {
    let mut options = Options {
        host: Host::Sidecar,
        proxy: None,
        flow: None,
        envoy: None,
        module: None,
        port: PORT_DEFAULT,
        stay: Stay::UntilSignal,
        color: Color::Auto,
        broker: Broker::Auto,
    };
    let mut mistakes = Vec::new();
    let mut rest = args.into_iter();
    while let Some(arg) = rest.next() {
        let (flag, attached) = match arg.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_owned())),
            _ => (arg.as_str(), None),
        };
        let outcome = match flag {
            "--help" | "-h" => return Ok(Asked::Help),
            "--once" if attached.is_none() => {
                options.stay = Stay::Once;
                Ok(())
            }
            "--host" => text(attached.or_else(|| rest.next()), "sidecar or envoy")
                .and_then(|value| host(&value))
                .map(|host| options.host = host),
            "--flow" => text(attached.or_else(|| rest.next()), "the path of throughline-flow")
                .map(|path| options.flow = Some(path.into())),
            "--envoy" => text(attached.or_else(|| rest.next()), "the path of envoy")
                .map(|path| options.envoy = Some(path.into())),
            "--module" => text(attached.or_else(|| rest.next()), "the path of throughline.wasm")
                .map(|path| options.module = Some(path.into())),
            "--proxy" => text(attached.or_else(|| rest.next()), "the path of throughline-proxy")
                .map(|path| options.proxy = Some(path.into())),
            "--port" => text(attached.or_else(|| rest.next()), "a port from 0 to 65535")
                .and_then(|value| port(&value))
                .map(|port| options.port = port),
            "--color" => text(attached.or_else(|| rest.next()), "auto, always or never")
                .and_then(|value| color(&value))
                .map(|color| options.color = color),
            "--broker" => text(attached.or_else(|| rest.next()), "auto, emulator or own")
                .and_then(|value| broker(&value))
                .map(|broker| options.broker = broker),
            _ => Err("unknown option; see --help".to_owned()),
        };
        if let Err(mistake) = outcome {
            mistakes.push(format!("{arg}: {mistake}"));
        }
    }
    if mistakes.is_empty() { Ok(Asked::Run(options)) } else { Err(mistakes.join("\n")) }
}

fn text(value: Option<String>, wanted: &str) -> Result<String, String> {
    value.filter(|value| !value.is_empty()).ok_or_else(|| format!("want {wanted}"))
}

fn port(value: &str) -> Result<u16, String> {
    value.parse().map_err(|_| format!("\"{value}\" given, want a port from 0 to 65535"))
}

fn host(value: &str) -> Result<Host, String> {
    match value {
        "sidecar" => Ok(Host::Sidecar),
        "envoy" => Ok(Host::Envoy),
        _ => Err(format!("\"{value}\" given, want sidecar or envoy")),
    }
}

fn color(value: &str) -> Result<Color, String> {
    match value {
        "auto" => Ok(Color::Auto),
        "always" => Ok(Color::Always),
        "never" => Ok(Color::Never),
        _ => Err(format!("\"{value}\" given, want auto, always or never")),
    }
}

fn broker(value: &str) -> Result<Broker, String> {
    match value {
        "auto" => Ok(Broker::Auto),
        "emulator" => Ok(Broker::Emulator),
        "own" => Ok(Broker::Own),
        _ => Err(format!("\"{value}\" given, want auto, emulator or own")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Asked, String> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn no_arguments_mean_a_shop_on_8080_that_stays_up() {
        let expected = Options {
            host: Host::Sidecar,
            proxy: None,
            flow: None,
            envoy: None,
            module: None,
            port: 8080,
            stay: Stay::UntilSignal,
            color: Color::Auto,
            broker: Broker::Auto,
        };
        assert_eq!(parsed(""), Ok(Asked::Run(expected)));
    }

    #[test]
    fn values_follow_a_space_or_an_equals_sign() {
        let expected = Options {
            host: Host::Envoy,
            proxy: Some("/x/throughline-proxy".into()),
            flow: Some("/x/throughline-flow".into()),
            envoy: Some("/x/envoy".into()),
            module: Some("/x/throughline.wasm".into()),
            port: 0,
            stay: Stay::Once,
            color: Color::Never,
            broker: Broker::Own,
        };
        assert_eq!(
            parsed(
                "--proxy=/x/throughline-proxy --port 0 --once --color never --broker=own --host envoy \
                 --flow /x/throughline-flow --envoy /x/envoy --module=/x/throughline.wasm"
            ),
            Ok(Asked::Run(expected))
        );
    }

    #[test]
    fn help_wins_over_mistakes_after_it() {
        assert_eq!(parsed("--help --nonsense"), Ok(Asked::Help));
    }

    #[test]
    fn every_mistake_is_reported_with_what_would_be_right() {
        let expected = "--port: \"70000\" given, want a port from 0 to 65535\n\
                        --color=red: \"red\" given, want auto, always or never\n\
                        --broker: \"kafka\" given, want auto, emulator or own\n\
                        --host: \"nginx\" given, want sidecar or envoy\n\
                        --twice: unknown option; see --help\n\
                        --proxy: want the path of throughline-proxy";
        assert_eq!(
            parsed("--port 70000 --color=red --broker kafka --host nginx --twice --proxy"),
            Err(expected.to_owned())
        );
    }
}
