//! Durations in buckets: sparse counts by a code that says which bucket it is. Base-2 exponential buckets of scale 0
//! to 6 have codes of their own, so have the buckets of each set of explicit bounds, so histograms of different
//! senders add up without loss. Must never move a count to a bucket that its sender did not mean.

/// Durations of nothing, or below a nanosecond.
const ZERO: u16 = 0;
/// The finest scale: 64 buckets an octave, 1.09 % wide.
pub(super) const FINEST: i32 = 6;
/// Seconds of 2^-30 (a nanosecond) to 2^14 (four hours) have buckets; what is outside goes to the first or last one.
const OCTAVES: i64 = 44;
const LOWEST: i64 = -30;
/// Where codes of explicit bounds begin.
const EXPLICIT: u16 = 5632;
/// Bounds of one set, at the most.
pub(super) const BOUNDS_MAX: usize = 256;

/// The code of the bucket `index` of `scale`: (2^(index/2^scale), 2^((index+1)/2^scale)] seconds.
pub(super) fn code(scale: i32, index: i64) -> u16 {
    let (scale, index) = match scale {
        FINEST.. => (FINEST, index >> (scale - FINEST).min(62)),
        0..FINEST => (scale, index),
        // Coarser than an octave: its upper octave stands for it.
        _ => (0, index.saturating_add(1).saturating_mul(1 << (-scale).min(8)).saturating_sub(1)),
    };
    let size = OCTAVES << scale;
    let place = index.saturating_sub(LOWEST << scale).clamp(0, size - 1);
    (1 + OCTAVES * ((1 << scale) - 1) + place) as u16
}

/// Scale and index of a code below those of explicit bounds.
fn exponential(code: u16) -> Option<(i32, i64)> {
    let mut place = i64::from(code.checked_sub(1)?);
    for scale in 0..=FINEST {
        let size = OCTAVES << scale;
        if place < size {
            return Some((scale, place + (LOWEST << scale)));
        }
        place -= size;
    }
    None
}

/// The same bucket, or the one that holds it, at a coarser scale.
pub(super) fn at_scale(old: u16, scale: i32) -> u16 {
    match exponential(old) {
        Some((finer, index)) if finer > scale => code(scale.max(0), index >> (finer - scale.max(0))),
        _ => old,
    }
}

/// The bucket of a duration, at the finest scale. Linear within an octave's 64th: at most 0.05 % off the exact
/// border, which no estimate minds.
pub(super) fn code_of_nanos(nanos: u64) -> u16 {
    if nanos == 0 {
        return ZERO;
    }
    let seconds = nanos as f64 / 1e9;
    // Upper bounds belong to their bucket.
    let index = (seconds.log2() * 64.0).ceil() as i64 - 1;
    code(FINEST, index)
}

/// Counts by code, sorted by code.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Histogram(pub(super) Vec<(u16, u64)>);

impl Histogram {
    pub(super) fn add(&mut self, code: u16, count: u64) {
        if count == 0 {
            return;
        }
        match self.0.last_mut() {
            Some((last, sum)) if *last == code => *sum = sum.saturating_add(count),
            Some((last, _)) if *last > code => match self.0.binary_search_by_key(&code, |(code, _)| *code) {
                Ok(at) => {
                    if let Some((_, sum)) = self.0.get_mut(at) {
                        *sum = sum.saturating_add(count);
                    }
                }
                Err(at) => self.0.insert(at, (code, count)),
            },
            _ => self.0.push((code, count)),
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0.clone_from(&other.0);
            return;
        }
        // In a steady state all buckets are there: both lists are walked once, and nothing moves.
        let mut missing = 0;
        let mut own = self.0.iter_mut().peekable();
        for (code, count) in &other.0 {
            while own.next_if(|(known, _)| known < code).is_some() {}
            match own.next_if(|(known, _)| known == code) {
                Some((_, sum)) => *sum = sum.saturating_add(*count),
                None => missing += 1,
            }
        }
        if missing == 0 {
            return;
        }
        let mut both = Vec::with_capacity(self.0.len() + missing);
        let mut own = self.0.iter().copied().peekable();
        for (code, count) in &other.0 {
            while let Some(known) = own.next_if(|(known, _)| known < code) {
                both.push(known);
            }
            // What was there has been added above.
            both.push(own.next_if(|(known, _)| known == code).unwrap_or((*code, *count)));
        }
        both.extend(own);
        self.0 = both;
    }

