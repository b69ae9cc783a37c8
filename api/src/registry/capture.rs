//! Saving a sandbox's machine, and what there is for it in the vault.

use super::guard::or_ended;
use super::table::{Busy, Why, missing};
use super::{Reason, Registry};
use crate::envd::KeptProcess;
use crate::error::{ApiError, chain};
use crate::image::{self, Image, ImageError};
use crate::sandbox::{Origin, Sandbox};
use crate::vault::{Vault, VaultError};
use control::Saved;
use snapshot_format::BaseImage;
use std::sync::Arc;

/// A sandbox as it was at one moment.
pub(super) struct Captured {
    /// Whose. It runs on; nobody else saves or replaces its machine until this is dropped.
    pub(super) busy: Busy,
    /// Its machine.
    pub(super) image: Arc<Image>,
    /// What differs.
    pub(super) saved: Saved,
    /// Its processes.
    pub(super) processes: Vec<KeptProcess>,
}

impl Registry {
    /// Saves a running sandbox, which stands still meanwhile and then goes on.
    ///
    /// # Errors
    /// [`ApiError::SandboxNotFound`], [`ApiError::Conflict`], [`ApiError::PauseFailed`].
    pub(super) async fn capture(self: &Arc<Self>, id: &str) -> Result<Captured, ApiError> {
        let busy = self.begin(id, Why::Save).await?;
        let registry = Arc::clone(self);
        let work = tokio::spawn(async move {
            let sandbox = &busy.sandbox;
            let saved = registry.save(sandbox, true).await;
            let processes = sandbox.processes.kept();
            sandbox.body.hand.start().await;
            if !registry.go_on(sandbox) {
                return Err(missing(&sandbox.id));
            }
            if *registry.closing.borrow() {
                registry.end(sandbox, &Reason::Shutdown);
            }
            let (image, saved) = saved.map_err(|error| or_ended(sandbox, failed(&error)))?;
            Ok(Captured {
                busy,
                image: Arc::new(image),
                saved,
                processes,
            })
        });
        let lost = |_| ApiError::PauseFailed("The work was given up".into());
        work.await.map_err(lost)?
    }

    /// Saves its machine; see [`image::capture`].
    pub(super) async fn save(
        &self,
        sandbox: &Sandbox,
        ahead: bool,
    ) -> Result<(Image, Saved), ImageError> {
        let body = &sandbox.body;
        let basis = body.basis.as_ref();
        image::capture(&self.launcher, &body.hand, basis, body.shape, ahead).await
    }

    /// Has the guest write its files out. Its file system would recover without: this saves what is
    /// not yet written.
    pub(super) async fn sync(&self, sandbox: &Sandbox) -> Result<(), ApiError> {
        let synced = image::sync(&sandbox.link).await;
        synced.map_err(ApiError::PauseFailed)
    }

    /// How the image under a sandbox's disk looked when the server started.
    pub(super) fn base_of(&self, origin: &Origin) -> Result<BaseImage, ApiError> {
        let name = &origin.base;
        self.bases.get(name).cloned().ok_or_else(|| {
            ApiError::PauseFailed(format!("The image of {name:?} was not found at the start"))
        })
    }

    /// Does something with the vault, away from the runtime.
    pub(super) async fn in_vault<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Vault) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let vault = Arc::clone(&self.vault);
        let work = tokio::task::spawn_blocking(move || work(&vault));
        work.await.map_err(|_| VaultError::GivenUp)?
    }

    /// Removes what nobody needs any more from the store, in the background.
    pub(super) fn sweep(&self) {
        self.chore(Vault::sweep);
    }

    /// Does something with the vault in the background. The server does not close before it is done.
    pub(super) fn chore(&self, work: impl FnOnce(&Vault) + Send + 'static) {
        // The server is closing if there is no such thing: the next start sees to it.
        let Ok(held) = Arc::clone(&self.chores).try_read_owned() else {
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
pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> ApiError {
    ApiError::PauseFailed(chain(error))
}
