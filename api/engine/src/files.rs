//! The files a machine is made of, and how they are handed to its process.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A file that a machine is made of and that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A program or image is missing.
    #[error("Cannot open {what} {path}: {source}")]
    Open {
        /// Which kind of file.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of a saved machine cannot be opened once more.
    #[error("Cannot open a snapshot's {what} again: {source}")]
    Reopen {
        /// Which of its files.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A file of its own for each machine, so that no two share a position.
pub(crate) fn open(what: &'static str, path: &Path) -> Result<File, FileError> {
    File::open(path).map_err(|source| FileError::Open {
        what,
        path: path.to_owned(),
        source,
    })
}

/// The same for a file that has no name: reading only, with a position of its own.
///
/// # Errors
/// [`FileError::Reopen`].
pub(crate) fn reopen(what: &'static str, file: impl AsFd) -> Result<File, FileError> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    File::open(path).map_err(|source| FileError::Reopen { what, source })
}

/// An empty file without a name, which goes with its last descriptor.
pub(crate) fn unnamed(dir: &Path) -> io::Result<OwnedFd> {
    let access = OFlags::RDWR | OFlags::CLOEXEC;
    let owner = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(dir, access | OFlags::TMPFILE, owner) {
        Ok(fd) => Ok(fd),
        // The file system has no unnamed files: make one and take its name away.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
            let path = dir.join(format!("layer-{}", crate::ids::random_name(16)?));
            let fd = rustix::fs::open(&path, access | OFlags::CREATE | OFlags::EXCL, owner)?;
            rustix::fs::unlink(&path)?;
            Ok(fd)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_layer_has_no_name_and_can_be_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let layer = unnamed(dir.path()).unwrap();
        rustix::io::pwrite(&layer, b"x", 8192).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        for _ in 0..2 {
            let mut bytes = Vec::new();
            let mut again = reopen("layer", &layer).unwrap();
            again.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len(), 8193, "each from its own beginning");
            rustix::io::pwrite(&again, b"y", 0).unwrap_err();
        }
    }
}
