//! Metrics pushed as OTLP: exact counts, cumulative, in seconds, in the buckets of the convention.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, HistogramDataPoint, Metric, metric, number_data_point,
};
use throughline_tests::prelude::*;
use throughline_tests::service::response;
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
            .environment(
                "OTEL_RESOURCE_ATTRIBUTES",
                if protocol == "grpc" { "" } else { "service.instance.id=pod-1" },
            )
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
        // Two replicas must not be taken for one, whatever the user called them.
        let resource = request.resource_metrics[0].resource.as_ref().expect("a resource");
        let ids: Vec<_> = resource.attributes.iter().filter(|one| one.key == "service.instance.id").collect();
        let [KeyValue { value: Some(id), .. }] = &ids[..] else { panic!("{resource:?}") };
        let named = protocol != "grpc";
        assert_eq!(format!("{id:?}").contains("pod-1"), named, "{id:?}");
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

/// Name, labels and count of a metric.
type Expected<'a> = (&'a str, &'a [(&'a str, &'a str)], u64);

fn whole(value: Option<number_data_point::Value>) -> u64 {
    match value {
        Some(number_data_point::Value::AsInt(count)) => u64::try_from(count).expect("a count"),
        other => panic!("{other:?} is no whole number"),
    }
}

/// The count of a metric's points, whatever they are, that have these attributes.
fn counted(request: &ExportMetricsServiceRequest, name: &str, wanted: &[(&str, &str)]) -> u64 {
    let has = |attributes: &[KeyValue]| {
        wanted.iter().all(|(key, value)| {
            let found = attributes.iter().find(|one| one.key == *key).and_then(|one| one.value.as_ref());
            found.is_some_and(|found| format!("{found:?}").contains(&format!("\"{value}\"")))
        })
    };
    let of = |metric: &Metric| -> u64 {
        match metric.data.as_ref().expect("points") {
            metric::Data::Sum(sum) => {
                assert!(
                    sum.is_monotonic && sum.aggregation_temporality() == AggregationTemporality::Cumulative
                );
                let points = sum.data_points.iter().filter(|point| has(&point.attributes));
                points.map(|point| whole(point.value)).sum()
            }
            metric::Data::Histogram(histogram) => histogram
                .data_points
                .iter()
                .filter(|point| has(&point.attributes))
                .map(|point| point.count)
                .sum(),
            metric::Data::ExponentialHistogram(histogram) => {
                assert_eq!(histogram.aggregation_temporality(), AggregationTemporality::Cumulative);
                histogram
                    .data_points
                    .iter()
                    .filter(|point| has(&point.attributes))
                    .map(|point| point.count)
                    .sum()
            }
            other => panic!("{name}: {other:?}"),
        }
    };
    named(request, name).into_iter().map(of).sum()
}

#[tokio::test]
async fn exponential_histograms_are_pushed_where_the_setting_asks_for_them() {
    let (collector, app) = (Collector::start().await, Service::playing(answer(200, "")).await);
    let sidecar = Plan::before("orders", app.address)
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint())
        .environment("OTEL_METRICS_EXPORTER", "otlp")
        .environment("OTEL_METRIC_EXPORT_INTERVAL", 200)
        .environment(
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
            "base2_exponential_bucket_histogram",
        )
        .environment("OTEL_TRACES_SAMPLER", "always_off")
        .start()
        .await;
    for _ in 0..20 {
        Ask::get(sidecar.url("/items/1")).send().await;
    }
    let request = collector.metrics_when("all requests", |request| counted(request, SERVER, &[]) == 20).await;
    for metric in named(&request, SERVER) {
        let Some(metric::Data::ExponentialHistogram(histogram)) = &metric.data else { panic!("{metric:?}") };
        for point in &histogram.data_points {
            let positive = point.positive.as_ref().expect("buckets");
            let counted: u64 = positive.bucket_counts.iter().sum();
            assert_eq!(point.count, counted + point.zero_count);
            // Nothing took more than a minute, nor less than a microsecond.
            let base = 2_f64.powf(2_f64.powi(-point.scale));
            let upper = base.powi(positive.offset + positive.bucket_counts.len() as i32);
            let lower = base.powi(positive.offset);
            assert!((3..=6).contains(&point.scale) && lower > 1e-6 && upper < 60.0, "{point:?}");
            let sum = point.sum.expect("a sum");
            assert!(sum >= lower * point.count as f64 && sum <= upper * point.count as f64, "{point:?}");
        }
    }
    sidecar.end().await;
}

