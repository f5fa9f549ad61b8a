//! What the scenarios of the injector stand on: the shipped binary as a process, a client that trusts one
//! authority, numbers from /metrics.

#![expect(clippy::print_stdout, reason = "shows the log of a process that a scenario failed with")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use throughline_tests::wait::eventually;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// An address that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A folder that goes with the scenario.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("throughline-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with the scenario.
pub(crate) struct Process {
    child: std::process::Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(mut command: std::process::Command, log: PathBuf) -> Self {
        let file = std::fs::File::create(&log).unwrap();
        let (out, err) = (file.try_clone().unwrap(), file);
        let child = command.stdin(Stdio::null()).stdout(Stdio::from(out)).stderr(Stdio::from(err)).spawn();
        Self { child: child.unwrap_or_else(|error| panic!("{command:?}: {error}")), log }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            println!("--- the end of {}:", self.log.display());
            tail.iter().rev().for_each(|line| println!("{line}"));
        }
    }
}

/// A replica of the injector.
pub(crate) struct Injector {
    pub(crate) process: Process,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Injector {
    /// Starts one; it is ready when this returns.
    pub(crate) async fn start(folder: &Folder, name: &str, kubeconfig: &str, flags: &[(&str, &str)]) -> Self {
        let (listen, admin) = (free_address(), free_address());
        Self::start_at(folder, name, kubeconfig, flags, listen, admin).await
    }

    pub(crate) async fn start_at(
        folder: &Folder,
        name: &str,
        kubeconfig: &str,
        flags: &[(&str, &str)],
        listen: SocketAddr,
        admin: SocketAddr,
    ) -> Self {
        // Another build of it, for the bench.
        let named = std::env::var_os("THROUGHLINE_INJECTOR");
        let binary = named.unwrap_or_else(|| env!("CARGO_BIN_EXE_throughline-injector").into());
        let mut command = std::process::Command::new(binary);
        command.env_clear().arg("run");
        let own = [
            ("listen", listen.to_string()),
            ("admin-listen", admin.to_string()),
            ("kubeconfig", kubeconfig.to_owned()),
            ("identity", name.to_owned()),
            ("certificate-hosts", "127.0.0.1".to_owned()),
            ("sync-interval", "1s".to_owned()),
        ];
        for (key, value) in own {
            command.arg(format!("--{key}={value}"));
        }
        for (key, value) in flags {
            command.arg(format!("--{key}={value}"));
        }
        let injector = Self {
            process: Process::start(command, folder.0.join(format!("{name}-{}.log", listen.port()))),
            listen,
            admin,
        };
        let ready =
            || async { injector.get("/readyz").await.filter(|(status, _)| *status == 200).map(|_| ()) };
        eventually(&format!("injector {name} is ready"), ready).await;
        injector
    }

    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        let stream = TcpStream::connect(self.admin).await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "injector").body(Full::new(Bytes::new())).unwrap();
        let answer = sender.send_request(request).await.ok()?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// All series of /metrics.
    pub(crate) async fn numbers(&self) -> BTreeMap<String, f64> {
        let (_, page) = self.get("/metrics").await.expect("/metrics answers");
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, n)| (name.to_owned(), n.parse().unwrap()))
            .collect()
    }

    /// A series, 0 where there is none.
    pub(crate) async fn number(&self, series: &str) -> f64 {
        self.numbers().await.get(series).copied().unwrap_or(0.0)
    }

    /// Milliseconds of CPU that it has used.
    pub(crate) fn cpu_ms(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/schedstat", self.process.id())).unwrap();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let of = |text: String| text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6;
        let all = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok());
        all.map(of).sum::<f64>().max(of(stat))
    }

    /// The most memory that it had, in KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    }
}

/// Trust in an authority.
pub(crate) fn trust(authority: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for one in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(one.unwrap()).unwrap();
    }
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// A connection to the webhook, as an API server keeps one.
pub(crate) struct Caller {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

impl Caller {
    pub(crate) async fn connect(trust: &TlsConnector, to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::IpAddress(to.ip().into());
        let stream = trust.connect(name, stream).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> (StatusCode, Vec<u8>) {
        self.sender.ready().await.unwrap();
        let answer = self.sender.send_request(request).await.unwrap();
        let status = answer.status();
        (status, answer.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    /// Posts a review.
    pub(crate) async fn review(&mut self, body: impl Into<Bytes>) -> (StatusCode, Value) {
        let (status, body) = self.send(posted("application/json", body)).await;
        let text = || json!(String::from_utf8_lossy(&body));
        (status, serde_json::from_slice(&body).unwrap_or_else(|_| text()))
    }
}

pub(crate) fn posted(media: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request =
        Request::post("/mutate?timeout=5s").header("host", "injector").header("content-type", media);
    request.body(Full::new(body.into())).unwrap()
}

/// A review of a pod that is being created.
pub(crate) fn review(uid: &str, namespace: &str, pod: &str) -> String {
    format!(
        r#"{{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{{"uid":"{uid}","kind":{{"group":"","version":"v1","kind":"Pod"}},"resource":{{"group":"","version":"v1","resource":"pods"}},"namespace":"{namespace}","operation":"CREATE","object":{pod},"oldObject":null,"dryRun":false}}}}"#
    )
}
