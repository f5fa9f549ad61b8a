//! TLS towards a collector or the Pub/Sub service: which authorities are trusted, and who we say we are.

use std::io;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// A way to speak TLS with one host.
pub struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

/// A file of trusted authorities, empty for the system's, and the setting that names it.
#[derive(Clone, Copy)]
pub struct Authorities<'a> {
    /// The setting.
    pub setting: &'a str,
    /// The file.
    pub file: &'a str,
}

/// Files of our own certificate and its key, with the settings that name them.
#[derive(Clone, Copy)]
pub struct Identity<'a> {
    /// Setting and file of the certificate.
    pub certificate: (&'a str, &'a str),
    /// Setting and file of its key.
    pub key: (&'a str, &'a str),
}

impl Tls {
    /// `Err` names the setting that stands in the way.
    pub fn new(
        host: &str,
        authorities: Authorities<'_>,
        identity: Option<Identity<'_>>,
        http2: bool,
    ) -> Result<Self, String> {
        let name =
            ServerName::try_from(host.to_owned()).map_err(|_| format!("\"{host}\" is no name for TLS"))?;
        let provider = Arc::new(crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("failed to set up TLS: {error}"))?
            .with_root_certificates(roots(authorities)?);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key: (setting, file) }) => {
                let chain = certificates(certificate.0, certificate.1)?;
                let wrong = |error: &dyn std::fmt::Display| {
                    format!("{setting}=\"{file}\": want a PEM file with the certificate's key: {error}")
                };
                let key = PrivateKeyDer::from_pem_file(file).map_err(|error| wrong(&error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| wrong(&error))?
            }
        };
        config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// TLS over a connection.
    pub async fn connect(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), stream).await
    }
}

fn roots(Authorities { setting, file }: Authorities<'_>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if file.is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(format!("{setting}: want a PEM file: the system has no authorities"));
        }
        return Ok(roots);
    }
    for certificate in certificates(setting, file)? {
        let added = roots.add(certificate);
        added.map_err(|error| format!("{setting}=\"{file}\": want valid certificates: {error}"))?;
    }
    Ok(roots)
}

fn certificates(setting: &str, file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |error: &dyn std::fmt::Display| {
        format!("{setting}=\"{file}\": want a PEM file of certificates: {error}")
    };
    let parsed: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))?.collect();
    let parsed = parsed.map_err(|error| wrong(&error))?;
    if parsed.is_empty() { Err(wrong(&"it holds none")) } else { Ok(parsed) }
}
