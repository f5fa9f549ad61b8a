//! OTLP by gRPC: two unary methods, their messages passed on as they came. Bounded before a byte of a message is
//! held, and after decompression.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;

use super::auth::Refusal;
use super::body::{Encoding, Unread, Whole};
use super::listen::Body;
use super::otlp::{
    DEADLINE_EXCEEDED, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, RETRY_AFTER_SECONDS, UNAUTHENTICATED,
    UNAVAILABLE, UNIMPLEMENTED, partial_success, status_message,
};
use super::{App, Signal};
use crate::engine::Refused;
use crate::wire::proto;

/// Compressed flag and length.
const PREFIX: usize = 5;

/// A call that failed.
struct Bad {
    code: u8,
    message: String,
    /// Whether trying again helps: then `RetryInfo` says when.
    again: bool,
}

impl Bad {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), again: false }
    }
}

/// Answers a call.
pub(crate) async fn answer(
    app: &Arc<App>,
    request: Request<Incoming>,
    allowed: Result<(), Refusal>,
) -> Response<Body> {
    let kind = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if request.method() != Method::POST || !kind.starts_with(b"application/grpc") {
        let mut answer = Response::new(Full::<Bytes>::default().boxed());
        *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return answer;
    }
    let outcome = match allowed {
        Ok(()) => call(app, request).await,
        Err(refusal) => Err(Bad::new(UNAUTHENTICATED, refusal.detail())),
    };
    if outcome.is_err() {
        app.counts.exports_refused.fetch_add(1, Ordering::Relaxed);
    }
    respond(outcome)
}

async fn call(app: &Arc<App>, request: Request<Incoming>) -> Result<Vec<u8>, Bad> {
    let (head, body) = request.into_parts();
    let signal = match head.uri.path() {
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export" => Signal::Traces,
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" => Signal::Metrics,
        _ => {
            let message = "this server takes spans and metrics only; switch this exporter off";
            return Err(Bad::new(UNIMPLEMENTED, message));
        }
    };
    let encoding = head.headers.get("grpc-encoding").map_or(Some(""), |value| value.to_str().ok());
    let encoding = encoding
        .and_then(Encoding::named)
        .ok_or_else(|| Bad::new(UNIMPLEMENTED, "want grpc-encoding identity, gzip or zstd"))?;
    let bounds = &app.bounds;
    let read = bounds.read_bounded(body, bounds.bytes_max.saturating_add(PREFIX)).await;
    let Whole { bytes, share } = read.map_err(|unread| of_unread(app, unread))?;
    let (compressed, message) = unframed(&bytes)?;
    let encoding = if compressed { encoding } else { Encoding::Identity };
    if compressed && encoding == Encoding::Identity {
        return Err(Bad::new(
            INVALID_ARGUMENT,
            "the message is compressed, and grpc-encoding does not say how",
        ));
    }
    let read = bounds.decompress(Whole { bytes: message, share }, encoding);
    let Whole { bytes, share } = read.map_err(|unread| of_unread(app, unread))?;
    let taken = app.take(signal, bytes);
    drop(share);
    match taken {
        Ok(accepted) => Ok(partial_success(&accepted)),
        Err(Refused::Malformed(why)) => Err(Bad::new(INVALID_ARGUMENT, why)),
        Err(Refused::Busy) => Err(Bad { again: true, ..Bad::new(RESOURCE_EXHAUSTED, "the queues are full") }),
    }
}

/// The one message of a unary call.
fn unframed(bytes: &Bytes) -> Result<(bool, Bytes), Bad> {
    let wrong = || Bad::new(INVALID_ARGUMENT, "want one message of gRPC");
    let (flag, rest) = bytes.split_first().ok_or_else(wrong)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(wrong)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| wrong())?;
    if *flag > 1 || rest.len() != length {
        return Err(wrong());
    }
    Ok((*flag == 1, bytes.slice(PREFIX..)))
}

