//! How sidecars name themselves to each other: `throughline-peer: service=orders;namespace=shop`. A name from
//! the wire is read with suspicion and never decides anything but a label.

use crate::limits::PEER_NAME_BYTES_MAX;

/// The service at the other end of an exchange, by its own word.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// `service.name` of the peer.
    pub service: Box<str>,
    /// `service.namespace` of the peer; empty when it has none.
    pub namespace: Box<str>,
}

fn allowed(name: &[u8]) -> bool {
    name.len() <= PEER_NAME_BYTES_MAX
        && name.iter().all(|byte| byte.is_ascii_graphic() && !b";=,\"\\".contains(byte))
}

impl Peer {
    /// Reads the header. Unknown fields are passed over, so that later versions may say more.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (mut service, mut namespace) = (None, None);
        for field in value.split(|byte| *byte == b';') {
            let Some(equals) = field.iter().position(|byte| *byte == b'=') else { continue };
            let (key, name) = field.split_at(equals);
            let name = name.get(1..).unwrap_or_default().trim_ascii();
            match key.trim_ascii() {
                b"service" if !name.is_empty() && allowed(name) => service = std::str::from_utf8(name).ok(),
                b"namespace" if allowed(name) => namespace = std::str::from_utf8(name).ok(),
                _ => {}
            }
        }
        Some(Self { service: service?.into(), namespace: namespace.unwrap_or_default().into() })
    }

    /// The header by which a sidecar of this service names itself. Characters that the header can't carry
    /// become `_`; a name over the limit is cut.
    #[must_use]
    pub fn header(service: &str, namespace: &str) -> Vec<u8> {
        let mut value = b"service=".to_vec();
        push_name(&mut value, service);
        if !namespace.is_empty() {
            value.extend_from_slice(b";namespace=");
            push_name(&mut value, namespace);
        }
        value
    }
}

fn push_name(value: &mut Vec<u8>, name: &str) {
    let plain = |byte: u8| if allowed(&[byte]) { byte } else { b'_' };
    value.extend(name.bytes().take(PEER_NAME_BYTES_MAX).map(plain));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sidecar_says_of_itself_is_read_by_the_next() {
        let peer = Peer::parse(&Peer::header("orders", "shop")).unwrap();
        assert_eq!((&*peer.service, &*peer.namespace), ("orders", "shop"));
        let peer = Peer::parse(&Peer::header("my service", "")).unwrap();
        assert_eq!((&*peer.service, &*peer.namespace), ("my_service", ""));
        assert_eq!(&*Peer::parse(b"version=2; service=a ;namespace=b").unwrap().service, "a");
    }

    #[test]
    fn a_hostile_name_is_no_peer() {
        for bad in [&b""[..], b"service=", b"namespace=a", b"service=\xff", b"service=a b", &[b'='; 500]] {
            assert_eq!(Peer::parse(bad), None, "{}", bad.escape_ascii());
        }
        assert_eq!(Peer::parse(&[b"service=".as_slice(), &[b'a'; PEER_NAME_BYTES_MAX + 1]].concat()), None);
    }
}
