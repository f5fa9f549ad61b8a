//! Export: what arrives at a collector, what happens when it fails, and that the books are exact all along.

mod console;
mod delivery;
mod faults;
mod metrics;
mod tls;
