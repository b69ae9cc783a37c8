//! Memory that is not resident: a process that serves it to many machines, page by page.
//!
//! ```text
//!  service ──Serve: socket, layer files──> pager ──one thread a machine──┐
//!                                                                        │ checked bytes
//!  machine: anonymous memory ──Attach: userfaultfd, where it lies──> socket ──> Ready … Done
//! ```
//!
//! Guest memory is anonymous and private. Every run of pages that a layer has data for is registered
//! with userfaultfd: who touches a page there waits until the pager has put it in place. What no layer
//! has is not registered: the kernel's zeros are right. The pager answers faults first, a neighbourhood
//! at a time; fetches what the machine is known to use, in big batches; then streams in the rest. When
//! all is there it says Done and forgets the machine.
//!
//! | what could go wrong | what is done |
//! |---|---|
//! | a layer has changed since it was written | every page is checked before it reaches a guest; `Failed` |
//! | the pager dies | its end of the socket closes; the machine holds its own descriptor of the userfaultfd, so that nobody sees zeros for data; whoever watches the socket ends it |
//! | the machine dies | the socket closes; the thread and all it holds go |
//! | a page is there already (`EEXIST`) | who waits for it is woken all the same: its wait may have begun after the page came |
//! | memory is being discarded (`EAGAIN`) | all events are read, then it is tried again; what was discarded is zero from then on |
//! | a page faults that was served once | it is served again: only the kernel knows what is mapped |
//!
//! Pages arrive write-protected without a handler (`UFFD_FEATURE_WP_ASYNC`): the kernel takes the
//! protection away at the first write and the page tables then say exactly what differs from the
//! layers ([`crate::Pagemap::written_ranges`]). For that the memory stays registered after Done; a fault
//! can then only come of a discard, and [`LazyMemory::serve_discards`] answers it with zeros.

mod client;
mod layer_chain;
mod machine;
mod message;
mod server;
mod uffd;

pub use client::{LazyMemory, PagingEnd, check};
pub use message::{MAX_LAYERS, PagingJob, send_job};
pub use server::{MAX_MACHINES, serve};

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
    /// Words that nobody says.
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
