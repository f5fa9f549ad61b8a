//! Child processes of the demo: started with their log kept, watched, and ended. Sees to it that none
//! outlives the demo, and touches no process that it did not start.

use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{ChildStderr, Command};
use tokio::sync::{Notify, watch};

/// What processes get for ending in order; those that take longer are killed.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(3);
const KILL_TIMEOUT: Duration = Duration::from_secs(1);
/// The last log lines that are shown when a process ends by itself.
const TAIL_LINES: usize = 12;
const TAIL_LINE_CHARS: usize = 300;

/// Processes that are watched and ended together.
pub(crate) struct Processes {
    running: Vec<Process>,
    any_end: Arc<Notify>,
    pids: Pids,
}

/// One of them.
#[derive(Clone)]
pub(crate) struct Process {
    /// What it is to a reader, such as "the sidecar of orders".
    name: String,
    pid: Option<u32>,
    ended: watch::Receiver<Option<ExitStatus>>,
    log: Arc<Log>,
}

impl Processes {
    pub(crate) fn new(pids: Pids) -> Processes {
        Processes { running: Vec::new(), any_end: Arc::default(), pids }
    }

    /// Starts `command` away from the terminal. Every line of its log is given to `heard`.
    pub(crate) fn start<H>(&mut self, name: &str, mut command: Command, heard: H) -> Result<Process, String>
    where
        H: FnMut(&str) + Send + 'static,
    {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C reaches the demo alone, which then ends its processes in order.
            .process_group(0)
            .kill_on_drop(true);
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let mut child =
            command.spawn().map_err(|error| format!("{program} could not be started: {error}"))?;
        let pid = child.id();
        self.pids.add(pid);
        let log = Arc::<Log>::default();
        let (report, ended) = watch::channel(None);
        let process = Process { name: name.to_owned(), pid, ended, log: Arc::clone(&log) };
        self.running.push(process.clone());

        let read = read_log(child.stderr.take(), log, heard);
        let (pids, any_end) = (self.pids.clone(), Arc::clone(&self.any_end));
        tokio::spawn(async move {
            let wait = async {
                let status = child.wait().await;
                pids.remove(pid);
                status
            };
            // The last lines are read before the end is told, since they have its reason.
            let (status, ()) = tokio::join!(wait, read);
            report.send_replace(status.ok());
            any_end.notify_waiters();
        });
        Ok(process)
    }

    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    /// Waits until a process ends by itself, and says which and why.
    pub(crate) async fn first_end(&self) -> String {
        loop {
            let any_end = self.any_end.notified();
            for process in &self.running {
                if let Some(status) = *process.ended.borrow() {
                    let (name, log) = (&process.name, process.log.quoted());
                    return format!("{name} ended by itself ({status}){log}");
                }
            }
            any_end.await;
        }
    }

    /// Ends every process: first by SIGTERM, so that work in flight finishes, then, when that takes
    /// too long or `hurry` completes, by SIGKILL.
    pub(crate) async fn stop(&mut self, hurry: impl Future) {
        self.signal("TERM");
        let in_time = tokio::select! {
            () = all_ended(&mut self.running) => true,
            _ = hurry => false,
            () = tokio::time::sleep(STOP_TIMEOUT) => false,
        };
        if !in_time {
            self.kill().await;
        }
        self.running.clear();
    }

    /// Ends every process at once.
    pub(crate) async fn kill(&mut self) {
        self.signal("KILL");
        // Only a process that the kernel cannot end outlasts this; its handle is dropped.
        let _ = tokio::time::timeout(KILL_TIMEOUT, all_ended(&mut self.running)).await;
        self.running.clear();
    }

    fn signal(&self, name: &str) {
        let own: Vec<u32> = self.running.iter().filter_map(|process| process.pid).collect();
        self.pids.signal(name, |pid| own.contains(&pid));
    }
}

async fn all_ended(running: &mut [Process]) {
    for process in running {
        // An error means that the task which held the child is gone, and the child with it.
        let _ = process.ended.wait_for(Option::is_some).await;
    }
}

