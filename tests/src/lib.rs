//! The stage on which the scenarios play: real sidecar processes, or real Envoys with our filter, between scripted
//! services, an OTLP collector that waits for spans, simple clients and bare wires. It knows the product only from outside: its command
//! line, its headers, its bytes. It never waits by the clock where a condition can be awaited.

pub mod ask;
pub mod books;
pub mod canonical;
pub mod cluster;
pub mod collector;
pub mod envoy;
pub mod feed;
pub mod flow;
pub mod frames;
pub mod grpc;
pub mod judges;
pub mod mesh;
pub mod parity;
pub mod pki;
pub mod service;
pub mod sidecar;
pub mod span;
pub mod wait;
pub mod wire;

/// What nearly every scenario needs.
pub mod prelude {
    pub use crate::ask::{Answer, Ask, Connection, Protocol};
    pub use crate::books::Books;
    pub use crate::collector::{Collector, Reaction};
    pub use crate::mesh::{Mesh, Pod};
    pub use crate::service::{Copying, Script, Service, Visit, answer, calling, echo, script};
    pub use crate::sidecar::{Host, Sidecar};
    pub use crate::span::{Kind, Span, SpanStatus, assert_connected, the_only};
    pub use crate::wait::{PATIENCE, eventually, within};
    pub use crate::wire::{Peer, Wire};
}
