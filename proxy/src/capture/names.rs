//! How many TLS connections asked for which name: bounded, since names come from the wire.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use throughline_core::names::OTHER;

use super::hello::Greeting;
use crate::stats::Side;

/// Names that are told apart on each side; further ones count as one.
const NAMES_MAX: usize = 100;

/// Counts by side and name; no name is the empty one.
#[derive(Debug, Default)]
pub(crate) struct Names([Mutex<BTreeMap<String, u64>>; 2]);

impl Names {
    /// One connection.
    pub(super) fn count(&self, side: Side, greeting: &Greeting) {
        let Some(counts) = self.0.get(side as usize) else { return };
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let name = match greeting {
            Greeting::Named(name) => name.as_str(),
            Greeting::Nameless => "",
        };
        if let Some(count) = counts.get_mut(name) {
            *count += 1;
            return;
        }
        let full = counts.len() >= NAMES_MAX && !name.is_empty();
        *counts.entry(if full { OTHER.to_owned() } else { name.to_owned() }).or_default() += 1;
    }

    /// All of them; those without a name even if there are none.
    pub(crate) fn counts(&self) -> Vec<(Side, String, u64)> {
        let of = |(side, counts): (Side, &Mutex<BTreeMap<String, u64>>)| {
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.entry(String::new()).or_default();
            counts.iter().map(|(name, count)| (side, name.clone(), *count)).collect::<Vec<_>>()
        };
        Side::ALL.into_iter().zip(&self.0).flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_cap_share_a_series() {
        let names = Names::default();
        for number in 0..1000 {
            names.count(Side::Outbound, &Greeting::Named(format!("host-{number}.example")));
        }
        names.count(Side::Outbound, &Greeting::Nameless);
        names.count(Side::Inbound, &Greeting::Named("a".into()));
        let counts = names.counts();
        assert!(counts.len() <= NAMES_MAX + 4, "{}", counts.len());
        assert!(counts.contains(&(Side::Outbound, OTHER.to_owned(), 900)));
        assert_eq!(counts.iter().map(|(.., count)| count).sum::<u64>(), 1002);
    }
}
