//! The bootstrap that is injected for envoy-wasm, in a real Envoy: health, and probes that tell the truth.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use throughline_injector::patch;

/// Ends with the scenario.
struct Envoy(std::process::Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The filter is the business of tests/tests/envoy, and its module is not built here.
pub(crate) fn without_filter(value: &mut Value) {
    match value {
        Value::Array(all) => {
            all.retain(|one| one["name"] != "throughline");
            all.iter_mut().for_each(without_filter);
        }
        Value::Object(all) => all.values_mut().for_each(without_filter),
        _ => {}
    }
}

/// Other ports than the shipped ones, so that scenarios can play beside each other.
fn with_ports(value: &mut Value, ports: &[(u16, u16)]) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(|one| with_ports(one, ports)),
        Value::Object(all) => {
            for (key, one) in all.iter_mut() {
                let known = ports.iter().find(|(shipped, _)| *one == json!(shipped));
                match known {
                    Some((_, port)) if key == "port_value" || key == "destination_port" => *one = json!(port),
                    _ => with_ports(one, ports),
                }
            }
        }
        _ => {}
    }
}

fn status(admin: u16, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], admin))).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

fn until(what: &str, admin: u16, path: &str, wanted: u16) {
    let began = Instant::now();
    loop {
        let seen = status(admin, path);
        if seen == Some(wanted) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{what}: {path} answers {seen:?}, want {wanted}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_dead_application_is_unready_before_a_real_envoy() {
    let Some(binary) = throughline_tests::envoy::binary() else {
        return throughline_tests::judges::skipped(
            "no Envoy in target/judges: `scripts/setup test` installs it",
        );
    };
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, dead) = (application.local_addr().unwrap().port(), free());
    let probes = [format!("tcp:{port}"), format!("tcp:{dead}"), format!("grpc:{dead}/shop.Orders")];
    let mut bootstrap = patch::bootstrap(&[], "http://127.0.0.1:4317", "grpc", "127.0.0.1", &probes).unwrap();
    without_filter(&mut bootstrap);
    let admin = free();
    with_ports(&mut bootstrap, &[(15106, free()), (15101, free()), (15190, admin), (15000, free())]);
    let text = bootstrap.to_string().replace("$(K8S_POD_IP)", "127.0.0.1");
    let mut command = std::process::Command::new(binary);
    command.args([
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--log-level",
        "error",
        "--config-yaml",
        &text,
    ]);
    let _envoy = Envoy(command.spawn().unwrap());

    until("Envoy is up", admin, "/readyz", 200);
    assert_eq!(status(admin, "/livez"), Some(200));
    assert_eq!(status(admin, "/metrics"), Some(200));
    assert_eq!(status(admin, "/quitquitquit"), Some(404), "the rest of Envoy's admin stays within the pod");
    until("the application listens", admin, "/probe/0", 200);
    until("nobody listens", admin, "/probe/1", 503);
    until("nobody answers", admin, "/probe/2", 503);
    drop(application);
    until("the application is gone", admin, "/probe/0", 503);
}
