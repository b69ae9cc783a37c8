//! Which pages of a private mapping are no longer the file's.
#![expect(
    unsafe_code,
    reason = "PAGEMAP_SCAN takes addresses of a mapping and of a buffer"
)]

use crate::error::{MemoryError, io};
use snapshot_format::UNIT;
use std::fs::File;
use std::os::fd::AsRawFd;

/// Pages `first..end` of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRange {
    /// The first.
    pub first: u64,
    /// Behind the last.
    pub end: u64,
}

impl PageRange {
    /// How many pages ranges have together.
    #[must_use]
    pub fn count<'a>(ranges: impl IntoIterator<Item = &'a Self>) -> u64 {
        let pages = ranges.into_iter().map(|range| range.end - range.first);
        pages.sum()
    }
}

/// The parts of `ranges`, which rise and do not overlap, that are in none of `others`, of which the
/// same is true.
#[must_use]
pub fn subtract(
    ranges: &[PageRange],
    others: impl IntoIterator<Item = PageRange>,
) -> Vec<PageRange> {
    let mut left = Vec::with_capacity(ranges.len());
    let mut others = others.into_iter().peekable();
    for range in ranges {
        let mut at = range.first;
        while at < range.end {
            // One that ends here may not be needed any more; the next range begins later.
            while others.next_if(|other| other.end <= at).is_some() {}
            let end = match others.peek() {
                Some(other) if other.first <= at => {
                    at = other.end;
                    continue;
                }
                Some(other) => range.end.min(other.first),
                None => range.end,
            };
            left.push(PageRange { first: at, end });
            at = end;
        }
    }
    left
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_HUGE: u64 = 1 << 6;
/// In memory or swapped out.
const SOMEWHERE: u64 = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
/// Without a userfaultfd that lifts protection by itself: refused.
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::c_ulong =
    3 << 30 | (size_of::<PmScanArg>() as libc::c_ulong) << 16 | (b'f' as libc::c_ulong) << 8 | 16;
/// Ranges fetched by one call.
const BATCH: usize = 1024;

/// This process's page tables, as the kernel shows them. Open it before access to files is given
/// up.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn open() -> Result<Self, MemoryError> {
        let file = File::open("/proc/thread-self/pagemap");
        Ok(Self(
            file.map_err(io("Opening", "/proc/thread-self/pagemap"))?,
        ))
    }

    /// The pages of `mapping`, a private mapping of this process, that it has written to: in memory
    /// or swapped out, but not the file's. Adjacent pages come as one range, numbered from the
    /// mapping's start.
    ///
    /// # Errors
    /// When the kernel has no `PAGEMAP_SCAN` (before Linux 6.7), or refuses.
    pub fn dirty_ranges(
        &self,
        mapping: &std::ops::Range<usize>,
    ) -> Result<Vec<PageRange>, MemoryError> {
        self.scan(mapping, (0, PAGE_IS_FILE), SOMEWHERE, 0)
    }

    /// The same, and atomically each page is write-protected in a way that lifts itself. There must
    /// be a userfaultfd for that ([`crate::WriteTracking`]).
    pub(crate) fn protect_dirty(
        &self,
        mapping: &std::ops::Range<usize>,
    ) -> Result<Vec<PageRange>, MemoryError> {
        let protect = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;
        self.scan(mapping, (0, PAGE_IS_FILE), SOMEWHERE, protect)
    }

    /// Those of [`Pagemap::dirty_ranges`] that are not write-protected so.
    pub(crate) fn unprotected_dirty_ranges(
        &self,
        mapping: &std::ops::Range<usize>,
    ) -> Result<Vec<PageRange>, MemoryError> {
        self.scan(mapping, (PAGE_IS_WRITTEN, PAGE_IS_FILE), SOMEWHERE, 0)
    }

    /// The pages of `mapping`, anonymous memory that a pager fills ([`crate::pager`]), that have
    /// been written to since they came, or that came from nowhere. Pages that were never fetched
    /// and what is still the kernel's page of zeros are not among them.
    ///
    /// # Errors
    /// As [`Pagemap::dirty_ranges`].
    pub fn written_ranges(
        &self,
        mapping: &std::ops::Range<usize>,
    ) -> Result<Vec<PageRange>, MemoryError> {
        self.scan(mapping, (PAGE_IS_WRITTEN, PAGE_IS_PFNZERO), SOMEWHERE, 0)
    }

    /// The pages of `mapping` that are mapped, its own and the file's.
    ///
    /// # Errors
    /// As [`Pagemap::dirty_ranges`].
    pub fn present_ranges(
        &self,
        mapping: &std::ops::Range<usize>,
    ) -> Result<Vec<PageRange>, MemoryError> {
        self.scan(mapping, (0, 0), PAGE_IS_PRESENT, 0)
    }

    /// The pages of `mapping` that are mapped in huge pages.
    ///
    /// # Errors
    /// As [`Pagemap::dirty_ranges`].
    pub fn huge_ranges(
        &self,
        mapping: &std::ops::Range<usize>,
    ) -> Result<Vec<PageRange>, MemoryError> {
        self.scan(mapping, (PAGE_IS_HUGE, 0), PAGE_IS_PRESENT, 0)
    }

    /// The pages that have all of `with`, none of `without`, and any of `any`; `flags` say what is
    /// done to them.
    fn scan(
        &self,
        mapping: &std::ops::Range<usize>,
        (with, without): (u64, u64),
        any: u64,
        flags: u64,
    ) -> Result<Vec<PageRange>, MemoryError> {
        let base = mapping.start as u64;
        let mut regions = vec![PageRegion::default(); BATCH];
        let mut ranges: Vec<PageRange> = Vec::new();
        let mut start = base;
        while start < mapping.end as u64 {
            let mut arg = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                flags,
                start,
                end: mapping.end as u64,
                vec: regions.as_mut_ptr().expose_provenance() as u64,
                vec_len: BATCH as u64,
                category_inverted: without,
                category_mask: with | without,
                category_anyof_mask: any,
                return_mask: PAGE_IS_PRESENT,
                ..PmScanArg::default()
            };
            // SAFETY: `arg` is the structure this request takes, and `vec` points to `vec_len`
            // regions that live across the call; of the scanned range nothing is changed that a
            // program could notice.
            let found = unsafe { libc::ioctl(self.0.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            let Ok(found) = usize::try_from(found) else {
                let with = format!("{start:#x} to {:#x}; needs Linux 6.7", mapping.end);
                return Err(io("PAGEMAP_SCAN", with)(std::io::Error::last_os_error()));
            };
            for region in regions.iter().take(found) {
                let (first, end) = ((region.start - base) / UNIT, (region.end - base) / UNIT);
                match ranges.last_mut() {
                    Some(last) if last.end == first => last.end = end,
                    _ => ranges.push(PageRange { first, end }),
                }
            }
            // `walk_end` is not to be trusted after a whole walk: the kernel leaves in it where its
            // own smaller buffer was full last. A call that had room left has seen everything.
            match regions.get(BATCH - 1) {
                Some(last) if found == BATCH => start = last.end,
                _ => break,
            }
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn runs(pages: &BTreeSet<u64>) -> Vec<PageRange> {
        let mut runs: Vec<PageRange> = Vec::new();
        for &page in pages {
            match runs.last_mut() {
                Some(last) if last.end == page => last.end += 1,
                _ => runs.push(PageRange {
                    first: page,
                    end: page + 1,
                }),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn what_is_outside_is_in_no_other(
            dirty in proptest::collection::btree_set(0u64..100, 0..100),
            named in proptest::collection::btree_set(0u64..100, 0..100),
        ) {
            let left = subtract(&runs(&dirty), runs(&named));
            let pages: Vec<u64> = left.iter().flat_map(|r| r.first..r.end).collect();
            let wanted: Vec<u64> = dirty.difference(&named).copied().collect();
            prop_assert_eq!(pages, wanted);
        }
    }
}
