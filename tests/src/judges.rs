//! Real peers: programs of others that a scenario lets play along. Where one is missing the scenario says that
//! it was skipped, and why; never silently.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::sidecar::{Ended, Running, workspace};

/// Says that a scenario was skipped, and adds the line to the file that `THROUGHLINE_SKIPS` names.
pub fn skipped(why: &str) {
    let scenario = std::thread::current().name().unwrap_or("a scenario").to_owned();
    let line = format!("SKIPPED: {scenario}: {why}");
    println!("{line}");
    let Some(path) = std::env::var_os("THROUGHLINE_SKIPS") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| writeln!(file, "{line}"));
    written.expect("THROUGHLINE_SKIPS names a file that can be written");
}

/// The path of an installed program; `None`, and said so, where it is missing.
pub fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    // Debian keeps servers where a user's PATH does not look.
    let folders = path.split(':').chain(["/usr/sbin", "/sbin"]);
    let found = folders.map(|folder| PathBuf::from(folder).join(program)).find(|file| file.is_file());
    if found.is_none() {
        skipped(&format!("{program} is not installed"));
    }
    found
}

/// The interpreter of the judges' virtual environment with these modules; `None`, and said so, where one is
/// missing.
pub fn python(modules: &[&str]) -> Option<PathBuf> {
    let named = std::env::var_os("THROUGHLINE_TEST_PYTHON").map(PathBuf::from);
    let path = named.unwrap_or_else(|| workspace().join("target/judges/bin/python"));
    let imports = format!("import {}", modules.join(", "));
    let tried = Command::new(&path).args(["-c", &imports]).output();
    match tried {
        Ok(output) if output.status.success() => Some(path),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            skipped(&format!("{}: {}", path.display(), said.lines().last().unwrap_or("fails")));
            None
        }
        Err(error) => {
            skipped(&format!(
                "no interpreter at {} ({error}): make a virtual environment from tests/judges/requirements.txt",
                path.display()
            ));
            None
        }
    }
}

/// A peer's process. Killed, by its own id, when the scenario is over.
#[derive(Debug)]
pub struct PeerProcess {
    running: Running,
}

impl PeerProcess {
    /// Starts a command.
    pub fn start(name: &str, command: Command) -> PeerProcess {
        PeerProcess { running: Running::spawn(name, command) }
    }

    /// Starts one of our Python scripts in `tests/judges`.
    pub fn python(interpreter: &PathBuf, judge: &str, arguments: &[&str]) -> PeerProcess {
        let mut command = Command::new(interpreter);
        command.arg(workspace().join("tests/judges").join(judge)).args(arguments);
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy"] {
            command.env_remove(name);
        }
        PeerProcess::start(judge, command)
    }

    /// Waits for a line of stdout that is JSON and carries this key.
    pub async fn says(&self, key: &str) -> Value {
        let has = |line: &str| {
            let value: Value = serde_json::from_str(line).ok()?;
            value.get(key).cloned()
        };
        self.running.stdout.line(key, has).await
    }

    /// Waits until the process ends by itself.
    pub async fn ends(mut self) -> Ended {
        let code = self.running.exit().await;
        self.running.ended(code).await
    }

    /// Asks the process to end.
    pub fn terminate(&self) {
        self.running.signal("TERM");
    }
}
