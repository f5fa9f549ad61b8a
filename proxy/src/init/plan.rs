//! What is to be redirected: the command line of `throughline-proxy init`, read and checked. Touches nothing.

use std::net::IpAddr;

use throughline_core::settings::{ADMIN_PORT, CAPTURED_INBOUND_PORT, CAPTURED_OUTBOUND_PORT};

/// Exclusions of one kind: each is a rule.
const EXCLUSIONS_MAX: usize = 200;

/// Ports from the first to the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ports(pub(super) u16, pub(super) u16);

/// A network, without bits of hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Network(pub(super) IpAddr, pub(super) u8);

/// By which program rules are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Backend {
    /// nft, or iptables where that is missing.
    Auto,
    Nft,
    Iptables,
}

/// What is done with the rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// See that they hold.
    Apply,
    /// Say what they are.
    Print,
    /// Say whether they hold.
    Check,
    /// Take them away.
    Undo,
    /// Say how this is used.
    Help,
}

/// Everything that the rules depend on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub(super) action: Action,
    pub(super) backend: Backend,
    pub(super) proxy_uid: u32,
    pub(super) inbound_port: u16,
    pub(super) outbound_port: u16,
    pub(super) admin_port: u16,
    pub(super) exclude_inbound: Vec<Ports>,
    pub(super) exclude_outbound: Vec<Ports>,
    pub(super) exclude_networks: Vec<Network>,
    /// Whether connections are redirected only while the sidecar's heart beats.
    pub(super) lease: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            action: Action::Apply,
            backend: Backend::Auto,
            proxy_uid: 15100,
            inbound_port: CAPTURED_INBOUND_PORT,
            outbound_port: CAPTURED_OUTBOUND_PORT,
            admin_port: ADMIN_PORT,
            exclude_inbound: Vec::new(),
            exclude_outbound: Vec::new(),
            exclude_networks: Vec::new(),
            lease: true,
        }
    }
}

pub(super) const USAGE: &str = "\
throughline-proxy init: redirects the TCP connections of this network namespace to a transparent sidecar

Usage: throughline-proxy init [--<flag> <value>]...

  --exclude-inbound-ports <list>    ports that callers reach directly: 22,9000-9010
  --exclude-outbound-ports <list>   ports that the application reaches directly
  --exclude-outbound-cidrs <list>   networks that the application reaches directly: 169.254.0.0/16,fd00::/8
  --proxy-uid <number>              the user that the sidecar runs as, whose connections are left alone [15100]
  --inbound-port <port>             where the sidecar listens for inbound connections [15106]
  --outbound-port <port>            where it listens for outbound ones [15101]
  --admin-port <port>               its admin port, which is never redirected [15190]
  --backend <name>                  auto, nft or iptables: auto is nft, or iptables where nft is missing [auto]
  --no-lease                        redirect whether or not a sidecar beats: for a proxy that can't, such as Envoy
  --dry-run                         print the rules and change nothing
  --check                           say whether the rules are in place, and change nothing
  --undo                            remove the rules
  --help                            this text

Needs the capability NET_ADMIN, but for --dry-run. The sidecar itself needs none.
";

