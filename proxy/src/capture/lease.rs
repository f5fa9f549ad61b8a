//! The heartbeat that keeps the kernel's redirect alive. The rules redirect only while a set element of two seconds
//! lives, which the kernel renews when it sees our datagram: so a sidecar that is dead, stopped or hung is no outage, and
//! it needs no privilege. Must never hold the lease while nobody is accepted.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::sidecar::Sidecar;

/// Where a datagram renews the lease, and where one ends it. Nobody listens there: the rules take it.
pub(crate) const RENEW_PORT: u16 = 15199;
pub(crate) const RELEASE_PORT: u16 = 15198;
/// How long a lease lasts, in seconds.
pub(crate) const LEASE_SECONDS: u64 = 2;
/// Four chances within a lease.
const EVERY: Duration = Duration::from_millis(500);

/// Families, in the order of their places.
pub(crate) const FAMILIES: [&str; 2] = ["ipv4", "ipv6"];
const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Whether the kernel takes our heartbeats.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    held: [AtomicU8; 2],
}

const UNKNOWN: u8 = 0;
const HELD: u8 = 1;
const NOT_HELD: u8 = 2;

impl Lease {
    /// By family, whether the last heartbeat found the rules.
    pub(crate) fn held(&self) -> impl Iterator<Item = (&'static str, bool)> + '_ {
        let held = self.held.iter().map(|held| held.load(Ordering::Relaxed) == HELD);
        FAMILIES.into_iter().zip(held)
    }

    /// Renews the lease until the sidecar drains.
    pub(crate) async fn keep(sidecar: Arc<Sidecar>) {
        let mut every = interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            if sidecar.readiness.is_draining() {
                return;
            }
            // Whoever could not be accepted would wait; by another way he need not.
            if !sidecar.stats.is_full(sidecar.settings.connections_max) {
                sidecar.lease.beat();
            }
        }
    }

    /// Renews it once; says so when that begins or ceases to be of use.
    pub(crate) fn beat(&self) {
        let families = self.held.iter().zip(FAMILIES).zip(LOOPBACKS);
        for ((held, family), loopback) in families {
            let now = if send(loopback, RENEW_PORT).is_err_and(taken) { HELD } else { NOT_HELD };
            let before = held.swap(now, Ordering::Relaxed);
            match (before, now) {
                (UNKNOWN | NOT_HELD, HELD) => {
                    crate::log::info("connections are redirected to this sidecar", &[("family", &family)]);
                }
                (HELD, NOT_HELD) => {
                    crate::log::warn("connections are no longer redirected here", &[("family", &family)]);
                }
                (UNKNOWN, _) if family == "ipv4" => crate::log::warn(
                    "no rule takes the heartbeat: connections are not redirected here, or without a lease; \
                     see `throughline-proxy init --check`",
                    &[("family", &family)],
                ),
                _ => {}
            }
        }
    }

    /// Ends the lease at once: connections that are opened from here on go directly.
    pub(crate) fn release(&self) {
        for loopback in LOOPBACKS {
            let _ = send(loopback, RELEASE_PORT); // else it ends by itself
        }
    }
}

/// The rules drop the datagram once they have seen it, which the kernel tells the sender.
fn taken(error: io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

fn send(loopback: IpAddr, port: u16) -> io::Result<()> {
    let socket = UdpSocket::bind((loopback, 0))?;
    socket.set_nonblocking(true)?;
    socket.send_to(b"throughline", (loopback, port)).map(drop)
}
