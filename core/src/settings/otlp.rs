//! Where one signal is exported to: the general OTLP settings with the signal's own ones over them, as the
//! OTLP exporter specification layers them.

use super::{Compression, Endpoint, Protocol, Settings};

/// What is exported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
}

/// A resolved destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Otlp {
    /// How to speak.
    pub protocol: Protocol,
    /// Whether by TLS.
    pub tls: bool,
    /// Host, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path of the request.
    pub path: String,
    /// Headers sent along.
    pub headers: Vec<(String, String)>,
    /// Compression of the body.
    pub compression: Compression,
    /// Milliseconds for one attempt.
    pub timeout_ms: u64,
}

impl Settings {
    /// Where this signal goes.
    #[must_use]
    pub fn otlp(&self, signal: Signal) -> Otlp {
        let (own_endpoint, own_protocol, own_headers, own_compression, own_timeout) = match signal {
            Signal::Traces => (
                &self.otlp_traces_endpoint,
                self.otlp_traces_protocol,
                &self.otlp_traces_headers,
                self.otlp_traces_compression,
                self.otlp_traces_timeout_ms,
            ),
            Signal::Metrics => (
                &self.otlp_metrics_endpoint,
                self.otlp_metrics_protocol,
                &self.otlp_metrics_headers,
                self.otlp_metrics_compression,
                self.otlp_metrics_timeout_ms,
            ),
        };
        let protocol = own_protocol.unwrap_or(self.otlp_protocol);
        let default =
            Endpoint { tls: Some(false), host: "localhost".into(), port: None, path: String::new() };
        let endpoint = own_endpoint.as_ref().or(self.otlp_endpoint.as_ref()).unwrap_or(&default);
        let path = match (protocol, signal, own_endpoint) {
            (Protocol::Grpc, Signal::Traces, _) => {
                "/opentelemetry.proto.collector.trace.v1.TraceService/Export".to_owned()
            }
            (Protocol::Grpc, Signal::Metrics, _) => {
                "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export".to_owned()
            }
            // A signal's own endpoint is used as it is; without a path that is the root.
            (Protocol::HttpProtobuf, _, Some(own)) if own.path.is_empty() => "/".to_owned(),
            (Protocol::HttpProtobuf, _, Some(own)) => own.path.clone(),
            (Protocol::HttpProtobuf, Signal::Traces, None) => base(endpoint) + "/v1/traces",
            (Protocol::HttpProtobuf, Signal::Metrics, None) => base(endpoint) + "/v1/metrics",
        };
        // `insecure` counts only where the scheme is left out.
        let tls = endpoint.tls.unwrap_or(self.otlp_insecure == Some(false));
        let default_port = match (endpoint.tls, protocol) {
            (Some(true), _) => 443,
            (Some(false) | None, Protocol::Grpc) => 4317,
            (Some(false) | None, Protocol::HttpProtobuf) => 4318,
        };
        Otlp {
            protocol,
            tls,
            host: endpoint.host.clone(),
            port: endpoint.port.unwrap_or(default_port),
            path,
            headers: if own_headers.is_empty() { self.otlp_headers.clone() } else { own_headers.clone() },
            compression: own_compression.unwrap_or(self.otlp_compression),
            timeout_ms: own_timeout.unwrap_or(self.otlp_timeout_ms),
        }
    }
}

/// The base that a signal's path is appended to, without a slash at its end.
fn base(endpoint: &Endpoint) -> String {
    endpoint.path.trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Sources;
    use super::*;

    fn at(env: &[(&str, &str)], signal: Signal) -> String {
        let mut all = vec![("THROUGHLINE_OUTBOUND_LISTEN".to_owned(), "127.0.0.1:1".to_owned())];
        all.extend(env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let settings = Settings::resolve(&Sources { env: all, ..Sources::default() }).unwrap().value;
        let Otlp { tls, host, port, path, .. } = settings.otlp(signal);
        format!("{}://{host}:{port}{path}", if tls { "https" } else { "http" })
    }

    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const HTTP: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

    #[test]
    fn endpoints_are_layered_as_the_specification_says() {
        for (env, expected) in [
            (&[][..], format!("http://localhost:4317{GRPC_PATH}")),
            (&[HTTP][..], "http://localhost:4318/v1/traces".into()),
            (&[HTTP, (ENDPOINT, "http://c:9")][..], "http://c:9/v1/traces".into()),
            (&[HTTP, (ENDPOINT, "http://c:9/otlp/")][..], "http://c:9/otlp/v1/traces".into()),
            (&[HTTP, (ENDPOINT, "http://c:9"), (TRACES, "http://t:8/x")][..], "http://t:8/x".into()),
            (&[HTTP, (TRACES, "http://t:8")][..], "http://t:8/".into()),
            (&[(ENDPOINT, "https://c")][..], format!("https://c:443{GRPC_PATH}")),
            (&[(ENDPOINT, "c:4317")][..], format!("http://c:4317{GRPC_PATH}")),
            (
                &[(ENDPOINT, "c:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "false")][..],
                format!("https://c:4317{GRPC_PATH}"),
            ),
            (
                &[(ENDPOINT, "http://c:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "false")][..],
                format!("http://c:4317{GRPC_PATH}"),
            ),
        ] {
            assert_eq!(at(env, Signal::Traces), expected, "{env:?}");
        }
        assert_eq!(
            at(&[HTTP, (TRACES, "http://t:8/x")], Signal::Metrics),
            "http://localhost:4318/v1/metrics"
        );
    }
}
