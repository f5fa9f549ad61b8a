//! Comma-separated lists as `tracestate` and `baggage` keep them: members joined by `,`, no white space around
//! them, none empty. Knows nothing of what a member means.

use super::trim;

/// The members from the left; of a list that is not in normal form, too.
pub(super) fn split(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(trim).filter(|member| !member.is_empty())
}

/// The two sides of the first `sign`.
pub(super) fn split_at_sign(member: &[u8], sign: u8) -> Option<(&[u8], &[u8])> {
    let at = member.iter().position(|byte| *byte == sign)?;
    let (left, right) = member.split_at_checked(at)?;
    Some((left, right.get(1..)?))
}

/// Adds a member at the right.
pub(super) fn push(list: &mut Vec<u8>, member: &[u8]) {
    if !list.is_empty() {
        list.push(b',');
    }
    list.extend_from_slice(member);
}

/// Walks the members from the right and removes, in place, those that are `unwanted`.
/// Returns how many.
pub(super) fn prune(list: &mut Vec<u8>, mut unwanted: impl FnMut(Place<'_>) -> bool) -> usize {
    let mut removed = 0;
    let mut end = list.len();
    loop {
        let left = list.get(..end).unwrap_or_default();
        let comma = left.iter().rposition(|byte| *byte == b',');
        let start = comma.map_or(0, |at| at + 1);
        let member = trim(left.get(start..).unwrap_or_default());
        if unwanted(Place { member, left_most: comma.is_none(), list_bytes: list.len() }) {
            // One comma goes with the member: the one before it, or for the left-most the one after it.
            let cut = match comma {
                Some(comma) => comma..end,
                None => 0..list.len().min(end + 1),
            };
            list.drain(cut);
            removed += 1;
        }
        match comma {
            Some(comma) => end = comma,
            None => return removed,
        }
    }
}

/// A member that [`prune`] asks about.
pub(super) struct Place<'a> {
    /// The member's own bytes.
    pub(super) member: &'a [u8],
    /// Whether nothing stands before it.
    pub(super) left_most: bool,
    /// Bytes that the whole list has at this moment.
    pub(super) list_bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pruned(list: &str, unwanted: &str) -> String {
        let mut list = list.as_bytes().to_vec();
        prune(&mut list, |place| place.member == unwanted.as_bytes());
        String::from_utf8(list).unwrap()
    }

    #[test]
    fn members_leave_together_with_one_comma() {
        assert_eq!(pruned("a,b,c", "a"), "b,c");
        assert_eq!(pruned("a,b,c", "b"), "a,c");
        assert_eq!(pruned("a,b,c", "c"), "a,b");
        assert_eq!(pruned("a,b,a,a", "a"), "b");
        assert_eq!(pruned("a,a", "a"), "");
        assert_eq!(pruned("", "a"), "");
        assert_eq!(pruned("ab", "a"), "ab");
    }
}
