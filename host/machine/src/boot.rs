//! Linux, straight into 64-bit mode: kernel, initrd, command line, boot parameters, first
//! registers. No firmware runs.
//!
//! Follows `Documentation/arch/x86/boot.rst`, section "64-bit boot protocol".

use crate::error::{Error, Result};
use crate::layout::{self, PAGE};
use crate::memory::{GuestRam, HUGE_PAGE, Memory};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{Elf, KernelLoader};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use vm_memory::{
    Address, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile,
};

/// Where the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First instruction.
    pub rip: u64,
    /// What `rsi` holds: Linux finds its boot parameters there.
    pub rsi: u64,
    /// Top of the stack.
    pub rsp: u64,
}

/// What to boot.
#[derive(Debug)]
pub struct BootSpec<'a> {
    /// The kernel command line.
    pub cmdline: &'a str,
    /// The initial file system, a cpio archive.
    pub initrd: &'a [u8],
}

/// A kernel, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Where to start it.
    pub entry: Entry,
    /// First address behind kernel and initrd.
    pub end: u64,
}

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// `hdr.boot_flag` and `hdr.header` of a boot sector that knows the protocol.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Segments looked at for huge pages; a kernel has a dozen or so.
const MAX_SEGMENTS: u16 = 64;
/// `hdr.type_of_loader`: undefined.
const LOADER_UNDEFINED: u8 = 0xff;

