//! Settings of the flow server, which takes what sidecars and filters send. A table of its own: it shares readers
//! and mistakes with the sidecar's, and no key.

use std::net::SocketAddr;

use super::value::{self, list, number, optional, ratio};
use super::{Endpoint, Found, LogLevel, Mistake, Protocol, Row, Sources, Want, help_of, source, table};
use crate::sampling::Ratio;

/// `off` is no address.
fn listen_or_off(text: &str) -> Result<Option<SocketAddr>, Want> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    value::listen(text).map(Some).map_err(|want| format!("{want}, or off").into())
}

super::settings! {
    /// Every setting of the flow server, read and checked.
    Flow, FLOW_ROWS;
    "Listeners" {
        listen: SocketAddr = "127.0.0.1:8090", value::listen, "listen", ["THROUGHLINE_FLOW_LISTEN"];
            "Where the API, the live view, the page for people, /metrics, /livez and /readyz are served."
        otlp_grpc: Option<SocketAddr> = "127.0.0.1:4317", listen_or_off, "otlp-grpc", ["THROUGHLINE_FLOW_OTLP_GRPC"];
            "Where OTLP by gRPC arrives. off: nowhere."
        otlp_http: Option<SocketAddr> = "127.0.0.1:4318", listen_or_off, "otlp-http", ["THROUGHLINE_FLOW_OTLP_HTTP"];
            "Where OTLP by HTTP arrives (/v1/traces, /v1/metrics; protobuf or JSON). off: nowhere."
        token_file: String = "", value::text, "token-file", ["THROUGHLINE_FLOW_TOKEN_FILE"];
            "File with the bearer token that callers from other hosts must send (Authorization: Bearer). Read again when it changes. A listener on an address that is not loopback wants it."
        otlp_open: bool = "off", value::switch, "otlp-open", ["THROUGHLINE_FLOW_OTLP_OPEN"];
            "on: spans and metrics are taken without the token from whoever reaches the OTLP listeners, as sidecars inside a cluster need it. Reading them back still wants the token."
        connections_max: u64 = "1024", number::<16, 100_000>, "connections-max", ["THROUGHLINE_FLOW_CONNECTIONS_MAX"];
            "Connections open at once on each listener. Further ones wait to be accepted."
        live_max: u64 = "256", number::<1, 10_000>, "live-max", ["THROUGHLINE_FLOW_LIVE_MAX"];
            "Live views (/api/v1/live) open at once. Further ones get 503."
    }
    "Ingest" {
        body_bytes_max: u64 = "16777216", number::<65_536, 268_435_456>, "body-bytes-max", ["THROUGHLINE_FLOW_BODY_BYTES_MAX"];
            "Bytes of one export, as it comes and after decompression. More: 413, or RESOURCE_EXHAUSTED by gRPC."
        body_timeout_ms: u64 = "10000", number::<100, 600_000>, "body-timeout", ["THROUGHLINE_FLOW_BODY_TIMEOUT"];
            "Milliseconds for one export to arrive. Then: 408, or DEADLINE_EXCEEDED by gRPC."
        bodies_bytes_max: u64 = "134217728", number::<1_048_576, 8_589_934_592>, "bodies-bytes-max", ["THROUGHLINE_FLOW_BODIES_BYTES_MAX"];
            "Bytes of all exports that are being read at once. More: 429, or RESOURCE_EXHAUSTED by gRPC."
        queue_bytes_max: u64 = "67108864", number::<1_048_576, 8_589_934_592>, "queue-bytes-max", ["THROUGHLINE_FLOW_QUEUE_BYTES_MAX"];
            "Bytes of exports that wait to be stored. More: 429, or RESOURCE_EXHAUSTED by gRPC."
        shards: u64 = "0", number::<0, 64>, "shards", ["THROUGHLINE_FLOW_SHARDS"];
            "Threads that store spans, each with the traces of its share of ids. 0: one for each core, four at the most."
    }
    "Store" {
        data_dir: String = "throughline-flow-data", value::text, "data-dir", ["THROUGHLINE_FLOW_DATA_DIR"];
            "Folder of the database. Made when it is not there."
        memory_only: bool = "off", value::switch, "memory-only", ["THROUGHLINE_FLOW_MEMORY_ONLY"];
            "on: nothing is written to disk; a restart forgets everything."
        memory_bytes_max: u64 = "268435456", number::<1_048_576, 68_719_476_736>, "memory-bytes-max", ["THROUGHLINE_FLOW_MEMORY_BYTES_MAX"];
            "Bytes of recent spans, compressed, that are kept in memory. The oldest go first."
        disk_bytes_max: u64 = "10737418240", number::<16_777_216, 17_592_186_044_416>, "disk-bytes-max", ["THROUGHLINE_FLOW_DISK_BYTES_MAX"];
            "Bytes of spans, compressed, that are kept on disk. The oldest go first."
        retention_hours: u64 = "168", number::<1, 17_520>, "retention-hours", ["THROUGHLINE_FLOW_RETENTION_HOURS"];
            "Hours that spans and minute numbers are kept on disk."
        numbers_bytes_max: u64 = "268435456", number::<1_048_576, 68_719_476_736>, "numbers-bytes-max", ["THROUGHLINE_FLOW_NUMBERS_BYTES_MAX"];
            "Bytes of numbers, packed, that are kept in memory. Beyond them the oldest minutes become tens, then hours, then go."
    }
    "Answers" {
        degraded_errors: Ratio = "0.05", ratio, "degraded-errors", ["THROUGHLINE_FLOW_DEGRADED_ERRORS"];
            "Share of failed requests from which on a service is degraded."
        degraded_latency_ms: u64 = "2000", number::<0, 3_600_000>, "degraded-latency", ["THROUGHLINE_FLOW_DEGRADED_LATENCY"];
            "Milliseconds at the 95th percentile from which on a service is degraded. 0: however slow."
        down_errors: Ratio = "0.5", ratio, "down-errors", ["THROUGHLINE_FLOW_DOWN_ERRORS"];
            "Share of failed requests from which on a service is down."
        health_requests_min: u64 = "5", number::<1, 1_000_000>, "health-requests-min", ["THROUGHLINE_FLOW_HEALTH_REQUESTS_MIN"];
            "Fewer requests than this in the time asked for say nothing: the service is healthy."
        late_after_ms: u64 = "30000", number::<100, 3_600_000>, "late-after", ["THROUGHLINE_FLOW_LATE_AFTER"];
            "Milliseconds in which spans arrive. Until then the Context Doctor calls a missing one late, and judges it after that."
    }
    "Fan-out" {
        fan_out: Option<Endpoint> = "", optional(value::endpoint), "fan-out", ["THROUGHLINE_FLOW_FAN_OUT"];
            "Another OTLP endpoint that gets every export that was taken here, such as http://tempo:4318. Its trouble never reaches senders. Unset: none."
        fan_out_protocol: Protocol = "http/protobuf", value::protocol, "fan-out-protocol", ["THROUGHLINE_FLOW_FAN_OUT_PROTOCOL"];
            "grpc or http/protobuf."
        fan_out_headers: Vec<(String, String)> = "", list(value::pair), "fan-out-headers", ["THROUGHLINE_FLOW_FAN_OUT_HEADERS"];
            "Headers sent with each: key=value, percent-encoded, separated by commas."
        fan_out_queue_bytes_max: u64 = "33554432", number::<65_536, 8_589_934_592>, "fan-out-queue-bytes-max", ["THROUGHLINE_FLOW_FAN_OUT_QUEUE_BYTES_MAX"];
            "Bytes that wait for it at the most. Beyond that the newest are dropped, and counted."
        fan_out_certificate: String = "", value::text, "fan-out-certificate", ["THROUGHLINE_FLOW_FAN_OUT_CERTIFICATE"];
            "PEM file of the authorities that its certificate is held against. Unset: the system's."
    }
    "Process" {
        drain_timeout_ms: u64 = "10000", number::<0, 600_000>, "drain-timeout", ["THROUGHLINE_FLOW_DRAIN_TIMEOUT"];
            "Milliseconds after SIGTERM for requests in flight to finish and what is held to be written."
        log_level: LogLevel = "info", value::log_level, "otel-log-level", ["OTEL_LOG_LEVEL"];
            "error, warn, info or debug: JSON lines on standard error."
    }
}

