//! Asks the application what a kubelet would ask it, for probes that a redirect would answer in its place: by TCP, gRPC
//! or HTTP, at one address only, within a bounded time. Leaves no span and no line. Must never ask what no setting
//! lists.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, TE};
use http::{Request, Uri, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use throughline_core::settings::Probe;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, CryptoProvider};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

/// How long the application has. The kubelet's own patience is mostly less, and ends the question when it hangs up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a health check's answer: a message of two bytes in its frame, and room for what may come.
const HEALTH_BYTES_MAX: usize = 4096;
/// `HealthCheckResponse.ServingStatus.SERVING`: field 1, and its value.
const SERVING: [u8; 2] = [0x08, 0x01];
/// Fields that belong to the hop between the kubelet and us, or say where it thinks it asks.
const OF_THE_HOP: [&str; 9] = [
    "host",
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "content-length",
    "upgrade",
    "te",
    "expect",
];

/// Whether the application is well; `Err` says what is wrong, in a line.
pub(crate) async fn ask(probe: &Probe, ip: IpAddr, headers: &HeaderMap) -> Result<(), String> {
    let asking = async {
        match probe {
            Probe::Tcp { port } => connect(ip, *port).await.map(drop),
            Probe::Grpc { port, service } => health(connect(ip, *port).await?, service).await,
            Probe::Http { tls: false, port, path } => {
                let to = SocketAddr::new(ip, *port);
                get(connect(ip, *port).await?, "http", to, path, headers).await
            }
            Probe::Http { tls: true, port, path } => {
                let to = SocketAddr::new(ip, *port);
                let stream = connect(ip, *port).await?;
                let connector = TlsConnector::from(unverified().map_err(|error| error.to_string())?);
                let connected = connector.connect(ServerName::IpAddress(ip.into()), stream).await;
                get(connected.map_err(|error| format!("no TLS: {error}"))?, "https", to, path, headers).await
            }
        }
    };
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(format!("no answer in {} s", PATIENCE.as_secs())))
}

async fn connect(ip: IpAddr, port: u16) -> Result<TcpStream, String> {
    let to = SocketAddr::new(ip, port);
    TcpStream::connect(to).await.map_err(|error| format!("no connection to {to}: {error}"))
}

/// GET, with what the kubelet sent beside it: its own name, and fields that the probe's author set.
async fn get<T>(
    stream: T,
    scheme: &str,
    to: SocketAddr,
    path: &str,
    headers: &HeaderMap,
) -> Result<(), String>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(told)?;
    let driving = tokio::spawn(connection);
    let mut request = Request::new(Full::<Bytes>::default());
    *request.uri_mut() = path.parse::<Uri>().map_err(|error| format!("{scheme}:{path}: {error}"))?;
    for (name, value) in headers {
        if !OF_THE_HOP.contains(&name.as_str()) {
            request.headers_mut().append(name, value.clone());
        }
    }
    let host = HeaderValue::from_str(&to.to_string()).map_err(|error| error.to_string())?;
    request.headers_mut().insert(HOST, host);
    let answered = sender.send_request(request).await.map_err(told);
    driving.abort(); // the head is all that is wanted
    let status = answered?.status();
    // As the kubelet has it.
    if (200..400).contains(&status.as_u16()) { Ok(()) } else { Err(format!("status {}", status.as_u16())) }
}

/// `grpc.health.v1.Health/Check`.
async fn health(stream: TcpStream, service: &str) -> Result<(), String> {
    let io = TokioIo::new(stream);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(told)?;
    let driving = tokio::spawn(connection);
    let answered = async {
        let request = check(service).ok_or("the service's name is too long")?;
        let response = sender.send_request(request).await.map_err(told)?;
        if !response.status().is_success() {
            return Err(format!("status {}", response.status().as_u16()));
        }
        let of_head = grpc_status(response.headers());
        let body = Limited::new(response.into_body(), HEALTH_BYTES_MAX).collect().await;
        let body = body.map_err(|error| format!("no whole answer: {error}"))?;
        let status = of_head.or_else(|| body.trailers().and_then(grpc_status)).unwrap_or_default();
        match (status.as_str(), body.to_bytes().get(5..)) {
            ("0", Some(message)) if message.starts_with(&SERVING) => Ok(()),
            ("0", _) => Err("not serving".to_owned()),
            (code, _) => Err(format!("grpc-status {code}")),
        }
    };
    let answered = answered.await;
    driving.abort();
    answered
}

fn grpc_status(headers: &HeaderMap) -> Option<String> {
    Some(headers.get("grpc-status")?.to_str().ok()?.to_owned())
}

/// `HealthCheckRequest { service }`, framed; `None` when its length takes more than a byte.
fn check(service: &str) -> Option<Request<Full<Bytes>>> {
    let length = u8::try_from(service.len()).ok().filter(|length| *length < 0x80)?;
    let mut message = BytesMut::new();
    if length > 0 {
        message.put_slice(&[0x0a, length]);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).ok()?);
    frame.put(message);
    let mut request = Request::new(Full::new(frame.freeze()));
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_static("http://localhost/grpc.health.v1.Health/Check");
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    Some(request)
}

fn told(error: hyper::Error) -> String {
    format!("no answer: {error}")
}

/// TLS that believes whoever answers, as the kubelet's probes do: a probe asks whether there is an answer.
fn unverified() -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
