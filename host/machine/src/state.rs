//! What is saved of a machine's processors and clock, and the gate it passes when it comes back.
//!
//! KVM's own structures are kernel interface and do not change; each is kept as its bytes. Whoever
//! wrote a state may be hostile: [`Checked`] is the only way from a state to a vCPU. What KVM makes
//! of the values is KVM's to check; they can harm only the guest they belong to.

use crate::error::{Error, Result};
use crate::msr;
use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Most model-specific registers in one state.
pub(crate) const MSRS_MAX: usize = 512;
/// Longest kvmclock reading taken back, in nanoseconds: about 146 years.
const CLOCK_MAX_NS: u64 = 1 << 62;

/// A saved vCPU: all that KVM knows of it, except what the machine it is loaded into has by
/// construction (its CPUID table).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStateV1 {
    pub(crate) index: u8,
    pub(crate) mp_state: u32,
    /// `struct kvm_vcpu_events`, and so on.
    pub(crate) events: Vec<u8>,
    pub(crate) regs: Vec<u8>,
    pub(crate) sregs: Vec<u8>,
    pub(crate) xsave: Vec<u8>,
    /// `None` where the processor has no XSAVE.
    pub(crate) xcrs: Option<Vec<u8>>,
    pub(crate) debug: Option<Vec<u8>>,
    pub(crate) lapic: Vec<u8>,
    /// Number and value, ascending by number; without the two below.
    pub(crate) msrs: Vec<(u32, u64)>,
    pub(crate) tsc: u64,
    pub(crate) tsc_deadline: u64,
    /// Frequency of the time stamp counter, if the host knew it.
    pub(crate) tsc_khz: Option<u32>,
}

impl VcpuStateV1 {
    /// Which vCPU of its machine this was, from 0.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }
}

/// The rest of a saved machine: its clock, and what the vCPUs' states fit into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStateV1 {
    /// Reading of kvmclock, in nanoseconds. A loaded guest continues from here: the time it was not
    /// running for does not exist for it.
    pub clock_ns: u64,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Size of guest RAM.
    pub memory_bytes: u64,
}

impl VmStateV1 {
    /// Refuses a state of another machine.
    pub(crate) fn check(&self, vcpus: u8, memory_bytes: u64) -> Result<()> {
        let refuse =
            |what, found: u64, wanted: u64| Err(mismatch("the machine", what, &found, &wanted));
        if self.vcpus != vcpus {
            return refuse("number of vCPUs", self.vcpus.into(), vcpus.into());
        }
        if self.memory_bytes != memory_bytes {
            return refuse("bytes of memory", self.memory_bytes, memory_bytes);
        }
        if self.clock_ns > CLOCK_MAX_NS {
            return refuse("nanoseconds of clock", self.clock_ns, CLOCK_MAX_NS);
        }
        Ok(())
    }
}

/// A state that fits the vCPU it is meant for.
pub(crate) struct Checked<'a> {
    pub(crate) mp_state: kvm_mp_state,
    pub(crate) events: kvm_vcpu_events,
    pub(crate) regs: kvm_regs,
    pub(crate) sregs: kvm_sregs,
    pub(crate) xsave: Box<kvm_xsave>,
    pub(crate) xcrs: Option<kvm_xcrs>,
    pub(crate) debug: Option<kvm_debugregs>,
    pub(crate) lapic: kvm_lapic_state,
    pub(crate) msrs: &'a [(u32, u64)],
}

impl<'a> Checked<'a> {
    /// Checks a state against vCPU `index`, of which `msrs` (ascending) are saved.
    pub(crate) fn new(state: &'a VcpuStateV1, index: u8, msrs: &[u32]) -> Result<Self> {
        let of = format!("vCPU {index}");
        if state.index != index {
            return Err(mismatch(of, "its number", &state.index, &index));
        }
        check_msrs(&of, &state.msrs, msrs)?;
        Ok(Self {
            mp_state: kvm_mp_state {
                mp_state: state.mp_state,
            },
            events: part(&of, "size of kvm_vcpu_events", &state.events)?,
            regs: part(&of, "size of kvm_regs", &state.regs)?,
            sregs: part(&of, "size of kvm_sregs", &state.sregs)?,
            xsave: Box::new(part(&of, "size of kvm_xsave", &state.xsave)?),
            xcrs: optional(&of, "size of kvm_xcrs", state.xcrs.as_deref())?,
            debug: optional(&of, "size of kvm_debugregs", state.debug.as_deref())?,
            lapic: part(&of, "size of kvm_lapic_state", &state.lapic)?,
            msrs: &state.msrs,
        })
    }
}

