//! Stores as each version of the format wrote them, in `goldens/`: this version's loads and is
//! still written so, byte for byte; older ones, newer ones and damaged ones are refused in words.
//!
//! When a version is raised, keep the folder of the one before and make the new one's:
//!
//! ```text
//! cargo test -p snapshot-store --test goldens -- --ignored make
//! ```

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

use snapshot_format::{
    BaseImage, BlobRef, Extent, FormatError, GuestShape, LayerIndex, LayerSums, MANIFEST_VERSION,
    Manifest, Section, SectionFile, SectionName, UNIT, unit_sum,
};
use snapshot_store::{SnapshotId, SnapshotStore, StoreError};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const PAGE: [u8; 4096] = [1; 4096];
const LAST: [u8; 4096] = [2; 4096];

fn golden(version: u32) -> PathBuf {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    all.join(format!("v{version}"))
}

fn id() -> SnapshotId {
    SnapshotId::new("golden").unwrap()
}

/// The bytes of what a snapshot is made of: state, memory, disk, record.
fn parts() -> [Vec<u8>; 4] {
    let section = |name, payload| Section {
        name: SectionName::new(name).unwrap(),
        version: 3,
        payload,
    };
    let state = [section("vcpu.0", b"registers")];
    let index = LayerIndex::new(64, [(3, 1, true), (8, 2, false), (60, 1, true)]).unwrap();
    let sums = LayerSums::new([PAGE, LAST].iter().map(|p| unit_sum(p)).collect());
    [
        SectionFile::encode(&state).unwrap(),
        layer(&index, &[&PAGE[..], &LAST].concat(), &sums.encode()),
        layer(&LayerIndex::new(16, []).unwrap(), &[], &[]),
        b"{}".to_vec(),
    ]
}

fn layer(index: &LayerIndex, data: &[u8], sums: &[u8]) -> Vec<u8> {
    let (header, table) = index.encode();
    [&header[..], data, &table, sums].concat()
}

/// The index of a layer file, and its sums if it has any.
fn index(layer: &[u8]) -> Result<(LayerIndex, &[u8]), FormatError> {
    let place = usize::try_from(LayerIndex::table(layer)?.0).unwrap();
    let table = layer.get(place..).unwrap_or_default();
    let index = LayerIndex::parse(layer, table)?;
    let sums = usize::try_from(index.file_len()).unwrap();
    Ok((index, &layer[sums..]))
}

/// Writes the golden snapshot as this version does.
fn write(place: &Path) {
    let store = SnapshotStore::open(place).unwrap();
    let put = |bytes: Vec<u8>| {
        let mut writer = store.write_blob().unwrap();
        writer.write_all(&bytes).unwrap();
        writer.finish().unwrap()
    };
    let stored = parts().map(put);
    let [machine, memory, disk, record] = stored.each_ref().map(|(blob, _)| blob.clone());
    let manifest = Manifest {
        manifest_version: MANIFEST_VERSION,
        wire_version: 1,
        guest: GuestShape {
            vcpus: 1,
            memory_mib: 1,
            disk_size: 16 * UNIT,
        },
        machine,
        memory: vec![memory],
        disk: vec![disk],
        base: BaseImage {
            name: "base".into(),
            size: 16 * UNIT,
            modified_ns: 1,
        },
        record: Some(record),
    };
    store.publish(&id(), &manifest).unwrap();
}