fn of_unread(app: &App, unread: Unread) -> Bad {
    match unread {
        // Sent again as it is, it would be as large: no RetryInfo, so that senders drop it.
        Unread::TooLarge => {
            let message =
                format!("want {} bytes at the most, before and after decompression", app.bounds.bytes_max);
            Bad::new(RESOURCE_EXHAUSTED, message)
        }
        Unread::TooSlow => Bad::new(DEADLINE_EXCEEDED, "the export did not arrive in time"),
        Unread::Busy => Bad { again: true, ..Bad::new(RESOURCE_EXHAUSTED, "too many exports at once") },
        Unread::Broken => Bad::new(INVALID_ARGUMENT, "the message is not what grpc-encoding says"),
        Unread::Gone => Bad::new(UNAVAILABLE, "the message ended early"),
    }
}

fn respond(outcome: Result<Vec<u8>, Bad>) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    let message = match outcome {
        Ok(message) => {
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            Some(message)
        }
        Err(bad) => {
            trailers.insert("grpc-status", HeaderValue::from(u16::from(bad.code)));
            if let Ok(text) = HeaderValue::from_str(&percent(&bad.message)) {
                trailers.insert("grpc-message", text);
            }
            if bad.again
                && let Ok(details) = HeaderValue::from_str(&base64(&details(&bad)))
            {
                trailers.insert("grpc-status-details-bin", details);
            }
            None
        }
    };
    let body = match message {
        Some(message) => {
            let mut framed = BytesMut::with_capacity(PREFIX + message.len());
            framed.put_u8(0);
            framed.put_u32(u32::try_from(message.len()).unwrap_or(0));
            framed.extend_from_slice(&message);
            let trailers = std::future::ready(Some(Ok(trailers)));
            Full::new(framed.freeze()).with_trailers(trailers).boxed()
        }
        None => {
            // Without a message there is nothing that trailers could follow: they are the head.
            let mut answer = Response::new(Full::<Bytes>::default().boxed());
            *answer.headers_mut() = trailers;
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            return answer;
        }
    };
    let mut answer = Response::new(body);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer
}

/// `google.rpc.Status` with a `RetryInfo`, as the OTLP specification asks of a server that is busy.
fn details(bad: &Bad) -> Vec<u8> {
    let mut duration = Vec::new();
    duration.push(1 << 3);
    proto::put_varint(&mut duration, RETRY_AFTER_SECONDS);
    let mut retry_info = Vec::new();
    proto::put_bytes(&mut retry_info, 1, &duration);
    let mut any = Vec::new();
    proto::put_bytes(&mut any, 1, b"type.googleapis.com/google.rpc.RetryInfo");
    proto::put_bytes(&mut any, 2, &retry_info);
    let mut status = status_message(bad.code, &bad.message);
    proto::put_bytes(&mut status, 3, &any);
    status
}

/// What gRPC asks of `grpc-message`: visible ASCII without a percent sign as it is.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Base64 without padding, as binary headers of gRPC are written.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group
            .iter()
            .enumerate()
            .fold(0_u32, |word, (at, byte)| word | (u32::from(*byte) << (16 - 8 * at)));
        for at in 0..=group.len() {
            let digit = (word >> (18 - 6 * at)) & 63;
            out.push(DIGITS.get(digit as usize).map_or('A', |digit| char::from(*digit)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_headers_are_base64_without_padding() {
        for (bytes, expected) in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg")] {
            assert_eq!(base64(bytes.as_bytes()), expected);
        }
    }

    #[test]
    fn only_one_whole_message_is_a_call() {
        let framed = |bytes: &[u8]| unframed(&Bytes::copy_from_slice(bytes)).map(|(_, message)| message).ok();
        assert_eq!(framed(&[0, 0, 0, 0, 2, 7, 8]), Some(Bytes::from_static(&[7, 8])));
        for wrong in [&[][..], &[0, 0, 0], &[0, 0, 0, 0, 2, 7], &[0, 0, 0, 0, 1, 7, 8], &[2, 0, 0, 0, 1, 7]] {
            assert_eq!(framed(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_said_fits_into_a_header() {
        assert_eq!(percent("100 % ü\n"), "100 %25 %C3%BC%0A");
    }
}
