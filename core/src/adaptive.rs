//! Samples more while things go badly: a sliding window of latencies and failures, with thresholds to rise above
//! and lower ones to fall below. Never reads a clock, never decides about an exchange that has a parent.

use crate::classify::Direction;
use crate::exchange::Now;
use crate::latency::Latencies;
use crate::sampling::Ratio;

/// When to sample more, and how much.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Adaptive {
    /// The share of new traces that is sampled meanwhile; 0 switches it off.
    pub rate: Ratio,
    /// While the slowest hundredth takes longer than so many nanoseconds.
    pub latency_nanos: Option<u64>,
    /// While a larger share than this fails.
    pub errors: Option<Ratio>,
    /// Nanoseconds of the window.
    pub window_nanos: u64,
}

impl Default for Adaptive {
    fn default() -> Self {
        let window_nanos = 300_000_000_000;
        Self { rate: Ratio::ZERO, latency_nanos: None, errors: None, window_nanos }
    }
}

const SLOTS: usize = 10;
/// Exchanges in the window before they mean anything.
const ENOUGH: u32 = 20;
/// What was over a threshold has to fall to this share of it.
const FALLS_BELOW: f64 = 0.8;

#[derive(Clone, Debug, Default)]
struct Slot {
    latencies: Latencies,
    failed: u32,
}

/// The window of both directions, and whether it is over a threshold.
#[derive(Debug)]
pub(crate) struct Watch {
    config: Adaptive,
    slots: Box<[[Slot; SLOTS]; 2]>,
    slot_nanos: u64,
    /// Number of the slot that is being filled, counted from the clock's beginning.
    current: u64,
    /// When it is full.
    full_at: u64,
    active: bool,
}

impl Watch {
    pub(crate) fn new(config: Adaptive) -> Self {
        let slot_nanos = (config.window_nanos / SLOTS as u64).max(1);
        Self { config, slots: Box::default(), slot_nanos, current: 0, full_at: slot_nanos, active: false }
    }

    /// The raised rate, while it is raised.
    pub(crate) fn rate(&mut self, now: Now) -> Option<Ratio> {
        if now.mono_nanos >= self.full_at {
            self.advance(now);
        }
        self.active.then_some(self.config.rate)
    }

    /// An exchange ended.
    pub(crate) fn record(&mut self, direction: Direction, nanos: u64, failed: bool, now: Now) {
        if now.mono_nanos >= self.full_at {
            self.advance(now);
        }
        let at = (self.current % SLOTS as u64) as usize;
        let slot = self.slots.get_mut(direction as usize).and_then(|slots| slots.get_mut(at));
        if let Some(slot) = slot {
            slot.latencies.record(nanos);
            slot.failed = slot.failed.saturating_add(u32::from(failed));
        }
    }

    /// Judges what is in the window, and lets go of what is not any more.
    fn advance(&mut self, now: Now) {
        let current = now.mono_nanos / self.slot_nanos;
        let passed = (current - self.current).min(SLOTS as u64);
        // After a silence of a whole window nothing is left to judge.
        if passed == SLOTS as u64 {
            self.clear(current, passed);
            self.judge();
        } else {
            self.judge();
            self.clear(current, passed);
        }
        self.current = current;
        self.full_at = (current + 1).saturating_mul(self.slot_nanos);
    }

    fn clear(&mut self, current: u64, passed: u64) {
        for slots in self.slots.iter_mut() {
            for back in 0..passed {
                let at = (current.wrapping_sub(back) % SLOTS as u64) as usize;
                if let Some(slot) = slots.get_mut(at) {
                    *slot = Slot::default();
                }
            }
        }
    }

    fn judge(&mut self) {
        let share = if self.active { FALLS_BELOW } else { 1.0 };
        let Adaptive { latency_nanos, errors, .. } = self.config;
        self.active = self.slots.iter().any(|slots| {
            let (mut latencies, mut failed) = (Latencies::default(), 0u32);
            for slot in slots {
                latencies.add(&slot.latencies);
                failed = failed.saturating_add(slot.failed);
            }
            let count = latencies.count();
            let slow =
                || latency_nanos.is_some_and(|limit| latencies.p99_nanos() as f64 > limit as f64 * share);
            let fails = || {
                errors.is_some_and(|limit| f64::from(failed) > f64::from(count) * limit.probability() * share)
            };
            count >= ENOUGH && (slow() || fails())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn watch() -> Watch {
        Watch::new(Adaptive {
            rate: Ratio::ONE,
            latency_nanos: Some(100 * MS),
            errors: Ratio::new(0.1),
            window_nanos: 10_000 * MS,
        })
    }

    fn at(millis: u64) -> Now {
        Now { unix_nanos: 0, mono_nanos: millis * MS }
    }

    /// 100 exchanges at a moment, so many of which take so long or fail.
    fn hundred(watch: &mut Watch, millis: u64, slow: (u32, u64), failed: u32) {
        for number in 0..100 {
            let took = if number < slow.0 { slow.1 } else { 5 };
            watch.record(Direction::Inbound, took * MS, number < failed, at(millis));
        }
    }

    #[test]
    fn the_rate_rises_with_the_slowest_hundredth_or_the_failures() {
        for (slow, failed, expected) in [
            ((0, 0), 0, false),
            ((1, 500), 0, false),
            ((2, 500), 0, true),
            ((2, 60), 0, false),
            ((0, 0), 10, false),
            ((0, 0), 11, true),
        ] {
            let mut watch = watch();
            hundred(&mut watch, 500, slow, failed);
            assert!(watch.rate(at(999)).is_none(), "a slot is judged when it is full");
            assert_eq!(watch.rate(at(1000)).is_some(), expected, "{slow:?} {failed}");
        }
        let mut watch = watch();
        (0..19).for_each(|_| watch.record(Direction::Outbound, 500 * MS, true, at(1)));
        assert!(watch.rate(at(1000)).is_none(), "too few to mean anything");
        watch.record(Direction::Outbound, 500 * MS, true, at(1001));
        assert!(watch.rate(at(2000)).is_some());
    }

    #[test]
    fn it_falls_back_only_below_a_lower_threshold() {
        let mut watch = watch();
        hundred(&mut watch, 0, (0, 0), 11);
        assert!(watch.rate(at(1000)).is_some());
        // The whole window at 9 of 100 now: under the threshold, over four fifths of it.
        for second in 1..=12 {
            hundred(&mut watch, second * 1000, (0, 0), 9);
        }
        assert!(watch.rate(at(13_000)).is_some());
        for second in 13..=23 {
            hundred(&mut watch, second * 1000, (0, 0), 7);
        }
        assert!(watch.rate(at(24_000)).is_none());
        for second in 24..=35 {
            hundred(&mut watch, second * 1000, (0, 0), 9);
        }
        assert!(watch.rate(at(36_000)).is_none(), "it does not rise for what it would have stayed for");
    }

    #[test]
    fn a_silence_of_a_window_ends_it_although_nothing_comes() {
        let mut watch = watch();
        hundred(&mut watch, 0, (0, 0), 100);
        assert!(watch.rate(at(1000)).is_some() && watch.rate(at(9_000)).is_some());
        assert!(watch.rate(at(30_000)).is_none());
    }
}
