//! The threads that serve requests. Each has a runtime, listeners and a pool of upstream connections of its own, so
//! that what belongs to one request stays on one thread, and frames that are ready together leave together. Must
//! never move work from one thread to another, nor end a thread before its connections are over.

use std::cell::Cell;
use std::io;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// Which worker this thread is; 0 is the main thread.
pub(crate) fn number() -> usize {
    NUMBER.get()
}

/// How many workers there are, with 0 for as many as suit the machine.
pub(crate) fn count(wanted: u64) -> usize {
    match usize::try_from(wanted).unwrap_or(0) {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(2),
        threads => threads,
    }
}

/// A runtime that runs on the thread that asks for it.
pub(crate) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// The workers beside the main thread.
#[derive(Debug)]
pub(crate) struct Workers(Vec<Worker>);

#[derive(Debug)]
struct Worker {
    handle: Handle,
    /// Ends the thread when it is dropped.
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Workers {
    /// Starts so many, numbered from 1.
    pub(crate) fn start(others: usize) -> io::Result<Self> {
        (1..=others).map(Worker::start).collect::<io::Result<_>>().map(Self)
    }

    /// Where to put work: on the thread that asks, then on the others in their order.
    pub(crate) fn handles(&self) -> Vec<Handle> {
        std::iter::once(Handle::current()).chain(self.0.iter().map(|worker| worker.handle.clone())).collect()
    }

    /// Ends the threads, and whatever still runs on them.
    pub(crate) fn stop(self) {
        for Worker { stop, thread, .. } in self.0 {
            drop(stop);
            let _ = thread.join(); // a thread that panicked is over too
        }
    }
}

impl Worker {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = runtime()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            NUMBER.set(number);
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background(); // a name that is being looked up is waited for by nobody
        })?;
        Ok(Self { handle, stop, thread })
    }
}
