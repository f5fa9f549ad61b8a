//! Which bodies are left alone, by what their head says.

use crate::carrier::Carrier;

/// A body whose bytes somebody vouched for.
const SIGNED: [&str; 5] = ["content-digest", "repr-digest", "digest", "signature", "signature-input"];

/// Why a body is not held and edited, as the label of a counter: it is signed, compressed, or longer than
/// `bytes_max`.
#[must_use]
pub fn unfit(carrier: &impl Carrier, bytes_max: u64) -> Option<&'static str> {
    if SIGNED.iter().any(|name| carrier.get(name).is_some()) {
        return Some("signed");
    }
    let encoding = carrier.get("content-encoding");
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
        return Some("compressed");
    }
    (content_length(carrier)? > bytes_max).then_some("over_limit")
}

/// Bytes of the body, where the head tells them.
#[must_use]
pub fn content_length(carrier: &impl Carrier) -> Option<u64> {
    std::str::from_utf8(carrier.get("content-length")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_compressed_and_large_bodies_are_left_alone() {
        for (name, value, expected) in [
            ("content-encoding", "gzip", Some("compressed")),
            ("content-encoding", "identity", None),
            ("content-digest", "sha-256=:x:", Some("signed")),
            ("signature", "sig=:x:", Some("signed")),
            ("content-length", "101", Some("over_limit")),
            ("content-length", "100", None),
            ("content-length", "many", None),
        ] {
            let headers = vec![(name.to_owned(), value.as_bytes().to_vec())];
            assert_eq!(unfit(&headers, 100), expected, "{name}: {value}");
        }
    }
}
