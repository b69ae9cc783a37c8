//! Who uses which blobs.

use snapshot_format::Digest;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts the users of each blob. Cloning gives another handle to the same counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeaseTable {
    counts: Arc<Mutex<HashMap<Digest, usize>>>,
}

impl LeaseTable {
    /// The counts; a collection holds this while it decides and removes.
    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn take(&self, digests: impl IntoIterator<Item = Digest>) -> BlobLease {
        let digests: Vec<_> = digests.into_iter().collect();
        let mut counts = self.lock();
        for digest in &digests {
            *counts.entry(*digest).or_default() += 1;
        }
        drop(counts);
        BlobLease {
            leases: self.clone(),
            digests,
        }
    }
}

/// Keeps blobs from being collected, until dropped.
#[derive(Debug)]
pub struct BlobLease {
    leases: LeaseTable,
    digests: Vec<Digest>,
}

impl BlobLease {
    /// The blobs it keeps.
    #[must_use]
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }
}

impl Clone for BlobLease {
    fn clone(&self) -> Self {
        self.leases.take(self.digests.iter().copied())
    }
}

impl Drop for BlobLease {
    fn drop(&mut self) {
        let mut counts = self.leases.lock();
        for digest in &self.digests {
            if let Some(count) = counts.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(digest);
                }
            }
        }
    }
}
