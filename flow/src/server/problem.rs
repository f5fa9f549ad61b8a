//! Answers that say what is wrong: `application/problem+json` of RFC 9457, with the parameter and what would be right.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

/// An answer, whole.
pub(crate) type Answer = Response<Full<Bytes>>;

/// What is wrong with a request.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<WrongParameter>,
}

/// One parameter that is wrong.
#[derive(Debug, Serialize)]
pub(crate) struct WrongParameter {
    pub(crate) parameter: String,
    pub(crate) value: String,
    pub(crate) detail: String,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self {
            kind: "about:blank",
            title,
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
        }
    }

    pub(crate) fn parameters(errors: Vec<WrongParameter>) -> Self {
        let names: Vec<String> =
            errors.iter().map(|wrong| format!("{}: {}", wrong.parameter, wrong.detail)).collect();
        Self { errors, ..Self::new(StatusCode::BAD_REQUEST, names.join("; ")) }
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    pub(crate) fn answer(&self) -> Answer {
        let body = serde_json::to_vec(self).unwrap_or_default();
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = with_body(status, "application/problem+json", body);
        if status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"throughline-flow\"");
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        answer
    }
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Answer {
        problem.answer()
    }
}

/// An answer of this status, type and body, with the headers that every answer has: nothing here is for another
/// site's page, and nothing is to be guessed from the bytes.
pub(crate) fn with_body(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    answer
}