/// Loads a kernel with its initrd and writes everything it wants to find.
///
/// # Errors
/// [`Error::Kernel`], [`Error::Cmdline`], [`Error::Initrd`], [`Error::Write`].
pub fn load_linux<F>(memory: &Memory, kernel: &mut F, spec: &BootSpec<'_>) -> Result<Loaded>
where
    F: Read + ReadVolatile + Seek,
{
    let ram = memory.ram();
    let low = low_ram(ram);
    for chunk in dense_chunks(kernel, low).map_err(Error::KernelHeader)? {
        memory.expect_dense(chunk);
    }
    memory.expect_dense(layout::page_array(
        ram.iter().map(GuestMemoryRegion::len).sum(),
    ));
    let above = Some(GuestAddress(layout::HIGH_MEMORY));
    let loaded = Elf::load(ram, None, kernel, above).map_err(Error::Kernel)?;
    // Right behind the kernel: fewer page-table pages and huge-page neighbours to touch.
    let initrd = loaded.kernel_end.next_multiple_of(PAGE);
    let end = place_initrd(ram, initrd, spec.initrd)?;
    write_cmdline(ram, spec.cmdline)?;
    let params = boot_parameters(ram, initrd, spec)?;
    write(ram, "boot parameters", layout::ZERO_PAGE, params.as_slice())?;
    write_tables(ram)?;
    let entry = Entry {
        rip: loaded.kernel_load.raw_value(),
        rsi: layout::ZERO_PAGE,
        rsp: layout::BOOT_STACK,
    };
    Ok(Loaded { entry, end })
}

/// The huge pages that a kernel's image fills by half or more; between its segments
/// there may be holes that nobody touches.
fn dense_chunks<F: Read + Seek>(kernel: &mut F, ram: u64) -> std::io::Result<Vec<Range<u64>>> {
    let mut filled = BTreeMap::<u64, u64>::new();
    for segment in segments(kernel)? {
        let end = segment.end.min(ram);
        let mut at = segment.start;
        while at < end {
            let next = (at + 1).next_multiple_of(HUGE_PAGE).min(end);
            *filled.entry(at / HUGE_PAGE * HUGE_PAGE).or_default() += next - at;
            at = next;
        }
    }
    filled.retain(|_, bytes| *bytes >= HUGE_PAGE / 2);
    Ok(filled
        .into_keys()
        .map(|start| start..start + HUGE_PAGE)
        .collect())
}

/// Where the bytes of an ELF file go in guest-physical memory.
fn segments<F: Read + Seek>(kernel: &mut F) -> std::io::Result<Vec<Range<u64>>> {
    let mut header = Elf64_Ehdr::default();
    kernel.rewind()?;
    kernel.read_exact(header.as_mut_slice())?;
    kernel.seek(SeekFrom::Start(header.e_phoff))?;
    let mut segments = Vec::new();
    for _ in 0..header.e_phnum.min(MAX_SEGMENTS) {
        let mut segment = Elf64_Phdr::default();
        kernel.read_exact(segment.as_mut_slice())?;
        if segment.p_type == PT_LOAD {
            let start = segment.p_paddr;
            segments.push(start..start.saturating_add(segment.p_filesz));
        }
    }
    Ok(segments)
}

fn low_ram(ram: &GuestRam) -> u64 {
    ram.iter().next().map_or(0, |r| r.len())
}

fn place_initrd(ram: &GuestRam, start: u64, initrd: &[u8]) -> Result<u64> {
    let bytes = initrd.len() as u64;
    let low = low_ram(ram);
    match start.checked_add(bytes) {
        Some(end) if end <= low => {
            write(ram, "initrd", start, initrd)?;
            Ok(end)
        }
        _ => Err(Error::Initrd {
            bytes,
            start,
            ram: low,
        }),
    }
}

fn write_cmdline(ram: &GuestRam, cmdline: &str) -> Result<()> {
    if cmdline.len() as u64 >= layout::CMDLINE_MAX {
        return Err(Error::Cmdline(cmdline.len()));
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    write(ram, "command line", layout::CMDLINE, &bytes)
}

fn boot_parameters(ram: &GuestRam, initrd: u64, spec: &BootSpec<'_>) -> Result<boot_params> {
    let mut params = boot_params::default();
    let small = |value: u64| u32::try_from(value).map_err(|_| Error::Layout(value));
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = small(layout::CMDLINE)?;
    params.hdr.cmdline_size = small(spec.cmdline.len() as u64)?;
    params.hdr.ramdisk_image = small(initrd)?;
    params.hdr.ramdisk_size = small(spec.initrd.len() as u64)?;
    params.acpi_rsdp_addr = layout::ACPI;
    let entries = memory_map(ram);
    params.e820_entries = u8::try_from(entries.len()).map_err(|_| Error::Layout(0))?;
    params.e820_table[..entries.len()].copy_from_slice(&entries);
    Ok(params)
}

/// The e820 map: RAM without the legacy hole, and the reserved pages in it.
fn memory_map(ram: &GuestRam) -> Vec<boot_e820_entry> {
    let entry = |addr, end: u64, r#type| boot_e820_entry {
        addr,
        size: end - addr,
        r#type,
    };
    let mut map = vec![
        entry(0, layout::LOW_RAM_HOLE, E820_RAM),
        entry(layout::ACPI, layout::HIGH_MEMORY, E820_RESERVED),
        entry(layout::HIGH_MEMORY, low_ram(ram), E820_RAM),
    ];
    map.extend(ram.iter().skip(1).map(|region| {
        let start = region.start_addr().raw_value();
        entry(start, start + region.len(), E820_RAM)
    }));
    map
}

/// Writes what a 64-bit entry needs: descriptor table, and page tables that map the first GiB one
/// to one. A bare guest needs no more than this.
///
/// # Errors
/// [`Error::Write`].
pub fn write_tables(ram: &GuestRam) -> Result<()> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let gdt: Vec<u8> = GDT.iter().flat_map(|d| d.to_le_bytes()).collect();
    write(ram, "descriptor table", layout::GDT, &gdt)?;
    let directory: Vec<u8> = (0..512_u64)
        .flat_map(|i| (i << 21 | LARGE | PRESENT_WRITABLE).to_le_bytes())
        .collect();
    let link = |to: u64| (to | PRESENT_WRITABLE).to_le_bytes();
    write(ram, "page tables", layout::PML4, &link(layout::PDPT))?;
    write(
        ram,
        "page tables",
        layout::PDPT,
        &link(layout::PAGE_DIRECTORY),
    )?;
    write(ram, "page tables", layout::PAGE_DIRECTORY, &directory)
}

