//! The tables that tell a guest which processors, interrupt controller and devices it has.
//!
//! Hardware-reduced ACPI (ACPI 6.5, section 4.1): no fixed hardware, no PIC, no timer chip; just
//! processors, one IOAPIC, and virtio-mmio devices by name, address and line.

use crate::boot::write;
use crate::error::{Error, Result};
use crate::layout;
use crate::memory::GuestRam;
use acpi_tables::Aml;
use acpi_tables::aml::{Device, Interrupt, Memory32Fixed, Name, Path, ResourceTemplate, Scope};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

const OEM: [u8; 6] = *b"HATCHY";
const OEM_TABLE: [u8; 8] = *b"HATCHERY";
const OEM_REVISION: u32 = 1;

/// `IAPC_BOOT_ARCH` (ACPI 6.5, table 5.11): no VGA, no CMOS clock. Legacy devices and keyboard
/// controller are absent too, by their bits being clear.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// FADT flag: the reset register may be used.
const RESET_REG_SUP: u32 = 1 << 10;

/// A memory-mapped device as a guest's driver finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcpiDevice {
    /// Hardware id, such as `LNRO0005` for virtio-mmio.
    pub hid: &'static str,
    /// Guest-physical window, below 4 GiB.
    pub base: u64,
    /// Length of the window.
    pub size: u64,
    /// Interrupt line, edge-triggered.
    pub gsi: u32,
}

/// Writes all tables; the root pointer lies at [`layout::ACPI`].
///
/// # Errors
/// [`Error::Acpi`] when they do not fit, [`Error::Layout`] for a device above 4 GiB,
/// [`Error::Write`].
pub fn write_tables(ram: &GuestRam, vcpus: u8, devices: &[AcpiDevice]) -> Result<()> {
    let bytes = tables(vcpus, devices)?;
    if bytes.len() as u64 > layout::ACPI_MAX {
        return Err(Error::Acpi(bytes.len()));
    }
    write(ram, "ACPI tables", layout::ACPI, &bytes)
}

/// Tables one after the other, each at a 16-byte step, with their guest addresses.
struct Heap {
    bytes: Vec<u8>,
}

impl Heap {
    fn put(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = layout::ACPI + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn tables(vcpus: u8, devices: &[AcpiDevice]) -> Result<Vec<u8>> {
    // The root pointer comes first and points to what follows: its place is kept free.
    let mut heap = Heap {
        bytes: vec![0; Rsdp::len()],
    };
    let dsdt = heap.put(&dsdt(devices)?);
    let fadt = heap.put(&fadt(dsdt));
    let madt = heap.put(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = heap.put(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    heap.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    Ok(heap.bytes)
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi);
    table.flags = (table.flags.get() | RESET_REG_SUP).into();
    table.iapc_boot_arch = BOOT_ARCH.into();
    let port = u64::from(layout::PORT_RESET);
    table.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port);
    table.reset_value = layout::RESET_VALUE;
    table.finalize()
}

fn madt(vcpus: u8) -> impl Aml {
    let lapic = u32::try_from(layout::LAPIC).unwrap_or(0);
    let ioapic = u32::try_from(layout::IOAPIC).unwrap_or(0);
    let local = LocalInterruptController::Address(lapic);
    let mut table = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local);
    for index in 0..vcpus {
        table.add_structure(ProcessorLocalApic::new(
            index,
            index,
            EnabledStatus::Enabled,
        ));
    }
    // Its number continues after the processors': some kernels want all APIC numbers distinct.
    table.add_structure(IoApic::new(vcpus, ioapic, 0));
    table
}

fn dsdt(devices: &[AcpiDevice]) -> Result<Sdt> {
    let mut body = Vec::new();
    for (index, device) in (0_u32..).zip(devices) {
        let small = |value: u64| u32::try_from(value).map_err(|_| Error::Layout(value));
        let window = Memory32Fixed::new(true, small(device.base)?, small(device.size)?);
        let line = Interrupt::new(true, true, false, false, device.gsi);
        let hid = Name::new("_HID".into(), &device.hid);
        let uid = Name::new("_UID".into(), &index);
        let resources = ResourceTemplate::new(vec![&window, &line]);
        let crs = Name::new("_CRS".into(), &resources);
        let name = Path::new(&format!("V{index:03}"));
        Device::new(name, vec![&hid, &uid, &crs]).to_aml_bytes(&mut body);
    }
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&Scope::raw(Path::new("_SB_"), body));
    Ok(table)
}

#[cfg(test)]
mod test {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn at(bytes: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - layout::ACPI).unwrap();
        let table = &bytes[start..];
        let len = u32::from_le_bytes(table[4..8].try_into().unwrap());
        &table[..len as usize]
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn every_table_is_reached_and_sums_to_zero() {
        let device = AcpiDevice {
            hid: "LNRO0005",
            base: layout::MMIO,
            size: layout::MMIO_WINDOW,
            gsi: 5,
        };
        let bytes = tables(8, &[device; 19]).unwrap();
        assert!((bytes.len() as u64) < layout::ACPI_MAX);
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!(sum(&bytes[..36]), 0);
        let xsdt = at(&bytes, u64_at(&bytes, 24));
        let (fadt, madt) = (at(&bytes, u64_at(xsdt, 36)), at(&bytes, u64_at(xsdt, 44)));
        let dsdt = at(&bytes, u64_at(fadt, 140));
        for (table, name) in [
            (xsdt, b"XSDT"),
            (fadt, b"FACP"),
            (madt, b"APIC"),
            (dsdt, b"DSDT"),
        ] {
            assert_eq!((&table[..4], sum(table)), (&name[..], 0));
        }
        assert_eq!(dsdt.windows(8).filter(|w| w == b"LNRO0005").count(), 19);
        // 44 bytes of header, 8 processors, 1 IOAPIC.
        assert_eq!(madt.len(), 44 + 8 * 8 + 12);
    }

    #[test]
    fn a_window_above_4_gib_is_refused() {
        let device = AcpiDevice {
            hid: "LNRO0005",
            base: 1 << 32,
            size: 4096,
            gsi: 5,
        };
        assert!(matches!(tables(1, &[device]), Err(Error::Layout(_))));
    }
}
