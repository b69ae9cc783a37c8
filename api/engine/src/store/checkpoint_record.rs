//! How a checkpoint is written down, and read back.

use crate::error::chain;
use crate::facts::KeptState;
use crate::process::{ProcessRecord, ProcessRecordV1};
use crate::store::checkpoint_node::{CheckpointFacts, CheckpointNode, MAX_NAME, PREFIX};
use crate::store::record::record_version;
use crate::store::vault::StoredHeader;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use snapshot_format::BlobRef;
use snapshot_store::{SnapshotId, StoreError};

/// The id of the restore point at which a sandbox began, if that is stored with it. No client sees
/// it.
pub(super) const FIRST: &str = "first";
/// [`CheckpointRecordV1::version`].
const VERSION: u32 = 1;
/// Most processes and ancestors that are read back.
const MAX_ENTRIES: usize = 4096;

/// The record as it lies on the disk, JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointRecordV1 {
    version: u32,
    id: String,
    sandbox_id: String,
    name: Option<String>,
    /// From its parent upwards.
    ancestors: Vec<String>,
    created_us: i64,
    pages: u64,
    blocks: u64,
    files_only: bool,
    processes: Vec<ProcessRecordV1>,
}

/// A checkpoint that is written down and not yet stored.
#[derive(Debug)]
pub struct PendingCheckpoint {
    /// The record.
    pub record: Vec<u8>,
    node: CheckpointNode,
}

impl PendingCheckpoint {
    /// Its name in the store.
    #[must_use]
    pub const fn stored(&self) -> &SnapshotId {
        &self.node.stored
    }

    /// It is stored in these blobs.
    #[must_use]
    pub fn node(self, blobs: Vec<BlobRef>) -> CheckpointNode {
        CheckpointNode { blobs, ..self.node }
    }
}

/// The restore point at which a sandbox began, to be stored with it.
///
/// # Errors
/// When it does not encode.
pub fn first(
    sandbox_id: &str,
    kept: KeptState,
    processes: Vec<ProcessRecord>,
) -> Result<PendingCheckpoint, CheckpointRecordError> {
    let taken = CheckpointFacts {
        kept,
        processes,
        pages: 0,
        blocks: 0,
    };
    pending(sandbox_id, (FIRST, None), Vec::new(), taken)
}

pub(super) fn pending(
    sandbox_id: &str,
    (id, name): (&str, Option<String>),
    ancestors: Vec<String>,
    taken: CheckpointFacts,
) -> Result<PendingCheckpoint, CheckpointRecordError> {
    let now = Timestamp::now();
    // As exactly as it is written down.
    let created_at = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
    let record = CheckpointRecordV1 {
        version: VERSION,
        id: id.to_owned(),
        sandbox_id: sandbox_id.to_owned(),
        name: name.clone(),
        ancestors,
        created_us: created_at.as_microsecond(),
        pages: taken.pages,
        blocks: taken.blocks,
        files_only: taken.kept == KeptState::Files,
        processes: taken.processes.iter().map(Into::into).collect(),
    };
    Ok(PendingCheckpoint {
        record: serde_json::to_vec(&record)?,
        node: CheckpointNode {
            id: id.to_owned(),
            stored: stored_name(sandbox_id, id)?,
            processes: taken.processes,
            kept: taken.kept,
            name,
            created_at,
            pages: taken.pages,
            blocks: taken.blocks,
            blobs: Vec::new(),
        },
    })
}

/// Why a record is refused.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointRecordError {
    /// It does not decode or encode.
    #[error("The record of a checkpoint is not valid JSON")]
    Json(#[from] serde_json::Error),
    /// It is of another version of this program.
    #[error("The record of a checkpoint has version {0}, this program reads {VERSION}")]
    Version(u32),
    /// It decodes and is wrong.
    #[error("The record of a checkpoint has a bad {0}")]
    Invalid(&'static str),
    /// Its name is none.
    #[error(transparent)]
    Name(#[from] StoreError),
}

/// What is wrong with the record of a checkpoint.
///
/// # Errors
/// That.
pub fn readable(header: &StoredHeader) -> Result<(), String> {
    let decoded = decode(header);
    decoded.map(drop).map_err(|error| chain(&error))
}

/// Reads a record; what passes is a checkpoint that this server could have taken.
pub(super) fn decode(
    header: &StoredHeader,
) -> Result<(String, CheckpointNode, Vec<String>), CheckpointRecordError> {
    let version = record_version(&header.record)?;
    if version != VERSION {
        return Err(CheckpointRecordError::Version(version));
    }
    let record: CheckpointRecordV1 = serde_json::from_slice(&header.record)?;
    if stored_name(&record.sandbox_id, &record.id)? != header.id {
        return Err(CheckpointRecordError::Invalid("id"));
    }
    if record.processes.len().max(record.ancestors.len()) > MAX_ENTRIES {
        return Err(CheckpointRecordError::Invalid("number of entries"));
    }
    if record.name.as_ref().is_some_and(|n| n.len() > MAX_NAME) {
        return Err(CheckpointRecordError::Invalid("name"));
    }
    let created_at = Timestamp::from_microsecond(record.created_us);
    let node = CheckpointNode {
        id: record.id,
        stored: header.id.clone(),
        processes: record.processes.into_iter().map(Into::into).collect(),
        kept: match record.files_only {
            true => KeptState::Files,
            false => KeptState::Memory,
        },
        name: record.name,
        created_at: created_at.map_err(|_| CheckpointRecordError::Invalid("time"))?,
        pages: record.pages,
        blocks: record.blocks,
        blobs: header.blobs.clone(),
    };
    Ok((record.sandbox_id, node, record.ancestors))
}

fn stored_name(sandbox_id: &str, id: &str) -> Result<SnapshotId, StoreError> {
    SnapshotId::new(&format!("{PREFIX}{sandbox_id}-{id}"))
}

/// The sandbox that a stored checkpoint of this name belongs to.
#[must_use]
pub fn owner(stored: &SnapshotId) -> Option<&str> {
    let rest = stored.as_str().strip_prefix(PREFIX)?;
    Some(rest.split_once('-')?.0)
}
