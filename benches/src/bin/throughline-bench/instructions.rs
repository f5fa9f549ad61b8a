//! `throughline-bench requests-instructions SIDECAR`: user-space instructions of the whole sidecar for one request
//! over HTTP/1.1, in each mode, by callgrind. Two runs a mode, one with twice the requests: what the longer one has
//! more is what the further requests cost, without start and end. Prints `NAME=NUMBER` lines; judges nothing.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::Process;
use crate::wire::backend::end_of_head;
use crate::wire::load::Contexts;
use crate::wire::load_http1::{Ask, Asking};

/// Requests of the shorter run. A multiple of the spans in a batch, so that both runs export whole ones.
const REQUESTS: u32 = 1024;
/// How long the sidecar may take to start and to end under callgrind.
const PATIENCE: Duration = Duration::from_secs(60);

/// Name, the percentage of callers that sampled their trace, and what the sidecar is told.
const MODES: [(&str, u64, &[&str]); 7] = [
    ("request_off", 100, &["--mode", "off"]),
    ("request_system_only", 100, &["--mode", "system-only"]),
    ("request_hybrid_0", 0, &["--mode", "hybrid"]),
    ("request_hybrid_1", 1, &["--mode", "hybrid"]),
    ("request_hybrid_10", 10, &["--mode", "hybrid"]),
    ("request_hybrid_100", 100, &["--mode", "hybrid"]),
    ("request_full", 100, &["--mode", "full"]),
];

/// Reads `SIDECAR [--only NAME] [--keep FILE]`, measures and prints.
pub(crate) fn run(arguments: &[&str]) -> Result<(), String> {
    let (sidecar, only, keep) = match arguments {
        [sidecar] => (*sidecar, None, None),
        [sidecar, "--only", name] => (*sidecar, Some(*name), None),
        [sidecar, "--only", name, "--keep", file] => (*sidecar, Some(*name), Some(Path::new(*file))),
        _ => return Err("want SIDECAR [--only NAME [--keep FILE]]".to_owned()),
    };
    if !Path::new(sidecar).is_file() {
        return Err(format!("{sidecar} is not there: cargo build --release -p throughline-proxy"));
    }
    let folder = std::env::temp_dir().join(format!("throughline-instructions-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let mut done = Err(format!("{only:?}: unknown"));
    for (name, share, settings) in MODES {
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let counted = |requests, keep| Stage::start(sidecar, settings, &folder, keep)?.count(requests, share);
        done = counted(REQUESTS, None).and_then(|short| {
            let long = counted(2 * REQUESTS, keep)?;
            let each = long.checked_sub(short).ok_or("more requests took fewer instructions")?;
            println!("{name}={}", each / u64::from(REQUESTS));
            Ok(())
        });
        if let Err(why) = &done {
            done = Err(format!("{name}: {why}"));
            break;
        }
    }
    let _ = std::fs::remove_dir_all(&folder);
    done
}

/// The sidecar under callgrind, with an application behind it and a collector beside it.
struct Stage {
    sidecar: Process,
    at: SocketAddr,
    log: PathBuf,
    _application: Process,
    _collector: Process,
}

impl Stage {
    fn start(sidecar: &str, settings: &[&str], folder: &Path, keep: Option<&Path>) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let [at, admin, application, collector, told] = addresses().map_err(|error| error.to_string())?;
        let part = |words: &[&str]| spawned(Command::new(&own).args(words));
        let _application = part(&["backend", &application.to_string()])?;
        let _collector = part(&["sink", &collector.to_string(), &told.to_string()])?;
        let log = folder.join("valgrind.log");
        let mut command = Command::new("valgrind");
        // No setting of the user's own.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(["--tool=callgrind", &format!("--log-file={}", log.display())]);
        let profile = keep.unwrap_or(Path::new("/dev/null")).display();
        command.arg(format!("--callgrind-out-file={profile}")).arg(sidecar);
        command.args(["--inbound-listen", &at.to_string(), "--admin-listen", &admin.to_string()]);
        command.args(["--inbound-upstream", &application.to_string(), "--otel-service-name", "bench"]);
        command.args(["--otel-exporter-otlp-endpoint", &format!("http://{collector}")]);
        // One thread, so that no idle one takes part; no metrics, which go out by the clock and not by the request.
        command.args(["--worker-threads", "1", "--otel-metrics-exporter", "none"]).args(settings);
        Ok(Self { sidecar: spawned(&mut command)?, at, log, _application, _collector })
    }

    /// Instructions of the sidecar's whole life, with so many requests on one connection.
    fn count(mut self, requests: u32, share: u64) -> Result<u64, String> {
        let mut stream = self.connected()?;
        let (mut asking, mut contexts) = (Asking::new(Ask::Small, true), Contexts::seeded(7).sampled(share));
        let mut buffer = vec![0; 16 * 1024];
        for _ in 0..requests {
            stream.write_all(asking.next(&mut contexts)).map_err(|error| error.to_string())?;
            let mut filled = 0;
            loop {
                let bytes = stream.read(&mut buffer[filled..]).map_err(|error| error.to_string())?;
                if bytes == 0 {
                    return Err("the sidecar closed the connection".to_owned());
                }
                filled += bytes;
                if let Some(head) = end_of_head(&buffer[..filled])
                    && filled - head == asking.judge(&buffer[..head])?
                {
                    break;
                }
            }
        }
        drop(stream);
        self.sidecar.end(PATIENCE);
        let log = std::fs::read_to_string(&self.log).map_err(|error| error.to_string())?;
        let collected = log.lines().find_map(|line| line.split_once("Collected :"));
        let number = collected.and_then(|(_, number)| number.trim().parse().ok());
        number.ok_or_else(|| format!("valgrind counted nothing: {log}"))
    }

    fn connected(&mut self) -> Result<TcpStream, String> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Ok(stream) = TcpStream::connect(self.at) {
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
                return Ok(stream);
            }
            if let Ok(Some(status)) = self.sidecar.0.try_wait() {
                return Err(format!("the sidecar ended at once: {status}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err("the sidecar did not start".to_owned())
    }
}

fn spawned(command: &mut Command) -> Result<Process, String> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
        .spawn()
        .map(Process)
        .map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))
}

/// Addresses that were free a moment ago.
fn addresses() -> std::io::Result<[SocketAddr; 5]> {
    let mut found = [SocketAddr::from(([127, 0, 0, 1], 0)); 5];
    let mut held = Vec::new();
    for address in &mut found {
        let listener = TcpListener::bind(*address)?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(found)
}
