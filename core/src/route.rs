//! Route templates: what a span of `/clusters/42` is named by. Configured patterns first, else segments that
//! look like ids are recognised; a cap bounds the distinct routes of a service.

use crate::intern::Interner;
use crate::limits::{ROUTE_BYTES_MAX, ROUTE_SEGMENTS_MAX};

/// A pattern such as `/clusters/{id}` or `/static/*`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern {
    text: Box<str>,
    segments: Vec<Segment>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Segment {
    Exactly(Box<str>),
    Any,
    Rest,
}

impl Pattern {
    /// Segments in braces match any one segment, a last `*` matches the rest.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let path = text.strip_prefix('/')?;
        if text.len() > ROUTE_BYTES_MAX
            || text.bytes().any(|byte| !byte.is_ascii_graphic() || b"?#".contains(&byte))
        {
            return None;
        }
        let count = path.split('/').count();
        let mut segments = Vec::with_capacity(count);
        for (i, segment) in path.split('/').enumerate() {
            segments.push(match segment {
                "*" if i + 1 == count => Segment::Rest,
                _ if segment.len() > 2 && segment.starts_with('{') && segment.ends_with('}') => Segment::Any,
                _ if segment.contains(['{', '}', '*']) => return None,
                _ => Segment::Exactly(segment.into()),
            });
        }
        Some(Self { text: text.into(), segments })
    }

    fn matches(&self, path: &[u8]) -> bool {
        let mut rest = path.strip_prefix(b"/").unwrap_or(path).split(|byte| *byte == b'/');
        for segment in &self.segments {
            match (segment, rest.next()) {
                (Segment::Rest, Some(_)) => return true,
                (Segment::Any, Some(actual)) if !actual.is_empty() => {}
                (Segment::Exactly(name), Some(actual)) if name.as_bytes() == actual => {}
                (Segment::Rest | Segment::Any | Segment::Exactly(_), _) => return false,
            }
        }
        rest.next().is_none()
    }
}

/// Writes the template of a path into `out`, which is empty afterwards when the path has none.
pub fn template(patterns: &[Pattern], path: &[u8], out: &mut Vec<u8>) {
    out.clear();
    if let Some(pattern) = patterns.iter().find(|pattern| pattern.matches(path)) {
        out.extend_from_slice(pattern.text.as_bytes());
        return;
    }
    let Some(path) = path.strip_prefix(b"/") else { return };
    for (i, segment) in path.split(|byte| *byte == b'/').enumerate() {
        out.push(b'/');
        if i == ROUTE_SEGMENTS_MAX {
            out.push(b'*');
            break;
        }
        out.extend_from_slice(if is_id(segment) { b"{id}" } else { segment });
    }
    if out.len() > ROUTE_BYTES_MAX {
        out.clear();
    }
}

/// Whether a segment names one thing among many: a number, a UUID, a hash, an id with digits, a token.
fn is_id(segment: &[u8]) -> bool {
    const LONG: usize = 40;
    const TOKEN: usize = 20;
    let digits = segment.iter().filter(|byte| byte.is_ascii_digit()).count();
    let is_separator = |byte: &u8| b"-_.".contains(byte);
    let tail_is_number = || {
        let tail = segment.rsplit(is_separator).next().unwrap_or_default();
        tail.len() < segment.len() && !tail.is_empty() && tail.iter().all(u8::is_ascii_digit)
    };
    let has = |is: fn(&u8) -> bool| segment.iter().any(is);
    let hash = || segment.len() >= 16 && segment.iter().all(u8::is_ascii_hexdigit);
    let token = || segment.len() >= TOKEN && has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
    let odd = |byte: &u8| !byte.is_ascii_graphic() || b"%@=,".contains(byte);
    segment.len() > LONG
        || digits >= 3
        || (digits > 0 && digits == segment.len())
        || (digits > 0 && tail_is_number())
        || hash()
        || token()
        || segment.iter().any(odd)
}

