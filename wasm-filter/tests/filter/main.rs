//! The built filter on a small host of our own (`host`), without Envoy: scenarios of milliseconds, and every
//! fault that a host can have. Needs the module: `make wasm`, or `THROUGHLINE_WASM`. Must never sleep: the clock
//! is the host's.

#[cfg(test)]
mod collector;
#[cfg(test)]
mod configuration;
#[cfg(test)]
mod exchanges;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod host;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod module;
#[cfg(test)]
mod orders;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod shapes;
#[cfg(test)]
mod workers;
