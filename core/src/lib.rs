//! Every decision of Throughline: contexts, operations, routes, sampling, the life of a span, OTLP bytes.
//! Opens nothing, reads no clock, draws no random number, logs nothing, spawns nothing: a host does, and calls
//! [`exchange::Tracer`]. Builds for `wasm32-wasip1`.

pub mod adaptive;
pub mod batch;
pub mod browser;
pub mod bucket;
pub mod carrier;
pub mod classify;
pub mod control;
mod decimal;
pub mod events;
pub mod exchange;
mod hash;
pub mod hex;
pub mod ids;
mod in_flight;
mod intern;
pub mod keep;
mod latency;
pub mod limits;
pub mod mesh;
pub mod metrics;
pub mod mode;
pub mod names;
pub mod operation;
pub mod otlp;
pub mod peer;
pub mod prometheus;
pub mod propagation;
pub mod redact;
pub mod route;
pub mod sampling;
pub mod settings;
