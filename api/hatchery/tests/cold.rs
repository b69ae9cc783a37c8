//! Stored memory that nobody uses: it stays where it is until a machine begins there.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use engine::facts::KeptState;
use engine::image::base_memory::BaseMemory;
use engine::image::machine_image::{AgentLink, MachineImage, MachineShape};
use engine::store::vault::ImageVault;
use snapshot_format::BaseImage;
use snapshot_memory::{PageRange, write_layer};
use snapshot_store::SnapshotId;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

const SHAPE: MachineShape = MachineShape {
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

fn image(base_memory: &Arc<BaseMemory>, delta: Option<Arc<File>>) -> MachineImage {
    let empty = || Arc::new(tempfile::tempfile().unwrap());
    MachineImage {
        base_memory: Arc::clone(base_memory),
        delta,
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

fn open(dir: &Path, lazy: bool) -> ImageVault {
    let layers = dir.join("layers");
    std::fs::create_dir_all(&layers).unwrap();
    ImageVault::open(&dir.join("store"), &layers, lazy).unwrap()
}

fn get(vault: &ImageVault, id: &SnapshotId) -> MachineImage {
    vault
        .get(id, (KeptState::Memory, &base()), |_| Ok(()), |_| Ok(()))
        .unwrap()
}

fn first_bytes(base_memory: &BaseMemory) -> Vec<u8> {
    let file = File::from(base_memory.memory().unwrap().try_clone_to_owned().unwrap());
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
        let base_memory = Arc::new(BaseMemory::merge(SHAPE.pages(), vec![layer(3)]).unwrap());
        assert!(!base_memory.should_page(), "it is in memory");
        let both = image(&base_memory, Some(layer(5)));
        open(dir.path(), true)
            .put((&id, None), (&both, KeptState::Memory), &base(), b"x")
            .unwrap();
    }
    // As before without a pager.
    let eager = get(&open(dir.path(), false), &id);
    assert!(
        eager.delta.is_some()
            && eager.base_memory.layers().len() == 1
            && !eager.base_memory.should_page()
    );

    let vault = open(dir.path(), true);
    let cold = get(&vault, &id);
    assert!(cold.delta.is_none() && cold.base_memory.layers().len() == 2);
    assert_eq!(cold.base_memory.resident_bytes(), 0);
    // A second look finds the same memory.
    assert!(Arc::ptr_eq(
        &get(&vault, &id).base_memory,
        &cold.base_memory
    ));
    assert_eq!(
        [
            cold.base_memory.should_page(),
            cold.base_memory.should_page(),
            cold.base_memory.should_page()
        ],
        [true, true, false]
    );
    let wanted: Vec<_> = (0..32)
        .map(|n| if [3, 5].contains(&n) { n + 1 } else { 0 })
        .collect();
    assert_eq!(first_bytes(&cold.base_memory), wanted);
    assert!(!cold.base_memory.should_page(), "it is in memory");
}

#[test]
fn chains_of_layers_that_are_paged_in_stay_short() {
    let dir = tempfile::tempdir().unwrap();
    let vault = open(dir.path(), true);
    let base_memory = Arc::new(BaseMemory::cold(SHAPE.pages(), vec![layer(0)]));
    let mut next = image(&base_memory, None);
    drop(base_memory);
    let mut longest = 0;
    for page in 1..30 {
        // Each machine begins where the one before was saved, and nobody else uses that memory.
        let id = SnapshotId::new("chain").unwrap();
        let saved = image(&next.base_memory, Some(layer(page)));
        vault
            .put((&id, None), (&saved, KeptState::Memory), &base(), b"x")
            .unwrap();
        drop((next, saved));
        next = get(&vault, &id);
        longest = longest.max(next.base_memory.layers().len());
        let own = next
            .delta
            .as_ref()
            .map(|delta| delta.metadata().unwrap().len());
        assert!(
            next.base_memory.layers().len() <= engine::image::pager::LONGEST,
            "{page}: {own:?}"
        );
    }
    assert_eq!(longest, engine::image::pager::LONGEST);
}
