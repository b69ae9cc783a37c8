//! A saved machine, of which any number of machines can begin.
//!
//! ```text
//! machine ──capture──> Image = basis (all of a memory, sealed, shared)
//!                            + diff  (a layer: what differs from the basis)
//!                            + state (devices, processors)
//!                            + disk  (flat: what differs from the base image)
//! ```
//!
//! A machine that began at an image has its diff among its private pages, so what is captured of it
//! is again one layer over the same basis: chains do not grow.

use crate::error::chain;
use crate::launcher::{Launcher, files};
use crate::link::Link;
use crate::machine::{Hand, NotReset};
use crate::pager::LONGEST;
use control::{Descriptors, DeviceReset, Reset, ResetSpec, SaveSpec, Saved, SavedLink, VsockSpec};
use snapshot_format::BlobRef;
use snapshot_memory::{Layer, MemoryError, WorkingSet};
use snapshot_store::Lease;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How long saving a machine may take.
const SAVE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long putting a machine back may take.
const RESET_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a guest may take to write its files out.
const SYNC_TIMEOUT: Duration = Duration::from_secs(20);

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

/// So many machines have their memory brought by a pager, each a copy of its own; from then on it is put
/// together once for all.
const BROUGHT: usize = 2;

/// A machine's whole memory: the layers it is made of, and the whole, sealed, once somebody needs it.
#[derive(Debug)]
pub struct Basis {
    pages: u64,
    memory: OnceLock<snapshot_memory::Golden>,
    /// Held while it is put together, so that it is not twice.
    making: Mutex<()>,
    /// Machines that began while it was not whole.
    brought: AtomicUsize,
    layers: Vec<Arc<File>>,
    /// The layers in the store, in the same order, once they are there; the lease keeps them.
    stored: Mutex<Option<(Vec<BlobRef>, Lease)>>,
}

impl Basis {
    /// Puts a memory of `pages` pages together from layer files, newest first. Blocks.
    ///
    /// # Errors
    /// A layer that is none, or is of another machine; or no memory.
    pub fn flatten(pages: u64, layers: Vec<Arc<File>>) -> Result<Self, MemoryError> {
        let basis = Self::cold(pages, layers);
        basis.whole()?;
        Ok(basis)
    }

    /// The same, put together when somebody needs it whole.
    #[must_use]
    pub fn cold(pages: u64, layers: Vec<Arc<File>>) -> Self {
        Self {
            pages,
            memory: OnceLock::new(),
            making: Mutex::default(),
            brought: AtomicUsize::new(0),
            layers,
            stored: Mutex::default(),
        }
    }

