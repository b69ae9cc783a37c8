//! Which pages are written to again while they are copied.
//!
//! A machine that runs is copied in two passes. First its own pages are write-protected, without a
//! handler: a write to one lifts the protection, in the kernel. They are copied while the machine
//! runs. Then it is paused, and what is its own but no longer protected is copied again.
#![expect(unsafe_code, reason = "userfaultfd is a system call without a wrapper")]

use crate::dirty::{PageRange, Pagemap};
use crate::error::{MemoryError, io};
use crate::uffd::{PAGEFAULT_FLAG_WP, WP_ASYNC, prepare};
use std::ffi::c_void;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use userfaultfd::{RegisterMode, Uffd};

/// Faults of the kernel's own need no handler either, so no privilege is asked for.
const FLAGS: libc::c_int = libc::O_CLOEXEC | 1;

/// As long as it lives, pages that it has protected tell whether they were written to.
#[derive(Debug)]
pub struct WriteTracking {
    #[expect(dead_code, reason = "the registration ends with it")]
    uffd: Uffd,
    mapping: std::ops::Range<usize>,
}

impl WriteTracking {
    /// Protects the pages of `mapping`, a private mapping of this process, that it has written to;
    /// and says which they are, as [`Pagemap::dirty_ranges`] does.
    ///
    /// Needs no more than the system calls `userfaultfd` and `ioctl`.
    ///
    /// # Errors
    /// When the kernel cannot do it (before Linux 6.7), or when the memory has a userfaultfd
    /// already.
    pub fn begin(
        mapping: std::ops::Range<usize>,
        pagemap: &Pagemap,
    ) -> Result<(Self, Vec<PageRange>), MemoryError> {
        let failed = |with: String| io("Watching for writes by a userfaultfd", with);
        // SAFETY: the system call takes flags by value and gives a new descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
        let fd = i32::try_from(fd).unwrap_or(-1);
        if fd < 0 {
            return Err(failed("creating it".into())(std::io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just given it to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let features = PAGEFAULT_FLAG_WP | WP_ASYNC;
        let with = format!("features {features:#x}; needs Linux 6.7");
        prepare(&fd, features).map_err(failed(with))?;
        // SAFETY: it owns the descriptor from here on, and closes it.
        let uffd = unsafe { Uffd::from_raw_fd(fd.into_raw_fd()) };
        let address = std::ptr::with_exposed_provenance_mut::<c_void>(mapping.start);
        uffd.register_with_mode(address, mapping.len(), RegisterMode::WRITE_PROTECT)
            .map_err(|error| {
                failed(format!("{} bytes", mapping.len()))(std::io::Error::other(error))
            })?;
        let own = pagemap.protect_dirty(&mapping)?;
        Ok((Self { uffd, mapping }, own))
    }

    /// The pages of the mapping that are this process's own now and either were not when this
    /// began, or have been written to since.
    ///
    /// # Errors
    /// As [`Pagemap::dirty_ranges`].
    pub fn ranges(&self, pagemap: &Pagemap) -> Result<Vec<PageRange>, MemoryError> {
        pagemap.unprotected_dirty_ranges(&self.mapping)
    }
}
