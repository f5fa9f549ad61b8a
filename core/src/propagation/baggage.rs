//! The `baggage` header (W3C Baggage): the application's own pairs, carried as received.
//!
//! A list is the header in normal form: members joined by `,`, no white space around them, none empty; inside a
//! member every byte stays as it came. Never fails: what cannot be carried is left out and counted.

use std::borrow::Cow;

use super::{list, trim};
use crate::{hex, limits};

/// The header's name.
pub const HEADER: &str = "baggage";

/// Members that were not carried on, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cut {
    /// Valid, but beyond [`limits::BAGGAGE_MEMBERS_MAX`] or [`limits::BAGGAGE_BYTES_MAX`].
    pub over_limit: usize,
    /// Outside the grammar.
    pub invalid: usize,
}

/// Joins the values of all `baggage` headers, in order, into the normal form in `list`.
///
/// Where the next valid member would pass a limit, it and all valid members to its right are left out
/// (§3.3.2 allows it); half a member is never carried. Members of the same key stay.
pub fn join<'a>(values: impl IntoIterator<Item = &'a [u8]>, list: &mut Vec<u8>) -> Cut {
    list.clear();
    let mut cut = Cut::default();
    let mut count = 0;
    for member in values.into_iter().flat_map(list::split) {
        if !is_member(member) {
            cut.invalid += 1;
        } else if cut.over_limit > 0 || !fits(list, count, member.len()) {
            cut.over_limit += 1;
        } else {
            list::push(list, member);
            count += 1;
        }
    }
    cut
}

/// Key and raw value of each member from the left, without properties; the value is still percent-encoded.
pub fn members(list: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    list::split(list).filter_map(pair)
}

/// The value of the right-most member of this key, percent-decoded; bytes that are not UTF-8 become U+FFFD.
///
/// The format gives duplicates no order of precedence; OpenTelemetry's libraries let the last one win.
/// Allocates only when something has to be decoded.
#[must_use]
pub fn find<'a>(list: &'a [u8], key: &str) -> Option<Cow<'a, str>> {
    members(list).filter(|(name, _)| *name == key.as_bytes()).last().map(|(_, raw)| decode(raw))
}

/// Adds a member at the right, percent-encoding what a value may not hold.
///
/// `false`, and the list as it was, when a limit would be passed or `key` is not a token.
pub fn append(list: &mut Vec<u8>, key: &str, value: &[u8]) -> bool {
    if !is_token(key.as_bytes()) || value.len().max(key.len()) > limits::BAGGAGE_BYTES_MAX {
        return false;
    }
    let value_bytes: usize = value.iter().map(|byte| if is_literal(*byte) { 1 } else { 3 }).sum();
    if !fits(list, list::split(list).count(), key.len() + 1 + value_bytes) {
        return false;
    }
    list::push(list, key.as_bytes());
    list.push(b'=');
    for byte in value {
        if is_literal(*byte) {
            list.push(*byte);
        } else {
            let mut digits = [0; 2];
            hex::encode(&[*byte], &mut digits);
            digits.make_ascii_uppercase();
            list.push(b'%');
            list.extend_from_slice(&digits);
        }
    }
    true
}

/// Removes every member of this key; says whether there was one.
pub fn remove(list: &mut Vec<u8>, key: &str) -> bool {
    let of_key =
        |place: list::Place<'_>| matches!(pair(place.member), Some((name, _)) if name == key.as_bytes());
    list::prune(list, of_key) > 0
}

/// Whether a list of `count` members may grow by one of `member_bytes`.
fn fits(list: &[u8], count: usize, member_bytes: usize) -> bool {
    let comma = usize::from(!list.is_empty());
    count < limits::BAGGAGE_MEMBERS_MAX && list.len() + comma + member_bytes <= limits::BAGGAGE_BYTES_MAX
}

fn pair(member: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key, rest) = list::split_at_sign(member, b'=')?;
    let value = list::split_at_sign(rest, b';').map_or(rest, |(value, _)| value);
    Some((trim(key), trim(value)))
}

