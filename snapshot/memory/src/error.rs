//! Why memory could not be saved or restored.

use snapshot_format::FormatError;
use std::io;

/// What was tried, with the values.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A system call failed.
    #[error("{what} ({with})")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which values.
        with: String,
        /// Why not.
        source: io::Error,
    },
    /// The layer file is not one.
    #[error("A memory layer is refused")]
    Format(#[from] FormatError),
    /// Layers of different machines.
    #[error("A layer of {found} pages in a chain for {wanted} pages")]
    Size {
        /// The layer's.
        found: u64,
        /// The chain's.
        wanted: u64,
    },
}

pub(crate) fn io(
    what: &'static str,
    with: impl Into<String>,
) -> impl FnOnce(io::Error) -> MemoryError {
    let with = with.into();
    move |source| MemoryError::Io { what, with, source }
}
