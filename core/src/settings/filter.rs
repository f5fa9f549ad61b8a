//! Settings of the filter in Envoy: the sidecar's own, without those that are Envoy's business there, and some
//! that only make sense there.

use super::value::{self, number};
use super::{Compression, Exporter, Found, Mistake, ROWS, Row, Settings, Signal, Sources, Want, source};
use crate::classify::Direction;

/// Bytes of a body that the filter holds unless a setting says otherwise: well below the 1 MiB that Envoy
/// buffers by default, beyond which it would answer 413.
const HELD_BYTES_MAX: u64 = 768 * 1024;

/// Which exchanges a filter sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direct {
    /// What the listener's traffic direction says.
    Auto,
    /// This one.
    Fixed(Direction),
}

fn direct(text: &str) -> Result<Direct, Want> {
    let choices = [
        ("auto", Direct::Auto),
        ("inbound", Direct::Fixed(Direction::Inbound)),
        ("outbound", Direct::Fixed(Direction::Outbound)),
    ];
    value::choice(text, &choices)
}

/// A cluster's name travels in a message of its own, whose lengths have one byte.
fn cluster(text: &str) -> Result<String, Want> {
    match text.len() {
        0..=120 => Ok(text.to_owned()),
        _ => Err("the name of a cluster of 120 bytes at the most".into()),
    }
}

fn path(text: &str) -> Result<String, Want> {
    match text.starts_with('/') && text.is_ascii() && !text.contains(char::is_whitespace) {
        true => Ok(text.to_owned()),
        false => Err("a path such as /api/tracing/status".into()),
    }
}

super::settings! {
    /// Settings that only the filter has.
    Filter, FILTER_ROWS;
    "Filter in Envoy" {
        direction: Direct = "auto", direct, "direction", ["THROUGHLINE_DIRECTION"];
            "inbound (server spans), outbound (client spans), or auto: the listener's traffic_direction, which costs a look at each request."
        otlp_cluster: String = "otlp", cluster, "otlp-cluster", ["THROUGHLINE_OTLP_CLUSTER"];
            "Envoy's cluster that leads to the collector; TLS and timeouts of connecting are the cluster's. The host of otel-exporter-otlp-endpoint is what is written into :authority."
        hold_headers: bool = "off", value::switch, "hold-headers", ["THROUGHLINE_HOLD_HEADERS"];
            "on: the head of a request waits for the body, where messages are in it. Wants allow_on_headers_stop_iteration: true in the plugin's configuration (Envoy 1.35 or newer). off: bodies are left alone, and what was in them is counted."
        control_cluster: String = "", cluster, "control-cluster", ["THROUGHLINE_CONTROL_CLUSTER"];
            "Envoy's cluster that leads to a control endpoint, asked for modes and rules at run time. Unset: nobody is asked."
        control_path: String = "/api/tracing/status", path, "control-path", ["THROUGHLINE_CONTROL_PATH"];
            "Path of the control endpoint; it answers with the JSON of a sidecar's /api/tracing/status."
        control_interval_ms: u64 = "5000", number::<1000, 3_600_000>, "control-interval", ["THROUGHLINE_CONTROL_INTERVAL"];
            "Milliseconds between two questions to the control endpoint; one of the workers asks for all."
    }
}

/// Settings that are Envoy's own business where the filter runs.
pub(super) const OF_THE_SIDECAR: &[&str] = &[
    "capture",
    "inbound-listen",
    "inbound-upstream",
    "outbound-listen",
    "outbound-routes",
    "outbound-anywhere",
    "admin-listen",
    "probes",
    "graph-metrics",
    "pubsub-upstream",
    "pubsub-certificate",
    "otel-exporter-otlp-certificate",
    "otel-exporter-otlp-client-certificate",
    "otel-exporter-otlp-client-key",
    "otel-exporter-otlp-insecure",
    "connect-timeout",
    "response-timeout",
    "header-timeout",
    "idle-timeout",
    "stall-timeout",
    "pool-idle-timeout",
    "connections-max",
    "header-bytes-max",
    "header-fields-max",
    "streams-max",
    "drain-timeout",
    "access-log",
    "worker-threads",
];

/// Values that only the sidecar can follow.
const CONFLICTS: &[super::Conflict] = &[(
    |settings| settings.traces_exporter == Exporter::Console,
    "otel-traces-exporter",
    "otlp or none: a filter has no console",
)];

fn zips(settings: &Settings, signal: Signal) -> bool {
    settings.otlp(signal).compression == Compression::Gzip
}

