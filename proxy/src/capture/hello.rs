//! The name that a TLS client asks for (SNI, RFC 6066 §3), read from bytes that pass. Holds them back for nobody, keeps
//! no more than one greeting, and must never believe a length.

/// Bytes of a greeting that are kept while it is not whole: real ones have some 2 KiB with post-quantum keys.
const HELLO_BYTES_MAX: usize = 16 * 1024;
/// The longest name that DNS has.
const NAME_BYTES_MAX: usize = 253;

/// A greeting as it comes in.
#[derive(Debug)]
pub(super) enum Hello {
    /// So much of it.
    Reading(Vec<u8>),
    /// Known, or no TLS.
    Over,
}

/// What a greeting said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Greeting {
    /// TLS for this name, in lower case.
    Named(String),
    /// TLS that names nobody.
    Nameless,
}

/// Why there is nothing to be told yet.
enum Missing {
    /// There may be more.
    Bytes,
    /// It is no TLS.
    Tls,
}

impl Hello {
    pub(super) fn new() -> Self {
        Self::Reading(Vec::new())
    }

    /// Takes bytes of the caller's in; says once what they were.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Option<Greeting> {
        let Self::Reading(kept) = self else { return None };
        let room = HELLO_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        let full = kept.len() >= HELLO_BYTES_MAX;
        let greeting = match greeting(kept) {
            Ok(greeting) => Some(greeting),
            Err(Missing::Bytes) if full => Some(Greeting::Nameless),
            Err(Missing::Bytes) => return None,
            Err(Missing::Tls) => None,
        };
        *self = Self::Over;
        greeting
    }
}

/// Bytes that are taken from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// What stands behind its own length.
    fn counted(&mut self, bytes: usize) -> Option<Reader<'a>> {
        let count = self.number(bytes)?;
        self.take(count).map(Reader)
    }
}

fn greeting(bytes: &[u8]) -> Result<Greeting, Missing> {
    let message = handshake(bytes)?;
    let mut message = Reader(&message);
    // ClientHello, as one handshake message (RFC 8446 §4).
    match message.0.first() {
        Some(1) | None => {}
        Some(_) => return Err(Missing::Tls),
    }
    let _kind = message.take(1);
    let Some(hello) = message.counted(3) else { return Err(Missing::Bytes) };
    Ok(server_name(hello).map_or(Greeting::Nameless, Greeting::Named))
}

/// The bytes of handshake records so far, without their heads.
fn handshake(bytes: &[u8]) -> Result<Vec<u8>, Missing> {
    let (mut rest, mut message) = (Reader(bytes), Vec::new());
    while !rest.0.is_empty() {
        let head = rest.take(5).unwrap_or(rest.0);
        match head {
            [22, 3, _, high, low] => {
                let length = usize::from(*high) << 8 | usize::from(*low);
                let there = rest.0.len().min(length);
                message.extend_from_slice(rest.take(there).unwrap_or_default());
            }
            [22] | [22, 3] | [22, 3, ..] if head.len() < 5 => break,
            _ if message.is_empty() => return Err(Missing::Tls),
            _ => break, // another kind of record
        }
    }
    Ok(message)
}

/// The name in a ClientHello's body (RFC 8446 §4.1.2).
fn server_name(mut hello: Reader<'_>) -> Option<String> {
    let _version_and_random = hello.take(2 + 32)?;
    let _session = hello.counted(1)?;
    let _ciphers = hello.counted(2)?;
    let _compressions = hello.counted(1)?;
    let mut extensions = hello.counted(2)?;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let mut extension = extensions.counted(2)?;
        if kind != 0 {
            continue;
        }
        let mut names = extension.counted(2)?;
        while !names.0.is_empty() {
            let kind = names.number(1)?;
            let name = names.counted(2)?;
            if kind == 0 {
                return legal(name.0);
            }
        }
    }
    None
}

fn legal(name: &[u8]) -> Option<String> {
    let label = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.iter().all(label);
    let name = std::str::from_utf8(name).ok().filter(|_| fits)?;
    Some(name.trim_end_matches('.').to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, crypto};

    /// What a real client says first.
    fn said(name: &str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client =
            ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn told(pieces: &[&[u8]]) -> Vec<Greeting> {
        let mut hello = Hello::new();
        pieces.iter().filter_map(|piece| hello.feed(piece)).collect()
    }

    #[test]
    fn the_name_is_read_however_the_bytes_are_cut() {
        let whole = said("Orders.Shop.example");
        let expected = [Greeting::Named("orders.shop.example".into())];
        assert_eq!(told(&[&whole, b"more"]), expected);
        let bytewise: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(told(&bytewise), expected);
        // One message in two records.
        let (front, back) = whole[5..].split_at(40);
        let record = |part: &[u8]| [&[22, 3, 1, 0, part.len() as u8][..], part].concat();
        let back: Vec<u8> = back.chunks(200).flat_map(record).collect();
        assert_eq!(told(&[&record(front), &back]), expected);
        assert_eq!(told(&[&said("127.0.0.1")]), [Greeting::Nameless]);
    }

    #[test]
    fn what_is_no_tls_is_told_apart_and_lengths_are_not_believed() {
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x04", b"\x00", b"\x16\x03\x01\x00\x01\x02"] {
            assert_eq!(told(&[other, other]), [], "{}", other.escape_ascii());
        }
        let whole = said("orders");
        for cut in 0..whole.len() {
            // Shorter than it says: not known yet, and nothing breaks.
            assert_eq!(told(&[&whole[..cut]]), [], "{cut}");
            // Any byte turned around.
            let mut bad = whole.clone();
            bad[cut] ^= 0xff;
            assert!(told(&[&bad]).len() <= 1, "{cut}");
        }
        let endless = [&[22, 3, 1, 255, 255, 1, 255, 255, 255][..], &vec![0; 1 << 20]].concat();
        assert_eq!(told(&[&endless, &endless]), [Greeting::Nameless]);
    }
}
