//! What of a URL may leave the process (ARCHITECTURE.md, invariant 7). Appends to a buffer; never lengthens what it
//! did not redact.

/// Query keys whose value is a credential by OpenTelemetry's conventions for `url.query` and `url.full`.
const CREDENTIAL_KEYS: [&str; 7] = [
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "AWSAccessKeyId",
    "Signature",
    "sig",
    "X-Goog-Signature",
];
const REDACTED: &[u8] = b"REDACTED";

/// What is recorded of a query.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Query {
    /// Keys and values, the values of these further keys redacted beside the well-known ones.
    Redacted(Vec<Box<str>>),
    /// Nothing.
    Off,
}

impl Query {
    /// Appends what may be recorded of `query`, which has no `?`. Keys stay, listed values do not.
    pub fn append(&self, query: &[u8], out: &mut Vec<u8>) {
        let Self::Redacted(extra) = self else { return };
        for (i, pair) in query.split(|byte| *byte == b'&').enumerate() {
            if i > 0 {
                out.push(b'&');
            }
            let key = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
            let listed = CREDENTIAL_KEYS.iter().copied().chain(extra.iter().map(|key| &**key));
            if key.len() < pair.len() && listed.into_iter().any(|name| same_key(key, name)) {
                out.extend_from_slice(key);
                out.push(b'=');
                out.extend_from_slice(REDACTED);
            } else {
                out.extend_from_slice(pair);
            }
        }
    }

    /// Whether queries are recorded at all.
    #[must_use]
    pub fn recorded(&self) -> bool {
        matches!(self, Self::Redacted(_))
    }
}

/// Compares without regard to case, and sees through percent-encoding, which must not be a way around it.
fn same_key(key: &[u8], name: &str) -> bool {
    let mut rest = key;
    let mut name = name.bytes();
    loop {
        let (byte, after) = match rest {
            [] => return name.next().is_none(),
            [b'%', high, low, after @ ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => ((high << 4) | low, after),
                _ => (b'%', rest.get(1..).unwrap_or_default()),
            },
            [byte, after @ ..] => (*byte, after),
        };
        if !name.next().is_some_and(|expected| expected.eq_ignore_ascii_case(&byte)) {
            return false;
        }
        rest = after;
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Appends an authority with its user information as `REDACTED:REDACTED@`.
pub fn append_authority(authority: &[u8], out: &mut Vec<u8>) {
    match authority.iter().rposition(|byte| *byte == b'@') {
        Some(at) => {
            out.extend_from_slice(b"REDACTED:REDACTED");
            out.extend_from_slice(authority.get(at..).unwrap_or_default());
        }
        None => out.extend_from_slice(authority),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(query: &str) -> String {
        let mut out = Vec::new();
        Query::Redacted(vec!["token".into()]).append(query.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn credentials_are_redacted_and_their_keys_stay() {
        for (query, expected) in [
            ("a=1&sig=abc&b=2", "a=1&sig=REDACTED&b=2"),
            ("X-Amz-Signature=x", "X-Amz-Signature=REDACTED"),
            ("x-goog-signature=x&TOKEN=y", "x-goog-signature=REDACTED&TOKEN=REDACTED"),
            ("%73ig=abc", "%73ig=REDACTED"),
            ("sig=a=b", "sig=REDACTED"),
            ("sig", "sig"),
            ("signal=1&a=sig", "signal=1&a=sig"),
            ("", ""),
            ("&&a", "&&a"),
        ] {
            assert_eq!(redacted(query), expected);
        }
    }

    #[test]
    fn nothing_is_recorded_when_queries_are_off() {
        let mut out = Vec::new();
        Query::Off.append(b"a=1", &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn a_password_in_an_authority_is_redacted() {
        let mut out = Vec::new();
        append_authority(b"user:p@ss@host:80", &mut out);
        assert_eq!(out, b"REDACTED:REDACTED@host:80");
    }
}
