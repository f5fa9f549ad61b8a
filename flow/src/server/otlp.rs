//! OTLP by HTTP: `/v1/traces` and `/v1/metrics`, protobuf or JSON. Answers as the OTLP specification words it: what was
//! not taken is said by `partial_success`, a status or `Retry-After`, never by silence.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;

use super::body::{Encoding, Unread, Whole};
use super::problem::{Answer, with_body};
use super::{App, Signal};
use crate::engine::{Accepted, Refused};

/// When a sender may try again.
pub(crate) const RETRY_AFTER_SECONDS: u64 = 1;
const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

/// How a message is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Protobuf,
    Json,
}

impl Form {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        match kind.split(';').next()?.trim().to_ascii_lowercase().as_str() {
            PROTOBUF | "application/protobuf" => Some(Self::Protobuf),
            JSON => Some(Self::Json),
            _ => None,
        }
    }
}

/// What a sender is told that is not good news.
struct Bad {
    status: StatusCode,
    /// A code of google.rpc.
    code: u8,
    message: String,
}

impl Bad {
    fn new(status: StatusCode, code: u8, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// The `Status` message of OTLP, in the form that the request had.
    fn answer(self, form: Form) -> Answer {
        let mut answer = match form {
            Form::Protobuf => with_body(self.status, PROTOBUF, status_message(self.code, &self.message)),
            Form::Json => {
                let body = serde_json::json!({ "code": self.code, "message": self.message });
                with_body(self.status, JSON, body.to_string())
            }
        };
        if self.status == StatusCode::TOO_MANY_REQUESTS || self.status == StatusCode::SERVICE_UNAVAILABLE {
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        answer
    }
}

pub(crate) const INVALID_ARGUMENT: u8 = 3;
pub(crate) const DEADLINE_EXCEEDED: u8 = 4;
pub(crate) const RESOURCE_EXHAUSTED: u8 = 8;
pub(crate) const UNIMPLEMENTED: u8 = 12;
pub(crate) const UNAVAILABLE: u8 = 14;
pub(crate) const UNAUTHENTICATED: u8 = 16;

/// `google.rpc.Status`.
pub(crate) fn status_message(code: u8, message: &str) -> Vec<u8> {
    let mut out = vec![1 << 3, code];
    put_text(&mut out, 2, message);
    out
}

fn put_text(out: &mut Vec<u8>, field: u8, text: &str) {
    crate::wire::proto::put_bytes(out, u32::from(field), text.as_bytes());
}

/// `ExportTraceServiceResponse` and its siblings are alike: what was rejected, and why.
pub(crate) fn partial_success(accepted: &Accepted) -> Vec<u8> {
    if accepted.rejected == 0 && accepted.why.is_none() {
        return Vec::new();
    }
    let mut partial = Vec::new();
    if accepted.rejected > 0 {
        partial.push(1 << 3);
        crate::wire::proto::put_varint(&mut partial, accepted.rejected);
    }
    put_text(&mut partial, 2, accepted.why.as_deref().unwrap_or(""));
    let mut out = Vec::new();
    crate::wire::proto::put_bytes(&mut out, 1, &partial);
    out
}

fn partial_json(signal: Signal, accepted: &Accepted) -> String {
    if accepted.rejected == 0 && accepted.why.is_none() {
        return "{}".to_owned();
    }
    let rejected = match signal {
        Signal::Traces => "rejectedSpans",
        Signal::Metrics => "rejectedDataPoints",
    };
    let why = accepted.why.as_deref().unwrap_or("");
    // 64-bit integers are strings in protobuf's JSON.
    serde_json::json!({ "partialSuccess": { rejected: accepted.rejected.to_string(), "errorMessage": why } })
        .to_string()
}

/// Answers an export.
pub(crate) async fn answer(app: &Arc<App>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let signal = match head.uri.path() {
        "/v1/traces" => Signal::Traces,
        "/v1/metrics" => Signal::Metrics,
        "/v1/logs" | "/v1/profiles" | "/v1development/profiles" => {
            let message =
                "this server takes spans and metrics (/v1/traces, /v1/metrics); switch this exporter off";
            let form = Form::of(&head.headers).unwrap_or(Form::Json);
            return Bad::new(StatusCode::NOT_FOUND, UNIMPLEMENTED, message).answer(form);
        }
        other => {
            let message = format!("no such path: {}; want /v1/traces or /v1/metrics", short(other));
            return Bad::new(StatusCode::NOT_FOUND, UNIMPLEMENTED, message).answer(Form::Json);
        }
    };
    if head.method != Method::POST {
        let mut answer =
            Bad::new(StatusCode::METHOD_NOT_ALLOWED, UNIMPLEMENTED, "want POST").answer(Form::Json);
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        return answer;
    }
    let Some(form) = Form::of(&head.headers) else {
        let message = "want Content-Type: application/x-protobuf or application/json";
        return refuse(
            app,
            Bad::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_ARGUMENT, message),
            Form::Json,
        );
    };
    let encoding = head.headers.get(header::CONTENT_ENCODING).map_or(Some(""), |value| value.to_str().ok());
    let Some(encoding) = encoding.and_then(Encoding::named) else {
        let message = "want Content-Encoding: identity, gzip or zstd";
        return refuse(app, Bad::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_ARGUMENT, message), form);
    };
    let read = app.bounds.read(body).await.and_then(|read| app.bounds.decompress(read, encoding));
    let read = match read {
        Ok(read) => read,
        Err(unread) => return refuse(app, of_unread(app, unread), form),
    };
    match take(app, signal, form, read) {
        Ok(accepted) => match form {
            Form::Protobuf => with_body(StatusCode::OK, PROTOBUF, partial_success(&accepted)),
            Form::Json => with_body(StatusCode::OK, JSON, partial_json(signal, &accepted)),
        },
        Err(bad) => refuse(app, bad, form),
    }
}

