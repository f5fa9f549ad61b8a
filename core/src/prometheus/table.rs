//! Every metric of the sidecar, as Prometheus names it, in one table. `/metrics`, the reference page, and the tests of
//! dashboards and alerts come from it. The names of the request metrics and their labels are OpenTelemetry's, those of
//! the service graph Grafana's.

use std::fmt::Write as _;

/// What kind of numbers a metric has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Type {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by bucket, with `_bucket`, `_sum` and `_count`.
    Histogram,
    /// Always 1: the labels say it.
    Info,
}

impl Type {
    /// The word of the text format.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name in the text format.
    pub name: &'static str,
    /// What numbers it has.
    pub kind: Type,
    /// Its labels; one without a value is left out of a series.
    pub labels: &'static [&'static str],
    /// What it is for.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($section:literal { $($name:ident: $kind:ident $text:literal [$($label:literal),*] $help:literal)* })*) => {
        $($(
            #[doc = $help]
            pub const $name: Metric =
                Metric { name: $text, kind: Type::$kind, labels: &[$($label),*], help: $help };
        )*)*
        /// All of them, by section.
        pub const SECTIONS: &[(&str, &[Metric])] = &[$(($section, &[$($name),*])),*];
    };
}

metrics! {
    "Requests" {
        SERVER_DURATION: Histogram "http_server_request_duration_seconds" ["http_request_method", "http_route", "url_scheme", "app_operation_name", "throughline_peer_service", "throughline_peer_namespace", "error_type", "rpc_system_name", "messaging_operation_type", "http_response_status_code", "otel_metric_overflow"]
            "Duration of inbound exchanges."
        CLIENT_DURATION: Histogram "http_client_request_duration_seconds" ["http_request_method", "http_route", "app_operation_name", "throughline_peer_service", "throughline_peer_namespace", "server_address", "server_port", "error_type", "rpc_system_name", "messaging_operation_type", "http_response_status_code", "otel_metric_overflow"]
            "Duration of outbound exchanges. http_route is the full method of a gRPC call."
    }
    "Messages" {
        MESSAGES_SENT: Counter "messaging_client_sent_messages_total" ["messaging_system", "messaging_operation_name", "messaging_destination_name", "cloudevents_event_type", "app_operation_name", "error_type", "otel_metric_overflow"]
            "Messages and events that the application published."
        MESSAGES_CONSUMED: Counter "messaging_client_consumed_messages_total" ["messaging_system", "messaging_operation_name", "messaging_destination_subscription_name", "cloudevents_event_type", "app_operation_name", "error_type", "otel_metric_overflow"]
            "Messages and events that were delivered to the application: pulled (receive) or pushed (process)."
        PROCESS_DURATION: Histogram "messaging_process_duration_seconds" ["messaging_system", "messaging_operation_name", "messaging_destination_subscription_name", "cloudevents_event_type", "app_operation_name", "error_type", "otel_metric_overflow"]
            "Duration of the application's answer to what was pushed to it. A batch is one."
        MESSAGE_LAG: Histogram "throughline_message_lag_seconds" ["messaging_system", "messaging_operation_name", "messaging_destination_subscription_name", "app_operation_name", "otel_metric_overflow"]
            "From the publish of a message, by the service's clock, to its delivery, by the sidecar's."
    }
    "Service graph" {
        GRAPH_REQUESTS: Counter "traces_service_graph_request_total" ["client", "server", "connection_type"]
            "Requests between two services, each told by one of them: by the server's sidecar where it knows the client, else by the client's."
        GRAPH_FAILED: Counter "traces_service_graph_request_failed_total" ["client", "server", "connection_type"]
            "Requests between two services that failed."
        GRAPH_SERVER: Histogram "traces_service_graph_request_server_seconds" ["client", "server", "connection_type"]
            "Duration of requests between two services as the server saw them."
        GRAPH_CLIENT: Histogram "traces_service_graph_request_client_seconds" ["client", "server", "connection_type"]
            "Duration of requests between two services as the client saw them."
        SPAN_CALLS: Counter "traces_spanmetrics_calls_total" ["service", "span_name", "span_kind", "status_code"]
            "Exchanges by the name that their span has, or would have if it were sampled."
        SPAN_LATENCY: Histogram "traces_spanmetrics_latency" ["service", "span_name", "span_kind", "status_code"]
            "Duration in seconds of exchanges by the name of their span."
    }
    "Spans" {
        SPANS_CREATED: Counter "throughline_spans_created_total" ["kind"]
            "Spans finished."
        SPANS_EXPORTED: Counter "throughline_spans_exported_total" []
            "Spans that a collector took."
        SPANS_HELD: Gauge "throughline_spans_held" []
            "Spans waiting or under way."
        SPANS_DROPPED: Counter "throughline_spans_dropped_total" ["reason"]
            "Spans lost."
        SPANS_MAYBE_TWICE: Counter "throughline_spans_maybe_twice_total" []
            "Spans sent again after an attempt whose answer never came: the collector may have them twice."
        EXPORTS: Counter "throughline_exports_total" ["signal", "result"]
            "Exports."
    }
    "Sampling" {
        MODE: Gauge "throughline_tracing_mode" ["mode"]
            "1 for the mode that holds."
        MODE_CONFIGURED: Gauge "throughline_tracing_mode_configured" ["mode"]
            "1 for the mode that the settings say."
        BASE_RATE: Gauge "throughline_sampling_base_rate" []
            "Share of new traces that the sampler takes."
        RATE: Gauge "throughline_sampling_rate" []
            "Share of new traces that is sampled at this moment."
        ADAPTIVE: Gauge "throughline_adaptive_active" []
            "1 while too much is slow or fails."
        RULES: Gauge "throughline_on_demand_rules_active" []
            "On-demand rules that have not ended."
        RECORDED: Counter "throughline_exchanges_recorded_total" []
            "Exchanges that became spans."
        KEPT: Counter "throughline_exchanges_kept_total" ["reason"]
            "Exchanges kept although the head said no."
        OVER_BUDGET: Counter "throughline_over_budget_total" []
            "Exchanges that the bound of spans a second left out."
        PROBES: Counter "throughline_probes_total" []
            "Requests of kubelet's probes, which are not traced."
    }
    "Propagation" {
        CONTEXT_FORWARDED: Counter "throughline_context_forwarded_total" ["route"]
            "Inbound exchanges with outbound requests that carried the context."
        CONTEXT_DROPPED: Counter "throughline_context_dropped_total" ["route"]
            "Inbound exchanges whose outbound requests carried no context."
        CONTEXT_INVALID: Counter "throughline_context_invalid_total" ["header"]
            "Propagation headers that were unusable."
        CONTEXT_RESTORED: Counter "throughline_context_restored_total" []
            "Outbound requests on which the sidecar restored what the application did not forward."
        CALLS_WITHOUT_CONTEXT: Counter "throughline_calls_without_context_total" []
            "Outbound requests without context made while inbound ones were in flight."
        CALLS_OF_OTHER_TRACES: Counter "throughline_calls_of_other_traces_total" []
            "Outbound requests with the context of a trace that none of the inbound exchanges in flight has, while there were some: the application began a trace of its own, or works on something else beside."
        OPERATIONS_IGNORED: Counter "throughline_operations_ignored_total" []
            "Operation names that break the rule and were left alone."
        EVENTS_UNTOUCHED: Counter "throughline_events_untouched_total" ["reason"]
            "Bodies and messages that went on as they were although they may hold events."
        IN_FLIGHT: Gauge "throughline_in_flight" []
            "Inbound exchanges in flight."
        IN_FLIGHT_FULL: Counter "throughline_in_flight_full_total" []
            "Inbound exchanges that found no place among those in flight."
    }
    "Browsers" {
        PAGES_TRACES: Counter "throughline_browser_traces_total" ["result"]
            "Traces with which requests of pages of the same origin asked to go on."
        PAGES_BODIES: Counter "throughline_browser_bodies_total" ["result"]
            "Bodies with spans that pages sent, or who claimed to be one."
        PAGES_SPANS: Counter "throughline_browser_spans_total" ["result"]
            "Spans in these bodies."
        PAGES_ATTRIBUTES_DROPPED: Counter "throughline_browser_attributes_dropped_total" []
            "Attributes of these spans that are on no list, or have no value of their kind."
        PAGES_TRACES_HELD: Gauge "throughline_browser_traces_held" []
            "Traces of pages that are remembered."
    }
    "Connections" {
        CONNECTIONS: Counter "throughline_connections_total" ["side", "protocol"]
            "Connections accepted, by what they speak."
        CONNECTIONS_OPEN: Gauge "throughline_connections_open" ["side"]
            "Connections open."
        CONNECTIONS_MAX: Gauge "throughline_connections_max" ["side"]
            "Connections that may be open at once."
        CONNECTIONS_REAPED: Counter "throughline_connections_reaped_total" ["reason"]
            "Connections closed by the sidecar."
        REQUESTS_REFUSED: Counter "throughline_requests_refused_total" ["reason"]
            "Requests answered by the sidecar itself: illegal, or not allowed."
        CONNECTS: Counter "throughline_connects_total" ["result"]
            "CONNECT requests on the outbound side."
        CAPTURED: Counter "throughline_captured_connections_total" ["side", "result"]
            "Connections in transparent capture: gone on to where they were going, refused because that is the sidecar itself, or failed to connect."
        CAPTURE_LEASE: Gauge "throughline_capture_lease" ["family"]
            "1 while the kernel takes the sidecar's heartbeat: connections are redirected to it."
        TLS_CONNECTIONS: Counter "throughline_tls_connections_total" ["side", "server_name"]
            "TLS connections that passed in transparent capture, by the name that the client asked for."
        TUNNEL_BYTES: Counter "throughline_tunnel_bytes_total" []
            "Bytes that passed untouched because they are no cleartext HTTP, both ways."
        ACCESS_LOG_DROPPED: Counter "throughline_access_log_dropped_total" []
            "Lines of the access log that were dropped because standard output was too slow."
    }
    "Process" {
        BUILD: Info "throughline_build_info" ["version"]
            "Version of this sidecar."
        TARGET: Info "target_info" ["service_name", "service_namespace", "service_instance_id"]
            "The resource that the spans name too."
        PROCESS_CPU: Counter "process_cpu_seconds_total" []
            "CPU time of the sidecar, in seconds."
        PROCESS_RSS: Gauge "process_resident_memory_bytes" []
            "Resident memory of the sidecar."
        PROCESS_START: Gauge "process_start_time_seconds" []
            "When the sidecar began, in seconds since 1970."
        PROCESS_FDS: Gauge "process_open_fds" []
            "Open file descriptors of the sidecar."
    }
}

