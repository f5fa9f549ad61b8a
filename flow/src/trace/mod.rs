//! What the spans of one trace say together: who called whom, where the time went, what went wrong and where the
//! context was lost. Total: any set of spans has an answer, in time that grows with their number. Must never hide
//! what it mended (a moved clock, a missing parent, a cut cycle), and never recurse.

pub mod assemble;
pub mod critical;
pub mod doctor;
pub mod findings;
pub mod graph;

pub use assemble::{Assembled, Note, Provenance};
