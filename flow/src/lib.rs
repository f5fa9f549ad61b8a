//! The flow server: OTLP in, traces kept, numbers added up as they arrive, questions answered.
//! Must never answer by scanning spans what the numbers can answer, and never lose anything without counting it.

pub mod engine;
pub mod fan_out;
pub mod layout;
pub mod live;
pub mod numbers;
pub mod server;
pub mod settings;
pub mod span;
pub mod store;
pub mod times;
pub mod trace;
pub mod wire;

pub use throughline_rim::log;
