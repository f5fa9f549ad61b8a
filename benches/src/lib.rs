//! What the benches of `core` share. Holds the requests that are timed and counted; measures nothing itself.

pub mod cases;
pub mod stage;
