//! Contexts: how the thread runs through pods, what it carries, and what it never does.

mod formats;
mod headerless;
mod neighbours;
mod operation;
mod sampling;
mod thread;
mod w3c;

/// A caller's trace id.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
/// A caller's span id.
const CALLER: &str = "b7ad6b7169203331";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}
