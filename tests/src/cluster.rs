//! Pods as the kernel has them: network namespaces on a bridge, with the product's own rules in them. The bridge is in a
//! namespace of its own, the hub, which the scenario's thread enters: so nothing of the machine is touched, and addresses
//! are always the same. All of it is gone when the scenario is over, also when it fails.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpListener, TcpStream};

use crate::collector::Collector;
use crate::judges::{installed, skipped};
use crate::pki::Folder;
use crate::sidecar::{Build, Plan, Sidecar};
use crate::wait::PATIENCE;

/// The user that the sidecar runs as.
pub const SIDECARS_USER: &str = "15100";
/// Somebody else's.
pub const ANOTHER_USER: &str = "15101";
/// The hub, as pods see it; also the way to everywhere else.
pub const HUB: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
/// The same in IPv6.
pub const HUB_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1);
/// An address of the hub outside the pods' network.
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// The admin port of the sidecars.
const ADMIN: u16 = 15190;

/// The hub and a copy of the binary that everybody may read. A collector waits in the hub.
#[derive(Debug)]
pub struct Cluster {
    prefix: String,
    pods: AtomicUsize,
    folder: Folder,
    /// The collector of all pods.
    pub collector: Collector,
    _hub: Netns,
}

/// A namespace by name, deleted with this value.
#[derive(Debug)]
struct Netns(String);

impl Netns {
    fn make(name: &str) -> Result<Netns, String> {
        ip(&format!("netns add {name}"))?;
        let made = Netns(name.to_owned());
        ip(&format!("-n {name} link set lo up"))?;
        Ok(made)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(step: &str) -> Result<(), String> {
    let said = Command::new("ip").args(step.split(' ')).output().expect("ip runs");
    let why = String::from_utf8_lossy(&said.stderr).trim().to_owned();
    if said.status.success() { Ok(()) } else { Err(format!("ip {step}: {why}")) }
}

fn enter(name: &str) {
    let namespace = File::open(format!("/run/netns/{name}")).expect("a namespace");
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("to enter it");
}

impl Cluster {
    /// Makes one, and enters the hub with this thread; `None`, and said so, where that is not allowed.
    pub async fn make() -> Option<Cluster> {
        for program in ["ip", "nft", "setpriv"] {
            installed(program)?;
        }
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("tl{}x{number}", std::process::id());
        let hub = match Cluster::hub(&prefix) {
            Ok(hub) => hub,
            Err(why) => {
                skipped(&format!("no network namespaces ({why}): transparent capture is not tried"));
                return None;
            }
        };
        enter(&hub.0);
        let folder = Folder::fresh();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.file(""), open).expect("a folder of ours");
        let binary = Build::Quick.path().expect("a sidecar to test: cargo build --profile quick");
        std::fs::copy(binary, folder.file("throughline-proxy")).expect("a copy that everybody may run");
        let collector = Collector::reachable_at(HUB.into()).await;
        Some(Cluster { prefix, pods: AtomicUsize::new(0), folder, collector, _hub: hub })
    }

    fn hub(prefix: &str) -> Result<Netns, String> {
        let name = format!("{prefix}h");
        let hub = Netns::make(&name)?;
        ip(&format!("-n {name} link add br0 type bridge"))?;
        ip(&format!("-n {name} addr add {HUB}/24 dev br0"))?;
        ip(&format!("-n {name} addr add {HUB_V6}/64 dev br0 nodad"))?;
        ip(&format!("-n {name} addr add {ELSEWHERE}/32 dev br0"))?;
        ip(&format!("-n {name} link set br0 up"))?;
        Ok(hub)
    }

    /// A pod without rules and without a sidecar.
    pub fn pod(&self, service: &str) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}p{number}", self.prefix);
        let host = u8::try_from(10 + number).expect("few pods");
        let (v4, v6) = (Ipv4Addr::new(10, 9, 0, host), Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, host.into()));
        let hub = format!("{}h", self.prefix);
        let namespace = Netns::make(&name).expect("a namespace");
        for step in [
            format!("-n {hub} link add v{number} type veth peer name eth0 netns {name}"),
            format!("-n {hub} link set v{number} master br0 up"),
            format!("-n {name} addr add {v4}/24 dev eth0"),
            format!("-n {name} addr add {v6}/64 dev eth0 nodad"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} route add default via {HUB}"),
        ] {
            ip(&step).expect("a pod");
        }
        Pod {
            service: service.to_owned(),
            binary: self.folder.file("throughline-proxy"),
            endpoint: self.collector.endpoint(),
            namespace: Arc::new(namespace),
            v4,
            v6,
        }
    }

    /// A pod with the rules in place, and a ready sidecar.
    pub async fn captured(&self, service: &str, init: &str) -> (Pod, Sidecar) {
        let pod = self.pod(service);
        pod.init(init);
        let sidecar = pod.sidecar().await;
        (pod, sidecar)
    }
}

