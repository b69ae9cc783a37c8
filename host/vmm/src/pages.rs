//! Guest memory as pages numbered from 0 through all its parts: which of them a machine has used or
//! written, and writing at an offset into the whole.

use crate::parts::Machine;
use machine::{Memory, Vm};
use snapshot_memory::{HUGE_PAGE, MemoryError, PageRange, subtract};
use vm_memory::{Bytes, MemoryRegionAddress};

/// Pages of the whole memory, asked for one part of it after the other.
pub(crate) fn ranges(
    memory: &Memory,
    ask: impl Fn(&std::ops::Range<usize>) -> Result<Vec<PageRange>, MemoryError>,
) -> Result<Vec<PageRange>, MemoryError> {
    let mut all = Vec::new();
    let mut before = 0;
    for part in memory.host_ranges() {
        let of_part = ask(&part)?;
        all.extend(of_part.into_iter().map(|pages| PageRange {
            first: pages.first + before,
            end: pages.end + before,
        }));
        before += part.len() as u64 / 4096;
    }
    Ok(all)
}

/// The pages that it has used. One represents each huge page: a machine restored from here gets it
/// whole if it has huge pages too, and else, by a look at one of them, not 512 small ones.
pub(crate) fn touched(machine: &Machine) -> Result<Vec<PageRange>, MemoryError> {
    let memory = machine.vm.memory();
    let present = ranges(memory, |part| machine.pagemap.present_ranges(part))?;
    let huge = ranges(memory, |part| machine.pagemap.huge_ranges(part))?;
    let mut used = subtract(&present, huge.iter().copied());
    used.extend(huge.iter().flat_map(blocks));
    used.sort_unstable_by_key(|pages| pages.first);
    Ok(used)
}

/// The pages that differ from what the machine was made with.
pub(crate) fn written(machine: &Machine) -> Result<Vec<PageRange>, MemoryError> {
    ranges(machine.vm.memory(), |part| match machine.demand_paged {
        Some(_) => machine.pagemap.written_ranges(part),
        None => machine.pagemap.dirty_ranges(part),
    })
}

/// One page of each huge one, the first: KVM maps it as the host does.
pub(crate) fn blocks(huge: &PageRange) -> impl Iterator<Item = PageRange> + use<> {
    let PageRange { first, end } = *huge;
    let count = (end - first) / HUGE_PAGE;
    (0..count).map(move |block| PageRange {
        first: first + block * HUGE_PAGE,
        end: first + block * HUGE_PAGE + 1,
    })
}

/// Writes at an offset into the whole of guest memory, in which ranges follow each other.
pub(crate) fn write_whole(vm: &Vm, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let (mut offset, mut bytes) = (offset, bytes);
    for region in vm.memory().ram().iter() {
        if offset < region.len() {
            let room = usize::try_from(region.len() - offset).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            region
                .write_slice(now, MemoryRegionAddress(offset))
                .map_err(std::io::Error::other)?;
            (offset, bytes) = (region.len(), rest);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        offset -= region.len();
    }
    Err(std::io::ErrorKind::InvalidInput.into())
}
