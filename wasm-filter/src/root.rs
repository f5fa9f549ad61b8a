//! The plugin itself: reads its configuration, ticks, and gets the answers to calls. Decides nothing about
//! requests.

use std::rc::Rc;
use std::time::Duration;

use throughline_core::exchange::Now;
use throughline_core::names::{VERSION, attribute};
use throughline_core::settings::{Direct, Settings};

use crate::host::{self, Buffer, Half, Level};
use crate::settings;
use crate::stream::Stream;
use crate::worker::{Pace, Worker};

/// Bytes of a configuration that are read.
const CONFIGURATION_BYTES_MAX: usize = 1024 * 1024;

/// A root context: one for each plugin and worker.
#[derive(Debug)]
pub(crate) struct Root {
    id: u32,
    plugin: Option<Plugin>,
    /// Envoy has asked us to end, and we wait for answers.
    closing: bool,
}

#[derive(Debug)]
struct Plugin {
    worker: Rc<Worker>,
    direct: Direct,
    period: Duration,
    pace: Pace,
}

impl Root {
    pub(crate) fn new(id: u32) -> Self {
        Self { id, plugin: None, closing: false }
    }

    /// What was waited for has come: Envoy may take the context away.
    fn close_if_answered(&mut self) {
        let Some(plugin) = self.plugin.as_ref().filter(|_| self.closing) else { return };
        if !plugin.awaits(self.id) {
            plugin.close();
            self.closing = false;
            host::done();
        }
    }

    /// After an answer: the next batch, if it is time. A plugin that ends sends all it has, each batch once more
    /// at the most: a collector that is away must not keep it, nor be asked again and again.
    fn flush(&self, plugin: &Plugin, now: Now) {
        let worker = &plugin.worker;
        let mut export = worker.export.borrow_mut();
        let all = self.closing && !export.failed();
        export.flush(worker, self.id, now, all);
        drop(export);
        worker.tell();
    }
}

impl Plugin {
    /// Whether an answer is still to come to this root context.
    fn awaits(&self, root: u32) -> bool {
        self.worker.export.borrow().awaits(root) || self.worker.control.borrow().awaits(root)
    }

    /// The plugin is over; with the last one of a worker goes what could not be sent.
    fn close(&self) {
        if Rc::strong_count(&self.worker) == 1 {
            self.worker.export.borrow_mut().give_up(&self.worker);
        }
        self.worker.tell();
    }
}

impl Root {
    /// An answer by HTTP has come.
    pub(crate) fn answered_http(&mut self, token: u32, body_bytes: usize) {
        if let Some(plugin) = &self.plugin {
            let (worker, now) = (&plugin.worker, host::now());
            let of_control = worker.control.borrow_mut().answered(worker, token, body_bytes, now);
            let ours =
                !of_control && worker.export.borrow_mut().answered_http(worker, token, body_bytes, now);
            if ours {
                self.flush(plugin, now);
            }
        }
        self.close_if_answered();
    }

    /// An answer by gRPC has come.
    pub(crate) fn answered_grpc(&mut self, token: u32, status: u32, bytes: usize) {
        if let Some(plugin) = &self.plugin {
            let (worker, now) = (&plugin.worker, host::now());
            let ours = worker.export.borrow_mut().answered_grpc(worker, token, status, bytes, now);
            if ours {
                self.flush(plugin, now);
            }
        }
        self.close_if_answered();
    }

    /// Envoy takes the context away: whether at once.
    pub(crate) fn done(&mut self) -> bool {
        let Some(plugin) = &self.plugin else { return true };
        let worker = &plugin.worker;
        worker.export.borrow_mut().flush(worker, self.id, host::now(), true);
        worker.tell();
        self.closing = plugin.awaits(self.id);
        if !self.closing {
            plugin.close();
        }
        !self.closing
    }

