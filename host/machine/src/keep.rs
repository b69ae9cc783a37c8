//! A machine that the kernel does not take down before the process's memory.
#![expect(unsafe_code, reason = "a mapping that nobody uses")]

use crate::error::{Result, ioctl};
use crate::vcpu::Vcpu;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;

/// Bytes of a page.
const PAGE: usize = 4096;

impl Vcpu {
    /// Has the kernel keep the vCPU's machine until this process's memory is gone, whatever is
    /// closed. For ever: there is no way back.
    ///
    /// # Errors
    /// When there is no room for a mapping.
    pub fn keep(&self) -> Result<()> {
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) };
        // SAFETY: the kernel chooses a free place, and nobody is told where it is.
        let mapped = unsafe { mmap(null_mut(), PAGE, ProtFlags::READ, MapFlags::SHARED, fd, 0) };
        mapped.map(drop).map_err(|errno| {
            let error = vmm_sys_util::errno::Error::new(errno.raw_os_error());
            ioctl("mmap", "a vCPU, once more")(error)
        })
    }
}
