//! One virtual machine: made in the one good order.
//!
//! Memory slots → split irqchip → vCPUs, all in [`Vm::new`]; then interrupt lines and doorbells.
//! From Linux 6.18 a slot change after the irqchip costs milliseconds, so there is no way to make
//! one. No PIC, no PIT, and the IOAPIC lives in user space.

use crate::error::{Error, Result, ioctl};
use crate::irq::IrqRoutes;
use crate::kvm::Kvm;
use crate::memory::{Memory, MemorySpec};
use crate::vcpu::Vcpu;
use crate::{cpuid, layout};
use kvm_bindings::{KVM_CAP_HALT_POLL, KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// A machine as asked.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Its memory.
    pub memory: MemorySpec,
}

/// A virtual machine with its memory.
#[derive(Debug)]
pub struct Vm {
    // Dropped before the memory that its slots point to.
    pub(crate) fd: Arc<VmFd>,
    routes: IrqRoutes,
    memory: Memory,
    pub(crate) vcpus: u8,
}

impl Vm {
    /// Makes the VM, its memory slots, its irqchip and its vCPUs. Nothing runs.
    ///
    /// # Errors
    /// Whatever mapping or KVM refuses, by name.
    pub fn new(kvm: &Kvm, spec: &MachineSpec) -> Result<(Self, Vec<Vcpu>)> {
        let memory = Memory::new(&spec.memory)?;
        let fd = kvm
            .fd()
            .create_vm()
            .map_err(ioctl("KVM_CREATE_VM", "type 0"))?;
        let identity = layout::IDENTITY_MAP;
        fd.set_identity_map_address(identity)
            .map_err(ioctl("KVM_SET_IDENTITY_MAP_ADDR", format!("{identity:#x}")))?;
        let tss = usize::try_from(layout::TSS).map_err(|_| Error::Layout(layout::TSS))?;
        fd.set_tss_address(tss)
            .map_err(ioctl("KVM_SET_TSS_ADDR", format!("{tss:#x}")))?;
        memory.register(&fd)?;
        use_split_irqchip(&fd)?;
        if kvm.fd().check_extension_raw(KVM_CAP_HALT_POLL.into()) > 0 {
            // Polling for a wake-up burns host time for each of thousands of idle machines.
            enable(&fd, KVM_CAP_HALT_POLL, "KVM_CAP_HALT_POLL", 0)?;
        }
        let offers = kvm.offers()?;
        let vcpus = (0..spec.vcpus)
            .map(|index| {
                let cpuid = cpuid::for_vcpu(&offers.cpuid, index, spec.vcpus);
                Vcpu::new(&fd, index, &cpuid, Arc::clone(&offers.msrs))
            })
            .collect::<Result<_>>()?;
        let fd = Arc::new(fd);
        Ok((
            Self {
                routes: IrqRoutes::new(Arc::clone(&fd)),
                fd,
                memory,
                vcpus: spec.vcpus,
            },
            vcpus,
        ))
    }

    /// Guest RAM.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The table that says what each interrupt line becomes.
    #[must_use]
    pub fn routes(&self) -> IrqRoutes {
        self.routes.clone()
    }

    /// An eventfd that raises interrupt line `gsi` when written.
    ///
    /// # Errors
    /// [`Error::Gsi`], or from the eventfd or ioctl.
    pub fn irq_line(&self, gsi: u32) -> Result<EventFd> {
        if gsi >= layout::GSI_COUNT {
            return Err(Error::Gsi(gsi));
        }
        let event = new_event()?;
        self.fd
            .register_irqfd(&event, gsi)
            .map_err(ioctl("KVM_IRQFD", format!("line {gsi}")))?;
        Ok(event)
    }

    /// Makes the guest's write of the 32-bit `value` to `address` signal `event`, without an exit
    /// to user space.
    ///
    /// # Errors
    /// From the ioctl.
    pub fn doorbell(&self, address: u64, value: u32, event: &EventFd) -> Result<()> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(ioctl("KVM_IOEVENTFD", format!("{address:#x} = {value}")))
    }

    /// Makes every write of the guest to `address` signal `event`, without an exit to user space.
    ///
    /// # Errors
    /// From the ioctl.
    pub fn absorb(&self, address: u64, event: &EventFd) -> Result<()> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(ioctl("KVM_IOEVENTFD", format!("{address:#x}, any value")))
    }
}

fn new_event() -> Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(|e| ioctl("eventfd", "")(vmm_sys_util::errno::Error::from(e)))
}

/// Local APICs in the kernel, everything else in user space; room for one route per line.
pub(crate) fn use_split_irqchip(vm: &VmFd) -> Result<()> {
    enable(
        vm,
        KVM_CAP_SPLIT_IRQCHIP,
        "KVM_CAP_SPLIT_IRQCHIP",
        layout::GSI_COUNT.into(),
    )
}

fn enable(vm: &VmFd, cap: u32, name: &'static str, value: u64) -> Result<()> {
    let cap = kvm_enable_cap {
        cap,
        args: [value, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&cap)
        .map_err(ioctl("KVM_ENABLE_CAP", format!("{name} = {value}")))
}
