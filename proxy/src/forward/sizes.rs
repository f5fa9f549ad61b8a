//! Holds the future of a forwarded request to a size: it is a memory block of its own for each request under way.

use super::forward;

/// Bytes. A number that falls is lowered here; one that rises needs a reason in the commit.
const FORWARD_BYTES_MAX: usize = 2648;

/// The size of what a function returns. It is not called.
fn of<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn the_future_of_a_forwarded_request_stays_small() {
    let bytes = of(forward);
    assert!(bytes <= FORWARD_BYTES_MAX, "{bytes} bytes, want {FORWARD_BYTES_MAX}");
}
