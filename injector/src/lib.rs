//! The injector: a mutating webhook that gives the pods of labelled namespaces their sidecar, and the controller
//! that keeps its certificates right and names the pods that slipped by. The decisions (`policy`, `patch`,
//! `review`, `certs::plan`) are pure: JSON in, JSON out. Must never keep a pod from being admitted.

pub mod api;
pub mod certs;
pub mod controller;
pub mod diff;
pub mod injector;
pub mod json;
pub mod log;
pub mod manifest;
pub mod metrics;
pub mod names;
pub mod offline;
pub mod patch;
pub mod pod;
pub mod policy;
pub mod quantity;
pub mod review;
pub mod run;
pub mod serve;
pub mod settings;
pub mod telemetry;
pub mod yaml;
