//! Huge pages under the parts of a base memory that clones only read.
//!
//! A guest's code is most of what a clone reads first. In huge pages, one fault maps 512 pages of
//! it, the page tables of each clone are one entry instead of a page, and the processor's own cache
//! of them holds more. A clone that writes into such a part after all gets small pages there.
#![expect(unsafe_code, reason = "mapping a file to say how it is to be held")]

use crate::base_memory::BaseMemory;
use crate::dirty::PageRange;
use crate::error::{MemoryError, io};
use crate::working_set::WorkingSet;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use snapshot_format::{SectionFile, UNIT};
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::os::fd::AsFd;

/// Pages of a huge one.
pub const HUGE_PAGE: u64 = 512;
const HUGE_BYTES: usize = 2 << 20;

impl WorkingSet {
    /// The huge pages of a memory of `pages` pages in which something is used and nothing written.
    #[must_use]
    pub fn only_read(&self, pages: u64) -> Vec<PageRange> {
        let blocks = |ranges: &[PageRange]| -> BTreeSet<u64> {
            let of = |r: &PageRange| r.first / HUGE_PAGE..r.end.div_ceil(HUGE_PAGE);
            ranges.iter().flat_map(of).collect()
        };
        let (touched, written) = (blocks(&self.touched), blocks(&self.written));
        touched
            .difference(&written)
            .map(|block| PageRange {
                first: block * HUGE_PAGE,
                end: (block + 1) * HUGE_PAGE,
            })
            .filter(|block| block.end <= pages)
            .collect()
    }
}

impl BaseMemory {
    /// The state that clones are restored from, with the working set of `trial`, the state of one
    /// of them; what they only read is in huge pages from then on, as far as the kernel has any.
    ///
    /// # Errors
    /// When one of them is not a state of such a machine, `trial` has no working set, or the file
    /// cannot be mapped.
    pub fn learn(&self, state: &[u8], trial: &[u8]) -> Result<(Vec<u8>, WorkingSet), MemoryError> {
        let learned = WorkingSet::learn(state, trial)?;
        let first = WorkingSet::of(&SectionFile::parse(&learned)?, self.pages())?;
        self.collapse(&first.only_read(self.pages()))?;
        Ok((learned, first))
    }

    /// Holds these blocks, each of [`HUGE_PAGE`] pages and aligned to as many, in huge pages from
    /// now on. Returns how many are; the first that the kernel refuses ends it (Linux 6.1 can).
    ///
    /// # Errors
    /// When the file cannot be mapped.
    fn collapse(&self, blocks: &[PageRange]) -> Result<usize, MemoryError> {
        let failed = |e: rustix::io::Errno| {
            let with = format!("{} blocks of 2 MiB", blocks.len());
            io("Mapping a memory file", with)(e.into())
        };
        // SAFETY: new address space, wherever the kernel likes.
        let room = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            mmap_anonymous(
                std::ptr::null_mut(),
                2 * HUGE_BYTES,
                ProtFlags::empty(),
                flags,
            )
        };
        let room = room.map_err(failed)?;
        let aligned = room.map_addr(|address| address.next_multiple_of(HUGE_BYTES));
        let mut collapsed = Ok(0);
        for block in blocks {
            // SAFETY: the first aligned address of twice a huge page has room for one.
            match unsafe { self.collapse_at(aligned, block) } {
                Ok(true) => collapsed = collapsed.map(|n| n + 1),
                Ok(false) => break,
                Err(error) => {
                    collapsed = Err(failed(error));
                    break;
                }
            }
        }
        // SAFETY: what was mapped above; nobody else knows of it.
        unsafe { munmap(room, 2 * HUGE_BYTES) }.map_err(failed)?;
        collapsed
    }

    /// Maps a block at `address`, and has it collapsed.
    ///
    /// # Safety
    /// There must be address space for it that nobody else uses: what is mapped there is replaced.
    unsafe fn collapse_at(
        &self,
        address: *mut c_void,
        block: &PageRange,
    ) -> Result<bool, rustix::io::Errno> {
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        let (file, offset) = (self.as_fd(), block.first * UNIT);
        // SAFETY: replaces a part of a mapping that is nobody's, says the caller.
        let mapped = unsafe { mmap(address, HUGE_BYTES, ProtFlags::READ, flags, file, offset) }?;
        // SAFETY: the range has just been mapped; what it holds does not change.
        Ok(unsafe { libc::madvise(mapped, HUGE_BYTES, libc::MADV_COLLAPSE) } == 0)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::layer_file::LayerFile;
    use crate::writer::write_layer;

    fn range(first: u64, end: u64) -> PageRange {
        PageRange { first, end }
    }

    #[test]
    fn a_block_that_is_written_is_not_only_read() {
        let set = WorkingSet {
            touched: vec![range(1, 2), range(600, 1100), range(2047, 2048)],
            written: vec![range(1023, 1024)],
        };
        assert_eq!(
            set.only_read(2048),
            [range(0, 512), range(1024, 1536), range(1536, 2048)]
        );
        assert_eq!(set.only_read(2047), [range(0, 512), range(1024, 1536)]);
    }

    #[test]
    fn what_is_collapsed_holds_the_same() {
        let byte = |n: u32| (n >> 12).to_le_bytes()[0] | 1;
        let bytes: Vec<u8> = (0..1024 * 4096).map(byte).collect();
        let file = tempfile::tempfile().unwrap();
        write_layer(&[&bytes], &[range(0, 3), range(700, 1024)], &file).unwrap();
        let base = BaseMemory::merge_layers(1024, &[LayerFile::open(file).unwrap()]).unwrap();
        let read = || {
            let mut now = vec![0; bytes.len()];
            let file = std::fs::File::from(base.as_fd().try_clone_to_owned().unwrap());
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut now, 0).unwrap();
            now
        };
        let before = read();
        let collapsed = base.collapse(&[range(512, 1024), range(0, 512)]).unwrap();
        if collapsed < 2 {
            eprintln!("skipped in part: this kernel made {collapsed} of 2 huge pages");
        }
        assert!(before == read());
    }
}
