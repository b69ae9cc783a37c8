//! What is stored and cannot be read: written by another version of this program, or damaged. It is
//! in no list, but it is not nothing either: who names it is told why, and it goes only when it is
//! killed. Whose it is its record may still say; else it is an admin's, or of who is the only one.

use crate::error::{EngineError, chain};
use crate::owner::Caller;
use crate::registry::sandboxes::SandboxRegistry;
use crate::store::record::record_owner;
use crate::store::vault::{StoredHeader, VaultError};
use crate::store::{paused, snapshots};
use snapshot_store::{SnapshotId, StoreError};

impl SandboxRegistry {
    /// The error for a sandbox that is not in the table, or is another's.
    pub async fn why_missing(&self, who: &Caller, id: &str) -> EngineError {
        match self.unreadable_sandbox(who, id).await {
            Some((_, why)) => EngineError::ResumeFailed(why),
            None => EngineError::no_sandbox(id),
        }
    }

    /// Removes what is stored of a sandbox that cannot be read. False if there is no such thing.
    ///
    /// # Errors
    /// [`EngineError::KillFailed`]: it stays.
    pub(super) async fn kill_unreadable(
        &self,
        who: &Caller,
        id: &str,
    ) -> Result<bool, EngineError> {
        match self.unreadable_sandbox(who, id).await {
            Some((name, why)) => {
                let removed = self.remove_unreadable(name, why).await;
                self.delete_tree_of(id);
                removed
            }
            None => Ok(false),
        }
    }

    async fn unreadable_sandbox(&self, who: &Caller, id: &str) -> Option<(SnapshotId, String)> {
        let name = paused::stored_name(id).ok()?;
        self.unreadable(who, name, paused::readable).await
    }

    /// The same for a snapshot, by its id.
    pub(super) async fn unreadable_snapshot(
        &self,
        who: &Caller,
        id: &str,
    ) -> Option<(SnapshotId, String)> {
        // Its name in the store tells whose it is, whatever its record does not.
        let sure = Caller {
            alone: true,
            ..who.clone()
        };
        let own = snapshots::stored_name(Some(&who.owner), id).ok()?;
        if let Some(found) = self.unreadable(&sure, own, snapshots::readable).await {
            return Some(found);
        }
        let everybodys = snapshots::stored_name(None, id).ok()?;
        self.unreadable(who, everybodys, snapshots::readable).await
    }

    /// Removes it. True: it was there.
    pub(super) async fn remove_unreadable(
        &self,
        name: SnapshotId,
        why: String,
    ) -> Result<bool, EngineError> {
        tracing::warn!(snapshot = %name, why, "a stored machine that cannot be read is removed");
        let removed = self.in_vault(move |vault| vault.remove(&name)).await;
        removed.map_err(|error| EngineError::KillFailed(chain(&error)))?;
        self.collect_garbage();
        Ok(true)
    }

    async fn unreadable(
        &self,
        who: &Caller,
        name: SnapshotId,
        check: fn(&StoredHeader) -> Result<(), String>,
    ) -> Option<(SnapshotId, String)> {
        let stored = name.clone();
        let header = self.in_vault(move |vault| vault.header(&stored)).await;
        let why = match header {
            Err(VaultError::Store(StoreError::NoSnapshot(_))) => return None,
            Err(_) if !who.sees_unknown() => return None,
            Err(error) => chain(&error),
            Ok(header) => {
                let why = check(&header).err()?;
                let seen = match record_owner(&header.record) {
                    Some(owner) => who.sees(owner.as_ref()),
                    None => who.sees_unknown(),
                };
                Some(why).filter(|_| seen)?
            }
        };
        Some((name, why))
    }
}