/// §3.3.1. An empty property, as in `a=1;`, is let through: it harms nobody, and the value is the user's.
fn is_member(member: &[u8]) -> bool {
    let mut parts = member.split(|byte| *byte == b';').map(trim);
    parts.next().and_then(|head| list::split_at_sign(head, b'=')).is_some_and(is_pair)
        && parts.all(|property| match list::split_at_sign(property, b'=') {
            Some(sides) => is_pair(sides),
            None => property.is_empty() || is_token(property),
        })
}

fn is_pair((key, value): (&[u8], &[u8])) -> bool {
    is_token(trim(key)) && trim(value).iter().copied().all(is_octet)
}

/// RFC 9110 §5.6.2.
fn is_token(text: &[u8]) -> bool {
    let is_token_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_token_byte)
}

/// The grammar's `baggage-octet`: printable without space, `"`, `,`, `;` and `\`.
fn is_octet(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\')
}

/// Whether a byte stands for itself; `%` begins an encoded one.
fn is_literal(byte: u8) -> bool {
    is_octet(byte) && byte != b'%'
}

/// A `%` that two digits do not follow stands for itself.
fn decode(raw: &[u8]) -> Cow<'_, str> {
    if !raw.contains(&b'%') {
        return String::from_utf8_lossy(raw);
    }
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [first, after @ ..] = rest {
        rest = after;
        bytes.push(*first);
        if let (b'%', Some((digits, beyond))) = (first, after.split_first_chunk::<2>())
            && let Some([byte]) = hex::decode(&digits.to_ascii_lowercase())
            && let Some(last) = bytes.last_mut()
        {
            *last = byte;
            rest = beyond;
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::propagation::vectors::{self, Row};

    fn joined(values: &[&[u8]]) -> (Cut, Vec<u8>) {
        let mut list = b"left over".to_vec();
        (join(values.iter().copied(), &mut list), list)
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    fn run(row: &Row) {
        match row.verb() {
            "join" => {
                let (cut, list) = joined(&row.inputs());
                let over =
                    if cut.over_limit > 0 { format!("over {}", cut.over_limit) } else { String::new() };
                let invalid =
                    if cut.invalid > 0 { format!("invalid {}", cut.invalid) } else { String::new() };
                row.check(format!("{over} {invalid}").trim(), &[&list]);
            }
            "append to" => {
                let mut list = row.input(2).to_vec();
                match append(&mut list, text(row.input(0)), row.input(1)) {
                    true => row.check("", &[&list]),
                    false => {
                        assert_eq!(list, row.input(2), "a refused member leaves the list as it was");
                        row.check("refused", &[]);
                    }
                }
            }
            "remove from" => {
                let mut list = row.input(1).to_vec();
                match remove(&mut list, text(row.input(0))) {
                    true => row.check("", &[&list]),
                    false => row.check("nothing", &[]),
                }
            }
            "find in" => match find(row.input(1), text(row.input(0))) {
                Some(value) => row.check("", &[value.as_bytes()]),
                None => row.check("nothing", &[]),
            },
            _ => row.unknown_verb(),
        }
    }

    #[test]
    fn vectors_hold() {
        vectors::rows("baggage.txt", include_str!("../../vectors/baggage.txt")).iter().for_each(run);
    }

    #[test]
    fn a_value_without_percent_signs_is_borrowed() {
        assert!(matches!(find(b"a=1", "a"), Some(Cow::Borrowed("1"))));
    }

    #[test]
    fn every_byte_that_is_appended_is_found_again() {
        let value: String = (0..=255).map(char::from).collect();
        let mut list = b"a=0".to_vec();
        assert!(append(&mut list, "a", value.as_bytes()));
        assert_eq!(find(&list, "a"), Some(Cow::Borrowed(value.as_str())));
        assert_eq!(joined(&[&list]), (Cut::default(), list));
    }

    #[test]
    fn no_damage_panics_and_the_normal_form_joins_to_itself() {
        vectors::damaged(b"a = %41%C3 ;p;q=1 ,, b=x=y,a=", |value| {
            let (_, mut list) = joined(&[value]);
            assert_eq!(joined(&[&list]), (Cut::default(), list.clone()), "{}", value.escape_ascii());
            remove(&mut list, "a");
            assert_eq!(find(&list, "a"), None);
        });
    }
}
