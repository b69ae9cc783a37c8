//! The saved form of a disk: which blocks its layers hold. Their bytes are not part of it.

use super::map::{BLOCK, BlockMap};
use crate::state::InvalidState;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A block device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct BlockV1 {
    /// Bytes of the disk and of its image.
    size: u64,
    base_len: u64,
    /// The blocks that differ from the image: (blocks left out, blocks held), again and again.
    held: Vec<(u64, u64)>,
}

pub(super) fn save(map: &BlockMap, size: u64, base_len: u64) -> BlockV1 {
    let mut end = 0;
    let pair = |run: Range<u64>| {
        let pair = (run.start - end, run.end - run.start);
        end = run.end;
        pair
    };
    BlockV1 {
        size,
        base_len,
        held: map.held().map(pair).collect(),
    }
}

/// The blocks that are held, if they are of such a disk.
pub(super) fn check(
    saved: &BlockV1,
    size: u64,
    base_len: u64,
) -> Result<Vec<Range<u64>>, InvalidState> {
    if (saved.size, saved.base_len) != (size, base_len) {
        return Err(InvalidState(format!(
            "a disk of {} over an image of {} bytes, not of {size} over {base_len}",
            saved.size, saved.base_len
        )));
    }
    let blocks = size / BLOCK;
    let mut at = 0u64;
    let run = |&(skip, len): &(u64, u64)| {
        let start = at.checked_add(skip);
        let end = start.and_then(|start| start.checked_add(len));
        match (start, end) {
            (Some(start), Some(end)) if len > 0 && end <= blocks => {
                at = end;
                Ok(start..end)
            }
            _ => Err(InvalidState(format!(
                "{len} blocks {skip} after block {at} of {blocks}"
            ))),
        }
    };
    saved.held.iter().map(run).collect()
}
