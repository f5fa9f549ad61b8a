//! Micro benches of `core`: nanoseconds, allocations and bytes allocated for each step. `make bench-core`.
//! Prints one line a case: the fastest, the median and the slowest of several rounds, since a machine
//! is never quiet; allocations are exact.

mod count;
mod events;
mod exchange;

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Rounds of one case.
const ROUNDS: usize = 9;
/// How long one round takes, about.
const ROUND: Duration = Duration::from_millis(40);

/// Runs a case and prints its line. `bytes` is what one run goes through, where that is of interest.
pub(crate) fn measure<T>(name: &str, bytes: Option<usize>, mut run: impl FnMut() -> T) {
    let once = Instant::now();
    black_box(run());
    let runs = (ROUND.as_nanos() / once.elapsed().as_nanos().max(50)).clamp(3, 200_000);
    let mut nanos: Vec<f64> = Vec::with_capacity(ROUNDS);
    let mut counted = count::Counted::default();
    for _ in 0..ROUNDS {
        let before = count::so_far();
        let began = Instant::now();
        for _ in 0..runs {
            black_box(run());
        }
        nanos.push(began.elapsed().as_nanos() as f64 / runs as f64);
        counted = count::so_far().since(before);
    }
    nanos.sort_by(f64::total_cmp);
    let (least, median, most) = (nanos[0], nanos[ROUNDS / 2], nanos[ROUNDS - 1]);
    let speed = bytes.map_or(String::new(), |bytes| format!("{:6.2} GB/s", bytes as f64 / median));
    let (allocations, allocated) =
        (counted.allocations as f64 / runs as f64, counted.bytes as f64 / runs as f64);
    println!(
        "{name:<44} {least:>10.0} {median:>10.0} {most:>10.0}  {allocations:>8.2} {allocated:>11.0}  {speed}"
    );
}

fn main() {
    println!(
        "{:<44} {:>10} {:>10} {:>10}  {:>8} {:>11}",
        "ns a run", "min", "median", "max", "allocs", "bytes"
    );
    exchange::run();
    events::run();
}
