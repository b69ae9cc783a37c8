//! Model-specific registers: those that a direct boot must set, since no firmware runs, and those
//! that make up a saved vCPU.

use crate::error::{Error, Result, ioctl};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use std::sync::Arc;
use vmm_sys_util::errno;

/// `IA32_MISC_ENABLE`, bit 0: fast string operations; bits 11 and 12: no branch trace store, no
/// event-based sampling, as the CPUID table says too.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1 << 12 | 1 << 11 | 1);
/// `IA32_MTRR_DEF_TYPE`: memory type ranges on, everything write-back. Without it Linux takes all
/// memory for uncacheable and gives up page attributes.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// `IA32_TIME_STAMP_COUNTER`.
pub(crate) const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`.
pub(crate) const TSC_DEADLINE: u32 = 0x6e0;
/// `MSR_KVM_WALL_CLOCK` and `_NEW`: writing one makes KVM write the time of day into guest memory;
/// a guest writes it whenever it wants to know, so that its value is no state.
const WALL_CLOCK: [u32; 2] = [0x11, 0x4b56_4d00];
/// Hyper-V's registers, which no guest of ours is offered.
const HYPER_V: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;
/// What nested virtualization could do. Intel's KVM lists them, and refuses them to guests that are
/// not offered it, or answers zero (from Linux 6.14): they are no state.
const VMX_CAPABILITIES: std::ops::RangeInclusive<u32> = 0x480..=0x491;
/// Memory type ranges and their types, which KVM's list lacks.
const MTRR_VARIABLE: std::ops::RangeInclusive<u32> = 0x200..=0x20f;
const MTRR_FIXED: [u32; 3] = [0x250, 0x258, 0x259];
const MTRR_FIXED_4K: std::ops::RangeInclusive<u32> = 0x268..=0x26f;
/// 32 banks of machine check registers, which KVM's list lacks. They are born zero, so that zeroes
/// are not kept.
const MACHINE_CHECK: std::ops::Range<u32> = 0x400..0x480;
/// Registers in one call; KVM takes fewer than 256.
const BATCH: usize = 128;

/// Sets what firmware would have set.
pub(crate) fn set_boot(vcpu: &VcpuFd, index: u8) -> Result<()> {
    write_all(vcpu, index, &[MISC_ENABLE, MTRR_DEF_TYPE])
}

/// Numbers of the registers that make up a saved vCPU on this host, ascending; without the time
/// stamp counter and its deadline, whose order among all else matters.
///
/// # Errors
/// From the ioctl.
pub(crate) fn saved(kvm: &kvm_ioctls::Kvm) -> Result<Arc<[u32]>> {
    let listed = kvm
        .get_msr_index_list()
        .map_err(ioctl("KVM_GET_MSR_INDEX_LIST", ""))?;
    Ok(with_state(listed.as_slice()).into())
}

/// Of the registers that KVM lists, and those that it lacks, the ones with state of a guest of
/// ours.
fn with_state(listed: &[u32]) -> Vec<u32> {
    let mut all: Vec<u32> = listed
        .iter()
        .copied()
        .chain(MTRR_VARIABLE)
        .chain(MTRR_FIXED)
        .chain(MTRR_FIXED_4K)
        .chain([MTRR_DEF_TYPE.0])
        .chain(MACHINE_CHECK)
        .filter(|i| ![TSC, TSC_DEADLINE].contains(i))
        .filter(|i| !WALL_CLOCK.contains(i) && !HYPER_V.contains(i))
        .filter(|i| !is_passed_over(*i))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Whether a saved state may have this register, from a program that did not know better, although
/// it is no state.
pub(crate) fn is_passed_over(register: u32) -> bool {
    VMX_CAPABILITIES.contains(&register)
}

/// Values of these registers, without those that KVM refuses to read: which those are depends on
/// the CPUID table, and a register that cannot be read has no state.
pub(crate) fn read_readable(vcpu: &VcpuFd, index: u8, which: &[u32]) -> Result<Vec<(u32, u64)>> {
    let mut values = Vec::with_capacity(which.len());
    let mut rest = which;
    while !rest.is_empty() {
        let batch = &rest[..rest.len().min(BATCH)];
        let read = read_some(vcpu, index, batch)?;
        let full = read.len() == batch.len();
        values.extend(
            read.iter()
                .filter(|(i, value)| *value != 0 || !MACHINE_CHECK.contains(i)),
        );
        rest = &rest[read.len() + usize::from(!full)..];
    }
    Ok(values)
}

/// Values of these registers, all of them.
pub(crate) fn read_all<const N: usize>(
    vcpu: &VcpuFd,
    index: u8,
    which: [u32; N],
) -> Result<[u64; N]> {
    let read = read_some(vcpu, index, &which)?;
    match <[(u32, u64); N]>::try_from(read) {
        Ok(all) => Ok(all.map(|(_, value)| value)),
        Err(some) => Err(refused("KVM_GET_MSRS", index, which[some.len()], None)),
    }
}

/// Gives registers these values (ascending by number), writing only those that have another one:
/// some are fixed by the host and refuse any write, for others KVM logs it.
pub(crate) fn load(vcpu: &VcpuFd, index: u8, values: &[(u32, u64)]) -> Result<()> {
    let which: Vec<u32> = values.iter().map(|(i, _)| *i).collect();
    let now = read_readable(vcpu, index, &which)?;
    let other: Vec<_> = values
        .iter()
        .filter(|value| now.binary_search(value).is_err() && !is_passed_over(value.0))
        .copied()
        .collect();
    write_all(vcpu, index, &other)
}

/// Makes registers zero that a vCPU has written and that are not among `values` (ascending) because
/// they were still zero when those were saved.
pub(crate) fn forget(vcpu: &VcpuFd, index: u8, known: &[u32], values: &[(u32, u64)]) -> Result<()> {
    let which: Vec<u32> = known
        .iter()
        .copied()
        .filter(|i| MACHINE_CHECK.contains(i))
        .collect();
    let written = read_readable(vcpu, index, &which)?;
    let not_saved = |i: &u32| values.binary_search_by_key(i, |value| value.0).is_err();
    let zero: Vec<_> = written
        .iter()
        .filter(|(i, _)| not_saved(i))
        .map(|(i, _)| (*i, 0))
        .collect();
    write_all(vcpu, index, &zero)
}

/// Sets registers in this order.
pub(crate) fn write_all(vcpu: &VcpuFd, index: u8, values: &[(u32, u64)]) -> Result<()> {
    for batch in values.chunks(BATCH) {
        let set = write_some(vcpu, index, batch)?;
        // The kernel stops at the first register it refuses.
        if let Some((register, value)) = batch.get(set) {
            return Err(refused("KVM_SET_MSRS", index, *register, Some(*value)));
        }
    }
    Ok(())
}

/// Reads until the first that KVM refuses.
fn read_some(vcpu: &VcpuFd, index: u8, which: &[u32]) -> Result<Vec<(u32, u64)>> {
    let entries: Vec<_> = which.iter().map(|i| entry(*i, 0)).collect();
    let mut msrs = wrap(&entries, "KVM_GET_MSRS", index)?;
    let read = vcpu
        .get_msrs(&mut msrs)
        .map_err(ioctl("KVM_GET_MSRS", format!("vCPU {index}, {which:#x?}")))?;
    let values = msrs.as_slice().iter().take(read);
    Ok(values.map(|e| (e.index, e.data)).collect())
}

/// Writes until the first that KVM refuses; tells how many it took.
fn write_some(vcpu: &VcpuFd, index: u8, values: &[(u32, u64)]) -> Result<usize> {
    let entries: Vec<_> = values.iter().map(|(i, data)| entry(*i, *data)).collect();
    let msrs = wrap(&entries, "KVM_SET_MSRS", index)?;
    vcpu.set_msrs(&msrs).map_err(|error| {
        let with = format!("vCPU {index}, {values:x?}");
        ioctl("KVM_SET_MSRS", with)(error)
    })
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        reserved: 0,
    }
}

fn wrap(entries: &[kvm_msr_entry], call: &'static str, index: u8) -> Result<Msrs> {
    Msrs::from_entries(entries).map_err(|_| {
        let with = format!("vCPU {index}, {} registers", entries.len());
        ioctl(call, with)(errno::Error::new(libc::ENOMEM))
    })
}

/// KVM says only how many registers it took.
fn refused(call: &'static str, index: u8, register: u32, value: Option<u64>) -> Error {
    let value = value.map_or_else(String::new, |v| format!(" = {v:#x}"));
    let with = format!("vCPU {index}, register {register:#x}{value}");
    ioctl(call, with)(errno::Error::new(libc::EINVAL))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_listed_and_cannot_be_read_is_not_asked_for() {
        let listed = [
            0x174,
            TSC,
            0x480,
            0x485,
            0x491,
            0x4b56_4d01,
            0x4000_0020,
            0x277,
        ];
        let kept = with_state(&listed);
        assert!(kept.is_sorted());
        for register in [0x174, 0x277, 0x4b56_4d01, MTRR_DEF_TYPE.0, 0x400, 0x47f] {
            assert!(kept.contains(&register), "{register:#x}");
        }
        for register in [TSC, 0x480, 0x485, 0x491, 0x4000_0020] {
            assert!(!kept.contains(&register), "{register:#x}");
        }
    }
}
