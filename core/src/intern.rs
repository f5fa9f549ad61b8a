//! Names as small numbers, with a cap: how labels from the wire stay bounded.

use std::collections::HashMap;

use crate::hash::Seeded;
use crate::names::OTHER;

/// Up to `most` distinct names. Beyond that, every further name is [`Interner::OTHER`].
#[derive(Clone, Debug)]
pub(crate) struct Interner {
    numbers: HashMap<Box<str>, u16, Seeded>,
    names: Vec<Box<str>>,
    most: usize,
}

impl Interner {
    /// No name at all.
    pub(crate) const NONE: u16 = 0;
    /// A name beyond the cap, and whoever is called so.
    pub(crate) const OTHER: u16 = 1;

    pub(crate) fn new(most: usize, seed: u64) -> Self {
        Self { numbers: HashMap::with_hasher(Seeded(seed)), names: Vec::new(), most: most.min(60_000) }
    }

    /// The number of a name, given to it now if there is room.
    pub(crate) fn number(&mut self, name: &str) -> u16 {
        if name.is_empty() {
            return Self::NONE;
        }
        if name == OTHER {
            return Self::OTHER; // one word, one number: two would be two series of equal labels
        }
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let Ok(number) = u16::try_from(self.names.len() + 2) else { return Self::OTHER };
        if self.names.len() >= self.most {
            return Self::OTHER;
        }
        self.names.push(name.into());
        self.numbers.insert(name.into(), number);
        number
    }

    /// The number of a name that has one already.
    pub(crate) fn known(&self, name: &str) -> Option<u16> {
        self.numbers.get(name).copied()
    }

    /// The name of a number; empty for none.
    pub(crate) fn name(&self, number: u16) -> &str {
        match number {
            Self::NONE => "",
            Self::OTHER => OTHER,
            number => self.names.get(usize::from(number) - 2).map_or("", |name| name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_cap_share_one_number() {
        let mut names = Interner::new(2, 7);
        let (a, b) = (names.number("a"), names.number("b"));
        assert_eq!((names.name(a), names.name(b)), ("a", "b"));
        assert_eq!(names.number("c"), Interner::OTHER);
        assert_eq!(names.number("a"), a);
        assert_eq!((names.number(""), names.name(Interner::OTHER)), (Interner::NONE, "_other"));
    }
}
