//! Disks saved, copied into flat layers, and used as the parent of others.

use super::*;
use crate::block::{BlockV1, layers};
use crate::testing::{add_vsock, line, vsock_config};
use crate::{Contents, EventLoop, LoadError, Rng, SavedConnection, SavedDevices};
use std::os::unix::fs::FileExt;

impl Guest {
    /// A copy of this guest with the devices `saved`, whose changes are in `parent`.
    fn copied(&self, saved: SavedDevices, memory: &Arc<Memory>, base: File, parent: File) -> Self {
        let running = Running::new(memory.clone(), move |event_loop| {
            let config = config(base, Some(parent));
            let made = add_block(event_loop, config);
            event_loop.load(&saved.devices).unwrap();
            made
        });
        Self {
            running,
            memory: memory.clone(),
            queue: self.queue.copied(memory),
            next: self.next,
        }
    }

    /// The copy and the flat layer below it.
    fn copy(&self, base: &File) -> (Self, File) {
        let (saved, memory) = self.running.save();
        let flat = tempfile::tempfile().unwrap();
        assert_eq!(
            saved.contents[0].write_to(&flat).unwrap(),
            saved.contents[0].blocks()
        );
        let parent = flat.try_clone().unwrap();
        let base = base.try_clone().unwrap();
        (self.copied(saved, &memory, base, parent), flat)
    }

    fn contents(&mut self) -> Vec<u8> {
        let part = |block| self.read(block * 8, 16 * 4096, 3).1;
        (0..BLOCKS).step_by(16).flat_map(part).collect()
    }
}

fn config(base: File, parent: Option<File>) -> BlockConfig {
    BlockConfig {
        base,
        layer: Some(tempfile::tempfile().unwrap()),
        parent: DiskParent(parent),
        size: SIZE as u64,
        serial: "disk0".into(),
    }
}

#[test]
fn a_copy_reads_its_parent_and_writes_of_its_own() {
    let (base, mut first) = base(SIZE - 5000);
    first.resize(SIZE, 0);
    let keep = base.try_clone().unwrap();
    let mut guest = Guest::new(base, Some(tempfile::tempfile().unwrap()));
    // Whole blocks, a part of one, one beyond the image, one discarded.
    assert_eq!(guest.write(8, &[1; 12288], 2), S_OK);
    assert_eq!(guest.write(41, &[2; 1024], 1), S_OK);
    assert_eq!(guest.write(BLOCKS * 8 - 1, &[3; 512], 1), S_OK);
    assert_eq!(guest.erase(T_DISCARD, 80, 16, 0), S_OK);
    first[4096..16384].fill(1);
    first[41 * 512..43 * 512].fill(2);
    first[SIZE - 512..].fill(3);
    first[80 * 512..96 * 512].fill(0);
    let (mut copy, flat) = guest.copy(&keep);
    assert!(copy.contents() == first);

    // Parts of blocks that the parent has, whole ones, and a discarded one.
    let mut second = first.clone();
    assert_eq!(copy.write(9, &[4; 512], 1), S_OK);
    assert_eq!(copy.write(40, &[5; 4096], 1), S_OK);
    assert_eq!(copy.write(81, &[6; 512], 1), S_OK);
    assert_eq!(copy.erase(T_WRITE_ZEROES, 17, 3, 1), S_OK);
    assert_eq!(copy.erase(T_DISCARD, 24, 8, 0), S_OK);
    second[9 * 512..10 * 512].fill(4);
    second[40 * 512..48 * 512].fill(5);
    second[81 * 512..82 * 512].fill(6);
    second[17 * 512..20 * 512].fill(0);
    second[24 * 512..32 * 512].fill(0);
    assert!(copy.contents() == second);
    assert_eq!(copy.running.made.1.layer_blocks.get(), 5);
    assert_eq!(copy.running.made.1.errors.get(), 0);
    // The original and the parent know nothing of that.
    assert!(guest.contents() == first);
    let mut parent = vec![0; SIZE];
    flat.read_exact_at(&mut parent, 0).unwrap();
    assert!(parent[4096..16384] == first[4096..16384]);
    assert!(parent[40 * 512..41 * 512] == first[40 * 512..41 * 512]);

    // A copy of the copy has the changes of both; a layer takes the place of changes only.
    let (mut third, flat) = copy.copy(&keep);
    assert!(third.contents() == second && copy.contents() == second);
    let mut bytes = vec![0; SIZE];
    flat.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..4096] == [0; 4096] && bytes[4096..8192] == second[4096..8192]);
}

/// The devices of a machine as they are assembled, of which the disk is asked.
fn add_all(event_loop: &mut EventLoop, config: BlockConfig) -> Added<BlockMetrics> {
    let (link, _) = std::os::unix::net::UnixStream::pair().unwrap();
    add_vsock(
        event_loop,
        vsock_config(link, SavedConnection::Kept),
        line(),
    );
    let block = add_block(event_loop, config);
    event_loop.add(Box::new(Rng::default()), line()).unwrap();
    block
}

