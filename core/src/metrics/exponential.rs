//! Histograms whose bounds are powers of two and their roots: OpenTelemetry's base-2 exponential histogram. Finds a
//! bucket by whole numbers alone, and holds no more buckets than its bound: when its range grows, pairs become one.
//! Must never lose a count, nor allocate while its range stays what it is.

use crate::limits::METRIC_EXPONENTIAL_BUCKETS_MAX as BUCKETS_MAX;

/// The finest scale: 64 buckets for each doubling, so a quantile is told within 0.54 %. A range of 1 to 1,000 fits it;
/// a wider one takes scale 5, within 1.08 % up to 1 to 1,000,000.
pub(crate) const SCALE_MAX: i32 = 6;

/// Buckets that are added at a time.
const STEP: usize = 16;

/// Where the first bucket above a second begins: 1e9 nanoseconds, with 33 bits behind the point.
const SECOND: u64 = 1_000_000_000 << 33;

/// The bounds between a power of two and the next one, as [`SECOND`] is: `SECOND * 2^(j / 64)` for `j` from 1 to 63,
/// rounded down. No bound is a whole number, so a whole number above it is above the rounded one too.
const BOUNDS: [u64; 63] = [
    0x7881_e48c_1a78_7b91,
    0x79d1_d379_4ee8_6199,
    0x7b25_6ade_0ade_73a8,
    0x7c7c_b4ec_dad5_fca4,
    0x7dd7_bbf4_b89a_f2aa,
    0x7f36_8a61_5a88_a012,
    0x8099_2abb_83a5_34a2,
    0x81ff_a7a9_549c_a6e3,
    0x836a_0bee_9d9d_5401,
    0x84d8_626d_3118_d396,
    0x864a_b625_376b_7b77,
    0x87c1_1235_836d_16a3,
    0x893b_81db_e7ed_5966,
    0x8aba_1075_8e1e_a3cf,
    0x8c3c_c97f_4cf1_aadd,
    0x8dc3_b896_0164_a7d9,
    0x8f4e_e976_e7c8_b4cc,
    0x90de_67ff_f600_044c,
    0x9272_4030_36b7_aa56,
    0x940a_7e28_259f_b382,
    0x95a7_2e2a_0ca4_4f7c,
    0x9748_5c9a_622a_db60,
    0x98ee_1600_2855_a076,
    0x9a98_6705_4d51_2391,
    0x9c47_5c77_0cad_e96d,
    0x9dfb_0346_51c9_9c68,
    0x9fb3_6888_1b4a_8811,
    0xa170_9975_dfb0_6757,
    0xa332_a36d_f2fd_8a6a,
    0xa4f9_93f3_ed7b_61ca,
    0xa6c5_78b1_139d_848c,
    0xa896_5f74_bf06_5071,
    0xaa6c_5634_c8b0_4b16,
    0xac47_6b0d_f43f_745f,
    0xae27_ac44_5c7d_c318,
    0xb00d_2843_e106_0dc2,
    0xb1f7_eda0_9520_aa93,
    0xb3e8_0b17_2fd5_1af7,
    0xb5dd_8f8d_7d34_1ffd,
    0xb7d8_8a12_d0dd_9ea0,
    0xb9d9_09e0_79c5_c456,
    0xbbdf_1e5a_373c_e5c6,
    0xbdea_d70e_af3d_9b5a,
    0xbffc_43b7_e604_a922,
    0xc213_743b_b6f6_4957,
    0xc430_78ac_4ed4_7ae7,
    0xc653_6148_a749_ff7d,
    0xc87c_3e7d_03cd_bec3,
    0xcaab_20e3_6fe2_4ee5,
    0xcce0_1944_3eb5_6ce4,
    0xcf1b_3896_8c23_39b8,
    0xd15c_9000_bf21_1c1f,
    0xd3a4_30d9_0d94_3190,
    0xd5f2_2ca6_0197_43e0,
    0xd846_951f_0034_440a,
    0xdaa1_7c2c_d195_55db,
    0xdd02_f3ea_2ab1_8362,
    0xdf6b_0ea4_3879_3a89,
    0xe1d9_dedb_2c86_c2b2,
    0xe44f_7742_cb56_e3dd,
    0xe6cb_eac2_fc0e_04aa,
    0xe94f_4c78_59ce_1066,
    0xebd9_afb4_c6a1_8262,
];

