//! B3: what is read prints to a single header that reads as the same, and the two spellings agree. Input: the
//! single header, then the trace id, span id, sampled and flags headers, each on a line; a line of `?` alone is
//! an absent header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use throughline_core::propagation::b3::{B3, Sampling, parse_multi, parse_single, print_single};

fn check(b3: B3) {
    let (Some((trace, span)), Some(sampled)) = (b3.context, b3.sampling.sampled()) else { return };
    let text = print_single(trace, span, sampled, b3.sampling == Sampling::Debug);
    assert_eq!(parse_single(&text), Ok(b3));

    let (trace, span) = (trace.digits(), span.digits());
    let (state, flags): (Option<&[u8]>, Option<&[u8]>) = match b3.sampling {
        Sampling::Deferred => (None, None),
        Sampling::Deny => (Some(b"0"), None),
        Sampling::Accept => (Some(b"1"), None),
        Sampling::Debug => (None, Some(b"1")),
    };
    assert_eq!(parse_multi(Some(&trace), Some(&span), state, flags), Ok(Some(b3)));
}

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n');
    if let Some(Ok(b3)) = lines.next().map(parse_single) {
        check(b3);
    }
    let mut line = || lines.next().filter(|line| *line != b"?");
    let (trace, span, sampled, flags) = (line(), line(), line(), line());
    match parse_multi(trace, span, sampled, flags) {
        Ok(Some(b3)) => check(b3),
        Ok(None) => assert_eq!((trace, span, sampled, flags), (None, None, None, None)),
        Err(_) => {}
    }
});
