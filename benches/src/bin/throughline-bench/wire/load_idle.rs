//! Connections that stand still: each asks once, so that it is a connection of HTTP and not only of TCP, and then
//! stays open until this process is ended.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::backend::end_of_head;
use super::load::{Contexts, Seen};
use super::load_http1::{Ask, Asking};

/// How many are opened side by side: few, so that a proxy's pool towards its upstream stays small.
const AT_ONCE: u64 = 8;

/// Opens so many, says so, and waits.
pub(crate) async fn run(to: SocketAddr, connections: u64) {
    let tasks: Vec<_> =
        (0..AT_ONCE).map(|task| tokio::spawn(some(to, task, connections / AT_ONCE))).collect();
    let (mut all, mut open) = (Seen::default(), Vec::new());
    for task in tasks {
        let (seen, streams) = task.await.expect("no panic in a generator");
        all.add(seen);
        open.extend(streams);
    }
    all.tell(&[("open", open.len() as f64)]);
    println!("standing");
    tokio::time::sleep(Duration::from_secs(600)).await;
    drop(open);
}

async fn some(to: SocketAddr, task: u64, connections: u64) -> (Seen, Vec<TcpStream>) {
    let (mut asking, mut contexts) = (Asking::new(Ask::Small, true), Contexts::seeded(task << 40));
    let (mut seen, mut open) = (Seen::default(), Vec::new());
    for _ in 0..connections {
        match once(to, asking.next(&mut contexts)).await {
            Ok(stream) => {
                seen.answers += 1;
                open.push(stream);
            }
            Err(why) => seen.failed(why),
        }
    }
    (seen, open)
}

async fn once(to: SocketAddr, request: &[u8]) -> Result<TcpStream, String> {
    let lost = |error: std::io::Error| format!("connection lost: {error}");
    let mut stream = TcpStream::connect(to).await.map_err(lost)?;
    stream.write_all(request).await.map_err(lost)?;
    let (mut buffer, mut filled) = ([0; 4096], 0);
    let asking = Asking::new(Ask::Small, false);
    loop {
        let bytes = stream.read(&mut buffer[filled..]).await.map_err(lost)?;
        if bytes == 0 {
            return Err("connection closed".to_owned());
        }
        filled += bytes;
        if let Some(end) = end_of_head(&buffer[..filled])
            && filled - end >= asking.judge(&buffer[..end])?
        {
            return Ok(stream);
        }
    }
}
