//! Why a machine's memory cannot be served.

use crate::error::MemoryError;

/// Why a machine is served no more.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// A layer cannot be read, or is not what was written.
    #[error("Layer {number} of {count} is refused")]
    Layer {
        /// Its number, 0 is the newest.
        number: usize,
        /// Of how many.
        count: usize,
        /// Why.
        source: MemoryError,
    },
    /// A message that is not one.
    #[error("A message to or from the pager is refused: {0}")]
    Message(String),
    /// A system call failed.
    #[error("{what} ({with})")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which values.
        with: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The machine is gone, which is no fault.
    #[error("The machine is gone")]
    Gone,
    /// The pager said why it gave up.
    #[error("The pager gave up: {0}")]
    GaveUp(String),
}

pub(crate) fn io<E: Into<std::io::Error>>(
    what: &'static str,
    with: impl Into<String>,
) -> impl FnOnce(E) -> PagerError {
    let with = with.into();
    move |source| PagerError::Io {
        what,
        with,
        source: source.into(),
    }
}
