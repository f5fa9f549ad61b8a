//! Who may ask: callers on the same host, and whoever sends the token. Must never compare a token in a time that
//! tells of it, and never let a page of another site read through a browser.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, StatusCode, header};

use super::problem::Problem;

/// Bytes of a token, at the least and at the most.
const TOKEN_BYTES: std::ops::RangeInclusive<usize> = 16..=4096;
/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The token, read again when its file changes.
pub(crate) struct Auth {
    file: Option<PathBuf>,
    otlp_open: bool,
    held: Mutex<Held>,
}

struct Held {
    token: Vec<u8>,
    changed: Option<SystemTime>,
    looked: Option<Instant>,
}

/// What a caller wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    /// To read, or to look at the live view.
    Read,
    /// To send spans or metrics.
    Send,
}

/// Why it may not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// No token, or another one.
    Token,
    /// The name that a browser used is not one of this host: a page of another site may be behind it.
    Name,
}

impl Refusal {
    pub(crate) fn problem(self) -> Problem {
        match self {
            Self::Token => Problem::new(StatusCode::UNAUTHORIZED, self.detail()),
            Self::Name => Problem::new(StatusCode::FORBIDDEN, self.detail()),
        }
    }

    pub(crate) fn detail(self) -> &'static str {
        match self {
            Self::Token => {
                "want the header Authorization: Bearer and the token of THROUGHLINE_FLOW_TOKEN_FILE"
            }
            Self::Name => "without a token, want localhost or an address in Host",
        }
    }
}

impl Auth {
    /// Reads the token.
    ///
    /// # Errors
    /// What is wrong with the file, naming the setting.
    pub(crate) fn new(file: &str, otlp_open: bool) -> Result<Self, String> {
        let held = Held { token: Vec::new(), changed: None, looked: None };
        let file = (!file.is_empty()).then(|| PathBuf::from(file));
        let auth = Self { file, otlp_open, held: Mutex::new(held) };
        if let Some(file) = &auth.file {
            let (token, changed) = read(file).map_err(|why| {
                format!("THROUGHLINE_FLOW_TOKEN_FILE=\"{}\": want a readable file with a token of {} to {} bytes: {why}",
                    file.display(), TOKEN_BYTES.start(), TOKEN_BYTES.end())
            })?;
            *auth.held.lock().unwrap_or_else(PoisonError::into_inner) =
                Held { token, changed, looked: Some(Instant::now()) };
        }
        Ok(auth)
    }

    /// Whether this caller may.
    pub(crate) fn check(&self, peer: SocketAddr, headers: &HeaderMap, wish: Wish) -> Result<(), Refusal> {
        if self.knows(headers) || (wish == Wish::Send && self.otlp_open) {
            return Ok(());
        }
        if !peer.ip().to_canonical().is_loopback() {
            return Err(Refusal::Token);
        }
        // A browser names the host that its page came from: after DNS was turned round, that is a foreign one.
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if wish == Wish::Read && host.is_some_and(|host| !is_own_name(host)) {
            return Err(Refusal::Name);
        }
        Ok(())
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let Some(file) = &self.file else { return false };
        let given = headers.get(header::AUTHORIZATION).map(http::HeaderValue::as_bytes);
        let Some(given) =
            given.and_then(|value| value.strip_prefix(b"Bearer ").or(value.strip_prefix(b"bearer ")))
        else {
            return false;
        };
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let due = held.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY);
        if due {
            held.looked = Some(Instant::now());
            let changed = std::fs::metadata(file).and_then(|file| file.modified()).ok();
            if changed != held.changed {
                // While a new one can't be read, the last good one holds.
                if let Ok((token, changed)) = read(file) {
                    (held.token, held.changed) = (token, changed);
                }
            }
        }
        same(&held.token, given.trim_ascii())
    }
}

