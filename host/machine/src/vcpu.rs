//! One vCPU: made, entered, run, parked.

use crate::boot::Entry;
use crate::bus::Bus;
use crate::error::{Result, ioctl};
use crate::exit::{Exit, run_once};
use crate::msr;
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use std::sync::Arc;

/// Most exits that may follow one another while an access is finished. KVM goes back to the guest
/// at the latest after 1024 steps of a string instruction.
const SETTLE_MAX: u32 = 4096;

/// A virtual processor that no thread runs yet.
#[derive(Debug)]
pub struct Vcpu {
    pub(crate) fd: VcpuFd,
    index: u8,
    /// Model-specific registers that are saved, ascending.
    pub(crate) msrs: Arc<[u32]>,
}

impl Vcpu {
    pub(crate) fn new(vm: &VmFd, index: u8, cpuid: &CpuId, msrs: Arc<[u32]>) -> Result<Self> {
        let with = || format!("vCPU {index}");
        let fd = vm
            .create_vcpu(index.into())
            .map_err(ioctl("KVM_CREATE_VCPU", with()))?;
        fd.set_cpuid2(cpuid)
            .map_err(ioctl("KVM_SET_CPUID2", with()))?;
        msr::set_boot(&fd, index)?;
        Ok(Self { fd, index, msrs })
    }

    /// Sets the registers for a 64-bit entry. Only the first processor of a Linux guest needs
    /// this: the others wait for the start-up message that the first one sends.
    ///
    /// # Errors
    /// From the ioctls.
    pub fn enter_at(&self, entry: &Entry) -> Result<()> {
        let with = || format!("vCPU {}", self.index);
        let mut sregs = self
            .fd
            .get_sregs()
            .map_err(ioctl("KVM_GET_SREGS", with()))?;
        entry.apply(&mut sregs);
        self.fd
            .set_sregs(&sregs)
            .map_err(ioctl("KVM_SET_SREGS", with()))?;
        self.fd
            .set_regs(&entry.regs())
            .map_err(ioctl("KVM_SET_REGS", with()))
    }

    /// Its number, from 0.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// The kvm-ioctls handle, for tests and probes.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Runs the guest once and answers port and memory accesses.
    pub fn run_once(&mut self, ports: &Bus, memory: &Bus) -> Exit {
        run_once(&mut self.fd, ports, memory)
    }

    /// Finishes a port or memory access that user space has answered but the guest has not seen,
    /// without running the guest on. After this the registers are whole.
    ///
    /// An access may have more parts than one exit shows (a wide or unaligned one, a string
    /// instruction); the further parts go to the buses as well.
    ///
    /// # Errors
    /// The exit that ends the guest instead, [`Exit::Failed`] with `ELOOP` when the access does
    /// not come to an end.
    pub fn settle(&mut self, ports: &Bus, memory: &Bus) -> std::result::Result<(), Exit> {
        self.fd.set_kvm_immediate_exit(1);
        let mut settled = Err(Exit::Failed(libc::ELOOP));
        for _ in 0..SETTLE_MAX {
            match run_once(&mut self.fd, ports, memory) {
                Exit::Io => {}
                Exit::Interrupted => {
                    settled = Ok(());
                    break;
                }
                end => {
                    settled = Err(end);
                    break;
                }
            }
        }
        self.fd.set_kvm_immediate_exit(0);
        settled
    }
}
