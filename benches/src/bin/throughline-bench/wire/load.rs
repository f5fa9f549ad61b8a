//! What all load generators share: the headers that a request has, trace ids that differ, and the line by which
//! a generator says what it saw.

use std::collections::BTreeMap;

/// Headers of each request, in the order in which they are sent; `traceparent` follows them.
pub(crate) const HEADERS: [(&str, &str); 3] = [
    ("user-agent", "Mozilla/5.0 (bench) throughline/0"),
    ("accept", "application/json"),
    ("accept-language", "en"),
];
/// The host that requests name.
pub(crate) const HOST: &str = "shop.example";
/// Where the 16 digits stand that differ from trace to trace.
const DIGITS_AT: usize = 19;
/// Where the digit stands that says whether the trace is sampled.
const FLAG_AT: usize = 54;

/// Contexts of traces that differ: `00-<16 digits that stay><16 that differ>-<parent>-01`.
#[derive(Clone, Debug)]
pub(crate) struct Contexts {
    state: u64,
    text: [u8; 55],
    /// Percent of them that are sampled.
    share: u64,
}

impl Contexts {
    pub(crate) fn seeded(seed: u64) -> Self {
        Self { state: seed, text: *b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", share: 100 }
    }

    /// Contexts of which so many percent are sampled, spread over all by chance.
    pub(crate) fn sampled(self, share: u64) -> Self {
        Self { share, ..self }
    }

    /// The next one.
    pub(crate) fn next(&mut self) -> &[u8; 55] {
        // SplitMix64: cheap, and each number comes once.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        self.text[FLAG_AT] = if mixed % 100 < self.share { b'1' } else { b'0' };
        for digit in &mut self.text[DIGITS_AT..DIGITS_AT + 16] {
            *digit = b"0123456789abcdef"[(mixed & 15) as usize];
            mixed >>= 4;
        }
        &self.text
    }
}

/// What a generator saw.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Answers that were as they had to be.
    pub(crate) answers: u64,
    /// Everything else; a round with one is no result.
    pub(crate) errors: u64,
    /// What the first error was.
    pub(crate) first_error: Option<String>,
}

impl Seen {
    pub(crate) fn failed(&mut self, why: impl std::fmt::Display) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| why.to_string());
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.answers += other.answers;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    /// Says it, with further numbers.
    pub(crate) fn tell(&self, more: &[(&str, f64)]) {
        println!("answers {}", self.answers);
        println!("errors {}", self.errors);
        for (name, value) in more {
            println!("{name} {value}");
        }
        if let Some(why) = &self.first_error {
            eprintln!("{} errors, the first: {why}", self.errors);
        }
    }
}

/// Reads such lines: a name and a number each.
pub(crate) fn told(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}
