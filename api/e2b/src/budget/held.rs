//! What one body holds, and whether it is slow.

use super::share::BodyShare;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// What one byte of a body costs at its peak: itself, the string that is parsed of it, and what is
/// decoded from that.
pub(super) const COST: usize = 3;
/// Longest body that is small; one that does not say how long it is takes this first.
pub(super) const SMALL: usize = 64 * 1024;
/// What is counted in.
pub(super) const UNIT: usize = 1024;
/// How long a body may take whatever its speed, while others wait.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// Least bytes a second of a body and of what is done with it, after that.
pub(super) const RATE: u64 = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct HeldMemory {
    /// In the budget's table, once it has held anything.
    pub(super) id: Option<u64>,
    pub(super) permit: Option<OwnedSemaphorePermit>,
    pub(super) share: Option<Arc<BodyShare>>,
    /// What it has of its sandbox's share.
    pub(super) own: Option<OwnedSemaphorePermit>,
    pub(super) large: bool,
    /// How long the body says that it is, and how long it can be.
    pub(super) announced: Option<usize>,
    pub(super) most: usize,
    /// Bytes that are held.
    pub(super) kept: usize,
    /// Bytes that have come since `since`, by which its speed is told.
    pub(super) come: u64,
    pub(super) since: Option<Instant>,
    /// It waits for memory, or it is whole and nobody's to end.
    pub(super) spared: bool,
    pub(super) ended: bool,
    pub(super) waker: Option<Waker>,
}

impl HeldMemory {
    pub(super) fn units(&self) -> usize {
        self.permit.as_ref().map_or(0, |p| p.num_permits())
    }

    /// Which kind of memory it needs, and how much more of it.
    pub(super) fn needs(&self) -> (bool, usize) {
        let whole = self.announced.unwrap_or(0).max(self.kept);
        let large = self.large || whole > SMALL;
        let bytes = match (large, self.announced) {
            (false, None) => self.most.min(SMALL).max(self.kept),
            (_, Some(_)) => whole,
            (true, None) => whole.max(self.most),
        };
        let units = bytes.saturating_mul(COST).div_ceil(UNIT);
        let more = match (self.large, large) {
            (false, false) => units.saturating_sub(self.units()),
            (false, true) => units,
            // What it can become is taken already.
            (true, _) => 0,
        };
        (large, more)
    }

    /// What would be free of this kind if it ended, if it is slow.
    pub(super) fn slow_units(&self, large: bool) -> Option<usize> {
        let time = self.since?.elapsed();
        let allowed = GRACE + Duration::from_millis(self.come.saturating_mul(1000) / RATE);
        let slow = self.large == large && !self.spared && !self.ended && time > allowed;
        Some(self.units()).filter(|units| slow && *units > 0)
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}
