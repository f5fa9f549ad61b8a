//! Hop-by-hop fields: what belongs to one connection goes no further (RFC 9110 §7.6.1).

use http::header::{CONNECTION, EXPECT, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::{Request, Response, Version};

/// The fields of one hop: those that need a second look, then those that are removed as they are. The next hop's
/// framing is its own.
static HOP: [HeaderName; 7] = [
    CONNECTION,
    TE,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authorization"),
    TRANSFER_ENCODING,
];

/// The place of a field in [`HOP`].
fn of_hop(name: &str) -> Option<usize> {
    Some(match name {
        "connection" => 0,
        "te" => 1,
        "upgrade" => 2,
        "keep-alive" => 3,
        "proxy-connection" => 4,
        "proxy-authorization" => 5,
        "transfer-encoding" => 6,
        _ => return None,
    })
}

/// Whether a request asks to switch the protocol (RFC 9110 §7.8), which only HTTP/1.1 can.
pub(super) fn wants_upgrade<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request.headers().contains_key(UPGRADE)
        && request.headers().get_all(CONNECTION).iter().any(|value| names(value, "upgrade"))
}

/// Whether the caller keeps its body until it is asked for it (RFC 9110 §10.1.1).
pub(super) fn waits_to_be_asked<B>(request: &Request<B>) -> bool {
    request.headers().get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Whether an answer is the last one on its connection (RFC 9112 §9.3).
pub(super) fn closes<B>(response: &Response<B>) -> bool {
    let says = |option| response.headers().get_all(CONNECTION).iter().any(|value| names(value, option));
    says("close") || (response.version() == Version::HTTP_10 && !says("keep-alive"))
}

fn names(value: &HeaderValue, option: &str) -> bool {
    let options = value.as_bytes().split(|byte| *byte == b',');
    options.into_iter().any(|found| found.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

/// Removes what belongs to the hop. `TE: trailers` stays, since trailers are carried; the fields of an upgrade
/// stay where there is one.
pub(super) fn strip(headers: &mut HeaderMap, upgrade: bool) {
    // Most heads have none of these: one look at all names costs less than a search for each.
    let mut there = [false; HOP.len()];
    for place in headers.keys().filter_map(|name| of_hop(name.as_str())) {
        if let Some(there) = there.get_mut(place) {
            *there = true;
        }
    }
    if there == [false; HOP.len()] && !upgrade {
        return;
    }
    let [connection, te, upgraded, own @ ..] = there;
    if connection {
        let values: Vec<HeaderValue> = headers.get_all(CONNECTION).iter().cloned().collect();
        headers.remove(CONNECTION);
        for option in values.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
            if let Ok(name) = HeaderName::from_bytes(option.trim_ascii())
                && is_nominable(&name)
            {
                headers.remove(name);
            }
        }
    }
    for (name, _) in HOP.iter().skip(3).zip(own).filter(|(_, there)| *there) {
        headers.remove(name);
    }
    if te {
        let trailers = headers.get_all(TE).iter().any(|value| names(value, "trailers"));
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else if upgraded {
        headers.remove(UPGRADE);
    }
}

/// A caller may not talk us out of fields that are no hop-by-hop ones: neither those that frame and route the
/// message, nor the context that we carry.
fn is_nominable(name: &HeaderName) -> bool {
    const NEVER: [&str; 14] = [
        "host",
        "content-length",
        "content-type",
        "authorization",
        "cookie",
        "te",
        "upgrade",
        "trailer",
        "traceparent",
        "tracestate",
        "baggage",
        "x-operation-name",
        "throughline-peer",
        "b3",
    ];
    !NEVER.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_hop_is_found_by_its_name() {
        for (place, name) in HOP.iter().enumerate() {
            assert_eq!(of_hop(name.as_str()), Some(place), "{name}");
        }
        assert_eq!(of_hop("host"), None);
    }

    fn stripped(fields: &[(&'static str, &str)], upgrade: bool) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        strip(&mut headers, upgrade);
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    #[test]
    fn what_belongs_to_the_hop_goes_no_further() {
        let fields = [
            ("connection", "close, X-Own"),
            ("connection", "traceparent"),
            ("x-own", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers, deflate"),
            ("upgrade", "h2c"),
            ("traceparent", "x"),
            ("accept", "*/*"),
        ];
        let mut left = stripped(&fields, false);
        left.sort_unstable();
        assert_eq!(left, ["accept: */*", "te: trailers", "traceparent: x"]);
    }

    #[test]
    fn an_upgrade_keeps_its_fields() {
        let fields = [("connection", "Upgrade, keep-alive"), ("upgrade", "websocket"), ("te", "deflate")];
        let mut left = stripped(&fields, true);
        left.sort_unstable();
        assert_eq!(left, ["connection: upgrade", "upgrade: websocket"]);
    }
}