/// The bucket at [`SCALE_MAX`] of a duration above 0: seconds in `(2^(i / 64), 2^((i + 1) / 64)]`, as OTLP has it.
fn index(nanos: u64) -> i32 {
    let nanos = nanos.clamp(1, u64::MAX >> 1); // 292 years
    let zeros = nanos.leading_zeros();
    let (whole, octave) = (nanos << zeros, 33 - zeros.cast_signed());
    // Now `whole` is in [2^63, 2^64), and the octave that is looked into is (SECOND, 2 * SECOND].
    let (whole, octave) = if whole > SECOND << 1 { (whole >> 1, octave + 1) } else { (whole, octave) };
    let above = BOUNDS.partition_point(|bound| *bound < whole);
    (octave << SCALE_MAX) + i32::try_from(above).unwrap_or(0)
}

/// Counts of one series by exponential buckets.
#[derive(Clone, Debug)]
pub(crate) struct Exponential {
    scale: i32,
    /// Index of the first bucket.
    first: i32,
    buckets: Vec<u32>,
    /// Multiples of 2^32 that did not fit their bucket, by its index.
    carried: Vec<(i32, u64)>,
    /// Durations of 0.
    zero: u64,
}

impl Default for Exponential {
    fn default() -> Self {
        Self { scale: SCALE_MAX, first: 0, buckets: Vec::new(), carried: Vec::new(), zero: 0 }
    }
}

impl Exponential {
    pub(crate) fn record(&mut self, nanos: u64) {
        if nanos == 0 {
            self.zero += 1;
            return;
        }
        let fine = index(nanos);
        let at = self.place(fine >> (SCALE_MAX - self.scale));
        let at = at.unwrap_or_else(|| self.widen(fine));
        self.add(at, 1);
    }

