//! Metrics as OTLP `Metric`s: histograms with explicit bounds or exponential buckets, and sums. All are cumulative, one
//! data point a series.

use super::Attributes;
use super::wire::{
    FIXED64, LENGTH_DELIMITED, delimited, delimited_len, fixed64, head, tag, uint, varint, varint_len,
};
use crate::metrics::{Bounds, Histogram, Shown};
use crate::names::attribute;

const METRICS: u8 = 2;
const DATA_POINTS: u8 = 1;
const TEMPORALITY: u8 = 2;
const CUMULATIVE: u64 = 2;
const MONOTONIC: u8 = 3;
/// The fields of `Metric` by the kind of its points.
const SUM: u8 = 7;
const HISTOGRAM: u8 = 9;
const EXPONENTIAL: u8 = 10;

/// Renders metrics, one after the other: the points first, then what they are.
#[derive(Debug)]
pub(crate) struct Metrics {
    start_unix_nanos: u64,
    now_unix_nanos: u64,
    out: Vec<u8>,
    /// Of the metric under way.
    points: Vec<u8>,
    kind: u8,
    point: Vec<u8>,
}

impl Metrics {
    /// Over the time from `start` to `now` (nanoseconds since 1970).
    pub(crate) fn new(start_unix_nanos: u64, now_unix_nanos: u64) -> Self {
        Self {
            start_unix_nanos,
            now_unix_nanos,
            out: Vec::new(),
            points: Vec::new(),
            kind: SUM,
            point: Vec::new(),
        }
    }

    /// A point of a histogram.
    pub(crate) fn histogram(&mut self, shown: &Shown<'_>, bounds: &Bounds, histogram: &Histogram) {
        let (count, sum) = (histogram.count(), histogram.sum_seconds().to_bits());
        let Some(exponential) = &histogram.exponential else {
            self.begin(HISTOGRAM, 9, shown);
            let point = &mut self.point;
            fixed64(point, 4, count);
            fixed64(point, 5, sum);
            packed(point, 6, histogram.buckets.iter().copied());
            packed(point, 7, bounds.seconds.iter().map(|bound| bound.to_bits()));
            return delimited(&mut self.points, DATA_POINTS, &self.point);
        };
        let (scale, zero, offset, counts) = exponential.shown();
        self.begin(EXPONENTIAL, 1, shown);
        let point = &mut self.point;
        fixed64(point, 4, count);
        fixed64(point, 5, sum);
        uint(point, 6, zigzag(scale));
        fixed64(point, 7, zero);
        // Most counts take one byte, which is told without a look at its bits.
        let bytes = counts.clone().map(|count| if count < 0x80 { 1 } else { varint_len(count) }).sum();
        head(point, 8, 1 + varint_len(zigzag(offset)) + delimited_len(bytes));
        uint(point, 1, zigzag(offset));
        head(point, 2, bytes);
        point.reserve(bytes);
        for count in counts {
            varint(point, count);
        }
        delimited(&mut self.points, DATA_POINTS, &self.point);
    }

    /// A point of a sum; none while it is 0.
    pub(crate) fn sum(&mut self, shown: &Shown<'_>, value: u64) {
        if value > 0 {
            self.begin(SUM, 7, shown);
            self.point.push(tag(6, FIXED64));
            self.point.extend_from_slice(&value.to_le_bytes());
            delimited(&mut self.points, DATA_POINTS, &self.point);
        }
    }

    /// A point of a sum with one label, which may have no value.
    pub(crate) fn labelled(&mut self, key: &'static str, label: &str, value: u64) {
        let labels = if label.is_empty() { Vec::new() } else { vec![(key, label)] };
        self.sum(&Shown { labels, ..Shown::default() }, value);
    }

    /// What every kind of point begins with; its attributes are the field `attributes`.
    fn begin(&mut self, kind: u8, attributes: u8, shown: &Shown<'_>) {
        self.kind = kind;
        let point = &mut self.point;
        point.clear();
        let mut out = Attributes::of_point(point, attributes);
        for (key, value) in &shown.labels {
            out.text(key, value.as_bytes());
        }
        if let Some(status) = shown.status {
            out.int(attribute::HTTP_RESPONSE_STATUS_CODE, u64::from(status));
        }
        if let Some(port) = shown.port {
            out.int(attribute::SERVER_PORT, u64::from(port));
        }
        if shown.overflow {
            out.flag(attribute::METRIC_OVERFLOW, true);
        }
        fixed64(point, 2, self.start_unix_nanos);
        fixed64(point, 3, self.now_unix_nanos);
    }

    /// The points since the last metric are those of this one. Without points there is no metric.
    pub(crate) fn end(&mut self, name: &str, description: &str, unit: &str) {
        if self.points.is_empty() {
            return;
        }
        let body = &mut self.point;
        body.clear();
        delimited(body, 1, name.as_bytes());
        delimited(body, 2, description.as_bytes());
        delimited(body, 3, unit.as_bytes());
        let flags = if self.kind == SUM { 4 } else { 2 };
        head(body, self.kind, self.points.len() + flags);
        let bytes = body.len() + self.points.len() + flags;
        self.out.reserve(delimited_len(bytes));
        head(&mut self.out, METRICS, bytes);
        self.out.extend_from_slice(&self.point);
        self.out.append(&mut self.points);
        uint(&mut self.out, TEMPORALITY, CUMULATIVE);
        if self.kind == SUM {
            uint(&mut self.out, MONOTONIC, 1);
        }
    }

    /// All of them as fields `ScopeMetrics.metrics`; empty when there is no point.
    pub(crate) fn encode(self) -> Vec<u8> {
        self.out
    }
}

/// Whole numbers with a sign, the small ones short (protobuf's `sint32`).
fn zigzag(value: i32) -> u64 {
    u64::from(((value << 1) ^ (value >> 31)).cast_unsigned())
}

fn packed(out: &mut Vec<u8>, field: u8, words: impl ExactSizeIterator<Item = u64>) {
    out.push(tag(field, LENGTH_DELIMITED));
    varint(out, words.len() as u64 * 8);
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}
