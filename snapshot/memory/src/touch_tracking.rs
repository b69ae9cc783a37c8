//! Mapping only what is touched, for a machine whose working set is learned.
//!
//! The kernel maps the neighbours of a page that is read from a file, since they are likely next;
//! so page tables tell more than was used. Not where a userfaultfd may write-protect, because each
//! page would want a mark of its own: registering one, and protecting nothing, makes them exact.

use crate::error::{MemoryError, io};
use std::ffi::c_void;
use std::ops::Range;
use userfaultfd::{RegisterMode, Uffd, UffdBuilder};

/// As long as it lives, page tables tell what was touched.
#[derive(Debug)]
pub struct TouchTracking(#[expect(dead_code, reason = "the registration ends with it")] Uffd);

impl TouchTracking {
    /// For this process's mappings at `parts`, whole pages. What is mapped already is not
    /// forgotten.
    ///
    /// # Errors
    /// When the kernel has no userfaultfd for files in memory (Linux 5.19), or forbids it.
    pub fn begin(parts: &[Range<usize>]) -> Result<Self, MemoryError> {
        let failed = |with: String| {
            move |error: userfaultfd::Error| {
                io("Registering a userfaultfd", with)(std::io::Error::other(error))
            }
        };
        // There will be no fault to handle, so it needs no privilege to see the kernel's own.
        let mut builder = UffdBuilder::new();
        let uffd = builder.close_on_exec(true).user_mode_only(true).create();
        let uffd = uffd.map_err(failed("creating it".into()))?;
        for part in parts {
            let address = std::ptr::with_exposed_provenance_mut::<c_void>(part.start);
            let mode = RegisterMode::WRITE_PROTECT;
            uffd.register_with_mode(address, part.len(), mode)
                .map_err(failed(format!("{} bytes", part.len())))?;
        }
        Ok(Self(uffd))
    }
}
