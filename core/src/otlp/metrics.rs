//! The request histograms as OTLP `Metric`s: cumulative, explicit bounds, one data point a series.

use super::Attributes;
use super::wire::{LENGTH_DELIMITED, delimited, delimited_len, fixed64, head, tag, uint, varint};
use crate::classify::Direction;
use crate::metrics::{BOUNDS_SECONDS, Series};
use crate::names::{attribute, metric};

const METRICS: u8 = 2;
const DATA_POINTS: u8 = 1;
const CUMULATIVE: u64 = 2;

/// Collects series and renders them.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Data points by direction.
    points: [Vec<u8>; 2],
    scratch: Vec<u8>,
}

impl Metrics {
    /// Adds one series as a data point over the time from `start` to `now` (nanoseconds since 1970).
    pub fn add(&mut self, series: &Series<'_>, start_unix_nanos: u64, now_unix_nanos: u64) {
        let point = &mut self.scratch;
        point.clear();
        let mut attributes = Attributes::of_histogram_point(point);
        for (key, value) in &series.labels {
            attributes.text(key, value.as_bytes());
        }
        if let Some(status) = series.status {
            attributes.int(attribute::HTTP_RESPONSE_STATUS_CODE, u64::from(status));
        }
        if let Some(port) = series.port {
            attributes.int(attribute::SERVER_PORT, u64::from(port));
        }
        if series.overflow {
            attributes.flag(attribute::METRIC_OVERFLOW, true);
        }
        fixed64(point, 2, start_unix_nanos);
        fixed64(point, 3, now_unix_nanos);
        fixed64(point, 4, series.histogram.count());
        fixed64(point, 5, series.histogram.sum_seconds().to_bits());
        packed(point, 6, series.histogram.buckets.iter().copied());
        packed(point, 7, BOUNDS_SECONDS.iter().map(|bound| bound.to_bits()));
        if let Some(points) = self.points.get_mut(series.direction as usize) {
            delimited(points, DATA_POINTS, point);
        }
    }

    /// Both metrics as fields `ScopeMetrics.metrics`; empty when there is no data point.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (direction, points) in [Direction::Inbound, Direction::Outbound].into_iter().zip(&self.points) {
            if points.is_empty() {
                continue;
            }
            let (name, description) = match direction {
                Direction::Inbound => (metric::SERVER_DURATION, "Duration of inbound exchanges."),
                Direction::Outbound => (metric::CLIENT_DURATION, "Duration of outbound exchanges."),
            };
            let mut body = Vec::with_capacity(points.len() + 128);
            delimited(&mut body, 1, name.as_bytes());
            delimited(&mut body, 2, description.as_bytes());
            delimited(&mut body, 3, b"s");
            head(&mut body, 9, points.len() + 2);
            body.extend_from_slice(points);
            uint(&mut body, 2, CUMULATIVE);
            out.reserve(delimited_len(body.len()));
            delimited(&mut out, METRICS, &body);
        }
        out
    }
}

fn packed(out: &mut Vec<u8>, field: u8, words: impl ExactSizeIterator<Item = u64>) {
    out.push(tag(field, LENGTH_DELIMITED));
    varint(out, words.len() as u64 * 8);
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}