    /// Reads the configuration; false where it is not taken.
    pub(crate) fn configure(&mut self, bytes: usize) -> bool {
        let configuration = host::bytes(Buffer::Configuration, bytes.min(CONFIGURATION_BYTES_MAX));
        if configuration.len() != bytes {
            let max = CONFIGURATION_BYTES_MAX;
            let line = format!(
                "throughline: {} of {bytes} bytes of the plugin configuration can be read: want {max} at the most",
                configuration.len()
            );
            host::log(Level::Error, &line);
            return false;
        }
        let (found, said) = match settings::read(&configuration, host::environment()) {
            Ok(found) => found,
            Err(mistakes) => {
                for mistake in mistakes {
                    host::log(Level::Error, &format!("throughline: {mistake}"));
                }
                return false;
            }
        };
        for warning in &found.warnings {
            host::log(Level::Warn, &format!("throughline: {warning}"));
        }
        let (mut settings, filter) = found.value;
        name_by_node(&mut settings);
        let period = Duration::from_millis((settings.bsp_schedule_delay_ms / 4).clamp(20, 250));
        host::tick_every(period);
        host::log(Level::Debug, &format!("throughline {VERSION}: service {}", settings.service().0));
        let direct = filter.direction;
        let worker = Worker::of(said, settings, filter);
        worker.tell();
        self.plugin = Some(Plugin { worker, direct, period, pace: Pace::default() });
        true
    }

    /// What is due.
    pub(crate) fn tick(&mut self) {
        let Some(Plugin { worker, period, pace, .. }) = &self.plugin else { return };
        let now = host::now();
        // Heads that wait too long for a body go on without being read.
        let due: Vec<_> = {
            let mut waiting = worker.waiting.borrow_mut();
            let (due, still) = std::mem::take(&mut *waiting)
                .into_iter()
                .partition(|one| now.mono_nanos >= one.until_mono_nanos);
            *waiting = still;
            due
        };
        for one in due {
            if host::go_on(one.stream, Half::Request, self.id) {
                one.released.set(true);
                worker.counts.borrow_mut().released += 1;
            } else {
                worker.waiting.borrow_mut().push(one); // the next tick tries again
            }
        }
        let mut export = worker.export.borrow_mut();
        export.flush(worker, self.id, now, false);
        export.push_metrics(worker, self.id, now);
        drop(export);
        worker.crossing.look();
        worker.control.borrow_mut().look(worker, self.id, now);
        worker.tell();
        let waits = !worker.waiting.borrow().is_empty();
        pace.rest(*period, waits);
    }

    /// A stream of this plugin; none before it is configured.
    pub(crate) fn stream(&self, id: u32) -> Option<Stream> {
        let plugin = self.plugin.as_ref()?;
        Some(Stream::new(id, Rc::clone(&plugin.worker), plugin.direct, plugin.pace.clone()))
    }
}

/// Where no setting names the service, Envoy's node does: by the workload's name in Istio, else by its cluster.
fn name_by_node(settings: &mut Settings) {
    let text = |paths: &[&str]| {
        let value = paths.iter().find_map(|path| host::property(path))?;
        String::from_utf8(value).ok()
    };
    let set = |settings: &Settings, key| settings.resource_attributes.iter().any(|(known, _)| known == key);
    if settings.service_name.is_empty() && !set(settings, attribute::SERVICE_NAME) {
        let name = text(&[
            "xds\0node\0metadata\0WORKLOAD_NAME",
            "node\0metadata\0WORKLOAD_NAME",
            "xds\0node\0cluster",
            "node\0cluster",
        ]);
        settings.service_name = name.unwrap_or_default();
    }
    if !set(settings, attribute::SERVICE_NAMESPACE)
        && let Some(namespace) = text(&["xds\0node\0metadata\0NAMESPACE", "node\0metadata\0NAMESPACE"])
    {
        settings.resource_attributes.push((attribute::SERVICE_NAMESPACE.to_owned(), namespace));
    }
}
