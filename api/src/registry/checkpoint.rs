//! Checkpoints: moments of a sandbox that it can be put back to, and that others can begin at, as long
//! as it lives.
//!
//! ```text
//! begin ─> saved ─> runs on ─> written to the vault ─> in the tree; the next one may begin
//!                                     └─(it has ended meanwhile)─> removed again
//! ```

use super::Registry;
use super::bring_up::Start;
use super::capture::{Captured, failed};
use super::table::missing;
use crate::checkpoints::{self, Listing, Node, Room, Seen, Taken, Tree};
use crate::error::{ApiError, chain};
use crate::launcher::Begin;
use crate::sandbox::{Facts, Kept, Origin, Sandbox};
use crate::vault::{self, Vault};
use snapshot_format::BaseImage;
use snapshot_store::SnapshotId;
use std::sync::Arc;

/// Most characters of a checkpoint's id or name that an error repeats.
const MAX_WORD: usize = 64;

impl Registry {
    /// Stores a running sandbox's moment in its tree: a child of the checkpoint that the sandbox
    /// descends from, which is the new one from then on. It stands still while it is saved, and runs on
    /// while that is written to the disk.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`]; [`ApiError::Conflict`], also for a name that is taken;
    /// [`ApiError::Invalid`] for a bad one; [`ApiError::TooManyCheckpoints`]; [`ApiError::PauseFailed`]:
    /// there is no checkpoint.
    pub async fn checkpoint(
        self: &Arc<Self>,
        id: &str,
        name: Option<&str>,
    ) -> Result<Seen, ApiError> {
        let (_, tree) = self.tree_of(id)?;
        let room = tree.reserve(name, self.max_checkpoints)?;
        // A task of its own: a client that leaves leaves nothing half-done behind.
        let (registry, id) = (Arc::clone(self), id.to_owned());
        let work = tokio::spawn(async move { registry.take(&id, room).await });
        let lost = |_| ApiError::PauseFailed("The work was given up".into());
        work.await.map_err(lost)?
    }

    async fn take(self: &Arc<Self>, id: &str, room: Room) -> Result<Seen, ApiError> {
        let Captured {
            busy,
            image,
            saved,
            processes,
        } = self.capture(id).await?;
        let base = self.base_of(&busy.sandbox.origin)?;
        let taken = Taken {
            kept: Kept::Memory,
            processes,
            pages: saved.memory_pages,
            blocks: saved.disk_blocks,
        };
        let coming = room.record(id, taken).map_err(|error| failed(&error))?;
        let put = self.in_vault(move |vault| {
            let kept = (&*image, Kept::Memory);
            let blobs = vault.put(coming.stored(), kept, &base, &coming.record)?;
            Ok(coming.node(blobs))
        });
        let node = put.await.map_err(|error| {
            self.sweep();
            failed(&error)
        })?;
        let stored = node.stored.clone();
        let Some(seen) = room.fill(node) else {
            let removed = self.in_vault(move |vault| vault.remove(&stored)).await;
            self.sweep();
            removed.map_err(|error| ApiError::DeleteFailed(chain(&error)))?;
            return Err(missing(id));
        };
        drop(busy);
        let (checkpoint, bytes) = (&seen.id, seen.bytes);
        tracing::info!(
            sandbox_id = id,
            checkpoint,
            bytes,
            ?saved,
            "checkpoint taken"
        );
        Ok(seen)
    }

    /// The checkpoints of a sandbox in any state.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`].
    pub fn checkpoints(&self, id: &str) -> Result<Listing, ApiError> {
        Ok(self.tree_of(id)?.1.listing())
    }

    /// Removes a checkpoint of a sandbox in any state, with what nobody else needs. Its children become
    /// its parent's; who began at it, or is just about to, goes on.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`], [`ApiError::CheckpointNotFound`], [`ApiError::DeleteFailed`].
    pub async fn delete_checkpoint(self: &Arc<Self>, id: &str, word: &str) -> Result<(), ApiError> {
        let (_, tree) = self.tree_of(id)?;
        let node = tree.find(word).ok_or_else(|| no_checkpoint(id, word))?;
        let registry = Arc::clone(self);
        let (sandbox_id, node_id) = (id.to_owned(), node.id.clone());
        let work = tokio::spawn(async move {
            let stored = node.stored.clone();
            let removed = registry.in_vault(move |vault| vault.remove(&stored)).await;
            removed.map_err(|error| ApiError::DeleteFailed(chain(&error)))?;
            let (checkpoint, there) = (&node.id, tree.remove(&node.id).is_some());
            registry.sweep();
            tracing::info!(sandbox_id, checkpoint, "checkpoint deleted");
            Ok(there)
        });
        let lost = |_| ApiError::DeleteFailed("The work was given up".into());
        match work.await.map_err(lost)?? {
            true => Ok(()),
            // Somebody else was quicker.
            false => Err(no_checkpoint(id, &node_id)),
        }
    }

