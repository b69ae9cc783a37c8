//! What is stored and cannot be read: written by another version of this program, or damaged. It is in no
//! list, but it is not nothing either: who names it is told why, and it goes only when it is killed.

use super::Registry;
use super::snapshot::{self as own, Snapshot};
use super::table::missing;
use crate::error::{ApiError, chain};
use crate::paused::{self, Paused};
use crate::vault::{Header, VaultError};
use snapshot_store::{SnapshotId, StoreError};

impl Registry {
    /// The error for a sandbox that is not in the table.
    pub async fn why_missing(&self, id: &str) -> ApiError {
        match self.unreadable_sandbox(id).await {
            Some((_, why)) => ApiError::ResumeFailed(why),
            None => missing(id),
        }
    }

    /// Removes what is stored of a sandbox that cannot be read. False if there is no such thing.
    ///
    /// # Errors
    /// [`ApiError::KillFailed`]: it stays.
    pub async fn kill_unreadable(&self, id: &str) -> Result<bool, ApiError> {
        match self.unreadable_sandbox(id).await {
            Some((name, why)) => {
                let removed = self.remove_unreadable(name, why).await;
                self.fell_all(id);
                removed
            }
            None => Ok(false),
        }
    }

    async fn unreadable_sandbox(&self, id: &str) -> Option<(SnapshotId, String)> {
        let name = paused::stored_name(id).ok()?;
        self.unreadable(name, sandbox).await
    }

    /// The same for a snapshot, by its id.
    pub(super) async fn unreadable_snapshot(&self, id: &str) -> Option<(SnapshotId, String)> {
        let name = own::stored_name(id).ok()?;
        self.unreadable(name, snapshot).await
    }

    /// Removes it. True: it was there.
    pub(super) async fn remove_unreadable(
        &self,
        name: SnapshotId,
        why: String,
    ) -> Result<bool, ApiError> {
        tracing::warn!(snapshot = %name, why, "a stored machine that cannot be read is removed");
        let removed = self.in_vault(move |vault| vault.remove(&name)).await;
        removed.map_err(|error| ApiError::KillFailed(chain(&error)))?;
        self.sweep();
        Ok(true)
    }

    async fn unreadable(
        &self,
        name: SnapshotId,
        check: fn(&Header) -> Result<(), String>,
    ) -> Option<(SnapshotId, String)> {
        let stored = name.clone();
        let header = self.in_vault(move |vault| vault.header(&stored)).await;
        let why = match header {
            Err(VaultError::Store(StoreError::NoSnapshot(_))) => return None,
            Err(error) => chain(&error),
            Ok(header) => check(&header).err()?,
        };
        Some((name, why))
    }
}

/// What is wrong with the record of a paused sandbox.
pub(super) fn sandbox(header: &Header) -> Result<(), String> {
    let decoded = Paused::decode(&header.record, &header.id, header.shape);
    decoded.map(drop).map_err(|error| chain(&error))
}

/// What is wrong with the record of a snapshot.
pub(super) fn snapshot(header: &Header) -> Result<(), String> {
    Snapshot::decode(header).map(drop)
}