/// On `/drops` it calls without the context, on `/restarts` with a trace of its own, on `/hands-on` with all that it got.
fn application(url: String) -> Script {
    const OTHER: &str = "00-99999999999999999999999999999999-8888888888888888-00";
    script(move |visit| {
        let call = match visit.request.uri().path() {
            "/drops" => Some(Ask::get(&url)),
            "/restarts" => Some(Ask::get(&url).header("traceparent", OTHER)),
            "/hands-on" => Some(Ask::get(&url).copied(Copying::Everything.from(visit.request.headers()))),
            _ => None,
        };
        async move {
            if let Some(call) = call {
                visit.outbound.send(call).await;
            }
            response(200, "{}")
        }
    })
}

#[tokio::test]
async fn what_becomes_of_contexts_and_messages_is_pushed_exactly() {
    let mesh = Mesh::new().await;
    let stock = Service::playing(answer(200, "{}")).await;
    let orders = mesh
        .pod("orders")
        .environment("OTEL_METRICS_EXPORTER", "otlp")
        .environment("OTEL_METRIC_EXPORT_INTERVAL", 200)
        .environment("OTEL_TRACES_SAMPLER", "parentbased_always_off")
        .runs(application(stock.url("/items")))
        .await;
    let parent = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-00";
    for (path, times) in [("/drops", 3), ("/hands-on", 2), ("/restarts", 4)] {
        for _ in 0..times {
            Ask::get(orders.url(path)).header("traceparent", parent).send().await;
        }
    }
    Ask::get(orders.url("/plain")).header("traceparent", "00-zz").send().await;
    let json = ("content-type", "application/json");
    let push = r#"{"message":{"data":"aGk=","messageId":"7","publishTime":"2025-11-20T00:53:15Z"},"subscription":"projects/p/subscriptions/shipping"}"#;
    for _ in 0..5 {
        Ask::post(orders.url("/push"), push).header(json.0, json.1).send().await;
    }
    let topic = stock.url("/v1/projects/p/topics/orders:publish");
    let publish = Ask::post(topic, r#"{"messages":[{"data":"aGk="},{"data":"aGk="}]}"#);
    let publish = publish.header(json.0, json.1).header("x-operation-name", "checkout");
    publish.via(orders.sidecar.outbound()).send().await;

    let shipping = ("messaging.destination.subscription.name", "shipping");
    let expected: [Expected<'_>; 9] = [
        ("throughline.context.dropped", &[("http.route", "/drops")], 3),
        ("throughline.context.forwarded", &[("http.route", "/hands-on")], 2),
        ("throughline.calls_without_context", &[], 3),
        ("throughline.calls_of_other_traces", &[], 4),
        ("throughline.context.invalid", &[("header", "traceparent")], 1),
        ("messaging.client.consumed.messages", &[shipping, ("messaging.operation.name", "process")], 5),
        ("messaging.process.duration", &[shipping], 5),
        ("throughline.message.lag", &[shipping, ("messaging.system", "gcp_pubsub")], 5),
        (
            "messaging.client.sent.messages",
            &[("messaging.destination.name", "orders"), ("app.operation.name", "checkout")],
            2,
        ),
    ];
    let request = mesh
        .collector
        .metrics_when("all numbers", |request| {
            expected.iter().all(|(name, labels, count)| counted(request, name, labels) == *count)
        })
        .await;
    for (name, _, count) in expected {
        assert_eq!(counted(&request, name, &[]), count, "{name}: nothing under other labels");
    }
    assert!(mesh.end([orders]).await.is_empty(), "nothing was sampled");
}
