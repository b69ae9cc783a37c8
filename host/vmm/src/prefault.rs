//! Mapping what a machine uses first while it is built: each page that is there costs its guest
//! neither an exit nor a copy.

use crate::error::AssembleError;
use crate::pages::{blocks, ranges};
use machine::{Vcpu, Vm};
use snapshot_format::UNIT;
use snapshot_memory::{Pagemap, WorkingSet, subtract};

/// Maps the pages of the `working_set`, those that are written as the machine's own. Nothing has
/// been mapped but by the machine's devices.
pub(crate) fn prefault(
    vm: &Vm,
    processors: &[Vcpu],
    pagemap: &Pagemap,
    working_set: &WorkingSet,
) -> Result<(), AssembleError> {
    if working_set.touched.is_empty() {
        return Ok(());
    }
    let memory = vm.memory();
    for pages in &working_set.written {
        memory.own(pages.first, pages.end)?;
    }
    // Where the base memory has huge pages, a look at one page of them maps all.
    for block in working_set.only_read(memory.pages()) {
        memory.look(block.first, block.first + 1)?;
    }
    let huge = ranges(memory, |part| pagemap.huge_ranges(part))?;
    let small = subtract(&working_set.touched, huge.iter().copied());
    let blocks = huge.iter().flat_map(blocks);
    for pages in blocks.chain(small) {
        for (gpa, size) in guest_ranges(vm, pages.first * UNIT, pages.end * UNIT) {
            if !map_in_kvm(processors, gpa, size)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// False: this KVM fills no tables ahead.
fn map_in_kvm(processors: &[Vcpu], gpa: u64, size: u64) -> Result<bool, AssembleError> {
    match processors.first() {
        Some(vcpu) => Ok(vcpu.prefault(gpa, size)?),
        None => Ok(false),
    }
}

/// Where the bytes `start..end` of the whole memory are in the guest: address and length of each
/// part.
fn guest_ranges(vm: &Vm, start: u64, end: u64) -> Vec<(u64, u64)> {
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
