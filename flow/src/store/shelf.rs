//! The spans of the last moment of one shard. Must never hide a span: what leaves it is in a block before it is gone
//! from here.

use super::bytes::Packer;
use super::keeper::Keeper;
use super::staging::{Pieces, Sent, Staging};
use crate::span::{Incoming, Sender, TraceId};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Spans after which a block is sealed: few enough that what is read in another order than it came stays near, many
/// enough that a block's texts are told once for many.
const ROWS_MAX: usize = 32 * 1024;
/// Bytes after which a block is sealed.
const BYTES_MAX: usize = 48 << 20;

/// The spans of the last moment.
#[derive(Default)]
pub(crate) struct Shelf {
    staging: Mutex<Open>,
    /// Not taking any more, and not yet in a block.
    sealing: Mutex<Vec<Arc<Staging>>>,
}

#[derive(Default)]
struct Open {
    staging: Staging,
    /// When its first span came in.
    since: u64,
    /// Empty, with the room of one that was full, so that blocks that fill one after the other ask for none.
    spare: Option<Staging>,
}

/// Takes the spans of one message.
pub(crate) struct Filling<'s, 'a> {
    open: MutexGuard<'s, Open>,
    pieces: Pieces<'a>,
    sender: u32,
    now: u64,
}

impl<'a> Filling<'_, 'a> {
    /// Spans of this sender follow.
    pub(crate) fn sender(&mut self, sender: &Sender<'a>) {
        self.sender = self.open.staging.sender(sender);
    }

    /// Where the pieces of the next span go.
    pub(crate) fn pieces(&mut self) -> &mut Pieces<'a> {
        self.pieces.clear();
        &mut self.pieces
    }

    /// Takes the span whose pieces were put there, and notes what its attributes tell.
    pub(crate) fn push(&mut self, span: &mut Incoming<'a>) {
        if self.open.staging.is_empty() {
            self.open.since = self.now;
        }
        self.open.staging.push(self.sender, span, &self.pieces);
    }
}

impl Shelf {
    pub(crate) fn fill<'a>(&self, now: u64) -> Filling<'_, 'a> {
        let open = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        Filling { open, pieces: Pieces::default(), sender: 0, now }
    }

    /// Seals when there is enough, or it has waited since `before`.
    pub(crate) fn seal_if_due(&self, keeper: &Keeper, packer: &mut Packer, before: u64, now: u64) {
        let mut sealing = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        let (staging, full) = {
            let mut open = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
            let full = open.staging.rows() >= ROWS_MAX || open.staging.bytes() >= BYTES_MAX;
            if open.staging.is_empty() || !full && open.since > before {
                return;
            }
            // Where little comes in, the room is given back.
            let next = open.spare.take().filter(|_| full).unwrap_or_default();
            (Arc::new(std::mem::replace(&mut open.staging, next)), full)
        };
        sealing.push(Arc::clone(&staging));
        drop(sealing);
        keeper.seal(&staging, packer, now);
        let mut sealing = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        sealing.retain(|other| !Arc::ptr_eq(other, &staging));
        drop(sealing);
        if full && let Ok(mut staging) = Arc::try_unwrap(staging) {
            staging.clear();
            self.staging.lock().unwrap_or_else(PoisonError::into_inner).spare = Some(staging);
        }
    }

    /// Spans of a trace that are here.
    pub(crate) fn spans(&self, id: TraceId, each: &mut dyn FnMut(Sent<'_>, &[u8])) {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner).staging.spans(id, each);
        let sealing = self.sealing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for staging in sealing {
            staging.spans(id, each);
        }
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        let open = self.staging.lock().unwrap_or_else(PoisonError::into_inner).staging.bytes();
        let sealing = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        (open + sealing.iter().map(|staging| staging.bytes()).sum::<usize>()) as u64
    }
}
