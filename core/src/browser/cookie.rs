//! The cookie by which a full-page navigation or a native form carries its operation: ten seconds long, of the same
//! site alone. Finds it in a line of `Cookie` and takes it out; every other cookie stays byte for byte.

use crate::operation::Operation;
use crate::propagation::traceparent;

/// Its name.
const NAME: &[u8] = b"_tl_op";

/// What the cookie says: `<traceparent>~<operation>`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    parent: traceparent::TraceParent,
    /// The operation.
    pub operation: Operation,
}

impl Ticket {
    fn parse(value: &[u8]) -> Option<Self> {
        let (parent, rest) = value.split_at_checked(traceparent::LEN)?;
        let parent = traceparent::parse(parent).ok()?;
        Some(Self { parent, operation: Operation::parse(rest.strip_prefix(b"~")?)? })
    }

    /// As a header has it.
    #[must_use]
    pub fn traceparent(&self) -> [u8; traceparent::LEN] {
        traceparent::print(&self.parent)
    }
}

/// The line without the cookie, and what the cookie says, unless it is broken; none where it is not in the line.
#[must_use]
pub fn cut(line: &[u8]) -> Option<(Vec<u8>, Option<Ticket>)> {
    // Most lines are none of ours: this is all that they cost.
    if !line.windows(NAME.len()).any(|part| part == NAME) {
        return None;
    }
    let (mut rest, mut found, mut ticket) = (Vec::with_capacity(line.len()), false, None);
    let mut first = true;
    for part in line.split(|byte| *byte == b';') {
        let value = part.trim_ascii().strip_prefix(NAME).and_then(|value| value.strip_prefix(b"="));
        if let Some(value) = value {
            found = true;
            ticket = ticket.or_else(|| Ticket::parse(value));
            continue;
        }
        if first && found {
            rest.extend_from_slice(part.trim_ascii_start()); // the blank belonged to the cookie before it
        } else {
            if !first {
                rest.push(b';');
            }
            rest.extend_from_slice(part);
        }
        first = false;
    }
    found.then_some((rest, ticket))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4b1d0f7a2c3e5d6f8091a2b3c4d5e6f7-a1b2c3d4e5f60718-01";

    #[test]
    fn only_the_cookie_of_that_name_goes_and_the_others_stay_byte_for_byte() {
        for (line, rest) in [
            ("_tl_op=X", ""),
            ("a=1; _tl_op=X; b=\"2\"", "a=1; b=\"2\""),
            ("_tl_op=X; b=2;c = 3 ;;", "b=2;c = 3 ;;"),
            ("a=1;  _tl_op=X", "a=1"),
            ("_tl_op=X;_tl_op=Y; a=_tl_op", "a=_tl_op"),
            ("x_tl_op=1; _tl_op=X; _tl_opq=2", "x_tl_op=1; _tl_opq=2"),
            ("a=\u{e9}; _tl_op=X; =; b", "a=\u{e9}; =; b"),
        ] {
            let (left, ticket) = cut(line.as_bytes()).unwrap();
            assert_eq!((std::str::from_utf8(&left).unwrap(), ticket), (rest, None), "{line}");
        }
        for line in ["", "a=1", "_tl_opq=1; x_tl_op=2", "_tl_op", "a=_tl_op=X"] {
            assert_eq!(cut(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn a_ticket_is_a_context_and_an_operation() {
        let read = |value: String| cut(format!("_tl_op={value}").as_bytes()).unwrap().1;
        let ticket = read(format!("{PARENT}~log~in")).unwrap();
        assert_eq!((ticket.operation.as_str(), &ticket.traceparent()[..]), ("log~in", PARENT.as_bytes()));
        let long = "x".repeat(200);
        for bad in ["", PARENT, &format!("{PARENT}~"), &format!("{PARENT}-a"), &format!("{PARENT}~{long}")] {
            assert_eq!(read(bad.to_owned()), None, "{bad}");
        }
        let zero = PARENT.replace("a1b2c3d4e5f60718", "0000000000000000");
        assert_eq!(read(format!("{zero}~login")), None);
    }
}
