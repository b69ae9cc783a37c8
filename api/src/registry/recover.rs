//! What a server finds in its vault when it starts: paused sandboxes, each with its checkpoints.

use super::table::Entry;
use crate::checkpoints::{self, Tree};
use crate::error::chain;
use crate::paused::{PREFIX, Paused, stored_name};
use crate::vault::{Header, Vault};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The paused sandboxes that a vault has. What cannot be read is logged, and is not there for clients.
/// Checkpoints of sandboxes that are not there any more are removed.
pub(super) fn paused_ones(vault: &Vault) -> HashMap<String, Entry> {
    let mut trees = checkpoints::trees(headers(vault, checkpoints::PREFIX));
    let mut table = HashMap::new();
    for header in headers(vault, PREFIX) {
        match Paused::decode(&header.record, &header.id, header.shape) {
            Ok((paused, line)) => {
                let id = paused.facts.id.clone();
                let tree: Tree = trees.remove(&id).unwrap_or_default();
                tree.stand(&line);
                let tree = Arc::new(tree);
                let paused = Paused { tree, ..paused };
                table.insert(id, Entry::Paused(Arc::new(paused)));
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
    vault.sweep();
    table
}

fn headers(vault: &Vault, prefix: &str) -> Vec<Header> {
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
fn remove_orphans(vault: &Vault) -> Result<(), crate::vault::VaultError> {
    let there: BTreeSet<_> = vault.names(PREFIX)?.into_iter().collect();
    let (mut orphans, mut removed) = (vault.names(checkpoints::PREFIX)?, 0);
    orphans.retain(|id| {
        let owner = checkpoints::owner(id).and_then(|owner| stored_name(owner).ok());
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