/// The routes of a service: distinct templates up to a cap.
#[derive(Clone, Debug)]
pub(crate) struct Routes {
    seen: Interner,
}

impl Routes {
    pub(crate) fn new(most: usize, seed: u64) -> Self {
        Self { seen: Interner::new(most, seed) }
    }

    /// The number of a template that may name spans. A path that nobody serves (404 or a method nobody knows)
    /// takes no place: a scanner must not use up the cap.
    pub(crate) fn admit(&mut self, template: &[u8], served: bool) -> u16 {
        let Ok(template) = std::str::from_utf8(template) else { return Interner::OTHER };
        if served { self.seen.number(template) } else { self.seen.known(template).unwrap_or(Interner::OTHER) }
    }

    /// The number of a template that has one.
    pub(crate) fn known(&self, template: &[u8]) -> Option<u16> {
        self.seen.known(std::str::from_utf8(template).ok()?)
    }

    pub(crate) fn name(&self, number: u16) -> &str {
        self.seen.name(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(patterns: &[&str], path: &str) -> String {
        let patterns: Vec<_> = patterns.iter().map(|text| Pattern::parse(text).unwrap()).collect();
        let mut out = Vec::new();
        template(&patterns, path.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn ids_in_paths_are_recognised_and_words_stay() {
        for (path, expected) in [
            ("/", "/"),
            ("/products", "/products"),
            ("/clusters/42", "/clusters/{id}"),
            ("/clusters/cls-123/nodes/7", "/clusters/{id}/nodes/{id}"),
            ("/users/550e8400-e29b-41d4-a716-446655440000", "/users/{id}"),
            ("/blobs/deadbeefdeadbeefdeadbeef", "/blobs/{id}"),
            ("/t/eyJhbGciOiJub25lIn0x", "/t/{id}"),
            ("/mail/a@example.com", "/mail/{id}"),
            ("/search/two%20words", "/search/{id}"),
            ("/report/2026-11-20", "/report/{id}"),
            ("/api/v1/items", "/api/v1/items"),
            ("/apis/apps/v1beta1/deployments", "/apis/apps/v1beta1/deployments"),
            ("/oauth2/token", "/oauth2/token"),
            ("/item-1", "/{id}"),
            ("/a//b/", "/a//b/"),
            ("*", ""),
        ] {
            assert_eq!(of(&[], path), expected, "{path}");
        }
    }

    #[test]
    fn configured_patterns_come_first_and_in_order() {
        let patterns = ["/clusters/{name}", "/clusters/{name}/status", "/static/*"];
        for (path, expected) in [
            ("/clusters/west", "/clusters/{name}"),
            ("/clusters/west/status", "/clusters/{name}/status"),
            ("/clusters/", "/clusters/"),
            ("/clusters/west/nodes", "/clusters/west/nodes"),
            ("/static/js/app.js", "/static/*"),
            ("/static", "/static"),
        ] {
            assert_eq!(of(&patterns, path), expected, "{path}");
        }
        for bad in ["", "clusters", "/a{b", "/*/b", "/{}", "/a b", "/a?b"] {
            assert_eq!(Pattern::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn long_paths_have_a_bounded_template() {
        assert!(of(&[], &"/a".repeat(1000)).ends_with("/a/*"));
        assert_eq!(of(&[], &format!("/{}", "ab/".repeat(3))), "/ab/ab/ab/");
        assert_eq!(of(&[], &"/abcdefghijklm".repeat(20)), "", "over the limit of bytes");
    }

    #[test]
    fn a_scanner_takes_no_place_among_the_routes() {
        let mut routes = Routes::new(1, 7);
        assert_eq!(routes.admit(b"/wp-admin", false), Interner::OTHER);
        let number = routes.admit(b"/items", true);
        assert_eq!(routes.name(number), "/items");
        assert_eq!(routes.admit(b"/items", false), number);
        assert_eq!(routes.admit(b"/more", true), Interner::OTHER);
    }
}
