//! A stored machine is loaded, if there is memory for what of it has to be.

use crate::error::{EngineError, chain};
use crate::facts::KeptState;
use crate::image::machine_image::MachineImage;
use crate::registry::sandboxes::SandboxRegistry;
use crate::store::load_weight::LoadWeight;
use crate::store::vault::{self, StoredHeader, VaultError};
use crate::template::Template;
use snapshot_store::SnapshotId;
use std::sync::Arc;

/// A machine in the store that is to be loaded.
pub(super) struct StoredMachine {
    /// Its name there.
    pub(super) stored: SnapshotId,
    /// What of it is wanted.
    pub(super) kept: KeptState,
    /// Whose image is under its disk.
    pub(super) template: Arc<Template>,
    /// What is wrong with its record.
    pub(super) readable: fn(&StoredHeader) -> Result<(), String>,
    /// How many bytes have to be left for it beside what always has to be; `None`: nobody looks.
    pub(super) weigh: fn(LoadWeight) -> Option<u64>,
}

impl SandboxRegistry {
    /// Loads a stored machine, away from the runtime.
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::NotAdmitted`] before anything of its memory is loaded.
    pub(super) async fn load(
        &self,
        machine: StoredMachine,
    ) -> Result<Arc<MachineImage>, VaultError> {
        let admission = Arc::clone(&self.admission);
        let loaded = self.in_vault(move |vault| {
            let StoredMachine {
                stored,
                kept,
                template,
                readable,
                weigh,
            } = machine;
            let base = vault::look(&template.name, &template.image)?;
            let admit = |weight| match weigh(weight) {
                None => Ok(()),
                Some(bytes) => admission.check_for(bytes),
            };
            vault.get(&stored, (kept, &base), readable, admit)
        });
        Ok(Arc::new(loaded.await?))
    }
}

/// Why a stored machine was not loaded, in the words of whoever wanted it.
pub(super) fn not_loaded(error: VaultError, failed: fn(String) -> EngineError) -> EngineError {
    match error {
        VaultError::NotAdmitted(refused) => refused,
        other => failed(chain(&other)),
    }
}
