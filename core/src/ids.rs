//! Trace and span identities: values that cannot be all zero. Never draws a random number; a host does,
//! behind [`Ids`].

use crate::hex;

/// Sixteen bytes that are not all zero (W3C Trace Context §3.2.2.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TraceId([u8; 16]);

/// Eight bytes that are not all zero (W3C Trace Context §3.2.2.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanId([u8; 8]);

macro_rules! id {
    ($name:ident, $bytes:literal, $digits:literal) => {
        impl $name {
            /// `None` for all zeros.
            #[must_use]
            pub fn from_bytes(bytes: [u8; $bytes]) -> Option<Self> {
                (bytes != [0; $bytes]).then_some(Self(bytes))
            }

            /// Exactly the lower-case hexadecimal digits of a valid id.
            #[must_use]
            pub fn parse(text: &[u8]) -> Option<Self> {
                hex::decode(text).and_then(Self::from_bytes)
            }

            /// The bytes, in network order.
            #[must_use]
            pub fn bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// The lower-case hexadecimal digits.
            #[must_use]
            pub fn digits(&self) -> [u8; $digits] {
                let mut text = [0; $digits];
                hex::encode(&self.0, &mut text);
                text
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(std::str::from_utf8(&self.digits()).unwrap_or_default())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

id!(TraceId, 16, 32);
id!(SpanId, 8, 16);

impl TraceId {
    /// The right-most 56 bits, which a ratio sampler reads (W3C Trace Context Level 2 §3.2.2.3 makes them
    /// the random part).
    #[must_use]
    pub fn low_56(&self) -> u64 {
        u128::from_be_bytes(self.0) as u64 & 0x00ff_ffff_ffff_ffff
    }
}

/// The `trace-flags` byte (W3C Trace Context Level 2 §3.2.2.5).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(u8);

impl Flags {
    const SAMPLED: u8 = 0x01;
    const RANDOM: u8 = 0x02;

    /// The flags of a byte as received; bits without a meaning are dropped, so they go out as 0.
    #[must_use]
    pub fn from_byte(byte: u8) -> Self {
        Self(byte & (Self::SAMPLED | Self::RANDOM))
    }

    /// The flags of a trace that starts here with random ids.
    #[must_use]
    pub fn start(sampled: bool) -> Self {
        Self(Self::RANDOM).with_sampled(sampled)
    }

    /// Whether the caller may have recorded the trace.
    #[must_use]
    pub fn sampled(self) -> bool {
        self.0 & Self::SAMPLED != 0
    }

    /// Whether the right-most seven bytes of the trace id are random.
    #[must_use]
    pub fn random(self) -> bool {
        self.0 & Self::RANDOM != 0
    }

    /// The same flags with another sampling decision.
    #[must_use]
    pub fn with_sampled(self, sampled: bool) -> Self {
        Self(if sampled { self.0 | Self::SAMPLED } else { self.0 & !Self::SAMPLED })
    }

    /// The byte that goes on the wire.
    #[must_use]
    pub fn byte(self) -> u8 {
        self.0
    }
}

impl std::fmt::Debug for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x}", self.0)
    }
}

/// Where new ids come from. The host's implementation is random; a test's is a counter.
pub trait Ids {
    /// A new trace id whose right-most seven bytes are random.
    fn trace_id(&mut self) -> TraceId;
    /// A new span id.
    fn span_id(&mut self) -> SpanId;
}

/// Random ids: xoshiro256++ of a seed that the host draws. Unpredictability is not asked of them, only that no
/// two are alike.
#[derive(Clone, Debug)]
pub struct RandomIds([u64; 4]);

impl RandomIds {
    /// Ids of 256 random bits.
    #[must_use]
    pub fn seeded(seed: [u64; 4]) -> Self {
        let [first, rest @ ..] = seed;
        let [second, third, fourth] = rest;
        Self([first | 1, second, third, fourth]) // all zero would stay all zero
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }
}

impl Ids for RandomIds {
    fn trace_id(&mut self) -> TraceId {
        loop {
            let bytes = (u128::from(self.draw()) << 64 | u128::from(self.draw())).to_be_bytes();
            if let Some(id) = TraceId::from_bytes(bytes) {
                return id;
            }
        }
    }

    fn span_id(&mut self) -> SpanId {
        loop {
            if let Some(id) = SpanId::from_bytes(self.draw().to_be_bytes()) {
                return id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_ids_do_not_exist() {
        assert_eq!(TraceId::from_bytes([0; 16]), None);
        assert_eq!(SpanId::parse(b"0000000000000000"), None);
        assert!(SpanId::parse(b"0000000000000001").is_some());
    }

    #[test]
    fn unknown_flag_bits_are_dropped() {
        assert_eq!(Flags::from_byte(0xff).byte(), 0x03);
        assert_eq!(Flags::start(true).byte(), 0x03);
        assert_eq!(Flags::from_byte(0x03).with_sampled(false).byte(), 0x02);
    }

    #[test]
    fn the_ratio_reads_the_right_most_56_bits() {
        let id = TraceId::parse(b"ffffffffffffffffff00000000000001").unwrap();
        assert_eq!(id.low_56(), 1);
    }
}
