//! The bare guest, saved while it waits: what every clone begins at.

use super::guest::{
    AfterAnswer, BareGuest, MAX_DIRTY, PAGES, READY, control_page, file, nonce, value,
};
use super::process::BareProcess;
use anyhow::{Context, Result, ensure};
use snapshot_memory::{BaseMemory, LayerFile};
use std::fs::File;
use std::path::Path;

/// The guest, saved while it waits.
pub(crate) struct SavedGuest {
    memory: File,
    state: File,
}

impl SavedGuest {
    /// Boots the guest by the VM process at `program` and saves it.
    pub(crate) fn save(program: &Path) -> Result<Self> {
        let mut process = BareProcess::boot(program)?;
        process.start()?;
        let (said, _) = process.answer()?;
        ensure!(said == READY, "the bare guest said {said:?}, not {READY:?}");
        let (memory, state) = (file()?, file()?);
        process
            .save(&memory, &state)
            .context("Saving the bare guest")?;
        process.stop()?;
        Ok(Self {
            memory: memory.into(),
            state: state.into(),
        })
    }

    /// Base memory whose clones dirty `pages` pages, write their value and do `then`.
    pub(crate) fn base_memory(&self, pages: u64, then: AfterAnswer) -> Result<BareGuest> {
        ensure!(
            pages <= MAX_DIRTY,
            "{pages} pages asked, {MAX_DIRTY} can be dirtied"
        );
        let nonce = nonce()?;
        let patch = LayerFile::open(control_page(nonce, pages, then)?)?;
        let memory = LayerFile::open(self.memory.try_clone()?)?;
        Ok(BareGuest {
            memory: BaseMemory::merge_layers(PAGES, &[patch, memory])?,
            state: self.state.try_clone()?.into(),
            value: value(nonce, pages),
            pages,
            nonce,
        })
    }
}
