//! A small seeded hash for maps whose keys come from the wire. The seed is the host's random number, so a
//! caller can't choose keys that collide; `core` itself draws none.

use std::hash::{BuildHasher, Hasher};

/// Makes hashers of one seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seeded(pub(crate) u64);

/// Folds each word into the state by a 128-bit multiplication.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Folding(u64);

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

impl BuildHasher for Seeded {
    type Hasher = Folding;
    fn build_hasher(&self) -> Folding {
        Folding(self.0 | 1)
    }
}

impl Folding {
    fn fold(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word) * u128::from(ODD);
        self.0 = (wide as u64) ^ ((wide >> 64) as u64).rotate_left(23);
    }
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.fold(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        self.fold(u64::from_le_bytes(last) ^ ((rest.len() as u64) << 56));
    }

    fn write_u8(&mut self, value: u8) {
        self.fold(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.fold(u64::from(value));
    }

    fn write_usize(&mut self, value: usize) {
        self.fold(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0.wrapping_mul(ODD) ^ (self.0 >> 29)
    }
}
