//! Model-specific registers that a direct boot must set, since no firmware runs.

use crate::error::{Result, ioctl};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// `IA32_MISC_ENABLE`, bit 0: fast string operations.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `IA32_MTRR_DEF_TYPE`: memory type ranges on, everything write-back. Without it Linux takes all
/// memory for uncacheable and gives up page attributes.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Sets what firmware would have set.
pub(crate) fn set_boot(vcpu: &VcpuFd, index: u8) -> Result<()> {
    let entries = [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        reserved: 0,
    });
    let call = || ioctl("KVM_SET_MSRS", format!("vCPU {index}, {entries:x?}"));
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| call()(vmm_sys_util::errno::Error::new(libc::ENOMEM)))?;
    match vcpu.set_msrs(&msrs) {
        Ok(set) if set == entries.len() => Ok(()),
        // The kernel stops at the first register it refuses.
        Ok(_) => Err(call()(vmm_sys_util::errno::Error::new(libc::EINVAL))),
        Err(error) => Err(call()(error)),
    }
}
