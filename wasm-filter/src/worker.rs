//! What the root contexts and streams of one VM share: the inbound and the outbound plugin of a worker know each
//! other's exchanges, and leave through one queue.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use throughline_core::batch::{Batch, Bounds};
use throughline_core::exchange::{Done, Now, Tracer, Work};
use throughline_core::settings::{Filter, Settings};

use crate::control::Control;
use crate::crossing::Crossing;
use crate::export::Export;
use crate::host;
use crate::settings::Said;
use crate::stats::{Counts, Told};

/// Bytes of all bodies that wait in one VM: some hundred usual ones, or forty of the largest.
const HOLDING_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// The shared part.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) tracer: Tracer,
    pub(crate) batch: RefCell<Batch>,
    pub(crate) settings: Settings,
    pub(crate) filter: Filter,
    pub(crate) export: RefCell<Export>,
    pub(crate) control: RefCell<Control>,
    pub(crate) crossing: Crossing,
    pub(crate) counts: RefCell<Counts>,
    told: RefCell<Told>,
    holding: Cell<u64>,
    /// Streams whose head waits for a body.
    pub(crate) waiting: RefCell<Vec<Waiting>>,
}

/// How soon a root context is to tick.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
enum Hurry {
    /// When it always does.
    #[default]
    No,
    /// Within some hundredths of a second.
    Soon,
    /// At once.
    Now,
}

/// The pace of one root context, which its streams may quicken.
#[derive(Clone, Default, Debug)]
pub(crate) struct Pace(Rc<Cell<Hurry>>);

impl Pace {
    /// Numbers are to be told, or a head waits.
    pub(crate) fn soon(&self) {
        self.quicken(Hurry::Soon, 20);
    }

    /// A batch is full.
    pub(crate) fn now(&self) {
        self.quicken(Hurry::Now, 1);
    }

    fn quicken(&self, hurry: Hurry, millis: u64) {
        if self.0.get() < hurry && host::tick_every(Duration::from_millis(millis)) {
            self.0.set(hurry);
        }
    }

    /// The root has ticked: it goes on as it always does, unless something still waits.
    pub(crate) fn rest(&self, period: Duration, waits: bool) {
        match (self.0.replace(Hurry::No), waits) {
            (Hurry::No, false) => {}
            (_, true) => self.soon(),
            (Hurry::Soon | Hurry::Now, false) if host::tick_every(period) => {}
            (hurried, false) => self.0.set(hurried), // the next tick tries again
        }
    }
}

/// A stream whose head waits for the beginning of its body.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) stream: u32,
    pub(crate) until_mono_nanos: u64,
    /// Set when it was let go on.
    pub(crate) released: Rc<Cell<bool>>,
}

thread_local! {
    static WORKERS: RefCell<Vec<(Said, Weak<Worker>)>> = const { RefCell::new(Vec::new()) };
}

impl Worker {
    /// The worker of these settings: plugins that differ in their direction alone share one.
    pub(crate) fn of(said: Said, settings: Settings, filter: Filter) -> Rc<Self> {
        WORKERS.with_borrow_mut(|workers| {
            workers.retain(|(_, worker)| worker.strong_count() > 0);
            let known = workers.iter().find(|(of, _)| *of == said).and_then(|(_, worker)| worker.upgrade());
            known.unwrap_or_else(|| {
                let worker = Rc::new(Self::new(settings, filter));
                workers.push((said, Rc::downgrade(&worker)));
                worker
            })
        })
    }

    fn new(settings: Settings, filter: Filter) -> Self {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let bounds = Bounds {
            queue_spans_max: size(settings.bsp_queue_max),
            // A chunk larger than the queue would never be full.
            chunk_spans_max: size(settings.bsp_batch_max.min(settings.bsp_queue_max)),
            flush_after_ms: settings.bsp_schedule_delay_ms,
        };
        Self {
            tracer: Tracer::new(settings.tracer(), host::seed()),
            batch: RefCell::new(Batch::new(bounds)),
            export: RefCell::new(Export::new(&settings, &filter)),
            settings,
            filter,
            control: RefCell::new(Control::default()),
            crossing: Crossing::default(),
            counts: RefCell::new(Counts::default()),
            told: RefCell::new(Told::default()),
            holding: Cell::new(0),
            waiting: RefCell::new(Vec::new()),
        }
    }

    /// Leaves a span of the filter's own work, in the modes that have such spans.
    pub(crate) fn work(&self, work: Work, started: Now, error: Option<&str>, detail: &str) {
        let done = Done { work, started, error, detail };
        let sink = &mut *self.batch.borrow_mut();
        host::with_ids(|ids| self.tracer.work(done, host::now(), &mut self.crossing.ids(ids), sink));
    }

    /// Room for a body of so many bytes; given back by [`Worker::let_go`].
    pub(crate) fn hold(&self, bytes: u64) -> bool {
        let holding = self.holding.get().saturating_add(bytes);
        let fits = holding <= HOLDING_BYTES_MAX;
        if fits {
            self.holding.set(holding);
        }
        fits
    }

    pub(crate) fn let_go(&self, bytes: u64) {
        self.holding.set(self.holding.get().saturating_sub(bytes));
    }

    /// Puts the numbers into Envoy's statistics.
    pub(crate) fn tell(&self) {
        let books = self.batch.borrow().books();
        self.told.borrow_mut().tell(&self.tracer, books, *self.counts.borrow());
    }
}
