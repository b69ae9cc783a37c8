//! Mapping what a machine uses first while it is built: each page that is there costs its guest neither an
//! exit nor a copy.

use crate::assemble::Result;
use crate::save::ranges;
use machine::{Vcpu, Vm};
use snapshot_format::UNIT;
use snapshot_memory::{HUGE_PAGE, PageRange, Pagemap, WorkingSet, subtract};

/// Maps the pages of `first`, those that are written as the machine's own. Nothing has been mapped but by
/// the machine's devices.
pub(crate) fn prefault(
    vm: &Vm,
    processors: &[Vcpu],
    pagemap: &Pagemap,
    first: &WorkingSet,
) -> Result<()> {
    if first.touched.is_empty() {
        return Ok(());
    }
    let memory = vm.memory();
    for pages in &first.written {
        memory.own(pages.first, pages.end)?;
    }
    // Where the golden file has huge pages, a look at one page of them maps all.
    for block in first.only_read(memory.pages()) {
        memory.look(block.first, block.first + 1)?;
    }
    let huge = ranges(memory, |part| pagemap.huge_ranges(part))?;
    let small = subtract(&first.touched, huge.iter().copied());
    let blocks = huge.iter().flat_map(blocks);
    for pages in blocks.chain(small) {
        for (gpa, size) in placed(vm, pages.first * UNIT, pages.end * UNIT) {
            if !in_tables(processors, gpa, size)? {
                return Ok(());
            }
        }
    }
    Ok(())
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

/// False: this KVM fills no tables ahead.
fn in_tables(processors: &[Vcpu], gpa: u64, size: u64) -> Result<bool> {
    match processors.first() {
        Some(vcpu) => Ok(vcpu.prefault(gpa, size)?),
        None => Ok(false),
    }
}

/// Where the bytes `start..end` of the whole memory are in the guest: address and length of each part.
fn placed(vm: &Vm, start: u64, end: u64) -> Vec<(u64, u64)> {
    use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
    let mut base = 0;
    let mut parts = Vec::new();
    for region in vm.memory().ram().iter() {
        let (from, to) = (start.max(base), end.min(base + region.len()));
        if from < to {
            parts.push((region.start_addr().raw_value() + from - base, to - from));
        }
        base += region.len();
    }
    parts
}
