//! Writes pushes as a sidecar does, by the messages of `opentelemetry-proto`.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, ExponentialHistogram, ExponentialHistogramDataPoint, Histogram,
    HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
    exponential_histogram_data_point::Buckets, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use throughline_flow::numbers::{Figures, Filter, Graph, Numbers, Options, Window};

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const MINUTE: u64 = 60 * SECOND;
/// A full hour.
pub(crate) const START: u64 = 1_763_600_400_000_000_000;
pub(crate) const BOUNDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// A small generator, so that every run draws the same.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }
}

pub(crate) fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

pub(crate) fn text(key: &str, value: &str) -> KeyValue {
    pair(key, Value::StringValue(value.to_owned()))
}

/// Durations that a sender counted, with the sum.
#[derive(Clone, Default, Debug)]
pub(crate) struct Durations {
    pub(crate) nanos: Vec<u64>,
}

pub(crate) fn resource(service: &str, more: &[(&str, &str)]) -> Resource {
    let own = [("service.name", service), ("service.namespace", "shop")];
    let attributes = own.iter().chain(more).map(|(key, value)| text(key, value)).collect();
    Resource { attributes, ..Resource::default() }
}

pub(crate) fn request(resource: Resource, scope: &str, metrics: Vec<Metric>) -> Vec<u8> {
    let scope = InstrumentationScope { name: scope.to_owned(), ..InstrumentationScope::default() };
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
    let of_resource =
        ResourceMetrics { resource: Some(resource), scope_metrics, ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![of_resource] }.encode_to_vec()
}

pub(crate) fn explicit(
    attributes: Vec<KeyValue>,
    start: u64,
    time: u64,
    durations: &Durations,
) -> HistogramDataPoint {
    let mut counts = vec![0; BOUNDS.len() + 1];
    for nanos in &durations.nanos {
        counts[BOUNDS.partition_point(|bound| *bound < *nanos as f64 / 1e9)] += 1;
    }
    HistogramDataPoint {
        attributes,
        start_time_unix_nano: start,
        time_unix_nano: time,
        count: durations.nanos.len() as u64,
        sum: Some(durations.nanos.iter().sum::<u64>() as f64 / 1e9),
        bucket_counts: counts,
        explicit_bounds: BOUNDS.to_vec(),
        ..HistogramDataPoint::default()
    }
}

pub(crate) fn exponential(
    attributes: Vec<KeyValue>,
    start: u64,
    time: u64,
    durations: &Durations,
    scale: i32,
) -> ExponentialHistogramDataPoint {
    let index = |nanos: u64| ((nanos as f64 / 1e9).log2() * f64::from(scale).exp2()).ceil() as i32 - 1;
    let all: Vec<i32> =
        durations.nanos.iter().filter(|nanos| **nanos > 0).map(|nanos| index(*nanos)).collect();
    let offset = all.iter().copied().min().unwrap_or(0);
    let width = all.iter().copied().max().unwrap_or(0) - offset + 1;
    let mut bucket_counts = vec![0; usize::try_from(width).unwrap()];
    for index in &all {
        bucket_counts[usize::try_from(index - offset).unwrap()] += 1;
    }
    ExponentialHistogramDataPoint {
        attributes,
        start_time_unix_nano: start,
        time_unix_nano: time,
        count: durations.nanos.len() as u64,
        sum: Some(durations.nanos.iter().sum::<u64>() as f64 / 1e9),
        scale,
        zero_count: (durations.nanos.len() - all.len()) as u64,
        positive: Some(Buckets { offset, bucket_counts }),
        ..ExponentialHistogramDataPoint::default()
    }
}

pub(crate) fn histogram(
    name: &str,
    points: Vec<HistogramDataPoint>,
    temporality: AggregationTemporality,
) -> Metric {
    let histogram = Histogram { data_points: points, aggregation_temporality: temporality as i32 };
    Metric {
        name: name.to_owned(),
        unit: "s".to_owned(),
        data: Some(Data::Histogram(histogram)),
        ..Metric::default()
    }
}

pub(crate) fn exponential_histogram(name: &str, points: Vec<ExponentialHistogramDataPoint>) -> Metric {
    let aggregation_temporality = AggregationTemporality::Cumulative as i32;
    let histogram = ExponentialHistogram { data_points: points, aggregation_temporality };
    let data = Some(Data::ExponentialHistogram(histogram));
    Metric { name: name.to_owned(), unit: "s".to_owned(), data, ..Metric::default() }
}

pub(crate) fn sum(name: &str, attributes: Vec<KeyValue>, start: u64, time: u64, value: i64) -> Metric {
    let point = NumberDataPoint {
        attributes,
        start_time_unix_nano: start,
        time_unix_nano: time,
        value: Some(number_data_point::Value::AsInt(value)),
        ..NumberDataPoint::default()
    };
    let aggregation_temporality = AggregationTemporality::Cumulative as i32;
    let sum = Sum { data_points: vec![point], aggregation_temporality, is_monotonic: true };
    Metric { name: name.to_owned(), data: Some(Data::Sum(sum)), ..Metric::default() }
}

pub(crate) fn numbers() -> Numbers {
    Numbers::new(Options { seed: 7, shards: 2, ..Options::default() }, START)
}

pub(crate) fn window(minutes: u64) -> Window {
    Window { start_unix_nanos: START, end_unix_nanos: START + minutes * MINUTE }
}

pub(crate) fn whole() -> Window {
    Window { start_unix_nanos: START - 60 * MINUTE, end_unix_nanos: START + 48 * 60 * MINUTE }
}

pub(crate) fn graph(numbers: &Numbers, operation: Option<&str>) -> std::sync::Arc<Graph> {
    numbers.graph(&Filter { operation, ..Filter::default() }, whole())
}

pub(crate) fn edge(graph: &Graph, from: &str, to: &str) -> Option<Figures> {
    graph.edges.iter().find(|edge| edge.from == from && edge.to == to).map(|edge| edge.figures)
}

/// Requests and errors of an edge.
pub(crate) fn counts(graph: &Graph, from: &str, to: &str) -> (u64, u64) {
    edge(graph, from, to).map_or((0, 0), |figures| (figures.requests, figures.errors))
}
