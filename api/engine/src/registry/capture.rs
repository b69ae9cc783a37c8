//! Saving a sandbox's machine, and what there is for it in the vault.

use crate::error::{EngineError, chain};
use crate::image::capture::{CaptureMode, capture, sync, thaw};
use crate::image::machine_image::{ImageError, MachineImage};
use crate::process::ProcessRecord;
use crate::registry::sandboxes::{EndReason, SandboxRegistry};
use crate::registry::table::BusySandbox;
use crate::registry::transitions::BusyReason;
use crate::sandbox::Sandbox;
use crate::store::vault::{ImageVault, VaultError};
use control::Saved;
use std::sync::Arc;

/// A sandbox as it was when it was captured.
pub(super) struct CapturedSandbox {
    /// Whose. It runs on; nobody else saves or replaces its machine until this is dropped.
    pub(super) busy: BusySandbox,
    /// Its machine.
    pub(super) image: Arc<MachineImage>,
    /// What differs.
    pub(super) saved: Saved,
    /// Its processes.
    pub(super) processes: Vec<ProcessRecord>,
}

impl SandboxRegistry {
    /// Saves a running sandbox, which is quiesced meanwhile and then goes on.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`], [`EngineError::Conflict`], [`EngineError::PauseFailed`].
    pub(super) async fn capture(
        self: &Arc<Self>,
        id: &str,
    ) -> Result<CapturedSandbox, EngineError> {
        let busy = self.begin_work(id, BusyReason::Save).await?;
        let registry = Arc::clone(self);
        let work = tokio::spawn(async move {
            let sandbox = &busy.sandbox;
            let saved = registry.save(sandbox, true).await;
            let processes = sandbox.processes.records();
            registry.run_on(sandbox).await?;
            let (image, saved) = saved.map_err(|error| or_ended(sandbox, failed(&error)))?;
            Ok(CapturedSandbox {
                busy,
                image: Arc::new(image),
                saved,
                processes,
            })
        });
        let lost = |_| EngineError::PauseFailed("The work was given up".into());
        work.await.map_err(lost)?
    }

    /// Lets a sandbox run again whose machine was saved, or was not: its vCPUs, its processes, its
    /// traffic.
    ///
    /// # Errors
    /// [`EngineError::SandboxNotFound`]: it was killed meanwhile.
    pub(super) async fn run_on(&self, sandbox: &Arc<Sandbox>) -> Result<(), EngineError> {
        sandbox.machine.handle.start().await;
        thaw(&sandbox.id, &sandbox.link).await;
        if !self.go_on(sandbox) {
            return Err(EngineError::no_sandbox(&sandbox.id));
        }
        if *self.closing.borrow() {
            self.end(sandbox, &EndReason::Shutdown);
        }
        Ok(())
    }

    /// Saves its machine; see [`capture`].
    pub(super) async fn save(
        &self,
        sandbox: &Sandbox,
        ahead: bool,
    ) -> Result<(MachineImage, Saved), ImageError> {
        let body = &sandbox.machine;
        let base_memory = body.base_memory.as_ref();
        capture(
            &self.launcher.layer_dir,
            &body.handle,
            base_memory,
            body.shape,
            CaptureMode {
                ahead,
                freeze: Some(&sandbox.link),
            },
        )
        .await
    }

    /// Has the guest write its files out. Its file system would recover without: this saves what is
    /// not yet written.
    pub(super) async fn sync(&self, sandbox: &Sandbox) -> Result<(), EngineError> {
        let synced = sync(&sandbox.link).await;
        synced.map_err(EngineError::PauseFailed)
    }

    /// Does something with the vault, away from the runtime.
    pub(super) async fn in_vault<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ImageVault) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let vault = Arc::clone(&self.vault);
        let work = tokio::task::spawn_blocking(move || work(&vault));
        work.await.map_err(|_| VaultError::GivenUp)?
    }

    /// Removes what nobody needs any more from the store, in the background.
    pub(super) fn collect_garbage(&self) {
        self.in_background(ImageVault::collect_garbage);
    }

    /// Does something with the vault in the background. The server does not close before it is
    /// done.
    pub(super) fn in_background(&self, work: impl FnOnce(&ImageVault) + Send + 'static) {
        // The server is closing if there is no such thing: the next start sees to it.
        let Ok(held) = Arc::clone(&self.background_jobs).try_read_owned() else {
            return;
        };
        let vault = Arc::clone(&self.vault);
        tokio::task::spawn_blocking(move || {
            work(&vault);
            drop((vault, held));
        });
    }
}

/// Why a sandbox was not saved.
pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> EngineError {
    EngineError::PauseFailed(chain(error))
}

/// Why a sandbox was not saved, if its machine has ended with it: it does not run on.
pub(super) fn or_ended(sandbox: &Sandbox, error: EngineError) -> EngineError {
    match error {
        EngineError::PauseFailed(why) if sandbox.machine.handle.is_gone() => {
            EngineError::EndedMeanwhile(why)
        }
        other => other,
    }
}
