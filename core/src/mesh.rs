//! Which destinations are inside the mesh: only they are told what the application did not itself send
//! (ARCHITECTURE.md, rule 6). Decides by the name that the request carries; never resolves anything.

use std::net::{IpAddr, Ipv6Addr};

/// The destinations that count as inside.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    extra: Vec<Inside>,
}

/// One entry of the user's list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Inside {
    /// Exactly this host.
    Host(Box<str>),
    /// Every host that ends so, written with the leading dot.
    Suffix(Box<str>),
    /// Every address of the network.
    Network(IpAddr, u8),
}

/// Names that a cluster's own DNS gives out.
const CLUSTER_SUFFIXES: [&str; 4] = [".svc", ".cluster.local", ".localhost", ".internal"];

impl Inside {
    /// `orders.example.com`, `.example.com`, `*.example.com` or `203.0.113.0/24`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().ok()?;
            let bits: u8 = bits.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            return (bits <= most).then_some(Self::Network(address, bits));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Network(address, if address.is_ipv4() { 32 } else { 128 }));
        }
        let suffix = text.strip_prefix('*').unwrap_or(&text);
        let name = suffix.strip_prefix('.').unwrap_or(suffix);
        let label = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if name.is_empty() || !name.bytes().all(label) {
            return None;
        }
        Some(if suffix.starts_with('.') { Self::Suffix(suffix.into()) } else { Self::Host(name.into()) })
    }

    fn holds(&self, host: &[u8], address: Option<IpAddr>) -> bool {
        match (self, address) {
            (Self::Host(name), None) => host.eq_ignore_ascii_case(name.as_bytes()),
            (Self::Suffix(suffix), None) => ends_with(host, suffix),
            (Self::Network(network, bits), Some(address)) => same_network(*network, address, *bits),
            (Self::Host(_) | Self::Suffix(_), Some(_)) | (Self::Network(..), None) => false,
        }
    }
}

impl Mesh {
    /// A mesh with the user's own additions.
    #[must_use]
    pub fn new(extra: Vec<Inside>) -> Self {
        Self { extra }
    }

    /// Whether the host of an authority (no port; IPv6 with or without brackets) is inside.
    #[must_use]
    pub fn inside(&self, host: &[u8]) -> bool {
        let host = host.strip_suffix(b".").unwrap_or(host);
        let bare = host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")).unwrap_or(host);
        let address = std::str::from_utf8(bare).ok().and_then(|text| text.parse::<IpAddr>().ok());
        let by_itself = match address {
            Some(address) => private(address),
            None => {
                !host.is_empty()
                    && (!host.contains(&b'.') || CLUSTER_SUFFIXES.iter().any(|s| ends_with(host, s)))
            }
        };
        by_itself || self.extra.iter().any(|inside| inside.holds(host, address))
    }
}

fn ends_with(host: &[u8], suffix: &str) -> bool {
    host.len()
        .checked_sub(suffix.len())
        .and_then(|at| host.get(at..))
        .is_some_and(|tail| tail.eq_ignore_ascii_case(suffix.as_bytes()))
}

fn private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let shared = u32::from(v4) >> 22 == u32::from_be_bytes([100, 64, 0, 0]) >> 22; // RFC 6598
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

fn same_network(network: IpAddr, address: IpAddr, bits: u8) -> bool {
    let wide = |address: Ipv6Addr, bits: u32| u128::from(address).checked_shr(128 - bits).unwrap_or(0);
    match (network, address.to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let shift = 32 - u32::from(bits);
            u32::from(a).checked_shr(shift).unwrap_or(0) == u32::from(b).checked_shr(shift).unwrap_or(0)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => wide(a, u32::from(bits)) == wide(b, u32::from(bits)),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_inside_and_the_internet_is_not() {
        let mesh = Mesh::new(
            ["partner.example", ".corp.example", "203.0.113.0/24"]
                .map(|text| Inside::parse(text).unwrap())
                .into(),
        );
        for inside in [
            "orders",
            "orders.shop.svc",
            "orders.shop.svc.cluster.local",
            "ORDERS.shop.SVC.",
            "localhost",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.1.1",
            "100.64.0.1",
            "[::1]",
            "fd00::1",
            "[fe80::1]",
            "::ffff:10.0.0.1",
            "partner.example",
            "a.corp.example",
            "203.0.113.9",
            "vm.internal",
        ] {
            assert!(mesh.inside(inside.as_bytes()), "{inside}");
        }
        for outside in [
            "",
            "example.com",
            "partner.example.evil.com",
            "notcorp.example",
            "8.8.8.8",
            "172.32.0.1",
            "203.0.114.1",
            "[2001:db8::1]",
            "100.128.0.1",
            "corp.example",
        ] {
            assert!(!mesh.inside(outside.as_bytes()), "{outside}");
        }
    }

    #[test]
    fn an_entry_that_is_no_host_is_refused() {
        for bad in ["", ".", "*", "a b", "http://x", "10.0.0.0/33", "x/8", "a:80"] {
            assert_eq!(Inside::parse(bad), None, "{bad}");
        }
        assert_eq!(Inside::parse("*.example.com"), Some(Inside::Suffix(".example.com".into())));
    }
}
