//! TLS towards a collector: which authorities are trusted, and who we say we are.

use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use throughline_core::settings::Settings;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// A connector as the settings say; `Err` names the setting that stands in the way.
pub(super) fn connector(settings: &Settings, http2: bool) -> Result<TlsConnector, String> {
    let roots = roots(&settings.otlp_certificate)?;
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("failed to set up TLS: {error}"))?
        .with_root_certificates(roots);
    let mut config = if settings.otlp_client_certificate.is_empty() {
        builder.with_no_client_auth()
    } else {
        let chain = certificates("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", &settings.otlp_client_certificate)?;
        let key = &settings.otlp_client_key;
        let wrong = |error: &dyn std::fmt::Display| {
            format!(
                "OTEL_EXPORTER_OTLP_CLIENT_KEY=\"{key}\": want a PEM file with the certificate's key: {error}"
            )
        };
        let parsed = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(&error))?;
        builder.with_client_auth_cert(chain, parsed).map_err(|error| wrong(&error))?
    };
    config.alpn_protocols = if http2 { vec![b"h2".to_vec()] } else { vec![b"http/1.1".to_vec()] };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn roots(file: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if file.is_empty() {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            return Err(
                "OTEL_EXPORTER_OTLP_CERTIFICATE: want a PEM file: the system has no authorities".into()
            );
        }
        return Ok(roots);
    }
    let name = "OTEL_EXPORTER_OTLP_CERTIFICATE";
    for certificate in certificates(name, file)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{name}=\"{file}\": want valid certificates: {error}"))?;
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