    /// Where a bucket stands, if it does.
    fn place(&self, index: i32) -> Option<usize> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        (at < self.buckets.len()).then_some(at)
    }

    fn add(&mut self, at: usize, count: u32) {
        let Some(bucket) = self.buckets.get_mut(at) else { return };
        let (sum, over) = bucket.overflowing_add(count);
        *bucket = sum;
        if over {
            self.carry(self.first + i32::try_from(at).unwrap_or(0), 1);
        }
    }

    fn carry(&mut self, index: i32, times: u64) {
        match self.carried.iter_mut().find(|(known, _)| *known == index) {
            Some((_, carried)) => *carried += times,
            None => self.carried.push((index, times)),
        }
    }

    /// Makes room for a bucket of the finest scale, and says where it stands.
    fn widen(&mut self, fine: i32) -> usize {
        loop {
            let index = fine >> (SCALE_MAX - self.scale);
            let (first, counts) = self.used();
            let end = first + i32::try_from(counts.len()).unwrap_or(0);
            let (from, to) =
                if counts.is_empty() { (index, index + 1) } else { (first.min(index), end.max(index + 1)) };
            let needed = usize::try_from(to - from).unwrap_or(usize::MAX);
            if needed > BUCKETS_MAX {
                self.halve();
                continue;
            }
            // The room to spare is where the range grows.
            let room = needed.next_multiple_of(STEP).min(BUCKETS_MAX);
            let spare = i32::try_from(room - needed).unwrap_or(0);
            let from = if index < first { from - spare } else { from };
            let mut buckets = vec![0; room];
            let before = usize::try_from(first - from).unwrap_or(0);
            for (to, count) in buckets.iter_mut().skip(before).zip(counts) {
                *to = *count;
            }
            (self.buckets, self.first) = (buckets, from);
            return usize::try_from(index - from).unwrap_or(0);
        }
    }

    /// The buckets from the first that has a count to the last, and the index of the first.
    fn used(&self) -> (i32, &[u32]) {
        let has = |(at, count): (usize, &u32)| *count > 0 || self.carried_at(at) > 0;
        let places = self.buckets.iter().enumerate();
        let (Some(from), Some(to)) = (places.clone().position(has), places.rev().position(has)) else {
            return (self.first, &[]);
        };
        let counts = self.buckets.get(from..self.buckets.len() - to).unwrap_or_default();
        (self.first + i32::try_from(from).unwrap_or(0), counts)
    }

    fn carried_at(&self, at: usize) -> u64 {
        let index = self.first + i32::try_from(at).unwrap_or(0);
        self.carried.iter().find(|(known, _)| *known == index).map_or(0, |(_, times)| times << 32)
    }

    /// One scale down: each two buckets are one.
    fn halve(&mut self) {
        let carried = std::mem::take(&mut self.carried);
        let fine = std::mem::take(&mut self.buckets);
        let odd = (self.first & 1) as usize;
        self.buckets.resize((odd + fine.len()).div_ceil(2), 0);
        (self.scale, self.first) = (self.scale - 1, self.first >> 1);
        for (at, count) in fine.into_iter().enumerate() {
            self.add((odd + at) / 2, count);
        }
        for (index, times) in carried {
            self.carry(index >> 1, times);
        }
    }

    /// Scale, durations of 0, the first bucket's index, and the counts from the first bucket that has any to the last.
    pub(crate) fn shown(&self) -> (i32, u64, i32, impl ExactSizeIterator<Item = u64> + Clone) {
        let (first, counts) = self.used();
        let before = usize::try_from(first - self.first).unwrap_or(0);
        let whole = self.carried.is_empty();
        let counts = counts.iter().enumerate();
        let counts = counts
            .map(move |(at, count)| u64::from(*count) + if whole { 0 } else { self.carried_at(before + at) });
        (self.scale, self.zero, first, counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Ordering;

    /// A whole number of any size, as limbs of 32 bits, the lowest first.
    fn product(a: &[u32], b: &[u32]) -> Vec<u32> {
        let mut out = vec![0; a.len() + b.len()];
        for (i, x) in a.iter().enumerate() {
            let mut carry = 0;
            for (j, y) in b.iter().enumerate() {
                let sum = u64::from(out[i + j]) + u64::from(*x) * u64::from(*y) + carry;
                (out[i + j], carry) = (sum as u32, sum >> 32);
            }
            out[i + b.len()] = carry as u32;
        }
        out
    }

    fn number(value: u64) -> Vec<u32> {
        vec![value as u32, (value >> 32) as u32]
    }

    /// The 64th power, times two to the power of `twos`.
    fn raised(value: u64, twos: usize) -> Vec<u32> {
        let mut power = number(value);
        for _ in 0..6 {
            power = product(&power, &power);
        }
        let mut shift = vec![0; twos / 32 + 1];
        shift[twos / 32] = 1 << (twos % 32);
        product(&power, &shift)
    }

    fn compare(a: &[u32], b: &[u32]) -> Ordering {
        let limbs = a.len().max(b.len());
        let at = |of: &[u32], place: usize| of.get(place).copied().unwrap_or(0);
        (0..limbs)
            .rev()
            .map(|place| at(a, place).cmp(&at(b, place)))
            .find(|o| o.is_ne())
            .unwrap_or(Ordering::Equal)
    }

    /// `nanos` against `1e9 * 2^(index / 64)`, in whole numbers of any size.
    fn against(nanos: u64, index: i32) -> Ordering {
        let (left, right) = if index < 0 { (-index, 0) } else { (0, index) };
        compare(&raised(nanos, left as usize), &raised(1_000_000_000, right as usize))
    }

    #[test]
    fn the_bounds_are_the_roots_rounded_down() {
        for (place, bound) in BOUNDS.iter().enumerate() {
            let exact = raised(SECOND, place + 1);
            assert_eq!(compare(&raised(*bound, 0), &exact), Ordering::Less, "{place}");
            assert_eq!(compare(&raised(bound + 1, 0), &exact), Ordering::Greater, "{place}");
        }
    }

    #[test]
    fn every_duration_is_in_the_bucket_that_exact_arithmetic_says() {
        let mut draw = 1_u64;
        let mut samples: Vec<u64> =
            (0..63).flat_map(|bit| [1 << bit, (1 << bit) + 1, (2 << bit) - 1]).collect();
        samples.extend((-29..=33).map(|octave: i32| {
            if octave < 0 { 1_000_000_000 >> -octave } else { 1_000_000_000_u64 << octave }
        }));
        samples.extend((0..3000).map(|_| {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((draw >> 1) >> (draw % 60)).max(1)
        }));
        for nanos in samples.into_iter().filter(|nanos| *nanos <= u64::MAX >> 1) {
            let at = index(nanos);
            assert_eq!(against(nanos, at), Ordering::Greater, "{nanos} {at}");
            assert!(against(nanos, at + 1).is_le(), "{nanos} {at}");
            // Near enough, which tells of a bucket that is off by far if the arithmetic above were wrong.
            let near = (nanos as f64 / 1e9).log2() * 64.0;
            assert!((near.ceil() - 1.0 - f64::from(at)).abs() <= 1.0, "{nanos} {at} {near}");
        }
        assert_eq!([index(1_000_000_000), index(1_000_000_001), index(2_000_000_000)], [-1, 0, 63]);
        assert_eq!(index(u64::MAX), index(u64::MAX >> 1), "what takes longer than 292 years");
    }

    /// Counts by bucket at a scale, from the plain list.
    fn plain(list: &[u64], scale: i32) -> Vec<(i32, u64)> {
        let mut counts = std::collections::BTreeMap::new();
        for nanos in list.iter().filter(|nanos| **nanos > 0) {
            *counts.entry(index(*nanos) >> (SCALE_MAX - scale)).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    fn shown(histogram: &Exponential) -> (i32, u64, Vec<(i32, u64)>) {
        let (scale, zero, first, counts) = histogram.shown();
        let counts = (first..).zip(counts).filter(|(_, count)| *count > 0).collect();
        (scale, zero, counts)
    }

    #[test]
    fn whatever_comes_in_whatever_order_no_count_is_lost_and_the_bound_holds() {
        let mut draw = 7_u64;
        for round in 0..300 {
            let (mut histogram, mut list) = (Exponential::default(), Vec::new());
            let (lowest, range) = (round % 40, 1 + round / 15);
            for _ in 0..400 {
                draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let nanos = (draw >> 20) % (1_u64 << (lowest + (draw >> 7) % range).min(62)).max(1);
                histogram.record(nanos);
                list.push(nanos);
                assert!(histogram.buckets.len() <= BUCKETS_MAX);
            }
            let (scale, zero, counts) = shown(&histogram);
            assert_eq!(counts, plain(&list, scale), "round {round}");
            assert_eq!(zero, list.iter().filter(|nanos| **nanos == 0).count() as u64);
            assert!(scale >= 0 && histogram.carried.is_empty());
        }
    }

    #[test]
    fn a_range_of_a_thousand_keeps_the_finest_scale_and_a_million_the_next() {
        for (most, scale) in [(1_000, 6), (1_000_000, 5), (1_000_000_000, 4)] {
            let mut histogram = Exponential::default();
            for nanos in [30_000, 30_000 * most] {
                histogram.record(nanos);
            }
            assert_eq!(histogram.scale, scale, "{most}");
        }
    }

    #[test]
    fn a_bucket_counts_beyond_what_its_place_holds() {
        let mut histogram = Exponential::default();
        histogram.record(5_000_000);
        let at = histogram.buckets.iter().position(|count| *count == 1).unwrap();
        histogram.buckets[at] = u32::MAX;
        histogram.record(5_000_000);
        histogram.record(1); // widens, which halves
        histogram.record(u64::MAX);
        let (scale, _, counts) = shown(&histogram);
        assert!(scale < SCALE_MAX);
        let index = index(5_000_000) >> (SCALE_MAX - scale);
        assert!(counts.contains(&(index, 1 << 32)), "{counts:?}");
        for _ in 0..3 {
            histogram.record(5_000_000);
        }
        assert!(shown(&histogram).2.contains(&(index, (1 << 32) + 3)));
    }
}
