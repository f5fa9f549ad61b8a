//! `baggage`: a list stays within its limits and joins to itself, members are whole and in order; what is
//! appended is found, what is removed is gone. Input: a key, a value and the values of any number of headers,
//! each on a line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use throughline_core::propagation::baggage::{Cut, append, find, join, members, remove};

const MEMBERS_MAX: usize = 64;
const BYTES_MAX: usize = 8192;

fn check(list: &[u8]) {
    let mut again = b"left over".to_vec();
    assert_eq!(join([list], &mut again), Cut::default());
    assert_eq!(again, list, "normal form");
    assert!(members(list).count() <= MEMBERS_MAX && list.len() <= BYTES_MAX);
}

fn trimmed(member: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = member.iter().position(|byte| !blank(byte)).unwrap_or(member.len());
    let end = member.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    &member[start..end]
}

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n');
    let (key, value) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let headers: Vec<&[u8]> = lines.collect();

    let mut list = Vec::new();
    let cut = join(headers.iter().copied(), &mut list);
    check(&list);
    // Nothing is lost uncounted, and what is carried is carried as it came.
    let comma = |byte: &u8| *byte == b',';
    let sent: Vec<&[u8]> = headers
        .iter()
        .flat_map(|header| header.split(comma))
        .map(trimmed)
        .filter(|m| !m.is_empty())
        .collect();
    let carried: Vec<&[u8]> = list.split(comma).filter(|member| !member.is_empty()).collect();
    assert_eq!(carried.len() + cut.over_limit + cut.invalid, sent.len());
    let mut rest = sent.iter();
    assert!(carried.iter().all(|member| rest.any(|other| other == member)));

    let Ok(key) = std::str::from_utf8(key) else { return };
    // The list functions are total on bytes that are no list.
    let mut raw = input.to_vec();
    remove(&mut raw, key);
    assert_eq!(find(&raw, key), None);
    append(&mut raw, key, value);

    let before = list.clone();
    if append(&mut list, key, value) {
        assert_eq!(find(&list, key).as_deref(), Some(&*String::from_utf8_lossy(value)));
        assert!(list.starts_with(&before));
    } else {
        assert_eq!(list, before);
    }
    check(&list);
    let had = find(&list, key).is_some();
    assert_eq!(remove(&mut list, key), had);
    assert_eq!(find(&list, key), None);
    check(&list);
});