fn short(path: &str) -> String {
    path.chars().take(100).collect()
}

fn refuse(app: &App, bad: Bad, form: Form) -> Answer {
    app.counts.exports_refused.fetch_add(1, Ordering::Relaxed);
    bad.answer(form)
}

fn of_unread(app: &App, unread: Unread) -> Bad {
    match unread {
        Unread::TooLarge => {
            let message = format!(
                "want {} bytes at the most, before and after decompression; send smaller batches",
                app.bounds.bytes_max
            );
            Bad::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_ARGUMENT, message)
        }
        Unread::TooSlow => {
            let message = format!("the export did not arrive within {} ms", app.bounds.patience.as_millis());
            Bad::new(StatusCode::REQUEST_TIMEOUT, DEADLINE_EXCEEDED, message)
        }
        Unread::Busy => Bad::new(StatusCode::TOO_MANY_REQUESTS, UNAVAILABLE, "too many exports at once"),
        Unread::Broken => {
            let message = "the body is not what Content-Encoding says";
            Bad::new(StatusCode::BAD_REQUEST, INVALID_ARGUMENT, message)
        }
        Unread::Gone => Bad::new(StatusCode::BAD_REQUEST, INVALID_ARGUMENT, "the body ended early"),
    }
}

fn take(app: &App, signal: Signal, form: Form, read: Whole) -> Result<Accepted, Bad> {
    let Whole { bytes, share } = read;
    let bytes = match form {
        Form::Protobuf => bytes,
        Form::Json => {
            let told = match signal {
                Signal::Traces => crate::wire::json::traces(&bytes),
                Signal::Metrics => crate::wire::json::metrics(&bytes),
            };
            Bytes::from(
                told.map_err(|wrong| Bad::new(StatusCode::BAD_REQUEST, INVALID_ARGUMENT, wrong.to_string()))?,
            )
        }
    };
    let taken = app.take(signal, bytes);
    drop(share);
    taken.map_err(|refused| match refused {
        Refused::Busy => Bad::new(StatusCode::TOO_MANY_REQUESTS, UNAVAILABLE, "the queues are full"),
        Refused::Malformed(why) => Bad::new(StatusCode::BAD_REQUEST, INVALID_ARGUMENT, why),
    })
}
