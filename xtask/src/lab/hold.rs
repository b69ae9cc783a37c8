//! One virtual machine that exists as long as the lab does, and never runs.
//!
//! Linux patches its own code when the first virtual machine comes and when the last one goes (the
//! keys of `preempt_notifier` in the scheduler, of software-disabled APICs in KVM). A host that is
//! in use always has a machine, so in a benchmark that cost would be nobody's. With one machine
//! that stays, with a vCPU whose APIC nobody enables, nothing is patched any more.

use anyhow::{Context, Result};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// The interrupt pins that stay in user space: as many as Hatchery's machines have.
const PINS: u64 = 24;

/// Keeps the machine while it lives.
pub(super) struct HeldLab {
    _vcpu: VcpuFd,
    _machine: VmFd,
}

/// Makes the machine.
///
/// # Errors
/// What KVM says; the lab works without, less reliably.
pub(super) fn machine() -> Result<HeldLab> {
    let machine = Kvm::new()
        .context("Opening /dev/kvm")?
        .create_vm()
        .context("KVM_CREATE_VM")?;
    let mut split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..kvm_enable_cap::default()
    };
    split.args[0] = PINS;
    machine
        .enable_cap(&split)
        .context("KVM_CAP_SPLIT_IRQCHIP")?;
    let vcpu = machine.create_vcpu(0).context("KVM_CREATE_VCPU")?;
    Ok(HeldLab {
        _vcpu: vcpu,
        _machine: machine,
    })
}