/// The blobs and manifests of a store by their names.
fn files(place: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for folder in ["blobs", "manifests"] {
        for entry in std::fs::read_dir(place.join(folder)).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{folder}/{}", entry.file_name().display());
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    files
}

/// A golden store in a place where it may be changed.
fn copy(version: u32) -> (TempDir, SnapshotStore) {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files(&golden(version)) {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let store = SnapshotStore::open(dir.path()).unwrap();
    (dir, store)
}

fn manifest(dir: &TempDir) -> PathBuf {
    dir.path().join("manifests/golden")
}

/// What is said when the snapshot is loaded.
fn said(store: &SnapshotStore) -> String {
    let refused = store.load(&id()).map(drop).unwrap_err();
    format!("{refused}: {}", refused.source().unwrap())
}

#[test]
#[ignore = "writes into the tree"]
fn make() {
    let place = golden(MANIFEST_VERSION);
    write(&place);
    std::fs::remove_file(place.join("lock")).unwrap();
    std::fs::remove_dir(place.join("tmp")).unwrap();
}

#[test]
fn this_version_is_still_written_so() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    assert_eq!(files(dir.path()), files(&golden(MANIFEST_VERSION)));
}

#[test]
fn this_version_loads() {
    let (_dir, store) = copy(MANIFEST_VERSION);
    let (manifest, _lease) = store.load(&id()).unwrap();
    let read = |blob: &BlobRef| {
        let mut bytes = Vec::new();
        let mut file = store.open_blob(blob).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let state = read(&manifest.machine);
    let state = SectionFile::parse(&state).unwrap();
    assert_eq!(state.get("vcpu.0", 3), Ok(&b"registers"[..]));
    let layer = read(&manifest.memory[0]);
    let (found, sums) = index(&layer).unwrap();
    let at = |first, units, slot| Extent { first, units, slot };
    assert_eq!(
        (found.units(), found.extents()),
        (
            64,
            &[at(3, 1, Some(0)), at(8, 2, None), at(60, 1, Some(1))][..]
        )
    );
    assert_eq!(
        (&layer[4096..8192], &layer[8192..12288]),
        (&PAGE[..], &LAST[..])
    );
    let sums = LayerSums::parse(sums, &found).unwrap();
    sums.check(0, &PAGE).unwrap();
    sums.check(1, &LAST).unwrap();
    sums.check(1, &PAGE).unwrap_err();
    let disk = read(&manifest.disk[0]);
    let (disk, _) = index(&disk).unwrap();
    assert_eq!((disk.units(), disk.extents()), (16, &[][..]));
    assert_eq!(read(manifest.record.as_ref().unwrap()), b"{}");
}

#[test]
fn older_ones_are_refused() {
    for version in 1..MANIFEST_VERSION {
        let (dir, store) = copy(version);
        let words = said(&store);
        let wanted = format!(
            "A manifest of version {version}; this program reads version {MANIFEST_VERSION}: \
             an older program wrote it"
        );
        assert!(words.contains(&wanted), "{words}");
        // It may name any blob, so all of them stay, until it goes.
        store.collect_garbage().unwrap_err();
        store.remove(&id()).unwrap();
        assert_eq!(store.collect_garbage().unwrap().blobs, 4);
        drop((dir, store));
    }
}

/// Whoever only changes the number does not get the bytes believed: their names are other hashes.
#[test]
fn an_older_one_is_not_taken_for_a_newer() {
    let (dir, store) = copy(1);
    let text = std::fs::read_to_string(manifest(&dir)).unwrap();
    let text = text.replace("\"manifest_version\": 1", "\"manifest_version\": 2");
    std::fs::write(manifest(&dir), text).unwrap();
    let (manifest, _lease) = store.load(&id()).unwrap();
    for blob in [&manifest.machine, &manifest.memory[0], &manifest.disk[0]] {
        let refused = store.open_blob(blob).map(drop).unwrap_err();
        assert!(matches!(refused, StoreError::Digest { .. }), "{refused}");
    }
}

#[test]
fn newer_and_damaged_manifests_are_refused() {
    let (dir, store) = copy(MANIFEST_VERSION);
    let whole = std::fs::read(manifest(&dir)).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let number = format!("\"manifest_version\": {MANIFEST_VERSION}");
    let newer = text.replace(&number, "\"manifest_version\": 1000, \"colour\": 1");
    let unknown = text.replace(&number, &format!("{number}, \"colour\": 1"));
    for (bytes, words) in [
        (newer.into_bytes(), "update this program"),
        (unknown.into_bytes(), "unknown field `colour`"),
        (whole[..whole.len() / 2].to_vec(), "does not decode"),
        (Vec::new(), "does not decode"),
        (vec![b' '; 1 << 20], "at most 65536 is allowed"),
    ] {
        std::fs::write(manifest(&dir), bytes).unwrap();
        let said = said(&store);
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn damaged_blobs_are_refused() {
    let (dir, store) = copy(MANIFEST_VERSION);
    let (manifest, _lease) = store.load(&id()).unwrap();
    for blob in [&manifest.machine, &manifest.memory[0], &manifest.disk[0]] {
        let path = dir.path().join("blobs").join(blob.digest.to_string());
        let whole = std::fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for (bytes, words) in [
            (&flipped[..], "has the digest"),
            (&whole[1..], "bytes long, its manifest says"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let said = store.open_blob(blob).unwrap_err().to_string();
            assert!(said.contains(words) && said.contains("damaged"), "{said}");
        }
    }
}

/// The decoders' own words, for files that come from elsewhere than a store.
#[test]
fn newer_and_damaged_files_are_refused_by_their_decoders() {
    let [state, layer, ..] = parts();
    let (found, _) = index(&layer).unwrap();
    let changed = |bytes: &[u8], at: usize, to: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = to;
        bytes
    };
    let of_state = |bytes: Vec<u8>| SectionFile::parse(&bytes).unwrap_err().to_string();
    let of_layer = |bytes: Vec<u8>| index(&bytes).unwrap_err().to_string();
    let of_sums = |bytes: &[u8]| LayerSums::parse(bytes, &found).unwrap_err().to_string();
    let (end, sums) = (state.len() - 1, 12288 + 3 * 16);
    for (said, words) in [
        (
            of_state(changed(&state, 8, 99)),
            "section file of version 99; this program reads version 1: update",
        ),
        (
            of_state(changed(&state, 8, 0)),
            "section file of version 0; this program reads version 1: an older",
        ),
        (
            of_state(changed(&state, end, 0)),
            "Corrupt: the checksum of section \"vcpu.0\"",
        ),
        (
            of_state(state[..end].to_vec()),
            "Truncated: section needs 9 bytes, 8 are there",
        ),
        (of_state(layer.clone()), "Not a section file"),
        (
            of_layer(changed(&layer, 8, 99)),
            "layer file of version 99; this program reads version 2: update",
        ),
        (
            of_layer(changed(&layer, 12290, 9)),
            "Corrupt: the checksum of the index of the layer file",
        ),
        (
            of_layer(layer[..12300].to_vec()),
            "Truncated: index of the layer file needs 48 bytes, 12",
        ),
        (of_layer(state), "Not a layer file"),
        (
            of_sums(&changed(&layer, sums + 20, 0)[sums..]),
            "Corrupt: the checksum of the table",
        ),
        (
            of_sums(&layer[sums..sums + 25]),
            "Truncated: table of checksums",
        ),
    ] {
        assert!(said.contains(words), "{said}");
    }
}
