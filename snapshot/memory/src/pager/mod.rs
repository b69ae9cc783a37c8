//! Memory that is not resident: a process that serves it to many machines, page by page.
//!
//! ```text
//!  service ──Serve: socket, layer files──> pager ──one thread a machine──┐
//!                                                                        │ checked bytes
//!  machine: anonymous memory ──Attach: userfaultfd, where it lies──> socket ──> Ready … Done
//! ```
//!
//! Guest memory is anonymous and private. Every run of pages that a layer has data for is
//! registered with userfaultfd: who touches a page there waits until the pager has put it in place.
//! What no layer has is not registered: the kernel's zeros are right. The pager answers faults
//! first, a neighbourhood at a time; fetches what the machine is known to use, in big batches; then
//! streams in the rest. When all is there it says Done and forgets the machine.
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
//! layers ([`crate::Pagemap::written_ranges`]). For that the memory stays registered after Done; a
//! fault can then only come of a discard, and [`LazyMemory::serve_discards`] answers it with zeros.

mod client;
mod error;
pub(crate) mod fuzz;
mod layer_chain;
mod machine;
mod message;
mod server;
mod uffd;

pub use client::{LazyMemory, PagingEnd, check};
pub use error::PagerError;
pub use message::{MAX_LAYERS, PagingJob, send_job};
pub use server::{MAX_MACHINES, serve};
