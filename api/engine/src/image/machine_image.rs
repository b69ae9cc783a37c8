//! The image itself.

use crate::files;
use crate::image::base_memory::{BaseMemory, again};
use control::SavedLink;
use link::LinkRest;
use snapshot_memory::{MemoryError, WorkingSet};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most bytes of a section file.
const MAX_STATE: u64 = 32 << 20;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No files to save it in.
    #[error("Cannot make a file in {path}")]
    File {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It could not be saved.
    #[error("It could not be saved: {0}")]
    Save(String),
    /// Its memory could not be put together.
    #[error("Its memory could not be put together")]
    Memory(#[from] MemoryError),
    /// The task that does it broke.
    #[error("The work was given up")]
    GivenUp,
}

/// What becomes of the agent's connection in machines that begin at an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentLink {
    /// It goes on, after this stream: nothing was under way when the machine was saved.
    Kept {
        /// What the service has to know of it.
        rest: LinkRest,
    },
    /// It broke; the agent says Hello again.
    Broken,
}

impl From<AgentLink> for SavedLink {
    fn from(link: AgentLink) -> Self {
        match link {
            AgentLink::Kept { .. } => Self::Kept,
            AgentLink::Broken => Self::Broken,
        }
    }
}

/// A machine's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineShape {
    /// vCPUs.
    pub vcpus: u8,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// The root disk as the guest sees it, bytes.
    pub disk_size: u64,
}

impl MachineShape {
    /// Pages of its memory.
    #[must_use]
    pub fn pages(&self) -> u64 {
        u64::from(self.memory_mib) << 8
    }
}

/// A saved machine. Its files have no names or belong to the store: they go with this value and
/// with the machines that hold them.
#[derive(Debug)]
pub struct MachineImage {
    /// The memory that machines map.
    pub base_memory: Arc<BaseMemory>,
    /// A layer file over it; `None`: the memory is the base memory.
    pub delta: Option<Arc<File>>,
    /// The section file.
    pub state: Arc<File>,
    /// The flat layer of the root disk, over the base image.
    pub disk: Arc<File>,
    /// Its size.
    pub shape: MachineShape,
    /// The agent's connection.
    pub link: AgentLink,
}

impl MachineImage {
    /// The same machine, of which clones come with what `trial`, saved from such a clone, has used.
    ///
    /// # Errors
    /// [`ImageError::Memory`], [`ImageError::File`].
    pub async fn learn(
        &self,
        layer_dir: &Path,
        trial: &Self,
    ) -> Result<(Self, WorkingSet), ImageError> {
        let mut state = file(layer_dir)?;
        let (base_memory, own) = (Arc::clone(&self.base_memory), Arc::clone(&self.state));
        let trial = Arc::clone(&trial.state);
        let work = tokio::task::spawn_blocking(move || {
            let (learned, first) = base_memory.whole()?.learn(&whole(&own)?, &whole(&trial)?)?;
            state
                .write_all(&learned)
                .map_err(again(base_memory.pages()))?;
            Ok::<_, ImageError>((Arc::new(state), first))
        });
        let (state, first) = work.await.map_err(|_| ImageError::GivenUp)??;
        let learned = Self {
            base_memory: Arc::clone(&self.base_memory),
            delta: self.delta.clone(),
            state,
            disk: Arc::clone(&self.disk),
            shape: self.shape,
            link: self.link,
        };
        Ok((learned, first))
    }

    /// The same machine with all of its memory in a base memory of its own, for many to begin at:
    /// none has to copy the delta layer. One that has no delta layer comes back as it is.
    ///
    /// # Errors
    /// [`ImageError::Memory`].
    pub async fn merged(self: Arc<Self>) -> Result<Arc<Self>, ImageError> {
        let Some(delta) = &self.delta else {
            return Ok(self);
        };
        let layers = [delta].into_iter().chain(self.base_memory.layers());
        let layers = layers.map(Arc::clone).collect();
        Ok(Arc::new(Self {
            base_memory: merge(self.shape.pages(), layers).await?,
            delta: None,
            state: Arc::clone(&self.state),
            disk: Arc::clone(&self.disk),
            shape: self.shape,
            link: self.link,
        }))
    }
}

/// All bytes of a file, wherever its position is.
fn whole(file: &File) -> Result<Vec<u8>, MemoryError> {
    let read = || {
        let length = file.metadata()?.len().min(MAX_STATE);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    read().map_err(again(0))
}

/// A file for a part of an image, without a name.
pub(super) fn file(layer_dir: &Path) -> Result<File, ImageError> {
    let made = files::unnamed(layer_dir).map(File::from);
    made.map_err(|source| ImageError::File {
        path: layer_dir.to_owned(),
        source,
    })
}

/// [`BaseMemory::merge`], away from the runtime.
///
/// # Errors
/// [`ImageError::Memory`].
pub async fn merge(pages: u64, layers: Vec<Arc<File>>) -> Result<Arc<BaseMemory>, ImageError> {
    let work = move || Ok(Arc::new(BaseMemory::merge(pages, layers)?));
    let work = tokio::task::spawn_blocking(work);
    work.await.map_err(|_| ImageError::GivenUp)?
}