impl Filter {
    /// Reads the sidecar's rows and the filter's from the sources. All mistakes are reported together.
    ///
    /// # Errors
    /// Every mistake.
    pub fn resolve(sources: &Sources) -> Result<Found<(Settings, Self)>, Vec<Mistake>> {
        let rows: Vec<Row> = ROWS.iter().chain(FILTER_ROWS).copied().collect();
        let mut reader = source::Reader::new(sources, &rows);
        for key in OF_THE_SIDECAR {
            reader
                .refuse(key, "no such key here: this is a setting of the sidecar, and Envoy's own business");
        }
        let settings = Settings::read(&mut reader);
        let filter = Self::read(&mut reader);
        let mut found = reader.finish(settings.zip(filter))?;
        let settings = &mut found.value.0;
        // Others read this variable too, and uncompressed spans arrive as well.
        if zips(settings, Signal::Traces) || zips(settings, Signal::Metrics) {
            (settings.otlp_compression, settings.otlp_traces_compression) = (Compression::None, None);
            settings.otlp_metrics_compression = None;
            found
                .warnings
                .push("otel-exporter-otlp-compression: left out, spans leave Envoy as they are".into());
        }
        if !sources.has(ROWS, "event-body-limit") {
            settings.event_body_bytes_max = HELD_BYTES_MAX;
        }
        let conflicts: Vec<Mistake> = CONFLICTS
            .iter()
            .filter(|(conflicts, ..)| conflicts(settings))
            .map(|(_, key, want)| sources.mistake(ROWS, key, want))
            .collect();
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        let unsupported: Vec<String> = settings.unsupported().collect();
        found.warnings.extend(unsupported);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(file: &[(&str, &str)], env: &[(&str, &str)]) -> Result<(Settings, Filter), Vec<String>> {
        let own =
            |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let sources = Sources {
            flags: Vec::new(),
            env: own(env),
            file: own(file),
            file_name: "the plugin configuration".into(),
        };
        let told = |mistakes: Vec<Mistake>| mistakes.iter().map(ToString::to_string).collect();
        Filter::resolve(&sources).map(|found| found.value).map_err(told)
    }

    #[test]
    fn nothing_has_to_be_set() {
        let (settings, filter) = resolve(&[], &[]).unwrap();
        assert_eq!((filter.direction, filter.otlp_cluster.as_str()), (Direct::Auto, "otlp"));
        assert_eq!(settings.event_body_bytes_max, HELD_BYTES_MAX);
        assert_eq!(resolve(&[("event-body-limit", "4096")], &[]).unwrap().0.event_body_bytes_max, 4096);
    }

    #[test]
    fn the_plugin_configuration_and_the_vms_environment_are_read() {
        let (settings, filter) = resolve(
            &[("direction", "inbound"), ("otel-traces-sampler", "always_off")],
            &[("OTEL_SERVICE_NAME", "orders"), ("OTEL_TRACES_SAMPLER", "always_on")],
        )
        .unwrap();
        assert_eq!(filter.direction, Direct::Fixed(Direction::Inbound));
        assert_eq!(settings.service().0, "orders");
        assert_eq!(
            settings.sampler,
            super::super::SamplerName::AlwaysOn,
            "the environment wins over the file"
        );
    }

    #[test]
    fn every_mistake_is_named() {
        let said = resolve(
            &[
                ("direction", "sideways"),
                ("inbound-listen", "127.0.0.1:1"),
                ("otel-traces-sampler-arg", "2"),
                ("otel-traces-samplr", "x"),
            ],
            &[],
        )
        .unwrap_err();
        assert_eq!(said.len(), 4, "{said:?}");
        let all = said.join("\n");
        for part in [
            "direction in the plugin configuration=\"sideways\": want one of auto, inbound, outbound",
            "inbound-listen in the plugin configuration",
            "did you mean otel-traces-sampler?",
            "want a ratio",
        ] {
            assert!(all.contains(part), "{part}: {all}");
        }
        assert!(resolve(&[("otel-traces-exporter", "console")], &[]).unwrap_err()[0].contains("no console"));
        let (settings, _) = resolve(&[("otel-exporter-otlp-compression", "gzip")], &[]).unwrap();
        assert_eq!(settings.otlp(Signal::Traces).compression, Compression::None);
    }

    #[test]
    fn every_key_that_is_the_sidecars_exists() {
        for key in OF_THE_SIDECAR {
            assert!(ROWS.iter().any(|row| row.key == *key), "{key}");
        }
        for row in FILTER_ROWS {
            assert!(!ROWS.iter().any(|other| other.key == row.key), "{}", row.key);
        }
    }
}
