//! The store through its public surface: what it keeps, what it drops, and what damage it notices.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

use snapshot_format::{BaseImage, BlobRef, GuestShape, MANIFEST_VERSION, Manifest};
use snapshot_store::{BlobLease, CollectedBlobs, SnapshotId, SnapshotStore, StoreError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn open() -> (TempDir, SnapshotStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(dir.path()).unwrap();
    (dir, store)
}

/// As another process would. A child that a test beside this one is just starting holds all locks
/// for a moment.
fn reopen(dir: &TempDir) -> SnapshotStore {
    loop {
        match SnapshotStore::open(dir.path()) {
            Err(StoreError::InUse(_)) => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

fn put(store: &SnapshotStore, bytes: &[u8]) -> (BlobRef, BlobLease) {
    let mut writer = store.write_blob().unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn id(name: &str) -> SnapshotId {
    SnapshotId::new(name).unwrap()
}

fn manifest(machine: &BlobRef, memory: &[&BlobRef]) -> Manifest {
    Manifest {
        manifest_version: MANIFEST_VERSION,
        wire_version: 1,
        guest: GuestShape {
            vcpus: 1,
            memory_mib: 128,
            disk_size: 0,
        },
        machine: machine.clone(),
        memory: memory.iter().map(|&b| b.clone()).collect(),
        disk: Vec::new(),
        base: BaseImage {
            name: "test".into(),
            size: 0,
            modified_ns: 0,
        },
        record: None,
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    ["blobs", "manifests", "tmp"]
        .iter()
        .flat_map(|name| std::fs::read_dir(dir.join(name)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect()
}

#[test]
fn a_snapshot_survives_a_restart_and_its_parts_a_collection() {
    let (dir, store) = open();
    let (machine, a) = put(&store, b"machine");
    let (memory, b) = put(&store, b"memory");
    store
        .publish(&id("one"), &manifest(&machine, &[&memory]))
        .unwrap();
    drop((a, b, store));
    let store = reopen(&dir);
    assert_eq!(store.collect_garbage().unwrap(), CollectedBlobs::default());
    let (read, _lease) = store.load(&id("one")).unwrap();
    let mut text = String::new();
    store
        .open_blob(&read.memory[0])
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(
        (text.as_str(), store.list().unwrap()),
        ("memory", vec![id("one")])
    );
}

#[test]
fn what_is_used_is_kept_and_what_is_not_goes() {
    let (dir, store) = open();
    let (shared, a) = put(&store, b"shared");
    let (own, b) = put(&store, b"own");
    store
        .publish(&id("one"), &manifest(&shared, &[&own]))
        .unwrap();
    store
        .publish(&id("two"), &manifest(&shared, &[&shared]))
        .unwrap();
    drop((a, b));
    let (_, running) = store.load(&id("one")).unwrap();
    store.remove(&id("one")).unwrap();
    assert_eq!(
        store.collect_garbage().unwrap().blobs,
        0,
        "a clone of it still runs"
    );
    let second = running.clone();
    drop(running);
    assert_eq!(store.collect_garbage().unwrap().blobs, 0);
    drop(second);
    assert_eq!(
        store.collect_garbage().unwrap(),
        CollectedBlobs { blobs: 1, bytes: 3 }
    );
    store.remove(&id("two")).unwrap();
    assert_eq!(store.collect_garbage().unwrap().blobs, 1);
    assert!(files(dir.path()).is_empty());
    assert!(matches!(
        store.load(&id("two")),
        Err(StoreError::NoSnapshot(_))
    ));
}

#[test]
fn half_a_publication_leaves_nothing() {
    let (dir, store) = open();
    let mut abandoned = store.write_blob().unwrap();
    abandoned.write_all(b"not finished").unwrap();
    drop(abandoned);
    assert!(files(dir.path()).is_empty());
    // A crash leaves the file itself, and finished blobs that no manifest names.
    std::fs::write(dir.path().join("tmp/0123"), b"cut off").unwrap();
    drop(put(&store, b"finished, but never named"));
    drop(store);
    let store = reopen(&dir);
    assert_eq!(store.collect_garbage().unwrap().blobs, 1);
    assert!(files(dir.path()).is_empty());
}

#[test]
fn a_manifest_is_published_only_with_all_its_parts() {
    let (_dir, store) = open();
    let (machine, _lease) = put(&store, b"machine");
    let missing = BlobRef {
        size: machine.size + 1,
        ..machine.clone()
    };
    let refused = store
        .publish(&id("x"), &manifest(&machine, &[&missing]))
        .unwrap_err();
    assert!(matches!(refused, StoreError::Blob { .. }), "{refused}");
    assert!(store.list().unwrap().is_empty());
    store
        .publish(&id("x"), &manifest(&machine, &[&machine]))
        .unwrap();
    let again = store
        .publish(&id("x"), &manifest(&machine, &[&machine]))
        .unwrap_err();
    assert!(matches!(again, StoreError::Exists(_)));
}

/// A reader finds the old or the new, whole, however often it is replaced and collected meanwhile.
#[test]
fn a_snapshot_is_replaced_at_once() {
    let (dir, store) = open();
    let (blob, lease) = put(&store, b"0");
    store
        .replace(&id("one"), &manifest(&blob, &[&blob]))
        .unwrap();
    drop(lease);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 1..100 {
                let (blob, _lease) = put(&store, n.to_string().as_bytes());
                store
                    .replace(&id("one"), &manifest(&blob, &[&blob]))
                    .unwrap();
                store.collect_garbage().unwrap();
            }
        });
        while !writer.is_finished() {
            let (found, _lease) = store.load(&id("one")).unwrap();
            store.open_blob(&found.machine).unwrap();
        }
    });
    let missing = BlobRef {
        size: 77,
        ..blob.clone()
    };
    let refused = store.replace(&id("one"), &manifest(&missing, &[&missing]));
    refused.expect_err("a blob is missing");
    let (found, lease) = store.load(&id("one")).unwrap();
    store.open_blob(&found.machine).unwrap();
    drop(lease);
    store.collect_garbage().unwrap();
    assert_eq!(
        files(dir.path()).len(),
        2,
        "the last one's blob and manifest"
    );
}

#[test]
fn damage_is_noticed_and_named() {
    let (dir, store) = open();
    let (blob, _lease) = put(&store, b"stored");
    store
        .publish(&id("one"), &manifest(&blob, &[&blob]))
        .unwrap();
    let path = dir.path().join("blobs").join(blob.digest.to_string());
    store.open_blob(&blob).unwrap();
    std::fs::write(&path, b"g0lden").unwrap();
    assert!(matches!(
        store.open_blob(&blob),
        Err(StoreError::Digest { .. })
    ));
    std::fs::write(&path, b"gold").unwrap();
    assert!(matches!(
        store.open_blob(&blob),
        Err(StoreError::Blob { .. })
    ));
    std::fs::remove_file(&path).unwrap();
    let missing = store.open_blob(&blob).unwrap_err().to_string();
    assert!(missing.contains("missing"), "{missing}");
    std::fs::write(
        dir.path().join("manifests/one"),
        b"{\"manifest_version\": 99}",
    )
    .unwrap();
    let newer = store.load(&id("one")).unwrap_err();
    assert!(matches!(newer, StoreError::Format { .. }));
    // It might name anything, so nothing is collected.
    store.collect_garbage().unwrap_err();
}

/// What was hashed a moment ago is not read again, unless somebody has been at it.
#[test]
fn a_blob_that_was_touched_is_hashed_again() {
    use std::time::SystemTime;
    let (dir, store) = open();
    let (blob, lease) = put(&store, b"stored");
    store
        .publish(&id("one"), &manifest(&blob, &[&blob]))
        .unwrap();
    let path = dir.path().join("blobs").join(blob.digest.to_string());
    let refused =
        |store: &SnapshotStore| matches!(store.open_blob(&blob), Err(StoreError::Digest { .. }));
    // As soon as it can be: the clock of files has not moved since.
    std::fs::write(&path, b"g0lden").unwrap();
    assert!(refused(&store));
    std::fs::write(&path, b"stored").unwrap();
    store.open_blob(&blob).unwrap();
    std::fs::write(&path, b"g0lden").unwrap();
    assert!(
        refused(&store),
        "what was touched once is not believed again"
    );
    // Another file in its place.
    let (_, again) = put(&store, b"stored");
    let pretend = |path: &Path| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    };
    let other = dir.path().join("tmp/other");
    std::fs::write(&other, b"g0lden").unwrap();
    pretend(&other);
    std::fs::rename(&other, &path).unwrap();
    assert!(refused(&store));
    // A disk that forgets leaves no trace; the next process notices, and this one in some minutes.
    let (_, third) = put(&store, b"stored");
    std::fs::write(&path, b"g0lden").unwrap();
    pretend(&path);
    store.open_blob(&blob).unwrap();
    drop((lease, again, third, store));
    assert!(refused(&reopen(&dir)));
}

#[test]
fn one_process_at_a_time() {
    let (dir, _store) = open();
    assert!(matches!(
        SnapshotStore::open(dir.path()),
        Err(StoreError::InUse(_))
    ));
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting a small file system needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let small = SmallDisk::mount(dir.path());
    let store = SnapshotStore::open(dir.path()).unwrap();
    let mut writer = store.write_blob().unwrap();
    let full =
        std::iter::repeat_n([7_u8; 65536], 64).find_map(|part| writer.write_all(&part).err());
    assert_eq!(full.unwrap().kind(), std::io::ErrorKind::StorageFull);
    drop(writer);
    assert!(files(dir.path()).is_empty());
    drop((store, small));
}

/// A tmpfs of 1 MiB.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        let mut mount = std::process::Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=1m", "small"])
            .arg(at);
        assert!(mount.status().unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[test]
fn publishing_and_collecting_at_once_loses_nothing() {
    let (_dir, store) = open();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (store, done) = (&store, &done);
        let collector = scope.spawn(move || {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                store.collect_garbage().unwrap();
            }
        });
        for n in 0..50 {
            let (blob, lease) = put(store, format!("blob {n}").as_bytes());
            let name = id(&format!("s{n}"));
            store.publish(&name, &manifest(&blob, &[&blob])).unwrap();
            drop(lease);
            let (read, _lease) = store.load(&name).unwrap();
            store.open_blob(&read.machine).unwrap();
            store.remove(&name).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        collector.join().unwrap();
    });
    store.collect_garbage().unwrap();
    assert!(store.list().unwrap().is_empty());
}
