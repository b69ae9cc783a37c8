//! A template's golden machine: booted once, warmed, saved at rest, and copied from then on.

use crate::config::Template;
use crate::launcher::{Begin, LaunchError, Launched, Launcher, Plan, Timings, files};
use crate::machine::Machine;
use crate::name::Name;
use crate::warm::{WarmError, warm};
use control::{SaveSpec, Saved};
use snapshot_memory::{Layer, MemoryError};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

/// How long the guest is left alone before it is saved, so that nothing is under way.
const REST: Duration = Duration::from_millis(200);
/// How long saving a machine may take.
const SAVE_TIMEOUT: Duration = Duration::from_secs(120);
/// A machine at rest that can be copied any number of times. Its files have no names: they go with
/// this value and with the copies that hold them.
#[derive(Debug)]
pub struct Golden {
    memory: snapshot_memory::Golden,
    state: File,
    disk: File,
    disk_size: u64,
    last_stream: u32,
}

/// Why a template has no golden machine.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// It did not start.
    #[error("It did not start")]
    Launch(#[from] LaunchError),
    /// It could not be warmed.
    #[error("It could not be warmed")]
    Warm(#[from] WarmError),
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

/// What a machine was saved in.
#[derive(Debug)]
pub struct SavedFiles {
    /// The layer of its memory.
    pub memory: File,
    /// The section file.
    pub state: File,
    /// The flat layer of its root disk.
    pub disk: File,
    /// Figures.
    pub saved: Saved,
}

impl Golden {
    /// Boots, warms and saves a machine. `slot` is given back when its process is reaped.
    ///
    /// # Errors
    /// The first step that failed; nothing is left of the attempt.
    pub async fn build(
        launcher: &Launcher,
        template: &Template,
        name: Name,
        slot: OwnedSemaphorePermit,
    ) -> Result<Self, GoldenError> {
        let (begin, id) = (Instant::now(), name.to_string());
        let plan = Plan {
            name,
            template: template.clone(),
            begin: Begin::Boot,
            slot,
        };
        let launched = launcher.launch(plan, &mut Timings::default()).await?;
        let Launched {
            mut machine,
            link,
            disk_size,
        } = launched;
        let booted = begin.elapsed();
        let saved = match warm(&link, template).await {
            Ok(()) => {
                tokio::time::sleep(REST).await;
                save(launcher, &machine).await
            }
            Err(error) => Err(error.into()),
        };
        let last_stream = link.last_stream();
        if saved.is_err() {
            machine.give_up(&id).await;
        } else {
            machine.stop().await;
        }
        let files = saved?;
        let figures = files.saved;
        let pages = u64::from(template.memory_mb) << 8;
        let memory = flatten(pages, files.memory).await?;
        tracing::info!(
            template = template.name,
            ?booted,
            total = ?begin.elapsed(),
            memory_kib = memory.resident_bytes().unwrap_or(0) >> 10,
            disk_kib = figures.disk_blocks * 4,
            "template ready to be copied"
        );
        Ok(Self {
            memory,
            state: files.state,
            disk: files.disk,
            disk_size,
            last_stream,
        })
    }

    /// All of its memory, sealed.
    #[must_use]
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// Its section file.
    #[must_use]
    pub fn state(&self) -> BorrowedFd<'_> {
        self.state.as_fd()
    }

    /// The flat layer of its root disk, over the template's image.
    #[must_use]
    pub fn disk(&self) -> BorrowedFd<'_> {
        self.disk.as_fd()
    }

    /// Its root disk as the guest sees it, bytes.
    #[must_use]
    pub const fn disk_size(&self) -> u64 {
        self.disk_size
    }

    /// The last stream that was opened on the agent's connection; a copy goes on after it.
    #[must_use]
    pub const fn last_stream(&self) -> u32 {
        self.last_stream
    }
}

/// Saves a machine into files without names. It stands still when this returns.
///
/// # Errors
/// [`GoldenError::File`] or [`GoldenError::Save`].
pub async fn save(launcher: &Launcher, machine: &Machine) -> Result<SavedFiles, GoldenError> {
    let file = || {
        let made = files::unnamed(&launcher.layer_dir).map(File::from);
        made.map_err(|source| GoldenError::File {
            path: launcher.layer_dir.clone(),
            source,
        })
    };
    let (memory, state, disk) = (file()?, file()?, file()?);
    let spec = SaveSpec {
        memory: 0,
        state: 1,
        disks: vec![2],
    };
    let copy = |file: &File| {
        let again = file.try_clone();
        again.map_err(|error| GoldenError::Save(format!("a descriptor was not copied: {error}")))
    };
    let fds = vec![
        copy(&memory)?.into(),
        copy(&state)?.into(),
        copy(&disk)?.into(),
    ];
    match timeout(SAVE_TIMEOUT, machine.save(spec, fds)).await {
        Ok(Ok(saved)) => Ok(SavedFiles {
            memory,
            state,
            disk,
            saved,
        }),
        Ok(Err(why)) => Err(GoldenError::Save(why)),
        Err(_) => Err(GoldenError::Save(format!(
            "it took more than {} s",
            SAVE_TIMEOUT.as_secs()
        ))),
    }
}

async fn flatten(pages: u64, layer: File) -> Result<snapshot_memory::Golden, GoldenError> {
    let work = move || {
        let layer = Layer::open(layer)?;
        Ok(snapshot_memory::Golden::flatten(pages, &[layer])?)
    };
    let work = tokio::task::spawn_blocking(work);
    work.await.map_err(|_| GoldenError::GivenUp)?
}