/// Every metric.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    SECTIONS.iter().flat_map(|(_, metrics)| metrics.iter())
}

/// The reference page, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = String::from(INTRODUCTION);
    for (section, metrics) in SECTIONS {
        let _ = write!(
            page,
            "\n## {section}\n\n| metric | type | labels | what it counts |\n|---|---|---|---|\n"
        );
        for Metric { name, kind, labels, help } in *metrics {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            let _ = writeln!(page, "| `{name}` | {} | {} | {help} |", kind.as_str(), labels.join(", "));
        }
    }
    page.push_str(NOTES);
    page
}

const INTRODUCTION: &str = "# Metrics

Generated from the table in `core/src/prometheus/table.rs` by `throughline-proxy --print-metrics`.
What `GET /metrics` of the admin port has: Prometheus' text format, or OpenMetrics for a scraper that asks for it.
`deploy/grafana/` has a dashboard and alerts that read them. What [OTLP](#otlp) has is pushed too.
";

const NOTES: &str = "
## Scraping, dashboard, alerts

The admin port is on loopback unless `admin-listen` says otherwise. For a Prometheus elsewhere: `0.0.0.0:15190`. From
other hosts nobody can drain the sidecar then, and only who has the token can change tracing.

- `deploy/grafana/throughline.json`: import it, or put it where a provider of Grafana's `provisioning/dashboards` looks.
  It asks for the Prometheus to read; `job` and `instance` are those of the scrape.
- `deploy/grafana/alerts.yaml`: a file of `rule_files` for Prometheus. The annotation `action` says what to do.

## Bounds

A label that has no value is left out of a series. Everything that comes from the wire is bounded; what is over a bound
still counts, in a series that says so, so sums stay exact.

| what | bound | beyond it |
|---|---|---|
| routes | `routes-max`, 200 | no route names them |
| operations | 200 | `_other` |
| peers | 500 | `_other` |
| hosts and ports of outbound requests | 200 | `_other`, without a port |
| `error_type` | 100 | `_other` |
| methods | those of RFC 9110 and `PATCH` | `_OTHER` |
| series of both request metrics together | 2000 | one series for each direction: `otel_metric_overflow=\"true\"` |
| topics, subscriptions and types of events | 200 | `_other` |
| series of all metrics of messages together | 500 | one series for each metric: `otel_metric_overflow=\"true\"` |
| names that TLS clients ask for, on each side | 100 | `_other` |
| pairs of services in the service graph | 300 | `_other` |
| names of spans | 500 | `_other` |

A series of a duration is 17 of Prometheus': 15 buckets, a sum and a count.

## Exemplars

In OpenMetrics, a bucket of a request duration may carry the trace id and the span id of the newest exchange of its
series that became a span. Prometheus keeps them with `--enable-feature=exemplar-storage`.

## OTLP

With `otel-metrics-exporter=otlp` these are pushed: cumulative, with the start of the process as their start. Names and
labels are those of this page with dots where OpenTelemetry has dots, without `_total` and `_seconds`, in seconds. What is
0 is left out. The resource has the `service.instance.id` that the user gave, else a random one: two replicas are never taken
for one.

| pushed | as on this page |
|---|---|
| `http.server.request.duration`, `http.client.request.duration` | Requests |
| `messaging.client.sent.messages`, `messaging.client.consumed.messages`, `messaging.process.duration`, `throughline.message.lag` | Messages |
| `throughline.context.forwarded`, `.dropped`, by `http.route` | Propagation, by `route` |
| `throughline.context.invalid`, `.restored`, `throughline.calls_without_context`, `.calls_of_other_traces`, `.operations_ignored`, `.events_untouched` | Propagation |

`otel-exporter-otlp-metrics-default-histogram-aggregation=base2_exponential_bucket_histogram` pushes histograms with
exponential buckets, whose quantiles are within 0.54 % of what was measured while the slowest of a series takes up to
1,000 times as long as the fastest, and within 1.08 % up to 1,000,000 times: the scale of a series begins at 6, and falls
by one when its range outgrows 640 buckets. A series holds 4 bytes for each bucket of its range, 2.5 KiB at the most.
`/metrics` has the explicit bounds either way, and counts and sums are the same.

## Messages

What the sidecar reads in bodies and heads is counted, sampled or not: Pub/Sub's publish, pull, StreamingPull and push,
and CloudEvents by HTTP, which have no `messaging_system` and are named by their type. In the modes `off` and
`system-only` bodies are not read, so none are counted; nor are those that can't be read
(`throughline_events_untouched_total`). What a publisher sends again counts again.

## Service graph

The numbers are those of every exchange, sampled or not. A request between two services that both have a sidecar is
told once, by the server's: its durations are in `_server_seconds`, the client's in `_client_seconds` of the other
sidecar. A service without a sidecar is a `virtual_node`, called by the name that the request had; who calls without
one is `user`, or `broker` for messages, whose `connection_type` is `messaging_system`. In the modes `off` and
`system-only` sidecars do not name themselves to each other, so every edge is one of a `virtual_node`. Exchanges of
messages count under the name that their request would have; what overflowed counts as `_other` and never as failed.

Tempo's metrics generator and the collector's connectors make metrics of the same names from spans. Have one of them:
`graph-metrics=off` leaves ours out.

## The filter in Envoy

Its counters are in Envoy's own statistics, under the names of this page without `_total` and with Envoy's labels:
`docs/envoy.md` lists them. It has no request durations there, since Envoy has its own (`envoy_http_downstream_rq_time`,
`envoy_cluster_upstream_rq_time`), nor those of messages; these, and durations by operation, route and peer, are pushed by
OTLP. Counts are those of one worker, whose `service.instance.id` is its own: the sum of all is the proxy's.
";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_legal_and_say_their_type() {
        let mut names = BTreeSet::new();
        for metric in all() {
            let Metric { name, kind, labels, help } = metric;
            assert!(names.insert(name), "{name} twice");
            assert_eq!(name.ends_with("_total"), *kind == Type::Counter, "{name}");
            assert_eq!(name.ends_with("_info"), *kind == Type::Info, "{name}");
            let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(plain(name) && labels.iter().all(|label| plain(label)), "{name} {labels:?}");
            assert!(reference().contains(&format!("`{name}`")));
            assert!(help.ends_with('.') && !help.contains(['\n', '\\', '|']), "{name}: {help}");
        }
    }
}
