//! The bare wire: what is no HTTP never reaches the application, and nobody can make the sidecar grow.

mod bodies;
mod caps;
mod headers;
mod heads;
mod stalls;