pub(crate) fn write(ram: &GuestRam, what: &'static str, address: u64, bytes: &[u8]) -> Result<()> {
    ram.write_slice(bytes, GuestAddress(address))
        .map_err(|source| Error::Write {
            what,
            address,
            source,
        })
}

/// Null, (unused), 64-bit code at 0x10, data at 0x18: the selectors that Linux expects.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

impl Entry {
    pub(crate) fn regs(&self) -> kvm_regs {
        // Bit 1 of rflags is always set; interrupts are off.
        kvm_regs {
            rip: self.rip,
            rsi: self.rsi,
            rsp: self.rsp,
            rflags: 2,
            ..Default::default()
        }
    }

    /// Long mode with paging on, flat segments.
    pub(crate) fn apply(&self, sregs: &mut kvm_sregs) {
        const CR0_PE_PG: u64 = 1 | 1 << 31;
        const CR4_PAE: u64 = 1 << 5;
        const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
        let code = segment(CODE, 0xb, true);
        let data = segment(DATA, 0x3, false);
        sregs.cs = code;
        for register in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            *register = data;
        }
        sregs.gdt.base = layout::GDT;
        sregs.gdt.limit = u16::try_from(size_of_val(&GDT) - 1).unwrap_or(0);
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        sregs.cr3 = layout::PML4;
        sregs.cr0 |= CR0_PE_PG;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LME_LMA;
    }
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::memory::{Backing, HugePages, MemorySpec};

    fn ram(bytes: u64) -> Memory {
        let spec = MemorySpec {
            bytes,
            backing: Backing::Anonymous,
            huge_pages: HugePages::Never,
        };
        Memory::new(&spec).unwrap()
    }

    #[test]
    fn the_memory_map_covers_all_ram_but_the_hole() {
        const MIB: u64 = 1 << 20;
        let map = |memory: &Memory| -> Vec<_> {
            let entries = memory_map(memory.ram());
            entries.iter().map(|e| (e.addr, e.size, e.r#type)).collect()
        };
        let small = map(&ram(128 * MIB));
        assert_eq!(small[2], (MIB, 127 * MIB, 1));
        assert_eq!(small.len(), 3);
        let large = map(&ram(5 << 30));
        assert_eq!(large[3], (4 << 30, 2 << 30, 1));
    }

    #[test]
    fn holes_of_an_image_are_not_dense() {
        const MIB: u64 = 1 << 20;
        let segment = |p_paddr, p_filesz| Elf64_Phdr {
            p_type: PT_LOAD,
            p_paddr,
            p_filesz,
            ..Default::default()
        };
        let segments = [
            segment(16 * MIB, 5 * MIB / 2),
            segment(22 * MIB, MIB),
            segment(23 * MIB, MIB / 2),
            segment(30 * MIB, 1 << 60),
            segment(u64::MAX, u64::MAX),
        ];
        let header = Elf64_Ehdr {
            e_phoff: 64,
            e_phnum: 5,
            ..Default::default()
        };
        let mut file = header.as_slice().to_vec();
        segments.iter().for_each(|s| file.extend(s.as_slice()));
        let chunks = dense_chunks(&mut std::io::Cursor::new(file), 32 * MIB + PAGE).unwrap();
        let chunk = |mib: u64| mib * MIB..(mib + 2) * MIB;
        assert_eq!(chunks, [chunk(16), chunk(22), chunk(30)]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let memory = ram(2 << 20);
        let long = "x".repeat(4096);
        assert!(matches!(
            write_cmdline(memory.ram(), &long),
            Err(Error::Cmdline(4096))
        ));
        let initrd = vec![0; 4096];
        assert!(matches!(
            place_initrd(memory.ram(), (2 << 20) - 4095, &initrd),
            Err(Error::Initrd { bytes: 4096, .. })
        ));
        place_initrd(memory.ram(), u64::MAX, &initrd).unwrap_err();
        let mut text =
            std::io::Cursor::new(b"not an ELF file at all, but long enough to read\n".repeat(4));
        let spec = BootSpec {
            cmdline: "",
            initrd: &[],
        };
        assert!(matches!(
            load_linux(&memory, &mut text, &spec),
            Err(Error::KernelHeader(_))
        ));
    }
}
