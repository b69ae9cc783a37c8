//! Base memory, clone, dirty set, layer, and back, on real mappings.
#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]
#![expect(unsafe_code, reason = "maps memory")]

use proptest::prelude::*;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use snapshot_memory::{BaseMemory, LayerFile, MemoryError, PageRange, Pagemap, write_layer};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsFd;

const PAGE: usize = 4096;

/// A private mapping, as a clone has it.
struct Clone {
    start: *mut u8,
    len: usize,
}

impl Clone {
    fn of(base: &BaseMemory) -> Self {
        let len = usize::try_from(base.pages()).unwrap() * PAGE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let (read, write) = (ProtFlags::READ, ProtFlags::WRITE);
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                read | write,
                flags,
                base.as_fd(),
                0,
            )
        };
        Self {
            start: start.unwrap().cast(),
            len,
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours, of this length, readable and writable, and not aliased.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    fn dirty(&self) -> Vec<PageRange> {
        Pagemap::open()
            .unwrap()
            .dirty_ranges(&(self.start.addr()..self.start.addr() + self.len))
            .unwrap()
    }

    /// Writes what differs from the base memory into a layer.
    fn save(&mut self) -> LayerFile {
        let ranges = self.dirty();
        layer(self.bytes(), &ranges)
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        unsafe { munmap(self.start.cast(), self.len) }.unwrap();
    }
}

fn layer(memory: &[u8], ranges: &[PageRange]) -> LayerFile {
    let file = tempfile::tempfile().unwrap();
    // In two parts, as the memory of a large guest is.
    let (low, high) = memory.split_at(memory.len() / 2 / 4096 * 4096);
    write_layer(&[low, high], ranges, &file).unwrap();
    LayerFile::open(file).unwrap()
}

fn base(memory: &[u8]) -> BaseMemory {
    let pages = memory.len() as u64 / 4096;
    BaseMemory::merge_layers(
        pages,
        &[layer(
            memory,
            &[PageRange {
                first: 0,
                end: pages,
            }],
        )],
    )
    .unwrap()
}

#[test]
fn zero_pages_take_no_memory() {
    let mut memory = vec![0; 64 * PAGE];
    memory[5 * PAGE] = 1;
    memory[6 * PAGE + 17] = 1;
    let base = base(&memory);
    assert_eq!(base.resident_bytes().unwrap(), 2 * 4096);
    assert_eq!(Clone::of(&base).bytes(), memory);
}

#[test]
fn base_memory_cannot_be_changed_nor_a_clone_seen_by_another() {
    let base = base(&vec![7; 4 * PAGE]);
    let mut file = File::from(base.as_fd().try_clone_to_owned().unwrap());
    assert_eq!(
        file.write(b"x").unwrap_err().raw_os_error(),
        Some(libc::EPERM)
    );
    file.set_len(0).unwrap_err();
    let (mut one, mut two) = (Clone::of(&base), Clone::of(&base));
    one.bytes().fill(1);
    assert!(two.bytes().iter().all(|b| *b == 7));
}

#[test]
fn reading_dirties_nothing_and_writing_exactly_the_written() {
    let base = base(&vec![7; 64 * PAGE]);
    let mut clone = Clone::of(&base);
    assert_eq!(
        clone.bytes().iter().map(|b| u64::from(*b)).sum::<u64>(),
        7 * 64 * 4096
    );
    assert!(clone.dirty().is_empty());
    for page in [3, 4, 5, 40] {
        clone.bytes()[page * PAGE] = 7; // the same value: written all the same
    }
    let range = |first, end| PageRange { first, end };
    assert_eq!(clone.dirty(), [range(3, 6), range(40, 41)]);
}

#[test]
fn more_ranges_than_one_call_returns() {
    let base = base(&vec![7; 6000 * PAGE]);
    let mut clone = Clone::of(&base);
    for page in (0..6000).step_by(2) {
        clone.bytes()[page * PAGE] = 1;
    }
    let alternate = (0..3000).map(|n| PageRange {
        first: 2 * n,
        end: 2 * n + 1,
    });
    assert_eq!(clone.dirty(), alternate.collect::<Vec<_>>());
}

#[test]
fn a_cut_or_foreign_layer_is_refused() {
    let memory = vec![1; 4 * PAGE];
    let mut file = tempfile::tempfile().unwrap();
    write_layer(&[&memory], &[PageRange { first: 0, end: 4 }], &file).unwrap();
    file.set_len(5 * 4096 - 1).unwrap();
    file.rewind().unwrap();
    let cut = LayerFile::open(file).unwrap_err();
    assert!(matches!(cut, MemoryError::Format(_)), "{cut}");
    let other = layer(&memory, &[]);
    assert!(matches!(
        BaseMemory::merge_layers(5, &[other]),
        Err(MemoryError::Size {
            found: 4,
            wanted: 5
        })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Generations of clones, each continuing from the chain of all before it, against plain
    /// memory.
    #[test]
    fn a_chain_of_generations_keeps_every_write(
        generations in proptest::collection::vec(
            proptest::collection::vec((0usize..32, 0u8..3), 0..12), 1..5)
    ) {
        let mut memory = vec![0; 32 * PAGE];
        let mut chain = Vec::new(); // newest first
        for writes in generations {
            let mut clone = Clone::of(&BaseMemory::merge_layers(32, &chain).unwrap());
            prop_assert_eq!(&*clone.bytes(), &memory);
            for (page, value) in writes {
                clone.bytes()[page * PAGE..][..PAGE].fill(value);
                memory[page * PAGE..][..PAGE].fill(value);
            }
            chain.insert(0, clone.save());
        }
        let base = BaseMemory::merge_layers(32, &chain).unwrap();
        // Asked before anybody reads: reading a hole of a memory file fills it.
        let nonzero = memory.chunks(PAGE).filter(|p| p[0] != 0).count() as u64;
        prop_assert_eq!(base.resident_bytes().unwrap(), nonzero * 4096);
        let mut last = Clone::of(&base);
        prop_assert_eq!(&*last.bytes(), &memory);
    }
}

#[test]
fn applying_a_layer_changes_exactly_the_named_pages() {
    let mut memory = vec![7; 8 * 4096];
    memory[4096..3 * 4096].fill(0);
    let saved = layer(&memory, &[PageRange { first: 1, end: 5 }]);
    let mut other = vec![9; 8 * 4096];
    saved
        .apply(|offset, bytes| {
            let at = usize::try_from(offset).unwrap();
            other[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        })
        .unwrap();
    let pages: Vec<u8> = other.chunks(4096).map(|page| page[4095]).collect();
    assert_eq!(pages, [9, 0, 0, 7, 7, 9, 9, 9]);
}
