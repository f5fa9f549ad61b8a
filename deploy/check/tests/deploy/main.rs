//! What `deploy/` says, held to the code and to judges of others: Helm, kustomize, the schemas of Kubernetes, a real API
//! server of Kubernetes, linters. No cluster runs here.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test's own helpers may fail it; clippy knows tests by their attribute only"
)]

mod chart;
mod collector;
mod images;
mod names;
mod parity;
mod render;
mod schema;
mod security;
mod server;
