//! What a server finds in its vault when it starts: paused sandboxes, each with its checkpoints.

use crate::error::chain;
use crate::facts::SandboxFacts;
use crate::owner::OwnerId;
use crate::quota::Accounts;
use crate::registry::counted::{Counted as _, CountedTable};
use crate::registry::entry::TableEntry;
use crate::store::checkpoint_tree::CheckpointTree;
use crate::store::paused::{PREFIX, PausedSandbox, stored_name};
use crate::store::snapshots::SnapshotIndex;
use crate::store::vault::{ImageVault, StoredHeader, VaultError};
use crate::store::{checkpoint_node, checkpoint_record, checkpoint_tree};
use snapshot_store::SnapshotId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The paused sandboxes that a vault has. What cannot be read is logged, and is not there for
/// clients. Checkpoints of sandboxes that are not there any more are removed.
pub(super) fn paused_ones(vault: &ImageVault, accounts: &Accounts) -> CountedTable<TableEntry> {
    let mut trees = checkpoint_tree::trees(headers(vault, checkpoint_node::PREFIX));
    let mut table = CountedTable::default();
    for header in headers(vault, PREFIX) {
        match PausedSandbox::decode(&header.record, &header.id, header.shape) {
            Ok((paused, ancestry)) => {
                let id = paused.facts.id.clone();
                let tree: CheckpointTree = trees.remove(&id).unwrap_or_default();
                tree.set_current(&ancestry);
                let tree = Arc::new(tree);
                let facts = SandboxFacts {
                    owner: paused.facts.owner.clone().map(|owner| accounts.now(owner)),
                    ..(*paused.facts).clone()
                };
                let paused = PausedSandbox {
                    facts: Arc::new(facts),
                    tree,
                    ..paused
                };
                table.insert(id, TableEntry::Paused(Arc::new(paused)));
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(snapshot = %header.id, error, "a paused sandbox is not there");
            }
        }
    }
    let sandboxes = table.all().stored;
    if sandboxes > 0 {
        tracing::info!(sandboxes, "paused sandboxes found");
    }
    if let Err(error) = remove_orphans(vault) {
        let error = chain(&error);
        tracing::error!(error, "checkpoints of ended sandboxes were not removed");
    }
    vault.collect_garbage();
    table
}

/// Counts what is stored, for whom: what is of no sandbox or snapshot that can be read is counted
/// for nobody, and among all.
pub(super) fn count_stored(
    vault: &ImageVault,
    accounts: &Accounts,
    (table, snapshots): (&CountedTable<TableEntry>, &SnapshotIndex),
) {
    let snapshots: BTreeMap<SnapshotId, Option<OwnerId>> = {
        let all = snapshots.list().into_iter();
        all.map(|one| (one.stored.clone(), one.owner.clone()))
            .collect()
    };
    let of_sandbox = |id: &str| table.get(id)?.owner().cloned();
    let owner_of = |stored: &SnapshotId| match snapshots.get(stored) {
        Some(owner) => owner.clone(),
        None => match checkpoint_record::owner(stored) {
            Some(sandbox) => of_sandbox(sandbox),
            None => of_sandbox(stored.as_str().strip_prefix(PREFIX)?),
        },
    };
    let bytes = vault.count_all(owner_of);
    let owners = table.values().filter_map(|entry| entry.owner().cloned());
    let owners: BTreeSet<OwnerId> = owners.chain(snapshots.into_values().flatten()).collect();
    let unknown = owners.iter().filter(|owner| !accounts.knows(owner)).count();
    if unknown > 0 {
        tracing::warn!(
            owners = unknown,
            "what is stored of owners that have no key any more is there for an admin's key only"
        );
    }
    tracing::debug!(bytes, "stored machines counted");
}

fn headers(vault: &ImageVault, prefix: &str) -> Vec<StoredHeader> {
    vault.list(prefix).unwrap_or_else(|error| {
        let error = chain(&error);
        tracing::error!(
            prefix,
            error,
            "stored machines are not there: the store cannot be listed"
        );
        Vec::new()
    })
}

/// A paused sandbox that cannot be read keeps its checkpoints: it may be read again.
fn remove_orphans(vault: &ImageVault) -> Result<(), VaultError> {
    let there: BTreeSet<_> = vault.names(PREFIX)?.into_iter().collect();
    let (mut orphans, mut removed) = (vault.names(checkpoint_node::PREFIX)?, 0);
    orphans.retain(|id| {
        let owner = checkpoint_record::owner(id).and_then(|owner| stored_name(owner).ok());
        !owner.is_some_and(|owner| there.contains(&owner))
    });
    for id in orphans {
        vault.remove(&id)?;
        removed += 1;
    }
    if removed > 0 {
        tracing::info!(removed, "checkpoints of ended sandboxes removed");
    }
    Ok(())
}
