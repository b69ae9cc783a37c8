//! Memory on demand: the only memory the agent has beyond its tables.

use super::{Result, call, nr, plain};

/// Private zeroed pages, given back when dropped.
#[derive(Debug)]
pub(crate) struct PrivatePages {
    start: *mut u8,
    len: usize,
}

impl PrivatePages {
    /// At least `len` bytes.
    pub(crate) fn new(len: usize) -> Result<Self> {
        const PROT_READ_WRITE: usize = 3;
        const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
        let flags = MAP_PRIVATE_ANONYMOUS;
        let start = plain(nr::MMAP, &[0, len, PROT_READ_WRITE, flags, usize::MAX, 0])?;
        Ok(Self {
            start: core::ptr::with_exposed_provenance_mut(start),
            len,
        })
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is ours alone, readable and writable, and lives as long as `self`.
        unsafe { core::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for PrivatePages {
    fn drop(&mut self) {
        // SAFETY: nothing borrows the mapping any more.
        let _ = unsafe {
            call(
                nr::MUNMAP,
                [self.start.expose_provenance(), self.len, 0, 0, 0, 0],
            )
        };
    }
}
