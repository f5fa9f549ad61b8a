//! The application: answers at once, HTTP/1.1 and HTTP/2 on one port. Written by hand for HTTP/1.1, so that it
//! takes as little of its core as it can; refuses what it does not understand, which a round then counts.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{GRPC_MESSAGE, LARGE_BYTES, LARGE_PATH, SMALL, is_http2, listen};

/// Serves for ever.
pub(crate) async fn run(address: SocketAddr) -> std::io::Result<()> {
    let listener = listen(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            if is_http2(&stream).await {
                let _ = http2(stream).await;
            } else {
                let _ = http1(stream).await;
            }
        });
    }
}

fn answer(status: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nserver: bench\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

async fn http1(mut stream: TcpStream) -> std::io::Result<()> {
    let small = answer("200 OK", SMALL);
    let large = answer("200 OK", &vec![b'x'; LARGE_BYTES]);
    let odd = answer("501 Not Implemented", b"");
    let mut buffer = vec![0; 64 * 1024];
    let mut filled = 0;
    loop {
        let Some(end) = end_of_head(&buffer[..filled]) else {
            let bytes = stream.read(&mut buffer[filled..]).await?;
            if bytes == 0 {
                return Ok(());
            }
            filled += bytes;
            continue;
        };
        let head = &buffer[..end];
        let known = field(head, b"transfer-encoding").is_none();
        let is_large = head.windows(LARGE_PATH.len()).any(|part| part == LARGE_PATH.as_bytes());
        let mut body = number(field(head, b"content-length"));
        let there = (filled - end).min(body);
        body -= there;
        buffer.copy_within(end + there..filled, 0);
        filled -= end + there;
        while body > 0 {
            let room = buffer.len().min(body);
            let bytes = stream.read(&mut buffer[..room]).await?;
            if bytes == 0 {
                return Ok(());
            }
            body -= bytes;
        }
        let answer = match (known, is_large) {
            (false, _) => &odd,
            (true, true) => &large,
            (true, false) => &small,
        };
        stream.write_all(answer).await?;
    }
}

/// Where the body begins.
pub(crate) fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// The value of a field, which may be written in any case.
pub(crate) fn field<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut lines = head.split(|byte| *byte == b'\n').skip(1);
    lines.find_map(|line| {
        let (found, value) = line.split_at_checked(name.len())?;
        let value = value.strip_prefix(b":")?;
        found.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
    })
}

/// A number in decimal; zero where there is none.
pub(crate) fn number(text: Option<&[u8]>) -> usize {
    text.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()).unwrap_or(0)
}

async fn http2(stream: TcpStream) -> Result<(), h2::Error> {
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(1000)
        .initial_connection_window_size(1 << 20)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        if request.headers().get("content-type").is_some_and(|kind| kind == "application/grpc") {
            tokio::spawn(grpc(request, respond));
        } else {
            // In a task of its own: answers to requests that came together leave together.
            tokio::spawn(async move { plain(respond) });
        }
    }
    Ok(())
}

fn plain(mut respond: h2::server::SendResponse<Bytes>) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    headers.insert("server", HeaderValue::from_static("bench"));
    headers.insert("content-length", HeaderValue::from(SMALL.len()));
    respond.send_response(response, false)?.send_data(Bytes::from_static(SMALL), true)
}

/// Reads the message, answers with one, and says in the trailers that it went well.
async fn grpc(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    let mut seen = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        seen += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut out = respond.send_response(response, false)?;
    out.send_data(Bytes::from_static(GRPC_MESSAGE), false)?;
    let mut trailers = HeaderMap::new();
    // 3 is INVALID_ARGUMENT: a round in which a message did not arrive whole is no result.
    let status = if seen == GRPC_MESSAGE.len() { "0" } else { "3" };
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    out.send_trailers(trailers)
}
