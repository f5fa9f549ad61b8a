//! Open loop: requests at a fixed rate, whether or not the answers to earlier ones are there. Latency counts from
//! the moment at which a request was due, so that one slow answer is seen by all requests that it held up: that
//! is the correction for coordinated omission. One thread a connection, since a timer of the kernel is finer
//! than one of a runtime.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::backend::end_of_head;
use super::load::{Contexts, Seen};
use super::load_http1::{Ask, Asking};

/// How late the first request is due, so that all threads are there.
const START: Duration = Duration::from_millis(100);

/// Asks `rate` times a second on so many connections for so long.
pub(crate) fn run(to: SocketAddr, with_context: bool, connections: u32, rate: u32, time: Duration) {
    let start = Instant::now() + START;
    let between = Duration::from_secs(1) / rate;
    let requests = (time.as_secs_f64() * f64::from(rate)) as u32;
    let threads: Vec<_> = (0..connections)
        .map(|first| {
            let due =
                (first..requests).step_by(connections as usize).map(move |request| start + between * request);
            let contexts = Contexts::seeded(u64::from(first) << 40);
            std::thread::spawn(move || one(to, Asking::new(Ask::Small, with_context), contexts, due))
        })
        .collect();
    let (mut all, mut nanos) = (Seen::default(), Vec::new());
    for thread in threads {
        let (seen, latencies) = thread.join().expect("no panic in a generator");
        all.add(seen);
        nanos.extend(latencies);
    }
    let seconds = (start.elapsed()).as_secs_f64();
    nanos.sort_unstable();
    let micros = |share: f64| {
        let at = (nanos.len() as f64 * share) as usize;
        nanos.get(at.min(nanos.len().saturating_sub(1))).map_or(f64::NAN, |nanos| *nanos as f64 / 1000.0)
    };
    all.tell(&[
        ("seconds", seconds),
        ("due", f64::from(requests)),
        ("p50", micros(0.5)),
        ("p99", micros(0.99)),
        ("p999", micros(0.999)),
        ("most", micros(1.0)),
    ]);
}

fn one(
    to: SocketAddr,
    mut asking: Asking,
    mut contexts: Contexts,
    due: impl Iterator<Item = Instant>,
) -> (Seen, Vec<u64>) {
    let (mut seen, mut nanos) = (Seen::default(), Vec::with_capacity(4096));
    let mut stream = match TcpStream::connect(to) {
        Ok(stream) => stream,
        Err(error) => {
            seen.failed(error);
            return (seen, nanos);
        }
    };
    let _ = stream.set_nodelay(true);
    let mut buffer = vec![0; 16 * 1024];
    for due in due {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        match exchange(&mut stream, &mut asking, &mut contexts, &mut buffer) {
            Ok(()) => {
                nanos.push(u64::try_from(due.elapsed().as_nanos()).unwrap_or(u64::MAX));
                seen.answers += 1;
            }
            Err(why) => {
                seen.failed(why);
                return (seen, nanos);
            }
        }
    }
    (seen, nanos)
}

fn exchange(
    stream: &mut TcpStream,
    asking: &mut Asking,
    contexts: &mut Contexts,
    buffer: &mut [u8],
) -> Result<(), String> {
    let lost = |error: std::io::Error| format!("connection lost: {error}");
    stream.write_all(asking.next(contexts)).map_err(lost)?;
    let mut filled = 0;
    loop {
        let bytes = stream.read(&mut buffer[filled..]).map_err(lost)?;
        if bytes == 0 {
            return Err("connection closed".to_owned());
        }
        filled += bytes;
        if let Some(end) = end_of_head(&buffer[..filled])
            && filled - end >= asking.judge(&buffer[..end])?
        {
            return Ok(());
        }
    }
}