impl Process {
    /// Waits for its end, and says how it came.
    pub(crate) async fn end(&mut self) -> String {
        match self.ended.wait_for(Option::is_some).await.map(|status| *status) {
            Ok(Some(status)) => format!("ended at once ({status})"),
            Ok(None) | Err(_) => "was lost".to_owned(),
        }
    }

    /// A reason, with its name before and its last lines behind.
    pub(crate) fn complaint(&self, reason: &str) -> String {
        format!("{} {reason}{}", self.name, self.log.quoted())
    }
}

async fn read_log(stderr: Option<ChildStderr>, log: Arc<Log>, mut heard: impl FnMut(&str)) {
    let Some(stderr) = stderr else { return };
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        heard(&line);
        log.add(&line);
    }
}

/// The last lines of a process's log.
#[derive(Default)]
struct Log {
    tail: Mutex<VecDeque<String>>,
}

impl Log {
    fn add(&self, line: &str) {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line.chars().take(TAIL_LINE_CHARS).collect());
    }

    /// The lines, to be put behind a reason.
    fn quoted(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.is_empty() {
            return "; it logged nothing".to_owned();
        }
        tail.iter().fold("; its last lines:".to_owned(), |text, line| format!("{text}\n    {line}"))
    }
}

/// The processes that are to be ended, for those who may have to do it in a hurry.
#[derive(Clone, Default)]
pub(crate) struct Pids(Arc<Mutex<Vec<u32>>>);

impl Pids {
    fn add(&self, pid: Option<u32>) {
        self.list().extend(pid);
    }

    fn remove(&self, pid: Option<u32>) {
        self.list().retain(|known| Some(*known) != pid);
    }

    /// Ends every process at once; for a panic, which may find the runtime in any state.
    pub(crate) fn kill(&self) {
        self.signal("KILL", |_| true);
    }

    /// Sends a signal to those of our processes that were not reaped. The shell's own `kill` does it,
    /// since the system call would need `unsafe`.
    fn signal(&self, name: &str, chosen: impl Fn(u32) -> bool) {
        let targets: Vec<String> =
            self.list().iter().filter(|pid| chosen(**pid)).map(ToString::to_string).collect();
        if targets.is_empty() {
            return;
        }
        // A failure means that they are gone already; what is left dies with its handle.
        let _ = std::process::Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", targets.join(" "))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }

    fn list(&self) -> MutexGuard<'_, Vec<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell's script in the process's place.
    fn script(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    }

    #[tokio::test]
    async fn a_process_that_ends_later_is_told_of() {
        let mut processes = Processes::new(Pids::default());
        processes.start("the sidecar of stock", script("exit 3"), |_| {}).unwrap();
        let reason = processes.first_end().await;
        assert_eq!(reason, "the sidecar of stock ended by itself (exit status: 3); it logged nothing");
    }

    #[tokio::test]
    async fn stopping_in_a_hurry_leaves_no_process_even_of_a_deaf_one() {
        let mut processes = Processes::new(Pids::default());
        let deaf = script("trap '' TERM; while :; do sleep 0.1; done");
        processes.start("the sidecar of stock", deaf, |_| {}).unwrap();
        assert_eq!(processes.pids.list().len(), 1);
        processes.stop(std::future::ready(())).await;
        assert_eq!(*processes.pids.list(), Vec::<u32>::new());
    }

    #[tokio::test]
    async fn stopping_some_leaves_the_others_running() {
        let pids = Pids::default();
        let (mut some, mut others) = (Processes::new(pids.clone()), Processes::new(pids.clone()));
        some.start("one", script("exec sleep 60"), |_| {}).unwrap();
        let mut other = others.start("another", script("exec sleep 60"), |_| {}).unwrap();
        some.stop(std::future::pending::<()>()).await;
        assert!(other.ended.borrow_and_update().is_none());
        assert_eq!(pids.list().len(), 1);
        others.kill().await;
        assert_eq!(*pids.list(), Vec::<u32>::new());
    }
}
