//! How long exchanges took, in few bytes: a histogram whose buckets grow by a fifth, which forgets slowly. Good
//! enough to say what the slowest hundredth is; never to be summed up or shown as a number of exchanges.

/// Durations below this share the first bucket: 64 µs.
const SMALLEST_BITS: u32 = 16;
/// Buckets of one doubling.
const STEPS: u32 = 4;
/// Doublings: up to 20 minutes.
const DOUBLINGS: u32 = 24;
const BUCKETS: usize = (STEPS * DOUBLINGS) as usize;

/// Durations of late.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    buckets: [u32; BUCKETS],
    count: u32,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], count: 0 }
    }
}

impl Latencies {
    pub(crate) fn record(&mut self, nanos: u64) {
        if let Some(bucket) = self.buckets.get_mut(place(nanos)) {
            *bucket = bucket.saturating_add(1);
            self.count = self.count.saturating_add(1);
        }
    }

    /// Halves every count, so that what was long ago weighs less.
    pub(crate) fn halve(&mut self) {
        self.buckets.iter_mut().for_each(|bucket| *bucket /= 2);
        self.count = self.buckets.iter().sum();
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (bucket, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *bucket = bucket.saturating_add(*more);
        }
        self.count = self.count.saturating_add(other.count);
    }

    /// The upper bound of the bucket that the slowest hundredth begins in: at the most a hundredth took longer.
    pub(crate) fn p99_nanos(&self) -> u64 {
        let above = u64::from(self.count) / 100;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate().rev() {
            seen += u64::from(*count);
            if seen > above {
                return upper_bound(at);
            }
        }
        upper_bound(0)
    }
}

fn place(nanos: u64) -> usize {
    let nanos = nanos.max(1 << SMALLEST_BITS);
    let doubling = nanos.ilog2();
    let step = (nanos >> (doubling - STEPS.ilog2())) as u32 % STEPS;
    (((doubling - SMALLEST_BITS) * STEPS + step) as usize).min(BUCKETS - 1)
}

/// The first duration of the next bucket.
fn upper_bound(place: usize) -> u64 {
    let (doubling, step) = (place as u32 / STEPS + SMALLEST_BITS, u64::from(place as u32 % STEPS));
    (1 << doubling) + ((step + 1) << (doubling - STEPS.ilog2()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_duration_lies_below_the_bound_of_its_bucket_and_by_a_quarter_at_the_most() {
        for nanos in [70_000, 999_999, MS, 5 * MS, 123 * MS, 1000 * MS, 77_777 * MS] {
            let bound = upper_bound(place(nanos));
            assert!(nanos < bound && bound <= nanos + nanos / 4 + 1, "{nanos} {bound}");
        }
        assert_eq!((place(0), place(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn the_slowest_hundredth_is_found() {
        let mut latencies = Latencies::default();
        (0..990).for_each(|_| latencies.record(5 * MS));
        (0..10).for_each(|_| latencies.record(500 * MS));
        let p99 = latencies.p99_nanos();
        assert!((5 * MS..7 * MS).contains(&p99), "{p99}");
        latencies.record(500 * MS);
        assert!(latencies.p99_nanos() >= 500 * MS, "more than a hundredth takes that long");
        latencies.halve();
        assert_eq!(latencies.count(), 495 + 5);
    }
}
