//! Mapping guest memory before the guest asks for it (Linux 6.11: `KVM_PRE_FAULT_MEMORY`).
//!
//! A guest's first access to a page costs an exit, even if the host has the page. What is known to
//! be accessed soon is mapped while the machine is built, off the path of whoever waits for it.
#![expect(unsafe_code, reason = "the ioctl is not in kvm-ioctls")]

use crate::error::{Result, ioctl};
use crate::vcpu::Vcpu;
use kvm_bindings::kvm_pre_fault_memory;
use std::io::Error;
use std::os::fd::AsRawFd;

/// `_IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)`
const KVM_PRE_FAULT_MEMORY: libc::c_ulong =
    3 << 30 | (size_of::<kvm_pre_fault_memory>() as libc::c_ulong) << 16 | 0xae << 8 | 0xd5;
/// Signals that may interrupt one call before it counts as failed.
const MAX_INTERRUPTED: u32 = 16;

impl Vcpu {
    /// Maps `size` bytes of guest memory from `gpa` on, both whole pages, for all vCPUs. False:
    /// this KVM cannot, and guests map pages themselves as they need them.
    ///
    /// # Errors
    /// From the ioctl, for example if there is no memory at `gpa`.
    pub fn prefault(&self, gpa: u64, size: u64) -> Result<bool> {
        let mut range = kvm_pre_fault_memory {
            gpa,
            size,
            ..kvm_pre_fault_memory::default()
        };
        let mut interrupted = 0;
        while range.size > 0 {
            // SAFETY: `range` is the structure this request takes; the kernel writes back what is
            // left to do, and touches no other memory of ours.
            let done =
                unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_PRE_FAULT_MEMORY, &mut range) };
            if done >= 0 {
                continue;
            }
            let error = Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENOTTY | libc::EOPNOTSUPP) => return Ok(false),
                // The kernel interprets guests here: there are no tables of its own to fill.
                Some(libc::EINVAL) if range.gpa == gpa => return Ok(false),
                Some(libc::EINTR | libc::EAGAIN) if interrupted < MAX_INTERRUPTED => {
                    interrupted += 1;
                }
                _ => {
                    let with = format!("{size} bytes at {gpa:#x}, {} left", range.size);
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    let failed = ioctl("KVM_PRE_FAULT_MEMORY", with);
                    return Err(failed(kvm_ioctls::Error::new(errno)));
                }
            }
        }
        Ok(true)
    }
}
