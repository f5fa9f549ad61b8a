//! Where a redirected connection was going, by the kernel's word. Must never believe anybody else's.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// The destination that the caller dialled; none when it dialled us, or when the kernel does not know.
pub(super) fn destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let socket = SockRef::from(stream);
    let original: io::Result<_> =
        if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    // Of a connection that nobody redirected the kernel says where it ended: here.
    original.ok()?.as_socket().filter(|to| (to.ip(), to.port()) != (local.ip(), local.port()))
}
