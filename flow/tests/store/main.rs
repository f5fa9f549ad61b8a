//! Traces in, traces out: what is kept over a restart, a kill, a full disk and a damaged block, what goes and when.
//! Knows the engine from outside only.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "scenarios: what fails here is to be seen"
)]

#[path = "../../benches/realistic/mod.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the bench")]
mod realistic;

mod disk;
mod export;
mod killed;
mod queries;
mod support;