#[test]
fn a_machine_that_boots_has_the_contents_of_another_one() {
    let guest = |base: &File, parent: Option<File>, saved: Option<Vec<Vec<u8>>>| {
        let (memory, base) = (memory(), base.try_clone().unwrap());
        let running = Running::new(memory.clone(), move |event_loop| {
            let block = add_all(event_loop, config(base, parent));
            if let Some(saved) = saved {
                event_loop.load_contents(&saved).unwrap();
            }
            block
        });
        let queue = set_up(&running.made.0, &memory, 0, QUEUES).remove(0);
        Guest {
            running,
            memory,
            queue,
            next: 0,
        }
    };
    let (base, mut expected) = base(SIZE);
    let mut first = guest(&base, None, None);
    assert_eq!(first.write(16, &[9; 4096], 1), S_OK);
    expected[8192..12288].fill(9);
    let saved = first.running.save().0;
    let parent = tempfile::tempfile().unwrap();
    saved.contents[0].write_to(&parent).unwrap();
    let mut next = guest(&base, Some(parent), Some(saved.devices.clone()));
    assert!(next.contents() == expected);

    // What follows a disk's state is refused, and so is the state of another machine.
    let refusal = |devices: &[Vec<u8>]| {
        let mut event_loop = EventLoop::new(memory()).unwrap();
        add_all(
            &mut event_loop,
            config(
                base.try_clone().unwrap(),
                Some(tempfile::tempfile().unwrap()),
            ),
        );
        event_loop.load_contents(devices).unwrap_err()
    };
    let mut longer = saved.devices.clone();
    longer[1].push(0);
    assert!(matches!(
        refusal(&longer),
        LoadError::Trailing { extra: 1, .. }
    ));
    let swapped = [1, 0, 2].map(|index| saved.devices[index].clone());
    assert!(matches!(refusal(&swapped), LoadError::Kind { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn copies_of_copies_are_byte_vectors(
        generations in proptest::collection::vec(
            proptest::collection::vec((0..BLOCKS * 8 - 64, 1usize..64, any::<u8>(), 0..4u8), 0..8),
            1..4,
        ),
        base_len in 0..=SIZE,
    ) {
        let (base, mut oracle) = base(base_len);
        oracle.resize(SIZE, 0);
        let keep = base.try_clone().unwrap();
        let mut guest = Guest::new(base, Some(tempfile::tempfile().unwrap()));
        for steps in generations {
            for (sector, sectors, fill, kind) in steps {
                let (at, len) = (sector as usize * 512, sectors * 512);
                if kind == 0 {
                    let sectors = sectors as u32;
                    prop_assert_eq!(guest.erase(T_WRITE_ZEROES, sector, sectors, 1), S_OK);
                    oracle[at..at + len].fill(0);
                } else {
                    prop_assert_eq!(guest.write(sector, &vec![fill; len], 3), S_OK);
                    oracle[at..at + len].fill(fill);
                }
            }
            guest = guest.copy(&keep).0;
            prop_assert!(guest.contents() == oracle);
        }
    }
}

#[test]
fn requests_under_way_are_answered_once_before_or_after() {
    let (base, bytes) = base(SIZE);
    let keep = base.try_clone().unwrap();
    let mut guest = Guest::new(base, Some(tempfile::tempfile().unwrap()));
    for round in 0..20u8 {
        let mut writes = Vec::new();
        let mut reads = Vec::new();
        for i in 0..8 {
            // Neighbours in one block: the later one has to wait for the earlier.
            let data = [round ^ i as u8; 512];
            writes.push(guest.submit(T_OUT, 8 + i, Data::Out(&data), 1).0);
            reads.push(guest.submit(T_IN, 64 + i * 8, Data::In(4096), 3));
        }
        guest.queue.kick(&guest.running.made.0);
        let (mut copy, _) = guest.copy(&keep);
        for guest in [&mut guest, &mut copy] {
            (0..16).for_each(|_| _ = guest.queue.wait_used());
            assert!(guest.queue.take_used().is_none());
            for &status in &writes {
                assert_eq!(
                    guest.memory.read_obj::<u8>(GuestAddress(status)).unwrap(),
                    S_OK
                );
            }
            for (i, &(status, at)) in reads.iter().enumerate() {
                assert_eq!(
                    guest.memory.read_obj::<u8>(GuestAddress(status)).unwrap(),
                    S_OK
                );
                let mut got = vec![0; 4096];
                guest.memory.read_slice(&mut got, GuestAddress(at)).unwrap();
                assert!(got == bytes[(8 + i) * 4096..][..4096]);
            }
            let written = guest.read(8, 4096, 1).1;
            assert!((0..8).all(|i| written[i * 512..][..512] == [round ^ i as u8; 512]));
        }
    }
}

#[test]
fn a_disk_that_is_not_the_saved_one_is_refused() {
    let (file, _) = base(SIZE);
    let mut guest = Guest::new(file, Some(tempfile::tempfile().unwrap()));
    assert_eq!(guest.write(8, &[1; 4096], 1), S_OK);
    let (saved, memory) = guest.running.save();
    let load = |config: BlockConfig| {
        let mut event_loop = EventLoop::new(memory.clone()).unwrap();
        add_block(&mut event_loop, config);
        event_loop.load(&saved.devices)
    };
    let flat = || Some(tempfile::tempfile().unwrap());
    load(config(base(SIZE).0, flat())).unwrap();
    let larger = BlockConfig {
        size: SIZE as u64 + 4096,
        ..config(base(SIZE).0, flat())
    };
    let read_only = BlockConfig {
        layer: None,
        ..config(base(SIZE).0, flat())
    };
    let no_parent = config(base(SIZE).0, None);
    let other_image = config(base(SIZE - 1).0, flat());
    for wrong in [larger, read_only, no_parent, other_image] {
        let refused = load(wrong).unwrap_err();
        assert!(matches!(refused, LoadError::Value { .. }), "{refused}");
    }
}

#[test]
fn blocks_that_no_disk_has_are_refused() {
    let blocks = SIZE as u64 / 4096;
    let check = |held: &[(u64, u64)]| {
        let bytes = postcard::to_allocvec(&(SIZE as u64, 0u64, held)).unwrap();
        let saved: BlockV1 = postcard::from_bytes(&bytes).unwrap();
        crate::block::state::check(&saved, SIZE as u64, 0)
    };
    let held = [(0, 1), (5, 2), (blocks - 9, 1)];
    let runs = check(&held).unwrap();
    assert_eq!(runs, [0..1, 6..8, blocks - 1..blocks]);
    for hostile in [
        [(0, blocks + 1)],
        [(blocks, 1)],
        [(1, 0)],
        [(u64::MAX, 1)],
        [(1, u64::MAX)],
    ] {
        assert!(check(&hostile).is_err(), "{hostile:?}");
    }
}

#[test]
fn a_flat_layer_is_sparse_and_needs_an_empty_file() {
    let (file, _) = base(SIZE);
    let mut guest = Guest::new(file, Some(tempfile::tempfile().unwrap()));
    assert_eq!(guest.write(8, &[1; 8192], 1), S_OK);
    let (saved, _) = guest.running.save();
    let disk: &dyn Contents = &*saved.contents[0];
    let flat = tempfile::tempfile().unwrap();
    assert_eq!(disk.write_to(&flat).unwrap(), 2);
    let meta = rustix::fs::fstat(&flat).unwrap();
    assert_eq!(u64::try_from(meta.st_size), Ok(SIZE as u64));
    assert!(meta.st_blocks * 512 <= 64 * 1024, "{}", meta.st_blocks);
    disk.write_to(&flat).unwrap_err();

    // Between file systems the kernel may refuse: then the bytes pass through here.
    let by_hand = tempfile::tempfile().unwrap();
    layers::copy_by_hand(&flat, &by_hand, 4096, 12288).unwrap();
    let mut bytes = vec![0; 12288];
    by_hand.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..4096] == [0; 4096] && bytes[4096..] == [1; 8192]);

    // A layer that was cut short behind our back is an error, not zeros.
    let memfd: File = memfd_create("layer", MemfdFlags::CLOEXEC).unwrap().into();
    let cut = memfd.try_clone().unwrap();
    let mut guest = Guest::new(base(SIZE).0, Some(memfd));
    assert_eq!(guest.write(8, &[1; 8192], 1), S_OK);
    let (saved, _) = guest.running.save();
    let flat = tempfile::tempfile().unwrap();
    assert_eq!(saved.contents[0].write_to(&flat).unwrap(), 2);
    cut.set_len(8192).unwrap();
    let flat = tempfile::tempfile().unwrap();
    saved.contents[0].write_to(&flat).unwrap_err();
}

#[test]
fn a_disk_in_use_is_reset_to_what_it_was() {
    let (base, _) = base(SIZE - 5000);
    let keep = base.try_clone().unwrap();
    let mut guest = Guest::new(base, Some(tempfile::tempfile().unwrap()));
    assert_eq!(guest.write(8, &[1; 12288], 2), S_OK);
    assert_eq!(guest.write(41, &[2; 1024], 1), S_OK);
    let (mut copy, flat) = guest.copy(&keep);
    let first = copy.contents();
    let (saved, memory) = copy.running.save();
    let queue = copy.queue.copied(&copy.memory);
    for round in 1..4u8 {
        assert_eq!(copy.write(0, &[round; 8192], 1), S_OK);
        assert_eq!(copy.write(43, &[round; 512], 1), S_OK);
        assert_eq!(copy.erase(T_DISCARD, 80, 16, 0), S_OK);
        // One that is still on its way, perhaps.
        copy.submit(T_OUT, 100, Data::Out(&[round; 4096]), 1);
        copy.queue.kick(&copy.running.made.0);
        let (devices, parent) = (saved.devices.clone(), flat.try_clone().unwrap());
        let (own, from) = (copy.memory.clone(), memory.clone());
        copy.running.clear(move |event_loop| {
            crate::testing::restore(&own, &from);
            let parent = DiskParent(Some(parent)).into();
            event_loop.reset(&devices, vec![parent]).unwrap();
        });
        copy.queue = queue.copied(&copy.memory);
        assert_eq!(copy.running.made.1.layer_blocks.get(), 0);
        assert!(copy.contents() == first);
    }
}
