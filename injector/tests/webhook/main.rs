//! The shipped binary as API servers, strangers and operators meet it. The bench of admissions, against an
//! optimised build:
//!
//!     cargo build --profile quick -p throughline-injector
//!     THROUGHLINE_INJECTOR=$PWD/target/quick/throughline-injector \
//!         cargo test -p throughline-injector --test webhook -- bench_of_admissions --ignored --nocapture

#[cfg(test)]
mod clients;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod support;
