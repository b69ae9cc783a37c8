//! Where `machine` and `devices`, which do not know each other, meet: adapters of a few lines.

use devices::{Console, Ioapic, IrqLine, MmioWindow, MsiRoute, ResetPort};
use machine::{BusDevice, IrqRoutes, Msi};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// An interrupt line by irqfd.
pub(crate) struct IrqfdLine(pub(crate) EventFd);

impl IrqLine for IrqfdLine {
    fn raise(&self) {
        // The counter can only overflow if the kernel stopped reading it.
        let _ = self.0.write(1);
    }

    fn eventfd(&self) -> Option<BorrowedFd<'_>> {
        Some(borrow(&self.0))
    }
}

/// vmm-sys-util's eventfd knows only raw descriptors.
#[expect(
    unsafe_code,
    reason = "an eventfd of vmm-sys-util does not lend its descriptor"
)]
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` lives, which the lifetime says.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// The IOAPIC's way to the kernel's routing table.
pub(crate) struct KvmIrqRoutes(pub(crate) IrqRoutes);

impl devices::IrqRoutes for KvmIrqRoutes {
    fn set(&self, pin: u8, route: MsiRoute) {
        let address = u32::try_from(route.address).unwrap_or(0);
        let msi = (!route.masked).then_some(Msi {
            address,
            data: route.data,
        });
        // The pin is below 24 and the message is a value like any other: the kernel has no reason
        // to refuse. If it does, the guest loses this line, as on hardware that failed.
        let _ = self.0.set(pin.into(), msi);
    }
}

/// A device window on the memory bus.
pub(crate) struct DeviceWindow(pub(crate) Arc<MmioWindow>);

impl BusDevice for DeviceWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// The IOAPIC on the memory bus.
pub(crate) struct IoapicWindow(pub(crate) Arc<Ioapic>);

impl BusDevice for IoapicWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// The console on the port bus.
pub(crate) struct ConsolePorts(pub(crate) Arc<Console>);

impl BusDevice for ConsolePorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// The reset command on the port bus.
pub(crate) struct ResetPortWindow(pub(crate) ResetPort);

impl BusDevice for ResetPortWindow {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        self.0.read(data);
    }
    fn write(&self, _offset: u64, data: &[u8]) {
        self.0.write(data);
    }
}
