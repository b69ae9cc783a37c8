//! What every scenario needs.

use super::saved::SavedGuest;
use std::path::PathBuf;

/// The VM process's program, the guest, and a place of our own.
pub(crate) struct BaselineContext {
    /// The program.
    pub(super) program: PathBuf,
    /// The guest, saved while it waits.
    pub(super) waiting: SavedGuest,
    /// Lives of the scenarios that look for growth, if not their definition's number.
    pub(super) cycles: Option<u64>,
    /// All files of the run but the records, so that what is left of them is seen.
    pub(super) scratch: tempfile::TempDir,
}
