//! A machine's whole memory, which all machines that begin there share.

use crate::image::pager::LONGEST;
use snapshot_format::BlobRef;
use snapshot_memory::{LayerFile, MemoryError};
use snapshot_store::BlobLease;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// So many machines have their memory paged in, each a copy of its own; from then on it is merged
/// once for all.
const PAGED: usize = 2;

/// A machine's whole memory: the layers it is made of, and the whole, sealed, once somebody needs
/// it.
#[derive(Debug)]
pub struct BaseMemory {
    pages: u64,
    memory: OnceLock<snapshot_memory::BaseMemory>,
    /// Held while it is put together, so that it is not twice.
    making: Mutex<()>,
    /// Machines that began while it was not whole.
    paged: AtomicUsize,
    layers: Vec<Arc<File>>,
    /// The layers in the store, in the same order, once they are there; the lease keeps them.
    stored: Mutex<Option<(Vec<BlobRef>, BlobLease)>>,
}

impl BaseMemory {
    /// Puts a memory of `pages` pages together from layer files, newest first. Blocks.
    ///
    /// # Errors
    /// A layer that is none, or is of another machine; or no memory.
    pub fn merge(pages: u64, layers: Vec<Arc<File>>) -> Result<Self, MemoryError> {
        let base_memory = Self::cold(pages, layers);
        base_memory.whole()?;
        Ok(base_memory)
    }

    /// The same, put together when somebody needs it whole.
    #[must_use]
    pub fn cold(pages: u64, layers: Vec<Arc<File>>) -> Self {
        Self {
            pages,
            memory: OnceLock::new(),
            making: Mutex::default(),
            paged: AtomicUsize::new(0),
            layers,
            stored: Mutex::default(),
        }
    }

    /// All of the memory, sealed. Blocks while it is put together.
    ///
    /// # Errors
    /// As [`BaseMemory::merge`].
    pub fn memory(&self) -> Result<BorrowedFd<'_>, MemoryError> {
        Ok(self.whole()?.as_fd())
    }

    pub(super) fn whole(&self) -> Result<&snapshot_memory::BaseMemory, MemoryError> {
        let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = self.memory.get() {
            return Ok(memory);
        }
        let open = |file: &Arc<File>| LayerFile::open(file.try_clone().map_err(again(self.pages))?);
        let opened = self
            .layers
            .iter()
            .map(open)
            .collect::<Result<Vec<_>, _>>()?;
        let memory = snapshot_memory::BaseMemory::merge_layers(self.pages, &opened)?;
        Ok(self.memory.get_or_init(|| memory))
    }

    /// Whether a machine that is to begin here should have its memory paged in; counts it if so.
    #[must_use]
    pub fn should_page(&self) -> bool {
        let cold = self.memory.get().is_none() && !self.layers.is_empty();
        cold && self.layers.len() <= LONGEST && self.paged.fetch_add(1, Relaxed) < PAGED
    }

    /// Pages of the whole.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Bytes that are resident; the rest are holes.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let memory = self.memory.get();
        memory.map_or(0, |memory| memory.resident_bytes().unwrap_or(0))
    }

    /// The layers, newest first.
    #[must_use]
    pub fn layers(&self) -> &[Arc<File>] {
        &self.layers
    }

    /// Where the layers are in the store, if they are.
    #[must_use]
    pub fn stored(&self) -> Option<(Vec<BlobRef>, BlobLease)> {
        self.stored_lock().clone()
    }

    /// Notes where the layers are in the store.
    pub fn note_stored(&self, blobs: Vec<BlobRef>, lease: BlobLease) {
        *self.stored_lock() = Some((blobs, lease));
    }

    fn stored_lock(&self) -> std::sync::MutexGuard<'_, Option<(Vec<BlobRef>, BlobLease)>> {
        // Nothing panics while it holds the lock.
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A saved machine's file, used once more.
pub(super) fn again(pages: u64) -> impl Fn(std::io::Error) -> MemoryError {
    move |source| MemoryError::Io {
        what: "Using a saved machine's file again",
        with: format!("{pages} pages"),
        source,
    }
}
