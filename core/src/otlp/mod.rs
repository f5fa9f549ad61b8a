//! OTLP bytes, written once for both hosts. Held against `opentelemetry-proto` as its oracle. Never builds a
//! message tree: every function appends to the caller's buffer.

pub mod answer;
mod attribute;
pub(crate) mod metrics;
pub mod request;
mod span;
mod wire;

pub use attribute::Attributes;
pub use span::{Kind, Parent, Span, Status, link};
