//! What every connection of the process shares. Holds, decides nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use throughline_core::batch::Books;
use throughline_core::exchange::{Done, Now, Tracer, Work};
use throughline_core::settings::Settings;
use tokio::sync::{Semaphore, watch};

use crate::access_log::AccessLog;
use crate::browser::Browser;
use crate::capture::{Captured, Lease};
use crate::export::SpanQueue;
use crate::forward::Upstreams;
use crate::host::{RandomIds, now};
use crate::stats::{Side, Stats};

/// One sidecar.
#[derive(Debug)]
pub(crate) struct Sidecar {
    pub(crate) settings: Settings,
    pub(crate) tracer: Tracer,
    pub(crate) spans: SpanQueue,
    pub(crate) stats: Stats,
    pub(crate) access_log: AccessLog,
    pub(crate) upstreams: Upstreams,
    pub(crate) own_ports: OwnPorts,
    pub(crate) readiness: Readiness,
    /// Set when the time for draining is over: what is still open is dropped.
    pub(crate) cut: watch::Sender<bool>,
    /// Places for tunnels, which outlive the connections that they began on.
    pub(crate) tunnels: Semaphore,
    /// KiB of bodies that may still be held.
    pub(crate) holding: Semaphore,
    /// The kernel's redirect, in transparent capture.
    pub(crate) lease: Lease,
    /// Changes of tracing by calls.
    pub(crate) control_calls: crate::control::Calls,
    /// What browsers get, where they get anything.
    pub(crate) browser: Option<Browser>,
}

/// KiB of bodies held at once, all requests together: what is beyond streams through untouched.
pub(crate) const HELD_KIB_MAX: usize = 128 * 1024;

/// Tunnels at once.
pub(crate) const TUNNELS_MAX: u32 = 20_000;

impl Sidecar {
    /// Tells of the sidecar's own work, which is over now.
    pub(crate) fn work(&self, work: Work, started: Now, error: Option<&str>, detail: &str) {
        self.tracer.work(Done { work, started, error, detail }, now(), &mut RandomIds, &mut &self.spans);
    }

    /// The queues of finished spans: our own, and that of pages.
    pub(crate) fn queues(&self) -> impl Iterator<Item = &SpanQueue> {
        std::iter::once(&self.spans).chain(self.browser.as_ref().map(|browser| &browser.spans))
    }

    /// What became of all spans so far.
    pub(crate) fn books(&self) -> Books {
        self.queues().fold(Books::default(), |all, queue| all.with(&queue.books()))
    }

    /// What the future gives, or `None` when the time for draining is over first.
    pub(crate) async fn until_cut<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut cut = self.cut.subscribe();
        tokio::select! {
            output = future => Some(output),
            _ = cut.wait_for(|cut| *cut) => None,
        }
    }
}

/// One connection, as its requests see it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) sidecar: Arc<Sidecar>,
    pub(crate) side: Side,
    /// The caller's address.
    pub(crate) caller: IpAddr,
    /// Where every request goes, when a CONNECT or the kernel has said it.
    pub(crate) tunnel_to: Option<throughline_core::settings::Authority>,
    /// What only a redirected connection has.
    pub(crate) captured: Option<Captured>,
    pub(crate) progress: crate::stall::Progress,
}

/// The addresses that this process listens on, which nobody may be forwarded to.
#[derive(Debug, Default)]
pub(crate) struct OwnPorts(pub(crate) Vec<SocketAddr>);

impl OwnPorts {
    /// Whether a connection to `to` would end at this process, so far as the address alone tells.
    pub(crate) fn hold(&self, to: SocketAddr) -> bool {
        // `::ffff:127.0.0.1` leads where 127.0.0.1 does.
        let ip = to.ip().to_canonical();
        self.0.iter().any(|own| {
            let own_ip = own.ip().to_canonical();
            let same_host = own_ip == ip || (own_ip.is_unspecified() && ip.is_loopback());
            own.port() == to.port() && (same_host || ip.is_unspecified())
        })
    }

    /// The same, of a connection that was made: one whose both ends have one address is this machine's.
    pub(crate) fn reached(&self, to: SocketAddr, from: SocketAddr) -> bool {
        let to_itself = to.ip() == from.ip();
        self.hold(to)
            || self.0.iter().any(|own| own.port() == to.port() && own.ip().is_unspecified() && to_itself)
    }
}

/// Whether the sidecar takes traffic.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    started: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    pub(crate) fn start(&self) {
        self.started.store(true, Ordering::Release);
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// `Err` says why not.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.draining.load(Ordering::Acquire) {
            Err("draining")
        } else if self.started.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err("starting")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_ports_are_known_by_every_address_that_leads_to_them() {
        let own = OwnPorts(["127.0.0.1:15001", "0.0.0.0:15006"].map(|text| text.parse().unwrap()).into());
        for (to, expected) in [
            ("127.0.0.1:15001", true),
            ("0.0.0.0:15001", true),
            ("127.0.0.1:15006", true),
            ("127.0.0.2:15006", true),
            ("[::ffff:127.0.0.1]:15001", true),
            ("[::]:15001", true),
            ("127.0.0.1:8080", false),
            ("10.0.0.5:15001", false),
        ] {
            assert_eq!(own.hold(to.parse().unwrap()), expected, "{to}");
        }
        let (to, here) = ("10.0.0.5:15006".parse().unwrap(), "10.0.0.5:40000".parse().unwrap());
        assert!(own.reached(to, here) && !own.reached(to, "10.0.0.6:1".parse().unwrap()));
    }
}
