//! `/api/v1/live`: the live view by WebSocket. Readers say what they want to see and are told; one that does not keep
//! up is let go. Pages of other sites are refused.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use super::App;
use super::problem::{Answer, Problem, with_body};
use crate::live::{Filters, complaint};

/// Bytes of what a reader sends.
const SENT_BYTES_MAX: usize = 4096;
/// Bytes that wait in the socket of a reader.
const WRITE_BYTES_MAX: usize = 1 << 20;
/// For a message to be taken by a reader's socket.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a silent reader is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Complaints about what one reader sent.
const COMPLAINTS_MAX: u32 = 20;
/// Bytes of a filter.
const FILTER_BYTES_MAX: usize = 256;

/// Answers an upgrade.
pub(crate) fn answer(app: &Arc<App>, mut request: Request<Incoming>) -> Answer {
    let headers = request.headers();
    if let Err(problem) = upgrade_wanted(headers) {
        return problem.answer();
    }
    if !same_origin(headers) {
        return Problem::new(StatusCode::FORBIDDEN, "pages of other origins may not look").answer();
    }
    if app.live.looking() >= app.live_max {
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many live views are open").answer();
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()))
    else {
        return Problem::new(StatusCode::BAD_REQUEST, "want Sec-WebSocket-Key").answer();
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let app = Arc::clone(app);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let config = WebSocketConfig::default()
            .max_message_size(Some(SENT_BYTES_MAX))
            .max_frame_size(Some(SENT_BYTES_MAX))
            .max_write_buffer_size(WRITE_BYTES_MAX);
        let socket =
            WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
        serve(&app, socket).await;
    });
    let mut answer = with_body(StatusCode::SWITCHING_PROTOCOLS, "text/plain", "");
    let headers = answer.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(key) = HeaderValue::from_str(&key) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    }
    answer
}

fn upgrade_wanted(headers: &HeaderMap) -> Result<(), Problem> {
    let has = |name: header::HeaderName, wanted: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(wanted))
    };
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        return Err(Problem::new(
            StatusCode::UPGRADE_REQUIRED,
            "want a WebSocket: Connection: Upgrade, Upgrade: websocket",
        ));
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "want Sec-WebSocket-Version: 13"));
    }
    Ok(())
}

/// Browsers say which page asks; others say nothing.
fn same_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let origin = origin.to_str().unwrap_or("");
    let of = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    !host.is_empty() && of.is_some_and(|of| of.eq_ignore_ascii_case(host))
}

async fn serve<S>(app: &App, mut socket: WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut told: Option<mpsc::Receiver<Arc<str>>> = None;
    let (mut complaints, mut silent) = (0, false);
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    let end = loop {
        tokio::select! {
            came = socket.next() => match came {
                Some(Ok(Message::Text(text))) => {
                    silent = false;
                    match filters(&text) {
                        Ok(filters) => told = Some(app.live.subscribe(filters)),
                        Err(_) if complaints >= COMPLAINTS_MAX => break Some((CloseCode::Policy, "too many mistakes")),
                        Err(why) => {
                            complaints += 1;
                            if !send(&mut socket, vec![Message::text(complaint(&why))]).await {
                                break None;
                            }
                        }
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => silent = false,
                Some(Ok(Message::Binary(_))) => break Some((CloseCode::Unsupported, "want text")),
                Some(Ok(Message::Close(_) | Message::Frame(_)) | Err(_)) | None => break None,
            },
            message = next(&mut told) => match message {
                Some(first) => {
                    // What waits goes out in one write.
                    let mut messages = vec![Message::text(first.as_ref())];
                    while let Some(more) = told.as_mut().and_then(|told| told.try_recv().ok()) {
                        messages.push(Message::text(more.as_ref()));
                    }
                    if !send(&mut socket, messages).await {
                        break None;
                    }
                }
                None => break Some((CloseCode::Again, "too slow: messages were lost")),
            },
            _ = ping.tick() => {
                if std::mem::replace(&mut silent, true) && told.is_none() {
                    break Some((CloseCode::Policy, "want a subscribe"));
                }
                if !send(&mut socket, vec![Message::Ping(bytes::Bytes::new())]).await {
                    break None;
                }
            }
        }
    };
    if let Some((code, reason)) = end {
        let frame = CloseFrame { code, reason: reason.into() };
        let _ = timeout(WRITE_TIMEOUT, socket.close(Some(frame))).await;
    }
}

/// Never, as long as nothing is subscribed to.
async fn next(told: &mut Option<mpsc::Receiver<Arc<str>>>) -> Option<Arc<str>> {
    match told {
        Some(told) => told.recv().await,
        None => std::future::pending().await,
    }
}

async fn send<S>(socket: &mut WebSocketStream<S>, messages: Vec<Message>) -> bool
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let sending = async {
        for message in messages {
            socket.feed(message).await?;
        }
        socket.flush().await
    };
    matches!(timeout(WRITE_TIMEOUT, sending).await, Ok(Ok(())))
}

/// What a subscription asks for; an error says what would be right.
fn filters(text: &str) -> Result<Filters, String> {
    const WANT: &str = "want {\"type\":\"subscribe\",\"filters\":{\"operation\":…,\"environment\":…}}";
    let value: Value = serde_json::from_str(text).map_err(|_| WANT.to_owned())?;
    let object = value.as_object().ok_or(WANT)?;
    if object.get("type").and_then(Value::as_str) != Some("subscribe") {
        return Err(WANT.to_owned());
    }
    let mut filters = Filters::default();
    let asked = match object.get("filters") {
        None | Some(Value::Null) => return Ok(filters),
        Some(asked) => asked.as_object().ok_or(WANT)?,
    };
    for (name, value) in asked {
        let value = match value {
            Value::Null => None,
            Value::String(text) if text.len() <= FILTER_BYTES_MAX => {
                Some(text.clone()).filter(|text| !text.is_empty())
            }
            Value::String(_) | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                return Err(format!(
                    "filters.{}: want a string of {FILTER_BYTES_MAX} bytes at the most",
                    short(name)
                ));
            }
        };
        match name.as_str() {
            "operation" => filters.operation = value,
            "environment" => filters.environment = value,
            other => {
                return Err(format!(
                    "filters.{}: no such filter: want operation or environment",
                    short(other)
                ));
            }
        }
    }
    Ok(filters)
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_contracts_example_is_a_subscription_and_mistakes_are_named() {
        let wanted =
            filters(r#"{"type":"subscribe","filters":{"operation":"login","environment":"production"}}"#);
        let expected = Filters { operation: Some("login".into()), environment: Some("production".into()) };
        assert_eq!(wanted, Ok(expected));
        assert_eq!(filters(r#"{"type":"subscribe"}"#), Ok(Filters::default()));
        for (wrong, expected) in [
            ("login", "want {"),
            (r#"{"type":"hello"}"#, "want {"),
            (r#"{"type":"subscribe","filters":{"operatoin":"a"}}"#, "filters.operatoin: no such filter"),
            (r#"{"type":"subscribe","filters":{"operation":7}}"#, "filters.operation: want a string"),
        ] {
            assert!(filters(wrong).unwrap_err().starts_with(expected), "{wrong}");
        }
    }

    #[test]
    fn pages_of_other_origins_are_others() {
        let headers = |origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("localhost:8090"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
            }
            same_origin(&headers)
        };
        assert!(headers(None) && headers(Some("http://localhost:8090")));
        for other in [
            "http://evil.example.com",
            "http://localhost:8091",
            "null",
            "http://localhost:8090.evil.example.com",
        ] {
            assert!(!headers(Some(other)), "{other}");
        }
    }
}
