//! Metrics pushed as OTLP: exact counts, cumulative, in seconds, in the buckets of the convention.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, HistogramDataPoint, Metric, metric};
use throughline_tests::prelude::*;
use throughline_tests::sidecar::Plan;

const BOUNDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

fn named<'a>(request: &'a ExportMetricsServiceRequest, name: &str) -> Vec<&'a Metric> {
    let scopes = request.resource_metrics.iter().flat_map(|resource| &resource.scope_metrics);
    scopes.flat_map(|scope| &scope.metrics).filter(|metric| metric.name == name).collect()
}

fn points<'a>(request: &'a ExportMetricsServiceRequest, name: &str) -> Vec<&'a HistogramDataPoint> {
    let metrics = named(request, name).into_iter();
    metrics
        .flat_map(|metric| match &metric.data {
            Some(metric::Data::Histogram(histogram)) => {
                assert_eq!(histogram.aggregation_temporality(), AggregationTemporality::Cumulative);
                assert_eq!(metric.unit, "s");
                &histogram.data_points
            }
            other => panic!("{name} is no histogram: {other:?}"),
        })
        .collect()
}

fn total(request: &ExportMetricsServiceRequest, name: &str) -> u64 {
    points(request, name).iter().map(|point| point.count).sum()
}

const SERVER: &str = "http.server.request.duration";
const CLIENT: &str = "http.client.request.duration";

#[tokio::test]
async fn request_durations_are_pushed_with_exact_counts() {
    for protocol in ["grpc", "http/protobuf"] {
        let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
        let sidecar = Plan::before("orders", app.address)
            .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
            .environment("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            .environment("OTEL_METRICS_EXPORTER", "otlp")
            .environment("OTEL_METRIC_EXPORT_INTERVAL", 200)
            .environment("OTEL_TRACES_SAMPLER", "always_off")
            .start()
            .await;
        for number in 0..9 {
            let operation = if number < 6 { "checkout" } else { "refund" };
            Ask::get(sidecar.url("/items/1")).header("x-operation-name", operation).send().await;
        }
        Ask::get(app.url("/out")).via(sidecar.outbound()).send().await;
        let request = collector
            .metrics_when("ten requests in the metrics", |request| {
                total(request, SERVER) == 9 && total(request, CLIENT) == 1
            })
            .await;
        for point in points(&request, SERVER).into_iter().chain(points(&request, CLIENT)) {
            assert_eq!(point.explicit_bounds, BOUNDS);
            assert_eq!(point.bucket_counts.len(), 15);
            assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
            assert!(point.sum.is_some_and(|sum| sum > 0.0 && sum < 60.0), "{point:?}");
            assert!(point.start_time_unix_nano > 0 && point.time_unix_nano >= point.start_time_unix_nano);
        }
        let checkout: u64 = points(&request, SERVER)
            .iter()
            .filter(|point| format!("{:?}", point.attributes).contains("checkout"))
            .map(|point| point.count)
            .sum();
        assert_eq!(checkout, 6);
        // Cumulative: further requests add to what was said before.
        Ask::get(sidecar.url("/items/2")).send().await;
        collector.metrics_when("one more", |request| total(request, SERVER) == 10).await;
        sidecar.end().await;
    }
}

#[tokio::test]
async fn the_last_numbers_are_pushed_before_the_end() {
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let sidecar = Plan::before("orders", app.address)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .environment("OTEL_METRICS_EXPORTER", "otlp")
        .environment("OTEL_METRIC_EXPORT_INTERVAL", 60_000)
        .start()
        .await;
    for _ in 0..3 {
        Ask::get(sidecar.url("/")).send().await;
    }
    sidecar.end().await;
    collector.metrics_when("the last numbers", |request| total(request, SERVER) == 3).await;
}

#[tokio::test]
async fn metrics_may_go_elsewhere() {
    let (traces, metrics) = (Collector::start().await, Collector::start().await);
    let app = Service::playing(answer(200, "")).await;
    let sidecar = Plan::before("orders", app.address)
        .environment("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", traces.endpoint())
        .environment("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", format!("{}/v1/metrics", metrics.endpoint()))
        .environment("OTEL_METRICS_EXPORTER", "otlp")
        .environment("OTEL_METRIC_EXPORT_INTERVAL", 100)
        .start()
        .await;
    Ask::get(sidecar.url("/")).send().await;
    metrics.metrics_when("the request", |request| total(request, SERVER) == 1).await;
    traces.spans(1).await;
    assert!(metrics.accepted().is_empty());
    sidecar.end().await;
}
