//! The CPU contract: what a guest may see of the processor.
//!
//! We start from what KVM can do on this host and change only what must differ:
//! - topology: one socket, one thread per core, `vcpus` cores, and each vCPU's own APIC number;
//! - on: the hypervisor bit, x2APIC, TSC-deadline timer;
//! - off: nested virtualization (attack surface and state nobody asked for), performance counters
//!   and the debug store (host side channel, state), SGX (enclaves are no memory of ours, so that
//!   they cannot be saved), asynchronous page faults (one more exit per fault, no gain for a guest
//!   whose memory is resident);
//! - the processor's name, which KVM leaves empty, is this host's: programs choose code by it, and
//!   hiding it hides nothing.

use crate::contract::{CpuContract, XsavePart};
use crate::error::{Result, ioctl};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use std::arch::x86_64::{__cpuid, CpuidResult};
use std::collections::BTreeMap;

/// CPUID leaf of KVM's paravirtual features.
const KVM_FEATURES: u32 = 0x4000_0001;
/// `KVM_FEATURE_ASYNC_PF`, `_ASYNC_PF_VMEXIT`, `_ASYNC_PF_INT`, `_MIGRATION_CONTROL`.
const KVM_FEATURES_OFF: u32 = 1 << 4 | 1 << 10 | 1 << 14 | 1 << 17;

const BIT_HYPERVISOR: u32 = 1 << 31; // leaf 1 ecx
const BIT_TSC_DEADLINE: u32 = 1 << 24; // leaf 1 ecx
const BIT_X2APIC: u32 = 1 << 21; // leaf 1 ecx
const BIT_VMX: u32 = 1 << 5; // leaf 1 ecx
const BIT_PDCM: u32 = 1 << 15; // leaf 1 ecx: performance capabilities
const DEBUG_STORE: u32 = 1 << 2 | 1 << 4; // leaf 1 ecx: DTES64, DS-CPL
const BIT_DS: u32 = 1 << 21; // leaf 1 edx: the debug store
const BIT_SGX: u32 = 1 << 2; // leaf 7 ebx
const BIT_SGX_LC: u32 = 1 << 30; // leaf 7 ecx: SGX launch configuration
const BIT_HTT: u32 = 1 << 28; // leaf 1 edx: more than one logical processor
const BIT_CMP_LEGACY: u32 = 1 << 1; // leaf 0x8000_0001 ecx: AMD's word for the same
const BIT_SVM: u32 = 1 << 2; // leaf 0x8000_0001 ecx
const AMD_PERFORMANCE: u32 = 1 << 23 | 1 << 24 | 1 << 28; // leaf 0x8000_0001 ecx

/// The leaves with the processor's name, 16 bytes each.
const NAME: std::ops::RangeInclusive<u32> = 0x8000_0002..=0x8000_0004;

/// What this host's KVM can offer, and the processor's name.
///
/// # Errors
/// From the ioctl.
pub(crate) fn supported(kvm: &kvm_ioctls::Kvm) -> Result<CpuId> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(ioctl(
            "KVM_GET_SUPPORTED_CPUID",
            format!("{KVM_MAX_CPUID_ENTRIES} entries"),
        ))?;
    for leaf in NAME {
        name(&mut cpuid, leaf, __cpuid(leaf));
    }
    Ok(cpuid)
}

/// Fills a leaf of the processor's name if KVM says that there is one: it lists them, with zeroes.
fn name(cpuid: &mut CpuId, leaf: u32, host: CpuidResult) {
    let mut all = cpuid.as_mut_slice().iter_mut();
    if let Some(entry) = all.find(|entry| entry.function == leaf) {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (host.eax, host.ebx, host.ecx, host.edx);
    }
}

