//! Checkpoint: restore points of a sandbox that it can be reset to, and that others can begin at,
//! as long as it lives.
//!
//! ```text
//! quiesce ─> saved ─> runs on ─> written to the vault ─> in the tree; the next one may begin
//!                                     └─(it has ended meanwhile)─> removed again
//! ```

use crate::error::{EngineError, chain};
use crate::facts::{KeptState, SandboxFacts, SandboxOrigin};
use crate::owner::Caller;
use crate::registry::capture::{CapturedSandbox, failed};
use crate::registry::load::{StoredMachine, not_loaded};
use crate::registry::sandboxes::SandboxRegistry;
use crate::restore_point::{BootSource, RestorePoint};
use crate::sandbox::Sandbox;
use crate::store::checkpoint_node::{CheckpointFacts, CheckpointNode};
use crate::store::checkpoint_tree::{
    CheckpointListing, CheckpointReservation, CheckpointTree, CheckpointView,
};
use crate::store::vault::{ImageVault, VaultError};
use crate::store::{checkpoint_node, checkpoint_record};
use snapshot_format::BaseImage;
use snapshot_store::{SnapshotId, StoreError};
use std::sync::Arc;
use std::time::Instant;

impl SandboxRegistry {
    /// Stores where a running sandbox is in its tree: a child of the checkpoint that the sandbox
    /// descends from, which is the new one from then on. It is quiesced while it is saved, and runs
    /// on while that is written to the disk.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`]; [`EngineError::Conflict`], also for a name that is taken;
    /// [`EngineError::Invalid`] for a bad one; [`EngineError::TooManyCheckpoints`];
    /// [`EngineError::LimitReached`];
    /// [`EngineError::PauseFailed`]: there is no checkpoint.
    pub async fn checkpoint(
        self: &Arc<Self>,
        (who, id): (&Caller, &str),
        name: Option<&str>,
    ) -> Result<CheckpointView, EngineError> {
        let (facts, tree) = self.tree_of(who, id)?;
        self.admit_bytes(facts.owner.as_ref())?;
        let room = tree.reserve(name, self.max_checkpoints)?;
        // A task of its own: a client that leaves leaves nothing half-done behind.
        let (registry, id) = (Arc::clone(self), id.to_owned());
        let work = tokio::spawn(async move {
            let begin = Instant::now();
            let taken = registry.take(&id, room).await;
            let (good, time) = (taken.is_ok(), begin.elapsed());
            registry.metrics.done("checkpoint", good, time);
            taken
        });
        let lost = |_| EngineError::PauseFailed("The work was given up".into());
        work.await.map_err(lost)?
    }