/// A network namespace on the hub's bridge. Gone with its last copy.
#[derive(Clone, Debug)]
pub struct Pod {
    service: String,
    binary: PathBuf,
    endpoint: String,
    namespace: Arc<Netns>,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its other address.
    pub v6: Ipv6Addr,
}

impl Pod {
    /// Does something in it, on a thread of its own.
    fn inside<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let name = self.namespace.0.clone();
        let thread = std::thread::spawn(move || {
            enter(&name);
            what()
        });
        thread.join().expect("nothing panics there")
    }

    /// A socket that listens in it.
    pub fn listen(&self, address: impl Into<SocketAddr>) -> TcpListener {
        let address = address.into();
        let listener = self.inside(move || std::net::TcpListener::bind(address));
        let listener = listener.unwrap_or_else(|error| panic!("{address}: {error}"));
        listener.set_nonblocking(true).expect("a socket");
        TcpListener::from_std(listener).expect("a socket")
    }

    /// Connects from it.
    pub fn connect(&self, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let to = to.into();
        let stream = self.inside(move || std::net::TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }

    /// The words before a command that runs in it.
    pub fn words(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.namespace.0].map(str::to_owned).into()
    }

    /// The sidecar's binary, where everybody may read it.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Runs a command in it.
    pub fn run(&self, command: &[&str]) -> Output {
        let words = self.words();
        Command::new(&words[0]).args(&words[1..]).args(command).output().expect("ip runs")
    }

    /// What a command in it writes; it must succeed.
    pub fn said(&self, command: &[&str]) -> String {
        let output = self.run(command);
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// All rules of its kernel.
    pub fn rules(&self) -> String {
        self.said(&["nft", "-s", "list", "ruleset"])
    }

    /// `throughline-proxy init` with these arguments, which must succeed; what it said.
    pub fn init(&self, arguments: &str) -> String {
        let output = self.try_init(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "init {arguments}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The same, whatever comes of it.
    pub fn try_init(&self, arguments: &str) -> Output {
        let binary = self.binary.display().to_string();
        let arguments = arguments.split_whitespace();
        self.run(&[&binary[..], "init"].into_iter().chain(arguments).collect::<Vec<_>>())
    }

    /// The same as another user, who has no capability.
    pub fn try_init_as(&self, user: &str, arguments: &str) -> Output {
        let mut words = Pod::as_user(user);
        words.extend([self.binary.display().to_string(), "init".to_owned()]);
        words.extend(arguments.split_whitespace().map(str::to_owned));
        self.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The words before a command of an unprivileged user's.
    pub fn as_user(user: &str) -> Vec<String> {
        let words = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--bounding-set", "-all"];
        words.map(str::to_owned).into()
    }

    /// How its sidecar is started.
    pub fn plan(&self) -> Plan {
        let binary = self.binary.display().to_string();
        let words = self.words().into_iter().chain(Pod::as_user(SIDECARS_USER)).chain([binary]).collect();
        Plan::bare(&self.service)
            .through(words)
            .reached_at(IpAddr::V4(self.v4))
            .flag("capture", "transparent")
            .flag("admin-listen", format!("0.0.0.0:{ADMIN}"))
            .environment("OTEL_SERVICE_NAME", &self.service)
            .environment("OTEL_BSP_SCHEDULE_DELAY", "50")
            .environment("OTEL_EXPORTER_OTLP_ENDPOINT", &self.endpoint)
    }

    /// Starts its sidecar, and waits until connections are redirected to it.
    pub async fn sidecar(&self) -> Sidecar {
        self.redirected(self.plan().start().await).await
    }

    /// Waits until connections are redirected to this sidecar.
    pub async fn redirected(&self, sidecar: Sidecar) -> Sidecar {
        let what = "the rules to take the heartbeat";
        sidecar.books_when(what, |books| books.sum("throughline_capture_lease", &[]) == 2).await;
        sidecar
    }
}

/// How long a lease lasts at the most, with what a busy machine needs to look.
pub const LEASE: Duration = Duration::from_secs(2);
