//! The `tracestate` header of W3C Trace Context Level 2: other vendors' members, carried from hop to hop.
//!
//! A list is the header in normal form: members joined by `,`, no white space around them, none empty. Never
//! interprets a value and never drops another vendor's member except at a limit.

use super::{Invalid, list};
use crate::limits;

/// The header's name.
pub const HEADER: &str = "tracestate";

/// Joins the values of all `tracestate` headers, in order, into the normal form in `list`.
///
/// Too many members or a single broken one spoil the whole list, which is then left empty (§3.3.1). A list of
/// more than [`limits::TRACESTATE_BYTES_MAX`] loses whole members (§3.3.1.5). Members of the same key stay.
pub fn join<'a>(values: impl IntoIterator<Item = &'a [u8]>, list: &mut Vec<u8>) -> Result<(), Invalid> {
    list.clear();
    let mut count = 0;
    for member in values.into_iter().flat_map(list::split) {
        count += 1;
        if let Err(invalid) = check(member, count) {
            list.clear();
            return Err(invalid);
        }
        list::push(list, member);
    }
    cut(list, Own::Absent);
    Ok(())
}

/// Key and value of each member, from the left.
pub fn members(list: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    list::split(list).filter_map(|member| list::split_at_sign(member, b'='))
}

/// The value of the left-most, that is the latest, member of this key.
#[must_use]
pub fn find<'a>(list: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    members(list).find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// Removes every member of this key; says whether there was one.
pub fn remove(list: &mut Vec<u8>, key: &[u8]) -> bool {
    let of_key = |place: list::Place<'_>| matches!(list::split_at_sign(place.member, b'='), Some((name, _)) if name == key);
    list::prune(list, of_key) > 0
}

/// Makes `key=value` the left-most member and the only one of its key (§3.5).
///
/// The right-most others go when there would be more than [`limits::TRACESTATE_MEMBERS_MAX`], and others are cut
/// as in [`join`]; this member is never cut. A key or value outside the grammar changes nothing.
pub fn put_first(list: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    if !is_key(key) || !is_value(value) {
        return;
    }
    remove(list, key);
    let others_bytes = list.len();
    for part in [key, b"=", value] {
        list.extend_from_slice(part);
    }
    if others_bytes > 0 {
        list.push(b',');
    }
    list.rotate_left(others_bytes);

    let mut commas = list.iter().enumerate().filter(|(_, byte)| **byte == b',').map(|(at, _)| at);
    if let Some(surplus) = commas.nth(limits::TRACESTATE_MEMBERS_MAX - 1) {
        list.truncate(surplus);
    }
    cut(list, Own::LeftMost);
}

/// Whether the left-most member is this process's own, which is not cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Own {
    Absent,
    LeftMost,
}

/// Takes whole members away until the list fits: the long ones first, then any, each from the right (§3.3.1.5).
fn cut(list: &mut Vec<u8>, own: Own) {
    for longer_than in [limits::TRACESTATE_CUT_FIRST, 0] {
        if list.len() <= limits::TRACESTATE_BYTES_MAX {
            return;
        }
        list::prune(list, |place| {
            place.list_bytes > limits::TRACESTATE_BYTES_MAX
                && place.member.len() > longer_than
                && !(place.left_most && own == Own::LeftMost)
        });
    }
}

/// Checks the `count`th member.
fn check(member: &[u8], count: usize) -> Result<(), Invalid> {
    if count > limits::TRACESTATE_MEMBERS_MAX {
        return Err(Invalid::Members);
    }
    let (key, value) = list::split_at_sign(member, b'=').ok_or(Invalid::Separator)?;
    if !is_key(key) {
        return Err(Invalid::Key);
    }
    if !is_value(value) {
        return Err(Invalid::Value);
    }
    Ok(())
}

/// §3.3.1.3.1 of Level 2, where a key with `@` has no other form than one without.
fn is_key(key: &[u8]) -> bool {
    let [first, rest @ ..] = key else { return false };
    key.len() <= limits::TRACESTATE_KEY_MAX
        && matches!(first, b'a'..=b'z' | b'0'..=b'9')
        && rest
            .iter()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@'))
}

/// §3.3.1.3.2: printable, spaces inside and in front allowed, but not at the end.
fn is_value(value: &[u8]) -> bool {
    value.len() <= limits::TRACESTATE_VALUE_MAX
        && value.last().is_some_and(|last| *last != b' ')
        && value.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b',' | b'='))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::propagation::vectors::{self, Row};

    fn joined(values: &[&[u8]]) -> (Result<(), Invalid>, Vec<u8>) {
        let mut list = b"left over".to_vec();
        (join(values.iter().copied(), &mut list), list)
    }

    fn run(row: &Row) {
        match row.verb() {
            "join" => match joined(&row.inputs()) {
                (Ok(()), list) => row.check("", &[&list]),
                (Err(invalid), list) => {
                    assert!(list.is_empty());
                    row.check(&format!("invalid {}", invalid.reason()), &[]);
                }
            },
            "put into" => {
                let mut list = row.input(2).to_vec();
                put_first(&mut list, row.input(0), row.input(1));
                row.check("", &[&list]);
            }
            "remove from" => {
                let mut list = row.input(1).to_vec();
                match remove(&mut list, row.input(0)) {
                    true => row.check("", &[&list]),
                    false => row.check("nothing", &[]),
                }
            }
            "find in" => match find(row.input(1), row.input(0)) {
                Some(value) => row.check("", &[value]),
                None => row.check("nothing", &[]),
            },
            _ => row.unknown_verb(),
        }
    }

    #[test]
    fn vectors_hold() {
        vectors::rows("tracestate.txt", include_str!("../../vectors/tracestate.txt")).iter().for_each(run);
    }

    #[test]
    fn no_damage_panics_and_the_normal_form_joins_to_itself() {
        vectors::damaged(b"a1=x y ,, b@c=~,a1=2", |value| {
            if let (Ok(()), list) = joined(&[value]) {
                assert_eq!(joined(&[&list]), (Ok(()), list.clone()), "{}", value.escape_ascii());
                let rejoined =
                    members(&list).map(|(key, value)| [key, b"=", value].concat()).collect::<Vec<_>>();
                assert_eq!(rejoined.join(&b','), list);
            }
        });
    }

    #[test]
    fn list_functions_are_total_on_bytes_that_are_not_a_list() {
        vectors::damaged(b"a=1,,=, b ,a=2,", |value| {
            let mut list = value.to_vec();
            remove(&mut list, b"a");
            assert_eq!(find(&list, b"a"), None, "{}", value.escape_ascii());
            put_first(&mut list, b"a", b"3");
            assert_eq!(members(&list).next(), Some((&b"a"[..], &b"3"[..])));
        });
    }
}