    /// A checkpoint of a sandbox, and what sandboxes that begin at it begin with.
    ///
    /// # Errors
    /// [`ApiError::CheckpointNotFound`]; [`ApiError::StartFailed`] for one that cannot be had back.
    pub(super) async fn checkpoint_start(
        &self,
        facts: &Facts,
        tree: &Tree,
        word: &str,
    ) -> Result<(Arc<Node>, Arc<Start>), ApiError> {
        let id = &facts.id;
        let node = tree.find(word).ok_or_else(|| no_checkpoint(id, word))?;
        if let Some(start) = tree.ready(&node.id) {
            return Ok((node, start));
        }
        let start = self.load_node(facts, &node).await;
        // It may have been deleted just now.
        tree.find(&node.id).ok_or_else(|| no_checkpoint(id, word))?;
        let start = start?;
        tree.keep_ready(&node, &start);
        Ok((node, start))
    }

    /// The moment at which a sandbox began, if that was stored with it.
    pub(super) async fn first_start(
        &self,
        facts: &Facts,
        tree: &Tree,
    ) -> Result<Option<Arc<Start>>, ApiError> {
        match tree.first() {
            Some(node) => Ok(Some(self.load_node(facts, &node).await?)),
            None => Ok(None),
        }
    }

    async fn load_node(&self, facts: &Facts, node: &Node) -> Result<Arc<Start>, ApiError> {
        let template = self.template_of(&facts.origin)?;
        let (stored, kept) = (node.stored.clone(), node.kept);
        let image = self.in_vault(move |vault| {
            let base = vault::look(&template.name, &template.image)?;
            vault.get(&stored, kept, &base, checkpoints::readable)
        });
        let image = image.await;
        let image = Arc::new(image.map_err(|error| ApiError::StartFailed(chain(&error)))?);
        Ok(Arc::new(Start {
            begin: match kept {
                Kept::Memory => Begin::Image(image),
                Kept::Files => Begin::Files(image),
            },
            processes: node.processes.clone(),
            origin: Origin {
                forked: true,
                ..facts.origin.clone()
            },
        }))
    }

    /// Stores the moment at which a sandbox began, if that was another's, so that it can be reset to it
    /// also when the server has been started again. Once: it goes with the sandbox.
    pub(super) async fn store_first(
        &self,
        sandbox: &Sandbox,
        base: &BaseImage,
    ) -> Result<(), ApiError> {
        let tree = &sandbox.body.tree;
        let start = match &sandbox.body.start {
            Some(start) if tree.first().is_none() => Arc::clone(start),
            _ => return Ok(()),
        };
        let kept = match start.begin {
            Begin::Boot => return Ok(()),
            Begin::Image(_) => Kept::Memory,
            Begin::Files(_) => Kept::Files,
        };
        let coming = checkpoints::first(&sandbox.id, kept, start.processes.clone());
        let (coming, base) = (coming.map_err(|error| failed(&error))?, base.clone());
        let put = self.in_vault(move |vault| {
            if let Begin::Image(image) | Begin::Files(image) = &start.begin {
                vault.put(coming.stored(), (image, kept), &base, &coming.record)?;
            }
            Ok(coming.node(Vec::new()))
        });
        let node = put.await.map_err(|error| failed(&error))?;
        let stored = node.stored.clone();
        if !tree.note_first(node) {
            let removed = self.in_vault(move |vault| vault.remove(&stored)).await;
            self.sweep();
            removed.map_err(|error| failed(&error))?;
            return Err(missing(&sandbox.id));
        }
        Ok(())
    }

    /// A sandbox has ended: its checkpoints go, in the background. What could not be removed is when
    /// the server starts.
    pub(super) fn fell(&self, tree: &Tree) {
        let all = tree.close();
        if !all.is_empty() {
            self.chore(move |vault| remove_all(vault, all));
        }
    }

    /// The same for a sandbox whose tree is not in memory.
    pub(super) fn fell_all(&self, id: &str) {
        let prefix = format!("{}{id}-", checkpoints::PREFIX);
        self.chore(move |vault| remove_all(vault, vault.names(&prefix).unwrap_or_default()));
    }
}

fn remove_all(vault: &Vault, all: Vec<SnapshotId>) {
    for stored in all {
        if let Err(error) = vault.remove(&stored) {
            let error = chain(&error);
            tracing::error!(snapshot = %stored, error, "a checkpoint was not removed");
        }
    }
    vault.sweep();
}

fn no_checkpoint(id: &str, word: &str) -> ApiError {
    ApiError::CheckpointNotFound {
        sandbox_id: id.to_owned(),
        checkpoint: word.chars().take(MAX_WORD).collect(),
    }
}
