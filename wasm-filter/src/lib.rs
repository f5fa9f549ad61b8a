//! The same behaviour as the sidecar's, inside Envoy: gives `throughline-core` headers, bodies, moments and ids,
//! and ships the spans that come of it. Must never trap, and never decide what `core` should decide.
//!
//! `host` is the only module that reaches Envoy; `outcome` and `settings` are pure.

#[cfg(any(target_os = "wasi", test))]
mod outcome;
#[cfg(any(target_os = "wasi", test))]
mod settings;

#[cfg(target_os = "wasi")]
mod callbacks;
#[cfg(target_os = "wasi")]
mod control;
#[cfg(target_os = "wasi")]
mod crossing;
#[cfg(target_os = "wasi")]
mod export;
#[cfg(target_os = "wasi")]
mod host;
#[cfg(target_os = "wasi")]
mod root;
#[cfg(target_os = "wasi")]
mod stats;
#[cfg(target_os = "wasi")]
mod stream;
#[cfg(target_os = "wasi")]
mod worker;
