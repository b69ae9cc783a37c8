//! The host's KVM: opened once, checked once.

use crate::contract::CpuContract;
use crate::error::{Error, Result, ioctl};
use crate::{cpuid, msr};
use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, VmFd};
use std::sync::{Arc, OnceLock};

/// What a host's KVM must have, with the kernel's names.
pub const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::TscDeadlineTimer, "KVM_CAP_TSC_DEADLINE_TIMER"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
];

/// What makes a host better but is not needed.
pub const OPTIONAL: &[(Cap, &str)] = &[
    (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
    (Cap::TscControl, "KVM_CAP_TSC_CONTROL"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    (Cap::SyncMmu, "KVM_CAP_SYNC_MMU"),
];

/// The interface version that every KVM since 2007 speaks.
pub const API_VERSION: i32 = 12;

/// An open, checked `/dev/kvm`.
#[derive(Debug)]
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
    offers: OnceLock<Offers>,
}

/// What this KVM offers to guests; asked once, because the answer costs as much as making a VM.
#[derive(Debug)]
pub(crate) struct Offers {
    pub(crate) cpuid: CpuId,
    /// Numbers of the registers that are saved, ascending.
    pub(crate) msrs: Arc<[u32]>,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks that it can do what we need.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::ApiVersion`], or [`Error::Missing`] with the names.
    pub fn open() -> Result<Self> {
        let kvm = Self::open_unchecked()?;
        match (kvm.fd.get_api_version(), kvm.missing()) {
            (API_VERSION, missing) if missing.is_empty() => Ok(kvm),
            (API_VERSION, missing) => Err(Error::Missing(missing)),
            (version, _) => Err(Error::ApiVersion(version)),
        }
    }

    /// Opens `/dev/kvm` without looking at what it can do, for a report about the host.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open_unchecked() -> Result<Self> {
        Ok(Self {
            fd: kvm_ioctls::Kvm::new().map_err(Error::Open)?,
            offers: OnceLock::new(),
        })
    }

    /// Asks KVM now what machines will ask it later, for a process that is to be forked.
    ///
    /// # Errors
    /// From the ioctls.
    pub fn prepare(&self) -> Result<()> {
        self.offers().map(drop)
    }

    /// A VM that does nothing but keep KVM from going to sleep: while none exists, it switches
    /// virtualization off on every processor and its hooks out of the scheduler, by rewriting
    /// kernel code, and back when the next one is made.
    ///
    /// # Errors
    /// From the ioctl.
    pub fn keep_awake(&self) -> Result<VmFd> {
        let failed = ioctl("KVM_CREATE_VM", "one that does nothing");
        self.fd.create_vm().map_err(failed)
    }

    pub(crate) fn offers(&self) -> Result<&Offers> {
        if let Some(offers) = self.offers.get() {
            return Ok(offers);
        }
        let offers = Offers {
            cpuid: cpuid::supported(&self.fd)?,
            msrs: msr::saved(&self.fd)?,
        };
        Ok(self.offers.get_or_init(|| offers))
    }

    /// What guests of this host may remember of their processor.
    ///
    /// # Errors
    /// From the ioctl.
    pub fn cpu_contract(&self) -> Result<CpuContract> {
        Ok(cpuid::contract(&self.offers()?.cpuid))
    }

    /// Names of the needed capabilities that this host lacks.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let lacks = |(cap, name): &(Cap, _)| (!self.has(*cap)).then_some(*name);
        REQUIRED.iter().filter_map(lacks).collect()
    }

    /// Whether a capability is there.
    #[must_use]
    pub fn has(&self, cap: Cap) -> bool {
        self.fd.check_extension_int(cap) > 0
    }

    /// The kvm-ioctls handle, for reports and tests.
    #[must_use]
    pub fn fd(&self) -> &kvm_ioctls::Kvm {
        &self.fd
    }
}
