//! Messages: a trace runs through Pub/Sub and CloudEvents, and what can't be edited goes on as it came.
//!
//! The broker is Google's emulator. It takes seconds to start, so a scenario here plays many rows on one.

mod base64;
mod cells;
mod emulator;
mod framing;
mod http_events;
mod limits;
mod mission;
mod sdk;
mod settle;
mod stage;
mod streams;
mod tls;
