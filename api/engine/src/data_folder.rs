//! The data folder: one server at a time, and nothing left over from the one before but what was
//! saved on purpose.

use crate::machine::pidfile;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a server that was killed may take to be gone.
const LAST_BREATH: Duration = Duration::from_secs(5);

/// The locked data folder. The lock goes with this value, also when the process is killed.
#[derive(Debug)]
pub struct DataFolder {
    layers: PathBuf,
    machines: PathBuf,
    snapshots: PathBuf,
    _lock: File,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataFolderError {
    /// A file operation failed.
    #[error("Cannot use the data folder {path}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another server has it, and has not ended within 5 s.
    #[error("The data folder {0} is used by another server: stop it or set another data_dir")]
    Taken(PathBuf),
}

impl DataFolder {
    /// Makes the folder if needed, locks it (which may take seconds, see
    /// [`DataFolderError::Taken`]), and removes what a crashed server left. Its virtual machines
    /// have most likely ended by themselves, as their control sockets closed with it; those that
    /// have not are killed.
    ///
    /// # Errors
    /// [`DataFolderError::Taken`], or the file system's error.
    pub fn open(dir: &Path) -> Result<Self, DataFolderError> {
        let failed = |source: io::Error| DataFolderError::Io {
            path: dir.to_owned(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let lock = File::create(dir.join("lock")).map_err(failed)?;
        if !taken_over(&lock).map_err(|error| failed(error.into()))? {
            return Err(DataFolderError::Taken(dir.to_owned()));
        }
        let (layers, machines) = (dir.join("layers"), dir.join("machines"));
        std::fs::create_dir_all(&machines).map_err(failed)?;
        let killed = pidfile::end_leftovers(&machines).map_err(failed)?;
        if killed > 0 {
            tracing::warn!(killed, "VM processes of an earlier server were still there");
        }
        for dir in [&layers, &machines] {
            match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            std::fs::create_dir(dir).map_err(failed)?;
        }
        Ok(Self {
            layers,
            machines,
            snapshots: dir.join("snapshots"),
            _lock: lock,
        })
    }

    /// Where running VM processes are noted.
    #[must_use]
    pub fn machines(&self) -> &Path {
        &self.machines
    }

    /// Where saved machines are kept: the one folder that outlives the server.
    #[must_use]
    pub fn snapshots(&self) -> &Path {
        &self.snapshots
    }

    /// Where private disk layers are made.
    #[must_use]
    pub fn layers(&self) -> &Path {
        &self.layers
    }
}

/// Takes the lock, waiting for a server that is just ending: one that was killed keeps it until the
/// kernel has taken the process apart. False: somebody else has it and lives on.
fn taken_over(lock: &File) -> rustix::io::Result<bool> {
    let begin = Instant::now();
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if begin.elapsed() > LAST_BREATH => return Ok(false),
            // The kernel tells nobody whose wait has an end.
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_server_that_is_just_ending_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataFolder::open(dir.path()).unwrap();
        let let_go = Arc::new(AtomicBool::new(false));
        let ending = std::thread::spawn({
            let let_go = Arc::clone(&let_go);
            move || {
                std::thread::sleep(Duration::from_millis(200));
                let_go.store(true, Ordering::Release);
                drop(first);
            }
        });
        DataFolder::open(dir.path()).unwrap();
        assert!(let_go.load(Ordering::Acquire), "it had the lock until then");
        ending.join().unwrap();
    }

    #[test]
    fn one_server_a_folder_and_a_clean_start() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataFolder::open(dir.path()).unwrap();
        std::fs::write(first.layers().join("layer-x"), "left over").unwrap();
        assert!(matches!(
            DataFolder::open(dir.path()),
            Err(DataFolderError::Taken(_))
        ));
        drop(first);
        let second = DataFolder::open(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(second.layers()).unwrap().count(), 0);
    }
}
