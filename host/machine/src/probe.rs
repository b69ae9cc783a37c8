//! Single KVM calls, timed, for a report about a host.

use crate::error::{Result, ioctl};
use crate::kvm::Kvm;
use crate::memory::{Backing, HugePages, Memory, MemorySpec};
use crate::vm::use_split_irqchip;
use kvm_bindings::kvm_pit_config;
use std::time::{Duration, Instant};

/// Which interrupt controllers are in the kernel when a memory slot is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// None yet.
    None,
    /// Local APICs only.
    Split,
    /// All, and the timer chip: what most virtual machine monitors make.
    Full,
}

/// Time of `KVM_CREATE_VM`.
///
/// # Errors
/// From the ioctl.
pub fn create_vm(kvm: &Kvm) -> Result<Duration> {
    let start = Instant::now();
    let vm = kvm
        .fd()
        .create_vm()
        .map_err(ioctl("KVM_CREATE_VM", "type 0"))?;
    let time = start.elapsed();
    drop(vm);
    Ok(time)
}

/// Time of one `KVM_SET_USER_MEMORY_REGION`, with these interrupt controllers made before.
///
/// # Errors
/// From the ioctls.
pub fn slot(kvm: &Kvm, irqchip: Irqchip) -> Result<Duration> {
    let spec = MemorySpec {
        bytes: 1 << 20,
        backing: Backing::Anonymous,
        huge_pages: HugePages::Never,
    };
    let memory = Memory::new(&spec)?;
    let vm = kvm
        .fd()
        .create_vm()
        .map_err(ioctl("KVM_CREATE_VM", "type 0"))?;
    match irqchip {
        Irqchip::None => {}
        Irqchip::Split => use_split_irqchip(&vm)?,
        Irqchip::Full => {
            vm.create_irq_chip()
                .map_err(ioctl("KVM_CREATE_IRQCHIP", ""))?;
            vm.create_pit2(kvm_pit_config::default())
                .map_err(ioctl("KVM_CREATE_PIT2", ""))?;
        }
    }
    let start = Instant::now();
    memory.register(&vm)?;
    let time = start.elapsed();
    drop(vm);
    Ok(time)
}
