//! Keeps traces: the last moment in pieces, the rest in sealed blocks, in memory and in one file.
//! Must never lose a span without counting it, and never answer a list of traces by reading spans.

mod block;
mod bytes;
mod index;
mod shape;
mod staging;

pub use bytes::Damaged;
