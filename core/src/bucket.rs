//! A token bucket: so many a second, and as many at once. Never reads a clock.

use crate::exchange::Now;

const NANOS: u64 = 1_000_000_000;

/// Tokens that come back with time. What must be taken may be taken on credit, down to one empty bucket's worth
/// below nothing.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    per_second: u64,
    /// Tokens at the most, in billionths; so `per_second` tokens come back in a second without a division.
    most: i64,
    level: i64,
    seen_mono_nanos: u64,
}

impl Bucket {
    /// A full bucket. `at_once` is how many may be taken at one moment.
    #[must_use]
    pub fn new(per_second: u64, at_once: u64) -> Self {
        let most = i64::try_from(at_once.saturating_mul(NANOS)).unwrap_or(i64::MAX / 4).min(i64::MAX / 4);
        Self { per_second, most, level: most, seen_mono_nanos: 0 }
    }

    /// Takes `tokens` if they are there.
    pub fn take(&mut self, tokens: u64, now: Now) -> bool {
        self.refill(now);
        let wanted = billionths(tokens);
        if self.level < wanted {
            return false;
        }
        self.level -= wanted;
        true
    }

    /// Takes `tokens` whether they are there or not.
    pub fn owe(&mut self, tokens: u64, now: Now) {
        self.refill(now);
        self.level = self.level.saturating_sub(billionths(tokens)).max(-self.most);
    }

    fn refill(&mut self, now: Now) {
        let passed = now.mono_nanos.saturating_sub(self.seen_mono_nanos);
        self.seen_mono_nanos = self.seen_mono_nanos.max(now.mono_nanos);
        let back = i64::try_from(passed.saturating_mul(self.per_second)).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add(back).min(self.most);
    }
}

fn billionths(tokens: u64) -> i64 {
    i64::try_from(tokens.saturating_mul(NANOS)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Now {
        Now { unix_nanos: 0, mono_nanos: millis * 1_000_000 }
    }

    #[test]
    fn so_many_a_second_and_no_more_than_that_at_once() {
        let mut bucket = Bucket::new(10, 10);
        let taken = |bucket: &mut Bucket, millis| (0..100).filter(|_| bucket.take(1, at(millis))).count();
        assert_eq!(taken(&mut bucket, 0), 10);
        assert_eq!(taken(&mut bucket, 99), 0);
        assert_eq!(taken(&mut bucket, 100), 1);
        assert_eq!(taken(&mut bucket, 600), 5);
        assert_eq!(taken(&mut bucket, 3_600_000), 10, "an hour later it is full, and no fuller");
    }

    #[test]
    fn what_is_owed_comes_first_and_the_debt_is_bounded() {
        let mut bucket = Bucket::new(10, 10);
        (0..1000).for_each(|_| bucket.owe(1, at(0)));
        assert!(!bucket.take(1, at(1000)), "a second only pays the debt");
        assert!(bucket.take(1, at(1100)));
    }
}
