//! Saving and loading vCPUs and the clock. The order of the calls is the point of this file.
#![expect(
    unsafe_code,
    reason = "kvm-ioctls cannot know how much KVM_SET_XSAVE reads"
)]

use crate::error::{Error, Result, ioctl};
use crate::msr;
use crate::state::{Checked, VcpuStateV1, VmStateV1, bytes, mismatch};
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use kvm_bindings::{kvm_clock_data, kvm_debugregs, kvm_xsave};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::errno;

/// Far from every time stamp that the guest can have had, see [`Vcpu::load_time`].
const FAR: u64 = 1 << 62;

/// What the debug registers hold after a reset (Intel SDM volume 3, table 10-1).
const UNUSED_DEBUG: kvm_debugregs = kvm_debugregs {
    db: [0; 4],
    dr6: 0xffff_0ff0,
    dr7: 0x400,
    flags: 0,
    reserved: [0; 9],
};

impl Vcpu {
    /// Saves the vCPU. It must not be in the guest, must be settled ([`Vcpu::settle`]; a parked
    /// thread's is), and no device may raise an interrupt meanwhile.
    ///
    /// # Errors
    /// From the ioctls, by name. Only what a host's processor may lack (extended control registers,
    /// debug registers, the counter's frequency) is left out silently.
    pub fn save(&self) -> Result<VcpuStateV1> {
        let fd = &self.fd;
        // First: KVM takes in a pending INIT or start-up message here, which resets registers.
        let mp_state = fd.get_mp_state().map_err(self.at("KVM_GET_MP_STATE"))?;
        let events = fd
            .get_vcpu_events()
            .map_err(self.at("KVM_GET_VCPU_EVENTS"))?;
        let regs = fd.get_regs().map_err(self.at("KVM_GET_REGS"))?;
        let sregs = fd.get_sregs().map_err(self.at("KVM_GET_SREGS"))?;
        let xsave = fd.get_xsave().map_err(self.at("KVM_GET_XSAVE"))?;
        // Without XSAVE, KVM gives an empty list and does not take it back.
        let xcrs = lacking(fd.get_xcrs())
            .map_err(self.at("KVM_GET_XCRS"))?
            .filter(|xcrs| xcrs.nr_xcrs != 0);
        let debug = lacking(fd.get_debug_regs()).map_err(self.at("KVM_GET_DEBUGREGS"))?;
        let msrs = msr::read_readable(fd, self.index(), &self.msrs)?;
        // The deadline before the APIC: a timer that fires in between is then in both, and comes
        // twice; the other way round it would be in neither, and the guest would never wake.
        let [tsc, tsc_deadline] = msr::read_all(fd, self.index(), [msr::TSC, msr::TSC_DEADLINE])?;
        let lapic = fd.get_lapic().map_err(self.at("KVM_GET_LAPIC"))?;
        Ok(VcpuStateV1 {
            index: self.index(),
            mp_state: mp_state.mp_state,
            events: bytes(&events),
            regs: bytes(&regs),
            sregs: bytes(&sregs),
            xsave: bytes(&xsave),
            xcrs: xcrs.as_ref().map(bytes),
            debug: debug.as_ref().map(bytes),
            lapic: bytes(&lapic),
            msrs,
            tsc,
            tsc_deadline,
            tsc_khz: self.tsc_khz(),
        })
    }

    /// Loads a saved vCPU of the same number into one that has never run (see [`Vcpu::reload`] for
    /// one that has). vCPU 0 of a machine must be loaded before the others (see
    /// [`Vcpu::load_time`]); [`Vm::load`] does it all.
    ///
    /// # Errors
    /// [`crate::Error::State`] for a state that does not fit, before anything is changed. From the
    /// ioctls when KVM refuses a part of it; the vCPU is then of no use.
    pub fn load(&self, state: &VcpuStateV1) -> Result<()> {
        self.load_into(state, true)
    }

    /// Into a `fresh` vCPU, what it has from its reset is not written.
    fn load_into(&self, state: &VcpuStateV1, fresh: bool) -> Result<()> {
        let checked = Checked::new(state, self.index(), &self.msrs)?;
        let fd = &self.fd;
        self.match_tsc_khz(state.tsc_khz)?;
        // Special registers switch the APIC's mode, so before the APIC's contents; general ones
        // forget pending exceptions, so before the events.
        fd.set_sregs(&checked.sregs)
            .map_err(self.at("KVM_SET_SREGS"))?;
        fd.set_regs(&checked.regs)
            .map_err(self.at("KVM_SET_REGS"))?;
        if let Some(xcrs) = &checked.xcrs {
            fd.set_xcrs(xcrs).map_err(self.at("KVM_SET_XCRS"))?;
        }
        self.set_xsave(&checked.xsave)?;
        let debug = checked.debug.as_ref();
        if let Some(debug) = debug.filter(|debug| !fresh || **debug != UNUSED_DEBUG) {
            fd.set_debug_regs(debug)
                .map_err(self.at("KVM_SET_DEBUGREGS"))?;
        }
        msr::load(fd, self.index(), checked.msrs)?;
        fd.set_lapic(&checked.lapic)
            .map_err(self.at("KVM_SET_LAPIC"))?;
        self.load_time(state)?;
        fd.set_mp_state(checked.mp_state)
            .map_err(self.at("KVM_SET_MP_STATE"))?;
        fd.set_vcpu_events(&checked.events)
            .map_err(self.at("KVM_SET_VCPU_EVENTS"))?;
        // Notifies the guest's watchdogs that it was paused. A guest without kvmclock has no place
        // for that.
        lacking(fd.kvmclock_ctrl()).map_err(self.at("KVM_KVMCLOCK_CTRL"))?;
        Ok(())
    }