    async fn take(
        self: &Arc<Self>,
        id: &str,
        room: CheckpointReservation,
    ) -> Result<CheckpointView, EngineError> {
        let CapturedSandbox {
            busy,
            image,
            saved,
            processes,
        } = self.capture(id).await?;
        // Others may have stored theirs while this one waited for its turn.
        self.admit_bytes(busy.sandbox.owner.as_ref())?;
        let base = self.base_image_of(&busy.sandbox.origin.base)?;
        let owner = busy.sandbox.owner.clone();
        let taken = CheckpointFacts {
            kept: KeptState::Memory,
            processes,
            pages: saved.memory_pages,
            blocks: saved.disk_blocks,
        };
        let coming = room.record(id, taken).map_err(|error| failed(&error))?;
        let metrics = Arc::clone(&self.metrics);
        let put = self.in_vault(move |vault| {
            let kept = (&*image, KeptState::Memory);
            let blobs = vault.put(
                (coming.stored(), owner.as_ref()),
                kept,
                &base,
                &coming.record,
            )?;
            metrics.stored("checkpoint", &blobs);
            Ok(coming.node(blobs))
        });
        let node = put.await.map_err(|error| {
            self.collect_garbage();
            failed(&error)
        })?;
        let stored = node.stored.clone();
        let Some(seen) = room.fill(node) else {
            let removed = self.in_vault(move |vault| vault.remove(&stored)).await;
            self.collect_garbage();
            removed.map_err(|error| EngineError::DeleteFailed(chain(&error)))?;
            return Err(EngineError::no_sandbox(id));
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
    /// [`EngineError::SandboxNotFound`].
    pub fn checkpoints(&self, who: &Caller, id: &str) -> Result<CheckpointListing, EngineError> {
        Ok(self.tree_of(who, id)?.1.listing())
    }

    /// Removes a checkpoint of a sandbox in any state, with what nobody else needs. Its children
    /// become its parent's; who began at it, or is just about to, goes on.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`], [`EngineError::CheckpointNotFound`],
    /// [`EngineError::DeleteFailed`].
    pub async fn delete_checkpoint(
        self: &Arc<Self>,
        (who, id): (&Caller, &str),
        word: &str,
    ) -> Result<(), EngineError> {
        let (_, tree) = self.tree_of(who, id)?;
        let node = tree
            .find(word)
            .ok_or_else(|| EngineError::no_checkpoint(id, word))?;
        let registry = Arc::clone(self);
        let (sandbox_id, node_id) = (id.to_owned(), node.id.clone());
        let work = tokio::spawn(async move {
            let stored = node.stored.clone();
            let removed = registry.in_vault(move |vault| vault.remove(&stored)).await;
            removed.map_err(|error| EngineError::DeleteFailed(chain(&error)))?;
            let (checkpoint, there) = (&node.id, tree.remove(&node.id).is_some());
            registry.collect_garbage();
            tracing::info!(sandbox_id, checkpoint, "checkpoint deleted");
            Ok::<_, EngineError>(there)
        });
        let lost = |_| EngineError::DeleteFailed("The work was given up".into());
        match work.await.map_err(lost)?? {
            true => Ok(()),
            // Somebody else was quicker.
            false => Err(EngineError::no_checkpoint(id, &node_id)),
        }
    }

    /// A checkpoint of a sandbox, and where sandboxes begin that begin at it.
    ///
    /// # Errors
    /// [`EngineError::CheckpointNotFound`]; [`EngineError::StartFailed`] for one that cannot be
    /// loaded.
    pub(super) async fn checkpoint_point(
        &self,
        facts: &SandboxFacts,
        tree: &CheckpointTree,
        word: &str,
    ) -> Result<(Arc<CheckpointNode>, Arc<RestorePoint>), EngineError> {
        let id = &facts.id;
        let node = tree
            .find(word)
            .ok_or_else(|| EngineError::no_checkpoint(id, word))?;
        if let Some(point) = tree.ready(&node.id) {
            return Ok((node, point));
        }
        let point = self.load_node(facts, &node).await;
        // It may have been deleted just now.
        tree.find(&node.id)
            .ok_or_else(|| EngineError::no_checkpoint(id, word))?;
        let point = point?;
        tree.keep_ready(&node, &point);
        Ok((node, point))
    }

    /// The restore point at which a sandbox began, if that was stored with it.
    pub(super) async fn first_point(
        &self,
        facts: &SandboxFacts,
        tree: &CheckpointTree,
    ) -> Result<Option<Arc<RestorePoint>>, EngineError> {
        match tree.first() {
            Some(node) => Ok(Some(self.load_node(facts, &node).await?)),
            None => Ok(None),
        }
    }

    async fn load_node(
        &self,
        facts: &SandboxFacts,
        node: &CheckpointNode,
    ) -> Result<Arc<RestorePoint>, EngineError> {
        let machine = StoredMachine {
            stored: node.stored.clone(),
            kept: node.kept,
            template: self.template_of(&facts.origin)?,
            readable: checkpoint_record::readable,
            // The delta layer takes memory in each machine that begins here, in the place of what a
            // machine that is reset has now: who forks weighs it.
            weigh: |weight| Some(weight.base_memory()).filter(|bytes| *bytes > 0),
        };
        let image = self.load(machine).await.map_err(|error| match error {
            // Deleted just now: it goes from the store first, and then from the tree.
            VaultError::Store(StoreError::NoSnapshot(_)) => {
                EngineError::no_checkpoint(&facts.id, &node.id)
            }
            other => not_loaded(other, EngineError::StartFailed),
        })?;
        Ok(Arc::new(RestorePoint {
            source: BootSource::of(image, node.kept),
            processes: node.processes.clone(),
            origin: SandboxOrigin {
                forked: true,
                ..facts.origin.clone()
            },
        }))
    }

    /// Stores the restore point at which a sandbox began, if that was another's, so that it can be
    /// reset to it also when the server has been started again. Once: it goes with the sandbox.
    pub(super) async fn store_first(
        &self,
        sandbox: &Sandbox,
        base: &BaseImage,
    ) -> Result<(), EngineError> {
        let tree = &sandbox.machine.tree;
        let point = match &sandbox.machine.restore_point {
            Some(point) if tree.first().is_none() => Arc::clone(point),
            _ => return Ok(()),
        };
        let kept = match point.source {
            BootSource::Boot => return Ok(()),
            BootSource::Image(_) => KeptState::Memory,
            BootSource::Files(_) => KeptState::Files,
        };
        let coming = checkpoint_record::first(&sandbox.id, kept, point.processes.clone());
        let (coming, base) = (coming.map_err(|error| failed(&error))?, base.clone());
        let owner = sandbox.owner.clone();
        let put = self.in_vault(move |vault| {
            if let BootSource::Image(image) | BootSource::Files(image) = &point.source {
                let name = (coming.stored(), owner.as_ref());
                vault.put(name, (image, kept), &base, &coming.record)?;
            }
            Ok(coming.node(Vec::new()))
        });
        let node = put.await.map_err(|error| failed(&error))?;
        let stored = node.stored.clone();
        if !tree.note_first(node) {
            let removed = self.in_vault(move |vault| vault.remove(&stored)).await;
            self.collect_garbage();
            removed.map_err(|error| failed(&error))?;
            return Err(EngineError::no_sandbox(&sandbox.id));
        }
        Ok(())
    }

    /// A sandbox has ended: its checkpoints go, in the background. What could not be removed is
    /// when the server starts.
    pub(super) fn delete_tree(&self, tree: &CheckpointTree) {
        let all = tree.close();
        if !all.is_empty() {
            self.in_background(move |vault| remove_all(vault, all));
        }
    }

    /// The same for a sandbox whose tree is not in memory.
    pub(super) fn delete_tree_of(&self, id: &str) {
        let prefix = format!("{}{id}-", checkpoint_node::PREFIX);
        self.in_background(move |vault| {
            remove_all(vault, vault.names(&prefix).unwrap_or_default());
        });
    }
}

fn remove_all(vault: &ImageVault, all: Vec<SnapshotId>) {
    for stored in all {
        if let Err(error) = vault.remove(&stored) {
            let error = chain(&error);
            tracing::error!(snapshot = %stored, error, "a checkpoint was not removed");
        }
    }
    vault.collect_garbage();
}
