//! Stored memory that nobody uses: it stays where it is until a machine begins there.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use api::image::{AgentLink, Basis, Image, Shape};
use api::sandbox::Kept;
use api::vault::Vault;
use snapshot_format::BaseImage;
use snapshot_memory::{PageRange, write_layer};
use snapshot_store::SnapshotId;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

const SHAPE: Shape = Shape {
    vcpus: 1,
    memory_mib: 1,
    disk_size: 1 << 20,
};

/// A layer with one page.
fn layer(page: u64) -> Arc<File> {
    let mut memory = vec![0; 1 << 20];
    let number = usize::try_from(page).unwrap();
    memory[number * 4096] = u8::try_from(page + 1).unwrap();
    let file = tempfile::tempfile().unwrap();
    let range = PageRange {
        first: page,
        end: page + 1,
    };
    write_layer(&[&memory], &[range], &file).unwrap();
    Arc::new(file)
}

fn image(basis: &Arc<Basis>, diff: Option<Arc<File>>) -> Image {
    let empty = || Arc::new(tempfile::tempfile().unwrap());
    Image {
        basis: Arc::clone(basis),
        diff,
        state: empty(),
        disk: empty(),
        shape: SHAPE,
        link: AgentLink::Broken,
    }
}

fn base() -> BaseImage {
    BaseImage {
        name: "base".into(),
        size: 1 << 20,
        modified_ns: 1,
    }
}

fn open(dir: &Path, lazy: bool) -> Vault {
    let layers = dir.join("layers");
    std::fs::create_dir_all(&layers).unwrap();
    Vault::open(&dir.join("store"), &layers, lazy).unwrap()
}

fn get(vault: &Vault, id: &SnapshotId) -> Image {
    vault.get(id, Kept::Memory, &base(), |_| Ok(())).unwrap()
}

fn first_bytes(basis: &Basis) -> Vec<u8> {
    let file = File::from(basis.memory().unwrap().try_clone_to_owned().unwrap());
    let byte = |page: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, page * 4096).unwrap();
        byte[0]
    };
    (0..32).map(byte).collect()
}

#[test]
fn memory_stays_cold_until_enough_machines_begin_there() {
    let dir = tempfile::tempdir().unwrap();
    let id = SnapshotId::new("one").unwrap();
    {
        let basis = Arc::new(Basis::flatten(SHAPE.pages(), vec![layer(3)]).unwrap());
        assert!(!basis.bring(), "it is in memory");
        let both = image(&basis, Some(layer(5)));
        open(dir.path(), true)
            .put(&id, (&both, Kept::Memory), &base(), b"x")
            .unwrap();
    }
    // As before without a pager.
    let eager = get(&open(dir.path(), false), &id);
    assert!(eager.diff.is_some() && eager.basis.layers().len() == 1 && !eager.basis.bring());

    let vault = open(dir.path(), true);
    let cold = get(&vault, &id);
    assert!(cold.diff.is_none() && cold.basis.layers().len() == 2);
    assert_eq!(cold.basis.resident_bytes(), 0);
    // A second look finds the same memory.
    assert!(Arc::ptr_eq(&get(&vault, &id).basis, &cold.basis));
    assert_eq!(
        [cold.basis.bring(), cold.basis.bring(), cold.basis.bring()],
        [true, true, false]
    );
    let wanted: Vec<_> = (0..32)
        .map(|n| if [3, 5].contains(&n) { n + 1 } else { 0 })
        .collect();
    assert_eq!(first_bytes(&cold.basis), wanted);
    assert!(!cold.basis.bring(), "it is in memory");
}

#[test]
fn chains_of_layers_that_are_brought_stay_short() {
    let dir = tempfile::tempdir().unwrap();
    let vault = open(dir.path(), true);
    let basis = Arc::new(Basis::cold(SHAPE.pages(), vec![layer(0)]));
    let mut next = image(&basis, None);
    drop(basis);
    let mut longest = 0;
    for page in 1..30 {
        // Each machine begins where the one before was saved, and nobody else uses that memory.
        let id = SnapshotId::new("chain").unwrap();
        let saved = image(&next.basis, Some(layer(page)));
        vault
            .put(&id, (&saved, Kept::Memory), &base(), b"x")
            .unwrap();
        drop((next, saved));
        next = get(&vault, &id);
        longest = longest.max(next.basis.layers().len());
        let own = next
            .diff
            .as_ref()
            .map(|diff| diff.metadata().unwrap().len());
        assert!(
            next.basis.layers().len() <= api::pager::LONGEST,
            "{page}: {own:?}"
        );
    }
    assert_eq!(longest, api::pager::LONGEST);
}
