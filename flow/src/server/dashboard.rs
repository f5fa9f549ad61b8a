//! The dashboard's page, script, style sheet and icon, compressed once and told by tags. They are built by
//! `flow/ui/build.mjs` and committed, so that cargo needs no Node. Knows nothing of what they show.

use std::hash::{BuildHasher as _, Hasher as _};
use std::io::Write as _;
use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::problem::{Answer, with_body};

/// What the page may load: its own files, and the live view of this server. `self` names the WebSocket too.
const POLICY: &str =
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'";

struct File {
    path: &'static str,
    kind: &'static str,
    plain: Bytes,
    zipped: Bytes,
    tag: HeaderValue,
}

impl File {
    fn new(path: &'static str, kind: &'static str, plain: &'static [u8]) -> Self {
        let mut hasher = foldhash::quality::FixedState::with_seed(0).build_hasher();
        hasher.write(plain);
        let tag = HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish()));
        let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        // Writing to memory does not fail; if it did, the plain bytes are there.
        let zipped = zip.write_all(plain).and_then(|()| zip.finish()).unwrap_or_default();
        Self {
            path,
            kind,
            plain: Bytes::from_static(plain),
            zipped: Bytes::from(zipped),
            tag: tag.unwrap_or_else(|_| HeaderValue::from_static("\"\"")),
        }
    }
}

static FILES: LazyLock<[File; 4]> = LazyLock::new(|| {
    [
        File::new("/", "text/html; charset=utf-8", include_bytes!("../../ui/dist/index.html")),
        File::new("/app.js", "text/javascript; charset=utf-8", include_bytes!("../../ui/dist/app.js")),
        File::new("/app.css", "text/css; charset=utf-8", include_bytes!("../../ui/dist/app.css")),
        File::new("/icon.svg", "image/svg+xml", include_bytes!("../../ui/src/icon.svg")),
    ]
});

/// Pages of the dashboard: each is the same file, which reads its own address.
const PAGES: [&str; 5] = ["operations", "traces", "services", "doctor", "flows"];

/// The file at a path, if the dashboard has one.
pub(crate) fn answer(path: &str, headers: &HeaderMap) -> Option<Answer> {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or("");
    let path = if PAGES.contains(&first) { "/" } else { path };
    let file = FILES.iter().find(|file| file.path == path)?;
    let says =
        |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let known = says(header::IF_NONE_MATCH);
    let same =
        known.split(',').any(|known| known.trim().trim_start_matches("W/").as_bytes() == file.tag.as_bytes());
    let zipped = !file.zipped.is_empty() && takes_gzip(says(header::ACCEPT_ENCODING));
    let mut answer = match (same, zipped) {
        (true, _) => with_body(StatusCode::NOT_MODIFIED, file.kind, ""),
        (false, true) => with_body(StatusCode::OK, file.kind, file.zipped.clone()),
        (false, false) => with_body(StatusCode::OK, file.kind, file.plain.clone()),
    };
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    headers.insert(header::ETAG, file.tag.clone());
    if zipped && !same {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Some(answer)
}

/// Whether a list of encodings has gzip, and not with a weight of nothing.
fn takes_gzip(list: &str) -> bool {
    list.split(',').any(|one| {
        let mut parts = one.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = |weight: &str| {
            let weight = weight.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
            weight.is_some_and(|weight| weight <= 0.0)
        };
        named && !parts.any(refused)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(path: &str, pairs: &[(header::HeaderName, &'static str)]) -> Option<Answer> {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
        answer(path, &headers.collect())
    }

    #[test]
    fn every_page_is_the_same_file_and_what_is_no_page_is_not() {
        for path in ["/", "/operations", "/operations/a%2Fb", "/traces/1", "/services/x", "/doctor"] {
            assert_eq!(
                asked(path, &[]).unwrap().headers()[header::CONTENT_TYPE],
                "text/html; charset=utf-8",
                "{path}"
            );
        }
        for path in ["/operationsx", "/app.jsx", "/index.html", "/.."] {
            assert!(asked(path, &[]).is_none(), "{path}");
        }
    }

    #[test]
    fn files_are_compressed_for_those_who_take_it_and_left_out_for_those_who_have_them() {
        let plain = asked("/app.js", &[]).unwrap();
        assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
        for (list, expected) in
            [("gzip, deflate, br", true), ("br;q=1, gzip;q=0.2", true), ("gzip;q=0", false), ("br", false)]
        {
            let given = asked("/app.js", &[(header::ACCEPT_ENCODING, list)]).unwrap();
            assert_eq!(given.headers().contains_key(header::CONTENT_ENCODING), expected, "{list}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, plain.headers()[header::ETAG].clone());
        assert_eq!(answer("/app.js", &headers).unwrap().status(), StatusCode::NOT_MODIFIED);
    }

    #[test]
    fn the_first_load_is_90_kb_at_the_most() {
        let bytes: usize = FILES.iter().map(|file| file.zipped.len()).sum();
        assert!((1000..=90_000).contains(&bytes), "{bytes}");
    }

    #[test]
    fn nothing_is_inline_and_nothing_comes_from_elsewhere() {
        let page = std::str::from_utf8(include_bytes!("../../ui/dist/index.html")).unwrap();
        for wrong in ["<style", "style=", "onclick", "http:", "https:"] {
            assert!(!page.contains(wrong), "{wrong}");
        }
        let scripts = page.matches("<script").count();
        assert_eq!((scripts, page.matches("<script src=\"/app.js\" defer></script>").count()), (1, 1));
    }
}
