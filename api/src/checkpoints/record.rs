//! How a checkpoint is written down, and how the tree is read back.

use super::{Inner, MAX_NAME, Node, PREFIX, Taken, Tree};
use crate::envd::KeptProcess;
use crate::sandbox::Kept;
use crate::vault::Header;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use snapshot_format::BlobRef;
use snapshot_store::{SnapshotId, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// The id of the moment at which a sandbox began, if that is stored with it. No client sees it.
const FIRST: &str = "first";
/// [`RecordV1::version`].
const VERSION: u32 = 1;
/// Most processes and ancestors that are read back.
const MAX_ENTRIES: usize = 4096;

/// The record as it lies on the disk, JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordV1 {
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
    processes: Vec<KeptProcess>,
}

/// A checkpoint that is written down and not yet stored.
#[derive(Debug)]
pub struct Coming {
    /// The record.
    pub record: Vec<u8>,
    node: Node,
}

impl Coming {
    /// Its name in the store.
    #[must_use]
    pub const fn stored(&self) -> &SnapshotId {
        &self.node.stored
    }

    /// It is stored in these blobs.
    #[must_use]
    pub fn node(self, blobs: Vec<BlobRef>) -> Node {
        Node { blobs, ..self.node }
    }
}

/// The moment at which a sandbox began, to be stored with it.
///
/// # Errors
/// When it does not encode.
pub fn first(
    sandbox_id: &str,
    kept: Kept,
    processes: Vec<KeptProcess>,
) -> Result<Coming, RecordError> {
    let taken = Taken {
        kept,
        processes,
        pages: 0,
        blocks: 0,
    };
    coming(sandbox_id, (FIRST, None), Vec::new(), taken)
}

pub(super) fn coming(
    sandbox_id: &str,
    (id, name): (&str, Option<String>),
    ancestors: Vec<String>,
    taken: Taken,
) -> Result<Coming, RecordError> {
    let now = Timestamp::now();
    // As exactly as it is written down.
    let created_at = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
    let record = RecordV1 {
        version: VERSION,
        id: id.to_owned(),
        sandbox_id: sandbox_id.to_owned(),
        name: name.clone(),
        ancestors,
        created_us: created_at.as_microsecond(),
        pages: taken.pages,
        blocks: taken.blocks,
        files_only: taken.kept == Kept::Files,
        processes: taken.processes.clone(),
    };
    Ok(Coming {
        record: serde_json::to_vec(&record)?,
        node: Node {
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
pub enum RecordError {
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

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// The trees that these stored records make, by the sandboxes' ids. What cannot be read is logged and
/// left alone.
#[must_use]
pub fn trees(headers: Vec<Header>) -> BTreeMap<String, Tree> {
    let mut found: BTreeMap<String, Vec<(Node, Vec<String>)>> = BTreeMap::new();
    for header in headers {
        match decode(&header) {
            Ok((sandbox_id, node, line)) => {
                found.entry(sandbox_id).or_default().push((node, line));
            }
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::error!(snapshot = %header.id, error, "a checkpoint is not there");
            }
        }
    }
    let tree = |(id, nodes)| (id, grow(nodes));
    found.into_iter().map(tree).collect()
}

fn grow(mut nodes: Vec<(Node, Vec<String>)>) -> Tree {
    nodes.sort_by_key(|(node, _)| node.created_at);
    let ids: BTreeSet<String> = nodes.iter().map(|(node, _)| node.id.clone()).collect();
    let mut inner = Inner::default();
    for (node, line) in nodes {
        let node = Arc::new(node);
        match &*node.id {
            FIRST => inner.first = Some(node),
            _ => {
                let parent = line.into_iter().find(|id| ids.contains(id));
                inner.nodes.push((node, parent));
            }
        }
    }
    Tree(Mutex::new(inner))
}

/// What is wrong with the record of a checkpoint.
///
/// # Errors
/// That.
pub fn readable(header: &Header) -> Result<(), String> {
    let decoded = decode(header);
    decoded
        .map(drop)
        .map_err(|error| crate::error::chain(&error))
}

/// Reads a record; what passes is a checkpoint that this server could have taken.
fn decode(header: &Header) -> Result<(String, Node, Vec<String>), RecordError> {
    let VersionOnly { version } = serde_json::from_slice(&header.record)?;
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    let record: RecordV1 = serde_json::from_slice(&header.record)?;
    if stored_name(&record.sandbox_id, &record.id)? != header.id {
        return Err(RecordError::Invalid("id"));
    }
    if record.processes.len().max(record.ancestors.len()) > MAX_ENTRIES {
        return Err(RecordError::Invalid("number of entries"));
    }
    if record.name.as_ref().is_some_and(|n| n.len() > MAX_NAME) {
        return Err(RecordError::Invalid("name"));
    }
    let created_at = Timestamp::from_microsecond(record.created_us);
    let node = Node {
        id: record.id,
        stored: header.id.clone(),
        processes: record.processes,
        kept: match record.files_only {
            true => Kept::Files,
            false => Kept::Memory,
        },
        name: record.name,
        created_at: created_at.map_err(|_| RecordError::Invalid("time"))?,
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
