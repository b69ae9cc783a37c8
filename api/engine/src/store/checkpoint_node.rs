//! One checkpoint: where it is stored, and what is known of it without loading it.

use crate::facts::KeptState;
use crate::process::ProcessRecord;
use jiff::Timestamp;
use snapshot_format::BlobRef;
use snapshot_store::SnapshotId;

/// Names of checkpoints in the store begin with it, followed by the sandbox's id.
pub const PREFIX: &str = "checkpoint-";
/// Most characters of a name.
pub(super) const MAX_NAME: usize = 64;

/// One stored checkpoint of a sandbox.
#[derive(Debug)]
pub struct CheckpointNode {
    /// `c` and 11 characters of `[a-z0-9]`.
    pub id: String,
    /// Its name in the store.
    pub stored: SnapshotId,
    /// The processes that clients had started.
    pub processes: Vec<ProcessRecord>,
    /// What is kept of it.
    pub kept: KeptState,
    pub(super) name: Option<String>,
    pub(super) created_at: Timestamp,
    /// Pages of memory that differ from what the sandbox began with, 4 KiB each.
    pub pages: u64,
    pub(super) blocks: u64,
    /// What is stored for it and not for its template.
    pub(super) blobs: Vec<BlobRef>,
}

/// What has been saved at a checkpoint.
#[derive(Debug)]
pub struct CheckpointFacts {
    /// What is kept of it.
    pub kept: KeptState,
    /// The processes that clients had started.
    pub processes: Vec<ProcessRecord>,
    /// Pages of memory that differ from what the sandbox began with, 4 KiB each.
    pub pages: u64,
    /// Blocks of the disk that differ from the template's, 4 KiB each.
    pub blocks: u64,
}