/// Only registers that are also saved here, each once.
fn check_msrs(of: &str, saved: &[(u32, u64)], known: &[u32]) -> Result<()> {
    if saved.len() > MSRS_MAX {
        let what = "number of model-specific registers";
        return Err(mismatch(
            of,
            what,
            &saved.len(),
            &format!("{MSRS_MAX} or less"),
        ));
    }
    if !saved.is_sorted_by(|a, b| a.0 < b.0) {
        let what = "order of model-specific registers";
        return Err(mismatch(of, what, "not ascending", "ascending ones"));
    }
    let stranger = |i: u32| known.binary_search(&i).is_err() && !msr::is_passed_over(i);
    match saved.iter().find(|(i, _)| stranger(*i)) {
        Some((stranger, _)) => Err(mismatch(
            of,
            "a model-specific register",
            &format!("{stranger:#x}"),
            "those this host's KVM lists",
        )),
        None => Ok(()),
    }
}

/// A kernel structure's bytes.
pub(crate) fn bytes<T: IntoBytes + Immutable>(of: &T) -> Vec<u8> {
    of.as_bytes().to_vec()
}

fn part<T: FromBytes>(of: &str, what: &'static str, bytes: &[u8]) -> Result<T> {
    T::read_from_bytes(bytes).map_err(|_| mismatch(of, what, &bytes.len(), &size_of::<T>()))
}

fn optional<T: FromBytes>(of: &str, what: &'static str, bytes: Option<&[u8]>) -> Result<Option<T>> {
    bytes.map(|bytes| part(of, what, bytes)).transpose()
}

pub(crate) fn mismatch(
    of: impl Into<String>,
    what: &'static str,
    found: &(impl ToString + ?Sized),
    wanted: &(impl ToString + ?Sized),
) -> Error {
    Error::State {
        of: of.into(),
        what,
        found: found.to_string(),
        wanted: wanted.to_string(),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn state() -> VcpuStateV1 {
        VcpuStateV1 {
            index: 0,
            mp_state: 0,
            events: vec![0; 64],
            regs: (0..144).collect(),
            sregs: vec![0; 312],
            xsave: vec![0; 4096],
            xcrs: None,
            debug: None,
            lapic: vec![0; 1024],
            msrs: vec![(0x174, 1), (0x277, 2)],
            tsc: 3,
            tsc_deadline: 0,
            tsc_khz: None,
        }
    }

    #[test]
    fn a_state_survives_its_bytes() {
        let bytes = postcard::to_allocvec(&state()).unwrap();
        let back: VcpuStateV1 = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(back, state());
        let checked = Checked::new(&back, 0, &[0x174, 0x277]).unwrap();
        assert_eq!(checked.regs.rax, 0x0706_0504_0302_0100);
    }

    #[test]
    fn cut_bytes_are_no_state() {
        let bytes = postcard::to_allocvec(&state()).unwrap();
        for length in 0..bytes.len() {
            postcard::from_bytes::<VcpuStateV1>(&bytes[..length]).unwrap_err();
        }
    }

    #[test]
    fn registers_this_host_does_not_save_are_refused() {
        Checked::new(&state(), 0, &[0x174, 0x277, 0x300]).unwrap();
        for known in [&[0x174][..], &[]] {
            let refused = Checked::new(&state(), 0, known).err();
            assert!(matches!(refused, Some(Error::State { .. })));
        }
    }

    #[test]
    fn capabilities_that_older_programs_saved_are_passed_over() {
        let mut older = state();
        older.msrs.push((0x480, 0));
        Checked::new(&older, 0, &[0x174, 0x277]).unwrap();
    }
}
