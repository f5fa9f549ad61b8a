//! Keeps traces: the last moment in pieces, the rest in sealed blocks, in memory and in one file.
//! Must never lose a span without counting it, and never answer a list of traces by reading spans.

mod block;
mod bytes;
mod catalogue;
mod export;
mod file;
mod index;
mod keeper;
mod search;
mod shape;
mod shelf;
mod staging;

pub use bytes::Damaged;
pub(crate) use bytes::Packer;
pub use export::{ExportError, Exported, Wanted, export};
pub use file::FILE;
pub(crate) use keeper::{Keeper, LEVEL};
pub(crate) use shelf::Shelf;
pub(crate) use staging::Sent;
