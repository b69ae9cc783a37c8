//! Guest RAM: its mappings in this process and its KVM memory slots.
//!
//! RAM is anonymous private memory, or base memory: a sealed file mapped copy-on-write
//! ([`Backing::BaseMemory`]), which has the same shape: guest-physical order, holes left out, so
//! that a clone changes this file and nothing else.
#![expect(
    unsafe_code,
    reason = "KVM memory slots and madvise take raw addresses"
)]

use crate::error::{Error, Result, ioctl};
use crate::layout;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::mm::{Advice, madvise};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

/// What the host can map by one entry of a page directory.
pub(crate) const HUGE_PAGE: u64 = 2 << 20;
const HUGE_BYTES: usize = 1 << HUGE_PAGE.trailing_zeros();

/// Guest memory as the devices see it. Cloning clones references, not memory.
pub type GuestRam = GuestMemoryMmap<()>;

/// What lies under guest RAM.
#[derive(Clone, Debug, Default)]
pub enum Backing {
    /// Zeroes, private to this machine.
    #[default]
    Anonymous,
    /// A file with the RAM ranges one after the other, mapped copy-on-write: writes stay private,
    /// pages that are only read are shared by all machines that map the file.
    BaseMemory(Arc<File>),
}

/// Whether the host may back guest RAM by 2 MiB pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Small pages, but for ranges that are touched at once ([`Memory::expect_dense`]): the least
    /// memory touched, and clones copy 4 KiB at a time.
    #[default]
    Never,
    /// Ask for huge pages: fewer faults for large guests that touch everything.
    Advise,
}

/// Guest RAM as asked.
#[derive(Clone, Debug)]
pub struct MemorySpec {
    /// Size, a multiple of 4096.
    pub bytes: u64,
    /// What lies under it.
    pub backing: Backing,
    /// Page size policy.
    pub huge_pages: HugePages,
}

/// Pages that lie in one range.
struct Part<'a> {
    address: *mut u8,
    bytes: usize,
    /// In the whole memory, and so in the base memory.
    offset: u64,
    base_memory: &'a File,
}

/// Guest RAM, mapped.
#[derive(Debug)]
pub struct Memory {
    ram: GuestRam,
}

impl Memory {
    /// Maps RAM without touching it. Address space is not reserved in advance
    /// (`MAP_NORESERVE`): whether the host may promise more than it has is its operator's choice.
    ///
    /// # Errors
    /// [`Error::Layout`] for a size that is zero or not whole pages, [`Error::Map`] from `mmap`.
    pub fn new(spec: &MemorySpec) -> Result<Self> {
        if spec.bytes == 0 || !spec.bytes.is_multiple_of(layout::PAGE) {
            return Err(Error::Layout(spec.bytes));
        }
        let mut regions = Vec::new();
        let mut offset = 0;
        for (base, bytes) in layout::ram_ranges(spec.bytes) {
            regions.push(map(spec, base, bytes, offset)?);
            offset += bytes;
        }
        let ram = GuestRam::from_regions(regions).map_err(|_| Error::Layout(spec.bytes))?;
        Ok(Self { ram })
    }

    /// The memory itself, for devices and loaders.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Says that the guest will touch all of a guest-physical range at once, so that the host
    /// should use 2 MiB pages for what of it is 2 MiB aligned: one fault then replaces 512.
    /// Parts outside of RAM are left out.
    pub fn expect_dense(&self, range: Range<u64>) {
        for region in self.ram.iter() {
            let base = region.start_addr().raw_value();
            let start = range.start.max(base).next_multiple_of(HUGE_PAGE);
            let end = range.end.min(base + region.len()) / HUGE_PAGE * HUGE_PAGE;
            if let (Ok(offset), Ok(len @ 1..)) = (
                usize::try_from(start.saturating_sub(base)),
                usize::try_from(end.saturating_sub(start)),
            ) {
                let mapping = region.get_mmap();
                // SAFETY: start >= base, and end is at most the region's end, so the offset lies
                // in the mapping.
                let address = unsafe { mapping.as_ptr().add(offset) };
                advise(address, len, Advice::LinuxHugepage);
            }
        }
    }

