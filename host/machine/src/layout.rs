//! Every guest-physical address and interrupt number, each computed from its neighbour.
//!
//! ```text
//! 0x0000_0000  low RAM: GDT, zero page, page tables, command line, …
//! 0x000a_0000  hole (legacy VGA and ROM space, no RAM promised to the guest)
//! 0x000e_0000  ACPI tables (RAM, reserved in the memory map)
//! 0x000f_f000  one reserved RAM page: kept free for a VM generation id
//! 0x0010_0000  low RAM continues: kernel, initrd, everything else
//! 0xc000_0000  end of low RAM at most; virtio-mmio windows, 4 KiB each
//! 0xfec0_0000  IOAPIC registers
//! 0xfee0_0000  local APIC registers
//! 0xfffb_c000  Intel only: identity-map page and task-state pages, set aside for KVM
//! 0x1_0000_0000  high RAM: what does not fit below 3 GiB
//! ```

use std::ops::Range;

/// Bytes of one small page.
pub const PAGE: u64 = 4096;
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// Global descriptor table for the 64-bit entry.
pub const GDT: u64 = 0x500;
/// Linux `boot_params`, one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of the stack that the entry code may use.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page-map level 4, one page; the two lower levels follow.
pub const PML4: u64 = 0x9000;
/// Page-directory-pointer table.
pub const PDPT: u64 = PML4 + PAGE;
/// Page directory of 512 × 2 MiB: the first GiB, mapped one to one.
pub const PAGE_DIRECTORY: u64 = PDPT + PAGE;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Most bytes of the command line with its final zero.
pub const CMDLINE_MAX: u64 = 4096;

/// End of the first stretch of usable RAM.
pub const LOW_RAM_HOLE: u64 = 0xa_0000;
/// ACPI tables, the root pointer first.
pub const ACPI: u64 = 0xe_0000;
/// Most bytes of all ACPI tables.
pub const ACPI_MAX: u64 = GENERATION_PAGE - ACPI;
/// A RAM page that the memory map reserves: room for a VM generation id.
pub const GENERATION_PAGE: u64 = 0xf_f000;
/// Where usable RAM continues, and the least address of a kernel.
pub const HIGH_MEMORY: u64 = MIB;
/// End of low RAM if the guest has that much.
pub const LOW_RAM_END: u64 = 3 * GIB;
/// Start of high RAM.
pub const HIGH_RAM: u64 = 4 * GIB;

/// First virtio-mmio window.
pub const MMIO: u64 = LOW_RAM_END;
/// Bytes of one virtio-mmio window.
pub const MMIO_WINDOW: u64 = PAGE;
/// IOAPIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Bytes of the IOAPIC window.
pub const IOAPIC_WINDOW: u64 = PAGE;
/// Local APIC registers, the base of every message-signalled interrupt.
pub const LAPIC: u64 = 0xfee0_0000;
/// One page that KVM needs on old Intel processors.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM needs on old Intel processors.
pub const TSS: u64 = IDENTITY_MAP + PAGE;

/// Pins of the IOAPIC, and so the number of interrupt lines (GSIs).
pub const GSI_COUNT: u32 = 24;
/// First interrupt line given to devices; lower numbers look like ISA interrupts to Linux.
pub const FIRST_DEVICE_GSI: u32 = 5;
/// Most virtio-mmio devices: one line each.
pub const MAX_MMIO_DEVICES: u32 = GSI_COUNT - FIRST_DEVICE_GSI;

/// Port of the write-only console (a 16550's base).
pub const PORT_CONSOLE: u16 = 0x3f8;
/// Ports of the console.
pub const PORT_CONSOLE_LEN: u16 = 8;
/// Port of the reset command (the keyboard controller's command port).
pub const PORT_RESET: u16 = 0x64;
/// The byte that resets the machine when written to [`PORT_RESET`].
pub const RESET_VALUE: u8 = 0xfe;

const _: () = {
    assert!(GDT + 5 * 8 <= ZERO_PAGE);
    assert!(ZERO_PAGE + PAGE <= BOOT_STACK && BOOT_STACK < PML4);
    assert!(PAGE_DIRECTORY + PAGE <= CMDLINE);
    assert!(CMDLINE + CMDLINE_MAX <= LOW_RAM_HOLE);
    assert!(LOW_RAM_HOLE <= ACPI && GENERATION_PAGE + PAGE == HIGH_MEMORY);
    assert!(
        ACPI.is_multiple_of(16),
        "the root pointer is found at 16-byte steps"
    );
    assert!(MMIO + MMIO_WINDOW * (MAX_MMIO_DEVICES as u64) <= IOAPIC);
    assert!(IOAPIC + IOAPIC_WINDOW <= LAPIC && LAPIC + PAGE <= IDENTITY_MAP);
    assert!(TSS + 3 * PAGE <= HIGH_RAM);
};

/// Window and interrupt line of the `index`th virtio-mmio device; `None` when there is no such.
#[must_use]
pub fn mmio_device(index: u32) -> Option<(u64, u32)> {
    (index < MAX_MMIO_DEVICES).then(|| {
        (
            MMIO + u64::from(index) * MMIO_WINDOW,
            FIRST_DEVICE_GSI + index,
        )
    })
}

/// The RAM ranges (start, length) of a guest with `bytes` of memory, in rising order.
#[must_use]
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_END);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((HIGH_RAM, bytes - low));
    }
    ranges
}

/// Where a Linux guest with `bytes` of RAM lays out its array of page descriptors, all of which it
/// writes at boot: 64 bytes per page, allocated from the top down, below a last stretch that goes
/// to smaller things. A guess that costs some memory if it is wrong.
#[must_use]
pub fn page_array(bytes: u64) -> Range<u64> {
    const DESCRIPTOR: u64 = 64;
    const ABOVE: u64 = 2 * MIB;
    let (base, len) = ram_ranges(bytes).pop().unwrap_or_default();
    let end = base + len.saturating_sub(ABOVE);
    end.saturating_sub(bytes / PAGE * DESCRIPTOR).max(base)..end
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn ram_is_split_around_the_device_hole() {
        assert_eq!(ram_ranges(512 * MIB), [(0, 512 * MIB)]);
        assert_eq!(ram_ranges(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ram_ranges(16 * GIB), [(0, 3 * GIB), (4 * GIB, 13 * GIB)]);
    }

    #[test]
    fn the_page_array_lies_below_the_top() {
        assert_eq!(page_array(512 * MIB), 502 * MIB..510 * MIB);
        assert_eq!(page_array(4 * GIB), 5 * GIB - 66 * MIB..5 * GIB - 2 * MIB);
        assert_eq!(page_array(MIB), 0..0);
    }

    #[test]
    fn windows_and_lines_do_not_repeat() {
        let all: Vec<_> = (0..100).map_while(mmio_device).collect();
        assert_eq!(all.len(), 19);
        assert!(
            all.windows(2)
                .all(|w| w[0].0 + MMIO_WINDOW == w[1].0 && w[0].1 + 1 == w[1].1)
        );
        assert_eq!(all.last().map(|d| d.1), Some(GSI_COUNT - 1));
    }
}
