//! What a host says of a request and of its answer: borrowed, in bytes, no types of the host's own.

use std::net::IpAddr;

use crate::classify::Direction;

/// A moment, as the host's clocks tell it: one for what is written on a span, one that never jumps.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Now {
    /// Nanoseconds since 1970.
    pub unix_nanos: u64,
    /// Nanoseconds of a clock that never goes back.
    pub mono_nanos: u64,
}

impl Now {
    /// Milliseconds from `earlier` to here, 0 if it was later.
    #[must_use]
    pub fn millis_since(self, earlier: Self) -> u64 {
        self.nanos_since(earlier) / 1_000_000
    }

    /// Nanoseconds from `earlier` to here, 0 if it was later.
    #[must_use]
    pub fn nanos_since(self, earlier: Self) -> u64 {
        self.mono_nanos.saturating_sub(earlier.mono_nanos)
    }
}

/// Version of HTTP that the caller spoke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// The value of `network.protocol.version`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
            Self::Http2 => "2",
        }
    }
}

/// Scheme of the request's URL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    /// Cleartext.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// The value of `url.scheme`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    pub(super) fn default_port(self) -> u64 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Where an outbound request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// By a route of the user's own: inside the mesh by his word.
    Routed,
    /// By the name that the request carries.
    Named,
}

/// The head of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// Which way it goes.
    pub direction: Direction,
    /// Method, as sent.
    pub method: &'a str,
    /// Scheme.
    pub scheme: Scheme,
    /// Host and port that it names: `Host`, `:authority` or the absolute form's; empty if it names none.
    pub authority: &'a [u8],
    /// Path without query.
    pub path: &'a [u8],
    /// Query without `?`.
    pub query: Option<&'a [u8]>,
    /// Version the caller spoke.
    pub version: Version,
    /// The caller's address.
    pub caller: Option<IpAddr>,
    /// Where it goes, for an outbound request.
    pub destination: Destination,
}

impl<'a> RequestHead<'a> {
    /// Host and port of the authority, user information left out; the port only where it is written.
    pub(super) fn host_and_port(&self) -> (&'a [u8], Option<u16>) {
        let authority = self.authority;
        let host = match authority.iter().rposition(|byte| *byte == b'@') {
            Some(at) => authority.get(at + 1..).unwrap_or_default(),
            None => authority,
        };
        let Some(colon) = host.iter().rposition(|byte| *byte == b':') else { return (host, None) };
        let (name, port) = host.split_at(colon);
        if name.contains(&b':') && !name.ends_with(b"]") {
            return (host, None); // a bare IPv6 address
        }
        let digits = port.get(1..).unwrap_or_default();
        (name, std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_taken_apart() {
        for (authority, host, port) in [
            ("orders", "orders", None),
            ("orders:8080", "orders", Some(8080)),
            ("user:pass@orders:80", "orders", Some(80)),
            ("[::1]:80", "[::1]", Some(80)),
            ("[::1]", "[::1]", None),
            ("::1", "::1", None),
            ("orders:", "orders", None),
            ("orders:99999", "orders", None),
            ("", "", None),
        ] {
            let head = RequestHead {
                direction: Direction::Outbound,
                method: "GET",
                scheme: Scheme::Http,
                authority: authority.as_bytes(),
                path: b"/",
                query: None,
                version: Version::Http11,
                caller: None,
                destination: Destination::Named,
            };
            assert_eq!(head.host_and_port(), (host.as_bytes(), port), "{authority}");
        }
    }
}
