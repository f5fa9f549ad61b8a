//! The processes around a proxy under test: what asks, what answers, what counts spans, and the bare proxy that
//! is the floor. Each runs by itself, pinned to its core; none knows what it is measured against.

pub(crate) mod backend;
pub(crate) mod floor;
pub(crate) mod load;
pub(crate) mod load_fixed;
pub(crate) mod load_http1;
pub(crate) mod load_http2;
pub(crate) mod load_idle;
pub(crate) mod sink;

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};

/// Bytes of each body in the rounds with large ones.
pub(crate) const LARGE_BYTES: usize = 100 * 1024;
/// What a small request is answered with.
pub(crate) const SMALL: &[u8] =
    br#"{"id":4711,"name":"Widget","price":12.5,"tags":["a","b"],"stock":{"berlin":12,"lyon":3},"ok":true}"#;
/// The path that asks for a small answer.
pub(crate) const SMALL_PATH: &str = "/api/items/4711";
/// The path that takes and gives a large body.
pub(crate) const LARGE_PATH: &str = "/api/blobs/4711";
/// The gRPC method.
pub(crate) const GRPC_PATH: &str = "/shop.Stock/Reserve";
/// One gRPC message: its five bytes of prefix, then 40 bytes.
pub(crate) const GRPC_MESSAGE: &[u8] = b"\0\0\0\0\x28\x0a\x26a message of a usual and small size, yes";

pub(crate) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

/// Whether a connection begins as HTTP/2 does, without taking its bytes.
pub(crate) async fn is_http2(stream: &TcpStream) -> bool {
    let mut first = [0; 4];
    loop {
        match stream.peek(&mut first).await {
            Ok(bytes) if bytes >= first.len() => return &first == b"PRI ",
            Ok(0) | Err(_) => return false,
            Ok(_) => tokio::task::yield_now().await,
        }
    }
}
