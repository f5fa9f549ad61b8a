//! Runs a program of the system for a bounded time, and gives what it wrote.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long nft or iptables may take: a busy node's lock is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Bytes of output that are kept.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;

/// Why there is no result.
#[derive(Debug)]
pub(super) enum Failed {
    /// The program is not installed.
    Missing,
    /// It said no; with what it wrote.
    Refused(String),
    /// It could not be run, or did not end.
    Broken(String),
}

/// Runs it with this input; gives its standard output.
pub(super) fn run(program: &str, args: &[&str], input: &str) -> Result<String, Failed> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Where Debian and Alpine have it, whatever PATH an image has.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin")).env("LC_ALL", "C");
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failed::Missing,
        _ => Failed::Broken(format!("{program} can't be run: {error}")),
    })?;
    let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input.as_bytes()); // one that ended early says why itself
    }
    let ended = wait(&mut child).ok_or_else(|| {
        let _ = child.kill();
        let _ = child.wait();
        Failed::Broken(format!("{program} did not end in {} s", PATIENCE.as_secs()))
    })?;
    let text = |reader: JoinHandle<String>| reader.join().unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    if ended { Ok(stdout) } else { Err(Failed::Refused(stderr.trim().to_owned())) }
}

/// Whether it ended well; none if it has not ended.
fn wait(child: &mut Child) -> Option<bool> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) => std::thread::sleep(LOOK_AGAIN),
            Err(_) => return None,
        }
    }
    None
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            let _ = pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
