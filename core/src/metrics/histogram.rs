//! Durations of one series: their counts between fixed bounds, which both Prometheus and OTLP read, and between
//! exponential ones where a setting asks for them.

use super::exponential::Exponential;

/// How histograms are pushed by OTLP. `/metrics` has explicit bounds either way.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Aggregation {
    /// Between the bounds of [`Bounds`].
    #[default]
    Explicit,
    /// Between powers of two and their roots.
    Exponential,
}

const BUCKETS: usize = 15;

/// Upper bounds of the buckets but the last.
#[derive(Debug)]
pub struct Bounds {
    /// As OTLP has them.
    pub seconds: [f64; BUCKETS - 1],
    nanos: [u64; BUCKETS - 1],
    /// Values of `le`, in the form that both of Prometheus' formats have and that Prometheus 3 writes.
    pub(crate) le: [&'static str; BUCKETS - 1],
}

macro_rules! bounds {
    ($($millis:literal $seconds:literal $le:literal,)*) => {
        Bounds { seconds: [$($seconds),*], nanos: [$($millis * 1_000_000),*], le: [$($le),*] }
    };
}

/// Of durations: what the HTTP metric conventions advise.
pub static DURATIONS: Bounds = bounds!(
    5 0.005 "0.005", 10 0.01 "0.01", 25 0.025 "0.025", 50 0.05 "0.05", 75 0.075 "0.075", 100 0.1 "0.1",
    250 0.25 "0.25", 500 0.5 "0.5", 750 0.75 "0.75", 1000 1.0 "1.0", 2500 2.5 "2.5", 5000 5.0 "5.0",
    7500 7.5 "7.5", 10_000 10.0 "10.0",
);

/// Of what waits in a queue, for up to an hour.
pub static LAGS: Bounds = bounds!(
    5 0.005 "0.005", 10 0.01 "0.01", 25 0.025 "0.025", 50 0.05 "0.05", 100 0.1 "0.1", 250 0.25 "0.25",
    500 0.5 "0.5", 1000 1.0 "1.0", 2500 2.5 "2.5", 5000 5.0 "5.0", 10_000 10.0 "10.0", 60_000 60.0 "60.0",
    300_000 300.0 "300.0", 3_600_000 3600.0 "3600.0",
);

impl Bounds {
    /// The bucket that a duration falls into.
    pub(crate) fn bucket(&self, nanos: u64) -> usize {
        self.nanos.partition_point(|bound| *bound < nanos)
    }
}

/// Numbers of one series.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// Exchanges per bucket, the last one above every bound.
    pub buckets: [u64; BUCKETS],
    /// Sum of durations in nanoseconds.
    pub sum_nanos: u64,
    pub(crate) exponential: Option<Box<Exponential>>,
}

impl Histogram {
    pub(super) fn new(aggregation: Aggregation) -> Self {
        let exponential = match aggregation {
            Aggregation::Explicit => None,
            Aggregation::Exponential => Some(Box::default()),
        };
        Self { exponential, ..Self::default() }
    }

    pub(super) fn record(&mut self, bounds: &Bounds, nanos: u64) {
        if let Some(bucket) = self.buckets.get_mut(bounds.bucket(nanos)) {
            *bucket += 1;
        }
        self.sum_nanos = self.sum_nanos.saturating_add(nanos);
        if let Some(exponential) = &mut self.exponential {
            exponential.record(nanos);
        }
    }

    /// Without exponential buckets.
    pub(super) fn explicit(&self) -> Self {
        Self { buckets: self.buckets, sum_nanos: self.sum_nanos, exponential: None }
    }

    /// What both count between the same bounds. Exponential buckets are left alone.
    pub(super) fn add(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket += more;
        }
        self.sum_nanos = self.sum_nanos.saturating_add(other.sum_nanos);
    }

    /// Exchanges in all buckets.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Sum of durations in seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_nanos as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_the_same_in_every_form_and_rise() {
        for bounds in [&DURATIONS, &LAGS] {
            let read: Vec<f64> = bounds.le.iter().map(|le| le.parse().unwrap()).collect();
            assert_eq!(read, bounds.seconds);
            let nanos: Vec<u64> =
                bounds.seconds.iter().map(|seconds| (seconds * 1e9).round() as u64).collect();
            assert_eq!(nanos, bounds.nanos);
            assert!(bounds.nanos.is_sorted());
        }
    }
}
