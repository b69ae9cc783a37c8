//! Why the store could not do it.

use snapshot_format::{Digest, FormatError};
use std::io;
use std::path::PathBuf;

/// What was tried, and where.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried, a gerund.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process has the store open.
    #[error(
        "The store {} is in use by another process: stop it, or use another folder",
        .0.display()
    )]
    InUse(PathBuf),
    /// There is no such snapshot.
    #[error("No snapshot {0:?}")]
    NoSnapshot(String),
    /// The name is taken.
    #[error("Snapshot {0:?} exists already")]
    Exists(String),
    /// A blob that a manifest names is not there, or has another size.
    #[error("Blob {digest} is {found}, its manifest says {wanted} bytes: the snapshot is damaged")]
    Blob {
        /// Its name.
        digest: Digest,
        /// What is there.
        found: String,
        /// The size it should have.
        wanted: u64,
    },
    /// A blob's bytes are not what its name says.
    #[error("Blob {wanted} has the digest {found}: the snapshot is damaged")]
    Digest {
        /// Its name.
        wanted: Digest,
        /// The digest of its bytes.
        found: Digest,
    },
    /// The manifest is not one.
    #[error("The manifest of snapshot {id:?} is refused")]
    Format {
        /// Whose.
        id: String,
        /// Why.
        source: FormatError,
    },
    /// A name that is none.
    #[error("{0:?} is not 1 to 64 characters of [a-z0-9-]")]
    Name(String),
}

impl StoreError {
    /// Whether the disk is full, which the caller may mend.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// For `map_err`: names the action and the path.
pub(crate) fn io(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.into();
    move |source| StoreError::Io {
        action,
        path,
        source,
    }
}
