//! Interrupt lines: an eventfd raises a line, a route says which message the line becomes.
//!
//! The local APICs are in the kernel, the IOAPIC is a device in user space. So a line (GSI) is
//! delivered as the message-signalled interrupt that the IOAPIC's redirection entry describes; the
//! IOAPIC model calls [`IrqRoutes::set`] when the guest changes an entry.

use crate::error::{Error, Result, ioctl};
use crate::layout::{self, GSI_COUNT};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_msi, kvm_irq_routing_msi__bindgen_ty_1,
};
use kvm_ioctls::VmFd;
use std::sync::{Arc, Mutex, PoisonError};

/// A message-signalled interrupt: the write that a device would put on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// `0xfeeX_XXXX`: destination APIC and mode (Intel SDM vol. 3, 11.11.1).
    pub address: u32,
    /// Vector, delivery mode, trigger mode (11.11.2).
    pub data: u32,
}

impl Msi {
    /// The message for an IOAPIC redirection entry (82093AA data sheet, 3.2.4); `None` if masked.
    #[must_use]
    pub fn from_redirection(entry: u64) -> Option<Self> {
        let field = |shift: u32, mask: u64| u32::try_from((entry >> shift) & mask).unwrap_or(0);
        if field(16, 1) == 1 {
            return None;
        }
        let base = u32::try_from(layout::LAPIC).unwrap_or(0);
        let address = base | field(56, 0xff) << 12 | field(11, 1) << 2;
        Some(Self {
            address,
            data: field(0, 0x7ff) | field(15, 1) << 15,
        })
    }
}

type Table = [Option<Msi>; GSI_COUNT as usize];

/// The routing table of one VM. Cloning gives another handle to the same table.
#[derive(Clone)]
pub struct IrqRoutes {
    vm: Arc<VmFd>,
    table: Arc<Mutex<Table>>,
}

impl std::fmt::Debug for IrqRoutes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("IrqRoutes").field(&self.table).finish()
    }
}

impl IrqRoutes {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            table: Arc::default(),
        }
    }

    /// Routes line `gsi` to `msi`, or nowhere. Setting what is already set costs nothing;
    /// a change makes the kernel swap its table.
    ///
    /// # Errors
    /// [`Error::Gsi`], or the ioctl's error.
    pub fn set(&self, gsi: u32, msi: Option<Msi>) -> Result<()> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = table.get_mut(gsi as usize).ok_or(Error::Gsi(gsi))?;
        if *slot == msi {
            return Ok(());
        }
        *slot = msi;
        let entries: Vec<_> = (0..)
            .zip(table.iter())
            .filter_map(|(gsi, msi)| Some(entry(gsi, (*msi)?)))
            .collect();
        let call = || ioctl("KVM_SET_GSI_ROUTING", format!("{} routes", entries.len()));
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| call()(vmm_sys_util::errno::Error::new(libc::ENOMEM)))?;
        self.vm.set_gsi_routing(&routing).map_err(call())
    }
}

fn entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: msi.address,
                address_hi: 0,
                data: msi.data,
                __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { pad: 0 },
            },
        },
        ..Default::default()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn redirection_entries_become_messages() {
        // Vector 0x31, lowest priority, logical, to APIC 3; unmasked, edge.
        let entry = 3 << 56 | 1 << 11 | 1 << 8 | 0x31;
        let msi = Msi {
            address: 0xfee0_3004,
            data: 0x131,
        };
        // Bit 11 (destination mode) belongs to the address, not to the data.
        assert_eq!(Msi::from_redirection(entry), Some(msi));
        assert_eq!(Msi::from_redirection(entry | 1 << 16), None);
        assert_eq!(
            Msi::from_redirection(entry | 1 << 15).map(|m| m.data),
            Some(0x8131)
        );
    }
}