    /// What came since `before`; none when a bucket has fewer than it had.
    pub(super) fn since(&self, before: &Self) -> Option<Self> {
        let mut delta = Self::default();
        let mut old = before.0.iter().peekable();
        for (code, count) in &self.0 {
            let had = match old.peek() {
                Some((known, had)) if known == code => {
                    old.next();
                    *had
                }
                Some((known, _)) if known < code => return None,
                _ => 0,
            };
            delta.add(*code, count.checked_sub(had)?);
        }
        old.next().is_none().then_some(delta)
    }

    /// The same in coarser buckets.
    pub(super) fn coarsened(&self, scale: i32) -> Self {
        let mut coarse = Self::default();
        for (code, count) in &self.0 {
            coarse.add(at_scale(*code, scale), *count);
        }
        coarse
    }

    /// The coarsest scale in it, of exponential buckets.
    pub(super) fn coarsest(&self) -> Option<i32> {
        let codes = self.0.iter().filter(|(code, _)| *code < EXPLICIT);
        codes.filter_map(|(code, _)| exponential(*code)).map(|(scale, _)| scale).min()
    }

    /// The part `number` of `of` equal ones; all parts together are the whole.
    pub(super) fn part(&self, number: u64, of: u64) -> Self {
        Self(
            self.0
                .iter()
                .map(|(code, count)| (*code, part(*count, number, of)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        )
    }
}

/// The part `number` (from 0) of `of` equal parts of `whole`: they differ by one at the most.
pub(super) fn part(whole: u64, number: u64, of: u64) -> u64 {
    let upto = |n: u64| (u128::from(whole) * u128::from(n) / u128::from(of.max(1))) as u64;
    upto(number + 1).saturating_sub(upto(number))
}

/// Sets of explicit bounds that senders use; few, and never forgotten, since codes name them.
#[derive(Clone, Debug, Default)]
pub(super) struct Bounds {
    sets: Vec<(u16, Box<[f64]>)>,
}

impl Bounds {
    /// The code of the first bucket of these bounds. None when there are too many sets, or the bounds do not rise.
    pub(super) fn first_code(&mut self, bounds: &[f64]) -> Option<u16> {
        if let Some((first, _)) = self.sets.iter().find(|(_, known)| **known == *bounds) {
            return Some(*first);
        }
        let rises = bounds.windows(2).all(|pair| matches!(pair, [low, high] if low < high));
        if bounds.len() > BOUNDS_MAX || !rises || !bounds.iter().all(|bound| bound.is_finite()) {
            return None;
        }
        let first = self
            .sets
            .last()
            .map_or(usize::from(EXPLICIT), |(first, last)| usize::from(*first) + last.len() + 1);
        let first = u16::try_from(first).ok().filter(|_| first + bounds.len() < usize::from(u16::MAX))?;
        self.sets.push((first, bounds.into()));
        Some(first)
    }

    pub(super) fn len(&self) -> usize {
        self.sets.len()
    }

    pub(super) fn get(&self, set: usize) -> Option<&[f64]> {
        self.sets.get(set).map(|(_, bounds)| &**bounds)
    }

    /// The bucket of a code, in seconds. The last one of explicit bounds has no end: it is its own lower bound.
    fn range(&self, code: u16) -> (f64, f64) {
        if code == ZERO {
            return (0.0, 0.0);
        }
        if let Some((scale, index)) = exponential(code).filter(|_| code < EXPLICIT) {
            let width = f64::from(1 << scale);
            return ((index as f64 / width).exp2(), ((index + 1) as f64 / width).exp2());
        }
        let set = self.sets.partition_point(|(first, _)| *first <= code);
        let Some((first, bounds)) = set.checked_sub(1).and_then(|set| self.sets.get(set)) else {
            return (0.0, 0.0);
        };
        let bucket = usize::from(code - first);
        let low = bucket.checked_sub(1).and_then(|below| bounds.get(below)).copied().unwrap_or(0.0);
        (low, bounds.get(bucket).copied().unwrap_or(low))
    }

    /// The quantiles `wanted` (rising, 0 to 1) in seconds of histograms, each of which counts `weight` times.
    pub(super) fn quantiles<const N: usize>(
        &self,
        histograms: &[(&Histogram, f64)],
        wanted: [f64; N],
    ) -> [f64; N] {
        let mut filled =
            histograms.iter().filter(|(histogram, weight)| !histogram.0.is_empty() && *weight > 0.0);
        if let (Some((histogram, _)), None) = (filled.next(), filled.next())
            && self.is_of_one_kind(histogram)
        {
            return self.of_one_kind(histogram, wanted);
        }
        // (low, high, count), sorted by where they begin.
        let mut ranges: Vec<(f64, f64, f64)> = Vec::new();
        for (histogram, weight) in histograms {
            let counts = histogram.0.iter();
            ranges.extend(counts.map(|(code, count)| {
                let (low, high) = self.range(*code);
                (low, high, *count as f64 * weight)
            }));
        }
        let total: f64 = ranges.iter().map(|(_, _, count)| count).sum();
        let mut found = [0.0; N];
        if total <= 0.0 {
            return found;
        }
        ranges.sort_unstable_by(|one, other| one.0.total_cmp(&other.0).then(one.1.total_cmp(&other.1)));
        let overlap = ranges.windows(2).any(|pair| matches!(pair, [one, other] if other.0 < one.1 - 1e-15));
        for (to, share) in found.iter_mut().zip(wanted) {
            let rank = share * total;
            *to = if overlap { by_search(&ranges, rank) } else { by_walk(&ranges, rank) };
        }
        found
    }
}

impl Bounds {
    /// The number of the scale or set that a code is of; a zero is of any.
    fn kind(&self, code: u16) -> usize {
        match exponential(code).filter(|_| code < EXPLICIT) {
            Some((scale, _)) => usize::try_from(scale).unwrap_or(0),
            None => 100 + self.sets.partition_point(|(first, _)| *first <= code),
        }
    }

    /// Whether its buckets follow each other as their codes do.
    fn is_of_one_kind(&self, histogram: &Histogram) -> bool {
        let first = histogram.0.iter().find(|(code, _)| *code != ZERO);
        let kinds = first.zip(histogram.0.last());
        // Codes of one kind lie together.
        kinds.is_none_or(|((first, _), (last, _))| self.kind(*first) == self.kind(*last))
    }

    fn of_one_kind<const N: usize>(&self, histogram: &Histogram, wanted: [f64; N]) -> [f64; N] {
        let total: u64 = histogram.0.iter().map(|(_, count)| *count).sum();
        wanted.map(|share| {
            let (rank, mut before) = (share * total as f64, 0.0);
            for (code, count) in &histogram.0 {
                let count = *count as f64;
                if before + count >= rank {
                    let (low, high) = self.range(*code);
                    return within(low, high, ((rank - before) / count).clamp(0.0, 1.0));
                }
                before += count;
            }
            histogram.0.last().map_or(0.0, |(code, _)| self.range(*code).1)
        })
    }
}

/// Within a bucket, even by ratio where it is narrow, even by difference where it is wide or begins at nothing.
fn within(low: f64, high: f64, share: f64) -> f64 {
    if low > 0.0 && high < low * 2.000_001 {
        low * (high / low).powf(share)
    } else {
        low + (high - low) * share
    }
}

fn by_walk(ranges: &[(f64, f64, f64)], rank: f64) -> f64 {
    let mut before = 0.0;
    for (low, high, count) in ranges {
        if before + count >= rank && *count > 0.0 {
            return within(*low, *high, ((rank - before) / count).clamp(0.0, 1.0));
        }
        before += count;
    }
    ranges.last().map_or(0.0, |(_, high, _)| *high)
}

/// Buckets of different senders lie over each other: the value below which `rank` of them lie, by halving.
fn by_search(ranges: &[(f64, f64, f64)], rank: f64) -> f64 {
    let below = |value: f64| -> f64 {
        ranges
            .iter()
            .take_while(|(low, _, _)| *low <= value)
            .map(
                |(low, high, count)| {
                    if value >= *high { *count } else { count * (value - low) / (high - low) }
                },
            )
            .sum()
    };
    let mut low = ranges.first().map_or(0.0, |(low, _, _)| *low);
    let mut high = ranges.iter().map(|(_, high, _)| *high).fold(low, f64::max);
    for _ in 0..40 {
        let middle = if low > 0.0 { (low * high).sqrt() } else { (low + high) / 2.0 };
        if below(middle) < rank {
            low = middle;
        } else {
            high = middle;
        }
        if high - low < high * 1e-4 {
            break;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_has_a_code_of_its_own_and_back() {
        for scale in 0..=FINEST {
            for index in (LOWEST << scale)..((LOWEST + OCTAVES) << scale) {
                assert_eq!(exponential(code(scale, index)), Some((scale, index)));
                assert!(code(scale, index) < EXPLICIT);
            }
        }
        assert_eq!(code(8, 256), code(6, 64));
        assert_eq!(code(6, i64::MAX), code(6, 14 * 64 - 1));
        assert_eq!(code(6, i64::MIN), code(6, -30 * 64));
    }

    #[test]
    fn a_duration_lies_in_its_bucket() {
        let bounds = Bounds::default();
        for nanos in [1, 2, 999, 1_000_000, 123_456_789, 1_000_000_000, 4_000_000_000, 3_600_000_000_000] {
            let (low, high) = bounds.range(code_of_nanos(nanos));
            let seconds = nanos as f64 / 1e9;
            assert!(low <= seconds * 1.000_001 && seconds <= high * 1.000_001, "{nanos}: {low} {high}");
        }
    }

    #[test]
    fn quantiles_are_within_one_percent_at_the_finest_scale_and_within_the_bucket_else() {
        let (mut fine, mut coarse, mut bounds) =
            (Histogram::default(), Histogram::default(), Bounds::default());
        let steps = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
        let first = bounds.first_code(&steps).unwrap();
        let mut values: Vec<u64> = Vec::new();
        let mut random = 7_u64;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = ((random >> 11) as f64 / (1_u64 << 53) as f64).max(1e-12);
            let nanos = (-unit.ln() * 80e6) as u64 + 100_000;
            values.push(nanos);
            fine.add(code_of_nanos(nanos), 1);
            let bucket = steps.partition_point(|bound| *bound < nanos as f64 / 1e9);
            coarse.add(first + bucket as u16, 1);
        }
        values.sort_unstable();
        for share in [0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999] {
            let truth = values[(share * values.len() as f64) as usize - 1] as f64 / 1e9;
            let [found] = bounds.quantiles(&[(&fine, 1.0)], [share]);
            assert!((found / truth - 1.0).abs() < 0.01, "{share}: {found} for {truth}");
            let [rough] = bounds.quantiles(&[(&coarse, 1.0)], [share]);
            let bucket = |value: f64| steps.partition_point(|bound| *bound < value);
            assert!(
                bucket(rough).abs_diff(bucket(truth)) <= usize::from(steps.contains(&rough)),
                "{share}: {rough} {truth}"
            );
            let [both] = bounds.quantiles(&[(&coarse, 1.0), (&fine, 1000.0)], [share]);
            assert!((both / truth - 1.0).abs() < 0.02, "{share}: {both} for {truth}");
        }
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        for whole in [0, 1, 7, 360, 1_000_003] {
            for of in [1, 2, 7, 360] {
                assert_eq!((0..of).map(|number| part(whole, number, of)).sum::<u64>(), whole);
            }
        }
    }

    #[test]
    fn a_difference_needs_every_bucket_to_have_grown() {
        let of = |counts: &[(u16, u64)]| Histogram(counts.to_vec());
        assert_eq!(of(&[(1, 5), (3, 2)]).since(&of(&[(1, 4)])), Some(of(&[(1, 1), (3, 2)])));
        assert_eq!(of(&[(1, 5)]).since(&of(&[(1, 6)])), None);
        assert_eq!(of(&[(1, 5)]).since(&of(&[(2, 1)])), None);
        assert_eq!(of(&[(3, 5)]).since(&of(&[(2, 1)])), None);
        assert_eq!(of(&[]).since(&of(&[])), Some(of(&[])));
    }
}