type Conflict = (fn(&Flow) -> bool, &'static str, &'static str);

/// Settings that make no sense together.
const CONFLICTS: &[Conflict] = &[
    (
        |flow| !flow.listen.ip().is_loopback() && flow.token_file.is_empty(),
        "listen",
        "a loopback address such as 127.0.0.1:8090, or token-file beside it: elsewhere anybody could read the traces",
    ),
    (
        |flow| exposed(flow, flow.otlp_grpc),
        "otlp-grpc",
        "a loopback address such as 127.0.0.1:4317, or token-file or otlp-open=on beside it: elsewhere anybody could send spans",
    ),
    (
        |flow| exposed(flow, flow.otlp_http),
        "otlp-http",
        "a loopback address such as 127.0.0.1:4318, or token-file or otlp-open=on beside it: elsewhere anybody could send spans",
    ),
    (|flow| flow.data_dir.is_empty() && !flow.memory_only, "data-dir", "a folder, or memory-only=on"),
    (
        |flow| flow.down_errors.probability() < flow.degraded_errors.probability(),
        "down-errors",
        "degraded-errors or more: a service that is down is worse than one that is degraded",
    ),
];

fn exposed(flow: &Flow, listen: Option<SocketAddr>) -> bool {
    listen.is_some_and(|address| !address.ip().is_loopback()) && flow.token_file.is_empty() && !flow.otlp_open
}