    /// Pages of it.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.ram
            .iter()
            .map(|region| region.len() / layout::PAGE)
            .sum()
    }

    /// Host address ranges of guest RAM, for accounting.
    #[must_use]
    pub fn host_ranges(&self) -> Vec<Range<usize>> {
        let range = |r: &GuestRegionMmap| {
            let start = r.get_mmap().as_ptr().addr();
            start..start + r.get_mmap().size()
        };
        self.ram.iter().map(range).collect()
    }

    /// Copies a page of the whole memory, whose ranges follow one another, into 4096 bytes; the
    /// machine may write to it meanwhile.
    ///
    /// # Errors
    /// [`Error::Layout`] for one that is not there.
    pub fn copy_page(&self, page: u64, into: &mut [u8]) -> Result<()> {
        let mut at = page * layout::PAGE;
        for region in self.ram.iter() {
            if at < region.len() {
                let read = region.read_slice(into, MemoryRegionAddress(at));
                return read.map_err(|_| Error::Layout(at));
            }
            at -= region.len();
        }
        Err(Error::Layout(page * layout::PAGE))
    }

    /// Gives up this machine's own copies of pages `first..end` of the whole memory, whose ranges
    /// follow one another: they are the base memory's again. Nothing may write them meanwhile.
    ///
    /// # Errors
    /// [`Error::Layout`] for pages that are not there or have no base memory under them,
    /// [`Error::Advise`] from `madvise`.
    pub fn forget(&self, first: u64, end: u64) -> Result<()> {
        self.advise_pages(first, end, Advice::LinuxDontNeed)
    }

    /// Gives this machine its own copies of these pages, as if each had been written to with what
    /// it holds.
    ///
    /// # Errors
    /// As of [`Memory::forget`].
    pub fn own(&self, first: u64, end: u64) -> Result<()> {
        self.advise_pages(first, end, Advice::LinuxPopulateWrite)
    }

    /// Maps these pages for reading, and whatever the kernel maps with them.
    ///
    /// # Errors
    /// As of [`Memory::forget`].
    pub fn look(&self, first: u64, end: u64) -> Result<()> {
        self.advise_pages(first, end, Advice::LinuxPopulateRead)
    }

    /// Overwrites these pages with what the base memory has; they stay, or become, this machine's
    /// own. Nothing may write them meanwhile.
    ///
    /// # Errors
    /// [`Error::Layout`] as of [`Memory::forget`], [`Error::Restore`] when the file cannot be read.
    pub fn restore(&self, first: u64, end: u64) -> Result<()> {
        self.each_part(first, end, |part| {
            let failed = |source| Error::Restore {
                offset: part.offset,
                bytes: part.bytes,
                source,
            };
            let mut done = 0;
            while done < part.bytes {
                let at = libc::off_t::try_from(part.offset + done as u64);
                let at = at.map_err(|_| Error::Layout(part.offset))?;
                let (fd, left) = (part.base_memory.as_raw_fd(), part.bytes - done);
                let to = part.address.wrapping_add(done);
                // SAFETY: `done` is within the part, whose pages are mapped for writing and are a
                // guest's memory, which may change at any time.
                let read = unsafe { libc::pread(fd, to.cast(), left, at) };
                match usize::try_from(read) {
                    Ok(0) => return Err(failed(std::io::ErrorKind::UnexpectedEof.into())),
                    Ok(read) => done += read,
                    Err(_) => match std::io::Error::last_os_error() {
                        error if error.kind() == std::io::ErrorKind::Interrupted => {}
                        error => return Err(failed(error)),
                    },
                }
            }
            Ok(())
        })
    }

    fn advise_pages(&self, first: u64, end: u64, advice: Advice) -> Result<()> {
        self.each_part(first, end, |part| {
            // SAFETY: whole pages of a private mapping of a file, which are mapped before and
            // after; what they hold changes, as a guest's memory may at any time.
            unsafe { madvise(part.address.cast(), part.bytes, advice) }.map_err(|e| Error::Advise {
                advice,
                offset: part.offset,
                bytes: part.bytes,
                source: e.into(),
            })
        })
    }

    /// Does something with each range's part of pages `first..end`, which have base memory under
    /// them.
    fn each_part(
        &self,
        first: u64,
        end: u64,
        mut act: impl FnMut(Part<'_>) -> Result<()>,
    ) -> Result<()> {
        let (mut at, end) = (first * layout::PAGE, end * layout::PAGE);
        let mut base = 0;
        for region in self.ram.iter() {
            let stop = end.min(base + region.len());
            if base <= at && at < stop {
                let (Ok(within), Ok(bytes), Some(file)) = (
                    usize::try_from(at - base),
                    usize::try_from(stop - at),
                    region.file_offset(),
                ) else {
                    return Err(Error::Layout(at));
                };
                act(Part {
                    // SAFETY: `at` lies in this region, which begins at `base`.
                    address: unsafe { region.get_mmap().as_ptr().add(within) },
                    bytes,
                    offset: at,
                    base_memory: file.file(),
                })?;
                at = stop;
            }
            base += region.len();
        }
        if at < end {
            return Err(Error::Layout(at));
        }
        Ok(())
    }

    /// Gives KVM one slot per range. Before the irqchip is made, and never again: from Linux 6.18
    /// a later slot change costs milliseconds.
    pub(crate) fn register(&self, vm: &VmFd) -> Result<()> {
        for (slot, region) in (0..).zip(self.ram.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.get_mmap().as_ptr().expose_provenance() as u64,
            };
            // SAFETY: the range is a mapping of exactly this size, owned by `self.ram`; `Vm` keeps
            // `Memory` at least as long as the VM's descriptor.
            unsafe { vm.set_user_memory_region(slot) }.map_err(ioctl(
                "KVM_SET_USER_MEMORY_REGION",
                format!("{:#x}+{:#x}", slot.guest_phys_addr, slot.memory_size),
            ))?;
        }
        Ok(())
    }
}

