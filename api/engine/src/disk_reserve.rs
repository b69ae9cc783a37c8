//! Whether the volume of the data folder has room for one more machine, and for what is stored.
//!
//! Sandboxes may be promised more disk than there is. Before the last of it is gone creations,
//! batches, warm VMs, forks, resumptions, pauses, snapshots and checkpoints are refused: what runs
//! can go on writing then. Should it be gone all the same, the disks of those that need more wait
//! for room, and nobody's program sees an error.

use crate::error::EngineError;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How often it is looked at, beside what is asked, so that nobody pays for a look.
const PERIOD: Duration = Duration::from_secs(1);

/// The room that is left on one volume.
#[derive(Debug)]
pub struct DiskReserve {
    dir: PathBuf,
    /// What has to be left, MiB; 0: nobody looks.
    least: u64,
    /// What was left at the last look, MiB.
    free: AtomicU64,
}

impl DiskReserve {
    /// Where `least` MiB have to be left on the volume of `dir`.
    #[must_use]
    pub fn new(dir: &Path, least: u64) -> Self {
        let reserve = Self {
            dir: dir.to_owned(),
            least,
            free: AtomicU64::new(u64::MAX),
        };
        reserve.look();
        reserve
    }

    /// Looks again and again, as long as somebody else has it. Must be called on the runtime.
    pub fn watch(self: &Arc<Self>) {
        if self.least == 0 {
            return;
        }
        let watched = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PERIOD).await;
                match watched.upgrade() {
                    Some(reserve) => reserve.look(),
                    None => return,
                }
            }
        });
    }

    /// Whether something may begin that writes.
    ///
    /// # Errors
    /// [`EngineError::NoDisk`].
    pub fn check(&self) -> Result<(), EngineError> {
        let free = self.free.load(Ordering::Relaxed);
        if free >= self.least {
            return Ok(());
        }
        Err(EngineError::NoDisk {
            free,
            needed: self.least,
        })
    }

    fn look(&self) {
        if self.least == 0 {
            return;
        }
        // A volume that does not answer is full for those who would write to it.
        let free = rustix::fs::statvfs(&self.dir).map_or(0, |space| {
            space.f_bavail.saturating_mul(space.f_frsize) >> 20
        });
        let before = self.free.swap(free, Ordering::Relaxed);
        let (path, needed) = (self.dir.display(), self.least);
        match (free < needed, before < needed) {
            (true, false) => tracing::error!(
                %path,
                free,
                needed,
                "the volume of the data folder is almost full, MiB: nothing new begins and nothing \
                 is stored until there is room"
            ),
            (false, true) => tracing::info!(%path, free, "the volume of the data folder has room"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_asked_for_has_to_be_left() {
        let dir = tempfile::tempdir().unwrap();
        DiskReserve::new(dir.path(), 0).check().unwrap();
        DiskReserve::new(dir.path(), 1).check().unwrap();
        let error = DiskReserve::new(dir.path(), 1 << 40).check().unwrap_err();
        assert!(matches!(error, EngineError::NoDisk { .. }), "{error}");
        let gone = DiskReserve::new(&dir.path().join("gone"), 1).check();
        assert!(gone.is_err(), "nobody knows how much is left");
    }
}
