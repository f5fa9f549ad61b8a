//! OTLP as it comes and goes: protobuf walked where it lies, JSON turned into protobuf once, spans decoded whole when
//! somebody asks. Must never panic, whatever the bytes, nor take more memory than they do many times over.

pub mod json;
pub mod proto;
pub mod walk;
pub mod whole;

#[cfg(test)]
mod oracle;

pub use proto::Malformed;
