//! What a collector's answer says, read no further than there is use for it. Must never decide what follows from it.

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use throughline_core::otlp::answer::{self, Answer};

/// Bytes of an answer that are read: an `ExportTraceServiceResponse` has some hundred.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// An error with its causes.
#[must_use]
pub fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What `core` reads in an answer by HTTP. Also says whether the answer was read to its end.
pub async fn http_answer(response: Response<Incoming>) -> (Answer, bool) {
    let (head, body) = response.into_parts();
    let (text, whole, _) = read(body).await;
    let retry_after = head.headers.get(RETRY_AFTER).map(HeaderValue::as_bytes);
    (answer::by_http(head.status.as_u16(), retry_after, &text), whole)
}

/// What `core` reads in an answer by gRPC.
pub async fn grpc_answer(response: Response<Incoming>) -> Answer {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        let retry_after = head.headers.get(RETRY_AFTER).map(HeaderValue::as_bytes);
        return answer::no_grpc(head.status.as_u16(), retry_after);
    }
    let (bytes, _, trailers) = read(body).await;
    let fields = trailers.as_ref().unwrap_or(&head.headers);
    let value = |name: &str| fields.get(name).map(HeaderValue::as_bytes);
    answer::by_grpc(
        value("grpc-status"),
        value("grpc-message"),
        value("grpc-status-details-bin"),
        bytes.get(5..).unwrap_or_default(),
    )
}

/// The first bytes of an answer, whether these are all, and its trailers.
async fn read(mut body: Incoming) -> (Vec<u8>, bool, Option<HeaderMap>) {
    let mut bytes = Vec::new();
    let mut trailers = None;
    while let Some(Ok(frame)) = body.frame().await {
        match frame.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            return (bytes, false, trailers);
        }
    }
    (bytes, true, trailers)
}
