//! Changes of a disk that the host has no room for at the moment.
//!
//! Answered with an I/O error, they would make the guest's file system read-only, for a fault that
//! is not its own and may pass. So they are held, with the request that they belong to, and tried
//! again each second; reads, and changes of what has its room already, go on. The guest's driver
//! has no limit of time. Those that are held are bounded by the requests in flight.

use crate::ring::{IoPiece, OpCompletion};
use rustix::io::Errno;
use std::mem;
use std::time::{Duration, Instant};

/// How long it is waited before what is held is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Whether the host refused an operation for want of room: of the volume, or of a quota on it.
pub(super) fn has_no_room(done: &OpCompletion) -> bool {
    matches!(done.result, Err(Errno::NOSPC | Errno::DQUOT))
}

/// Operations that are held.
#[derive(Debug)]
pub(super) struct HeldOps<T> {
    ops: Vec<(T, Vec<u8>)>,
    retry_at: Option<Instant>,
    /// When something was held for the first and the last time, since it was said.
    last: Option<(Instant, Instant)>,
}

impl<T> Default for HeldOps<T> {
    fn default() -> Self {
        Self {
            ops: Vec::new(),
            retry_at: None,
            last: None,
        }
    }
}

impl<T> HeldOps<T> {
    /// Holds an operation, with the bytes of ours that it was to write.
    pub(super) fn hold(&mut self, op: T, pieces: Vec<IoPiece>, now: Instant) {
        let own = pieces.into_iter().find_map(|piece| match piece {
            IoPiece::Owned { bytes, .. } => Some(bytes),
            IoPiece::Guest { .. } => None,
        });
        self.ops.push((op, own.unwrap_or_default()));
        self.retry_at.get_or_insert(now + RETRY);
        let first = self.last.map(|(first, _)| first);
        self.last = Some((first.unwrap_or(now), now));
        if first.is_none() {
            tracing::warn!(
                "host fault: the volume of the data folder is full. The disk of this sandbox waits \
                 until there is room; nothing is lost"
            );
        }
    }

    /// How many are held.
    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.ops.len()).unwrap_or(u64::MAX)
    }

    /// When they are to be tried again.
    pub(super) const fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// All of them, if it is time to try again.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(T, Vec<u8>)> {
        if self.retry_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.retry_at = None;
        mem::take(&mut self.ops)
    }

    /// Gives all of them up: whom they were for has been reset.
    pub(super) fn drop_all(&mut self) -> Vec<T> {
        self.retry_at = None;
        self.last = None;
        mem::take(&mut self.ops)
            .into_iter()
            .map(|(op, _)| op)
            .collect()
    }

    /// Says that there is room again, once nothing has been held for some time.
    pub(super) fn note(&mut self, now: Instant) {
        if let Some((first, last)) = self.last
            && self.ops.is_empty()
            && now.duration_since(last) > 2 * RETRY
        {
            self.last = None;
            let seconds = last.duration_since(first).as_secs();
            tracing::info!("the disk of this sandbox goes on: it waited for room for {seconds} s");
        }
    }
}
