//! The data folder: one server at a time, and nothing left over from the one before but what was
//! saved on purpose.

use crate::record;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The locked data folder. The lock goes with this value, also when the process is killed.
#[derive(Debug)]
pub struct StateDir {
    layers: PathBuf,
    machines: PathBuf,
    snapshots: PathBuf,
    _lock: File,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("Cannot use the data folder {path}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another server has it.
    #[error("The data folder {0} is used by another server: stop it or set another data_dir")]
    Taken(PathBuf),
}

impl StateDir {
    /// Makes the folder if needed, locks it, and removes what a crashed server left. Its virtual
    /// machines have most likely ended by themselves, as their control sockets closed with it;
    /// those that have not are killed.
    ///
    /// # Errors
    /// [`StateError::Taken`], or the file system's error.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let failed = |source: io::Error| StateError::Io {
            path: dir.to_owned(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let lock = File::create(dir.join("lock")).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StateError::Taken(dir.to_owned())),
            Err(error) => return Err(failed(error.into())),
        }
        let (layers, machines) = (dir.join("layers"), dir.join("machines"));
        std::fs::create_dir_all(&machines).map_err(failed)?;
        let killed = record::end_leftovers(&machines).map_err(failed)?;
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

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn one_server_a_folder_and_a_clean_start() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        std::fs::write(first.layers().join("layer-x"), "left over").unwrap();
        assert!(matches!(
            StateDir::open(dir.path()),
            Err(StateError::Taken(_))
        ));
        drop(first);
        let second = StateDir::open(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(second.layers()).unwrap().count(), 0);
    }
}
