//! The life of a sidecar: its settings, its start, its ports, its end.

mod access_log;
mod admin;
mod closed;
mod debug;
mod end;
mod probes;
mod settings;
mod start;