impl Plan {
    /// Reads the arguments behind `init`; `Err` is every mistake.
    pub(super) fn read(args: impl Iterator<Item = String>) -> Result<Self, Vec<String>> {
        let (mut plan, mut mistakes) = (Self::default(), Vec::new());
        let mut args = args.peekable();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--") else {
                if arg == "-h" {
                    plan.action = Action::Help;
                } else {
                    let shown = arg.escape_debug();
                    mistakes.push(format!("init: \"{shown}\": want a flag such as --dry-run; see --help"));
                }
                continue;
            };
            if flag == "no-lease" {
                plan.lease = false;
                continue;
            }
            let action = match flag {
                "help" => Some(Action::Help),
                "dry-run" => Some(Action::Print),
                "check" => Some(Action::Check),
                "undo" => Some(Action::Undo),
                _ => None,
            };
            if let Some(action) = action {
                if ![Action::Apply, Action::Help, action].contains(&plan.action) {
                    mistakes.push(format!("--{flag}: want one of --dry-run, --check and --undo"));
                }
                plan.action = action;
                continue;
            }
            let (key, value) = match flag.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (flag.to_owned(), args.next_if(|next| !next.starts_with("--"))),
            };
            let Some(value) = value else {
                mistakes.push(format!("--{key}: want a value after it"));
                continue;
            };
            if let Err(want) = plan.set(&key, &value) {
                mistakes.push(format!("--{key}=\"{}\": want {want}", value.escape_debug()));
            }
        }
        if mistakes.is_empty() { Ok(plan) } else { Err(mistakes) }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        const PORT: &str = "a port from 1 to 65535";
        let one = |port: &mut u16| match value.parse() {
            Ok(given) if given > 0 => {
                *port = given;
                Ok(())
            }
            _ => Err(PORT),
        };
        match key {
            "exclude-inbound-ports" => self.exclude_inbound = list(value, ports)?,
            "exclude-outbound-ports" => self.exclude_outbound = list(value, ports)?,
            "exclude-outbound-cidrs" => self.exclude_networks = list(value, network)?,
            "proxy-uid" => {
                let uid = value.parse().ok().filter(|uid| *uid > 0);
                // Root's connections can't be told from those of others that run as root.
                self.proxy_uid = uid.ok_or("the number of a user other than root")?;
            }
            "inbound-port" => one(&mut self.inbound_port)?,
            "outbound-port" => one(&mut self.outbound_port)?,
            "admin-port" => one(&mut self.admin_port)?,
            "backend" => {
                self.backend = match value {
                    "auto" => Backend::Auto,
                    "nft" => Backend::Nft,
                    "iptables" => Backend::Iptables,
                    _ => return Err("one of auto, nft, iptables"),
                }
            }
            _ => return Err("a flag that `init --help` names"),
        }
        Ok(())
    }
}

fn list<T>(text: &str, read: fn(&str) -> Result<T, &'static str>) -> Result<Vec<T>, &'static str> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let all: Vec<T> = parts.map(read).collect::<Result<_, _>>()?;
    if all.len() > EXCLUSIONS_MAX { Err("200 exclusions at the most") } else { Ok(all) }
}

fn ports(text: &str) -> Result<Ports, &'static str> {
    let port = |text: &str| text.trim().parse().ok().filter(|port: &u16| *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(Ports(first, last)),
        _ => Err("ports such as 22,9000-9010"),
    }
}

fn network(text: &str) -> Result<Network, &'static str> {
    let parsed = match text.split_once('/') {
        None => text.parse().ok().map(|ip: IpAddr| (ip, if ip.is_ipv4() { 32 } else { 128 })),
        Some((ip, bits)) => ip.parse().ok().zip(bits.parse().ok()),
    };
    let cut = |ip: IpAddr, bits: u8| match ip {
        IpAddr::V4(ip) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Some(IpAddr::V4((u32::from(ip) & mask).into()))
        }
        IpAddr::V6(ip) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Some(IpAddr::V6((u128::from(ip) & mask).into()))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    };
    let found = parsed.and_then(|(ip, bits)| Some(Network(cut(ip, bits)?, bits)));
    found.ok_or("networks such as 10.0.0.0/8,fd00::/8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &str) -> Result<Plan, Vec<String>> {
        Plan::read(args.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_command_line_says_what_is_left_alone() {
        let plan = read(
            "--exclude-inbound-ports 22,9000-9010 --exclude-outbound-ports=5432 --proxy-uid 7 --dry-run \
             --exclude-outbound-cidrs 10.1.2.3/8,::ffff:1,2001:db8::1/32",
        )
        .unwrap();
        let networks = ["10.0.0.0/8", "::ffff:1/128", "2001:db8::/32"].map(|text| network(text).unwrap());
        let expected = Plan {
            action: Action::Print,
            proxy_uid: 7,
            exclude_inbound: vec![Ports(22, 22), Ports(9000, 9010)],
            exclude_outbound: vec![Ports(5432, 5432)],
            exclude_networks: networks.into(),
            ..Plan::default()
        };
        assert_eq!(plan, expected);
        assert_eq!(read("").unwrap(), Plan::default());
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let said = read(
            "now --exclude-inbound-ports 0 --exclude-outbound-ports 9-3 --exclude-outbound-cidrs 10.0.0.0/33 \
             --proxy-uid 0 --backend x --colour red --inbound-port",
        )
        .unwrap_err();
        assert_eq!(said.len(), 8, "{said:#?}");
        assert!(read("--check --undo").is_err());
        assert!(read("--exclude-outbound-cidrs 10.0.0.0/8;flush").is_err());
    }
}
