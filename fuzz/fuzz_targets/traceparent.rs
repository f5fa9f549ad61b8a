//! `traceparent`: what is read prints to 55 bytes that read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use throughline_core::propagation::traceparent::{LEN, parse, print};

fuzz_target!(|value: &[u8]| {
    if let Ok(parent) = parse(value) {
        let text = print(&parent);
        assert_eq!(parse(&text), Ok(parent));
        assert!(value.len() >= LEN);
        assert!(text.starts_with(b"00-"));
    }
});