    /// Loads a saved vCPU of the same number into one that has run and is parked, as all others of
    /// its machine are. What it had of its own is gone afterwards.
    ///
    /// # Errors
    /// As [`Vcpu::load`].
    pub fn reload(&self, state: &VcpuStateV1) -> Result<()> {
        let fd = &self.fd;
        // Takes in a pending INIT or start-up message, which would reset the loaded registers.
        fd.get_mp_state().map_err(self.at("KVM_GET_MP_STATE"))?;
        msr::forget(fd, self.index(), &self.msrs, &state.msrs)?;
        self.load_into(state, false)
    }

    /// Sets the time stamp counter and its deadline to what was saved. [`Vcpu::load`] does this
    /// too; a machine that has waited between its loading and its start does it again right before
    /// it starts, with [`Vm::load_clock`], so that the wait does not exist for the guest.
    ///
    /// vCPU 0 first: KVM takes a value within a second of what the counter of the vCPU set before
    /// would be for an attempt to make the two equal, and makes them so, whatever the value.
    /// Exactly that is wanted of the others, so that all counters run as one. For vCPU 0 it would
    /// mean keeping the fresh machine's counter, so it is first set to something far away.
    ///
    /// # Errors
    /// From the ioctl.
    pub fn load_time(&self, state: &VcpuStateV1) -> Result<()> {
        // The APIC must be in deadline mode already, or KVM drops the deadline; a deadline of 0
        // disarms the timer.
        let values = [
            (msr::TSC, state.tsc.wrapping_add(FAR)),
            (msr::TSC, state.tsc),
            (msr::TSC_DEADLINE, state.tsc_deadline),
        ];
        let skip = usize::from(self.index() != 0);
        msr::write_all(&self.fd, self.index(), &values[skip..])
    }

    /// Names a failed call. The text is only made then: loading is short of instructions.
    fn at(&self, call: &'static str) -> impl FnOnce(errno::Error) -> Error {
        let index = self.index();
        move |error| ioctl(call, format!("vCPU {index}"))(error)
    }

    /// Frequency of the time stamp counter, where it is known.
    fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok().filter(|khz| *khz != 0)
    }

    /// Makes the counter run at the saved rate.
    fn match_tsc_khz(&self, saved: Option<u32>) -> Result<()> {
        match saved {
            Some(khz) if self.tsc_khz() != saved => self.fd.set_tsc_khz(khz).map_err(|error| {
                let with = format!("vCPU {}, {khz} kHz", self.index());
                ioctl("KVM_SET_TSC_KHZ", with)(error)
            }),
            _ => Ok(()),
        }
    }

    fn set_xsave(&self, xsave: &kvm_xsave) -> Result<()> {
        // SAFETY: KVM reads more than these 4096 bytes only for a process that has asked for
        // dynamically enabled features (arch_prctl), and nothing here does.
        unsafe { self.fd.set_xsave(xsave) }.map_err(self.at("KVM_SET_XSAVE"))
    }
}

impl Vm {
    /// Saves the clock and the machine's shape. All vCPUs must be parked.
    ///
    /// # Errors
    /// From the ioctl.
    pub fn save(&self) -> Result<VmStateV1> {
        let clock = self.fd.get_clock().map_err(ioctl("KVM_GET_CLOCK", ""))?;
        Ok(VmStateV1 {
            clock_ns: clock.clock,
            vcpus: self.vcpus,
            memory_bytes: self.memory_bytes(),
        })
    }

    /// Sets the clock to what was saved. After the vCPUs' time ([`Vcpu::load_time`]): KVM derives
    /// the one from the other.
    ///
    /// # Errors
    /// [`crate::Error::State`] for a state of another machine; from the ioctl.
    pub fn load_clock(&self, state: &VmStateV1) -> Result<()> {
        state.check(self.vcpus, self.memory_bytes())?;
        // No flags: the clock continues from here, whatever time it is.
        let clock = kvm_clock_data {
            clock: state.clock_ns,
            ..Default::default()
        };
        self.fd
            .set_clock(&clock)
            .map_err(|error| ioctl("KVM_SET_CLOCK", format!("{} ns", state.clock_ns))(error))
    }

    /// Loads all vCPUs of a machine that has never run, as [`Vm::new`] returned them, and its
    /// clock.
    ///
    /// # Errors
    /// [`crate::Error::State`] for states that do not fit; from the ioctls. The machine is then of
    /// no use.
    pub fn load(&self, vcpus: &[Vcpu], state: &VmStateV1, states: &[VcpuStateV1]) -> Result<()> {
        state.check(self.vcpus, self.memory_bytes())?;
        if states.len() != vcpus.len() || vcpus.len() != usize::from(self.vcpus) {
            let what = "number of saved vCPUs";
            return Err(mismatch("the machine", what, &states.len(), &self.vcpus));
        }
        for (vcpu, state) in vcpus.iter().zip(states) {
            vcpu.load(state)?;
        }
        self.load_clock(state)
    }

    fn memory_bytes(&self) -> u64 {
        self.memory().ram().iter().map(|r| r.len()).sum()
    }
}

/// `None` for what this host does not have: no such ioctl, or not with this processor.
fn lacking<T>(
    answer: std::result::Result<T, errno::Error>,
) -> std::result::Result<Option<T>, errno::Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.errno(), libc::EINVAL | libc::ENOTTY) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod test;
