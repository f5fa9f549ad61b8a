//! Pushed metrics as `opentelemetry-proto` reads them: one line a point, so that a test says what it expects in words.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, ExponentialHistogramDataPoint, HistogramDataPoint, metric::Data,
    number_data_point,
};
use prost::Message as _;
use throughline_core::exchange::Tracer;
use throughline_core::otlp::request::Envelope;

use crate::harness::text_in;

/// One point of a metric.
#[derive(Debug)]
pub(crate) struct Pushed {
    pub(crate) name: String,
    pub(crate) unit: String,
    attributes: Vec<KeyValue>,
    pub(crate) numbers: Numbers,
}

#[derive(Debug)]
pub(crate) enum Numbers {
    Sum(u64),
    Explicit(HistogramDataPoint),
    Exponential(ExponentialHistogramDataPoint),
}

impl Pushed {
    /// An attribute; `-` when it is missing.
    pub(crate) fn text(&self, key: &str) -> String {
        text_in(&self.attributes, key)
    }

    pub(crate) fn count(&self) -> u64 {
        match &self.numbers {
            Numbers::Sum(count) => *count,
            Numbers::Explicit(point) => point.count,
            Numbers::Exponential(point) => point.count,
        }
    }

    /// `name{key=value key=value} count`, keys without what is before their last dot.
    pub(crate) fn line(&self) -> String {
        let short = |key: &str| key.rsplit('.').next().unwrap().to_owned();
        let labels = self.attributes.iter().map(|one| format!("{}={}", short(&one.key), self.text(&one.key)));
        format!("{}{{{}}} {}", self.name, labels.collect::<Vec<_>>().join(" "), self.count())
    }
}

/// Everything that is pushed, over the time from 3 to 9.
pub(crate) fn pushed(tracer: &Tracer) -> Vec<Pushed> {
    let metrics = tracer.otlp_metrics(3, 9);
    let mut bytes = Envelope::new([("service.name", "orders")]).prefix(metrics.len());
    bytes.extend_from_slice(&metrics);
    let request = ExportMetricsServiceRequest::decode(bytes.as_slice()).unwrap();
    assert_eq!(ExportMetricsServiceRequest::decode(request.encode_to_vec().as_slice()).unwrap(), request);
    let cumulative = AggregationTemporality::Cumulative as i32;
    let mut found = Vec::new();
    for metric in &request.resource_metrics[0].scope_metrics[0].metrics {
        assert!(!metric.description.is_empty(), "{}", metric.name);
        let mut add = |attributes: &[KeyValue], times, numbers| {
            assert_eq!(times, (3, 9), "{}", metric.name);
            let (name, unit) = (metric.name.clone(), metric.unit.clone());
            found.push(Pushed { name, unit, attributes: attributes.to_vec(), numbers });
        };
        match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => {
                assert!(sum.is_monotonic && sum.aggregation_temporality == cumulative, "{}", metric.name);
                for point in &sum.data_points {
                    let Some(number_data_point::Value::AsInt(value)) = point.value else {
                        panic!("{point:?}")
                    };
                    let times = (point.start_time_unix_nano, point.time_unix_nano);
                    add(&point.attributes, times, Numbers::Sum(value as u64));
                }
            }
            Data::Histogram(histogram) => {
                assert_eq!(histogram.aggregation_temporality, cumulative);
                for point in &histogram.data_points {
                    assert_eq!(point.count, point.bucket_counts.iter().sum::<u64>());
                    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
                    let times = (point.start_time_unix_nano, point.time_unix_nano);
                    add(&point.attributes, times, Numbers::Explicit(point.clone()));
                }
            }
            Data::ExponentialHistogram(histogram) => {
                assert_eq!(histogram.aggregation_temporality, cumulative);
                for point in &histogram.data_points {
                    let positive = point.positive.as_ref().unwrap();
                    let counted = positive.bucket_counts.iter().sum::<u64>();
                    assert_eq!(point.count, point.zero_count + counted);
                    assert!(point.negative.is_none() && point.zero_threshold == 0.0, "{point:?}");
                    let times = (point.start_time_unix_nano, point.time_unix_nano);
                    add(&point.attributes, times, Numbers::Exponential(point.clone()));
                }
            }
            other => panic!("{other:?}"),
        }
    }
    let mut names: Vec<&str> = found.iter().map(|point| point.name.as_str()).collect();
    names.dedup();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all, "a metric stands once");
    found
}

/// The lines of all metrics of this name, or of names that begin so.
pub(crate) fn lines(tracer: &Tracer, name: &str) -> Vec<String> {
    pushed(tracer).iter().filter(|point| point.name.starts_with(name)).map(Pushed::line).collect()
}
