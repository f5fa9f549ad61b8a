//! Holds the futures of connections and requests to a size: each connection and each stream has one, and they grow
//! unseen. A number that falls is lowered here; one that rises needs a reason in the commit.

use std::sync::Arc;

use super::{answer, first_bytes};
use crate::sidecar::Connection;
use crate::stack::stack;

/// Bytes of what drives one connection: the parser, the timers, and over HTTP/1.1 the request under way.
const CONNECTION_BYTES_MAX: usize = 4040;
/// Bytes of what serves one request, without what it keeps on the heap.
const REQUEST_BYTES_MAX: usize = 2008;

/// The size of what a function with three arguments returns. It is not called.
fn of_connection<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
    size_of::<F>()
}

fn of_request<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn the_future_of_a_connection_stays_small() {
    let bytes = of_connection(first_bytes);
    assert!(bytes <= CONNECTION_BYTES_MAX, "{bytes} bytes, want {CONNECTION_BYTES_MAX}");
}

#[test]
fn the_future_of_a_request_stays_small() {
    fn with<'a, S>(_: impl Fn(&'a Arc<Connection>) -> S) -> usize
    where
        S: tower::Service<
                http::Request<hyper::body::Incoming>,
                Response = http::Response<crate::stack::Body>,
                Error = std::convert::Infallible,
            >,
    {
        of_request(answer::<S>)
    }
    let bytes = with(stack);
    assert!(bytes <= REQUEST_BYTES_MAX, "{bytes} bytes, want {REQUEST_BYTES_MAX}");
}
