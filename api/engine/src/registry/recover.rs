//! What a server finds in its vault when it starts: paused sandboxes, each with its checkpoints.

use crate::error::chain;
use crate::registry::entry::TableEntry;
use crate::store::checkpoint_tree::CheckpointTree;
use crate::store::paused::{PREFIX, PausedSandbox, stored_name};
use crate::store::vault::{ImageVault, StoredHeader, VaultError};
use crate::store::{checkpoint_node, checkpoint_record, checkpoint_tree};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The paused sandboxes that a vault has. What cannot be read is logged, and is not there for
/// clients. Checkpoints of sandboxes that are not there any more are removed.
pub(super) fn paused_ones(vault: &ImageVault) -> HashMap<String, TableEntry> {
    let mut trees = checkpoint_tree::trees(headers(vault, checkpoint_node::PREFIX));
    let mut table = HashMap::new();
    for header in headers(vault, PREFIX) {
        match PausedSandbox::decode(&header.record, &header.id, header.shape) {
            Ok((paused, ancestry)) => {
                let id = paused.facts.id.clone();
                let tree: CheckpointTree = trees.remove(&id).unwrap_or_default();
                tree.set_current(&ancestry);
                let tree = Arc::new(tree);
                let paused = PausedSandbox { tree, ..paused };
                table.insert(id, TableEntry::Paused(Arc::new(paused)));
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(snapshot = %header.id, error, "a paused sandbox is not there");
            }
        }
    }
    if !table.is_empty() {
        tracing::info!(sandboxes = table.len(), "paused sandboxes found");
    }
    if let Err(error) = remove_orphans(vault) {
        let error = chain(&error);
        tracing::error!(error, "checkpoints of ended sandboxes were not removed");
    }
    vault.collect_garbage();
    table
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
