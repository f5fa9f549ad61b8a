//! gRPC by hand: five bytes before each message, the status in trailers. Services and calls exchange raw
//! bytes, so no scenario needs a schema.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Response, header};
use prost::Message;

use crate::collector::gunzip;
use crate::feed::{AnyBody, Feeder, fed, nothing};
use crate::service::{Script, script};

/// A message with its prefix.
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(message.len().try_into().expect("a small message"));
    frame.put_slice(message);
    frame.freeze()
}

/// The only message of a body, decompressed when its prefix says so.
pub fn unframed(body: &Bytes, headers: &HeaderMap) -> Bytes {
    let (prefix, message) = body.split_at_checked(5).expect("a prefix of five bytes");
    let length = u32::from_be_bytes(prefix[1..].try_into().expect("four bytes"));
    assert_eq!(length as usize, message.len(), "one message, as long as it says");
    match prefix[0] {
        0 => body.slice(5..),
        1 => {
            assert_eq!(headers["grpc-encoding"], "gzip", "compressed messages name their coding");
            gunzip(message)
        }
        other => panic!("no compression flag: {other}"),
    }
}

/// The messages of a body.
pub fn messages(mut body: Bytes) -> Vec<Bytes> {
    let mut all = Vec::new();
    while body.len() >= 5 {
        let length = u32::from_be_bytes(body[1..5].try_into().expect("four bytes")) as usize;
        all.push(body.slice(5..5 + length));
        body = body.slice(5 + length..);
    }
    all
}

/// Trailers that carry a status.
pub fn status(code: u32) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    trailers
}

/// The head of an answer whose messages the script feeds.
pub fn streaming() -> (Feeder, Response<AnyBody>) {
    let (feeder, body) = fed();
    let response = Response::builder().header(header::CONTENT_TYPE, "application/grpc").body(body);
    (feeder, response.expect("a response"))
}

/// One message, then OK in the trailers.
pub fn unary(message: Bytes) -> Response<AnyBody> {
    answered(vec![message], 0)
}

/// Messages, then a status in the trailers.
pub fn answered(messages: Vec<Bytes>, code: u32) -> Response<AnyBody> {
    let (feeder, response) = streaming();
    tokio::spawn(async move {
        for message in messages {
            feeder.send(framed(&message)).await;
        }
        feeder.trailers(status(code)).await;
    });
    response
}

/// A status in the head, and nothing else.
pub fn trailers_only(code: u32) -> Response<AnyBody> {
    let response = Response::builder()
        .header(header::CONTENT_TYPE, "application/grpc")
        .header("grpc-status", code)
        .header("grpc-message", "no");
    response.body(nothing()).expect("a response")
}

/// A refusal that says when to try again: google.rpc.Status with a google.rpc.RetryInfo in its details.
pub fn with_retry_info(code: u32, milliseconds: u64) -> Response<AnyBody> {
    let mut response = trailers_only(code);
    let details = RpcStatus {
        code: code.try_into().expect("a small code"),
        message: "no".into(),
        details: vec![Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
            value: RetryInfo {
                retry_delay: Some(Duration {
                    seconds: (milliseconds / 1000).try_into().expect("a short time"),
                    nanos: (milliseconds % 1000 * 1_000_000).try_into().expect("below a second"),
                }),
            }
            .encode_to_vec(),
        }],
    };
    let text = base64(&details.encode_to_vec());
    response.headers_mut().insert("grpc-status-details-bin", text.parse().expect("base64"));
    response
}

/// A gRPC service that answers each call with these messages and this status.
pub fn answering(messages: &'static [&'static [u8]], code: u32) -> Script {
    script(move |visit| async move {
        crate::service::read(visit.request).await;
        answered(messages.iter().map(|message| Bytes::from_static(message)).collect(), code)
    })
}

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Duration>,
}

#[derive(Clone, PartialEq, Message)]
struct Duration {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// Base64 without padding, as gRPC writes binary metadata.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let group =
            three.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..=three.len() {
            text.push(char::from(DIGITS[(group >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}
