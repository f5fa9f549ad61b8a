//! A bare wire: bytes in, bytes out, nothing interpreted that the scenario did not ask for. And a bare peer,
//! whose script decides what each connection gets, for answers that no HTTP library would send.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::wait::within;

/// One TCP connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    /// Read from the socket, not yet taken by the scenario.
    ahead: Vec<u8>,
}

impl Wire {
    /// Connects.
    pub async fn to(address: SocketAddr) -> Wire {
        Wire::over(TcpStream::connect(address).await.expect("the peer accepts"))
    }

    /// Around a stream that exists.
    pub fn over(stream: TcpStream) -> Wire {
        stream.set_nodelay(true).expect("nodelay");
        Wire { stream, ahead: Vec::new() }
    }

    /// Sends bytes; a peer that has closed is not the scenario's failure: it shows when reading.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        within("a peer that takes bytes", self.stream.write_all(bytes.as_ref())).await.is_ok()
    }

    /// Sends as much as the peer takes at once, and says how much.
    pub fn send_what_fits(&mut self, bytes: &[u8]) -> usize {
        self.stream.try_write(bytes).unwrap_or(0)
    }

    /// Says that no more bytes follow.
    pub async fn end(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The next bytes, up to and with `mark`. Fails when the peer closes before.
    pub async fn until(&mut self, mark: &str) -> String {
        let what = format!("{mark:?} on the wire");
        within(&what, async {
            loop {
                let found = self.ahead.windows(mark.len()).position(|window| window == mark.as_bytes());
                if let Some(at) = found {
                    return String::from_utf8_lossy(&self.take(at + mark.len())).into_owned();
                }
                let open = self.fill().await;
                assert!(open, "closed before {mark:?}; came: {:?}", String::from_utf8_lossy(&self.ahead));
            }
        })
        .await
    }

    /// A message's head with its empty line.
    pub async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// Exactly `count` bytes, or fewer when the peer closes before.
    pub async fn exactly(&mut self, count: usize) -> Vec<u8> {
        within("bytes on the wire", async {
            while self.ahead.len() < count && self.fill().await {}
            self.take(count)
        })
        .await
    }

    /// Everything until the peer closes or resets.
    pub async fn rest(&mut self) -> Vec<u8> {
        within("the peer closing", async {
            while self.fill().await {}
            std::mem::take(&mut self.ahead)
        })
        .await
    }

    /// As `rest`, as text.
    pub async fn rest_text(&mut self) -> String {
        String::from_utf8_lossy(&self.rest().await).into_owned()
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let count = count.min(self.ahead.len());
        self.ahead.drain(..count).collect()
    }

    async fn fill(&mut self) -> bool {
        let mut chunk = [0_u8; 16 * 1024];
        match self.stream.read(&mut chunk).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.ahead.extend_from_slice(&chunk[..count]);
                true
            }
        }
    }
}

/// The status code of a response's head.
pub fn status_of(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|code| code.get(..3)).and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// Sends bytes on a connection of their own and returns all that comes until the peer closes.
pub async fn exchange(address: SocketAddr, bytes: impl AsRef<[u8]>) -> String {
    let mut wire = Wire::to(address).await;
    wire.send(bytes).await;
    wire.rest_text().await
}

/// A TCP server whose script plays each connection.
#[derive(Debug)]
pub struct Peer {
    /// Where it listens.
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Peer {
    /// Starts a server that plays `script` on each connection.
    pub async fn playing<F, Play>(script: F) -> Peer
    where
        F: Fn(Wire) -> Play + Send + Sync + 'static,
        Play: Future<Output = ()> + Send + 'static,
    {
        Peer::on(TcpListener::bind("127.0.0.1:0").await.expect("a free port"), script)
    }

    /// Starts one on a socket that exists.
    pub fn on<F, Play>(listener: TcpListener, script: F) -> Peer
    where
        F: Fn(Wire) -> Play + Send + Sync + 'static,
        Play: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(script(Wire::over(stream)));
            }
        });
        Peer { address, connections, accepting }
    }

    /// A server that reads one request's head, says `answer` and closes.
    pub async fn saying(answer: &'static str) -> Peer {
        Peer::playing(move |mut wire| async move {
            wire.head().await;
            wire.send(answer).await;
        })
        .await
    }

    /// How many connections came.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A port that is taken and where nobody listens: a connection is refused for as long as this lives.
#[derive(Debug)]
pub struct Nobody {
    /// The address that refuses.
    pub address: SocketAddr,
    _socket: TcpSocket,
}

impl Nobody {
    /// Takes a port.
    pub fn listens() -> Nobody {
        let socket = bound();
        Nobody { address: socket.local_addr().expect("an address"), _socket: socket }
    }
}

/// A port whose queue of new connections is full: a connection attempt gets no answer at all.
#[derive(Debug)]
pub struct Unanswering {
    /// The address that stays silent.
    pub address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Unanswering {
    /// Listens, accepts nothing, and fills its own queue until an attempt hangs.
    pub async fn start() -> Unanswering {
        let listener = bound().listen(1).expect("listening");
        let address = listener.local_addr().expect("an address");
        let mut queued = Vec::new();
        while let Ok(attempt) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await
        {
            queued.push(attempt.expect("loopback"));
            assert!(queued.len() < 5_000, "this kernel's queue never fills");
        }
        Unanswering { address, _listener: listener, _queued: queued }
    }
}

fn bound() -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    socket
}
