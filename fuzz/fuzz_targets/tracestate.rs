//! `tracestate`: a list stays within its limits and joins to itself; what is put is found, what is removed is
//! gone. Input: a key, a value and the values of any number of headers, each on a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use throughline_core::propagation::tracestate::{find, join, members, put_first, remove};

const MEMBERS_MAX: usize = 32;
const BYTES_MAX: usize = 2048;

fn joined(values: &[&[u8]]) -> Option<Vec<u8>> {
    let mut list = b"left over".to_vec();
    let result = join(values.iter().copied(), &mut list);
    assert!(result.is_ok() || list.is_empty());
    result.is_ok().then_some(list)
}

fn check(list: &Vec<u8>) {
    assert_eq!(joined(&[list]).as_ref(), Some(list), "normal form");
    assert!(members(list).count() <= MEMBERS_MAX && list.len() <= BYTES_MAX);
}

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n');
    let (key, value) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let headers: Vec<&[u8]> = lines.collect();

    // The list functions are total on bytes that are no list.
    let mut raw = input.to_vec();
    remove(&mut raw, key);
    assert_eq!(find(&raw, key), None);
    put_first(&mut raw, key, value);

    let Some(mut list) = joined(&headers) else { return };
    check(&list);
    let pair = [key, b"=", value].concat();
    let before = list.clone();
    put_first(&mut list, key, value);
    check(&list);
    if joined(&[&pair]).is_some_and(|own| members(&own).eq([(key, value)])) {
        assert_eq!(members(&list).next(), Some((key, value)));
        assert_eq!(members(&list).filter(|(name, _)| *name == key).count(), 1);
        // Nobody else's member appears, changes or moves.
        let mut others = members(&before);
        assert!(members(&list).skip(1).all(|other| others.any(|old| old == other)));
    } else {
        assert_eq!(list, before);
    }
    let had = find(&list, key).is_some();
    assert_eq!(remove(&mut list, key), had);
    assert_eq!(find(&list, key), None);
    check(&list);
});
