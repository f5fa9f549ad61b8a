//! `uber-trace-id`: what is read prints to a value that reads as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use throughline_core::propagation::jaeger::{parse, print};

fuzz_target!(|value: &[u8]| {
    if let Ok(id) = parse(value) {
        assert_eq!(parse(&print(&id)), Ok(id));
        assert!(id.sampled || !id.debug);
    }
});
