//! The memory of snapshots.
//!
//! ```text
//!  layer files, newest first ──merge──> base memory (sealed memfd, zero pages are holes)
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
//!
//! ```
//! use snapshot_memory::BaseMemory;
//!
//! // Of no layers, a memory of zeros: nothing of it is resident.
//! let memory = BaseMemory::merge_layers(256, &[])?;
//! assert_eq!(memory.resident_bytes()?, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod base_memory;
mod dirty;
mod error;
pub mod fuzz;
mod huge;
mod layer_file;
pub mod pager;
mod touch_tracking;
mod uffd;
mod working_set;
mod write_tracking;
mod writer;

pub use base_memory::BaseMemory;
pub use dirty::{PageRange, Pagemap, subtract};
pub use error::MemoryError;
pub use huge::HUGE_PAGE;
pub use layer_file::LayerFile;
pub use touch_tracking::TouchTracking;
pub use working_set::{PAGES_VERSION, TOUCHED, WRITTEN, WorkingSet, encode_pages};
pub use write_tracking::WriteTracking;
pub use writer::{LayerWriter, write_layer};