impl Flow {
    /// Reads every row from the sources. All mistakes are reported together.
    ///
    /// # Errors
    /// Every mistake.
    pub fn resolve(sources: &Sources) -> Result<Found<Self>, Vec<Mistake>> {
        let mut reader = source::Reader::new(sources, FLOW_ROWS);
        let flow = Self::read(&mut reader);
        let found = reader.finish(flow)?;
        let conflicts: Vec<Mistake> = CONFLICTS
            .iter()
            .filter(|(conflicts, ..)| conflicts(&found.value))
            .map(|(_, key, want)| sources.mistake(FLOW_ROWS, key, want))
            .collect();
        if conflicts.is_empty() { Ok(found) } else { Err(conflicts) }
    }

    /// Help for a terminal.
    #[must_use]
    pub fn help() -> String {
        help_of(FLOW_ROWS)
    }

    /// The tables of the reference page, in Markdown.
    #[must_use]
    pub fn reference() -> String {
        let mut out = String::new();
        table(FLOW_ROWS, |_: &Row| "", &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &[(&str, &str)]) -> Result<Flow, Vec<String>> {
        let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let sources = Sources { flags, ..Sources::default() };
        let found = Flow::resolve(&sources);
        found.map(|found| found.value).map_err(|told| told.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_default_is_right_and_on_loopback() {
        let flow = resolve(&[]).unwrap();
        assert!(flow.listen.ip().is_loopback() && flow.otlp_grpc.unwrap().ip().is_loopback());
        assert!(resolve(&[("otlp-grpc", "off")]).unwrap().otlp_grpc.is_none());
    }

    #[test]
    fn other_addresses_want_a_token_and_say_so_together() {
        let open = [("listen", "0.0.0.0:1"), ("otlp-grpc", "0.0.0.0:2"), ("otlp-http", "[::]:3")];
        let told = resolve(&open).unwrap_err();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("token-file"), "{told:?}");
        let token = ("token-file", "/run/token");
        assert!(resolve(&[&open[..], &[token]].concat()).is_ok());
        // Senders may be let in without it, and readers may not.
        let told = resolve(&[&open[..], &[("otlp-open", "on")]].concat()).unwrap_err();
        assert!(told.len() == 1 && told[0].starts_with("--listen="), "{told:?}");
    }

    #[test]
    fn down_is_worse_than_degraded() {
        let told = resolve(&[("degraded-errors", "0.3"), ("down-errors", "0.2")]).unwrap_err();
        assert!(told.len() == 1 && told[0].starts_with("--down-errors="), "{told:?}");
        assert!(resolve(&[("degraded-errors", "0.3"), ("down-errors", "0.3")]).is_ok());
    }

    #[test]
    fn no_variable_looks_like_one_that_kubernetes_sets_for_a_service_of_this_name() {
        for row in FLOW_ROWS {
            for name in row.env {
                let rest = name.strip_prefix("THROUGHLINE_FLOW_").unwrap_or("");
                assert!(!rest.starts_with("PORT") && !rest.starts_with("SERVICE_"), "{name}");
            }
        }
    }
}
