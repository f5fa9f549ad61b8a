//! The collector: takes OTLP by gRPC, counts spans, and says how many there were to whoever connects to its
//! second port. Decodes no more than it takes to count.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::listen;

#[derive(Default)]
struct Counts {
    spans: Cell<u64>,
    calls: Cell<u64>,
    bytes: Cell<u64>,
}

/// Serves for ever: OTLP at `address`, its counts in text at `told_at`.
pub(crate) async fn run(address: SocketAddr, told_at: SocketAddr) -> std::io::Result<()> {
    let counts = Rc::<Counts>::default();
    let (listener, asked) = (listen(address).await?, listen(told_at).await?);
    let all = Rc::clone(&counts);
    tokio::task::LocalSet::new()
        .run_until(async move {
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted?;
                        tokio::task::spawn_local(serve(stream, Rc::clone(&all)));
                    }
                    accepted = asked.accept() => {
                        let text = format!(
                            "spans {}\ncalls {}\nbytes {}\n", all.spans.get(), all.calls.get(), all.bytes.get());
                        let (mut stream, _) = accepted?;
                        let _ = stream.write_all(text.as_bytes()).await;
                    }
                }
            }
        })
        .await
}

async fn serve(stream: TcpStream, counts: Rc<Counts>) -> Result<(), h2::Error> {
    let _ = stream.set_nodelay(true);
    let mut connection = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 22)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        tokio::task::spawn_local(export(request, respond, Rc::clone(&counts)));
    }
    Ok(())
}

async fn export(
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    counts: Rc<Counts>,
) -> Result<(), h2::Error> {
    let of_spans = request.uri().path().ends_with("TraceService/Export");
    let mut body = request.into_body();
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        message.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    let read = message.get(5..).and_then(spans);
    if of_spans {
        counts.spans.set(counts.spans.get() + read.unwrap_or(0));
        counts.calls.set(counts.calls.get() + 1);
        counts.bytes.set(counts.bytes.get() + message.len() as u64);
    }
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut out = respond.send_response(response, false)?;
    out.send_data(Bytes::from_static(&[0; 5]), false)?; // an empty message: all was taken
    let mut trailers = HeaderMap::new();
    // 3 is INVALID_ARGUMENT: what can't be read is not counted.
    trailers.insert("grpc-status", HeaderValue::from_static(if read.is_some() { "0" } else { "3" }));
    out.send_trailers(trailers)
}

/// Spans in the bytes of an `ExportTraceServiceRequest`: `resource_spans = 1`, in it `scope_spans = 2`, in it
/// `spans = 2`. None when they are no such message.
fn spans(request: &[u8]) -> Option<u64> {
    let mut count = 0;
    each(request, 1, &mut |resource| {
        each(resource, 2, &mut |scope| {
            each(scope, 2, &mut |_| {
                count += 1;
                Some(())
            })
        })
    })?;
    Some(count)
}

/// Visits every field of this number that holds bytes.
fn each<'a>(mut message: &'a [u8], number: u64, visit: &mut dyn FnMut(&'a [u8]) -> Option<()>) -> Option<()> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let skipped = match tag & 7 {
            0 => {
                varint(&mut message)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (value, rest) = message.split_at_checked(skipped)?;
        message = rest;
        if tag >> 3 == number && tag & 7 == 2 {
            visit(value)?;
        }
    }
    Some(())
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_counted_over_resources_and_scopes() {
        let one = |number: u8, content: &[u8]| {
            [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
        };
        let span = one(2, b"");
        let scope = one(2, &[span.clone(), one(1, b"x"), span.clone()].concat());
        let resource = one(1, &[one(1, b"abc"), scope.clone(), scope].concat());
        assert_eq!(spans(&[resource.clone(), resource].concat()), Some(8));
        assert_eq!(spans(b""), Some(0));
        assert_eq!(spans(&one(1, &one(2, &[0x12, 200]))), None);
    }
}
