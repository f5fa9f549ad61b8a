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
    // One write, so that the lines of scenarios that play at once stay apart.
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
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

/// A real browser and what drives it.
#[derive(Debug)]
pub struct Browser {
    node: PathBuf,
    library: PathBuf,
    chromium: PathBuf,
}

impl Browser {
    /// Node.js, Chromium and playwright-core; `None`, and said so, where one is missing.
    pub fn found() -> Option<Browser> {
        let node = installed("node")?;
        let chromium = match std::env::var_os("THROUGHLINE_TEST_CHROMIUM") {
            Some(path) => PathBuf::from(path),
            None => installed("chromium")?,
        };
        let library = workspace().join("browser/node_modules/playwright-core");
        if !library.is_dir() {
            skipped("no playwright-core in browser/node_modules: npm ci --ignore-scripts in browser/");
            return None;
        }
        let tried = Command::new(&node).arg("-e").arg("require(process.argv[1])").arg(&library).output();
        match tried {
            Ok(output) if output.status.success() => Some(Browser { node, library, chromium }),
            tried => {
                let said = tried.map(|output| String::from_utf8_lossy(&output.stderr).trim().to_owned());
                let said = said.unwrap_or_else(|error| error.to_string());
                skipped(&format!(
                    "{} and playwright-core: {}",
                    node.display(),
                    said.lines().last().unwrap_or("fails")
                ));
                None
            }
        }
    }

    /// Does the steps on a page of its own. Nothing may be wrong in the eyes of the page or the browser. Gives what
    /// the steps that ask for a value gave.
    pub async fn does(&self, steps: &[&[&str]]) -> Vec<Value> {
        let (values, errors) = self.tries(steps).await;
        assert_eq!(errors, [""; 0], "what the page and the browser said");
        values
    }

    /// As `does`, with the errors that the page and the browser told of.
    pub async fn tries(&self, steps: &[&[&str]]) -> (Vec<Value>, Vec<String>) {
        let mut command = Command::new(&self.node);
        let steps = serde_json::to_string(steps).expect("steps");
        command.arg(workspace().join("tests/judges/browser.mjs")).arg(&self.library).arg(&self.chromium);
        command.arg(steps);
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env_remove(name);
        }
        let peer = PeerProcess::start("browser.mjs", command);
        let done = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("done").cloned();
        let done = tokio::time::timeout(BROWSER_PATIENCE, peer.running.stdout.line_whenever("done", done));
        let done: Value = done
            .await
            .unwrap_or_else(|_| panic!("the browser did not come to an end in {BROWSER_PATIENCE:?}"));
        let list = |key: &str| done[key].as_array().cloned().expect("a list");
        let text = |error: &Value| error.as_str().unwrap_or_default().to_owned();
        (list("values"), list("errors").iter().map(text).collect())
    }
}

/// A browser takes seconds to start where the cores are busy.
const BROWSER_PATIENCE: std::time::Duration = std::time::Duration::from_secs(90);

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
