//! The targets: what reads a store's files, and what the pager and its peers say.

use snapshot_format::fuzz::{
    fuzz_layer_index, fuzz_layer_sums, fuzz_manifest, fuzz_sections, layer_file_of,
};
use snapshot_memory::fuzz::{
    fuzz_attach_request, fuzz_layer_chain, fuzz_paging_messages, fuzz_working_set,
};
use std::fs::File;
use std::io::Write;

/// A fuzz target: its name, which is its corpus' too, and what is run.
pub(crate) type Target = (&'static str, fn(&[u8]));

pub(crate) const TARGETS: &[Target] = &[
    ("sections", fuzz_sections),
    ("layer_index", fuzz_layer_index),
    ("layer_sums", fuzz_layer_sums),
    ("manifest", fuzz_manifest),
    ("attach_request", fuzz_attach_request),
    ("paging_messages", fuzz_paging_messages),
    ("layer_chain", fuzz_layer_chain),
    ("working_set", fuzz_working_set),
    ("disk_layer", fuzz_disk_layer),
    ("snapshot_id", fuzz_snapshot_id),
];

/// A stored disk layer, unpacked to a flat one.
fn fuzz_disk_layer(bytes: &[u8]) {
    let Some((&blocks, bytes)) = bytes.split_first() else {
        return;
    };
    let (units, whole) = layer_file_of(bytes);
    // A file without names, and one of a memory, with holes where nothing is written.
    let (mut layer, flat) = (memory_file(), memory_file());
    layer.write_all(&whole).expect("a file in memory");
    let size = (units - u64::from(blocks & 1)) * snapshot_format::UNIT;
    let unpacked = snapshot_store::unpack(&layer, size, &flat);
    if unpacked.is_ok() {
        let mut packed = Vec::new();
        let index = snapshot_store::pack(&flat, size, &mut packed);
        assert!(index.is_ok_and(|index| index.units() == units));
    }
}

fn memory_file() -> File {
    tempfile::tempfile_in("/dev/shm").expect("a file in memory")
}

/// A name that a client gives a snapshot.
fn fuzz_snapshot_id(bytes: &[u8]) {
    let name = String::from_utf8_lossy(bytes);
    if let Ok(id) = snapshot_store::SnapshotId::new(&name) {
        assert!(id.as_str() == name && !name.contains(['/', '.', '\0']));
    }
}
