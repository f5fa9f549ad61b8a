//! What only Envoy has: the bootstrap that we ship, a configuration that is refused, workers that share, Envoy's own
//! tracer, and ten thousand requests by somebody who means harm. All others are run against Envoy too, by
//! `scripts/parity`.

mod collectors;
mod control;
mod hostile;
mod redirected;
mod refused;
mod shipped;
mod tracer;
mod workers;
