//! The shipped bootstrap where it belongs: in a network namespace of its own whose TCP the kernel redirects to Envoy, as
//! in a pod. The application knows nothing of a proxy.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::json;
use throughline_tests::envoy::{self, Bootstrap, Launch};
use throughline_tests::judges::{PeerProcess, installed, python, skipped};
use throughline_tests::pki::Folder;
use throughline_tests::prelude::*;
use tokio::net::{TcpListener, TcpStream};

/// The user that Envoy runs as, which is how the kernel knows its connections.
const ENVOYS_USER: &str = "15100";
const ADMIN: u16 = 15000;

/// A network namespace joined to ours by a pair of interfaces. Gone when the scenario is over.
struct Pod {
    name: String,
    /// Our end.
    ours: Ipv4Addr,
    /// Its end.
    its: Ipv4Addr,
}

impl Pod {
    /// Makes one; `None`, and said so, where that is not allowed.
    fn make() -> Option<Pod> {
        installed("ip").and(installed("nft")).and(installed("setpriv"))?;
        let number = std::process::id();
        let [high, low] = [(number >> 6) as u8, (number << 2) as u8];
        let pod = Pod {
            name: format!("tl{number}"),
            ours: Ipv4Addr::new(10, 213, high, low | 1),
            its: Ipv4Addr::new(10, 213, high, low | 2),
        };
        let (name, link, ours, its) = (&pod.name, format!("v{}", pod.name), pod.ours, pod.its);
        let steps = [
            format!("netns add {name}"),
            format!("link add {link} type veth peer name eth0 netns {name}"),
            format!("addr add {ours}/30 dev {link}"),
            format!("link set {link} up"),
            format!("-n {name} addr add {its}/30 dev eth0"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} link set lo up"),
        ];
        for step in &steps {
            let said = Command::new("ip").args(step.split(' ')).output().expect("ip runs");
            if !said.status.success() {
                let why = String::from_utf8_lossy(&said.stderr).trim().to_owned();
                skipped(&format!(
                    "no network namespace of its own (ip {step}: {why}): redirection is not tried"
                ));
                return None;
            }
        }
        Some(pod)
    }

    /// The words before a command that runs inside.
    fn inside(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).into()
    }

    /// Redirects as the head of the shipped file says. The admin port is exempt, as we look at it from outside.
    fn redirect(&self) {
        let rules = format!(
            "table ip throughline {{
               chain in {{
                 type nat hook prerouting priority dstnat
                 tcp dport {ADMIN} return
                 meta l4proto tcp redirect to :15106
               }}
               chain out {{
                 type nat hook output priority -100
                 meta skuid {ENVOYS_USER} return
                 ip daddr 127.0.0.0/8 return
                 meta l4proto tcp redirect to :15101
               }}
             }}"
        );
        let words = self.inside();
        let mut nft = Command::new(&words[0])
            .args(&words[1..])
            .args(["nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft runs");
        nft.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("rules");
        assert!(nft.wait().expect("nft ends").success(), "nft refuses {rules}");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Makes a service of loopback reachable at an address of ours.
async fn reachable(at: Ipv4Addr, service: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((at, 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut to) = TcpStream::connect(service).await {
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                }
            });
        }
    });
    address
}

/// The shipped bootstrap, its collector aside: the address is the user's to write.
fn shipped(pod: &Pod, collector: SocketAddr) -> Bootstrap {
    let mut bootstrap = Bootstrap::as_shipped();
    let at = |to: SocketAddr| json!({"socket_address": {"address": to.ip(), "port_value": to.port()}});
    bootstrap.root["admin"]["address"] = at(SocketAddr::new(IpAddr::V4(pod.its), ADMIN));
    let cluster = bootstrap.cluster("otlp");
    cluster["type"] = json!("STATIC");
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"] = at(collector);
    bootstrap
}

/// Envoy's user may not read our folders, and needs to read module and configuration.
fn as_envoys_user() -> Vec<String> {
    let words = [
        "setpriv",
        "--reuid",
        ENVOYS_USER,
        "--regid",
        ENVOYS_USER,
        "--clear-groups",
        "--inh-caps",
        "+dac_override",
        "--ambient-caps",
        "+dac_override",
    ];
    words.map(str::to_owned).into()
}

#[tokio::test]
async fn redirected_traffic_is_traced_and_what_is_no_http_passes() {
    let Some(interpreter) = python(&["http.server"]).filter(|_| envoy::is_here()) else { return };
    let Some(pod) = Pod::make() else { return };
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "12")).await;
    let collector = reachable(pod.ours, mesh.collector.address).await;
    let next = reachable(pod.ours, stock.address).await;
    let mut words = pod.inside().into_iter();
    let mut command = Command::new(words.next().expect("a command"));
    let script = throughline_tests::sidecar::workspace().join("tests/judges/plain_app.py");
    command.args(words).arg(interpreter).arg(script).arg(pod.its.to_string());
    let app = PeerProcess::start("plain_app.py", command);
    let ports = app.says("ports").await;
    let port = |name: &str| u16::try_from(ports[name].as_u64().expect("a port")).expect("a port");
    let folder = Folder::fresh();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(folder.file(""), open).expect("a folder of ours");
    pod.redirect();
    let through = pod.inside().into_iter().chain(as_envoys_user()).collect();
    let sidecar = shipped(&pod, collector).start_with("pod", Launch { workers: 1, through }).await;

    // In, out and back, without a header that names a proxy.
    let answer = Ask::get(format!("http://{}:{}/orders", pod.its, port("http")))
        .header("x-next", format!("http://{next}/items"))
        .header("x-operation-name", "checkout")
        .send()
        .await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "12"));
    let spans = mesh.collector.spans(2).await;
    let server = the_only(&spans, |span| span.kind == Kind::Server);
    let client = the_only(&spans, |span| span.kind == Kind::Client);
    assert_eq!((&client.trace, &client.parent), (&server.trace, &server.id));
    assert_eq!(client.id, stock.saw_one().traceparent().span);
    assert_eq!(
        (&server["app.operation.name"], &client["app.operation.name"]),
        (&json!("checkout"), &json!("checkout"))
    );
    assert_eq!(client["server.address"], json!(pod.ours.to_string()));

    // A server that speaks first, in a protocol that nobody knows.
    let mut wire = Wire::to(SocketAddr::from((pod.its, port("greeting")))).await;
    wire.until("220 ready\r\n").await;
    wire.send("quit\r\n").await;
    wire.until("QUIT\r\n").await;
    drop(wire);

    // A connection to Envoy's own port would lead back to it for ever.
    for own in [15106, 15101] {
        let mut wire = Wire::to(SocketAddr::from((pod.its, own))).await;
        wire.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        let said = wire.rest_text().await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 503"), "{own}: {said}");
    }
    sidecar.books_when("all exported", |books| books.held() == 0).await;
    drop(sidecar);
}
