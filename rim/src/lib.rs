//! What the programs share where they touch the world: their own log, the sources of their settings, TLS towards
//! others, and what a collector's answer says. Must never know what a program does.

pub mod collector;
pub mod log;
pub mod sources;
pub mod stream;
pub mod tls;
