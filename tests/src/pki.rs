//! Certificates of a scenario's own: a certificate authority, a server and a client, made by `openssl`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::judges::skipped;

/// A folder that is removed when the scenario is over.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A fresh folder.
    pub fn fresh() -> Folder {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("throughline-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file in it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, content).expect("a written file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A certificate authority with a server (`server.pem`, for 127.0.0.1) and a client (`client.pem`).
#[derive(Debug)]
pub struct Pki {
    folder: Folder,
}

impl Pki {
    /// Makes everything; `None`, and said so, where `openssl` is missing.
    pub fn make() -> Option<Pki> {
        let folder = Folder::fresh();
        folder.write("names", "subjectAltName=IP:127.0.0.1,DNS:localhost\n");
        folder.write("client-names", "extendedKeyUsage=clientAuth\n");
        let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        let steps = [
            format!("req -x509 {curve} -days 2 -subj /CN=ours -keyout ca.key -out ca.pem"),
            format!("req {curve} -subj /CN=collector -keyout server.key -out server.csr"),
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -set_serial 1 -days 2 -extfile names -out server.pem"
                .to_owned(),
            format!("req {curve} -subj /CN=sidecar -keyout client.key -out client.csr"),
            "x509 -req -in client.csr -CA ca.pem -CAkey ca.key -set_serial 2 -days 2 -extfile client-names \
             -out client.pem"
                .to_owned(),
        ];
        for step in &steps {
            let mut command = Command::new("openssl");
            command.args(step.split_whitespace()).current_dir(&folder.0);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            match command.status() {
                Ok(status) => assert!(status.success(), "openssl {step}"),
                Err(error) => {
                    skipped(&format!("openssl does not run ({error}): no TLS to the collector is tried"));
                    return None;
                }
            }
        }
        Some(Pki { folder })
    }

    /// The path of one of the files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.file(name)
    }

    /// A TLS server with the server's certificate; with `clients`, only for the authority's clients.
    pub fn acceptor(&self, clients: bool) -> TlsAcceptor {
        let config = ServerConfig::builder();
        let config = if clients {
            let mut roots = RootCertStore::empty();
            certificates(&self.file("ca.pem")).into_iter().for_each(|one| roots.add(one).expect("a root"));
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
            config.with_client_cert_verifier(verifier)
        } else {
            config.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_file(self.file("server.key")).expect("a key");
        let chain = certificates(&self.file("server.pem"));
        let mut config = config.with_single_cert(chain, key).expect("a server");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    let all = CertificateDer::pem_file_iter(path).expect("a file of certificates");
    all.map(|one| one.expect("a certificate")).collect()
}