/// Gives advice about whole pages of guest memory.
fn advise(start: *mut u8, len: usize, advice: Advice) {
    // SAFETY: none of the advices used here changes what the memory holds or whether it is mapped.
    // A kernel without the feature refuses, which costs only the optimisation.
    let _ = unsafe { madvise(start.cast(), len, advice) };
}

fn map(spec: &MemorySpec, base: u64, bytes: u64, offset: u64) -> Result<GuestRegionMmap> {
    let size = usize::try_from(bytes).map_err(|_| Error::Layout(bytes))?;
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let new = |size, flags, file| {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let builder = MmapRegionBuilder::new(size).with_mmap_prot(protection);
        let builder = match file {
            Some(file) => builder.with_mmap_flags(flags).with_file_offset(file),
            None => builder.with_mmap_flags(flags | libc::MAP_ANONYMOUS),
        };
        let failed = |source| Error::Map {
            base,
            bytes,
            source,
        };
        builder.build().map_err(failed)
    };
    let region = match &spec.backing {
        Backing::Anonymous => {
            let region = new(size, flags, None)?;
            let advice = match spec.huge_pages {
                HugePages::Never => Advice::LinuxNoHugepage,
                HugePages::Advise => Advice::LinuxHugepage,
            };
            advise(region.as_ptr(), size, advice);
            region
        }
        // Its huge pages, if it has any, are mapped as such; a guest's own copies are small.
        Backing::BaseMemory(file) => {
            let file = FileOffset::from_arc(Arc::clone(file), offset);
            let region = new(size, flags, Some(file.clone()))?;
            match region.as_ptr().addr() % HUGE_BYTES {
                0 => region,
                // The kernel fills address space from the top: behind a gap of so many bytes, the
                // same mapping begins where huge pages can. If not, there will be small ones.
                beyond => {
                    drop(region);
                    let _gap = new(beyond, flags, None)?;
                    new(size, flags, Some(file))?
                }
            }
        }
    };
    advise(region.as_ptr(), size, Advice::LinuxDontDump);
    GuestRegionMmap::new(region, GuestAddress(base)).ok_or(Error::Layout(bytes))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    #[test]
    fn base_memory_is_shared_until_written() {
        let mut file = File::from(
            rustix::fs::memfd_create("base memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
        );
        file.write_all(&[7; 8192]).unwrap();
        let file = Arc::new(file);
        let spec = MemorySpec {
            bytes: 8192,
            backing: Backing::BaseMemory(file),
            huge_pages: HugePages::Never,
        };
        let (a, b) = (Memory::new(&spec).unwrap(), Memory::new(&spec).unwrap());
        a.ram().write_obj(9_u8, GuestAddress(4096)).unwrap();
        assert_eq!(a.ram().read_obj::<u8>(GuestAddress(4096)).unwrap(), 9);
        assert_eq!(b.ram().read_obj::<u8>(GuestAddress(4096)).unwrap(), 7);
    }

    #[test]
    fn pages_that_are_forgotten_are_the_files_again() {
        let mut file = File::from(
            rustix::fs::memfd_create("base memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
        );
        file.write_all(&[7; 3 * 4096]).unwrap();
        let mut spec = MemorySpec {
            bytes: 3 * 4096,
            backing: Backing::BaseMemory(Arc::new(file)),
            huge_pages: HugePages::Never,
        };
        let memory = Memory::new(&spec).unwrap();
        let bytes = |memory: &Memory| -> Vec<u8> {
            let page = |n: u64| memory.ram().read_obj::<u8>(GuestAddress(n * 4096)).unwrap();
            (0..3).map(page).collect()
        };
        let all = [9; 3 * 4096];
        memory.ram().write_slice(&all, GuestAddress(0)).unwrap();
        memory.forget(1, 2).unwrap();
        assert_eq!(bytes(&memory), [9, 7, 9]);
        memory.restore(2, 3).unwrap();
        assert_eq!(bytes(&memory), [9, 7, 7]);
        memory.own(0, 2).unwrap();
        assert_eq!(bytes(&memory), [9, 7, 7]);
        assert!(matches!(memory.forget(2, 4), Err(Error::Layout(_))));
        assert!(matches!(memory.restore(2, 4), Err(Error::Layout(_))));
        // Zeroes are not what the memory of a machine without base memory was at first.
        spec.backing = Backing::Anonymous;
        let memory = Memory::new(&spec).unwrap();
        assert!(matches!(memory.forget(0, 1), Err(Error::Layout(0))));
    }

    #[test]
    fn odd_sizes_are_refused() {
        for bytes in [0, 4095] {
            let spec = MemorySpec {
                bytes,
                backing: Backing::Anonymous,
                huge_pages: HugePages::Never,
            };
            assert!(matches!(Memory::new(&spec), Err(Error::Layout(_))));
        }
    }
}