/// One register of a leaf, by its name and its place.
type Register = (&'static str, fn(&kvm_cpuid_entry2) -> u32);
const EAX: Register = ("eax", |e| e.eax);
const EBX: Register = ("ebx", |e| e.ebx);
const ECX: Register = ("ecx", |e| e.ecx);
const EDX: Register = ("edx", |e| e.edx);

/// Leaf, sub-leaf and register of each word of feature bits, and the bits of it that are no
/// features: they follow what the guest has switched on (OSXSAVE, OSPKE) or its number of
/// processors.
const FEATURE_WORDS: &[(u32, u32, Register, u32)] = &[
    (0x1, 0, ECX, 1 << 27),
    (0x1, 0, EDX, BIT_HTT),
    (0x7, 0, EBX, 0),
    (0x7, 0, ECX, 1 << 4),
    (0x7, 0, EDX, 0),
    (0x7, 1, EAX, 0),
    (0x7, 1, EDX, 0),
    (0x7, 2, EDX, 0),
    (0xd, 0, EAX, 0),
    (0xd, 1, EAX, 0),
    (0xd, 1, ECX, 0),
    (KVM_FEATURES, 0, EAX, 0),
    (0x8000_0001, 0, ECX, BIT_CMP_LEGACY),
    (0x8000_0001, 0, EDX, 0),
    (0x8000_0007, 0, EDX, 0),
    (0x8000_0008, 0, EBX, 0),
    (0x8000_0021, 0, EAX, 0),
];

/// What guests see of the processor on a host whose KVM supports this.
pub(crate) fn contract(supported: &CpuId) -> CpuContract {
    seen(&for_vcpu(supported, 0, 1))
}

fn seen(cpuid: &CpuId) -> CpuContract {
    let leaf = |function, index| {
        let mut all = cpuid.as_slice().iter();
        all.find(|e| e.function == function && e.index == index)
    };
    let vendor = leaf(0, 0).map_or_else(Vec::new, |e| {
        [e.ebx, e.edx, e.ecx].map(u32::to_le_bytes).concat()
    });
    let word = |&(function, index, (name, read), moving): &(u32, u32, Register, u32)| {
        let bits = leaf(function, index).map_or(0, read) & !moving;
        (bits != 0).then(|| (format!("{function:08x}.{index}.{name}"), bits))
    };
    CpuContract {
        vendor: String::from_utf8_lossy(&vendor).into_owned(),
        features: FEATURE_WORDS.iter().filter_map(word).collect(),
        xsave_size: leaf(0xd, 0).map_or(0, |e| e.ecx),
        xsave_parts: xsave_parts(cpuid),
    }
}

/// Sub-leaves of leaf 0xd from 2 on, without those that have no state.
fn xsave_parts(cpuid: &CpuId) -> BTreeMap<u8, XsavePart> {
    let entries = cpuid.as_slice().iter();
    let part = |e: &kvm_cpuid_entry2| {
        let number = u8::try_from(e.index).ok().filter(|number| *number >= 2)?;
        let part = XsavePart {
            size: e.eax,
            offset: e.ebx,
            flags: e.ecx,
        };
        (e.function == 0xd && part.size != 0).then_some((number, part))
    };
    entries.filter_map(part).collect()
}

/// What vCPU `index` of `count` sees.
#[must_use]
pub(crate) fn for_vcpu(supported: &CpuId, index: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    cpuid.retain(|entry| {
        // Topology leaves are written anew; their subleaf count differs between hosts.
        !matches!(entry.function, 0xb | 0x1f)
    });
    let place = Place {
        index: index.into(),
        count: count.into(),
    };
    for entry in cpuid.as_mut_slice() {
        place.apply(entry);
    }
    let highest = cpuid.as_slice().first().map_or(0, |e| e.eax);
    if highest >= 0xb {
        for entry in place.extended_topology() {
            // The list came from the kernel with room to spare: KVM_MAX_CPUID_ENTRIES.
            let _ = cpuid.push(entry);
        }
    }
    cpuid
}

/// One vCPU among its siblings.
struct Place {
    index: u32,
    count: u32,
}

impl Place {
    /// Bits of an APIC number that count cores.
    fn core_bits(&self) -> u32 {
        u32::BITS - (self.count - 1).leading_zeros()
    }

    fn apply(&self, entry: &mut kvm_cpuid_entry2) {
        match entry.function {
            0x1 => self.leaf_1(entry),
            0x7 if entry.index == 0 => {
                entry.ebx &= !BIT_SGX;
                entry.ecx &= !BIT_SGX_LC;
            }
            // Deterministic caches: cores per package; sharers of this cache (level 3: all).
            0x4 if entry.eax & 0x1f != 0 => {
                let sharers = if entry.eax >> 5 & 7 >= 3 {
                    self.count - 1
                } else {
                    0
                };
                entry.eax = entry.eax & 0x3fff | sharers << 14 | (self.count - 1) << 26;
            }
            // Performance counters; SGX.
            0xa | 0x12 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            KVM_FEATURES => entry.eax &= !KVM_FEATURES_OFF,
            0x8000_0001 => {
                entry.ecx &= !(BIT_SVM | AMD_PERFORMANCE | BIT_CMP_LEGACY);
                if self.count > 1 {
                    entry.ecx |= BIT_CMP_LEGACY;
                }
            }
            0x8000_0008 => entry.ecx = self.core_bits() << 12 | (self.count - 1),
            // SVM features and AMD's performance counters.
            0x8000_000a | 0x8000_0022 => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
            }
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let sharers = if entry.eax >> 5 & 7 >= 3 {
                    self.count - 1
                } else {
                    0
                };
                entry.eax = entry.eax & 0x3fff | sharers << 14;
            }
            0x8000_001e => {
                (entry.eax, entry.ebx, entry.ecx) = (self.index, self.index, 0);
            }
            _ => {}
        }
    }

    fn leaf_1(&self, entry: &mut kvm_cpuid_entry2) {
        entry.ebx = entry.ebx & 0x0000_ffff | self.count << 16 | self.index << 24;
        entry.ecx |= BIT_HYPERVISOR | BIT_TSC_DEADLINE | BIT_X2APIC;
        entry.ecx &= !(BIT_VMX | BIT_PDCM | DEBUG_STORE);
        entry.edx &= !(BIT_HTT | BIT_DS);
        if self.count > 1 {
            entry.edx |= BIT_HTT;
        }
    }

    /// Leaf 0xb: level 0 threads (one), level 1 cores, then the end mark.
    fn extended_topology(&self) -> [kvm_cpuid_entry2; 3] {
        const SMT: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        let level = |index: u32, eax, ebx, kind: u32| kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax,
            ebx,
            ecx: kind | index,
            edx: self.index,
            ..Default::default()
        };
        [
            level(0, 0, 1, SMT),
            level(1, self.core_bits(), self.count, CORE),
            level(2, 0, 0, 0),
        ]
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn host() -> CpuId {
        let leaf = |function, eax, ecx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx: u32::MAX,
            ecx,
            edx: u32::MAX,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0x1f, 0),
            leaf(1, 0, BIT_VMX | DEBUG_STORE),
            leaf(7, 0, BIT_SGX_LC | 1),
            leaf(0xb, 9, 9),
            leaf(0x12, 1, 0),
            leaf(KVM_FEATURES, u32::MAX, 0),
            leaf(0x8000_0001, 0, BIT_SVM | 1),
            leaf(0x8000_001e, 77, 77),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut all = cpuid.as_slice().iter();
        *all.find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn each_vcpu_sees_its_own_number_everywhere() {
        let cpuid = for_vcpu(&host(), 2, 3);
        let one = find(&cpuid, 1, 0);
        assert_eq!(
            (one.ebx >> 24, one.ebx >> 16 & 0xff, one.edx & BIT_HTT),
            (2, 3, BIT_HTT)
        );
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 2);
        let core = find(&cpuid, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, 0x201, 2));
    }

    #[test]
    fn nested_virtualization_and_async_faults_are_off() {
        let cpuid = for_vcpu(&host(), 0, 1);
        let one = find(&cpuid, 1, 0);
        assert_eq!(one.ecx & BIT_VMX, 0);
        assert_eq!(one.ecx & BIT_HYPERVISOR, BIT_HYPERVISOR);
        assert_eq!(one.edx & BIT_HTT, 0);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx, 1);
        assert_eq!(find(&cpuid, KVM_FEATURES, 0).eax & KVM_FEATURES_OFF, 0);
        assert_eq!(find(&cpuid, 0xb, 1).eax, 0);
    }

    #[test]
    fn the_debug_store_and_sgx_are_off() {
        let cpuid = for_vcpu(&host(), 0, 1);
        let (one, seven, sgx) = (
            find(&cpuid, 1, 0),
            find(&cpuid, 7, 0),
            find(&cpuid, 0x12, 0),
        );
        assert_eq!((one.ecx & DEBUG_STORE, one.edx & BIT_DS), (0, 0));
        assert_eq!((seven.ebx, seven.ecx), (!BIT_SGX, 1));
        assert_eq!((sgx.eax, sgx.ebx, sgx.ecx, sgx.edx), (0, 0, 0, 0));
    }

    #[test]
    fn the_processors_name_is_the_hosts() {
        let empty = kvm_cpuid_entry2 {
            function: 0x8000_0002,
            ..Default::default()
        };
        let mut cpuid = CpuId::from_entries(&[empty]).unwrap();
        let [eax, ebx, ecx, edx] = [1, 2, 3, 4];
        let host = CpuidResult { eax, ebx, ecx, edx };
        for leaf in NAME {
            name(&mut cpuid, leaf, host);
        }
        let seen = for_vcpu(&cpuid, 0, 1);
        let seen = find(&seen, 0x8000_0002, 0);
        assert_eq!((seen.eax, seen.ebx, seen.ecx, seen.edx), (1, 2, 3, 4));
        assert_eq!(cpuid.as_slice().len(), 1, "leaves that KVM does not list");
    }

    #[test]
    fn the_parts_of_the_xsave_area_are_in_the_contract() {
        let part = |index, eax, ebx, ecx| kvm_cpuid_entry2 {
            function: 0xd,
            index,
            eax,
            ebx,
            ecx,
            ..Default::default()
        };
        let mut host = host();
        for entry in [
            part(0, 0x207, 840, 840),
            part(1, 0xf, 0, 0x1800),
            part(2, 256, 576, 0),
            part(3, 0, 0, 0),
            part(9, 8, 832, 2),
        ] {
            host.push(entry).unwrap();
        }
        let contract = seen(&for_vcpu(&host, 0, 1));
        assert_eq!(contract.xsave_size, 840);
        assert_eq!(contract.features.get("0000000d.1.ecx"), Some(&0x1800));
        let named = |size, offset, flags| XsavePart {
            size,
            offset,
            flags,
        };
        let parts = [(2, named(256, 576, 0)), (9, named(8, 832, 2))];
        assert_eq!(contract.xsave_parts, BTreeMap::from(parts));
    }

    #[test]
    fn the_contract_is_what_the_guest_is_offered() {
        let mut host = host();
        host.as_mut_slice()[0].ebx = u32::from_le_bytes(*b"Auth");
        host.as_mut_slice()[0].edx = u32::from_le_bytes(*b"enti");
        host.as_mut_slice()[0].ecx = u32::from_le_bytes(*b"cAMD");
        host.as_mut_slice()[1].ecx |= 1 << 27 | 1;
        let contract = seen(&for_vcpu(&host, 0, 1));
        assert_eq!(contract.vendor, "AuthenticAMD");
        let word = |name: &str| contract.features.get(name).copied();
        let offered = BIT_HYPERVISOR | BIT_TSC_DEADLINE | BIT_X2APIC | 1;
        assert_eq!(word("00000001.0.ecx"), Some(offered));
        assert_eq!(word("80000001.0.ecx"), Some(1));
        assert_eq!(word("0000000d.0.eax"), None);
        assert_eq!(contract.xsave_size, 0);
    }
}
