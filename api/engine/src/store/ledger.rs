//! How many bytes are stored, for everybody and for each owner: what the manifests name, each blob
//! once. What two owners need is counted for both, and once for all together.

use crate::owner::OwnerId;
use snapshot_format::{BlobRef, Digest};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes in the store.
#[derive(Debug, Default)]
pub(super) struct StoredBytes(Mutex<LedgerState>);

#[derive(Debug, Default)]
struct LedgerState {
    /// What is counted for each name.
    records: HashMap<String, StoredRecord>,
    all: BlobTally,
    owners: HashMap<OwnerId, BlobTally>,
}

#[derive(Debug)]
struct StoredRecord {
    owner: Option<OwnerId>,
    blobs: Vec<(Digest, u64)>,
}

/// Blobs, how often each is named, and their bytes.
#[derive(Debug, Default)]
struct BlobTally {
    bytes: u64,
    blobs: HashMap<Digest, usize>,
}

impl BlobTally {
    fn add(&mut self, blobs: &[(Digest, u64)]) {
        for (digest, size) in blobs {
            let named = self.blobs.entry(*digest).or_default();
            *named += 1;
            if *named == 1 {
                self.bytes = self.bytes.saturating_add(*size);
            }
        }
    }

    fn take_off(&mut self, blobs: &[(Digest, u64)]) {
        for (digest, size) in blobs {
            let Some(named) = self.blobs.get_mut(digest) else {
                continue;
            };
            *named -= 1;
            if *named == 0 {
                self.blobs.remove(digest);
                self.bytes = self.bytes.saturating_sub(*size);
            }
        }
    }
}

impl StoredBytes {
    /// This is stored under this name from now on, in the place of what was.
    pub(super) fn note<'a>(
        &self,
        name: &str,
        owner: Option<&OwnerId>,
        blobs: impl Iterator<Item = &'a BlobRef>,
    ) {
        let blobs = blobs.map(|blob| (blob.digest, blob.size)).collect();
        let record = StoredRecord {
            owner: owner.cloned(),
            blobs,
        };
        let mut state = self.lock();
        state.all.add(&record.blobs);
        if let Some(owner) = &record.owner {
            let tally = state.owners.entry(owner.clone()).or_default();
            tally.add(&record.blobs);
        }
        let old = state.records.insert(name.to_owned(), record);
        old.into_iter().for_each(|old| state.take_off(&old));
    }

    /// Nothing is stored under this name any more.
    pub(super) fn forget(&self, name: &str) {
        let mut state = self.lock();
        let old = state.records.remove(name);
        old.into_iter().for_each(|old| state.take_off(&old));
    }

    /// Bytes of all, and of this owner.
    pub(super) fn used(&self, owner: Option<&OwnerId>) -> (u64, u64) {
        let state = self.lock();
        let own = owner.and_then(|owner| state.owners.get(owner));
        (state.all.bytes, own.map_or(0, |tally| tally.bytes))
    }

    fn lock(&self) -> MutexGuard<'_, LedgerState> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LedgerState {
    fn take_off(&mut self, old: &StoredRecord) {
        self.all.take_off(&old.blobs);
        let Some(owner) = &old.owner else { return };
        let Some(tally) = self.owners.get_mut(owner) else {
            return;
        };
        tally.take_off(&old.blobs);
        if tally.blobs.is_empty() {
            self.owners.remove(owner);
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn blob(n: u8) -> BlobRef {
        BlobRef {
            digest: Digest([n; 32]),
            size: 1 << n,
        }
    }

    fn owner(n: usize) -> Option<OwnerId> {
        OwnerId::named(["a", "b"].get(n)?)
    }

    proptest! {
        /// Whatever is stored, replaced and removed: the bytes are those of what is there, each
        /// blob once.
        #[test]
        fn bytes_are_of_what_is_there(
            steps in proptest::collection::vec(
                (0_u8..5, 0_usize..3, proptest::collection::vec(0_u8..8, 0..5), any::<bool>()),
                0..80,
            ),
        ) {
            let ledger = StoredBytes::default();
            let mut there: BTreeMap<u8, (Option<OwnerId>, Vec<u8>)> = BTreeMap::new();
            for (name, whose, blobs, stays) in steps {
                if stays {
                    let all: Vec<_> = blobs.iter().map(|n| blob(*n)).collect();
                    ledger.note(&name.to_string(), owner(whose).as_ref(), all.iter());
                    there.insert(name, (owner(whose), blobs));
                } else {
                    ledger.forget(&name.to_string());
                    there.remove(&name);
                }
                let bytes = |of: Option<OwnerId>| {
                    let own = there.values().filter(|(o, _)| of.is_none() || *o == of);
                    let mut blobs: Vec<u8> = own.flat_map(|(_, blobs)| blobs.clone()).collect();
                    blobs.sort_unstable();
                    blobs.dedup();
                    blobs.into_iter().map(|n| 1_u64 << n).sum::<u64>()
                };
                for n in 0..2 {
                    let used = ledger.used(owner(n).as_ref());
                    prop_assert_eq!(used, (bytes(None), bytes(owner(n))));
                }
            }
            for name in there.into_keys() {
                ledger.forget(&name.to_string());
            }
            prop_assert_eq!(ledger.used(None), (0, 0));
            prop_assert!(ledger.lock().owners.is_empty());
        }
    }
}
