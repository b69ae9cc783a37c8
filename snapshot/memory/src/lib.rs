//! The memory of snapshots.
//!
//! ```text
//!  layer files, newest first ──flatten──> golden file (sealed memfd, zero pages are holes)
//!                                            │ mapped MAP_PRIVATE by every clone: what is only
//!                                            │ read is one page for all, a write copies 4 KiB
//!                                            v
//!  layer file <──write── dirty set <──scan── a clone's own mapping
//! ```
//!
//! The dirty set costs nothing while the guest runs: a page of a private mapping is dirty exactly
//! when it is no longer the file's, and the kernel's page tables know that. One `PAGEMAP_SCAN` call
//! (Linux 6.7) returns it as ranges; no write protection, no dirty log, no second bookkeeping that
//! could go stale.
//!
//! **Architecture invariant:** knows nothing of KVM, of sandboxes, or of where files come from.

mod dirty;
mod error;
mod exact;
mod golden;
mod huge;
mod layer;
pub mod pager;
mod rewritten;
mod uffd;
mod working_set;
mod writer;

pub use dirty::{Pagemap, Range, outside};
pub use error::MemoryError;
pub use exact::Exact;
pub use golden::Golden;
pub use huge::HUGE;
pub use layer::Layer;
pub use rewritten::Rewritten;
pub use working_set::{PAGES_VERSION, TOUCHED, WRITTEN, WorkingSet, encode_pages};
pub use writer::{LayerWriter, write_layer};
