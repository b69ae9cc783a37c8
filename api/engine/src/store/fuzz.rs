//! Fuzz entry point: any record, as the store may hold it after damage.

use crate::image::machine_image::MachineShape;
use crate::store::record::record_owner;
use crate::store::vault::StoredHeader;
use crate::store::{checkpoint_record, paused, snapshots};
use serde_json::Value;
use snapshot_store::SnapshotId;

/// Any bytes as each kind of record, stored under the name that they ask for.
pub fn fuzz_records(bytes: &[u8]) {
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let (id, sandbox) = (text("id"), text("sandbox_id"));
    let number = |key: &str| value[key].as_u64().unwrap_or(0);
    let shape = MachineShape {
        vcpus: u8::try_from(number("cpu_count")).unwrap_or(0),
        memory_mib: u32::try_from(number("memory_mb")).unwrap_or(0),
        disk_size: number("disk_size_mb").saturating_mul(1 << 20),
    };
    let header = |id: SnapshotId| StoredHeader {
        id,
        record: bytes.to_vec(),
        shape,
        blobs: Vec::new(),
    };
    let owner = record_owner(bytes).flatten();
    let checkpoint = format!("{}{sandbox}-{id}", crate::store::checkpoint_node::PREFIX);
    let read = [
        paused::stored_name(&id).map(|id| paused::readable(&header(id))),
        snapshots::stored_name(owner.as_ref(), &id).map(|id| snapshots::readable(&header(id))),
        SnapshotId::new(&checkpoint).map(|id| checkpoint_record::readable(&header(id))),
    ];
    let read = read.into_iter().flatten().filter(Result::is_ok).count();
    assert!(read <= 1, "one record is of {read} kinds");
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn damaged_records_are_survived() {
        let record = br#"{"version":1,"id":"a:default","sandbox_id":"ibox","base":"base"}"#;
        for end in 0..record.len() {
            fuzz_records(&record[..end]);
        }
    }
}
