//! What the numbers say, held against a count of all requests.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail")]

mod bounds;
mod drawn;
mod foreign;
mod once;
mod push;
mod restart;
mod sidecars;