    /// All of the memory, sealed. Blocks while it is put together.
    ///
    /// # Errors
    /// As [`Basis::flatten`].
    pub fn memory(&self) -> Result<BorrowedFd<'_>, MemoryError> {
        Ok(self.whole()?.as_fd())
    }

    fn whole(&self) -> Result<&snapshot_memory::Golden, MemoryError> {
        let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = self.memory.get() {
            return Ok(memory);
        }
        let open = |file: &Arc<File>| Layer::open(file.try_clone().map_err(again(self.pages))?);
        let opened = self
            .layers
            .iter()
            .map(open)
            .collect::<Result<Vec<_>, _>>()?;
        let memory = snapshot_memory::Golden::flatten(self.pages, &opened)?;
        Ok(self.memory.get_or_init(|| memory))
    }

    /// Whether a machine that is to begin here should have its memory brought; counts it if so.
    #[must_use]
    pub fn bring(&self) -> bool {
        let cold = self.memory.get().is_none() && !self.layers.is_empty();
        cold && self.layers.len() <= LONGEST && self.brought.fetch_add(1, Relaxed) < BROUGHT
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
    pub fn stored(&self) -> Option<(Vec<BlobRef>, Lease)> {
        self.stored_lock().clone()
    }

    /// Notes where the layers are in the store.
    pub fn note_stored(&self, blobs: Vec<BlobRef>, lease: Lease) {
        *self.stored_lock() = Some((blobs, lease));
    }

    fn stored_lock(&self) -> std::sync::MutexGuard<'_, Option<(Vec<BlobRef>, Lease)>> {
        // Nothing panics while it holds the lock.
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn again(pages: u64) -> impl Fn(std::io::Error) -> MemoryError {
    move |source| MemoryError::Io {
        what: "Using a saved machine's file again",
        with: format!("{pages} pages"),
        source,
    }
}

/// What becomes of the agent's connection in machines that begin at an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentLink {
    /// It goes on, after this stream: nothing was under way when the machine was saved.
    Kept {
        /// The last stream that was opened on it.
        last_stream: u32,
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
pub struct Shape {
    /// vCPUs.
    pub vcpus: u8,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// The root disk as the guest sees it, bytes.
    pub disk_size: u64,
}

impl Shape {
    /// Pages of its memory.
    #[must_use]
    pub fn pages(&self) -> u64 {
        u64::from(self.memory_mib) << 8
    }
}

/// A saved machine. Its files have no names or belong to the store: they go with this value and
/// with the machines that hold them.
#[derive(Debug)]
pub struct Image {
    /// The memory that machines map.
    pub basis: Arc<Basis>,
    /// A layer file over it; `None`: the memory is the basis.
    pub diff: Option<Arc<File>>,
    /// The section file.
    pub state: Arc<File>,
    /// The flat layer of the root disk, over the base image.
    pub disk: Arc<File>,
    /// Its size.
    pub shape: Shape,
    /// The agent's connection.
    pub link: AgentLink,
}

impl Image {
    /// The same machine, of which copies come with what `trial`, saved from such a copy, has used.
    ///
    /// # Errors
    /// [`ImageError::Memory`], [`ImageError::File`].
    pub async fn learn(
        &self,
        launcher: &Launcher,
        trial: &Self,
    ) -> Result<(Self, WorkingSet), ImageError> {
        let mut state = file(launcher)?;
        let (basis, own) = (Arc::clone(&self.basis), Arc::clone(&self.state));
        let trial = Arc::clone(&trial.state);
        let work = tokio::task::spawn_blocking(move || {
            let (learned, first) = basis.whole()?.learn(&whole(&own)?, &whole(&trial)?)?;
            state.write_all(&learned).map_err(again(basis.pages()))?;
            Ok::<_, ImageError>((Arc::new(state), first))
        });
        let (state, first) = work.await.map_err(|_| ImageError::GivenUp)??;
        let learned = Self {
            basis: Arc::clone(&self.basis),
            diff: self.diff.clone(),
            state,
            disk: Arc::clone(&self.disk),
            shape: self.shape,
            link: self.link,
        };
        Ok((learned, first))
    }

    /// The same machine with all of its memory in a basis of its own, for many to begin at: none
    /// has to copy the diff. One that has no diff comes back as it is.
    ///
    /// # Errors
    /// [`ImageError::Memory`].
    pub async fn compose(self: Arc<Self>) -> Result<Arc<Self>, ImageError> {
        let Some(diff) = &self.diff else {
            return Ok(self);
        };
        let layers = [diff].into_iter().chain(self.basis.layers());
        let layers = layers.map(Arc::clone).collect();
        Ok(Arc::new(Self {
            basis: flatten(self.shape.pages(), layers).await?,
            diff: None,
            state: Arc::clone(&self.state),
            disk: Arc::clone(&self.disk),
            shape: self.shape,
            link: self.link,
        }))
    }
}

/// Has a guest write its files to its disk.
///
/// # Errors
/// Why it did not, in words.
pub async fn sync(link: &Link) -> Result<(), String> {
    match timeout(SYNC_TIMEOUT, link.sync()).await {
        Ok(done) => done.map_err(|error| chain(&error)),
        Err(_) => Err("The guest does not sync".into()),
    }
}

/// Saves a machine that began at `basis`, or booted if there is none. With `ahead` most is copied while it
/// runs, which takes longer but lets it stand still for a shorter time. It stands still when this returns:
/// [`Hand::start`] lets it go on. Its agent's connection, which may be in use, is broken in machines that begin
/// at the image; in the machine itself it goes on.
///
/// # Errors
/// [`ImageError`]; the machine then stands still or runs on: let it go on in any case.
pub async fn capture(
    launcher: &Launcher,
    machine: &Hand,
    basis: Option<&Arc<Basis>>,
    shape: Shape,
    ahead: bool,
) -> Result<(Image, Saved), ImageError> {
    let (memory, state, disk) = (file(launcher)?, file(launcher)?, file(launcher)?);
    let copy = |file: &File| {
        let again = file.try_clone();
        again.map_err(|error| ImageError::Save(format!("a descriptor was not copied: {error}")))
    };
    let mut fds = Descriptors::default();
    let spec = SaveSpec {
        memory: fds.add(copy(&memory)?),
        state: fds.add(copy(&state)?),
        contents: vec![fds.add(copy(&disk)?)],
        ahead,
    };
    let saved = match timeout(SAVE_TIMEOUT, machine.save(spec, fds.into())).await {
        Ok(Ok(saved)) => saved,
        Ok(Err(why)) => return Err(ImageError::Save(why)),
        Err(_) => {
            let bound = SAVE_TIMEOUT.as_secs();
            return Err(ImageError::Save(format!("it took more than {bound} s")));
        }
    };
    let memory = Arc::new(memory);
    let (basis, diff) = match basis {
        Some(basis) => (Arc::clone(basis), Some(memory)),
        None => (flatten(shape.pages(), vec![memory]).await?, None),
    };
    let image = Image {
        basis,
        diff,
        state: Arc::new(state),
        disk: Arc::new(disk),
        shape,
        link: AgentLink::Broken,
    };
    Ok((image, saved))
}

/// Puts a machine that began at the image's basis back to the image, in place. It stands still when this
/// returns, with `link` in the place of its old one: [`Hand::start`] lets it go. It has to take an
/// identity before anything else, as a copy does.
///
/// # Errors
/// [`NotReset`]: whether it runs on as it was.
pub async fn put_back(
    machine: &Hand,
    image: &Image,
    link: impl Into<OwnedFd>,
) -> Result<Reset, NotReset> {
    let reopen = |what, file: &File| {
        let again = files::reopen(what, file).map(OwnedFd::from);
        again.map_err(|error| NotReset::RunsOn(error.to_string()))
    };
    let mut fds = Descriptors::default();
    let state = fds.add(reopen("state", &image.state)?);
    let parent = Some(fds.add(reopen("disk layer", &image.disk)?));
    let vsock = VsockSpec {
        link: fds.add(link),
        connection: image.link.into(),
    };
    let diff = image.diff.as_ref();
    let diff = diff.map(|diff| reopen("memory layer", diff)).transpose()?;
    let spec = ResetSpec {
        state,
        delta_layer: diff.map(|diff| fds.add(diff)),
        devices: vec![
            DeviceReset::Vsock(vsock),
            DeviceReset::Block { parent },
            DeviceReset::Rng,
        ],
    };
    let reset = timeout(RESET_TIMEOUT, machine.reset(spec, fds.into())).await;
    reset.unwrap_or(Err(NotReset::Late(RESET_TIMEOUT)))
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

fn file(launcher: &Launcher) -> Result<File, ImageError> {
    let made = files::unnamed(&launcher.layer_dir).map(File::from);
    made.map_err(|source| ImageError::File {
        path: launcher.layer_dir.clone(),
        source,
    })
}

/// [`Basis::flatten`], away from the runtime.
///
/// # Errors
/// [`ImageError::Memory`].
pub async fn flatten(pages: u64, layers: Vec<Arc<File>>) -> Result<Arc<Basis>, ImageError> {
    let work = move || Ok(Arc::new(Basis::flatten(pages, layers)?));
    let work = tokio::task::spawn_blocking(work);
    work.await.map_err(|_| ImageError::GivenUp)?
}
