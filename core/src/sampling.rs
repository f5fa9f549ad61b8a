//! Whether a trace is recorded, decided at its head. Every decision carries its reason.

use crate::decimal;
use crate::ids::TraceId;
use crate::propagation::tracestate;

/// A probability, kept as the threshold that the right-most 56 bits of a trace id are held against.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Ratio {
    probability: f64,
    /// Trace ids whose 56 bits are at or above it are sampled: the rejection threshold of OpenTelemetry's
    /// consistent probability sampling.
    threshold: u64,
}

const RANDOM_VALUES: f64 = 72_057_594_037_927_936.0; // 2^56

impl Ratio {
    /// Everything.
    pub const ONE: Self = Self { probability: 1.0, threshold: 0 };
    /// Nothing.
    pub const ZERO: Self = Self { probability: 0.0, threshold: 1 << 56 };

    /// `None` unless it is a number from 0 to 1.
    #[must_use]
    pub fn new(probability: f64) -> Option<Self> {
        if !(0.0..=1.0).contains(&probability) {
            return None;
        }
        Some(Self { probability, threshold: ((1.0 - probability) * RANDOM_VALUES) as u64 })
    }

    /// A ratio as people write it: `0.25`, `1`, `.5`, `1e-3`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        decimal::parse(text).and_then(Self::new)
    }

    /// The probability.
    #[must_use]
    pub fn probability(self) -> f64 {
        self.probability
    }

    pub(crate) fn samples(self, trace_id: TraceId) -> bool {
        trace_id.low_56() >= self.threshold
    }
}

/// How a trace without a parent is decided.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Root {
    /// Every trace.
    AlwaysOn,
    /// No trace.
    AlwaysOff,
    /// A share of the traces, the same in every service for the same trace id.
    Ratio(Ratio),
}

/// The sampler, as `OTEL_TRACES_SAMPLER` names it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Sampler {
    /// Asks the root's rule for every exchange, whatever the parent said.
    Always(Root),
    /// Follows the parent; asks the root's rule only where there is none.
    ParentBased(Root),
}

/// Why a decision fell as it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The parent's decision was followed.
    Parent,
    /// `always_on`.
    AlwaysOn,
    /// `always_off`.
    AlwaysOff,
    /// The ratio, by the trace id.
    Ratio,
    /// The mode is `full`.
    Full,
    /// A rule that an operator switched on for a while.
    OnDemand,
    /// Too much is slow or fails at present.
    Adaptive,
    /// A stranger asked for it, within what strangers may have.
    Edge,
}

impl Reason {
    /// The word of the attribute `throughline.sampled.by`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Parent => "parent",
            Self::AlwaysOn => "always_on",
            Self::AlwaysOff => "always_off",
            Self::Ratio => "ratio",
            Self::Full => "full",
            Self::OnDemand => "on_demand",
            Self::Adaptive => "adaptive",
            Self::Edge => "edge",
        }
    }
}

/// A decision and its reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Whether spans of the trace are recorded.
    pub sampled: bool,
    /// Why.
    pub reason: Reason,
}

impl Sampler {
    /// Decides an exchange of the trace, whose parent (if there is one) was or was not sampled.
    #[must_use]
    pub fn decide(self, trace_id: TraceId, parent_sampled: Option<bool>) -> Decision {
        match (self, parent_sampled) {
            (Self::ParentBased(_), Some(sampled)) => Decision { sampled, reason: Reason::Parent },
            (Self::ParentBased(root), None) | (Self::Always(root), _) => root.decide(trace_id),
        }
    }
}

impl Root {
    fn decide(self, trace_id: TraceId) -> Decision {
        match self {
            Self::AlwaysOn => Decision { sampled: true, reason: Reason::AlwaysOn },
            Self::AlwaysOff => Decision { sampled: false, reason: Reason::AlwaysOff },
            Self::Ratio(ratio) => Decision { sampled: ratio.samples(trace_id), reason: Reason::Ratio },
        }
    }
}

/// Erases the probability claim `th` from OpenTelemetry's member of a `tracestate` list: it is false as soon
/// as a decision was overridden. Everything else of the member stays, its place in the list too.
pub fn erase_probability(list: &mut Vec<u8>) {
    let Some(value) = tracestate::find(list, b"ot") else { return };
    let is_claim = |field: &&[u8]| field.starts_with(b"th:");
    if !value.split(|byte| *byte == b';').any(|field| is_claim(&field)) {
        return;
    }
    let kept: Vec<&[u8]> = value.split(|byte| *byte == b';').filter(|field| !is_claim(field)).collect();
    let kept = kept.join(&b';');
    let members: Vec<Vec<u8>> = tracestate::members(list)
        .filter_map(|(key, value)| match key {
            b"ot" if kept.is_empty() => None,
            b"ot" => Some([b"ot=", kept.as_slice()].concat()),
            _ => Some([key, b"=", value].concat()),
        })
        .collect();
    *list = members.join(&b',');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(low: u64) -> TraceId {
        let mut bytes = [0xaa; 16];
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        TraceId::from_bytes(bytes).unwrap()
    }

    #[test]
    fn a_ratio_keeps_the_share_it_names_and_agrees_with_smaller_ones() {
        let tenth = Ratio::new(0.1).unwrap();
        let half = Ratio::new(0.5).unwrap();
        let step = (1u64 << 56) / 1000;
        let kept = (0..1000).filter(|i| tenth.samples(id(i * step + step / 2))).count();
        assert_eq!(kept, 100);
        assert!((0..1000).all(|i| !tenth.samples(id(i * step)) || half.samples(id(i * step))));
    }

    #[test]
    fn the_ends_of_the_scale_are_exact_and_the_left_most_byte_does_not_count() {
        let (none, all) = (Ratio::new(0.0).unwrap(), Ratio::new(1.0).unwrap());
        for low in [0, 1, (1 << 56) - 1, u64::MAX] {
            assert!(!none.samples(id(low)) && all.samples(id(low)), "{low:x}");
        }
        assert!([-0.1, 1.1, f64::NAN, f64::INFINITY].iter().all(|bad| Ratio::new(*bad).is_none()));
    }

    #[test]
    fn a_parent_is_followed_only_by_the_parent_based_samplers() {
        let off = Sampler::Always(Root::AlwaysOff);
        let parent_off = Sampler::ParentBased(Root::AlwaysOff);
        assert!(!off.decide(id(1), Some(true)).sampled);
        assert_eq!(parent_off.decide(id(1), Some(true)), Decision { sampled: true, reason: Reason::Parent });
        assert_eq!(parent_off.decide(id(1), None), Decision { sampled: false, reason: Reason::AlwaysOff });
    }

    #[test]
    fn only_the_probability_claim_is_erased() {
        for (before, after) in [
            ("a=1,ot=th:8;rv:0123,b=2", "a=1,ot=rv:0123,b=2"),
            ("ot=th:8", ""),
            ("a=1,ot=rv:01", "a=1,ot=rv:01"),
            ("a=th:8", "a=th:8"),
        ] {
            let mut list = before.as_bytes().to_vec();
            erase_probability(&mut list);
            assert_eq!(list, after.as_bytes(), "{before}");
        }
    }
}