fn read(file: &PathBuf) -> Result<(Vec<u8>, Option<SystemTime>), String> {
    let changed = std::fs::metadata(file).and_then(|file| file.modified()).ok();
    let text = std::fs::read(file).map_err(|error| error.to_string())?;
    let token = text.trim_ascii().to_vec();
    if !TOKEN_BYTES.contains(&token.len()) {
        return Err(format!("it holds {} bytes", token.len()));
    }
    Ok((token, changed))
}

/// Compares all bytes, wherever the first difference is.
fn same(one: &[u8], other: &[u8]) -> bool {
    let differences = one.iter().zip(other).fold(0, |sum, (a, b)| sum | (a ^ b));
    one.len() == other.len() && differences == 0 && !one.is_empty()
}

/// `localhost`, or an address: names that no DNS server decides about.
fn is_own_name(host: &str) -> bool {
    let name = host.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(name, _)| name);
    let name = name.unwrap_or_else(|| host.rsplit_once(':').map_or(host, |(name, _)| name));
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    fn token_file(name: &str, token: &str) -> PathBuf {
        let file = std::env::temp_dir().join(format!("throughline-flow-{name}-{}", std::process::id()));
        std::fs::write(&file, token).unwrap();
        file
    }

    #[test]
    fn callers_from_elsewhere_need_the_token_and_those_of_this_host_do_not() {
        let file = token_file("rules", "0123456789abcdef\n");
        let auth = Auth::new(file.to_str().unwrap(), false).unwrap();
        let (here, there) = (at("127.0.0.1:5"), at("10.0.0.9:5"));
        let right = headers(&[("authorization", "Bearer 0123456789abcdef"), ("host", "flow.example.com")]);
        for (peer, headers, expected) in [
            (here, headers(&[("host", "localhost:8090")]), Ok(())),
            (here, headers(&[("host", "127.0.0.1:8090")]), Ok(())),
            (here, headers(&[("host", "[::1]:8090")]), Ok(())),
            (here, headers(&[("host", "evil.example.com")]), Err(Refusal::Name)),
            (here, right.clone(), Ok(())),
            (there, right, Ok(())),
            (there, headers(&[("host", "10.0.0.1")]), Err(Refusal::Token)),
            (there, headers(&[("authorization", "Bearer 0123456789abcdeg")]), Err(Refusal::Token)),
            (there, headers(&[("authorization", "Bearer ")]), Err(Refusal::Token)),
            (there, headers(&[("authorization", "Basic 0123456789abcdef")]), Err(Refusal::Token)),
        ] {
            assert_eq!(auth.check(peer, &headers, Wish::Read), expected, "{peer} {headers:?}");
        }
        assert_eq!(auth.check(there, &HeaderMap::new(), Wish::Send), Err(Refusal::Token));
        let open = Auth::new(file.to_str().unwrap(), true).unwrap();
        assert_eq!(open.check(there, &HeaderMap::new(), Wish::Send), Ok(()));
        assert_eq!(open.check(there, &HeaderMap::new(), Wish::Read), Err(Refusal::Token));
        std::fs::remove_file(file).unwrap();
    }

    #[test]
    fn without_a_token_nobody_else_comes_in_not_even_with_an_empty_one() {
        let auth = Auth::new("", false).unwrap();
        let empty = headers(&[("authorization", "Bearer ")]);
        assert_eq!(auth.check(at("10.0.0.9:5"), &empty, Wish::Read), Err(Refusal::Token));
    }

    #[test]
    fn a_token_that_is_too_short_or_not_there_is_told_at_the_start() {
        let file = token_file("short", "short");
        assert!(Auth::new(file.to_str().unwrap(), false).err().unwrap().contains("it holds 5 bytes"));
        std::fs::remove_file(&file).unwrap();
        assert!(
            Auth::new(file.to_str().unwrap(), false).err().unwrap().contains("THROUGHLINE_FLOW_TOKEN_FILE")
        );
    }
}
