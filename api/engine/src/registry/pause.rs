//! Pause: a running sandbox is stored, and its machine goes. A task of its own: a client that
//! leaves does not leave half a sandbox behind.

use crate::error::{EngineError, chain};
use crate::facts::KeptState;
use crate::owner::Caller;
use crate::registry::capture::{failed, or_ended};
use crate::registry::sandboxes::SandboxRegistry;
use crate::registry::table::BusySandbox;
use crate::registry::transitions::BusyReason;
use crate::sandbox::Sandbox;
use crate::store::paused::{PausedSandbox, stored_name};
use crate::store::vault::VaultError;
use jiff::Timestamp;
use std::sync::Arc;
use tokio::time::Instant;

impl SandboxRegistry {
    /// Pauses a running sandbox. When this returns it is kept, and its machine is about to go.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`], [`EngineError::Conflict`], [`EngineError::LimitReached`],
    /// [`EngineError::PauseFailed`]: it runs on.
    pub async fn pause(
        self: &Arc<Self>,
        (who, id): (&Caller, &str),
        kept: KeptState,
    ) -> Result<(), EngineError> {
        self.own(who, id)?;
        self.pause_any(id, kept).await
    }

    /// The same at a deadline, whosever it is.
    pub(super) async fn pause_any(
        self: &Arc<Self>,
        id: &str,
        kept: KeptState,
    ) -> Result<(), EngineError> {
        let busy = self.begin_work(id, BusyReason::Pause).await?;
        let registry = Arc::clone(self);
        let work = tokio::spawn(async move { registry.store_and_stop(busy, kept).await });
        let lost = |_| EngineError::PauseFailed("The work was given up".into());
        work.await.map_err(lost)?
    }

    async fn store_and_stop(
        self: &Arc<Self>,
        from: BusySandbox,
        kept: KeptState,
    ) -> Result<(), EngineError> {
        let (sandbox, begin) = (&from.sandbox, Instant::now());
        match self.keep(sandbox, kept).await {
            Ok(paused) => {
                if !self.finish_pause(sandbox, &Arc::new(paused)) {
                    self.forget(&sandbox.id).await?;
                    return Err(EngineError::no_sandbox(&sandbox.id));
                }
                sandbox.machine.tree.rest();
                let time = begin.elapsed();
                self.metrics.done("pause", true, time);
                tracing::info!(sandbox_id = sandbox.id, ?kept, ?time, "sandbox paused");
                Ok(())
            }
            Err(error) => {
                let error = or_ended(sandbox, error);
                self.collect_garbage();
                self.metrics.done("pause", false, begin.elapsed());
                tracing::warn!(sandbox_id = sandbox.id, %error, "not paused");
                self.run_on(sandbox).await?;
                Err(error)
            }
        }
    }

    /// Saves the machine, which stands still from then on.
    async fn keep(
        &self,
        sandbox: &Arc<Sandbox>,
        kept: KeptState,
    ) -> Result<PausedSandbox, EngineError> {
        if kept == KeptState::Files {
            self.sync(sandbox).await?;
        }
        let (image, _) = self
            .save(sandbox, false)
            .await
            .map_err(|error| failed(&error))?;
        let paused = PausedSandbox {
            facts: sandbox.present_facts(),
            paused_at: Timestamp::now(),
            kept,
            processes: sandbox.processes.records(),
            restore_point: sandbox.machine.restore_point.clone(),
            tree: Arc::clone(&sandbox.machine.tree),
        };
        let base = self.base_image_of(&sandbox.origin.base)?;
        self.store_first(sandbox, &base).await?;
        let record = paused.encode().map_err(|error| failed(&error))?;
        let name = stored_name(&sandbox.id).map_err(|error| failed(&error))?;
        let owner = sandbox.owner.clone();
        let put = self.in_vault(move |vault| {
            let name = (&name, owner.as_ref());
            vault.put(name, (&image, kept), &base, &record)
        });
        let blobs = put.await.map_err(|error| failed(&error))?;
        self.metrics.stored("pause", &blobs);
        Ok(paused)
    }

    /// Removes what is stored of a sandbox.
    pub(super) async fn forget(&self, id: &str) -> Result<(), EngineError> {
        let failed = |error: &VaultError| EngineError::KillFailed(chain(error));
        let name = stored_name(id).map_err(|error| failed(&error.into()))?;
        let removed = self.in_vault(move |vault| vault.remove(&name)).await;
        self.collect_garbage();
        removed.map_err(|error| failed(&error))
    }
}
